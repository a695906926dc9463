"""The exercises of notebook 05: solutions pass, stubs fail, typical wrong answers are named."""

import math

import torch

from minidiff import schedules
from minidiff.course.checks import notebook_05 as checks
from minidiff.course.exercises import prove

GIVEN = {"torch": torch, "math": math}  # by the notebook to its solutions


def stub(*args):
    ...


def test_steps_for(solved):
    def wrong(**of):
        return lambda n, sampler: of[sampler](n) if sampler in of else solved["steps_for"](n, sampler)

    prove(checks.check_steps_for, solved["steps_for"], stub, {
        "Heun's last step": wrong(heun=lambda n: n // 2),
        "each step of it costs two": wrong(heun=lambda n: n),
        "counted already": wrong(heun=lambda n: n // 2 + 1),
        "one evaluation more": wrong(predictor_corrector=lambda n: (n + 1) // 2),
        "the memory": wrong(dpmpp_2m=lambda n: n // 2),
        "but it is a step": wrong(dpmpp_2m=lambda n: n - 1),
        "the other way round": wrong(heun=lambda n: 2 * n - 1),
        "whole numbers": wrong(predictor_corrector=lambda n: n / 2),
    })  # fmt: skip


def test_midpoint_step(solved):
    def wrong(middle=None, sign=-1.0, half=0.5, whole="x", at="middle", mix=0.0, sees="middle", calls=0, own=None):
        def midpoint_step(denoise, schedule, x, t, s):
            def step(x, x0, t, s):
                used = own or schedule
                (_, sigma), (alpha_s, sigma_s) = used(t), used(s)
                h = half * (used.log_snr(s) - used.log_snr(t))
                return sigma_s / sigma * x + alpha_s * (1 - math.exp(sign * h)) * x0

            gap = (schedule.log_snr(s) + schedule.log_snr(t)) / 2
            r = schedule.inverse(gap) if middle is None else middle(schedule, gap, t, s)
            first = denoise(x, t).x0
            there = step(x, first, t, r)
            time = {"middle": r, "start": t, "end": s}[at]
            second = denoise(there if sees == "middle" else x, time).x0
            for _ in range(calls):
                denoise(x, t)
            second = mix * first + (1 - mix) * second
            return {"x": lambda: step(x, second, t, s), "two": lambda: step(there, second, r, s),
                    "middle": lambda: step(there, second, t, s), "stop": lambda: there}[whole]()
        return midpoint_step

    prove(checks.check_midpoint_step, solved["midpoint_step"], stub, {
        "which is 2 lambda; you gave": wrong(middle=lambda schedule, gap, t, s: schedule.inverse(gap / 2)),
        "half-way in t": wrong(middle=lambda schedule, gap, t, s: (t + s) / 2),
        "one whole DDIM step": wrong(mix=1.0),
        "not the mean of both": wrong(mix=0.5),
        "two DDIM steps": wrong(whole="two"),
        "not from the one in the middle": wrong(whole="middle"),
        "stops in the middle": wrong(whole="stop"),
        "must see the x in the middle": wrong(sees="x"),
        "told the wrong time": wrong(at="start"),
        "told the time s": wrong(at="end"),
        "sign of h": wrong(sign=1.0),
        "twice what it should be": wrong(half=1.0),
        "those of vp": wrong(own=schedules.linear(None)),
        "beyond it": wrong(mix=-1.0),
        "called 3 times": wrong(calls=1),
    })  # fmt: skip


def test_adams_bashforth(solved):
    def wrong(correct, first=lambda h, here: h * here, direction=1, stop=None):
        def adams_bashforth(u, x, times):
            before = None
            for t, s in list(zip(times, times[1:]))[:stop]:
                h, here = s - t, u(x, t)
                step = first(h, here) if before is None else h * here + correct(h, t - before[1], here - before[0])
                x, before = x + direction * step, (here, t)
            return x
        return adams_bashforth

    def right(h, h_before, change):
        return h**2 / 2 / h_before * change

    def mean_of_slopes(u, x, times):
        before = None
        for t, s in zip(times, times[1:]):
            here = u(x, t)
            x, before = x + (s - t) * (here if before is None else (here + before) / 2), here
        return x

    def frozen(u, x, times):
        first = u(x, times[0]), times[0]
        x = x + (times[1] - times[0]) * first[0]
        for t, s in zip(times[1:], times[2:]):
            here = u(x, t)
            x = x + (s - t) * (here + (s - t) / 2 * (here - first[0]) / (t - first[1]))
        return x

    def heun(u, x, times):
        for t, s in zip(times, times[1:]):
            here = u(x, t)
            x = x + (s - t) / 2 * (here + u(x + (s - t) * here, s))
        return x

    prove(checks.check_adams_bashforth, solved["adams_bashforth"], stub, {
        "instead of taking 0": wrong(right, first=lambda h, here: 1.5 * h * here),
        "those of equal steps": wrong(lambda h, b, change: h / 2 * change),
        "upside down": wrong(lambda h, b, change: b / 2 * change),
        "You have h": wrong(lambda h, b, change: h / 2 / b * change),
        "factor 1/2 is missing": wrong(lambda h, b, change: h**2 / b * change),
        "with a plus": wrong(lambda h, b, change: -right(h, b, change)),
        "the wrong way": wrong(right, direction=-1),
        "this is Euler's": wrong(lambda h, b, change: 0 * change),
        "half a step ago": mean_of_slopes,
        "stays with the first step": frozen,
        "the last step is missing": wrong(right, stop=-1),
        "10 times in 5 steps": heun,
    })  # fmt: skip
