"""The parts of the Trainer: learning rates, averages, data of every kind, what a step costs, what is refused."""

import math
import random

import pytest
import torch
from counting import Count
from torch.optim import lr_scheduler

from minidiff import create_model, schedules
from minidiff.datasets.record import InMemory
from minidiff.diffusion import Diffusion
from minidiff.layers import Text
from minidiff.safe_files import read_tensors
from minidiff.training import EMA, Trainer, checkpoints, read_averaged, read_log, train

PICTURES = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def memory(count=50, labels=None):
    labels = torch.arange(count) % 3 if labels is None else labels
    return InMemory(PICTURES[:count], labels, [f"caption {i % 4}" for i in range(count)], ["a", "b", "c"])


def model(name="ddp", **options):
    torch.manual_seed(0)
    network = create_model("ascend_test" if "text_dim" in options else "ddpm_test", **options)
    return Diffusion(network, schedules.cosine(100), "v", shape=(3, 8, 8))


def run(folder=None, data=None, network=None, **options):
    arguments = dict(steps=12, batch_size=8, warmup=3, save_every=4, log_every=1, progress=False)
    return train(network or model(), memory() if data is None else data, folder=folder, **arguments | options)


def weights(diffusion):
    return torch.cat([weight.detach().flatten() for weight in diffusion.parameters()])


# --- learning rates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay, form", [
    (None, lambda done: 1.0),
    ("linear", lambda done: 1 - done),
    ("cosine", lambda done: (1 + math.cos(math.pi * done)) / 2),
])  # fmt: skip
def test_the_rate_of_each_step_is_the_closed_form(decay, form, tmp_path):
    run(tmp_path, decay=decay, lr=2e-3, final_lr=1e-4)
    expected = [2e-3 * (step + 1) / 3 for step in range(3)]
    expected += [1e-4 + (2e-3 - 1e-4) * form((step - 3) / 9) if decay else 2e-3 for step in range(3, 12)]
    assert read_log(tmp_path)["lr"] == pytest.approx(expected, rel=1e-5)


def halving(optimizer):
    return lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


def two_parts(optimizer):
    rise = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    return lr_scheduler.SequentialLR(optimizer, [rise, lr_scheduler.CosineAnnealingLR(optimizer, 7)], [5])


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=12)  # it moves the momentum, too


def of_a_function(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


@pytest.mark.parametrize("decay", [halving, two_parts, one_cycle, of_a_function])
def test_schedulers_of_torch_go_on_where_they_were(decay, tmp_path):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer, rates = torch.optim.AdamW([weight], lr=1e-3), []
    scheduler = decay(optimizer)
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    whole = run(tmp_path / "a", decay=decay)
    assert run(tmp_path / "b", decay=decay, stop_after=0).step == 1
    resumed = run(tmp_path / "b", decay=decay)
    assert resumed.losses.tolist() == whole.losses.tolist()
    logs = [read_log(tmp_path / name)["lr"] for name in "ab"]
    assert logs[0] == logs[1] and logs[0] == pytest.approx(rates, rel=1e-5)


def test_a_scheduler_may_be_changed_and_prolonged(tmp_path):
    run(tmp_path, steps=4)
    run(tmp_path, steps=6, decay=halving, lr=1e-4, resume="changed")
    assert read_log(tmp_path)["lr"][-2:] == pytest.approx([1e-4 / 4, 1e-4 / 4])  # as if from the beginning
    run(tmp_path, steps=8, decay=halving, lr=1e-5, resume="changed")
    assert read_log(tmp_path)["lr"][-2:] == pytest.approx([1e-5 / 8, 1e-5 / 8])


def test_a_scheduler_that_waits_for_a_metric_is_refused():
    with pytest.raises(ValueError, match="ReduceLROnPlateau waits for a metric"):
        run(decay=lr_scheduler.ReduceLROnPlateau)


# --- averages -----------------------------------------------------------------------------------------------------


def test_halflife_is_that_of_edm():
    """beta = 0.5 ** (batch / halflife), the halflife at most 5 % of the images before the step (Karras et al. 2022)."""
    ema = EMA(torch.nn.Linear(1, 1), halflife=(1000, 50))
    assert ema.decay_at(0) == 0.0  # the first update copies
    for step in (1, 7, 100, 399):
        assert ema.decay_at(step) == pytest.approx(0.5 ** (50 / (0.05 * step * 50)))
    assert ema.decay_at(400) == ema.decay_at(10**6) == pytest.approx(0.5 ** (50 / 1000))
    plain = EMA(torch.nn.Linear(1, 1), warmup=False, halflife=(1000, 50))
    assert plain.decay_at(0) == plain.decay_at(9) == pytest.approx(0.5**0.05)


def test_undo_takes_updates_back():
    net = torch.nn.Linear(3, 3)
    ema = EMA(net, 0.9, warmup=False)
    with torch.no_grad():
        net.weight.add_(1.0)
    ema.update(0)
    before = ema.model.weight.clone()
    for step in range(1, 6):  # updates towards weights that stand still
        ema.update(step)
    assert not torch.allclose(ema.model.weight, before, atol=1e-2)
    ema.undo(range(1, 6))
    torch.testing.assert_close(ema.model.weight, before, rtol=0, atol=1e-6)


def test_halflife_in_a_run_is_resumed_and_belongs_to_the_run(tmp_path):
    whole = run(tmp_path / "a", ema_halflife=100)
    run(tmp_path / "b", ema_halflife=100, stop_after=0)
    with pytest.raises(ValueError, match="ema_halflife: 100 there, 200 now"):
        run(tmp_path / "b", ema_halflife=200)
    assert torch.equal(weights(run(tmp_path / "b", ema_halflife=100).ema), weights(whole.ema))
    averaged, about = read_averaged(tmp_path / "a")
    assert about["step"] == 12 and all(torch.equal(averaged[k], v) for k, v in whole.ema.state_dict().items())


def test_averages_may_begin_later(tmp_path):
    run(tmp_path, ema=None, steps=4)
    history = run(tmp_path, ema=0.9, ema_warmup=False, lr=1e-9, resume="changed")
    raw = read_tensors(checkpoints(tmp_path)[0])[0]
    gaps = [(raw[f"model/{k}"] - v).abs().max().item() for k, v in history.ema.state_dict().items()]
    assert max(gaps) < 1e-6  # from the weights of step 4, not from those of the start


# --- resumption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    dict(), dict(amp="bf16"), dict(accumulate=2), dict(parallel="fsdp"), dict(ema=None, clip=None),
    dict(times="logit_normal", decay="linear", weight="min_snr"),
], ids=str)  # fmt: skip
def test_a_run_in_parts_is_the_run_in_one(options, tmp_path):
    options = dict(steps=5) | options
    whole, steps = run(tmp_path / "a", **options), []
    while not steps or steps[-1] < 5:
        part = run(tmp_path / "b", stop_after=0, on_step=lambda step, history: steps.append(step), **options)
    assert steps == [1, 2, 3, 4, 5] and part.losses.tolist() == whole.losses.tolist()
    (ours, _), (theirs, _) = (read_tensors(checkpoints(tmp_path / name)[0]) for name in "ab")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_parts_of_a_run_in_half_precision(tmp_path):
    """The scale of the loss goes on, too."""
    options = dict(amp="fp16", steps=3, save_every=1)
    whole = run(tmp_path / "a", **options)
    for _ in range(3):
        part = run(tmp_path / "b", stop_after=0, **options)
    assert part.losses.tolist() == whole.losses.tolist()
    assert read_tensors(checkpoints(tmp_path / "b")[0])[1]["scaler"]["_growth_tracker"] == 3


# --- data ---------------------------------------------------------------------------------------------------------


class Stream:
    """Fifty pictures in turn, as streams give them; captions are texts of one to five tokens already."""

    def __init__(self, poison=None, text=False):
        self.poison, self.text, self.begins = poison, text, []

    def stream(self, batch_size, seed, position=None, rank=0, world=1, workers=0):
        self.begins.append(position)
        at = position["at"] if position else 0
        while True:
            chosen = [(at + k) % 50 for k in range(batch_size)]
            at += batch_size
            images = (PICTURES[chosen] * 127.5 + 127.5).round().to(torch.uint8)
            if at == batch_size * (self.poison or -1):
                images = PICTURES[chosen] * torch.nan
            captions = [Text(torch.full((1 + i % 5, 8), i / 50)) if self.text else "" for i in chosen]
            yield (images, torch.tensor(chosen) % 3, captions), {"at": at}


def test_a_stream_goes_on_at_its_position(tmp_path):
    whole = run(data=Stream(), network=model(num_classes=3))
    for steps in (5, 9, 12):
        data = Stream()
        part = run(tmp_path, data, model(num_classes=3), steps=steps, resume="changed", decay=None)
        assert data.begins == [{5: None, 9: {"at": 5 * 8}, 12: {"at": 9 * 8}}[steps]]
    plain = run(data=Stream(), network=model(num_classes=3), decay=None)
    assert part.losses.tolist() == plain.losses.tolist() != whole.losses.tolist()


@pytest.mark.parametrize("bad", [5, 6, 8])
def test_a_stopped_run_keeps_the_position_of_its_last_good_step(bad, tmp_path):
    """Also where that step had its checkpoint already, which is then written again (bad=5)."""
    with pytest.raises(FloatingPointError):
        run(tmp_path, Stream(bad), log_every=8)
    assert read_tensors(checkpoints(tmp_path)[0])[1]["position"] == {"at": 8 * (bad - 1)}


def test_positions_are_forgotten_where_nobody_asks_for_them():
    trainer = Trainer(model(), Stream(), steps=30, batch_size=8, log_every=5, progress=False)
    trainer.run()
    assert len(trainer.positions) <= 5


def test_a_stop_after_a_resumed_part_counts_from_the_beginning(tmp_path):
    run(tmp_path, Stream(), steps=5, decay=None)
    with pytest.raises(FloatingPointError, match="step 8: (.|\n)*those after step 7"):
        run(tmp_path, Stream(8), log_every=50, decay=None)
    assert read_tensors(checkpoints(tmp_path)[0])[1]["step"] == 7
    run(tmp_path, Stream(), decay=None)
    with pytest.raises(FloatingPointError, match="step 14: (.|\n)*those after step 13"):
        run(tmp_path, Stream(14), decay=None, steps=20, log_every=50)
    assert [path.stem[-2:] for path in checkpoints(tmp_path)] == ["13", "12"]


class Flipped(torch.utils.data.Dataset):
    """Pictures that are flipped, and made brighter, at random."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        picture = PICTURES[index].flip(-1) if random.random() < 0.5 else PICTURES[index]
        return picture * torch.rand(()), index % 3, ""


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_data_set_draws_is_repeated(workers, tmp_path):
    random.seed(5)
    expected = random.Random(5).random()
    whole = run(tmp_path / "a", Flipped(), steps=6)
    assert random.random() == expected  # the caller's own numbers are as they were
    run(tmp_path / "b", Flipped(), steps=6, stop_after=0, workers=workers)
    random.seed(6)
    assert run(tmp_path / "b", Flipped(), steps=6, workers=workers).losses.tolist() == whole.losses.tolist()


def encode(captions):
    return Text(torch.stack([torch.full((2, 8), float(caption[-1])) for caption in captions]),
                torch.ones(len(captions), 2, dtype=torch.bool))  # fmt: skip


def test_text_reaches_the_network_from_every_kind_of_data():
    class Records(torch.utils.data.Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            return memory()[index]

    runs = [run(data=data, network=model(text_dim=8), steps=3, p_uncond=0.3, encode=encode).losses.tolist()
            for data in (memory(), Records())]  # fmt: skip
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)
    other = run(network=model(text_dim=8), steps=3, p_uncond=0.3, encode=lambda texts: encode(["1"] * len(texts)))
    assert runs[0] != other.losses.tolist()
    streamed = run(data=Stream(text=True), network=model(text_dim=8), steps=3)
    assert torch.isfinite(streamed.losses).all()
    with pytest.raises(ValueError, match="takes text and the data set gives words: pass encode="):
        run(data=memory(), network=model(text_dim=8))


def test_few_pictures():
    assert torch.isfinite(run(data=memory(1), batch_size=8).losses).all()
    assert torch.isfinite(run(data=memory(5), batch_size=64, steps=3).losses).all()


class Empty(torch.utils.data.Dataset):
    def __len__(self):
        return 0


class Nothing(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("data, words", [
    (memory(0), "data set is empty"), (Empty(), "data set is empty"), (Nothing(), "no full batch"),
], ids=["memory", "records", "stream"])  # fmt: skip
def test_an_empty_data_set(data, words):
    with pytest.raises(ValueError, match=words):
        run(data=data)


@pytest.mark.parametrize("options, words", [(dict(num_classes=3), "labels"), (dict(text_dim=8), "captions")])
def test_a_condition_that_the_data_set_lacks(options, words):
    class Bare:
        def images(self):
            return PICTURES

    with pytest.raises(ValueError, match=f"is conditioned on {words}, and the data set has none"):
        run(data=Bare(), network=model(**options), encode=encode)
    assert run(data=Bare(), steps=1).step == 1


def test_labels_out_of_range_are_found_before_the_first_step():
    """Wherever in the data they are."""
    labels = torch.zeros(50, dtype=torch.int64)
    steps = []
    for place, value in ((49, 7), (20, -1)):
        wrong = labels.clone()
        wrong[place] = value
        with pytest.raises(ValueError, match="labels must be from 0 to 2 .*got"):
            run(data=memory(labels=wrong), network=model(num_classes=3), on_step=lambda step, _: steps.append(step))
    assert steps == []
    assert run(data=memory(labels=labels), network=model(num_classes=3), steps=1).step == 1


@pytest.mark.parametrize("options, words", [
    (dict(keep=0), "keep=0.*from 1 on"),
    (dict(save_every=0), "save_every=0.*from 1 on"),
    (dict(log_every=0), "log_every=0.*from 1 on"),
    (dict(batch_size=8.0), "batch_size=8.0.*whole number"),
])  # fmt: skip
def test_bad_numbers(options, words, tmp_path):
    run(tmp_path, steps=4)
    with pytest.raises(ValueError, match=words):
        run(tmp_path, **dict(steps=4) | options)
    assert len(checkpoints(tmp_path)) == 1


# --- operations ---------------------------------------------------------------------------------------------------


def test_a_step_costs_few_operations_more_than_the_bare_loop():
    """The same step as in notebook 03, with averages: gather, times, noise, loss, backward pass, clip, AdamW, EMA."""
    diffusion, counts = model(num_classes=3), []
    data, ema = memory(), EMA(diffusion)
    images, labels = data.images(), data.labels
    optimizer = torch.optim.AdamW(diffusion.parameters(), lr=1e-3, fused=True)
    order = torch.randperm(50)
    with Count() as count:
        for step in range(3):
            chosen = order[step * 8:(step + 1) * 8]
            loss = diffusion.loss(images[chosen], labels[chosen], p_uncond=0.1).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(step)
            counts.append(count.ops)
    bare, counts = counts[2] - counts[1], []
    with Count() as count:
        run(data=memory(), network=model(num_classes=3), p_uncond=0.1, log_every=100,
            on_step=lambda step, _: counts.append(count.ops))  # fmt: skip
    trainer = counts[5] - counts[4]  # where no row of the log and no new epoch is due
    print(f"operations in a step: {trainer} with the Trainer, {bare} in the bare loop")
    assert 0 < trainer - bare <= 16  # the guard's 11 and the record's 2 among them
