"""Samplers that solve the probability-flow ODE in t: Euler, Heun and the midpoint rule, on any schedule.

dx/dt = alpha'(t) x0 + sigma'(t) eps carries noise to data without any randomness (Song et al. 2021, eq. 13). On the
schedule `flow` the right side is the velocity eps - x0: Euler and Heun there are flow matching's solvers.

The steps are in t. DDIM is Euler in sigma / alpha, the same as Euler in t on `edm` and on `flow` without a shift only:
SD3's Euler on shifted times is DDIM on `flow(shift=3)`. On variance-preserving schedules sigma grows as sqrt(t), and
Euler's step to 0 leaves half of the last noise in the picture: end at a small t_end, or put the last times close to 0.
The rates of a table are those of its own steps: where its last beta is clipped, as in `cosine(1000)`, they say little
about a long step from t = 1. Few steps want DDIM or a DPM-Solver there, or the schedule in closed form.
"""

import math

import torch

from minidiff.prediction import combine
from minidiff.samplers.ancestral import Step


def drift(schedule, t, s):
    """(p, q) with dx/dt = p x + q x0 at time t > 0, written without eps, so that alpha(t) may be 0.

    A table whose last beta is 1 has no rates at its end: there the slope of the straight way to time s is taken.
    """
    (alpha, sigma), (alpha_rate, sigma_rate) = schedule(t), schedule.rates(t)
    if not (math.isfinite(alpha_rate) and math.isfinite(sigma_rate)):
        alpha_s, sigma_s = schedule(s)
        alpha_rate, sigma_rate = (alpha_s - alpha) / (s - t), (sigma_s - sigma) / (s - t)
    return sigma_rate / sigma, alpha_rate - alpha * sigma_rate / sigma


def check_dt(dt):
    """Raise ValueError unless dt is None or the length of a step."""
    if dt is not None and not 0 < dt < math.inf:
        raise ValueError(f"dt is the length of a step, above 0, got {dt}; 1 / N for N steps, None for the times' own")


@torch.no_grad()
def euler(denoise, schedule, x_T, times, noise=None, *, dt=None):
    """x' = x + h (alpha' x0 + sigma' eps), h = s - t: first order, one evaluation a step, no noise.

    dt: the length of all steps instead of the distance of the times, as score_sde has it: 1 / N on N times from 1 to
    1e-3. On `flow` this is Euler's method of rectified flow (Liu et al. 2022, eq. 1).
    """
    check_dt(dt)
    x = x_T
    for t, s in zip(times, times[1:]):
        h = s - t if dt is None else -dt
        x0 = denoise(x, t).x0
        p, q = drift(schedule, t, s)
        x = combine(1 + h * p, x, h * q, x0)
        yield Step(x, s, x0)


def heun(denoise, schedule, x_T, times, noise=None):
    """Heun's method: the mean of the slopes at both ends of a step; second order, two evaluations a step, no noise.

    Karras et al. 2022, algorithm 1. The step to t = 0 is Euler's: 2 N - 1 evaluations for N steps.
    """
    return _second_order(denoise, schedule, x_T, times, 1.0)


def midpoint(denoise, schedule, x_T, times, noise=None):
    """The midpoint rule: the slope half-way through a step; second order, two evaluations a step, no noise.

    Karras et al. 2022, algorithm 3 with alpha = 1/2. The step to t = 0 is Euler's: 2 N - 1 evaluations for N steps.
    """
    return _second_order(denoise, schedule, x_T, times, 0.5)


@torch.no_grad()
def _second_order(denoise, schedule, x_T, times, part):
    """x' = x + h ((1 - 1/(2 a)) d + 1/(2 a) d'), d' the slope at x + a h d (Karras et al. 2022, algorithm 3).

    a = `part` is the share of the step after which the second slope is taken. As a h d is the way from x to that
    place, d itself need not be formed.
    """
    x, weight = x_T, 1 / (2 * part)
    for t, s in zip(times, times[1:]):
        h = s - t
        x0 = denoise(x, t).x0
        p, q = drift(schedule, t, s)
        if s == 0:
            x = combine(1 + h * p, x, h * q, x0)
        else:
            between = t + part * h
            there = combine(1 + part * h * p, x, part * h * q, x0)
            x0 = denoise(there, between).x0
            p, q = drift(schedule, between, s)
            kept = (1 - weight) / part  # the share of the way to `there` that stays, besides the second slope
            x = torch.add((kept + weight * h * p) * there, x, alpha=1 - kept)
            x = torch.add(x, x0, alpha=weight * h * q)
        yield Step(x, s, x0)
