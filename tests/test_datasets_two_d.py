"""Points in the plane: where they lie, and the densities and scores that are known."""

import math

import pytest
import torch

from minidiff.datasets import GaussianMixture, load_dataset, two_d
from minidiff.datasets.two_d import MIXTURES, NAMES


@pytest.mark.parametrize("name", NAMES)
def test_points(name):
    data = load_dataset(name, num=4000)
    points = data.images()
    assert points.shape == (4000, 2) and points.dtype == torch.float32 and points.abs().max() < 1.1
    assert points.std() > 0.3 and set(data.labels.tolist()) == set(range(len(data.classes)))
    assert torch.equal(two_d(name, 4000, 0).images(), points)
    assert not torch.equal(two_d(name, 4000, 1).images(), points)
    assert load_dataset(name, num=7)[6].caption == ""
    assert (data.log_density is not None) == (name in MIXTURES or name == "checkerboard")
    assert (data.mixture is not None) == (data.score is not None) == (name in MIXTURES)


def test_shapes_of_the_curves():
    rings = load_dataset("rings")
    radius = rings.images().norm(dim=1)
    for label in range(3):
        assert (radius[rings.labels == label] - 0.29 * (label + 1)).abs().max() < 0.1
    board = load_dataset("checkerboard")
    cell = ((board.images() + 1) * 2).floor()
    assert (cell.sum(1) % 2 == 0).all() and (board.log_density(board.images()) - math.log(0.5)).abs().max() < 1e-6
    assert board.log_density(torch.tensor([[0.1, -0.1], [2.0, 2.0]])).tolist() == [-math.inf, -math.inf]
    moons = load_dataset("moons")
    assert ((moons.images()[:, 1] > 0.27) <= (moons.labels == 0)).all()
    spirals = load_dataset("spirals", num=6000)
    nearest = torch.cdist(spirals.images()[:500], spirals.images()[500:]).argmin(1)
    assert (spirals.labels[500:][nearest] == spirals.labels[:500]).float().mean() > 0.95


@pytest.mark.parametrize("name", MIXTURES)
def test_density_integrates_to_one(name):
    line = torch.linspace(-1.8, 1.8, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    density = load_dataset(name).mixture
    for alpha, sigma in ((1.0, 0.0), (0.6, 0.3)):
        total = density.log_density(grid, alpha, sigma).exp().sum() * 0.01**2
        assert abs(total - 1) < 1e-4


@pytest.mark.parametrize("name", MIXTURES)
def test_score_is_the_gradient(name):
    density = load_dataset(name).mixture
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul_(0.5).requires_grad_()
    for alpha, sigma in ((1.0, 0.0), (0.8, 0.6), (0.1, 0.99)):
        (gradient,) = torch.autograd.grad(density.log_density(x, alpha, sigma).sum(), x)
        assert torch.allclose(density.score(x, alpha, sigma), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_follow_the_density(name):
    data = load_dataset(name, num=40_000)
    points, density = data.images().double(), data.mixture
    assert torch.allclose(points.mean(0), (density.weights[:, None] * density.means).sum(0), atol=0.015)
    for component in range(len(density.weights)):
        mine = points[data.labels == component]
        assert abs(len(mine) / 40_000 - density.weights[component]) < 0.01
        assert torch.allclose(mine.mean(0), density.means[component], atol=0.02)
        assert torch.allclose(torch.cov(mine.T), density.covariances[component], atol=0.002)


def test_one_gaussian_in_closed_form():
    one = GaussianMixture([2.0], [[1.0, -1.0]], [[[0.25, 0.0], [0.0, 4.0]]])
    x = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    expected = -0.5 * (0.25 / 0.25 + 4.0 / 4.0) - math.log(2 * math.pi) - math.log(0.5 * 2.0)
    assert abs(one.log_density(x).item() - expected) < 1e-12
    assert torch.allclose(one.score(x), torch.tensor([[2.0, -0.5]], dtype=torch.float64))
    assert one.score(x.float()).dtype == torch.float32
