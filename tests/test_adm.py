"""ADM and its classifier: what each switch does, the three orders of q, k and v, text, and the official files."""

import goldens_adm
import pytest
import torch
import torch.nn.functional as F
from counting import Count
from golden import fill
from toy import GOLDEN

from minidiff import Diffusion, create_model, list_models, load_official, schedules
from minidiff.attention_maps import record_attention
from minidiff.backbones.adm_blocks import ORDERS, Attention, Block
from minidiff.backbones.adm_classifier import POOLS
from minidiff.guidance import gradient_of
from minidiff.layers import Text
from minidiff.official import adm as official
from minidiff.official import adm_classifier as official_classifier
from minidiff.official import edm_adm, from_official, released
from minidiff.scorers import Classifier

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
    with pytest.raises(ValueError, match="super_resolution=True, and low_res was not given"):
        network(x, time)
    with pytest.raises(ValueError, match="super_resolution=False, and low_res was given"):
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


# --- the classifier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_pools(pool):
    network, (x, time) = network_of("adm_classifier_test", pool=pool), inputs()
    out = network(x, time)
    assert out.shape == (3, 3)
    out.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        assert (network(x, time.flip(0)) - out)[0].abs().max() > 1e-5
        alone = [network(x[i : i + 1], time[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(torch.cat(alone), out, rtol=1e-4, atol=1e-5)
        if pool == "attention":
            torch._dynamo.reset()
            torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(x, time), out)
        network.checkpoint = True
    torch.testing.assert_close(network(x, time), out)
    if pool == "attention":
        with pytest.raises(ValueError, match=r"images must be \(3, 8, 8\)"):
            network(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    else:
        assert network(torch.zeros(1, 3, 16, 12), torch.zeros(1)).shape == (1, 3)


def test_the_normed_spatial_head():
    head = create_model("adm_classifier_test", pool="spatial_v2").head
    assert [type(layer).__name__ for layer in head] == ["Linear", "GroupNorm", "SiLU", "Linear"]
    assert (head[0].in_features, head[0].out_features, head[1].num_groups) == (8 + 8 + 8 + 16 + 16, 2048, 32)


def test_the_classifier_guides():
    (x, _), y = inputs(), torch.arange(3)
    classifier = Classifier(network_of("adm_classifier_test"), schedules.linear(1000), shape=(3, 8, 8))
    gradient = gradient_of(classifier.log_prob, 2.0)(x, 0.5, y)
    assert gradient.shape == x.shape and gradient.abs().amax((1, 2, 3)).min() > 0
    assert classifier.loss(x.clamp(-1, 1), y).shape == (3,)
    with pytest.raises(ValueError, match="unknown pool 'mean'.*adaptive"):
        network_of("adm_classifier_test", pool="mean")


# --- official files ---------------------------------------------------------------------------------------------------


def test_the_order_of_each_published_model_is_said_by_its_name():
    """Only ADM at 64 pixels has the new order, only EDM's port its own; the classifiers' trunks are legacy."""
    orders = {}
    for name in [*list_models("adm_*"), *list_models("iddpm_*"), "edm_adm_imagenet64"]:
        with torch.device("meta"):
            orders[name] = create_model(name).arguments["qkv_order"]
    assert [name for name, order in orders.items() if order == "new"] == ["adm_imagenet64", "adm_tiny"]
    assert [name for name, order in orders.items() if order == "edm"] == ["edm_adm_imagenet64"]
    for config, order in (({}, "legacy"), ({"use_new_attention_order": True}, "new")):
        assert official.arguments({"attention_resolutions": (2,), **config})["qkv_order"] == order


# The flags of three published files (facts), for the constructors of the official code
ADM = dict(in_channels=3, out_channels=6, use_scale_shift_norm=True, resblock_updown=True, num_head_channels=64)
FLAGS = {
    "adm_imagenet64": ("guided_diffusion", ADM | dict(
        image_size=64, model_channels=192, num_res_blocks=3, attention_resolutions=(2, 4, 8), channel_mult=(1, 2, 3, 4),
        num_classes=1000, use_new_attention_order=True, dropout=0.1, num_heads=4, num_heads_upsample=-1)),
    "adm_upsample_64_256": ("guided_diffusion", ADM | dict(
        image_size=256, model_channels=192, num_res_blocks=2, attention_resolutions=(8, 16, 32), num_head_channels=-1,
        channel_mult=(1, 1, 2, 2, 4, 4), num_classes=1000, num_heads=4, super_resolution=True)),
    "iddpm_cifar10": ("improved_diffusion", dict(
        in_channels=3, out_channels=6, model_channels=128, num_res_blocks=3, attention_resolutions=(2, 4), dropout=0.3,
        channel_mult=(1, 2, 2, 2), num_heads=4, num_heads_upsample=-1, use_scale_shift_norm=True, image_size=32)),
    "adm_t2i_64": ("glide", ADM | dict(
        image_size=64, model_channels=192, num_res_blocks=3, attention_resolutions=(2, 4, 8), channel_mult=(1, 2, 3, 4),
        xf_width=512, text_ctx=128, xf_layers=16, xf_heads=8, xf_final_ln=True)),
    "adm_classifier_128": ("guided_diffusion_classifier", {**ADM, "out_channels": 1000} | dict(
        image_size=128, model_channels=128, num_res_blocks=2, attention_resolutions=(4, 8, 16), pool="attention",
        channel_mult=(1, 1, 2, 3, 4))),
    "edm_adm_imagenet64": ("edm_adm", dict(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000)),
}  # fmt: skip
KEY_MAPS = {"guided_diffusion_classifier": official_classifier, "edm_adm": edm_adm}


@pytest.mark.parametrize("name", FLAGS)
def test_published_flags_give_the_published_model(name):
    family, config = FLAGS[name]
    with torch.device("meta"):
        ours = create_model(name)
        theirs = create_model(name, **KEY_MAPS.get(family, official).arguments(config))
    assert {key: tuple(weight.shape) for key, weight in ours.named_parameters()} == {
        key: tuple(weight.shape) for key, weight in theirs.named_parameters()
    }
    same = ours.arguments.keys() - {"num_heads", "num_head_channels", "null_label", "attn_resolutions", "channel_mult"}
    assert {key: ours.arguments[key] for key in same} == {key: theirs.arguments[key] for key in same}
    heads = [[m.heads for m in network.modules() if isinstance(m, Attention)] for network in (ours, theirs)]
    assert heads[0] == heads[1]


def test_what_an_official_config_may_not_say():
    known = {"attention_resolutions": (2,), "out_channels": 3}
    for wrong, match in (
        ({"conv_resample": False}, "conv_resample"), ({"num_heads_upsample": 8}, "num_heads_upsample"),
        ({"norm": 1}, "norm: not arguments"),
    ):  # fmt: skip
        for key_map in (official, official_classifier):
            with pytest.raises(ValueError, match=match):
                key_map.arguments(known | wrong)
    with pytest.raises(ValueError, match="num_classes=5: not an argument of the official classifier"):
        official_classifier.arguments(known | {"num_classes": 5})
    for wrong in ({"augment_dim": 9}, {"embedding_type": "fourier"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            edm_adm.arguments(FLAGS["edm_adm_imagenet64"][1] | wrong)


def official_state(name):
    spec, _ = fill.load(GOLDEN / f"{name}.npz")
    return spec, {key: torch.from_numpy(value) for key, value in fill.make_weights(spec).items()}


def test_edm_files_with_their_preconditioning():
    spec, state = official_state("edm_dhariwal_a")
    wrapped = {f"model.{key}": value for key, value in state.items()}
    wrapped["model.enc.8x8_down.skip.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
    plain, network = (from_official("edm_adm", weights, spec["config"]) for weights in (state, wrapped))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))


def test_of_glide_the_image_network_is_read():
    spec, state = official_state("glide_unet_a")
    whole = state | {
        "transformer_proj.weight": torch.randn(256, 24), "transformer_proj.bias": torch.randn(256),
        "transformer.resblocks.0.attn.c_qkv.weight": torch.randn(72, 24), "token_embedding.weight": torch.randn(9, 24),
        "positional_embedding": torch.randn(7, 24), "padding_embedding": torch.randn(7, 24),
        "final_ln.weight": torch.randn(24),
    }  # fmt: skip
    config = {key: value for key, value in spec["config"].items() if key != "encoder_channels"} | {"xf_width": 24}
    network, alone = from_official("glide", whole, config), from_official("glide", state, spec["config"])
    x, time, last = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 24)
    tokens = torch.randn(2, 7, 24)
    projected = last @ whole["transformer_proj.weight"].T + whole["transformer_proj.bias"]
    with torch.no_grad():
        expected = alone(x, time, Text(tokens, pooled=projected))
        torch.testing.assert_close(network(x, time, Text(tokens, pooled=last)), expected, rtol=1e-4, atol=1e-5)


def test_what_each_was_trained_with(tmp_path, monkeypatch):
    """Times as the official code feeds them, and a classifier where one is published."""
    known = {name: trained for name, (_, trained) in released().items() if "adm" in name or "iddpm" in name}
    assert set(known) == {*list_models("adm_*"), *list_models("*iddpm_*"), "edm_adm_imagenet64"} - {
        "adm_test", "adm_tiny", "adm_classifier_test"
    }  # fmt: skip
    assert [name for name, trained in known.items() if trained["time"] == "index_rescaled"] == [
        "iddpm_cifar10", "iddpm_imagenet64",
    ]  # fmt: skip
    seen = []
    model = Diffusion(lambda x, time, y: seen.append(time) or x, schedules.cosine(4000), time="index_rescaled",
                      shape=(3, 8, 8))  # fmt: skip
    model.denoise(torch.zeros(1, 3, 8, 8), 1.0)
    model.denoise(torch.zeros(2, 3, 8, 8), torch.tensor([1 / 4000, 0.5]))
    torch.testing.assert_close(torch.cat(seen), torch.tensor([999.75, 0, 499.75]))

    spec, state = official_state("guided_encoder_attnpool_a")
    expected = from_official(spec["family"], state, spec["config"])
    arguments = official_classifier.arguments(spec["config"])
    monkeypatch.setattr("minidiff.backbones.create_model", lambda name: create_model(name, **arguments))
    torch.save(state, tmp_path / "classifier.pt")
    classifier = load_official("adm_classifier_128", tmp_path / "classifier.pt")
    assert isinstance(classifier, Classifier) and classifier.shape == (3, 16, 16) and classifier.schedule.steps == 1000
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(x, 0.5), expected(x, torch.tensor([499.0])))


# --- maps and work ----------------------------------------------------------------------------------------------------


def test_attention_maps():
    (x, time), y = inputs(), text_of()
    network = network_of(**TEXT)
    with torch.no_grad(), record_attention(network) as maps:
        network(x, time, y)
    places = ["encoder.down.1.blocks.0.attention", "encoder.middle.0.attention"]
    assert list(maps)[:2] == places and {weights.shape for (weights,) in maps.values()} == {(3, 2, 16, 4 + 16)}
    assert maps[places[0]][0][1, :, :, 2:4].eq(0).all()  # the second text has two tokens, which come first
    classifier = network_of("adm_classifier_test")
    with torch.no_grad(), record_attention(classifier) as maps:
        classifier(x, time)
    assert maps["head"][0].shape == (3, 2, 1, 17)  # the mean asks itself and 16 places


def test_it_wastes_no_operation():
    network, x = network_of("adm_tiny"), torch.randn(1, 3, 16, 16)
    with torch.no_grad(), Count() as count:
        network(x, torch.tensor([5.0]))
    blocks = sum(isinstance(module, Block) for module in network.modules())
    attentions = sum(isinstance(module, Attention) for module in network.modules())
    assert count.ops <= 11 * blocks + 7 * attentions + 30, count.ops


def test_every_fixture_is_used():
    files = {path.stem for pattern in ("guided_*", "glide_*", "edm_dhariwal*") for path in GOLDEN.glob(pattern)}
    assert {name.split("/")[0] for name in goldens_adm.NETWORKS} == files
