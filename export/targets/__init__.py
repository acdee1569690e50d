"""Targets: each lowers the canonical graphs to what one runtime loads. One line a target."""

TARGETS = {"onnxruntime": "edgemt.export.targets.onnxruntime"}
