"""What a comparison found, as one dictionary: report.json as it is written, and the basis of table and page.

format, format_version   "edgemt-training-comparison", "1.0"
created     ISO 8601, UTC
command     the options that matter, without paths
device      {"kind": "cpu" or "cuda", "name": str, "threads": int}; the figures are of this device alone
machine     edgemt.bench.facts.machine_facts
versions    {"torch": str, "transformers": str, "edgemt": str}
conditions  what the person who measured says of the machine, or null
config      the configuration, every key, as the modes share it (each with its own `precision`)
model       {"parameters": int} in all modes, null if none got as far
settings    {"steps": of each training, "timing_rounds", "timing_steps": counted in each round,
             "warm_up": not counted, "base": the mode that ratios are to}
modes       in the order asked for, each:
  mode          "fp32", "bf16", "fp16-o1" or "fp16-pure"
  status        "finished", "diverged", "out of memory" or "failed"
  reason        a sentence why, or null
  culprit       the first tensor that was not finite in the row of skipped steps with which it diverged
                (edgemt.training.health.Culprit, with `step` and `sentence`), or null
  peak_mb       the most memory in the clocked rounds, MB (10^6 bytes): of the process on a CPU (with torch
                itself), of torch's allocator on a GPU; null if no step was clocked
  before_mb     the same just before the first step: what torch, data and weights take
  step_ms       {"median", "p10", "p90", "steps": how many} of the counted steps that were taken; or null
  ratio         {"ratio", "low", "high"}: time of a step over the base's of the same batches, and its 95 %
                interval; null for the base
  tokens_per_second   target tokens over seconds of the counted steps, or null
  scores        {"corpus xx-yy": {"bleu", "chrf", "sentences"}} at the last evaluation; or {}
  scored_at     the step of that evaluation, or null
  steps, skipped_steps        of the training; 0 if there was none
  loss          mean of the last finite losses, a quarter of them and at most LAST_STEPS, nats a target token
                with label smoothing; or null
  loss_scale    of the last step, or null without scaling
  first_scale   of the first step, or null
  curve         {"step", "loss", "scale", "gradient_norm"}: lists of equal length, null where not finite;
                at most POINTS, evenly spread over the steps
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from statistics import fmean
from typing import Any

import numpy as np
import torch

from edgemt.bench.facts import machine_facts
from edgemt.bench.stats import percentile, ratio_interval
from edgemt.training.compare.run import WARM_UP, Job, diverged

FORMAT, FORMAT_VERSION = "edgemt-training-comparison", "1.0"
LAST_STEPS = 50
POINTS = 1500
Log = list[dict[str, Any]]
Clock = dict[int, list[float]]  # by step, the seconds in each round


def report(
    job: Job,
    trainings: Mapping[str, dict[str, Any] | None],
    rounds: Mapping[str, Sequence[dict[str, Any]]],
    timing_steps: int,
    conditions: str | None,
) -> dict[str, Any]:
    """The dictionary above, from what run.py returned for each mode: its training, and its clocked rounds."""
    base = next(iter(trainings))
    clocks = {mode: clock(done) for mode, done in rounds.items()}
    modes = [row(mode, trainings[mode], rounds[mode], clocks[mode], clocks[base]) for mode in trainings]
    starts = [line for done in rounds.values() for found in done for line in found["log"]]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device(job),
        "machine": machine_facts(job.threads),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "edgemt")},
        "conditions": conditions,
        "config": job.config.model_dump(mode="json"),
        "model": {"parameters": next((line["parameters"] for line in starts if "parameters" in line), None)},
        "settings": {
            "steps": max((entry["steps"] for entry in modes), default=0),
            "timing_rounds": max(map(len, rounds.values())),
            "timing_steps": timing_steps,
            "warm_up": WARM_UP,
            "base": base,
        },
        "modes": [entry | {"ratio": None} if entry["mode"] == base else entry for entry in modes],
    }


def device(job: Job) -> dict[str, Any]:
    if job.config.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        machine = machine_facts(job.threads)
        name = machine["cpu"] or machine["architecture"]
    return {"kind": job.config.device, "name": name, "threads": job.threads}


def row(
    mode: str, training: dict[str, Any] | None, rounds: Sequence[dict[str, Any]], times: Clock, base: Clock
) -> dict[str, Any]:
    log: Log = training["log"] if training else []
    done = training or (rounds[0] if rounds else {"log": [], "failure": None})
    why = diverged(done["log"])
    failure = done["failure"] or next((found["failure"] for found in rounds if found["failure"]), None)
    steps = steps_of(log)
    scaled = mode == "fp16-o1" and steps
    evaluated = next((line for line in reversed(log) if line.get("event") == "evaluated"), {})
    losses = [line["loss"] for line in steps if line["loss"] is not None]
    counted = [line for found in rounds for line in steps_of(found["log"])]
    started = [line for found in rounds for line in found["log"] if line.get("event") == "started"]
    return {
        "mode": mode,
        "status": "diverged" if why else failure["kind"] if failure else "finished",
        "reason": why or (failure["reason"] if failure else None),
        "culprit": culprit(done["log"]) if why else None,
        "peak_mb": max((line["memory_mb"] or 0 for line in counted), default=None),
        "before_mb": max((line["memory_mb"] or 0 for line in started), default=None),
        **speed(rounds, times, base),
        "scores": evaluated.get("scores", {}),
        "scored_at": evaluated.get("step"),
        "steps": steps[-1]["step"] if steps else 0,
        "skipped_steps": steps[-1]["skipped"] if steps else 0,
        "loss": fmean(losses[-min(LAST_STEPS, -(-len(losses) // 4)) :]) if losses else None,
        "loss_scale": steps[-1]["scale"] if scaled else None,
        "first_scale": steps[0]["scale"] if scaled else None,
        "curve": curve(steps),
    }


def steps_of(log: Log) -> Log:
    return [line for line in log if "event" not in line]


def good(line: dict[str, Any]) -> bool:
    """Was this step taken?"""
    return line["loss"] is not None and line["gradient_norm"] is not None


def clock(rounds: Sequence[dict[str, Any]]) -> dict[int, list[float]]:
    """Seconds in each round of every step after the warm-up that no round skipped."""
    found = [
        {
            line["step"]: line["seconds"]
            for line in steps_of(done["log"])
            if line["step"] > WARM_UP and good(line)
        }
        for done in rounds
        if not done["failure"]
    ]
    steps = set.intersection(*map(set, found)) if found else set()
    return {step: [times[step] for times in found] for step in sorted(steps)}


def speed(rounds: Sequence[dict[str, Any]], times: Clock, base: Clock) -> dict[str, Any]:
    """step_ms, ratio and tokens_per_second."""
    if not times:
        return {"step_ms": None, "ratio": None, "tokens_per_second": None}
    every = 1000 * np.array(list(times.values())).ravel()
    median, low, high = (round(percentile(every, q), 2) for q in (50, 10, 90))
    ratio = None
    if common := sorted(times.keys() & base.keys()):
        value, bounds = ratio_interval(*(np.array([side[step] for step in common]) for side in (times, base)))
        ratio = {"ratio": round(value, 4), "low": round(bounds[0], 4), "high": round(bounds[1], 4)}
    lines = {line["step"]: line for line in steps_of(rounds[0]["log"])}
    tokens = sum(lines[step]["tokens"] - lines[step - 1]["tokens"] for step in times)
    return {
        "step_ms": {"median": median, "p10": low, "p90": high, "steps": len(every)},
        "ratio": ratio,
        "tokens_per_second": round(tokens / sum(np.mean(list(times.values()), axis=1))),
    }


def culprit(log: Log) -> dict[str, Any] | None:
    """The first one of the skipped steps at the end; of a run that only rose, there is none."""
    steps = steps_of(log)
    last_good = max((line["step"] for line in steps if good(line)), default=0)
    return next((e for e in log if e.get("event") == "not_finite" and e["step"] > last_good), None)


def curve(steps: Log) -> dict[str, list[Any]]:
    chosen = steps[:: max(1, -(-len(steps) // POINTS))]
    return {key: [line[key] for line in chosen] for key in ("step", "loss", "scale", "gradient_norm")}
