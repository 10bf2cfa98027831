"""The one exception that a user's mistake raises."""


class LoopprobeError(ValueError):
    """A mistake that the user can mend: the message names the value, the rule and the remedy in one line.

    The command line prints it and exits with code 2; in a session it is an ordinary ``ValueError``.
    """
