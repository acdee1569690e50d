"""The conformance report's sections that only a checkpoint has; the others are in `edgemt.verify`."""
