"""The exercises of notebook 03: solutions pass, stubs fail, typical wrong answers are named."""

from pathlib import Path

import pytest
import torch

from minidiff.course.checks import notebook_03 as checks
from minidiff.course.exercises import prove

SOLUTIONS = Path(__file__).parents[1] / "notebooks" / "solutions" / "03_ddpm_in_a_hundred_lines.py"


def at(values, i, x):
    return values[i].to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def q_sample(x0, i, eps, table):
    return at(table.alpha, i, x0) * x0 + at(table.sigma, i, x0) * eps


@pytest.fixture(scope="module")
def solved():
    """The names that the solution file defines, with what the notebook gives it."""
    space = {"torch": torch, "at": at, "q_sample": q_sample}
    exec(SOLUTIONS.read_text(encoding="utf-8"), space)
    return space


def stub(*args):
    ...


def test_v_loss(solved):
    def wrong(target, sees=q_sample, reduce=lambda e: e.square().mean()):
        def v_loss(network, x0, i, eps, table):
            a, s = at(table.alpha, i, x0), at(table.sigma, i, x0)
            return reduce(network(sees(x0, i, eps, table), i) - target(a, s, x0, eps))
        return v_loss

    def v(a, s, x0, eps):
        return a * eps - s * x0

    prove(checks.check_v_loss, solved["v_loss"], stub, {
        "still the loss for eps": wrong(lambda a, s, x0, eps: eps),
        "wrong sign": wrong(lambda a, s, x0, eps: s * x0 - a * eps),
        "swapped": wrong(lambda a, s, x0, eps: s * eps - a * x0),
        "clean x0": wrong(v, sees=lambda x0, i, eps, table: x0),
        "not their sum": wrong(v, reduce=lambda e: e.square().sum()),
    })  # fmt: skip


def test_ddim_sampler(solved):
    right = solved["sample_ddim"]

    def wrong(next_stop=lambda i, stride: i - stride, noise=0.0, last=True, stride_of=lambda s: s, up=False,
              wrap=False):
        def sample_ddim(network, table, x, stride):
            stride = stride_of(stride)
            for i in reversed(range(0, 100, stride)) if up else range(99, -1, -stride):
                eps = network(x, torch.full((len(x),), i))
                x0 = (x - table.sigma[i] * eps) / table.alpha[i]
                if i - stride < 0 and not wrap:
                    return x0 if last else x
                j = next_stop(i, stride)
                x = table.alpha[j] * x0 + table.sigma[j] * (eps + noise * torch.randn_like(x))
            return x
        return sample_ddim

    prove(checks.check_ddim_sampler, right, stub, {
        "draws no new noise": wrong(noise=0.1),
        "not to that of i - 1": wrong(next_stop=lambda i, stride: i - 1),
        "must return its x0": wrong(last=False),
        "every step was visited": wrong(stride_of=lambda s: 1),
        "counted up from 0; they": wrong(up=True),
        "counted up from 0, and": wrong(up=True, last=False),
        "counts from the end of the table": wrong(wrap=True),
    })  # fmt: skip


def test_copied(solved):
    def wrong(judge, dim=1):
        def copied(samples, training):
            distance = torch.cdist(samples.flatten(1), training.flatten(1))
            return judge(*distance.topk(2, dim=dim, largest=False).values.movedim(dim, 0))
        return copied

    prove(checks.check_copied, solved["copied"], stub, {
        "number of copies": wrong(lambda a, b: (a < b / 3).sum()),
        "squared distances": wrong(lambda a, b: (a**2 < b**2 / 3).float().mean()),
        "factor of a third is missing": wrong(lambda a, b: (a < b).float().mean()),
        "no copies": wrong(lambda a, b: (a > b / 3).float().mean()),
        "along the other axis": wrong(lambda a, b: (a < b / 3).float().mean(), dim=0),
    })  # fmt: skip
