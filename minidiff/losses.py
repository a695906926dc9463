"""How much each noise level counts in the loss: weights for every prediction type, and logit-normal times."""

import torch

from minidiff.errors import unknown_name
from minidiff.prediction import KINDS, SIGMA_DATA

# Each weight is written for the squared error of x0, as a function of the signal-to-noise ratio.
WEIGHTS = {
    "min_snr": lambda snr, gamma=5.0: snr.clamp(max=gamma),  # Hang et al. 2023, section 3.3
    "p2": lambda snr, gamma=1.0, k=1.0: snr / (k + snr) ** gamma,  # Choi et al. 2022, eq. 8
    "edm": lambda snr: snr + SIGMA_DATA**-2,  # (sigma^2 + sd^2) / (sigma sd)^2, Karras et al. 2022, table 1
}


def loss_weight(weight, kind, alpha, sigma, **options):
    """The factor (B,) for the mean squared error of a network of this kind, at alpha and sigma (B,).

    weight: "uniform", where every kind counts its own error evenly, or a name of WEIGHTS, with its options gamma and
    k. A weight w on the error of x0 becomes w b^2 on the error of an output that enters x0 as b out:
    min(SNR, 5) / SNR for eps, min(SNR, 5) / (SNR + 1) for v, and so on.
    """
    if weight == "uniform":
        return torch.ones_like(alpha)
    if weight not in WEIGHTS:
        raise unknown_name("weight", weight, ["uniform", *WEIGHTS])
    kind = "eps" if kind == "score" else kind  # the score's error is counted times sigma, so it is that of eps
    (_, b), _ = KINDS[kind](alpha, sigma)
    return WEIGHTS[weight]((alpha / sigma) ** 2, **options) * b**2


def logit_normal(u, mean=0.0, std=1.0):
    """The quantiles of the logit-normal distribution: u (any shape) in (0, 1) -> t in (0, 1), of the shape of u.

    log(t / (1 - t)) ~ N(mean, std^2) for uniform u: most times in the middle, where the velocity of a flow is hardest
    to learn (Esser et al. 2024, section 3.1).
    """
    if not std > 0:
        raise ValueError(f"std must be above 0, got {std}; SD3 takes mean 0 and std 1")
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def logit_normal_times(n, mean=0.0, std=1.0, generator=None, device=None):
    """n training times (n,), logit-normal: for `diffusion.loss(x0, t=...)`, or `train(..., times="logit_normal")`."""
    u = torch.rand(n, generator=generator, device=device)
    return logit_normal(u.clamp(1e-6, 1 - 1e-6), mean, std).clamp(min=1e-5)


def late_times(n, shift=3.0, generator=None, device=None):
    """n training times (n,), more of them at high noise: `train(..., times="late")`, where text decides most.

    t = k u / (1 + (k - 1) u) for uniform u, the shift of SD3 (Esser et al. 2024, section 5.3.2), on any schedule.
    """
    u = torch.rand(n, generator=generator, device=device)
    return (shift * u / (1 + (shift - 1) * u)).clamp(min=1e-5)
