"""Environments: where a turn of the policy is answered."""
