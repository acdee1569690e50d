"""Files of `edgemt bench --json` with times from a generator whose truth the tests know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

BUCKETS = (5, 10, 15, 25, 40, 60)


def times(
    seed: int,
    *,
    factor: float = 1.0,
    run: float = 0.01,
    round_: float = 0.005,
    rounds: int = 5,
    texts: int = 144,
) -> np.ndarray:
    """[texts, rounds] ms as a machine gives them: the texts and their true times are always the same; a run,
    a round and a timing each add noise (standard deviations of the logarithm), and a few timings are late."""
    rng = np.random.default_rng(seed)
    true = np.repeat(BUCKETS, texts // len(BUCKETS)) * np.random.default_rng(0).lognormal(0, 0.2, texts)
    noise = rng.normal(0, run) + rng.normal(0, round_, (1, rounds)) + rng.normal(0, 0.03, (texts, rounds))
    late = (rng.random((texts, rounds)) < 0.02) * rng.exponential(0.5, (texts, rounds))
    return factor * true[:, None] * np.exp(noise + late)


def row(ms: np.ndarray, label: str = "toy int8-dynamic", target_tokens: int = 10) -> dict[str, Any]:
    buckets = np.repeat(BUCKETS, len(ms) // len(BUCKETS)).tolist()
    texts = [
        {"line": n + 2, "pair": "zh-en", "bucket": bucket, "target_tokens": target_tokens, "ms": values}
        for n, (bucket, values) in enumerate(zip(buckets, ms.tolist(), strict=True))
    ]
    return {"label": label, "name": "toy", "texts": texts}


def measured(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What the comparison reads of a run; `changes` replace keys, "a.b" those of an inner object."""
    data = {
        "format": "edgemt-bench",
        "format_version": "1.1",
        "kind": "measured",
        "created": "2026-01-01T00:00:00+00:00",
        "settings": {"threads": 1, "rounds": 5},
        "workload": {"name": "medical (shipped)", "sha256": "aa", "texts": 144},
        "verdict": {"disturbed": []},
        "machine": {"model": "Board", "cores": 4, "versions": {"edgemt": "0.1.0", "numpy": "2.4.6"}},
        "bundles": rows,
    }
    for key, value in changes.items():
        *outer, last = key.split("__")
        inner = data
        for name in outer:
            inner = inner[name]
        inner[last] = value
    return data


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def simulated(path: Path, seed: int, **truth: float) -> Path:
    """A file with one row of simulated times."""
    return write(path, measured([row(times(seed, **truth))]))
