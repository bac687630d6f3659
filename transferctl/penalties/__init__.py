"""Terms added to the objective: one file a paper."""
