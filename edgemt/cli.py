"""The command line: a table of commands, each in a module of its own that is imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import NamedTuple

from edgemt import __version__
from edgemt.errors import EdgemtError
from edgemt.stops import Stopped, stoppable


class Command(NamedTuple):
    """A sub-command: `module` has `configure(parser)` and `run(args) -> exit code`."""

    module: str
    help: str
    extra: str | None = None  # the extra of pyproject.toml that its imports come from


COMMANDS = {
    "train": Command("edgemt.training.command", "fine-tune a model with automatic mixed precision", "train"),
    "train average": Command(
        "edgemt.training.averaging", "average several checkpoints of one model", "train"
    ),
    "train compare": Command(
        "edgemt.training.compare.command", "train in several precisions and write the comparison", "train"
    ),
    "export": Command("edgemt.export.command", "turn a checkpoint into a bundle for a device", "export"),
    "translate": Command("edgemt.translate_command", "translate text, a file, or standard input"),
    "bench": Command("edgemt.bench.command", "measure latency against a budget"),
    "inspect": Command(
        "edgemt.inspect_command",
        "show what a bundle is, its checksums and its precision by layer, or what a checkpoint is",
        "export",
    ),
    "verify-model": Command(
        "edgemt.verify.command",
        "write a conformance report on a checkpoint or bundle, fit to attach to an issue",
        "export",
    ),
    "prepack": Command(
        "edgemt.prepack_command", "pack a bundle's weights for this machine, so that they take less memory"
    ),
    "pack": Command("edgemt.pack.command", "write a kit that installs on a device without a network"),
    "doctor": Command("edgemt.doctor.command", "say what this machine can run, and what is missing"),
}


def build_parser(names: list[str] | None = None) -> argparse.ArgumentParser:
    """The parser with the commands in `names` configured (all of them by default)."""
    parser = argparse.ArgumentParser(
        prog="edgemt", description="Translation models, made to run on small devices."
    )
    parser.add_argument("--version", action="version", version=f"edgemt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=command.help[0].upper() + command.help[1:] + "."
        )
        if names is None or name in names:
            importlib.import_module(command.module).configure(sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if " ".join(argv[:2]) in COMMANDS:  # a command of two words
        argv = [" ".join(argv[:2]), *argv[2:]]
    # Only the command asked for is imported: a device starts fast and needs no workshop package.
    named = next((word for word in argv if word in COMMANDS), None)
    parser = build_parser([named] if named else [])
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    command = COMMANDS[args.command]
    try:
        with stoppable():
            return importlib.import_module(command.module).run(args)
    except EdgemtError as error:
        print(f"edgemt {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if command.extra is None or (error.name or "").startswith("edgemt"):
            raise
        print(
            f"edgemt {args.command}: needs the package {error.name}, which is not installed; "
            f"run: pip install 'edgemt[{command.extra}]'",
            file=sys.stderr,
        )
        return 1
    except Stopped as stopped:
        print(f"edgemt {args.command}: {stopped.reason}", file=sys.stderr)
        return stopped.exit_code
    except BrokenPipeError:  # the reader of our output went away (`edgemt translate … | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
