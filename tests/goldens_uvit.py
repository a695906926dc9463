"""U-ViT against recorded outputs of the official code, and its published parameter counts."""

import torch
from golden import fill
from toy import GOLDEN

from minidiff.backbones import create_model
from minidiff.checkpoints import load_weights
from minidiff.official import uvit

NETWORKS = ["uvit_uncond_a", "uvit_class_notimemlp_a", "uvit_class_timemlp_a", "uvit_t2i_a"]

# Parameter counts of the official code (facts): name -> count
PARAMETERS = {
    "uvit_cifar10": 44_255_328, "uvit_celeba64": 44_292_228, "uvit_imagenet64_m": 130_940_292,
    "uvit_imagenet64_l": 286_827_652, "uvit_imagenet256_l": 286_763_172, "uvit_imagenet256_h": 500_832_016,
    "uvit_imagenet512_l": 286_861_524, "uvit_imagenet512_h": 500_942_656, "uvit_coco": 44_692_644,
    "uvit_coco_deep": 58_345_636,
}  # fmt: skip


def official_network(spec):
    """Our network with the weights of a fixture, in float32."""
    network = create_model("uvit_cifar10", **uvit.arguments(spec["config"]))
    state = {name: torch.from_numpy(value) for name, value in fill.make_weights(spec).items()}
    load_weights(network, uvit.convert(state, network.arguments), spec["family"])
    return network.eval()


def network_error(name, dtype):
    """(error, tolerance): the largest error of our network on a fixture, over the output's standard deviation."""
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    network = official_network(spec).to(dtype)
    x, time, *y = (torch.from_numpy(value) for value in fill.make_inputs(spec).values())
    with torch.no_grad():
        result = network(x.to(dtype), time, *y)
    error = (result.double() - torch.from_numpy(outputs["output"]).double()).abs().max()
    return (error / outputs["output"].std()).item(), 2e-6 if dtype == torch.float64 else 1e-4
