"""IU-ViT: what is left of U-ViT without its two changes, what each of them does, and text."""

import pytest
import torch

from minidiff import create_model, list_models
from minidiff.attention_maps import record_attention
from minidiff.backbones.uvit import TimeMlp
from minidiff.guidance import join
from minidiff.layers import Text

TEXT = dict(text_dim=6, pooled_dim=4)
EACH = pytest.mark.parametrize("text_attention", ["cross", "joint", "tokens"])


def network_of(**overrides):
    torch.manual_seed(0)
    return create_model("iuvit_test", **overrides).eval()


def inputs(batch=3):
    torch.manual_seed(1)
    return torch.randn(batch, 3, 8, 8), torch.linspace(1, 900, batch)


def text(batch=3):
    mask = torch.arange(5) < torch.arange(batch)[:, None]  # the first picture has no text
    return Text(torch.randn(batch, 5, 6), mask, torch.randn(batch, 4))


def test_all_published_sizes_have_256_patches():
    """Their printed parameter counts: test_goldens.py."""
    for name in set(list_models("iuvit_*")) - {"iuvit_tiny", "iuvit_test"}:
        with torch.device("meta"):
            assert create_model(name).pos_embed.shape[1] == 1 + 256


@pytest.mark.parametrize(
    "overrides",
    [dict(dwconv=a, rearrange_first=b) for a in (False, True) for b in (False, True)]
    + [dict(num_classes=3), TEXT, dict(TEXT, text_attention="joint"),
       dict(TEXT, text_attention="tokens"), dict(text_dim=6)],
    ids=str,
)
def test_switches(overrides):
    """Every parameter learns, and the whole is one graph."""
    network, (x, time) = network_of(**overrides), inputs()
    y = text() if "text_dim" in overrides else torch.tensor([0, 1, 3]) if "num_classes" in overrides else None
    out = network(x, time, y)
    assert out.shape == x.shape and (network(x, time.flip(0), y) - out)[0].abs().max() > 1e-5
    out.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, time, y), network(x, time, y))


def test_without_its_two_changes_it_is_a_uvit():
    ours = network_of(dwconv=False, rearrange_first=False)
    uvit = create_model("uvit_test").eval()
    uvit.time_embed = TimeMlp(24, 24)
    uvit.load_state_dict({key.replace(".ffn.", ".mlp."): value for key, value in ours.state_dict().items()})
    assert torch.equal(ours(*inputs()), uvit(*inputs()))


def test_the_convolution_reaches_the_neighbours_and_no_further():
    """One FFN: a change in a patch is seen by the 3x3 patches around it, and by no other token."""
    network = network_of()
    x = torch.randn(1, 17, 24)  # the time token and 4x4 patches
    changed = x.clone()
    changed[0, 1 + 2 * 4 + 1] += 1  # the patch in row 2, column 1
    moved = (network.mid_block.ffn(changed) - network.mid_block.ffn(x)).abs().amax(2)[0]
    assert moved[0] == 0  # the time token
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1:4, 0:3] = True
    assert torch.equal(moved[1:].reshape(4, 4) > 1e-7, expected)
    changed = x.clone()
    changed[0, 0] += 1
    assert ((network.mid_block.ffn(changed) - network.mid_block.ffn(x)).abs().amax(2)[0] > 0).sum() == 1


def test_the_head_mixes_patches():
    """Rearranged first, the 3x3 convolution looks across the border of two patches."""
    head, tokens = network_of().head, torch.randn(1, 16, 24)
    changed = tokens.clone()
    changed[0, 5] += 1  # row 1, column 1: pixels 2 and 3 in both directions
    moved = (head(changed) - head(tokens)).abs().amax(1)[0] > 1e-7
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:5, 1:5] = True
    assert torch.equal(moved, expected)
    with pytest.raises(ValueError, match="rearrange_first=False"):
        network_of(img_size=10, patch_size=5)
    network_of(img_size=10, patch_size=5, rearrange_first=False)


@EACH
def test_padding_changes_nothing_and_no_text_is_finite(text_attention):
    network, (x, time), y = network_of(text_attention=text_attention, **TEXT), inputs(), text()
    out = network(x, time, y)
    assert out.isfinite().all()
    other = y._replace(tokens=torch.where(y.mask[..., None], y.tokens, 1e3))
    assert torch.equal(out, network(x, time, other))
    seen = y._replace(tokens=torch.where(y.mask[..., None], y.tokens + 1, y.tokens))
    moved = (out - network(x, time, seen)).abs().amax((1, 2, 3))
    assert moved[0] == 0 and moved[1:].min() > 1e-6  # only the first has no text
    shorter = Text(y.tokens[:, :2], y.mask[:, :2], y.pooled)
    torch.testing.assert_close(out[:2], network(x, time, shorter)[:2])
    everything = y._replace(mask=torch.ones_like(y.mask))
    torch.testing.assert_close(network(x, time, everything), network(x, time, y._replace(mask=None)))


@EACH
def test_null(text_attention):
    network, (x, time), y = network_of(text_attention=text_attention, **TEXT), inputs(), text()
    null = network.null(y)
    assert isinstance(null, Text) and not null.mask.any() and not null.pooled.any()
    bare = network.null(y.tokens)
    assert bare.shape == y.tokens.shape and not isinstance(bare, Text)
    one = bare if text_attention == "cross" else bare[:, :1]  # a joint softmax counts every bare token
    torch.testing.assert_close(network(x, time, null), network(x, time, one))
    both = network(torch.cat([x, x]), torch.cat([time, time]), join(y, null))
    torch.testing.assert_close(both[:3], network(x, time, y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[3:], network(x, time, null), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no null label"):
        network_of().null(torch.tensor([0]))


def test_all_ways_have_the_same_number_of_weights_at_another_mlp_ratio():
    with torch.device("meta"):
        cross, joint, tokens = (
            sum(part.numel() for part in create_model("iuvit_t2i_64", **arguments).parameters())
            for arguments in ({}, dict(text_attention="joint", mlp_ratio=5), dict(text_attention="tokens", mlp_ratio=6))
        )
    assert joint == pytest.approx(cross, rel=0.002) and tokens == pytest.approx(cross, rel=0.002)


def test_pooled_text_counts():
    network, (x, time), y = network_of(**TEXT), inputs(), text()
    other = network(x, time, y._replace(pooled=y.pooled + 1))
    assert (other - network(x, time, y)).abs().amax((1, 2, 3)).min() > 1e-6
    zeros = network(x, time, y._replace(pooled=torch.zeros(3, 4)))
    torch.testing.assert_close(zeros, network(x, time, y._replace(pooled=None)))
    assert network(x, time[:1], y).shape == x.shape  # one time for all


def test_errors():
    with pytest.raises(ValueError, match="cross"):
        network_of(text_attention="both")
    with pytest.raises(ValueError, match="set text_dim"):
        network_of(pooled_dim=4)
    with pytest.raises(ValueError, match="the text is missing"):
        network_of(**TEXT)(*inputs())
    for pooled in (torch.zeros(3, 5), torch.zeros(1, 4)):
        with pytest.raises(ValueError, match=r"pooled must be \(3, 4\) or None"):
            network_of(**TEXT)(*inputs(), text()._replace(pooled=pooled))


@EACH
def test_attention_maps(text_attention):
    network, (x, time), y = network_of(text_attention=text_attention, **TEXT), inputs(), text()
    with torch.no_grad():
        before = network(x, time, y)
        with record_attention(network) as maps:
            assert torch.equal(network(x, time, y), before)
    assert len(maps) == (6 if text_attention == "cross" else 3)
    for (weights,) in maps.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if text_attention == "cross":
        (weights,) = maps["mid_block.text_attn"]
        assert weights.shape == (3, 2, 17, 5) and (weights[1, ..., 1:] == 0).all()
    else:
        (weights,) = maps["mid_block.attn"]
        asking = 17 if text_attention == "joint" else 22
        assert weights.shape == (3, 2, asking, 22) and (weights[1, ..., 1:5] == 0).all()
    assert (weights[0, ..., 0] > 0).all() and (weights[0, ..., 1:5] == 0).all()  # no text: one null token
