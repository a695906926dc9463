"""U-ViT (Bao et al. 2023, "All are Worth Words"), equal to the original on the same weights.

Everything is a token: the time, the label or text, and the patches of the image go through one plain transformer, and
long skips join its lower half with its upper half, as in a U-Net. Read `UViT.forward` beside figure 1 of the paper.

    label? | time | text? ... | patch patch patch ...   + learned positions   -> in blocks -> mid -> out blocks -> head

Differences from the paper: `num_classes` counts real classes, and the table has one row more, its last, for 'no label'
(the original counts that row, 1001 for ImageNet; `null_label=False` leaves it out); a text may have a mask, padding
then counts nowhere, and a text without any token is the empty prompt; its pooled vector can be added to the time.
`skip` and `time_as` offer the other rows of the paper's ablation (table 1).
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.errors import unknown_name
from minidiff.layers import (
    Attention,
    LabelEmbedding,
    Mlp,
    PooledText,
    Text,
    as_text,
    check_condition,
    check_images,
    null_labels,
    run,
    timestep_embedding,
    unpatchify,
)

SKIPS = ("concat", "add", "none")
TIMES = ("token", "adaln")


class UViT(nn.Module):
    """x (B, in_channels, img_size, img_size), time (B,) or (1,), y as below -> the shape of x.

    depth: transformer blocks less one: depth / 2 below the middle block, as many above it. time: 999 t for the models
    trained in continuous time, 1 .. 1000 for ImageNet H and COCO.
    mlp_time_embed: the sinusoidal time goes through an MLP; in all published models it is a token as it is.
    num_classes: y is labels (B,) from 0, num_classes itself for 'none', unless null_label is False.
    text_dim, num_text_tokens: y is Text or bare tokens (B, num_text_tokens, text_dim); fewer, if there is a mask.
    `null_text`, the tokens of the empty prompt, are zeros until `network.null_text.copy_(...)`; checkpoints hold them.
    pooled_dim: the width of y.pooled, a missing one adds nothing; 0 in all published models.
    skip: how an upper block takes in the lower one's tokens: "concat" (and a linear map), "add" or "none".
    time_as: "token", or "adaln": every LayerNorm gets scale and shift from the time instead.
    conv: a 3x3 convolution after the linear head. Raises ValueError for an unknown choice.
    `network.checkpoint = True` spares memory in training, see layers.run.
    """

    checkpoint = False

    def __init__(
        self, img_size=32, patch_size=2, in_channels=3, embed_dim=512, depth=12, num_heads=8, mlp_ratio=4.0,
        qkv_bias=False, mlp_time_embed=False, num_classes=0, null_label=True, text_dim=0, num_text_tokens=77,
        skip="concat", time_as="token", conv=True, pooled_dim=0,
    ):  # fmt: skip
        super().__init__()
        check_trunk(img_size, patch_size, depth)
        check_condition(num_classes, text_dim, pooled_dim)
        if skip not in SKIPS:
            raise unknown_name("skip", skip, SKIPS)
        if time_as not in TIMES:
            raise unknown_name("time_as", time_as, TIMES)
        self.shape, self.embed_dim = (in_channels, img_size, img_size), embed_dim
        self.num_classes, self.null_label, self.text_dim = num_classes, null_label, text_dim
        self.num_text_tokens = num_text_tokens  # longer texts are cut to it in training
        self.skip, self.time_as, grid = skip, time_as, img_size // patch_size
        self.extras = (time_as == "token") + bool(num_classes) + (num_text_tokens if text_dim else 0)

        self.patch_embed = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.time_embed = TimeMlp(embed_dim, 4 * embed_dim) if mlp_time_embed else nn.Identity()
        labels = num_classes if null_label else num_classes - 1  # LabelEmbedding adds a row
        self.label_embed = LabelEmbedding(labels, embed_dim) if num_classes else None
        self.text_embed = nn.Linear(text_dim, embed_dim) if text_dim else None
        self.pooled_embed = PooledText(pooled_dim, embed_dim) if pooled_dim else None
        if text_dim:
            self.register_buffer("null_text", torch.zeros(num_text_tokens, text_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + grid**2, embed_dim))

        def block(takes_skip):
            return Block(embed_dim, num_heads, mlp_ratio, qkv_bias, takes_skip and skip == "concat", time_as == "adaln")

        self.in_blocks = nn.ModuleList(block(False) for _ in range(depth // 2))
        self.mid_block = block(False)
        self.out_blocks = nn.ModuleList(block(True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = LinearHead(embed_dim, patch_size, in_channels, grid, conv)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x, time, y=None):
        check_images(x, self.shape, time, y)
        time = timestep_embedding(time, self.embed_dim, order="cos_sin", divisor="half").to(x.dtype)
        time = self.time_embed(time)
        if self.text_dim:
            y = self.full_text(y)
            time = time if self.pooled_embed is None else self.pooled_embed(time, y)
        time = time[:, None]  # (B or 1, 1, d)
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, N, d)
        tokens, mask = self.join(time, patches, y)
        tokens = tokens + self.pos_embed
        kept = []
        for block in self.in_blocks:
            tokens = run(block, tokens, mask, None, time, checkpoint=self.checkpoint)
            kept.append(tokens)
        tokens = run(self.mid_block, tokens, mask, None, time, checkpoint=self.checkpoint)
        for block in self.out_blocks:
            lower = kept.pop()
            if self.skip == "add":
                tokens = tokens + lower
            tokens = run(block, tokens, mask, lower, time, checkpoint=self.checkpoint)
        return self.head(self.norm(tokens[:, self.extras :]))

    def join(self, time, patches, y):
        """All tokens in their order (B, extras + N, d), and which of them count, None for all."""
        tokens, batch = [patches], len(patches)
        mask = None
        if self.text_embed is not None:
            tokens.insert(0, self.text_embed(y.tokens.to(patches.dtype)))
            if y.mask is not None:
                always = y.mask.new_ones(batch, patches.shape[1])
                mask = torch.cat([always[:, : self.time_as == "token"], y.mask, always], dim=1)
        if self.time_as == "token":
            tokens.insert(0, time.expand(batch, -1, -1))
        if self.label_embed is not None:
            tokens.insert(0, self.label_embed(y)[:, None])
        return torch.cat(tokens, dim=1), mask

    def text_of(self, y):
        """The condition y as Text; ValueError unless there are positions for its tokens, and tokens for all of them."""
        text, positions = as_text(y, self.text_dim), len(self.null_text)
        length = text.tokens.shape[1]
        if length > positions or (length < positions and text.mask is None):
            raise ValueError(
                f"texts must have {positions} tokens, the positions of this network, or fewer and a mask, got {length};"
                " pad or cut them, or make a network of other num_text_tokens"
            )
        return text

    def full_text(self, y):
        """The condition y as Text of all positions; with a mask, a row without any token is the empty prompt's."""
        text = self.text_of(y)
        if text.mask is None:
            return text
        more = len(self.null_text) - text.mask.shape[1]
        tokens, mask = F.pad(text.tokens, (0, 0, 0, more)), F.pad(text.mask, (0, more))
        some = mask.any(dim=1, keepdim=True)  # (B, 1)
        tokens = torch.where(some[..., None], tokens, self.null_text.to(tokens.dtype))
        return Text(tokens, mask | ~some, text.pooled)

    def null(self, y):
        """The condition of the shape of y that means 'none': the null label, or the tokens of the empty prompt."""
        if self.text_embed is not None:
            text = self.text_of(y)
            length = text.tokens.shape[1]
            tokens = self.null_text[:length].to(text.tokens).expand_as(text.tokens)
            if isinstance(y, torch.Tensor):
                return tokens
            whole = length == len(self.null_text)  # else no token counts: `full_text` puts the empty prompt there
            mask = None if text.mask is None else torch.full_like(text.mask, whole)
            return Text(tokens, mask, None if text.pooled is None else torch.zeros_like(text.pooled))
        if self.num_classes and not self.null_label:
            raise ValueError("this network has no null label (null_label=False): drop guidance and p_uncond")
        return null_labels(y, self.num_classes)


class Block(nn.Module):
    """A transformer block; an upper one first maps its tokens and those of the lower one to the width again."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias, concat, adaln):
        super().__init__()
        self.skip_linear = nn.Linear(2 * dim, dim) if concat else None
        self.modulation = nn.Linear(dim, 4 * dim) if adaln else None
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x, mask=None, lower=None, time=None):
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, lower], dim=2))
        if self.modulation is None:
            x = x + self.attn(self.norm1(x), mask)
            return x + self.mlp(self.norm2(x))
        scale1, shift1, scale2, shift2 = self.modulation(time).chunk(4, dim=2)
        x = x + self.attn(self.norm1(x) * (1 + scale1) + shift1, mask)
        return x + self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class LinearHead(nn.Module):
    """Tokens (B, grid^2, dim) -> image: each becomes the pixels of its patch; then a 3x3 convolution if `conv`."""

    def __init__(self, dim, patch_size, channels, grid, conv):
        super().__init__()
        self.patch_size, self.grid = patch_size, grid
        self.linear = nn.Linear(dim, patch_size**2 * channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, tokens):
        return self.conv(unpatchify(self.linear(tokens), self.patch_size, self.grid, self.grid))


class TimeMlp(nn.Sequential):
    """Linear, SiLU, Linear back to `dim`; `more` further features may be joined with the time."""

    def __init__(self, dim, hidden, more=0):
        super().__init__(nn.Linear(dim + more, hidden), nn.SiLU(), nn.Linear(hidden, dim))


def init_weights(layer):
    """Linear weights from N(0, 0.02^2), no biases; convolutions and label tables as PyTorch draws them."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def check_trunk(img_size, patch_size, depth):
    """Raise ValueError for sizes that do not fit together."""
    if img_size % patch_size:
        raise ValueError(f"img_size must be divisible by patch_size, got {img_size} and {patch_size}")
    if depth % 2 or depth < 0:
        raise ValueError(f"depth must be even: half of it below the middle block and half above, got {depth}")


SIZES = {  # 500k iterations reach these FIDs, if no other number stands there (their table of models)
    "cifar10": dict(img_size=32, patch_size=2, embed_dim=512, depth=12, num_heads=8),  # FID 3.11
    "celeba64": dict(img_size=64, patch_size=4, embed_dim=512, depth=12, num_heads=8),  # 2.87
    "imagenet64_m": dict(img_size=64, patch_size=4, embed_dim=768, depth=16, num_heads=12, num_classes=1000,
                         null_label=False),  # 5.85 (300k)
    "imagenet64_l": dict(img_size=64, patch_size=4, embed_dim=1024, depth=20, num_heads=16, num_classes=1000,
                         null_label=False),  # 4.26 (300k)
    # the others work on latents of 1/8 the size of the image
    "imagenet256_l": dict(img_size=32, patch_size=2, in_channels=4, embed_dim=1024, depth=20, num_heads=16,
                          num_classes=1000),  # 3.40 (300k)
    "imagenet256_h": dict(img_size=32, patch_size=2, in_channels=4, embed_dim=1152, depth=28, num_heads=16,
                          num_classes=1000, conv=False),  # 2.29
    "imagenet512_l": dict(img_size=64, patch_size=4, in_channels=4, embed_dim=1024, depth=20, num_heads=16,
                          num_classes=1000),  # 4.67
    "imagenet512_h": dict(img_size=64, patch_size=4, in_channels=4, embed_dim=1152, depth=28, num_heads=16,
                          num_classes=1000, conv=False),  # 4.05
    "coco": dict(img_size=32, patch_size=2, in_channels=4, embed_dim=512, depth=12, num_heads=8, text_dim=768,
                 num_text_tokens=77),  # 5.95 (1M)
    "coco_deep": dict(img_size=32, patch_size=2, in_channels=4, embed_dim=512, depth=16, num_heads=8, text_dim=768,
                      num_text_tokens=77),  # 5.48 (1M)
    "tiny": dict(img_size=16, patch_size=2, embed_dim=96, depth=4, num_heads=4),
    "test": dict(img_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2),
}  # fmt: skip

for size, arguments in SIZES.items():
    register_model(f"uvit_{size}", UViT, **arguments)
