"""Rollout: Prompt -> Trajectory. Engines, the episode loop and weight loading."""
