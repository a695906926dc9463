"""DiT and SiT: the official numbers, the identity at the start, and every way of conditioning."""

import json

import goldens_dit
import pytest
import torch
from counting import Count
from torch.utils.flop_counter import FlopCounterMode

from minidiff import Diffusion, create_model, list_models, schedules
from minidiff.attention_maps import record_attention
from minidiff.backbones.dit import CONDITIONINGS
from minidiff.checkpoints import load_weights
from minidiff.official import dit as official
from minidiff.official import sit

# Billions of multiply-accumulates (the paper's "Gflops") of patch size 2, 4, 8
GFLOPS = {"s": (6.06, 1.41, 0.36), "b": (23.01, 5.56, 1.42), "l": (80.71, 19.70, 5.01), "xl": (118.64, 29.05, 7.39)}
# Figure 5 and table 4 of the paper, XL/2: millions of parameters, billions of multiply-accumulates
VARIANTS = {"in_context": (449, 119.37), "cross_attention": (598, 137.62), "adaln": (600, 118.56),
            "adaln_zero": (675, 118.64)}  # fmt: skip


def network_of(name="dit_test", **overrides):
    torch.manual_seed(0)
    return create_model(name, **overrides).eval()


def awake(network):
    """The network with small random numbers in place of the zeros that it starts with."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return network


def inputs(batch=3, channels=3):
    torch.manual_seed(1)
    return torch.randn(batch, channels, 8, 8), torch.linspace(1, 900, batch), torch.arange(batch)


def on_meta(name, **overrides):
    with torch.device("meta"):
        return create_model(name, **overrides)


def gflops(network):
    """Billions of multiply-accumulates of one picture, counted without computing it."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *network.shape), torch.empty(1), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() / 2e9


def test_all_sizes_are_there():
    sizes = {f"{size}_{p}" for size in ("s", "b", "l", "xl") for p in (2, 4, 8)} | {"tiny", "test"}
    assert set(list_models("dit_*")) == {f"dit_{size}" for size in sizes | {"xl_2_512"}}
    assert set(list_models("sit_*")) == {f"sit_{size}" for size in sizes}
    spared = 16 * (1152 + 1)  # the rows of its last layer for a variance range
    assert sum(p.numel() for p in on_meta("sit_xl_2").parameters()) == goldens_dit.PARAMETERS["dit_xl_2"] - spared
    assert sum(p.numel() for p in on_meta("dit_s_2", learn_sigma=False).parameters()) == 32_957_200


@pytest.mark.parametrize("size", GFLOPS)
def test_published_gflops(size):
    for patch, expected in zip((2, 4, 8), GFLOPS[size]):
        assert gflops(on_meta(f"dit_{size}_{patch}")) == pytest.approx(expected, rel=1e-2)
    if size == "xl":
        assert gflops(on_meta("dit_xl_2_512")) == pytest.approx(524.6, rel=1e-2)


@pytest.mark.parametrize("conditioning", VARIANTS)
def test_the_conditionings_have_the_size_of_the_paper(conditioning):
    network, (millions, expected) = on_meta("dit_xl_2", conditioning=conditioning), VARIANTS[conditioning]
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert round(learned / 1e6) == millions
    assert gflops(network) == pytest.approx(expected, abs=0.03)


def test_an_untrained_block_is_the_identity():
    """Its gates are zero whatever c is; so the whole network is its first and last layer, and that one gives zeros."""
    network, tokens, c = network_of(depth=3), torch.randn(3, 16, 24), torch.randn(3, 24)
    for block, modulation in zip(network.blocks, network.modulation(c), strict=True):
        assert torch.equal(block(tokens, modulation), tokens)
    x, time, _ = inputs()
    assert network(x, time).eq(0).all()
    with torch.no_grad():
        network.final_layer.linear.weight.normal_()
        whole = network(x, time)
        network.blocks = torch.nn.ModuleList()
        assert torch.equal(network(x, time), whole)
    other = network_of(conditioning="adaln")  # without gates a block does something from the start
    assert (other.blocks[0](tokens, other.modulation(c)[0]) - tokens).abs().max() > 0.1


def test_an_untrained_block_is_deaf_to_text_and_then_hears_it_between_attention_and_mlp():
    """With text too an untrained block is the identity; later its cross-attention stands in the middle, ungated."""
    sizes, tokens, c = dict(text_dim=6, pooled_dim=4), torch.randn(3, 16, 24), torch.randn(3, 24)
    network, text, mask = network_of(depth=2, **sizes), torch.randn(3, 5, 6), torch.arange(5).expand(3, 5) < 4
    for block, modulation in zip(network.blocks, network.modulation(c), strict=True):
        assert torch.equal(block(tokens, modulation, text, mask), tokens)
    block = awake(network).blocks[1]
    (shift1, scale1, gate1), (shift2, scale2, gate2) = modulation = network.modulation(c)[1]
    expected = tokens + gate1 * block.attn(shift1 + scale1 * block.norm1(tokens))
    expected = expected + block.cross_attn(block.norm_cross(expected), text[:, :4])
    expected = expected + gate2 * block.mlp(shift2 + scale2 * block.norm2(expected))
    torch.testing.assert_close(block(tokens, modulation, text, mask), expected)
    other = network_of(conditioning="adaln", **sizes)  # no gates, and so no zeros here either
    assert other.blocks[0].cross_attn.proj.weight.abs().max() > 0.1
    sit = network_of("sit_test", **sizes)
    assert {key: part.shape for key, part in sit.named_parameters()} == {
        key: part.shape for key, part in network.named_parameters()
    }


def test_text_adds_weights_and_moves_none():
    """The same seed gives the same network and numbers as ever; text comes on top, 4 d^2 and more in each block."""
    plain, network = network_of(), network_of(text_dim=24)
    assert set(plain.state_dict()) < set(network.state_dict())
    more = {key.split(".", 2)[-1].split(".")[0] for key in set(network.state_dict()) - set(plain.state_dict())}
    assert more == {"null_text", "norm_cross", "cross_attn"}
    block = 24 * 24 * 4 + 24 * 4 + 2 * 24
    count = [sum(part.numel() for part in one.parameters()) for one in (plain, network)]
    assert count[1] - count[0] == 2 * block + 24


def test_the_modulation_by_its_definition():
    """Shift before scale before gate, attention before MLP, block by block; six vectors of the width each."""
    network, x, c = awake(network_of(depth=2)), torch.randn(3, 16, 24), torch.randn(3, 24)
    block = network.blocks[1]
    rows = network.modulation.linear(c)[:, None, 6 * 24 :]
    shift1, scale1, gate1, shift2, scale2, gate2 = rows.chunk(6, dim=2)

    def norm(x):
        return (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, correction=0) + 1e-6).sqrt()

    expected = x + gate1 * block.attn(norm(x) * (1 + scale1) + shift1)
    expected = expected + gate2 * block.mlp(norm(expected) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, network.modulation(c)[1]), expected)


SWITCHES = [
    {"conditioning": conditioning, **labels} for conditioning in CONDITIONINGS for labels in ({}, {"num_classes": 3})
] + [{"learn_sigma": True}, {"num_classes": 3, "null_label": False}]  # fmt: skip


@pytest.mark.parametrize("overrides", SWITCHES, ids=str)
def test_switches(overrides):
    """Every parameter learns, time and label count, no picture sees another, and the whole is one graph."""
    network, (x, time, y) = awake(network_of(**overrides)), inputs()
    y = y if "num_classes" in overrides else None
    out = network(x, time, y)
    assert out.shape == (3, 6 if "learn_sigma" in overrides else 3, 8, 8)
    out.square().sum().backward()
    for key, parameter in network.named_parameters():
        alone = y is None and ("cross_attn.q" in key or "norm_cross" in key)  # to ask a single token is not to ask
        if parameter.requires_grad and not alone:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        assert (network(x, time.flip(0), y) - out)[0].abs().max() > 1e-5
        if y is not None:
            assert (network(x, time, y.flip(0)) - out)[0].abs().max() > 1e-5
        alone = [network(x[i : i + 1], time[i : i + 1], None if y is None else y[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(torch.cat(alone), out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x, time[1:2], y)[1], out[1], rtol=1e-4, atol=1e-5)
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, time, y), out)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_bf16_is_near_fp32(conditioning):
    network, (x, time, y) = awake(network_of(conditioning=conditioning, num_classes=3)), inputs()
    with torch.no_grad():
        exact = network(x, time, y)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x, time, y).float()
        assert network.bfloat16()(x.bfloat16(), time, y).dtype == torch.bfloat16
    assert (rough - exact).std() / exact.std() < 0.05


def test_null_label():
    y = torch.tensor([0, 2])
    assert (network_of(num_classes=3).null(y) == 3).all()
    with pytest.raises(ValueError, match="null_label=False"):
        network_of(num_classes=3, null_label=False).null(y)
    with pytest.raises(ValueError, match="no null label"):
        network_of().null(y)


def official_state(arguments):
    """A state dict in the official naming: that of our network, its modulation cut into its blocks."""
    state, depth = {}, arguments["depth"]
    names = {ours.rstrip("."): theirs for theirs, ours in (
        ("x_embedder.proj", "patch_embed"), ("t_embedder.mlp", "time_embed"),
        ("y_embedder.embedding_table", "label_embed"), ("final_layer.adaLN_modulation.1", "final_layer.modulation"),
    )}  # fmt: skip
    for name, tensor in awake(network_of("dit_test", **arguments)).state_dict().items():
        if name.startswith("modulation.linear"):
            for i, part in enumerate(tensor.chunk(depth)):
                state[f"blocks.{i}.adaLN_modulation.1.{name.rsplit('.', 1)[1]}"] = part
            continue
        for ours, theirs in names.items():
            name = name.replace(f"{ours}.", f"{theirs}.") if name.startswith(f"{ours}.") else name
        state[name] = tensor
    return state


def test_official_files():
    config = dict(input_size=8, in_channels=3, hidden_size=24, depth=2, num_heads=2, num_classes=4)
    arguments = official.arguments(config)
    assert arguments["null_label"] and arguments["learn_sigma"] and arguments["img_size"] == 8
    assert not official.arguments({"class_dropout_prob": 0})["null_label"]
    assert official.arguments({})["depth"] == 28
    with pytest.raises(ValueError, match="norm_layer"):
        official.arguments({"norm_layer": "rms"})
    state, (x, time, y) = official_state(arguments), inputs()
    reference, network = awake(network_of(**arguments)), network_of(**arguments)
    load_weights(network, official.convert({"model": {}, "ema": state, "opt": {}}), "a file")
    torch.testing.assert_close(network(x, time, y), reference(x, time, y), rtol=0, atol=0)
    del state["blocks.1.adaLN_modulation.1.bias"]
    with pytest.raises(ValueError, match="modulation.linear.bias"):
        load_weights(network, official.convert(state), "a file")


@pytest.mark.parametrize("sigma", [True, False])
def test_sit_turns_time_and_sign(sigma):
    """Its code returns data - noise at its own time 1 - t, beside a variance that nothing reads; ours noise - data."""
    config = dict(input_size=8, in_channels=3, hidden_size=24, depth=2, num_heads=2, num_classes=4, learn_sigma=sigma)
    arguments = official.arguments(config)
    theirs, (x, _, y) = awake(network_of(**arguments)), inputs()
    ours = network_of("sit_test", **sit.arguments(config))
    load_weights(ours, sit.convert(official_state(arguments), ours.arguments), "a file")
    diffusion = Diffusion(ours, schedules.flow(), "flow", time="1-t", shape=ours.shape)
    with torch.no_grad():
        velocity = theirs(x, torch.tensor([0.7]), y)[:, :3]
        prediction = diffusion.denoise(x, 0.3, y)
    torch.testing.assert_close(prediction.out, -velocity)
    torch.testing.assert_close(prediction.x0, x + 0.3 * velocity)  # from noise at 0 to data at 1, 0.3 is left to go
    with pytest.raises(ValueError, match="weights of minidiff's SiT"):  # whose sign would be turned a second time
        sit.convert(ours.state_dict(), ours.arguments)


def test_errors():
    with pytest.raises(ValueError, match="adaln_zero"):
        network_of(conditioning="adaln-zero")
    with pytest.raises(ValueError, match="divisible by patch_size"):
        network_of(img_size=9)
    with pytest.raises(ValueError, match=r"images must be \(3, 8, 8\)"):
        network_of()(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    with pytest.raises(ValueError, match="labels are missing"):
        network_of(num_classes=3)(*inputs()[:2])
    for conditioning in ("cross_attention", "in_context"):
        with pytest.raises(ValueError, match=f"text goes with .* got '{conditioning}'"):
            network_of(conditioning=conditioning, text_dim=6)
    with pytest.raises(ValueError, match="set text_dim too"):
        network_of(pooled_dim=6)


def test_attention_maps():
    x, time, y = inputs()
    for conditioning, shapes in (
        ("adaln_zero", {"attn": (16, 16)}),
        ("in_context", {"attn": (18, 18)}),
        ("cross_attention", {"attn": (16, 16), "cross_attn": (16, 2)}),
    ):
        network = network_of(conditioning=conditioning, num_classes=3)
        with torch.no_grad(), record_attention(network) as maps:
            network(x, time, y)
        assert {name: weights.shape[2:] for name, (weights,) in maps.items()} == {
            f"blocks.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()
        }


def test_dit_s_2_wastes_no_operation():
    network, x, laid_out = network_of("dit_s_2"), torch.randn(1, 4, 32, 32), []
    network.blocks[-1].register_forward_pre_hook(lambda block, args: laid_out.append(args[0].is_contiguous()))
    with torch.no_grad(), Count() as count:
        network(x, torch.tensor([5.0]), torch.tensor([3]))
    assert count.ops <= 175 and laid_out == [True]  # transposed, each norm would copy it where nobody counts


def test_the_benchmark_of_transformers_runs(root, monkeypatch, tmp_path):
    """With diffusers and timm, if they are there: both give our numbers; the times themselves are no test."""
    pytest.importorskip("diffusers")
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(root / "benchmarks")
    import transformer_speed

    transformer_speed.main(["--smoke", "--out", str(tmp_path / "speed.json")])
    rows = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["peer"], row["task"]) for row in rows] == [
        ("diffusers", "forward"), ("diffusers", "train"), ("diffusers", "train_own"),
        ("timm", "forward"), ("timm", "train"),
    ]  # fmt: skip
    assert all(row["ratio"] > 0 for row in rows)
