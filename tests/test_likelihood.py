"""Likelihood by the probability-flow ODE, against densities known in closed form."""

import functools
import math

import pytest
import torch

from minidiff import schedules
from minidiff.likelihood import bits_per_dim, dequantize, log_likelihood
from minidiff.oracles import Gaussian, Mixture

SCHEDULES = {
    "vp": schedules.linear(None), "cosine": schedules.cosine(None), "table": schedules.linear(1000),
    "ve": schedules.variance_exploding(1e-4, 50.0), "edm": schedules.edm(), "flow": schedules.flow(),
}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def oracles():
    matrices = torch.randn(2, 3, 3, generator=generator(), dtype=torch.float64)
    matrices = 0.1 * matrices @ matrices.mT + 0.05 * torch.eye(3)
    yield Gaussian([0.3, -0.2, 0.5], matrices[0])
    yield Mixture([0.3, 0.7], [[0.5, 0.0, 0.2], [-0.4, 0.3, 0.0]], matrices)


@pytest.mark.parametrize("name", SCHEDULES)
def test_density_of_gaussian_and_mixture(name):
    schedule = SCHEDULES[name]
    for oracle in oracles():
        x0 = oracle.sample(6, generator())
        true = oracle.log_density(x0, 0.0, schedule)
        denoise = oracle.denoiser(schedule)
        prior = functools.partial(oracle.log_density, t=1.0, schedule=schedule)
        exact = log_likelihood(denoise, schedule, x0, trace="exact", prior=prior)
        assert (exact - true).abs().max() < 2e-4
        plain = log_likelihood(denoise, schedule, x0, trace="exact")
        assert (plain - true).abs().max() < 0.05  # what alpha(1) > 0 leaves of the data's mean
        if name in ("cosine", "flow"):
            assert (plain - true).abs().max() < 2e-4


def test_order_four():
    oracle, schedule = list(oracles())[1], schedules.flow()
    x0 = oracle.sample(6, generator())
    denoise = oracle.denoiser(schedule)
    runs = []
    for n in (20, 40, 240):
        times = [0.01 + 0.99 * k / n for k in range(n + 1)]
        runs.append(log_likelihood(denoise, schedule, x0, trace="exact", times=times))
    errors = [(run - runs[-1]).square().mean().sqrt() for run in runs[:2]]
    assert math.log2(errors[0] / errors[1]) > 3.7


def test_hutchinson_is_right_on_average():
    oracle, schedule = list(oracles())[1], schedules.linear(None)
    x0 = oracle.sample(2, generator())
    options = {"denoise": oracle.denoiser(schedule), "schedule": schedule, "steps": 20}
    exact = log_likelihood(x0=x0, trace="exact", **options)
    many = log_likelihood(x0=x0.repeat(500, 1), generator=generator(), **options).view(500, 2)
    error = many.std(0) / 500**0.5
    assert ((many.mean(0) - exact).abs() < 4 * error).all() and (error > 0).all()
    few = log_likelihood(x0=x0.repeat(50, 1), probes=10, generator=generator(), **options).view(50, 2)
    assert (few.std(0) < 0.5 * many.std(0)).all()


def test_pictures_in_float32():
    oracle, schedule = Gaussian(torch.zeros(3, 4, 4), 0.25), schedules.flow()
    x0 = oracle.sample(4, generator()).float()
    answer = log_likelihood(oracle.denoiser(schedule), schedule, x0, steps=30, generator=generator())
    assert answer.dtype == torch.float32 and not answer.requires_grad  # one probe is exact: the Jacobian is diagonal
    torch.testing.assert_close(answer, oracle.log_density(x0, 0.0, schedule), rtol=0, atol=2e-2)


def test_bits_per_dim():
    x0 = torch.randint(0, 256, (2, 3, 8, 8), generator=generator()) / 127.5 - 1
    moved = dequantize(x0, generator())
    assert ((moved - x0).abs() <= 0.5 / 127.5 + 1e-6).all() and (moved != x0).any()
    uniform = torch.full((2,), -3 * 64 * math.log(256 / 127.5))  # the density of noise over all bins: 8 bits
    torch.testing.assert_close(bits_per_dim(uniform, (3, 8, 8)), torch.full((2,), 8.0))


def test_refusals():
    oracle, schedule = Gaussian([0.0, 0.0], 1.0), schedules.flow()
    denoise, x0 = oracle.denoiser(schedule), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="Did you mean 'hutchinson'"):
        log_likelihood(denoise, schedule, x0, trace="hutchison")
    for options in ({"steps": 0}, {"probes": 0}, {"t_start": 0.0}, {"times": [0.0, 1.0]}):
        with pytest.raises(ValueError, match="must be"):
            log_likelihood(denoise, schedule, x0, **options)
    with pytest.raises(ValueError, match="x0 must be floats, got torch.uint8"):
        log_likelihood(denoise, schedule, x0.byte())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("schedule", [schedules.cosine(None), schedules.flow(), schedules.linear()], ids=str)
def test_a_single_step_goes_all_the_way(schedule):
    oracle = Gaussian([0.0, 0.0], 1.0)  # every path is straight here, and nothing is stretched
    x0 = torch.tensor([[0.3, -1.0]]).double()
    answer = log_likelihood(oracle.denoiser(schedule), schedule, x0, steps=1, trace="exact")
    assert answer.item() == pytest.approx(-(0.09 + 1) / 2 - math.log(2 * math.pi), abs=0.02)
