"""The layers that are the same in every paper: sinusoidal time features, label embedding and attention."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def timestep_embedding(time, dim, *, order="sin_cos", divisor="half-1", max_period=10000.0):
    """Sinusoidal features (B, dim) of `time` (B,), in float32 (Vaswani et al. 2017, section 3.5).

    The papers differ in what cannot be seen and shifts every output: DDPM has the sines first and frequencies
    max_period^(-i / (half - 1)); ADM and DiT have the cosines first (`order="cos_sin"`) and `divisor="half"`.
    An odd `dim` ends with a zero.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=time.device)
    # multiplied first, then divided: another order rounds differently, and at t near 1000 the sines show it
    frequencies = torch.exp(-math.log(max_period) * index / (half - 1 if divisor == "half-1" else half))
    angles = time.float()[:, None] * frequencies  # (B, half)
    parts = [angles.sin(), angles.cos()] if order == "sin_cos" else [angles.cos(), angles.sin()]
    features = torch.cat(parts, dim=1)
    return F.pad(features, (0, dim % 2))


class LabelEmbedding(nn.Embedding):
    """Labels y (B,) -> (B, dim); one row more than there are classes, the last of which means 'no label'."""

    def __init__(self, num_classes, dim):
        super().__init__(num_classes + 1, dim)

    def forward(self, y):
        if y is None:
            raise ValueError("labels are missing: pass y (B,), or network.null(...) for 'no label'")
        return super().forward(y)


def null_labels(y, num_classes):
    """Labels of the shape of y (B,) that mean 'no label' to a network of so many classes; ValueError if it has none."""
    if not num_classes:
        raise ValueError("an unconditional network has no null label: drop guidance and p_uncond, or pass null=...")
    return torch.full_like(y, num_classes)


def attention(q, k, v):
    """Scaled dot-product attention: q (B, heads, N, d), k and v (B, heads, M, d) -> (B, heads, N, d)."""
    return F.scaled_dot_product_attention(q, k, v)
