"""Checks of notebook 06: a shifted grid, a loss whose time runs the other way, and pairs that cross less."""

import torch

from minidiff import schedules
from minidiff.course.exercises import Wrong, compare, exercise


@exercise("the ends stay where they are, and everything between moves towards noise.")
def check_shifted_grid(shifted_grid):
    for steps, k in ((4, 3.0), (10, 3.0), (7, 1.0), (5, 0.5), (1, 3.0)):
        even = torch.linspace(1, 0, steps + 1)

        def shifted(t, k):
            return k * t / (1 + (k - 1) * t)

        sigma = schedules.flow(shift=k)(even)[1]
        mistakes = {
            "the levels are even; the shift is missing": even,
            "the numerator lacks its k: sigma = k t / (1 + (k - 1) t)": even / (1 + (k - 1) * even),
            "the levels run from 0 up to 1; a sampler begins at noise, so they must fall from 1": sigma.flip(0),
            "these are the levels of SMALLER noise: the shift was applied the wrong way round, as 1 / k":
                shifted(even, 1 / k),
            "these are the alpha = 1 - sigma, or a shift by 1 / k that runs up; return sigma, falling from 1 to 0":
                1 - sigma,
            "the last level is missing: steps + 1 levels, the last 0": sigma[:-1],
            "there are `steps` levels; a walk of `steps` steps needs steps + 1":
                shifted(torch.linspace(1, 0, steps), k),
            "k t is not divided; sigma = k t / (1 + (k - 1) t)": k * even,
        }
        compare(shifted_grid(steps, k), sigma, mistakes, name=f"the grid for {steps} steps and k = {k:g}")


@exercise("time and sign turn together: with tau from noise to data the velocity is x0 - eps.")
def check_sit_loss(sit_loss):
    fed = []

    def network(x, tau):
        fed.append(x)
        return 0.3 * x + 0.2 * torch.as_tensor(tau).reshape(-1, 1) * x + 0.1

    def error(target, tau_in, weight, square=torch.square):
        x = weight[:, None] * x0 + (1 - weight)[:, None] * eps
        return square(0.3 * x + 0.2 * tau_in[:, None] * x + 0.1 - target).mean()

    for size in (16, 5):
        x0, eps, tau = torch.randn(size, 2) + 1, torch.randn(size, 2), torch.rand(size)
        x = tau[:, None] * x0 + (1 - tau)[:, None] * eps
        velocity = x0 - eps
        mistakes = {
            "the sign of the velocity is that of this course; from noise to data it is x0 - eps":
                error(-velocity, tau, tau),
            "x is mixed for a time from data to noise: at tau = 1 it must be x0": error(velocity, tau, 1 - tau),
            "everything is as in this course, from data to noise; in SiT tau = 1 is data, so x = x0 there, and the "
            "target is x0 - eps": error(-velocity, tau, 1 - tau),
            "this is the loss of this course, in another letter; in SiT tau = 1 is data, and the target is x0 - eps":
                error(-velocity, 1 - tau, 1 - tau),
            "x is mixed and the network fed for a time from data to noise; only the target is SiT's":
                error(velocity, 1 - tau, 1 - tau),
            "the network must be fed tau as it is, not 1 - tau": error(velocity, 1 - tau, tau),
            "this feeds 1 - tau and aims at eps - x0; SiT has neither": error(-velocity, 1 - tau, tau),
            "the network is fed 999 tau; SiT takes tau as it is": error(velocity, 999 * tau, tau),
            "the target is x0; it must be the velocity": error(x0, tau, tau),
            "the target is eps; it must be the velocity": error(eps, tau, tau),
            "the square is missing; this is the mean absolute error": error(velocity, tau, tau, torch.abs),
            "take the mean of the squares, not their sum": error(velocity, tau, tau) * 2 * size,
            "you add the two coordinates; take the mean over them, too": error(velocity, tau, tau) * 2,
            "return one number, the mean over the batch, not one loss for each sample":
                (network(x, tau) - velocity).square().mean(1),
            "return one number, the mean of the squares": (network(x, tau) - velocity).square(),
        }
        compare(sit_loss(network, x0, eps, tau), error(velocity, tau, tau), mistakes, name="the loss")
    if not fed:
        raise Wrong("The network is never called.")


@exercise("exchanges of two never bring back what they gain, so the lines get shorter and shorter.")
def check_untangle(untangle):
    x0, eps = torch.randn(40, 2), torch.randn(40, 2)
    i, j = torch.randperm(40)[:32].view(2, -1)  # some points take part in nothing

    def exchange(x, where):
        new = x.clone()
        new[i[where]], new[j[where]] = x[j[where]], x[i[where]]
        return new

    def lengths(first, second, power=2):
        return (first - second).norm(dim=1) ** power

    gain = lengths(x0[i], eps[i]) + lengths(x0[j], eps[j]) - lengths(x0[j], eps[i]) - lengths(x0[i], eps[j])
    better = gain > 0
    plain = (lengths(x0[i], eps[i], 1) + lengths(x0[j], eps[j], 1)
             - lengths(x0[j], eps[i], 1) - lengths(x0[i], eps[j], 1)) > 0
    one = lengths(x0[i], eps[i]) > lengths(x0[j], eps[i])
    twice = exchange(x0, better)
    lost = x0.clone()
    lost[i[better]] = x0[j[better]]
    mistakes = {
        "nothing was exchanged": x0,
        "you exchange where it makes the lines LONGER; compare the other way": exchange(x0, ~better),
        "you exchange every couple; do it only where the sum gets smaller": exchange(x0, torch.ones_like(better)),
        "you exchanged the noise: the pair is swapped. Return a new x0, with eps as it was": exchange(eps, better),
        "one of each couple is overwritten before it is copied, so one data point occurs twice and one is lost": lost,
        "you look at one pair of the couple alone; compare the sum of both": exchange(x0, one),
        "compare the sums of SQUARED lengths": exchange(x0, plain),
        "you return the points of the couples alone; return all N": twice[i],
        "return the new x0 alone, not the pairs": torch.stack([twice, eps]),
    }
    mine = untangle(x0, eps, i, j)
    if isinstance(mine, (tuple, list)) and len(mine) == 2:
        raise Wrong("Not quite: return the new x0 alone; eps stays as it is.")
    compare(mine, twice, mistakes, name="the new x0")
