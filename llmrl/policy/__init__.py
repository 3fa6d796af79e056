"""The policy: loading, LoRA, and the forward pass that gives log-probabilities."""
