"""The image with the second door (``EXTRAS=mms``): multi-model-server's contract, word for word as in tests/doors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.doors import test_contract
from tests.doors.differences import DIFFERENCES
from tests.image.container import IMAGE, Container, contained, docker
from tests.image.test_life import ECHO
from tests.server import living, write_handler

JAVA = "com.amazonaws.ml.mms.ModelServer"
#: The first test builds the image: on a machine that does much else, that takes its time.
pytestmark = pytest.mark.timeout(900)

globals().update({name: test for name, test in vars(test_contract).items() if name.startswith("test_")})


@pytest.fixture(scope="module")
def server(mms_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container of the mms image for the tests that are borrowed; it sees their folders, too."""
    seen = tmp_path_factory.getbasetemp()
    with contained(
        tmp_path_factory.mktemp("mms"), "-v", f"{seen}:{seen}:ro", image=mms_image, BERTH_DOOR="mms"
    ) as started:
        yield started


@pytest.fixture
def expected() -> Callable[[str], Any]:
    """What this door answers where the two differ."""
    return lambda what: DIFFERENCES[what].mms


def javas(container: Container) -> list[psutil.Process]:
    """The Java processes of a container."""
    return living(container.family(), JAVA)


def test_the_mms_image_has_the_labels_and_java_and_the_default_one_has_no_java(
    mms_image: str, figures: dict[str, str]
) -> None:
    inspected = json.loads(docker("image", "inspect", mms_image))[0]
    labels = inspected["Config"]["Labels"]
    assert labels["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert labels["berth.extras"] == "mms"
    look = "find / -xdev -name java -type f -o -xdev -name 'libjvm.so'"
    found = {
        name: docker("run", "--rm", "--network=none", "--entrypoint", "/bin/sh", name, "-c", look)
        for name in (mms_image, IMAGE)
    }
    assert "/bin/java" in found[mms_image]
    assert found[IMAGE] == ""
    figures["image with EXTRAS=mms alone"] = f"{inspected['Size'] / 1e6:.0f} MB"


def test_sigterm_ends_java_its_workers_and_the_engine_with_status_0(mms_image: str, open_path: Path) -> None:
    with contained(open_path, image=mms_image, BERTH_DOOR="mms") as container:
        write_handler(container.folder("echo"), ECHO)
        container.load("echo").raise_for_status()
        assert container.invoke("echo", [1]).json() == [1]
        assert len(javas(container)) == 1
        family = container.family()
        assert len(family) >= 5, "engine, guests, door, Java, a worker and its fork"
        assert container.stop(timeout_s=30) == 0, container.log()
        assert [process for process in family if process.is_running()] == []


def test_the_mms_image_speaks_the_first_door_as_well(mms_image: str, open_path: Path) -> None:
    with contained(open_path, image=mms_image) as container:
        assert javas(container) == []
        assert container.names() == []
