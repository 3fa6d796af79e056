"""Algorithms, one file a method: which credit, which loss, and what it needs."""

# The recipe's `algo.name` -> where its dataclass lives. Strings, so that a listing imports no torch.
ALGORITHMS = {
    "grpo": "llmrl.algos.grpo:GRPO",
}
