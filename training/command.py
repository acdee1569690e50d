"""`edgemt train CONFIG`: train or fine-tune a Marian student with automatic mixed precision."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="TOML file (every key and its default: docs/training.md)")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of train.tsv, dev.tsv and tokenizer/"
    )
    parser.add_argument(
        "--state", type=Path, required=True, help="folder of the run's state and log; resumed if it has one"
    )
    parser.add_argument(
        "--init", type=Path, help="where a new run starts: a checkpoint folder, or embedding.safetensors"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the checkpoint, written when the run ends or is stopped"
    )
    parser.add_argument(
        "--cooldown", action="store_true", help="begin the final decay of the rate now, then end"
    )
    parser.add_argument(
        "--export-checkpoint", action="store_true", help="only write the saved state's checkpoint to --out"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")


def run(args: argparse.Namespace) -> int:
    import torch

    from edgemt.errors import UsageError
    from edgemt.training.config import load_config
    from edgemt.training.loop import Run
    from edgemt.training.state import STATE

    torch.set_num_threads(args.threads)
    if args.export_checkpoint and not (args.out and (args.state / STATE).exists()):
        raise UsageError("--export-checkpoint needs --out and a --state folder that holds a run")
    training = Run(load_config(args.config), args.data, args.state, args.init)
    if not args.export_checkpoint:
        if training.data.absent:
            print(f"train.tsv has no pairs of {', '.join(training.data.absent)}", file=sys.stderr)
        if args.cooldown:
            training.cool_down_now()
        training.train()
    if args.out:
        training.write_checkpoint(args.out)
        print(f"wrote {args.out} (step {training.step})")
    return 0
