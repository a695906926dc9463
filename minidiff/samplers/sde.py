"""Samplers that simulate the reverse SDE: Euler-Maruyama, reverse diffusion, predictor-corrector, EDM's with churn.

dx = (f x - g^2 score) dt + g dw, run from t = 1 to 0, has the marginals of the forward process (Song et al. 2021,
eq. 6). The score is written as (alpha x0 - x) / sigma^2, so that a step is a sum of x, x0 and noise with factors
computed on the host.
"""

import math

import torch

from minidiff.errors import check_whole, unknown_name
from minidiff.prediction import combine
from minidiff.samplers.ancestral import VARIANCES, Step, ddpm
from minidiff.samplers.ode import check_dt
from minidiff.schedules import match
from minidiff.variational import step_variances


def _take(x, on_x, x0, on_x0, z, on_z):
    """on_x x + on_x0 x0 + on_z z; the noise has been drawn in any case, but 0 of it costs nothing."""
    x = combine(on_x, x, on_x0, x0)
    return torch.add(x, z, alpha=on_z) if on_z else x


@torch.no_grad()
def euler_maruyama(denoise, schedule, x_T, times, noise, *, dt=None):
    """x' = x - h (f x - g^2 score) + g sqrt(h) z, h = t - s (Song et al. 2021, appendix G); U-ViT takes 1000 steps.

    dt: the length of all steps instead of the distance of the times, as score_sde has it: 1 / N on N times from 1 to
    1e-3. The step to t = 0 draws noise and adds none. Where alpha = 0 the noise of the SDE is infinite: x is forgotten
    and x' drawn from alpha' x0 + sigma' z.
    """
    check_dt(dt)
    x = x_T
    for t, s in zip(times, times[1:]):
        alpha, sigma = schedule(t)
        x0, z = denoise(x, t).x0, noise(x)
        if alpha > 0:
            h = t - s if dt is None else dt
            f, variance = schedule.sde(t)
            pull = h * variance / sigma**2
            x = _take(x, 1 - h * f - pull, x0, pull * alpha, z, math.sqrt(h * variance) if s > 0 else 0.0)
        else:
            alpha_s, sigma_s = schedule(s)
            x = _take(x, 0.0, x0, alpha_s, z, sigma_s)
        yield Step(x, s, x0)


@torch.no_grad()
def reverse_diffusion(denoise, schedule, x_T, times, noise):
    """x' = x - (F - G^2 score) + G z for a forward step x_t = x_s + F + G z (Song et al. 2021, eq. 46).

    F = (alpha / alpha' - 1) x and G^2 = sigma^2 - (alpha sigma' / alpha')^2: the forward step's exact discretisation
    by the schedule. The step to t = 0 draws noise and adds none.
    """
    x = x_T
    for t, s in zip(times, times[1:]):
        (alpha, sigma), alpha_s = schedule(t), schedule(s)[0]
        x0, z = denoise(x, t).x0, noise(x)
        variance = step_variances(schedule, s, t)[1]
        pull = variance / sigma**2
        x = _take(x, 2 - alpha / alpha_s - pull, x0, pull * alpha, z, math.sqrt(variance) if s > 0 else 0.0)
        yield Step(x, s, x0)


# --- predictor-corrector ----------------------------------------------------------------------------------------------

PREDICTORS = {"reverse_diffusion": reverse_diffusion, "euler_maruyama": euler_maruyama, "ddpm": ddpm}
NORMS = ("picture", "batch", "expected")


def _langevin(x, eps, z, sigma, snr, shrink, norms):
    """x' = x + e score + sqrt(2 e) z with e = 2 shrink (snr |z| / |score|)^2 (Song et al. 2021, algorithms 4 and 5)."""
    size = snr * sigma  # that of the step if |z| = |eps|, where score = -eps / sigma
    if norms != "expected":
        lengths = [value.flatten(1).norm(dim=1) for value in (z, eps)]
        if norms == "batch":
            lengths = [length.mean(dim=0, keepdim=True) for length in lengths]
        # a fresh network may say 0, which names no size of step
        size = match(size * (lengths[0] / lengths[1]).nan_to_num(posinf=0.0), x)
    return x - (2 * shrink / sigma) * size**2 * eps + (2 * math.sqrt(shrink)) * size * z


@torch.no_grad()
def predictor_corrector(
    denoise, schedule, x_T, times, noise, *, predictor="reverse_diffusion", corrections=1, snr=0.16, norms="picture",
    dt=None, variance="small",
):  # fmt: skip
    """Langevin steps at time t, which correct the distribution there, then a predictor's step to the next time.

    Song et al. 2021, algorithm 1, in the order of its code. predictor: "reverse_diffusion", "euler_maruyama" (with its
    `dt`) or "ddpm" (with its `variance`). corrections: Langevin steps each time, an evaluation each. snr: their r,
    0.16 on CIFAR-10 and 0.075 at 256 pixels. norms: "picture" sizes a step by the norms of each picture's noise and
    score; "batch", as published, by their means over the batch, which makes a picture depend on its neighbours;
    "expected" by those of true noise, sqrt(D) and sqrt(D) / sigma, which is best for data of few numbers D: with
    "picture" the stationary distribution is wrong by an amount of the order 1 / D.
    Draws noise for each correction, then for the predictor. Raises ValueError for names that are none of these.
    """
    check_whole("corrections", corrections, 0)
    if predictor not in PREDICTORS:
        raise unknown_name("predictor", predictor, PREDICTORS)
    if not snr >= 0:
        raise ValueError(f"snr must be at least 0, got {snr}; 0.16 suits small pictures")
    if norms not in NORMS:
        raise unknown_name("norms", norms, NORMS)
    if variance not in VARIANCES:
        raise unknown_name("variance", variance, VARIANCES)
    if dt is not None and predictor != "euler_maruyama" or variance != "small" and predictor != "ddpm":
        raise ValueError(
            f'dt is an option of predictor="euler_maruyama" and variance of "ddpm"; got dt={dt} and'
            f" variance={variance!r} for {predictor!r}"
        )
    options = {"euler_maruyama": {"dt": dt}, "ddpm": {"variance": variance}}.get(predictor, {})
    x = x_T
    for t, s in zip(times, times[1:]):
        shrink = (schedule(t)[0] / schedule(s)[0]) ** 2  # 1 - beta of the forward step
        for _ in range(corrections):
            x = _langevin(x, denoise(x, t).eps, noise(x), schedule(t)[1], snr, shrink, norms)
        [step] = PREDICTORS[predictor](denoise, schedule, x, [t, s], noise, **options)
        x = step.x
        yield step


# --- EDM --------------------------------------------------------------------------------------------------------------


def _raised(schedule, t, gamma):
    """The time at which sigma / alpha is (1 + gamma) times that of t, at most the schedule's last; `edm` has none."""
    later = schedule.inverse(schedule.log_snr(t) - 2 * math.log1p(gamma)) if gamma else t
    return later if schedule.name == "edm" else max(t, min(later, 1.0))


@torch.no_grad()
def churn(
    denoise, schedule, x_T, times, noise, *, churn=0.0, churn_min=0.0, churn_max=math.inf, churn_noise=1.0,
):  # fmt: skip
    """Add noise up to u^ = (1 + gamma) u, then Heun's step in u = sigma / alpha on x / alpha down to the next time.

    Karras et al. 2022, algorithm 2, where alpha = 1: gamma = min(churn / N, sqrt(2) - 1) while churn_min <= u <=
    churn_max (S_churn, S_tmin, S_tmax), and churn_noise (S_noise) scales what is added. Any schedule will do, but
    the noise is raised to its highest level at most. Noise is drawn once a step, added or not. The step to t = 0, and
    one from alpha = 0 where u is infinite, is Euler's: 2 N - 1 evaluations for N steps.
    """
    if not churn >= 0:
        raise ValueError(f"churn must be at least 0, got {churn}; 0 adds no noise")
    if not 0 <= churn_min <= churn_max:
        raise ValueError(f"expected 0 <= churn_min <= churn_max, got {churn_min} and {churn_max}")
    x, gamma = x_T, min(churn / (len(times) - 1), math.sqrt(2) - 1)
    for t, s in zip(times, times[1:]):
        (alpha, sigma), (alpha_s, sigma_s), z = schedule(t), schedule(s), noise(x)
        if gamma and alpha > 0 and churn_min <= sigma / alpha <= churn_max:
            low, t = sigma / alpha, _raised(schedule, t, gamma)
            before, (alpha, sigma) = alpha, schedule(t)
            added = alpha * math.sqrt(max((sigma / alpha) ** 2 - low**2, 0.0))
            x = torch.add(alpha / before * x, z, alpha=churn_noise * added)
        x0 = denoise(x, t).x0
        there = torch.add(sigma_s / sigma * x, x0, alpha=alpha_s - alpha * sigma_s / sigma)
        if s > 0 and alpha > 0:
            x0 = denoise(there, s).x0
            ratio = sigma * alpha_s / (alpha * sigma_s)
            mean = torch.add(alpha_s / alpha / 2 * x, there, alpha=1 - ratio / 2)
            there = torch.add(mean, x0, alpha=alpha_s * (ratio - 1) / 2)
        x = there
        yield Step(x, s, x0)
