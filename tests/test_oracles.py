"""Oracles: each formula against another way to the same number, on every schedule."""

import math

import pytest
import torch
from toy import load_math, toy_denoiser

from minidiff import schedules
from minidiff.datasets import two_d
from minidiff.guidance import classifier_free
from minidiff.oracles import FiniteData, Gaussian, Mixture
from minidiff.samplers import ddim
from minidiff.spacings import spacing

ALL = {name: make() for name, make in schedules.SCHEDULES.items()}
ALL |= {"vp": schedules.linear(None), "cosine_exact": schedules.cosine(None)}
ALL["zero_snr"] = schedules.zero_terminal_snr(schedules.linear())
TIMES = (0.01, 0.4, 0.999, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


MATRICES = numbers(3, 4, 4) @ numbers(3, 4, 4).mT + 0.1 * torch.eye(4)
ORACLES = {
    "variance": Gaussian(numbers(1, 2, 2), 0.3),
    "diagonal": Gaussian(numbers(1, 2, 2), numbers(1, 2, 2).exp()),
    "matrix": Gaussian(numbers(4), MATRICES[0]),
    "isotropic": Mixture([1, 2, 3], numbers(3, 1, 2, 2), [0.1, 0.2, 0.3]),
    "matrices": Mixture([1, 2, 3], numbers(3, 4), MATRICES, labels=[0, 1, 1]),
    "finite": FiniteData(numbers(7, 1, 2, 2), labels=[0, 0, 0, 0, 1, 1, 1]),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ORACLES)
def test_score_is_the_gradient_and_x0_is_tweedies(kind, name):
    oracle, schedule = ORACLES[kind], ALL[name]
    labels = torch.tensor([0, 1, 1]) if kind in ("matrices", "finite") else None
    for t in TIMES:
        for y in (None, labels):
            alpha, sigma = (schedules.match(value, torch.zeros(3, *oracle.shape)) for value in schedule(t))
            x = (alpha * numbers(3, *oracle.shape, seed=2) + sigma * numbers(3, *oracle.shape, seed=3)).requires_grad_()
            (gradient,) = torch.autograd.grad(oracle.log_density(x, t, schedule, y).sum(), x)
            score = oracle.score(x, t, schedule, y)
            assert (score - gradient).norm() < 1e-6 * gradient.norm()
            prediction = oracle.denoise(x, t, schedule, y)
            blurred = x + sigma**2 * gradient  # alpha E[x0 | x_t]
            assert (alpha * prediction.x0 - blurred).norm() < 1e-8 * x.norm()
            assert prediction.x0.shape == x.shape and torch.equal(oracle.denoiser(schedule)(x, t, y).x0, prediction.x0)


@pytest.mark.parametrize("kind", ORACLES)
def test_type_and_device_are_those_of_the_points(kind):
    oracle, labels = ORACLES[kind], torch.tensor([0, 0, 0])
    for dtype, device in ((torch.float32, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")):
        for t in (0.5, torch.full((3,), 0.5, dtype=torch.float64, device=device)):
            x = torch.ones(3, *oracle.shape, dtype=dtype, device=device)
            prediction = oracle.denoise(x, t, ALL["cosine_exact"], labels.to(device))
            answers = [prediction.x0, prediction.eps, *(f(x, t, ALL["vp"]) for f in (oracle.score, oracle.log_density))]
            assert all((answer.dtype, answer.device.type) == (dtype, device) for answer in answers)


@pytest.mark.parametrize("kind", ["variance", "diagonal", "matrix", "isotropic", "matrices"])
def test_data_themselves_at_time_zero(kind):
    oracle, x = ORACLES[kind], numbers(3, *ORACLES[kind].shape)
    for schedule in ALL.values():
        torch.testing.assert_close(oracle.denoise(x, 0.0, schedule).x0, x)
        torch.testing.assert_close(oracle.log_density(x, 0.0, schedule), oracle.log_density_at(x))


def test_gaussian_is_torchs():
    for oracle, matrix in ((ORACLES["matrix"], MATRICES[0]), (ORACLES["variance"], 0.3 * torch.eye(4))):
        reference = torch.distributions.MultivariateNormal(oracle.means[0], matrix.double())
        x = numbers(5, *oracle.shape)
        torch.testing.assert_close(oracle.log_density(x, 0.0, ALL["flow"]), reference.log_prob(x.flatten(1)))


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7])
def test_density_integrates_to_one(t):
    schedule = ALL["flow"]
    line = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    one = Mixture([1, 3], [[-0.7], [0.4]], [0.1, 0.2]).log_density(line[:, None], t, schedule)
    assert abs(one.exp().sum().item() * 0.01 - 1) < 1e-6
    line = torch.linspace(-5, 5, 401, dtype=torch.float64)
    two = Mixture([1, 3], [[-0.7, 0.0], [0.4, 0.3]], [[[0.05, 0.02], [0.02, 0.09]], [[0.1, 0.0], [0.0, 0.2]]])
    assert abs(two.log_density(torch.cartesian_prod(line, line), t, schedule).exp().sum().item() / 1600 - 1) < 1e-6


@pytest.mark.parametrize("name", ALL)
def test_points_are_a_mixture_without_width(name):
    points, schedule = numbers(6, 3), ALL[name]
    finite, narrow = FiniteData(points), Mixture(torch.ones(6), points, 1e-7)
    for t in (0.3, 0.9):
        alpha, sigma = schedule(t)
        x = alpha * points[:4] + sigma * numbers(4, 3, seed=5)
        torch.testing.assert_close(finite.denoise(x, t, schedule).x0, narrow.denoise(x, t, schedule).x0)
        torch.testing.assert_close(finite.log_density(x, t, schedule), narrow.log_density(x, t, schedule))


def test_points_at_the_least_noise_and_in_parts(monkeypatch):
    oracle, flow, x = FiniteData(numbers(9, 2).float() + 100), ALL["flow"], numbers(5, 2).float() + 100
    for t in (0.0, 1e-12, 1e-4):
        nearest = oracle.denoise(oracle.images + 1e-4 * t, t, flow).x0
        torch.testing.assert_close(nearest, oracle.images, rtol=0, atol=1e-4)
    classes = FiniteData(oracle.images, labels=[0] * 8 + [1])
    other = classes.denoise(oracle.images, 0.0, flow, torch.ones(9, dtype=torch.int64)).x0  # nearer ones do not count
    torch.testing.assert_close(other, oracle.images[8:].expand(9, 2))
    assert oracle.denoise(x, torch.full((5,), 1.0), flow).x0.isfinite().all()  # alpha is 0
    whole = oracle.denoise(x, 0.5, flow).x0, oracle.log_density(x, 0.5, flow)
    monkeypatch.setattr("minidiff.oracles.CHUNK", 20)  # two rows at a time
    parts = oracle.denoise(x, 0.5, flow).x0, oracle.log_density(x, 0.5, flow)
    torch.testing.assert_close(parts, whole)
    for refused in (oracle.score, oracle.log_density):
        with pytest.raises(ValueError, match="no density"):
            refused(x, 0.0, flow)


def test_the_toys_own_denoiser():
    toy = load_math("traj_ddpm_ddim")["toy"]
    oracle, x = Mixture(toy["w"], toy["mu"], toy["sd"]), numbers(5, *toy["mu"].shape[1:])
    for schedule in ALL.values():
        for t in (0.05, 0.5, 0.95):
            reference = toy_denoiser(schedule, toy)(x, t)
            torch.testing.assert_close(oracle.denoise(x, t, schedule).eps, reference.eps, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(oracle.score(x, t, schedule), reference.score, rtol=1e-8, atol=1e-8)


def test_samples_and_classes():
    oracle = Mixture([1, 1, 2], [[-2.0], [0.0], [3.0]], [0.1, 0.2, 0.3], labels=[0, 0, 1])
    x = oracle.sample(20_000, generator())
    assert abs(x.mean() - 1.0) < 0.05
    assert abs(oracle.sample(20_000, generator(), y=0).mean() + 1) < 0.05
    y, flow, points = torch.tensor([0, 1]), ALL["flow"], torch.tensor([[3.0], [3.0]]).double()
    alone = Mixture([1.0], [[3.0]], 0.3)
    torch.testing.assert_close(oracle.denoise(points, 0.5, flow, y).x0[1:], alone.denoise(points, 0.5, flow).x0[1:])
    whole = oracle.denoise(points, 0.5, flow).x0
    torch.testing.assert_close(oracle.denoise(points, 0.5, flow, oracle.null(y)).x0, whole)
    guided = classifier_free(oracle.denoiser(flow), y, 0.0, oracle.null(y))(points, 0.5)
    torch.testing.assert_close(guided.x0, whole)


def test_a_sampler_finds_the_data():
    data, schedule = two_d("mixture", 10), ALL["vp"]
    oracle = data.mixture.oracle
    x_T = numbers(4000, 2).float()
    *_, last = ddim(oracle.denoiser(schedule), schedule, x_T, spacing(schedule, 60, "log_snr"))
    exact = oracle.sample(4000, generator())
    assert last.x.dtype == torch.float32
    assert (last.x.mean(0) - exact.mean(0)).abs().max() < 0.03
    assert (torch.cov(last.x.T) - torch.cov(exact.T)).abs().max() < 0.02
    assert math.isclose(oracle.log_density_at(last.x).mean(), oracle.log_density_at(exact).mean(), abs_tol=0.1)


def test_refusals():
    with pytest.raises(ValueError, match="weights"):
        Mixture([1.0, -1.0], torch.zeros(2, 2), 1.0)
    with pytest.raises(ValueError, match="got shape"):
        Mixture([1.0, 1.0], torch.zeros(2, 3), torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="must be positive"):
        Gaussian([0.0, 0.0], torch.zeros(2, 2))
    with pytest.raises(ValueError, match="a covariance must be symmetric"):
        Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="each of 0 to classes"):
        Mixture([1.0, 1.0], torch.zeros(2, 2), 1.0, labels=[0, 2])
    with pytest.raises(ValueError, match="must be floats"):
        FiniteData(torch.zeros(2, 3, dtype=torch.uint8))
