"""A fresh process for each bundle: the time from its start to its first translation, and its peak memory.

`python -m edgemt.bench.cold` is that process: a job as JSON on stdin, the answer as JSON on stdout.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgemt.bench.process import peak_rss
from edgemt.errors import EdgemtError

if TYPE_CHECKING:
    from edgemt.bench.contenders import Mode
    from edgemt.bench.foreign import Foreign
    from edgemt.bench.workload import Sentence
    from edgemt.bundle import Bundle


class Start(NamedTuple):
    """One fresh process, in seconds; `first_s` is the whole way from its start to its first answer.

    The parts of that way are known of a bundle, not of a command.
    """

    python_s: float | None  # until the interpreter runs our first line
    import_s: float | None  # importing edgemt, the runtime and what they need
    load_s: float | None  # edgemt.load: verify the bundle, build the sessions
    translate_s: float | None  # the first translation
    first_s: float
    peak_rss_bytes: int | None  # VmHWM after all texts of the job; None where /proc does not tell


def cold_start(bundle: Bundle, threads: int, mode: Mode, sentences: Sequence[Sentence]) -> Start:
    """Start a process that translates the sentences and watch it. Raises EdgemtError if it fails."""
    import subprocess

    texts = [
        (s.source, s.source_lang, s.target_lang, dict(s.terms) if mode.glossary else None) for s in sentences
    ]
    job = {
        "bundle": str(bundle.path.resolve()),
        "target": bundle.manifest.target,
        "threads": threads,
        "beam": mode.beam,
        "texts": texts,
    }
    begin = time.monotonic_ns()
    done = subprocess.run(
        [sys.executable, "-m", "edgemt.bench.cold"], input=json.dumps(job), capture_output=True, text=True
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EdgemtError(f"a fresh process could not translate with {bundle.path} ({said[-1]})")
    answer = json.loads(done.stdout)
    begun, imported, loaded, translated = answer["at_ns"]
    return Start(
        python_s=(begun - begin) / 1e9,
        import_s=(imported - begun) / 1e9,
        load_s=(loaded - imported) / 1e9,
        translate_s=(translated - loaded) / 1e9,
        first_s=(translated - begin) / 1e9,
        peak_rss_bytes=answer["peak_rss_bytes"],
    )


def cold_command(foreign: Foreign, sentences: Sequence[Sentence]) -> Start:
    """Start a command afresh, have the sentences translated, and end it. Raises EdgemtError if it fails."""
    texts = [(s.source, s.source_lang or "", s.target_lang or "") for s in sentences]
    try:
        first_s = foreign.start(*texts[0])
        for text in texts[1:]:
            foreign.translate(*text)
        return Start(None, None, None, None, first_s, foreign.peak_rss())
    finally:
        foreign.close()


def main() -> int:
    begun = time.monotonic_ns()  # the clock is the machine's: the parent reads the same one
    job: dict[str, Any] = json.load(sys.stdin)
    from edgemt.runtimes import RUNTIMES
    from edgemt.translator import load

    importlib.import_module(RUNTIMES[job["target"]])
    imported = time.monotonic_ns()
    translator = load(job["bundle"], threads=job["threads"])
    loaded = time.monotonic_ns()
    translated = None
    for source, source_lang, target_lang, terms in job["texts"]:
        translator.translate(
            source, source_lang=source_lang, target_lang=target_lang, glossary=terms, beam=job["beam"]
        )
        translated = translated or time.monotonic_ns()
    print(json.dumps({"at_ns": [begun, imported, loaded, translated], "peak_rss_bytes": peak_rss()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
