"""Archives on their way to an S3 prefix: what is there is known by its sha256, what is new goes up in parts."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from container.cli import deployment
from container.cli.aws import Trouble

#: Where the hash of an archive is kept: S3's own ETag is none for what went up in parts.
_HASH = "berth-sha256"


def archives(paths: list[Path]) -> dict[str, Path]:
    """Return key (relative, with "/") -> file of each .tar.gz given, and of those in each folder given.

    Raises Trouble when there are none, or two with one key.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise Trouble(f"{path} is not there")
        inside = sorted(path.rglob("*.tar.gz")) if path.is_dir() else [path]
        for file in inside:
            key = file.relative_to(path).as_posix() if path.is_dir() else file.name
            if not key.endswith(".tar.gz"):
                raise Trouble(f"{file} is not a .tar.gz; make one with `berth pack FOLDER`")
            if key in found:
                raise Trouble(f"{found[key]} and {file} would both be {key}")
            found[key] = file
    if paths and not found:
        raise Trouble(f"there is no .tar.gz in {', '.join(map(str, paths))}; `berth pack FOLDER` makes one")
    return found


def digest(file: Path) -> str:
    """Return the sha256 of a file in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def listing(client: Any, bucket: str, prefix: str, keys: list[str]) -> dict[str, str]:
    """Return key -> sha256 of those of ``keys`` that are under the prefix; "" for what we have not uploaded."""
    found = {}
    for key in keys:
        try:
            head = client.head_object(Bucket=bucket, Key=prefix + key)
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in {"404", "NoSuchKey", "NotFound"}:
                continue
            raise
        found[key] = head["Metadata"].get(_HASH, "")
    return found


def put_all(client: Any, url: str, paths: list[Path], *, overwrite: bool, dry_run: bool) -> int:
    """Bring archives to ``url``; return how many went up (or would). Raises Trouble, Refused, and boto3's errors."""
    bucket, prefix = deployment.s3_parts(url)
    files = archives(paths)
    local = {key: digest(file) for key, file in files.items()}
    decided = deployment.uploads(local, listing(client, bucket, prefix, list(files)), overwrite=overwrite)
    for upload in decided:
        if upload.action == "refuse":
            raise deployment.Refused(
                f"s3://{bucket}/{prefix}{upload.key} is there with other content, and instances keep what they have "
                "downloaded: upload it under a new name, or --overwrite before the endpoint exists"
            )
    sent = [upload.key for upload in decided if upload.action == "upload"]
    for key in sent:
        if dry_run:
            print(f"s3.upload_file {files[key]} s3://{bucket}/{prefix}{key}")
        else:
            _put(client, files[key], bucket, prefix + key, local[key])
    for upload in decided:
        if upload.action == "keep":
            print(f"  {upload.key}: is there already", file=sys.stderr)
    return len(sent)


def _put(client: Any, file: Path, bucket: str, key: str, sha256: str) -> None:
    from boto3.exceptions import S3UploadFailedError
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=32 << 20)
    with Bar(key, file.stat().st_size, sys.stderr) as bar:
        try:
            client.upload_file(
                str(file), bucket, key, ExtraArgs={"Metadata": {_HASH: sha256}}, Callback=bar.add, Config=parts
            )
        except S3UploadFailedError as error:
            raise Trouble(f"{file} did not go up: {error}") from error


class Bar:
    """A bar of one upload on a terminal; a single line at the end elsewhere. ``add`` is called by several threads."""

    def __init__(self, name: str, total_bytes: int, out: TextIO) -> None:
        self._name, self._total, self._out = name, max(1, total_bytes), out
        self._done = 0
        self._lock = threading.Lock()
        self._began_s = time.monotonic()

    def add(self, more_bytes: int) -> None:
        """Count bytes that have gone up."""
        with self._lock:
            self._done += more_bytes
            if self._out.isatty():
                filled = min(30, 30 * self._done // self._total)
                self._out.write(f"\r  {self._name} [{'#' * filled:<30}] {self._done >> 20} of {self._total >> 20} MiB ")
                self._out.flush()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._out.isatty():
            self._out.write("\n")
        elif kind is None:
            took_s = max(1e-3, time.monotonic() - self._began_s)
            mib = self._total / (1 << 20)
            self._out.write(f"  {self._name}: {mib:.1f} MiB in {took_s:.1f} s\n")
