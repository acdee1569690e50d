"""The sections of a bundle: all that its device can say of it, without the checkpoint that it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgemt.bundle import Bundle, open_bundle
from edgemt.translator import Translator
from edgemt.verify import answers, endings, environment, identity, speed, tokens
from edgemt.verify.expectations import Expected
from edgemt.verify.report import GATE, PARITY, Found
from edgemt.verify.sections import NotRun, Section, Step, collect, not_run


def verify(path: Path, threads: int, quick: bool) -> Found:
    """Raises UsageError or EdgemtError if there is no intact bundle."""
    subject = Subject(open_bundle(path), threads, quick)
    manifest = subject.bundle.manifest
    steps = [
        Step(identity.NAME, identity.TITLE, lambda: identity.of_bundle(subject.bundle)),
        Step(tokens.NAME, tokens.TITLE, lambda: tokens.of_bundle(subject.translator.tokenizer, manifest)),
        not_run(*PARITY, at_export(manifest.gate.get("parity"))),
        Step(endings.NAME, endings.TITLE, subject.endings),
        Step(answers.NAME, answers.TITLE, subject.answers),
        not_run(*GATE, "a bundle has one precision; verify the checkpoint with --int8 or --int4"),
        Step(speed.NAME, speed.TITLE, subject.speed),
        Step(environment.NAME, environment.TITLE, lambda: environment.found(threads)),
    ]
    return Found(manifest.name, "bundle", collect(steps))


@dataclass
class Subject:
    """A bundle, loaded while sections need it."""

    bundle: Bundle
    threads: int
    quick: bool

    @cached_property
    def translator(self) -> Translator:
        return Translator(self.bundle, threads=self.threads)

    @property
    def known(self) -> Expected | None:
        return identity.known(self.bundle.manifest)

    def endings(self) -> Section:
        """A bundle keeps one ending; others are known of HY-MT."""
        manifest = self.bundle.manifest
        if manifest.family != "causal":
            raise NotRun(endings.NO_PROMPT)
        used = tuple(manifest.chat["after"])
        others = {tuple(ids): name for name, ids in (self.known.endings if self.known else {}).items()}
        found = {others.pop(used, "the bundle's"): used} | {name: ids for ids, name in others.items()}
        return endings.compared(self.translator, found, self.quick)

    def answers(self) -> Section:
        return answers.of_templates(self.translator, self.known is not None, self.quick)

    def speed(self) -> Section:
        self.__dict__.pop("translator", None)  # the processes that are measured need its memory
        return speed.measured({self.bundle.manifest.precision: self.bundle}, self.threads, self.quick)


def at_export(parity: dict[str, Any] | None) -> str:
    """What the bundle's manifest says of parity."""
    reason = "a bundle has no transformers' model to be compared with"
    if not parity:
        return f"{reason}; verify the checkpoint"
    error, allowed, tokens = parity["max_abs_error"], parity["tolerance"], parity["tokens"]
    return f"{reason}; when exported, the largest error was {error:.2e} of {allowed:.2e} over {tokens} tokens"
