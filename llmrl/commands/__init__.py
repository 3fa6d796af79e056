"""The commands of `llmrl`, one file a group; cli.py puts them together. Heavy imports happen inside the commands."""
