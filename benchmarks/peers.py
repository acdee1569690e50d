"""The default model through edgemt, CTranslate2 and optimum: one run, the same work, taking turns.

    python benchmarks/peers.py --prepare      export and convert only, so that a run can begin at once
    python benchmarks/peers.py                everything; writes docs/benchmarks.md and docs/benchmarks.json
    python benchmarks/peers.py --only edgemt --only CTranslate2 --texts 2 --rounds 1 --quality 10 --starts 1

Every contender is a resident process that is given a line and answers with a line, so that all have the same
way to go. A contender that is not installed is left out by name, with the command that installs it.

Exit code 0: measured, quietly or not (the page says which). 2: nothing could be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.contenders.prepare import Entrant, prepare  # noqa: E402
from benchmarks.peers_page import page  # noqa: E402
from benchmarks.peers_quality import quality, report, test_rows  # noqa: E402
from edgemt.bench.cold import Start  # noqa: E402
from edgemt.bench.contenders import CommandContender  # noqa: E402
from edgemt.bench.facts import machine_facts  # noqa: E402
from edgemt.bench.foreign import Foreign  # noqa: E402
from edgemt.bench.measure import measure  # noqa: E402
from edgemt.bench.options import check_writable, write  # noqa: E402
from edgemt.bench.results import Row, Settings, build  # noqa: E402
from edgemt.bench.workload import Sentence, Workload, read_workload  # noqa: E402
from edgemt.errors import EdgemtError  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemt" / "peers"
TIMEOUT_S = 120.0  # for one line, the start of the process included
MEMORY_TEXTS = 6  # peak memory is looked at after every sixth text of the workload
FORMAT, FORMAT_VERSION = "edgemt-peers", "1.0"


def main() -> int:
    args = arguments()
    # Contenders are found from any folder, and look for nothing on the network.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        check_writable(args.json, "--json")
        check_writable(args.page, "--page")
        entrants, skipped = prepare(args.only, args.work, say)
        if args.prepare:
            print(f"ready in {args.work}: {', '.join(entrant.label for entrant in entrants)}")
            return 0
        data = run(args, entrants, skipped)
        write(args.json, json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")
        write(args.page, page(data))
    except EdgemtError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    print(f"{args.page}\n{args.json}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", action="append", default=[], metavar="NAME", help="contenders whose names begin so")
    add("--beams", default="1,4", metavar="N,…", help="searches; 1 is greedy (default: 1,4)")
    add("--threads", type=int, default=1, metavar="N", help="of each engine (default: 1)")
    add("--rounds", type=int, default=3, metavar="N", help="times each text is measured (default: 3)")
    add("--texts", type=int, metavar="N", help="of each length of the workload and direction (default: all)")
    add("--quality", type=int, default=75, metavar="N", help="test rows for BLEU and chrF (default: 75)")
    add("--starts", type=int, default=5, metavar="N", help="fresh processes of each (default: 5)")
    add("--work", type=Path, default=CACHE, metavar="DIR", help=f"exported models (default: {CACHE})")
    add("--json", type=Path, default=ROOT / "docs" / "benchmarks.json", metavar="FILE")
    add("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", metavar="FILE.md")
    add("--prepare", action="store_true", help="only export and convert")
    args = parser.parse_args()
    for name in ("threads", "rounds", "quality", "starts"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} is below 1")
    try:
        args.beams = [int(beam) for beam in args.beams.split(",")]
    except ValueError:
        parser.error(f"--beams is {args.beams!r}; give whole numbers with commas between them")
    return args


def run(args: argparse.Namespace, entrants: list[Entrant], skipped: list[dict[str, str]]) -> dict[str, Any]:
    """Start, translate, measure; what was found, ready for JSON."""
    began = time.monotonic()
    workload = choose(read_workload(None), args.texts)
    rows = test_rows(args.quality)
    settings = Settings(budget_ms=500.0, percentile=99.0, rounds=args.rounds, warmup=0, threads=args.threads)
    started = cold_starts(entrants, args.threads, args.starts, workload.sentences[0])
    searches = []
    for beam in args.beams:
        search = "greedy" if beam == 1 else f"beam {beam}"
        say(f"{search}: peak memory")
        memory = [
            peak_rss(entrant, beam, args.threads, workload.sentences[::MEMORY_TEXTS]) for entrant in entrants
        ]
        with running(entrants, beam, args.threads) as contenders:
            say(f"{search}: {len(rows)} test rows both ways")
            found = [(c.label, quality(c, rows)) for c in contenders]  # and they are warm then
            say(f"{search}: {len(workload.sentences)} texts, {args.rounds} rounds")
            samples = measure(contenders, workload.sentences, rounds=args.rounds, warmup=0)
        results = [
            Row(entrant.label, "command", [Start(None, None, None, None, seconds, peak) for seconds in times])
            for entrant, times, peak in zip(entrants, started, memory, strict=True)
        ]
        measured = build(settings, workload, results, samples, machine_facts(args.threads), 0)
        searches.append({"search": search, "beam": beam, "quality": report(found), "run": measured})
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "sentence_tokens": entrants[0].most,
        "skipped": skipped,
        "contenders": [entrant.describe() for entrant in entrants],
        "searches": searches,
    }


def choose(workload: Workload, texts: int | None) -> Workload:
    """All of it, or the first `texts` of each length and direction."""
    kept: dict[tuple[int | None, str | None], list[Sentence]] = {}
    for sentence in workload.sentences:
        kept.setdefault((sentence.bucket, sentence.source_lang), []).append(sentence)
    sentences = [sentence for group in kept.values() for sentence in group[:texts]]
    return Workload(workload.name, workload.sha256, sentences)


def cold_starts(entrants: list[Entrant], threads: int, count: int, first: Sentence) -> list[list[float]]:
    """Seconds from a fresh process to its first answer, `count` times each, taking turns."""
    found: list[list[float]] = [[] for _ in entrants]
    for attempt in range(count):
        say(f"fresh processes, {attempt + 1} of {count}")
        for place, entrant in enumerate(entrants):
            with Foreign(entrant.command(1, threads, bare=True), "tsv", TIMEOUT_S) as foreign:
                found[place].append(foreign.start(first.source, *languages(first)))
    return found


def peak_rss(entrant: Entrant, beam: int, threads: int, sentences: Sequence[Sentence]) -> int | None:
    """The most memory that a fresh process holds which translates these, in bytes."""
    with Foreign(entrant.command(beam, threads, bare=True), "tsv", TIMEOUT_S) as foreign:
        for sentence in sentences:
            foreign.translate(sentence.source, *languages(sentence))
        return foreign.peak_rss()


@contextlib.contextmanager
def running(entrants: list[Entrant], beam: int, threads: int) -> Iterator[list[CommandContender]]:
    """All of them as resident processes."""
    with contextlib.ExitStack() as stack:
        commands = [entrant.command(beam, threads) for entrant in entrants]
        processes = [stack.enter_context(Foreign(command, "tsv", TIMEOUT_S)) for command in commands]
        yield [
            CommandContender(entrant.label, process)
            for entrant, process in zip(entrants, processes, strict=True)
        ]


def languages(sentence: Sentence) -> tuple[str, str]:
    return sentence.source_lang or "", sentence.target_lang or ""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
