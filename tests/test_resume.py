"""A run killed with SIGKILL and resumed ends with the weights of an unbroken one, bit for bit on a CPU.

This file is also the run itself: `python tests/test_resume.py FOLDER [DEATH N]` trains a small network; it kills itself
where DEATH says: in writing its Nth checkpoint ("half", "rename") or in the Nth row of its log ("log"). With the word
"plain" it is a shorter run without dropout, which two processes make as one does.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minidiff import create_model, safe_files, save_pretrained, schedules
from minidiff.datasets.record import InMemory
from minidiff.diffusion import Diffusion
from minidiff.safe_files import read_tensors
from minidiff.training import checkpoints, read_log, train

STEPS, SAVE_EVERY = 300, 10
NEWEST = f"checkpoint-{STEPS:08d}.safetensors"
PLAIN = dict(steps=60, dropout=0.0)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}


def run(folder, steps=STEPS, dropout=0.1, **options):
    """Train to the end, with everything on that could be forgotten: dropout, dropped labels, warm-up, averages."""
    torch.manual_seed(0)
    network = create_model("ddpm_test", dropout=dropout, num_classes=3)
    diffusion = Diffusion(network, schedules.cosine(100), "v", shape=(3, 8, 8))
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(50, 3, 8, 8, generator=generator) * 2 - 1
    data = InMemory(pictures, torch.arange(50) % 3, [""] * 50, ["a", "b", "c"])
    arguments = dict(steps=steps, batch_size=16, warmup=5, p_uncond=0.2, save_every=SAVE_EVERY, progress=False)
    history = train(diffusion, data, folder=folder, **dict(on_step=say) | arguments | options)
    save_pretrained(history.ema, Path(folder) / "weights")
    return history


def say(step, history):
    if os.environ.get("RANK", "0") == "0":  # lines of several processes would run into each other
        print(f"{step}\n", end="", flush=True)  # in one write: lines of two processes must not mix


def assert_whole(folder):
    """Nothing half-written is left: no temporary file, each checkpoint readable, the log with every row once."""
    assert not list(Path(folder).rglob("*.tmp"))
    steps = [read_tensors(path)[1]["step"] for path in checkpoints(folder)]
    assert steps == [STEPS, STEPS - SAVE_EVERY]
    assert read_log(folder)["step"] == [1, 2, 4, 8, 16, 32, *range(50, STEPS + 1, 50)]


def start(folder, *more):
    command = [sys.executable, __file__, str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def kill_itself(process):
    """Read what a process prints that is to kill itself; True if it did."""
    process.stdout.read()
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def kill_after_step(process, step, delay):
    """SIGKILL when `process` reports a step from `step` on, `delay` seconds later; True if that was before its end."""
    for line in process.stdout:
        if int(line) >= step:
            time.sleep(delay)
            process.kill()
            break
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def finish(folder):
    process = start(folder)
    steps = [int(line) for line in process.stdout]
    assert process.wait() == 0
    return steps


def assert_same(folder, unbroken):
    """The averaged weights byte for byte; weights, averages, moments and losses of the checkpoint tensor by tensor."""
    one, other = (Path(f) / "weights" / "model.safetensors" for f in (folder, unbroken))
    assert one.read_bytes() == other.read_bytes()
    (ours, about), (theirs, expected) = (read_tensors(Path(f) / NEWEST) for f in (folder, unbroken))
    assert about["step"] == expected["step"] == STEPS and list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert sum(name.startswith("optimizer/") for name in ours) > 100
    logs = [read_log(f) for f in (folder, unbroken)]
    assert [log["loss"] for log in logs[:1]] == [log["loss"] for log in logs[1:]]
    assert_whole(folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert finish(folder) == list(range(1, STEPS + 1))
    return folder


def test_four_kills(tmp_path, unbroken):
    """At a random moment, with a checkpoint half written, with it written but not yet renamed, in a row of the log."""
    step = random.randrange(SAVE_EVERY, STEPS // 2)
    assert kill_after_step(start(tmp_path), step, random.uniform(0, 0.01))
    for death in ("half", "rename"):
        assert kill_itself(start(tmp_path, death, "2"))
        assert list(tmp_path.glob("checkpoint-*.safetensors.tmp"))
    assert kill_itself(start(tmp_path, "log", "1"))
    assert not (tmp_path / "log.csv").read_text().endswith("\n")
    resumed = finish(tmp_path)
    assert resumed[0] % SAVE_EVERY == 1 and SAVE_EVERY < resumed[0] and resumed[-1] == STEPS
    assert_same(tmp_path, unbroken)


@pytest.mark.slow
def test_thirty_kills(tmp_path, unbroken):
    """Each run is killed up to five times, anywhere, also before the first checkpoint; 30 kills in all."""
    kills, number, inside = 0, 0, 0
    while kills < 30:
        folder, number = tmp_path / str(number), number + 1
        for _ in range(5):
            if random.random() < 0.3:  # in the middle of writing
                death = random.choice(["half", "rename", "log"])
                killed = kill_itself(start(folder, death, str(random.randrange(1, 3 if death == "log" else 9))))
                inside += killed
            else:  # half of the others aim at a step that ends with a checkpoint
                step = random.randrange(1, STEPS) if random.random() < 0.5 else random.randrange(0, STEPS, SAVE_EVERY)
                killed = kill_after_step(start(folder), step, random.uniform(0, 0.02))
            kills += killed
        finish(folder)
        assert_same(folder, unbroken)
    print(f"{kills} kills in {number} runs of {STEPS} steps, {inside} of them in the middle of writing a file")


def test_two_processes_killed_and_resumed_by_one(tmp_path):
    """The launcher and both processes get SIGKILL; one process alone goes on from what they left."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, str(tmp_path / "a")]
    launcher = subprocess.Popen([sys.executable, *command, "plain"], stdout=subprocess.PIPE, text=True,
                                env=ENVIRONMENT, start_new_session=True)  # fmt: skip
    processes = set()
    for line in launcher.stdout:
        if line.startswith("process "):
            processes.add(int(line.split()[1]))
        elif line.strip().isdigit() and int(line) >= 23 and len(processes) == 2:
            break
    for number in (launcher.pid, *processes):
        os.kill(number, signal.SIGKILL)
    launcher.stdout.close()
    launcher.wait()
    first = []
    run(tmp_path / "a", on_step=lambda step, history: first.append(step), **PLAIN)
    assert 20 <= first[0] - 1 < 60 and first[0] % SAVE_EVERY == 1 and first[-1] == 60
    run(tmp_path / "b", **PLAIN)
    (ours, _), (theirs, _) = (read_tensors(checkpoints(tmp_path / name)[0]) for name in "ab")
    gaps = [(ours[name] - theirs[name]).abs().max().item() for name in ours if name.startswith(("model/", "ema/"))]
    assert max(gaps) < 1e-4 and not list(tmp_path.rglob("*.tmp"))
    assert read_log(tmp_path / "a")["step"] == [1, 2, 4, 8, 16, 32, 50, 60]


def test_other_arguments_are_refused(tmp_path):
    run(tmp_path, steps=4)
    for options, words in [
        (dict(lr=5e-4), "lr: 0.001 there, 0.0005 now"),
        (dict(batch_size=8, seed=3), "batch_size: 16 there, 8 now; seed: 0 there, 3 now"),
        (dict(steps=9), "steps: 4 there, 9 now"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            run(tmp_path, **dict(steps=4) | options)
        assert "checkpoint-00000004.safetensors" in str(error.value) and "resume=False" in str(error.value)
    assert run(tmp_path, steps=4, lr=5e-4, resume=False).step == 4


def test_another_architecture_is_refused(tmp_path):
    run(tmp_path, steps=4)
    diffusion = Diffusion(create_model("mlp_test"), schedules.cosine(100), "v", shape=(2,))
    data = InMemory(torch.zeros(20, 2), torch.zeros(20), [""] * 20, ["a"])
    with pytest.raises(ValueError, match="network: .*ddpm_test.* there, .*mlp_test.* now"):
        train(diffusion, data, steps=4, batch_size=16, warmup=5, p_uncond=0.2, folder=tmp_path, progress=False)


def test_a_run_at_constant_rate_can_be_prolonged(tmp_path):
    run(tmp_path / "a", steps=4, decay=None)
    prolonged = run(tmp_path / "a", steps=8, decay=None)
    whole = run(tmp_path / "b", steps=8, decay=None)
    assert prolonged.losses.tolist() == whole.losses.tolist() and prolonged.step == 8
    assert run(tmp_path / "a", steps=8, decay=None).losses.tolist() == whole.losses.tolist()  # nothing left to do


def test_a_truncated_checkpoint_names_the_file_and_the_way_out(tmp_path):
    run(tmp_path, steps=4)
    path = tmp_path / "checkpoint-00000004.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, 1000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated") as error:
            run(tmp_path, steps=4)
        assert str(path) in str(error.value) and "Delete it" in str(error.value)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


class HalfRow:
    """An open file that gets half of a row before the process dies."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, text):
        self.file.write(text[:len(text) // 2])
        self.file.flush()
        die()


def prepare(death, count):
    """Make this process kill itself at the `count`th time that it is where `death` says."""
    places = dict(half=(safe_files, "save_file"), rename=(safe_files.os, "replace"), log=(Path, "open"))
    true, left = getattr(*places[death]), [count]

    def deadly(*args, **kwargs):
        here = {"half": True, "rename": "checkpoint" in str(args[0]), "log": args[1:] == ("a",)}[death]
        left[0] -= here
        if not here or left[0]:
            return true(*args, **kwargs)
        if death == "half":
            Path(args[1]).write_bytes(b"\x10" * 5000)
        return HalfRow(true(*args, **kwargs)) if death == "log" else die()

    setattr(*places[death], deadly)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:] == ["plain"]:
        print(f"process {os.getpid()}\n", end="", flush=True)
        run(sys.argv[1], **PLAIN)
    else:
        if sys.argv[2:]:
            prepare(sys.argv[2], int(sys.argv[3]))
        run(sys.argv[1])
