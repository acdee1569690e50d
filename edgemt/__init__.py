"""edgemt: an AMP-trained translation model, made to run on a small device."""

__version__ = "0.1.0"
