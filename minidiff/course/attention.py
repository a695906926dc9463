"""Where a transformer looks: one attention map at a time, with sliders for block, head, time and asking patch."""

import math

import torch

from minidiff.attention_maps import record_attention
from minidiff.course.pictures import pixels
from minidiff.course.style import VERMILION, quiet
from minidiff.course.widgets import explore
from minidiff.samplers import seeded_noise


@torch.no_grad()
def explore_attention(diffusion, x0, y=None, times=(0.1, 0.3, 0.5, 0.7, 0.9), patch=None, seed=0):
    """Sliders over the self-attention of `diffusion` while it denoises one picture; write it as a cell's last line.

    x0: the clean picture (1, C, H, W) or (C, H, W), noised to each of `times` with the noise of `seed`. y: its
    condition, for a batch of one. patch: which one asks at first, counted row by row; None: in the middle. Shown are
    the noisy picture with the asking patch, where that patch looks, and where all patches look on average; the share
    that goes to other tokens (time, label, text) stands above. Raises ValueError for more than one picture, and for a
    network without self-attention over patches, or with windows.
    """
    x0 = x0[None] if x0.ndim == 3 else x0
    if len(x0) != 1:
        raise ValueError(f"one picture is looked at, got {len(x0)}; pass x0[:1] and y[:1]")
    x0 = x0.to(diffusion.device)
    eps = seeded_noise([seed])(x0)
    noisy, maps = {}, {}
    for t in times:
        noisy[t] = diffusion.forward_process(x0, t, eps)
        with record_attention(diffusion.network) as recorded:
            diffusion.denoise(noisy[t], t, y)
        # not those between patches and a text, where there are as many keys as the text has tokens
        maps[t] = [one[0].cpu() for calls in recorded.values() for one in calls if one.shape[2] == one.shape[3]]
    if not maps[times[0]]:
        raise ValueError(f"{type(diffusion.network).__name__} has no self-attention to look at; pass a transformer")
    if any(len(one) != 1 for calls in recorded.values() for one in calls):
        raise ValueError(f"{type(diffusion.network).__name__} attends in windows: no map shows all of the picture")
    first = getattr(diffusion.network, "extras", 0)  # tokens before the patches; DiT's in-context ones come after
    sides = [math.isqrt(one.shape[2] - first) for one in maps[times[0]]]
    side = max(sides)  # the patches are numbered on the finest grid

    heads, halfway = max(len(one) for one in maps[times[0]]), times[len(times) // 2]
    start = (side + 1) * (side // 2) if patch is None else patch

    def show(block=0, head=0, time=halfway, patch=start):
        here, coarse = sides[block], side // sides[block]
        row, column = patch // side // coarse, patch % side // coarse
        weights = maps[time][block]
        weights = weights[head % len(weights)]  # in a pyramid not all blocks have as many heads
        patches = slice(first, first + here**2)
        asking = [weights[patches][row * here + column], weights[patches].mean(0)]  # one patch, and all on average
        others = [1 - one[patches].sum().item() for one in asking]
        return _draw(noisy[time][0], [one[patches].view(here, here) for one in asking], others, (row, column), time)

    return explore(show, block=range(len(sides)), head=range(heads), time=list(times), patch=range(side**2))


@quiet
def _draw(image, looks, others, asking, time):
    """The picture (C, H, W) and two maps (g, g), the asking patch (row, column) framed in all three."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure, panels = plt.subplots(1, 3, figsize=(8.4, 3.0))
    panels[0].imshow(pixels(image)[0])
    panels[0].set_title(f"noisy picture, t = {time:g}")
    for axes, look, other, who in zip(panels[1:], looks, others, ("the framed patch looks", "all look, on average")):
        shown = axes.imshow(look.numpy(), cmap="magma", vmin=0)
        figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03, format="%.2g").ax.tick_params(labelsize=8)
        axes.set_title(f"where {who}" + (f"\n{other:.0%} to other tokens" if other > 1e-4 else ""))
    for axes, cell in zip(panels, (image.shape[1] / len(looks[0]), 1, 1)):
        corner = [index * cell - 0.5 for index in reversed(asking)]
        for color, width in (("white", 4), (VERMILION, 2)):  # a white rim, to be seen on noise
            axes.add_patch(Rectangle(corner, cell, cell, fill=False, edgecolor=color, linewidth=width))
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
    return figure
