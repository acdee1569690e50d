"""The sections of a checkpoint: read, exported into a workspace beside the report, and compared there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgemt.bundle import Bundle, open_bundle, sha256
from edgemt.export import memory, pipeline
from edgemt.export.checkpoints.read import Checkpoint, open_checkpoint
from edgemt.export.families import check_architecture, family_of
from edgemt.export.verify import gate, template
from edgemt.export.workspace import workspace
from edgemt.training.chat_tokenizer import Chat
from edgemt.translator import Translator
from edgemt.verify import answers, endings, environment, identity, speed, tokens
from edgemt.verify.expectations import Expected, expected_of, rope_base
from edgemt.verify.report import GATE, PARITY, Found
from edgemt.verify.sections import Check, NotRun, Section, Step, Table, collect
from edgemt.verify.texts import CLINIC

CONFIG = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "num_beams")
SMALL = (".json", ".jinja", ".txt", ".md", ".model", ".spm", ".yaml")  # files that may shape a model
NO_BUNDLE = "there is no FP32 bundle, for the reason that the section on parity gives"
LICENCES = ("LICENSE", "LICENCE", "NOTICE")


def verify(path: Path, output: Path, precisions: Sequence[str], threads: int, quick: bool) -> Found:
    """`output`: the report's path, beside which there must be room for the exports of `precisions`.

    Raises EdgemtError or UsageError if it is no checkpoint of a model that edgemt exports.
    """
    checkpoint = open_checkpoint(path)
    check_architecture(checkpoint)  # the tokenizer and its template too
    with workspace(output) as work:
        subject = Subject(checkpoint, work, threads, quick)
        steps = [
            Step(identity.NAME, identity.TITLE, subject.identity),
            Step(tokens.NAME, tokens.TITLE, subject.tokenizer),
            Step(*PARITY, subject.parity),
            Step(endings.NAME, endings.TITLE, subject.endings),
            Step(answers.NAME, answers.TITLE, subject.answers),
            Step(*GATE, lambda: subject.gate(precisions)),
            Step(speed.NAME, speed.TITLE, subject.speed),
            Step(environment.NAME, environment.TITLE, lambda: environment.found(threads)),
        ]
        return Found(checkpoint.name, "checkpoint", collect(steps))


@dataclass
class Subject:
    """A checkpoint, and what is made of it as it is needed. `threads`: of everything but the speed."""

    checkpoint: Checkpoint
    work: Path
    threads: int
    quick: bool

    def __post_init__(self) -> None:
        self.bundles: dict[str, Bundle] = {}  # by precision
        self.reports: dict[str, dict[str, Any]] = {}  # export's own

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Under the names of expected.json. A GGUF file and a config.json without it may leave some open."""
        config, stored = self.checkpoint.config, self.checkpoint.stored
        found = {key: config.get(key) for key in CONFIG}
        if not found["head_dim"] and found["num_attention_heads"]:
            found["head_dim"] = config.get("hidden_size", 0) // found["num_attention_heads"]
        architecture = self.checkpoint.architecture
        return {
            "architecture": architecture,
            **found,
            "rope_base": rope_base(config, found["head_dim"]) if found["head_dim"] else None,
            "parameters": sum(weight.size for weight in stored.values()),
        }

    @cached_property
    def chat(self) -> Chat | None:
        """None: a model without prompts."""
        return template.chat_of(self.checkpoint) if family_of(self.checkpoint).NAME == "causal" else None

    @property
    def known(self) -> Expected | None:
        return expected_of(self.numbers)

    def identity(self) -> Section:
        checkpoint, chosen = self.checkpoint, self.checkpoint.generation
        facts = {
            "checkpoint": checkpoint.name,
            "form": checkpoint.form,
            "stored as, parameters": self.stored_as(),
            "licence": checkpoint.licence,
            **{key.replace("_", " "): value for key, value in checkpoint.amp.items()},
            "generation defaults": {key: chosen[key] for key in SAMPLING if key in chosen},
            "rope_scaling": checkpoint.config.get("rope_scaling"),
        }
        weights = [*checkpoint.weights.files]
        files = sorted({*weights, *self.beside()})
        listed = [(file.name, file.stat().st_size, sha256(file)) for file in files]
        found = dict(self.numbers)
        if chat := self.chat:
            found |= {"before": chat.before, "after": chat.after, "answer_end": chat.end}
        return identity.section(facts, found, listed)

    def stored_as(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for weight in self.checkpoint.stored.values():
            found[weight.dtype] += weight.size
        return dict(found)

    def beside(self) -> list[Path]:
        """Configuration, tokenizer, template, licence; nothing beside a GGUF file, which has them inside."""
        if self.checkpoint.form == "GGUF" and not (self.checkpoint.directory / "tokenizer.json").is_file():
            return []
        return [
            file
            for file in self.checkpoint.directory.iterdir()
            if file.is_file() and (file.suffix in SMALL or file.name.upper().startswith(LICENCES))
        ]

    def tokenizer(self) -> Section:
        return template.section(self.checkpoint, self.chat, self.known, self.work)

    def parity(self) -> Section:
        """Exporting to FP32 compares with transformers, and fails where they differ."""
        bundle = self.export("fp32")
        facts = self.reports["fp32"]["parity"]
        made = Section(*PARITY, facts=dict(facts))
        made.checks.append(
            Check(
                "the largest error of the logits is within the tolerance",
                facts["max_abs_error"] <= facts["tolerance"],
                facts["max_abs_error"],
                facts["tolerance"],
            )
        )
        unequal = facts["tokens"] - facts["equal"] - facts["excused"]
        made.checks.append(
            Check("no token differs by more than the error explains", unequal == 0, unequal, 0)
        )
        made.facts["bytes of fp32"] = sum(facts["bytes"] for facts in bundle.manifest.files.values())
        made.tables.append(self.stages("fp32"))
        return made

    def stages(self, precision: str) -> Table:
        """How long the export took and what it needed."""
        stages = self.reports[precision]["stages"]
        rows = [(stage["name"], stage["seconds"], stage["peak_rss_mb"]) for stage in stages]
        return Table(f"the export to {precision}", ("stage", "s", "peak RSS so far, MB"), rows)

    def export(self, precision: str) -> Bundle:
        """Export to `precision`, once, without its quality gate. Raises EdgemtError if that fails."""
        if precision not in self.bundles:
            calibration = None  # the checkpoint's own
            if precision != "fp32" and not (self.checkpoint.directory / "calibration.tsv").is_file():
                languages = self.bundles["fp32"].manifest.languages
                calibration = gate.calibration(self.work, languages)
            request = pipeline.Request(
                self.checkpoint.path,
                self.work / precision,
                precision=precision,
                calibration=calibration,
                heldout=CLINIC,
                gate=False,
                threads=self.threads,
                name=self.checkpoint.name,
            )
            self.reports[precision] = pipeline.export(request)
            self.bundles[precision] = open_bundle(request.output)
        return self.bundles[precision]

    @cached_property
    def translator(self) -> Translator:
        """Of the FP32 bundle, which the section on parity has made."""
        if "fp32" not in self.bundles:
            raise NotRun(NO_BUNDLE)
        return Translator(self.bundles["fp32"], threads=self.threads)

    def endings(self) -> Section:
        if self.chat is None:
            raise NotRun(endings.NO_PROMPT)
        found = template.endings(self.chat, self.checkpoint)
        return endings.compared(self.translator, found, self.quick)

    def answers(self) -> Section:
        return answers.of_templates(self.translator, self.known is not None, self.quick)

    def gate(self, precisions: Sequence[str]) -> Section:
        if not precisions:
            raise NotRun("not asked for; add --int8 or --int4")
        pairs = gate.sentences(self.translator.bundle.manifest.languages, self.quick)
        fp32 = gate.decode(self.translator, pairs)
        self.release()
        made = gate.section(pairs, fp32, self.export, precisions, self.threads)
        made.tables += [self.stages(precision) for precision in precisions if precision in self.reports]
        return made

    def speed(self) -> Section:
        self.release()
        if not self.bundles:
            raise NotRun(NO_BUNDLE)
        return speed.measured(self.bundles, self.threads, self.quick)

    def release(self) -> None:
        """Let go of the FP32 model: an export, and the processes that are measured, need its memory."""
        self.__dict__.pop("translator", None)
        memory.release()
