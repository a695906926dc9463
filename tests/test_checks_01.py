"""The exercises of notebook 01: solutions pass, stubs fail, typical wrong answers are named."""

import math
from pathlib import Path

import pytest
import torch

from minidiff.course import exercises
from minidiff.course.checks import notebook_01 as checks

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("q_sample", "cosine_betas", "equal_time", "log_linear")


def defined(path):
    """The names that the exercise cells of a percent-format file define."""
    scope = {"torch": torch}
    for cell in path.read_text(encoding="utf-8").split("\n# %%"):
        head, _, code = cell.partition("\n")
        if 'tags=["exercise"]' in head:
            exec(compile(code, str(path), "exec"), scope)
    return scope


@pytest.fixture(scope="module")
def answers():
    file = "01_destroying_images_properly.py"
    return defined(FOLDER / "solutions" / file), defined(FOLDER / "src" / file)


def bar(alpha_bar, index):
    return alpha_bar[index].view(-1, 1, 1, 1)


def cosine(steps, offset, power=2, scaled=True, dtype=torch.float64):
    t = torch.arange(steps + 1, dtype=dtype) / steps
    f = torch.cos((t + offset) / (1 + offset if scaled else 1) * math.pi / 2) ** power
    return 1 - f[1:] / f[:-1]


def search(stop):
    """A bisection for the time at which stop(alpha, sigma) becomes true."""

    def answer(schedule):
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if stop(*schedule(middle)) else (middle, high)
        return low

    return answer


def levels(t, first, last):
    return first + (last - first) * t


WRONG = {
    "q_sample": {
        "left out the square roots": lambda x, i, e, a: bar(a, i) * x + (1 - bar(a, i)) * e,
        "signal and noise are swapped": lambda x, i, e, a: (1 - bar(a, i)).sqrt() * x + bar(a, i).sqrt() * e,
        "sigma is not 1 - alpha": lambda x, i, e, a: bar(a, i).sqrt() * x + (1 - bar(a, i).sqrt()) * e,
        "square root of the noise's factor": lambda x, i, e, a: bar(a, i).sqrt() * x + (1 - bar(a, i)) * e,
        "one row too early": lambda x, i, e, a: bar(a, i - 1).sqrt() * x + (1 - bar(a, i - 1)).sqrt() * e,
        "you took the table for alpha": lambda x, i, e, a: bar(a, i) * x + (1 - bar(a, i) ** 2).sqrt() * e,
        "noise of your own": lambda x, i, e, a: bar(a, i).sqrt() * x + (1 - bar(a, i)).sqrt() * torch.randn_like(x),
        "along the width": lambda x, i, e, a: a[i].sqrt() * x + (1 - a[i]).sqrt() * e,
        "changes its argument": lambda x, i, e, a: x.mul_(2),
    },
    "cosine_betas": {
        "must be capped": lambda steps, offset, cap: cosine(steps, offset),
        "offset is missing": lambda steps, offset, cap: cosine(steps, 0).clamp(max=cap),
        "divided by 1 + offset": lambda steps, offset, cap: cosine(steps, offset, scaled=False).clamp(max=cap),
        "do not use fixed numbers": lambda steps, offset, cap: cosine(steps, 0.008).clamp(max=0.999),
        "do not use a fixed 0.999": lambda steps, offset, cap: cosine(steps, offset).clamp(max=0.999),
        "lost their digits": lambda steps, offset, cap: cosine(steps, offset, dtype=torch.float32).clamp(max=cap),
        "one step early": lambda steps, offset, cap: torch.cat(
            [torch.zeros(1), cosine(steps, offset).clamp(max=cap)[:-1]]
        ),
        "must be squared": lambda steps, offset, cap: cosine(steps, offset, power=1).clamp(max=cap),
        "these are alpha-bars": lambda steps, offset, cap: (1 - cosine(steps, offset)).cumprod(0),
        "1 minus the ratio": lambda steps, offset, cap: 1 - cosine(steps, offset),
        "has shape": lambda steps, offset, cap: cosine(steps - 1, offset).clamp(max=cap),
    },
    "equal_time": {
        "alpha = 1/2": search(lambda alpha, sigma: alpha < 0.5),
        "sigma is squared": search(lambda alpha, sigma: alpha**2 < sigma),
        "this is 1 - t": lambda schedule: 1 - search(lambda alpha, sigma: alpha < sigma)(schedule),
        "keep the half": search(lambda alpha, sigma: alpha > sigma),
        "end of [0, 1]": search(lambda alpha, sigma: False),
        "right for flow alone": lambda schedule: 0.5,
        "Search more finely": lambda schedule: round(search(lambda alpha, sigma: alpha < sigma)(schedule), 2),
        "expected one number": lambda schedule: schedule(0.5),
    },
    "log_linear": {
        "take its root": lambda t, a, b: (torch.sigmoid(levels(t, a, b)), torch.sigmoid(-levels(t, a, b))),
        "wrong way": lambda t, a, b: tuple(torch.sigmoid(s * levels(1 - t, a, b)).sqrt() for s in (1, -1)),
        "the slope is last - first": lambda t, a, b: tuple(torch.sigmoid(s * (a - b * t)).sqrt() for s in (1, -1)),
        "twice the log-SNR": lambda t, a, b: tuple(torch.sigmoid(2 * s * levels(t, a, b)).sqrt() for s in (1, -1)),
        "swapped": lambda t, a, b: tuple(torch.sigmoid(s * levels(t, a, b)).sqrt() for s in (-1, 1)),
        "variance exploding": lambda t, a, b: (torch.ones_like(t), torch.exp(-levels(t, a, b) / 2)),
        "loses its digits": lambda t, a, b: (
            alpha := torch.sigmoid(levels(t, a, b)).sqrt(),
            (1 - alpha**2).sqrt(),
        ),
        "expected 2": lambda t, a, b: torch.sigmoid(levels(t, a, b)).sqrt(),
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_check(name, answers):
    solutions, stubs = answers
    exercises.prove(getattr(checks, f"check_{name}"), solutions[name], stubs[name], WRONG[name])


def test_other_ways_of_solving_pass():
    def rows_first(x0, index, eps, alphas_cumprod):
        alpha = alphas_cumprod[index].sqrt().float()[:, None, None, None]
        return torch.addcmul(alpha * x0, (1 - alpha.double() ** 2).sqrt().float(), eps)

    def by_hand(steps, offset, cap):
        f = [math.cos((k / steps + offset) / (1 + offset) * math.pi / 2) ** 2 for k in range(steps + 1)]
        return torch.tensor([min(1 - b / a, cap) for a, b in zip(f, f[1:])], dtype=torch.float64)

    def on_a_grid(schedule):
        return min((k / 20_000 for k in range(1, 20_000)), key=lambda t: abs(schedule(t)[0] - schedule(t)[1]))

    def exponentials(t, first=10.0, last=-10.0):
        level = levels(t, first, last)
        return 1 / (1 + (-level).exp()).sqrt(), 1 / (1 + level.exp()).sqrt()

    assert checks.check_q_sample(rows_first)
    assert checks.check_cosine_betas(by_hand)
    assert checks.check_equal_time(on_a_grid)
    assert checks.check_log_linear(exponentials)
