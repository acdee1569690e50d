"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemt.errors import EdgemtError

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


@contextmanager
def replacing(target: Path, needed: int) -> Iterator[Path]:
    """A temporary path, for a file or a folder of about `needed` bytes, which takes the place of `target`.

    If the block fails the temporary is removed and `target` stays as it was; raises EdgemtError if the reason
    is that there is no room. A folder that is replaced is gone only when the new one is there.
    """
    temporary, old = (target.with_name(target.name + ending) for ending in (".tmp", ".old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        yield temporary
        synchronise(temporary)
    except BaseException as error:
        remove(temporary)
        if no_room(error):
            raise EdgemtError(
                f"no room to write {target}: it needs {needed:,} bytes, and {free(target.parent):,} are free there; "
                "what was written before is intact, so make room and start the same command again"
            ) from error
        raise
    remove(old)
    if target.is_dir():
        os.replace(target, old)
    os.replace(temporary, target)
    remove(old)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def synchronise(path: Path) -> None:
    """Make sure that a file, or all files below a folder, are on the disk."""
    for file in filter(Path.is_file, path.rglob("*")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def no_room(error: BaseException | None) -> bool:
    """Was a full disk, a quota or a limit on files the reason? torch and safetensors hide the OSError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code and int(code.group(1)) in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def free(directory: Path) -> int:
    return shutil.disk_usage(directory).free
