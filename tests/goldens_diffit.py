"""DiffiT against recorded outputs of the official code, and its published parameter counts."""

import torch
from golden import fill
from goldens_dit import guided
from toy import GOLDEN

from minidiff.official import from_official

NETWORKS = ["diffit_latent_a", "diffit_latent_a/cfg_output"]  # fixture, and which of its outputs if not "output"

# Parameter counts of the official code (facts), with the fixed positions: name -> count
PARAMETERS = {"diffit_xl_256": 561_330_144, "diffit_xl_512": 563_562_464}


def network_error(name, dtype):
    """(error, tolerance): the largest error of our network on a fixture, over the output's standard deviation."""
    name, _, which = name.partition("/")
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    network = from_official(spec["family"], fill.make_weights(spec), spec["config"]).to(dtype)
    inputs = {key: torch.from_numpy(value) for key, value in fill.make_inputs(spec).items()}
    inputs = {key: value.to(dtype) if value.ndim == 4 else value for key, value in inputs.items()}
    with torch.no_grad():
        if which:
            result = guided(network, inputs, spec, power=spec["constants"]["scale_pow"])
        else:
            result = network(inputs["x"], inputs["t"], inputs["y"])
    reference = torch.from_numpy(outputs[which or "output"]).double()[: len(result)]  # guided ones are there twice
    error = (result.double() - reference).abs().max() / reference.std(correction=0)
    return error.item(), 2e-6 if dtype == torch.float64 else 1e-4
