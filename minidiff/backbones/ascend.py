"""ASCEND (arXiv 2212.13771): a strong hierarchical transformer encoder and a light convolutional decoder.

The encoder has to understand the noisy picture, the decoder only has to write down what was understood; so they need
not be of one kind. The encoder is a Swin transformer, the decoder the residual blocks of the usual diffusion U-Net,
and every map of the encoder is handed to the decoder at the same resolution. Read `ASCEND.forward` top to bottom.

    x -> conv -> | Swin pairs | merge | Swin pairs | ... -> middle -> ... | residual blocks | expand | ... -> conv
    time, label, pooled text -> emb ----^ norms of every block; text ----^ cross-attention at chosen resolutions

`encoder` and `decoder` are chosen one by one, "swin" or "residual", and `skips` can be left out: the paper's ablation.

No code or weights were published, and the paper's tables survive in fragments. What it says: pairs of window attention
without and with shift, head width 64, skips at every resolution, patch merging and expanding or convolutions between
them (`resample`), 1000 steps of the cosine schedule, multipliers 1, 2, 3, 4, 4 and about 590 M weights for the text
model of 128 pixels. What is decided here:
- windows of 8 (or the whole map where that is smaller), MLP ratio 4, a bias by distance; sizes that no window divides
  are padded as in Swin, and odd maps halved upwards, so that any img_size works;
- time, label and pooled text are one vector, as in ADM; it shifts and scales both norms of every Swin block (from zero
  at the start), and the second norm of every residual block;
- n units in each level of the encoder and n + 1 in the decoder, each joined with one map of the encoder, as in ADM;
- attention in windows knows distances and no places, and the text says what stands where. With `coordinates` the first
  convolution sees the row and the column of every pixel, too (CoordConv, Liu et al. 2018); the text models have it;
- with `text_mlp` every token goes through an MLP first, as in PixArt-alpha, but with a shortcut: keys and values are
  linear, and who is meant can depend on two words at once ("left of", and which thing came first);
- only the encoder and the middle listen to the text: cross-attention ends every unit at `attn_resolutions`. A residual
  encoder has self-attention there too, before it; the decoder is convolution alone. The middle is residual, attention,
  text, residual. A picture without text attends to one learned token, `null_text`;
- `text_attention="joint"` is GLIDE's way instead, for comparison: no layer more, but the text's keys and values stand
  before those of the self-attention, in one softmax: in both window attentions of a Swin pair, where every window sees
  itself and all of the text, and in the attention of a residual unit. The weights are about as many (ascend_text.py);
- widths and blocks: for text such that the weights come within 2 % of 300 and 590 M at 1024 text channels; the others
  are those of U-Nets for pictures of their size.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.adm_blocks import Block, TimeEmbedding, group_norm, zeroed
from minidiff.backbones.ascend_text import Listen, TextSwinBlock
from minidiff.backbones.registry import register_model
from minidiff.backbones.swin import PatchExpanding, PatchMerging, SwinBlock
from minidiff.errors import unknown_name
from minidiff.layers import (
    LabelEmbedding,
    Mlp,
    PooledText,
    Text,
    as_text,
    check_condition,
    check_images,
    no_text,
    null_for_empty,
    null_labels,
    run,
)

KINDS = ("swin", "residual")
RESAMPLES = ("patch", "conv")
TEXT_ATTENTIONS = ("cross", "joint")


class ASCEND(nn.Module):
    """x (B, in_channels, img_size, img_size), time (B,) or (1,) in 0 .. 999, y as below -> the shape of x.

    channels: width of the first level; channel_mult: the factor of each level, the size halves between them.
    num_blocks: units in each level of the encoder, one number or one for each; the decoder has one more.
    encoder, decoder: "swin", where a unit is a pair of Swin blocks, or "residual". skips: whether the decoder sees the
    encoder's maps. resample: "patch" (merging, expanding) or "conv".
    attn_resolutions: the sizes at which the encoder attends to the text, and a residual one to itself.
    num_classes: y is labels (B,) from 0, num_classes itself for 'none'. text_dim: y is Text with tokens (B, L,
    text_dim), L of any size, or the bare tokens; pooled_dim: the width of y.pooled, a missing one adds nothing.
    text_attention: "cross" or "joint". coordinates, text_mlp: as above.
    `network.checkpoint = True` spares memory in training, see layers.run.
    Raises ValueError for an unknown choice and for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=32, in_channels=3, channels=128, channel_mult=(1, 2, 2, 2), num_blocks=2, window_size=8,
        head_dim=64, mlp_ratio=4.0, attn_resolutions=(16,), dropout=0.0, encoder="swin", decoder="residual", skips=True,
        resample="patch", group_width=1, num_classes=0, text_dim=0, pooled_dim=0,
        text_attention="cross", coordinates=False, text_mlp=False,
    ):  # fmt: skip
        super().__init__()
        counts = [num_blocks] * len(channel_mult) if isinstance(num_blocks, int) else list(num_blocks)
        check_condition(num_classes, text_dim, pooled_dim)
        check(encoder, decoder, resample, text_attention, counts, channel_mult)
        if text_mlp and not text_dim:
            raise ValueError("text_mlp=True needs a network that hears text; give text_dim, the width of its tokens")
        widths, emb = [int(channels * mult) for mult in channel_mult], 4 * channels
        sizes = [-(-img_size // 2**level) for level in range(len(widths))]  # halved, rounded up
        self.shape, self.sizes, self.skips = (in_channels, img_size, img_size), sizes, skips
        self.num_classes, self.text_dim, self.pooled_dim = num_classes, text_dim, pooled_dim

        self.time_embed = TimeEmbedding(channels)
        self.label_embed = LabelEmbedding(num_classes, emb) if num_classes else None
        self.pooled_embed = PooledText(pooled_dim, emb) if pooled_dim else None
        self.null_text = nn.Parameter(0.02 * torch.randn(text_dim)) if text_dim else None
        self.text_mlp = Mlp(text_dim, 2 * text_dim) if text_mlp else None

        joint = text_attention == "joint"

        def unit(kind, level, joined=False, attends=False):
            inner = dict(emb=emb, head_dim=head_dim, text_dim=text_dim if attends else 0, joint=joint)
            if kind == "residual":
                return Residual(widths[level], joined, attends, dropout=dropout, group_width=group_width, **inner)
            return SwinPair(widths[level], joined, sizes[level], window_size, mlp_ratio, **inner)

        down, up = (PatchMerge, PatchExpand) if resample == "patch" else (ConvDown, ConvUp)
        self.conv_in = nn.Conv2d(in_channels + 2 * coordinates, widths[0], 3, padding=1)
        line = torch.linspace(-1, 1, img_size)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None] if coordinates else None  # row, column
        self.register_buffer("places", places, persistent=False)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level, count in enumerate(counts):
            stage = nn.ModuleDict({"units": nn.ModuleList()})
            for _ in range(count):
                stage["units"].append(unit(encoder, level, attends=sizes[level] in attn_resolutions))
            if level < len(widths) - 1:
                stage["down"] = down(widths[level], widths[level + 1])
            self.encoder.append(stage)
        middle = dict(dropout=dropout, group_width=group_width, emb=emb, head_dim=head_dim, joint=joint)
        self.middle = nn.ModuleList([
            Residual(widths[-1], False, True, text_dim=text_dim, **middle),
            Residual(widths[-1], False, False, text_dim=0, **middle),
        ])  # fmt: skip
        for level in reversed(range(len(widths))):
            stage = nn.ModuleDict({"units": nn.ModuleList()})
            for _ in range(counts[level] + 1):
                stage["units"].append(unit(decoder, level, joined=skips))
            if level:
                stage["up"] = up(widths[level], widths[level - 1])
            self.decoder.append(stage)
        self.norm_out = group_norm(widths[0], group_width)
        self.conv_out = zeroed(nn.Conv2d(widths[0], in_channels, 3, padding=1))

    def forward(self, x, time, y=None):
        check_images(x, self.shape, time, y)
        emb, text, mask = self.embed(time, y, x.dtype)
        if self.places is not None:
            x = torch.cat([x, self.places.to(x.dtype).expand(len(x), -1, -1, -1)], dim=1)
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))  # all maps inherit it: no block copies them
        kept = [h]
        for stage in self.encoder:
            for unit in stage["units"]:
                h = run(unit, h, emb, text, mask, checkpoint=self.checkpoint)
                kept.append(h)
            if "down" in stage:
                h = stage["down"](h)
                kept.append(h)
        for unit in self.middle:
            h = run(unit, h, emb, text, mask, checkpoint=self.checkpoint)
        for level, stage in zip(reversed(range(len(self.sizes))), self.decoder):
            for unit in stage["units"]:
                h = torch.cat([h, kept.pop()], dim=1) if self.skips else h
                h = run(unit, h, emb, text, mask, checkpoint=self.checkpoint)
            if level:  # one row and column less where the level above is odd
                h = stage["up"](h)[:, :, : self.sizes[level - 1], : self.sizes[level - 1]]
        return self.conv_out(F.silu(self.norm_out(h)))

    def embed(self, time, y, dtype):
        """What every unit is told: SiLU of time + label + pooled text (B or 1, emb); tokens and mask of the text."""
        emb, tokens, mask = self.time_embed(time, dtype), None, None
        if self.label_embed is not None:
            emb = emb + self.label_embed(y)
        if self.text_dim:
            text = as_text(y, self.text_dim)
            tokens, mask = null_for_empty(text, self.null_text)
            tokens = self.text_embed(tokens.to(dtype))
            emb = emb if self.pooled_embed is None else self.pooled_embed(emb, text)
        return F.silu(emb), tokens, mask

    def text_embed(self, tokens):
        """The tokens (..., text_dim) as every layer that listens hears them."""
        return tokens if self.text_mlp is None else tokens + self.text_mlp(tokens)

    def null(self, y):
        """The condition of the shape of y that means 'none': the null label, or a text of no token."""
        return no_text(y, self.text_dim, self.null_text) if self.text_dim else null_labels(y, self.num_classes)


class SwinPair(nn.Module):
    """Maps (B, c, H, W), or twice the channels if `joined`: two Swin blocks, the second shifted, then the text.

    joint: both blocks hear the text in their windows, and nothing comes after them.
    """

    def __init__(self, width, joined, size, window_size, mlp_ratio, *, emb, head_dim, text_dim, joint=False):
        super().__init__()
        self.joint = joint and text_dim > 0
        self.join = nn.Linear(2 * width, width) if joined else nn.Identity()
        shape = (width, heads(width, head_dim), (size, size), window_size)
        kind, more = (TextSwinBlock, (text_dim,)) if self.joint else (SwinBlock, ())
        self.blocks = nn.ModuleList(kind(*shape, s, mlp_ratio, emb, *more) for s in (0, window_size // 2))
        for block in self.blocks:
            zeroed(block.modulation)
        self.listen = Listen(width, heads(width, head_dim), text_dim) if text_dim and not joint else None

    def forward(self, x, emb, text=None, mask=None):
        x = self.join(x.permute(0, 2, 3, 1))  # (B, H, W, c): the map stays as it lies in memory, channels last
        for block in self.blocks:
            x = block(x, emb, text, mask) if self.joint else block(x, emb)
        x = x if self.listen is None else self.listen(x, text, mask)
        return x.permute(0, 3, 1, 2)


class Residual(nn.Module):
    """Maps (B, c, H, W), or twice the channels if `joined`: ADM's residual block, self-attention, then the text.

    joint: the text is heard in the self-attention, as in GLIDE, and nothing comes after it.
    """

    def __init__(self, width, joined, attends, *, emb, head_dim, dropout, group_width, text_dim, joint=False):
        super().__init__()
        heads(width, head_dim)
        self.block = Block(
            2 * width if joined else width, width, emb=emb, dropout=dropout, scale_shift_norm=True,
            group_width=group_width, num_heads=0, num_head_channels=head_dim, qkv_order="new",
            text_dim=text_dim if joint else 0, attends=attends,
        )  # fmt: skip
        self.listen = Listen(width, heads(width, head_dim), text_dim) if text_dim and not joint else None

    def forward(self, x, emb, text=None, mask=None):
        x = self.block(x, emb, None if text is None else Text(text, mask))
        return x if self.listen is None else self.listen(x.permute(0, 2, 3, 1), text, mask).permute(0, 3, 1, 2)


class PatchMerge(PatchMerging):
    """`PatchMerging` on maps (B, c, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchExpand(PatchExpanding):
    """`PatchExpanding` on maps (B, c, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvDown(nn.Conv2d):
    """A convolution of stride 2; odd sides are halved upwards."""

    def __init__(self, width, out):
        super().__init__(width, out, 3, stride=2, padding=1)


class ConvUp(nn.Conv2d):
    """Every place becomes four, then a convolution."""

    def __init__(self, width, out):
        super().__init__(width, out, 3, padding=1)

    def forward(self, x):
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def heads(width, head_dim):
    """How many heads of head_dim channels a map of this width has; ValueError if that is no whole number."""
    if width % head_dim:
        raise ValueError(f"channels times channel_mult must be multiples of head_dim={head_dim}, got {width}")
    return width // head_dim


def check(encoder, decoder, resample, text_attention, counts, channel_mult):
    """Raise ValueError for choices that are unknown or do not fit together."""
    if encoder not in KINDS:
        raise unknown_name("encoder", encoder, KINDS)
    if decoder not in KINDS:
        raise unknown_name("decoder", decoder, KINDS)
    if resample not in RESAMPLES:
        raise unknown_name("resample", resample, RESAMPLES)
    if text_attention not in TEXT_ATTENTIONS:
        raise unknown_name("text_attention", text_attention, TEXT_ATTENTIONS)
    if len(counts) != len(channel_mult):
        levels = len(channel_mult)
        raise ValueError(f"num_blocks must be one number or {levels}, as channel_mult has levels, got {len(counts)}")


TEXT = dict(text_dim=1024, pooled_dim=1024, attn_resolutions=(32, 16, 8), coordinates=True)
SIZES = {
    "cifar10": dict(img_size=32, channel_mult=(1, 2, 2, 2)),  # FID 2.98
    "cub64": dict(img_size=64, channel_mult=(1, 2, 3, 4), attn_resolutions=(16, 8)),
    "cub128": dict(img_size=128, channel_mult=(1, 1, 2, 3, 4), attn_resolutions=(16, 8)),
    "celebahq": dict(img_size=256, channel_mult=(1, 1, 2, 2, 4, 4)),
    "bedroom": dict(img_size=256, channel_mult=(1, 1, 2, 2, 4, 4)),
    "t2i_64": dict(img_size=64, channels=192, channel_mult=(1, 2, 3, 4), num_blocks=(1, 3, 3, 3), **TEXT),  # 302 M
    "t2i_128": dict(img_size=128, channels=256, channel_mult=(1, 2, 3, 4, 4), **TEXT),  # 582 M
    "tiny": dict(img_size=16, channels=24, channel_mult=(1, 2, 2), num_blocks=1, window_size=4, head_dim=12,
                 attn_resolutions=(8, 4), group_width=4),
    "test": dict(img_size=8, channels=8, channel_mult=(1, 2), num_blocks=1, window_size=4, head_dim=4,
                 attn_resolutions=(4,), group_width=4),
}  # fmt: skip

for size, arguments in SIZES.items():
    register_model(f"ascend_{size}", ASCEND, **arguments)
