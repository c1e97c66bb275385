"""SPL on a split, cost and latency."""
