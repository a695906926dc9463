"""ADM: what each switch does, the three orders of q, k and v, text, and activations computed twice."""

import pytest
import torch
import torch.nn.functional as F
from counting import Count

from minidiff import Diffusion, create_model, schedules
from minidiff.attention_maps import record_attention
from minidiff.backbones.adm_blocks import ORDERS, Attention, Block
from minidiff.layers import Text

IDDPM = {"resblock_updown": False}
TEXT = {"text_dim": 6, "pooled_dim": 5}


def network_of(name="adm_test", **overrides):
    """A network with small random numbers in place of the zeros that it starts with."""
    torch.manual_seed(0)
    network = create_model(name, **overrides).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return network


def inputs(batch=3):
    torch.manual_seed(1)
    return torch.randn(batch, 3, 8, 8), torch.linspace(1, 900, batch)


def text_of(batch=3, length=4):
    torch.manual_seed(2)
    mask = torch.arange(length) < torch.tensor([[4], [2], [0]])
    return Text(torch.randn(batch, length, 6), mask, torch.randn(batch, 5))


def condition(overrides):
    """What a network of these arguments takes besides images and times."""
    y = text_of() if "text_dim" in overrides else torch.arange(3) if "num_classes" in overrides else None
    low_res = {"low_res": torch.randn(3, 3, 4, 4)} if "super_resolution" in overrides else {}
    return y, low_res


SWITCHES = [
    IDDPM, {"scale_shift_norm": False}, {"num_head_channels": 4}, {"out_channels": 6}, {"super_resolution": True},
    *({"qkv_order": order} for order in ORDERS), TEXT | {"qkv_order": "new"}, TEXT, {"num_classes": 3},
    {"num_classes": 3, "null_label": False}, {"num_classes": 3, "one_hot": True}, {"channel_mult": (0.5, 1, 1)},
]  # fmt: skip


@pytest.mark.parametrize("overrides", SWITCHES, ids=str)
def test_switches(overrides):
    """Every parameter learns, time and condition count, and no picture sees another."""
    options = {"model_channels": 16, **overrides} if "channel_mult" in overrides else overrides
    network, (x, time), (y, low_res) = network_of(**options), inputs(), condition(overrides)
    out = network(x, time, y, **low_res)
    assert out.shape == (3, overrides.get("out_channels", 3), 8, 8)
    out.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        assert (network(x, time.flip(0), y, **low_res) - out)[0].abs().max() > 1e-4
        if y is not None:
            other = y.flip(0) if isinstance(y, torch.Tensor) else y[torch.tensor([2, 1, 0])]
            assert (network(x, time, other) - out)[0].abs().max() > 1e-4
        if low_res:
            assert (network(x, time, low_res=low_res["low_res"].flip(0)) - out)[0].abs().max() > 1e-4
        for i in range(3):
            one = slice(i, i + 1)
            alone = network(x[one], time[one], None if y is None else y[one], **{k: v[one] for k, v in low_res.items()})
            torch.testing.assert_close(alone, out[one], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x, time[1:2], y, **low_res)[1], out[1], rtol=1e-4, atol=1e-5)


UNLIKE = [IDDPM, TEXT, {"super_resolution": True}, {"num_classes": 3, "one_hot": True}]  # the shared tests see the rest


@pytest.mark.parametrize("overrides", UNLIKE, ids=str)
def test_one_graph_and_bf16(overrides):
    network, (x, time), (y, low_res) = network_of(**overrides), inputs(), condition(overrides)
    with torch.no_grad():
        exact = network(x, time, y, **low_res)
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, time, y, **low_res), exact)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x, time, y, **low_res).float()
        low_res = {key: value.bfloat16() for key, value in low_res.items()}
        assert network.bfloat16()(x.bfloat16(), time, y, **low_res).dtype == torch.bfloat16
    assert (rough - exact).std() / exact.std() < 0.05


def test_it_starts_as_nothing():
    """Every branch ends in zeros, and so does the whole: an untrained block is its shortcut."""
    torch.manual_seed(0)
    network, (x, time) = create_model("adm_test"), inputs()
    assert network(x, time).eq(0).all()
    h, kept = network.encoder(x, F.silu(network.time_embed(time, x.dtype)))
    torch.testing.assert_close(kept[1], kept[0])  # the first block keeps the width
    torch.testing.assert_close(kept[2], F.avg_pool2d(kept[0], 2))  # the next halves the size
    torch.testing.assert_close(h, network.encoder.down[1]["blocks"][0].shortcut(kept[2]))


@pytest.mark.parametrize("resample", ["up", "down", None])
@pytest.mark.parametrize("scale_shift_norm", [True, False])
def test_a_block_by_its_definition(resample, scale_shift_norm):
    """Scale before shift; halved or doubled after the first norm and SiLU, before the convolution, as its input is."""
    torch.manual_seed(0)
    block = Block(
        8, 12, emb=5, dropout=0.0, scale_shift_norm=scale_shift_norm, group_width=4, num_heads=1, num_head_channels=0,
        qkv_order="new", text_dim=0, resample=resample,
    )  # fmt: skip
    torch.nn.init.normal_(block.conv2.weight)
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 5)

    def norm(x):  # in groups of four; block's own weights are ones and zeros
        groups = x.unflatten(1, (-1, 4))
        mean, var = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), keepdim=True, correction=0)
        return ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)

    def sized(x):
        if resample == "up":
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) if resample else x

    told = F.linear(emb, block.emb.weight, block.emb.bias)[:, :, None, None]
    h = block.conv1(sized(F.silu(norm(x))))
    h = norm(h) * (1 + told[:, :12]) + told[:, 12:] if scale_shift_norm else norm(h + told)
    expected = block.conv2(F.silu(h)) + block.shortcut(sized(x))
    torch.testing.assert_close(block(x, emb), expected, rtol=1e-4, atol=1e-5)


def in_order(rows, heads, parts, order):
    """Rows [part][head][d] of a joint map of the order "new" in another order."""
    split = rows.unflatten(0, (parts, heads, -1))  # (part, head, d, ...)
    axes = {"new": (0, 1, 2), "legacy": (1, 0, 2), "edm": (1, 2, 0)}[order]
    return split.permute(*axes, *range(3, split.ndim)).flatten(0, 2)


@pytest.mark.parametrize("order", ORDERS)
def test_each_order_is_the_new_one_with_its_rows_exchanged(order):
    torch.manual_seed(0)
    new, other = (Attention(12, 3, name, 4, text_dim=6) for name in ("new", order))
    x, text = torch.randn(2, 12, 4, 4), Text(torch.randn(2, 5, 6))
    torch.nn.init.normal_(new.out.weight)
    other.load_state_dict(new.state_dict())
    if order != "new":  # the same weights, read in a wrong order, are no error: only the numbers tell
        assert (other(x, text) - new(x, text)).abs().max() > 0.01
    with torch.no_grad():
        for name, parts in (("qkv", 3), ("text_kv", 2)):
            for parameter in getattr(other, name).parameters():
                parameter.copy_(in_order(parameter, 3, parts, order))
    torch.testing.assert_close(other(x, text), new(x, text))


def test_padding_of_a_text_counts_nowhere_and_no_text_is_no_error():
    network, (x, time), text = network_of(**TEXT), inputs(), text_of()
    with torch.no_grad():
        out = network(x, time, text)
        padded = Text(F.pad(text.tokens, (0, 0, 0, 3), value=7.0), F.pad(text.mask, (0, 3)), text.pooled)
        torch.testing.assert_close(network(x, time, padded), out, rtol=1e-4, atol=1e-5)
        assert out.isfinite().all()  # the third has no token at all
        null = network.null(text)
        assert not null.mask.any() and not null.pooled.any() and (network(x, time, null) - out)[0].abs().max() > 1e-4
        assert network.null(text.tokens).eq(0).all() and network.null(text.tokens).shape == text.tokens.shape
        bare = network(x, time, text.tokens)
        torch.testing.assert_close(network(x, time, Text(text.tokens, torch.ones_like(text.mask))), bare)
    with pytest.raises(ValueError, match="text is missing"):
        network(x, time)
    with pytest.raises(ValueError, match="not both"):
        network_of(num_classes=3, **TEXT)


def test_labels():
    (x, time), y = inputs(), torch.arange(3)
    network = network_of(num_classes=3, one_hot=True)
    with torch.no_grad():
        torch.testing.assert_close(network(x, time, F.one_hot(y, 3).float()), network(x, time, y))
        null = network(x, time, network.null(y))
        torch.testing.assert_close(network(x, time, torch.zeros(3, 3)), null)  # adds nothing to the time
        assert (null - network(x, time, y)).abs().amax((1, 2, 3)).min() > 1e-4
    for rows in (network, network_of(num_classes=3)):
        with pytest.raises(ValueError, match="labels are missing"):
            rows(x, time)
    assert network_of(num_classes=3, null_label=False).label_embed.weight.shape == (3, 32)
    with pytest.raises(ValueError, match="null_label=False"):
        network_of(num_classes=3, null_label=False).null(y)


def test_super_resolution_sees_the_small_image_enlarged():
    network, (x, time) = network_of(super_resolution=True), inputs()
    small = torch.randn(3, 3, 4, 4)
    large = F.interpolate(small, (8, 8), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(network(x, time, low_res=large), network(x, time, low_res=small))
        plain = network_of(in_channels=6)
        plain.load_state_dict(network.state_dict())
        torch.testing.assert_close(plain(torch.cat([x, large], dim=1), time), network(x, time, low_res=small))
    with pytest.raises(ValueError, match="super_resolution=True, and got low_res=None"):
        network(x, time)
    with pytest.raises(ValueError, match=r"low_res=\(3, 1, 4, 4\): upsamplers take \(3, 3, h, w\)"):
        network(x, time, low_res=small[:, :1])
    with pytest.raises(ValueError, match=r"super_resolution=False, and got low_res=\(3, 3, 4, 4\)"):
        network_of()(x, time, low_res=small)
    model = Diffusion(network, schedules.linear(1000), shape=(3, 8, 8))
    assert model.loss(x.clamp(-1, 1), low_res=small).shape == (3,)


def test_other_sizes_and_errors():
    network = network_of()
    assert network(torch.zeros(1, 3, 16, 12), torch.zeros(1)).shape == (1, 3, 16, 12)
    for shape in ((1, 3, 9, 8), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match="3 channels and sides divisible by 2"):
            network(torch.zeros(shape), torch.zeros(1))
    with pytest.raises(ValueError, match="unknown qkv_order 'old'.*legacy"):
        network_of(qkv_order="old")
    with pytest.raises(ValueError, match="16 cannot be split into 3 heads"):
        network_of(num_heads=3)
    with pytest.raises(ValueError, match="16 cannot be split into 0 heads"):
        network_of(num_head_channels=64)


def test_checkpointing_changes_nothing_but_memory():
    (x, time), results, kept = inputs(), [], ([], [])
    for checkpoint in (False, True):
        network = network_of(num_classes=3, dropout=0.5).train()
        network.checkpoint = checkpoint
        torch.manual_seed(3)
        hooks = torch.autograd.graph.saved_tensors_hooks(kept[checkpoint].append, lambda index: None)
        with hooks:  # counts, and forgets
            network(x, time, torch.arange(3))
        torch.manual_seed(3)
        out = network(x, time, torch.arange(3))
        results.append([out, *torch.autograd.grad(out.square().sum(), list(network.parameters()))])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
    plain, again = (sum(tensor.numel() for tensor in tensors) for tensors in kept)
    assert again < plain / 5
    assert not create_model("adm_test").checkpoint


def test_attention_maps():
    (x, time), y = inputs(), text_of()
    network = network_of(**TEXT)
    with torch.no_grad(), record_attention(network) as maps:
        network(x, time, y)
    places = ["encoder.down.1.blocks.0.attention", "encoder.middle.0.attention"]
    assert list(maps)[:2] == places and {weights.shape for (weights,) in maps.values()} == {(3, 2, 16, 4 + 16)}
    assert maps[places[0]][0][1, :, :, 2:4].eq(0).all()  # the second text has two tokens, which come first


def test_it_wastes_no_operation():
    network, x = network_of("adm_tiny"), torch.randn(1, 3, 16, 16)
    with torch.no_grad(), Count() as count:
        network(x, torch.tensor([5.0]))
    blocks = sum(isinstance(module, Block) for module in network.modules())
    attentions = sum(isinstance(module, Attention) for module in network.modules())
    assert count.ops <= 11 * blocks + 7 * attentions + 30, count.ops


def test_rows_of_labels_are_trained_on_and_dropped():
    """EDM's port: a one-hot row is its label, a row of zeros the label that means 'none'."""
    torch.manual_seed(0)
    network = create_model("adm_test", num_classes=3, one_hot=True)
    diffusion = Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8))
    x0, y = torch.zeros(2, 3, 8, 8), torch.tensor([0, 2])
    rows = F.one_hot(y, 3).float()
    assert torch.equal(network.null(rows), torch.zeros(2, 3)) and torch.equal(network.null(y), torch.tensor([3, 3]))
    torch.nn.init.normal_(network.conv_out.weight)
    for p_uncond in (0.0, 1.0):
        losses = []
        for condition in (y, rows):
            generator = torch.Generator().manual_seed(1)
            losses.append(diffusion.loss(x0, condition, p_uncond=p_uncond, generator=generator))
        torch.testing.assert_close(*losses)
    with pytest.raises(ValueError, match="labels must be an int64 tensor"):
        Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8)).loss(x0, rows[:, :2])
