"""Reading a checkpoint: its configuration, its FP32 weights, its tokenizer files, its origin."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemt.errors import EdgemtError, UsageError
from edgemt.export.checkpoints import names, problems
from edgemt.export.checkpoints.facts import excluded, licence, read_json, vocabulary
from edgemt.export.checkpoints.forms import FORMS, lora
from edgemt.export.checkpoints.forms.transformers import MARKERS
from edgemt.export.checkpoints.model import Model, architecture, model_of
from edgemt.export.checkpoints.tensors import Loaded, Stored, Weights

if TYPE_CHECKING:
    from edgemt.export.chat import ChatFiles

SPECIAL = re.compile(r">>.+<<|<pad>|<unk>|<s>")
PICKLES = (".pt", ".pth", ".ckpt", ".tar", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as found at `path`; no weight is in memory until it is asked for.

    `directory` has the configuration and the tokenizer files.
    """

    path: Path
    directory: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    weights: Weights  # as the trainer left them, under its names

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def form(self) -> str:
        return self.weights.form

    @property
    def architecture(self) -> str:
        return architecture(self.config)

    @property
    def amp(self) -> Mapping[str, Any]:
        """How it was trained, as far as the checkpoint says."""
        return self.weights.amp

    @cached_property
    def model(self) -> Model | None:
        """What tensors the model has; None if transformers does not know the architecture."""
        return model_of(self.config, self.directory / "config.json")

    @cached_property
    def named(self) -> dict[str, Stored]:
        """The weights under the model's names; one that the model shares may be there several times."""
        return names.plain(self.weights.tensors, self.model and self.model.shapes)

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """The weights under the model's names, each once; none that a formula gives and training rounded."""
        if self.model is None:
            return self.named
        return {
            name: stored
            for name, stored in names.once(self.named, self.model).items()
            if name not in self.model.fixed or stored.dtype == "float32"
        }

    @property
    def tensors(self) -> Loaded:
        """`stored` as FP32 arrays, each read when it is asked for."""
        return Loaded(self.stored)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types that the weights are stored in."""
        return tuple(sorted({stored.dtype for stored in self.stored.values()}))

    @property
    def sources(self) -> str:
        """Where the weights come from: "FP32 master in run.pt (118 of 120), model.safetensors (2 of 120)"."""
        counts = Counter(stored.source for stored in self.stored.values()).most_common()
        total = len(self.stored)
        return ", ".join(s if n == total else f"{s} ({n} of {total})" for s, n in counts)

    @property
    def vocab(self) -> dict[str, int]:
        """Piece -> id of a Marian tokenizer. Raises EdgemtError if one of its files is missing."""
        return vocabulary(self.directory)

    @cached_property
    def chat(self) -> ChatFiles:
        """The tokenizer and chat template of a decoder-only model, in a GGUF file if none lies beside it.

        Raises as `read_chat`.
        """
        from edgemt.export.chat import read_chat

        alone = not (self.directory / "tokenizer.json").is_file()
        return read_chat(self.directory, self.path.name if self.form == "GGUF" and alone else None)

    @cached_property
    def licence(self) -> str:
        return str(self.amp.get("licence") or licence(self.directory, self.config))

    @property
    def licence_told(self) -> str:
        """One line for whoever exports it: the licence, and what its text excludes."""
        exception = excluded(self.directory)
        return self.licence + (f'; its text says: "{exception}"' if exception else "")

    @cached_property
    def sha256(self) -> str:
        """Of the weight files, in order."""
        return sha256(self.weights.files)

    def training(self) -> dict[str, Any]:
        """How it was trained and where the weights come from: the manifest's provenance.training."""
        return {**self.amp, "weights": self.sources}

    def check_config(self) -> None:
        """Raise EdgemtError if config.json is not that of a model which transformers has."""
        if self.model is None:
            raise EdgemtError(
                f"{self.directory / 'config.json'} names the architecture {self.architecture}, which "
                "transformers does not know; give a checkpoint of one that it has"
            )

    def examine(self) -> problems.Findings:
        """Look at all weights, and name whatever is wrong with them."""
        return problems.examine(self.named, self.model)

    def check(self) -> None:
        """Raise EdgemtError with all that is wrong with the weights, if anything is."""
        self.check_config()
        findings = self.examine()
        if findings.problems:
            raise EdgemtError(f"the weights in {self.path} cannot be used, {findings}")

    def special_ids(self) -> list[int]:
        """Ids that are never an answer: padding, unknown, language tokens, what the checkpoint forbids."""
        banned = [ids[0] for ids in self.generation.get("bad_words_ids") or [] if len(ids) == 1]
        ids = [i for piece, i in self.vocab.items() if SPECIAL.fullmatch(piece)]
        return sorted({*ids, *banned, int(self.config["pad_token_id"])} - {int(self.config["eos_token_id"])})


def read_checkpoint(path: Path, config_from: Path | None = None, base: Path | None = None) -> Checkpoint:
    """Open the checkpoint at `path` and check all its weights. Raises EdgemtError for whatever is wrong."""
    checkpoint = open_checkpoint(path, config_from, base)
    checkpoint.check()
    return checkpoint


def open_checkpoint(path: Path, config_from: Path | None = None, base: Path | None = None) -> Checkpoint:
    """The checkpoint at `path`, a folder or a file that a trainer wrote; its weights are not read or checked.

    Its configuration and tokenizer lie in `config_from`; by default where the form has them: in the folder
    itself, or beside the file. `base` is the checkpoint that an adapter was trained on; by default the one
    that the adapter names. Raises EdgemtError in one sentence if something is missing or damaged.
    """
    weights = read_weights(path, base)
    directory = config_from or weights.directory
    config_file, generation_file = directory / "config.json", directory / "generation_config.json"
    if weights.config is None and not config_file.is_file():
        raise EdgemtError(
            f"{directory} has no config.json, so that nothing says what model the weights in {path} are of; "
            "copy it there with the tokenizer's files, or name their folder with --config-from"
        )
    config = read_json(config_file) if weights.config is None else dict(weights.config)
    generation = read_json(generation_file) if generation_file.is_file() else {}
    for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id", "bad_words_ids"):
        if config.get(key) is None and generation.get(key) is not None:
            config[key] = generation[key]
        generation.setdefault(key, config.get(key))
    return Checkpoint(path, directory, config, generation, weights)


def read_weights(path: Path, base: Path | None = None) -> Weights:
    """The weights of a checkpoint in any form, not loaded yet; an adapter's are merged into its `base`.

    Raises EdgemtError if no form fits.
    """
    if not path.exists():
        raise EdgemtError(f"no such checkpoint: {path}; give the folder or the file that a trainer wrote")
    if lora.found(path):
        return lora.read(path, read_weights(lora.base_of(path, base)))
    if base is not None:
        raise UsageError(f"--base is for an adapter, and {path} is none: it has no {lora.CONFIG}")
    form = next((form for form in FORMS if form.found(path)), None)
    if form is not None:
        return form.read(path)
    if path.is_file():
        raise EdgemtError(f"{path} is not a checkpoint: neither safetensors nor a file that torch.save wrote")
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise EdgemtError(
            f"{path} has no weights under a name that edgemt knows; give one file: {pickles[0]}?"
        )
    raise EdgemtError(
        f"{path} has no weights: none of {', '.join(MARKERS.values())} is there; copy the whole checkpoint"
    )


def sha256(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of the files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
