"""`sample()`: pictures from a diffusion model, by any sampler, with a progress bar."""

import inspect
import sys

import torch
from tqdm import tqdm

from minidiff.diffusion import check_labels, eval_mode
from minidiff.errors import check_whole, unknown_name
from minidiff.guidance import classifier_free, condition
from minidiff.prediction import clip
from minidiff.samplers.ancestral import Step, ddim, ddpm
from minidiff.samplers.noise import seeded_noise
from minidiff.spacings import spacing as make_times

__all__ = ["SAMPLERS", "Step", "ddim", "ddpm", "sample", "seeded_noise"]

SAMPLERS = {"ddim": ddim, "ddpm": ddpm}


def sample(
    diffusion, num=8, *, y=None, sampler="ddim", steps=50, spacing="uniform", guidance=1.0, seed=0, batch_size=64,
    clipped=None, progress=True, on_step=None, **options,
):  # fmt: skip
    """`num` pictures (num, C, H, W), float32, from a Diffusion.

    y: a label for all, a list or tensor (num,) of labels, or None for an unconditional model. sampler: "ddim" or
    "ddpm", with its `options` (eta; variance). steps and spacing: see spacings.py. guidance: the classifier-free
    scale, 1 for none. seed: picture i depends on (seed, i) alone, not on the batch. clipped: keep x0 in the value
    range (default: yes, unless the model works on latents). on_step(step) sees every Step(x, t, x0) of every batch.

    Raises ValueError for an unknown sampler or option, fewer than one step or more than the schedule has, a num,
    batch_size or seed that is no such number, and labels that do not fit.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    valid = [n for n, p in inspect.signature(SAMPLERS[sampler]).parameters.items() if p.kind == p.KEYWORD_ONLY]
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of {sampler}", option, valid)
    for name, value, least in (("num", num, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        check_whole(name, value, least)
    if options.get("variance") == "learned" and not diffusion.learned_range:
        raise ValueError('variance="learned" needs a network with a learned range; use "small" or "large"')
    times = make_times(diffusion.schedule, steps, spacing)
    if y is not None:
        try:
            y = torch.as_tensor(y, device=diffusion.device)
        except (TypeError, ValueError):
            raise ValueError(f"y must be a label, or a list or tensor of {num} labels, got {y!r}") from None
        y = y.expand(num) if y.ndim == 0 else y
    check_labels(diffusion.network, y, num)
    clipped = diffusion.latents is None if clipped is None else clipped
    batches = [range(first, min(first + batch_size, num)) for first in range(0, num, batch_size)]
    pictures = []
    total = len(batches) * (len(times) - 1)
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # notebooks paint stderr red
    with eval_mode(diffusion), tqdm(total=total, desc=sampler, disable=not progress, ascii=True, file=stream) as bar:
        for batch in batches:
            denoise = bind(diffusion, None if y is None else y[batch.start : batch.stop], guidance, clipped)
            noise = seeded_noise([(seed, i) for i in batch])
            shape = (len(batch), *diffusion.shape)
            x = diffusion.schedule.start(shape, noise, times[0], device=diffusion.device)
            for step in SAMPLERS[sampler](denoise, diffusion.schedule, x, times, noise, **options):
                bar.update()
                if on_step is not None:
                    on_step(step)
            pictures.append(step.x)
    return torch.cat(pictures)


def bind(diffusion, y, guidance=1.0, clipped=True):
    """The bound denoiser of a model: condition y (B,), classifier-free guidance, and clipping to the value range."""
    if guidance == 1.0:
        denoise = condition(diffusion.denoise, y)
    elif y is None:
        raise ValueError(f"guidance={guidance} needs a condition: pass y=..., or leave guidance at 1 for this model")
    else:
        denoise = classifier_free(diffusion.denoise, y, guidance, diffusion.network.null(y))
    return clip(denoise, *diffusion.value_range) if clipped else denoise
