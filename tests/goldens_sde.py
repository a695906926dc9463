"""Comparisons with the recorded runs of score_sde, EDM and flow matching, as rows (what, error)."""

import functools
import math

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import nn
from toy import listed, load_math, toy_denoiser, worst

from minidiff import schedules
from minidiff.diffusion import TIMES, Diffusion
from minidiff.losses import logit_normal, loss_weight
from minidiff.oracles import Mixture, ideal_denoiser
from minidiff.prediction import KINDS, Prediction
from minidiff.samplers.ancestral import ddim, ddpm
from minidiff.samplers.ode import drift, euler, heun, midpoint
from minidiff.samplers.sde import churn, euler_maruyama, predictor_corrector, reverse_diffusion
from minidiff.schedules import Schedule
from minidiff.spacings import spacing
from minidiff.variational import step_variances

# --- score_sde --------------------------------------------------------------------------------------------------------

SDES = {
    "vp": (schedules.linear(None), 1e-3),  # and the time at which the original stops
    "subvp": (schedules.sub_vp(), 1e-3),
    "ve": (schedules.variance_exploding(), 1e-5),
}


def tabled(name, steps, grid=None):
    """score_sde's discrete process of `steps` steps at t = (i + 1) / steps, geometric sigmas on VE.

    grid: the times that the original feeds to the continuous SDE at these steps, descending; the rates are taken there.
    """
    if name == "vp":
        table = [schedules.linear(steps)((i + 1) / steps) for i in range(steps)]
    else:
        table = [(1.0, sigma) for sigma in np.geomspace(0.01, 50, steps).tolist()]

    def alpha_sigma(t, xp):
        index = round(t * steps) - 1
        return table[index] if index >= 0 else (1.0, 0.0)

    def rates(t, xp):
        (alpha, sigma), (f, variance) = alpha_sigma(t, xp), SDES[name][0].sde(grid[steps - round(t * steps)])
        return f * alpha, variance / (2 * sigma) + f * sigma

    return Schedule("tabled", {}, alpha_sigma, rates, None)


def sde_rows():
    golden = load_math("traj_sde")
    x = golden["x"]
    for name, (schedule, _) in SDES.items():
        reference, rows = golden[name], []
        table, steps = None if name == "subvp" else tabled(name, 1000), 1000
        for time, picture in zip(golden["t"].tolist(), x):
            (alpha, sigma), (f, variance) = schedule(time), schedule.sde(time)
            if table is None:  # sub-VP has no table: one Euler step of the SDE
                factor, spread = f / steps, math.sqrt(variance / steps)
            else:
                t = (int(time * (steps - 1)) + 1) / steps
                s = t - 1 / steps
                factor = table(t)[0] / table(s)[0] - 1
                spread = math.sqrt(step_variances(table, s, t)[1])
            std = schedule.start((1,), torch.ones_like).item()
            prior = (-((picture / std) ** 2) / 2 - math.log(std) - math.log(2 * math.pi) / 2).sum()
            row = (alpha * picture, sigma, f * picture, math.sqrt(variance), factor * picture, spread, prior)
            rows.append([torch.as_tensor(value) for value in row])
        for key, values in zip(("mean", "std", "drift", "diffusion", "disc_f", "disc_G", "prior_logp"), zip(*rows)):
            here = torch.stack(values)
            if key == "diffusion":  # recorded with a factor in float32, and above 100 on VE
                yield f"{name}: {key}, relative", worst(here / reference[key], 1.0)
            else:
                yield f"{name}: {key}", worst(here, reference[key])
    table = tabled("ve", 1000)
    yield "ve: sigmas", worst([table((i + 1) / 1000)[1] for i in range(1000)], golden["ve"]["discrete_sigmas"])
    yield "vp: betas", worst(schedules.linear(1000).betas, golden["vp"]["discrete_betas"])


PREDICTORS = {
    "euler_maruyama": (euler_maruyama, "euler_maruyama"),
    "reverse_diffusion": (reverse_diffusion, "reverse_diffusion"),
    "ancestral_sampling": (ddpm, "ddpm"),
}


def stochastic_row(golden, key):
    """(x, x_mean) of a recorded predictor with or without Langevin corrections, by our samplers."""
    name, predictor, corrector = key.split("/")
    steps, (schedule, last) = 100, SDES[name]
    grid = torch.linspace(1, last, steps, dtype=torch.float64).tolist()
    times = [i / steps for i in range(steps, -1, -1)]
    exact = toy_denoiser(schedule, golden["toy"])
    if name == "subvp":  # reverse diffusion of an SDE without a table is Euler-Maruyama in the original
        predictor, denoise, times = "euler_maruyama", exact, [*grid, 0.0]
    else:
        schedule = tabled(name, steps, grid)

        def denoise(x, t):  # the score at the continuous time, used with alpha and sigma of the table
            return Prediction("score", x, exact(x, grid[steps - round(t * steps)]).score, *schedule(t))

    sampler, called = PREDICTORS[predictor]
    options = {"dt": 1 / steps} if called == "euler_maruyama" else {}
    if called == "ddpm":
        options = {"variance": "large" if name == "vp" else "small"}
    if corrector == "langevin":
        sampler = functools.partial(predictor_corrector, predictor=called, norms="batch")
    used = golden[key]["noises_used"]
    start, noises = golden["noises"][0], golden["noises"][1 : used + 1]
    times = times[: golden[key]["steps"] + 1]
    if times[-1] == 0:
        times[-1] = 1e-12  # so that the last step adds its noise, too
    x_T = (50 if name == "ve" else 1) * start
    results = []
    for last_noise in (noises[-1], torch.zeros_like(start)):
        *_, step = sampler(denoise, schedule, x_T, times, listed([*noises[:-1], last_noise]), **options)
        results.append(step.x)
    return results


def sde_trajectory_rows():
    golden = load_math("traj_sde")
    for key, reference in golden.items():
        if key.endswith(("/none", "/langevin")):
            x, x_mean = stochastic_row(golden, key)
            yield key, worst(x, reference["x"])
            yield f"{key}: mean", worst(x_mean, reference["x_mean"])
    for name, (schedule, last) in SDES.items():
        denoise, x_T = toy_denoiser(schedule, golden["toy"]), (50 if name == "ve" else 1) * golden["noises"][0]
        times = [*torch.linspace(1, last, 100, dtype=torch.float64).tolist(), 0.0]
        *_, step = euler(denoise, schedule, x_T, times, dt=1 / 100)
        yield f"{name}/ode_euler/100", worst(step.x, golden[f"{name}/ode_euler/100"])

        def slope(t, flat, denoise=denoise, schedule=schedule, shape=x_T.shape):
            x = torch.from_numpy(flat).view(shape)
            p, q = drift(schedule, t, 0.0)
            return (p * x + q * denoise(x, t).x0).flatten().numpy()

        solution = solve_ivp(slope, (1, last), x_T.flatten().numpy(), method="RK45", rtol=1e-5, atol=1e-5)
        reference = golden[f"{name}/ode_rk45"]
        yield f"{name}/ode_rk45", worst(solution.y[:, -1], reference["x"].flatten())
        yield f"{name}/ode_rk45: evaluations", abs(solution.nfev - reference["nfev"])


# --- EDM --------------------------------------------------------------------------------------------------------------


def edm_rows():
    golden, schedule = load_math("traj_edm"), schedules.edm()
    denoise = toy_denoiser(schedule, golden["toy"])

    def run(sampler, steps, **options):
        times = spacing(schedule, steps, "karras")
        *_, step = sampler(denoise, schedule, 80 * golden["latents"], times, listed(golden["noises"]), **options)
        return step.x

    for steps in (18, 40):
        sigmas = [schedule(t)[1] for t in spacing(schedule, steps, "karras")[:-1]]
        yield f"Karras sigmas, {steps} steps", worst(sigmas, golden[f"karras_sigmas_{steps}"])
    for steps in (18, 10):
        yield f"Heun, {steps} steps", worst(run(heun, steps), golden[f"heun{steps}_det"])
        yield f"churn of 0, {steps} steps", worst(run(churn, steps), golden[f"heun{steps}_det"])
    yield "Euler, 18 steps", worst(run(euler, 18), golden["euler18_edm"])
    noisy = run(churn, 12, churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
    yield "churn, 12 steps", worst(noisy, golden["heun12_churn"])


SIGMAS = {"vp": None, "ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}


def edm_discretisation(kind, steps):
    """The noise levels of EDM's ablations (Karras et al. 2022, table 1), and the VP schedule of the same range."""
    old = schedules.linear(None)
    low, high = SIGMAS[kind] or [sigma / alpha for alpha, sigma in (old(1e-3), old(1.0))]
    logs = [math.log1p(sigma**2) for sigma in (low, high)]
    width = 2 * (logs[0] / 1e-3 - logs[1]) / (1e-3 - 1)
    schedule = schedules.linear(None, logs[1] - width / 2, logs[1] + width / 2)
    along = [i / (steps - 1) for i in range(steps)]
    if kind == "vp":
        levels = [sigma / alpha for alpha, sigma in (schedule(1 - 0.999 * part) for part in along)]
    elif kind == "ve":
        levels = [high * (low / high) ** part for part in along]
    elif kind == "iddpm":
        cosine = schedules.cosine()
        table = [sigma / alpha for alpha, sigma in (cosine(i / 1000) for i in range(1000, 0, -1))]
        table = [level for level in table if low <= level <= high]
        levels = [table[round((len(table) - 1) * part)] for part in along]
    else:
        levels = [(high ** (1 / 7) + part * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for part in along]
    return levels, schedule


def edm_ablation_rows():
    """Schedules sigma = t and sigma = sqrt(t) without a last time are made here: the package has none."""
    golden = load_math("traj_edm")
    linear = Schedule("t", {}, lambda t, xp: (1.0, t), lambda t, xp: (0.0, 1.0), lambda lam, xp: xp.exp(-lam / 2))
    root = Schedule(
        "sqrt", {}, lambda t, xp: (1.0, xp.sqrt(t)), lambda t, xp: (0.0, 0.5 / xp.sqrt(t)), lambda lam, xp: xp.exp(-lam)
    )
    for key, reference in golden.items():
        if key.startswith("ablation"):
            _, solver, discretisation, kind, *_, steps = key.split("/")
            levels, vp = edm_discretisation(discretisation, int(steps))
            schedule = {"vp": vp, "ve": root, "linear": linear}[kind]
            times = [*(schedule.inverse(-2 * math.log(level)) for level in levels), 0.0]
            sampler = midpoint if "alpha0.5" in key else {"euler": euler, "heun": heun}[solver]
            x_T = schedule(times[0])[1] * golden["latents"]
            *_, step = sampler(toy_denoiser(schedule, golden["toy"]), schedule, x_T, times)
            yield key, worst(step.x, reference)


class Remember(nn.Module):
    """A network that keeps what it was given."""

    def forward(self, x, time, y=None):
        self.x, self.time = x, time
        return x


def precondition_rows():
    """EDM's table 1: its own is our kind "edm"; VP's is eps on the VP schedule of x alpha; VE's is sigma score."""
    golden, schedule = load_math("traj_edm")["precond"], schedules.edm()
    sigma = golden["sigma"]
    one = torch.ones_like(sigma)
    (c_skip, c_out), _ = KINDS["edm"](one, sigma)
    yield "edm: c_skip", worst(c_skip, golden["edm"]["c_skip"])
    yield "edm: c_out", worst(c_out, golden["edm"]["c_out"])
    model = Diffusion(Remember(), schedule, "edm", shape=(1, 1, 1))
    model.denoise(one.view(-1, 1, 1, 1), sigma / 80)
    yield "edm: c_in", worst(model.network.x.flatten(), golden["edm"]["c_in"])
    yield "edm: c_noise, in float32", worst(model.network.time, golden["edm"]["c_noise"])
    yield "edm: c_noise", worst(TIMES["log_sigma/4"](sigma / 80, schedule), golden["edm"]["c_noise"])
    yield "edm: loss weight", worst(loss_weight("edm", "x0", one, sigma), golden["edm"]["loss_weight"])
    for name, kind in (("vp", "eps"), ("ve", "score")):
        schedule = schedules.linear(None) if name == "vp" else schedules.variance_exploding(0.001, 100.0)
        t = schedule.inverse(-2 * sigma.log())
        alpha, noise = schedule(t)
        (a, b), _ = KINDS[kind](alpha, noise)
        b = b / sigma if name == "ve" else b  # its network divides by sigma
        yield f"{name}: c_skip", worst(a * alpha, golden[name]["c_skip"])
        yield f"{name}: c_out", worst(b, golden[name]["c_out"])
        yield f"{name}: c_in", worst(alpha, golden[name]["c_in"])
        yield f"{name}: loss weight", worst((alpha / noise) ** 2 * sigma**2, golden[name]["loss_weight"] * sigma**2)
    vp = schedules.linear(None)
    yield "vp: c_noise", worst(TIMES["999t"](vp.inverse(-2 * sigma.log()), vp), golden["vp"]["c_noise"])
    levels = [noise / alpha for alpha, noise in (schedules.cosine()(i / 1000) for i in range(1000, -1, -1))]
    levels = torch.tensor(levels, dtype=torch.float64)
    u = golden["iddpm"]["u"].double()  # made in float32, by a recursion through u^2 + 1
    yield "iddpm: noise levels above 1, relative", worst((levels / u)[u > 1], 1.0)
    yield "iddpm: squared noise levels below 1", worst((levels**2)[u <= 1], (u**2)[u <= 1])
    nearest = (sigma[:, None] - levels).abs().argmin(1)
    yield "iddpm: c_noise", worst(999 - nearest, golden["iddpm"]["c_noise"])


# --- flow matching ----------------------------------------------------------------------------------------------------


def flow_rows():
    """Euler in t; with a shift, DDIM (Euler in sigma on flows), or Euler on shifted times, is what diffusers does."""
    golden = load_math("flow")
    toy = golden["toy"]
    mixture = Mixture(toy["w"], toy["mu"], toy["sd"])

    def run(sampler, schedule, times):
        return torch.stack([s.x for s in sampler(ideal_denoiser(mixture, schedule), schedule, golden["x_1"], times)])

    for steps in (10, 50):
        times = [i / steps for i in range(steps, -1, -1)]
        yield f"Euler, {steps} steps", worst(run(euler, schedules.flow(), times)[-1], golden[f"euler{steps}_float64"])
    for shift in (1, 3):
        reference, schedule = golden[f"diffusers_euler12_shift{shift}"], schedules.flow(float(shift))
        times = [*np.linspace(1, schedule(1e-3)[1], 12).tolist(), 0.0]  # diffusers shifts its last time twice
        yield f"shift {shift}: sigmas", worst([schedule(t)[1] for t in times], reference["sigmas"])
        yield (
            f"shift {shift}: Euler",
            worst(run(euler, schedules.flow(), reference["sigmas"].tolist()), reference["traj"]),
        )
        yield f"shift {shift}: DDIM", worst(run(ddim, schedule, times), reference["traj"])
    reference = golden["logit_normal"]
    yield "logit-normal times", worst(logit_normal(reference["u"], reference["m"], reference["s"]), reference["t"])
    reference = golden["sd3_shift"]
    yield "shift of 3", worst(schedules.flow(shift=3.0)(reference["t"])[1], reference["shift3"])


ROWS = {
    "SDEs": sde_rows, "SDE trajectories": sde_trajectory_rows, "EDM": edm_rows, "EDM ablations": edm_ablation_rows,
    "preconditioning": precondition_rows, "flow matching": flow_rows,
}  # fmt: skip
