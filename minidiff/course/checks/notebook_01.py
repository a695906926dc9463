"""Checks of notebook 01: the forward process and its schedules."""

import math

import torch

from minidiff import schedules
from minidiff.course.exercises import Wrong, compare, exercise, unpack


@exercise("one table look-up and one line noise a whole batch, each picture at its own step.")
def check_q_sample(q_sample):
    x0, eps = torch.randn(2, 4, 3, 5, 4).unbind()  # the width equals the batch: a missing reshape runs without an error
    index = torch.tensor([0, 10, 300, 999])
    alpha_bar = torch.as_tensor(schedules.linear().alphas_cumprod)

    def mix(signal, noise):
        return signal.view(-1, 1, 1, 1) * x0 + noise.view(-1, 1, 1, 1) * eps

    rows, later, before = alpha_bar[index], alpha_bar[(index + 1).clamp(max=999)], alpha_bar[index - 1]
    mine, again = (q_sample(x0, index, eps, alpha_bar) for _ in range(2))
    if torch.is_tensor(mine) and torch.is_tensor(again) and not torch.equal(mine, again):
        raise Wrong("Called twice with the same numbers, your function returns two results. Do not draw noise of your "
                    "own: `eps` is the noise to add.")
    mistakes = {
        "you left out the square roots: alpha-bar and 1 - alpha-bar are squares": mix(rows, 1 - rows),
        "you left out the square root of the noise's factor": mix(rows.sqrt(), 1 - rows),
        "you left out the square root of the signal's factor": mix(rows, (1 - rows).sqrt()),
        "sigma is not 1 - alpha; the squares of both sum to 1": mix(rows.sqrt(), 1 - rows.sqrt()),
        "you took the table for alpha; it holds alpha-bar, which is alpha^2": mix(rows, (1 - rows**2).sqrt()),
        "signal and noise are swapped": mix((1 - rows).sqrt(), rows.sqrt()),
        "you look one row too late: `index` is the row itself": mix(later.sqrt(), (1 - later).sqrt()),
        "you look one row too early: row 0 is the first noisy step": mix(before.sqrt(), (1 - before).sqrt()),
        "factors of shape (B,) ran along the width, not over the batch; reshape them to (B, 1, 1, 1)":
            rows.sqrt() * x0 + (1 - rows).sqrt() * eps,
    }
    compare(mine, mix(rows.sqrt(), (1 - rows).sqrt()), mistakes, name="x_t")


@exercise("the offset sets the first beta, and the cap touches only the last one.")
def check_cosine_betas(cosine_betas):
    for steps, offset, max_beta in ((1000, 0.008, 0.999), (50, 0.008, 0.999), (20, 0.1, 0.6)):
        expected = torch.as_tensor(schedules.cosine(steps, offset, max_beta).betas)
        t = torch.arange(steps + 1, dtype=torch.float64) / steps

        def betas(angle, power=2, cap=max_beta):
            f = torch.cos(angle * math.pi / 2) ** power
            return (1 - f[1:] / f[:-1]).clamp(max=cap)

        angle = (t + offset) / (1 + offset)
        mistakes = {
            "the last beta must be capped at max_beta": betas(angle, cap=1.0),
            "the offset is missing": betas(t),
            "max_beta is an argument; do not use a fixed 0.999": betas(angle, cap=0.999),
            "offset and max_beta are arguments; do not use fixed numbers": betas((t + 0.008) / 1.008, cap=0.999),
            "your table comes one step early: its first row is step 1, at t = 1 / steps":
                torch.cat([torch.zeros(1), betas(angle)[:-1]]),
            "t + offset must be divided by 1 + offset": betas(t + offset),
            "the cosine must be squared": betas(angle, power=1),
            "these are alpha-bars; a beta is 1 minus a ratio of neighbours": (1 - betas(angle, cap=1.0)).cumprod(0),
            "these are ratios of neighbours; a beta is 1 minus the ratio": 1 - betas(angle, cap=1.0),
        }
        mine = cosine_betas(steps, offset, max_beta)
        if torch.is_tensor(mine) and mine.shape == expected.shape:
            close, exact = (torch.allclose(mine.double(), expected, rtol=r, atol=1e-9) for r in (1e-2, 1e-6))
            if close and not exact and abs(mine[-1] - expected[-1]) < 1e-6:  # else it is the cap
                raise Wrong("Nearly: the betas have lost their digits, since float32 cannot tell 1 - 4e-5 from its "
                            "neighbours well. Make the times with dtype=torch.float64.")
        compare(mine, expected, mistakes, name="the table of betas", rtol=1e-6)


@exercise("signal and noise are equal at alpha = sigma, and each schedule gets there at its own time.")
def check_equal_time(equal_time):
    tried = {"linear": schedules.linear(None), "cosine": schedules.cosine(None), "flow": schedules.flow()}

    def crossing(falls):  # the time at which `falls(alpha, sigma)` passes 0
        return [_bisect(lambda t, s=s: falls(*s(t))) for s in tried.values()]

    expected = crossing(lambda a, s: a - s)
    mistakes = {
        "alpha = 1/2 is not SNR = 1; equal strength means alpha = sigma": crossing(lambda a, s: a - 0.5),
        "alpha^2 / sigma = 1 is not SNR = 1; sigma is squared, too": crossing(lambda a, s: a**2 - s),
        "this is 1 - t; time runs from data at 0 to noise at 1": [1 - t for t in expected],
        "your search closes in on an end of [0, 1]: keep the half in which SNR passes 1": [1.0] * 3,
        "your search closes in on an end of [0, 1]: keep the half that holds the crossing": [0.0] * 3,
    }
    mistakes["t = 0.5 is right for flow alone; ask the schedule"] = [0.5] * 3
    found = [equal_time(schedule) for schedule in tried.values()]
    for name, t in zip(tried, found):
        if not isinstance(t, (int, float, torch.Tensor)):
            raise Wrong(f"For {name} you returned a {type(t).__name__}; expected one number, the time t.")
    error = max(abs(float(t) - right) for t, right in zip(found, expected))
    if 2e-4 < error < 1e-2:
        raise Wrong(f"Nearly: you are off by up to {error:.1g}; four digits are asked for. Search more finely.")
    compare(torch.tensor([float(t) for t in found]), torch.tensor(expected), mistakes, rtol=0, atol=2e-4,
            name="the times for linear, cosine and flow")


def _bisect(falls):
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) > 0 else (low, middle)
    return low


@exercise("log-SNR falls evenly: steps of equal length divide the SNR by equal factors.")
def check_log_linear(log_linear):
    t = torch.linspace(0, 1, 9)
    for ends in ((12.0, -8.0), (10.0, -10.0)):  # unequal first: else swapping and reversing are the same
        level = ends[0] + (ends[1] - ends[0]) * t.double()

        def pair(log_snr):
            return torch.sigmoid(log_snr).sqrt().float(), torch.sigmoid(-log_snr).sqrt().float()

        alpha, sigma = unpack(log_linear(t, *ends), "alpha", "sigma")
        right = pair(level)
        mistakes = {
            "sigmoid(log-SNR) is alpha^2; take its root": (right[0] ** 2, right[1] ** 2),
            "log-SNR runs the wrong way: it is `first` at t = 0, where the data is": pair(level.flip(0)),
            "this is twice the log-SNR asked for: log(alpha^2 / sigma^2), not log(alpha / sigma)": pair(2 * level),
            "at t = 1 you must arrive at `last`: the slope is last - first": pair(ends[0] - ends[1] * t.double()),
            "alpha and sigma are swapped": right[::-1],
            "this is variance exploding, alpha = 1; the squares must sum to 1":
                (torch.ones(9), torch.exp(-level / 2).float()),
        }
        mine = torch.stack([torch.as_tensor(alpha), torch.as_tensor(sigma)])
        rough = torch.allclose(mine.double(), torch.stack(right).double(), atol=1e-3)
        if rough and not torch.allclose(mine[1].double(), right[1].double(), rtol=1e-4, atol=0):
            raise Wrong("Nearly: sigma loses its digits at small t. In float32 `1 - alpha**2` subtracts nearly "
                        "equal numbers; sigma^2 = sigmoid(-log-SNR) has no such trouble.")
        compare(mine, torch.stack(right), {k: torch.stack(v) for k, v in mistakes.items()}, name="(alpha, sigma)")
