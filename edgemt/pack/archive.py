"""The tar file: the same files give the same bytes, and it appears when it is complete."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

from edgemt.errors import EdgemtError, UsageError

DATE = 315532800  # 1980-01-01, as in the wheels
PROGRAMS = ("install.sh",)


def check_output(path: Path) -> None:
    """Raise UsageError, before any work, unless `path` can be written."""
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file to write, for example {path / 'usb.tar'}")
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; create it or choose another place")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written (no right to write in {folder}); choose another place")


def write_tar(folder: Path, path: Path) -> str:
    """Write the folder as the tar file `path`; returns its SHA-256. No room: EdgemtError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    entry = tarfile.TarInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}")
                    entry.size, entry.mtime = file.stat().st_size, DATE
                    entry.mode = 0o755 if file.name in PROGRAMS else 0o644
                    with file.open("rb") as data:
                        archive.addfile(entry, data)
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        partial.replace(path)
    except OSError as error:
        raise EdgemtError(f"{path} could not be written ({error.strerror}); free some space there") from None
    finally:
        partial.unlink(missing_ok=True)
    return digest
