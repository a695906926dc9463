"""DPM-Solver, DPM-Solver++ and UniPC against trajectories of the official code, and of diffusers in float32."""

import math

import numpy as np
import torch
from toy import load_math, toy_denoiser, worst

from minidiff import schedules
from minidiff.prediction import Prediction
from minidiff.samplers.ancestral import ddim
from minidiff.samplers.dpm_solver import fast_split, multistep, singlestep
from minidiff.samplers.ode import euler, heun
from minidiff.samplers.unipc import unipc
from minidiff.spacings import spacing

OFFICIAL = {"linear": schedules.linear(None), "discrete": schedules.linear()}
T_END = 1e-3  # where the official solvers stop


def log_snr_groups(schedule, steps, order):
    """The points of all evaluations as the official code has them: outer steps and their parts uniform in lambda."""
    orders = fast_split(steps, order)
    outer = np.linspace(schedule.log_snr(1.0), schedule.log_snr(T_END), len(orders) + 1)
    values = [outer[0]]
    for size, (start, end) in zip(orders, zip(outer, outer[1:])):
        values += np.linspace(start, end, size + 1)[1:].tolist()
    return [1.0, *(schedule.inverse(float(value)) for value in values[1:-1]), T_END]


def official_times(schedule, method, order, steps, kind):
    if kind == "logSNR" and method == "singlestep":
        return log_snr_groups(schedule, steps, order)
    return spacing(schedule, steps, {"time_uniform": "uniform", "logSNR": "log_snr"}[kind], t_end=T_END)


def dpm_solver_rows():
    golden = load_math("traj_dpmsolver")
    for name, schedule in OFFICIAL.items():
        reference = golden[f"schedule/{name}"]
        t = reference["t"].tolist()
        yield f"{name}: lambda", worst([schedule.log_snr(value) / 2 for value in t], reference["lam"])
        yield f"{name}: its inverse", worst([schedule.inverse(2 * v) for v in reference["lam"].tolist()], t)
    for key, reference in golden.items():
        if key.count("/") != 6:
            continue  # the toy, the table of the schedule, and thresholding, which is guidance
        name, form, method, order, steps, kind, variant = key.split("/")
        schedule, order, steps = OFFICIAL[name], int(order[5:]), int(steps[5:])
        denoise, x_T = toy_denoiser(schedule, golden["toy"]), golden["x_T"]
        times = official_times(schedule, method, order, steps, kind)
        options = {"order": order, "data": form == "dpmsolver++", "taylor": variant == "taylor"}
        solver = multistep if method == "multistep" else singlestep
        states = [step.x for step in solver(denoise, schedule, x_T, times, **options)]
        if variant == "denoise_to_zero":
            yield key, worst(denoise(states[-1], T_END).x0, reference)
        else:
            states = states if method == "singlestep" else [x_T, *states]
            yield key, worst(torch.stack(states), reference["intermediates"])


def unipc_rows():
    golden = load_math("traj_unipc")
    for key, reference in golden.items():
        if key.count("/") != 5 or "vary_coeff" in key:
            continue
        name, variant, data, order, steps, kind = key.split("/")
        schedule, order = OFFICIAL[name], int(order[5:])
        denoise = toy_denoiser(schedule, golden["toy"])
        times = official_times(schedule, "multistep", order, int(steps[5:]), kind)
        options = {"order": order, "variant": variant, "data": data.endswith("True")}
        *_, last = unipc(denoise, schedule, golden["x_T"], times, **options)
        yield key, worst(last.x, reference)


ROWS = {"DPM-Solver": dpm_solver_rows, "UniPC": unipc_rows}


# --- diffusers, whose schedulers work in float32 ---------------------------------------------------------------------


def fed(toy, timesteps, schedule):
    """The toy as diffusers fed it: at the recorded time steps, whatever noise level the scheduler thinks it is at.

    Both differ where a scheduler interpolates sigmas, or rounds the time step of a sigma.
    """
    trained, drawn = schedules.linear(), iter(timesteps)
    exact = toy_denoiser(trained, toy)

    def denoise(x, t):
        alpha, sigma = schedule(t)
        scale = math.hypot(alpha, sigma)  # 1 but in sigma space
        return Prediction("eps", x, exact(x / scale, (next(drawn) + 1) / 1000).eps, alpha, sigma)

    return denoise


def sigma_times(schedule, sigmas):
    """The times where sigma / alpha has these values; 0 belongs to t = 0."""
    return [schedule.inverse(-2 * math.log(sigma)) if sigma else 0.0 for sigma in sigmas]


def ddim_error(golden, key):
    """DDIM goes from each time step t to t - 50, which on `linspace` is not where the next one starts."""
    reference, schedule = golden[key], schedules.linear()
    denoise, x, states = toy_denoiser(schedule, golden["toy"]), golden["x_T"], []
    after_all = 1 / 1000 if "set_alpha_to_one=False" in key else 0.0
    for t in reference["timesteps"].tolist():
        times = [(t + 1) / 1000, (t - 50 + 1) / 1000 if t >= 50 else after_all]
        *_, (x, _, _) = ddim(denoise, schedule, x, times)
        states.append(x)
    return worst(torch.stack(states), reference["traj"])


def solver_error(golden, key, schedule, start, solver, **options):
    """The largest error of all states, each in the scale of unit variance."""
    reference = golden[key]
    sigmas, states = reference["sigmas"].tolist(), list(reference["traj"])
    if solver is heun:  # recorded after either half of a step
        sigmas, states = [*sigmas[::2], sigmas[-1]], [*states[1::2], states[-1]]
    times = sigma_times(schedule, sigmas)
    denoise = fed(golden["toy"], reference["timesteps"].tolist(), schedule)
    steps = list(solver(denoise, schedule, start, times, **options))
    assert len(steps) == len(states)
    if solver is unipc:  # recorded before the corrector, which runs in the next step
        steps, states = steps[-1:], states[-1:]
    return max(worst(step.x, state) / math.hypot(*schedule(step.t)) for step, state in zip(steps, states))


def diffusers_rows():
    golden = load_math("traj_diffusers")
    variance_preserving, in_sigma, x_T = schedules.linear(None), schedules.edm(), golden["x_T"]
    for key in golden:
        name, *rest = key.split("/")
        if name == "DDIM":
            yield key, ddim_error(golden, key)
        elif name in ("DPM2M", "DPM3M"):
            options = {"order": int(name[3]), "data": rest[0] != "dpmsolver", "taylor": "heun" in rest}
            yield key, solver_error(golden, key, variance_preserving, x_T, multistep, **options)
        elif name == "UniPC":
            options = {"order": int(rest[1][-1]), "variant": rest[0]}
            yield key, solver_error(golden, key, variance_preserving, x_T, unipc, **options)
        elif name in ("EulerDiscrete", "HeunDiscrete"):
            start = x_T * golden[key]["sigmas"][0].item()
            yield key, solver_error(golden, key, in_sigma, start, euler if name == "EulerDiscrete" else heun)


FLOAT32 = 2e-5
FLOAT32_ROWS = {"diffusers": diffusers_rows}
