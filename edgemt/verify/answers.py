"""What the model answers to each of the prompt templates, as it says it and as a user gets it.

What edgemt guarantees (a constrained term is there) is a check that may fail the report; what the model
does of itself (script, end, tags, chatter) is one only where it is known to be HY-MT, which is made for these
templates. Other models are only looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgemt.answers import clean, doubt
from edgemt.family import Request
from edgemt.prompts import translation_in
from edgemt.search import SearchOptions
from edgemt.translator import Translator, search_options
from edgemt.verify.sections import Check, NotRun, Section, Table, counted
from edgemt.verify.texts import CASES, Case

NAME, TITLE = "answers", "The prompt templates' answers"
COLUMNS = ("template", "prompt", "the model's answer", "the translation", "asked plainly", "remarks")
TAG = re.compile(r"</?s\d+>")


@dataclass(frozen=True)
class Answer:
    """`raw`: what the model said to the prompt; `text`: what a user gets, with terms guaranteed."""

    case: Case
    raw: str
    finished: bool
    text: str
    plain: str | None  # what it said to the same text asked plainly, where the case adds something


def of_templates(translator: Translator, required: bool, quick: bool) -> Section:
    """`required`: the model is known to be made for these templates."""
    pairs = set(translator.languages)
    cases = [case for case in CASES if (case.source_lang, case.target_lang) in pairs]
    if not translator.family.prompts:
        cases = [case for case in cases if case.template in ("plain", "terminology")]
    if not cases:
        raise NotRun("no sentences are built in for the languages of this model")
    if quick:  # the first of each template
        cases = list({case.template: case for case in reversed(cases)}.values())[::-1]
    found = [answer(translator, case) for case in counted(cases, "prompt")]
    made = Section(NAME, TITLE, checks=guaranteed(found), tables=[table(translator, found)])
    made.checks += [Check(*observed, required=required) for observed in observations(found)]
    if not translator.family.prompts:
        made.notes.append("this family reads no prompts: its terms are placed by the search alone")
    if not required:
        made.notes.append("not known to be HY-MT: what the model does of itself is told, and fails nothing")
    return made


def answer(translator: Translator, case: Case) -> Answer:
    options = search_options(translator.bundle.manifest)
    before: dict[str, Any] = {}
    prompted: dict[str, Any] = {}
    if translator.family.prompts:
        before = {"context": case.context, "markup": case.markup}
        prompted = {"terms": case.terms, **before}
    raw, finished = said(translator, case, prompted, options)
    plain = said(translator, case, {}, options)[0] if any(prompted.values()) else None
    text = translator.translate(
        case.text,
        source_lang=case.source_lang,
        target_lang=case.target_lang,
        glossary=dict(case.terms),
        **before,
    )
    return Answer(case, raw, finished, text, plain)


def said(
    translator: Translator, case: Case, prompted: dict[str, Any], options: SearchOptions
) -> tuple[str, bool]:
    """The model's own answer, unconstrained and uncleaned; whether it ended by itself."""
    request = Request(case.text, case.source_lang, case.target_lang, **prompted)
    (found,) = translator.family.generate(translator.program, [request], options)
    return translator.tokenizer.decode(found.tokens), found.finished


def table(translator: Translator, found: list[Answer]) -> Table:
    rows = [
        (
            f"{made.case.template}, {made.case.source_lang}-{made.case.target_lang}",
            made.case.prompt() if translator.family.prompts else made.case.text,
            made.raw,
            made.text,
            "–" if made.plain is None else made.plain,
            "; ".join(remarks(made)) or "nothing to remark",
        )
        for made in found
    ]
    return Table("answers", COLUMNS, rows)


def remarks(made: Answer) -> list[str]:
    case, found = made.case, []
    for _, target in case.terms:
        found.append(f"term {target}: {'said' if target in made.raw else 'not said'} of itself")
    if case.context:
        found.append(f"the context changed {'nothing' if made.raw == made.plain else 'the answer'}")
    if case.markup:
        found.append(f"tags in the answer: {' '.join(TAG.findall(made.raw)) or 'none'}")
    if not made.finished:
        found.append("cut at the length limit")
    if chatter(made):
        found.append("chatter")
    if not in_language(made):
        found.append("not in the script of the target language")
    return found


def chatter(made: Answer) -> bool:
    """Whether the answer has more in it than the translation that was asked for."""
    said = translation_in(made.raw, made.case.markup)
    return clean(said, made.case.text) != said


def in_language(made: Answer) -> bool:
    return not doubt(made.text, made.case.target_lang)


def guaranteed(found: list[Answer]) -> list[Check]:
    """What edgemt promises whatever the model says."""
    lacking = [target for made in found for _, target in made.case.terms if target not in made.text]
    shown = f"without {', '.join(lacking)}" if lacking else "all"
    checks = [Check("every constrained term is in its translation", not lacking, shown, "all")]
    if tagged := [tags(made.text) == tags(made.case.text) for made in found if made.case.markup]:
        lost = "all" if all(tagged) else f"in {sum(tagged)} of {len(tagged)} texts"
        checks.append(Check("every tag of the text is in its translation", all(tagged), lost, "all"))
    return checks


def tags(text: str) -> list[str]:
    """Those in it; a translation may have them in another order."""
    return sorted(TAG.findall(text))


def observations(found: list[Answer]) -> list[tuple[str, bool, Any, Any]]:
    """What, whether it holds, found, expected: of the model's own behaviour."""
    tagged = [tags(made.raw) == tags(made.case.text) for made in found if made.case.markup]
    terms = [target in made.raw for made in found for _, target in made.case.terms]
    context = [made.raw != made.plain for made in found if made.case.context]
    return [
        (what, all(held), f"{sum(held)} of {len(held)}", f"{len(held)} of {len(held)}")
        for what, held in (
            ("translations are in the script of the target language", [in_language(made) for made in found]),
            ("answers come to an end", [made.finished for made in found]),
            ("answers are free of chatter", [not chatter(made) for made in found]),
            ("tags of the prompt are kept without being put back", tagged),
            ("terms of the prompt are said without being forced", terms),
            ("a context changes the answer", context),
        )
        if held
    ]
