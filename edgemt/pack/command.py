"""`edgemt pack`: a kit that installs edgemt and a bundle on a device without a network."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
from pathlib import Path

from edgemt.errors import EdgemtError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    from edgemt.pack.devices import DEVICES

    add = parser.add_argument
    add("--device", required=True, metavar="NAME", help=f"what it is for: {', '.join(DEVICES)}")
    add("-o", "--output", required=True, type=Path, metavar="FILE.tar", help="the kit to write")
    add("-b", "--bundle", type=Path, help="folder or .edgemt file (default: medical zh-en, part of edgemt)")
    add("--python", action="append", metavar="3.N", help="a Python of the device; may be repeated "
        "(default: those of its operating system)")  # fmt: skip
    add("--wheels", type=Path, metavar="DIR", help="take the packages from this folder, not from pip's index")


def run(args: argparse.Namespace) -> int:
    from edgemt.bundle import open_bundle
    from edgemt.doctor.system import megabytes
    from edgemt.pack.archive import check_output, write_tar
    from edgemt.pack.assemble import assemble
    from edgemt.pack.devices import DEVICES

    device = DEVICES.get(args.device)
    if device is None:
        raise UsageError(f"--device {args.device} is not known; this edgemt packs for {', '.join(DEVICES)}")
    pythons = list(dict.fromkeys(args.python or device.pythons))
    for python in pythons:
        found = re.fullmatch(r"3\.(\d+)", python)
        if not found or int(found[1]) < 11:
            raise UsageError(f"--python {python} cannot be packed for; give 3.11 or newer, for example 3.12")
    if args.wheels and not args.wheels.is_dir():
        raise UsageError(f"--wheels {args.wheels} is not a folder; give one that holds wheels")
    check_output(args.output)
    bundle = open_bundle(args.bundle)
    if bundle.manifest.target not in device.targets:
        raise UsageError(
            f"{bundle.path} was exported for {bundle.manifest.target}, and a kit for {device.title} runs "
            f"{', '.join(device.targets)}; export the checkpoint for that"
        )
    if importlib.util.find_spec("pip") is None:
        raise EdgemtError(
            f"pip is not installed, which gets the packages; run: {sys.executable} -m ensurepip"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="edgemt-pack-") as work:
            folder = Path(work) / f"edgemt-{args.device}"
            manifest = assemble(folder, args.device, device, pythons, bundle, args.wheels)
            folder = folder.rename(folder.with_name(f"edgemt-{manifest['edgemt']}-{args.device}"))
            digest = write_tar(folder, args.output)
    except OSError as error:
        place = tempfile.gettempdir()
        raise EdgemtError(
            f"the kit could not be put together in {place} ({error.strerror}); free some space or set TMPDIR"
        ) from None
    print(f"{args.output}: edgemt {manifest['edgemt']} with {manifest['bundle']['name']} for {device.title}")
    print(f"  {megabytes(args.output.stat().st_size)}, {len(manifest['files'])} files, sha256 {digest}")
    for python, count in manifest["installed_bytes"].items():
        names = " ".join(
            re.sub(r"^wheels/([^-]+)-([^-]+)-.*", r"\1 \2,", n) for n in manifest["wheels"][python]
        )
        print(f"  Python {python}: {megabytes(count)} installed: {names.rstrip(',')}")
    print(f"On the device: tar xf {args.output.name} && cd {folder.name} && sudo sh install.sh")
    return 0
