"""The exercises of notebook 19: solutions pass, stubs fail, typical wrong answers are named."""

import math

import torch

from minidiff.course.checks import notebook_19 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args, **options):
    ...


def moved(inner):
    """A thresholding of [-1, 1] for any range."""

    def whole(x0, low, high, p=0.995):
        middle, half = (low + high) / 2, (high - low) / 2
        return middle + half * inner((x0 - middle) / half, p)

    return whole


def quantile(x, p):
    return torch.quantile(x.abs().flatten(1), p, dim=1).view(-1, 1, 1, 1)


def around_zero(x0, low, high, p=0.995):
    s = quantile(x0, p).clamp(min=1)
    return x0.clamp(-s, s) / s


def not_back(x0, low, high, p=0.995):
    return around_zero((x0 - (low + high) / 2) / ((high - low) / 2), low, high, p)


def test_threshold_in(solved):
    def stretched(x, p):
        return x.clamp(-quantile(x, p), quantile(x, p)) / quantile(x, p)

    def of_all(x, p):
        s = torch.quantile(x.abs(), p).clamp(min=1)
        return x.clamp(-s, s) / s

    def largest(x, p):
        return x / quantile(x, 1.0).clamp(min=1)

    def undivided(x, p):
        return x.clamp(-quantile(x, p).clamp(min=1), quantile(x, p).clamp(min=1))

    prove(checks.check_threshold_in, solved["threshold_in"], stub, {
        "stretched to fill": moved(stretched), "whole batch": moved(of_all), "one pixel decides": moved(largest),
        "forget to divide": moved(undivided), "static": moved(lambda x, p: x.clamp(-1, 1)),
        "measured from 0": around_zero, "not back": not_back,
        "p is not used": moved(lambda x, p: around_zero(x, -1, 1)),
    })  # fmt: skip


def test_blame(solved):
    right = solved["blame"]

    def shares(*parts):
        return tuple(part.float().mean().item() for part in parts)

    prove(checks.check_blame, right, stub, {
        "exchanged": lambda small, large: (right(small, large)[0], *right(small, large)[:0:-1]),
        "a number of pictures": lambda small, large: tuple(len(small) * share for share in right(small, large)),
        "not of those": lambda small, large: (
            right(small, large)[0] / (~small).float().mean().item(), *right(small, large)[1:]),
        "every wrong large": lambda small, large: (shares(~large)[0], *right(small, large)[1:]),
        "every wrong small": lambda small, large: (shares(~small)[0], *right(small, large)[1:]),
        "expected 3": lambda small, large: right(small, large)[0],
    })  # fmt: skip


def test_rescaled(solved):
    prove(checks.check_rescaled, solved["rescaled"], stub, {
        "both grow": lambda w, a, f, width, side: (w * width, a, f),
        "same weights at any side": lambda w, a, f, width, side: (
            w * (width * side) ** 2, a * width * side**2, f * (width * side) ** 2),
        "the side counts twice": lambda w, a, f, width, side: (w * width**2, a * width * side, f * width**2 * side**2),
        "the width counts once": lambda w, a, f, width, side: (w * width**2, a * (width * side) ** 2, f),
        "maps get wider": lambda w, a, f, width, side: (w * width**2, a * side**2, f),
        "every row": lambda w, a, f, width, side: (w * width**2, a * width * side**2, f * width**2 * side),
        "square of the width": lambda w, a, f, width, side: (w * width**2, a * width * side**2, f * width * side**2),
        "side^2 times": lambda w, a, f, width, side: (w * width**2, a * width * side**2, f * width**2),
    })  # fmt: skip


def test_gpus_for(solved):
    right = solved["gpus_for"]

    def changed(**options):
        def wrong(days, steps, batch, forward, peak, utilisation, checkpointing):
            forward, utilisation = forward * options.get("work", 1), options.get("used", utilisation)
            checkpointing = options.get("again", checkpointing)
            return right(days, steps, batch, forward, peak, utilisation, checkpointing)

        return wrong

    def uneven(days, steps, batch, forward, peak, utilisation, checkpointing):
        return math.ceil(steps * batch * forward * (4 if checkpointing else 3) / (days * 86_400 * peak * utilisation))

    def upside_down(days, steps, batch, forward, peak, utilisation, checkpointing):
        return right(days, steps, batch, forward, peak / utilisation**2, utilisation, checkpointing)

    def at_most(*given):
        return right(*given) or given[2]

    prove(checks.check_gpus_for, right, stub, {
        "three forward passes": changed(work=1 / 3), "four passes": changed(again=False),
        "without checkpointing": changed(again=True), "reaches its peak": changed(used=1.0),
        "slows the GPUs": upside_down, "does not divide": uneven, "for each picture": at_most,
    })  # fmt: skip
