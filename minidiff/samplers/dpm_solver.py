"""DPM-Solver (Lu et al. 2022) and DPM-Solver++ (Lu et al. 2022b): the probability-flow ODE with its linear part exact.

With lambda = log(alpha / sigma) the ODE is an integral of the network's output alone. Over a step of h in lambda,

    data form (++, m = x0):    x' = (sigma' / sigma) x + alpha' int e^(tau - h) m d tau    tau from 0 to h
    eps form (m = eps):        x' = (alpha' / alpha) x - sigma' int e^(h - tau) m d tau

and with H = -h for data, H = h for eps, a Taylor expansion of m in lambda makes both of them

    x' = on_x x - scale (phi_1 m + phi_2 h m' + phi_3 h^2 m'' + ...),
    phi_1 = e^H - 1,  phi_2 = phi_1 / H - 1,  phi_3 = phi_2 / H - 1/2,

so that every solver here is one line of weights. The first order is DDIM. A multistep solver takes the derivatives
from earlier predictions, a single-step solver from evaluations inside the step.

Where lambda is infinite only the first order makes sense: on the step to t = 0 (the result is x0) and, in the data
form, on the step from pure noise (alpha = 0). The eps form has no first step from there.

Differences from the papers: lower orders near the end as in the official code, below 10 steps only; the third order
of `multistep` is in the code alone, see there.
"""

import math
import numbers
from typing import NamedTuple

import torch

from minidiff.prediction import combine
from minidiff.samplers.ancestral import Step


class Point(NamedTuple):
    """A time with its coefficients; lam is lambda = log(alpha / sigma), half the log-SNR."""

    t: float
    alpha: float
    sigma: float
    lam: float

    @property
    def finite(self):
        return math.isfinite(self.lam)


def points(schedule, times, data):
    """The Points of these times. Raises ValueError if the eps form (`data` False) has to start where alpha is 0."""
    places = [Point(t, *schedule(t), schedule.log_snr(t) / 2) for t in times]
    if not data and places[0].alpha == 0:
        raise ValueError(
            f"alpha is 0 at t = {times[0]:g} of {schedule}, and the eps form cannot start there: use the data form"
            ' (sampler="dpmpp_2m", ..., or data=True), or a first time below that (spacing="log_snr" has one)'
        )
    return places


def linear_part(a, b, data):
    """(on_x, scale, h, H) of a step from Point a to Point b: x' = on_x x - scale (phi_1(H) m + ...)."""
    h = b.lam - a.lam if b.lam != a.lam else 0.0  # 0, not inf - inf
    return (b.sigma / a.sigma, b.alpha, h, -h) if data else (b.alpha / a.alpha, b.sigma, h, h)


def phis(H, count):
    """phi_1 = e^H - 1 and phi_(k + 1) = phi_k / H - 1 / k!, a list of `count`."""
    values = [math.expm1(H)]
    for k in range(1, count):
        values.append(values[-1] / H - 1 / math.factorial(k))
    return values


def weighted(x, on_x, scale, weights, models):
    """on_x x - scale (sum of weights times models)."""
    x = combine(on_x, x, -scale * weights[0], models[0])
    for weight, m in zip(weights[1:], models[1:]):
        x = torch.add(x, m, alpha=-scale * weight)
    return x


def chosen(prediction, data):
    """What the solver integrates: x0 or eps."""
    return prediction.x0 if data else prediction.eps


# --- multistep -----------------------------------------------------------------------------------------------------


def multistep_weights(H, h, lams, taylor):
    """The weights of m_0, m_1, ..., the predictions at `lams` (latest first, their number is the order)."""
    phi_1, *phi = phis(H, len(lams))
    if len(lams) == 1:
        return [phi_1]
    r0 = (lams[0] - lams[1]) / h
    if len(lams) == 2:  # (m_0 - m_1) / r0 stands for h m'
        on_slope = (phi[0] if taylor else phi_1 / 2) / r0
        return [phi_1 + on_slope, -on_slope]
    # D1_0 = (m_0 - m_1) / r0 and D1_1 = (m_1 - m_2) / r1;  h m' = D1_0 + r0 D2,  D2 = (D1_0 - D1_1) / (r0 + r1)
    r1 = (lams[1] - lams[2]) / h
    on_curve = (phi[0] * r0 + (2 if taylor else 1) * phi[1]) / (r0 + r1)
    on_late, on_early = (phi[0] + on_curve) / r0, -on_curve / r1
    return [phi_1 + on_late, on_early - on_late, -on_early]


@torch.no_grad()
def multistep(denoise, schedule, x_T, times, noise=None, *, order=2, data=True, taylor=False, sde=False):
    """2M and 3M: one evaluation a step, derivatives from the one or two predictions before (Lu et al. 2022b, alg. 2).

    order 1 to 3; the first steps, and with fewer than 10 steps the last, have what is there. data: ++, else the eps
    form. taylor: phi_2 instead of phi_1 / 2 on the slope (order 2). Of order 3 there is no paper: the official code
    takes phi_3 D2 with D2 = h^2 m'' / 2, which is half the term, and converges with order 2; taylor=True doubles it.

    sde: the same for the reverse SDE (data form), x' = (sigma' / sigma) e^-h x + alpha' (1 - e^-2h) D + sigma'
    sqrt(1 - e^-2h) z: H = -2 h. Order 1 of it is DDPM. Draws noise on every step, and adds none on that to t = 0.
    """
    check(order, (1, 2, 3), "order of a multistep solver")
    if sde and not (data and noise):
        raise ValueError("sde=True needs the data form and a source of noise: data=True and noise=seeded_noise([...])")
    places = points(schedule, times, data)
    x, past, steps = x_T, [], len(times) - 1
    for n, (a, b) in enumerate(zip(places, places[1:])):
        prediction = denoise(x, a.t)
        past = [(a.lam, chosen(prediction, data)), *past[: order - 1]]
        on_x, scale, h, H = linear_part(a, b, data)
        if sde:
            on_x, H, z = on_x * math.exp(-h), -2 * h, noise(x)
        if not b.finite:
            x = prediction.x0
        else:
            past = past if steps >= 10 else past[: steps - n]
            lams, models = zip(*past)
            x = weighted(x, on_x, scale, multistep_weights(H, h, lams, taylor), models)
            x = torch.add(x, z, alpha=b.sigma * math.sqrt(-math.expm1(H))) if sde else x
        past = past if a.finite else []  # no slope can be had from a point at infinity
        yield Step(x, b.t, prediction.x0)


# --- single-step ---------------------------------------------------------------------------------------------------


def fast_split(evaluations, order):
    """The orders of the steps that make exactly so many evaluations: 3, 3, 2, 1 for 9 ('DPM-Solver-fast')."""
    if order == 2:
        return [2] * (evaluations // 2) + [1] * (evaluations % 2)
    rest = evaluations % 3
    return [3] * (evaluations // 3 - (rest == 0)) + ([2, 1] if rest == 0 else [rest])


def groups(places, order):
    """The Points of each step: its start, the inner ones, its end. A step from or to infinity is of first order."""
    orders = fast_split(len(places) - 1, order)
    if not places[0].finite and orders[0] > 1:
        orders[:1] = [1, orders[0] - 1]
    if not places[-1].finite and orders[-1] > 1:
        orders[-1:] = [orders[-1] - 1, 1]
    first = 0
    for size in orders:
        yield places[first : first + size + 1]
        first += size


def singlestep_weights(H, r, taylor):
    """The weights of the predictions at the start and at the fractions r = [r1, (r2)] of the step."""
    phi_1, phi_2, phi_3 = phis(H, 3)
    if len(r) == 2 and taylor:  # the parabola through all three: h m' and h^2 m''
        (r1, r2), gap = r, r[1] - r[0]
        inner = [(phi_2 * r2 - 2 * phi_3) / (r1 * gap), (2 * phi_3 - phi_2 * r1) / (r2 * gap)]
    elif len(r) == 2:  # r2 is about 2/3, where the slope alone is right to the third order
        inner = [0.0, phi_2 / r[1]]
    else:
        inner = [(phi_2 if taylor else phi_1 / 2) / r[0]]
    return [phi_1 - sum(inner), *inner]


@torch.no_grad()
def singlestep(denoise, schedule, x_T, times, noise=None, *, order=3, data=True, taylor=False):
    """2S and 3S: two or three evaluations a step, none of them used again (Lu et al. 2022, alg. 1, 2; 2022b, alg. 1).

    `times` are the points of all evaluations, and the end: len(times) - 1 evaluations, shared out over steps of this
    order and one or two lower ones at the end ('fast' split). Inner points are the grid's own, r1 and r2 follow from
    their lambdas. Yields a Step at the end of each group: its t is the group's last time, its x0 the last prediction.
    A group that starts or ends where lambda is infinite gives up one evaluation to a step of first order there.
    The low orders at the end cost 3S its third order unless the last steps hardly matter, as they do evenly in log-SNR.

    order 2 or 3. data: ++, else the eps form, which needs spacing="log_snr": with even times its first steps blow up
    where alpha is nearly 0, as on `cosine`. taylor: the correction terms expanded in h (official 'taylor').
    """
    check(order, (2, 3), "order of a single-step solver")
    x = x_T
    for group in groups(points(schedule, times, data), order):
        start, end = group[0], group[-1]
        inner = x
        models, gaps = [], []  # the predictions so far, and how far from the start in lambda the later ones were made
        for place, following in zip(group, group[1:]):
            prediction = denoise(inner, place.t)
            models.append(chosen(prediction, data))
            if place is not start:
                gaps.append(place.lam - start.lam)
            on_x, scale, h, H = linear_part(start, following, data)
            parabola = taylor or following is not end  # the way to an inner point uses phi_2
            weights = singlestep_weights(H, [gap / h for gap in gaps], parabola) if gaps else phis(H, 1)
            inner = weighted(x, on_x, scale, weights, models) if following.finite else prediction.x0
        x = inner
        yield Step(x, end.t, prediction.x0)


def check(value, valid, what):
    """Raise ValueError unless `value` is one of `valid`."""
    if not isinstance(value, numbers.Integral) or value not in valid:
        raise ValueError(f"the {what} must be one of {', '.join(map(str, valid))}, got {value!r}")


# --- by name -------------------------------------------------------------------------------------------------------


def named(solver, name, **fixed):
    """The solver with these options fixed, under this name; what is left is `taylor`."""

    def sampler(denoise, schedule, x_T, times, noise=None, *, taylor=False):
        return solver(denoise, schedule, x_T, times, noise, taylor=taylor, **fixed)

    sampler.__name__ = sampler.__qualname__ = name
    arguments = ", ".join(f"{key}={value}" for key, value in fixed.items())
    sampler.__doc__ = f"`{solver.__name__}` with {arguments}, where the options are explained."
    return sampler


dpm_2m = named(multistep, "dpm_2m", order=2, data=False)
dpm_3m = named(multistep, "dpm_3m", order=3, data=False)
dpm_2s = named(singlestep, "dpm_2s", order=2, data=False)
dpm_3s = named(singlestep, "dpm_3s", order=3, data=False)
dpmpp_2m = named(multistep, "dpmpp_2m", order=2, data=True)
dpmpp_3m = named(multistep, "dpmpp_3m", order=3, data=True)
dpmpp_2s = named(singlestep, "dpmpp_2s", order=2, data=True)
dpmpp_3s = named(singlestep, "dpmpp_3s", order=3, data=True)
dpmpp_2m_sde = named(multistep, "dpmpp_2m_sde", order=2, data=True, sde=True)

SOLVERS = {
    f.__name__: f for f in (dpm_2m, dpm_3m, dpm_2s, dpm_3s, dpmpp_2m, dpmpp_3m, dpmpp_2s, dpmpp_3s, dpmpp_2m_sde)
}
