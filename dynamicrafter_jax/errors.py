"""The one error that means "the person at the keyboard can fix this"."""


class UserError(ValueError):
    """Bad input: the message says what was wrong, with which value, and what to do.

    Entry points print the message as one line and exit with status 2; anything else that
    escapes is a defect of this package and keeps its traceback.
    """
