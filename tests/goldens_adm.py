"""ADM, its classifier, GLIDE's text attention and EDM's port: recorded outputs of the official code, and counts."""

import torch
from golden import fill
from toy import GOLDEN

from minidiff.backbones.adm_blocks import Attention
from minidiff.layers import Text
from minidiff.official import adm, from_official

# fixture, and which of its outputs, where it is not "output"
NETWORKS = [
    "guided_unet_adm_a", "guided_unet_admlegacyattn_a", "guided_unet_iddpm_a", "guided_unet_plain_a",
    "guided_superres_a", "glide_attention_a", "glide_unet_a", "edm_dhariwal_a",
    *(f"guided_encoder_{pool}_a{which}" for pool in ("attnpool", "adaptive", "spatial")
      for which in ("", "/grad_logp_label1")),
]  # fmt: skip

# Parameter counts of the official code (facts): name -> count. GLIDE's is that of its text-to-image model, less its
# text encoder: 50,257 words of width 512, 128 positions and as many paddings, 16 layers, and the last norm.
GLIDE_TEXT = (50_257 + 2 * 128) * 512 + 16 * (12 * 512**2 + 13 * 512) + 2 * 512
PARAMETERS = {
    "iddpm_cifar10": 52_546_438, "iddpm_imagenet64": 121_063_942, "iddpm_imagenet64_cond": 273_049_350,
    "adm_imagenet64": 295_904_454, "adm_imagenet128": 421_529_606, "adm_imagenet256": 553_838_086,
    "adm_imagenet512": 558_997_638, "adm_lsun256": 552_814_086, "adm_t2i_64": 385_030_726 - GLIDE_TEXT,
    "adm_upsample_64_256": 311_795_910, "adm_upsample_128_512": 308_835_270,
    "adm_classifier_64": 65_438_568, "adm_classifier_128": 42_568_040, "adm_classifier_256": 54_096_360,
    "adm_classifier_512": 54_448_360, "edm_adm_imagenet64": 295_899_267,
}  # fmt: skip


def official_network(spec):
    """Our network with the weights of a fixture, in float32."""
    state = {key: torch.from_numpy(value) for key, value in fill.make_weights(spec).items()}
    if spec["model"].startswith("AttentionBlock"):
        return attention_block(spec["config"], state)
    family = "edm_adm" if spec["family"] == "edm" else spec["family"]
    low_res = {"super_resolution": True} if spec["model"].startswith("SuperResModel") else {}
    return from_official(family, state, spec["config"] | low_res)


def attention_block(config, state):
    """GLIDE's attention alone: the names of its weights are those of one inside the network."""
    heads = config["channels"] // config["num_head_channels"]
    block = Attention(config["channels"], heads, "legacy", text_dim=config["encoder_channels"])
    inside = "input_blocks.1.1."
    weights = adm.convert({inside + name: tensor for name, tensor in state.items()}, {"num_res_blocks": 1})
    block.load_state_dict({name.split("attention.")[1]: tensor for name, tensor in weights.items()})
    return block


def call(network, spec, which, dtype):
    """What the network gives for the inputs of a fixture; `which`: "output", or the gradient of log p(1 | x)."""
    inputs = {key: torch.from_numpy(value) for key, value in fill.make_inputs(spec).items()}
    x, rest = inputs.pop("x").to(dtype), list(inputs.values())
    if spec["model"].startswith("AttentionBlock"):
        return network(x, Text(inputs["encoder_out"].to(dtype).transpose(1, 2)))
    if which == "grad_logp_label1":
        x.requires_grad_()
        return torch.autograd.grad(network(x, *rest).log_softmax(1)[:, 1].sum(), x)[0]
    if "xf_out" in inputs:
        text = Text(inputs["xf_out"].to(dtype).transpose(1, 2), pooled=inputs["xf_proj"].to(dtype))
        return network(x, inputs["timesteps"], text)
    return network(x, *(value.to(dtype) if value.ndim == 4 else value for value in rest))


def network_error(name, dtype):
    """(error, tolerance): the largest error of our network on a fixture, over the output's standard deviation."""
    name, _, which = name.partition("/")
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    result = call(official_network(spec).to(dtype), spec, which, dtype).detach()
    reference = torch.from_numpy(outputs[which or "output"]).double()
    error = (fill.select(spec, which or "output", result).double() - reference).abs().max()
    return (error / reference.std(correction=0)).item(), 2e-6 if dtype == torch.float64 else 1e-4
