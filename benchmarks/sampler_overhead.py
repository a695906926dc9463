"""What a sampler costs besides the network, beside diffusers' schedulers: `python benchmarks/sampler_overhead.py`.

Both sides take 50 steps on a (1, 3, 32, 32) batch of float32, linear betas, T = 1000, one thread, with nothing to wait
for: diffusers gets a constant eps, and minidiff either a bound denoiser that returns a constant Prediction ("constant")
or the whole of Diffusion.denoise with clipping around a network that returns its input ("denoise"). The repeats of all
alternate, and what is measured is processor time, so that a busy machine hurts them alike and a loop that was put
aside for another program does not count as slow; the numbers are medians. DDPM's noise is drawn beforehand on
both sides: that takes 8 us whoever does it, as long as half a step here.

Writes benchmarks/sampler_overhead.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from minidiff import Diffusion, schedules
from minidiff.guidance import condition
from minidiff.prediction import Prediction, clip
from minidiff.samplers import SAMPLERS
from minidiff.spacings import spacing

SHAPE, STEPS, SEED = (3, 32, 32), 50, 0
BLOCK = 4  # runs in a row, so that the code of the side before is out of the caches for most of them
PAIRS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}
TARGETS = {"constant": {"ddpm": 5, "ddim": 5, "dpmpp_2m": 7}, "denoise": {"ddpm": 3.5, "ddim": 4, "dpmpp_2m": 5}}


def nothing(x, time, y=None):
    """A network that returns its input. A function, since the cost of calling a module is the network's own."""
    return x


def ours(sampler, kind):
    """The loop of minidiff with one of the two denoisers: a function that runs it once, and returns the picture."""
    schedule = schedules.linear(1000)
    times, x_T = spacing(schedule, STEPS), start()
    if kind == "constant":
        constant = Prediction("x0", x_T, start().clamp(-1, 1), 1.0, 1.0)
        denoise = lambda x, t: constant  # noqa: E731
    else:
        diffusion = Diffusion(nothing, schedule, "eps", shape=SHAPE)
        denoise = clip(condition(diffusion.denoise))
    drawn, run = start(), SAMPLERS[sampler]

    def noise(x):
        return drawn

    def loop():
        *_, last = run(denoise, schedule, x_T, times, noise)
        return last.x

    return loop


def theirs(scheduler):
    """The usual loop of diffusers around a scheduler with its default options; the timesteps are set outside it."""
    import diffusers

    scheduler = getattr(diffusers, scheduler)(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)
    x_T, eps = start(), start()

    @torch.no_grad()
    def loop():
        x = x_T
        for t in scheduler.timesteps:
            x = scheduler.step(eps, t, x).prev_sample
        return x

    return loop, lambda: scheduler.set_timesteps(STEPS)


def start():
    """The picture of noise that all start with."""
    return torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(SEED))


def measure(repeats):
    """Microseconds a step: {(sampler, side): median over the repeats}, all sides alternating."""
    sides = {}
    for sampler, scheduler in PAIRS.items():
        for kind in TARGETS:
            sides[sampler, kind] = ours(sampler, kind), lambda: None
        sides[sampler, "diffusers"] = theirs(scheduler)
    seconds = {key: [] for key in sides}
    drawn = start()
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **kwargs: drawn):
        for repeat in range(repeats + 1):  # the first warms up
            for key, (loop, prepare) in sides.items():
                spent = block(loop, prepare)
                if repeat:
                    seconds[key].append(spent)
    return {key: 1e6 * statistics.median(values) for key, values in seconds.items()}


def block(loop, prepare):
    """Seconds of processor time a step, over BLOCK runs of a loop."""
    spent = 0.0
    for _ in range(BLOCK):
        prepare()
        began = time.process_time()
        picture = loop()
        spent += time.process_time() - began
    assert picture.shape == (1, *SHAPE) and picture.isfinite().all()
    return spent / BLOCK / STEPS


def report(medians, repeats):
    """The table as a list of rows, and all that is written to the file."""
    rows = []
    for sampler in PAIRS:
        peer = medians[sampler, "diffusers"]
        for kind, targets in TARGETS.items():
            own = medians[sampler, kind]
            rows.append({
                "sampler": sampler, "denoiser": kind, "minidiff_us_per_step": round(own, 1),
                "diffusers_us_per_step": round(peer, 1), "ratio": round(peer / own, 2), "target": targets[sampler],
            })  # fmt: skip
    about = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "diffusers": version("diffusers"),
        "minidiff": version("minidiff"), "shape": [1, *SHAPE], "steps": STEPS, "repeats": repeats,
        "loops_a_repeat": BLOCK, "clock": "processor time, median",
    }  # fmt: skip
    return rows, about | {"rows": rows}


def machine():
    """What the processor calls itself, and how many of it there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def main():
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=100, help=f"of {BLOCK} loops of {STEPS} steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, whole = report(measure(arguments.repeats), arguments.repeats)
    print(f"{'sampler':10} {'denoiser':10} {'minidiff':>10} {'diffusers':>10} {'ratio':>7} {'target':>7}   (us a step)")
    for row in rows:
        own, peer, ratio, target = list(row.values())[2:]
        print(f"{row['sampler']:10} {row['denoiser']:10} {own:10.1f} {peer:10.1f} {ratio:7.2f} {target:7g}")
    arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
