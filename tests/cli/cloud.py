"""AWS as moto plays it, on loopback, for processes of ours that are started with ``environ``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

REGION = "eu-west-1"
ACCOUNT = "123456789012"
#: Nothing of the person's own AWS configuration is seen or touched.
NOBODY = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SOMEBODY = {
    **NOBODY,
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
}


def environ(**changes: str) -> dict[str, str]:
    """Return this process's environment without its AWS variables, with ``changes``."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | changes


@contextmanager
def moto_cloud() -> Iterator[dict[str, str]]:
    """One empty AWS; yields the variables that lead there, which are this process's too."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    where = {**SOMEBODY, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    os.environ.update(where)
    boto3.client("sts", region_name=REGION)  # fails here, not in a test, when the address is wrong
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    try:
        yield where
    finally:
        server.stop()
