"""The exercises of notebook 09: solutions pass, stubs fail, typical wrong answers are named."""

import math

import torch

from minidiff.course.checks import notebook_09 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch, "math": math}  # by the notebook to its solutions


def stub(*args):
    ...


def test_steps_to_forget(solved):
    prove(checks.check_steps_to_forget, solved["steps_to_forget"], stub, {
        "rounded down": lambda d, share: int(math.log(share) / math.log(d)),
        "whole number": lambda d, share: math.log(share) / math.log(d),
        "over which the average extends": lambda d, share: round(1 / (1 - d)),
        "half-life": lambda d, share: math.ceil(math.log(0.5) / math.log(d)),
        "upside down": lambda d, share: math.log(d) / math.log(share),
        "not what must be forgotten": lambda d, share: math.ceil(math.log(1 - share) / math.log(d)),
        "close to decay - 1": lambda d, share: math.ceil(-math.log(share) / (1 - d)),
        "not evenly": lambda d, share: math.ceil((1 - share) / (1 - d)),
    })  # fmt: skip


def test_min_snr_for_flow(solved):
    def wrong(weight, gamma_is=None):
        return lambda a, s, gamma: weight((a / s) ** 2, ((a / s) ** 2).clamp(max=gamma_is or gamma))

    prove(checks.check_min_snr_for_flow, solved["min_snr_for_flow"], stub, {
        "for a loss of x0": wrong(lambda snr, capped: capped),
        "for a loss of eps": wrong(lambda snr, capped: capped / snr),
        "variance-preserving": wrong(lambda snr, capped: capped / (snr + 1)),
        "must be squared": wrong(lambda snr, capped: capped / (snr.sqrt() + 1)),
        "do not multiply": wrong(lambda snr, capped: capped * (snr.sqrt() + 1) ** 2),
        "before the rate of exchange": lambda a, s, gamma: ((a / s) / (a / s + 1)).square().clamp(max=gamma),
        "opposite signs": wrong(lambda snr, capped: capped / (snr.sqrt() - 1) ** 2),
        "whatever it is": wrong(lambda snr, capped: capped / (snr.sqrt() + 1) ** 2, gamma_is=5.0),
    })  # fmt: skip


def test_what_it_predicts(solved):
    def wrong(t=0.5, sign=-1, choose=min, noisy=True, same=True):
        def what_it_predicts(network, schedule, x0):
            (alpha, sigma), eps = schedule(t), torch.randn_like(x0)
            out = network(alpha * x0 + sigma * eps if noisy else x0, t)
            eps = eps if same else torch.randn_like(x0)
            targets = {"eps": eps, "x0": x0, "v": alpha * eps + sign * sigma * x0}
            return choose(targets, key=lambda kind: (out - targets[kind]).square().mean().item())
        return what_it_predicts

    prove(checks.check_what_it_predicts, solved["what_it_predicts"], stub, {
        "one of the words": lambda network, schedule, x0: 0,
        "never calls": lambda network, schedule, x0: "v",
        "of all three": lambda network, schedule, x0: "v" if network(x0, 0.5) is not None else None,
        "so little noise": wrong(t=0.02),
        "so much noise": wrong(t=0.99),
        "the very eps": wrong(same=False),
        "largest difference": wrong(choose=max),
        "alpha eps - sigma x0": wrong(sign=1),
    })  # fmt: skip
