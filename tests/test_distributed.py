"""Two processes that train together reach the weights of one on the same whole batch.

This file is also the run itself: `torchrun --nproc-per-node 2 tests/test_distributed.py FOLDER NAME ...` makes the runs
of RUNS with these names one after another, each in a folder of its name; a launch takes 8 s, which they share.
"""

import fcntl
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from minidiff import create_model, list_models, make_schedule, save_pretrained, schedules
from minidiff.backbones.uvit import UViT
from minidiff.datasets.record import InMemory
from minidiff.diffusion import Diffusion
from minidiff.layers import Text
from minidiff.recipes import process
from minidiff.safe_files import read_tensors
from minidiff.samplers import sample
from minidiff.training import Trainer, checkpoints, distance_to, read_log
from minidiff.training.world import local

STEPS = 20
TWELVE = dict(steps=12, decay=None, save_every=4, log_every=4)
SHORT = dict(steps=6, save_every=6, log_every=6)
ASCEND = dict(network="ascend_test", **SHORT)
TEXT = dict(network="ascend_test", text=True, **SHORT)
PICTURES = dict(sample_every=3, sampling=dict(num=4, steps=2, guidance=2.0), evaluate_every=3, lr=0.01, **SHORT)
STREAM = dict(data="stream", **TWELVE)

RUNS = {  # what two processes do; one process does the same without `parallel`, `accumulate` ...
    "ddp": dict(parallel="ddp", processes=2),
    "fsdp": dict(parallel="fsdp", processes=2),
    "ddp-accumulated": dict(parallel="ddp", accumulate=2, **SHORT),
    "fsdp-accumulated": dict(parallel="fsdp", accumulate=2, **SHORT),
    "ddp-resumed": dict(parallel="ddp", **TWELVE | dict(steps=8)),
    "fsdp-resumed": dict(parallel="fsdp", **TWELVE | dict(steps=8)),
    "fsdp-ascend": dict(parallel="fsdp", **ASCEND),
    "ddp-checkpointed": dict(parallel="ddp", checkpoint_activations=True, **ASCEND),
    "fsdp-checkpointed": dict(parallel="fsdp", checkpoint_activations=True, **ASCEND),
    "ddp-halflife": dict(parallel="ddp", ema_halflife=100, **SHORT),
    "fsdp-halflife": dict(parallel="fsdp", ema_halflife=100, **SHORT),
    "ddp-bf16": dict(parallel="ddp", amp="bf16", **SHORT),
    "fsdp-bf16": dict(parallel="fsdp", amp="bf16", **SHORT),
    "ddp-pictures": dict(parallel="ddp", evaluate="mean", **PICTURES),
    "fsdp-pictures": dict(parallel="fsdp", evaluate="mean", **PICTURES),
    "fsdp-no-ema-pictures": dict(parallel="fsdp", evaluate="mean", ema=None, **PICTURES),
    "fsdp-distance": dict(parallel="fsdp", evaluate="distance", **SHORT),
    "ddp-text": dict(parallel="ddp", **TEXT),
    "fsdp-text-records": dict(parallel="fsdp", data="records", **TEXT),
    "fsdp-text-prompts": dict(parallel="fsdp", sample_every=3, sampling=dict(prompts=["1", "2"], steps=2), **TEXT),
    "fsdp-uvit-text": dict(parallel="fsdp", **TEXT | dict(network="uvit_test")),
    "ddp-own-start": dict(parallel="ddp", own_start=True, **SHORT),
    "fsdp-own-start": dict(parallel="fsdp", own_start=True, **SHORT),
    "ddp-stream": dict(parallel="ddp", **STREAM | dict(steps=8)),
    "fsdp-idle": dict(parallel="fsdp", idle=True, **SHORT),
    "ddp-stopped": dict(parallel="ddp", stop_after=0.0, **TWELVE),
    # These end with an error in every process.
    "ddp-not-shared": dict(parallel="ddp", own_folder=True, **TWELVE),
    "ddp-idle": dict(parallel="ddp", idle=True, **SHORT),
    "ddp-nan": dict(parallel="ddp", data="stream", poison=3, **SHORT),
    "fsdp-nan": dict(parallel="fsdp", data="stream", poison=5, **SHORT | dict(log_every=4)),
    "ddp-odd-batch": dict(parallel="ddp", **SHORT | dict(batch_size=15)),
    "ddp-accumulate-3": dict(parallel="ddp", accumulate=3, **SHORT),
    "fsdp-fp16": dict(parallel="fsdp", amp="fp16", **SHORT),
    "processes": dict(processes=3, **SHORT),
}
LAST = "processes"  # its error is not caught


class Stream:
    """Fifty pictures in turn, endlessly, with the contract of streams; `poison` is the step (1, ...) with a NaN."""

    def __init__(self, data, poison=None):
        self.data, self.poison, self.begins = data, poison, []

    def stream(self, batch_size, seed, position=None, rank=0, world=1, workers=0):
        share, count = batch_size // world, len(self.data)
        self.begins.append(position)
        at = position["at"] if position else 0
        while True:
            chosen = [(at + rank * share + k) % count for k in range(share)]
            images, at = self.data.images()[chosen], at + batch_size
            if rank == world - 1 and at == batch_size * (self.poison or -1):
                images[0, 0, 0, 0] = torch.nan
            yield (images, self.data.labels[chosen], [""] * share), {"at": at, f"rank {rank}": at}


class Records(torch.utils.data.Dataset):
    """The same pictures one by one."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


class Idle(UViT):
    """A network with a layer that it never calls."""

    def __init__(self, **options):
        super().__init__(**options)
        self.forgotten = torch.nn.Linear(3, 3)


def encode(captions):
    """Captions, which are numbers, as texts of four tokens."""
    numbers = torch.tensor([float(caption) for caption in captions]).view(-1, 1, 1)
    return Text(torch.sin(numbers * torch.arange(1.0, 33).view(1, 4, 8)))


def mean_of_samples(diffusion):
    classes = getattr(diffusion.network, "num_classes", 0)
    pictures = sample(diffusion, 4, y=[0, 1, 2, 0] if classes else None, steps=3, progress=False)
    return {"mean": pictures.mean().item()}


def make(network="uvit_test", text=False, idle=False):
    """A Diffusion, and fifty pictures with labels and captions."""
    condition = dict(text_dim=8) if text else dict(num_classes=3)
    condition |= dict(num_text_tokens=4) if text and network == "uvit_test" else {}
    if idle:
        network = Idle(img_size=8, embed_dim=16, depth=2, num_heads=2, **condition)
    else:
        network = create_model(network, **condition)
    diffusion = Diffusion(network, schedules.cosine(100), "v", shape=getattr(network, "shape", None) or (3, 8, 8))
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(50, *diffusion.shape, generator=generator) * 2 - 1
    return diffusion, InMemory(pictures, torch.arange(50) % 3, [str(i % 7) for i in range(50)], ["a", "b", "c"])


def run(folder, network="uvit_test", data="memory", text=False, poison=None, idle=False, own_start=False,
        own_folder=False, **options):  # fmt: skip
    """Twenty steps of 16 pictures with labels, dropped labels, clipping and averages; facts.json says how it went."""
    rank = int(os.environ.get("RANK", 0))
    folder = Path(folder) / str(rank) if own_folder else folder
    torch.manual_seed(rank if own_start else 0)
    diffusion, memory = make(network, text, idle)
    dataset = {"memory": memory, "records": Records(memory), "stream": Stream(memory, poison)}[data]
    features = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    if "evaluate" in options:
        options["evaluate"] = {"mean": mean_of_samples, "distance": distance_to(memory, features, 10, steps=2)}[
            options["evaluate"]]  # fmt: skip
    arguments = dict(steps=STEPS, batch_size=16, warmup=5, p_uncond=0.2, save_every=10, log_every=10, progress=False)
    arguments |= dict(encode=encode) if text else {}
    trainer = Trainer(diffusion, dataset, folder=folder, **arguments | options)
    history = trainer.run()
    if trainer.ema:
        swap_and_back(trainer.ema, diffusion)
    tensors = [*diffusion.parameters()], [*trainer.ema.model.parameters()] if trainer.ema else []
    moments = [s["exp_avg"] for s in trainer.optimisation.optimizer.state.values()]
    facts = dict(step=history.step, begins=getattr(dataset, "begins", None), weights=sum(t.numel() for t in tensors[0]),
                 mine=[sum(local(t).numel() for t in kind) for kind in (*tensors, moments)])  # fmt: skip
    if rank == 0 and network == "ascend_test" and not text:
        facts["mean"] = mean_of_samples(history.ema)["mean"]
    (Path(folder) / f"facts-{rank}.json").write_text(json.dumps(facts))
    if rank == 0 and trainer.ema and not idle:
        save_pretrained(history.ema, Path(folder) / "weights")
    return history


def swap_and_back(ema, diffusion):
    """Inside `swapped_in` the model has the averages, afterwards its own weights again, also where they are divided."""

    def parts(model):
        return torch.cat([local(weight).flatten() for weight in model.parameters()]).clone()

    own, averages = parts(diffusion), parts(ema.model)
    with ema.swapped_in(diffusion):
        assert torch.equal(parts(diffusion), averages) and not torch.equal(own, averages)
    assert torch.equal(parts(diffusion), own) and torch.equal(parts(ema.model), averages)


def families(parallel=None):
    """{name: losses and weights after three steps} of every denoiser of pictures without text, at its test size."""
    found = {}
    for name in list_models("*_test", kind="denoiser"):
        torch.manual_seed(0)
        network = create_model(name) if not name.startswith("mlp") else None
        if network is None or getattr(network, "text_dim", 0):
            continue
        how = {"prediction": "eps", **process(name)}
        schedule, arguments = how.pop("schedule")
        shape, classes = getattr(network, "shape", None) or (3, 8, 8), max(getattr(network, "num_classes", 0), 1)
        diffusion = Diffusion(network, make_schedule(schedule, **arguments), how.pop("prediction"), shape=shape, **how)
        low, high = diffusion.value_range
        pictures = torch.rand(16, *shape) * (high - low) + low
        data = InMemory(pictures, torch.arange(16) % classes, [""] * 16, ["a"] * classes)
        history = Trainer(diffusion, data, steps=3, batch_size=4, warmup=0, lr=1e-4, progress=False,
                          **dict(parallel=parallel, checkpoint_activations=True) if parallel else {}).run()  # fmt: skip
        weights = torch.cat([weight.double().flatten() for weight in history.ema.parameters()])
        found[name] = [*history.losses.tolist(), weights.sum().item(), weights.square().sum().item()]
    return found


def launch(*command, timeout=300):
    """(exit code, output) of two processes with this command line."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    with open(Path(tempfile.gettempdir()) / "minidiff-torchrun.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two launches at once, by two workers of pytest, may choose the same port
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout + done.stderr


def difference(folder, other):
    """The largest difference of two runs' last checkpoints, of weights, averages, moments and losses, by kind."""
    (ours, about), (theirs, expected) = (read_tensors(checkpoints(f)[0]) for f in (folder, other))
    assert about["step"] == expected["step"] and ours.keys() == theirs.keys()
    gaps = {}
    for name, tensor in ours.items():
        kind = name.split("/")[0]
        gaps[kind] = max(gaps.get(kind, 0.0), (tensor.double() - theirs[name].double()).abs().max().item())
    return gaps


def assert_close(folder, other, tolerance=1e-5):
    gaps = difference(folder, other)
    print(Path(folder).name, gaps)
    assert gaps["model"] < tolerance and gaps.get("ema", 0) < tolerance and gaps["history"] < 10 * tolerance, gaps
    assert gaps["optimizer"] < tolerance, gaps


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder with all runs of two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("together")
    for name in ("ddp-resumed", "fsdp-resumed"):  # one process begins, two go on
        run(folder / name, **TWELVE | dict(steps=4))
    run(folder / "ddp-stream", **STREAM | dict(steps=4))
    run(folder / "ddp-not-shared" / "0", **TWELVE | dict(steps=4))
    code, printed = launch(__file__, str(folder), "families", *RUNS)
    missing = [name for name in RUNS if name != LAST and not list((folder / name).glob("*-1.*"))]
    assert not missing, printed[-6000:]
    return folder, code, printed


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Function name -> folder of the same run in one process; runs that differ in `parallel` alone are made once."""
    root = tmp_path_factory.mktemp("alone")

    @functools.lru_cache
    def make_run(text):
        folder = root / str(len(list(root.iterdir())))
        run(folder, **json.loads(text))
        return folder

    def folder_of(name, **changed):
        options = {k: v for k, v in RUNS[name].items() if k not in ("parallel", "processes", "accumulate", "own_start",
                                                                   "checkpoint_activations", "idle")}
        return make_run(json.dumps(options | changed, sort_keys=True))

    return folder_of


def facts(together, name, rank=0):
    return json.loads((together[0] / name / f"facts-{rank}.json").read_text())


def errors(together, name):
    return [(together[0] / name / f"error-{rank}.txt").read_text() for rank in (0, 1)]


@pytest.mark.parametrize("name", [
    "ddp", "fsdp", "ddp-accumulated", "fsdp-accumulated", "fsdp-ascend", "ddp-checkpointed", "fsdp-checkpointed",
    "ddp-halflife", "fsdp-halflife", "ddp-text", "fsdp-text-records", "fsdp-text-prompts", "fsdp-uvit-text",
    "ddp-own-start", "fsdp-own-start",
])  # fmt: skip
def test_two_processes_reach_the_weights_of_one(name, together, alone):
    changed = dict(data="memory") if name == "fsdp-text-records" else {}
    assert_close(together[0] / name, alone(name, **changed))
    assert [facts(together, name, rank)["step"] for rank in (0, 1)] == [RUNS[name].get("steps", STEPS)] * 2


def test_the_averaged_model_of_divided_weights_is_whole(together, alone):
    """With its buffers that no state holds: Swin's tables of positions and masks."""
    theirs = json.loads((alone("fsdp-ascend") / "facts-0.json").read_text())["mean"]
    assert facts(together, "fsdp-ascend")["mean"] == pytest.approx(theirs, abs=1e-5)
    for name in ("fsdp", "fsdp-ascend"):
        theirs = read_tensors(together[0] / name / "weights" / "model.safetensors")[0]
        ema = read_tensors(checkpoints(together[0] / name)[0])[0]
        assert theirs and all(torch.equal(ema[f"ema/network.{key}"], value) for key, value in theirs.items())


def test_passes_of_accumulated_gradients_are_one_batch(alone, tmp_path):
    run(tmp_path, accumulate=2, **SHORT)
    assert_close(tmp_path, alone("ddp-accumulated"))


@pytest.mark.parametrize("name", ["ddp-resumed", "fsdp-resumed", "ddp-stream"])
def test_one_process_begins_two_go_on_and_one_ends(name, together, alone, tmp_path):
    steps = [int(path.stem.split("-")[-1]) for path in checkpoints(together[0] / name)]
    assert steps == [8, 4]
    run(together[0] / name, **{**RUNS[name], "parallel": "ddp", "steps": 12})
    assert_close(together[0] / name, alone(name, steps=12))
    assert read_log(together[0] / name)["step"] == [1, 2, 4, 8, 12]
    assert read_tensors(checkpoints(together[0] / name)[0])[1]["processes"] == 1


def test_a_stream_goes_on_with_the_positions_of_all_processes(together):
    assert facts(together, "ddp-stream", 1)["begins"] == [{"at": 4 * 16, "rank 0": 4 * 16}]
    position = read_tensors(together[0] / "ddp-stream" / "checkpoint-00000008.safetensors")[1]["position"]
    assert position == {"at": 8 * 16, "rank 0": 8 * 16, "rank 1": 8 * 16}


def test_each_process_holds_half_with_fsdp(together):
    for name in ("fsdp", "fsdp-ascend", "fsdp-text-records"):
        whole = facts(together, name)["weights"]
        for rank in (0, 1):
            assert all(0.4 * whole < mine < 0.6 * whole for mine in facts(together, name, rank)["mine"]), name
        assert [sum(two) for two in zip(*(facts(together, name, rank)["mine"] for rank in (0, 1)))] == [whole] * 3
    assert facts(together, "ddp")["mine"] == [facts(together, "ddp")["weights"]] * 3


@pytest.mark.parametrize("name", ["ddp-bf16", "fsdp-bf16"])
def test_mixed_precision(name, together, alone):
    assert_close(together[0] / name, alone(name), 2e-2)
    gaps = difference(together[0] / name, alone(name, amp=None))
    assert gaps["history"] > 1e-6  # it did something


@pytest.mark.parametrize("name", ["ddp-pictures", "fsdp-pictures", "fsdp-no-ema-pictures"])
def test_samples_while_training_are_those_of_the_weights_of_then(name, together, alone):
    """The second time, too: divided weights that were put together for the first must not be kept."""
    ours, theirs = (read_log(folder, "evaluations.csv") for folder in (together[0] / name, alone(name)))
    assert ours["step"] == [3, 6] and ours["mean"] == pytest.approx(theirs["mean"], abs=1e-5)
    assert abs(ours["mean"][0] - ours["mean"][1]) > 1e-4
    sheets = [sorted((folder / "samples").iterdir()) for folder in (together[0] / name, alone(name))]
    assert [[sheet.name for sheet in one] for one in sheets] == [["step-00000003.png", "step-00000006.png"]] * 2
    assert_close(together[0] / name, alone(name), 1e-4)  # the steps after it were not disturbed


def test_distances_while_training(together):
    log = read_log(together[0] / "fsdp-distance", "evaluations.csv")
    assert log["step"] == [6] and 0 < log["frechet"][0] < 1e4 and "kernel" in log


def test_stop_after_ends_all_processes_at_the_same_step(together):
    steps = [facts(together, "ddp-stopped", rank)["step"] for rank in (0, 1)]
    assert steps == [4, 4]  # the first row of the log that is due


def test_weights_without_gradient(together):
    for message in errors(together, "ddp-idle"):
        assert "ValueError" in message and "forgotten.weight" in message and "parallel='fsdp'" in message
    assert facts(together, "fsdp-idle")["step"] == 6


@pytest.mark.parametrize("name, bad", [("ddp-nan", 3), ("fsdp-nan", 5)])
def test_nan_stops_all_processes_with_the_last_good_state(name, bad, together, alone):
    for message in errors(together, name):
        assert "FloatingPointError" in message and f"step {bad}: the loss is" in message and "lower lr" in message
        assert re.search(r"network\.\S+: (nan|inf)", message)
    assert_close(together[0] / name, good_part(alone, name, bad))
    assert read_tensors(checkpoints(together[0] / name)[0])[1]["position"]["at"] == 16 * (bad - 1)


def good_part(alone, name, bad):
    """The same run without the NaN, which writes a checkpoint after the last good step."""
    folder = alone(name, poison=None, save_every=bad - 1, keep=9)
    for path in checkpoints(folder)[:-1]:
        path.unlink()
    return folder


@pytest.mark.parametrize("name, words", [
    ("ddp-odd-batch", "batch_size=15 cannot be divided among 2 processes.*a multiple of 2"),
    ("ddp-accumulate-3", "batch_size=16 cannot be divided among 2 processes with accumulate=3.*a multiple of 6"),
    ("fsdp-fp16", "amp='fp16' with parallel='fsdp'.*'bf16'"),
])
def test_what_cannot_be_shared_is_refused_by_all(name, words, together):
    for message in errors(together, name):
        assert re.search(words, message) and message.startswith("ValueError")


def test_a_folder_that_the_processes_do_not_share(together):
    for message in errors(together, "ddp-not-shared"):
        assert "different steps" in message and "[0, 4]" in message and "share" in message


def test_every_family_of_networks_can_be_divided_and_computed_anew(together):
    """FSDP with checkpointed activations gives the losses and the averages of plain training in one process."""
    found, expected = json.loads((together[0] / "families.json").read_text()), families()
    assert found.keys() == expected.keys() and len(found) >= 13
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-4), name


def test_another_number_of_processes_is_refused(together):
    _, code, printed = together
    assert code != 0 and printed.count("ValueError: processes=3, but 2 are running") >= 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        here = Path(sys.argv[1]) / name
        if name == "families":
            found = families("fsdp")
            if os.environ["RANK"] == "0":
                here.with_suffix(".json").write_text(json.dumps(found))
            continue
        try:
            run(here, **RUNS[name])
        except Exception as error:
            if name == LAST:
                raise
            here.mkdir(exist_ok=True)
            (here / f"error-{os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")
