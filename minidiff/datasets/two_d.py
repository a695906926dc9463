"""Two-dimensional sets: points (2,) in about [-1, 1], to look at what a model does to a whole distribution.

Gaussian mixtures have no bound: of `eight_gaussians` and `gaussian_grid` one point in a million lies outside [-1, 1],
of `mixture` one in thirty thousand. All others stay inside.
"""

import math

import torch

from minidiff.datasets.mixture import GaussianMixture
from minidiff.datasets.record import InMemory, expect, expect_whole


def moons(num, generator):
    """Two interleaved half circles."""
    label = torch.arange(num) % 2
    angle = math.pi * torch.rand(num, generator=generator)
    sign = 1.0 - 2.0 * label
    points = torch.stack([sign * angle.cos() + label - 0.5, sign * angle.sin() + 0.5 * label - 0.25], 1) * 0.58
    return jitter(points, 0.03, generator), label


def rings(num, generator):
    """Three concentric circles of equal density along the line."""
    label = torch.multinomial(torch.tensor([1.0, 2.0, 3.0]), num, replacement=True, generator=generator)
    angle = 2 * math.pi * torch.rand(num, generator=generator)
    points = (0.29 * (label + 1.0))[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return jitter(points, 0.02, generator), label


def spirals(num, generator):
    """Two arms of one and a half turns."""
    label = torch.arange(num) % 2
    turn = 3 * math.pi * torch.rand(num, generator=generator).sqrt()  # the square root evens the density along the arm
    radius = (1.0 - 2.0 * label) * 0.9 * turn / (3 * math.pi)
    return jitter(radius[:, None] * torch.stack([turn.cos(), turn.sin()], 1), 0.02, generator), label


def checkerboard(num, generator):
    """Every other cell of a 4 x 4 board on [-1, 1]^2, uniform; the label is the cell, 0 to 7."""
    label = torch.randint(8, (num,), generator=generator)
    row, column = label // 2, 2 * (label % 2) + (label // 2) % 2
    corner = torch.stack([column, row], 1) * 0.5 - 1
    return corner + 0.5 * torch.rand(num, 2, generator=generator), label


def checkerboard_log_density(x):
    """log p of the checkerboard at points (..., 2): log 1/2 in its cells, -inf elsewhere."""
    cell = torch.floor((x + 1) * 2)
    inside = ((cell >= 0) & (cell < 4)).all(-1) & (cell.sum(-1) % 2 == 0)
    return torch.full_like(x[..., 0], math.log(0.5)).masked_fill(~inside, -math.inf)


def jitter(points, width, generator):
    """Gaussian noise on points, cut at four standard deviations so that they stay in [-1, 1]."""
    return points + width * torch.randn(points.shape, generator=generator).clamp_(-4, 4)


def eight_gaussians():
    """Eight narrow Gaussians on a circle."""
    angle = torch.arange(8) * math.pi / 4
    means = 0.7 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.ones(8), means, torch.eye(2).repeat(8, 1, 1) * 0.06**2)


def gaussian_grid():
    """Twenty-five very narrow Gaussians on a 5 x 5 grid."""
    line = torch.linspace(-0.8, 0.8, 5)
    return GaussianMixture(torch.ones(25), torch.cartesian_prod(line, line), torch.eye(2).repeat(25, 1, 1) * 0.04**2)


def mixture():
    """Three Gaussians of unequal weight, width and direction."""
    means = [[-0.45, -0.35], [0.45, -0.15], [-0.05, 0.5]]
    covariances = [[[0.020, 0.012], [0.012, 0.015]], [[0.008, -0.006], [-0.006, 0.030]], [[0.030, 0.0], [0.0, 0.004]]]
    return GaussianMixture([0.5, 0.3, 0.2], means, covariances)


CURVES = {"moons": moons, "rings": rings, "spirals": spirals, "checkerboard": checkerboard}
PARTS = {"moons": 2, "rings": 3, "spirals": 2, "checkerboard": 8}
MIXTURES = {"eight_gaussians": eight_gaussians, "gaussian_grid": gaussian_grid, "mixture": mixture}
NAMES = (*CURVES, *MIXTURES)


def two_d(name, num=10_000, seed=0, *, split="train"):
    """`num` points as an `InMemory` set: `.images()` float32 (num, 2), labels the part a point belongs to.

    Where the density is known the set has `.log_density(x)`, and the Gaussian mixtures have `.mixture`, a
    `GaussianMixture`, and its `.score(x, alpha, sigma)`; else these are None. A seed always gives the same points;
    "test" has others.
    """
    expect("two_d", "name", name, NAMES)
    expect(name, "split", split, ("train", "test"))
    expect_whole(name, "num", num, 1)
    expect_whole(name, "seed", seed, 0, 2**62)
    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))
    density = MIXTURES[name]() if name in MIXTURES else None
    points, labels = density.sample(num, generator) if density else CURVES[name](num, generator)
    log_density = density.log_density if density else checkerboard_log_density if name == "checkerboard" else None
    parts = len(density.weights) if density else PARTS[name]
    classes = [f"part {i}" for i in range(parts)]
    return InMemory(
        points, labels, [""] * num, classes, mixture=density, log_density=log_density, score=density and density.score
    )
