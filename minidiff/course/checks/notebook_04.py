"""Checks of notebook 04: a change of language, the family between ODE and SDE, and Hutchinson's trace."""

import torch

from minidiff import schedules
from minidiff.course.exercises import compare, exercise


@exercise("through eps, in one line; the same network now speaks the language of Langevin and the SDE.")
def check_score_from_v(score_from_v):
    for alpha, sigma in ((0.8, 0.6), (0.28, 0.96)):
        x0, eps = torch.randn(20, 2), torch.randn(20, 2)
        x, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
        mistakes = {
            "this is eps; the score is -eps / sigma": eps,
            "the score points away from the noise: -eps / sigma, with a minus": eps / sigma,
            "divide by sigma: the score is -eps / sigma": -eps,
            "eps is divided by sigma once, not twice": -eps / sigma**2,
            "this is x0, not the score": x0,
            "this is x0 / sigma with a minus; take eps = sigma x_t + alpha v": -x0 / sigma,
            "v was taken for eps; on a VP schedule eps = sigma x_t + alpha v": -v / sigma,
            "the part of x_t is missing: eps = sigma x_t + alpha v": -alpha * v / sigma,
            "alpha and sigma are swapped: eps = sigma x_t + alpha v": -(alpha * x + sigma * v) / sigma,
            "a minus for a plus: eps = sigma x_t + alpha v": -(sigma * x - alpha * v) / sigma,
            "the noise is divided by alpha; it must be sigma": -eps / alpha,
            "v was taken for x0; on a VP schedule x0 = alpha x_t - sigma v": -(x - alpha * v) / sigma**2,
            "from x0 the score is (alpha x0 - x_t) / sigma^2; its alpha is missing": (x0 - x) / sigma**2,
        }
        compare(score_from_v(v, x, alpha, sigma), -eps / sigma, mistakes, name="the score")


@exercise("the pull is (1 + lambda^2) / 2: one half carries the crowd, the rest makes up for the noise you add.")
def check_family_step(family_step):
    for name, schedule, t in (("VP", schedules.linear(None), 0.4), ("VE", schedules.variance_exploding(), 0.5)):
        f, g2 = schedule.sde(t)
        for lam in (0.6, 1.0, 0.0):  # the first keeps all mistakes apart
            x, score, z, h = torch.randn(20, 2), torch.randn(20, 2), torch.randn(20, 2), 0.02
            half, later = (1 + lam**2) / 2, schedule.sde(t - h)

            def step(pull=half, kick=lam * (g2 * h) ** 0.5, drag=f, sign=-1.0, squared=g2, h=h, x=x, score=score, z=z):
                return x + sign * (drag * x - pull * squared * score) * h + kick * z

            g, where = g2**0.5, f"at lambda = {lam:g} on {name}, "
            mistakes = {
                where + "the sign of time is wrong: you go down by h, so subtract the drift times h": step(sign=1.0),
                where + "noise grows with the root of time: lambda g sqrt(h), not lambda g h": step(kick=lam * g * h),
                where + "h is missing in the noise: lambda g sqrt(h) z": step(kick=lam * g),
                where + "the noise must be lambda g; you left lambda out": step(kick=g * h**0.5),
                where + "schedule.sde gives g^2; the noise needs its root g": step(kick=lam * g2 * h**0.5),
                where + "the drift is missing f x": step(drag=0.0),
                where + "f x has the wrong sign": step(drag=-f),
                where + "the score has the wrong sign: the way back climbs, so the drift is f x MINUS ...":
                    step(pull=-half),
                where + "the pull of the score is that of the SDE; with less noise less is needed": step(pull=1.0),
                where + "the pull of the score is that of the ODE; the noise you add needs more": step(pull=0.5),
                where + "the pull must be 1/2 without noise, so it is not lambda": step(pull=lam),
                where + "the pull must be 1/2 without noise, so it is not lambda^2": step(pull=lam**2),
                where + "the pull must be 1/2 without noise, so it is not lambda^2 / 2": step(pull=lam**2 / 2),
                where + "variances count, so it is lambda^2: the pull is (1 + lambda^2) / 2, not (1 + lambda) / 2":
                    step(pull=(1 + lam) / 2),
                where + "the factor 1/2 is missing: the pull is (1 + lambda^2) / 2": step(pull=1 + lam**2),
                where + "the score is multiplied by g; it must be g^2, which is what schedule.sde gives":
                    step(squared=g),
                where + "the score is multiplied by g^4; schedule.sde gives g^2 already": step(squared=g2**2),
                where + "you added no noise: lambda g sqrt(h) z": step(kick=0.0),
                where + "the noise is lambda g, not lambda^2 g; only its variance goes with lambda^2":
                    step(kick=lam**2 * (g2 * h) ** 0.5),
                where + "-z is as good as z for sampling, but here add the noise": step(kick=-lam * (g2 * h) ** 0.5),
                where + "the more noise you add the stronger the pull, not the weaker: (1 + lambda^2) / 2":
                    step(pull=1 - lam**2 / 2),
                where + "f and g belong to the time t where you stand, not to t - h":
                    step(drag=later[0], squared=later[1], kick=lam * (later[1] * h) ** 0.5),
            }
            made = family_step(x, score, t, h, z, schedule, lam)
            compare(made, step(), mistakes, name="x at t - h", rtol=1e-4, atol=1e-5)


@exercise("one backward pass a probe, whatever the dimension: that makes likelihoods of pictures affordable.")
def check_divergence(divergence):
    mix = torch.tensor([[1.0, 0.8, -0.3], [0.2, -0.5, 0.7], [-0.9, 0.4, 1.5]])

    def velocity(x):
        return torch.tanh(x @ mix) + 0.3 * x**2

    x = torch.randn(6, 3)
    probes = torch.randn(4, 6, 3).sign()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda p: velocity(p[None])[0]))(x)  # (B, D, D)
    estimates = torch.einsum("kbi,bij,kbj->kb", probes, jacobian, probes)
    exact = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    mistakes = {
        "the probes are summed; take their mean": estimates.sum(0),
        "you used only the first probe; take the mean over all of them": estimates[0],
        "this is the exact trace; the exercise wants the estimate by the given probes": exact,
        "the second z is missing: multiply the gradient by z before you sum over D":
            torch.einsum("kbi,bij->kbj", probes, jacobian).sum(2).mean(0),
        "the first z is missing: take the gradient of (z * u).sum(), not of u.sum()":
            torch.einsum("bij,kbj->kb", jacobian, probes).mean(0),
        "no z at all: this is the sum of all entries of J": jacobian.sum((1, 2)),
        "sum over the coordinates of each point; you took their mean": estimates.mean(0) / 3,
        "return one number for each point; you summed over the batch": estimates.mean(0).sum(),
        "return one number for each point; you averaged over the batch": estimates.mean(),
        "one number for each point is wanted, the mean over the probes": estimates,
        "average z . Jz over the probes, not the probes themselves":
            torch.einsum("bi,bij,bj->b", probes.mean(0), jacobian, probes.mean(0)),
        "the second factor is u; it must be z again":
            torch.einsum("kbi,bij,bj->kb", probes, jacobian, velocity(x)).mean(0),
        "sum over the coordinates: z . Jz is one number a point":
            (torch.einsum("kbi,bij->kbj", probes, jacobian) * probes).mean(0),
    }
    compare(divergence(velocity, x, probes), estimates.mean(0), mistakes, name="the divergence")
