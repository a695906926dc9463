"""Schedules and spacings: definitions, inverses, rates by finite differences, and what is refused."""

import math

import numpy as np
import pytest
import torch

from minidiff import schedules
from minidiff.samplers import seeded_noise
from minidiff.schedules import make_schedule
from minidiff.spacings import SPACINGS, spacing

ALL = [
    schedules.linear(), schedules.cosine(), schedules.linear(None), schedules.cosine(None), schedules.sigmoid(),
    schedules.scaled_linear(), schedules.variance_exploding(), schedules.edm(), schedules.flow(),
    schedules.zero_terminal_snr(schedules.linear()),
]  # fmt: skip
TIMES = (0.0013, 0.1234, 0.5, 0.777, 0.99)
each_schedule = pytest.mark.parametrize("schedule", ALL, ids=str)


@each_schedule
def test_data_is_untouched_at_zero(schedule):
    assert schedule(0.0) == (1.0, 0.0)
    alpha, sigma = schedule(torch.zeros(3))
    assert torch.equal(alpha, torch.ones(3)) and torch.equal(sigma, torch.zeros(3))
    assert schedule.rates(torch.zeros(1))[1] >= 0  # the noise grows: not -inf from a zero with a sign


@each_schedule
def test_tensors_agree_with_floats(schedule):
    t = torch.tensor(TIMES, dtype=torch.float64)
    for precise, rough, dtype in ((1e-12, 1e-12, torch.float64), (3e-6, 3e-6, torch.float32)):
        alpha, sigma = schedule(t.to(dtype))
        assert alpha.dtype == dtype
        floats = torch.tensor([schedule(time) for time in TIMES], dtype=torch.float64)
        torch.testing.assert_close(alpha.double(), floats[:, 0], rtol=rough, atol=precise)
        torch.testing.assert_close(sigma.double(), floats[:, 1], rtol=rough, atol=precise)


@each_schedule
def test_inverse_undoes_log_snr(schedule):
    for t in TIMES:
        assert schedule.inverse(schedule.log_snr(t)) == pytest.approx(t, abs=1e-9)
    t = torch.tensor(TIMES, dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule.log_snr(t)), t, rtol=0, atol=1e-9)
    assert schedule.inverse(math.inf) == 0.0
    ends = torch.tensor([math.inf, -math.inf])
    assert schedule.inverse(ends).tolist() == [0.0, 1.0]


@each_schedule
def test_rates_are_derivatives(schedule):
    h = 1e-7
    for t in (0.0011, 0.1237, 0.5003, 0.7771, 0.9901):  # between the points of the discrete schedules
        higher, lower = schedule(t + h), schedule(t - h)
        for rate, above, below in zip(schedule.rates(t), higher, lower):
            assert rate == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-4)
        tensors = schedule.rates(torch.tensor([t], dtype=torch.float64))
        assert [rate.item() for rate in tensors] == pytest.approx(list(schedule.rates(t)), rel=1e-9)


def test_sde_of_the_continuous_schedules_in_closed_form():
    """Song et al. 2021, appendix B: f = -beta / 2, g^2 = beta (VP); g^2 = sigma^2 2 log(smax / smin) (VE)."""
    for t in TIMES:
        beta = 0.1 + 19.9 * t
        assert schedules.linear(None).sde(t) == pytest.approx((-beta / 2, beta), rel=1e-10)
        f, g2 = schedules.variance_exploding().sde(t)
        assert f == 0 and g2 == pytest.approx((0.01 * 5000**t) ** 2 * 2 * math.log(5000), rel=1e-12)
    assert schedules.edm().sde(0.5) == pytest.approx((0, 2 * 80**2 * 0.5))
    assert schedules.flow().sde(0.5) == pytest.approx((-2, 2))


def test_discrete_points_are_exact_and_log_alpha_is_interpolated_between_them():
    schedule = schedules.linear()
    table = np.sqrt(schedule.alphas_cumprod)
    at_points = [schedule((i + 1) / 1000)[0] for i in (0, 499, 999)]
    assert at_points == pytest.approx(table[[0, 499, 999]].tolist(), rel=1e-14)
    between = schedule(0.5005)[0]
    assert between == pytest.approx(math.sqrt(table[499] * table[500]), rel=1e-12)


def test_discrete_linear_approaches_the_continuous_one():
    gaps = [abs(schedules.linear(steps)(0.5)[0] - schedules.linear(None)(0.5)[0]) for steps in (1000, 4000)]
    assert gaps[1] < gaps[0] / 3 < 1e-3


@pytest.mark.parametrize("steps", [1, 50, 8000])
def test_float32_snaps_to_the_points_whatever_their_number(steps):
    schedule = schedules.cosine(steps)
    t = (torch.arange(steps) + 1) / steps
    alphas = schedule(t)[0].double()
    np.testing.assert_allclose(alphas, np.sqrt(schedule.alphas_cumprod), rtol=1e-6)
    before = schedule(t - 1 / steps)[0].double()
    np.testing.assert_allclose(before[1:], alphas[:-1], rtol=1e-6)
    assert schedule(torch.tensor([1e-5]))[1] > 0  # near a point is not on it


def test_zero_terminal_snr_ends_in_noise_and_keeps_its_first_step():
    schedule = schedules.zero_terminal_snr(schedules.scaled_linear())
    assert schedule(1.0) == (0.0, 1.0) and schedule.log_snr(1.0) == -math.inf
    assert schedule(1 / 1000)[0] == pytest.approx(schedules.scaled_linear()(1 / 1000)[0], rel=1e-12)


def test_start_has_the_standard_deviation_of_its_schedule():
    def noise(x):
        return torch.ones_like(x)

    for schedule, std in ((schedules.linear(), 1), (schedules.flow(), 1), (schedules.variance_exploding(), 50)):
        assert schedule.start((2, 3), noise).tolist() == [[std] * 3] * 2
    assert schedules.edm().start((1,), noise, t=0.5).item() == 40
    assert schedules.linear().start((4, 2), seeded_noise(range(4))).std() > 0.2


@each_schedule
def test_name_and_arguments_make_the_same_schedule(schedule):
    again = make_schedule(schedule.name, **schedule.arguments)
    assert [again(t) for t in TIMES] == [schedule(t) for t in TIMES]


@pytest.mark.parametrize("kind", SPACINGS)
def test_times_fall_from_the_start_to_the_end(kind):
    times = spacing(schedules.cosine(), 20, kind)
    assert len(times) == 21 and times[-1] == 0.0 and times[0] <= 1
    assert all(a > b for a, b in zip(times, times[1:]))
    assert spacing(schedules.cosine(), 20, kind, t_end=1e-4)[-1] == 1e-4
    assert len(spacing(schedules.cosine(), 1, kind)) == 2


@pytest.mark.parametrize("kind", ["karras", "log_snr"])
@pytest.mark.parametrize("schedule", [schedules.zero_terminal_snr(schedules.linear(100)), schedules.flow()], ids=str)
def test_scales_without_an_end_start_just_below_pure_noise(schedule, kind):
    times = spacing(schedule, 10, kind)
    assert len(times) == 11 and 0.98 < times[0] < 1 and all(a > b for a, b in zip(times, times[1:]))


def test_spacings_by_their_definitions():
    linear = schedules.linear()
    assert spacing(linear, 4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert spacing(linear, 4, "trailing") == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert spacing(linear, 4, "leading") == [0.751, 0.501, 0.251, 0.001, 0.0]
    assert spacing(linear, 2, "quadratic") == [1.0, 0.25, 0.0]
    edm = schedules.edm()
    sigmas = [edm(t)[1] for t in spacing(edm, 18, "karras")]
    i = np.arange(18) / 17
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas == pytest.approx([*expected, 0.0], rel=1e-9)
    log_snrs = [linear.log_snr(t) for t in spacing(linear, 10, "log_snr", t_end=1e-3)]
    assert np.diff(log_snrs) == pytest.approx([np.diff(log_snrs).mean()] * 10)


@pytest.mark.parametrize(
    "bad, says",
    [
        (lambda: make_schedule("cosin"), "'cosine'"),
        (lambda: schedules.linear(0), "at least 1"),
        (lambda: schedules.from_betas("mine", {}, [0.1, 1.2]), r"\(0, 1\]"),
        (lambda: schedules.linear(10), "more steps"),
        (lambda: schedules.scaled_linear(None), "got None; linear and cosine"),
        (lambda: schedules.flow(math.inf), "shift must be above 0.*got inf"),
        (lambda: schedules.variance_exploding(0), "got sigma_min=0"),
        (lambda: schedules.linear()(500), r"got 500; step i of 1000 is at t = \(i \+ 1\) / 1000"),
        (lambda: schedules.linear()(torch.tensor([500])), "floats from 0 to 1, got torch.int64"),
        (lambda: schedules.zero_terminal_snr(schedules.flow()), "discrete"),
        (lambda: schedules.zero_terminal_snr(schedules.linear(1)), "at least 2 steps"),
        (lambda: spacing(schedules.linear(), 4, "quadratic", t_end=-1.0), "t_end must be at least 0 .* got -1"),
        (lambda: spacing(schedules.linear(), 4, "leading", t_end=1e-3), "below the last time before it, 0.001"),
        (lambda: spacing(schedules.linear(), 0), "at least 1, got 0"),
        (lambda: spacing(schedules.linear(), 2.5), "got 2.5"),
        (lambda: spacing(schedules.linear(), 1001), "at most 1000"),
        (lambda: spacing(schedules.linear(), 10, "karas"), "'karras'"),
        (lambda: spacing(schedules.flow(), 10, "trailing"), "uniform"),
        (lambda: spacing(schedules.linear(), 37, "ddim"), "exactly 37 of 1000"),
        (lambda: spacing(schedules.linear(100), "60,10", "sections"), "section 1 of 2 has 50"),
        (lambda: spacing(schedules.linear(100), "a,b", "sections"), "counts"),
    ],
)  # fmt: skip
def test_bad_values_are_named(bad, says):
    with pytest.raises(ValueError, match=says):
        bad()
