"""Every comparison with a recorded reference, as rows (what, error, tolerance); for the tests and `make verify`."""

import goldens_adm
import goldens_diffit
import goldens_dit
import goldens_guidance
import goldens_hit
import goldens_ncsnpp
import goldens_sde
import goldens_solvers
import goldens_swin
import goldens_uvit
import torch
from golden import fill
from torch import nn
from toy import GOLDEN, listed, load_math, toy_denoiser, worst

from minidiff import schedules
from minidiff.diffusion import Diffusion
from minidiff.losses import loss_weight
from minidiff.official import from_official
from minidiff.prediction import clip
from minidiff.samplers import ddim, ddpm
from minidiff.spacings import spacing
from minidiff.variational import (
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    log_variance,
    posterior,
    prior_term,
    step_variances,
    variational_term,
)

MATH = 1e-6  # largest absolute error of a formula in float64
DTYPES = (torch.float64, torch.float32)


def all_times(schedule):
    return (torch.arange(schedule.steps, dtype=torch.float64) + 1) / schedule.steps


def schedule_rows():
    golden = load_math("schedules")
    for name in ("linear", "cosine"):
        schedule, reference = getattr(schedules, name)(), golden[name]
        floats = torch.tensor([schedule(t) for t in all_times(schedule).tolist()], dtype=torch.float64)
        tensors = torch.stack(schedule(all_times(schedule)), dim=1)
        for where, (alpha, sigma) in (("floats", floats.T), ("tensors", tensors.T)):
            yield f"{name}: alpha, {where}", worst(alpha, reference["sqrt_alphas_cumprod"])
            yield f"{name}: sigma, {where}", worst(sigma, reference["sqrt_one_minus_alphas_cumprod"])
        yield f"{name}: betas", worst(schedule.betas, reference["betas"])
        yield f"{name}: alpha-bar", worst(schedule.alphas_cumprod, reference["alphas_cumprod"])
        t = all_times(schedule)
        small, _ = step_variances(schedule, t - 1 / schedule.steps, t)
        yield f"{name}: posterior variance", worst(small, reference["posterior_variance"])
        logs = log_variance(schedule, t, "small")
        yield f"{name}: posterior log variance, clipped", worst(logs, reference["posterior_log_variance_clipped"])
    yield "linear, T = 4000: betas", worst(schedules.linear(4000).betas, golden["linear_T4000_betas"])
    yield "cosine, T = 4000: betas", worst(schedules.cosine(4000).betas, golden["cosine_T4000_betas"])
    yield "scaled linear: betas", worst(schedules.scaled_linear().betas, golden["sd_scaled_linear_betas"])
    weights = load_math("weights")
    for name, schedule in (("linear", schedules.linear()), ("sd_scaled_linear", schedules.scaled_linear())):
        betas = schedules.zero_terminal_snr(schedule).betas
        yield f"zero terminal SNR of {name}: betas", worst(betas, weights[f"zero_snr/{name}"]["betas_out"])


def respaced(schedule, spec):
    """The times of ADM's respacing strings: '250', '90,60,60,20,20', 'ddim50'."""
    if spec.startswith("ddim"):
        return spacing(schedule, int(spec[4:]), "ddim")
    return spacing(schedule, spec, "sections")


def respacing_rows():
    for key, reference in load_math("respacing").items():
        if not isinstance(reference, dict):
            continue  # the note, and what the official code says about 'ddim37' and 'ddim30'
        spec, steps = key
        schedule = schedules.linear(steps)
        times = respaced(schedule, spec)
        indices = [round(t * steps) - 1 for t in times[:-1]][::-1]
        betas = [step_variances(schedule, s, t)[1] for t, s in zip(times, times[1:])][::-1]
        yield f"respacing '{spec}' of {steps}: indices", worst(indices, reference["map"])
        yield f"respacing '{spec}' of {steps}: betas", worst(betas, reference["betas"])


class Says(nn.Module):
    """A network that returns what it was given."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, time, y=None):
        return self.out


def loss_rows():
    golden = load_math("losses")
    x0, eps, t = golden["x_start"], golden["noise"], (golden["t"].double() + 1) / 1000
    out = torch.cat([golden["model_eps"], golden["model_var_values"]], dim=1)
    for name in ("linear", "cosine"):
        schedule = getattr(schedules, name)()
        model = Diffusion(Says(out), schedule, "eps", learned_range=True, shape=(3, 4, 4), value_range=(-9, 9))
        x_t = model.forward_process(x0, t, eps)
        prediction = model.denoise(x_t, t)
        yield f"{name}: forward process", worst(x_t, golden[f"{name}/q_sample"])
        for mode, scale in (("MSE", 1), ("RESCALED_MSE", None)):
            loss = model.loss(x0, t=t, eps=eps, variational=scale)
            yield f"{name}: hybrid loss, {mode}", worst(loss, golden[f"{name}/{mode}"]["loss"])
        term = variational_term(schedule, x0, t, prediction, "learned")
        yield f"{name}: variational term, learned", worst(term, golden[f"{name}/KL"]["loss"])
        for variance in ("small", "large"):
            term = variational_term(schedule, x0, t, prediction, variance)
            yield f"{name}: variational term, {variance}", worst(term, golden[f"{name}/KL/FIXED_{variance.upper()}"])
        yield f"{name}: prior term", worst(prior_term(schedule, x0), golden[f"{name}/prior_bpd"])
        for mode, seen in (("noclip", prediction), ("clip", clip(lambda x, t, p=prediction: p)(x_t, t))):
            reference = golden[f"{name}/p_mean_variance_{mode}"]
            mean, _ = posterior(schedule, seen.x0, x_t, (t - 1 / 1000).clamp(min=0), t)
            logs = log_variance(schedule, t, "learned", seen.v_range)
            yield f"{name}: x0, {mode}", worst(seen.x0, reference["pred_xstart"])
            yield f"{name}: mean, {mode}", worst(mean, reference["mean"])
            yield f"{name}: log variance, {mode}", worst(logs, reference["log_variance"])
    reference = golden["normal_kl"]
    yield "KL of two Gaussians", worst(gaussian_kl(*reference["args"]), reference["out"])
    reference = golden["disc_ll"]
    likelihood = discretized_gaussian_log_likelihood(x0, reference["means"], reference["log_scales"])
    yield "discretised likelihood", worst(likelihood, reference["out"])


def weight_rows():
    golden, schedule = load_math("weights"), schedules.linear()
    alpha, sigma = schedule((golden["t"].double() + 1) / 1000)
    for gamma in (1, 5, 20):
        for kind in ("x0", "eps", "v"):
            weight = loss_weight("min_snr", kind, alpha, sigma, gamma=gamma)
            yield f"min-SNR {gamma}, {kind}", worst(weight, golden[f"min_snr_{gamma}"][kind])
    for gamma in (0.5, 1):
        weight = loss_weight("p2", "eps", alpha, sigma, gamma=gamma)
        yield f"P2 with gamma {gamma}, eps", worst(weight, golden[f"p2_gamma{gamma}_k1"])


def trajectory_rows():
    golden = load_math("traj_ddpm_ddim")
    for key, reference in golden.items():
        family, *rest = key.split("/")
        if family not in ("ddpm", "ddim", "ddim_inversion"):
            continue
        schedule = getattr(schedules, rest[0])()
        denoise, times = toy_denoiser(schedule, golden["toy"]), respaced(schedule, rest[1])
        if family == "ddim_inversion":
            steps = list(ddim(denoise, schedule, reference["x0"], times[:-1][::-1]))
            yield key, worst(torch.stack([step.x for step in steps]), reference["latents"])
            continue
        noise = listed(golden["noises"])
        mode = rest[2]
        if mode.endswith("_clip"):
            denoise = clip(denoise)
        if family == "ddim":
            run = ddim(denoise, schedule, golden["x_T"], times, noise, eta=float(mode[3:]))
        else:
            variance = "learned" if "LEARNED" in mode else "large" if "LARGE" in mode else "small"
            run = ddpm(denoise, schedule, golden["x_T"], times, noise, variance=variance)
        steps = list(run)
        yield key, worst(torch.stack([step.x for step in steps]), reference["samples"])
        yield f"{key}: last x0", worst(steps[-1].x0, reference["last_pred_xstart"])


MATH_ROWS = {
    "schedules": schedule_rows, "respacing": respacing_rows, "losses": loss_rows, "weights": weight_rows,
    "trajectories": trajectory_rows, **goldens_sde.ROWS, **goldens_solvers.ROWS, **goldens_guidance.ROWS,
}  # fmt: skip

# Families whose fixtures are called in their own way: each has NETWORKS, network_error(name, dtype), and PARAMETERS
FAMILIES = (goldens_dit, goldens_adm, goldens_ncsnpp, goldens_diffit, goldens_hit, goldens_swin)
NETWORKS = ["diffusers_unet2d_ddpm_a", "ddpm_tf_unet_a", *goldens_uvit.NETWORKS]
NETWORKS += [name for family in FAMILIES for name in family.NETWORKS]


def network_error(name, dtype):
    """(error, tolerance): the largest error of our network on a fixture, over the output's standard deviation.

    References that were recorded in float64 bind a float64 network to 2e-6; all else is 1e-4.
    """
    for family in FAMILIES:
        if name in family.NETWORKS:
            return family.network_error(name, dtype)
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    state = {key: torch.from_numpy(value) for key, value in fill.make_weights(spec).items()}
    network = from_official(spec["family"], state, spec["config"]).to(dtype).eval()
    x, time, *y = (torch.from_numpy(value) for value in fill.make_inputs(spec).values())
    with torch.no_grad():
        result = network(x.to(dtype), time, *y)
    error = (result.double() - torch.from_numpy(outputs["output"]).double()).abs().max()
    exact = dtype == torch.float64 and spec["computed"].startswith("float64")
    return (error / outputs["output"].std()).item(), 2e-6 if exact else 1e-4


# Parameter counts of the papers and official code (facts): name -> count
PARAMETERS = {"ddpm_cifar10": 35_746_307, "ddpm_lsun256": 113_673_219, **goldens_uvit.PARAMETERS}
PARAMETERS |= {name: count for family in FAMILIES for name, count in family.PARAMETERS.items()}

# Those that a paper without code prints in millions: name -> (millions, how far ours may be off)
MILLIONS = {
    "iuvit_cifar10": (45, 0.5), "iuvit_celeba64": (45, 0.5), "iuvit_church128": (442, 0.5),
    "iuvit_church256": (527, 0.5), "iuvit_church256_wide": (935, 0.5), "iuvit_t2i_64": (307, 0.5),
    "ascend_t2i_64": (300, 6), "ascend_t2i_128": (590, 11.8),
}  # fmt: skip
