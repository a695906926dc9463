"""Checks of notebook 03: another target, another sampler, and a yardstick for copies."""

from typing import NamedTuple

import torch

from minidiff import schedules
from minidiff.course.exercises import Wrong, compare, exercise


class Table(NamedTuple):
    """What the notebook's linear_schedule returns: entry i of each belongs to step i + 1."""

    beta: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor


def linear_table(steps=100):
    """The notebook's table, from the package."""
    beta = torch.as_tensor(schedules.linear(steps).betas)
    alpha_bar = torch.cumprod(1 - beta, 0)
    return Table(beta, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def rows(values, i, x):
    return values[i].to(x.dtype).view(-1, *[1] * (x.ndim - 1))


@exercise("one line changes the language in which the network answers; nothing else moves.")
def check_v_loss(v_loss):
    table = linear_table()

    def network(x, i):
        return 0.3 * x + 0.01 * rows(torch.as_tensor(i).float(), torch.arange(len(x)), x)

    for shape in ((16, 2), (6, 3, 4, 4)):
        x0, eps, i = torch.randn(shape), torch.randn(shape), torch.randint(100, shape[:1])
        alpha, sigma = rows(table.alpha, i, x0), rows(table.sigma, i, x0)
        out = network(alpha * x0 + sigma * eps, i)

        def error(target, out=out):
            return (out - target).square().mean()

        v = alpha * eps - sigma * x0
        mistakes = {
            "this is still the loss for eps; the target must be v": error(eps),
            "the target is x0; it must be v = alpha eps - sigma x0": error(x0),
            "v has the wrong sign: it is alpha eps - sigma x0": error(-v),
            "the target is x_i, a plus for a minus: v = alpha eps - sigma x0": error(alpha * x0 + sigma * eps),
            "v is alpha eps MINUS sigma x0": error(alpha * eps + sigma * x0),
            "alpha and sigma are swapped: alpha belongs to eps, sigma to x0": error(sigma * eps - alpha * x0),
            "the network must see the noisy x_i, not the clean x0": error(v, network(x0, i)),
            "the square is missing; this is the mean absolute error": (out - v).abs().mean(),
            "take the mean of the squares, not their sum": (out - v).square().sum(),
            "return one number, the mean over the batch, not one loss for each sample":
                (out - v).square().flatten(1).mean(1),
            "return one number, the mean of the squares": (out - v).square(),
        }
        compare(v_loss(network, x0, i, eps, table), error(v), mistakes, name="the loss")


@exercise("with the same noise put back, a tenth of the steps still lead to the data.")
def check_ddim_sampler(sample_ddim):
    table = linear_table()
    alpha, sigma = table.alpha, table.sigma

    def network(x, i):  # the exact eps for data from N(0, 0.5^2)
        i = torch.as_tensor(i).reshape(-1)[:1].expand(len(x))
        return rows(sigma / (alpha**2 * 0.25 + sigma**2), i, x) * x

    def run(x, stride, ahead=None, to_data=True, on_eps=sigma, on_x0=alpha, first=99, wrap=False):
        for i in range(first, -1, -stride):
            eps = network(x, torch.tensor(i))
            x0 = (x - sigma[i] * eps) / alpha[i]
            j = i - (ahead or stride)
            if j < 0 or i - stride < 0:
                return alpha[j] * x0 + sigma[j] * eps if wrap else x0 if to_data else x
            x = on_x0[j] * x0 + on_eps[j] * eps
        return x

    for stride in (10, 7):
        x = torch.randn(50, 2)
        made = sample_ddim(network, table, x.clone(), stride)
        again = sample_ddim(network, table, x.clone(), stride)
        if isinstance(made, torch.Tensor) and isinstance(again, torch.Tensor) and not torch.equal(made, again):
            raise Wrong("Two runs from the same noise differ. DDIM draws no new noise: it puts the same eps back.")
        mistakes = {
            "the final stop must return its x0; you return the x that came in there": run(x, stride, to_data=False),
            "x0 goes back to the level of the next stop, i - stride, not to that of i - 1": run(x, stride, ahead=1),
            "x0 must be multiplied by alpha of the next stop": run(x, stride, on_x0=torch.ones_like(alpha)),
            "the noise must be multiplied by sigma, not by sigma^2": run(x, stride, on_eps=sigma**2),
            "the noise is missing: x at the next stop is alpha x0 + sigma eps":
                run(x, stride, on_eps=torch.zeros_like(sigma)),
            "every step was visited, not every stride-th one": run(x, 1),
            "you begin at the wrong end, or one stop late; the first stop is the last entry, T - 1":
                run(x, stride, first=99 - stride),
            "the stops are counted up from 0; they are T - 1, T - 1 - stride, ..., so begin at the last entry":
                run(x, stride, first=99 // stride * stride),
            "the stops are counted up from 0, and the final one must return its x0; begin at T - 1":
                run(x, stride, first=99 // stride * stride, to_data=False),
            "at the final stop i - stride is negative and counts from the end of the table; return x0 there":
                run(x, stride, wrap=True),
        }
        compare(made, run(x, stride), mistakes, name="the samples", rtol=1e-3, atol=1e-4)


@exercise("a copy stands out because it is close to one picture and far from all others.")
def check_copied(copied):
    training = torch.randn(40, 3, 4, 4)
    samples = torch.randn(30, 3, 4, 4)
    samples[:9] = training[[5, 5, 6, 6, 7, 8, 9, 10, 11]] + 0.02 * torch.randn(9, 3, 4, 4)
    samples[9:15] = training[:6] + 0.45 * torch.randn(6, 3, 4, 4)  # near, but not near enough by the square
    distance = torch.cdist(samples.flatten(1), training.flatten(1))
    first, second = distance.topk(2, dim=1, largest=False).values.T
    other, way = distance.topk(2, dim=0, largest=False).values
    between = distance.mean(1)
    expected = (first < second / 3).float().mean()
    mistakes = {
        "this is the number of copies; divide it by the number of samples": expected * len(samples),
        "this is the share of samples that are no copies": 1 - expected,
        "these are squared distances; a third as far is a ninth of the square":
            (first**2 < second**2 / 3).float().mean(),
        "this compares with the mean distance; compare with the second nearest": (first < between / 3).float().mean(),
        "the factor of a third is missing: the nearest is always nearer than the second": 1.0,
        "the third is on the wrong side: nearest < second / 3": (first / 3 < second).float().mean(),
        "this divides by the number of training pictures; divide by the number of samples":
            expected * len(samples) / len(training),
        "this is the share of training pictures that were copied; look along the other axis, once for each sample":
            (other < way / 3).float().mean(),
    }
    compare(copied(samples, training), expected, mistakes, name="the share of copies")
