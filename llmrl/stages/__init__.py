"""Supervised stages before the reinforcement learning of a recipe: SFT, reward model, DPO, run by TRL's trainers."""
