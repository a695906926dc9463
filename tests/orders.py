"""Measured orders of convergence: the variance that a sampler gives a Gaussian, exactly, against the true one."""

import math

import torch

from minidiff import schedules
from minidiff.prediction import Prediction
from minidiff.samplers import ddim, ddpm

VARIANCE = 0.3  # of the data
SAMPLERS = {
    "ddim": (ddim, {}),
    "ddim, eta 1": (ddim, {"eta": 1.0}),
    "ddpm, small": (ddpm, {"variance": "small"}),
    "ddpm, large": (ddpm, {"variance": "large"}),
}


def gaussian_denoiser(schedule):
    """E[x0 | x_t] of data N(0, VARIANCE): linear in x_t."""

    def denoise(x, t):
        alpha, sigma = schedule(t)
        return Prediction("x0", x, alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x, alpha, sigma)

    return denoise


def final_variance(name, steps, schedule):
    """The variance of the sampler's result, without Monte Carlo: all is linear in x_T and the noises.

    Picture k of the batch has a one for source of randomness k (x_T, z_1, z_2, ...) and zeros for all others; the
    squares of the results add up to the variance.
    """
    sampler, options = SAMPLERS[name]
    ones = iter(torch.eye(steps + 1, dtype=torch.float64)[:, :, None])
    x_T = next(ones)
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).tolist()
    *_, last = sampler(gaussian_denoiser(schedule), schedule, x_T, times, lambda x: next(ones), **options)
    return last.x.square().sum().item(), times[-1]


def measured_order(name, coarse=200, fine=400):
    """log2 of how much the error of the final variance falls when the number of steps doubles."""
    schedule = schedules.linear(None)
    errors = []
    for steps in (coarse, fine):
        variance, t = final_variance(name, steps, schedule)
        alpha, sigma = schedule(t)
        errors.append(abs(variance - (alpha**2 * VARIANCE + sigma**2)))
    return math.log2(errors[0] / errors[1])
