"""What a finished (or still running) run looks like: HTML page, terminal samples, end table, learning-curve PNG.

Everything here only reads a run folder (`read.py`) and shows it; nothing imports torch or starts an engine.
"""
