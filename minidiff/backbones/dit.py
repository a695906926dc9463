"""DiT (Peebles and Xie 2023, "Scalable Diffusion Models with Transformers"), equal to the original on the same weights.

A plain vision transformer over patches. Time and label are one vector c, and speak through the layer norms alone: in
every block c gives a shift, a scale and a gate for attention, and another three for the MLP. The gates start at zero,
so an untrained block is the identity ("adaLN-Zero"). Read `Block` beside figure 3 of the paper, second from the left.

    x -> patches + fixed positions -> block ... block -> norm, shift, scale -> Linear -> eps (and variance range)
    time, label -> c -> Modulation --------^ shift, scale, gate of all blocks

Differences from the paper: the modulations of all blocks are one linear map, `Modulation` (the original has one in each
block; c is the same for all, so the numbers are equal and the launches fewer). `num_classes` counts real classes; the
table has one row more for 'no label' unless `null_label` is False. Labels are dropped by Diffusion.loss, not here.
`conditioning` offers the other columns of figure 3, whose code was not released: what the paper leaves open is decided
so that the parameter counts round to the 600, 598 and 449 million that it prints (fixed positions not counted).

Text is ours too, in the spirit of PixArt-alpha (Chen et al. 2024): with `text_dim` every block has, between attention
and MLP, a cross-attention to the tokens, with a layer norm of its own and told nothing by c; its last map starts at
zero where the gates do, so that an untrained block stays the identity. The pooled text is added to c.

SiT (Ma et al. 2024) is the same network with the velocity of a flow as its output, and no variance range.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.errors import unknown_name
from minidiff.layers import (
    Attention,
    CrossAttention,
    LabelEmbedding,
    Mlp,
    PooledText,
    as_text,
    check_condition,
    check_images,
    no_text,
    null_for_empty,
    null_labels,
    run,
    sincos_positions,
    timestep_embedding,
    unpatchify,
)

CONDITIONINGS = ("adaln_zero", "adaln", "cross_attention", "in_context")
TIME_FEATURES = 256  # sinusoids of the time, whatever the width


class DiT(nn.Module):
    """x (B, in_channels, img_size, img_size), time (B,) or (1,), y (B,) -> the shape of x, or twice its channels.

    img_size: of what it sees, for published models a latent of 1/8 the image's size. time: 0 .. 999 for DiT, 1 - t in
    [0, 1] for SiT. learn_sigma: 2 * in_channels outputs, the second half a variance range in about [-1, 1].
    num_classes: y is labels from 0, num_classes itself for 'none' unless null_label is False; 0: y stays None.
    conditioning: "adaln_zero"; "adaln", without the gates; "cross_attention" to time and label as a sequence of two
    tokens, after the self-attention; "in_context": these two follow the patches, and leave after the last block.
    text_dim: y is Text with tokens (B, L, text_dim), L of any size, or the bare tokens; it needs num_classes=0 and one
    of the "adaln" kinds. pooled_dim: the width of y.pooled, a missing one adds nothing.
    `network.checkpoint = True` spares memory in training, see layers.run.
    Raises ValueError for an unknown choice and for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=32, patch_size=2, in_channels=4, hidden_size=1152, depth=28, num_heads=16, mlp_ratio=4.0,
        num_classes=1000, null_label=True, learn_sigma=True, conditioning="adaln_zero", text_dim=0, pooled_dim=0,
    ):  # fmt: skip
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise unknown_name("conditioning", conditioning, CONDITIONINGS)
        check_condition(num_classes, text_dim, pooled_dim)
        if img_size % patch_size:
            raise ValueError(f"img_size must be divisible by patch_size, got {img_size} and {patch_size}")
        self.shape, self.patch_size, self.grid = (in_channels, img_size, img_size), patch_size, img_size // patch_size
        self.num_classes, self.null_label, self.conditioning = num_classes, null_label, conditioning
        self.text_dim, adaln, hidden = text_dim, conditioning.startswith("adaln"), int(hidden_size * mlp_ratio)
        if text_dim and not adaln:
            raise ValueError(f'text goes with conditioning="adaln_zero" or "adaln", got {conditioning!r}')

        self.patch_embed = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        positions = sincos_positions(hidden_size, self.grid, self.grid)[None]
        self.pos_embed = nn.Parameter(positions, requires_grad=False)  # (1, N, d), fixed
        self.time_embed = nn.Sequential(
            nn.Linear(TIME_FEATURES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        labels = num_classes if null_label else num_classes - 1  # LabelEmbedding adds a row
        self.label_embed = LabelEmbedding(labels, hidden_size) if num_classes else None
        self.pooled_embed = PooledText(pooled_dim, hidden_size) if pooled_dim else None
        self.null_text = nn.Parameter(0.02 * torch.randn(text_dim)) if text_dim else None
        if adaln:
            self.modulation = Modulation(hidden_size, depth, gates=conditioning == "adaln_zero")
            self.blocks = nn.ModuleList(Block(hidden_size, num_heads, hidden, text_dim) for _ in range(depth))
        else:
            cross = conditioning == "cross_attention"
            self.blocks = nn.ModuleList(PlainBlock(hidden_size, num_heads, hidden, cross) for _ in range(depth))
        out = patch_size**2 * in_channels * (2 if learn_sigma else 1)
        self.final_layer = FinalLayer(hidden_size, out, adaln)
        self.init_weights()

    def forward(self, x, time, y=None):
        check_images(x, self.shape, time, y)
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, N, d)
        # the residual stream inherits this layout: left transposed, each norm copies it, 3 % of a forward pass
        tokens = tokens.contiguous() + self.pos_embed
        time = timestep_embedding(time, TIME_FEATURES, order="cos_sin", divisor="half").to(x.dtype)
        time = self.time_embed(time)  # (B or 1, d)
        label = None if self.label_embed is None else self.label_embed(y)  # (B, d)
        if self.conditioning.startswith("adaln"):
            c, text, mask = time if label is None else time + label, None, None
            if self.text_dim:
                y = as_text(y, self.text_dim)
                c = c if self.pooled_embed is None else self.pooled_embed(c, y)
                text, mask = null_for_empty(y, self.null_text)
                text = text.to(x.dtype)  # (B, L, text_dim)
            c = F.silu(c)
            for block, modulation in zip(self.blocks, self.modulation(c)):
                tokens = run(block, tokens, modulation, text, mask, checkpoint=self.checkpoint)
            tokens = self.final_layer(tokens, c)
        else:
            tokens = self.final_layer(self.plain_blocks(tokens, time, label))
        return unpatchify(tokens, self.patch_size, self.grid, self.grid)

    def plain_blocks(self, tokens, time, label):
        """Tokens (B, N, d) after all blocks, which know time and label as further tokens, inside or beside these."""
        parts = [time.expand(len(tokens), -1)] + ([] if label is None else [label])
        c = torch.stack(parts, dim=1)  # (B, 2, d), or (B, 1, d) without labels
        if self.conditioning == "cross_attention":
            for block in self.blocks:
                tokens = run(block, tokens, c, checkpoint=self.checkpoint)
            return tokens
        tokens = torch.cat([tokens, c], dim=1)
        for block in self.blocks:
            tokens = run(block, tokens, checkpoint=self.checkpoint)
        return tokens[:, : self.grid**2]

    def null(self, y):
        """The condition of the shape of y that means 'none': the null label, or a text of no token."""
        if self.text_dim:
            return no_text(y, self.text_dim, self.null_text)
        if self.num_classes and not self.null_label:
            raise ValueError("this network has no null label (null_label=False): drop guidance and p_uncond")
        return null_labels(y, self.num_classes)

    def init_weights(self):
        """Xavier-uniform, time and labels from N(0, 0.02^2); zeros where c comes in and in the last layer."""
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(layer.weight.flatten(1))  # a patch is one long vector
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.time_embed[0], self.time_embed[2], self.pooled_embed):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
        zeroed = [self.final_layer.linear]
        if self.conditioning.startswith("adaln"):
            zeroed += [self.modulation.linear, self.final_layer.modulation]
        if self.text_dim and self.conditioning == "adaln_zero":
            zeroed += [block.cross_attn.proj for block in self.blocks]
        for layer in zeroed:
            nn.init.zeros_(layer.weight)


class Modulation(nn.Module):
    """c (B, d) -> for each block the pair, of attention and of MLP, of (shift, 1 + scale, gate), each (B, 1, d).

    One linear map makes them all; its rows are in the order block, attention or MLP, shift or scale or gate, channel.
    Without `gates` the third of each is None.
    """

    def __init__(self, dim, depth, gates):
        super().__init__()
        self.depth, self.kinds = depth, 3 if gates else 2
        self.linear = nn.Linear(dim, depth * 2 * self.kinds * dim)

    def forward(self, c):
        kinds = self.linear(c).view(len(c), 2 * self.depth, self.kinds, 1, -1).unbind(2)  # each (B, 2 L, 1, d)
        shifts, scales = kinds[0].unbind(1), (1 + kinds[1]).unbind(1)
        gates = kinds[2].unbind(1) if self.kinds == 3 else [None] * len(shifts)
        parts = list(zip(shifts, scales, gates))
        return list(zip(parts[::2], parts[1::2]))


class Block(nn.Module):
    """Attention and MLP, each on modulated tokens, each behind a gate: figure 3, "DiT block with adaLN-Zero".

    text_dim: between them every token asks the text (B, L, text_dim), if not 0.
    """

    def __init__(self, dim, num_heads, hidden, text_dim=0):
        super().__init__()
        self.norm1, self.norm2 = plain_norm(dim), plain_norm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias=True)
        self.norm_cross = nn.LayerNorm(dim, eps=1e-6) if text_dim else None
        self.cross_attn = CrossAttention(dim, num_heads, bias=True, text_dim=text_dim) if text_dim else None
        self.mlp = Mlp(dim, hidden, approximate="tanh")

    def forward(self, x, modulation, text=None, mask=None):
        (shift1, scale1, gate1), (shift2, scale2, gate2) = modulation
        x = add_gated(x, gate1, self.attn(torch.addcmul(shift1, self.norm1(x), scale1)))
        if self.cross_attn is not None:
            x = x + self.cross_attn(self.norm_cross(x), text, mask)
        return add_gated(x, gate2, self.mlp(torch.addcmul(shift2, self.norm2(x), scale2)))


class PlainBlock(nn.Module):
    """A block of a vision transformer; with `cross`, attention to the tokens of the condition c in its middle."""

    def __init__(self, dim, num_heads, hidden, cross):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias=True)
        self.norm_cross = nn.LayerNorm(dim, eps=1e-6) if cross else None
        self.cross_attn = CrossAttention(dim, num_heads, bias=True) if cross else None
        self.mlp = Mlp(dim, hidden, approximate="tanh")

    def forward(self, x, c=None):
        x = x + self.attn(self.norm1(x))
        if self.cross_attn is not None:
            x = x + self.cross_attn(self.norm_cross(x), c)
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Norm, shift and scale from c if `adaln`, and one linear map from a token to the pixels of its patch."""

    def __init__(self, dim, out, adaln):
        super().__init__()
        self.norm = plain_norm(dim) if adaln else nn.LayerNorm(dim, eps=1e-6)
        self.modulation = nn.Linear(dim, 2 * dim) if adaln else None
        self.linear = nn.Linear(dim, out)

    def forward(self, x, c=None):
        x = self.norm(x)
        if self.modulation is not None:
            shift, scale = self.modulation(c)[:, None].chunk(2, dim=2)
            x = torch.addcmul(shift, x, 1 + scale)
        return self.linear(x)


def plain_norm(dim):
    """A layer norm without scale and shift of its own: those come from c."""
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


def add_gated(x, gate, branch):
    """x + gate * branch; without a gate (None) x + branch."""
    return x + branch if gate is None else torch.addcmul(x, gate, branch)


SIZES = {  # table 1 of the paper
    "s": dict(depth=12, hidden_size=384, num_heads=6),
    "b": dict(depth=12, hidden_size=768, num_heads=12),
    "l": dict(depth=24, hidden_size=1024, num_heads=16),
    "xl": dict(depth=28, hidden_size=1152, num_heads=16),  # dit_xl_2: FID 2.27 at 256 pixels, with guidance
}
SMALL = {
    "tiny": dict(img_size=16, hidden_size=96, depth=4, num_heads=4),
    "test": dict(img_size=8, hidden_size=24, depth=2, num_heads=2),
}

for family in ("dit", "sit"):
    sigma = family == "dit"
    for size, arguments in SIZES.items():
        for p in (2, 4, 8):
            register_model(f"{family}_{size}_{p}", DiT, patch_size=p, learn_sigma=sigma, **arguments)
    for size, arguments in SMALL.items():
        register_model(f"{family}_{size}", DiT, in_channels=3, num_classes=0, learn_sigma=False, **arguments)
register_model("dit_xl_2_512", DiT, img_size=64, **SIZES["xl"])  # FID 3.04 at 512 pixels, with guidance
