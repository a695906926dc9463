"""Swin blocks: the fixtures of timm, which are layers and no whole networks."""

import torch
from golden import fill
from toy import GOLDEN

from minidiff.backbones.swin import PatchMerging, SwinBlock

NETWORKS = ["timm_swin_block_noshift_a", "timm_swin_block_shift_a", "timm_swin_block_pad_a", "timm_patch_merging_a"]
PARAMETERS = {}  # layers are of any size


def layer(config):
    """Our layer for timm's arguments."""
    if "num_heads" not in config:
        return PatchMerging(config["dim"], config["out_dim"])
    shape = (config["dim"], config["num_heads"], config["input_resolution"], config["window_size"])
    return SwinBlock(*shape, config["shift_size"])


def network_error(name, dtype):
    """(error over the standard deviation of the output, tolerance) of our layer on a fixture."""
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    ours = layer(spec["config"])
    ours.load_state_dict({key: torch.from_numpy(value) for key, value in fill.make_weights(spec).items()})
    ours = ours.to(dtype).eval()
    with torch.no_grad():
        result = ours(torch.from_numpy(fill.make_inputs(spec)["x"]).to(dtype))
    error = (result.double() - torch.from_numpy(outputs["output"]).double()).abs().max()
    exact = dtype == torch.float64 and spec["computed"].startswith("float64")
    return (error / outputs["output"].std()).item(), 2e-6 if exact else 1e-4
