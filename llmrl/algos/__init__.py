"""Algorithms, one file a method: which credit, which loss, and what it needs."""
