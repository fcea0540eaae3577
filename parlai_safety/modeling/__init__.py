"""How to get log-probs and samples out of any generator quickly: knows nn.Module, knows no opt and no file."""
