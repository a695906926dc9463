"""Euler, Heun and midpoint on the probability-flow ODE: order, exactness, the last step, every schedule, cost."""

import math

import orders
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minidiff import Diffusion, schedules
from minidiff.prediction import Prediction, clip
from minidiff.samplers.ancestral import ddim
from minidiff.samplers.ode import drift, euler, heun, midpoint

SOLVERS = [euler, heun, midpoint]
ALL_SCHEDULES = [
    schedules.linear(), schedules.linear(None), schedules.cosine(), schedules.cosine(None), schedules.scaled_linear(),
    schedules.sigmoid(), schedules.zero_terminal_snr(schedules.linear(100)), schedules.sub_vp(),
    schedules.variance_exploding(), schedules.edm(), schedules.flow(), schedules.flow(3.0),
]  # fmt: skip


def uniform(steps, end=0.0):
    return [1 + (end - 1) * i / steps for i in range(steps)] + [end]


def run(sampler, schedule, x, times, **options):
    return [step.x for step in sampler(orders.gaussian_denoiser(schedule), schedule, x, times, **options)]


@pytest.mark.parametrize("schedule", [schedules.linear(None), schedules.flow(), schedules.sub_vp()], ids=str)
@pytest.mark.parametrize("sampler, order", [(euler, 1), (heun, 2), (midpoint, 2)])
def test_order_of_convergence_to_the_exact_solution(sampler, order, schedule):
    """The ODE of a Gaussian multiplies x by the ratio of standard deviations."""
    std = [math.sqrt(a**2 * orders.VARIANCE + s**2) for a, s in (schedule(1.0), schedule(0.1))]
    x, errors = torch.ones(1, 1, dtype=torch.float64), []
    for steps in (50, 100):
        errors.append(abs(run(sampler, schedule, x, uniform(steps, 0.1))[-1].item() - std[1] / std[0]))
    measured = math.log2(errors[0] / errors[1])
    assert measured > order - 0.15
    if sampler is not midpoint:  # its leading error vanishes on the Gaussian and the straight path
        assert measured < order + 0.15


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=str)
def test_finite_and_towards_the_data_on_every_schedule(schedule, sampler):
    generator = torch.Generator().manual_seed(0)
    x = schedule.start((64, 1, 2, 2), lambda x: torch.randn(x.shape, generator=generator, dtype=torch.float64))
    for steps in (1, 2, 50):
        ends = run(sampler, schedule, x, uniform(steps))
        assert all(end.isfinite().all() for end in ends)
    if schedule.name != "edm":  # for it 50 uniform steps are too few
        assert 0.1 < ends[-1].var() < 0.45


@pytest.mark.parametrize("sampler", SOLVERS)
def test_one_point_is_reached_in_one_step_of_a_flow(sampler):
    point, schedule = torch.tensor([[0.3, -0.7]]).double(), schedules.flow()

    def denoise(x, t):
        return Prediction("flow", x, (x - point) / t, *schedule(t))

    x = torch.randn(5, 2).double()
    [step] = sampler(denoise, schedule, x, [1.0, 0.0])
    torch.testing.assert_close(step.x, point.expand(5, 2))
    torch.testing.assert_close(step.x0, point.expand(5, 2))


@pytest.mark.parametrize("schedule", [schedules.flow(), schedules.edm()], ids=str)
def test_euler_in_t_is_ddim_where_sigma_over_alpha_plus_sigma_or_sigma_is_t(schedule):
    x, times = torch.randn(3, 4).double(), uniform(7)
    for one, other in zip(run(euler, schedule, x, times), run(ddim, schedule, x, times)):
        torch.testing.assert_close(one, other)
    different = [run(sampler, schedules.linear(), x, times)[-1] for sampler in (euler, ddim)]
    assert (different[0] - different[1]).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=str)
def test_drift_is_the_slope_of_the_path(schedule):
    t, s, x0, eps = 0.63, 0.62, 0.7, -1.3
    (alpha, sigma), (p, q) = schedule(t), drift(schedule, t, s)
    alpha_rate, sigma_rate = schedule.rates(t)
    assert p * (alpha * x0 + sigma * eps) + q * x0 == pytest.approx(alpha_rate * x0 + sigma_rate * eps)


@pytest.mark.parametrize("sampler, evaluations", [(euler, 6), (heun, 11), (midpoint, 11)])
def test_step_to_zero_is_eulers_and_no_noise_is_drawn(sampler, evaluations):
    schedule, seen = schedules.linear(), []
    exact = orders.gaussian_denoiser(schedule)

    def denoise(x, t):
        seen.append(t)
        return exact(x, t)

    def noise(x):
        raise AssertionError("deterministic samplers draw no noise")

    steps = list(sampler(denoise, schedule, torch.ones(2, 1), uniform(6), noise))
    assert len(seen) == evaluations and min(seen) == pytest.approx(1 / 6)
    assert [step.t for step in steps] == uniform(6)[1:]
    [last] = euler(exact, schedule, steps[-2].x, [steps[-2].t, 0.0])
    torch.testing.assert_close(steps[-1].x, last.x)


def test_dt_replaces_the_distance_of_the_times():
    schedule, x = schedules.linear(None), torch.randn(4, 1).double()
    torch.testing.assert_close(run(euler, schedule, x, [1.0, 0.8], dt=0.05)[0], run(euler, schedule, x, [1.0, 0.95])[0])


class Operations(TorchDispatchMode):
    """Counts tensor operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Constant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = torch.full((1, 3, 4, 4), 0.1)

    def forward(self, x, time, y=None):
        return self.out


def operations(sampler, kind="eps", steps=8, schedule=None, noise=lambda x: x, **options):
    """The largest number of tensor operations of a step, the whole of `denoise` and clipping included."""
    diffusion = Diffusion(Constant(), schedule or schedules.linear(), kind, shape=(3, 4, 4))
    denoise, counts = clip(diffusion.denoise), []
    stepper = sampler(denoise, diffusion.schedule, torch.randn(1, 3, 4, 4), uniform(steps), noise, **options)
    for _ in range(steps):
        with Operations() as counter:
            next(stepper)
        counts.append(counter.count)
    return max(counts)


@pytest.mark.parametrize("sampler, most", [(euler, 8), (heun, 16), (midpoint, 16)])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_operations_of_a_step(sampler, most, kind):
    assert operations(sampler, kind) <= most


@pytest.mark.parametrize("dt", [0, -0.1, math.nan])
def test_a_step_has_a_length(dt):
    with pytest.raises(ValueError, match=f"dt is the length of a step, above 0, got {dt}"):
        operations(euler, dt=dt)
