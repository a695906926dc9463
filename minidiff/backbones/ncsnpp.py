"""NCSN++ and DDPM++ (Song et al. 2021, appendix H), also as EDM trained them (Karras et al. 2022), equal to both.

    image ------------> shrink ------------> shrink ----.
      v                   v +                  v +      v
    conv -> | blocks | -> halve -> | blocks | -> halve -> ... -> middle -> ... -> double -> | blocks | -> conv
    time, label -> MLP -----^ added in every block                 ^ every block takes a map that the way down kept

What changed since DDPM's U-Net: the size changes inside residual blocks, as in BigGAN (`resblock_type="biggan"`), where
DDPM has convolutions between them; a sum of two branches is divided by sqrt 2, which keeps its variance
(`skip_rescale`); on the way up attention comes once a level; there are twice as many blocks. That is DDPM++.

NCSN++ also resamples with a smooth filter in place of means and repetitions (`fir`), and shows every level the image
itself, shrunk step by step (`progressive_input="residual"`). Networks that read log sigma do so by random Fourier
features (`embedding="fourier"`); those of the VE SDE return a score, so they divide by sigma (`scale_by_sigma`).

EDM's networks are these two, with labels as one-hot rows and with what augmentation did to the image as an input.
Differences from the papers: the score-SDE networks take labels, too, in EDM's way; q, k and v are one linear map.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.backbones.unet import Attention, Downsample, Upsample
from minidiff.errors import unknown_name
from minidiff.layers import check_halving, null_labels, run

CHOICES = {
    "embedding": ("positional", "positional_edm", "fourier"), "progressive_input": ("none", "residual"),
    "resblock_type": ("biggan", "ddpm"),
}  # fmt: skip


class NCSNpp(nn.Module):
    """x (B, in_channels, H, W), time (B,) or (1,), y labels (B,) or rows (B, num_classes) -> (B, out_channels, H, W).

    nf: width of the first level; ch_mult: the factor of each level, the size halves between them. attn_resolutions: the
    sizes, counted from image_size, with attention. H and W must be divisible by 2 ** (len(ch_mult) - 1).
    time: 999 t for the VP SDE, log sigma / 4 for EDM. scale_by_sigma: it is sigma itself; the network takes its
    logarithm, and returns a score. centered=False: images are in [0, 1], and become 2 x - 1 here.
    embedding: EDM rounds the positional one otherwise, which near 999 shifts outputs by 1e-5.
    num_classes: labels or one-hot rows; the label num_classes and a row of zeros mean 'none'.
    augment_dim: `augment_labels` (B, augment_dim) say how the images were augmented; zeros or None: not at all.
    group_width: a group of a norm has so many channels, or more if there would be more than 32 groups.
    `network.checkpoint = True` saves memory in training (layers.run). Raises ValueError for unknown choices, and for
    inputs that do not fit.
    """

    checkpoint = False

    def __init__(
        self, image_size=32, in_channels=3, out_channels=3, nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=4,
        attn_resolutions=(16,), dropout=0.0, embedding="positional", fourier_scale=16.0, fir=False,
        progressive_input="none", resblock_type="biggan", skip_rescale=True, scale_by_sigma=False, centered=True,
        num_classes=0, augment_dim=0, group_width=4,
    ):  # fmt: skip
        super().__init__()
        check_choices(embedding, progressive_input, resblock_type, fir)
        self.shape, self.in_channels = (in_channels, image_size, image_size), in_channels
        self.num_classes, self.one_hot, self.divisor = num_classes, bool(num_classes), 2 ** (len(ch_mult) - 1)
        self.scale_by_sigma, self.centered, self.biggan = scale_by_sigma, centered, resblock_type == "biggan"
        self.scale, emb, widths = 0.5**0.5 if skip_rescale else 1.0, 4 * nf, [nf * mult for mult in ch_mult]
        attends = [image_size // 2**level in attn_resolutions for level in range(len(widths))]

        def block(c_in, c_out, attends=False, resample=None):
            return Block(c_in, c_out, emb, dropout, attends, resample, fir, self.scale, group_width)

        self.embed = Embedding(nf, emb, embedding, fourier_scale, scale_by_sigma, num_classes, augment_dim)
        self.conv_in = nn.Conv2d(in_channels, nf, 3, padding=1)
        kept, c, image = [nf], nf, in_channels  # widths of the maps that the way down keeps for the way up
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            stage = nn.ModuleDict({"blocks": nn.ModuleList()})
            for _ in range(num_res_blocks):
                stage["blocks"].append(block(c, width, attends[level]))
                c = width
                kept.append(c)
            if level < len(widths) - 1:
                stage["resample"] = block(c, c, resample="down") if self.biggan else Downsample(c)
                if progressive_input == "residual":
                    stage["image"] = nn.Sequential(Resample("blur", fir), nn.Conv2d(image, c, 3, stride=2))
                    image = c
                kept.append(c)
            self.down.append(stage)
        self.middle = nn.ModuleList([block(c, c, attends=True), block(c, c)])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            stage = nn.ModuleDict({"blocks": nn.ModuleList()})
            for i in range(num_res_blocks + 1):
                stage["blocks"].append(block(c + kept.pop(), width, attends[level] and i == num_res_blocks))
                c = width
            if level:
                stage["resample"] = block(c, c, resample="up") if self.biggan else Upsample(c)
            self.up.append(stage)
        self.norm_out = group_norm(c, group_width)
        self.conv_out = nn.Conv2d(c, out_channels, 3, padding=1)
        init_weights(self)

    def forward(self, x, time, y=None, augment_labels=None):
        check_halving(x, self.in_channels, self.divisor, time, y)
        emb = self.embed(time, y, augment_labels, x.dtype)  # (B or 1, 4 nf)
        told = [emb] if self.biggan else []  # a convolution that halves or doubles is not told the time
        image = x if self.centered else 2 * x - 1
        h = self.conv_in(image)
        kept = [h]
        for stage in self.down:
            for block in stage["blocks"]:
                h = run(block, h, emb, checkpoint=self.checkpoint)
                kept.append(h)
            if "resample" in stage:
                h = run(stage["resample"], h, *told, checkpoint=self.checkpoint)
                if "image" in stage:
                    image = h = join(stage["image"](image), h, self.scale)
                kept.append(h)
        for block in self.middle:
            h = run(block, h, emb, checkpoint=self.checkpoint)
        for stage in self.up:
            for block in stage["blocks"]:
                h = run(block, torch.cat([h, kept.pop()], dim=1), emb, checkpoint=self.checkpoint)
            if "resample" in stage:
                h = run(stage["resample"], h, *told, checkpoint=self.checkpoint)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h / time.to(h.dtype)[:, None, None, None] if self.scale_by_sigma else h

    def null(self, y):
        """The condition of the shape of y that means 'none': the label num_classes, or rows of zeros."""
        return null_labels(y, self.num_classes)


class Embedding(nn.Module):
    """What every block is told (B or 1, emb): SiLU of the embedded time, label and augmentation."""

    def __init__(self, nf, emb, kind, fourier_scale, logarithm, num_classes, augment_dim):
        super().__init__()
        self.nf, self.kind, self.logarithm, self.num_classes = nf, kind, logarithm, num_classes
        features = nf
        if kind == "fourier":
            features = 2 * nf
            frequencies = (fourier_scale * torch.randn(nf)).bfloat16().float()  # so a file in half precision is exact
            if logarithm:  # score_sde counts them among its parameters, EDM does not
                self.frequencies = nn.Parameter(frequencies, requires_grad=False)
            else:
                self.register_buffer("frequencies", frequencies)
        self.label = nn.Linear(num_classes, features) if num_classes else None
        self.augment = nn.Linear(augment_dim, features, bias=False) if augment_dim else None
        self.dense0, self.dense1 = nn.Linear(features, emb), nn.Linear(emb, emb)

    def forward(self, time, y, augment_labels, dtype):
        time = time.float().log() if self.logarithm else time.float()
        angles = time[:, None] * self.rates(time.device)
        features = torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)
        if self.label is not None:
            rows = one_hot(y, self.num_classes).to(dtype)
            features = features + self.label(rows * self.num_classes**0.5)  # a row of mean square 1
        if augment_labels is not None:
            if self.augment is None or augment_labels.shape[1:] != (self.augment.in_features,):
                raise ValueError(
                    f"augment_labels must have the width augment_dim of the network, got"
                    f" {tuple(augment_labels.shape)}; make the network for them, or leave them out"
                )
            features = features + self.augment(augment_labels.to(dtype))
        return F.silu(self.dense1(F.silu(self.dense0(features))))

    def rates(self, device):
        """The angles of one unit of time in float32, (nf,) random ones or (nf / 2,) from 1 to 1 / 10000."""
        if self.kind == "fourier":
            return 2 * math.pi * self.frequencies.float()
        index, most = torch.arange(self.nf // 2, dtype=torch.float32, device=device), self.nf // 2 - 1
        if self.kind == "positional_edm":  # the same numbers, but for their last bits
            return (1 / 10000) ** (index / most)
        return torch.exp(index * (-math.log(10000) / most))


class Block(nn.Module):
    """A residual block, which may halve ("down") or double ("up") the size, followed by attention where wanted."""

    def __init__(self, c_in, c_out, emb, dropout, attends, resample, fir, scale, group_width):
        super().__init__()
        self.scale = scale
        self.norm1, self.norm2 = group_norm(c_in, group_width), group_norm(c_out, group_width)
        self.resample = Resample(resample, fir) if resample else nn.Identity()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(emb, c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if resample or c_in != c_out else nn.Identity()
        self.attention = Attention(c_out, self.norm2.num_groups) if attends else None

    def forward(self, x, emb):
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = h + self.time(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        h = join(self.shortcut(self.resample(x)), h, self.scale)
        return h if self.attention is None else self.attention(h) * self.scale  # a sum, too


class Resample(nn.Module):
    """Half the size ("down") by the mean of four pixels, or twice ("up") by repeating each.

    `fir`: by the filter [1, 3, 3, 1] in both directions, with zeros outside the image (StyleGAN 2, Karras et al. 2020);
    "blur" leaves the size, but for a border that a convolution of stride 2 needs.
    """

    def __init__(self, direction, fir):
        super().__init__()
        self.direction, row = direction, torch.tensor([1.0, 3.0, 3.0, 1.0]) / (4 if direction == "up" else 8)
        self.register_buffer("kernel", torch.outer(row, row)[None, None] if fir else None, persistent=False)

    def forward(self, x):
        if self.kernel is None:
            return F.avg_pool2d(x, 2) if self.direction == "down" else F.interpolate(x, scale_factor=2.0)
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, 4, 4)  # every channel by itself, all at once
        if self.direction == "up":
            return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)
        stride, padding = (2, 1) if self.direction == "down" else (1, 2)
        return F.conv2d(x, kernel, stride=stride, padding=padding, groups=channels)


def join(x, h, scale):
    """The sum of two branches, times `scale`."""
    return x + h if scale == 1 else (x + h) * scale


def group_norm(channels, group_width):
    """Groups of `group_width` channels, or wider ones if there would be more than 32 of them."""
    return nn.GroupNorm(min(channels // group_width, 32), channels, eps=1e-6)


def one_hot(y, num_classes):
    """Labels (B,) -> rows (B, num_classes) with a one each, zeros for the label num_classes; rows stay as they are."""
    if y is None:
        raise ValueError("labels are missing: pass y (B,), one-hot rows, or network.null(...) for 'no label'")
    if y.shape[1:] not in ((), (num_classes,)):
        raise ValueError(f"labels must be (B,), or one-hot rows (B, {num_classes}), got {tuple(y.shape)}")
    return y if y.ndim == 2 else y[:, None] == torch.arange(num_classes, device=y.device)


def init_weights(network):
    """Uniform with variance 1 / (mean of fan in and fan out), a tenth of it for q, k and v; no biases.

    The last layer of every branch starts as (nearly) nothing.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            last, qkv = name.endswith(("conv2", "attention.out", "conv_out")), name.endswith("qkv")
            for part in layer.weight.chunk(3 if qkv else 1):  # q, k and v are three maps in one
                nn.init.xavier_uniform_(part, gain=1e-5 if last else 0.1**0.5 if qkv else 1.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_choices(embedding, progressive_input, resblock_type, fir):
    """Raise ValueError for a choice that does not exist, or not beside the others."""
    chosen = {"embedding": embedding, "progressive_input": progressive_input, "resblock_type": resblock_type}
    for kind, name in chosen.items():
        if name not in CHOICES[kind]:
            raise unknown_name(kind, name, CHOICES[kind])
    if progressive_input == "residual" and not fir:
        raise ValueError('progressive_input="residual" shrinks the image with the filter: pass fir=True')
    if resblock_type == "ddpm" and fir:
        raise ValueError('fir=True filters inside residual blocks: pass resblock_type="biggan", or fir=False')


NCSNPP = dict(fir=True, progressive_input="residual")
VE = dict(embedding="fourier", scale_by_sigma=True, centered=False)
EDM = dict(ch_mult=(2, 2, 2), dropout=0.13, augment_dim=9)
SIZES = {  # FID on CIFAR-10. Song's deep networks have num_res_blocks=8, EDM's with labels num_classes=10
    "ncsnpp_cifar10": dict(dropout=0.1, **NCSNPP, **VE),  # 2.38, deep 2.20
    "ddpmpp_cifar10": dict(dropout=0.1),  # 2.55, deep 2.41
    "edm_ncsnpp_cifar10": dict(embedding="fourier", **NCSNPP, **EDM),  # 1.98, with labels 1.79
    "edm_ddpmpp_cifar10": dict(embedding="positional_edm", **EDM),  # 1.97, with labels 1.79
}
for size, small in {
    "tiny": dict(image_size=16, nf=24, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,)),
    "test": dict(image_size=8, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)),
}.items():
    SIZES |= {f"ddpmpp_{size}": small, f"ncsnpp_{size}": small | NCSNPP}
    SIZES[f"edm_{size}"] = small | NCSNPP | {"embedding": "fourier"}

for name, arguments in SIZES.items():
    register_model(name, NCSNpp, **arguments)
