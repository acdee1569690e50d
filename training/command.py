"""`edgemt train CONFIG`: train or fine-tune a model with automatic mixed precision."""

from __future__ import annotations

import argparse
from pathlib import Path

# Options that set a key of the configuration.
SHORTCUTS = {
    "precision": "precision",
    "device": "device",
    "clip_norm": "optimizer.clip",
    "max_skipped": "max_skipped",
    "stop_on_divergence": "stop_on_divergence",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, nargs="?", help="TOML file (every key and its default: docs/training.md)"
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="a configuration that comes with edgemt, below CONFIG"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of train.tsv and dev.tsv")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="folder of the run's state and log; resumed if it has one"
    )
    parser.add_argument(
        "--init", type=Path, metavar="PATH", help="where a new run starts: a checkpoint of any form"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the checkpoint, written when the run ends or is stopped"
    )
    parser.add_argument("--precision", metavar="MODE", help="fp32, bf16, fp16-o1 or fp16-pure")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="sets device")
    parser.add_argument("--clip-norm", type=float, metavar="X", help="sets optimizer.clip")
    parser.add_argument("--max-skipped", type=int, metavar="N", help="sets max_skipped")
    parser.add_argument(
        "--stop-on-divergence", action="store_const", const="true", help="sets stop_on_divergence"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key, such as optimizer.rate=1e-4; may be repeated",
    )
    parser.add_argument(
        "--cooldown", action="store_true", help="begin the final decay of the rate now, then end"
    )
    parser.add_argument(
        "--export-checkpoint", action="store_true", help="only write the saved state's checkpoint to --out"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")


def run(args: argparse.Namespace) -> int:
    import torch

    from edgemt.errors import UsageError
    from edgemt.training import presets
    from edgemt.training.config import load_config
    from edgemt.training.distributed import joined
    from edgemt.training.loop import Run
    from edgemt.training.state import STATE

    torch.set_num_threads(args.threads)
    shortcuts = [
        f"{key}={value}" for name, key in SHORTCUTS.items() if (value := getattr(args, name)) is not None
    ]
    preset = None
    if args.preset:
        preset, args.data = presets.find(args.preset, args.init, args.data)
    config = load_config(args.config, [*shortcuts, *args.set], preset)
    if args.state is None:
        raise UsageError("no --state: give a folder for the run's state and log")
    if args.export_checkpoint and not (args.out and (args.state / STATE).exists()):
        raise UsageError("--export-checkpoint needs --out and a --state folder that holds a run")
    with joined(config.device) as world:
        training = Run(config, args.data, args.state, args.init, world)
        if not args.export_checkpoint:
            if args.cooldown:
                training.cool_down_now()
            training.train()
        if args.out and world.first:
            training.write_checkpoint(args.out)
            print(f"wrote {args.out} (step {training.step})")
    return 0
