"""DiffiT (Hatamizadeh et al. 2024): attention whose queries, keys and values depend on the time.

In `TimeAttention` the time is neither a token nor a modulation of the norms: q, k and v each are a linear map of the
token plus one of the time, so that what a token looks for, shows and says changes along the trajectory. `LatentDiffiT`
is a DiT with it, equal to the official code on the same weights. `DiffiT`, for pixels, is a U-Net of it, in windows:

    x -> conv -> | residual blocks | conv/2 | ... | residual blocks | ... | x2 conv | residual blocks | -> norm, conv
                         |________ each map of the way down is joined on the way up ________|

Only the latent model's code was published. Where the paper contradicts itself or is silent, the choices here are:
- latent: depth 28 as released (the text says 30); time and label both enter `TimeAttention` (the text: time alone);
- pixels: blocks in each level as in appendix I, 1, 2, 2, 2 and 2, 2, 2 (appendix H: four everywhere); a time vector of
  512 and one of 256 that the blocks see, the best row of the ablation in the text's reading of it;
- pixels: skips are concatenated, one for each residual block, and the block's first convolution takes both; widths
  change in that convolution, and a 1x1 convolution then changes the shortcut; norms of 32 groups, heads of 32 channels,
  MLP ratio 4, the last convolution starts at zero;
- pixels: labels can be given, which the paper does not have; the time is c_noise = log(sigma) / 4 of EDM, and
  `augment_labels` those of its augmentation.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.backbones.swin import join_windows, relative_index, split_windows
from minidiff.layers import (
    LabelEmbedding,
    Mlp,
    attention,
    check_images,
    check_sides,
    merge_heads,
    null_labels,
    run,
    sincos_positions,
    timestep_embedding,
    unpatchify,
)

TIME_FEATURES = 256  # sinusoids of the latent model's time


class TimeAttention(nn.Module):
    """Tokens (B * windows, N, dim) of windows of window^2 tokens, c (B, emb) -> (B * windows, N, dim).

    Each window attends to itself, with a learned bias by distance. c (1, emb) serves the whole batch.
    """

    def __init__(self, dim, num_heads, window, emb):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width {dim} must be divisible by num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv, self.qkv_temb = nn.Linear(dim, 3 * dim), nn.Linear(emb, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", relative_index((window, window)), persistent=False)  # (N, N)

    def forward(self, x, c):
        time = self.qkv_temb(c)[:, None, None]  # (B or 1, 1, 1, 3 dim)
        qkv = (self.qkv(x).unflatten(0, (len(c), -1)) + time).flatten(0, 1)
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.index.flatten()].T.unflatten(1, self.index.shape)
        return self.proj(merge_heads(attention(q, k, v, bias[None])))


class Block(nn.Module):
    """Time-dependent attention and an MLP, each after a norm without scale and shift, each with a residual."""

    def __init__(self, dim, num_heads, mlp_ratio, window, emb):
        super().__init__()
        self.norm1, self.norm2 = plain_norm(dim), plain_norm(dim)
        self.attn = TimeAttention(dim, num_heads, window, emb)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), approximate="tanh")

    def forward(self, x, c):
        x = x + self.attn(self.norm1(x), c)
        return x + self.mlp(self.norm2(x))


class LatentDiffiT(nn.Module):
    """x (B, in_channels, img_size, img_size), time (B,) or (1,) in 0 .. 999, y (B,) -> twice its channels, or as many.

    img_size: of the latent, 1/8 of the image's. learn_sigma: 2 * in_channels outputs, the second half a variance range.
    num_classes: y is labels from 0, num_classes itself for 'none' unless null_label is False; 0: y stays None.
    Raises ValueError for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=32, patch_size=2, in_channels=4, hidden_size=1152, depth=28, num_heads=16, mlp_ratio=4.0,
        num_classes=1000, null_label=True, learn_sigma=True,
    ):  # fmt: skip
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size must be divisible by patch_size, got {img_size} and {patch_size}")
        self.shape, self.patch_size, self.grid = (in_channels, img_size, img_size), patch_size, img_size // patch_size
        self.num_classes, self.null_label = num_classes, null_label
        self.patch_embed = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        positions = sincos_positions(hidden_size, self.grid, self.grid)[None]
        self.pos_embed = nn.Parameter(positions, requires_grad=False)  # (1, N, d), fixed
        self.time_embed = nn.Sequential(
            nn.Linear(TIME_FEATURES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        labels = num_classes if null_label else num_classes - 1  # LabelEmbedding adds a row
        self.label_embed = LabelEmbedding(labels, hidden_size) if num_classes else None
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio, self.grid, hidden_size) for _ in range(depth)
        )
        self.norm = plain_norm(hidden_size)
        self.head = nn.Linear(hidden_size, patch_size**2 * in_channels * (2 if learn_sigma else 1))
        self.init_weights()

    def forward(self, x, time, y=None):
        check_images(x, self.shape, time, y)
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, N, d)
        tokens = tokens.contiguous() + self.pos_embed
        time = timestep_embedding(time, TIME_FEATURES, order="cos_sin", divisor="half").to(x.dtype)
        c = self.time_embed(time)  # (B or 1, d)
        if self.label_embed is not None:
            c = c + self.label_embed(y)
        for block in self.blocks:
            tokens = run(block, tokens, c, checkpoint=self.checkpoint)
        tokens = self.head(F.silu(self.norm(tokens)))
        return unpatchify(tokens, self.patch_size, self.grid, self.grid)

    def null(self, y):
        """Labels of the shape of y (B,) that mean 'no label'."""
        if self.num_classes and not self.null_label:
            raise ValueError("this network has no null label (null_label=False): drop guidance and p_uncond")
        return null_labels(y, self.num_classes)

    def init_weights(self):
        """As DiT: Xavier-uniform, time and labels from N(0, 0.02^2), zeros in the last layer."""
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.time_embed[0], self.time_embed[2]):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.head.weight)


class DiffiT(nn.Module):
    """x (B, in_channels, H, W), time (B,) or (1,) log(sigma) / 4, y (B,) labels -> the shape of x.

    H and W must be divisible by window_size * 2^(levels - 1). widths: channels of each level, the size halves between
    them. num_blocks: residual blocks of each level, on the way down and again on the way up.
    emb_dim: width of the sinusoids, token_dim: of the vector that the blocks are told. num_classes: y is labels from 0,
    num_classes itself for 'none'. augment_dim: width of `augment_labels` (B, augment_dim), zeros where they are left
    out. Raises ValueError for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=32, in_channels=3, widths=(128, 256, 256), num_blocks=(2, 2, 2), window_size=4, head_dim=32,
        mlp_ratio=4.0, emb_dim=512, token_dim=256, num_groups=32, num_classes=0, augment_dim=0,
    ):  # fmt: skip
        super().__init__()
        if len(widths) != len(num_blocks):
            raise ValueError(f"num_blocks must have {len(widths)} numbers, as widths has, got {tuple(num_blocks)}")
        self.shape, self.num_classes, self.emb_dim = (in_channels, img_size, img_size), num_classes, emb_dim
        self.window, self.divisor = window_size, window_size * 2 ** (len(widths) - 1)
        self.check_sides(img_size, img_size)
        self.time_embed = nn.Sequential(nn.Linear(emb_dim, token_dim), nn.SiLU(), nn.Linear(token_dim, token_dim))
        self.label_embed = LabelEmbedding(num_classes, token_dim) if num_classes else None
        self.augment_embed = nn.Linear(augment_dim, token_dim, bias=False) if augment_dim else None

        def block(c_in, c_out):
            return ResBlock(c_in, c_out, head_dim, mlp_ratio, window_size, token_dim, num_groups)

        self.conv_in, c = nn.Conv2d(in_channels, widths[0], 3, padding=1), widths[0]
        self.down, self.up, kept = nn.ModuleList(), nn.ModuleList(), []
        for level, (width, count) in enumerate(zip(widths, num_blocks)):
            stage = nn.ModuleDict({"blocks": nn.ModuleList()})
            for _ in range(count):
                stage["blocks"].append(block(c, width))
                c = width
                kept.append(c)
            if level < len(widths) - 1:
                stage["resample"] = nn.Conv2d(c, c, 3, stride=2, padding=1)
            self.down.append(stage)
        for level, (width, count) in reversed(list(enumerate(zip(widths, num_blocks)))):
            stage = nn.ModuleDict({"blocks": nn.ModuleList()})
            for _ in range(count):
                stage["blocks"].append(block(c + kept.pop(), width))
                c = width
            if level:
                stage["resample"] = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1))
            self.up.append(stage)
        self.norm_out = nn.GroupNorm(num_groups, c)
        self.conv_out = nn.Conv2d(c, in_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x, time, y=None, augment_labels=None):
        check_images(x, (self.shape[0], *x.shape[2:]), time, y)
        self.check_sides(*x.shape[2:])
        c = self.embed(time, y, augment_labels, x.dtype)
        h, kept = self.conv_in(x.contiguous(memory_format=torch.channels_last)), []
        for stage in self.down:
            for block in stage["blocks"]:
                h = run(block, h, c, checkpoint=self.checkpoint)
                kept.append(h)
            h = stage["resample"](h) if "resample" in stage else h
        for stage in self.up:
            for block in stage["blocks"]:
                h = run(block, torch.cat([h, kept.pop()], dim=1), c, checkpoint=self.checkpoint)
            h = stage["resample"](h) if "resample" in stage else h
        return self.conv_out(F.silu(self.norm_out(h)))

    def embed(self, time, y, augment_labels, dtype):
        """The vector that every block is told: time, label and augmentation (B or 1, token_dim)."""
        c = self.time_embed(timestep_embedding(time, self.emb_dim, order="cos_sin").to(dtype))
        if self.label_embed is not None:
            c = c + self.label_embed(y)
        if self.augment_embed is not None and augment_labels is not None:
            c = c + self.augment_embed(augment_labels.to(dtype))
        return F.silu(c)

    def null(self, y):
        """Labels of the shape of y (B,) that mean 'no label'."""
        return null_labels(y, self.num_classes)

    def check_sides(self, height, width):
        """Raise ValueError, with sides that would do, unless windows tile every level."""
        check_sides(height, width, self.divisor, f"the window of {self.window} times the halvings")


class ResBlock(nn.Module):
    """Norm, Swish, 3x3 convolution, then a DiffiT block in windows, and the shortcut."""

    def __init__(self, c_in, c_out, head_dim, mlp_ratio, window, emb, num_groups):
        super().__init__()
        if c_out % head_dim:
            raise ValueError(f"widths must be multiples of head_dim={head_dim}, got {c_out}")
        self.window = (window, window)
        self.norm, self.conv = nn.GroupNorm(num_groups, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.block = Block(c_out, c_out // head_dim, mlp_ratio, window, emb)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, c):
        h = self.conv(F.silu(self.norm(x))).permute(0, 2, 3, 1)  # (B, H, W, C)
        tokens = self.block(split_windows(h, self.window), c)
        return self.shortcut(x) + join_windows(tokens, self.window, *h.shape[1:3]).permute(0, 3, 1, 2)


def plain_norm(dim):
    """A layer norm without scale and shift."""
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


LATENT = {
    "xl_256": dict(img_size=32),  # FID 1.73 with guidance
    "xl_512": dict(img_size=64),  # FID 2.67 with guidance
}
PIXELS = {
    "cifar10": dict(augment_dim=9),  # FID 1.95
    "ffhq64": dict(img_size=64, widths=(128, 256, 256, 256), num_blocks=(1, 2, 2, 2), window_size=8,
                   augment_dim=9),  # FID 2.22
    "tiny": dict(img_size=16, widths=(32, 64, 64), num_blocks=(1, 1, 1), head_dim=16, emb_dim=64, token_dim=64,
                 num_groups=8),
    "test": dict(img_size=8, widths=(8, 16), num_blocks=(1, 1), head_dim=4, emb_dim=16, token_dim=16, num_groups=2),
}  # fmt: skip

for size, arguments in LATENT.items():
    register_model(f"diffit_{size}", LatentDiffiT, **arguments)
for size, arguments in PIXELS.items():
    register_model(f"diffit_{size}", DiffiT, **arguments)
