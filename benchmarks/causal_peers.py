"""Decoder-only models through edgemt, llama.cpp and onnxruntime-genai: one run, the same tokens, taking
turns.

    python benchmarks/causal_peers.py --bundle INT4 --bundle INT4+lookup --bundle INT4+draft=SMALL+prefix \\
        --gguf MODEL.Q4_K_M.gguf --gguf MODEL.Q8_0.gguf --llama-python ENV/bin/python \\
        --genai DIR --genai-packages DIR --json FILE.json --write FILE.md

Every contender is a resident process that is given the ids of a prompt and decodes greedily. Two kinds of
work: prompts of about so many tokens with so many new ones whatever they are (prefill, decode), and prompts
of clinic sentences up to the end of the answer (what a user waits for). benchmarks/causal_prepare.py makes
the environments and the peers' models.

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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import causal_page  # noqa: E402
from benchmarks.contenders import causal as contenders  # noqa: E402
from benchmarks.contenders.causal import Entrant  # noqa: E402
from benchmarks.peers_quality import test_rows  # noqa: E402
from edgemt.bench.conditions import compare, observe  # noqa: E402
from edgemt.bench.facts import machine_facts  # noqa: E402
from edgemt.bench.foreign import Foreign  # noqa: E402
from edgemt.bench.options import check_writable, write  # noqa: E402
from edgemt.bench.sampler import Sampler  # noqa: E402
from edgemt.bundle import open_bundle  # noqa: E402
from edgemt.errors import EdgemtError, UsageError  # noqa: E402
from edgemt.family import Family, Request  # noqa: E402
from edgemt.translator import open_family  # noqa: E402

TIMEOUT_S = 600.0  # for one answer, the start of the process included
SEED = 7  # of the order of the prompts
FORMAT, FORMAT_VERSION = "edgemt-causal-peers", "1.0"


class Prompt(NamedTuple):
    kind: str  # "64", "256": about so many tokens; "sentence": to the end of the answer
    ids: list[int]
    most: int  # new tokens

    @property
    def ends(self) -> bool:
        return self.kind == "sentence"


def main() -> int:
    args = arguments()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    try:
        for path, name in ((args.json, "--json"), (args.write, "--write")):
            check_writable(path, name)
        entrants = [contenders.edgemt(spec) for spec in args.bundle]
        entrants += [contenders.llama(spec, args.llama_python) for spec in args.gguf]
        entrants += [contenders.genai(path, args.genai_packages) for path in args.genai]
        if not args.bundle or len(entrants) < 2:
            raise UsageError("give a --bundle, which also makes the prompts' tokens, and another contender")
        data = run(args, entrants, prompts(args))
    except EdgemtError as error:
        print(f"causal_peers: {error}", file=sys.stderr)
        return 2
    if args.json:
        write(args.json, json.dumps(data, ensure_ascii=False) + "\n")
    if args.write:
        write(args.write, causal_page.page(data))
    print(causal_page.page(data))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    add("--bundle", action="append", default=[], metavar="BUNDLE[+…]", help="+lookup, +draft=BUNDLE, +prefix")
    add("--gguf", action="append", default=[], metavar="FILE[+keep]", help="for llama.cpp")
    add("--genai", action="append", default=[], metavar="DIR", help="of onnxruntime-genai's builder")
    add("--llama-python", type=Path, metavar="PYTHON", help="that has llama-cpp-python")
    add("--genai-packages", type=Path, metavar="DIR", help="to import onnxruntime_genai from")
    add("--threads", type=numbers, default=[1, 2], metavar="N,…", help="default: 1,2")
    add("--lengths", type=numbers, default=[64, 256], metavar="N,…", help="of prompts (default: 64,256)")
    add("--new", type=int, default=32, metavar="N", help="tokens behind those prompts (default: 32)")
    add("--texts", type=int, default=2, metavar="N", help="prompts of each length (default: 2)")
    add("--sentences", type=int, default=8, metavar="N", help="clinic sentences (default: 8)")
    add("--rounds", type=int, default=3, metavar="N", help="default: 3")
    add("--json", type=Path, metavar="FILE")
    add("--write", type=Path, metavar="FILE.md", help="the page, which is printed too")
    return parser.parse_args()


def prompts(args: argparse.Namespace) -> list[Prompt]:
    """Both kinds of work, from the test rows of the clinical corpus, by the first bundle's tokenizer."""
    bundle = open_bundle(Path(args.bundle[0].split("+")[0]))
    family = open_family(bundle.directory, bundle.manifest)
    start = bundle.manifest.model.start_id

    def ids(text: str) -> list[int]:
        return [*family.source(Request(text, "zh", "en")), start]

    rows = [row["zh"] for row in test_rows(1 << 20)]
    found = []
    for length in args.lengths:
        for number in range(args.texts):
            text = of_length(rows[number * len(rows) // args.texts :], length, ids)
            found.append(Prompt(str(length), ids(text), args.new))
    for row in test_rows(args.sentences):
        most = answer_tokens(family, bundle.manifest.generation, row["zh"])
        found.append(Prompt("sentence", ids(row["zh"]), most))
    return found


def of_length(rows: Sequence[str], length: int, ids: Any) -> str:
    """As many rows in a row as make a prompt of at least `length` tokens, the last one cut to come near
    it."""
    text = ""
    for row in rows:
        if len(ids(text + row)) >= length:
            while len(row) > 1 and len(ids(text + row)) > length:
                row = row[:-1]
            return text + row
        text += row
    raise UsageError(f"the test rows of the clinical corpus do not make a prompt of {length} tokens")


def answer_tokens(family: Family, generation: dict[str, Any], text: str) -> int:
    """The most tokens of an answer, as edgemt limits it."""
    return int(generation["max_length_factor"] * family.tokens(text)) + generation["max_length_extra"]


def run(args: argparse.Namespace, entrants: list[Entrant], work: list[Prompt]) -> dict[str, Any]:
    before, began, blocks = observe(), time.monotonic(), []
    with Sampler() as sampler:
        origin = time.perf_counter_ns()
        for threads in args.threads:
            blocks.append(block(entrants, work, threads, args.rounds))
        moments = sampler.stop(origin)
    span = compare(before, observe(), during=moments, single=False)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "command": shlex.join(["python", "benchmarks/causal_peers.py", *map(without_folder, sys.argv[1:])]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": machine_facts(max(args.threads)),
        "conditions": asdict(span),
        "rounds": args.rounds,
        "prompts": [{"kind": p.kind, "tokens": len(p.ids), "most": p.most} for p in work],
        "contenders": [{"label": entrant.label, "bytes": entrant.bytes} for entrant in entrants],
        "blocks": blocks,
    }


def block(entrants: list[Entrant], work: list[Prompt], threads: int, rounds: int) -> dict[str, Any]:
    """All of it at one number of threads; times are [contenders][prompts][rounds] in seconds."""
    shape = len(entrants), len(work), rounds
    first, rest, rng = np.zeros(shape), np.zeros(shape), np.random.default_rng(SEED)
    answers: list[list[dict[str, Any]]] = [[{}] * len(work) for _ in entrants]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(Foreign(e.command(threads), "text", TIMEOUT_S)) for e in entrants]
        shortest = min(work, key=lambda prompt: len(prompt.ids))
        starts = []
        for place, process in enumerate(running):  # and everybody is warm then
            say(f"{threads} threads: {entrants[place].label} starts")
            line = json.dumps({"prompt": shortest.ids, "most": 1, "ends": False})
            starts.append(process.start(line, "", ""))
            for prompt in {prompt.kind: prompt for prompt in work}.values():
                ask(process, prompt)
        for number in range(rounds):
            say(f"{threads} threads: round {number + 1} of {rounds}")
            for turn, which in enumerate(rng.permutation(len(work))):
                for step in range(len(running)):
                    place = (number + turn + step) % len(running)
                    found = ask(running[place], work[which])
                    first[place, which, number] = found["first_s"]
                    rest[place, which, number] = found["all_s"] - found["first_s"]
                    answers[place][which] = found
        peaks = [process.peak_rss() for process in running]
    return {
        "threads": threads,
        "start_s": starts,
        "peak_rss_bytes": peaks,
        "first_s": first.tolist(),
        "rest_s": rest.tolist(),
        "answers": answers,
    }


def ask(process: Foreign, prompt: Prompt) -> dict[str, Any]:
    line = json.dumps({"prompt": prompt.ids, "most": prompt.most, "ends": prompt.ends})
    return json.loads(process.translate(line, "", ""))


def without_folder(word: str) -> str:
    """An argument without the folders of its paths, which are private."""
    if "/" not in word:
        return word
    return "+".join(
        part.rpartition("=")[0] + "=" * ("=" in part) + Path(part.rpartition("=")[2]).name
        for part in word.split("+")
    )


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
