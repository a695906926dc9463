"""The U-Net of DDPM (Ho et al. 2020, appendix B), equal to the original on the same weights.

Read `UNet.forward` beside the figure in notebook 08: down through the levels, keeping every map; through the middle;
up again, each block taking the map that its partner on the way down kept.

Differences from the paper: labels can be given (`num_classes`), added to the time embedding; so can text (`text_dim`),
which every place asks after each self-attention, and whose pooled vector is added to the time; q, k and v are one
linear map; the group norms have `num_groups` groups, since 32 groups of one channel each would hide the time in small
models.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.layers import (
    CrossAttention,
    LabelEmbedding,
    PooledText,
    as_text,
    attention,
    check_condition,
    check_halving,
    fast_layout,
    no_text,
    null_for_empty,
    null_labels,
    run,
    timestep_embedding,
)


class UNet(nn.Module):
    """x (B, in_channels, H, W), time (B,) or (1,) in 0 .. T-1, y as below -> (B, out_channels, H, W).

    ch: width of the first level; ch_mult: the factor of each level, the size halves between them.
    attn_resolutions: the sizes, counted from image_size, at which every residual block is followed by attention.
    num_classes: y is labels (B,) from 0, num_classes itself for 'none'. text_dim: y is Text with tokens (B, L,
    text_dim), L of any size, or the bare tokens; pooled_dim: the width of y.pooled, a missing one adds nothing.
    text_heads: heads of the attention to the text; that of the places has one, as published.
    H and W must be divisible by 2 ** (len(ch_mult) - 1). Raises ValueError for sizes that do not fit together.
    `network.checkpoint = True` spares memory in training, see layers.run.
    """

    checkpoint = False

    def __init__(
        self, image_size=32, in_channels=3, out_channels=3, ch=128, ch_mult=(1, 2, 2, 2), num_res_blocks=2,
        attn_resolutions=(16,), dropout=0.0, num_classes=0, num_groups=32, text_dim=0,
        pooled_dim=0, text_heads=4,
    ):  # fmt: skip
        super().__init__()
        check_condition(num_classes, text_dim, pooled_dim)
        self.in_channels, self.num_classes, self.text_dim, self.ch = in_channels, num_classes, text_dim, ch
        self.divisor = 2 ** (len(ch_mult) - 1)
        emb, widths = 4 * ch, [ch * mult for mult in ch_mult]
        self.time_dense0, self.time_dense1 = nn.Linear(ch, emb), nn.Linear(emb, emb)
        self.label = LabelEmbedding(num_classes, emb) if num_classes else None
        self.pooled = PooledText(pooled_dim, emb) if pooled_dim else None
        self.null_text = nn.Parameter(0.02 * torch.randn(text_dim)) if text_dim else None
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)

        def block(c_in, c_out, attends):
            return Block(c_in, c_out, emb, dropout, attends, num_groups, text_dim, text_heads)

        kept, c = [ch], ch  # widths of the maps that the way down keeps for the way up
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            attends = image_size // 2**level in attn_resolutions
            blocks = nn.ModuleList()
            for _ in range(num_res_blocks):
                blocks.append(block(c, width, attends))
                c = width
                kept.append(c)
            last = level == len(widths) - 1
            self.down.append(nn.ModuleDict({"blocks": blocks, "resample": nn.Identity() if last else Downsample(c)}))
            kept += [] if last else [c]
        self.middle = nn.ModuleList([block(c, c, True), block(c, c, False)])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            attends = image_size // 2**level in attn_resolutions
            blocks = nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                blocks.append(block(c + kept.pop(), width, attends))
                c = width
            self.up.append(nn.ModuleDict({"blocks": blocks, "resample": Upsample(c) if level else nn.Identity()}))
        self.norm_out = nn.GroupNorm(num_groups, c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, out_channels, 3, padding=1)
        for name, layer in self.named_modules():
            init_weights(name, layer)
        for name, layer in self.named_modules():
            # every branch starts as (nearly) nothing
            if name.endswith(("conv2", "attention.out", "cross.proj", "conv_out")):
                nn.init.xavier_uniform_(layer.weight, gain=1e-5)

    def forward(self, x, time, y=None):
        check_halving(x, self.in_channels, self.divisor, time, y)
        emb = self.embed(time, y, x.dtype)  # (B or 1, 4 ch)
        text, mask = self.words(y, x.dtype)  # (B, L, text_dim), (B, L)
        h = self.conv_in(fast_layout(x))
        kept = [h]
        for level, stage in enumerate(self.down):
            for block in stage["blocks"]:
                h = run(block, h, emb, text, mask, checkpoint=self.checkpoint)
                kept.append(h)
            if level < len(self.down) - 1:
                h = stage["resample"](h)
                kept.append(h)
        for block in self.middle:
            h = run(block, h, emb, text, mask, checkpoint=self.checkpoint)
        for stage in self.up:
            for block in stage["blocks"]:
                h = run(block, torch.cat([h, kept.pop()], dim=1), emb, text, mask, checkpoint=self.checkpoint)
            h = stage["resample"](h)
        return self.conv_out(F.silu(self.norm_out(h))).contiguous()

    def embed(self, time, y, dtype):
        """What every block is told: SiLU of time + label or pooled text."""
        features = timestep_embedding(time, self.ch).to(dtype)
        emb = self.time_dense1(F.silu(self.time_dense0(features)))
        if self.label is not None:
            emb = emb + self.label(y)
        if self.pooled is not None:
            emb = self.pooled(emb, as_text(y, self.text_dim))
        return F.silu(emb)

    def words(self, y, dtype):
        """Tokens and mask of the text that blocks with attention ask, or None twice."""
        if not self.text_dim:
            return None, None
        tokens, mask = null_for_empty(as_text(y, self.text_dim), self.null_text)
        return tokens.to(dtype), mask

    def null(self, y):
        """The condition of the shape of y that means 'none': the null label, or a text of no token."""
        return no_text(y, self.text_dim, self.null_text) if self.text_dim else null_labels(y, self.num_classes)


class Block(nn.Module):
    """A residual block, followed by attention where the level has it, and by attention to the text if there is one."""

    def __init__(self, c_in, c_out, emb, dropout, attends, num_groups, text_dim=0, text_heads=4):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(emb, c_out)
        self.norm2 = nn.GroupNorm(num_groups, c_out, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.attention = Attention(c_out, num_groups) if attends else nn.Identity()
        self.listen = Listen(c_out, num_groups, text_dim, text_heads) if attends and text_dim else None

    def forward(self, x, emb, text=None, mask=None):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        h = self.attention(self.shortcut(x) + h)
        return h if self.listen is None else self.listen(h, text, mask)


class Attention(nn.Module):
    """Self-attention with one head over all H x W places."""

    def __init__(self, c, num_groups):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, c, eps=1e-6)
        self.qkv = nn.Linear(c, 3 * c)
        self.out = nn.Linear(c, c)

    def forward(self, x):
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # (B, H W, C)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, dim=-1)  # one head: (B, 1, H W, C)
        tokens = self.out(attention(q, k, v)[:, 0])
        return x + tokens.transpose(1, 2).reshape(x.shape)


class Listen(nn.Module):
    """Every place of x (B, c, H, W) asks the text (B, L, text_dim), where the mask (B, L) is True."""

    def __init__(self, c, num_groups, text_dim, num_heads):
        super().__init__()
        if c % num_heads:
            raise ValueError(f"the widths must be divisible by text_heads={num_heads}, got {c}")
        self.norm = nn.GroupNorm(num_groups, c, eps=1e-6)
        self.cross = CrossAttention(c, num_heads, bias=True, text_dim=text_dim)

    def forward(self, x, text, mask=None):
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # (B, H W, C)
        return x + self.cross(tokens, text, mask).transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """A convolution of stride 2, padded at the right and bottom only, as TensorFlow's SAME pads even sizes."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel becomes four, then a convolution."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def init_weights(name, layer):
    """Uniform weights with variance 1 / (mean of fan in and fan out), no biases: the original's initialisation."""
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        maps = 3 if name.endswith("qkv") else 2 if name.endswith("cross.kv") else 1  # q, k and v are maps in one
        for part in layer.weight.chunk(maps):
            nn.init.xavier_uniform_(part)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


register_model("ddpm_cifar10", UNet, image_size=32, ch=128, ch_mult=(1, 2, 2, 2), attn_resolutions=(16,), dropout=0.1)
register_model("ddpm_lsun256", UNet, image_size=256, ch=128, ch_mult=(1, 1, 2, 2, 4, 4), attn_resolutions=(16,))
register_model(
    "ddpm_tiny", UNet, image_size=16, ch=24, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8, 4), num_groups=8
)  # fmt: skip
register_model(
    "ddpm_test", UNet, image_size=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_groups=2
)  # fmt: skip
