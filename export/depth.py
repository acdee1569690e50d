"""A few layers of a decoder-only checkpoint, with its embedding and head: a model that fits into memory."""

from __future__ import annotations

import dataclasses
import re

from edgemt.export.checkpoints.read import Checkpoint

LAYER = re.compile(r"model\.layers\.(\d+)\.")


def part(checkpoint: Checkpoint, first: int, layers: int) -> Checkpoint:
    """The checkpoint with `layers` of its layers, from `first` on; nothing is read or copied."""
    tensors = {}
    for name, stored in checkpoint.stored.items():
        found = LAYER.match(name)
        if not found:
            tensors[name] = stored
        elif first <= int(found[1]) < first + layers:
            tensors[f"model.layers.{int(found[1]) - first}.{name[found.end() :]}"] = stored
    config = {**checkpoint.config, "num_hidden_layers": layers}
    if kinds := config.get("layer_types"):  # one of each layer
        config["layer_types"] = kinds[first : first + layers]
    weights = dataclasses.replace(checkpoint.weights, tensors=tensors)
    cut = dataclasses.replace(checkpoint, config=config, weights=weights)
    vars(cut)["chat"] = checkpoint.chat  # the same files, and they take a second to read
    return cut
