"""How this project compares with others: Habitat's recorded answers, Torch-Pruning, published code."""
