"""Many pictures of many conditions: drawn in batches that fit, each picture from a seed of its own.

`minidiff.sample` takes the conditions of all pictures at once and counts the pictures of one seed. Here conditions are
made batch by batch, and each picture has its own pair of seed and number; pipeline.py builds on it.
"""

import sys
import warnings

import torch
from tqdm import tqdm

from minidiff.diffusion import eval_mode
from minidiff.errors import check_whole, unknown_name
from minidiff.samplers import SAMPLERS, _check_options, _check_pull, _default_spacing, _guiding, bind, seeded_noise
from minidiff.spacings import spacing as make_times

MOST = {"cpu": 64, "cuda": 256}  # pictures in a batch,
VALUES = {"cpu": 2**18, "cuda": 2**20}  # and the places H x W of all of them: of 64 x 64 pixels just as many


def draw(
    diffusion, condition, seeds, *, guidance=1.0, steps=50, sampler="ddim", spacing=None, t_end=0.0, clipped=None,
    batch_size=None, progress=True, on_step=None, **options,
):  # fmt: skip
    """One picture for each of N seeds, (N, C, H, W) on the CPU, by a Diffusion.

    condition   condition(slice) -> (y, negative y or None) of these pictures, on the device; asked batch by batch
    seeds       a list of pairs (seed, number): where the noise of each picture comes from
    batch_size  None: as many as should fit. Where the device runs out of memory a batch is halved, with a warning
    Everything else, and what it raises, is as in minidiff.sample.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    batch_size = usual_batch(diffusion) if batch_size is None else batch_size
    check_whole("batch_size", batch_size)
    guiding = _guiding(options)
    _check_options(diffusion, sampler, options, guidance, guiding)
    _check_pull(None, None, clipped, diffusion)
    if sampler == "ddpm" and diffusion.learned_range:
        options.setdefault("variance", "learned")
    clipped = diffusion.latents is None if clipped is None else clipped
    times = make_times(diffusion.schedule, steps, spacing or _default_spacing(diffusion), t_end=t_end)
    each = {t: i for i, t in enumerate(times)}  # the steps of a picture that are done at t
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # notebooks paint stderr red
    total = len(seeds) * (len(times) - 1)
    pictures, first = [], 0
    with eval_mode(diffusion), tqdm(total=total, desc=sampler, disable=not progress, ascii=True, file=stream) as bar:

        def tick(step):
            bar.update(first * (len(times) - 1) + len(step.x) * each[step.t] - bar.n)
            if on_step is not None:
                on_step(step)

        while first < len(seeds):
            part = slice(first, min(first + batch_size, len(seeds)))
            try:
                pictures.append(_batch(diffusion, condition, part, seeds[part], times, SAMPLERS[sampler], guidance,
                                       clipped, guiding, options, tick))  # fmt: skip
                first = part.stop
            except torch.OutOfMemoryError:
                if part.stop - first == 1:
                    raise
                batch_size = (part.stop - first) // 2
                warnings.warn(f"the batch did not fit into memory; going on with batch_size={batch_size}", stacklevel=4)
    return torch.cat(pictures)


def _batch(diffusion, condition, part, seeds, times, run, guidance, clipped, guiding, options, tick):
    """The pictures of these seeds, on the CPU."""
    y, negative = condition(part)
    if negative is not None:
        if guidance == 1.0:
            raise ValueError("negative: a change of classifier-free guidance, and guidance=1 is none; try guidance=3")
        guiding = guiding | {"negative": negative}
    denoise, noise = bind(diffusion, y, guidance, clipped, **guiding), seeded_noise(seeds)
    x = diffusion.schedule.start((len(seeds), *diffusion.shape), noise, times[0], device=diffusion.device)
    for step in run(denoise, diffusion.schedule, x, times, noise, **options):
        tick(step)
    return step.x.cpu()


def usual_batch(diffusion):
    """How many pictures should fit: by their size and the kind of device."""
    kind = "cuda" if diffusion.device.type == "cuda" else "cpu"
    _, *sides = diffusion.shape
    return max(1, min(MOST[kind], VALUES[kind] // max(1, torch.Size(sides).numel())))
