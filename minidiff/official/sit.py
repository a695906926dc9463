"""SiT (Ma et al. 2024): the state dicts of its official code and published weights -> our SiT's, which is a DiT.

The names are those of DiT. Two things differ. Its networks also have the outputs for a variance range, which nothing
reads: ours is without them. And they were trained with time from noise to data: as flow.py says, the sign of the last
layer is turned here, once, and the network is fed 1 - t, so ours belongs to Diffusion(network, flow(), "flow",
time="1-t").
"""

from minidiff.official import dit
from minidiff.official.flow import negate_last

LAST = "final_layer.linear"
# One of our names, and for each of them whose weights were published what they were trained with
MODEL = "sit_xl_2"
RELEASED = {"sit_xl_2": {"schedule": ("flow", {}), "prediction": "flow", "time": "1-t", "latents": 0.18215}}


def convert(state, arguments):
    """The state dict of our SiT from an official one: {name: tensor} -> {name: tensor}.

    arguments: those of our network. What is left of the last layer returns noise - data. Raises ValueError for a state
    dict of ours, whose sign must not be turned again.
    """
    if "patch_embed.weight" in state:
        raise ValueError(
            "these are weights of minidiff's SiT, not of the official one: load them with network.load_state_dict, or "
            "the folder they are in with from_pretrained."
        )
    result = dict(dit.convert(state, arguments))
    channels = arguments["in_channels"]
    outputs = arguments["patch_size"] ** 2 * channels
    for name in (f"{LAST}.weight", f"{LAST}.bias"):
        if name in result and len(result[name]) == 2 * outputs:  # pixel by pixel: velocity, then variance
            result[name] = result[name].unflatten(0, (-1, 2, channels))[:, 0].flatten(0, 1).contiguous()
    return negate_last(result, LAST)


def arguments(config):
    """The arguments of our SiT from those of the official constructor, which are DiT's."""
    return dit.arguments(config) | {"learn_sigma": False}
