"""Training on the device that is here: `make test-gpu` on a machine with CUDA; on a CPU the same with less to see."""

import contextlib

import pytest
import torch

from minidiff import create_model, sample, schedules
from minidiff.datasets.record import InMemory
from minidiff.diffusion import Diffusion
from minidiff.training import Trainer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NETWORKS = ("uvit_test", "ddpm_test", "dit_test", "ascend_test")[: 4 if DEVICE == "cuda" else 1]


def model(name="uvit_test"):
    torch.manual_seed(0)
    network = create_model(name, num_classes=3)
    return Diffusion(network, schedules.cosine(), "v", shape=getattr(network, "shape", (3, 8, 8)))


def pictures(shape, count=64):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, *shape, generator=generator) * 2 - 1
    return InMemory(images, torch.arange(count) % 3, [""] * count, ["a", "b", "c"])


class Records(torch.utils.data.Dataset):
    """The same one by one, as bytes would come from a disk."""

    def __init__(self, memory):
        self.memory = memory

    def __len__(self):
        return len(self.memory)

    def __getitem__(self, index):
        return self.memory[index]


def run(name="uvit_test", steps=12, records=False, **options):
    diffusion = model(name)
    data = pictures(diffusion.shape)
    options = dict(batch_size=16, warmup=2, p_uncond=0.1, progress=False, device=DEVICE, log_every=50) | options
    return Trainer(diffusion, Records(data) if records else data, steps=steps, **options).run()


@contextlib.contextmanager
def nothing_waits():
    """Inside, an operation for which the host waits for the GPU is an error."""
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [
    {}, dict(records=True), dict(amp="bf16"), dict(accumulate=2), dict(checkpoint_activations=True), dict(clip=None),
], ids=lambda options: "-".join(options) or "plain")  # fmt: skip
def test_no_step_waits_for_the_device(name, options):
    """From step 33 to step 48 nothing is due: no log, no checkpoint."""
    with contextlib.ExitStack() as stack:

        def on_step(step, history):
            if step == 33:
                stack.enter_context(nothing_waits())
            if step == 48:
                stack.close()

        assert run(name, steps=50, on_step=on_step, **options).step == 50


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [
    dict(amp="bf16"), dict(amp="fp16"), dict(checkpoint_activations=True), dict(accumulate=4),
], ids=lambda options: "-".join(map(str, options.values())))  # fmt: skip
def test_each_way_to_spare_memory_trains_alike(name, options):
    plain, other = run(name), run(name, **options)
    tolerance = 0.02 if "amp" in options else 1e-4
    assert torch.allclose(plain.losses, other.losses, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(DEVICE == "cpu", reason="there it takes minutes, and test_backbones.py has it as a slow test")
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_training_is_the_same(name):
    assert torch.allclose(run(name).losses, run(name, compile=True).losses, rtol=1e-3, atol=1e-3)


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    class Stop(Exception):
        pass

    def stop(step, history):
        if step == 8:
            raise Stop

    with pytest.raises(Stop):
        run(folder=tmp_path, save_every=6, on_step=stop)
    resumed, whole = run(folder=tmp_path, save_every=6), run()
    assert torch.allclose(resumed.losses, whole.losses, rtol=1e-4, atol=1e-5)
    pairs = zip(resumed.ema.parameters(), whole.ema.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-4


def test_samples_come_from_the_device_and_are_finite():
    drawn = sample(run().ema, 4, y=[0, 1, 2, 0], guidance=2.0, steps=4, progress=False)
    assert drawn.device.type == DEVICE and drawn.isfinite().all()
