"""Trying things out in a process of its own: what crashes, hangs or starves there is a finding here.

`python -m edgemt.doctor.trial imports` imports what the device needs, `… bundle [PATH]` translates a
sentence; it prints a line of JSON when it begins a step and when it has done it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgemt.bench.facts import emulator
from edgemt.bench.process import peak_rss
from edgemt.doctor.finding import without_home

Event = dict[str, Any]
SECONDS = 300  # a slow card and a cold cache are no reason to give up
SAMPLES = {"zh": "我对青霉素过敏。", "en": "I am allergic to penicillin."}
PLAIN = "3.5 mg"  # for a language that has no sample here
MODULES = ("numpy", "sentencepiece", "sentencex")  # besides the runtimes


def attempt(*arguments: str) -> list[Event]:
    """The events of a trial: each has "step", and "done" (facts) or "failed" (why)."""
    if emulator():  # a user-mode emulator starts no second process
        events: list[Event] = []
        steps(list(arguments), events.append)
        return paired(events)
    # -P: a numpy.py in the working directory is none of the installation's.
    command = [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", "edgemt.doctor.trial", *arguments]
    try:
        child = subprocess.run(command, capture_output=True, timeout=SECONDS)
        output, error, code = child.stdout, child.stderr, child.returncode
    except subprocess.TimeoutExpired as late:
        output, error, code = late.stdout or b"", late.stderr or b"", None
    except OSError as problem:
        return [{"step": "start", "failed": f"no second process could be started ({problem.strerror})"}]
    events = [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]
    return paired(events, ended(code, error.decode(errors="replace")))


def paired(events: list[Event], end: str = "ended early") -> list[Event]:
    """One event a step; the step that was begun and never finished failed with the process."""
    found: dict[str, Event] = {}
    for event in events:
        found[event["step"]] = event
    for event in found.values():
        if "done" not in event and "failed" not in event:
            event["failed"] = end
    return list(found.values()) or [{"step": "start", "failed": end}]


def ended(code: int | None, error: str) -> str:
    """Why a process stopped before it was through."""
    if code is None:
        return f"no answer within {SECONDS} seconds"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hints = {
            "SIGKILL": "the system may be out of memory",
            "SIGILL": "it uses instructions that this processor does not have",
        }
        return f"the process died of {name}" + (f": {hints[name]}" if name in hints else "")
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return without_home(lines[-1]) if lines else f"the process ended with code {code}"


def steps(arguments: list[str], emit: Callable[[Event], None]) -> None:
    """Run the trial that `arguments` name, telling `emit` of each step."""
    trial = imports() if arguments[0] == "imports" else bundle(arguments[1:])
    for name, action in trial:
        emit({"step": name})
        try:
            emit({"step": name, "done": action()})
        except MemoryError:
            emit({"step": name, "failed": "there is not enough memory"})
            if arguments[0] != "imports":
                return
        except Exception as error:
            emit({"step": name, "failed": without_home(cause(error))})
            if arguments[0] != "imports":
                return  # later steps need this one


def imports() -> Iterator[tuple[str, Callable[[], Event]]]:
    from importlib import metadata

    def load(module: str, package: str) -> Event:
        begun = time.perf_counter()
        importlib.import_module(module)
        if importlib.util.find_spec(package):  # the module may put it off until it loads a bundle
            importlib.import_module(package)
        seconds = time.perf_counter() - begun
        return {"version": metadata.version(package), "seconds": round(seconds, 3)}

    for name in MODULES:
        yield name, lambda name=name: load(name, name)
    try:
        from edgemt.runtimes import RUNTIMES
    except ImportError:
        return  # numpy is missing, which was said
    for name, module in RUNTIMES.items():
        if name == "cloud":  # ONNX Runtime again, on a server
            continue
        yield name, lambda name=name, module=module: load(module, name)


def bundle(paths: list[str]) -> Iterator[tuple[str, Callable[[], Event]]]:
    path = Path(paths[0]) if paths else None
    found: dict[str, Any] = {}

    def verify() -> Event:
        from edgemt.bundle import open_bundle

        found["bundle"] = opened = open_bundle(path)
        manifest = opened.manifest
        return {
            "name": manifest.name,
            "target": manifest.target,
            "precision": manifest.precision,
            "digest": manifest.digest,
            "bytes": sum(facts["bytes"] for facts in manifest.files.values()),
        }

    def load() -> Event:
        from edgemt.runtimes.prepacked import state
        from edgemt.translator import load as load_translator

        begun = time.perf_counter()
        found["translator"] = load_translator(found["bundle"].path)
        seconds = round(time.perf_counter() - begun, 3)
        return {"seconds": seconds, "packed": state(found["bundle"].directory, found["bundle"].manifest)}

    def translate() -> Event:
        source_lang, target_lang = found["bundle"].manifest.languages[0]
        text = SAMPLES.get(source_lang, PLAIN)
        begun = time.perf_counter()
        answer = found["translator"].translate(text, source_lang=source_lang, target_lang=target_lang)
        seconds = time.perf_counter() - begun
        if not answer.strip():
            raise ValueError(f"the translation of {text!r} is empty")
        facts = {"source": text, "target": answer, "seconds": round(seconds, 3)}
        return {**facts, "peak_rss_bytes": None if emulator() else peak_rss()}

    yield "verify", verify
    yield "load", load
    yield "translate", translate


def cause(error: BaseException) -> str:
    """The first line of what is at the bottom: numpy wraps the one useful message in pages of advice."""
    while isinstance(error, ImportError) and (below := error.__cause__ or error.__context__):
        error = below
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main() -> int:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as edgemt's runtime does
    steps(sys.argv[1:], lambda event: print(json.dumps(event), flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
