"""The one error of this folder."""


class DataError(ValueError):
    """Something is wrong with the data or with what a recipe says of it; the message names the file and the line."""
