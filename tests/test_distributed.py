"""Two processes that train together reach the weights of one on the same whole batch.

This file is also the run itself: `torchrun --nproc-per-node 2 tests/test_distributed.py FOLDER [OPTIONS as JSON]`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minidiff import create_model, save_pretrained, schedules
from minidiff.datasets.record import InMemory
from minidiff.diffusion import Diffusion
from minidiff.safe_files import read_tensors
from minidiff.training import Trainer, checkpoints

STEPS = 20


def run(folder, network="uvit_test", dtype=None, **options):
    """Twenty steps of 16 pictures with labels, dropped labels, clipping and averages."""
    torch.manual_seed(0)
    network = create_model(network, num_classes=3)
    diffusion = Diffusion(network, schedules.cosine(100), "v", shape=network_shape(network))
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(50, *diffusion.shape, generator=generator) * 2 - 1
    data = InMemory(pictures, torch.arange(50) % 3, [""] * 50, ["a", "b", "c"])
    arguments = dict(steps=STEPS, batch_size=16, warmup=5, p_uncond=0.2, save_every=10, log_every=10, progress=False)
    trainer = Trainer(diffusion, data, folder=folder, **arguments | options)
    history = trainer.run()
    if trainer.world.rank == 0:
        save_pretrained(history.ema, Path(folder) / "weights")
    return history


def network_shape(network):
    return getattr(network, "shape", None) or (3, 8, 8)


def together(folder, processes=2, **options):
    """The same in several processes; returns what they printed. RuntimeError with it if they failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
               __file__, str(folder), json.dumps(options)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-6000:])
    return done.stdout + done.stderr


def difference(folder, other):
    """The largest difference of two runs' last checkpoints, of weights, averages, moments and losses, by kind."""
    (ours, about), (theirs, expected) = (read_tensors(checkpoints(f)[0]) for f in (folder, other))
    assert about["step"] == expected["step"] and ours.keys() == theirs.keys()
    gaps = {}
    for name, tensor in ours.items():
        kind = name.split("/")[0]
        gaps[kind] = max(gaps.get(kind, 0.0), (tensor.double() - theirs[name].double()).abs().max().item())
    return gaps


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run(folder)
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_reach_the_weights_of_one(parallel, alone, tmp_path):
    together(tmp_path, parallel=parallel, processes=2)
    gaps = difference(tmp_path, alone)
    print(parallel, gaps)
    assert gaps["model"] < 1e-5 and gaps["ema"] < 1e-5 and gaps["history"] < 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], **json.loads(sys.argv[2]))
