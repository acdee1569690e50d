"""`edgemt inspect`: what a bundle is, its checksums, its precision by layer; or what a checkpoint is.

A device inspects bundles; a checkpoint needs the extra `export`, whose packages are imported for one only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemt.manifest import Manifest

# Of the workshop, which a device has not: imported for a checkpoint only.
OF_CHECKPOINTS = "edgemt.export.inspect"
# How names end in a folder that is a checkpoint, and the name of a file that is one.
CHECKPOINT_NAMES = (
    "config.json", ".safetensors", "model.bin", ".index.json", ".pt", ".pth", ".ckpt", ".tar", ".gguf",
    "latest",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="PATH",
        help="bundle (folder or .edgemt file; default: medical zh-en) or checkpoint (folder or file)",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON: a bundle's manifest")
    parser.add_argument(
        "--layers", action="store_true", help="list every layer, or every tensor of a checkpoint"
    )
    parser.add_argument(
        "--config-from",
        type=Path,
        metavar="DIR",
        help="folder with a checkpoint's config.json (default: its own, or the one its file lies in)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="CHECKPOINT",
        help="what a LoRA adapter was trained on (default: the folder that it names)",
    )


def run(args: argparse.Namespace) -> int:
    from edgemt.bundle import open_bundle

    if args.path is not None and is_checkpoint(args.path):
        inspect = importlib.import_module(OF_CHECKPOINTS)
        facts = inspect.inspect(args.path, args.config_from, args.base)
        text = [json.dumps(facts, ensure_ascii=False, indent=2)]
        print("\n".join(text if args.json else inspect.description(facts, args.path, args.layers)))
        return 1 if facts["problems"] else 0
    bundle = open_bundle(args.path)  # every checksum is verified here
    if args.json:
        print(json.dumps(dataclasses.asdict(bundle.manifest), ensure_ascii=False, indent=2))
    else:
        from edgemt.runtimes.prepacked import state

        packed = state(bundle.directory, bundle.manifest)
        print("\n".join(description(bundle.path, bundle.manifest, args.layers, packed)))
    return 0


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint and no bundle, by names alone; of a zip, by the names in it."""
    import zipfile

    from edgemt.bundle import MANIFEST

    if path.is_dir():
        names = {file.name for file in path.iterdir()}
        return MANIFEST not in names and any(name.endswith(CHECKPOINT_NAMES) for name in names)
    if not path.is_file() or path.name.endswith(CHECKPOINT_NAMES):
        return path.is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def description(path: Path, manifest: Manifest, all_layers: bool, packed: str | None = None) -> Iterator[str]:
    """The lines of the report; `packed` is what there is to say of `edgemt prepack`."""
    pairs = ", ".join(f"{source} to {target}" for source, target in manifest.languages)
    total = sum(facts["bytes"] for facts in manifest.files.values())
    rows = {
        "bundle": f"{manifest.name} ({path})",
        "format": f"{manifest.format} {manifest.format_version}",
        "family": manifest.family,
        "languages": pairs,
        "target": manifest.target,
        "precision": manifest.precision,
        "size": size(total),
        "vocabulary": f"{manifest.model.vocab_size:,} pieces, {manifest.model.max_positions} positions",
        "defaults": flat(manifest.generation),
        "features": ", ".join(name for name, has in manifest.features.items() if has) or "none",
        "licence": manifest.licence,
        "digest": f"sha256:{manifest.digest} (verified)",
        **({"packed weights": packed} if packed else {}),
    }
    yield from table([(key, value) for key, value in rows.items()])
    gate = {**manifest.gate, **variants(manifest.gate.get("variants") or {})}
    gate.pop("variants", None)
    for title, facts in (("provenance", manifest.provenance), ("gate", gate)):
        if facts:
            yield f"\n{title}"
            yield from table([("  " + key, flat(value)) for key, value in facts.items() if value])
    yield f"\nfiles ({len(manifest.files)}, every SHA-256 verified)"
    yield from table(
        [("  " + name, size(facts["bytes"]), facts["sha256"]) for name, facts in manifest.files.items()]
    )
    if manifest.layers:
        yield f"\nlayers ({len(manifest.layers)})"
        yield from table(layers(manifest.layers) if all_layers else by_precision(manifest.layers))
        if not all_layers:
            yield "  (--layers lists them one by one)"


def variants(found: dict[str, Any]) -> dict[str, str]:
    """One line for each variant that was on trial: size, time, quality against FP32, and why it failed."""
    lines = {}
    for name, variant in found.items():
        parts = [size(variant["bytes"])]
        if variant.get("latency"):
            parts.append(f"{variant['latency']['ratio']:.2f} of FP32's time")
        if gate := variant.get("gate"):
            for direction, result in gate["directions"].items():
                bleu = result["bleu"]
                parts.append(f"{direction} BLEU {bleu['candidate']:.2f} (FP32 {bleu['reference']:.2f})")
            parts.append("passed" if gate["passed"] else f"failed: {'; '.join(gate['reasons'])}")
        lines[name] = "; ".join(parts)
    return lines


def layers(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        ("  " + layer["graph"], layer["name"], layer["op"], layer["precision"], size(layer.get("bytes", 0)))
        for layer in found
    ]


def by_precision(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a graph, operator and precision: how many layers, and the bytes of their weights."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for layer in found:
        groups.setdefault((layer["graph"], layer["op"], layer["precision"]), []).append(layer.get("bytes", 0))
    return [
        ("  " + graph, op, precision, f"{len(sizes)} x", size(sum(sizes)))
        for (graph, op, precision), sizes in groups.items()
    ]


def flat(value: Any) -> str:
    """A value on one line: mappings as key value, lists with commas; what is nested deeper is for --json."""
    if isinstance(value, dict):
        shown = {key: item for key, item in value.items() if not isinstance(item, dict) and item != []}
        return "; ".join(f"{key} {flat(item)}" for key, item in shown.items())
    if isinstance(value, list):
        return ", ".join(flat(item) for item in value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4g}"
    return str(value)


def size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
