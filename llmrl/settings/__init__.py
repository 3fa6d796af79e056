"""The recipe: its sections, how it is read and checked, and the messages about what is wrong with it."""
