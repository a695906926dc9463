"""The U-Net of DDPM (Ho et al. 2020, appendix B), equal to the original on the same weights.

Read `UNet.forward` beside the figure in notebook 08: down through the levels, keeping every map; through the middle;
up again, each block taking the map that its partner on the way down kept.

Differences from the paper: labels can be given (`num_classes`), added to the time embedding; q, k and v are one linear
map; the group norms have `num_groups` groups, since 32 groups of one channel each would hide the time in small models.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.layers import LabelEmbedding, attention, check_halving, fast_layout, null_labels, timestep_embedding


class UNet(nn.Module):
    """x (B, in_channels, H, W), time (B,) or (1,) in 0 .. T-1, y (B,) labels -> (B, out_channels, H, W).

    ch: width of the first level; ch_mult: the factor of each level, the size halves between them.
    attn_resolutions: the sizes, counted from image_size, at which every residual block is followed by attention.
    H and W must be divisible by 2 ** (len(ch_mult) - 1).
    """

    def __init__(
        self, image_size=32, in_channels=3, out_channels=3, ch=128, ch_mult=(1, 2, 2, 2), num_res_blocks=2,
        attn_resolutions=(16,), dropout=0.0, num_classes=0, num_groups=32,
    ):  # fmt: skip
        super().__init__()
        self.in_channels, self.num_classes, self.ch = in_channels, num_classes, ch
        self.divisor = 2 ** (len(ch_mult) - 1)
        emb, widths = 4 * ch, [ch * mult for mult in ch_mult]
        self.time_dense0, self.time_dense1 = nn.Linear(ch, emb), nn.Linear(emb, emb)
        self.label = LabelEmbedding(num_classes, emb) if num_classes else None
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)

        def block(c_in, c_out, attends):
            return Block(c_in, c_out, emb, dropout, attends, num_groups)

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
            if name.endswith(("conv2", "attention.out", "conv_out")):  # every branch starts as (nearly) nothing
                nn.init.xavier_uniform_(layer.weight, gain=1e-5)

    def forward(self, x, time, y=None):
        check_halving(x, self.in_channels, self.divisor, time, y)
        emb = self.embed(time, y, x.dtype)  # (B or 1, 4 ch)
        h = self.conv_in(fast_layout(x))
        kept = [h]
        for level, stage in enumerate(self.down):
            for block in stage["blocks"]:
                h = block(h, emb)
                kept.append(h)
            if level < len(self.down) - 1:
                h = stage["resample"](h)
                kept.append(h)
        for block in self.middle:
            h = block(h, emb)
        for stage in self.up:
            for block in stage["blocks"]:
                h = block(torch.cat([h, kept.pop()], dim=1), emb)
            h = stage["resample"](h)
        return self.conv_out(F.silu(self.norm_out(h))).contiguous()

    def embed(self, time, y, dtype):
        """What every block is told: SiLU of the embedded time, and label if there are labels."""
        features = timestep_embedding(time, self.ch).to(dtype)
        emb = self.time_dense1(F.silu(self.time_dense0(features)))
        if self.label is not None:
            emb = emb + self.label(y)
        return F.silu(emb)

    def null(self, y):
        """Labels of the shape of y (B,) that mean 'no label'."""
        return null_labels(y, self.num_classes)


class Block(nn.Module):
    """A residual block, followed by attention where the level has it."""

    def __init__(self, c_in, c_out, emb, dropout, attends, num_groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(emb, c_out)
        self.norm2 = nn.GroupNorm(num_groups, c_out, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.attention = Attention(c_out, num_groups) if attends else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.attention(self.shortcut(x) + h)


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
        for part in layer.weight.chunk(3 if name.endswith("qkv") else 1):  # q, k and v are three maps in one
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(layer.bias)


register_model("ddpm_cifar10", UNet, image_size=32, ch=128, ch_mult=(1, 2, 2, 2), attn_resolutions=(16,), dropout=0.1)
register_model("ddpm_lsun256", UNet, image_size=256, ch=128, ch_mult=(1, 1, 2, 2, 4, 4), attn_resolutions=(16,))
register_model(
    "ddpm_tiny", UNet, image_size=16, ch=24, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8, 4), num_groups=8
)  # fmt: skip
register_model(
    "ddpm_test", UNet, image_size=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_groups=2
)  # fmt: skip
