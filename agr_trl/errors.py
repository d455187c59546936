"""The one exception that recipes print as a single line instead of a traceback."""


class UserError(ValueError):
    """Say what is wrong, where, and what to do about it, in one line.

    Raised for everything that the user can mend (data, configuration, paths), before any model
    loads. It is a `ValueError`, so library users need not know it.
    """
