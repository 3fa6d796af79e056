"""Environments: where a turn of the model is answered."""
