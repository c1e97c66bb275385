"""SPL on a split."""
