"""`edgemt bench`: latency measured against a budget. See docs/bench.md."""
