"""The one exception that a user's mistake raises."""


class LoopprobeError(Exception):
    """A mistake that the user can mend: the message names the value, the rule and the remedy in one line.

    The command line prints it and exits with code 2. It is no ValueError, which pydantic would wrap in its own.
    """
