"""ASCEND: encoder and decoder of either kind, skips, sizes that nothing divides, text, and its published sizes."""

import itertools

import pytest
import torch

from minidiff import create_model, record_attention
from minidiff.backbones.ascend_text import TextWindowAttention
from minidiff.backbones.swin import WindowAttention
from minidiff.layers import Text


def network_of(**overrides):
    """A network that has no layer of zeros, so that every input reaches its output."""
    torch.manual_seed(0)
    network = create_model("ascend_test", **overrides).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return network


def inputs(batch=2, size=8):
    torch.manual_seed(1)
    return torch.randn(batch, 3, size, size), torch.linspace(100, 900, batch)


def text(batch=2):
    return Text(torch.randn(batch, 5, 6), torch.arange(5) < torch.arange(2, batch + 2)[:, None], torch.randn(batch, 4))


@pytest.mark.parametrize("encoder, decoder", [*itertools.product(("swin", "residual"), repeat=2)])
@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("resample", ["patch", "conv"])
def test_encoder_and_decoder_are_chosen_independently(encoder, decoder, skips, resample):
    network = network_of(encoder=encoder, decoder=decoder, skips=skips, resample=resample, channel_mult=(1, 2, 2))
    x, time = inputs()
    out = network(x, time)
    assert out.shape == x.shape and out.isfinite().all()
    with record_attention(network) as maps:
        network(x, time)
    own = {name.split(".")[0] for name in maps}
    expected = {"middle"} | {part for part, kind in (("encoder", encoder), ("decoder", decoder)) if kind == "swin"}
    assert own == expected | ({"encoder"} if encoder == "residual" else set())  # self-attention at 4 pixels
    alike = {part: sum(p.numel() for p in getattr(network, part).parameters()) for part in ("encoder", "decoder")}
    other = network_of(encoder=encoder, decoder="residual" if decoder == "swin" else "swin", skips=skips,
                       resample=resample, channel_mult=(1, 2, 2))  # fmt: skip
    assert sum(p.numel() for p in other.encoder.parameters()) == alike["encoder"]
    assert sum(p.numel() for p in other.decoder.parameters()) != alike["decoder"]


@pytest.mark.parametrize("skips", [True, False])
def test_skips_carry_the_picture_past_the_middle(skips):
    """With the middle silenced, a decoder without skips knows nothing of the picture."""
    network = network_of(skips=skips)
    network.middle[1].register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    x, time = inputs()
    with torch.no_grad():
        difference = (network(x, time) - network(x.flip(2), time)).abs().max()
    assert (difference > 1e-3) == skips


@pytest.mark.parametrize("size", [5, 6, 7, 9, 11, 12])
@pytest.mark.parametrize("resample", ["patch", "conv"])
def test_any_size_works(size, resample):
    network = network_of(img_size=size, resample=resample, channel_mult=(1, 2, 2), decoder="swin")
    x, time = inputs(size=size)
    assert network(x, time).shape == x.shape


def test_a_new_network_says_zero_and_its_swin_blocks_hear_no_time_yet():
    network = create_model("ascend_test")
    x, time = inputs()
    assert not network(x, time).any()
    pair = network.encoder[0]["units"][0]
    h, emb = torch.randn(1, 8, 8, 8), torch.randn(1, 32)
    assert torch.equal(pair(h, emb), pair(h, 2 * emb))


def test_padding_of_a_text_counts_nowhere_and_no_text_is_well_defined():
    network = network_of(text_dim=6, pooled_dim=4)
    (x, time), y = inputs(), text()
    out = network(x, time, y)
    padded = Text(y.tokens.clone(), y.mask, y.pooled)
    padded.tokens[~y.mask] = 7.0
    assert torch.allclose(network(x, time, padded), out, atol=1e-6)
    more = Text(torch.cat([y.tokens, torch.randn(2, 3, 6)], dim=1), torch.nn.functional.pad(y.mask, (0, 3)), y.pooled)
    assert torch.allclose(network(x, time, more), out, atol=1e-6)
    for changed in (Text(y.tokens.flip(1), y.mask, y.pooled), Text(y.tokens, y.mask, -y.pooled)):
        assert (network(x, time, changed) - out).abs().max() > 1e-4
    null = network.null(y)
    assert isinstance(null, Text) and not null.mask.any() and not null.pooled.any()
    none = network(x, time, null)
    assert none.isfinite().all() and (none - out).abs().max() > 1e-4
    tokens = network.null(y.tokens)
    assert torch.allclose(network(x, time, tokens), none, atol=1e-5)  # every token is the null token


def test_only_encoder_and_middle_listen_to_the_text():
    network = network_of(text_dim=6, encoder="residual")
    names = [name for name, module in network.named_modules() if type(module).__name__ == "Listen"]
    assert {name.split(".")[0] for name in names} == {"encoder", "middle"}
    assert len(names) == 2  # at 4 pixels and in the middle; not at 8


JOINT = dict(text_dim=6, text_attention="joint")


def test_joint_attention_stands_where_the_places_attend_to_each_other():
    """In both window attentions of a pair, in that of a residual unit, and in the middle; no layer of its own."""
    for encoder, places in (
        ("swin", {"encoder.1.units.0.blocks.0.attn", "encoder.1.units.0.blocks.1.attn"}),
        ("residual", {"encoder.1.units.0.block.attention"}),
    ):
        network = network_of(encoder=encoder, **JOINT)
        names = {name.removesuffix(".text_kv") for name, _ in network.named_modules() if name.endswith("text_kv")}
        assert names == places | {"middle.0.block.attention"}
        assert not [name for name, module in network.named_modules() if type(module).__name__ == "Listen"]


def test_a_window_sees_itself_and_the_whole_text():
    """Of 4 windows of 16 places in a map of 8; the text comes first, its padding counts nowhere, no seam hides it."""
    network, (x, time) = network_of(attn_resolutions=(8,), **JOINT), inputs()
    y = text()  # two and three tokens of five
    with torch.no_grad(), record_attention(network) as maps:
        network(x, time, y)
    for block in range(2):  # the second one is shifted
        (weights,) = maps[f"encoder.0.units.0.blocks.{block}.attn"]
        assert weights.shape == (2 * 4, 2, 16, 5 + 16)
        words = weights.unflatten(0, (2, 4))[..., :5]
        counted = y.mask[:, None, None, None].expand(words.shape)
        assert (words[counted] > 0).all() and (words[~counted] == 0).all()
        seams = (weights[..., 5:] < 1e-20).any()
        assert seams == (block == 1)


@pytest.mark.parametrize("size, window, shift", [(8, 4, 0), (8, 4, 2), (6, 4, 2), (4, 8, 4)])
def test_window_attention_to_a_text_that_says_nothing_is_window_attention(size, window, shift):
    """And to a text that shouts it is the value of the text alone."""
    torch.manual_seed(0)
    layer = TextWindowAttention(8, 2, (size, size), window, shift, text_dim=6)
    plain = WindowAttention(8, 2, (size, size), window, shift)
    plain.load_state_dict({key: part for key, part in layer.state_dict().items() if "text_kv" not in key})
    x, words = torch.randn(2, size, size, 8), torch.randn(2, 5, 6)
    silent = torch.zeros(2, 5, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, words, silent), plain(x))
        assert (layer(x, words) - plain(x)).abs().amax((1, 2, 3)).min() > 1e-3
        torch.testing.assert_close(layer(x, words), layer(x, words, ~silent))
        layer.qkv.weight.zero_()  # every place asks and answers alike: q is its bias
        layer.qkv.bias[:8], layer.qkv.bias[8:] = 1, 0
        layer.text_kv.weight.zero_()
        layer.text_kv.bias[:8], layer.text_kv.bias[8:] = 100, torch.arange(8.0)
        torch.testing.assert_close(layer(x, words), layer.proj(torch.arange(8.0)).expand_as(x))


@pytest.mark.parametrize("name", ["ascend_t2i_64", "ascend_t2i_128"])
def test_both_ways_to_hear_a_text_have_about_as_many_weights(name):
    with torch.device("meta"):
        counts = [sum(part.numel() for part in create_model(name, text_attention=way).parameters())
                  for way in ("cross", "joint")]  # fmt: skip
    assert counts[1] == pytest.approx(counts[0], rel=0.01) and counts[0] != counts[1]


@pytest.mark.parametrize("text_attention", ["cross", "joint"])
@pytest.mark.parametrize("size, encoder", [(7, "swin"), (12, "swin"), (7, "residual")])
def test_text_at_any_size(size, encoder, text_attention):
    network = network_of(img_size=size, encoder=encoder, attn_resolutions=(size, -(-size // 2)), text_dim=6,
                         text_attention=text_attention)  # fmt: skip
    (x, time), y = inputs(size=size), text()
    out = network(x, time, y)
    assert out.shape == x.shape and (network(x, time, network.null(y)) - out).abs().max() > 1e-4
    alone = network(x[:1], time[:1], Text(y.tokens[:1, :2], y.mask[:1, :2]))
    torch.testing.assert_close(alone, out[:1], rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_number():
    network = network_of(text_dim=6, pooled_dim=4)
    (x, time), y = inputs(), text()
    gradients = []
    for network.checkpoint in (False, True):
        network.zero_grad()
        network(x, time, y).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ascend_t2i_64", "ascend_t2i_128"])
def test_text_models_take_long_texts(name):
    """Their printed parameter counts: test_goldens.py."""
    with torch.device("meta"):
        network = create_model(name)
        size = network.shape[1]
        y = Text(torch.zeros(1, 256, 1024), torch.ones(1, 256, dtype=torch.bool), torch.zeros(1, 1024))
        assert network(torch.zeros(1, 3, size, size), torch.zeros(1), y).shape == (1, 3, size, size)


@pytest.mark.parametrize(
    "overrides, says",
    [({"encoder": "vit"}, "unknown encoder 'vit'"), ({"decoder": "resnet"}, "unknown decoder 'resnet'"),
     ({"resample": "pool"}, "unknown resample 'pool'"), ({"num_blocks": (1, 2, 3)}, "must be one number or 2"),
     ({"head_dim": 3}, "multiples of head_dim=3, got 8"), ({"num_classes": 3, "text_dim": 6}, "choose labels"),
     ({"pooled_dim": 4}, "belongs to text"), ({"text_attention": "both"}, "unknown text_attention 'both'"),
     ({"text_mlp": True}, "give text_dim")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(overrides, says):
    with pytest.raises(ValueError, match=says):
        create_model("ascend_test", **overrides)


def test_pictures_and_texts_that_do_not_fit_are_refused():
    network, (x, time) = network_of(text_dim=6), inputs()
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        network(x[:, :, :7], time, text())
    with pytest.raises(ValueError, match=r"time must be \(2,\)"):
        network(x, time.repeat(2), text())
    with pytest.raises(ValueError, match="text is missing"):
        network(x, time)
