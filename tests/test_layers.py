"""Layers against their definitions, text conditions, and the recorder of attention maps."""

import pytest
import torch
from torch import nn

from minidiff.attention_maps import record_attention
from minidiff.diffusion import drop_condition
from minidiff.guidance import join, twice
from minidiff.layers import (
    Attention,
    LabelEmbedding,
    Mlp,
    PooledText,
    Text,
    as_text,
    attention,
    check_condition,
    check_images,
    null_for_empty,
    patchify,
    run,
    sincos_positions,
    unpatchify,
)


def example(batch=4, pooled=True):
    mask = torch.arange(5) < torch.arange(1, batch + 1)[:, None]
    return Text(torch.randn(batch, 5, 6), mask, torch.randn(batch, 3) if pooled else None)


def test_text_is_indexed_by_picture():
    text = example()
    part = text[1:3]
    assert isinstance(part, Text) and torch.equal(part.tokens, text.tokens[1:3])
    assert torch.equal(part.mask, text.mask[1:3]) and torch.equal(part.pooled, text.pooled[1:3])
    assert torch.equal(text[torch.tensor([2, 0])].pooled, text.pooled[[2, 0]])
    assert text[0] is text.tokens and text[-1] is text.pooled
    tokens, mask, pooled = example(pooled=False)[:2]
    assert tokens.shape == (2, 5, 6) and mask.shape == (2, 5) and pooled is None


def test_text_moves_joins_and_drops():
    text, other = example(), example()
    moved = text.to(torch.float64)
    assert moved.tokens.dtype == moved.pooled.dtype == torch.float64 and moved.mask.dtype == torch.bool
    assert text.to("meta").mask.is_meta
    both = join(text, other)
    assert isinstance(both, Text) and len(both.tokens) == 8 and torch.equal(both[4:].mask, other.mask)
    dropped = torch.tensor([True, False, False, True])
    mixed = drop_condition(text, other, dropped)
    assert isinstance(mixed, Text) and torch.equal(mixed.tokens[0], other.tokens[0])
    assert torch.equal(mixed.pooled[1], text.pooled[1]) and torch.equal(mixed.mask[3], other.mask[3])
    assert len(twice(torch.zeros(4, 3), text)) == 8  # the batch of a text is that of its tokens
    assert drop_condition(Text(text.tokens), Text(other.tokens), dropped).mask is None


def test_bare_tokens_are_a_text():
    assert as_text(torch.zeros(2, 3, 6), 6).mask is None
    for wrong in (None, torch.tensor([1, 2]), torch.zeros(2, 3, 5), (torch.zeros(2, 3, 6),)):
        with pytest.raises(ValueError, match=r"tokens \(B, L, 6\)"):
            as_text(wrong, 6)


def test_a_mask_is_bool_and_has_the_shape_of_the_tokens():
    """Tokenizers of other libraries give whole numbers; added to the logits they would hide nothing, silently."""
    tokens, mask, _ = example(pooled=False)[:]
    for wrong in (mask.long(), mask.float(), mask[:, 1:], mask[:1], mask[0], mask[..., None]):
        with pytest.raises(ValueError, match=r"mask of a text must be bool \(4, 5\).*pass mask.bool\(\)"):
            as_text(Text(tokens, wrong), 6)


def test_labels_are_whole_numbers():
    layer = LabelEmbedding(3, 8)
    assert layer(torch.tensor([0, 3])).shape == (2, 8)
    for wrong in (torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]), torch.tensor(1), example()):
        with pytest.raises(ValueError, match=r"labels must be a tensor \(B,\) of whole numbers"):
            layer(wrong)


def test_masked_keys_do_not_count():
    q, k, v = torch.randn(3, 2, 4, 5, 6).unbind(0)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    out = attention(q, k, v, mask)
    torch.testing.assert_close(out[:1], attention(q[:1], k[:1, :, :3], v[:1, :, :3]))
    torch.testing.assert_close(out[1:], attention(q[1:], k[1:], v[1:]))
    torch.testing.assert_close(out, attention(q, k, v, torch.where(mask, 0, -torch.inf)[:, None, None]))


def test_a_text_without_tokens_becomes_the_null_token():
    some = torch.tensor([[False] * 5, [True] * 5, [True] + [False] * 4, [False] * 5])
    text, null = example()._replace(mask=some), torch.randn(6)
    tokens, mask = null_for_empty(text, null)
    assert (tokens[[0, 3]] == null).all() and torch.equal(tokens[1:3], text.tokens[1:3])
    assert mask[[0, 3]].tolist() == 2 * [[True] + 4 * [False]] and torch.equal(mask[1:3], text.mask[1:3])


def test_attention_and_mlp_by_their_definitions():
    layer, x = Attention(12, 3, qkv_bias=True), torch.randn(2, 5, 12)
    q, k, v = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
    torch.testing.assert_close(layer(x), layer.proj((weights @ v).transpose(1, 2).reshape(2, 5, 12)))
    assert Attention(12, 3).qkv.bias is None
    with pytest.raises(ValueError, match="divisible by num_heads=5"):
        Attention(12, 5)
    for approximate in ("none", "tanh"):
        mlp = Mlp(12, 24, approximate)
        torch.testing.assert_close(mlp(x), mlp.fc2(nn.GELU(approximate)(mlp.fc1(x))))


def test_patches_by_their_definition():
    x = torch.randn(2, 3, 4, 6)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[1, 4], x[1, :, 2:4, 2:4].permute(1, 2, 0).flatten())  # second row, second column
    assert torch.equal(unpatchify(patches, 2, 2, 3), x)


def test_positions_by_their_definition():
    table = sincos_positions(8, 2, 3)
    assert table.shape == (6, 8) and table.dtype == torch.float32
    i, j, w = 1, 2, torch.tensor([1.0, 0.01])
    expected = torch.cat([(j * w).sin(), (j * w).cos(), (i * w).sin(), (i * w).cos()])
    torch.testing.assert_close(table[i * 3 + j], expected)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Attention(8, 2) for _ in range(2))

    def forward(self, x, mask=None):
        for block in self.blocks:
            x = x + block(x, mask)
        return x


def test_recorded_maps_are_the_weights_and_change_nothing():
    model, x = Two(), torch.randn(3, 5, 8)
    mask = torch.tensor([[True] * 4 + [False]]).expand(3, 5)
    before = model(x, mask)
    with record_attention(model) as maps:
        assert torch.equal(model(x, mask), before)
        model(x)
        Two()(x)  # another model leaves nothing
        with pytest.raises(RuntimeError, match="recorded already"), record_attention(model):
            pass
    assert list(maps) == ["blocks.0", "blocks.1"] and [len(calls) for calls in maps.values()] == [2, 2]
    masked, free = maps["blocks.0"]
    assert masked.shape == (3, 2, 5, 5) and (masked[..., 4] == 0).all() and (free > 0).all()
    torch.testing.assert_close(masked.sum(-1), torch.ones(3, 2, 5))
    v = model.blocks[0].qkv(x)[..., 16:].reshape(3, 5, 2, 4).transpose(1, 2)
    again = model.blocks[0].proj((free @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(again, model.blocks[0](x))
    model(x)
    assert len(maps["blocks.0"]) == 2  # the recording is over


def test_maps_are_float32_under_autocast():
    """Rows of half precision would not sum to one."""
    model = Two()
    with torch.autocast("cpu", torch.bfloat16), record_attention(model) as maps:
        model(torch.randn(3, 50, 8))
    (weights,) = maps["blocks.0"]
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 50))


def test_an_error_ends_the_recording():
    model = Two()
    with pytest.raises(RuntimeError), record_attention(model):
        model(torch.randn(3, 5, 7))
    with record_attention(model) as maps:
        model(torch.randn(1, 5, 8))
    assert list(maps) == ["blocks.0", "blocks.1"]


def test_pooled_text_is_added_and_silence_adds_nothing():
    layer, emb, y = PooledText(3, 7), torch.randn(1, 7), example()
    torch.testing.assert_close(layer(emb, y), emb + y.pooled @ layer.weight.T)
    assert torch.equal(layer(emb, y._replace(pooled=None)), emb)
    assert torch.equal(layer(emb, y._replace(pooled=torch.zeros(4, 3))), emb.expand(4, -1))
    for wrong in (torch.zeros(4, 2), torch.zeros(1, 3), torch.zeros(4, 1, 3)):
        with pytest.raises(ValueError, match=r"pooled must be \(4, 3\), one vector for each text, or None; got"):
            layer(emb, y._replace(pooled=wrong))


def test_conditions_that_exclude_each_other():
    check_condition(3, 0)
    check_condition(0, 6, 3)
    with pytest.raises(ValueError, match=r"choose labels \(num_classes=3\) or text \(text_dim=6\), not both"):
        check_condition(3, 6)
    with pytest.raises(ValueError, match="pooled_dim=5 belongs to text: set text_dim too"):
        check_condition(0, 0, 5)


def test_there_is_one_text_for_each_image():
    x, y = torch.zeros(4, 3, 8, 8), example()
    check_images(x, (3, 8, 8), y=y)
    check_images(x, (3, 8, 8), y=y.tokens)
    for wrong in (y[:1], y[:3], y.tokens[:1]):
        with pytest.raises(ValueError, match=r"there must be 4 texts, one for each image; got tokens \("):
            check_images(x, (3, 8, 8), y=wrong)


def counting_kept(sizes):
    """Inside, the size of each tensor that is kept for the backward pass goes into the list `sizes`."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)


def test_a_block_computed_twice_gives_the_same_and_keeps_less():
    """With dropout: the second time it must draw what it drew the first time."""
    block = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Dropout(0.5), nn.Linear(64, 8))
    x, results, kept = torch.randn(5, 8, requires_grad=True), [], ([], [])
    for checkpoint in (False, True):
        torch.manual_seed(0)
        with counting_kept(kept[checkpoint]):
            out = run(block, x, checkpoint=checkpoint)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
    assert sum(kept[1]) < sum(kept[0]) / 4
    with torch.no_grad():
        assert run(block.eval(), x, checkpoint=True).grad_fn is None
