"""DiffiT (its official numbers: test_goldens.py): time in the attention, windows, and the sizes that they fit."""

import pytest
import torch

from minidiff import create_model, record_attention
from minidiff.backbones.diffit import TimeAttention
from minidiff.official import diffit as official


def test_the_depth_of_the_text_has_the_count_that_belongs_to_it():
    with torch.device("meta"):  # 30 blocks, as the text says: another network than the released one
        assert sum(p.numel() for p in create_model("diffit_xl_256", depth=30).parameters()) == 601_201_664


def test_official_arguments_and_files_without_positions():
    ours = official.arguments({"num_classes": 10, "input_size": 8, "hidden_size": 48, "depth": 3, "num_heads": 3})
    network = create_model("diffit_xl_256", **ours)
    assert ours["null_label"] and network.grid == 4
    state = {"pos_embed": network.pos_embed, "blocks.0.attn.relative_position_index": torch.zeros(16, 16)}
    assert set(official.convert(state, ours)) == {"pos_embed"}
    assert torch.equal(official.convert({}, ours)["pos_embed"], network.pos_embed)
    with pytest.raises(ValueError, match="swiglu"):
        official.arguments({"swiglu": True})


def test_the_attention_is_that_of_its_formula():
    """q, k and v are each a map of the token plus a map of the time; the bias depends on the distance alone."""
    torch.manual_seed(0)
    layer = TimeAttention(8, 2, window=2, emb=6).double()
    x, c = torch.randn(3, 4, 8, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    q, k, v = (layer.qkv(x) + layer.qkv_temb(c)[:, None]).view(3, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    bias = torch.stack([
        torch.stack([layer.relative_position_bias_table[(a - c + 1) * 3 + (b - d + 1)] for c, d in places])
        for a, b in places
    ]).permute(2, 0, 1)  # fmt: skip
    weights = (q @ k.mT / 2 + bias).softmax(-1)
    expected = layer.proj((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(layer(x, c), expected, atol=1e-12)


def test_the_time_changes_where_a_token_looks():
    torch.manual_seed(0)
    network, x, maps = create_model("diffit_test"), torch.randn(1, 3, 8, 8), []
    for time in (-1.0, 1.0):
        with record_attention(network) as recorded:
            network(x, torch.tensor([time]))
        maps.append(next(iter(recorded.values()))[0])
    assert maps[0].shape == (4, 2, 16, 16)  # the windows of a picture in turn
    assert (maps[0] - maps[1]).abs().max() > 1e-3


def test_one_time_serves_all_windows_of_a_picture_and_no_other():
    torch.manual_seed(0)
    layer = TimeAttention(8, 2, window=2, emb=6)
    x, c = torch.randn(6, 4, 8), torch.randn(2, 6)  # two pictures of three windows
    parts = torch.cat([layer(x[:3], c[:1]), layer(x[3:], c[1:])])
    assert torch.allclose(layer(x, c), parts, atol=1e-6)


def test_other_sizes_work_where_windows_tile_them_and_are_named_where_not():
    network = create_model("diffit_test")
    x = torch.randn(1, 3, 16, 24)
    assert network(x, torch.zeros(1)).shape == x.shape
    with pytest.raises(ValueError, match="divisible by 8.* 12 x 9; the nearest that are: 8 x 8 and 16 x 16"):
        network(torch.randn(1, 3, 12, 9), torch.zeros(1))
    with pytest.raises(ValueError, match="nearest that are: 32 x 32 and 48 x 48"):
        create_model("diffit_cifar10", img_size=40)
    with pytest.raises(ValueError, match=r"must be \(3, 8, 8\), got \(4, 8, 8\)"):
        network(torch.randn(1, 4, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match=r"time must be \(1,\)"):  # else its four windows would be four pictures
        network(torch.randn(1, 3, 8, 8), torch.zeros(4))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="must have 2 numbers"):
        create_model("diffit_test", num_blocks=(1, 1, 1))
    with pytest.raises(ValueError, match="multiples of head_dim=3, got 8"):
        create_model("diffit_test", head_dim=3)
    with pytest.raises(ValueError, match="divisible by patch_size"):
        create_model("diffit_xl_256", img_size=7)
    with pytest.raises(ValueError, match="num_heads=5"):
        create_model("diffit_xl_256", num_heads=5, hidden_size=48, depth=1)
    with pytest.raises(ValueError, match="no null label"):
        create_model("diffit_xl_256", hidden_size=16, num_heads=2, depth=1, null_label=False).null(torch.tensor([1]))


def test_augmentation_is_told_and_may_be_left_out():
    torch.manual_seed(0)
    network = create_model("diffit_test", augment_dim=9)
    torch.nn.init.normal_(network.conv_out.weight)
    x, time = torch.randn(2, 3, 8, 8), torch.zeros(2)
    plain = network(x, time)
    assert torch.equal(network(x, time, augment_labels=torch.zeros(2, 9)), plain)
    assert not torch.allclose(network(x, time, augment_labels=torch.ones(2, 9)), plain)


@pytest.mark.parametrize("name, overrides", [
    ("diffit_test", {}),
    ("diffit_xl_256", dict(img_size=4, hidden_size=16, num_heads=2, depth=2, num_classes=3)),
])  # fmt: skip
def test_checkpointing_changes_no_number(name, overrides):
    torch.manual_seed(0)
    network, gradients = create_model(name, **overrides), []
    x, y = torch.randn(2, *network.shape), torch.tensor([0, 3]) if overrides else None
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    for network.checkpoint in (False, True):
        network.zero_grad()
        network(x, torch.tensor([0.1, 0.5]), y).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-5, atol=1e-6)
