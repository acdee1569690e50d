"""The tokenizer of a bundle: texts come back as they went in, and no text spells a control token."""

from __future__ import annotations

from typing import Protocol

from edgemt.manifest import Manifest
from edgemt.verify.sections import Check, Section, Table
from edgemt.verify.texts import HOSTILE, ROUND_TRIP

NAME, TITLE = "tokenizer", "Tokenizer and template"
SHOWN = 12  # ids of a text in the table


class Spelling(Protocol):
    """What of a family's tokenizer is tried here."""

    @property
    def control(self) -> frozenset[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


def of_bundle(tokenizer: Spelling, manifest: Manifest) -> Section:
    """Of a causal bundle also the tokens around a prompt; those of other families are the source prefixes."""
    made = Section(NAME, TITLE)
    spelling(made, tokenizer, exact=manifest.family == "causal")
    made.facts |= {"tokens before a prompt": manifest.chat["before"]} if manifest.chat else {}
    made.facts |= {"tokens after a prompt": manifest.chat["after"]} if manifest.chat else {}
    made.facts |= {"end of an answer": manifest.model.eos_id}
    made.facts |= {"ids that no answer holds": len(manifest.model.suppress)}
    if manifest.chat:
        made.notes.append("a bundle has no chat template: it was rendered, and checked, when it was exported")
    else:
        made.notes.append("an encoder-decoder model has no chat template")
    return made


def spelling(section: Section, tokenizer: Spelling, exact: bool) -> None:
    """Adds the round trips. `exact`: byte-level BPE, which must give back every character."""
    rows, broken, control = [], [], []
    for name, text in {**ROUND_TRIP, **HOSTILE}.items():
        ids = tokenizer.encode(text)
        back = tokenizer.decode(ids)
        if back != text:
            broken.append(name)
        # Marian's encode adds the end; what counts is that no other control token is in a text.
        if name in HOSTILE and exact and tokenizer.control.intersection(ids):
            control.append(name)
        rows.append((name, text, len(ids), shown(ids), "equal" if back == text else back))
    section.checks += [
        Check("every text comes back as it went in", not broken, ", ".join(broken) or "all", "all", exact),
        Check("no text spells a control token", not control, ", ".join(control) or "none", "none", exact),
    ]
    section.tables.append(
        Table("texts, and what comes back", ("text", "as typed", "tokens", "ids", "back"), rows)
    )


def shown(ids: list[int]) -> str:
    return " ".join(map(str, ids[:SHOWN])) + (" …" if len(ids) > SHOWN else "")
