"""The one error class that a command line shows as a single line."""


class UserError(ValueError):
    """Bad input that its sender can mend: the message names the file or option and the remedy."""
