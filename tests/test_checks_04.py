"""The exercises of notebook 04: solutions pass, stubs fail, typical wrong answers are named."""


import torch

from minidiff.course.checks import notebook_04 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch}  # by the notebook to its solutions


def stub(*args):
    ...


def test_score_from_v(solved):
    prove(checks.check_score_from_v, solved["score_from_v"], stub, {
        "this is eps": lambda v, x, a, s: s * x + a * v,
        "with a minus": lambda v, x, a, s: (s * x + a * v) / s,
        "divide by sigma": lambda v, x, a, s: -(s * x + a * v),
        "taken for eps": lambda v, x, a, s: -v / s,
        "swapped": lambda v, x, a, s: -(a * x + s * v) / s,
        "taken for x0": lambda v, x, a, s: -(x - a * v) / s**2,
        "its alpha is missing": lambda v, x, a, s: (a * x - s * v - x) / s**2,
    })  # fmt: skip


def test_family_step(solved):
    def wrong(pull=lambda lam: (1 + lam**2) / 2, noise=lambda lam, g2, h: lam * (g2 * h) ** 0.5, drag=1.0, sign=-1.0):
        def family_step(x, score, t, h, z, schedule, lam):
            f, g2 = schedule.sde(t)
            return x + sign * (drag * f * x - pull(lam) * g2 * score) * h + noise(lam, g2, h) * z
        return family_step

    def too_late(x, score, t, h, z, schedule, lam):
        return solved["family_step"](x, score, t - h, h, z, schedule, lam)

    prove(checks.check_family_step, solved["family_step"], stub, {
        "sign of time": wrong(sign=1.0),
        "root of time": wrong(noise=lambda lam, g2, h: lam * g2**0.5 * h),
        "missing f x": wrong(drag=0.0),
        "that of the SDE": wrong(pull=lambda lam: 1.0),
        "that of the ODE": wrong(pull=lambda lam: 0.5),
        "not (1 + lambda) / 2": wrong(pull=lambda lam: (1 + lam) / 2),
        "factor 1/2": wrong(pull=lambda lam: 1 + lam**2),
        "needs its root": wrong(noise=lambda lam, g2, h: lam * g2 * h**0.5),
        "left lambda out": wrong(noise=lambda lam, g2, h: (g2 * h) ** 0.5),
        "not lambda^2 / 2": wrong(pull=lambda lam: lam**2 / 2),
        "not lambda^2 g;": wrong(noise=lambda lam, g2, h: lam**2 * (g2 * h) ** 0.5),
        "-z is as good": wrong(noise=lambda lam, g2, h: -lam * (g2 * h) ** 0.5),
        "not the weaker": wrong(pull=lambda lam: 1 - lam**2 / 2),
        "where you stand": too_late,
    })  # fmt: skip


def test_divergence(solved):
    def averaged(velocity, x, probes):
        return solved["divergence"](velocity, x, probes.mean(0, keepdim=True))

    def by_velocity(velocity, x, probes):
        x = x.detach().requires_grad_()
        u = velocity(x)
        rows = [torch.autograd.grad((u * z).sum(), x, retain_graph=True)[0] for z in probes]
        return torch.stack([(row * u).sum(1) for row in rows]).mean(0)

    def wrong(first=True, second=True, reduce=lambda parts: parts.sum(2).mean(0)):
        def divergence(velocity, x, probes):
            x = x.detach().requires_grad_()
            u = velocity(x)
            rows = [torch.autograd.grad((u * z if first else u).sum(), x, retain_graph=True)[0] for z in probes]
            return reduce(torch.stack([row * z if second else row for row, z in zip(rows, probes)]))
        return divergence

    prove(checks.check_divergence, solved["divergence"], stub, {
        "the probes are summed": wrong(reduce=lambda parts: parts.sum((0, 2))),
        "second z is missing": wrong(second=False),
        "first z is missing": wrong(first=False),
        "no z at all": wrong(first=False, second=False),
        "summed over the batch": wrong(reduce=lambda parts: parts.sum(2).mean(0).sum()),
        "mean over the probes": wrong(reduce=lambda parts: parts.sum(2)),
        "not the probes themselves": averaged,
        "must be z again": by_velocity,
    })  # fmt: skip
