"""`edgemt export`: the command line of the pipeline."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from edgemt.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="folder or file that a trainer wrote"
    )
    parser.add_argument(
        "--config-from",
        type=Path,
        metavar="DIR",
        help="folder with config.json and tokenizer (default: the checkpoint's own, or its file's)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="CHECKPOINT",
        help="what a LoRA adapter was trained on (default: the folder that it names)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="BUNDLE",
        help="folder, or NAME.edgemt for one file",
    )
    precision = parser.add_mutually_exclusive_group()
    for name, text in (
        ("int8", "8-bit weights and activations (default)"),
        ("int4", "4-bit weights in blocks, for decoder-only models"),
        ("fp16", "half precision, for GPUs"),
        ("fp32", "single precision, unchanged"),
    ):
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=text)
    parser.add_argument(
        "--target", default="onnxruntime", help="runtime to export for (default: onnxruntime)"
    )
    parser.add_argument(
        "--scheme",
        choices=("auto", "static", "dynamic", "blocks"),
        default="auto",
        help="INT8 activations by calibrated ranges (static), per call (dynamic) or, in decoder-only models, "
        "per block as they are multiplied (blocks); auto takes the fastest that passes the gate",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="sentences to calibrate on: tab-separated, with a header line source_lang, target_lang, source, "
        "target (default: the checkpoint's calibration.tsv)",
    )
    parser.add_argument(
        "--calibration-sentences",
        type=int,
        metavar="N",
        help="default: 2000, and 128 for decoder-only models",
    )
    parser.add_argument(
        "--heldout",
        type=Path,
        metavar="FILE",
        help="sentences for the quality gate, in the same form (default: the checkpoint's heldout.tsv)",
    )
    parser.add_argument(
        "--observer",
        choices=("minmax", "percentile", "mse"),
        help="default: percentile, and minmax for decoder-only models, whose outliers matter",
    )
    parser.add_argument(
        "--rounding",
        choices=("gptq", "nearest"),
        help="of 4-bit weights: gptq (default, if there are sentences to calibrate on) makes up for errors",
    )
    parser.add_argument(
        "--int4-block",
        type=int,
        choices=(32, 64, 128),
        help="weights of INT4 that share a scale: fewer are nearer to FP32, more are faster (default: 128); "
        "drafts on x86 need 32",
    )
    parser.add_argument(
        "--int4-budget",
        type=float,
        default=4.0,
        metavar="BITS",
        help="that weights in layers may have on average: those whose 4 bits hurt most get 8 (default: 4)",
    )
    parser.add_argument(
        "--kv",
        choices=("fp32", "int8"),
        default="fp32",
        help="keys and values of decoder-only models; int8 takes a quarter of the memory (default: fp32)",
    )
    parser.add_argument(
        "--max-bleu-drop", type=float, default=0.5, metavar="X", help="what INT8 may cost (default: 0.5)"
    )
    parser.add_argument(
        "--max-new-critical",
        type=int,
        metavar="N",
        help="sentences in which only INT8 gets a number, unit, negation or side wrong; 0 is the strict rule "
        "(default: no more than chance explains beside those in which only INT8 gets it right)",
    )
    parser.add_argument(
        "--no-gate",
        dest="gate",
        action="store_false",
        help="do not compare translations with FP32's, for a model that FP32 has no memory for here",
    )
    parser.add_argument(
        "--languages", metavar="PAIRS", help="such as zh-en,en-zh, if the checkpoint does not say"
    )
    parser.add_argument("--name", help="name in the manifest (default: the output's)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")


def run(args: argparse.Namespace) -> int:
    for name in ("calibration_sentences", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} is below 1")
    if not 4 <= args.int4_budget <= 8:
        raise UsageError(f"--int4-budget {args.int4_budget:g} is not between 4 and 8 bits")

    from edgemt.export.pipeline import Request, export

    fields: dict[str, Any] = {
        k: v for k, v in vars(args).items() if k in Request.__dataclass_fields__ and v is not None
    }
    fields |= {"precision": args.precision or "int8", "command": _command(sys.argv[1:])}
    report = export(Request(**fields))
    print(summary(report, args.output))
    return 0


def summary(report: dict[str, Any], output: Path) -> str:
    """A few lines for the terminal: what was written, and how the variants compare."""
    lines = [f"{output}: {report['choice']}"]
    for name, variant in report["variants"].items():
        parts = [f"{variant['bytes'] / 1e6:6.2f} MB"]
        if latency := variant["latency"]:
            parts.append(f"{latency['p50_ms']:6.1f} ms a sentence (×{latency['ratio']:.2f})")
        for direction, result in ((variant["gate"] or {}).get("directions") or {}).items():
            parts.append(
                f"{direction} BLEU {result['bleu']['candidate']:.2f} ({-result['bleu']['drop']:+.2f})"
            )
        lines.append(f"  {name:13s}" + "  ".join(parts))
    return "\n".join([*lines, *report.get("reasons", [])])


def _command(words: list[str]) -> str:
    """The command as the report shows it: absolute paths without their folders, which are private."""
    return shlex.join(["edgemt", *(Path(word).name if word.startswith("/") else word for word in words)])
