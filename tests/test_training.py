"""The training loop: that it learns, averages, draws its batches as it says, and refuses what cannot work."""

import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minidiff import create_model, schedules
from minidiff.checkpoints import from_pretrained, read_card
from minidiff.diffusion import Diffusion
from minidiff.training import EMA, learning_rate, train
from minidiff.training.data import batches, shuffled, stream_seed
from minidiff.training.world import World

ONE = World(torch.device("cpu"))


class Net(nn.Module):
    """A few weights, dropout and a buffer: enough for a loop."""

    def __init__(self, num_classes=0):
        super().__init__()
        self.num_classes = num_classes
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.dropout, self.labels = nn.Dropout(0.1), nn.Embedding(num_classes + 1, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, time, y=None):
        self.calls += self.training
        h = self.first(x) + (time / 1000).view(-1, 1, 1, 1)
        if self.num_classes:
            h = h + self.labels(y)[:, :, None, None]
        return self.last(self.dropout(torch.tanh(h)))

    def null(self, y):
        return torch.full_like(y, self.num_classes)


class Pictures:
    """Forty grey pictures whose brightness is their number."""

    def __init__(self, count=40):
        self.labels = torch.arange(count)
        self.brightness = torch.linspace(-1, 1, count)

    def images(self):
        return self.brightness.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


class Records(torch.utils.data.Dataset):
    """The same pictures one by one."""

    def __init__(self):
        self.all = Pictures()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.all.images()[index], int(self.all.labels[index]), "grey"


class Stream(torch.utils.data.IterableDataset):
    """The same pictures in order."""

    def __iter__(self):
        return iter([Records()[index] for index in range(40)])


def model(num_classes=0, seed=0):
    torch.manual_seed(seed)
    return Diffusion(Net(num_classes), schedules.cosine(), "v", shape=(3, 8, 8))


def short(diffusion, dataset=None, **options):
    return train(diffusion, dataset or Pictures(), **dict(steps=6, batch_size=8, warmup=2, progress=False) | options)


def weights(diffusion):
    return torch.cat([weight.detach().flatten() for weight in diffusion.parameters()])


def test_loss_falls_and_history_tells():
    history = short(model(), steps=200, lr=1e-2)
    assert history.losses.shape == (200,) and history.step == 200
    assert history.losses[-20:].mean() < 0.7 * history.losses[:5].mean()
    centres, losses = history.loss_by_time()
    assert centres[0] == pytest.approx(0.025) and losses.shape == (20,) and torch.isfinite(losses).all()
    assert history.time_count.sum() == 200 * 8
    assert history.images_per_second > 0 and history.seconds > 0
    assert "steps=200" in repr(history)


def test_same_seed_same_weights_and_the_callers_random_state_is_kept():
    first, second, other = model(), model(), model()
    torch.manual_seed(5)
    short(first)
    after = torch.rand(1)
    torch.manual_seed(6)
    short(second)
    short(other, seed=1)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_the_loop_is_adamw_on_the_mean_loss():
    """Two steps by hand, without the loop's machinery, give the same weights."""
    mine, theirs = model(), model()
    short(theirs, steps=2, warmup=0, decay=None, lr=1e-2, weight_decay=0.1, clip=0.5)
    optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    indices, images = shuffled(40, 8, 0), Pictures().images()
    mine.train()
    for step in range(2):
        generator = torch.Generator().manual_seed(stream_seed(0, "noise", step))
        torch.manual_seed(stream_seed(0, "layers", step))
        optimizer.zero_grad()
        mine.loss(images[indices(step)], generator=generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(mine.parameters(), 0.5)
        optimizer.step()
    torch.testing.assert_close(weights(mine), weights(theirs), rtol=1e-5, atol=1e-6)


def test_every_epoch_sees_every_picture_once():
    indices = shuffled(10, 4, seed=3)
    seen = torch.cat([indices(step) for step in range(5)])  # two epochs
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(shuffled(10, 4, seed=3)(3), indices(3))  # without having seen the steps before
    assert shuffled(3, 8, seed=0)(1).shape == (8,)  # a batch of more than two epochs


@pytest.mark.parametrize("dataset", [Pictures(), Records(), Stream()], ids=["memory", "records", "stream"])
def test_batches_from_the_middle_are_those_of_the_whole(dataset):
    whole = batches(dataset, 8, 0, 0, ONE, Net(10))
    pairs = [next(whole) for _ in range(9)]
    part = batches(dataset, 8, 0, 7, ONE, Net(10))
    for images, labels, _ in pairs[7:]:
        some, theirs, _ = next(part)
        assert torch.equal(images, some) and torch.equal(labels, theirs)
        assert torch.equal(images[:, 0, 0, 0], Pictures().brightness[labels])  # each picture with its own label


def test_memory_and_loader_give_the_same_order():
    memory, loader = (next(batches(data, 8, 0, 0, ONE, Net(10)))[1] for data in (Pictures(), Records()))
    assert torch.equal(memory, loader)
    assert next(batches(Pictures(), 8, 0, 0, ONE, Net(0)))[1] is None


def test_labels_reach_the_network_and_are_dropped():
    seen = []

    class Spy(Net):
        def forward(self, x, time, y=None):
            seen.append(y)
            return super().forward(x, time, y)

    diffusion = Diffusion(Spy(40), schedules.cosine(), "v", shape=(3, 8, 8))
    short(diffusion, steps=20, p_uncond=0.5)
    dropped = (torch.cat(seen) == 40).float().mean()
    assert 0.3 < dropped < 0.7


def test_learning_rate():
    rates = [learning_rate(step, 100, 1.0, warmup=10, final_lr=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1, abs=1e-3)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert learning_rate(99, 100, 1.0, warmup=10, decay=None) == 1.0


def test_ema_is_the_weighted_mean_of_the_weights():
    net = nn.Linear(1, 1)
    net.register_buffer("count", torch.zeros(()))
    net.bias.requires_grad_(False)
    ema, expected = EMA(net, decay=0.9, warmup=False), net.weight.item()
    for step in range(5):
        with torch.no_grad():
            net.weight.fill_(step)
            net.bias.fill_(step)
            net.count.fill_(step)
        ema.update(step)
        expected = 0.9 * expected + 0.1 * step
    assert ema.model.weight.item() == pytest.approx(expected)
    assert ema.model.count == ema.model.bias == 4  # buffers and fixed weights are copied
    assert not ema.model.training and not ema.model.weight.requires_grad


def test_ema_warmup_and_swap():
    net = nn.Linear(1, 1)
    ema = EMA(net, decay=0.99)
    assert ema.decay_at(0) == 0.1 and ema.decay_at(90) == 0.91 and ema.decay_at(10**6) == 0.99
    before = net.weight.item()
    with torch.no_grad():
        net.weight.fill_(7.0)
    with ema.swapped_in(net):
        assert net.weight.item() == before
    assert net.weight.item() == 7.0 and ema.model.weight.item() == before
    ema.update(0)
    assert ema.model.weight.item() == pytest.approx(0.1 * before + 0.9 * 7.0)


def test_history_holds_the_averaged_model():
    diffusion = model()
    assert short(model(), ema=None).ema is None
    history = short(diffusion, steps=30, lr=1e-2)
    assert history.ema is not diffusion and not history.ema.training and not diffusion.training
    assert not torch.equal(weights(history.ema), weights(diffusion))
    assert history.ema.denoise(torch.zeros(1, 3, 8, 8), 0.5).x0.shape == (1, 3, 8, 8)


def test_nothing_is_read_from_the_device_between_reports():
    """No `item()` and no tensor made from host data: on a GPU each would stall the loop."""
    read = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                read.append(function)
            return function(*args, **kwargs or {})

    counts = []
    with Count():
        short(model(), steps=90, log_every=30, on_step=lambda step, history: counts.append(len(read)))
    reading = [step for step, (before, after) in enumerate(zip(counts, counts[1:]), start=1) if after != before]
    assert reading == [1, 2, 4, 8, 16, 30, 60]  # one question after each: did anything break?
    assert counts[-1] == counts[0] + len(reading)


def test_on_step_stop_after_and_compile():
    steps = []
    short(model(), on_step=lambda step, history: steps.append((step, history.step)))
    assert steps == [(n, n) for n in range(1, 7)]
    assert short(model(), steps=10**6, stop_after=0.2).step < 10**6
    eager, compiled = model(), model()
    calls = []
    compiled.network.compile = lambda: calls.append("compile")
    short(eager)
    short(compiled, compile=True)
    assert calls == ["compile"] and torch.equal(weights(eager), weights(compiled))


@pytest.mark.parametrize("options, words", [
    (dict(steps=0), "steps=0.*from 1 on"),
    (dict(batch_size=0), "batch_size=0"),
    (dict(lr=-1.0), "lr=-1.0.*above 0"),
    (dict(decay="step"), "decay='step'.*cosine"),
    (dict(p_uncond=2), "p_uncond=2"),
    (dict(ema=1.0), "ema=1.0.*0.999"),
    (dict(batch_size=8, accumulate=3), "batch_size=8 cannot be divided.*accumulate=3.*multiple of 3"),
    (dict(accumulate=0), "accumulate=0"),
    (dict(parallel="dp"), "parallel='dp'.*'ddp'.*'fsdp'"),
    (dict(processes=2), "processes=2, but 1 is running.*torchrun --nproc-per-node 2"),
    (dict(checkpoint_activations=True), "Net has no attribute `checkpoint`"),
    (dict(track=["mlflow"], folder="x"), "mlflow"),
    (dict(track=["wandb"]), "needs a folder"),
    (dict(ema_halflife=-1), "ema_halflife=-1"),
    (dict(amp="int8"), "amp='int8'"),
])
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        short(model(), **options)


def test_a_loss_that_is_not_finite_stops_the_run():
    diffusion = model()
    diffusion.network.last.bias.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="lower lr"):
        short(diffusion)


def test_progress_in_a_log_is_short_lines(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have brought it
    short(model(), steps=50, progress=True)
    text = capsys.readouterr().err
    assert "\r" not in text and text.count("\n") <= 3
    assert re.search(r"50/50 \[.*loss \d\.\d+, \d+ images/s", text)


def test_progress_in_a_notebook_stays_on_its_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    short(model(), steps=50, progress=True)
    text = capsys.readouterr().err
    assert len(text) < 1000 and text.isascii()


@pytest.mark.parametrize(
    "name, size", [("emoji-unet", 16), ("shapes-unet", 16), ("emoji-unet-32", 32), ("shapes-unet-32", 32)]
)
def test_the_tool_that_makes_the_shipped_weights(name, size, tmp_path, monkeypatch, capsys):
    """--smoke walks the whole path: train, checkpoint, export; --export writes the same file again."""
    tool = Path(__file__).parent.parent / "tools" / "train_weights.py"
    folders = ["--folder", str(tmp_path / "run"), "--out", str(tmp_path / "weights")]
    monkeypatch.setattr(sys, "argv", [str(tool), name, "--smoke", *folders])
    runpy.run_path(str(tool), run_name="__main__")
    assert f"| `{name}` |" in capsys.readouterr().out
    first = (tmp_path / "weights" / "model.safetensors").read_bytes()
    assert len(first) < 5e6
    card = read_card(tmp_path / "weights")
    assert card["steps"] == 6 and card["loss"] > 0 and name in card["command"] and card["dataset"]["size"] == size
    monkeypatch.setattr(sys, "argv", [str(tool), name, "--export", *folders])
    runpy.run_path(str(tool), run_name="__main__")
    assert (tmp_path / "weights" / "model.safetensors").read_bytes() == first
    diffusion = from_pretrained(tmp_path / "weights")
    assert diffusion.shape == (3, size, size) and diffusion.network.num_classes in (10, 24)


def test_every_run_checks_its_data():
    diffusion = Diffusion(create_model("ddpm_test"), schedules.cosine(), "v", shape=(3, 8, 8))

    class Data:
        labels = torch.zeros(4, dtype=torch.long)

        def __init__(self, images):
            self.images = lambda: images

    train(diffusion, Data(torch.zeros(4, 3, 8, 8)), steps=1, batch_size=2, progress=False)
    with pytest.raises(ValueError, match="from 200 to 200"):
        train(diffusion, Data(torch.full((4, 3, 8, 8), 200.0)), steps=1, batch_size=2, progress=False)
