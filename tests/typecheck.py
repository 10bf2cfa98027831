"""What checks types and shapes at every call, where ``LOOPPROBE_CHECK_SHAPES`` is set: an int may stand for a float.

The methods of protocols are called by nobody, and their ``Self`` cannot be checked outside a class: they are not
checked.
"""

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """Check the calls of a function."""
    return function if function.__module__.endswith(".protocol") else _check(function)
