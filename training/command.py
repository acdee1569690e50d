"""`edgemt train CONFIG`: train or fine-tune a model with automatic mixed precision."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgemt.errors import UsageError

if TYPE_CHECKING:
    from edgemt.training.config import Config

# Options that set a key of the configuration.
SHORTCUTS = {
    "precision": "precision",
    "device": "device",
    "clip_norm": "optimizer.clip",
    "max_skipped": "max_skipped",
    "stop_on_divergence": "stop_on_divergence",
}


def configure(parser: argparse.ArgumentParser) -> None:
    configure_shared(parser)
    parser.add_argument("--precision", metavar="MODE", help="fp32, bf16, fp16-o1 or fp16-pure")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="the run's own folder: state, log, kept checkpoints"
    )
    parser.add_argument(
        "--cooldown", action="store_true", help="begin the final decay of the rate now, then end"
    )
    parser.add_argument(
        "--export-checkpoint", action="store_true", help="only write the saved state's checkpoint to --out"
    )
    parser.epilog = (
        "The command that started a run also goes on with it. --out gets the last averaged weights when the "
        "run ends or is stopped, or with keep.best the best ones that were kept. For several processes: "
        "torchrun --nproc-per-node N -m edgemt.cli train …"
    )


def configure_shared(parser: argparse.ArgumentParser) -> None:
    """What every training has, alone or in a comparison."""
    parser.add_argument(
        "config", type=Path, nargs="?", help="TOML file (every key and its default: docs/training.md)"
    )
    parser.add_argument("--preset", metavar="NAME", help="a recipe that comes with edgemt (medical-zh-en)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of train.tsv and dev.tsv")
    parser.add_argument(
        "--init", type=Path, metavar="PATH", help="a checkpoint of any form, from which a new run starts"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the result is written")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda")
    parser.add_argument("--clip-norm", type=float, metavar="X", help="largest gradient norm")
    parser.add_argument("--max-skipped", type=int, metavar="N", help="skipped steps in a row that end a run")
    parser.add_argument(
        "--stop-on-divergence", action="store_const", const="true", help="end if the loss rises for good"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the configuration, such as optimizer.rate=1e-4; may be repeated",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")


def configuration(args: argparse.Namespace) -> Config:
    """Preset, file, options and settings in one; `args.data` becomes the preset's if none was given."""
    from edgemt.training import presets
    from edgemt.training.config import load_config

    if args.config is not None and not args.config.is_file():
        raise UsageError(f"no configuration at {args.config}: give a TOML file, or --preset NAME")
    options = ((key, getattr(args, name, None)) for name, key in SHORTCUTS.items())
    settings = [f"{key}={value}" for key, value in options if value is not None]
    preset = None
    if args.preset:
        preset, args.data = presets.find(args.preset, args.init, args.data)
    return load_config(args.config, [*settings, *args.set], preset)


def run(args: argparse.Namespace) -> int:
    import torch

    from edgemt.training.distributed import joined
    from edgemt.training.loop import Run
    from edgemt.training.state import STATE

    torch.set_num_threads(args.threads)
    config = configuration(args)
    if args.state is None:
        raise UsageError("no --state: give a folder for the run's state and log")
    if args.data is None and not args.export_checkpoint:
        raise UsageError("no --data: give the folder with train.tsv and dev.tsv")
    if args.export_checkpoint and not (args.out and (args.state / STATE).exists()):
        raise UsageError("--export-checkpoint needs --out and a --state folder that holds a run")
    with joined(config.device) as world:
        training = Run(config, args.data, args.state, args.init, world)
        if not args.export_checkpoint:
            if args.cooldown:
                training.cool_down_now()
            training.train()
        if args.out and world.first:
            best = None if args.export_checkpoint or not config.keep.best else training.kept.best()
            step = training.write_checkpoint(args.out, best)
            print(f"wrote {args.out} (step {step}{', the best on dev' if best else ''})")
    return 0
