"""The one exception that recipes print as a single line instead of a traceback."""

MAX_LENGTH = 1_000


class UserError(ValueError):
    """Say what is wrong, where, and what to do about it, in one line.

    Raised for everything that the user can mend (data, configuration, paths), before any model
    loads. It is a `ValueError`, so library users need not know it. A message that repeats a long
    value loses its middle: what is wrong stands first, the remedy last.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MAX_LENGTH:
            message = f"{message[: MAX_LENGTH // 2]} … {message[-MAX_LENGTH // 4 :]}"
        super().__init__(message)
