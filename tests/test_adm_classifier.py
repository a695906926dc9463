"""ADM's noisy classifier: its pools, and its gradient as guidance."""

import pytest
import torch
from test_adm import inputs, network_of

from minidiff import create_model, schedules
from minidiff.attention_maps import record_attention
from minidiff.backbones.adm_classifier import POOLS
from minidiff.guidance import gradient_of
from minidiff.scorers import Classifier


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


def test_the_map_of_the_attention_pool():
    network, (x, time) = network_of("adm_classifier_test"), inputs()
    with torch.no_grad(), record_attention(network) as maps:
        network(x, time)
    assert maps["head"][0].shape == (3, 2, 1, 17)  # the mean asks itself and 16 places
