"""`edgemt verify-model`: a report on a model that others can act on without having it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

from edgemt.bundle import MANIFEST
from edgemt.errors import UsageError

# Of the workshop, which a device has not: imported for a checkpoint only.
OF_CHECKPOINTS = "edgemt.export.verify.checkpoint"
KINDS = (".html", ".json")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="checkpoint (folder or GGUF file) or bundle")
    add(
        "-o", "--output", type=Path, metavar="FILE", help="FILE.html or FILE.json (default: verify-NAME.html)"
    )
    add("--quick", action="store_true", help="fewer sentences, thread counts and rounds")
    add("--int8", action="store_true", help="export a checkpoint in INT8 too, and compare its translations")
    add("--int4", action="store_true", help="the same with 4-bit weights")
    add("--threads", type=int, metavar="N", help="processor cores to use at most (default: all of them)")
    parser.epilog = "Exit code: 0 if no section failed, 1 if one did, 2 if the model or an option is wrong."


def run(args: argparse.Namespace) -> int:
    from edgemt.bench.options import check_writable, write
    from edgemt.bench.threads import usable_cores
    from edgemt.inspect_command import is_checkpoint
    from edgemt.verify import report

    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads} is too small; give 1 or more")
    if not args.model.exists():
        raise UsageError(f"there is no model at {args.model}; give a checkpoint or a bundle")
    of_checkpoint = is_checkpoint(args.model) or is_gguf(args.model)
    if not of_checkpoint and not is_bundle(args.model):
        raise UsageError(
            f"{args.model} is neither a checkpoint (config.json and weights, or a GGUF file) nor a bundle "
            "(manifest.json, or a .edgemt file); give one of these, whole"
        )
    output = args.output or Path(f"verify-{args.model.resolve().stem}.html")
    check_output(output)
    check_writable(output, "--output")
    threads = args.threads or usable_cores()
    if of_checkpoint:
        verify = importlib.import_module(OF_CHECKPOINTS).verify
        precisions = [name for name in ("int8", "int4") if getattr(args, name)]
        found = verify(args.model, output, precisions, threads, args.quick)
    else:
        if args.int8 or args.int4:
            raise UsageError(
                f"{args.model} is no checkpoint, and --int8 and --int4 are for those; leave them out"
            )
        from edgemt.verify.bundle import verify

        found = verify(args.model, threads, args.quick)
    data = report.build(found, " ".join(["edgemt verify-model", args.model.name, *options(args)]))
    write(output, as_text(data, output))
    print(report.summary(data, output))
    return 0 if data["passed"] else 1


def check_output(output: Path) -> None:
    """Now, not after an hour: a suffix that says what to write, and the package that a page needs."""
    if output.suffix not in KINDS:
        raise UsageError(f"{output} ends neither in .html nor in .json; name a report of one of these kinds")
    if output.suffix == ".html" and importlib.util.find_spec("jinja2") is None:
        raise UsageError(
            "a report in HTML needs the package jinja2, which is not installed; "
            "run: pip install 'edgemt[report]', or give -o report.json"
        )


def is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def is_bundle(path: Path) -> bool:
    """Whether it is meant as one; opening it says whether it is intact."""
    return (path / MANIFEST).is_file() if path.is_dir() else zipfile.is_zipfile(path)


def options(args: argparse.Namespace) -> list[str]:
    """What was asked for, beside the names of files."""
    asked = [f"--{name}" for name in ("quick", "int8", "int4") if getattr(args, name)]
    return asked + ([f"--threads {args.threads}"] if args.threads else [])


def as_text(data: dict[str, Any], output: Path) -> str:
    if output.suffix == ".json":
        return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    from edgemt.verify.page import page

    return page(data)
