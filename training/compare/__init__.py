"""`edgemt train compare`: the same training in several precisions, side by side."""
