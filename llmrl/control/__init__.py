"""Small policies over a handful of numbers that learn while a training run goes on: soft actor-critic and its family."""
