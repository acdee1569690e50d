"""edgemt's own wheel: built from the source checkout where there is one, else from the installed files."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

import edgemt
from edgemt.errors import EdgemtError

EPOCH = "315532800"  # 1980-01-01: the earliest date a zip file knows, so that equal files give equal bytes
# What an installer adds to a package, and no wheel holds.
ADDED = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def own_wheel(folder: Path) -> Path:
    """Write edgemt's wheel into `folder`. Raises EdgemtError if it cannot be built."""
    checkout = Path(edgemt.__file__).parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "edgemt").is_dir():
        return build(checkout, folder)
    return reassemble(folder)


def build(checkout: Path, folder: Path) -> Path:
    """Build the checkout's wheel; nothing is written into the checkout."""
    from edgemt.pack.wheels import pip

    with tempfile.TemporaryDirectory(prefix="edgemt-build-") as work:
        settings = Path(work) / "setup.cfg"
        settings.write_text(f"[build]\nbuild_base={work}/build\n[egg_info]\negg_base={work}\n")
        environment = {"DIST_EXTRA_CONFIG": str(settings), "SOURCE_DATE_EPOCH": EPOCH}
        here = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
        error = pip("wheel", "--no-deps", *here, "-w", str(folder), str(checkout), environment=environment)
    made = sorted(folder.glob("edgemt-*.whl"))
    if error or not made:
        raise EdgemtError(
            f"the wheel of {checkout} could not be built ({error or 'pip made none'}); "
            f"run: {sys.executable} -m pip install 'setuptools>=77'"
        )
    return made[-1]


def reassemble(folder: Path) -> Path:
    """Make the wheel again from the files of the installation, each checked against its RECORD."""
    distribution = metadata.distribution("edgemt")
    content: dict[str, bytes] = {}
    for file in distribution.files or []:
        outside = file.parts[0] == ".." or file.suffix == ".pyc"
        if outside or (file.parts[0].endswith(".dist-info") and file.name in ADDED):
            continue
        try:
            content[file.as_posix()] = data = file.read_binary()
        except OSError as error:
            raise EdgemtError(
                f"{file} of the installed edgemt cannot be read ({error.strerror}); "
                f"run: {sys.executable} -m pip install --force-reinstall --no-deps edgemt"
            ) from None
        if file.hash and record_hash(data) != f"{file.hash.mode}={file.hash.value}":
            raise EdgemtError(
                f"{file} of the installed edgemt was changed after it was installed; "
                f"run: {sys.executable} -m pip install --force-reinstall --no-deps edgemt"
            )
    info = next((name.split("/")[0] for name in content if name.endswith(".dist-info/METADATA")), None)
    if info is None or "edgemt/cli.py" not in content:
        raise EdgemtError(
            "this edgemt keeps no list of its files, so no wheel can be made of it; "
            "run edgemt pack from a source checkout or from a pip installation"
        )
    lines = [f"{name},{record_hash(data)},{len(data)}\n" for name, data in sorted(content.items())]
    content[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    path = folder / f"edgemt-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content, key=lambda name: (name.startswith(info), name)):
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(entry, content[name])
    return path


def record_hash(data: bytes) -> str:
    """A hash as RECORD spells it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
