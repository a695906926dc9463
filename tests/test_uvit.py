"""U-ViT: the official numbers, its conditions, and every switch of its ablation."""

import goldens_uvit
import pytest
import torch
from counting import Count

from minidiff import create_model
from minidiff.attention_maps import record_attention
from minidiff.checkpoints import load_weights
from minidiff.diffusion import TIMES
from minidiff.guidance import join
from minidiff.layers import Text
from minidiff.official import uvit as official
from minidiff.schedules import scaled_linear

TEXT = dict(text_dim=6, num_text_tokens=5)


def network_of(**overrides):
    torch.manual_seed(0)
    return create_model("uvit_test", **overrides).eval()


def inputs(batch=3):
    torch.manual_seed(1)
    return torch.randn(batch, 3, 8, 8), torch.linspace(1, 900, batch)


def text(batch=3):
    mask = torch.arange(5) < torch.arange(2, batch + 2)[:, None]
    return Text(torch.randn(batch, 5, 6), mask)


def test_official_arguments():
    ours = official.arguments({"num_classes": 1001, "skip": False, "use_checkpoint": True, "qk_scale": None})
    assert ours["num_classes"] == 1000 and ours["null_label"] and ours["skip"] == "none" and ours["img_size"] == 224
    assert official.arguments({"num_classes": 1000})["num_classes"] == 1000
    assert not official.arguments({"num_classes": 1000})["null_label"]
    assert official.arguments({})["num_classes"] == 0 and official.arguments({"depth": 13})["depth"] == 12
    with pytest.raises(ValueError, match="norm_layer"):
        official.arguments({"norm_layer": "rms"})
    with pytest.raises(ValueError, match="qk_scale"):
        official.arguments({"qk_scale": 0.5})


def test_every_published_file_says_how_it_was_trained():
    assert set(official.RELEASED) == set(goldens_uvit.PARAMETERS)
    half = [TIMES[official.RELEASED[f"uvit_imagenet256_{size}"]["time"]](0.5, scaled_linear()) for size in "lh"]
    assert half == [499.5, 500.0]


def test_an_official_file_of_another_size_is_refused():
    network = network_of()
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("head.conv")}
    with pytest.raises(ValueError, match="2 missing: head.conv"):
        load_weights(network, official.convert(state, network.arguments), "a file")


SWITCHES = [
    {}, {"skip": "add"}, {"skip": "none"}, {"time_as": "adaln"}, {"mlp_time_embed": True}, {"conv": False},
    {"qkv_bias": True}, {"num_classes": 3}, {"num_classes": 3, "null_label": False}, TEXT,
    {"time_as": "adaln", "num_classes": 3}, {"time_as": "adaln", **TEXT},
]  # fmt: skip


@pytest.mark.parametrize("overrides", SWITCHES, ids=str)
def test_switches(overrides):
    """Every parameter learns, the output depends on the time, and the whole is one graph."""
    network, (x, time) = network_of(**overrides), inputs()
    y = text() if "text_dim" in overrides else torch.tensor([0, 1, 2]) if "num_classes" in overrides else None
    out = network(x, time, y)
    assert out.shape == x.shape and (network(x, time.flip(0), y) - out)[0].abs().max() > 1e-5
    out.square().sum().backward()
    for key, parameter in network.named_parameters():
        if key.endswith("qkv.bias"):  # softmax cancels the bias of the keys
            assert (parameter.grad.abs() > 0).sum() >= parameter.numel() * 0.6
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, time, y), network(x, time, y))


def test_skips_are_what_they_are_called():
    counts = {skip: sum(p.numel() for p in network_of(skip=skip).parameters()) for skip in ("concat", "add", "none")}
    assert counts["add"] == counts["none"] == counts["concat"] - (2 * 24 * 24 + 24)
    x, time = inputs()
    add, none = network_of(skip="add"), network_of(skip="none")
    none.load_state_dict(add.state_dict())
    assert (add(x, time) - none(x, time)).abs().max() > 1e-4
    concat = network_of()
    state = {key: value for key, value in concat.state_dict().items() if "skip_linear" not in key}
    add.load_state_dict(state)
    with torch.no_grad():  # [I, I] adds, [I, 0] does nothing
        layer, eye = concat.out_blocks[0].skip_linear, torch.eye(24)
        layer.weight.copy_(torch.cat([eye, eye], dim=1))
        torch.testing.assert_close(concat(x, time), add(x, time))
        layer.weight.copy_(torch.cat([eye, 0 * eye], dim=1))
        none.load_state_dict(state)
        torch.testing.assert_close(concat(x, time), none(x, time))


def test_null_label():
    y = torch.tensor([0, 2])
    assert (network_of(num_classes=3).null(y) == 3).all()
    with pytest.raises(ValueError, match="null_label=False"):
        network_of(num_classes=3, null_label=False).null(y)
    with pytest.raises(ValueError, match="no null label"):
        network_of().null(y)


def test_null_text_is_stored():
    network, (x, time), y = network_of(**TEXT), inputs(), text()
    network.null_text.copy_(torch.randn(5, 6))
    null = network.null(y)
    assert isinstance(null, Text) and null.mask.all() and torch.equal(null.tokens[1], network.null_text)
    bare = network.null(y.tokens)
    assert isinstance(bare, torch.Tensor) and torch.equal(bare, null.tokens)
    torch.testing.assert_close(network(x, time, bare), network(x, time, null))
    again = network_of(**TEXT)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.null(bare), bare)
    both = network(torch.cat([x, x]), torch.cat([time, time]), join(y, null))
    torch.testing.assert_close(both[:3], network(x, time, y), rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing_and_no_text_is_finite():
    network, (x, time), y = network_of(**TEXT), inputs(), text()
    other = y._replace(tokens=torch.where(y.mask[..., None], y.tokens, 1e3))
    assert torch.equal(network(x, time, y), network(x, time, other))
    seen = y._replace(tokens=torch.where(y.mask[..., None], y.tokens + 1, y.tokens))
    assert (network(x, time, y) - network(x, time, seen)).abs().amax((1, 2, 3)).min() > 1e-5
    torch.testing.assert_close(network(x, time, y._replace(mask=None)), network(x, time, y.tokens))
    nothing = y._replace(mask=torch.zeros_like(y.mask))
    out = network(x, time, nothing)
    assert out.isfinite().all() and torch.equal(out, network(x, time, nothing._replace(tokens=y.tokens + 1)))


def test_fewer_tokens_need_a_mask_and_an_empty_text_is_the_empty_prompt():
    network, (x, time), y = network_of(**TEXT), inputs(), text()
    network.null_text.copy_(torch.randn(5, 6))
    three = Text(y.tokens[:, :3], torch.arange(3).expand(3, 3) < torch.tensor([[2], [3], [0]]))
    padded = Text(torch.nn.functional.pad(three.tokens, (0, 0, 0, 2)), torch.nn.functional.pad(three.mask, (0, 2)))
    out = network(x, time, three)
    assert torch.equal(out, network(x, time, padded))
    torch.testing.assert_close(out[2:], network(x[2:], time[2:], network.null_text[None]))
    null = network.null(three)
    assert null.tokens.shape == (3, 3, 6) and null.mask.shape == (3, 3)
    torch.testing.assert_close(network(x, time, null), network(x, time, network.null(padded)))
    with pytest.raises(ValueError, match="or fewer and a mask, got 3"):
        network(x, time, three._replace(mask=None))
    six = torch.zeros(3, 6, 6)
    with pytest.raises(ValueError, match="must have 5 tokens.* got 6; pad or cut them"):
        network(x, time, Text(six, torch.ones(3, 6, dtype=torch.bool)))


@pytest.mark.parametrize("time_as", ["token", "adaln"])
def test_pooled_text_is_added_to_the_time(time_as):
    network, (x, time), y = network_of(**TEXT, pooled_dim=4, time_as=time_as), inputs(), text()
    torch.nn.init.normal_(network.pooled_embed.weight)
    pooled = torch.randn(3, 4)
    out = network(x, time, y._replace(pooled=pooled))
    assert (out - network(x, time, y)).abs().amax((1, 2, 3)).min() > 1e-5
    network.time_embed.register_forward_hook(lambda module, args, out: out + pooled @ network.pooled_embed.weight.T)
    torch.testing.assert_close(network(x, time, y), out)


def test_errors():
    network, (x, time) = network_of(**TEXT), inputs()
    with pytest.raises(ValueError, match="must have 5 tokens"):
        network(x, time, torch.zeros(3, 4, 6))
    with pytest.raises(ValueError, match="must have 5 tokens"):
        network.null(torch.zeros(3, 4, 6))
    with pytest.raises(ValueError, match="the text is missing"):
        network(x, time)
    with pytest.raises(ValueError, match=r"images must be \(3, 8, 8\)"):
        network_of()(torch.zeros(1, 3, 16, 16), time[:1])
    for wrong, match in (
        ({"skip": "sum"}, "concat"), ({"time_as": "film"}, "adaln"), ({"depth": 3}, "even"),
        ({"img_size": 9}, "divisible by patch_size"), ({"num_classes": 2, "text_dim": 4}, "not both"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            network_of(**wrong)


def test_attention_maps():
    network, (x, time), y = network_of(**TEXT), inputs(), text()
    with torch.no_grad():
        before = network(x, time, y)
        with record_attention(network) as maps:
            assert torch.equal(network(x, time, y), before)
    assert list(maps) == ["in_blocks.0.attn", "mid_block.attn", "out_blocks.0.attn"]
    for (weights,) in maps.values():
        assert weights.shape == (3, 2, 1 + 5 + 16, 1 + 5 + 16)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 22))
        assert (weights[0, :, :, 3:6] == 0).all() and (weights[0, :, :, :3] > 0).all()  # two words in the first text


def test_the_cifar10_network_wastes_no_operation():
    network, x, time = create_model("uvit_cifar10").eval(), torch.randn(1, 3, 32, 32), torch.tensor([5.0])
    with torch.no_grad(), Count() as count:
        network(x, time)
    assert count.ops <= 160
