"""Files that a bench command writes: looked at before the work begins, put in place when they are whole."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

from edgemt.errors import UsageError


def check_writable(path: Path | None, option: str) -> None:
    """Find out now, not after minutes of measuring, that a file cannot be written."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write {option} {path} ({error.strerror}); name a file in a folder you may write to"
        ) from None


def check_extra() -> None:
    """Only looked for, not imported yet: the process that is measured stays as the device has it."""
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"--report needs the package {package}, which is not installed; "
                "run: pip install 'edgemt[report]'"
            )


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path} ({error.strerror}); free some space or name another file"
        ) from None
