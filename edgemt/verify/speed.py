"""Memory and speed on this machine: a fresh process for each bundle and number of threads.

`python -m edgemt.verify.speed` is that process: a job as JSON on stdin, the answer as JSON on stdout.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from edgemt.bench.process import peak_rss
from edgemt.fresh import ask

if TYPE_CHECKING:
    from edgemt.bundle import Bundle
    from edgemt.translator import Translator
    from edgemt.verify.sections import Section
    from edgemt.verify.texts import Pair

Timed = TypeVar("Timed")
NAME, TITLE = "speed", "Memory and speed on this machine"
PREFILL = 128  # tokens of the prompt, at least where sentences give so many
DECODED = 32  # tokens behind it
ROUNDS, ROUNDS_QUICK = 5, 2
ENOUGH_S = 60.0  # no round is begun after so long
SENTENCES = 4  # translated in each round
COLUMNS = (
    "precision", "threads", "MB", "load s", "prefill tok/s", "decode tok/s", "sentence ms", "peak RSS MB",
    "rounds",
)  # fmt: skip
KEYS = ("load_s", "prefill", "decode", "sentence_ms", "peak_mb", "rounds")


def measured(bundles: Mapping[str, Bundle], most_threads: int, quick: bool) -> Section:
    """Each bundle with 1, 2, … `most_threads` threads. Medians over rounds; memory is VmHWM."""
    from edgemt.bench.conditions import compare, observe
    from edgemt.bench.facts import emulator
    from edgemt.bench.sampler import Sampler
    from edgemt.bench.threads import candidates
    from edgemt.verify.sections import NotRun, Section, Table, say
    from edgemt.verify.texts import clinic

    if name := emulator():
        raise NotRun(f"this process runs under {name}, whose times are not the device's")
    languages = next(iter(bundles.values())).manifest.languages
    pairs = clinic(languages, SENTENCES)
    if not pairs:
        raise NotRun(f"no sentences are built in for {', '.join(map('-'.join, languages))}")
    pairs = [pair for i in range(SENTENCES) for pair in pairs[i::SENTENCES]][:SENTENCES]  # of all directions
    counts = candidates(most_threads)
    counts = [counts[0], counts[-1]][: len(counts)] if quick else counts
    rows, rounds = [], ROUNDS_QUICK if quick else ROUNDS
    with Sampler() as sampler:
        origin, before = time.perf_counter_ns(), observe()
        for precision, bundle in bundles.items():
            size = sum(facts["bytes"] for facts in bundle.manifest.files.values()) / 1e6
            for threads in counts:
                say(f"{TITLE}: {precision}, {threads} thread{'s' if threads > 1 else ''} …")
                found = fresh(bundle, threads, rounds, pairs)
                rows.append((precision, threads, round(size, 2), *(found[key] for key in KEYS)))
        after = observe()
        span = compare(before, after, during=sampler.stop(origin), single=False)
    made = Section(NAME, TITLE, tables=[Table("measured here", COLUMNS, rows)])
    made.facts = {
        "prompt of the prefill, tokens": found["prompt"],
        "tokens decoded behind it": DECODED,
        "disturbed": "; ".join(span.disturbed) or "no sign of it",
    }
    made.notes.append(
        "load: reading the bundle, checking its SHA-256, building the graphs, files warm; prefill: prompt "
        "and the first token; decode: one row, each step's best token fed back; sentence: the median of "
        f"{SENTENCES} clinic sentences, as edgemt.translate takes them"
    )
    return made


def fresh(bundle: Bundle, threads: int, rounds: int, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What a new process measures. Raises EdgemtError if it fails, or is killed for its memory."""
    job = {"bundle": str(bundle.path.resolve()), "threads": threads, "rounds": rounds, "pairs": pairs}
    precision = bundle.manifest.precision
    return ask(
        "edgemt.verify.speed",
        job,
        f"the process that measured {precision}",
        "free some, or verify a smaller precision",
        f"{precision} could not be measured ({{}})",
    )


def main() -> int:
    job: dict[str, Any] = json.load(sys.stdin)
    from edgemt.translator import load
    from edgemt.verify.texts import Pair

    started = time.perf_counter()
    translator = load(job["bundle"], threads=job["threads"])
    loaded = time.perf_counter() - started
    pairs = [Pair(*pair) for pair in job["pairs"]]
    row = prompt(translator, pairs)
    runs = repeated(lambda: decoded(translator, row), job["rounds"])
    times = repeated(lambda: [sentence(translator, pair) for pair in pairs], job["rounds"])
    peak = peak_rss()
    answer = {
        "prompt": len(row) + 1,
        "load_s": round(loaded, 2),
        "prefill": round((len(row) + 1) / statistics.median(run[0] for run in runs), 1),
        "decode": round(DECODED / statistics.median(run[1] for run in runs), 2),
        "sentence_ms": round(1000 * statistics.median(chain(*times)), 1),
        "peak_mb": peak and round(peak / 1e6),
        "rounds": min(len(runs), len(times)),
    }
    print(json.dumps(answer))
    return 0


def repeated(what: Callable[[], Timed], rounds: int) -> list[Timed]:
    """What it returns in so many rounds, fewer where they take long, after one to warm up."""
    what()
    started, found = time.perf_counter(), []
    while not found or (len(found) < rounds and time.perf_counter() - started < ENOUGH_S):
        found.append(what())
    return found


def prompt(translator: Translator, pairs: Sequence[Pair]) -> list[int]:
    """A source of PREFILL tokens or a few more: sentences as one text."""
    from edgemt.family import Request

    source, target = pairs[0].source_lang, pairs[0].target_lang
    texts = [pair.source for pair in pairs]
    text, row = "", list[int]()
    while len(row) < PREFILL and translator.fits(text + texts[0]):
        text, texts = text + texts[0], [*texts[1:], texts[0]]
        row = translator.family.source(Request(text, source, target))
    return row


def decoded(translator: Translator, row: list[int]) -> tuple[float, float]:
    """Seconds to the first token behind `row`, and for DECODED more; ends are decoded through."""
    import numpy as np

    from edgemt.runtimes.protocol import Want

    program, one = translator.program, np.ones(1, np.int32)
    start = np.array([[translator.bundle.manifest.model.start_id]], np.int32)
    begun = time.perf_counter()
    encoded = program.encode(np.array([row], np.int32), np.array([len(row)], np.int32))
    session = program.open(encoded, np.zeros(1, np.int32), DECODED + 1)
    step = session.step(start, one, Want())
    first = time.perf_counter()
    for _ in range(DECODED):
        step = session.step(step.ids[:, :, 0], one, Want())
    done = time.perf_counter()
    session.close()
    return first - begun, done - first


def sentence(translator: Translator, pair: Pair) -> float:
    begun = time.perf_counter()
    translator.translate(pair.source, source_lang=pair.source_lang, target_lang=pair.target_lang)
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
