"""A folder that plays the S3 prefix of a multi-model endpoint, and the volume that its archives are unpacked on.

``TargetModel`` is a path relative to the prefix, with or without a leading slash. What reaches the container is an
opaque name and a folder: ``<base>/models/<name>/model``. The name is a hash of the key and of the file's size and time,
so a rebuilt archive is a new model here; the real platform keeps serving the old one until it is unloaded, which is
why new versions need new keys there.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from local_test import aws

#: What unpacking raises for an archive that cannot be used.
BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error)
_RESERVE_BYTES = 256 << 20  # free space that unpacking must leave on the volume


@dataclass(frozen=True, slots=True)
class Artifact:
    """One archive of the prefix. ``key``: its path there; ``name``: what the container knows it by, [0-9a-f]{32}."""

    key: str
    name: str
    file: Path


class Bucket:
    """The prefix and the volume. Safe to use from several threads: each name is unpacked aside and then renamed."""

    def __init__(self, prefix: Path, base: Path) -> None:
        self.prefix = prefix
        self._volume = base / "models"

    def artifact(self, target_model: str) -> Artifact:
        """Return the archive that TargetModel names. Raises Refused (ValidationError) if there is none."""
        key = target_model.lstrip("/")
        parts = PurePosixPath(key).parts
        file = self.prefix.joinpath(*parts) if parts else self.prefix
        if ".." in parts or not key.endswith(".tar.gz") or not file.is_file():
            raise aws.artifact_missing(str(self.prefix), key)
        status = file.stat()
        identity = f"{key}\0{status.st_size}\0{status.st_mtime_ns}"
        return Artifact(key, hashlib.sha256(identity.encode()).hexdigest()[:32], file)

    def keys(self) -> list[str]:
        """Return the keys of all archives under the prefix, sorted."""
        return sorted(file.relative_to(self.prefix).as_posix() for file in self.prefix.rglob("*.tar.gz"))

    def unpack(self, artifact: Artifact) -> Path:
        """Return the folder with the archive's content, unpacking it first if it is not there yet.

        Raises Refused (ValidationError) for what is no tar.gz, holds links or devices, leaves its folder, or does not
        fit on the volume.
        """
        place = self._volume / artifact.name
        if not place.exists():
            self._volume.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=self._volume))
            try:
                aside.chmod(0o755)  # mkdtemp makes it private; the container may be another user
                extract(artifact.file, aside / "model")
                aside.rename(place)
            except BROKEN as error:
                if not place.exists():  # else somebody was faster, with the same content
                    raise aws.artifact_broken(artifact.key, f"{type(error).__name__}: {error}") from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return place / "model"


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar.gz into ``folder``.

    Raises one of BROKEN for an archive that is broken or holds what the platform does not take: links, devices, paths
    that lead out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(folder).free - _RESERVE_BYTES
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if not (member.isfile() or member.isdir()):
                raise tarfile.TarError(f"{member.name} is neither a file nor a folder (links are not allowed)")
            room -= member.size
            if room < 0:
                raise tarfile.TarError("the volume has no room for what the archive holds")
            tar.extract(member, folder, filter="data")


if __name__ == "__main__":  # serve_local.sh --single unpacks with the same care
    if len(sys.argv) != 3:
        sys.exit("usage: python -m local_test.bucket ARCHIVE.tar.gz FOLDER")
    try:
        extract(Path(sys.argv[1]), Path(sys.argv[2]))
    except BROKEN as broken:
        sys.exit(f"{sys.argv[1]} cannot be unpacked: {type(broken).__name__}: {broken}")
