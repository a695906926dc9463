"""Comparisons of guidance with recorded references; rows (what, error), merged into goldens.py."""

import torch
from toy import listed, load_math, worst

from minidiff import schedules
from minidiff.guidance import classifier_free, dynamic_threshold, gradient_of, guided, scale_from_w
from minidiff.oracles import Mixture
from minidiff.prediction import Prediction
from minidiff.samplers import ddim, ddpm
from minidiff.samplers.ode import heun
from minidiff.spacings import spacing


def says(unconditional, conditional):
    """A denoiser (x_t, t, y) whose network returns the one for label 0, the other for label 1."""
    outs = torch.stack([unconditional, conditional])

    def denoise(x_t, t, y):
        return Prediction("eps", x_t, outs[y, torch.arange(len(y)) % outs.shape[1]], 0.8, 0.6)

    return denoise


def classifier_free_rows():
    golden = load_math("guidance")
    denoise = says(golden["eps_uncond"], golden["eps_cond"])
    x_t, y = torch.zeros_like(golden["eps_cond"]), torch.ones(2, dtype=torch.int64)

    def out(scale, **options):
        return classifier_free(denoise, y, scale, torch.zeros_like(y), **options)(x_t, 0.5).out

    for name, convert in (("s_param", float), ("w_param", scale_from_w)):
        for value in (0.0, 1.0, 2.5, 7.5):
            yield f"classifier-free, {name} {value}", worst(out(convert(value)), golden[f"{name}/{value}"])
    yield "classifier-free, rescale 0.7", worst(out(7.5, rescale=0.7), golden["rescale_phi0.7"])
    yield from interval_rows()


def labelled(toy):
    """The toy as an oracle in which each component is a class."""
    return Mixture(toy["w"], toy["mu"], toy["sd"], labels=torch.arange(3))


def interval_rows():
    golden = load_math("guidance")["interval"]
    schedule, oracle = schedules.edm(), labelled(golden["toy"])
    y = torch.full((len(golden["latents"]),), golden["cond_component"])
    times = spacing(schedule, 16, "karras")
    lo, hi = (sigma / schedule(1.0)[1] for sigma in (0.28, 2.9))
    for name, scale, interval in (("interval", 3.0, (lo, hi)), ("full", 3.0, None), ("none", 1.0, None)):
        denoise = classifier_free(oracle.denoiser(schedule), y, scale, oracle.null(y), interval=interval)
        x_T = schedule(times[0])[1] * golden["latents"]
        yield f"guidance interval: {name}", worst([*heun(denoise, schedule, x_T, times)][-1].x, golden[name])


def classifier_of(oracle, schedule):
    """The exact log p(y | x_t), by Bayes' rule."""

    def log_prob(x_t, t, y):
        prior = (oracle.log_weights[-1].exp() * (oracle.log_weights[y] > -torch.inf)).sum(1).log()
        return prior + oracle.log_density(x_t, t, schedule, y) - oracle.log_density(x_t, t, schedule)

    return log_prob


def classifier_rows():
    golden = load_math("classifier_guidance")
    schedule, oracle = schedules.linear(), labelled(golden["toy"])
    denoise, times = oracle.denoiser(schedule), spacing(schedule, "20", "sections")
    y = torch.full((len(golden["x_T"]),), golden["label"])
    by_class = gradient_of(classifier_of(oracle, schedule), golden["scale"])

    def gradient(x_t, t):
        return by_class(x_t, t, y)

    run = ddpm(denoise, schedule, golden["x_T"], times, listed(golden["noises"]), gradient=gradient)
    steps = torch.stack([step.x for step in run])
    yield "classifier guidance, ancestral", worst(steps, golden["ddpm_condition_mean"])
    run = list(ddim(guided(denoise, gradient), schedule, golden["x_T"], times))
    yield "classifier guidance, DDIM", worst(torch.stack([s.x for s in run]), golden["ddim_condition_score"])
    one = golden["one_step"]
    yield "classifier guidance, gradient", worst(gradient(golden["x_T"], 1.0), one["grad_scaled"])
    yield "classifier guidance, DDIM x0", worst(run[0].x0, one["score_pred_xstart"])
    shift = one["variance"] * gradient(golden["x_T"], 1.0)
    yield "classifier guidance, mean", worst(one["mean"] + shift, one["new_mean"])
    # the step's own mean and variance: its result with no noise
    first = next(ddpm(denoise, schedule, golden["x_T"], times, torch.zeros_like, gradient=gradient))
    yield "classifier guidance, first step without noise", worst(first.x, one["new_mean"])


def threshold_rows():
    golden = load_math("traj_dpmsolver")
    for name in ("linear", "discrete"):
        reference = golden[f"{name}/dynthresh_fn"]

        def denoise(x_t, t, x0=reference["inp"]):
            return Prediction("x0", x_t, x0, 0.8, 0.6)

        x0 = dynamic_threshold(denoise, reference["p"])(reference["inp"], 0.5).x0
        yield f"dynamic thresholding, {name}", worst(x0, reference["out"])


def gradient_rows():
    yield from classifier_rows()
    yield from threshold_rows()


ROWS = {"classifier-free guidance": classifier_free_rows, "classifier guidance and thresholds": gradient_rows}
