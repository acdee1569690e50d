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
        if reason := no_room(error):
            raise EdgemtError(
                f"no room to write {target} ({reason}): it needs {needed:,} bytes, and "
                f"{free(target.parent):,} are free there; what was written before is intact, so make room "
                "and start the same command again"
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


def no_room(error: BaseException | None) -> str | None:
    """The system's word for it, if a full disk, a quota or a limit on files was the reason.

    torch and safetensors hide the OSError.
    """
    while error is not None:
        hidden = re.search(r"\(os error (\d+)\)", str(error))
        code = error.errno if isinstance(error, OSError) else hidden and int(hidden.group(1))
        if code in FULL:
            return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def free(directory: Path) -> int:
    return shutil.disk_usage(directory).free
