"""Ancestral samplers: DDPM (Ho et al. 2020) and DDIM (Song et al. 2021), on any schedule and any times.

A sampler is a generator: it takes a bound denoiser (x_t, t) -> Prediction, the schedule, the noise to start with and
the times to stop at, and yields a `Step` after each. Every step is a sum of x, x0 and noise with factors that are
computed in float64 on the host, so nothing waits for the device.
"""

import math
from typing import NamedTuple

import torch

from minidiff.errors import unknown_name
from minidiff.prediction import combine
from minidiff.variational import step_variances

VARIANCES = ("small", "large", "learned")


class Step(NamedTuple):
    """The state of a sampler after a step: x at time t, and the prediction x0 that the step was made with."""

    x: torch.Tensor  # (B, C, H, W)
    t: float
    x0: torch.Tensor  # (B, C, H, W)


@torch.no_grad()
def ddim(denoise, schedule, x_T, times, noise=None, *, eta=0.0):
    """x' = alpha' x0 + sqrt(sigma'^2 - var) eps + sqrt(var) z with var = eta^2 (posterior variance); eq. 12 and 16.

    eta 0 is deterministic and never draws noise; eta 1 has DDPM's variance. Ascending times run it backwards, from a
    picture to its noise (inversion).
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be at least 0, got {eta}; 0 adds no noise, 1 as much as DDPM")
    if eta and noise is None:
        raise ValueError(f"eta={eta} adds noise: pass its source, noise=seeded_noise([...])")
    x = x_T
    for t, s in zip(times, times[1:]):
        (alpha, sigma), (alpha_s, sigma_s) = schedule(t), schedule(s)
        x0 = denoise(x, t).x0
        variance = eta**2 * step_variances(schedule, s, t)[0] if eta else 0.0
        on_x = math.sqrt(max(sigma_s**2 - variance, 0.0)) / sigma
        x = combine(on_x, x, alpha_s - alpha * on_x, x0)
        if eta:
            x = torch.add(x, noise(x), alpha=math.sqrt(variance))
        yield Step(x, s, x0)


@torch.no_grad()
def ddpm(denoise, schedule, x_T, times, noise, *, variance="small", gradient=None):
    """x' = mean of q(x_s | x_t, x0) + std z (algorithm 2), with any choice of steps.

    variance: "small", the posterior's; "large", the forward step's beta; "learned", between the two as the network's
    variance range says (Nichol and Dhariwal 2021, eq. 15). The step to t = 0 draws noise and adds none.
    gradient: a function (x_t, t) -> gradient of log p(y | x_t), scaled; the mean is shifted by variance * gradient
    (Dhariwal and Nichol 2021, algorithm 1), but in the step to t = 0.
    """
    if variance not in VARIANCES:
        raise unknown_name("variance", variance, VARIANCES)
    x = x_T
    for t, s in zip(times, times[1:]):
        (alpha, sigma), (alpha_s, sigma_s) = schedule(t), schedule(s)
        small, large = step_variances(schedule, s, t)
        prediction = denoise(x, t)
        on_x = alpha / alpha_s * (sigma_s / sigma) ** 2
        mean = combine(on_x, x, large / sigma**2 * alpha_s, prediction.x0)
        z = noise(x)
        shift = None if gradient is None or s == 0 else gradient(x, t)
        if s == 0:
            x = mean
        elif variance == "learned":  # std = middle * spread, a geometric mean at v_range = 0
            middle = (small * large) ** 0.25
            spread = torch.exp(math.log(large / small) / 4 * prediction.v_range)
            mean = mean if shift is None else torch.addcmul(mean, spread.square(), shift, value=middle**2)
            x = torch.addcmul(mean, spread, z, value=middle)
        else:
            fixed = small if variance == "small" else large
            mean = mean if shift is None else torch.add(mean, shift, alpha=fixed)
            x = torch.add(mean, z, alpha=math.sqrt(fixed))
        yield Step(x, s, prediction.x0)
