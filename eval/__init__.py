"""Evaluation: checkpoints on benchmarks, with intervals."""
