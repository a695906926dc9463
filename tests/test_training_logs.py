"""What a run writes beside its checkpoints: log.csv, evaluations.csv, sheets of samples, TensorBoard."""

import builtins
import csv
import errno
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from minidiff import create_model, schedules
from minidiff.datasets.record import InMemory
from minidiff.diffusion import Diffusion
from minidiff.layers import Text
from minidiff.training import distance_to, read_log, train
from minidiff.training.logs import COLUMNS, Log

PICTURES = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
DATA = InMemory(PICTURES, torch.arange(48) % 3, [f"caption {i % 3}" for i in range(48)], ["a", "b", "c"])


def run(folder, network="ddpm_test", **options):
    model = options.pop("model", {"num_classes": 3})
    torch.manual_seed(0)
    diffusion = Diffusion(create_model(network, **model), schedules.cosine(100), "v", shape=(3, 8, 8))
    arguments = dict(steps=25, batch_size=8, warmup=3, log_every=10, save_every=100, progress=False)
    return train(diffusion, DATA, folder=folder, **arguments | options)


def test_rows_and_columns(tmp_path):
    history = run(tmp_path)
    with (tmp_path / "log.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header == COLUMNS and header[:6] == ["step", "loss", "lr", "gradient_norm", "images_per_second", "seconds"]
    assert header[6:] == [f"loss_at_{0.025 + 0.05 * k:.3f}" for k in range(20)] and len(rows[0]) == 26
    log = read_log(tmp_path)
    assert log["step"] == [1, 2, 4, 8, 10, 20, 25]  # 1, 2, 4, ..., every log_every, and the last
    starts = [0, 1, 2, 4, 8, 10, 20]
    means = [history.losses[first:int(last)].mean().item() for first, last in zip(starts, log["step"])]
    assert log["loss"] == pytest.approx(means, rel=1e-4)
    assert all(norm > 0 for norm in log["gradient_norm"]) and sorted(log["seconds"]) == log["seconds"]


def test_the_columns_by_noise_level_are_the_losses_there(tmp_path):
    """Weighted by how many times fell into each, they are the loss of the row."""
    history = run(tmp_path, steps=10, log_every=1)
    log = read_log(tmp_path)
    levels = torch.tensor([log[name] for name in COLUMNS[6:]])  # (20, 10)
    assert 0.3 < levels.isnan().float().mean() < 0.9  # 8 times in 20 bins
    whole = history.loss_by_time()[1]
    seen = ~levels.isnan().all(1)
    assert torch.equal(seen, ~whole.isnan())
    low, high = levels.nan_to_num(math.inf).amin(1), levels.nan_to_num(-math.inf).amax(1)
    assert ((low <= whole + 1e-4) & (whole <= high + 1e-4))[seen].all()
    assert levels[:3].nanmean() > 2 * levels[-3:].nanmean() or levels[-3:].nanmean() > 2 * levels[:3].nanmean()


def test_evaluations(tmp_path):
    seen = []

    def evaluate(diffusion):
        seen.append(diffusion)
        assert not diffusion.training
        return {"one": len(seen) / 3, "two": float(len(seen))}

    history = run(tmp_path, evaluate=evaluate, evaluate_every=10)
    assert (tmp_path / "evaluations.csv").read_text() == "step,one,two\n10,0.333333,1\n20,0.666667,2\n25,1,3\n"
    assert all(one is history.ema for one in seen)
    with (tmp_path / "evaluations.csv").open("a") as file:
        file.write("26,5,")  # a kill cut this one
    run(tmp_path, steps=30, evaluate=evaluate, evaluate_every=10, resume="changed")
    assert read_log(tmp_path, "evaluations.csv") == {"step": [10, 20, 25, 30], "one": [0.333333, 0.666667, 1, 1.33333],
                                                     "two": [1, 2, 3, 4]}  # fmt: skip


def test_evaluations_of_other_names(tmp_path):
    """A function that gives more, or in another order, does not shift the columns of the rows before."""
    for step, values in ((1, {"a": 1.0}), (2, {"b": 2.0, "a": 3.0}), (3, {"b": 4.0})):
        Log(tmp_path, step=step).evaluation(step, values)
    log = read_log(tmp_path, "evaluations.csv")
    assert log["step"] == [1, 2, 3] and log["a"] == pytest.approx([1, 3, math.nan], nan_ok=True)
    assert log["b"] == pytest.approx([math.nan, 2, 4], nan_ok=True)


def test_distance_to_the_data(tmp_path):
    features = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    evaluate = distance_to(DATA, features, 12, steps=3)
    run(tmp_path, evaluate=evaluate, evaluate_every=20, steps=20)
    log = read_log(tmp_path, "evaluations.csv")
    assert log["step"] == [20] and 0 < log["frechet"][0] < 100 and set(log) == {"step", "frechet", "kernel"}


def test_no_folder_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(None, steps=4, evaluate=lambda diffusion: {"one": 1.0}, sample_every=2)
    assert list(tmp_path.iterdir()) == []


def cells(path):
    """(columns, rows) of a sheet of pictures, enlarged 8 times, 4 pixels apart."""
    with Image.open(path) as image:
        image.load()
        return tuple((side + 4) / (8 * 8 + 4) for side in image.size)


@pytest.mark.parametrize("sampling, shape", [
    (dict(steps=2), (4, 4)), (dict(steps=2, num=6), (2, 3)), (dict(steps=1, num=1, guidance=2.0, y=1), (1, 1)),
])  # fmt: skip
def test_sheets_of_samples(sampling, shape, tmp_path):
    run(tmp_path, steps=5, sample_every=2, sampling=sampling)
    sheets = sorted((tmp_path / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == [f"step-{step:08d}.png" for step in (2, 4, 5)]
    assert {cells(sheet) for sheet in sheets} == {shape}


def test_sheets_of_prompts(tmp_path):
    def encode(captions):
        return Text(torch.stack([torch.full((2, 8), float(caption[-1])) for caption in captions]))

    sampling = dict(steps=2, prompts=["a 1", "a 2", "a 3"])
    arguments = dict(network="ascend_test", model={"text_dim": 8}, steps=2, encode=encode, sample_every=2)
    run(tmp_path / "a", sampling=sampling, **arguments)
    assert cells(tmp_path / "a" / "samples" / "step-00000002.png") == (2, 2)
    run(tmp_path / "b", sampling=dict(steps=2), **arguments)  # of the captions at hand
    assert cells(tmp_path / "b" / "samples" / "step-00000002.png") == (3, 3)
    places = arguments | dict(network="uvit_test", model={"text_dim": 8, "num_text_tokens": 1})
    run(tmp_path / "c", sampling=sampling, **places)  # texts longer than that are cut, as in training
    assert cells(tmp_path / "c" / "samples" / "step-00000002.png") == (2, 2)
    with pytest.raises(ValueError, match=r"prompts=\['a 1', 'a 2', 'a 3'\] need encode="):
        run(tmp_path / "d", sampling=sampling, **arguments | dict(encode=None))
    assert not (tmp_path / "d").exists()


def test_tensorboard(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, track=["tensorboard"], evaluate=lambda diffusion: {"one": 1.5}, evaluate_every=20)
    [file] = [path for path in tmp_path.rglob("events.out.tfevents.*") if path.parent.parent == tmp_path]
    events = event_accumulator.EventAccumulator(str(file))
    events.Reload()
    scalars = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    log = read_log(tmp_path)
    assert [step for step, _ in scalars["loss"]] == log["step"]
    assert [value for _, value in scalars["loss"]] == pytest.approx(log["loss"], rel=1e-4)
    assert scalars["one"] == [(20, 1.5), (25, 1.5)] and "step" not in scalars
    assert {"lr", "gradient_norm", "loss_at_0.525"} <= set(scalars)


def test_trackers_that_are_not_here(tmp_path, monkeypatch):
    true_import = builtins.__import__

    def no_wandb(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_wandb)
    with pytest.raises(ImportError, match="track='wandb' needs a package that is not here: pip install wandb"):
        run(tmp_path, track=["wandb"])
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord'.*tensorboard"):
        run(tmp_path, track=["tensorbord"])
    with pytest.raises(ValueError, match="needs a folder"):
        run(None, track=["tensorboard"])


# --- logs that were cut -------------------------------------------------------------------------------------------


def row(log, step):
    log.row(step=step, loss=float(step), lr=0.1, gradient_norm=1.0, images_per_second=2.0, seconds=3.0,
            loss_by_time=[math.nan] * 20)  # fmt: skip


def test_a_log_that_a_kill_cut_anywhere(tmp_path):
    """Whole rows up to the step stay, the rest goes, and there is always one header."""
    for step in (1, 2, 4):
        row(Log(tmp_path, step=step - 1), step)
    row(Log(tmp_path, step=4), 9)  # of a step that is made again
    text = (tmp_path / "log.csv").read_text()
    ends = [place + 1 for place, character in enumerate(text) if character == "\n"][1:4]
    assert len(text.splitlines()) == 5 and ends[2] > 350
    for cut in (*range(0, len(text), 7), *ends, len(text)):
        (tmp_path / "log.csv").write_text(text[:cut])
        (tmp_path / "evaluations.csv").write_text("step,on"[:cut])
        log = Log(tmp_path, step=4)
        row(log, 8)
        assert read_log(tmp_path)["step"] == [*(step for step, end in zip((1, 2, 4), ends) if end <= cut), 8]
        log.evaluation(8, {"one": 1})
        assert read_log(tmp_path, "evaluations.csv") == {"step": [8], "one": [1]}


def test_a_row_that_found_no_room(tmp_path, monkeypatch, capsys):
    """No half row stays, no header is missing, and the run goes on."""
    path_open = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, text):
            self.file.write(text[:5])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(path, mode="r", **options):
        file = path_open(path, mode, **options)
        return Full(file) if mode == "a" else file

    log = Log(tmp_path)
    for step, disk in ((1, full), (2, path_open), (4, full), (8, path_open)):
        monkeypatch.setattr(Path, "open", disk)
        row(log, step)
    assert read_log(tmp_path)["step"] == [2, 8] and read_log(tmp_path)["loss"] == [2, 8]
    said = capsys.readouterr().out
    assert "step 1 is missing in" in said and "step 4 is missing in" in said and "No space left" in said
