"""The one error that a user's mistake ends in."""


class InputError(ValueError):
    """Something that the user gave is wrong: a path, a file's content, an option.

    The message names the file or option, the value and the remedy. Programs print it and exit with code 2.
    """
