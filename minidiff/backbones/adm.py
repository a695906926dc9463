"""The U-Net of improved DDPM (Nichol and Dhariwal 2021) and of ADM (Dhariwal and Nichol 2021, "Diffusion Models Beat
GANs"), equal to the official ones on the same weights; also GLIDE's with text (Nichol et al. 2022), and EDM's port.

    x, low_res? -> conv -> | blocks | halve | ... | blocks | -> middle -> | blocks | double | ... | blocks | -> conv
    time + label or text -> emb -----^ scale and shift in every block        ^ each joined with one from the way down

What changed since DDPM: the time scales and shifts a group norm instead of being added (`scale_shift_norm`); attention
has several heads and stands at several sizes. ADM halves and doubles inside a residual block, as BigGAN does
(`resblock_updown`), where improved DDPM has convolutions. In GLIDE the text's keys and values stand in the same softmax
as the image's. EDM's port has smaller groups (`group_width=4`) and labels as rows (`one_hot`).

Differences from the papers: `attn_resolutions` are sizes, counted from image_size, where the code has factors;
`null_label` adds a row for 'no label', which no published table has; a text may have a mask, padding then counts
nowhere.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.adm_blocks import (
    Block,
    Downsample,
    OneHot,
    TimeEmbedding,
    Upsample,
    group_norm,
    levels_of,
    zeroed,
)
from minidiff.backbones.registry import register_model
from minidiff.layers import LabelEmbedding, as_text, check_halving, fast_layout, no_text, null_labels, run


class ADM(nn.Module):
    """x (B, in_channels, H, W), time (B,) or (1,), y as below -> (B, out_channels, H, W).

    H and W: image_size, or other sides divisible by 2 ** (len(channel_mult) - 1). time: 0 .. T-1; EDM: log(sigma) / 4.
    out_channels: twice in_channels where a variance range is learned, as in all published models but EDM's.
    channel_mult: the width of each level, as a factor of model_channels; the size halves between them.
    num_heads, or num_head_channels for heads of that width. qkv_order: "legacy", "new" or "edm", see adm_blocks.ORDERS.
    group_width: the groups of a norm, at most 32, have at least so many channels.
    num_classes: y is labels (B,) from 0, num_classes itself for 'none', unless null_label is False. one_hot: a linear
    map of labels, or of rows (B, num_classes), in place of the table; the row of 'none' is zeros.
    text_dim: y is Text or bare tokens (B, L, text_dim). The pooled part, if there is one, is added to the time, through
    a linear map if pooled_dim says its width; with pooled_dim=0 it has 4 * model_channels.
    super_resolution: the network sees `low_res` (B, in_channels, h, w) beside x, enlarged to its size.
    `network.checkpoint = True` spares memory in training, see layers.run.
    Raises ValueError for an unknown order, and for sizes and conditions that do not fit together.
    """

    checkpoint = False

    def __init__(
        self, image_size=64, in_channels=3, out_channels=6, model_channels=192, channel_mult=(1, 2, 3, 4),
        num_res_blocks=3, attn_resolutions=(32, 16, 8), dropout=0.0, num_heads=4, num_head_channels=0,
        qkv_order="legacy", scale_shift_norm=True, resblock_updown=True, group_width=1, num_classes=0, null_label=True,
        one_hot=False, text_dim=0, pooled_dim=0, super_resolution=False,
    ):  # fmt: skip
        super().__init__()
        if num_classes and text_dim:
            raise ValueError(f"choose labels (num_classes={num_classes}) or text (text_dim={text_dim}), not both")
        self.shape, emb = (in_channels, image_size, image_size), 4 * model_channels
        self.num_classes, self.null_label, self.one_hot = num_classes, null_label or one_hot, one_hot
        self.text_dim, self.super_resolution = text_dim, super_resolution
        levels = levels_of(image_size, model_channels, channel_mult, attn_resolutions)
        options = dict(
            emb=emb, dropout=dropout, scale_shift_norm=scale_shift_norm, group_width=group_width, num_heads=num_heads,
            num_head_channels=num_head_channels, qkv_order=qkv_order, text_dim=text_dim,
        )  # fmt: skip  (the same in every block)

        self.time_embed = TimeEmbedding(model_channels)
        self.label_embed = None
        if num_classes:  # LabelEmbedding has a row more than it is told
            rows = num_classes if null_label else num_classes - 1
            self.label_embed = OneHot(num_classes, emb) if one_hot else LabelEmbedding(rows, emb)
        self.pooled_embed = nn.Linear(pooled_dim, emb) if pooled_dim else nn.Identity()
        self.encoder = Encoder(in_channels * (1 + super_resolution), levels, num_res_blocks, resblock_updown, options)
        kept, c = list(self.encoder.kept), levels[-1][0]
        self.up = nn.ModuleList()
        for level, (width, attends) in reversed(list(enumerate(levels))):
            stage = nn.ModuleDict({"blocks": nn.ModuleList()})
            for _ in range(num_res_blocks + 1):
                stage["blocks"].append(Block(c + kept.pop(), width, attends=attends, **options))
                c = width
            if level:
                stage["resample"] = Block(c, c, resample="up", **options) if resblock_updown else Upsample(c)
            self.up.append(stage)
        self.norm_out = group_norm(c, group_width)
        self.conv_out = zeroed(nn.Conv2d(c, out_channels, 3, padding=1))

    def forward(self, x, time, y=None, low_res=None):
        check_halving(x, self.shape[0], 2 ** (len(self.up) - 1), time, y)
        emb, text = self.embed(time, y, x.dtype)
        if self.super_resolution or low_res is not None:
            x = self.beside(x, low_res)
        h, kept = self.encoder(fast_layout(x), emb, text, checkpoint=self.checkpoint)
        for stage in self.up:
            for block in stage["blocks"]:
                h = run(block, h, emb, text, kept.pop(), checkpoint=self.checkpoint)
            if "resample" in stage:
                h = run(stage["resample"], h, emb, checkpoint=self.checkpoint)
        return self.conv_out(F.silu(self.norm_out(h))).contiguous()

    def embed(self, time, y, dtype):
        """What every block is told: SiLU of time + label or pooled text (B or 1, emb); and the Text, or None."""
        emb, text = self.time_embed(time, dtype), None
        if self.label_embed is not None:
            emb = emb + self.label_embed(y)
        if self.text_dim:
            text = as_text(y, self.text_dim)
            if text.pooled is not None:
                emb = emb + self.pooled_embed(text.pooled.to(dtype))
        return F.silu(emb), text

    def beside(self, x, low_res):
        """x (B, C, H, W) and the small images, enlarged: (B, 2 C, H, W)."""
        if not self.super_resolution or low_res is None or low_res.shape[:2] != x.shape[:2]:
            got = None if low_res is None else tuple(low_res.shape)
            raise ValueError(
                f"this network has super_resolution={self.super_resolution}, and got low_res={got}: upsamplers take"
                f" ({len(x)}, {x.shape[1]}, h, w), others None"
            )
        return torch.cat([x, F.interpolate(low_res, x.shape[2:], mode="bilinear")], dim=1)

    def null(self, y):
        """The condition of the shape of y that means 'none': the null label, or a text of no token; bare ones become 0.

        GLIDE was trained with the empty caption instead: pass its tokens as null=...
        """
        if self.text_dim:
            return no_text(y, self.text_dim, self.conv_out.bias.new_zeros(()))
        if self.num_classes and not self.null_label:
            raise ValueError("this network has no null label (null_label=False): drop guidance and p_uncond")
        return null_labels(y, self.num_classes)


class Encoder(nn.Module):
    """The way down and the middle: x -> the lowest map, and the list of all maps on the way down.

    levels: (width, attends) of each. `kept`: the widths of the maps in the list.
    """

    def __init__(self, in_channels, levels, num_res_blocks, resblock_updown, options):
        super().__init__()
        c = levels[0][0]
        self.conv_in, self.kept = nn.Conv2d(in_channels, c, 3, padding=1), [c]
        self.down = nn.ModuleList()
        for level, (width, attends) in enumerate(levels):
            stage = nn.ModuleDict({"blocks": nn.ModuleList()})
            for _ in range(num_res_blocks):
                stage["blocks"].append(Block(c, width, attends=attends, **options))
                c = width
                self.kept.append(c)
            if level < len(levels) - 1:
                stage["resample"] = Block(c, c, resample="down", **options) if resblock_updown else Downsample(c)
                self.kept.append(c)
            self.down.append(stage)
        self.middle = nn.ModuleList([Block(c, c, attends=True, **options), Block(c, c, **options)])

    def forward(self, x, emb, text=None, checkpoint=False):
        h = self.conv_in(x)
        kept = [h]
        for stage in self.down:
            for block in stage["blocks"]:
                h = run(block, h, emb, text, checkpoint=checkpoint)
                kept.append(h)
            if "resample" in stage:
                h = run(stage["resample"], h, emb, checkpoint=checkpoint)
                kept.append(h)
        for block in self.middle:
            h = run(block, h, emb, text, checkpoint=checkpoint)
        return h, kept


IDDPM = dict(model_channels=128, attn_resolutions=(16, 8), resblock_updown=False)
IMAGENET = dict(model_channels=256, num_res_blocks=2, num_head_channels=64, num_classes=1000, null_label=False)
UPSAMPLER = IMAGENET | dict(model_channels=192, channel_mult=(1, 1, 2, 2, 4, 4), super_resolution=True)
SIZES = {  # FID with the classifier's guidance in brackets
    "iddpm_cifar10": IDDPM | dict(image_size=32, channel_mult=(1, 2, 2, 2), dropout=0.3),
    "iddpm_imagenet64": IDDPM,
    "iddpm_imagenet64_cond": IDDPM | dict(model_channels=192, num_classes=1000, null_label=False),
    "adm_imagenet64": dict(num_head_channels=64, qkv_order="new", dropout=0.1, num_classes=1000,
                           null_label=False),  # 2.07
    "adm_imagenet128": IMAGENET | dict(image_size=128, channel_mult=(1, 1, 2, 3, 4), num_head_channels=0),  # (2.97)
    "adm_imagenet256": IMAGENET | dict(image_size=256, channel_mult=(1, 1, 2, 2, 4, 4)),  # 10.94 (4.59)
    "adm_imagenet512": IMAGENET | dict(image_size=512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4)),  # 23.24 (7.72)
    "adm_lsun256": IMAGENET | dict(image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), dropout=0.1, num_classes=0),
    "adm_t2i_64": dict(num_head_channels=64, text_dim=512, pooled_dim=512),  # GLIDE, whose text encoder is its own
    "adm_upsample_64_256": UPSAMPLER | dict(image_size=256, num_head_channels=0),
    "adm_upsample_128_512": UPSAMPLER | dict(image_size=512),
    "edm_adm_imagenet64": dict(out_channels=3, num_head_channels=64, qkv_order="edm", dropout=0.1, group_width=4,
                               num_classes=1000, one_hot=True),  # 1.36
    "adm_tiny": dict(image_size=16, out_channels=3, model_channels=24, channel_mult=(1, 2, 2), num_res_blocks=1,
                     attn_resolutions=(8, 4), num_head_channels=16, qkv_order="new", group_width=4),
    "adm_test": dict(image_size=8, out_channels=3, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
                     attn_resolutions=(4,), num_heads=2, group_width=4),
}  # fmt: skip

for name, arguments in SIZES.items():
    register_model(name, ADM, kind="upsampler" if "upsample" in name else "denoiser", **arguments)
