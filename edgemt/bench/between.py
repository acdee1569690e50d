"""How two sets of runs differ: ratios with intervals that hold the noise between runs as well as inside one.

Two runs of the same thing on the same machine differ by more than the rounds inside either suggest: memory is
laid out anew, the CPU is warmer, something else wakes up. What one run cannot show is assumed (`RUN_SD`), and
the more runs a side has, the more the runs themselves say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemt.bench.stats import BLOCK, F64, LEVEL, RESAMPLES, SEED

RUN_SD = 0.015  # standard deviation of log time between runs of one thing on a quiet machine: our assumption
RUN_DF = 4  # degrees of freedom that the assumption is worth, beside those of the runs


@dataclass(frozen=True)
class Spread:
    """Between runs of one thing: standard deviation of log time, and the degrees of freedom behind it."""

    sd: float
    df: int
    from_runs: int  # degrees of freedom that the runs gave; 0: assumed
    drift: bool  # the rounds inside the runs drifted by more than the assumption


@dataclass(frozen=True)
class Ratio:
    """How many times as long the other side takes as the base; `low` and `high` bound the 95 % interval."""

    ratio: float
    low: float
    high: float


def spread(sides: Sequence[Sequence[F64]]) -> Spread:
    """From `sides`, each a list of runs, each run milliseconds [texts, rounds] of the same texts.

    The assumption is raised to the drift between the rounds of a run, where that is larger: a machine that
    drifts within minutes differs at least as much from one run to the next.
    """
    drift = [_drift(run) for runs in sides for run in runs]
    assumed = max(RUN_SD, float(np.sqrt(np.mean(np.square(drift)))))
    levels = [np.array([np.log(np.median(run, axis=1)).mean() for run in runs]) for runs in sides]
    squares = sum(float(((level - level.mean()) ** 2).sum()) for level in levels)
    found = sum(len(level) - 1 for level in levels)
    sd = np.sqrt((RUN_DF * assumed**2 + squares) / (RUN_DF + found))
    return Spread(float(sd), RUN_DF + found, found, assumed > RUN_SD)


def ratios(base: Sequence[F64], other: Sequence[F64], groups: Sequence[Sequence[int]]) -> list[Ratio]:
    """The ratio of `other` to `base` for each of `groups` of texts; both are runs, as in `spread`.

    The geometric mean over the texts of a group of the ratios of their medians. The bootstrap draws texts,
    the rounds of each run (whole rounds: what disturbs one falls on all its texts), and what differs from
    run to run from a t distribution as wide as `spread` says.
    """
    rng = np.random.default_rng(SEED)
    noise = spread([base, other])
    offset = noise.sd * np.sqrt(1 / len(base) + 1 / len(other)) * rng.standard_t(noise.df, RESAMPLES)
    places = [np.asarray(group) for group in groups]
    drawn = np.empty((len(places), RESAMPLES))
    block = max(1, BLOCK // max(run.size for run in (*base, *other)))
    for start in range(0, RESAMPLES, block):
        turns = np.arange(start, min(start + block, RESAMPLES))
        logs = _drawn(other, len(turns), rng) - _drawn(base, len(turns), rng)
        for number, place in enumerate(places):
            texts = rng.choice(place, (len(turns), len(place)))
            drawn[number, turns] = logs[np.arange(len(turns))[:, None], texts].mean(axis=1) + offset[turns]
    logs = _drawn(other)[0] - _drawn(base)[0]
    bounds = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=1)
    middle = [logs[place].mean() for place in places]
    return [Ratio(*np.exp(values).tolist()) for values in np.column_stack([middle, *bounds])]


def _drawn(runs: Sequence[F64], times: int = 1, rng: np.random.Generator | None = None) -> F64:
    """[times, texts] log medians, the mean of the runs; with `rng`, of rounds drawn with replacement."""
    logs = []
    for run in runs:
        rounds = np.arange(run.shape[1])[None]
        if rng is not None:
            rounds = rng.integers(run.shape[1], size=(times, run.shape[1]))
        logs.append(np.log(np.median(run[:, rounds], axis=2)).T)
    return np.mean(logs, axis=0)


def _drift(run: F64) -> float:
    """Standard deviation of log time between the rounds of a run, all texts together; 0 for one round."""
    logs = np.log(run)
    levels = (logs - np.median(logs, axis=1, keepdims=True)).mean(axis=0)
    return float(levels.std(ddof=1)) if len(levels) > 1 else 0.0
