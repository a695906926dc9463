"""The checks of notebook 02: solutions pass, stubs fail, typical mistakes are named."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minidiff
from minidiff import schedules
from minidiff.course import exercises, plots
from minidiff.course.checks.notebook_02 import _bound
from minidiff.course.exercises import prove
from minidiff.variational import discretized_gaussian_log_likelihood, gaussian_kl, log_variance, posterior

SOLUTION = Path(__file__).parents[1] / "notebooks" / "solutions" / "02_from_likelihood_to_a_squared_error.py"


def normal(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


def line(schedule, t, width):
    alpha, sigma = schedule(t)
    return torch.arange(-alpha - 7 * sigma, alpha + 7 * sigma, width, dtype=torch.float64)


@pytest.fixture(scope="module")
def solutions():
    """What the solution file defines, its cells run with the names that the notebook has by then."""
    package = (discretized_gaussian_log_likelihood, gaussian_kl, log_variance, posterior)
    names = {function.__name__: function for function in (*package, normal, line)}
    names |= {"torch": torch, "math": math, "schedules": schedules, "plots": plots}
    names["run"] = SimpleNamespace(tier="smoke")
    exec(SOLUTION.read_text(encoding="utf-8"), names)
    return names


def stub(*args, **options):
    ...


def test_posterior_coefficients(solutions):
    right = solutions["posterior_coefficients"]

    def swapped(betas):
        on_x0, on_x_t, variance = right(betas)
        return on_x_t, on_x0, variance

    def not_shifted(betas):
        now = torch.cumprod(1 - betas, 0)
        return betas * now.sqrt() / (1 - now), (1 - betas).sqrt(), betas

    def wrapped(betas):
        before = torch.roll(torch.cumprod(1 - betas, 0), 1)
        return betas * before.sqrt() / (1 - torch.cumprod(1 - betas, 0)), *right(betas)[1:]

    prove(exercises.check_posterior_coefficients, right, stub, {
        "only the first entry": wrapped,
        "swapped": swapped,
        "step before": not_shifted,
        "a root is missing": lambda betas: (right(betas)[0], right(betas)[1] * (1 - betas).sqrt(), right(betas)[2]),
        "variance of the step down": lambda betas: (*right(betas)[:2], betas),
        "standard deviation": lambda betas: (*right(betas)[:2], right(betas)[2].sqrt()),
        "expected 3": lambda betas: right(betas)[:2],
    })


def test_bound_weight(solutions):
    right = solutions["bound_weight"]
    prove(exercises.check_bound_weight, right, stub, {
        "half is missing": lambda kind, s, t: 2 * right(kind, s, t),
        "wrong sign": lambda kind, s, t: -right(kind, s, t),
        "weight on the error of x0": lambda kind, s, t: right("x0", s, t),
        "not at s": lambda kind, s, t: right(kind, s, t) if kind == "x0" else
            right("x0", s, t) / (math.exp(s) + (kind == "v")),
        "factor between them is squared": lambda kind, s, t: (right(kind, s, t) * right("x0", s, t)) ** 0.5,
        "sigma^2 = 1": lambda kind, s, t: right(kind, s, t) * (math.exp(t) if kind == "v" else 1),
        "exponentials first": lambda kind, s, t: (s - t) / 2,
        "divided by its size": lambda kind, s, t: right("x0", s, t) ** 2 / right(kind, s, t),
        "the other of eps and v": lambda kind, s, t: right({"x0": "x0", "eps": "v", "v": "eps"}[kind], s, t),
    })


class BestOf(torch.nn.Module):
    """The best denoiser of a one-pixel data set, for Diffusion.bits_per_dim."""

    def __init__(self, schedule, levels, histogram):
        super().__init__()
        self.schedule, self.levels, self.histogram = schedule, levels, histogram

    def forward(self, x, time, y=None):
        alpha, sigma = self.schedule(round(time[0].item() * self.schedule.steps) / self.schedule.steps)
        distance = (x.view(-1, 1) - alpha * self.levels) ** 2 / (2 * sigma**2)
        return (torch.softmax(self.histogram.log() - distance, 1) @ self.levels).view(x.shape)


def by_dice(schedule, levels, histogram, variance, draws=100_000, seed=0):
    """The bound of each level, (K,), by the package."""
    diffusion = minidiff.Diffusion(BestOf(schedule, levels, histogram), schedule, "x0", time="t", shape=(1, 1, 1))
    x0 = levels.repeat_interleave(draws).view(-1, 1, 1, 1)
    bits = diffusion.bits_per_dim(x0, variance=variance, generator=torch.Generator().manual_seed(seed))
    return bits.view(len(levels), -1).mean(1)


def test_bound_of(solutions):
    right = solutions["bound_of"]

    def other(schedule, levels, histogram, variance):
        return right(schedule, levels, histogram, "small" if variance == "large" else "large")

    def alike(schedule, levels, histogram, variance):
        return sum(_bound(schedule, levels, histogram, variance)).mean() / math.log(2)

    prove(exercises.check_bound_of, right, stub, {
        "in nats": lambda *given: right(*given) * math.log(2),
        "other variance": other,
        "weight them with the histogram": alike,
        "the entropy": lambda schedule, levels, histogram, variance: -(histogram * histogram.log2()).sum(),
        "their average": lambda schedule, levels, histogram, variance: levels,
    })


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_bound_of_accepts_the_package_and_patience(seed):
    assert exercises.check_bound_of(lambda *given: (by_dice(*given, seed=seed) @ given[2]).item())
