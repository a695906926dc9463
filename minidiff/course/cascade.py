"""A cascade in small: a diffusion model that enlarges, and a reader of rough pictures. Notebook 19 takes it apart.

    enlarger = Enlarger(network, schedules.cosine(), small=16, shape=(3, 32, 32))
    pictures = enlarge(enlarger, small_ones, y, level=0.1)

What enlarges has learnt from true small pictures, and gets those that another model made. Noise on the small picture,
of an amount that the network is told, hides the difference ("noise conditioning augmentation", Saharia et al. 2022,
Imagen).
"""

import functools

import torch
import torch.nn.functional as F

from minidiff.datasets.record import Record
from minidiff.datasets.scenes import COLOURS, SHAPES, SIZES, coverage, parse
from minidiff.diffusion import Diffusion, eval_mode
from minidiff.guidance import classifier_free
from minidiff.prediction import clip
from minidiff.samplers import dpmpp_2m, seeded_noise
from minidiff.spacings import spacing


class Enlarger(Diffusion):
    """A Diffusion whose loss makes the small picture of each large one, noises it and shows it to the network.

    The network takes `low_res` (B, C, small, small) and `low_res_time` (B,), how noisy that is, in 0 .. 999, as
    `efficient_unet_tiny` does. In training levels are uniform in [0, top]; top=0 leaves the small pictures clean.
    It predicts x0, most of which low_res shows: that network halves the noisy picture at once, and takes long to learn
    to hand through the noise of every pixel, as "v" and "eps" want it at small t.
    """

    def __init__(self, network, schedule, prediction="x0", *, small=16, top=1.0, **options):
        super().__init__(network, schedule, prediction, **options)
        self.small, self.top = small, top

    def loss(self, x0, y=None, **options):
        """The loss of each picture (B,), as Diffusion.loss has it, with the small pictures of x0 for inputs."""
        level = self.top * torch.rand(len(x0), device=x0.device)
        low = shrink(x0, self.small)
        return super().loss(x0, y, **self.shown(low, level, torch.randn_like(low)), **options)

    def shown(self, low, level, noise):
        """What the network sees of small pictures (B, C, h, w) at these levels (B,) in [0, 1]: a dict of its inputs."""
        alpha, sigma = self.alpha_sigma(level, low)
        return {"low_res": alpha * low + sigma * noise, "low_res_time": 999 * level}


@torch.no_grad()
def enlarge(model, low, y, *, level=0.1, guidance=1.0, steps=20, seed=0, batch_size=64):
    """Large pictures (B, C, H, W) of small ones (B, C, h, w) by an Enlarger, which sees them noised up to `level`.

    y: the condition of all B. Picture i depends on (seed, i), not on the batch; the same noise is added at any level.
    """
    times, pictures = spacing(model.schedule, steps), []
    with eval_mode(model):
        for first in range(0, len(low), batch_size):
            part = low[first:first + batch_size].to(model.device)
            noise = seeded_noise([(seed, first + i) for i in range(len(part))])
            levels = torch.full((len(part),), float(level), device=model.device)
            inputs = model.shown(part, levels, noise(part))
            denoise = clip(classifier_free(model.denoise, y[first:first + len(part)].to(model.device), guidance,
                                           **inputs), *model.value_range)  # fmt: skip
            x = model.schedule.start((len(part), *model.shape), noise, times[0], device=model.device)
            for step in dpmpp_2m(denoise, model.schedule, x, times, noise):
                x = step.x
            pictures.append(x)
    return torch.cat(pictures)


def shrink(images, size):
    """Images (B, C, H, W) at size (B, C, size, size), where size divides H and W: means over squares of pixels."""
    return F.avg_pool2d(images, images.shape[-1] // size)


class Shrunk(torch.utils.data.Dataset):
    """A captioned data set in small: what the lower stage of a cascade learns from is what the upper one is shown."""

    def __init__(self, dataset, size):
        self.dataset, self.size = dataset, size

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, items):
        """What a DataLoader calls: the Records of a batch."""
        images, labels, captions = self.batch(items)
        return [Record(*row) for row in zip(images, labels.tolist(), captions)]

    def batch(self, items):
        """Many items at once: images (B, 3, size, size), labels (B,), list of captions."""
        images, labels, captions = self.dataset.batch(items)
        return shrink(images, self.size), labels, captions


# --- what does a rough picture show? ---------------------------------------------------------------------------------


@functools.cache
def templates(size):
    """The coverage of each shape, small and large, in the middle of a square (8, K, K), and its names."""
    side, names = int(0.42 * size) // 2 * 2 + 3, [(scale, shape) for shape in SHAPES for scale in SIZES]
    widths = [sum(SIZES[scale]) / 2 * size / side for scale, _ in names]
    kinds = [SHAPES.index(shape) for _, shape in names]
    middle = [0.5] * len(names)
    return coverage(kinds, middle, middle, widths, side), names


def nearest(pictures):
    """(size, colour, shape) of the one object that explains each picture (B, 3, S, S) best: never a refusal.

    Every shape is laid over the picture in every colour, size and place, on white, and the least squared difference
    wins. Where the oracle refuses a rough picture this one guesses, as an eye would; it knows one object alone.
    """
    cover, names = templates(pictures.shape[-1])
    ink = 1 - torch.tensor(list(COLOURS.values())) / 127.5 + 1  # (6, 3): what each colour takes from white, 0 .. 2
    there = torch.einsum("bchw,kc->bkhw", 1 - pictures.cpu().float().clamp(-1, 1), ink)
    overlap = F.conv2d(there.flatten(0, 1)[:, None], cover[:, None], padding=cover.shape[-1] // 2)
    gain = 2 * overlap.unflatten(0, there.shape[:2]).flatten(3).amax(3)  # (B, 6, 8), at the best place
    gain -= ink.square().sum(1)[:, None] * cover.square().sum((1, 2))  # |picture|^2 - |picture - template|^2
    best = gain.flatten(1).argmax(1).tolist()
    colours = list(COLOURS)
    return [(names[i % len(names)][0], colours[i // len(names)], names[i % len(names)][1]) for i in best]


def explained(pictures, captions):
    """(B, 4) bool: whether `nearest` sees the size, the colour, the shape of the caption's one object, and all three.

    A size that a caption leaves out is right. Raises ValueError for a caption of two objects.
    """
    rows = []
    for seen, caption in zip(nearest(pictures), captions, strict=True):
        things = parse(caption).things
        if len(things) != 1:
            raise ValueError(f"caption {caption!r} has two objects; this reader knows pictures of one")
        rows.append([said in (None, word) for said, word in zip(things[0], seen)])
    right = torch.tensor(rows)
    return torch.cat([right, right.all(1, keepdim=True)], dim=1)
