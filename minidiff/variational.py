"""The posterior q(x_s | x_t, x0), the variances of the reverse step, and the terms of the variational bound in bits."""

import math

import torch

from minidiff.schedules import match


def step_variances(schedule, s, t):
    """The two variances of a reverse step from t to s < t: (posterior, forward); floats or tensors (B,) as s and t.

    forward = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, the beta of the step; posterior = forward (sigma_s /
    sigma_t)^2. These are DDPM's 'small' and 'large' (Ho et al. 2020, section 3.2). Both are written with
    1 - exp(log_snr_t - log_snr_s), which loses no digits where the two times are close.
    """
    gap = schedule.log_snr(t) - schedule.log_snr(s)
    share = -torch.expm1(gap) if isinstance(gap, torch.Tensor) else -math.expm1(gap)
    return share * schedule(s)[1] ** 2, share * schedule(t)[1] ** 2


def posterior(schedule, x0, x_t, s, t):
    """Mean and variance of q(x_s | x_t, x0); the mean has the shape of x_t, the variance broadcasts against it."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    small, large = step_variances(schedule, s, t)
    on_x_t, on_x0 = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2, large / sigma_t**2 * alpha_s
    return match(on_x_t, x_t) * x_t + match(on_x0, x_t) * x0, match(small, x_t)


def log_variance(schedule, t, variance, v_range=None):
    """log of the variance of p(x_s | x_t) for the discrete step s = t - 1/T, t (B,); broadcasts against v_range.

    variance: "small", "large", or "learned", where v_range in [-1, 1] interpolates between the logs of the two
    (Nichol and Dhariwal 2021, eq. 15). The posterior of the first step has variance 0; as in the official code the
    value of the second step stands in for it, in "large" too.
    """
    first = 1 / schedule.steps
    s, second = t - first, torch.full_like(t, 2 * first)
    small, large = step_variances(schedule, s.clamp(min=0), t)
    substitute, _ = step_variances(schedule, second - first, second)
    is_first = t * schedule.steps < 1.5
    small = torch.where(is_first, substitute, small)
    if variance == "small":
        return small.log()
    if variance == "large":
        return torch.where(is_first, substitute, large).log()
    if variance != "learned" or v_range is None:
        raise ValueError(f'variance must be "small", "large", or "learned" with a learned range, got {variance!r}')
    share = (v_range + 1) / 2
    return share * match(large.log(), v_range) + (1 - share) * match(small.log(), v_range)


def variational_term(schedule, x0, t, prediction, variance):
    """One term of the bound for each image, (B,), in bits per dimension, at the discrete times t (B,).

    KL(q(x_s | x_t, x0) || p(x_s | x_t)); at the first step the likelihood of the 8-bit image itself.
    """
    x_t, s = prediction.x_t, (t - 1 / schedule.steps).clamp(min=0)
    is_first = t * schedule.steps < 1.5
    log_var = log_variance(schedule, t, variance, prediction.v_range)
    log_var = match(log_var, x_t) if log_var.ndim == 1 else log_var
    true_log_var = match(log_variance(schedule, t, "small"), x_t)
    true_mean, _ = posterior(schedule, x0, x_t, s, t)
    mean, _ = posterior(schedule, prediction.x0, x_t, s, t)
    kl = gaussian_kl(true_mean, true_log_var, mean, log_var)
    nll = -discretized_gaussian_log_likelihood(x0, mean, log_var / 2)
    return torch.where(match(is_first, x0), nll, kl).flatten(1).mean(1) / math.log(2)


def prior_term(schedule, x0):
    """KL(q(x_T | x0) || N(0, 1)) of each image, (B,), in bits per dimension."""
    alpha, sigma = schedule(1.0)
    zero = torch.zeros((), device=x0.device)
    kl = gaussian_kl(alpha * x0, zero + 2 * math.log(sigma), zero, zero)
    return kl.flatten(1).mean(1) / math.log(2)


def gaussian_kl(mean_1, log_var_1, mean_2, log_var_2):
    """KL(N(mean_1, var_1) || N(mean_2, var_2)) of each entry, in nats."""
    gap = log_var_1 - log_var_2
    return (-1 - gap + gap.exp() + (mean_1 - mean_2) ** 2 * (-log_var_2).exp()) / 2


def discretized_gaussian_log_likelihood(x, mean, log_scale):
    """log of the probability that a Gaussian gives each 8-bit pixel of x in [-1, 1], in nats; the shape of x.

    The Gaussian is integrated over the pixel's bin of width 2/255, the outermost bins being open (Ho et al. 2020,
    eq. 13). The distribution function is the tanh approximation of the official code, probabilities are at least
    1e-12.
    """
    inverse_scale = torch.exp(-log_scale)

    def cdf(value):
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3))) / 2

    above, below = cdf(inverse_scale * (x - mean + 1 / 255)), cdf(inverse_scale * (x - mean - 1 / 255))
    inside = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return inside.clamp(min=1e-12).log()
