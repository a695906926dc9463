"""What the Trainer costs over the bare loop of notebook 03: `python benchmarks/trainer_overhead.py`.

Both train the same network on the same pictures with the same fused optimiser, from the same weights, one thread. The
bare loop draws, takes one step and averages, and that is all; the Trainer also clips, guards against NaN, seeds every
step anew, keeps the loss of each noise level, schedules the learning rate and writes its log. Blocks of steps of both
alternate, and what is measured is processor time; the numbers are medians over the blocks, and of their ratios.

Writes benchmarks/trainer_overhead.json.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from minidiff import Diffusion, create_model, load_dataset, schedules
from minidiff.training import Trainer

TARGET = 1.03  # the Trainer's time over the bare loop's, at most
NETWORKS = {  # what notebooks train on a CPU: pictures of 16 pixels in batches of 64
    "ddpm_tiny": dict(num_classes=10),
    "dit_tiny": dict(num_classes=10),
    "uvit_tiny": dict(num_classes=10),
}
BATCH, BLOCK = 64, 5


def model(name):
    torch.manual_seed(0)
    return Diffusion(create_model(name, **NETWORKS[name]), schedules.cosine(), "v", shape=(3, 16, 16))


def bare(diffusion, images, labels, lr=1e-3, decay=0.999):
    """The training loop of notebook 03, as a generator: each next() is one step."""
    average, losses = copy.deepcopy(diffusion), []
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=lr, fused=True)
    diffusion.train()
    while True:
        chosen = torch.randint(len(images), (BATCH,))
        loss = diffusion.loss(images[chosen], labels[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), diffusion.parameters()):
                slow.lerp_(fast, 1 - decay)
        losses.append(loss.item())
        yield


def measure(name, blocks):
    """Medians of seconds a step of the bare loop and the Trainer, and of the ratio of neighbouring blocks."""
    data = load_dataset("emoji", size=16)
    loop = bare(model(name), data.images(), torch.as_tensor(data.labels))
    times = {"bare": [], "trainer": []}
    start = 0.0

    def on_step(step, history):
        """After each block of the Trainer's steps, one of the bare loop."""
        nonlocal start
        if step % BLOCK:
            return
        middle = time.process_time()
        for _ in range(BLOCK):
            next(loop)
        end = time.process_time()
        if step > BLOCK:  # the first block warms both up
            times["trainer"].append((middle - start) / BLOCK)
            times["bare"].append((end - middle) / BLOCK)
        start = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        Trainer(model(name), data, steps=BLOCK * (blocks + 1), batch_size=BATCH, folder=folder, save_every=10**6,
                progress=False, on_step=on_step).run()  # fmt: skip
    ratios = sorted(one / other for one, other in zip(times["trainer"], times["bare"]))
    quartiles = statistics.quantiles(ratios, n=4)
    bare_ms, trainer_ms = (1e3 * statistics.median(times[name]) for name in ("bare", "trainer"))
    result = {"bare_ms": bare_ms, "trainer_ms": trainer_ms, "ratio": statistics.median(ratios),
              "quartiles": [quartiles[0], quartiles[2]], "blocks": len(ratios)}  # fmt: skip
    return json.loads(json.dumps(result), parse_float=lambda number: round(float(number), 4))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=40, help=f"of {BLOCK} steps of each loop")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in arguments.networks:
        results[name] = result = measure(name, arguments.blocks)
        verdict = "ok" if result["ratio"] <= TARGET else f"above {TARGET}"
        print(f"{name}: bare {result['bare_ms']:.1f} ms, Trainer {result['trainer_ms']:.1f} ms a step, "
              f"ratio {result['ratio']:.3f} (quartiles {result['quartiles'][0]:.3f} to {result['quartiles'][1]:.3f}), "
              f"{verdict}")  # fmt: skip
    about = {"target": TARGET, "batch": BATCH, "torch": torch.__version__, "machine": platform.machine(),
             "cpu": platform.processor(), "date": time.strftime("%Y-%m-%d")}
    arguments.out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
