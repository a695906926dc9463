"""Samplers of the reverse SDE: distributions without Monte Carlo, noise, last step, every schedule, options."""

import math

import orders
import pytest
import torch
from test_samplers_ode import ALL_SCHEDULES, operations, uniform

from minidiff import schedules, seeded_noise
from minidiff.prediction import Prediction
from minidiff.samplers.ancestral import ddpm
from minidiff.samplers.ode import heun
from minidiff.samplers.sde import churn, euler_maruyama, predictor_corrector, reverse_diffusion
from minidiff.spacings import spacing

STOCHASTIC = {
    "euler_maruyama": (euler_maruyama, {}),
    "reverse_diffusion": (reverse_diffusion, {}),
    "churn": (churn, {"churn": 10.0}),
    "pc, reverse_diffusion": (predictor_corrector, {}),
    "pc, euler_maruyama": (predictor_corrector, {"predictor": "euler_maruyama", "norms": "expected"}),
    "pc, ddpm": (predictor_corrector, {"predictor": "ddpm", "norms": "batch"}),
}


def noise_from(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def final_variance(sampler, schedule, times, draws=1, **options):
    """Exact: picture k has a one for source of randomness k and zeros for all others, and all is linear."""
    ones = iter(torch.eye(draws * (len(times) - 1) + 1, dtype=torch.float64)[:, :, None])
    x_T = math.sqrt(true_variance(schedule, times[0])) * next(ones)
    *_, last = sampler(orders.gaussian_denoiser(schedule), schedule, x_T, times, lambda x: next(ones), **options)
    assert next(ones, None) is None  # all that was to be drawn has been
    return last.x.square().sum().item()


def true_variance(schedule, t):
    alpha, sigma = schedule(t)
    return alpha**2 * orders.VARIANCE + sigma**2


@pytest.mark.parametrize("schedule", [schedules.linear(None), schedules.sub_vp()], ids=str)
@pytest.mark.parametrize("sampler, options, order", [
    (euler_maruyama, {}, 1), (reverse_diffusion, {}, 1), (churn, {}, 2), (churn, {"churn": 5.0}, 2),
    (predictor_corrector, {"norms": "expected", "predictor": "euler_maruyama"}, 1),
    (predictor_corrector, {"norms": "expected", "predictor": "ddpm", "corrections": 0}, 1),
])  # fmt: skip
def test_order_of_convergence_of_the_variance(sampler, options, order, schedule):
    draws = 2 if sampler is predictor_corrector and options.get("corrections") != 0 else 1
    if draws == 2:  # the corrections' own error falls with the steps only if they shrink, too
        options = {**options, "snr": 0.01}
    errors = []
    for steps in (200, 400):
        variance = final_variance(sampler, schedule, uniform(steps, 0.05), draws, **options)
        errors.append(abs(variance - true_variance(schedule, 0.05)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=str)
def test_finite_and_near_the_data_on_every_schedule(schedule, name):
    sampler, options = STOCHASTIC[name]
    noise = noise_from(0)
    x = schedule.start((200, 1, 4, 4), noise).double()
    for steps in (1, 2, 100):
        run = list(sampler(orders.gaussian_denoiser(schedule), schedule, x, uniform(steps), noise, **options))
        assert len(run) == steps and all(step.x.isfinite().all() for step in run)
    if schedule.name != "edm":  # for it 100 uniform steps are too few
        assert 0.23 < run[-1].x.var() < 0.45


@pytest.mark.parametrize(
    "name, times", [("euler_maruyama", 1), ("reverse_diffusion", 1), ("churn", 1), ("pc, ddpm", 2)]
)
def test_noise_is_drawn_in_every_step_and_none_reaches_the_picture_in_the_last(name, times):
    sampler, options = STOCHASTIC[name]
    schedule, calls = schedules.linear(None), []

    def noise(x):
        calls.append(len(x))
        return torch.full_like(x, float("nan") if len(calls) == 7 * times else 1.0)

    options = {**options, "churn_min": 1.0} if sampler is churn else options  # nothing to be added at the end
    x = torch.ones(3, 1, 2, 2)
    *_, last = sampler(orders.gaussian_denoiser(schedule), schedule, x, uniform(7), noise, **options)
    assert calls == [3] * 7 * times and last.x.isfinite().all() and last.t == 0.0


def test_corrector_draws_before_the_predictor():
    schedule, x = schedules.linear(None), torch.ones(2, 1, 2, 2)
    noises = [torch.zeros_like(x), torch.ones_like(x)]  # a corrector without noise does nothing
    denoise = orders.gaussian_denoiser(schedule)

    def run(sampler, noises, **options):
        drawn = iter(noises)
        [step] = sampler(denoise, schedule, x, [0.5, 0.4], lambda x: next(drawn), **options)
        return step.x

    predicted = run(euler_maruyama, noises[1:])
    torch.testing.assert_close(run(predictor_corrector, noises, predictor="euler_maruyama"), predicted)
    swapped = run(predictor_corrector, noises[::-1], predictor="euler_maruyama")
    assert (swapped - predicted).abs().max() > 0.01


@pytest.mark.parametrize("predictor, sampler", [
    ("euler_maruyama", euler_maruyama), ("reverse_diffusion", reverse_diffusion), ("ddpm", ddpm)
])  # fmt: skip
def test_without_corrections_only_the_predictor_is_left(predictor, sampler):
    schedule, x = schedules.cosine(), torch.randn(3, 1, 2, 2)
    denoise = orders.gaussian_denoiser(schedule)
    runs = [list(sampler(denoise, schedule, x, uniform(5), noise_from(0)))]
    runs += [list(predictor_corrector(denoise, schedule, x, uniform(5), noise_from(0), corrections=0,
                                      predictor=predictor))]  # fmt: skip
    for one, other in zip(*runs):
        torch.testing.assert_close(one.x, other.x)
        assert one.t == other.t


@pytest.mark.parametrize("norms, alike", [("picture", True), ("expected", True), ("batch", False)])
def test_pictures_do_not_depend_on_their_neighbours_except_with_the_norms_of_the_batch(norms, alike):
    schedule, x = schedules.linear(), torch.randn(5, 1, 4, 4).double()
    denoise = orders.gaussian_denoiser(schedule)

    def run(first, last):
        noise = seeded_noise([(0, i) for i in range(first, last)])
        return list(predictor_corrector(denoise, schedule, x[first:last], uniform(5), noise, norms=norms))[-1].x

    difference = (run(0, 5) - torch.cat([run(0, 2), run(2, 5)])).abs().max()
    assert (difference < 1e-12) == alike


@pytest.mark.parametrize("norms", ["picture", "batch", "expected"])
def test_langevin_keeps_the_distribution(norms):
    """A hundred corrections at one time, from the wrong variance; the predictor's step is tiny."""
    schedule, noise = schedules.linear(None), noise_from(0)
    x = 1.5 * noise(torch.empty(64, 3, 8, 8, dtype=torch.float64))
    steps = predictor_corrector(
        orders.gaussian_denoiser(schedule), schedule, x, [0.5, 0.4999], noise, corrections=100, norms=norms,
        predictor="ddpm",
    )  # fmt: skip
    assert next(steps).x.var().item() == pytest.approx(true_variance(schedule, 0.5), rel=0.06)


def test_a_network_that_says_nothing_gives_no_nan():
    schedule = schedules.linear()

    def denoise(x, t):
        return Prediction("eps", x, torch.zeros_like(x), *schedule(t))

    for norms in ("picture", "batch"):
        run = predictor_corrector(denoise, schedule, torch.randn(2, 1, 2, 2), uniform(4), noise_from(0), norms=norms)
        assert all(step.x.isfinite().all() for step in run)


# --- EDM's churn ------------------------------------------------------------------------------------------------------


def test_churn_of_zero_is_heun_on_edm_and_adds_no_noise():
    schedule = schedules.edm()
    denoise, times = orders.gaussian_denoiser(schedule), spacing(schedule, 9, "karras")
    x = 80 * torch.randn(3, 2).double()
    for options in ({}, {"churn": 40.0, "churn_min": 90.0}):
        for one, other in zip(
            churn(denoise, schedule, x, times, lambda x: x * math.nan, **options), heun(denoise, schedule, x, times)
        ):
            torch.testing.assert_close(one.x, other.x)
            torch.testing.assert_close(one.x0, other.x0)


@pytest.mark.parametrize("schedule, past", [
    (schedules.edm(), True), (schedules.variance_exploding(), False), (schedules.linear(), False),
    (schedules.flow(), False),
], ids=str)  # fmt: skip
def test_noise_is_raised_past_the_last_time_on_edm_only(schedule, past):
    seen = []
    exact = orders.gaussian_denoiser(schedule)

    def denoise(x, t):
        seen.append(t)
        return exact(x, t)

    list(churn(denoise, schedule, torch.ones(2, 1), [1.0, 0.9, 0.8], torch.zeros_like, churn=0.4))
    assert (max(seen) > 1) == past
    seen.clear()
    list(churn(denoise, schedule, torch.ones(2, 1), [0.8, 0.7], torch.zeros_like, churn=0.2))
    assert schedule.log_snr(0.8) - schedule.log_snr(seen[0]) == pytest.approx(2 * math.log(1.2), rel=1e-6)


def test_churn_noise_scales_what_is_added():
    schedule, t, s = schedules.edm(), 0.5, 0.4
    ends = []
    for scale in (0.0, 1.0, 2.0):
        [step] = churn(orders.gaussian_denoiser(schedule), schedule, torch.zeros(1, 1).double(), [t, s],
                       torch.ones_like, churn=0.2, churn_noise=scale)  # fmt: skip
        ends.append(step.x.item())
    assert ends[0] == 0 and ends[2] == pytest.approx(2 * ends[1])


# --- what is refused, and cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler, options, message", [
    (predictor_corrector, {"predictor": "reverse"}, "Did you mean 'reverse_diffusion'"),
    (predictor_corrector, {"norms": "pictures"}, "Did you mean 'picture'"),
    (predictor_corrector, {"corrections": -1}, "corrections must be a whole number of at least 0, got -1"),
    (predictor_corrector, {"snr": -0.1}, "snr must be at least 0, got -0.1"),
    (predictor_corrector, {"dt": 0.1}, "dt is an option of predictor=\"euler_maruyama\" .* for 'reverse_diffusion'"),
    (predictor_corrector, {"variance": "large"}, "variance of \"ddpm\"; got dt=None and variance='large'"),
    (predictor_corrector, {"predictor": "ddpm", "variance": "larg"}, "Did you mean 'large'"),
    (euler_maruyama, {"dt": -0.1}, "dt is the length of a step, above 0, got -0.1"),
    (churn, {"churn": -1.0}, "churn must be at least 0, got -1.0"),
    (churn, {"churn_min": 2.0, "churn_max": 1.0}, "expected 0 <= churn_min <= churn_max, got 2.0 and 1.0"),
])  # fmt: skip
def test_bad_options_are_refused(sampler, options, message):
    schedule = schedules.linear()
    with pytest.raises(ValueError, match=message):
        next(sampler(orders.gaussian_denoiser(schedule), schedule, torch.ones(1, 1), [1.0, 0.0], torch.ones_like,
                     **options))  # fmt: skip


@pytest.mark.parametrize("sampler, most", [(euler_maruyama, 10), (reverse_diffusion, 10), (churn, 16)])
def test_operations_of_a_step(sampler, most):
    assert operations(sampler) <= most
    assert operations(sampler, "x0", schedule=schedules.edm()) <= most
