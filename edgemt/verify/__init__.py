"""The conformance report of a model (`edgemt verify-model`): what a device can say of a bundle.

What only a checkpoint has (transformers' rendering, parity, exports) is in `edgemt.export.verify`.
"""
