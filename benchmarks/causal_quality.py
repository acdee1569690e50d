"""What bundles of a decoder-only model are worth: translation, glossary, tags, drafts; the first is compared
with.

    python benchmarks/causal_quality.py FP32 INT8 INT4 --data parallel.tsv.gz --rows 100 --state FILE.jsonl \\
        [--tasks plain,references,glossary,tags,sentences,draft] [--as-user] [--draft BUNDLE|lookup] \\
        [--json FILE.json] [--write FILE.md] [--sentences FILE.md]

Test rows only, evenly spread over each corpus: N rows a corpus, both ways. Without --data, those of the open
clinical corpus. Every answer is added to the state file as it comes, so that a run which was stopped goes on
where it was; one bundle is loaded at a time.

    plain      BLEU and chrF, in batches of sixteen; with --as-user one after the other, cut into sentences
    references the reference translations' perplexity, read behind the prompt: it tells bundles apart with far
               fewer rows than BLEU does, because nothing is decoded
    glossary   rows in whose source a term of the committed list occurs that the reference translates as the
               list does: how many of those terms are in the answer, without a glossary, with the terms in the
               prompt alone, and as `edgemt translate --glossary` does it
    tags       rows with a tag around a number, or else the first clause: are the tags in the answer?
    sentences  forty test rows of the clinical corpus, one in so many: every bundle's answer, for the page
               --sentences
    draft      prompts decoded without and with --draft: are the answers equal, how fast, how much is accepted
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import causal_quality_page  # noqa: E402
from benchmarks.causal_quality_jobs import Job, Row, jobs_of, lines  # noqa: E402
from benchmarks.causal_quality_score import summary  # noqa: E402
from edgemt.bench.options import check_writable, write  # noqa: E402
from edgemt.bundle import open_bundle  # noqa: E402
from edgemt.errors import EdgemtError, UsageError  # noqa: E402
from edgemt.family import Request  # noqa: E402
from edgemt.runtimes.protocol import Want  # noqa: E402
from edgemt.text import tidy  # noqa: E402
from edgemt.translator import Translator, load  # noqa: E402

TASKS = ("plain", "references", "glossary", "tags", "sentences", "draft")
BATCH, CHUNK = 16, 64


def main() -> int:
    args = arguments()
    try:
        for path, name in ((args.json, "--json"), (args.write, "--write"), (args.sentences, "--sentences")):
            check_writable(path, name)
        if "draft" in args.tasks and not args.draft:
            raise UsageError("--tasks draft needs --draft: a bundle with the same tokenizer, or lookup")
        way = "user" if args.as_user else "batch"
        asked = {"plain": way, "draft": args.draft}
        jobs = [job for task in args.tasks for job in jobs_of(task, args, asked.get(task, ""))]
        names = labels(args.bundles)
        found = {}
        for path, label in zip(args.bundles, names, strict=True):
            found[label] = answers(path, label, jobs, args)
        data = summary(jobs, found)
    except EdgemtError as error:
        print(f"causal_quality: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        write(args.json, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    if args.write:
        write(args.write, causal_quality_page.page(data))
    if args.sentences:
        chosen = [job for job in jobs if job.task == "sentences"]
        write(args.sentences, causal_quality_page.sentences(chosen, found))
    print(causal_quality_page.page(data))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bundles", nargs="+", type=Path, metavar="BUNDLE")
    add("--data", type=Path, metavar="FILE", help="split, corpus, id, zh, en; tab-separated, may be .gz")
    add("--corpora", default="clinical,tatoeba,tico19", metavar="NAME,…", help="of --data")
    add("--rows", type=int, default=100, metavar="N", help="of each corpus (default: 100)")
    add("--tasks", default="plain,glossary,tags,sentences", metavar="NAME,…", help=f"of {', '.join(TASKS)}")
    add("--as-user", action="store_true", help="plain: one row at a time, as edgemt translate does it")
    add("--draft", metavar="BUNDLE|lookup")
    add("--prompts", type=int, default=200, metavar="N", help="of the task draft (default: 200)")
    add("--threads", type=int, default=1, metavar="N", help="default: 1")
    add("--state", type=Path, required=True, metavar="FILE.jsonl", help="the answers so far")
    add("--json", type=Path, metavar="FILE")
    add("--write", type=Path, metavar="FILE.md")
    add("--sentences", type=Path, metavar="FILE.md")
    args = parser.parse_args()
    args.tasks = args.tasks.split(",")
    if unknown := set(args.tasks) - set(TASKS):
        parser.error(f"--tasks has {', '.join(unknown)}; there are {', '.join(TASKS)}")
    return args


def labels(bundles: Sequence[Path]) -> list[str]:
    """Each bundle's precision, with its folder where two have the same."""
    kinds = [open_bundle(path).manifest.precision for path in bundles]
    return [
        kind if kinds.count(kind) == 1 else f"{kind} ({path.name})"
        for kind, path in zip(kinds, bundles, strict=True)
    ]


def answers(
    path: Path, label: str, jobs: Sequence[Job], args: argparse.Namespace
) -> dict[Job, dict[str, Any]]:
    """The bundle's answer to every job: from the state file, or made now and added to it."""
    digest = open_bundle(path).manifest.digest
    keys = {job.key(digest): job for job in jobs}
    found: dict[str, dict[str, Any]] = {}
    if args.state.exists():
        cut_off(args.state)
        for line in lines(args.state):
            entry = json.loads(line)
            found[entry.pop("key")] = entry
    todo = [(key, job) for key, job in keys.items() if key not in found]
    if todo:
        say(f"{label}: {len(todo)} of {len(keys)} answers to make")
        translator = load(path, threads=args.threads)
        drafting = None
        if any(job.task == "draft" for _, job in todo):
            drafting = load(path, threads=args.threads, draft=args.draft)
        with args.state.open("a", encoding="utf-8") as file:
            for number, (key, entry) in enumerate(made(translator, drafting, todo), 1):
                found[key] = entry
                file.write(json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n")
                file.flush()
                if number % CHUNK == 0:
                    say(f"{label}: {number} of {len(todo)}")
        del translator, drafting
        gc.collect()
    return {job: found[key] for key, job in keys.items()}


def cut_off(path: Path) -> None:
    """Drop a last line that was not written to its end."""
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def made(
    translator: Translator, drafting: Translator | None, todo: Sequence[tuple[str, Job]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    batched: dict[tuple[str, str], list[tuple[str, Job]]] = {}
    for key, job in todo:
        if job.way == "batch":
            batched.setdefault(job.row[1:3], []).append((key, job))
            continue
        begin = time.perf_counter()
        if job.task == "references":
            yield key, read(translator, job.row)
        elif job.task == "draft":
            assert drafting is not None
            yield key, drafted(translator, drafting, job.row)
        else:
            text = ONE[job.way or job.task](translator, job.row)
            yield key, entry(translator, text) | {"s": round(time.perf_counter() - begin, 4)}
    for (source_lang, target_lang), group in batched.items():
        for start in range(0, len(group), CHUNK):
            some = group[start : start + CHUNK]
            texts = translator.translate_many(
                [job.row.source for _, job in some], source_lang, target_lang, batch=BATCH
            )
            yield from ((key, entry(translator, text)) for (key, _), text in zip(some, texts, strict=True))


def entry(translator: Translator, text: str) -> dict[str, Any]:
    return {"text": text, "tokens": list(translator.tokenizer.encode_target(text))}


def as_user(translator: Translator, row: Row) -> str:
    return translator.translate(row.source, source_lang=row.source_lang, target_lang=row.target_lang)


def with_glossary(translator: Translator, row: Row) -> str:
    pair = {"source_lang": row.source_lang, "target_lang": row.target_lang}
    return translator.translate(row.source, **pair, glossary=dict(row.terms))


def with_prompt(translator: Translator, row: Row) -> str:
    """The terms in the prompt, and nothing that makes the model obey."""
    request = Request(row.source, row.source_lang, row.target_lang, terms=row.terms)
    (found,) = translator.family.generate(translator.program, [request], translator.options)
    return tidy(translator.tokenizer.decode(found.tokens), row.target_lang)


def with_markup(translator: Translator, row: Row) -> str:
    pair = {"source_lang": row.source_lang, "target_lang": row.target_lang}
    return translator.translate(row.source, **pair, markup=True)


ONE: dict[str, Callable[[Translator, Row], str]] = {
    "user": as_user,
    "sentences": as_user,
    "without": as_user,
    "prompt": with_prompt,
    "glossary": with_glossary,
    "tags": with_markup,
}


def read(translator: Translator, row: Row) -> dict[str, Any]:
    """Of each token of the reference and the end: its negative log-probability, and what was likeliest."""
    family, model = translator.family, translator.bundle.manifest.model
    request = Request(row.source, row.source_lang, row.target_lang)
    answer = [*family.tokenizer.encode_target(row.target)[: family.limit], model.eos_id]
    ids = np.array([[*family.source(request, family.limit), model.start_id, *answer]], np.int32)
    following = np.roll(ids, -1)[..., None]  # what each position is to expect; the last one is not read
    session = translator.program.open(None, np.zeros(1, np.int32), ids.size)
    step = session.step(ids, np.array([ids.size], np.int32), Want(score=following))
    assert step.scored is not None
    mine = slice(-len(answer) - 1, -1)
    nll, best = -step.scored[0, mine, 0], step.ids[0, mine, 0]
    session.close()
    return {"nll": [round(float(value), 4) for value in nll], "best": best.tolist()}


def drafted(translator: Translator, drafting: Translator, row: Row) -> dict[str, Any]:
    """One prompt without the draft and with it, in turn; what the draft was good for."""
    request = Request(row.source, row.source_lang, row.target_lang)
    before = vars(drafting.family.draft_stats).copy()
    found: dict[str, Any] = {}
    for name, one in (("plain", translator), ("draft", drafting)):
        begin = time.perf_counter()
        tokens = list(one.family.stream(one.program, request, one.options))
        found |= {f"{name}_s": round(time.perf_counter() - begin, 4), f"{name}_tokens": tokens}
    return found | {name: now - before[name] for name, now in vars(drafting.family.draft_stats).items()}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
