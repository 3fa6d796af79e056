"""Data: rows, files and generators -> Prompt. Chat templates are applied here and nowhere else."""
