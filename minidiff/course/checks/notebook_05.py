"""Checks of notebook 05: budgets in evaluations, a single-step solver of order two, and the method of Adams."""

import math

import torch

from minidiff import samplers, schedules
from minidiff.course.exercises import Wrong, compare, exercise
from minidiff.oracles import Mixture


@exercise("a fair race gives everybody the same evaluations, and 2M twice the steps of Heun.")
def check_steps_for(steps_for):
    for n in (35, 20, 7):
        two = {  # the wrong ideas come first, so that the number of the last step decides
            "this is the number of evaluations; each step of it costs two": n,
            "Heun's last step to t = 0 is Euler's and costs one, so N steps cost 2 N - 1, not 2 N": n // 2,
            "this is the cost of that many steps; the other way round, how many steps for this cost?": 2 * n - 1,
            "that would cost one evaluation more than there are": (n + 1) // 2,
            "the cheap last step is counted already: N steps cost 2 N - 1, so N is the whole part of (n + 1) / 2":
                n // 2 + 1,
            "steps are whole numbers: round down, with // 2": n / 2,
            "steps are whole numbers: round down": (n + 1) / 2,
        }  # fmt: skip
        one = {
            "it evaluates once a step; the memory of the step before costs nothing": n // 2,
            "it evaluates once a step, in the last one too": (n + 1) // 2,
            "its first step has no step before, but it is a step, and costs one evaluation": n - 1,
        }
        for sampler, expected, mistakes in (
            ("ddim", n, one), ("dpmpp_2m", n, one), ("heun", (n + 1) // 2, two), ("predictor_corrector", n // 2, two),
        ):  # fmt: skip
            found = steps_for(n, sampler)
            named = {f"for {sampler} and {n} evaluations, {words}": value for words, value in mistakes.items()}
            compare(found, expected, named, name=f"the number of steps of {sampler} for {n} evaluations")


def _midpoint_step(denoise, schedule, x, t, s):
    """x at s by the package, and what the usual mistakes give."""
    vp = schedules.linear(None)
    lam_t, lam_s = schedule.log_snr(t) / 2, schedule.log_snr(s) / 2
    r = schedule.inverse(lam_t + lam_s)

    def step(x, x0, t, s, sign=-1.0, scale=0.5, schedule=schedule):
        (_, sigma), (alpha_s, sigma_s) = schedule(t), schedule(s)
        h = scale * (schedule.log_snr(s) - schedule.log_snr(t))
        return sigma_s / sigma * x + alpha_s * (1 - math.exp(sign * h)) * x0

    def through(middle, **wrong):
        there = step(x, denoise(x, t).x0, t, middle, **wrong)
        return step(x, denoise(there, middle).x0, t, s, **wrong)

    first = denoise(x, t).x0
    half = step(x, first, t, r)
    there = denoise(half, r).x0
    *_, last = samplers.SAMPLERS["dpmpp_2s"](denoise, schedule, x, [t, r, s])
    return last.x, {
        "schedule.inverse takes the log-SNR, which is 2 lambda; you gave it lambda":
            through(schedule.inverse((lam_t + lam_s) / 2)),
        "this middle is half-way in t; it must be half-way in lambda": through((t + s) / 2),
        "this is one whole DDIM step; the prediction in the middle is not used": step(x, first, t, s),
        "the whole step uses the prediction in the middle alone, not the mean of both":
            step(x, (first + there) / 2, t, s),
        "these are two DDIM steps, of first order; the second step must start from x at t, and go the whole way":
            step(half, there, r, s),
        "the second step must start from the x that came in, not from the one in the middle": step(half, there, t, s),
        "this stops in the middle of the step": half,
        "the second evaluation must see the x in the middle, not the one at t": step(x, denoise(x, r).x0, t, s),
        "the second evaluation is told the wrong time: the x in the middle belongs to the time in the middle":
            step(x, denoise(half, t).x0, t, s),
        "the second evaluation is told the time s; it happens in the middle": step(x, denoise(half, s).x0, t, s),
        "the sign of h is wrong: lambda grows towards the data, h = lambda_s - lambda_t > 0, and it is e^-h":
            through(r, sign=1.0),
        "h is that of the log-SNR, twice what it should be: lambda is half of it": through(r, scale=1.0),
        "the alphas and sigmas are those of vp; this function must use the schedule that it is given":
            through(r, schedule=vp),
        "the prediction in the middle is the mean over the step already; do not continue the line beyond it":
            step(x, 2 * there - first, t, s),
    }  # fmt: skip


@exercise("one look in the middle of the step, the middle in lambda, and the error of first order is gone.")
def check_midpoint_step(midpoint_step):
    data = Mixture([0.5, 0.5], [[0.6, -0.2], [-0.5, 0.4]], 0.2)
    for schedule, t, s in ((schedules.linear(None), 0.6, 0.3), (schedules.flow(), 0.7, 0.45)):
        denoise, x = samplers.counted(data.denoiser(schedule)), torch.randn(20, 2, dtype=torch.float64)
        mine = midpoint_step(denoise, schedule, x, t, s)
        calls = denoise.evaluations
        compare(mine, *_midpoint_step(denoise, schedule, x, t, s), name=f"x on {schedule}")
        if calls != 2:
            raise Wrong(f"The result is right, but denoise was called {calls} times; the method takes 2.")


def _adams(u, x, times, warm=True, ratio=None, power=2, factor=0.5, sign=1.0, back=1.0, memory=True, frozen=False):
    """Adams and Bashforth's second method, with the mistakes that its options make."""
    before = None if warm else (torch.zeros_like(x), 2 * times[0] - times[1])
    for t, s in zip(times, times[1:]):
        h, here = s - t, u(x, t)
        step = h * here
        if before is not None and memory:
            h_before = t - before[1]
            gap = h if ratio == "even" else h**2 / h_before if ratio == "inverted" else h_before
            step = step + sign * factor * h**power / gap * (here - before[0])
        x, before = x + back * step, before if frozen and before else (here, t)
    return x


def _mean_of_slopes(u, x, times):
    """Each step by the mean of the slope here and the one before."""
    before = None
    for t, s in zip(times, times[1:]):
        here = u(x, t)
        x, before = x + (s - t) * (here if before is None else (here + before) / 2), here
    return x


@exercise("an old slope is as good as a new one, and free; 2M is this method, after the linear part is solved exactly.")
def check_adams_bashforth(adams_bashforth):
    times = [1.0, 0.85, 0.75, 0.5, 0.42, 0.2]
    x = torch.randn(10, 2, dtype=torch.float64)

    def u(x, t):
        u.calls += 1
        return -1.3 * x.flip(-1) + math.cos(3 * t) * x.square() + 0.5

    u.calls = 0
    mine = adams_bashforth(u, x, times)
    if u.calls > len(times) - 1:
        raise Wrong(f"u was called {u.calls} times in {len(times) - 1} steps. Keep the slope of the step before: one "
                    "new evaluation a step is enough, in the first step too.")
    mistakes = {
        "the first step has no step before; make it Euler's, instead of taking 0 for the slope before":
            _adams(u, x, times, warm=False),
        "the weights 3/2 and -1/2 are those of equal steps; here they depend on h / h_before":
            _adams(u, x, times, ratio="even"),
        "the ratio of the steps is upside down: the slope changes by (u - u_before) / h_before per unit of time":
            _adams(u, x, times, ratio="inverted"),
        "the correction grows as h^2: the step h times the change of the slope over h / 2. You have h":
            _adams(u, x, times, power=1),
        "half a step ahead, so h^2 / 2; the factor 1/2 is missing": _adams(u, x, times, factor=1.0),
        "the slope is continued backwards; it is u + (h / 2) (u - u_before) / h_before, with a plus":
            _adams(u, x, times, sign=-1.0),
        "time falls, so h = s - t is negative; you walk the wrong way": _adams(u, x, times, back=-1.0),
        "this is Euler's method; the slope of the step before is not used": _adams(u, x, times, memory=False),
        "the mean of the two slopes is that of half a step ago; continue the line forward, to half a step ahead":
            _mean_of_slopes(u, x, times),
        "the memory stays with the first step; after each step the slope here becomes the slope before":
            _adams(u, x, times, frozen=True),
        "the last step is missing": _adams(u, x, times[:-1]),
    }
    compare(mine, _adams(u, x, times), mistakes, name="x at the last time")
