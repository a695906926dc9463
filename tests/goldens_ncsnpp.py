"""NCSN++ and DDPM++ against recorded outputs of score_sde and of EDM's code, and their published parameter counts."""

import torch
from golden import fill
from toy import GOLDEN

from minidiff import schedules
from minidiff.diffusion import Diffusion
from minidiff.official import from_official
from minidiff.prediction import Prediction

# fixture, and which of its outputs, where it is not "output"
NETWORKS = [
    "scoresde_ncsnpp_ve_a", "scoresde_ddpmpp_a", "scoresde_ddpm_a", "edm_songunet_ncsnpp_a", "edm_songunet_ddpmpp_a",
    "edm_precond_edm_a", "edm_precond_edm_a/network_output", "edm_precond_vp_a", "edm_precond_vp_a/network_output",
    "edm_precond_ve_a", "edm_precond_iddpm_a/network_output",
]  # fmt: skip

# Parameter counts of the official code (facts), with the fixed frequencies of score_sde: name -> count
PARAMETERS = {
    "ncsnpp_cifar10": 62_758_915, "ddpmpp_cifar10": 61_804_419,
    "edm_ncsnpp_cifar10": 56_397_827, "edm_ddpmpp_cifar10": 55_733_891,
}  # fmt: skip


def official_network(name):
    """(network, spec, outputs): ours with the weights of a fixture, in float32."""
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    config, model = spec["config"], spec["model"].partition("(")[0]
    config = config | {"model": config["model"] | {"name": model.lower()}} if "model" in config else config | (
        {"class_name": f"training.networks.{model}"} if model.endswith("Precond") else {}
    )  # fmt: skip
    state = {key: torch.from_numpy(value) for key, value in fill.make_weights(spec).items()}
    return from_official(spec["family"], state, config), spec, outputs


def network_error(name, dtype):
    """(error, tolerance): the largest error of our network on a fixture, over the output's standard deviation."""
    name, _, which = name.partition("/")
    network, spec, outputs = official_network(name)
    x, time, *_ = (torch.from_numpy(value) for value in fill.make_inputs(spec).values())
    x, network = x.to(dtype), network.to(dtype)
    with torch.no_grad():
        if "precond" not in name:
            result = network(x, time)
        else:
            result = preconditioned(name, network, x, time, torch.from_numpy(outputs["network_time"]), which)
    reference = torch.from_numpy(outputs[which or "output"]).double()
    error = (result.double() - reference).abs().max() / reference.std(correction=0)
    return error.item(), 2e-6 if dtype == torch.float64 else 1e-4


def preconditioned(name, network, x, sigma, time, which):
    """What EDM's preconditionings make of x = x0 + sigma eps: x0, or "network_output".

    A fixture has a sigma for each image, as tensors (B,) of times have. That of VP is fed its recorded time:
    in float32, their time of a small sigma has but four digits, which alone would make an error of 2e-5.
    """
    sigma = sigma.to(x.dtype)
    wide = sigma[:, None, None, None]
    if "precond_ve" in name:  # our images are in [0, 1] here, so with half the noise
        model = Diffusion(network, schedules.variance_exploding(), "score", time="sigma", shape=x.shape[1:])
        t = model.schedule.inverse(-2 * (sigma / 2).log())
        return 2 * model.denoise((x + 1) / 2, t).x0 - 1
    if "precond_edm" in name and not which:
        return Diffusion(network, schedules.edm(), "edm", shape=x.shape[1:]).denoise(x, sigma / 80).x0
    scale = (wide**2 + (0.25 if "precond_edm" in name else 1)) ** 0.5  # of VP, alpha is its inverse
    out = network(x / scale, time)
    return out if which else Prediction("eps", x / scale, out, 1 / scale, wide / scale).x0
