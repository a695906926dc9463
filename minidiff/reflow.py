"""Reflow: pairs of noise and picture joined by a model's own ODE, on which a straighter model is trained."""

import torch

from minidiff.errors import unknown_name
from minidiff.samplers import sample, seeded_noise

DETERMINISTIC = ("ddim", "euler", "midpoint", "heun", "dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "dpmpp_3s", "unipc")


def reflow_pairs(diffusion, num, *, y=None, sampler="heun", steps=50, seed=0, **options):
    """`num` pairs (x0, eps), each (num, C, H, W): the noise, and the picture to which the model's ODE takes it.

    Train the next model on them with `diffusion.loss(x0, y, eps=eps)`: its paths cross less, since each noise has one
    picture now instead of all, so that fewer steps do (rectified flow, Liu et al. 2022, section 2.2). `options` are
    those of `sample`. x0 is cut off at the value range in the end, as the loss demands (latents are not); clipped=True
    does so in each step. The model starts from unit noise: any variance-preserving schedule or flow. Raises ValueError
    for a sampler that adds noise on the way, and for a schedule that starts from another variance.
    """
    if sampler not in DETERMINISTIC:
        raise unknown_name("sampler without noise of its own", sampler, DETERMINISTIC)
    if diffusion.schedule.name in ("edm", "variance_exploding"):
        raise ValueError(f"reflow needs a model that starts from unit noise, {diffusion.schedule} does not; use flow()")
    if options.get("eta"):
        raise ValueError(f"reflow needs paths without noise on the way, got eta={options['eta']}; leave it at 0")
    x0 = sample(diffusion, num, y=y, sampler=sampler, steps=steps, seed=seed, **{"clipped": False, **options})
    x0 = x0.clamp(*diffusion.value_range) if diffusion.latents is None else x0
    eps = seeded_noise([(seed, i) for i in range(num)])(torch.empty_like(x0))  # what `sample` started with
    return x0, eps
