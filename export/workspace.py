"""A folder beside the output that becomes the output when all is well, and is gone when it is not."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemt.bundle import MANIFEST, pack
from edgemt.errors import EdgemtError, UsageError

ARCHIVE = ".edgemt"  # an output of this name is a zipped bundle


def check_output(output: Path, force: bool) -> None:
    """Refuse, before any work, an output that could not be written or would overwrite something else."""
    if not output.parent.is_dir():
        raise UsageError(f"cannot write {output}: there is no folder {output.parent}; make it first")
    if not output.exists():
        return
    if output.suffix == ARCHIVE and output.is_file():
        replaceable = True
    else:
        replaceable = output.is_dir() and ((output / MANIFEST).is_file() or not any(output.iterdir()))
    if not replaceable:
        raise UsageError(f"{output} exists and is not a bundle; name another output")
    if not force and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{output} exists; add --force to replace it, or name another output")


@contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """A new folder beside `output` (so that renaming works), removed whatever happens."""
    work = output.parent / f".{output.name}.{os.getpid()}.partial"
    try:
        work.mkdir()
        yield work
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space" if full else "check the folder's rights, or name another output"
        raise EdgemtError(f"cannot write {output} ({error.strerror or error}); {cure}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def publish(bundle: Path, output: Path) -> None:
    """Give the sealed `bundle` (in a workspace beside it) its final name, replacing what was there."""
    if output.suffix == ARCHIVE:
        pack(bundle, output)
        return
    old = bundle.with_name("replaced")
    if output.exists():
        os.rename(output, old)
    try:
        os.rename(bundle, output)
    except OSError:
        if old.exists():
            os.rename(old, output)
        raise
