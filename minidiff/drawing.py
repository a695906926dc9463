"""Many pictures of many conditions: drawn in batches that fit, each picture from a seed of its own.

`minidiff.sample` takes the conditions of all pictures at once; here they are made batch by batch, and a batch that does
not fit into memory is halved. pipeline.py builds on it.
"""

import sys

import torch
from tqdm import tqdm

from minidiff.errors import check_whole, warn
from minidiff.samplers import sample, targets_of

MOST = {"cpu": 64, "cuda": 256}  # pictures in a batch,
VALUES = {"cpu": 2**18, "cuda": 2**20}  # and the places H x W of all of them: of 64 x 64 pixels just as many
BAR = "{desc}{percentage:3.0f}% |{bar:20}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}]"


def draw(diffusion, condition, seeds, *, batch_size=None, progress=True, on_step=None, target=None, **options):
    """One picture for each of N seeds, (N, C, H, W) on the CPU, by a Diffusion.

    condition   condition(slice) -> (y, negative y or None) of these pictures, on the device; asked batch by batch
    seeds       a list of pairs (seed, number): where the noise of each picture comes from
    batch_size  None: as many as should fit. Where the device runs out of memory a batch is halved, with a warning
    Everything else, and what it raises, is as in minidiff.sample.
    """
    batch_size = usual_batch(diffusion) if batch_size is None else batch_size
    check_whole("batch_size", batch_size)
    target = targets_of(target, len(seeds), diffusion.device)
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # notebooks paint stderr red
    pictures, first = [], 0
    with tqdm(total=len(seeds), disable=not progress, ascii=" -#", bar_format=BAR, file=stream) as bar:

        def tick(step):
            bar.update(first + len(step.x) * min(max(1 - step.t, 0.0), 1.0) - bar.n)
            if on_step is not None:
                on_step(step)

        while first < len(seeds):
            part = slice(first, min(first + batch_size, len(seeds)))
            count = part.stop - first
            y, negative = condition(part)
            own = {"negative": negative, "target": None if target is None else target[part]}
            own = {name: value for name, value in own.items() if value is not None}
            try:
                drawn = sample(diffusion, count, y=y, seed=seeds[part], batch_size=count, progress=False, on_step=tick,
                               **options | own)  # fmt: skip
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                batch_size = count // 2
                warn(f"the batch did not fit into memory; going on with batch_size={batch_size}")
                continue
            pictures.append(drawn.cpu())
            first = part.stop
            bar.update(first - bar.n)  # the last step may end before the data
    return torch.cat(pictures)


def usual_batch(diffusion):
    """How many pictures should fit: by their size and the kind of device."""
    kind = "cuda" if diffusion.device.type == "cuda" else "cpu"
    _, *sides = diffusion.shape
    return max(1, min(MOST[kind], VALUES[kind] // max(1, torch.Size(sides).numel())))
