"""The error that the command line prints as one line."""


class UserError(Exception):
    """Something the user can put right: a value, a file, a missing package. The message says what to do."""
