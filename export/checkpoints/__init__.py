"""Reading checkpoints: any trainer's files in, FP32 weights by name out, read when they are needed.

`read.py` is the way in, `forms/` has one module for each way in which a trainer leaves weights.
"""
