"""Row A of the systems to move in from: AWS's XGBoost container, one house-price model a city, added by copying."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xgboost
from botocore.exceptions import ClientError

from tests.rows.stand_in import Platform, multi_model, tar

CITIES = ("Houston_TX", "LosAngeles_CA", "Chicago_IL", "NewYork_NY")
#: YEAR_BUILT, SQUARE_FEET, NUM_BEDROOMS, NUM_BATHROOMS, LOT_ACRES, GARAGE_SPACES
HOUSE = [1997, 2527, 6, 2.5, 0.57, 1]
CSV = ",".join(map(str, HOUSE)).encode()


def houses(city: int) -> tuple[np.ndarray, np.ndarray]:
    """A thousand houses and their prices, the city's own level among them."""
    random = np.random.default_rng(city)
    features = np.column_stack(
        [
            random.integers(1951, 2019, 1000),
            random.normal(3000, 750, 1000).round(),
            random.integers(2, 7, 1000),
            random.integers(2, 7, 1000) / 2,
            random.normal(1.0, 0.25, 1000).round(2),
            random.integers(0, 4, 1000),
        ]
    )
    base = features @ [1.0, 150.0, 30_000.0, 22_500.0, 15_000.0, 15_000.0]
    return features, (base * (1 + city / 4)).round()


def train(city: int) -> xgboost.Booster:
    features, prices = houses(city)
    settings = {"max_depth": 5, "eta": 0.2, "objective": "reg:squarederror", "nthread": 1}
    return xgboost.train(settings, xgboost.DMatrix(features, label=prices), 25)


@pytest.fixture(scope="module")
def boosters() -> dict[str, xgboost.Booster]:
    return {city: train(number) for number, city in enumerate(CITIES)}


@pytest.fixture(scope="module")
def artifacts(boosters: dict[str, xgboost.Booster], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the training jobs left: a tarball each, with one file xgboost-model in the format of XGBoost 1.5."""
    home = tmp_path_factory.mktemp("jobs")
    for city, booster in boosters.items():
        (home / city).mkdir()
        with xgboost.config_context(verbosity=0):  # its warning about the old format would be an error here
            (home / city / "xgboost-model").write_bytes(booster.save_raw("deprecated"))
        tar(home / city, home / f"{city}.tar.gz")
    return home


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with multi_model(tmp_path_factory.mktemp("row")) as started:
        yield started


def add_model(platform: Platform, artifact: Path, name: str) -> str:
    """The SDK's ``add_model``: a copy under the prefix."""
    assert platform.prefix is not None
    shutil.copy(artifact, platform.prefix / name)
    return name


def predicted(booster: xgboost.Booster, row: list[float]) -> float:
    return float(booster.predict(xgboost.DMatrix(np.asarray([row])))[0])


def test_models_added_by_copying_answer_as_the_library_does_and_faster_the_second_time(
    platform: Platform, artifacts: Path, boosters: dict[str, xgboost.Booster]
) -> None:
    assert platform.endpoint.status()["archives"] == {}
    for city in CITIES:
        add_model(platform, artifacts / f"{city}.tar.gz", f"{city}.tar.gz")
    assert sorted(platform.endpoint.status()["archives"]) == sorted(f"{city}.tar.gz" for city in CITIES)
    prices = {}
    for city, booster in boosters.items():
        took = []
        for _ in range(2):
            started = time.perf_counter()
            answer = platform.invoke(f"{city}.tar.gz", CSV, "text/csv")
            took.append(time.perf_counter() - started)
            assert answer["ContentType"] == "application/json"
            (prices[city],) = json.loads(answer["Body"])
            assert prices[city] == pytest.approx(predicted(booster, HOUSE), rel=1e-6)
        print(f"{city}: ${prices[city]:,.2f}, {took[0] * 1e3:.0f} ms then {took[1] * 1e3:.0f} ms")
    assert len(set(prices.values())) == len(CITIES)
    assert len(platform.server.names()) == len(CITIES)


def test_a_model_is_updated_by_a_new_name_and_both_go_on_answering(
    platform: Platform, artifacts: Path, boosters: dict[str, xgboost.Booster]
) -> None:
    old = add_model(platform, artifacts / "NewYork_NY.tar.gz", "NewYork_NY.tar.gz")
    new = add_model(platform, artifacts / "Houston_TX.tar.gz", "NewYork_NY_v2.tar.gz")
    assert platform.ask(new, CSV, "text/csv") == [pytest.approx(predicted(boosters["Houston_TX"], HOUSE), rel=1e-6)]
    assert platform.ask(old, CSV, "text/csv") == [pytest.approx(predicted(boosters["NewYork_NY"], HOUSE), rel=1e-6)]


def test_several_rows_json_and_missing_values_are_read_and_csv_is_written(
    platform: Platform, artifacts: Path, boosters: dict[str, xgboost.Booster]
) -> None:
    target = add_model(platform, artifacts / "Chicago_IL.tar.gz", "Chicago_IL.tar.gz")
    booster = boosters["Chicago_IL"]
    rows = [HOUSE, [1970, 1800, 3, float("nan"), 0.3, 0]]
    wanted = [pytest.approx(predicted(booster, row), rel=1e-6) for row in rows]
    body = b"1997,2527,6,2.5,0.57,1\n1970,1800,3,,0.3,0\n"
    assert platform.ask(target, body, "text/csv; charset=utf-8") == wanted
    as_json = [HOUSE, [1970, 1800, 3, None, 0.3, 0]]
    for value in (as_json, {"inputs": as_json}, {"instances": [{"features": row} for row in as_json]}):
        assert platform.ask(target, json.dumps(value).encode()) == wanted
    assert platform.ask(target, json.dumps(HOUSE).encode()) == wanted[:1]
    written = platform.invoke(target, body, "text/csv", Accept="text/csv")
    assert written["ContentType"] == "text/csv"
    assert [float(each) for each in written["Body"].split(b",")] == wanted


def test_an_empty_body_has_no_answer_and_other_types_and_rows_are_refused(platform: Platform, artifacts: Path) -> None:
    target = add_model(platform, artifacts / "Chicago_IL.tar.gz", "Chicago_IL.tar.gz")
    empty = platform.invoke(target, b"", "text/csv")
    assert (empty["ResponseMetadata"]["HTTPStatusCode"], empty["Body"]) == (204, b"")
    for content_type, body, status, said in (
        ("image/jpeg", CSV, 415, "this model reads application/json, text/csv"),
        ("text/csv", b"250000," + CSV, 400, "7 columns; this model takes 6 numbers a row"),
        ("text/csv", b"1997,big,6,2.5,0.57,1", 400, "row 0, column 1 is a text, 'big'"),
        ("application/json", b'{"rows": []}', 400, "neither inputs nor instances"),
    ):
        with pytest.raises(ClientError) as caught:
            platform.invoke(target, body, content_type)
        assert caught.value.response["OriginalStatusCode"] == status
        assert said in caught.value.response["OriginalMessage"]
