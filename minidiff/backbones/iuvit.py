"""IU-ViT (arXiv 2212.13771): U-ViT and two changes that give it back a little convolution.

1. `DWConvFFN`: a depth-wise 3x3 convolution between the two linear maps of every MLP mixes neighbouring patches.
2. `RearrangeHead`: the last tokens are first laid out as an image, their width cut into its pixels, then one 3x3
   convolution makes the colours. U-ViT's linear map to p * p * 3 numbers comes first and forgets the rest.

`dwconv` and `rearrange_first` switch them one by one; with both off this is a U-ViT. With text, every block attends to
the image and then to the text. Two other ways are there for comparison: `text_attention="joint"` is GLIDE's single
attention over both, and "tokens" is U-ViT's, where the words are a part of the sequence and ask, too.

No code or weights were published. What the paper leaves open is decided here, so that the parameter counts agree with
the 45, 45, 442, 527 (935 the wide one) and 307 million that it prints:
- widths 512, 512, 1408, 1536 (2048) and 1024; 13 blocks for the small two, 17 for the others; heads of 64 channels;
- the time goes through Linear, SiLU, Linear of the width d; the pooled text is joined with its sinusoids before them;
  these two start as PyTorch draws them, since weights of 0.02 would leave a narrow network deaf to the time;
- the FFN is Linear, GELU, LayerNorm, convolution, GELU, LayerNorm, Linear, without a shortcut inside. Both norms are
  without scale and shift, which the layers after them can learn; with them the wide model would have 936 million;
- the tokens of time, label and (with "tokens") text pass the convolution as they are;
- with "tokens" the text stands first and gets no position, which our text encoders have put into it; padding is masked;
- q, k and v have no biases; labels are a token, and text tokens of width 1024 go through a linear map, as in U-ViT;
- a picture without text attends to one learned token, `null_text`, and its pooled vector is zero.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.backbones.uvit import LinearHead, TimeMlp, check_trunk, init_weights
from minidiff.errors import unknown_name
from minidiff.layers import (
    Attention,
    CrossAttention,
    LabelEmbedding,
    Mlp,
    as_text,
    attention,
    check_condition,
    check_images,
    merge_heads,
    no_text,
    null_for_empty,
    null_labels,
    run,
    split_heads,
    timestep_embedding,
    unpatchify,
)

TEXT_ATTENTIONS = ("cross", "joint", "tokens")


class IUViT(nn.Module):
    """x (B, in_channels, img_size, img_size), time (B,) or (1,) in 0 .. 999, y as below -> the shape of x.

    depth: transformer blocks less one: depth / 2 below the middle block, as many above it.
    dwconv, rearrange_first: the two changes to U-ViT. patch_size^2 must divide embed_dim for the second.
    num_classes: y is labels (B,) from 0, num_classes itself for 'none'.
    text_dim: y is Text with tokens (B, L, text_dim), L of any size, or the bare tokens; pooled_dim: the width of
    y.pooled, a missing one is zeros. text_attention: "cross", "joint" or "tokens"; where cross has a layer more, the
    others have as many weights with mlp_ratio + 1 ("joint") or + 2 ("tokens").
    `network.checkpoint = True` spares memory in training, see layers.run.
    Raises ValueError for an unknown choice and for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=32, patch_size=2, in_channels=3, embed_dim=512, depth=12, num_heads=8, mlp_ratio=4.0,
        qkv_bias=False, dwconv=True, rearrange_first=True, num_classes=0, text_dim=0, pooled_dim=0,
        text_attention="cross",
    ):  # fmt: skip
        super().__init__()
        check_trunk(img_size, patch_size, depth)
        check_condition(num_classes, text_dim, pooled_dim)
        if text_attention not in TEXT_ATTENTIONS:
            raise unknown_name("text_attention", text_attention, TEXT_ATTENTIONS)
        self.shape, self.embed_dim, self.num_classes = (in_channels, img_size, img_size), embed_dim, num_classes
        self.text_dim, self.pooled_dim, self.text_attention = text_dim, pooled_dim, text_attention
        self.extras, grid = 1 + bool(num_classes), img_size // patch_size

        self.patch_embed = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.label_embed = LabelEmbedding(num_classes, embed_dim) if num_classes else None
        self.text_embed = nn.Linear(text_dim, embed_dim) if text_dim else None
        self.null_text = nn.Parameter(0.02 * torch.randn(text_dim)) if text_dim else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + grid**2, embed_dim))

        def block(concat):
            hidden = int(embed_dim * mlp_ratio)
            ffn = DWConvFFN(embed_dim, hidden, grid) if dwconv else Mlp(embed_dim, hidden)
            return Block(embed_dim, num_heads, qkv_bias, ffn, concat, text_attention if text_dim else None)

        self.in_blocks = nn.ModuleList(block(False) for _ in range(depth // 2))
        self.mid_block = block(False)
        self.out_blocks = nn.ModuleList(block(True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        if rearrange_first:
            self.head = RearrangeHead(embed_dim, patch_size, in_channels, grid)
        else:
            self.head = LinearHead(embed_dim, patch_size, in_channels, grid, conv=True)
        self.apply(init_weights)
        self.time_embed = TimeMlp(embed_dim, embed_dim, more=pooled_dim)  # as PyTorch draws it: see above
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x, time, y=None):
        check_images(x, self.shape, time, y)
        batch, text, mask, pooled = len(x), None, None, None
        if self.text_dim:
            y = as_text(y, self.text_dim)
            text, mask = null_for_empty(y, self.null_text)
            text, pooled = self.text_embed(text.to(x.dtype)), y.pooled  # (B, L, d)
        time = self.embed(time, pooled, batch, x.dtype)  # (B, 1, d)
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, N, d)
        labels = [] if self.label_embed is None else [self.label_embed(y)[:, None]]
        tokens = torch.cat([*labels, time, patches], dim=1) + self.pos_embed
        if self.text_dim and self.text_attention == "tokens":
            mask = None if mask is None else F.pad(mask, (0, tokens.shape[1]), value=True)
            tokens, text = torch.cat([text, tokens], dim=1), None
        kept = []
        for block in self.in_blocks:
            tokens = run(block, tokens, text, mask, checkpoint=self.checkpoint)
            kept.append(tokens)
        tokens = run(self.mid_block, tokens, text, mask, checkpoint=self.checkpoint)
        for block in self.out_blocks:
            tokens = run(block, tokens, text, mask, kept.pop(), checkpoint=self.checkpoint)
        return self.head(self.norm(tokens[:, -patches.shape[1] :]))

    def embed(self, time, pooled, batch, dtype):
        """The time token (B, 1, d): sinusoids, joined with the pooled text if there is one, through the MLP."""
        features = timestep_embedding(time, self.embed_dim, order="cos_sin", divisor="half").to(dtype)
        if self.pooled_dim:
            pooled = features.new_zeros(batch, self.pooled_dim) if pooled is None else pooled.to(dtype)
            if pooled.shape != (batch, self.pooled_dim):
                raise ValueError(f"pooled must be {(batch, self.pooled_dim)} or None; got {tuple(pooled.shape)}")
            features = torch.cat([features.expand(batch, -1), pooled], dim=1)
        return self.time_embed(features)[:, None].expand(batch, -1, -1)

    def null(self, y):
        """The condition of the shape of y that means 'none': the null label, or a text of no token."""
        return no_text(y, self.text_dim, self.null_text) if self.text_dim else null_labels(y, self.num_classes)


class Block(nn.Module):
    """A transformer block; attention to the text comes after that to the image ("cross") or with it ("joint").

    With "tokens" the text is a part of x, and the mask (B, tokens of x) is about all of them.
    """

    def __init__(self, dim, num_heads, qkv_bias, ffn, concat, text_attention):
        super().__init__()
        self.joint, self.cross = text_attention == "joint", text_attention == "cross"
        self.skip_linear = nn.Linear(2 * dim, dim) if concat else None
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = (JointAttention if self.joint else Attention)(dim, num_heads, qkv_bias)
        if self.cross:
            self.norm_text, self.text_attn = nn.LayerNorm(dim), CrossAttention(dim, num_heads, qkv_bias)
        self.ffn = ffn

    def forward(self, x, text=None, mask=None, lower=None):
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, lower], dim=2))
        if self.joint:
            x = x + self.attn(self.norm1(x), text, mask)
        else:
            x = x + self.attn(self.norm1(x), None if self.cross else mask)
        if self.cross:
            x = x + self.text_attn(self.norm_text(x), text, mask)
        return x + self.ffn(self.norm2(x))


class DWConvFFN(nn.Module):
    """The first change: Linear, GELU, norm, depth-wise 3x3 convolution, GELU, norm, Linear.

    The convolution sees the grid of image tokens, the last grid^2; those before them pass it as they are.
    """

    def __init__(self, dim, hidden, grid):
        super().__init__()
        self.grid = grid
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm1, self.norm2 = (nn.LayerNorm(hidden, elementwise_affine=False) for _ in range(2))

    def forward(self, x):
        x = self.norm1(F.gelu(self.fc1(x)))
        others, patches = x[:, : -self.grid**2], x[:, -self.grid**2 :]
        patches = patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, hidden, g, g)
        x = torch.cat([others, self.dwconv(patches).flatten(2).transpose(1, 2)], dim=1)
        return self.fc2(self.norm2(F.gelu(x)))


class RearrangeHead(nn.Module):
    """The second change: tokens (B, grid^2, dim) -> an image of dim / patch_size^2 channels -> 3x3 convolution."""

    def __init__(self, dim, patch_size, channels, grid):
        super().__init__()
        if dim % patch_size**2:
            raise ValueError(
                f"embed_dim must be divisible by patch_size^2 to be laid out as pixels, got {dim} and {patch_size}^2;"
                " or set rearrange_first=False"
            )
        self.patch_size, self.grid = patch_size, grid
        self.conv = nn.Conv2d(dim // patch_size**2, channels, 3, padding=1)

    def forward(self, tokens):
        return self.conv(unpatchify(tokens, self.patch_size, self.grid, self.grid))


class JointAttention(nn.Module):
    """Self-attention whose keys and values begin with those of the text, in one softmax (GLIDE, Nichol et al. 2022)."""

    def __init__(self, dim, num_heads, bias):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.text_kv = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, text, mask=None):
        q, kv = self.qkv(x).split((x.shape[2], 2 * x.shape[2]), dim=2)
        kv = torch.cat([self.text_kv(text), kv], dim=1)  # (B, L + N, 2 dim)
        q, k, v = (split_heads(part, self.num_heads) for part in (q, *kv.chunk(2, dim=2)))
        if mask is not None:
            mask = F.pad(mask, (0, x.shape[1]), value=True)
        return self.proj(merge_heads(attention(q, k, v, mask)))


SIZES = {  # 256 image tokens each: the patch grows with the image. All were trained with T = 1000 linear betas
    "cifar10": dict(img_size=32, patch_size=2, embed_dim=512, depth=12, num_heads=8),  # 45 M; FID 2.56
    "celeba64": dict(img_size=64, patch_size=4, embed_dim=512, depth=12, num_heads=8),  # 45 M
    "church128": dict(img_size=128, patch_size=8, embed_dim=1408, depth=16, num_heads=22),  # 442 M
    "church256": dict(img_size=256, patch_size=16, embed_dim=1536, depth=16, num_heads=24),  # 527 M
    "church256_wide": dict(img_size=256, patch_size=16, embed_dim=2048, depth=16, num_heads=32),  # 935 M
    "t2i_64": dict(img_size=64, patch_size=4, embed_dim=1024, depth=16, num_heads=16, text_dim=1024,
                   pooled_dim=1024),  # 307 M; texts of 256 tokens
    "tiny": dict(img_size=16, patch_size=2, embed_dim=96, depth=4, num_heads=4),
    "test": dict(img_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2),
}  # fmt: skip

for size, arguments in SIZES.items():
    register_model(f"iuvit_{size}", IUViT, **arguments)
