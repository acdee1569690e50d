"""Canonical graphs: one FP32 ONNX graph a role, the same for every target."""
