"""Channel groups, scores, gates, search and slimming."""
