"""The loop, one update, the optimiser, EMA, checkpoints, resume, and the before and after of a run."""
