"""Training: the loop, collation, the update, checkpoints and metrics."""
