"""UniPC (Zhao et al. 2023): a multistep predictor for the ODE of DPM-Solver, and a corrector that costs no evaluation.

The predictor's result is where the network runs next anyway. The corrector redoes the step with that prediction as
one point more, and gains an order; the network does not run again at the corrected x. The notation is that of
dpm_solver.py: x' = on_x x - scale (phi_1 m_0 + B sum_i rho_i (m_i - m_0) / r_i), with the rho that make the sum match
the Taylor expansion.

Differences from the paper and the official code: without the variant `vary_coeff`. In the official code its corrector
weighs the new point with the coefficient of the point before, so there is no sound reference for it.
"""

import math

import numpy as np
import torch

from minidiff.errors import unknown_name
from minidiff.samplers.ancestral import Step
from minidiff.samplers.dpm_solver import check, chosen, linear_part, phis, points, weighted

VARIANTS = {"bh1": lambda H: H, "bh2": math.expm1}  # B(H)


def unipc_weights(H, r, variant):
    """The weights of m_0 and of the predictions at the fractions r of the step (r < 0 behind it, 1 its end).

    sum_j rho_j r_j^(i - 1) = phi_(i + 1) i! / B for i = 1, 2, ... (theorem 3.1); a single rho is 1/2.
    """
    phi = phis(H, len(r) + 1)
    B = VARIANTS[variant](H)
    rho = [0.5] * len(r)
    if len(r) > 1:
        matrix = np.vander(r, increasing=True).T  # r_j^i
        rho = np.linalg.solve(matrix, [phi[i] * math.factorial(i) / B for i in range(1, len(r) + 1)]).tolist()
    on_models = [B * weight / fraction for weight, fraction in zip(rho, r)]
    return [phi[0] - sum(on_models), *on_models]


@torch.no_grad()
def unipc(denoise, schedule, x_T, times, noise=None, *, order=2, variant="bh2", data=True):
    """UniPC-p, order 1 to 3: predictor and corrector, one evaluation a step (algorithms 1 and 2).

    With its corrector order p converges like p + 1. The first steps and the last have lower orders; the last has no
    corrector, and if it leads to t = 0 it returns x0.
    variant: "bh1", B = H, or "bh2", B = e^H - 1 (better with guidance). data: predict x0, else eps.
    Step.x0 is the prediction at the start of the step.
    """
    check(order, (1, 2, 3), "order of UniPC")
    if variant not in VARIANTS:
        raise unknown_name("variant of UniPC", variant, VARIANTS)
    places = points(schedule, times, data)
    x, past, steps = x_T, [], len(times) - 1  # past: (lambda, model) of the points before the step, latest first
    prediction = denoise(x, times[0])
    for n, (a, b) in enumerate(zip(places, places[1:])):
        m, following = chosen(prediction, data), None
        on_x, scale, h, H = linear_part(a, b, data)
        earlier = past[: min(order, steps - n) - 1]
        r, models = [(lam - a.lam) / h for lam, _ in earlier], [m, *(model for _, model in earlier)]
        start = x
        x = weighted(start, on_x, scale, unipc_weights(H, r, variant), models) if b.finite else prediction.x0
        if n + 1 < steps:
            following = denoise(x, b.t)
            if a.finite:
                weights = unipc_weights(H, [*r, 1.0], variant)
                x = weighted(start, on_x, scale, weights, [*models, chosen(following, data)])
        past = [(a.lam, m), *past][: order - 1] if a.finite else []
        yield Step(x, b.t, prediction.x0)
        prediction = following
