"""LoRA through peft: adapters beside a family's linear layers, and nothing else trained."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from edgemt.errors import UsageError
from edgemt.training.config import Data, Lora
from edgemt.training.data import Batch, Examples, Pairs
from edgemt.training.families import Family

ADAPTER = "adapter"  # the folder in a checkpoint that has what peft writes


class Adapted:
    """A family with adapters in its model. Its weights are those of a plain model: the adapters merged."""

    def __init__(self, family: Family, settings: Lora, base: Path | None) -> None:
        """`base` is the checkpoint below the adapters, which their own files name."""
        if base is None:
            raise UsageError(
                "lora.rank needs --init, also to go on with a run: the checkpoint below the adapters"
            )
        self.family = family
        self.settings = settings
        self.model: nn.Module = family.model
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] (any number)
            lora_dropout=settings.dropout,
            target_modules=settings.targets or "all-linear",
        )
        family.model.name_or_path = str(base.resolve())  # pyright: ignore (peft writes it as the base)
        try:
            self.peft = get_peft_model(family.model, config)  # pyright: ignore[reportArgumentType]
        except ValueError as error:  # a target that no layer bears
            raise UsageError(f"lora.targets: {str(error).strip().splitlines()[0]}") from None

    def examples(self, pairs: Pairs, settings: Data, seed: int) -> Examples:
        return self.family.examples(pairs, settings, seed)

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.family.summed_loss(model, batch)

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        return self.family.translate(texts, source, target)

    def weights(self) -> dict[str, Tensor]:
        """As a model without adapters names them: W + (alpha / rank) B A, FP32; the model stays as it is.

        None where the adapters are not to be merged.
        """
        if not self.settings.merge:
            return {}
        stored = self.family.weights()
        merged: dict[str, Tensor] = {}
        for name, tensor in stored.items():
            if ".lora_" not in name:
                merged[name.replace(".base_layer.", ".")] = tensor
        for name, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                delta: Tensor = layer.get_delta_weight("default")  # pyright: ignore[reportAttributeAccessIssue]
                merged[f"{name}.weight"] = merged[f"{name}.weight"] + delta.detach().float().cpu()
        return merged

    def write_files(self, directory: Path) -> None:
        """The family's files, and the adapters as peft writes them: in `adapter/`, or among the files."""
        self.family.write_files(directory)
        folder = directory / ADAPTER if self.settings.merge else directory
        self.peft.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
        (folder / "README.md").unlink()  # an empty form
