"""What checks types and shapes at every call, where ``LOOPPROBE_CHECK_SHAPES`` is set: an int may stand for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
