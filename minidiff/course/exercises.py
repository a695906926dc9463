"""Exercises that check themselves: `exercises.check_snr(my_snr)` says whether it is right, and if not, what is wrong.

The checks of a notebook live in minidiff/course/checks/notebook_NN.py; every function there whose name begins with
`check_` is found here by that name. A check takes what the reader wrote, and is 10 to 20 lines:

    @exercise("The signal-to-noise ratio falls all the way: fine detail drowns first.")
    def check_snr(snr):
        alpha, sigma = schedules.cosine()(torch.linspace(0.1, 0.9, 9))
        compare(snr(alpha, sigma), alpha**2 / sigma**2, mistakes={"you forgot the squares": alpha / sigma})

With MINIDIFF_STRICT=1 in the environment a check that fails raises AssertionError with the diagnosis.
"""

import functools
import importlib
import inspect
import linecache
import os
import pkgutil
import sysconfig
import traceback
from pathlib import Path

import numpy as np
import torch

from minidiff.errors import unknown_name

STUB = "Not done yet: {} is still empty. Put your code in the place of the `...` (and do not forget `return`)."


class Wrong(Exception):
    """A diagnosis for the reader; checks raise it, and `exercise` prints it."""


class Verdict:
    """Whether an answer passed: true or false in an `if`, and nothing to look at as the last line of a cell."""

    def __init__(self, passed):
        self.passed = passed

    def __bool__(self):
        return self.passed

    def __repr__(self):
        return "passed" if self.passed else "not passed"

    def _ipython_display_(self):
        """Show nothing: the diagnosis has been printed."""


def exercise(lesson):
    """Decorator: makes a check out of a function that raises Wrong, or any error, where the reader's answer fails.

    lesson: one sentence, printed after 'Correct:', on what the right answer shows. The check returns a Verdict. It
    runs with its own random state, seeded with 0. Functions of the reader's that return None or `...` count as empty,
    and may not change the tensors they are given.
    """

    def decorate(check):
        @functools.wraps(check)
        def wrapper(*answers):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                diagnosis = _diagnose(check, answers)
            print(f"Correct: {lesson}" if diagnosis is None else diagnosis)
            if diagnosis is not None and os.environ.get("MINIDIFF_STRICT") == "1":
                raise AssertionError(f"{check.__name__}: {diagnosis}")
            return Verdict(diagnosis is None)

        return wrapper

    return decorate


def _diagnose(check, answers):
    """None where the answers pass, else the diagnosis."""
    try:
        inspect.signature(check).bind(*answers)
    except TypeError as error:
        return f"{check.__name__}{inspect.signature(check)} was called with something else: {error}."
    try:
        for name, answer in zip(inspect.signature(check).parameters, answers):
            if answer is None or answer is ...:
                raise Wrong(STUB.format(f"`{name}`"))
        check(*[_guard(answer) if inspect.isfunction(answer) else answer for answer in answers])
    except Wrong as wrong:
        return str(wrong)
    except NotImplementedError:
        return STUB.format("your function")
    except Exception as error:
        return _explain(error, check)


def _guard(function):
    """The reader's function, with a diagnosis where it returns nothing or changes the tensors it is given."""

    @functools.wraps(function)
    def guarded(*args, **options):
        before = [a.detach().clone() if isinstance(a, torch.Tensor) else None for a in args]
        result = function(*args, **options)
        if result is None or result is ...:
            raise Wrong(STUB.format(f"`{function.__name__}`"))
        for k, (old, new) in enumerate(zip(before, args)):
            if old is not None and (old.shape != new.shape or not torch.equal(old.nan_to_num(), new.nan_to_num())):
                raise Wrong(f"`{function.__name__}` changes its argument number {k + 1} in place (by `x *= ...`, "
                            "`x.add_()` or the like), and its owner still needs it. Make a new one: `x = x * ...`.")
        return result

    return guarded


def _explain(error, check):
    """The diagnosis for an error: the reader's own line if it rose there, else what could not be used."""
    if "ellipsis" in str(error):
        return STUB.format("a part of your function")
    what = f"{type(error).__name__}: {error}"
    if "must match the size" in what:
        what += ". One number for each picture needs the shape (B, 1, 1, 1) before it multiplies (B, C, H, W)."
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = (str(Path(__file__).parents[1]) + os.sep, *libraries, "<frozen")
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    theirs = [f for f in frames if f[0] is not check.__code__ and not f[0].co_filename.startswith(ours)]
    if theirs:
        code, line = theirs[-1]
        source = linecache.getline(code.co_filename, line).strip()[:100]
        place = f"line {line} of the cell" if "ipykernel" in code.co_filename else f"line {line}"
        return f"Your code stopped in `{code.co_name}`, {place}, `{source}`, with {what}"
    if isinstance(error, TypeError) and "argument" in str(error):
        return f"Your function could not be called as the exercise says. {what}"
    return f"The check could not use your answer. {what}"


def unpack(result, *names):
    """The parts of a tuple the reader returned: `mean, variance = unpack(posterior(...), "mean", "variance")`."""
    if not isinstance(result, (tuple, list)) or len(result) != len(names):
        got = f"{len(result)} values" if isinstance(result, (tuple, list)) else f"a {type(result).__name__}"
        raise Wrong(f"Your function returned {got}; expected {len(names)}: `return {', '.join(names)}`.")
    return tuple(result)


def compare(mine, expected, mistakes=None, *, name="your result", rtol=1e-4, atol=1e-6):
    """Pass where `mine` equals `expected` (tensors, arrays or numbers), else raise Wrong with a diagnosis.

    mistakes: {"you forgot the square root": the wrong value, or a function that makes it}; the first that `mine` agrees
    with is named. Looked for besides: nothing returned, NaN, wrong type, shape and kind of dtype, a wrong sign, factor
    or offset, and the place of the largest difference. Devices and precisions of floats may differ.
    """
    if mine is None or mine is ...:
        raise Wrong(STUB.format(name))
    mine, expected = _tensor(mine, name), _tensor(expected, "the expected value")

    def agrees(value):
        value = _tensor(value, "a mistake")
        return mine.shape == value.shape and torch.allclose(_real(mine), _real(value), rtol=rtol, atol=atol)

    right = agrees(expected)
    for mistake, value in ({} if right else mistakes or {}).items():
        if agrees(value() if callable(value) else value):
            raise Wrong(f"Not quite: {mistake}.")
    if mine.is_floating_point() and not mine.isfinite().all() and expected.isfinite().all():
        bad = (~mine.isfinite()).sum().item()
        raise Wrong(f"{_up(name)} holds {bad} NaN or infinite of {mine.numel()} values: a division by zero, or the "
                    "root or logarithm of a number that is not positive?")
    if mine.shape != expected.shape:
        raise Wrong(f"{_up(name)} has shape {tuple(mine.shape)}; expected {tuple(expected.shape)}.")
    if mine.ndim and _kind(mine) != _kind(expected):  # for single numbers 3 and 3.0 are the same
        raise Wrong(f"{_up(name)} has dtype {mine.dtype}; expected {_kind(expected)} values.")
    if not right:
        raise Wrong(_difference(_real(mine), _real(expected), name, rtol, atol))


def _difference(mine, expected, name, rtol, atol):
    """In words, how float64 tensors of one shape differ."""
    size = expected.abs().mean().item()
    close = functools.partial(torch.allclose, rtol=max(10 * rtol, 1e-3), atol=min(10 * atol, 1e-3 * size))
    if size > 0 and mine.abs().max() == 0:
        return f"{_up(name)} is 0 everywhere."
    if size > 0 and close(mine, -expected):
        return f"Almost: {name} has the wrong sign."
    factor = ((mine * expected).sum() / expected.square().sum()).item() if size > 0 else 0
    if expected.numel() > 1 and abs(factor) > 1e-3 and close(mine, factor * expected):
        return f"Almost: {name} is {factor:.4g} times what it should be, everywhere. A constant factor is wrong."
    offset = (mine - expected).mean()
    if expected.numel() > 1 and close(mine - offset, expected):
        return f"Almost: {name} is off by {offset:+.4g} everywhere. A constant is added or missing."
    worst = (mine - expected).abs().flatten().argmax().item()
    place = [int(k) for k in np.unravel_index(worst, tuple(expected.shape))]
    share = (~torch.isclose(mine, expected, rtol=rtol, atol=atol)).double().mean().item()
    where = f" at {place} (and {share:.0%} of the values are off)" if place else ""
    return f"Not yet: {name} is {mine.flatten()[worst]:.5g} where {expected.flatten()[worst]:.5g} is expected{where}."


def _tensor(value, name):
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{_up(name)} is a {type(value).__name__}; expected a tensor or a number.") from None


def _real(value):
    return value.double() if not value.is_complex() else torch.view_as_real(value).double()


def _kind(value):
    return "bool" if value.dtype == torch.bool else "floating-point" if value.is_floating_point() else "whole"


def _up(name):
    return name[:1].upper() + name[1:]


def prove(check, solution, stub, wrong):
    """For tests: the solution passes `check`, the stub and each wrong answer fail, with a diagnosis that names why.

    wrong: {words the diagnosis must contain: wrong answer}. An answer is what the check takes, a tuple of them where it
    takes several. Raises AssertionError.
    """
    name, check = check.__name__, check.__wrapped__
    diagnose = lambda answer: _diagnose(check, answer if isinstance(answer, tuple) else (answer,))  # noqa: E731
    assert (found := diagnose(solution)) is None, f"{name}: the solution fails: {found}"
    found = diagnose(stub)
    assert found is not None and "Not done yet" in found, f"{name}: the stub gives {found!r}"
    for words, answer in wrong.items():
        found = diagnose(answer)
        assert found is not None and words in found, f"{name}: expected a diagnosis with {words!r}, got {found!r}"


def _modules():
    """The modules of minidiff/course/checks."""
    checks = importlib.import_module("minidiff.course.checks")
    return [importlib.import_module(f"{checks.__name__}.{m.name}") for m in pkgutil.iter_modules(checks.__path__)]


def _checks():
    """{name: check} of all notebooks."""
    return {name: value for m in _modules() for name, value in vars(m).items() if name.startswith("check_")}


def __getattr__(name):
    if not name.startswith("check_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    checks = _checks()
    if name not in checks:
        raise AttributeError(str(unknown_name("exercise", name, checks)))
    return checks[name]


def __dir__():
    return [*globals(), *_checks()]
