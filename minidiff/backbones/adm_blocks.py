"""What the U-Net of ADM and its noisy classifier are made of: residual blocks told the time, attention, resampling."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidiff.errors import unknown_name
from minidiff.layers import attention, merge_heads, timestep_embedding

# How q, k and v lie in the channels of their one map. Weights of one order run in another, and give wrong pictures.
ORDERS = {
    "legacy": "b n (heads part d) -> part b heads n d",  # improved DDPM, GLIDE, and ADM except at 64 pixels
    "new": "b n (part heads d) -> part b heads n d",  # ADM at 64 pixels
    "edm": "b n (heads d part) -> part b heads n d",
}


class Block(nn.Module):
    """A residual block: x (B, c_in, H, W), emb -> (B, c_out, H, W), followed by attention if it attends.

    On the way up x is joined with `skip`, the map that the way down kept, and both together have c_in channels.
    resample: "up" or "down" doubles or halves H and W between the first norm and the first convolution.
    """

    def __init__(
        self, c_in, c_out, *, emb, dropout, scale_shift_norm, group_width, num_heads, num_head_channels, qkv_order,
        text_dim, attends=False, resample=None,
    ):  # fmt: skip
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.norm1 = group_norm(c_in, group_width)
        self.resample = {"up": nn.Upsample(scale_factor=2), "down": nn.AvgPool2d(2), None: nn.Identity()}[resample]
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb, 2 * c_out if scale_shift_norm else c_out)
        self.norm2 = group_norm(c_out, group_width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        heads = heads_of(c_out, num_heads, num_head_channels)
        self.attention = Attention(c_out, heads, qkv_order, group_width, text_dim) if attends else None

    def forward(self, x, emb, text=None, skip=None):
        if skip is not None:
            x = torch.cat([x, skip], dim=1)  # here, so that `run` need not keep it
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        emb = self.emb(emb)[:, :, None, None]
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + emb)
        h = self.shortcut(self.resample(x)) + self.conv2(self.dropout(F.silu(h)))
        return h if self.attention is None else self.attention(h, text)


class Attention(nn.Module):
    """Every place of x (B, c, H, W) asks all places, and the tokens of the text if there is one, in one softmax."""

    def __init__(self, c, heads, order, group_width=1, text_dim=0):
        super().__init__()
        if order not in ORDERS:
            raise unknown_name("qkv_order", order, ORDERS)
        if not heads or c % heads:
            raise ValueError(f"the width {c} cannot be split into {heads} heads: change num_heads or num_head_channels")
        self.heads, self.order = heads, order
        self.norm, self.qkv = group_norm(c, group_width), nn.Linear(c, 3 * c)
        self.text_kv = nn.Linear(text_dim, 2 * c) if text_dim else None
        self.out = zeroed(nn.Linear(c, c))

    def forward(self, x, text=None):
        # contiguous, or the linear map would be a slower product, and add its bias apart: 2 to 5 % of all this
        tokens, mask = self.norm(x).flatten(2).transpose(1, 2).contiguous(), None  # (B, H W, c)
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads, self.order)
        if self.text_kv is not None:
            text_k, text_v = split_heads(self.text_kv(text.tokens.to(x.dtype)), 2, self.heads, self.order)
            k, v = torch.cat([text_k, k], dim=2), torch.cat([text_v, v], dim=2)  # the text comes first
            if text.mask is not None:
                mask = F.pad(text.mask, (0, tokens.shape[1]), value=True)  # (B, L + H W)
        out = self.out(merge_heads(attention(q, k, v, mask)))
        return x + out.transpose(1, 2).reshape(x.shape)


def split_heads(joined, parts, heads, order):
    """(B, N, parts * c) -> the parts, q, k, v or k, v, each (B, heads, N, c / heads)."""
    split = rearrange(joined, ORDERS[order], part=parts, heads=heads)
    return split.contiguous() if order == "edm" else split  # fast kernels want the numbers of a head side by side


class Downsample(nn.Conv2d):
    """Improved DDPM's: a convolution of stride 2, padded on all sides, where DDPM pads right and bottom only."""

    def __init__(self, c):
        super().__init__(c, c, 3, stride=2, padding=1)

    def forward(self, x, emb=None):
        return super().forward(x)


class Upsample(nn.Conv2d):
    """Improved DDPM's: every pixel becomes four, then a convolution."""

    def __init__(self, c):
        super().__init__(c, c, 3, padding=1)

    def forward(self, x, emb=None):
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimeEmbedding(nn.Sequential):
    """time (B,) or (1,) -> (B or 1, 4 * ch): sinusoids, cosines first, and an MLP."""

    def __init__(self, ch):
        super().__init__(nn.Linear(ch, 4 * ch), nn.SiLU(), nn.Linear(4 * ch, 4 * ch))
        self.ch = ch

    def forward(self, time, dtype):
        return super().forward(timestep_embedding(time, self.ch, order="cos_sin", divisor="half").to(dtype))


class OneHot(nn.Linear):
    """Labels y (B,), or one-hot rows (B, num_classes), -> (B, dim); the row of the label num_classes is zeros."""

    def __init__(self, num_classes, dim):
        super().__init__(num_classes, dim, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, y):
        if y is None:
            raise ValueError("labels are missing: pass y (B,), or network.null(...) for 'no label'")
        rows = y if y.ndim == 2 else y[:, None] == torch.arange(self.in_features, device=y.device)
        return super().forward(rows.to(self.weight.dtype))


def levels_of(image_size, model_channels, channel_mult, attn_resolutions):
    """(width, whether its blocks attend) of each level, from the largest maps to the smallest."""
    return [
        (int(model_channels * mult), image_size // 2**level in attn_resolutions)
        for level, mult in enumerate(channel_mult)
    ]


def heads_of(c, num_heads, num_head_channels):
    """How many heads share c channels: num_heads, unless their width is given."""
    return c // num_head_channels if num_head_channels else num_heads


def group_norm(c, group_width):
    """A group norm of c channels in at most 32 groups of at least group_width channels."""
    return nn.GroupNorm(min(32, c // group_width), c)


def zeroed(layer):
    """The layer with zeros in place of its weights: a branch that ends with it starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
