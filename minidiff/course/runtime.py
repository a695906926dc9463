"""Where a notebook runs and how long it may train: `run = setup()`, then `steps = budget("training", ...)`."""

import contextlib
import os
import platform
import random
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

import minidiff
from minidiff.errors import unknown_name

TIERS = ("smoke", "cpu", "gpu", "big")  # seconds, minutes on two cores, minutes on a T4, an H100 and the like
BIG_MEMORY = 40e9  # bytes of GPU memory from which a GPU is big


@dataclass(frozen=True)
class Run:
    """What setup() found: the device, the dtype for autocast (bfloat16 or float32), the seed and the tier."""

    device: torch.device
    dtype: torch.dtype
    seed: int
    tier: str

    def autocast(self):
        """A context for the forward pass: bfloat16 where the GPU has it, else nothing."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def setup(seed=0, device=None):
    """Seed everything, choose device, dtype and tier, print them in one line and return them as a Run.

    device: "cuda" where there is one, else "cpu"; name another to override ("mps" on a Mac). The dtype is bfloat16 only
    on a CUDA device that computes in it. MINIDIFF_TIER overrides the tier, MINIDIFF_THREADS the number of CPU threads
    (OMP_NUM_THREADS works as always). Raises ValueError for an unknown tier or a number of threads below 1.
    """
    threads = os.environ.get("MINIDIFF_THREADS")
    if threads:
        if not threads.isdecimal() or int(threads) < 1:
            raise ValueError(f"MINIDIFF_THREADS={threads!r}; expected a whole number of at least 1, or unset it.")
        torch.set_num_threads(int(threads))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    run = Run(device, torch.bfloat16 if bf16 else torch.float32, seed, tier())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # all devices
    if "ipykernel" in sys.modules:  # in a notebook: the size of the reader's own figures
        import matplotlib

        matplotlib.rcParams["figure.dpi"] = 110
    threads = torch.get_num_threads()
    cpu = f"{threads} thread{'s' * (threads != 1)}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    print(f"device {device.type} ({where}) · {str(run.dtype).removeprefix('torch.')} · seed {seed} · tier {run.tier} · "
          f"minidiff {minidiff.__version__} · torch {torch.__version__} · Python {platform.python_version()}")
    return run


def tier():
    """The name of the tier: MINIDIFF_TIER, else cpu without CUDA, gpu with it, big from 40 GB of GPU memory."""
    name = os.environ.get("MINIDIFF_TIER")
    if name:
        if name not in TIERS:
            raise unknown_name("tier in MINIDIFF_TIER", name, TIERS)
        return name
    if not torch.cuda.is_available():
        return "cpu"
    return "big" if torch.cuda.get_device_properties(0).total_memory >= BIG_MEMORY else "gpu"


def budget(what="training", *, smoke, cpu, gpu=None, big=None, per_step=None, seconds_per_step=None):
    """How long to train here: the value given for this tier, printed together with the time it takes.

        steps = budget("training the U-Net", smoke=20, cpu=800, gpu=20_000, per_step=lambda: one_training_step())

    smoke, cpu, gpu, big: a number of steps, or a dict of settings whose "steps" is that number; what is left out is
    taken from the tier below. The estimate needs `per_step`, a function that does one step and is called five times
    (two to warm up, the median of three; they train the model too, the random state is put back; not called in the
    smoke tier), or a measured `seconds_per_step`. Raises TypeError for a per_step that cannot be called.
    """
    values = {"smoke": smoke, "cpu": cpu, "gpu": gpu, "big": big}
    name = tier()
    value = next(values[k] for k in reversed(TIERS[: TIERS.index(name) + 1]) if values[k] is not None)
    if per_step is not None and not callable(per_step):
        raise TypeError(f"per_step={per_step!r}; expected a function without arguments that does one training step, "
                        "or give seconds_per_step, a number.")
    settings = value if isinstance(value, dict) else {"steps": value}
    steps = settings.get("steps")
    if per_step is not None and name != "smoke" and steps:
        seconds_per_step = _seconds_per_step(per_step)
    line = f"{what}: {', '.join(f'{k} {_count(v)}' for k, v in settings.items())} (tier {name})"
    if seconds_per_step and steps:
        line += f", about {_duration(steps * seconds_per_step)} here at {_short(seconds_per_step)} a step"
        if steps * seconds_per_step > 900:
            line += ". Too long? Set MINIDIFF_TIER=smoke before the notebook starts"
    print(line)
    return value


def _seconds_per_step(per_step, warm_up=2, timed=3):
    """Median time of a step, after warming up; the random state is as before."""
    cuda = torch.cuda.is_available()
    seconds = []
    with torch.random.fork_rng():
        for _ in range(warm_up + timed):
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            per_step()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:])


def _count(value):
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _duration(seconds):
    """'40 s', '3 min', '2.5 h': no more digits than such an estimate deserves."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(seconds):
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1000:.2g} ms"
