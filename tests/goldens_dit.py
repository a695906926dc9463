"""DiT and GenViT against recorded outputs of the official code, and their published parameter counts."""

import torch
from golden import fill
from toy import GOLDEN

from minidiff import schedules
from minidiff.backbones import create_model
from minidiff.checkpoints import load_weights
from minidiff.diffusion import Diffusion
from minidiff.guidance import classifier_free
from minidiff.official import dit, genvit

KEY_MAPS = {"dit": dit, "genvit": genvit}
# fixture, and which of its outputs, where it is not "output"
NETWORKS = [
    "dit_a", "dit_a/cfg_output", "genvit_a", "genvit_a/logits_no_time", "genvit_spt_lsa_c",
    "genvit_spt_lsa_c/logits_no_time",
]  # fmt: skip

# Parameter counts of the official code (facts), with the fixed positions: name -> count
PARAMETERS = {
    "dit_s_2": 32_963_360, "dit_s_4": 32_945_024, "dit_s_8": 33_148_160,
    "dit_b_2": 130_512_416, "dit_b_4": 130_475_648, "dit_b_8": 130_881_536,
    "dit_l_2": 458_102_816, "dit_l_4": 458_053_760, "dit_l_8": 458_594_816,
    "dit_xl_2": 675_129_632, "dit_xl_4": 675_074_432, "dit_xl_8": 675_683_072, "dit_xl_2_512": 676_014_368,
    "genvit_cifar10": 11_185_068, "genvit_celeba128": 17_109_948,
}  # fmt: skip


def official_network(spec):
    """Our network with the weights of a fixture, in float32."""
    key_map = KEY_MAPS[spec["family"]]
    network = create_model(key_map.MODEL, **key_map.arguments(spec["config"]))
    state = {key: torch.from_numpy(value) for key, value in fill.make_weights(spec).items()}
    load_weights(network, key_map.convert(state, network.arguments), spec["family"])
    return network.eval()


def network_error(name, dtype):
    """(error, tolerance): the largest error of our network on a fixture, over the output's standard deviation."""
    name, _, which = name.partition("/")
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    network, inputs = official_network(spec).to(dtype), {}
    for key, value in fill.make_inputs(spec).items():
        value = torch.from_numpy(value)
        inputs[key] = value.to(dtype) if value.ndim == 4 else value
    with torch.no_grad():
        if which == "cfg_output":
            result, outputs = guided(network, inputs, spec), {which: outputs[which][: len(inputs["cfg_x"]) // 2]}
        elif which:
            result = network.logits(inputs["x"])
        else:
            result = network(*inputs.values()) if spec["family"] == "genvit" else network(*list(inputs.values())[:3])
    reference = torch.from_numpy(outputs[which or "output"]).double()
    error = (result.double() - reference).abs().max() / reference.std(correction=0)
    return error.item(), 2e-6 if dtype == torch.float64 else 1e-4


def guided(network, inputs, spec, power=None):
    """DiT's and DiffiT's output under guidance, conditional half: noise and variance range (B, 2C, H, W).

    The fixture has the batch twice, as its code wants it, and a time for each picture, where a sampler has one for all.
    """
    x, time, y = (inputs[f"cfg_{name}"].chunk(2)[0] for name in ("x", "t", "y"))
    diffusion = Diffusion(network, schedules.linear(1000), "eps", learned_range=True, shape=network.shape)
    results = []
    for i, index in enumerate(time.tolist()):
        scale = spec["constants"]["cfg_scale"]
        denoise = classifier_free(diffusion.denoise, y[i : i + 1], scale, guide_first=3, power=power)
        prediction = denoise(x[i : i + 1], (index + 1) / 1000)
        results.append(torch.cat([prediction.out, prediction.v_range], dim=1))
    return torch.cat(results)
