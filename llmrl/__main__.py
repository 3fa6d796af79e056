"""`python -m llmrl` is the `llmrl` command."""

from llmrl.cli import main

main()
