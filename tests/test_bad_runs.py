"""What a run does about NaN, full disks, folders it may not write to, and checkpoints that are not its own.

This file is also a run: `python tests/test_bad_runs.py FOLDER` fills the disk that FOLDER is on while it trains.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minidiff import create_model, safe_files, schedules
from minidiff.datasets.record import InMemory
from minidiff.diffusion import Diffusion
from minidiff.safe_files import read_tensors, write_tensors
from minidiff.training import checkpoints, read_averaged, read_log, train

PICTURES = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def run(folder, data=None, seed=0, **options):
    """Twelve steps at a constant rate, so that a shorter run is the beginning of a longer one."""
    torch.manual_seed(seed)
    diffusion = Diffusion(create_model("ddpm_test"), schedules.cosine(100), "v", shape=(3, 8, 8))
    data = data or InMemory(PICTURES, torch.zeros(48), [""] * 48, ["a"])
    arguments = dict(steps=12, batch_size=8, warmup=3, decay=None, save_every=4, progress=False)
    return train(diffusion, data, folder=folder, **arguments | options)


class Poisoned(torch.utils.data.IterableDataset):
    """Batches of 8 in turn; the first picture of step `bad` (1, ...) is NaN."""

    def __init__(self, bad=None):
        self.bad = bad

    def __iter__(self):
        for number in range(10**6):
            picture = PICTURES[number % len(PICTURES)]
            yield picture * torch.nan if self.bad and number == 8 * (self.bad - 1) else picture, 0, ""


def assert_same_state(folder, expected, averages=1e-6):
    """Weights, moments, losses and step bit for bit; averages, from which updates were taken back, within 1e-6."""
    (ours, about), (theirs, wanted) = (read_tensors(checkpoints(f)[0]) for f in (folder, expected))
    assert about["step"] == wanted["step"] and ours.keys() == theirs.keys()
    exact = [name for name in ours if not name.startswith(("ema/", "history/time"))]
    assert len(exact) > 100 and [name for name in exact if not torch.equal(ours[name], theirs[name])] == []
    gaps = [(ours[name] - theirs[name]).abs().max().item() for name in ours if name.startswith("ema/")]
    assert max(gaps) < averages


@pytest.mark.parametrize("bad, log_every, averages", [
    (2, 50, 1e-6),  # seen after step 2 itself, of which a row is due
    (3, 50, 1e-6),  # right after a row
    (5, 50, 1e-5),  # right after a checkpoint; 97 % of the average were updates to take back
    (8, 50, 1e-6),  # a checkpoint is due right then
    (11, 3, 1e-6),
    (6, 1000, 2e-6),  # seen six steps later
])  # fmt: skip
def test_nan_writes_the_last_good_state(bad, log_every, averages, tmp_path):
    options = dict(log_every=log_every, save_every=100 if log_every == 1000 else 4)
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path / "a", Poisoned(bad), **options)
    words = str(error.value)
    assert f"step {bad}: the loss is nan" in words and f"those after step {bad - 1}" in words
    assert "conv_in" in words and "lower lr" in words and "bf16" in words and str(tmp_path / "a") in words
    run(tmp_path / "b", Poisoned(), **options | dict(steps=bad - 1))
    assert_same_state(tmp_path / "a", tmp_path / "b", averages)
    assert max(read_log(tmp_path / "a")["step"]) < bad
    steps = [int(path.stem[-8:]) for path in checkpoints(tmp_path / "a")]
    assert steps == sorted({bad - 1} | ({4} if bad > 5 and log_every != 1000 else set())
                           | ({8} if bad > 9 else set()), reverse=True)[:2]  # fmt: skip


def test_after_a_stop_it_goes_on_with_a_lower_rate(tmp_path):
    with pytest.raises(FloatingPointError):
        run(tmp_path, Poisoned(6))
    with pytest.raises(ValueError, match="lr: 0.001 there, 0.0001 now.*resume='changed'"):
        run(tmp_path, Poisoned(), lr=1e-4)
    history = run(tmp_path, Poisoned(), lr=1e-4, resume="changed", log_every=1)
    assert history.step == 12 and torch.isfinite(history.losses).all()
    assert read_log(tmp_path)["lr"][-7:] == [1e-4] * 7 and read_log(tmp_path)["step"] == [1, 2, 4, *range(6, 13)]
    run(tmp_path, Poisoned(), lr=1e-4)  # which is now the run's own


def test_a_rate_that_explodes_names_the_layers(tmp_path):
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, steps=60, lr=1e25, warmup=0, clip=None, log_every=5)
    words = str(error.value)
    assert "gradients are not finite" in words and "  network." in words and "lower lr" in words
    weights, about = read_averaged(tmp_path)
    assert about["step"] >= 1 and all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_nan_at_the_first_step_without_a_folder():
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 1)
    network.forward = lambda x, time, y=None: nn.Conv2d.forward(network, x) / 0
    diffusion = Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8))
    before = network.weight.clone()
    data = InMemory(PICTURES, torch.zeros(48), [""] * 48, ["a"])
    with pytest.raises(FloatingPointError, match="step 1: the loss is (nan|inf)") as error:
        train(diffusion, data, steps=5, batch_size=8, progress=False)
    assert torch.equal(network.weight, before) and "written to" not in str(error.value)


class Spiky(nn.Module):
    """A convolution whose output overflows in half precision, from its call number `first` on."""

    checkpoint = False

    def __init__(self, first, last=10**9):
        super().__init__()
        self.conv, self.calls, self.first, self.last = nn.Conv2d(3, 3, 1), 0, first, last

    def forward(self, x, time, y=None):
        self.calls += 1
        out = self.conv(x)
        return out * 1e4 * 1e4 if self.first <= self.calls <= self.last else out


def half(folder, network, **options):
    diffusion = Diffusion(network, schedules.cosine(100), "v", shape=(3, 8, 8))
    data = InMemory(PICTURES, torch.zeros(48), [""] * 48, ["a"])
    arguments = dict(steps=60, batch_size=8, decay=None, warmup=0, amp="fp16", save_every=100, log_every=60,
                     progress=False)  # fmt: skip
    return train(diffusion, data, folder=folder, **arguments | options)


def test_an_overflow_of_fp16_is_skipped_and_no_reason_to_stop(tmp_path):
    network = Spiky(10, 12)
    history = half(tmp_path, network)
    scaler = read_tensors(checkpoints(tmp_path)[0])[1]["scaler"]
    assert history.step == 60 and scaler["scale"] == 65536 / 8  # halved three times
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
    assert not torch.isfinite(history.losses[9:12]).any() and torch.isfinite(history.losses[12:]).all()


def test_overflows_of_fp16_without_end_stop_the_run(tmp_path):
    """Also when they end before anybody asks: no step is taken after the one that broke the run."""
    torch.manual_seed(0)
    network = Spiky(10, 40)  # 31 calls in a row; 26 are too many
    with pytest.raises(FloatingPointError, match=r"conv\.weight: (inf|nan)") as error:
        half(tmp_path / "a", network)
    assert "try 'bf16'" in str(error.value)
    torch.manual_seed(0)
    half(tmp_path / "b", Spiky(10), steps=20)  # nothing moves after the ninth step
    (ours, about), (theirs, _) = (read_tensors(checkpoints(tmp_path / name)[0]) for name in "ab")
    assert about["step"] == 34  # 9 good ones and 25 that were skipped
    for name in ("model/network.conv.weight", "optimizer/network.conv.weight/exp_avg"):
        assert torch.equal(ours[name], theirs[name])


def test_a_stop_puts_a_scheduler_back(tmp_path):
    def decay(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    with pytest.raises(FloatingPointError):
        run(tmp_path, Poisoned(5), decay=decay, log_every=50, save_every=50)  # it is seen at step 8
    run(tmp_path, Poisoned(), decay=decay, log_every=1, save_every=50)
    log = read_log(tmp_path)
    rates = dict(zip(log["step"], log["lr"]))
    assert rates[5] == pytest.approx(1e-3 * 0.5**4, rel=1e-4) and rates[12] == pytest.approx(1e-3 * 0.5**11, rel=1e-4)


# --- full disks ---------------------------------------------------------------------------------------------------


def fill_the_disk(folder):
    """Trains on a small disk in three parts; prints what happened as JSON."""
    folder, happened = Path(folder), {}
    size = shutil.disk_usage(folder).total
    run(folder / "whole", steps=4, keep=3)
    one = checkpoints(folder / "whole")[0].stat().st_size
    happened["sizes"] = [size, one]
    history = run(folder / "whole", steps=12, keep=9, save_every=1)  # as many as find room
    happened["kept"] = [int(path.stem[-8:]) for path in checkpoints(folder / "whole")]
    happened["steps"] = history.step
    shutil.rmtree(folder / "whole")

    def fill(step, history):
        if step == 6:
            with open(folder / "filler", "wb", buffering=0) as file:
                try:
                    while file.write(b"0" * 4096):
                        pass
                except OSError:
                    pass

    try:
        run(folder / "full", log_every=1, save_every=2, keep=1, on_step=fill, sample_every=7,
            sampling=dict(num=64, steps=2))  # fmt: skip
    except OSError as error:
        happened["error"] = [error.errno, str(error)]
    happened["left"] = [read_tensors(path)[1]["step"] for path in checkpoints(folder / "full")]
    happened["temporary"] = [str(path) for path in folder.rglob("*.tmp")]
    happened["rows"] = read_log(folder / "full")["step"]
    (folder / "filler").unlink()
    history = run(folder / "full", log_every=1, save_every=2)
    happened["losses"] = history.losses.tolist()
    happened["rows after"] = read_log(folder / "full")["step"]
    print(json.dumps(happened))


def test_a_disk_that_is_really_full(tmp_path):
    """In mid-run it goes on and says so; at the end it raises, and after room was made it goes on from the newest."""
    run(tmp_path / "size", steps=1)
    size = checkpoints(tmp_path / "size")[0].stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={int(3.5 * size)} none '{disk}'"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True,
                                                         check=False).returncode:  # fmt: skip
        pytest.skip("this user may not mount a tmpfs")
    command = f"{mount} && exec '{sys.executable}' '{__file__}' '{disk}'"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, timeout=300,
                          env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    *said, last = done.stdout.splitlines()
    happened = json.loads(last)
    assert happened["steps"] == 12 and happened["kept"] in ([12, 11, 10], [12, 11])  # older ones made room
    code, words = happened["error"]
    assert code == errno.ENOSPC and "step 12: no checkpoint could be written" in words and "make room" in words
    assert happened["left"] == [4] and happened["temporary"] == []
    assert any("step 6: no checkpoint could be written" in line and "next try is in 2" in line for line in said)
    assert any("step-00000007.png could not be written" in line for line in said)
    assert happened["rows"][:6] == [1, 2, 3, 4, 5, 6] and happened["rows after"] == sorted(happened["rows after"])
    unbroken = run(None)
    assert happened["losses"] == unbroken.losses.tolist()


def full(tensors, path, metadata):
    """What safetensors raises on a full disk, after it wrote a part."""
    Path(path).write_bytes(b"\x10" * 1000)
    raise safe_files.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_as_safetensors_tells_it(tmp_path, monkeypatch, capsys):
    """Older checkpoints make room, the newest one stays, and the run goes on to its end."""

    def until_one_is_left(tensors, path, metadata):
        if len(list(tmp_path.glob("checkpoint-*.safetensors"))) > 1:
            full(tensors, path, metadata)
        whole(tensors, path, metadata)

    whole = safe_files.save_file
    run(tmp_path, steps=8)
    monkeypatch.setattr(safe_files, "save_file", until_one_is_left)
    assert run(tmp_path).step == 12
    assert [path.stem[-2:] for path in checkpoints(tmp_path)] == ["12", "08"] and not list(tmp_path.glob("*.tmp"))
    monkeypatch.setattr(safe_files, "save_file", full)
    with pytest.raises(OSError, match="step 20: no checkpoint.*No space left.*make room.*run again") as error:
        run(tmp_path, steps=20)
    assert error.value.errno == errno.ENOSPC
    assert "step 16: no checkpoint could be written" in capsys.readouterr().out
    assert [read_tensors(path)[1]["step"] for path in checkpoints(tmp_path)] == [12]
    monkeypatch.setattr(safe_files, "save_file", whole)
    resumed = run(tmp_path, steps=20)
    assert resumed.losses.tolist() == run(None, steps=20).losses.tolist()


def test_a_truncated_newest_file_is_no_reason_to_remove_the_whole_one(tmp_path, monkeypatch):
    run(tmp_path, steps=8)
    newest = checkpoints(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:-5])
    monkeypatch.setattr(safe_files, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, steps=8)
    assert [path.stem[-2:] for path in checkpoints(tmp_path)] == ["04"]
    assert read_tensors(checkpoints(tmp_path)[0])[1]["step"] == 4


def test_nan_on_a_full_disk_tells_of_both(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_files, "save_file", full)
    with pytest.raises(FloatingPointError, match="step 5(.|\n)*no checkpoint could be written to .*No space left"):
        run(tmp_path, Poisoned(5), save_every=100)


# --- folders and files ----------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    for folder in (tmp_path / "run", tmp_path / "run" / "inside"):
        with pytest.raises(OSError, match="cannot be made.*remove the file of that name"):
            run(folder)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"folder='{tmp_path}'.*may not write.*chmod u\\+w"):
        run(tmp_path)


def test_a_disk_that_can_only_be_read(tmp_path):
    """Found out before the first step, by root too."""
    mount = f"mount --bind '{tmp_path}' '{tmp_path}' && mount -o remount,ro,bind '{tmp_path}'"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True,
                                                         check=False).returncode:  # fmt: skip
        pytest.skip("this user may not mount")
    program = "import sys, test_bad_runs as t; t.run(sys.argv[1], on_step=print)"
    command = f"{mount} && exec '{sys.executable}' -c '{program}' '{tmp_path}'"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, timeout=120,
                          env=environment, check=False)  # fmt: skip
    assert done.returncode and "PermissionError" in done.stderr and "may not write" in done.stderr
    assert done.stdout == ""


def test_checkpoints_of_others(tmp_path):
    run(tmp_path / "a", steps=4)
    torch.manual_seed(0)
    wider = Diffusion(create_model("ddpm_test", ch=16), schedules.cosine(100), "v", shape=(3, 8, 8))
    data = InMemory(PICTURES, torch.zeros(48), [""] * 48, ["a"])
    for resume in (True, "changed"):
        with pytest.raises(ValueError, match="belongs to another run.*network: ") as error:
            train(wider, data, steps=12, batch_size=8, warmup=3, decay=None, folder=tmp_path / "a", resume=resume)
        assert "resume=False" in str(error.value)
    path = tmp_path / "b" / "checkpoint-00000007.safetensors"
    path.parent.mkdir()
    write_tensors(path, {"weight": torch.zeros(2)}, {"network": "of somebody"})
    with pytest.raises(ValueError, match="of another kind.*give another folder"):
        run(path.parent)
    safe_files.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="of another kind"):
        run(path.parent)
    path.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ValueError, match="truncated"):
        run(path.parent)
    assert run(path.parent, resume=False).step == 12 and path.exists() is False


def test_a_truncated_newest_checkpoint_falls_back_and_says_so(tmp_path, capsys):
    run(tmp_path, steps=8)
    newest = checkpoints(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    history = run(tmp_path, progress=True)
    said = capsys.readouterr().out
    assert "passed over checkpoint-00000008.safetensors: truncated" in said
    assert "going on after step 4 of" in said and "checkpoint-00000004" in said
    assert history.losses.tolist() == run(None).losses.tolist()
    assert [path.stem[-2:] for path in checkpoints(tmp_path)] == ["12", "08"]


def test_starting_anew_in_a_folder_with_a_run(tmp_path):
    """Old checkpoints of later steps and old rows of the log do not outlive the new run's first checkpoint."""
    run(tmp_path, save_every=6)
    begun = run(tmp_path, seed=3, resume=False, steps=5)
    assert [path.stem[-2:] for path in checkpoints(tmp_path)] == ["05", "04"]
    assert read_log(tmp_path)["step"] == [1, 2, 4, 5]
    assert begun.losses.tolist() == run(None, seed=3, steps=5).losses.tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    fill_the_disk(sys.argv[1])
