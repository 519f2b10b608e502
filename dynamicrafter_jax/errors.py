"""The one error that means "the person at the keyboard can fix this"."""


class UserError(ValueError):
    """Bad input: the message says what was wrong, with which value, and what to do.

    Entry points print the message as one line and exit with status 2; anything else that
    escapes is a defect of this package and keeps its traceback.

    Attributes:
        details: What is too long for a line, such as every tensor that does not fit; entry points
            print it with `DYNAMICRAFTER_DEBUG=1`. Often empty.
    """

    def __init__(self, message: str, details: str = "") -> None:
        """Says what was wrong."""
        super().__init__(message)
        self.details = details
