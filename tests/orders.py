"""How fast every sampler converges, on data whose score is known exactly; for the tests and `make verify`.

Deterministic samplers: the distance to the solution of the probability-flow ODE on a mixture in the plane, point by
point. Stochastic ones have no point to reach: the distance of the distributions on the same mixture, and the order of
the variance that they give a Gaussian, which can be had without Monte Carlo.
"""

import functools
import math
from typing import NamedTuple

import torch

from minidiff import samplers, schedules
from minidiff.datasets import two_d
from minidiff.prediction import Prediction
from minidiff.spacings import spacing

VARIANCE = 0.3  # of the Gaussian
SCHEDULE = schedules.linear(None)
T_END = 1e-2  # where the solutions are compared: log-SNR is finite there
BUDGETS = (8, 16, 32, 64)  # evaluations of the denoiser
FINE = (254, 512)  # between which the order is measured; even, and 2 more than a multiple of 3: see fast_split
SLACK = 0.2  # a measured order may stay so much below the theory's


class Case(NamedTuple):
    """A sampler as it is measured. With a `cost` of 2, N evaluations are N / 2 steps."""

    sampler: str
    order: int | None  # by theory; None where the variance of a Gaussian cannot be computed
    cost: int = 1
    options: dict = {}  # never changed


# The theory of the samplers as they stand: 3m without `taylor` has half of the second derivative it should have, and
# UniPC takes its last step with order 1, as published, whose error is of order 2.
DETERMINISTIC = {
    "ddim": Case("ddim", 1),
    "euler": Case("euler", 1),
    "midpoint": Case("midpoint", 2, 2),
    "heun": Case("heun", 2, 2),
    "churn, none": Case("churn", 2, 2),
    "dpm_2s": Case("dpm_2s", 2),
    "dpm_3s": Case("dpm_3s", 3),
    "dpm_2m": Case("dpm_2m", 2),
    "dpm_3m": Case("dpm_3m", 2),
    "dpm_3m, taylor": Case("dpm_3m", 3, options={"taylor": True}),
    "dpmpp_2s": Case("dpmpp_2s", 2),
    "dpmpp_3s": Case("dpmpp_3s", 3),
    "dpmpp_2m": Case("dpmpp_2m", 2),
    "dpmpp_3m": Case("dpmpp_3m", 2),
    "dpmpp_3m, taylor": Case("dpmpp_3m", 3, options={"taylor": True}),
    "unipc": Case("unipc", 2),
    "unipc, order 3": Case("unipc", 2, options={"order": 3}),
}
STOCHASTIC = {
    "ddim, eta 1": Case("ddim", 1, options={"eta": 1.0}),
    "ddpm, small": Case("ddpm", 1, options={"variance": "small"}),
    "ddpm, large": Case("ddpm", 1, options={"variance": "large"}),
    "euler_maruyama": Case("euler_maruyama", 1),
    "reverse_diffusion": Case("reverse_diffusion", 1),
    "dpmpp_2m_sde": Case("dpmpp_2m_sde", 2),
    "churn": Case("churn", 2, 2, {"churn": 10.0}),
    "predictor_corrector": Case("predictor_corrector", None, 2, {"norms": "batch"}),
}
CASES = DETERMINISTIC | STOCHASTIC


def run(case, denoise, x_T, evaluations, noise=None):
    """The result x of a sampler that evaluates the denoiser so often, on the way from 1 to T_END in even log-SNR."""
    times = spacing(SCHEDULE, evaluations // case.cost, "log_snr", t_end=T_END)
    denoise = samplers.counted(denoise)
    for step in samplers.SAMPLERS[case.sampler](denoise, SCHEDULE, x_T, times, noise, **case.options):
        x = step.x
    assert denoise.evaluations == evaluations, (case, denoise.evaluations)
    return x


# --- deterministic: the distance to the exact solution ---------------------------------------------------------------


@functools.cache
def mixture():
    return two_d("mixture", 1).mixture.oracle


@functools.cache
def starts(num=64):
    return torch.randn(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@functools.cache
def solution(steps=1000):
    """The probability-flow ODE from `starts` to T_END, by the classical Runge-Kutta method in lambda = log-SNR / 2.

    d(x / sigma) / d lambda = e^lambda x0, not the form that any of the samplers has.
    """
    first, last = (SCHEDULE.log_snr(t) / 2 for t in (1.0, T_END))
    h = (last - first) / steps

    def slope(scaled, lam):
        t = SCHEDULE.inverse(2 * lam)
        return math.exp(lam) * mixture().denoise(SCHEDULE(t)[1] * scaled, t, SCHEDULE).x0

    scaled = starts() / SCHEDULE(1.0)[1]
    for n in range(steps):
        lam = first + n * h
        a = slope(scaled, lam)
        b = slope(scaled + h / 2 * a, lam + h / 2)
        c = slope(scaled + h / 2 * b, lam + h / 2)
        d = slope(scaled + h * c, lam + h)
        scaled = scaled + h / 6 * (a + 2 * b + 2 * c + d)
    return SCHEDULE(T_END)[1] * scaled


def error(name, evaluations):
    """The median distance of a deterministic sampler's points to the exact ones.

    Not the mean: a point that starts on the watershed between two components ends in the wrong one for a long time,
    and its distance alone would be measured.
    """
    x = run(CASES[name], mixture().denoiser(SCHEDULE), starts(), evaluations, torch.zeros_like)
    return (x - solution()).norm(dim=1).median().item()


# --- stochastic: the variance of a Gaussian, exactly -----------------------------------------------------------------


def gaussian_denoiser(schedule):
    """E[x0 | x_t] of data N(0, VARIANCE), of any shape: linear in x_t."""

    def denoise(x, t):
        alpha, sigma = schedule(t)
        return Prediction("x0", x, alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x, alpha, sigma)

    return denoise


def variance_error(name, evaluations):
    """How far the variance of the sampler's result is off, without Monte Carlo: all is linear in x_T and the noises.

    Picture k of the batch has a one for source of randomness k (x_T, z_1, z_2, ...) and zeros for all others; the
    squares of the results add up to the variance.
    """
    (alpha_T, sigma_T), (alpha, sigma) = SCHEDULE(1.0), SCHEDULE(T_END)
    ones = iter(torch.eye(evaluations // CASES[name].cost + 1, dtype=torch.float64)[:, :, None])
    x_T = math.sqrt(alpha_T**2 * VARIANCE + sigma_T**2) * next(ones)  # the variance that the data have at t = 1
    x = run(CASES[name], gaussian_denoiser(SCHEDULE), x_T, evaluations, lambda x: next(ones))
    return abs(x.square().sum().item() - (alpha**2 * VARIANCE + sigma**2))


def measured_order(name, coarse=FINE[0], fine=FINE[1]):
    """The power of the number of evaluations with which a sampler's error falls; None if there is no exact error."""
    if CASES[name].order is None:
        return None
    measure = error if name in DETERMINISTIC else variance_error
    return math.log(measure(name, coarse) / measure(name, fine)) / math.log(fine / coarse)


# --- stochastic: the distance of the distributions -------------------------------------------------------------------


@functools.cache
def exact_samples(seed, num=20_000):
    """Points of the mixture at T_END."""
    generator = torch.Generator().manual_seed(seed)
    (alpha, sigma), x0 = SCHEDULE(T_END), mixture().sample(num, generator)
    return alpha * x0 + sigma * torch.randn(x0.shape, dtype=torch.float64, generator=generator)


def sliced_wasserstein(a, b, directions=32):
    """The Wasserstein-2 distance of two equally large sets of points in the plane, averaged over directions."""
    angles = math.pi * torch.arange(directions, dtype=torch.float64) / directions
    along = torch.stack([angles.cos(), angles.sin()])
    gaps = (a @ along).sort(0).values - (b @ along).sort(0).values
    return gaps.square().mean().sqrt().item()


def noise_floor():
    """The distance of two exact sets: no sampler can be told from exact below it."""
    return sliced_wasserstein(exact_samples(0), exact_samples(1))


def distance(name, evaluations):
    """The distance of a stochastic sampler's points to exact ones."""
    generator = torch.Generator().manual_seed(2)

    def noise(x):
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    x_T = noise(exact_samples(0))
    return sliced_wasserstein(run(CASES[name], mixture().denoiser(SCHEDULE), x_T, evaluations, noise), exact_samples(0))


# --- all of it -------------------------------------------------------------------------------------------------------


def rows(names=None):
    """(name, errors at BUDGETS, measured order, order by theory, ok) of each sampler, or of the `names`.

    ok: the order is at least the theory's less SLACK; for a stochastic sampler, its distribution also comes nearer with
    every budget, down to twice the noise floor.
    """
    for name in names or CASES:
        measure = error if name in DETERMINISTIC else distance
        errors, order, theory = [measure(name, n) for n in BUDGETS], measured_order(name), CASES[name].order
        ok = order is None or order > theory - SLACK
        if name in STOCHASTIC:
            ok = ok and all(b < max(a, 2 * noise_floor()) for a, b in zip(errors, errors[1:]))
        yield name, errors, order, theory, ok
