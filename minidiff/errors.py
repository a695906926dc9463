"""Error messages that name the value, what was expected, and the way out; and warnings that name the user's line."""

import difflib
import numbers
import sys
import warnings


def unknown_name(kind, name, valid):
    """The ValueError for a `name` that is none of the `valid` names of this `kind`; it lists the nearest first.

    Returns the exception, so that the caller's line reads `raise unknown_name("schedule", name, NAMES)`.
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}. {hint}Valid names: {', '.join(valid)}.")


def check_whole(name, value, least=1):
    """Raise ValueError unless `value` is a whole number of at least `least`; `name` is what the caller calls it."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def warn(message):
    """Warn at the line outside this package and torch that led here, however many functions lie between."""
    level, frame = 2, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("minidiff", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
