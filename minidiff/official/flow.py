"""Flows trained with time from noise to data: SiT (Ma et al. 2024), the first rectified flow (Liu et al. 2022).

There t = 0 is noise, t = 1 is data, and the network returns data - noise. Here time runs the other way and the
velocity is noise - data. Both differences are exact to undo: the network is fed 1 - t, and its last layer is negated.
"""

import torch

from minidiff.diffusion import Diffusion
from minidiff.errors import unknown_name
from minidiff.schedules import flow

# family -> the name in TIMES of what its network is fed, and the last layer in its state dict
FAMILIES = {
    "sit": ("1-t", "final_layer.linear"),
    "rectified_flow": ("999(1-t)", None),  # the last of its state dict, whose number depends on the size
}


def negate_last(state, last):
    """The state dict with the weight and bias of the layer `last` negated, so that the network returns its opposite.

    Raises ValueError if there is no such layer.
    """
    names = [name for name in (f"{last}.weight", f"{last}.bias") if name in state]
    if not names:
        layers = sorted({name.rsplit(".", 1)[0] for name in state})
        raise unknown_name("last layer", last, layers)
    return {name: -value if name in names else value for name, value in state.items()}


@torch.no_grad()
def from_data_to_noise(network, family, *, last=None, shape, **options):
    """The Diffusion of a network that was trained in the other direction of time; it is changed in place.

    network: with the official weights, network(x, time, y) -> data - noise. family: "sit" or "rectified_flow".
    last: the name of its last layer, a linear or convolutional one; by default the family's. shape: of one image.
    """
    if family not in FAMILIES:
        raise unknown_name("family of flows", family, FAMILIES)
    time, usual = FAMILIES[family]
    state = network.state_dict()
    last = last or usual or list(state)[-1].rpartition(".")[0]
    network.load_state_dict(negate_last(state, last))
    return Diffusion(network, flow(), "flow", time=time, shape=shape, **options)
