"""GenViT and HybViT (Yang et al. 2022, "Your ViT is Secretly a Hybrid Discriminative-Generative Diffusion Model").

A vision transformer as it classifies pictures, class token included, given the time and asked for the noise. The time
makes a scale and a shift for every token, the same for all its channels, which act on the residual stream itself,
before attention and again before the MLP: unlike DiT, where they act per channel, behind a norm, inside a branch.

    class token | patches    + learned positions  -> blocks -> Linear of the patches -> noise
    time -> MLP -> SiLU, Linear -> (scale, shift) of each token, in every block

HybViT is the same network with two heads: `logits` runs it without any time and classifies from the class token.

Differences from the paper: `head_classes` is the number of logits, `num_classes` that of labels to condition on, which
the paper does not do: a label's embedding is added to the class token. A text is not taken. The original is without
layer norm before the pixels, and so is this.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.layers import (
    LabelEmbedding,
    Mlp,
    attention,
    check_images,
    merge_heads,
    null_labels,
    patchify,
    run,
    unpatchify,
)


class GenViT(nn.Module):
    """x (B, in_channels, img_size, img_size), time (B,) or (1,) in 0 .. 999, y (B,) or None -> the shape of x.

    dim_head: channels of a head, by default embed_dim // num_heads; the heads together may be narrower than embed_dim.
    ffn_time: scale and shift act a second time, before the MLP. spt: patches from five shifted copies of the picture.
    lsa: attention with a learned temperature for each head, where no token sees itself (both Lee et al. 2021).
    head_classes: logits of the classifier head, 0 for none. num_classes: y is labels from 0, num_classes for 'none'.
    `network.checkpoint = True` spares memory in training, see layers.run.
    Raises ValueError for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=32, patch_size=4, in_channels=3, embed_dim=384, depth=9, num_heads=12, dim_head=None,
        mlp_ratio=2.0, ffn_time=True, spt=False, lsa=False, head_classes=0, num_classes=0,
    ):  # fmt: skip
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size must be divisible by patch_size, got {img_size} and {patch_size}")
        self.shape, self.patch_size, self.grid = (in_channels, img_size, img_size), patch_size, img_size // patch_size
        self.embed_dim, self.ffn_time, self.num_classes = embed_dim, ffn_time, num_classes
        num_tokens, pixels = 1 + self.grid**2, in_channels * patch_size**2
        features = 4 * num_tokens  # as many for the time as make 4 for each token

        self.patch_embed = (ShiftedPatches if spt else Patches)(patch_size, pixels, embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, num_tokens, embed_dim))
        self.label_embed = LabelEmbedding(num_classes, embed_dim) if num_classes else None
        self.time_embed = nn.Sequential(nn.Linear(embed_dim, features), nn.GELU(), nn.Linear(features, features))
        self.modulations = nn.ModuleList(nn.Linear(features, 2 * num_tokens) for _ in range(depth))
        heads = num_heads, dim_head or embed_dim // num_heads
        self.blocks = nn.ModuleList(Block(embed_dim, *heads, mlp_ratio, lsa, num_tokens) for _ in range(depth))
        self.head = nn.Linear(embed_dim, pixels)
        self.classifier = None
        if head_classes:
            self.classifier = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, head_classes))
        self.apply(init_weights)

    def forward(self, x, time, y=None):
        check_images(x, self.shape, time, y)
        time = self.time_embed(time_features(time, self.embed_dim).to(x.dtype))
        time = F.silu(time)  # (B or 1, 4 T)
        tokens = self.embed(x, None if self.label_embed is None else self.label_embed(y))  # (B, T, d)
        for block, modulation in zip(self.blocks, self.modulations):
            scale, shift = modulation(time)[..., None].chunk(2, dim=1)  # each (B or 1, T, 1)
            tokens = run(block.attend, torch.addcmul(shift, tokens, 1 + scale), checkpoint=self.checkpoint)
            if self.ffn_time:
                tokens = torch.addcmul(shift, tokens, 1 + scale)
            tokens = run(block.think, tokens, checkpoint=self.checkpoint)
        return unpatchify(self.head(tokens[:, 1:]), self.patch_size, self.grid, self.grid)

    def logits(self, x):
        """The classifier of HybViT: clean pictures x (B, C, H, W) -> logits (B, head_classes); no time enters."""
        if self.classifier is None:
            raise ValueError("this network has no classifier: make it with head_classes=10, or as many as there are")
        tokens = self.embed(x)
        for block in self.blocks:
            tokens = block.think(block.attend(tokens))
        return self.classifier(tokens[:, 0])

    def embed(self, x, label=None):
        """The class token, plus an embedded label (B, d) if given, and the patches, at their positions: (B, T, d)."""
        check_images(x, self.shape)
        first = self.cls_token.expand(len(x), -1, -1)
        if label is not None:
            first = first + label[:, None]
        return torch.cat([first, self.patch_embed(x)], dim=1) + self.pos_embed

    def null(self, y):
        """Labels of the shape of y (B,) that mean 'no label'."""
        return null_labels(y, self.num_classes)


class Block(nn.Module):
    """A block of a vision transformer in its two halves, since the time comes before each of them."""

    def __init__(self, dim, num_heads, dim_head, mlp_ratio, lsa, num_tokens):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, dim_head, lsa, num_tokens)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def attend(self, x):
        return x + self.attn(self.norm1(x))

    def think(self, x):
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention whose heads may be of any width; with `lsa` a learned temperature, and not to the token itself."""

    def __init__(self, dim, num_heads, dim_head, lsa, num_tokens):
        super().__init__()
        self.num_heads, self.dim_head = num_heads, dim_head
        inner = num_heads * dim_head
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.proj = nn.Identity() if num_heads == 1 and inner == dim else nn.Linear(inner, dim)
        self.scale = nn.Parameter(torch.full((num_heads,), dim_head**-0.5)) if lsa else None
        others = ~torch.eye(num_tokens, dtype=torch.bool)[None, None] if lsa else None
        self.register_buffer("others", others, persistent=False)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.scale is not None:  # in place of dim_head^-0.5, which `attention` multiplies with
            q = q * (self.scale * self.dim_head**0.5)[:, None, None]
        return self.proj(merge_heads(attention(q, k, v, self.others)))


class Patches(nn.Sequential):
    """x (B, C, H, W) -> tokens (B, N, dim): the pixels of each patch, one linear map."""

    def __init__(self, patch_size, pixels, dim):
        super().__init__(nn.Linear(pixels, dim))
        self.patch_size = patch_size

    def forward(self, x):
        return super().forward(patchify(x, self.patch_size))


class ShiftedPatches(Patches):
    """Patches of the picture and of its copies, moved by half a patch along both diagonals; a norm comes first."""

    def __init__(self, patch_size, pixels, dim):
        super().__init__(patch_size, 5 * pixels, dim)
        self.insert(0, nn.LayerNorm(5 * pixels))

    def forward(self, x):
        h, w, half = *x.shape[2:], self.patch_size // 2
        padded = F.pad(x, (half, half, half, half))
        corners = [(0, 0), (0, 2 * half), (2 * half, 0), (2 * half, 2 * half)]  # upper row of crops first
        crops = [padded[:, :, top : top + h, left : left + w] for top, left in corners]
        return super().forward(torch.cat([x, *crops], dim=1))


def time_features(time, dim):
    """Sines, then cosines (B, dim) of `time` (B,), in float32: as layers.timestep_embedding, but for the rounding.

    The rate is divided before it is multiplied, as in the original. At a time near 1000 that moves the outputs by
    5e-5 of their spread, far more than anything else here.
    """
    half = dim // 2
    rate = -math.log(10000.0) / (half - 1)
    angles = time.float()[:, None] * torch.exp(torch.arange(half, dtype=torch.float32, device=time.device) * rate)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


def init_weights(layer):
    """Xavier-normal linear maps without bias; norms and label tables as PyTorch draws them. Nothing starts at zero."""
    if isinstance(layer, nn.Linear):
        nn.init.xavier_normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


# Trained with T = 1000 cosine betas and an L1 loss. CIFAR-10: FID 20.2 of 10,000 samples, 17.7 of 50,000.
register_model("genvit_cifar10", GenViT, head_classes=10)
register_model("genvit_celeba128", GenViT, img_size=128, patch_size=8, head_classes=10)
register_model("genvit_tiny", GenViT, img_size=16, patch_size=2, embed_dim=96, depth=4, num_heads=4)
register_model("genvit_test", GenViT, img_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2)
