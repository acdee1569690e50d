"""`edgemt train compare CONFIG --data DIR --out DIR`: each precision on the same data and seed, one table."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, get_args

from edgemt.errors import UsageError
from edgemt.training.command import configuration, configure_shared

DEFAULT_MODES = "fp32,fp16-o1,fp16-pure"


def configure(parser: argparse.ArgumentParser) -> None:
    configure_shared(parser)
    group = parser.add_argument_group("the comparison")
    group.add_argument(
        "--modes", default=DEFAULT_MODES, help=f"precisions, the first is the base (default {DEFAULT_MODES})"
    )
    group.add_argument(
        "--steps", type=int, metavar="N", help="steps of each training; 0: only step time and memory"
    )
    group.add_argument(
        "--timing-rounds",
        type=int,
        default=3,
        metavar="R",
        help="rounds of clocked steps (default 3; 0: none)",
    )
    group.add_argument(
        "--timing-steps", type=int, default=12, metavar="N", help="steps counted in a round (default 12)"
    )
    group.add_argument("--conditions", help="a sentence for the report: what else the machine was doing")


def run(args: argparse.Namespace) -> int:
    from edgemt.training.compare.page import page
    from edgemt.training.compare.report import report
    from edgemt.training.compare.run import Job, clocked, training
    from edgemt.training.compare.table import markdown
    from edgemt.training.data import find_pairs
    from edgemt.training.distributed import World
    from edgemt.training.files import replacing

    modes = asked(args.modes)
    config = configuration(args)
    for name in ("data", "out"):
        if getattr(args, name) is None:
            raise UsageError(f"edgemt train compare needs --{name} DIR")
    if args.timing_steps < 1 or args.timing_rounds < 0 or (args.steps or 0) < 0:
        raise UsageError(
            "--steps and --timing-rounds cannot be negative, and --timing-steps must be at least 1"
        )
    if args.steps == 0 and args.timing_rounds == 0:
        raise UsageError("with --steps 0 and --timing-rounds 0 there is nothing to compare")
    find_pairs(args.data, "train")  # what is wrong for every mode is said before the first begins
    World(config.device)
    job = Job(shortened(config, args.steps), args.data, args.init, args.out, args.threads)
    rounds: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for number in range(args.timing_rounds):
        for mode in modes:  # in turn, so that what disturbs the machine falls on all of them
            if not any(found["failure"] for found in rounds[mode]):
                say(f"timing, round {number + 1} of {args.timing_rounds}: {mode}")
                rounds[mode].append(clocked(job, mode, number, args.timing_steps))
    trainings: dict[str, dict[str, Any] | None] = dict.fromkeys(modes)
    for mode in modes:
        if args.steps != 0:
            say(f"training: {mode}")
            trainings[mode] = training(job, mode)
    data = report(job, trainings, rounds, args.timing_steps, args.conditions)
    texts = {
        "report.json": json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": page(data),
    }
    for name, text in texts.items():
        with replacing(args.out / name, len(text)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(markdown(data), end="")
    say(f"wrote {args.out / 'report.json'} and {args.out / 'report.html'}")
    return 0


def asked(modes: str) -> list[str]:
    """The precisions of a comma-separated list, each once."""
    from edgemt.training.config import Precision

    names = list(dict.fromkeys(name.strip() for name in modes.split(",") if name.strip()))
    unknown = [name for name in names if name not in get_args(Precision)]
    if unknown or not names:
        raise UsageError(f"--modes {modes}: choose from {', '.join(get_args(Precision))}")
    return names


def shortened(config: Any, steps: int | None) -> Any:
    """The configuration with `steps` steps, at most a tenth of them warm-up and a fifth last decay."""
    if not steps:
        return config
    schedule = config.schedule
    changed = {
        "steps": steps,
        "warmup": min(schedule.warmup, steps // 10),
        "cooldown": min(schedule.cooldown, steps // 5),
    }
    values = config.model_dump(mode="json", exclude_unset=True)
    values["schedule"] = values.get("schedule", {}) | changed
    return type(config).model_validate(values)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
