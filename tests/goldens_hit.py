"""HiT's generator and its attention against recorded outputs of the official code, and the published counts."""

import torch
from golden import fill
from toy import GOLDEN

from minidiff.backbones.hit import LatentAttention, MultiAxisAttention, pixel_shuffle
from minidiff.backbones.swin import split_windows
from minidiff.official import from_official
from minidiff.official.hit import attention

# Fixture, and which of its outputs if not "output"
NETWORKS = ["hit_generator_tf_a", *(f"hit_attention_ref_a{which}" for which in ("", "/cross", "/mha", "/d2s_out"))]

# Parameter counts of the official code (facts), without the statistics of its batch norms: name -> count
PARAMETERS = {"hit_128": 32_866_627, "hit_256": 46_217_670, "hit_1024": 88_216_300}


def tensorflow_weights(spec):
    """The variables of the checkpoint as TensorFlow has them: {name: tensor}."""
    state = {name: torch.from_numpy(value) for name, value in fill.make_weights(spec).items()}
    return {name: (t.T if "kernel" in name else t).reshape(spec["tf_shape"][name])
            for name, t in state.items()}  # fmt: skip


def piece(which, spec, dtype):
    """Our layer on what the fixture of layers was given, for one of its outputs."""
    config = spec["config"]
    inputs = {name: torch.from_numpy(value).to(dtype) for name, value in fill.make_inputs(spec).items()}
    if which == "d2s_out":
        return pixel_shuffle(inputs["d2s_in"])
    blocks = split_windows(inputs["x"], 2 * (config["patch_size"],)).unflatten(0, (len(inputs["x"]), -1))
    shape, attn_type = (config["channels"], config["num_heads"]), "multi_head" if which == "mha" else "multi_query"
    if which == "cross":
        layer, args = LatentAttention(*shape, attn_type, inputs["e"].shape[3]), (blocks, inputs["e"][:, 0])
    else:
        layer, args = MultiAxisAttention(*shape, attn_type), (blocks,)
    prefix = "mqa/" if which == "output" else f"{which}/"
    theirs = {
        name.removeprefix(prefix).replace("_dense/kernel", ".weight").replace("_dense/bias", ".bias"): tensor
        for name, tensor in tensorflow_weights(spec).items() if name.startswith(prefix)
    }  # fmt: skip
    layer.load_state_dict(attention(theirs, fused=which != "cross"))
    return layer.to(dtype)(*args)


@torch.no_grad()
def network_error(name, dtype):
    """(error, tolerance): the largest error of our network on a fixture, over the output's standard deviation.

    Both fixtures were recorded in float32.
    """
    name, _, which = name.partition("/")
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    if name == "hit_generator_tf_a":
        network = from_official(spec["family"], tensorflow_weights(spec), spec["config"]).to(dtype)
        result = network(torch.from_numpy(fill.make_inputs(spec)["z"]).to(dtype))
    else:
        result = piece(which or "output", spec, dtype)
    reference = torch.from_numpy(outputs[which or "output"]).double()
    return ((result.double() - reference).abs().max() / reference.std(correction=0)).item(), 1e-4
