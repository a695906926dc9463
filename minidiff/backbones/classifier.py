"""Networks that judge noisy images at a known noise level, to guide a diffusion model by their gradients.

Both begin with the way down of a U-Net: `NoisyClassifier` ends it with the logits of classes (Dhariwal and Nichol
2021, section 4.1), `ImageTextScorer` with a unit vector that is compared with the unit vector of a text (Radford et
al. 2021, trained on noised images as by Nichol et al. 2022, section 2.4).

Differences from the papers: sizes for 16 pixels; the mean over all places in place of attention pooling; a text is the
mean of its words' embeddings and a small network, without regard to their order.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.registry import register_model
from minidiff.backbones.unet import Block, Downsample, init_weights
from minidiff.layers import check_halving, timestep_embedding


class Encoder(nn.Module):
    """The way down of a U-Net: x (B, in_channels, H, W), time (B,) or (1,) -> features (B, ch * ch_mult[-1]).

    Arguments as those of `UNet`; H and W must be divisible by 2 ** (len(ch_mult) - 1).
    """

    def __init__(self, image_size, in_channels, ch, ch_mult, num_res_blocks, attn_resolutions, dropout, num_groups):
        super().__init__()
        self.in_channels, self.ch, self.divisor = in_channels, ch, 2 ** (len(ch_mult) - 1)
        emb, c = 4 * ch, ch
        self.time_dense0, self.time_dense1 = nn.Linear(ch, emb), nn.Linear(emb, emb)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.levels = nn.ModuleList()
        for level, width in enumerate(ch * mult for mult in ch_mult):
            attends = image_size // 2**level in attn_resolutions
            blocks = nn.ModuleList([Downsample(c)] if level else [])
            for _ in range(num_res_blocks):
                blocks.append(Block(c, width, emb, dropout, attends, num_groups))
                c = width
            self.levels.append(blocks)
        self.norm_out, self.width = nn.GroupNorm(num_groups, c, eps=1e-6), c
        for name, layer in self.named_modules():
            init_weights(name, layer)
        for name, layer in self.named_modules():
            if name.endswith(("conv2", "attention.out")):  # every branch starts as (nearly) nothing
                nn.init.xavier_uniform_(layer.weight, gain=1e-5)

    def forward(self, x, time):
        check_halving(x, self.in_channels, self.divisor, time)
        features = timestep_embedding(time, self.ch).to(x.dtype)
        emb = F.silu(self.time_dense1(F.silu(self.time_dense0(features))))  # (B or 1, 4 ch)
        h = self.conv_in(x)
        for level in self.levels:
            for layer in level:
                h = layer(h, emb) if isinstance(layer, Block) else layer(h)
        return F.silu(self.norm_out(h)).mean((2, 3))


class NoisyClassifier(nn.Module):
    """Logits (B, num_classes) of a noisy image x (B, in_channels, H, W) at time (B,) or (1,) in 0 .. T-1."""

    def __init__(
        self, image_size=16, in_channels=3, ch=32, ch_mult=(1, 2, 4), num_res_blocks=1, attn_resolutions=(8, 4),
        dropout=0.0, num_classes=10, num_groups=8,
    ):  # fmt: skip
        super().__init__()
        self.num_classes = num_classes
        self.encoder = Encoder(image_size, in_channels, ch, ch_mult, num_res_blocks, attn_resolutions, dropout,
                               num_groups)  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(self.encoder.width, num_classes)

    def forward(self, x, time):
        return self.out(self.dropout(self.encoder(x, time)))


class ImageTextScorer(nn.Module):
    """Unit vectors of noisy images (B, embed_dim) and of texts (N, embed_dim), near each other where they fit.

    x (B, in_channels, H, W), time (B,) or (1,) in 0 .. T-1, tokens (N, L) int64 from 0 to vocab_size - 1, mask (N, L)
    bool, True where there is a word. `scale()` is what the inner product of the two is multiplied with.
    While it trains, a word becomes `unknown` (token 1) with probability `word_dropout`.
    """

    def __init__(
        self, image_size=16, in_channels=3, ch=32, ch_mult=(1, 2, 4), num_res_blocks=1, attn_resolutions=(8, 4),
        dropout=0.0, num_groups=8, vocab_size=1000, text_dim=96, embed_dim=64, word_dropout=0.0,
    ):  # fmt: skip
        super().__init__()
        self.vocab_size, self.word_dropout = vocab_size, word_dropout
        self.num_classes = vocab_size  # a training loop asks this before it hands on what belongs to the images
        self.encoder = Encoder(image_size, in_channels, ch, ch_mult, num_res_blocks, attn_resolutions, dropout,
                               num_groups)  # fmt: skip
        self.image_out = nn.Linear(self.encoder.width, embed_dim)
        self.words = nn.Embedding(vocab_size, text_dim)
        nn.init.normal_(self.words.weight, std=text_dim**-0.5)
        self.text_norm = nn.LayerNorm(text_dim)
        self.text_mlp = nn.Sequential(nn.Linear(text_dim, 2 * text_dim), nn.SiLU(), nn.Dropout(dropout),
                                      nn.Linear(2 * text_dim, text_dim))  # fmt: skip
        self.text_out = nn.Linear(text_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, x, time, tokens, mask):
        return self.image(x, time), self.text(tokens, mask)

    def image(self, x, time):
        """The unit vectors (B, embed_dim) of noisy images."""
        return F.normalize(self.image_out(self.dropout(self.encoder(x, time))), dim=1)

    def text(self, tokens, mask):
        """The unit vectors (N, embed_dim) of texts."""
        if self.training and self.word_dropout:
            tokens = tokens.masked_fill(torch.rand(tokens.shape, device=tokens.device) < self.word_dropout, 1)
        share = mask.to(self.words.weight.dtype)
        share = share / share.sum(1, keepdim=True).clamp(min=1)  # (N, L); a text without words has the mean 0
        h = torch.einsum("nl,nld->nd", share, self.words(tokens))
        h = self.text_norm(h)
        return F.normalize(self.text_out(self.dropout(h + self.text_mlp(h))), dim=1)

    def scale(self):
        """exp(logit_scale), at most 100 (Radford et al. 2021, section 2.5)."""
        return self.logit_scale.clamp(max=math.log(100.0)).exp()


register_model("classifier_tiny", NoisyClassifier, kind="classifier", num_classes=10)
register_model(
    "classifier_test", NoisyClassifier, kind="classifier", image_size=8, ch=8, ch_mult=(1, 2), attn_resolutions=(4,),
    num_classes=3, num_groups=2,
)  # fmt: skip
register_model("clip_tiny", ImageTextScorer, kind="scorer")
register_model(
    "clip_test", ImageTextScorer, kind="scorer", image_size=8, ch=8, ch_mult=(1, 2), attn_resolutions=(4,),
    num_groups=2, vocab_size=10, text_dim=8, embed_dim=8,
)  # fmt: skip
