"""Imagen's Efficient U-Net (Saharia et al. 2022, appendix B.1): it enlarges a small image into a large one.

Three ideas make it cheap where the pixels are many, and steady: the weights stand at the low resolutions (two, four,
eight and eight residual blocks); a level halves before its blocks work and doubles after them; skips are scaled by
1 / sqrt(2).

    x, low_res -> conv -> | halve, 2 blocks | halve, 4 | halve, 8 | halve, 8, attention |
        conv  <-  | 2 blocks, double | 4, double | 8, double | 8, attention, double |   (joined level by level)

`low_res` is noised too while training ("noise conditioning augmentation"), and the network is told how much: that is
`low_res_time`. Neither code nor weights were published, so nothing here is compared with an original. What the paper
leaves open is decided so:
- skips are concatenated, and it is they that are scaled; the deepest way up has none, since it begins with that map;
- time, pooled text and the small image's time are one vector of 4 * channels[0] that scales and shifts the second norm
  of every residual block, as in ADM; times are 0 .. 999;
- halving is a 3x3 convolution of stride 2; doubling repeats every pixel, then a 3x3 convolution;
- attention has 8 heads and is twice as wide inside ("hidden 2c"). At 64 -> 256 the keys and values of the text stand
  beside the image's own, as the paper has it in its base model; at 256 -> 1024 they are alone;
- norms of 32 groups; the last convolution, and that of every residual branch, start at zero.
The paper says 600 million for 64 -> 256; no literal reading of its table gives that, and this one has 507.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.adm_blocks import TimeEmbedding, group_norm, zeroed
from minidiff.backbones.registry import register_model
from minidiff.errors import unknown_name
from minidiff.layers import (
    LabelEmbedding,
    PooledText,
    as_text,
    attention,
    check_condition,
    check_halving,
    merge_heads,
    no_text,
    null_for_empty,
    null_labels,
    run,
    split_heads,
)

ATTENTIONS = ("both", "text", "self")


class EfficientUNet(nn.Module):
    """x (B, in_channels, H, W), time (B,) or (1,) in 0 .. 999, y, low_res (B, in_channels, h, w) -> the shape of x.

    H and W must be divisible by 2^levels: every level halves. low_res: of any size, enlarged to x's; low_res_time: how
    noisy it is, (B,) or (1,) as time, 0 (clean) if left out.
    channels, num_blocks: of each level. attention: what the deepest level attends to, "both" itself and the text,
    "text" or "self"; without text that is itself, or nothing.
    num_classes: y is labels (B,) from 0, num_classes itself for 'none'. text_dim: y is Text with tokens (B, L,
    text_dim), or the bare tokens; pooled_dim: the width of y.pooled, a missing one adds nothing.
    Raises ValueError for an unknown choice and for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=256, in_channels=3, channels=(128, 256, 512, 1024), num_blocks=(2, 4, 8, 8), attention="both",
        num_heads=8, group_width=1, num_classes=0, text_dim=0, pooled_dim=0,
    ):  # fmt: skip
        super().__init__()
        if attention not in ATTENTIONS:
            raise unknown_name("attention", attention, ATTENTIONS)
        if len(channels) != len(num_blocks):
            raise ValueError(f"num_blocks must have {len(channels)} numbers, as channels has, got {tuple(num_blocks)}")
        check_condition(num_classes, text_dim, pooled_dim)
        self.shape, self.divisor = (in_channels, img_size, img_size), 2 ** len(channels)
        self.num_classes, self.text_dim, emb = num_classes, text_dim, 4 * channels[0]
        self.time_embed, self.low_res_embed = TimeEmbedding(channels[0]), TimeEmbedding(channels[0])
        self.label_embed = LabelEmbedding(num_classes, emb) if num_classes else None
        self.pooled_embed = PooledText(pooled_dim, emb) if pooled_dim else None
        self.null_text = nn.Parameter(0.02 * torch.randn(text_dim)) if text_dim else None

        self.conv_in = nn.Conv2d(2 * in_channels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        own, words = attention != "text", 0 if attention == "self" else text_dim
        attends = dict(num_heads=num_heads, own=own, text_dim=words) if own or words else None
        for level, (c, count) in enumerate(zip(channels, num_blocks)):
            above, deepest = channels[max(level - 1, 0)], level == len(channels) - 1
            options = dict(emb=emb, group_width=group_width, attends=attends if deepest else None)
            self.down.append(DBlock(above, c, count, **options))
            self.up.insert(0, UBlock(c if deepest else 2 * c, c, above, count, **options))
        self.conv_out = zeroed(nn.Conv2d(channels[0], in_channels, 3, padding=1))

    def forward(self, x, time, y=None, low_res=None, low_res_time=None):
        check_halving(x, self.shape[0], self.divisor, time, y)
        if low_res is None or low_res.shape[:2] != x.shape[:2]:
            got = None if low_res is None else tuple(low_res.shape)
            raise ValueError(f"pass low_res, the small images, as {tuple(x.shape[:2])} + (h, w); got {got}")
        emb, text, mask = self.embed(time, y, low_res_time, x.dtype)
        x = torch.cat([x, F.interpolate(low_res.to(x.dtype), x.shape[2:], mode="bilinear")], dim=1)
        h, kept = self.conv_in(x.contiguous(memory_format=torch.channels_last)), []
        for block in self.down:
            h = run(block, h, emb, text, mask, checkpoint=self.checkpoint)
            kept.append(h)
        for level, block in enumerate(self.up):
            skip = kept.pop()
            h = torch.cat([h, skip * 2**-0.5], dim=1) if level else h
            h = run(block, h, emb, text, mask, checkpoint=self.checkpoint)
        return self.conv_out(h)

    def embed(self, time, y, low_res_time, dtype):
        """What every block is told: SiLU of all that is one vector (B or 1, emb); tokens and mask of the text."""
        low_res_time = torch.zeros_like(time) if low_res_time is None else low_res_time
        emb, tokens, mask = self.time_embed(time, dtype) + self.low_res_embed(low_res_time, dtype), None, None
        if self.label_embed is not None:
            emb = emb + self.label_embed(y)
        if self.text_dim:
            text = as_text(y, self.text_dim)
            tokens, mask = null_for_empty(text, self.null_text)
            tokens = tokens.to(dtype)
            emb = emb if self.pooled_embed is None else self.pooled_embed(emb, text)
        return F.silu(emb), tokens, mask

    def null(self, y):
        """The condition of the shape of y that means 'none': the null label, or a text of no token."""
        return no_text(y, self.text_dim, self.null_text) if self.text_dim else null_labels(y, self.num_classes)


class DBlock(nn.Module):
    """Halve the map, then the residual blocks, then attention if there is one."""

    def __init__(self, c_in, c, count, *, emb, group_width, attends):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(ResBlock(c, c, emb, group_width) for _ in range(count))
        self.attention = Attention(c, group_width, **attends) if attends else None

    def forward(self, x, emb, text=None, mask=None):
        x = self.conv(x)
        for block in self.blocks:
            x = block(x, emb)
        return x if self.attention is None else self.attention(x, text, mask)


class UBlock(nn.Module):
    """The residual blocks, then attention if there is one, then double the map."""

    def __init__(self, c_in, c, c_out, count, *, emb, group_width, attends):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(c if i else c_in, c, emb, group_width) for i in range(count))
        self.attention = Attention(c, group_width, **attends) if attends else None
        self.conv = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c_out, 3, padding=1))

    def forward(self, x, emb, text=None, mask=None):
        for block in self.blocks:
            x = block(x, emb)
        return self.conv(x if self.attention is None else self.attention(x, text, mask))


class ResBlock(nn.Module):
    """Twice norm, swish, 3x3 convolution, the second norm told by emb; beside it a 1x1 convolution, always."""

    def __init__(self, c_in, c, emb, group_width):
        super().__init__()
        self.norm1, self.conv1 = group_norm(c_in, group_width), nn.Conv2d(c_in, c, 3, padding=1)
        self.emb = nn.Linear(emb, 2 * c)
        self.norm2, self.conv2 = group_norm(c, group_width), zeroed(nn.Conv2d(c, c, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c, 1)

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.shortcut(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Every place of x (B, c, H, W) asks the text, if text_dim, and all places, if `own`, in one softmax."""

    def __init__(self, c, group_width, *, num_heads, own, text_dim):
        super().__init__()
        if 2 * c % num_heads:
            raise ValueError(f"twice the deepest width, 2 * {c}, must be divisible by num_heads={num_heads}")
        self.num_heads, self.norm = num_heads, group_norm(c, group_width)
        self.q, self.kv = nn.Linear(c, 2 * c), nn.Linear(c, 4 * c) if own else None
        self.text_kv = nn.Linear(text_dim, 4 * c) if text_dim else None
        self.out = zeroed(nn.Linear(2 * c, c))

    def forward(self, x, text=None, mask=None):
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, c)
        kv = [] if self.text_kv is None else [self.text_kv(text)]
        if self.kv is not None:
            kv.append(self.kv(tokens))
            mask = None if mask is None else F.pad(mask, (0, tokens.shape[1]), value=True)
        k, v = torch.cat(kv, dim=1).chunk(2, dim=2)
        q, k, v = (split_heads(part, self.num_heads) for part in (self.q(tokens), k, v))
        out = self.out(merge_heads(attention(q, k, v, mask)))
        return x + out.transpose(1, 2).reshape(x.shape)


TEXT = dict(text_dim=4096, pooled_dim=4096)  # T5-XXL
SIZES = {
    "64_256": TEXT,
    "256_1024": dict(img_size=1024, attention="text", **TEXT),
    "tiny": dict(img_size=16, channels=(24, 48, 64), num_blocks=(1, 1, 2), num_heads=4, group_width=4),
    "test": dict(img_size=8, channels=(8, 16), num_blocks=(1, 2), num_heads=2, group_width=4),
}  # fmt: skip

for size, arguments in SIZES.items():
    register_model(f"efficient_unet_{size}", EfficientUNet, kind="upsampler", **arguments)
