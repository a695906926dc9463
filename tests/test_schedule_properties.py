"""What holds for every schedule at every time, tried at times that hypothesis picks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidiff import schedules
from minidiff.prediction import KINDS, Prediction, target

SCHEDULES = {
    "linear": schedules.linear(),
    "linear, 10 steps": schedules.linear(10, beta_max=5.0),
    "linear, continuous": schedules.linear(None),
    "cosine": schedules.cosine(),
    "cosine, continuous": schedules.cosine(None),
    "scaled_linear": schedules.scaled_linear(),
    "sigmoid": schedules.sigmoid(),
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear()),
    "sub_vp": schedules.sub_vp(),
    "variance_exploding": schedules.variance_exploding(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "flow, shift 3": schedules.flow(shift=3.0),
}
VARIANCE_PRESERVING = [name for name, schedule in SCHEDULES.items() if schedule.betas is not None or name in (
    "linear, continuous", "cosine, continuous")]  # fmt: skip
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
times = st.floats(1e-4, 1.0)
quick = settings(max_examples=60, deadline=None, derandomize=True)


@every_schedule
@quick
@given(t=times)
def test_inverse_undoes_log_snr(schedule, t):
    log_snr = schedule.log_snr(t)
    if math.isinf(log_snr):
        assert schedule.inverse(log_snr) == 1.0
        return
    assert schedule.inverse(log_snr) == pytest.approx(t, rel=1e-6, abs=1e-9)
    if abs(log_snr) < 40:  # beyond, the times closest to 1 are too few to tell
        assert schedule.log_snr(schedule.inverse(log_snr)) == pytest.approx(log_snr, rel=1e-6, abs=1e-6)


@every_schedule
@quick
@given(pair=st.tuples(times, times))
def test_alpha_falls_and_sigma_rises(schedule, pair):
    early, late = sorted(pair)
    (alpha_early, sigma_early), (alpha_late, sigma_late) = schedule(early), schedule(late)
    assert alpha_early >= alpha_late >= 0
    assert sigma_early <= sigma_late
    if late - early > 1e-5:
        assert schedule.log_snr(early) > schedule.log_snr(late)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
@quick
@given(t=times)
def test_variance_is_preserved(name, t):
    alpha, sigma = SCHEDULES[name](t)
    assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-12)


@every_schedule
@quick
@given(t=times)
def test_float_and_tensor_agree(schedule, t):
    on_floats = schedule(t)
    on_tensors = schedule(torch.tensor([t], dtype=torch.float64))
    for a, b in zip(on_floats, on_tensors):
        assert b.item() == pytest.approx(a, rel=1e-9, abs=1e-12)


@every_schedule
@quick
@given(t=st.floats(1e-3, 0.999))
def test_rates_are_the_slopes_of_alpha_and_sigma(schedule, t):
    step = 1e-7
    if schedule.steps and math.ceil((t - step) * schedule.steps - 1e-6) != math.ceil(t * schedule.steps - 1e-6):
        return  # a kink lies between
    slopes = [(b - a) / step for a, b in zip(schedule(t - step), schedule(t))]
    if schedule.name == "zero_terminal_snr" and t > 0.998:
        return
    assert schedule.rates(t) == pytest.approx(slopes, rel=1e-3, abs=1e-4)


@every_schedule
def test_boundary_values_are_finite(schedule):
    assert schedule(0.0) == (1.0, 0.0)
    for t in (0.0, 1.0):
        assert all(map(math.isfinite, schedule(t)))
        assert all(torch.isfinite(v).all() for v in schedule(torch.tensor([t])))
    alpha, sigma = schedule(1.0)
    assert sigma > 0.9 and alpha <= 1
    assert schedule.inverse(math.inf) == 0.0 and schedule.inverse(-math.inf) == 1.0
    assert torch.equal(schedule.inverse(torch.tensor([math.inf, -math.inf])), torch.tensor([0.0, 1.0]))


@every_schedule
@pytest.mark.parametrize("kind", KINDS)
@quick
@given(t=st.floats(2e-2, 0.98), x0=st.floats(-1, 1), eps=st.floats(-4, 4))
def test_conversions_round_trip(schedule, kind, t, x0, eps):
    alpha, sigma = schedule(t)
    x0, eps = torch.tensor([x0], dtype=torch.float64), torch.tensor([eps], dtype=torch.float64)
    x_t = alpha * x0 + sigma * eps
    prediction = Prediction(kind, x_t, target(kind, x0, eps, alpha, sigma), alpha, sigma)
    size = 1e-9 * max(1.0, sigma / alpha)  # what rounding of x_t costs where little of x0 is left in it
    torch.testing.assert_close(prediction.x0, x0, atol=size, rtol=1e-9)
    torch.testing.assert_close(prediction.eps, eps, atol=1e-9 * max(1.0, alpha / sigma), rtol=1e-9)
    for other in KINDS:
        again = prediction.replace(other, target(other, prediction.x0, prediction.eps, alpha, sigma))
        torch.testing.assert_close(again.x0, x0, atol=10 * size, rtol=1e-8)
    torch.testing.assert_close(prediction.v, alpha * eps - sigma * x0, atol=1e-8 * max(1.0, sigma), rtol=1e-8)
    torch.testing.assert_close(prediction.score, -eps / sigma, atol=1e-8 / sigma**2, rtol=1e-8)
