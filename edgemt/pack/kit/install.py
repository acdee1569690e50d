"""Install, upgrade, roll back or remove edgemt from this kit; install.sh runs it. Needs nothing but Python.

Each version is a folder PREFIX/VERSION-DIGEST laid out as a virtual environment. It is made under another
name, tried, and becomes the current one by a single rename of the link PREFIX/current: whatever fails before
that changes nothing. PREFIX/previous is the version before it.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

KIT = Path(__file__).resolve().parent
PREFIX = "/opt/edgemt"
MARK = "kit.json"  # in each version's folder: what it is, and its files
UNITS = Path("/etc/systemd/system")
UNIT_NAMES = ("edgemt.socket", "edgemt@.service")
PIECE = 1 << 20  # bytes in memory at a time
AGAIN = "nothing was changed; copy the kit again"
WRAPPER = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
[ -x "$here/python" ] || {
    echo "{name}: the Python that edgemt was installed with is gone; run install.sh of the kit again" >&2
    exit 1
}
exec "$here/python" -I -m {module} "$@"
"""
COMMANDS = {"edgemt": "edgemt.cli", "pi-report": "edgemt.pi_report"}


class Refusal(Exception):
    """Why nothing was done, in one sentence."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="install.sh", description="Install edgemt from this kit.")
    parser.add_argument("--prefix", default=PREFIX, metavar="DIR", help=f"where to (default: {PREFIX})")
    parser.add_argument(
        "--service", action="store_true", help="answer lines on a local socket (systemd, root)"
    )
    parser.add_argument(
        "--rollback", action="store_true", help="make the version before the current one again"
    )
    parser.add_argument("--uninstall", action="store_true", help="remove edgemt")
    args = parser.parse_args()
    prefix = Path(args.prefix).absolute()
    os.umask(0o022)  # another user shall be able to run it
    try:
        if args.rollback:
            rollback(prefix)
        elif args.uninstall:
            uninstall(prefix)
        else:
            install(prefix, args.service)
    except Refusal as refusal:
        print(f"install.sh: {refusal}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or prefix
        advice = "run it with sudo, or choose another place with --prefix DIR"
        print(f"install.sh: {where}: {error.strerror}; {advice}", file=sys.stderr)
        return 1
    return 0


def install(prefix: Path, service: bool) -> None:
    manifest = checked_manifest()
    check_machine(manifest)
    if service:
        check_service()
    name = "{}-{}".format(manifest["edgemt"], manifest["digest"][:12])
    target, partial = prefix / name, prefix / f".{name}.partial"
    with lock(prefix):
        if sound(target):
            print(f"edgemt {manifest['edgemt']} is under {target} already, every file whole")
        else:
            check_space(prefix, manifest)
            remove(partial)
            try:
                build(partial, target, manifest)
                self_test(partial)
                os.sync()  # a Pi may lose its power at any time
                replace_folder(partial, target)
            finally:
                remove(partial)
        switch(prefix, name)
        prune(prefix)
    if service or serves(prefix):
        install_service(prefix)
    print(f"edgemt {manifest['edgemt']} is installed; try: {prefix}/current/bin/edgemt doctor")


# Checks, before anything is written


def checked_manifest() -> dict:
    """The kit's manifest, once every file that it lists has the SHA-256 that it gives."""
    try:
        manifest = json.loads((KIT / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError):
        raise Refusal(f"manifest.json is damaged or missing, {AGAIN}") from None
    body = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest() != manifest.get("digest"):
        raise Refusal(f"manifest.json was changed after it was written, {AGAIN}")
    for name in files:
        checked(manifest, name)
    return manifest


def checked(manifest: dict, name: str) -> Path:
    try:
        digest = sha256(KIT / name)
    except OSError:
        raise Refusal(f"{name} is missing from the kit, {AGAIN}") from None
    if digest != manifest["files"][name]["sha256"]:
        raise Refusal(f"{name} is damaged, {AGAIN}")
    return KIT / name


def check_machine(manifest: dict) -> None:
    here = os.uname().machine
    if here != manifest["machine"]:
        raise Refusal(
            f"this kit is for {manifest['title']} ({manifest['machine']}), and this machine is {here}"
        )
    if sys.maxsize < 2**32:
        raise Refusal("this Python is a 32-bit one; install the 64-bit Raspberry Pi OS")
    if "musl" in (sysconfig.get_config_var("SOABI") or ""):
        raise Refusal(
            "this Python is built for musl, and the packages are for glibc; use Raspberry Pi OS or Debian"
        )
    if python_version() not in manifest["wheels"]:
        have = ", ".join(manifest["wheels"])
        raise Refusal(f"this kit has packages for Python {have}, and this is Python {python_version()}")


def check_space(prefix: Path, manifest: dict) -> None:
    need = int(manifest["installed_bytes"][python_version()] * 1.5)  # with compiled copies of the modules
    free = shutil.disk_usage(prefix).free
    if free < need:
        raise Refusal(f"{prefix} has {free >> 20} MB free and {need >> 20} MB are needed; free some space")


def check_service() -> None:
    if os.geteuid() != 0 or shutil.which("systemctl") is None or not UNITS.is_dir():
        raise Refusal(
            "--service needs root and systemd, nothing was changed; run it with sudo, or leave --service out"
        )


def python_version() -> str:
    return "{}.{}".format(*sys.version_info[:2])


# The folder of one version


def build(partial: Path, target: Path, manifest: dict) -> None:
    """Unpack the kit into `partial`, which will be renamed to `target`."""
    site = partial / "lib" / f"python{python_version()}" / "site-packages"
    (partial / "bin").mkdir(parents=True)
    for name in manifest["wheels"][python_version()]:
        unpack_wheel(KIT / name, site)
    if manifest["bundle"]["file"]:
        unpack(KIT / manifest["bundle"]["file"], partial / "bundles" / manifest["bundle"]["name"])
    for name in manifest["files"]:
        if name.startswith(("licences/", "systemd/")) or name == "README.txt":
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checked(manifest, name), partial / name)
    python = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    (partial / "bin" / "python").symlink_to(python)
    version = "{}.{}.{}".format(*sys.version_info[:3])
    settings = f"home = {python.parent}\ninclude-system-site-packages = false\nversion = {version}\n"
    (partial / "pyvenv.cfg").write_text(settings)
    for command, module in COMMANDS.items():
        script = partial / "bin" / command
        script.write_text(WRAPPER.replace("{name}", command).replace("{module}", module))
        script.chmod(0o755)
    mark = {key: manifest[key] for key in ("edgemt", "device", "digest", "bundle")}
    mark["python"] = str(python)
    mark["files"] = {str(path.relative_to(partial)): sha256(path) for path in files_below(partial)}
    (partial / MARK).write_text(json.dumps(mark, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if not emulated():  # there it takes minutes, and its times do not matter
        tests = re.compile(r"/(tests?|testing)/")
        compileall.compile_dir(
            site,
            quiet=2,
            rx=tests,
            stripdir=str(partial),
            prependdir=str(target),
            workers=os.cpu_count() or 1,
        )


def unpack_wheel(wheel: Path, site: Path) -> None:
    """A wheel's files where pip would put them, but for scripts: the kit brings its own."""

    def place(name: str) -> Path | None:
        parts = name.split("/")
        if not parts[0].endswith(".data"):
            return site / name
        return site.joinpath(*parts[2:]) if parts[1] in ("purelib", "platlib") else None

    unpack(wheel, site, place)


def unpack(archive: Path, folder: Path, place=None) -> None:
    with zipfile.ZipFile(archive) as source:
        for entry in source.infolist():
            path = place(entry.filename) if place else folder / entry.filename
            if entry.is_dir() or path is None:
                continue
            if ".." in path.parts or entry.filename.startswith("/"):
                raise Refusal(
                    f"{archive.name} names a file outside its folder ({entry.filename}); do not use this kit"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with source.open(entry) as data, path.open("wb") as file:  # a bundle may be larger than memory
                shutil.copyfileobj(data, file, PIECE)


def sound(folder: Path) -> bool:
    """Whether a version is there with every file whole, for the Python that runs this."""
    mark = read_mark(folder)
    if mark is None or not os.access(folder / "bin" / "python", os.X_OK):
        return False
    if not (folder / "lib" / f"python{python_version()}").is_dir():
        return False
    return all((folder / n).is_file() and sha256(folder / n) == digest for n, digest in mark["files"].items())


def self_test(folder: Path) -> None:
    """The new version has to translate before it becomes the current one."""
    if emulated():  # a user-mode emulator starts no second process
        print("not tried here: this is an emulator")
        return
    mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    bundle = ["-b", str(folder / "bundles" / mark["bundle"]["name"])] if mark["bundle"]["file"] else []
    command = [str(folder / "bin" / "edgemt"), "doctor", "--json", *bundle]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, env=environment)
    if done.returncode != 0:
        try:
            findings = json.loads(done.stdout)["findings"]
            why = next(
                "{part} {says}".format(**finding) for finding in findings if finding["state"] == "broken"
            )
        except (ValueError, KeyError, StopIteration):
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"exit code {done.returncode}"
        raise Refusal(f"the new version does not work on this machine ({why}); nothing was changed")


# Which version is the current one


def switch(prefix: Path, name: str) -> None:
    """Make `name` the current version, and the one before it `previous`."""
    before = linked(prefix, "current")
    if before == name:
        return
    if before is not None:
        link(prefix, "previous", before)
    link(prefix, "current", name)


def link(prefix: Path, name: str, to: str) -> None:
    new = prefix / f".{name}.new"
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    new.symlink_to(to)
    new.replace(prefix / name)


def linked(prefix: Path, name: str) -> str | None:
    """The version that a link names, if it is there."""
    try:
        to = os.readlink(prefix / name)
    except OSError:
        return None
    return to if read_mark(prefix / to) is not None else None


def rollback(prefix: Path) -> None:
    before = linked(prefix, "previous")
    if before is None:
        raise Refusal(f"there is no earlier version under {prefix} to go back to")
    with lock(prefix):
        switch(prefix, before)
    if serves(prefix):
        install_service(prefix)
    print(f"{before} is the current version again")


def prune(prefix: Path) -> None:
    """Remove the versions that are neither current nor previous."""
    for folder in versions(prefix):
        if folder.name not in (linked(prefix, "current"), linked(prefix, "previous")):
            remove(folder)
            print(f"{folder.name} was removed: only the version before the current one is kept")


def uninstall(prefix: Path) -> None:
    """Remove what this script put there, and nothing else."""
    if not versions(prefix):
        raise Refusal(f"there is no edgemt under {prefix}; name its place with --prefix DIR")
    with lock(prefix):
        if serves(prefix):
            subprocess.run(["systemctl", "disable", "--now", "edgemt.socket"], check=False)
            for name in UNIT_NAMES:
                (UNITS / name).unlink()
        for name in ("current", "previous"):
            if (prefix / name).is_symlink():
                (prefix / name).unlink()
        for folder in versions(prefix):
            remove(folder)
        (prefix / ".lock").unlink()
    with contextlib.suppress(OSError):  # something of the user's is in it
        prefix.rmdir()
    print(f"edgemt was removed from {prefix}")


def versions(prefix: Path) -> list[Path]:
    found = sorted(prefix.iterdir()) if prefix.is_dir() else []
    return [folder for folder in found if not folder.is_symlink() and read_mark(folder) is not None]


# The service


def install_service(prefix: Path) -> None:
    """Put the units of the current version in place; each connection from now on is answered by it."""
    for name in UNIT_NAMES:
        text = (prefix / "current" / "systemd" / name).read_text(encoding="utf-8")
        (UNITS / name).write_text(text.replace(PREFIX + "/", f"{prefix}/"))
    for command in (["daemon-reload"], ["enable", "--now", "edgemt.socket"]):
        if subprocess.run(["systemctl", *command]).returncode != 0:
            raise Refusal(
                f"edgemt is installed, but systemctl {command[0]} failed; see: systemctl status edgemt.socket"
            )
    print("lines are answered on /run/edgemt/translate.sock")


def serves(prefix: Path) -> bool:
    """Whether the units of the system are those of this installation."""
    return all((UNITS / name).is_file() for name in UNIT_NAMES) and any(
        f"={prefix}/" in (UNITS / name).read_text(encoding="utf-8") for name in UNIT_NAMES
    )


# Small things


@contextlib.contextmanager
def lock(prefix: Path):
    """One installer at a time."""
    existed = prefix.is_dir()
    prefix.mkdir(parents=True, exist_ok=True)
    with open(prefix / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refusal(f"another installation is at work under {prefix}; wait for it") from None
        try:
            yield
        except BaseException:
            if not existed:
                with contextlib.suppress(OSError):
                    (prefix / ".lock").unlink()
                    prefix.rmdir()
            raise


def read_mark(folder: Path) -> dict | None:
    try:
        return json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def replace_folder(new: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    remove(old)
    if target.exists():
        target.rename(old)
    new.rename(target)
    remove(old)


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def emulated() -> bool:
    try:
        return Path("/proc/self/comm").read_text().startswith("qemu-")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
