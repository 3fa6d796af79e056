"""Rewards: Trajectory -> Score, one verifier a file."""
