"""Networks whose time runs from noise to data: converted, one step from noise arrives where it should."""

import pytest
import torch
from torch import nn

from minidiff import schedules
from minidiff.official.flow import from_data_to_noise
from minidiff.oracles import Gaussian
from minidiff.samplers import euler, heun

MEAN, VARIANCE = 0.7, 0.3


class OfficialFlow(nn.Module):
    """E[data - noise | x] at time s from 0 (noise) to 1 (data), for data N(MEAN, VARIANCE), times 999 if so fed."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.seen = scale, []
        self.all_modules = nn.ModuleList([nn.Identity(), nn.Linear(1, 1)])
        nn.init.ones_(self.all_modules[1].weight)
        nn.init.zeros_(self.all_modules[1].bias)

    def forward(self, x, time, y=None):
        s = (time / self.scale)[:, None]
        self.seen.append(s.mean().item())
        gain = (s * VARIANCE - (1 - s)) / (s**2 * VARIANCE + (1 - s) ** 2)  # covariance with data - noise over variance
        return self.all_modules[1](MEAN + gain * (x - s * MEAN))


@pytest.mark.parametrize("family, scale", [("sit", 1.0), ("rectified_flow", 999.0)])
def test_converted_flow_goes_the_right_way(family, scale):
    network = OfficialFlow(scale).double()
    diffusion = from_data_to_noise(network, family, last="all_modules.1", shape=(1,))
    exact = Gaussian(torch.tensor([MEAN]).double(), VARIANCE).denoiser(schedules.flow())
    x = torch.randn(64, 1, dtype=torch.float64)
    for t in (1.0, 0.6, 0.1):
        torch.testing.assert_close(diffusion.denoise(x, t).x0, exact(x, t).x0, atol=1e-6, rtol=1e-6)
    (step,) = euler(diffusion.denoise, diffusion.schedule, x, [1.0, 0.0])
    torch.testing.assert_close(step.x, torch.full_like(x, MEAN), atol=1e-6, rtol=0)  # one step reaches the mean
    *_, last = heun(diffusion.denoise, diffusion.schedule, x, torch.linspace(1, 0, 101).tolist())
    assert last.x.mean().item() == pytest.approx(MEAN + VARIANCE**0.5 * x.mean().item(), abs=2e-3)
    assert last.x.std().item() == pytest.approx(VARIANCE**0.5 * x.std().item(), rel=5e-3)
    assert network.seen[0] == pytest.approx(0.0, abs=1e-6)  # its own time of pure noise comes first


def test_last_layer_is_found_or_named():
    network = OfficialFlow(999.0)
    from_data_to_noise(network, "rectified_flow", shape=(1,))
    assert network.all_modules[1].weight.item() == -1
    with pytest.raises(ValueError, match="unknown last layer 'final_layer.linear'.*all_modules.1"):
        from_data_to_noise(network, "sit", shape=(1,))
    with pytest.raises(ValueError, match="unknown family of flows 'siT'.*'sit'"):
        from_data_to_noise(network, "siT", shape=(1,))
