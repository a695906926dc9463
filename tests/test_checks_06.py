"""The exercises of notebook 06: solutions pass, stubs fail, typical wrong answers are named."""


import torch

from minidiff.course.checks import notebook_06 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args):
    ...


def test_shifted_grid(solved):
    right = solved["shifted_grid"]
    prove(checks.check_shifted_grid, right, stub, {
        "shift is missing": lambda steps, k: torch.linspace(1, 0, steps + 1),
        "from 0 up to 1": lambda steps, k: right(steps, k).flip(0),
        "wrong way round, as 1 / k": lambda steps, k: right(steps, 1 / k),
        "alpha = 1 - sigma": lambda steps, k: 1 - right(steps, k),
        "numerator lacks its k": lambda steps, k: right(steps, k) / k,
        "last level is missing": lambda steps, k: right(steps, k)[:-1],
        "needs steps + 1": lambda steps, k: right(steps - 1, k),
    })  # fmt: skip


def test_a_grid_may_be_a_list(solved):
    assert checks.check_shifted_grid(lambda steps, k: solved["shifted_grid"](steps, k).tolist())


def test_sit_loss(solved):
    def wrong(sign=1, mix=lambda tau: tau, fed=lambda tau: tau, reduce=lambda e: e.square().mean()):
        def sit_loss(network, x0, eps, tau):
            w = mix(tau)[:, None]
            return reduce(network(w * x0 + (1 - w) * eps, fed(tau)) - sign * (x0 - eps))
        return sit_loss

    def turned(tau):
        return 1 - tau

    prove(checks.check_sit_loss, solved["sit_loss"], stub, {
        "sign of the velocity": wrong(sign=-1),
        "at tau = 1 it must be x0": wrong(mix=turned),
        "everything is as in this course": wrong(sign=-1, mix=turned),
        "not 1 - tau": wrong(fed=turned),
        "this is the loss of this course": wrong(sign=-1, mix=turned, fed=turned),
        "only the target is SiT's": wrong(mix=turned, fed=turned),
        "add the two coordinates": wrong(reduce=lambda e: e.square().sum(1).mean()),
        "999 tau": wrong(fed=lambda tau: 999 * tau),
        "not their sum": wrong(reduce=lambda e: e.square().sum()),
        "not one loss for each sample": wrong(reduce=lambda e: e.square().mean(1)),
    })  # fmt: skip


def test_untangle(solved):
    def wrong(judge, power=2, swap_eps=False):
        def untangle(x0, eps, i, j):
            def length(a, b):
                return (a - b).norm(dim=1) ** power
            now, then = length(x0[i], eps[i]) + length(x0[j], eps[j]), length(x0[j], eps[i]) + length(x0[i], eps[j])
            where, old = judge(now, then), eps if swap_eps else x0
            new = old.clone()
            new[i[where]], new[j[where]] = old[j[where]], old[i[where]]
            return new
        return untangle

    def overwriting(x0, eps, i, j):
        new, right = x0.clone(), solved["untangle"](x0, eps, i, j)
        moved = (right[i] != x0[i]).any(1)
        new[i[moved]] = new[j[moved]]
        new[j[moved]] = new[i[moved]]
        return new

    def one_pair(x0, eps, i, j):
        better = (x0[j] - eps[i]).norm(dim=1) < (x0[i] - eps[i]).norm(dim=1)
        new = x0.clone()
        new[i[better]], new[j[better]] = x0[j[better]], x0[i[better]]
        return new

    def shorter(now, then):
        return then < now

    prove(checks.check_untangle, solved["untangle"], stub, {
        "LONGER": wrong(lambda now, then: then > now),
        "every couple": wrong(lambda now, then: now > 0),
        "nothing was exchanged": wrong(lambda now, then: now < 0),
        "pair is swapped": wrong(shorter, swap_eps=True),
        "SQUARED": wrong(shorter, power=1),
        "one pair of the couple alone": one_pair,
        "overwritten": overwriting,
        "x0 alone": lambda x0, eps, i, j: (x0, eps),
    })  # fmt: skip
