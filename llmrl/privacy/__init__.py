"""Differential privacy: per-record clipping, noise, accounting, and the controllers that may steer them.

Two data sets are neighbours if one has a record that the other lacks. Everything here protects against an observer who
sees all that a run releases: its weights, its metrics and its controller.
"""
