"""The table of parameters and operations: equal to the counter on a real run, and to the published figures."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import minidiff
from minidiff import create_model, list_models, schedules
from minidiff.flops import summary

SHAPES = {"mlp": (2,)}


@pytest.mark.parametrize("name", list_models("*_test", kind="denoiser"))
def test_agrees_with_the_flop_counter_on_a_real_run(name):
    network = create_model(name, num_classes=3)
    shape = getattr(network, "shape", None) or SHAPES.get(name.split("_")[0], (3, 8, 8))
    # The CPU's own attention kernel is unknown to the counter, the plain one is not
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(2, *shape), torch.zeros(1), torch.zeros(2, dtype=torch.int64))
    result = summary(network, shape=shape, batch=2)
    assert result.flops == counter.get_total_flops() > 0
    assert result.parameters == sum(p.numel() for p in network.parameters())
    top = [row for row in result.rows if "." not in row.name]
    assert sum(row.parameters for row in top) <= result.parameters
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())  # left as it was
    assert not any(module._forward_hooks for module in network.modules())


def test_published_work_and_sizes():
    """10^9 multiply-accumulates of the official U-ViT (facts), and twice that for DDPM's U-Net."""
    for name, macs in (("uvit_cifar10", 12.2), ("uvit_imagenet64_m", 35.2), ("uvit_imagenet256_h", 133.2)):
        with torch.device("meta"):
            network = create_model(name)
        assert summary(network).flops / 2e9 == pytest.approx(macs, abs=0.06), name
    with torch.device("meta"):
        network = create_model("ddpm_cifar10")
    assert summary(network, shape=(3, 32, 32)).flops == pytest.approx(12.44e9, rel=2e-3)


def test_prints_a_table_of_a_diffusion():
    diffusion = minidiff.Diffusion(create_model("ddpm_test"), schedules.cosine(), "v", shape=(3, 8, 8))
    text = str(minidiff.summary(diffusion, depth=1))
    assert "conv_in" in text and "Conv2d" in text and "1x3x8x8" in text and "GMACs" in text
    assert len(str(minidiff.summary(diffusion, depth=3)).splitlines()) > len(text.splitlines())
    with pytest.raises(ValueError, match=r"pass shape=\(C, H, W\)"):
        minidiff.summary(diffusion.network)
    with pytest.raises(ValueError, match="depth must be a whole number of at least 1, got 0"):
        minidiff.summary(diffusion, depth=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_another_precision_are_counted_too(dtype):
    assert summary(create_model("uvit_test").to(dtype)) == summary(create_model("uvit_test"))


def test_a_classifier_takes_no_condition():
    classifier = create_model("classifier_test")
    assert summary(classifier, shape=(3, 16, 16)).parameters == sum(p.numel() for p in classifier.parameters())


def test_a_generator_is_counted_from_its_latent():
    work = summary(create_model("hit_128"), depth=1)
    assert work.shape == (1, 256) and work.parameters == 32_866_627
    assert next(row.flops for row in work.rows if row.name == "dense") == 2 * 256 * 8 * 8 * 512
