"""What a step costs besides the network: tensor operations counted, and nothing read from or copied to the device.

The loop runs on torch's meta device, which has shapes and no values: a scalar that is read raises there, and a tensor
that was made on the host is seen, because it lies on the CPU.
"""

import json

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minidiff import Diffusion, schedules
from minidiff.guidance import classifier_free, condition, dynamic_threshold
from minidiff.prediction import Prediction, clip
from minidiff.samplers import SAMPLERS
from minidiff.spacings import spacing

SHAPE = (3, 32, 32)
STEPS = 12  # from 10 on, multistep solvers keep their order to the end

# Operations in a step, the whole of Diffusion.denoise and clipping included: 4 for each evaluation, the rest is the
# sampler's own. `steps` of the single-step solvers are groups of evaluations.
BUDGETS = {
    "ddim": 6, "ddpm": 8, "dpmpp_2m": 10, "euler_maruyama": 10, "heun": 16,  # what the project promises
    "euler": 6, "midpoint": 13, "reverse_diffusion": 7, "churn": 13, "predictor_corrector": 25, "unipc": 13,
    "dpm_2m": 9, "dpm_3m": 10, "dpm_2s": 17, "dpm_3s": 27,
    "dpmpp_3m": 8, "dpmpp_2s": 13, "dpmpp_3s": 21, "dpmpp_2m_sde": 8,
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts the operations inside `with`, views aside; refuses scalars that are read, host tensors and float64."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.names.append(str(function))
        assert function is not torch.ops.aten._local_scalar_dense.default, "a scalar is read from a tensor"
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "meta", f"{function} with a tensor on the host"
                assert tensor.dtype != torch.float64, f"{function} with float64"
        return result


class NoValues(TorchFunctionMode):
    """Inside `with`, the ways from numbers on the host to a tensor, and back, are closed."""

    CLOSED = {
        torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, *(getattr(torch.Tensor, name) for name in (
            "item", "tolist", "numpy", "cpu", "__float__", "__bool__", "__int__", "__index__"))
    }  # fmt: skip

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in self.CLOSED, f"{function.__name__} in a step"
        return function(*args, **(kwargs or {}))


class Nothing(torch.nn.Module):
    """A network that returns its input, or with a learned range twice as many channels, made beforehand."""

    def __init__(self, out=None):
        super().__init__()
        self.out = out

    def forward(self, x, time, y=None):
        return x if self.out is None else self.out


def make(**options):
    return Diffusion(Nothing(**options), schedules.linear(1000), learned_range=bool(options), shape=SHAPE)


def empty(*shape):
    return torch.empty(shape, device="meta")


def operations(sampler, denoise, **options):
    """The operations of each step: a list for every Step that the sampler yields."""
    schedule, counts = schedules.linear(1000), []
    times = spacing(schedule, STEPS)
    drawn = iter([empty(2, *SHAPE) for _ in range(4 * STEPS)])
    counter = Operations()
    steps = SAMPLERS[sampler](denoise, schedule, empty(2, *SHAPE), times, lambda x: next(drawn), **options)
    with NoValues(), counter:
        for _ in steps:
            counts.append(list(counter.names))
            counter.names.clear()
    return counts


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_operations_of_a_step(sampler):
    counts = operations(sampler, clip(condition(make().denoise)))
    worst = max(counts, key=len)
    assert 4 <= len(worst) <= BUDGETS[sampler], worst


def test_operations_of_a_learned_variance():
    diffusion = make(out=empty(2, 6, *SHAPE[1:]))
    worst = max(operations("ddpm", clip(condition(diffusion.denoise)), variance="learned"), key=len)
    assert 8 <= len(worst) <= 12, worst


@pytest.mark.parametrize("options", [{}, {"interval": (0.2, 0.8)}, {"power": 4.0}])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_guidance_costs_three_operations(sampler, options):
    y = torch.zeros(2, dtype=torch.int64, device="meta")
    plain = operations(sampler, clip(condition(make().denoise, y)))
    guided = operations(sampler, clip(classifier_free(make().denoise, y, 3.0, y, **options)))
    more = [len(b) - len(a) for a, b in zip(plain, guided)]
    assert 0 <= min(more) and 1 <= max(more) <= 3, max(guided, key=len)


def test_thresholding_reads_no_scalar():
    assert max(len(names) for names in operations("ddim", dynamic_threshold(condition(make().denoise)))) > 6


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x * x.mean().item(),
        lambda x: x * float(x.flatten()[0]),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * torch.tensor(2.0, device=x.device),
        lambda x: x * torch.as_tensor([2.0]).to(x.device),
        lambda x: x * torch.from_numpy(np.ones(1, np.float32)).to(x.device),
        lambda x: x * torch.ones(()),
        lambda x: x + torch.ones(3, 32, 32).to(x.device),
        lambda x: x.double().float(),
        lambda x: x.cpu().to(x.device),
    ],
)
def test_a_sampler_that_waits_for_the_device_is_caught(wrong):
    denoise = make().denoise
    with pytest.raises(AssertionError):
        operations("ddim", lambda x, t: Prediction("eps", x, wrong(denoise(x, t).eps), 0.5, 0.5))


def test_an_operation_more_is_counted_and_a_view_is_not():
    plain, other, third = (condition(make().denoise) for _ in range(3))
    more = operations("ddim", lambda x, t: other(-x, t))
    view = operations("ddim", lambda x, t: third(x.view(2, 3, 1024).view(2, 3, 32, 32).detach(), t))
    plain = operations("ddim", plain)
    assert [len(names) for names in more] == [len(names) + 1 for names in plain]
    assert [len(names) for names in view] == [len(names) for names in plain]


def test_the_benchmark_of_the_loops_runs(root, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(root / "benchmarks")
    import sampler_overhead

    rows, whole = sampler_overhead.report(sampler_overhead.measure(repeats=1), repeats=1)
    assert [row["sampler"] for row in rows] == ["ddpm", "ddpm", "ddim", "ddim", "dpmpp_2m", "dpmpp_2m"]
    assert all(row["ratio"] > 0 for row in rows) and json.loads(json.dumps(whole))["diffusers"]
