"""One thing that was looked at, and the commands that put things right on this machine."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "warning", "absent", "broken"]
KIT = "kit.json"  # stands at the root of an installation that `edgemt pack` made


@dataclass(frozen=True)
class Finding:
    """`broken`: the device side does not work; `warning`: it works, but read this; `absent`: an extra."""

    part: str
    state: State
    says: str
    cure: str | None = None  # a command to be typed as it stands, or what to do instead of one


def pip_install(*requirements: str) -> str:
    """The command that installs `requirements` where this Python will find them."""
    if in_kit():
        return "sudo sh install.sh (in the folder of the kit: it repairs what is damaged)"
    python = at_home(sys.executable)
    wanted = " ".join(shlex.quote(text) for text in requirements)
    if sys.prefix == sys.base_prefix and _managed_by_the_system():
        return f"{python} -m venv ~/edgemt && ~/edgemt/bin/python -m pip install edgemt {wanted}"
    ensure = "" if importlib.util.find_spec("pip") else f"{python} -m ensurepip && "
    return f"{ensure}{python} -m pip install {wanted}"


def in_kit() -> bool:
    """Whether this edgemt was installed from a kit, which has no pip."""
    return (Path(sys.prefix) / KIT).is_file()


def _managed_by_the_system() -> bool:
    """Debian's and Raspberry Pi OS's own Python refuses pip (PEP 668)."""
    return (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file()


def at_home(path: str | os.PathLike[str]) -> str:
    """The path as a shell takes it, with the home folder as ~: a report shall not name its user."""
    text, home = str(path), os.path.expanduser("~")
    if len(home) > 1 and text.startswith(home + os.sep):
        return "~" + os.sep + shlex.quote(text[len(home) + 1 :])
    return shlex.quote(text)


def without_home(text: str) -> str:
    """A message that may name paths, with the home folder as ~."""
    home = os.path.expanduser("~")
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text
