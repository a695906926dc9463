"""One suite over the registry: what every backbone must do, on its `family_test` size."""

import copy
import shutil

import pytest
import torch
import torch._inductor.config
from counting import Count

from minidiff import (
    Diffusion,
    create_model,
    from_pretrained,
    list_models,
    register_model,
    save_pretrained,
    schedules,
    summary,
)
from minidiff.layers import attention, timestep_embedding
from minidiff.training.ema import EMA

TESTED = list_models("*_test", kind="denoiser")
each_model = pytest.mark.parametrize("name", TESTED)


def network_and_inputs(name, batch=3, **overrides):
    """A network without zeroed layers, and inputs that it takes."""
    torch.manual_seed(0)
    network = create_model(name, **overrides).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() < 1e-3:  # layers that start as nothing would hide all before them
                parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(batch, 2) if name.startswith("mlp") else torch.randn(batch, 3, 8, 8)
    return network, x, torch.linspace(1, 900, batch)


def test_every_family_has_a_test_and_a_tiny_size():
    families = {name.split("_")[0] for name in list_models(kind="denoiser")} - {"iddpm"}  # whose sizes are of adm
    assert families >= {"adm", "ascend", "ddpm", "diffit", "dit", "genvit", "iuvit", "mlp", "ncsnpp", "uvit"}
    for family in families:
        assert {f"{family}_test", f"{family}_tiny"} <= set(list_models(f"{family}_*"))
        tiny = create_model(f"{family}_tiny")
        assert sum(p.numel() for p in tiny.parameters()) < 1_000_000


@each_model
def test_shape_and_independence_of_the_batch(name):
    network, x, time = network_and_inputs(name)
    with torch.no_grad():
        whole = network(x, time)
        assert whole.shape == x.shape and whole.dtype == x.dtype and whole.isfinite().all()
        alone = torch.cat([network(x[i : i + 1], time[i : i + 1]) for i in range(len(x))])
        torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)
        shared = network(x, time[1:2])  # one time for the whole batch
        torch.testing.assert_close(shared[1], whole[1], rtol=1e-4, atol=1e-5)
        assert (shared[0] - whole[0]).abs().max() > 1e-4  # the time matters


@each_model
def test_every_parameter_gets_a_gradient(name):
    network, x, time = network_and_inputs(name, num_classes=3)
    network(x, time, torch.tensor([0, 1, 3])).square().sum().backward()
    for key, parameter in network.named_parameters():
        if parameter.requires_grad:  # fixed tables do not
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@each_model
def test_labels(name):
    network, x, time = network_and_inputs(name, num_classes=3)
    y = torch.tensor([0, 1, 2])
    null = network.null(y)
    assert null.shape == y.shape and null.dtype == y.dtype and (null == 3).all()
    with torch.no_grad():
        assert (network(x, time, y) - network(x, time, null)).abs().amax(tuple(range(1, x.ndim))).min() > 1e-5
    with pytest.raises(ValueError, match="labels are missing"):
        network(x, time)
    with pytest.raises(ValueError, match="no null label"):
        create_model(name).null(y)


ON_A_GRID = [(name, {}) for name in ("dit_test", "sit_test", "genvit_test", "uvit_test", "iuvit_test")]


@pytest.mark.parametrize("name, switch", [*ON_A_GRID, ("uvit_test", {"time_as": "adaln"})])
def test_times_and_labels_of_another_batch_are_refused(name, switch):
    """By broadcasting, one image and three times would give three images."""
    network, x, time = network_and_inputs(name, num_classes=3, **switch)
    y = torch.tensor([0, 1, 2])
    for images, times in ((x[:1], time), (x, time[:2]), (x, time[0]), (x, time[:, None])):
        with pytest.raises(ValueError, match=r"time must be \(\d,\), one for each image, or \(1,\)"):
            network(images, times, y)
    for images, labels in ((x[:1], y), (x, y[:2])):
        with pytest.raises(ValueError, match=r"labels must be \(\d,\), one for each image"):
            network(images, time[:1], labels)


@each_model
def test_a_copy_is_equal_and_independent(name):
    network, x, time = network_and_inputs(name)
    twin = copy.deepcopy(network)
    again = create_model(network.name, **network.arguments).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        before = network(x, time)
        assert torch.equal(twin(x, time), before) and torch.equal(again(x, time), before)
        next(twin.parameters()).add_(1)
        assert torch.equal(network(x, time), before)


@each_model
def test_bf16_is_near_fp32(name):
    network, x, time = network_and_inputs(name)
    with torch.no_grad():
        exact = network(x, time)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x, time).float()
    assert (rough - exact).std() / exact.std() < 0.05


@each_model
def test_saved_loaded_and_averaged(name, tmp_path):
    network, x, time = network_and_inputs(name, num_classes=3)
    model = Diffusion(network, schedules.linear(), "v", shape=tuple(x.shape[1:]))
    save_pretrained(model, tmp_path)
    again, y = from_pretrained(tmp_path), torch.tensor([0, 1, 2])
    average = EMA(model, 0.5, warmup=False)
    with torch.no_grad():
        assert torch.equal(again.network(x, time, y), network(x, time, y))
        for parameter in network.parameters():
            parameter.mul_(3 if parameter.requires_grad else 1)
        average.update(0)
    for key, before in again.network.named_parameters():
        factor = 2 if before.requires_grad else 1
        torch.testing.assert_close(average.model.network.get_parameter(key), before * factor)


# 10^9 multiply-accumulates of one forward pass: published or counted in the official code (facts)
WORK = {
    "ddpm_cifar10": 6.22, "uvit_cifar10": 12.2, "uvit_imagenet64_m": 35.2, "uvit_imagenet64_l": 76.5,
    "uvit_imagenet256_l": 76.5, "uvit_imagenet256_h": 133.2, "uvit_imagenet512_l": 76.5, "uvit_imagenet512_h": 133.2,
    "genvit_cifar10": 0.72, "genvit_celeba128": 3.23,
    "dit_s_2": 6.06, "dit_s_4": 1.41, "dit_s_8": 0.36, "dit_b_2": 23.01, "dit_b_4": 5.56, "dit_b_8": 1.42,
    "dit_l_2": 80.71, "dit_l_4": 19.70, "dit_l_8": 5.01, "dit_xl_2": 118.64, "dit_xl_4": 29.05, "dit_xl_8": 7.39,
    "dit_xl_2_512": 524.6,
    "iddpm_cifar10": 8.4, "adm_imagenet64": 109.7, "edm_adm_imagenet64": 109.7, "adm_imagenet128": 307.0,
    "edm_ncsnpp_cifar10": 21.4, "edm_ddpmpp_cifar10": 21.2, "adm_imagenet256": 1120, "adm_imagenet512": 1982,
}  # fmt: skip
SIZES = [name for name in list_models(kind="denoiser") if not name.endswith(("_test", "_tiny", "_2d"))]


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_run_and_work_as_much_as_published(name):
    """On tensors without memory: every published network takes its pictures, and does the published work."""
    with torch.device("meta"):
        network = create_model(name)
    shape = getattr(network, "shape", None) or (3, *2 * [network.name.endswith("256") and 256 or 32])
    text = getattr(network, "text_dim", 0)
    y = torch.empty(1, 77, text) if text else None
    counted = summary(network, shape=shape, y=y, depth=1)
    assert counted.shape == (1, *shape)
    if name in WORK:
        assert counted.flops / 2e9 == pytest.approx(WORK[name], rel=0.02)


@each_model
def test_compiles_into_one_graph(name):
    network, x, time = network_and_inputs(name)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, time), network(x, time))


CXX = torch._inductor.config.cpp.cxx[1]  # what Inductor calls: $CXX, or the usual one of the platform


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(CXX) is None, reason=f"Inductor compiles C++, and there is no {CXX} here: set CXX")
@each_model
def test_inductor_computes_the_same(name):
    """torch.compile as everybody calls it: outputs and gradients in float32, in one graph."""
    network, x, time = network_and_inputs(name, num_classes=3)
    twin, y = copy.deepcopy(network), torch.tensor([0, 1, 3])
    torch._dynamo.reset()
    out, expected = torch.compile(twin, fullgraph=True)(x, time, y), network(x, time, y)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    out.square().mean().backward()
    expected.square().mean().backward()
    for (key, parameter), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        if parameter.requires_grad:
            scale = parameter.grad.abs().max()
            torch.testing.assert_close(other.grad / scale, parameter.grad / scale, rtol=1e-4, atol=2e-5, msg=key)


def test_unet_refuses_sizes_and_channels_that_do_not_fit():
    network = create_model("ddpm_test")
    for shape in ((1, 3, 9, 8), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match="3 channels and sides divisible by 2"):
            network(torch.zeros(shape), torch.zeros(1))
    assert network(torch.zeros(1, 3, 16, 12), torch.zeros(1)).shape == (1, 3, 16, 12)


def test_unet_asks_the_text_after_each_self_attention():
    """Everywhere at 4 pixels, and in the middle; with four heads, where the self-attention has one, as published."""
    network = create_model("ddpm_test", text_dim=6, text_heads=4)
    places = {name.rpartition(".")[0] for name, _ in network.named_modules() if name.endswith(".attention.qkv")}
    listening = {name.rpartition(".")[0] for name, _ in network.named_modules() if name.endswith(".listen.cross")}
    attending = {place.removesuffix(".attention") for place in places}
    assert attending == {place.removesuffix(".listen") for place in listening} and "middle.0" in attending
    assert {name.split(".")[0] for name in attending} == {"down", "middle", "up"}
    heads = [network.get_submodule(f"{name}.listen.cross").num_heads for name in attending]
    assert heads == [4] * len(attending)
    assert not [name for name in create_model("ddpm_test").state_dict() if "listen" in name or "text" in name]
    assert network(torch.randn(2, 3, 8, 8), torch.tensor([5.0]), torch.randn(2, 7, 6)).abs().max() < 1e-3
    with pytest.raises(ValueError, match="divisible by text_heads=5, got 16"):
        create_model("ddpm_test", text_dim=6, text_heads=5)
    with pytest.raises(ValueError, match="set text_dim too"):
        create_model("ddpm_test", pooled_dim=6)


def test_only_q_k_and_v_are_drawn_as_three_maps():
    """A convolution from 8 to 24 channels looks like q, k and v in one; its bound is that of one map all the same."""
    network = create_model("ddpm_test", in_channels=8, ch=24)
    bounds = {name: weight.abs().max().item() for name, weight in network.named_parameters() if weight.ndim > 1}
    assert bounds["conv_in.weight"] == pytest.approx((6 / (9 * 8 + 9 * 24)) ** 0.5, rel=0.02)
    assert bounds["middle.0.attention.qkv.weight"] == pytest.approx((6 / (48 + 48)) ** 0.5, rel=0.02)


def test_unet_starts_as_almost_nothing():
    network = create_model("ddpm_tiny")
    assert network(torch.randn(2, 3, 16, 16), torch.tensor([5.0])).abs().max() < 1e-3


def test_time_features_by_their_definition():
    features = timestep_embedding(torch.tensor([3.0]), 6)
    rates = [1.0, 10000**-0.5, 10000**-1.0]
    angles = 3 * torch.tensor([rates])
    torch.testing.assert_close(features, torch.cat([angles.sin(), angles.cos()], dim=1))
    half = timestep_embedding(torch.tensor([3.0]), 7, order="cos_sin", divisor="half")
    assert half.shape == (1, 7) and half[0, 6] == 0
    torch.testing.assert_close(half[0, :2], torch.cos(torch.tensor([3.0, 3 * 10000 ** (-1 / 3)])))


def test_attention_by_its_definition():
    q, k, v = torch.randn(3, 2, 4, 5, 6).unbind(0)
    weights = (q @ k.transpose(-1, -2) / 6**0.5).softmax(-1)
    torch.testing.assert_close(attention(q, k, v), weights @ v)


def test_registry_names_and_errors():
    assert "ddpm_cifar10" in list_models("ddpm*") and list_models("ddpm*", kind="classifier") == []
    with pytest.raises(ValueError, match="Did you mean 'ddpm_cifar10'"):
        create_model("ddpm_cifar")
    with pytest.raises(ValueError, match="'num_res_blocks'"):
        create_model("ddpm_test", num_resblocks=3)
    with pytest.raises(ValueError, match="belongs to UNet"):
        register_model("ddpm_test", torch.nn.Linear)
    with pytest.raises(ValueError, match="'denoiser'"):
        list_models(kind="denoisr")


def test_the_cifar10_unet_wastes_no_operation():
    network = create_model("ddpm_cifar10").eval()
    with torch.no_grad(), Count() as count:
        network(torch.randn(1, 3, 32, 32), torch.tensor([5.0]))
    assert count.ops <= 290
