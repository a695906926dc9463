"""Error messages that name the value, what was expected, and the way out."""

import difflib
import numbers


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
