"""The options of `edgemt bench`: numbers that are numbers, files that can be written."""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from pathlib import Path

from edgemt.errors import UsageError


def number(text: str, option: str, above: float, most: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (above < value <= most and math.isfinite(value)):
        limit = f"above {above:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise UsageError(f"{option} is {text!r}; give a number {limit}")
    return value


def count(text: str, option: str, least: int, word: str = "") -> int:
    """A whole number. `word` is what else the option takes, for the message."""
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 1_000_000):
        also = f", or {word}" if word else ""
        raise UsageError(f"{option} is {text!r}; give a whole number, at least {least}{also}")
    return int(text)


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


def check_report_packages() -> None:
    """Only looked for, not imported yet: the process that is measured stays as the device has it."""
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"--report needs the package {package}, which is not installed; "
                "run: pip install 'edgemt[report]'"
            )


def write(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path} ({error.strerror}); free some space or name another file"
        ) from None
