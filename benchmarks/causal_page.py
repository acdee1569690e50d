"""The page of benchmarks/causal_peers.py: tables of what it measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers_page import megabytes, table
from edgemt.bench.stats import ratio_interval

RIVAL = "llama.cpp"
NOTES = """\
- Every engine gets the same ids and decodes greedily, one prompt at a time, in a process of its own that
  times itself by the same code (`benchmarks/contenders/tokens.py`); contenders take turns with every prompt.
  No text, no tokenizer.
- **prefill**: tokens of the prompt over the seconds to the first new token. **decode**: new tokens after the
  first over the seconds that they took. Medians over prompts and rounds. A beginning that an engine keeps
  ("cached prefix", "kept prompt") counts as read. **×** compares seconds prompt by
  prompt in the same rounds, above 1 edgemt is the faster, with 95 % intervals that draw prompts and rounds.
- **a sentence**: from the ids of a clinic sentence's prompt to the end of its answer, median; "as the first":
  answers of which every token is that of the first contender.
- **start**: from a fresh process to the first token behind the shortest prompt, files already in the system's
  memory. **peak RSS** is the kernel's high-water mark of the process, mapped files included.
- llama.cpp runs with its defaults through its C interface, without AMX (it announces units that this machine
  cannot use); Q4_0 and Q8_0 were made by its own quantiser from the same GGUF file.
"""


def page(data: dict[str, Any]) -> str:
    machine, span = data["machine"], data["conditions"]
    lines = ["# Decoder-only models side by side", ""]
    lines += ["Written by `benchmarks/causal_peers.py`; do not edit.", ""]
    if span["disturbed"]:
        lines += [f"> **Disturbed run, do not quote these times**: {'; '.join(span['disturbed'])}.", ""]
    lines += [f"    {data['command']}", ""]
    lines += [
        f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['extensions'])}; {data['created']}, "
        f"{data['minutes']:g} minutes, {data['rounds']} rounds.",
        "",
    ]
    for block in data["blocks"]:
        lines += [f"## {block['threads']} thread{'s' * (block['threads'] > 1)}", ""]
        lines += [*speeds(data, block), "", *against(data, block), ""]
    return "\n".join([*lines, NOTES])


def kinds(data: dict[str, Any]) -> dict[str, list[int]]:
    """Places of the prompts of each kind."""
    found: dict[str, list[int]] = {}
    for place, prompt in enumerate(data["prompts"]):
        found.setdefault(prompt["kind"], []).append(place)
    return found


def speeds(data: dict[str, Any], block: dict[str, Any]) -> list[str]:
    first, rest = np.array(block["first_s"]), np.array(block["rest_s"])
    lengths = {kind: places for kind, places in kinds(data).items() if kind != "sentence"}
    sentences = kinds(data).get("sentence", [])
    head = [
        "",
        *(f"prefill {kind}, tok/s" for kind in lengths),
        *(f"decode at {kind}, tok/s" for kind in lengths),
    ]
    head += ["a sentence, ms", "as the first", "start", "peak RSS", "on disk"]
    rows = []
    for place, contender in enumerate(data["contenders"]):
        cells = [contender["label"]]
        for places in lengths.values():
            tokens = np.array([data["prompts"][p]["tokens"] for p in places])[:, None]
            cells.append(f"{np.median(tokens / first[place, places]):.1f}")
        for places in lengths.values():
            new = np.array([data["prompts"][p]["most"] - 1 for p in places])[:, None]
            cells.append(f"{np.median(new / rest[place, places]):.2f}")
        if sentences:
            cells.append(
                f"{1000 * np.median((first + rest)[place, sentences]):.0f}{accepted(block, place, sentences)}"
            )
            ours, base = block["answers"][place], block["answers"][0]
            same = sum(ours[p]["tokens"] == base[p]["tokens"] for p in sentences)
            cells.append(f"{same} of {len(sentences)}")
        else:
            cells += ["–", "–"]
        cells += [f"{block['start_s'][place]:.1f} s", megabytes(block["peak_rss_bytes"][place])]
        rows.append([*cells, megabytes(contender["bytes"])])
    return table(head, rows)


def accepted(block: dict[str, Any], place: int, sentences: list[int]) -> str:
    """What the model accepted of its draft, of what that proposed."""
    facts = [block["answers"][place][p] for p in sentences]
    proposed = sum(fact.get("proposed", 0) for fact in facts)
    return f" ({sum(fact['accepted'] for fact in facts) / proposed:.0%} accepted)" if proposed else ""


def against(data: dict[str, Any], block: dict[str, Any]) -> list[str]:
    """How many times as long each rival takes as each of ours: prefill, decode and whole sentences."""
    labels = [contender["label"] for contender in data["contenders"]]
    rivals = [place for place, label in enumerate(labels) if not label.startswith("edgemt")]
    if not rivals:
        return []
    head = [
        "× (95 %)",
        *(f"{labels[place]}: {name}" for place in rivals for name in ("prefill", "decode", "sentence")),
    ]
    rows = []
    for ours, label in enumerate(labels):
        if ours not in rivals:
            rows.append([label, *(cell for rival in rivals for cell in compared(data, block, ours, rival))])
    return table(head, rows)


def compared(data: dict[str, Any], block: dict[str, Any], ours: int, rival: int) -> Iterator[str]:
    first, rest = np.array(block["first_s"]), np.array(block["rest_s"])
    sentences = kinds(data).get("sentence", [])
    lengths = [place for place in range(first.shape[1]) if place not in sentences]
    for seconds, places in ((first, lengths), (rest, lengths), (first + rest, sentences)):
        yield ratio(seconds[rival, places], seconds[ours, places]) if places else "–"


def ratio(times: NDArray[np.float64], base: NDArray[np.float64]) -> str:
    middle, (low, high) = ratio_interval(times, base)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"
