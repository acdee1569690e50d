"""How long a device would take, from what is executed and what is read: ranges, no measurement.

The parameters of a device are ranges, in edgemt/data/<device>.json, with what each rests on and the published
figures they were fitted to. A prediction is made for many draws from these ranges: see docs/projection.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgemt.bench.stats import F64
from edgemt.errors import UsageError

DATA = Path(__file__).parents[1] / "data"
DEVICES = ("pi5",)
LANES = 16  # bytes of weights that one vector instruction multiplies
SPLIT = 65536  # multiplications for which onnxruntime gives a product another thread (MLAS's own constant)
SEED = 20260101
RANGE = (5, 95)  # per cent of the draws that lie below the ends of a range


class Product(NamedTuple):
    """A matrix product with weights: how many it has, and the bytes they take."""

    elements: int
    bytes: int


@dataclass(frozen=True)
class Device:
    name: str
    hertz: float
    cores: int
    l2_bytes: int
    l3_bytes: int
    parameters: dict[str, dict[str, Any]]  # name -> {"range", "unit", "of", "basis"}
    points: list[dict[str, Any]]  # published figures, see `predict`


@dataclass(frozen=True)
class Draws:
    """`count` devices that the ranges allow: each parameter is an array [count]."""

    device: Device
    count: int
    values: dict[str, F64]

    def __getitem__(self, name: str) -> F64:
        return self.values[name]


def read_device(name: str) -> Device:
    """Raises UsageError for a device that is not known here."""
    if name not in DEVICES:
        raise UsageError(f"there is no model of the device {name!r}; give --project {' or '.join(DEVICES)}")
    data = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return Device(
        name=data["name"],
        hertz=data["frequency_ghz"] * 1e9,
        cores=data["cores"],
        l2_bytes=data["l2_bytes"],
        l3_bytes=data["l3_bytes"],
        parameters=data["parameters"],
        points=data["points"],
    )


def draw(device: Device, count: int = 1000) -> Draws:
    rng = np.random.default_rng(SEED)
    ranges = {name: p["range"] for name, p in device.parameters.items()}
    values = {name: rng.uniform(low, high, count) for name, (low, high) in ranges.items()}
    return Draws(device, count, values)


def bounds(values: F64) -> list[float]:
    """[low, middle, high] of the draws, as `RANGE` says."""
    return [float(v) for v in np.percentile(values, [RANGE[0], 50, RANGE[1]])]


def instructions(draws: Draws, products: Sequence[Product], rows: int) -> F64:
    """Instructions [draws] that the inner loops of `products` of `rows` rows take."""
    each = draws["dot_instructions_one_row" if rows == 1 else "dot_instructions_rows"]
    return each * sum(product.bytes for product in products) * rows / LANES


def products_s(
    draws: Draws, products: Sequence[Product], rows: int, threads: int, kept: F64 | float = 0.0
) -> F64:
    """Seconds [draws] of `products` of `rows` rows, one after another; `kept`: share of weights in a cache.

    A product takes as long as its arithmetic or its reading, whichever is longer: the core reads ahead while
    it multiplies. It is split as onnxruntime splits it, and splitting has a price.
    """
    total = np.zeros(draws.count)
    for product in products:
        split = min(threads, product.elements * rows // SPLIT + 1)
        compute = instructions(draws, [product], rows) / (draws["kernel_ipc"] * draws.device.hertz)
        gain = 1 + (split - 1) * draws["split_gain"]
        memory = draws["memory_gb_s_one" if split == 1 else "memory_gb_s_all"]
        reading = product.bytes * ((1 - kept) / memory + kept / (draws["l3_gb_s"] * gain)) / 1e9
        total += np.maximum(compute / gain, reading) + (draws["wake_us"] / 1e6 if split > 1 else 0.0)
    return total


def kept_share(draws: Draws, weight_bytes: int, threads: int) -> F64:
    """Share [draws] of the weights of a step that the caches still hold when the next step reads them.

    They are read round and round. What does not fit pushes out what will be needed soonest where the oldest
    goes first, so between nothing and the part that fits may be kept; what fits is mostly kept.
    """
    room = draws.device.l3_bytes + threads * draws.device.l2_bytes
    if weight_bytes > room:
        return draws["cache_kept"] * room / weight_bytes
    return 0.5 + 0.5 * draws["cache_kept"]


def serial_s(draws: Draws, count: F64) -> F64:
    """Seconds of `count` instructions outside the inner loops: one thread runs them whatever there are."""
    return count / (draws["serial_ipc"] * draws.device.hertz)


def predict(draws: Draws, point: dict[str, Any]) -> list[float]:
    """[low, middle, high] of a published figure, in its unit, by the same formulas.

    `point["work"]` is what one token, image or loop does: `bytes` read from memory, `dots` vector products of
    `instructions_per_dot` (a range) instructions each; `point["threads"]` share it.
    """
    work, threads = point["work"], point["threads"]
    fewest, most = work.get("instructions_per_dot", (0, 0))
    per_dot = np.random.default_rng(SEED + 1).uniform(fewest, most, draws.count)
    gain = 1 + (threads - 1) * draws["split_gain"]
    compute = work.get("dots", 0) * per_dot / (draws["kernel_ipc"] * draws.device.hertz * gain)
    memory = draws["memory_gb_s_one" if threads == 1 else "memory_gb_s_all"]
    seconds = np.maximum(compute, work.get("bytes", 0) / (memory * 1e9))
    units = {"ms": seconds * 1e3, "cycles": seconds * draws.device.hertz}
    return bounds(units.get(point["unit"], 1 / seconds))


def table(device: Device) -> str:
    """The published figures beside what the model says of them, as a table of docs/projection.md."""
    draws = draw(device)
    lines = ["| what | software | threads | published | projected | inside |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for point in device.points:
        low, middle, high = predict(draws, point)
        value = point["published"]
        beyond = 100 * (max(low / value, value / high) - 1)
        inside = "yes" if beyond <= 0 else f"no, by {beyond:.2g} %"
        projected = f"{_short(middle)} ({_short(low)}–{_short(high)}), {100 * (middle / value - 1):+.0f} %"
        name = f"[{point['name']}]({point['address']})"
        cells = [name, point["software"], point["threads"], f"{value:g} {point['unit']}", projected, inside]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def ranges(device: Device) -> str:
    """The parameters as a table of docs/projection.md."""
    lines = ["| parameter | range | what | rests on |", "| --- | --- | --- | --- |"]
    for name, p in device.parameters.items():
        low, high = p["range"]
        lines.append(f"| `{name}` | {low:g}–{high:g} {p['unit']} | {p['of']} | {p['basis']} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


if __name__ == "__main__":
    print(ranges(read_device("pi5")), table(read_device("pi5")), sep="\n\n")
