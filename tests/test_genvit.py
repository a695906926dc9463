"""GenViT and HybViT: the official numbers, both heads, and every option."""

import goldens_dit
import pytest
import torch
import torch.nn.functional as F

from minidiff import create_model
from minidiff.attention_maps import record_attention
from minidiff.backbones.genvit import ShiftedPatches
from minidiff.checkpoints import load_weights
from minidiff.layers import patchify
from minidiff.official import genvit as official

# The other rows of the table in facts: what differs from genvit_cifar10, and the count
SIZES = [
    (dict(head_classes=100), 11_219_718),
    (dict(head_classes=1000), 11_566_218),
    (dict(img_size=64, patch_size=8, head_classes=200), 11_368_954),
    (dict(img_size=96, patch_size=8), 12_929_884),
    (dict(img_size=128, patch_size=8, embed_dim=512, num_heads=8), 25_592_124),
    (dict(img_size=128, patch_size=8, embed_dim=512, num_heads=12), 25_444_668),
    (dict(img_size=224, patch_size=14, embed_dim=1024, num_heads=8), 83_925_192),
    (dict(img_size=224, patch_size=14, embed_dim=1024, num_heads=12), 83_777_736),
]
SWITCHES = [
    {}, {"spt": True}, {"lsa": True}, {"spt": True, "lsa": True}, {"ffn_time": False}, {"num_classes": 3},
    {"head_classes": 5}, {"head_classes": 5, "lsa": True, "num_classes": 3}, {"num_heads": 5}, {"num_heads": 1},
]  # fmt: skip


def network_of(**overrides):
    torch.manual_seed(0)
    return create_model("genvit_test", **overrides).eval()


def inputs(batch=3):
    torch.manual_seed(1)
    return torch.randn(batch, 3, 8, 8), torch.linspace(1, 900, batch)


@pytest.mark.parametrize("overrides, count", SIZES, ids=str)
def test_parameter_counts_of_sizes_without_a_name(overrides, count):
    with torch.device("meta"):
        network = create_model("genvit_cifar10", **overrides)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("overrides", SWITCHES, ids=str)
def test_switches(overrides):
    """Every parameter learns, the time counts, no picture sees another, and the whole is one graph."""
    network, (x, time) = network_of(**overrides), inputs()
    y = torch.arange(3) if "num_classes" in overrides else None
    out = network(x, time, y)
    assert out.shape == x.shape
    loss = out.square().sum()
    if "head_classes" in overrides:
        loss = loss + network.logits(x).square().sum()
    loss.backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        assert (network(x, time.flip(0), y) - out)[0].abs().max() > 1e-2
        if y is not None:
            assert (network(x, time, y.flip(0)) - out)[0].abs().max() > 1e-2
        alone = [network(x[i : i + 1], time[i : i + 1], None if y is None else y[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(torch.cat(alone), out, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(x, time[1:2], y)[1], out[1], rtol=1e-4, atol=1e-4)
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, time, y), out)


def test_the_time_acts_on_the_residual_stream_of_each_token():
    """Scale before shift; one of each for a token; before attention, and again before the MLP with ffn_time."""
    network, (x, time) = network_of(depth=1), inputs()
    block, layer = network.blocks[0], network.modulations[0]
    scale, shift = torch.linspace(-0.5, 0.5, 17), torch.linspace(0.3, -1, 17)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.cat([scale, shift]))
        for twice in (True, False):
            network.ffn_time = twice
            tokens = block.attend(network.embed(x) * (1 + scale[:, None]) + shift[:, None])
            if twice:
                tokens = tokens * (1 + scale[:, None]) + shift[:, None]
            expected = network.head(block.think(tokens)[:, 1:])
            torch.testing.assert_close(patchify(network(x, time), 2), expected)


def test_the_classifier_knows_no_time():
    network, (x, _) = network_of(head_classes=5), inputs()
    logits = network.logits(x)
    assert logits.shape == (3, 5)
    with torch.no_grad():
        network.time_embed[0].weight.add_(1)
        assert torch.equal(network.logits(x), logits)
    with pytest.raises(ValueError, match="head_classes"):
        network_of().logits(x)


def test_shifted_patches():
    """A pixel appears in the picture and, moved by half a patch, in the four crops of the padded one."""
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 4] = 1
    layer = ShiftedPatches(4, 16, 80)
    layer[0], layer[1] = torch.nn.Identity(), torch.nn.Identity()
    found = [tuple(place) for place in F.fold(
        layer(x).unflatten(2, (16, 5)).permute(0, 3, 2, 1).flatten(1, 2), 8, 4, stride=4).nonzero()[:, 1:].tolist()]
    assert found == [(0, 3, 4), (1, 5, 6), (2, 5, 2), (3, 1, 6), (4, 1, 2)]


def test_no_token_sees_itself_with_lsa():
    network, (x, time) = network_of(lsa=True), inputs()
    with torch.no_grad(), record_attention(network) as maps:
        network(x, time)
    assert list(maps) == ["blocks.0.attn", "blocks.1.attn"]
    for (weights,) in maps.values():
        assert weights.shape == (3, 2, 17, 17) and (weights.diagonal(dim1=2, dim2=3) == 0).all()
    assert network.blocks[0].attn.scale.tolist() == pytest.approx([12**-0.5] * 2)
    assert not any("others" in key for key in network.state_dict())


def test_bf16_is_near_fp32():
    network, (x, time) = network_of(lsa=True, spt=True), inputs()
    with torch.no_grad():
        exact = network(x, time)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x, time).float()
    assert (rough - exact).std() / exact.std() < 0.05


def test_labels():
    network, (x, time), y = network_of(num_classes=3), inputs(), torch.tensor([0, 2, 1])
    assert (network.null(y) == 3).all()
    with pytest.raises(ValueError, match="labels are missing"):
        network(x, time)
    with pytest.raises(ValueError, match="no null label"):
        network_of().null(y)


def test_official_files():
    """The whole process is in the file: prefixes go, and so do the tables of the schedule."""
    spec, _ = goldens_dit.fill.load(goldens_dit.GOLDEN / "genvit_spt_lsa_c.npz")
    bare = {key: torch.from_numpy(value) for key, value in goldens_dit.fill.make_weights(spec).items()}
    expected = official.convert(bare)
    for prefix in ("denoise_fn.", "denoise_fn.module."):
        file = {"model_state_dict": {"betas": torch.ones(9), **{prefix + key: value for key, value in bare.items()}}}
        assert official.convert(file).keys() == expected.keys()
    network = create_model("genvit_cifar10", **official.arguments(spec["config"]))
    load_weights(network, expected, "a file")
    assert official.arguments({})["head_classes"] == 10 and official.arguments({"dim": 512})["embed_dim"] == 512
    with pytest.raises(ValueError, match="pool"):
        official.arguments({"pool": "mean"})
    del expected["head.bias"]
    with pytest.raises(ValueError, match="1 missing: head.bias"):
        load_weights(network, expected, "a file")


def test_errors():
    with pytest.raises(ValueError, match="divisible by patch_size"):
        network_of(img_size=9)
    with pytest.raises(ValueError, match=r"images must be \(3, 8, 8\)"):
        network_of()(torch.zeros(1, 3, 16, 16), torch.zeros(1))
