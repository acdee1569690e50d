"""`edgemt pack`: everything that a device without a network needs, in one file."""
