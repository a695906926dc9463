"""The explorer of attention maps, on networks with extra tokens before the patches, after them, and with none."""

import matplotlib.figure
import pytest
import torch

from minidiff import Diffusion, create_model, record_attention, schedules
from minidiff.course.attention import explore_attention
from minidiff.layers import Text
from minidiff.samplers import seeded_noise


class Blind(torch.nn.Module):
    def forward(self, x, time, y=None):
        return x


def tie(name, **overrides):
    torch.manual_seed(0)
    network = create_model(name, **overrides)
    return Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8))


@pytest.mark.parametrize(
    "name, overrides",
    [("uvit_test", {}), ("uvit_test", {"num_classes": 3}), ("iuvit_test", {}), ("dit_test", {}),
     ("dit_test", {"num_classes": 3, "conditioning": "in_context"}), ("genvit_test", {})],
)  # fmt: skip
def test_every_flat_transformer_can_be_explored(name, overrides):
    diffusion = tie(name, **overrides)
    y = torch.tensor([1]) if overrides.get("num_classes") else None
    explorer = explore_attention(diffusion, torch.zeros(diffusion.shape), y, times=[0.2, 0.8])
    assert isinstance(explorer.result, matplotlib.figure.Figure)
    assert explorer.values["time"] == 0.8 and explorer.values["block"] == 0
    side = diffusion.shape[1] // 2
    for choice in ({"block": 1}, {"head": 1}, {"time": 0.2}, {"patch": side**2 - 1}):
        assert len(explorer.function(**choice).axes) == 5  # three panels and two scales of colour


def test_what_is_drawn_is_the_map_that_was_recorded():
    diffusion = tie("uvit_test")
    picture = torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
    figure = explore_attention(diffusion, picture, times=[0.5], seed=3).function(block=1, head=1, patch=6)
    looks = [axes.images[0].get_array() for axes in figure.axes[1:3]]
    x_t = diffusion.forward_process(picture, 0.5, seeded_noise([3])(picture))
    with record_attention(diffusion.network) as maps, torch.no_grad():
        diffusion.denoise(x_t, 0.5)
    weights = list(maps.values())[1][0][0, 1]  # second block, second head; the first of the 17 tokens is the time
    assert torch.allclose(torch.tensor(looks[0]), weights[1 + 6, 1:].view(4, 4))
    assert torch.allclose(torch.tensor(looks[1]), weights[1:, 1:].mean(0).view(4, 4))
    share = weights[1 + 6, 0].item()
    assert f"{share:.0%} to other tokens" in figure.axes[1].get_title()


def test_attention_to_a_text_is_left_out():
    diffusion = tie("iuvit_test", text_dim=8)
    text = Text(torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool))
    explorer = explore_attention(diffusion, torch.zeros(diffusion.shape), text, times=[0.5])
    assert explorer.result is not None


def test_what_cannot_be_explored_is_refused():
    with pytest.raises(ValueError, match="one picture"):
        explore_attention(tie("dit_test"), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="DiffiT attends in windows"):
        explore_attention(tie("diffit_test"), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="no self-attention"):
        blind = Diffusion(Blind(), schedules.cosine(), "v", shape=(3, 8, 8))
        explore_attention(blind, torch.zeros(1, 3, 8, 8))
