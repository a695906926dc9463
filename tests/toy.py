"""What the comparisons with recorded references share: reading them, the toy with its exact denoiser, listed noise."""

from pathlib import Path

import torch

from minidiff.prediction import Prediction

GOLDEN = Path(__file__).parent / "golden"


def load_math(name):
    return torch.load(GOLDEN / f"math_{name}.pt", weights_only=True)


def worst(a, b):
    return (torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)).abs().max().item()


def toy_denoiser(schedule, toy):
    """The exact denoiser of the toy: a mixture of three Gaussians, weights w, means mu, standard deviations sd."""

    def denoise(x, t):
        alpha, sigma = schedule(t)
        variance = (alpha * toy["sd"]) ** 2 + sigma**2  # (3,)
        gap = x[:, None] - alpha * toy["mu"]  # (B, 3, C, H, W)
        logs = toy["w"].log() - gap.square().flatten(2).sum(2) / (2 * variance) - gap[0, 0].numel() / 2 * variance.log()
        share = logs.softmax(1) / variance
        score = -torch.einsum("bk,bkchw->bchw", share, gap)
        return Prediction("score", x, score, alpha, sigma, v_range=torch.full_like(x, 0.3))

    return denoise


def listed(noises):
    """A source of noise that gives the recorded ones, in order."""
    drawn = iter(noises)
    return lambda x: next(drawn)
