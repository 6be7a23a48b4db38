import io
import tarfile
import threading

import boto3
import pytest
from botocore.config import Config
from fake_container import FakeContainer

from local_test import aws
from local_test.bucket import Bucket
from local_test.container_http import Container, Limits
from local_test.endpoint import serve
from local_test.hosting import Endpoint


def _write_archive(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


class StandIn:
    """A stand-in served on a free port, its bucket with archives a, b, c and team/d, and a boto3 client."""

    def __init__(self, tmp_path, containers, single=False, **limits):
        self.prefix, self.base = tmp_path / "prefix", tmp_path / "base"
        for key in ("a", "b", "c", "team/d"):
            _write_archive(self.prefix / f"{key}.tar.gz", {"./config.json": key.encode()})
        self.bucket = None if single else Bucket(self.prefix, self.base)
        known = Limits(**{"connect_s": 2.0, "ping_every_s": 0.05, **limits})
        self.endpoint = Endpoint(aws.Place("local"), self.bucket, [Container(c.url, 2.0) for c in containers], known)
        self.server = serve(self.endpoint, "127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.health = self.endpoint.health
        for each in self.health:
            assert each.wait_in_service()
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.clients = []
        self.client = self.new_client()

    def new_client(self, **config):
        client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(**{"retries": {"total_max_attempts": 1}, "read_timeout": 20, **config}),
        )
        self.clients.append(client)
        return client

    def invoke(self, target="a.tar.gz", body=b"hello", **more):
        if target is not None:
            more["TargetModel"] = target
        answer = self.client.invoke_endpoint(EndpointName=more.pop("name", "local"), Body=body, **more)
        return {**answer, "Body": answer["Body"].read()}

    def say(self, target="a.tar.gz", body=b"hello"):
        return self.invoke(target, body)["Body"]

    def name_of(self, target):
        return self.bucket.artifact(target).name

    def close(self):
        for client in self.clients:
            client.close()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        self.endpoint.close()


@pytest.fixture(scope="session")
def write_archive():
    """Return a function (path, {member: bytes}) that writes a tar.gz."""
    return _write_archive


@pytest.fixture
def container():
    fake = FakeContainer()
    yield fake
    fake.close()


@pytest.fixture
def stand_in(tmp_path, container):
    """Return a function that builds a stand-in in front of ``container`` with the given limits."""
    built = []

    def build(*others, **options):
        built.append(StandIn(tmp_path, [container, *others], **options))
        return built[-1]

    yield build
    for gate in container.gates.values():
        gate.set()
    for each in built:
        each.close()
