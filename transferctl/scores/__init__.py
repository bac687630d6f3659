"""How well a backbone's features suit the target, nothing trained: one file a paper, `score(evidence) -> float`."""
