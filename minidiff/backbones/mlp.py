"""A multilayer perceptron for points in the plane: the smallest network that diffusion can be learnt with."""

import torch
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.layers import LabelEmbedding, null_labels, timestep_embedding


class MLP(nn.Module):
    """Denoiser of points: x (B, dim), time (B,) or (1,) -> (B, dim).

    The point and 64 sinusoidal features of the time go through `depth` hidden layers of `hidden` units. With
    `num_classes` a label embedding is added to the first of them.
    """

    def __init__(self, dim=2, hidden=128, depth=3, num_classes=0):
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Linear(dim + 64, hidden)
        self.label = LabelEmbedding(num_classes, hidden) if num_classes else None
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth - 1))
        self.last = nn.Linear(hidden, dim)
        # PyTorch's own start shrinks the signal from layer to layer, and hears 2 coordinates little among 64 features
        for layer in (self.first, *self.hidden):
            nn.init.normal_(layer.weight, std=1.7 / layer.in_features**0.5)
        self.first.weight.data[:, :dim] *= 10

    def forward(self, x, time, y=None):
        features = timestep_embedding(time, 64).to(x.dtype).expand(len(x), -1)
        h = self.first(torch.cat([x, features], dim=1))
        if self.label is not None:
            h = h + self.label(y)
        for layer in self.hidden:
            h = layer(nn.functional.silu(h))
        return self.last(nn.functional.silu(h))

    def null(self, y):
        """Labels of the shape of y (B,) that mean 'no label'."""
        return null_labels(y, self.num_classes)


register_model("mlp_2d", MLP, dim=2, hidden=128, depth=4)
register_model("mlp_tiny", MLP, dim=2, hidden=64, depth=3)
register_model("mlp_test", MLP, dim=2, hidden=16, depth=2)
