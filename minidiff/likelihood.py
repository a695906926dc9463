"""Exact log-likelihood: the probability-flow ODE carries data to noise, and the stretching of space is counted.

Divided by n = sqrt(alpha^2 + sigma^2), all schedules share one ODE: with u = x / n and tan(phi) = sigma / alpha it is
du / dphi = v = cos(phi) eps - sin(phi) x0, which is finite from data to noise (Salimans and Ho 2022, appendix D).
Along its paths d log p / dphi = -div v (Chen et al. 2018, eq. 8), so that log p at the data is log p at the noise plus
the integral of div v (Song et al. 2021, section 4.3 and eq. 39).
"""

import math

import numpy as np
import torch

from minidiff.errors import check_whole, unknown_name

TRACES = ("exact", "hutchinson")
BIN = 1 / 127.5  # distance of two neighbouring values of an 8-bit picture in [-1, 1]


def log_likelihood(
    denoise, schedule, x0, *, steps=50, trace="hutchinson", probes=1, generator=None, t_start=1e-5, times=None,
    prior=None,
):  # fmt: skip
    """log p(x0) in nats, (B,), of the model behind a bound denoiser, which must be differentiable.

    `steps` Runge-Kutta steps of order 4, evenly spaced in log-SNR from t_start to 1, or between the given `times` in
    (0, 1]; each evaluates the denoiser 4 times. trace: "exact" sums all D entries of the diagonal, D backward passes
    an evaluation; "hutchinson" is an unbiased estimate by `probes` vectors of random signs from `generator`, held fixed
    on the whole path (Grathwohl et al. 2019). Raises ValueError for an unknown trace, no steps or no probes.

    Two things stand between the answer and log p(x0). It is the density of data blurred by sigma / alpha at t_start
    (sigma_min for `variance_exploding`). And the noise at t = 1 is taken for the schedule's own Gaussian, which it is
    only where alpha(1) = 0: VP keeps 0.7 % of the data's mean, EDM an 80th, VE a 50th, and log p is off by about that
    much times |mean x_1| / std^2. `prior(x_1) -> (B,)`, the true log density at t = 1, removes the second.
    """
    if not x0.is_floating_point():
        raise ValueError(f"x0 must be floats, got {x0.dtype}; bytes become x / 127.5 - 1, and then see `dequantize`")
    if trace not in TRACES:
        raise unknown_name("trace", trace, TRACES)
    check_whole("steps", steps)
    check_whole("probes", probes)
    times = grid(schedule, steps, t_start) if times is None else sorted(times)
    if len(times) < 2 or not 0 < times[0] < times[-1] <= 1:
        raise ValueError(f"times must be at least two, in (0, 1], got {times}; t = 0 has no noise, start at 1e-5, say")
    signs = random_signs(x0, probes, generator) if trace == "hutchinson" else None
    size, (alpha, sigma) = x0[0].numel(), schedule(times[0])
    u = alpha / math.hypot(alpha, sigma) * x0.detach()
    total = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for t, s in zip(times, times[1:]):
        u, total = runge_kutta(denoise, schedule, u, total, t, s, signs)
    norm = math.hypot(*schedule(times[-1]))
    log_noise = (prior or start_log_density(schedule, times[-1]))(norm * u)
    return log_noise + total + size * (math.log(norm) + math.log(alpha) - math.log(math.hypot(alpha, sigma)))


def grid(schedule, steps, t_start):
    """Ascending times from t_start to 1, evenly spaced in log-SNR; where alpha(1) is 0, the last step goes to it."""
    if not 0 < t_start < 1:
        raise ValueError(f"t_start must be above 0, where the noise has no density, and below 1, got {t_start}")
    if steps == 1:
        return [t_start, 1.0]
    reaches_noise = schedule(1.0)[0] < 1e-8
    last, count = (1 - 1 / (schedule.steps or 1000), steps - 1) if reaches_noise else (1.0, steps)
    points = np.linspace(schedule.log_snr(t_start), schedule.log_snr(last), count + 1)[1:-1]
    return [t_start, *(schedule.inverse(float(point)) for point in points), last] + [1.0] * (count < steps)


def runge_kutta(denoise, schedule, u, total, t, s, signs):
    """One step of order 4 from time t to s of the point u (B, ...) and the integral of the divergence (B,)."""
    first, last = (math.atan2(*schedule(time)[::-1]) for time in (t, s))
    middle, h = (first + last) / 2, last - first
    between = schedule.inverse(2 * math.log(math.cos(middle) / math.sin(middle)))
    v1, d1 = velocity(denoise, schedule, u, t, first, signs)
    v2, d2 = velocity(denoise, schedule, torch.add(u, v1, alpha=h / 2), between, middle, signs)
    v3, d3 = velocity(denoise, schedule, torch.add(u, v2, alpha=h / 2), between, middle, signs)
    v4, d4 = velocity(denoise, schedule, torch.add(u, v3, alpha=h), s, last, signs)
    return u + h / 6 * (v1 + 2 * (v2 + v3) + v4), total + h / 6 * (d1 + 2 * (d2 + d3) + d4)


def velocity(denoise, schedule, u, t, angle, signs):
    """v (B, ...) at u and its divergence (B,): by all D axes, or by the probes `signs` (P, B, ...)."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        prediction = denoise(math.hypot(*schedule(t)) * u, t)
        v = math.cos(angle) * prediction.eps - math.sin(angle) * prediction.x0
        divergence = exact_trace(v, u) if signs is None else hutchinson_trace(v, u, signs)
    return v.detach(), divergence


def exact_trace(v, u):
    """The sum of d v_i / d u_i of each picture, (B,)."""
    total, flat = 0, v.flatten(1)
    for i in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, i].sum(), u, retain_graph=True)
        total = total + gradient.flatten(1)[:, i]
    return total


def hutchinson_trace(v, u, signs):
    """The mean over the probes of z^T (dv / du) z, (B,), which has the trace as its expectation."""
    total = 0
    for z in signs:
        (gradient,) = torch.autograd.grad((v * z).sum(), u, retain_graph=True)
        total = total + (gradient * z).flatten(1).sum(1)
    return total / len(signs)


def random_signs(x, probes, generator):
    """Vectors of -1 and 1, (probes, *x.shape), drawn on the CPU."""
    signs = 2 * torch.randint(0, 2, (probes, *x.shape), generator=generator) - 1
    return signs.to(x.device, x.dtype)


def start_log_density(schedule, t):
    """The log density (B,) of the Gaussian that sampling starts with, as a function of x (B, ...)."""
    std = schedule.start((1,), torch.ones_like, t).item()

    def log_density(x):
        x = x.flatten(1)
        return -x.square().sum(1) / (2 * std**2) - x.shape[1] * (math.log(std) + math.log(2 * math.pi) / 2)

    return log_density


def dequantize(x0, generator=None):
    """8-bit pictures in [-1, 1] made continuous: each value moves uniformly within its bin, of width 1 / 127.5."""
    noise = torch.rand(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
    return torch.add(x0, noise - 0.5, alpha=BIN)


def bits_per_dim(log_p, shape):
    """Bits per dimension (B,) of 8-bit pictures of `shape`, from nats log_p (B,) of `dequantize`d ones in [-1, 1].

    A picture's probability is that of its bins, so -log2 p / D + log2(127.5): the density at a point times the bin's
    width. The mean over the uniform noise bounds the bits of the discrete pictures from above (Theis et al. 2016).
    """
    return -log_p / (math.prod(shape) * math.log(2)) - math.log2(BIN)
