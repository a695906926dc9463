"""A network for diffusion made of the parts of HiT (hit.py). It is ours: the paper has only the generator.

    x -> conv -> | ask, attend in blocks | unshuffle | ... -> ... | ask, attend in blocks | RGB | shuffle | ... -> sum
    time, label, text -> sixteen tokens and more ----^ in every stage     each map of the encoder is added on the way up

What is decided here:
- the decoder is the generator. An encoder mirrors it: the same stages from fine to coarse, with pixel unshuffle between
  them; its map at each resolution is added to the decoder's, and the coarsest one takes the place of z's map;
- the sixteen tokens are made of time and label (and pooled text) in place of z, and the tokens of a text stand beside
  them; encoder and decoder both ask. A picture without text has one learned token, `null_text`;
- layer norm in place of batch norm, whose statistics would mix noise levels;
- blocks at all resolutions, so that no stage is without attention; the only convolution, 3x3, makes the first tokens;
- every stage of the decoder adds to the picture, as the last ones of the generator do; these layers start at zero, all
  others as DiT's (Xavier), since with the generator's small numbers time and label are hardly heard at first;
- `hit_cifar10` has the first three stages of the published generators, those of 8, 16 and 32 pixels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.hit import (
    LatentTokens,
    LayerNorm,
    Stage,
    add_rgb,
    change,
    init_weights,
    pixel_shuffle,
    pixel_unshuffle,
    stage_sizes,
)
from minidiff.backbones.registry import register_model
from minidiff.layers import (
    LabelEmbedding,
    PooledText,
    as_text,
    check_condition,
    check_images,
    no_text,
    null_for_empty,
    null_labels,
    timestep_embedding,
)


class HiT(nn.Module):
    """x (B, in_channels, img_size, img_size), time (B,) or (1,) in 0 .. 999, y as below -> the shape of x.

    widths, depths, num_heads, block_sizes: of each resolution, coarsest first, as in the generator; the encoder has
    them too. emb_dim: width of the vector that the latent tokens are made of. attn_type: as in the generator.
    num_classes: y is labels (B,) from 0, num_classes itself for 'none'. text_dim: y is Text with tokens (B, L,
    text_dim), L of any size, or the bare tokens; pooled_dim: the width of y.pooled, a missing one adds nothing.
    `network.checkpoint = True` spares memory in training, see layers.run.
    Raises ValueError for an unknown choice and for sizes that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, img_size=32, in_channels=3, widths=(512, 512, 256), depths=(2, 2, 2), num_heads=(16, 8, 4),
        block_sizes=(4, 4, 8), latent_tokens=16, emb_dim=512, attn_type="multi_query", dropout=0.0, num_classes=0,
        text_dim=0, pooled_dim=0,
    ):  # fmt: skip
        super().__init__()
        check_condition(num_classes, text_dim, pooled_dim)
        sizes = stage_sizes(img_size, widths, depths, num_heads, block_sizes, attn_type=attn_type)
        self.shape, self.emb_dim, self.latent_tokens = (in_channels, img_size, img_size), emb_dim, latent_tokens
        self.num_classes, self.text_dim = num_classes, text_dim

        self.time_embed = nn.Sequential(nn.Linear(emb_dim, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.label_embed = LabelEmbedding(num_classes, emb_dim) if num_classes else None
        self.pooled_embed = PooledText(pooled_dim, emb_dim) if pooled_dim else None
        self.latent = LatentTokens(emb_dim, latent_tokens, widths[0], "layer")
        self.text_embed = nn.Sequential(nn.Linear(text_dim, widths[0]), LayerNorm(widths[0])) if text_dim else None
        self.null_text = nn.Parameter(0.02 * torch.randn(text_dim)) if text_dim else None

        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()  # both coarsest first
        for i, level in enumerate(zip(sizes, widths, depths, num_heads, block_sizes)):
            down, up = (nn.ModuleDict({"tokens": Stage(*level, widths[0], "layer", attn_type, dropout)}) for _ in "ud")
            if i < len(sizes) - 1:
                down["enter"] = change(4 * widths[i + 1], widths[i])
            if i:
                up["enter"] = change(widths[i - 1] // 4, widths[i])
            up["rgb"] = nn.Sequential(LayerNorm(widths[i]), nn.Linear(widths[i], in_channels))
            self.encoder.append(down)
            self.decoder.append(up)
        init_weights(self)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        for stage in self.decoder:
            nn.init.zeros_(stage["rgb"][1].weight)

    def forward(self, x, time, y=None):
        check_images(x, self.shape, time, y)
        latent, mask = self.embed(time, y, x.dtype)
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)  # (B, H, W, C)
        kept, picture = [], None
        for stage in reversed(self.encoder):
            h = stage["enter"](pixel_unshuffle(h)) if "enter" in stage else h
            h = stage["tokens"](h, latent, mask, self.checkpoint)
            kept.append(h)
        for stage in self.decoder:
            h = kept.pop() + stage["enter"](pixel_shuffle(h)) if "enter" in stage else kept.pop()
            h = stage["tokens"](h, latent, mask, self.checkpoint)
            picture = add_rgb(picture, stage["rgb"](h))
        return picture

    def embed(self, time, y, dtype):
        """The tokens that all places ask, (B or 1, M, widths[0]), and their mask (B, M) or None."""
        emb = self.time_embed(timestep_embedding(time, self.emb_dim, order="cos_sin", divisor="half").to(dtype))
        if self.label_embed is not None:
            emb = emb + self.label_embed(y)
        if not self.text_dim:
            return self.latent(F.silu(emb)), None
        text = as_text(y, self.text_dim)
        emb = emb if self.pooled_embed is None else self.pooled_embed(emb, text)
        tokens, mask = null_for_empty(text, self.null_text)
        latent = self.latent(F.silu(emb)).expand(len(tokens), -1, -1)
        latent = torch.cat([latent, self.text_embed(tokens.to(dtype))], dim=1)
        return latent, None if mask is None else F.pad(mask, (self.latent_tokens, 0), value=True)

    def null(self, y):
        """The condition of the shape of y that means 'none': the null label, or a text of no token."""
        return no_text(y, self.text_dim, self.null_text) if self.text_dim else null_labels(y, self.num_classes)


SIZES = {
    "cifar10": dict(),
    "tiny": dict(img_size=16, widths=(96, 48), depths=(1, 1), num_heads=(4, 4), block_sizes=(4, 4), emb_dim=128),
    "test": dict(img_size=8, widths=(16, 8), depths=(1, 1), num_heads=(2, 2), block_sizes=(2, 4), emb_dim=16),
}

for size, arguments in SIZES.items():
    register_model(f"hit_{size}", HiT, **arguments)
