"""The error for everything that users can fix themselves."""


class UserError(ValueError):
    """Bad input: the message says what was wrong, with which value, and what to do.

    Entry points print the message as one line and exit with status 2; anything else that
    escapes is a defect of this package and keeps its traceback.

    Attributes:
        details: Details that are too long for a line, such as all tensors that do not fit; entry
            points print them with `DYNAMICRAFTER_DEBUG=1`. Often empty.
    """

    def __init__(self, message: str, details: str = "") -> None:
        """Takes the message, and details that may be too long for it."""
        super().__init__(message)
        self.details = details
