"""HiT (its official numbers: test_goldens.py): blocks, axes and shuffles by their definition, and what is refused."""

import copy

import pytest
import torch
from golden import fill
from goldens_hit import tensorflow_weights
from toy import GOLDEN

from minidiff import Text, create_model, list_models, record_attention
from minidiff.backbones.hit import BatchNorm, LatentAttention, MultiAxisAttention, pixel_shuffle, pixel_unshuffle
from minidiff.official import from_official
from minidiff.official import hit as official

SMALL = dict(img_size=16, widths=(16, 8, 8), depths=(1, 2, 1), num_heads=(4, 2, 2), block_sizes=(2, 4, None),
             latent_dim=6)  # fmt: skip


def random_weights(network):
    """The same network, none of whose weights is zero."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_generators_are_of_their_own_kind_and_make_images():
    assert list_models("hit_*", kind="generator") == ["hit_1024", "hit_128", "hit_256"]
    torch.manual_seed(0)
    network = create_model("hit_128", **SMALL).eval()
    z = torch.randn(2, 6)
    images = network(z)
    assert images.shape == (2, 3, 16, 16) and (images[0] - images[1]).abs().max() > 0
    torch.testing.assert_close(network(z[:1]), images[:1], rtol=1e-4, atol=1e-6)  # running statistics, not the batch's
    for wrong in (torch.randn(2, 5), torch.randn(6), torch.randn(1, 2, 6)):
        with pytest.raises(ValueError, match=r"z must be \(B, 6\)"):
            network(wrong)


@pytest.mark.parametrize("name, size", [("hit_128", 128), ("hit_256", 256), ("hit_1024", 1024)])
def test_published_generators_make_images_of_their_size(name, size):
    with torch.device("meta"):
        network = create_model(name)
        assert network(torch.empty(1, network.latent_dim)).shape == (1, 3, size, size) == (1, *network.shape)


@pytest.mark.parametrize("attn_type", ["multi_query", "multi_head"])
def test_half_of_the_heads_attend_inside_blocks_and_half_across(attn_type):
    """As one attention over all tokens, with a mask that each half of the heads has for itself."""
    torch.manual_seed(0)
    blocks, tokens, heads, d = 3, 4, 4, 2
    layer = MultiAxisAttention(8, heads, attn_type).double()
    x = torch.randn(2, blocks, tokens, 8, dtype=torch.float64)
    q, k, v = layer.qkv(x.flatten(1, 2)).split(layer.sizes, dim=2)
    q, k, v = (part.unflatten(2, (-1, d)).transpose(1, 2).expand(-1, heads, -1, -1) for part in (q, k, v))
    block, place = torch.arange(12) // tokens, torch.arange(12) % tokens
    same = torch.stack([of[:, None] == of for of in (block, block, place, place)])  # (heads, N, N)
    weights = (q @ k.mT / d**0.5).masked_fill(~same, -torch.inf).softmax(-1)
    expected = layer.proj((weights @ v).transpose(1, 2).flatten(2)).view_as(x)
    assert torch.allclose(layer(x), expected, atol=1e-12)


def test_a_change_is_seen_inside_its_block_and_at_its_place_only():
    torch.manual_seed(0)
    layer, x = MultiAxisAttention(8, 2, "multi_query"), torch.randn(1, 4, 9, 8)
    changed = x.clone()
    changed[0, 1, 5] += 1
    seen = (layer(changed) != layer(x)).any(dim=3)[0]
    expected = torch.zeros(4, 9, dtype=torch.bool)
    expected[1], expected[:, 5] = True, True
    assert torch.equal(seen, expected)


def test_one_key_for_all_heads_is_a_key_of_each_that_is_the_same():
    torch.manual_seed(0)
    query, head = LatentAttention(8, 4, "multi_query", 6), LatentAttention(8, 4, "multi_head", 6)
    with torch.no_grad():
        for ours, theirs in zip(head.kv.parameters(), query.kv.parameters()):
            ours.copy_(theirs.view(2, 1, 2, -1).expand(-1, 4, -1, -1).reshape(ours.shape))
    head.q, head.proj = query.q, query.proj
    x, latent = torch.randn(2, 3, 5, 8), torch.randn(2, 7, 6)
    torch.testing.assert_close(head(x, latent), query(x, latent))
    assert query.kv.weight.numel() * 4 == head.kv.weight.numel()
    torch.testing.assert_close(query(x, latent[:1])[0], query(x, latent)[0])  # one latent for the whole batch


def test_shuffles_undo_each_other_and_take_four_channels_to_four_neighbours():
    x = torch.arange(2 * 3 * 8).view(1, 2, 3, 8)
    shuffled = pixel_shuffle(x)
    assert shuffled.shape == (1, 4, 6, 2) and torch.equal(pixel_unshuffle(shuffled), x)
    assert shuffled[0, 0, 0].tolist() == [0, 1] and shuffled[0, 0, 1].tolist() == [2, 3]
    assert shuffled[0, 1, 0].tolist() == [4, 5] and shuffled[0, 1, 1].tolist() == [6, 7]


def test_batch_norm_counts_every_token_and_moves_slowly():
    torch.manual_seed(0)
    norm, x = BatchNorm(4), 3 + 2 * torch.randn(2, 5, 6, 4)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)
    torch.testing.assert_close(norm(x), (x - mean) / (var + 1e-3).sqrt())
    torch.testing.assert_close(norm.running_mean, 0.01 * mean)
    running = norm.eval()(x)
    torch.testing.assert_close(running, (x - norm.running_mean) / (norm.running_var + 1e-3).sqrt())


def test_the_generator_can_have_layer_norm_and_a_key_for_each_head():
    torch.manual_seed(0)
    published = create_model("hit_128", **SMALL)
    network = create_model("hit_128", norm="layer", attn_type="multi_head", **SMALL)
    assert not list(network.buffers()) and len(list(published.buffers())) > 0
    assert sum(p.numel() for p in network.parameters()) > sum(p.numel() for p in published.parameters())
    z = torch.randn(2, 6)
    torch.testing.assert_close(network(z[:1]), network(z)[:1], rtol=1e-4, atol=1e-6)  # in training mode too


def test_attention_maps_of_both_axes_and_of_the_latent_are_recorded():
    network = create_model("hit_128", **SMALL).eval()
    with torch.no_grad(), record_attention(network) as maps:
        network(torch.randn(2, 6))
    inside, across = maps["stages.1.tokens.blocks.0.attn"]
    assert inside.shape == (2 * 4, 1, 16, 16) and across.shape == (2 * 16, 1, 4, 4)  # blocks of 4 x 4 in 8 x 8
    assert maps["stages.2.tokens.cross.attn"][0].shape == (2, 2, 256, 16)
    assert "stages.2.tokens.blocks.0.attn" not in maps  # MLPs only


def test_official_files_with_their_training_and_arguments():
    spec, _ = fill.load(GOLDEN / "hit_generator_tf_a.npz")
    state = tensorflow_weights(spec)
    plain = from_official("hit", state, spec["config"])
    whole = {f"generator/{name.removesuffix(official.SUFFIX)}{official.SUFFIX}": t for name, t in state.items()}
    whole["discriminator/blocks/0/kernel"] = torch.zeros(3)
    again = from_official("hit", whole, spec["config"])
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), again.state_dict().values(), strict=True))
    assert official.arguments({}) == {"latent_tokens": 16}
    for wrong, message in [({"activation": "relu"}, "activation='relu'"), ({"stem": 3}, "stem: not arguments")]:
        with pytest.raises(ValueError, match=message):
            official.arguments(wrong)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divisible by 16.* got 40 x 40; the nearest that are: 32 x 32 and 48 x 48"):
        create_model("hit_cifar10", img_size=40)
    with pytest.raises(ValueError, match="divisible by 64.* 128 x 128"):
        create_model("hit_128", img_size=100)
    for overrides, message in [
        ({"depths": (1,)}, "depths must have 2 values"), ({"block_sizes": (4,)}, "block_sizes must have 2"),
        ({"num_heads": (3, 2)}, "must be divisible by num_heads=3"), ({"num_heads": (2, 1)}, "num_heads must be even"),
        ({"widths": (6, 8)}, "divisible by 4"), ({"attn_type": "multi-query"}, "Did you mean 'multi_query'"),
        ({"num_classes": 2, "text_dim": 4}, "not both"), ({"pooled_dim": 4}, "set text_dim too"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            create_model("hit_test", **overrides)
    with pytest.raises(ValueError, match="Valid names: batch, layer"):
        create_model("hit_128", norm="group")
    with pytest.raises(ValueError, match="images must be"):
        create_model("hit_test")(torch.randn(1, 3, 16, 16), torch.zeros(1))


def test_the_denoiser_starts_as_nothing_and_hears_the_time():
    torch.manual_seed(0)
    network, x = create_model("hit_test"), torch.randn(2, 3, 8, 8)
    assert not network(x, torch.zeros(1)).any()
    latents = [network.embed(torch.tensor([time]), None, x.dtype)[0] for time in (1.0, 900.0)]
    assert latents[0].shape == (1, 16, 16) and (latents[0] - latents[1]).std() > 0.1


def test_every_stage_of_the_decoder_adds_to_the_picture_and_hears_the_encoder():
    torch.manual_seed(0)
    network = random_weights(create_model("hit_test")).eval()
    x, time = torch.randn(1, 3, 8, 8), torch.zeros(1)
    for part in ("decoder.0.rgb.1", "decoder.1.rgb.1", "encoder.0.tokens.positions", "encoder.1.tokens.positions"):
        other = copy.deepcopy(network)
        with torch.no_grad():
            owner = other.get_submodule(part).weight if "rgb" in part else other.get_parameter(part)
            owner.normal_()
        assert (other(x, time) - network(x, time)).abs().max() > 1e-3, part


def test_text_is_heard_and_padding_is_not():
    torch.manual_seed(0)
    network = random_weights(create_model("hit_test", text_dim=5, pooled_dim=3)).eval()
    x, time, tokens = torch.randn(2, 3, 8, 8), torch.tensor([3.0]), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    with torch.no_grad():
        out = network(x, time, Text(tokens, mask))
        padded = Text(torch.where(mask[..., None], tokens, 9.0), mask)
        torch.testing.assert_close(network(x, time, padded), out)
        assert (network(x, time, tokens) - out).abs().max() > 1e-3
        assert (network(x, time, Text(tokens, mask, torch.randn(2, 3))) - out).abs().max() > 1e-3
        null = network.null(Text(tokens, mask))
        nothing = network(x, time, null)
        assert nothing.isfinite().all() and (nothing - out).abs().max() > 1e-3
        torch.testing.assert_close(network(x, time, Text(null.tokens[:, :2], null.mask[:, :2])), nothing)


@pytest.mark.parametrize("name, overrides", [("hit_test", dict(num_classes=3, dropout=0.2)), ("hit_128", SMALL)])
def test_checkpointing_changes_no_number(name, overrides):
    torch.manual_seed(0)
    network, gradients = random_weights(create_model(name, **overrides)), []
    inputs = (torch.randn(2, 3, 8, 8), torch.tensor([3.0, 5.0]), torch.tensor([0, 3]))
    inputs = inputs if name == "hit_test" else (torch.randn(2, 6),)
    for network.checkpoint in (False, True):
        network.zero_grad()
        torch.manual_seed(1)
        network(*inputs).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-5)
