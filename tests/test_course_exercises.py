"""The framework of the exercises: each kind of wrong answer gets a diagnosis that names it."""

import sys
import types

import pytest
import torch

from minidiff.course import exercises
from minidiff.course.exercises import compare, exercise, prove, unpack

ANGLE = torch.linspace(0.1, 1.4, 9)


@exercise("The ratio falls all the way.")
def check_snr(snr):
    alpha, sigma = ANGLE.cos(), ANGLE.sin()
    compare(
        snr(alpha, sigma),
        alpha**2 / sigma**2,
        mistakes={"you forgot the squares": alpha / sigma, "this is its inverse": lambda: sigma**2 / alpha**2},
    )


@exercise("Both fall.")
def check_pair(function):
    mean, variance = unpack(function(torch.tensor(3.0)), "mean", "variance")
    compare(mean, 3.0, name="the mean")
    compare(variance, 9.0, name="the variance")


def in_place(alpha, sigma):
    alpha *= alpha
    return alpha / sigma**2


def crash(alpha, sigma):
    ratio = alpha / sigma
    return ratio.reshape(2, 2)


def unfinished(alpha, sigma):
    square = ...
    return square * alpha


def not_implemented(alpha, sigma):
    raise NotImplementedError


WRONG = {
    "you forgot the squares": lambda a, s: a / s,
    "this is its inverse": lambda a, s: (s / a) ** 2,
    "wrong sign": lambda a, s: -((a / s) ** 2),
    "2 times what it should be": lambda a, s: 2 * (a / s) ** 2,
    "off by -1 everywhere": lambda a, s: (a / s) ** 2 - 1,
    "0 everywhere": lambda a, s: a * 0,
    "shape (); expected (9,)": lambda a, s: ((a / s) ** 2).mean(),
    "dtype torch.int64; expected floating-point": lambda a, s: (a / s).long(),
    "9 NaN or infinite of 9": lambda a, s: a / (s - s),
    "is a str; expected a tensor": lambda a, s: "the ratio",
    "argument number 1 in place": in_place,
    f"`crash`, line {crash.__code__.co_firstlineno + 2}, `return ratio.reshape(2, 2)`, with RuntimeError": crash,
    "could not be called as the exercise says": lambda a: a,
    "could not use your answer": 3,
    "(B, 1, 1, 1)": lambda a, s: a * torch.ones(9, 3, 4, 4),
}


@pytest.mark.parametrize("words", list(WRONG))
def test_each_wrong_answer_is_named(words):
    prove(check_snr, lambda a, s: (a / s) ** 2, not_implemented, {words: WRONG[words]})


def test_the_place_of_the_largest_difference():
    expected = torch.arange(6.0).reshape(2, 3)
    mine = expected.clone()
    mine[1, 2] = 7.5

    with pytest.raises(exercises.Wrong, match=r"is 7\.5 where 5 is expected at \[1, 2\] \(and 17% of the values"):
        compare(mine, expected)
    compare(mine, expected, atol=3)
    with pytest.raises(exercises.Wrong, match=r"Not yet: the answer is 3 where 4 is expected\."):
        compare(3, 4, name="the answer")
    compare(3.0, 3)
    compare(expected.double().numpy(), expected)
    compare([True, False], torch.tensor([True, False]))


@pytest.mark.parametrize("stub", [lambda a, s: None, lambda a, s: ..., unfinished, not_implemented, None, ...])
def test_stubs_are_kindly_told(stub):
    prove(check_snr, lambda a, s: (a / s) ** 2, stub, {})


def test_results_of_several_parts():
    solution = lambda x: (x, x**2)  # noqa: E731
    wrong = {
        "returned 3 values; expected 2: `return mean, variance`": lambda x: (x, x, x),
        "returned a Tensor; expected 2": lambda x: x,
        "the variance is 3 where 9": lambda x: (x, x),
    }
    prove(check_pair, solution, lambda x: None, wrong)


def test_prove_can_fail():
    right, stub = (lambda a, s: (a / s) ** 2), (lambda a, s: None)
    with pytest.raises(AssertionError, match="the solution fails"):
        prove(check_snr, stub, stub, {})
    with pytest.raises(AssertionError, match="the stub gives"):
        prove(check_snr, right, right, {})
    with pytest.raises(AssertionError, match="expected a diagnosis with 'banana'"):
        prove(check_snr, right, stub, {"banana": lambda a, s: a})


def test_returns_prints_and_raises_only_when_strict(capsys, monkeypatch):
    monkeypatch.delenv("MINIDIFF_STRICT", raising=False)
    assert check_snr(lambda a, s: (a / s) ** 2)
    assert capsys.readouterr().out == "Correct: The ratio falls all the way.\n"
    assert not check_snr(lambda a, s: a / s)
    assert capsys.readouterr().out == "Not quite: you forgot the squares.\n"
    assert not check_snr() and "missing a required argument" in capsys.readouterr().out
    monkeypatch.setenv("MINIDIFF_STRICT", "1")
    with pytest.raises(AssertionError, match="check_snr: Not quite: you forgot the squares"):
        check_snr(lambda a, s: a / s)
    assert check_snr(lambda a, s: (a / s) ** 2)


def test_checks_have_their_own_random_state():
    drawn = []

    @exercise("Chance.")
    def check_chance(function):
        drawn.append(function())

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    check_chance(lambda: torch.rand(1).item())
    assert torch.equal(torch.rand(1), expected)
    check_chance(lambda: torch.rand(1).item())
    assert drawn[0] == drawn[1]


def test_checks_are_found_by_name(monkeypatch, tmp_path):
    package = types.ModuleType("minidiff.course.checks")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "notebook_77.py").write_text("def check_snr(snr): return 'found'\nhelper = 1\n")
    monkeypatch.setitem(sys.modules, "minidiff.course.checks", package)
    assert exercises.check_snr(None) == "found" and "check_snr" in dir(exercises)
    with pytest.raises(AttributeError, match="unknown exercise 'check_snt'. Did you mean 'check_snr'"):
        exercises.check_snt  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'helper'"):
        exercises.helper  # noqa: B018
    sys.modules.pop("minidiff.course.checks.notebook_77")


def test_no_two_notebooks_use_one_name():
    modules = exercises._modules()
    names = [name for module in modules for name in vars(module) if name.startswith("check_")]
    assert len(names) == len(set(names)), sorted(names)
