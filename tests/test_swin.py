"""Swin blocks: timm's numbers, live (the recorded ones: test_goldens.py), masks and indices, and what is refused."""

import pytest
import torch
from golden import fill
from goldens_swin import NETWORKS
from toy import GOLDEN

from minidiff.attention_maps import record_attention
from minidiff.backbones.swin import PatchExpanding, PatchMerging, SwinBlock, relative_index, shift_mask


@pytest.mark.parametrize("name", NETWORKS[:3])
def test_masks_and_indices_equal_the_recorded_ones(name):
    spec, outputs = fill.load(GOLDEN / f"{name}.npz")
    assert torch.equal(relative_index((4, 4)), torch.from_numpy(outputs["relative_position_index"]))
    if "attn_mask" in outputs:
        padded = [-(-side // 4) * 4 for side in spec["config"]["input_resolution"]]
        assert torch.equal(shift_mask(padded, (4, 4), (2, 2)), torch.from_numpy(outputs["attn_mask"]).float())


@pytest.mark.parametrize(
    "resolution, window, shift",
    [((8, 8), 4, 0), ((8, 8), 4, 2), ((7, 10), 4, 2), ((4, 12), 4, 2), ((12, 3), 4, 1), ((8, 8), 8, 4), ((6, 6), 8, 4)],
)
def test_a_block_equals_that_of_timm(resolution, window, shift):
    swin = pytest.importorskip("timm.models.swin_transformer")
    torch.manual_seed(0)
    theirs = swin.SwinTransformerBlock(24, resolution, num_heads=3, window_size=window, shift_size=shift).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = SwinBlock(24, 3, resolution, window, shift).double()
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.missing_keys and all("attn_mask" in k or "index" in k for k in missing.unexpected_keys)
    x = torch.randn(3, *resolution, 24, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)


@pytest.mark.parametrize("size", [(8, 6), (5, 7)])
def test_merging_equals_that_of_timm(size):
    swin = pytest.importorskip("timm.models.swin_transformer")
    theirs = swin.PatchMerging(6).double()
    ours = PatchMerging(6).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)


def test_expanding_puts_the_four_parts_of_a_token_where_merging_took_them_from():
    layer = PatchExpanding(8)
    with torch.no_grad():
        layer.expand.weight.copy_(torch.eye(16, 8))  # the first 8 of 16 channels are the token, the others zero
    x = torch.randn(1, 3, 2, 8)
    out = layer(x)
    assert out.shape == (1, 6, 4, 4)
    first = torch.nn.functional.layer_norm(x[..., :4], (4,))
    assert torch.allclose(out[:, ::2, ::2], first, atol=1e-5)  # row 0, column 0
    second = torch.nn.functional.layer_norm(x[..., 4:], (4,))
    assert torch.allclose(out[:, ::2, 1::2], second, atol=1e-5)  # row 0, column 1
    assert out[:, 1::2].abs().max() < 1e-6


def seen_from(block, row, column):
    """Which tokens change the output of a block at (row, column): (H, W) bool."""
    x = torch.randn(1, *block.attn.resolution, 8, requires_grad=True)
    block(x)[0, row, column].sum().backward()
    return x.grad[0].abs().amax(2) > 1e-20  # exp(-100) is not quite zero


def test_a_window_is_all_that_a_token_sees_and_a_shift_moves_it():
    torch.manual_seed(0)
    plain, shifted = SwinBlock(8, 2, (8, 8), 4), SwinBlock(8, 2, (8, 8), 4, shift=2)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, 4:] = True
    assert torch.equal(seen_from(plain, 1, 6), expected)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    assert torch.equal(seen_from(shifted, 3, 3), expected)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = True  # the corner shares its window with the other three corners, behind the mask
    assert torch.equal(seen_from(shifted, 0, 1), expected)


def test_modulation_shifts_and_scales_both_norms():
    block = SwinBlock(8, 2, (4, 4), 4, emb_dim=6)
    plain = SwinBlock(8, 2, (4, 4), 4)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "modulation" not in k})
    x, emb = torch.randn(2, 4, 4, 8), torch.randn(2, 6)
    torch.nn.init.zeros_(block.modulation.weight)
    torch.nn.init.zeros_(block.modulation.bias)
    assert torch.allclose(block(x, emb), plain(x), atol=1e-6)
    with torch.no_grad():
        block.modulation.bias[:8] = 0.5  # the first norm's shift
        plain.norm1.bias.add_(0.5)
    assert torch.allclose(block(x, emb), plain(x), atol=1e-6)
    assert block(x, emb[:1]).shape == x.shape  # one vector for the whole batch


def test_maps_are_recorded_for_every_window_and_head():
    block = SwinBlock(8, 2, (8, 8), 4, shift=2)
    with record_attention(block) as maps:
        block(torch.randn(3, 8, 8, 8))
    (weights,) = maps["attn"]
    assert weights.shape == (3 * 4, 2, 16, 16)
    assert torch.allclose(weights.sum(-1), torch.ones(12, 2, 16))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_heads=3"):
        SwinBlock(8, 3, (8, 8), 4)
    with pytest.raises(ValueError, match="0 .. window_size - 1 = 3, got 4"):
        SwinBlock(8, 2, (8, 8), 4, shift=4)
    with pytest.raises(ValueError, match=r"\(B, 8, 8, C\)"):
        SwinBlock(8, 2, (8, 8), 4)(torch.randn(1, 4, 8, 8))
