"""Imagen's Efficient U-Net: the small image, how noisy it is, the text, and where its weights and its work stand."""

import pytest
import torch

from minidiff import create_model, record_attention, summary
from minidiff.layers import Text


def network_of(**overrides):
    """A network that has no layer of zeros, so that every input reaches its output."""
    torch.manual_seed(0)
    network = create_model("efficient_unet_test", **overrides).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return network


def inputs(batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, 3, 8, 8), torch.linspace(100, 900, batch), torch.randn(batch, 3, 4, 4)


def text(batch=2):
    return Text(torch.randn(batch, 5, 6), torch.arange(5) < torch.arange(2, batch + 2)[:, None], torch.randn(batch, 4))


def test_every_input_counts():
    network, (x, time, low_res) = network_of(num_classes=3), inputs()
    y = torch.tensor([0, 2])
    out = network(x, time, y, low_res=low_res, low_res_time=time / 2)
    assert out.shape == x.shape
    for other in (network(x.flip(2), time, y, low_res, time / 2), network(x, time + 50, y, low_res, time / 2),
                  network(x, time, y - y, low_res, time / 2), network(x, time, y, low_res.flip(2), time / 2),
                  network(x, time, y, low_res, time / 2 + 50), network(x, time, network.null(y), low_res, time / 2)):
        assert (other[1] - out[1]).abs().max() > 1e-3  # fmt: skip


def test_a_clean_small_image_is_the_default_and_may_have_any_size():
    network, (x, time, low_res) = network_of(), inputs()
    out = network(x, time, low_res=low_res)
    assert torch.allclose(network(x, time, low_res=low_res, low_res_time=torch.zeros(1)), out, atol=1e-6)
    large = torch.nn.functional.interpolate(low_res, (8, 8), mode="bilinear")
    assert torch.allclose(network(x, time, low_res=large), out, atol=1e-6)


@pytest.mark.parametrize("attention", ["both", "text"])
def test_padding_of_a_text_counts_nowhere_and_no_text_is_well_defined(attention):
    network, (x, time, low_res), y = network_of(attention=attention, text_dim=6, pooled_dim=4), inputs(), text()
    out = network(x, time, y, low_res)
    padded = Text(y.tokens.clone(), y.mask, y.pooled)
    padded.tokens[~y.mask] = 7.0
    assert torch.allclose(network(x, time, padded, low_res), out, atol=1e-6)
    null = network.null(y)
    none = network(x, time, null, low_res)
    assert none.isfinite().all() and (none - out).abs().max() > 1e-3
    assert (network(x, time, Text(y.tokens.flip(1), y.mask, y.pooled), low_res) - out).abs().max() > 1e-4
    with record_attention(network) as maps:
        network(x, time, y, low_res)
    keys = 5 + 4 * (attention == "both")  # the text's tokens, and the places of the deepest map
    assert {one.shape for calls in maps.values() for one in calls} == {(2, 2, 4, keys)} and len(maps) == 2


def test_without_text_the_deepest_level_attends_to_itself_or_not_at_all():
    (x, time, low_res), counts = inputs(), []
    for attention in ("both", "self", "text"):
        network = network_of(attention=attention)
        with record_attention(network) as maps:
            network(x, time, low_res=low_res)
        counts.append(len(maps))
    assert counts == [2, 2, 0]


def test_every_parameter_gets_a_gradient_and_recomputation_changes_none():
    network, (x, time, low_res), y = network_of(text_dim=6, pooled_dim=4), inputs(), text()
    y.mask[0] = False  # one picture without text, for the null token
    gradients = []
    for network.checkpoint in (False, True):
        network.zero_grad()
        network(x, time, y, low_res, time).square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    for name, plain in gradients[0].items():
        assert plain.abs().max() > 0, name
        assert torch.allclose(plain, gradients[1][name], rtol=1e-5, atol=1e-6), name


def test_skips_are_scaled():
    """With all maps of the way up silenced but for the skip, the output knows it at 1 / sqrt(2)."""
    network, (x, time, low_res) = network_of(), inputs()
    seen = {}
    network.down[0].register_forward_hook(lambda module, args, out: seen.update(kept=out))
    network.up[1].register_forward_pre_hook(lambda module, args: seen.update(joined=args[0]))
    network(x, time, low_res=low_res)
    assert torch.allclose(seen["joined"][:, 8:], seen["kept"] / 2**0.5)


def test_published_sizes_run_and_their_weights_stand_low():
    with torch.device("meta"):
        network = create_model("efficient_unet_64_256")
        y = Text(torch.zeros(1, 7, 4096), torch.ones(1, 7, dtype=torch.bool), torch.zeros(1, 4096))
        x, low_res = torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 64, 64)
        assert network(x, torch.zeros(1), y, low_res).shape == x.shape
        large = create_model("efficient_unet_256_1024")
        assert large(torch.zeros(1, 3, 1024, 1024), torch.zeros(1), y, x).shape == (1, 3, 1024, 1024)
        weights = [sum(p.numel() for p in block.parameters()) for block in network.down]
    total = sum(p.numel() for p in network.parameters())
    assert abs(total / 1e6 - 507) < 1 and weights[3] > 3 * weights[2] > 9 * weights[1]


def test_its_work_is_counted():
    """Twice the channels of the first convolution's input: its own three, and those of the small image."""
    work = summary(network_of(), low_res=inputs(1)[2], depth=1)
    assert next(row.flops for row in work.rows if row.name == "conv_in") == 2 * 6 * 9 * 8 * 64


def test_what_does_not_fit_is_refused():
    network, (x, time, low_res) = network_of(), inputs()
    with pytest.raises(ValueError, match="divisible by 4"):
        network(x[:, :, :6], time, low_res=low_res)
    with pytest.raises(ValueError, match=r"pass low_res, the small images, as \(2, 3\) \+ \(h, w\); got None"):
        network(x, time)
    with pytest.raises(ValueError, match=r"got \(1, 3, 4, 4\)"):
        network(x, time, low_res=low_res[:1])
    with pytest.raises(ValueError, match=r"time must be \(2,\)"):
        network(x, time.repeat(2), low_res=low_res)
    for overrides, says in (({"attention": "none"}, "unknown attention 'none'"), ({"num_blocks": (1,)}, "2 numbers"),
                            ({"num_classes": 2, "text_dim": 6}, "choose labels"), ({"pooled_dim": 4}, "belongs to"),
                            ({"num_heads": 3}, "num_heads=3")):
        with pytest.raises(ValueError, match=says):
            create_model("efficient_unet_test", **overrides)
