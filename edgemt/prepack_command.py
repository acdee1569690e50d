"""`edgemt prepack`: pack a bundle's weights for this machine, once, into files that a load then maps.

They lie in the bundle's folder, or, where that cannot be written or is one file, in the user's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgemt.bundle import PREPACKED, Bundle, open_bundle, sha256
from edgemt.errors import EdgemtError, UsageError

# Packed graphs hold every weight twice, as it is and packed: of SmolLM2-135M in 4 bits they are 2.36 times
# its files, of FP32 twice.
GROWTH = 2.75
PARTIAL = ".partial-"  # how the name of a folder begins that is not complete


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="folder or .edgemt file of a decoder-only model")
    add("--threads", type=int, default=1, metavar="N", help="processor cores to measure with (default: 1)")
    add("--remove", action="store_true", help="delete what was packed of this bundle")
    parser.epilog = (
        "It takes two to three times the bundle's room on the disk, and saves the memory that onnxruntime "
        "packs weights in at every load; another processor or onnxruntime needs it again."
    )


def run(args: argparse.Namespace) -> int:
    if args.threads < 1:
        raise UsageError(f"--threads {args.threads} is too few; give 1 or more")
    try:
        for line in removed(args.bundle) if args.remove else prepacked(args.bundle, args.threads):
            print(line, flush=True)
    except OSError as error:
        raise EdgemtError(
            f"{error.filename or args.bundle}: {error.strerror}; free some room, or check the rights there"
        ) from None
    return 0


def prepacked(path: Path, threads: int) -> Iterator[str]:
    """Pack, try, keep; what to print. Raises EdgemtError if answers change, or there is no room."""
    from edgemt.prepack_trial import fresh
    from edgemt.runtimes.prepacked import find, key

    bundle = open_bundle(path)
    check(bundle)
    found = find(bundle.directory, bundle.manifest)
    if found and found.complete:
        yield f"{bundle.manifest.name} is packed already, in {found.folder}; --remove deletes it"
        return
    place = writable(bundle)
    clear(place)  # of what a lost supply left
    yield room(bundle, place)
    job = {"bundle": str(bundle.directory.resolve()), "threads": threads}
    before = fresh(what="load", folder=None, **job)
    partial = place / f"{PARTIAL}{os.getpid()}"
    folder = partial / key(bundle.manifest)
    try:
        folder.mkdir(parents=True)
        took = fresh(what="pack", folder=str(folder), **job)["seconds"]
        size = seal(folder, bundle, place)
        after = fresh(what="load", folder=str(folder), **job)
        if after["answers"] != before["answers"]:
            raise EdgemtError(
                f"{bundle.manifest.name} answers otherwise with packed weights, a fault of this onnxruntime; "
                "nothing was kept, so use the bundle as it is"
            )
        for stale in (place / folder.name, *made_for(path, place)):
            remove(stale)
        folder = folder.replace(place / folder.name)
    finally:
        remove(partial)
        clear(place)
    yield f"{size / 1e6:.1f} MB in {folder}, written in {took:.1f} s; answers are the same to the last bit"
    yield from table(before, after)


def check(bundle: Bundle) -> None:
    """Raise UsageError for a bundle of which nothing is to be gained, EdgemtError where it cannot be done."""
    from edgemt.bench.facts import emulator

    name, manifest = bundle.manifest.name, bundle.manifest
    if manifest.target != "onnxruntime":
        raise UsageError(
            f"{name} was exported for {manifest.target}, which packs no weights; use it as it is"
        )
    if manifest.family != "causal":
        raise UsageError(
            f"{name} is not a decoder-only model: of its weights onnxruntime packs no more than a few MB, "
            "and it cannot write them for a graph with a loop; use it as it is"
        )
    if told := emulator():
        raise EdgemtError(f"this process runs under {told}, which starts no other; pack on the device itself")


def writable(bundle: Bundle) -> Path:
    """Where to put the packed graphs."""
    from edgemt.runtimes.prepacked import cache

    beside = bundle.path.is_dir() and os.access(bundle.path, os.W_OK)
    return bundle.path / PREPACKED if beside else cache()


def room(bundle: Bundle, place: Path) -> str:
    """What it needs. Raises EdgemtError if there is less room."""
    need = GROWTH * sum(facts["bytes"] for facts in bundle.manifest.files.values())
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    says = f"about {need / 1e6:.0f} MB are needed in {place}, and {free / 1e6:.0f} MB are free"
    if free < need:
        raise EdgemtError(f"{says}; free some, or have the bundle on a larger disk")
    return says


def seal(folder: Path, bundle: Bundle, place: Path) -> int:
    """Write down what is in `folder`, and for what it was made; returns its bytes."""
    from edgemt.runtimes.prepacked import RECORD, cache, circumstances

    files = {
        file.name: {"sha256": sha256(file), "bytes": file.stat().st_size} for file in sorted(folder.iterdir())
    }
    record = {
        "key": folder.name,
        "bundle": bundle.manifest.name,
        "path": str(bundle.path.resolve()) if place == cache() else None,
        "made_for": {"digest": bundle.manifest.digest, **circumstances()},
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return sum(facts["bytes"] for facts in files.values())


def table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Both ways to load, in processes of their own; the files were read before."""
    yield f"{'':12s}{'load':>9s}{'own memory':>14s}{'mapped files':>16s}"
    for name, found in (("as it is", before), ("packed", after)):
        sizes = (f"{found[kind] / 1e6:.1f} MB" if kind in found else "-" for kind in ("anon", "file"))
        own, mapped = sizes
        yield f"{name:12s}{found['seconds']:7.2f} s{own:>14s}{mapped:>16s}"
    yield "(load: with all checksums; mapped files are given back where memory is short)"


def removed(path: Path) -> Iterator[str]:
    """Delete what was packed of the bundle at `path`, and tell."""
    from edgemt.runtimes.prepacked import cache

    gone = 0
    for place in (path / PREPACKED, cache()):
        for folder in made_for(path, place):
            remove(folder)
            gone += 1
            yield f"{folder} removed"
        clear(place)
    if not gone:
        yield f"nothing is packed of {path}"


def made_for(path: Path, place: Path) -> list[Path]:
    """The folders in `place` that were made for the bundle at `path`, whatever machine they fit."""
    from edgemt.runtimes.prepacked import all_in, cache

    of = str(path.resolve()) if place == cache() else None
    return [found.folder for found in all_in(place) if found.record.get("path") == of]


def clear(place: Path) -> None:
    """Delete what processes left that were killed, and the folder itself if nothing is in it."""
    for folder in place.glob(f"{PARTIAL}*"):
        if not Path(f"/proc/{folder.name.removeprefix(PARTIAL)}").exists():
            remove(folder)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
