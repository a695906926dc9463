"""The layers that are the same in every paper: embeddings, text conditions, attention, MLP, patches and positions."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import checkpoint as recomputation


def timestep_embedding(time, dim, *, order="sin_cos", divisor="half-1", max_period=10000.0):
    """Sinusoidal features (B, dim) of `time` (B,), in float32 (Vaswani et al. 2017, section 3.5).

    The papers differ in what cannot be seen and shifts every output: DDPM has the sines first and frequencies
    max_period^(-i / (half - 1)); ADM and DiT have the cosines first (`order="cos_sin"`) and `divisor="half"`.
    An odd `dim` ends with a zero.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=time.device)
    # multiplied first, then divided: another order rounds differently, and at t near 1000 the sines show it
    frequencies = torch.exp(-math.log(max_period) * index / (half - 1 if divisor == "half-1" else half))
    angles = time.float()[:, None] * frequencies  # (B, half)
    parts = [angles.sin(), angles.cos()] if order == "sin_cos" else [angles.cos(), angles.sin()]
    features = torch.cat(parts, dim=1)
    return F.pad(features, (0, dim % 2))


class LabelEmbedding(nn.Embedding):
    """Labels y (B,) -> (B, dim); one row more than there are classes, the last of which means 'no label'."""

    def __init__(self, num_classes, dim):
        super().__init__(num_classes + 1, dim)

    def forward(self, y):
        if y is None:
            raise ValueError("labels are missing: pass y (B,), or network.null(...) for 'no label'")
        if not isinstance(y, torch.Tensor) or y.ndim != 1 or y.is_floating_point():
            got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
            raise ValueError(f"labels must be a tensor (B,) of whole numbers, one for each image; got {got}")
        return super().forward(y)


def null_labels(y, num_classes):
    """What means 'no label' in the shape of y: the label num_classes (B,), or rows of zeros (B, num_classes).

    Raises ValueError for a network without classes.
    """
    if not num_classes:
        raise ValueError("an unconditional network has no null label: drop guidance and p_uncond, or pass null=...")
    return torch.zeros_like(y) if y.ndim == 2 else torch.full_like(y, num_classes)


class Text(NamedTuple):
    """A text condition: tokens (B, L, D), mask (B, L) bool, True where a token counts, pooled (B, P) or None.

    mask None means that all tokens count. A slice or a tensor of indices picks pictures of the batch and gives a Text;
    a whole number picks a part, as in any tuple.
    """

    tokens: torch.Tensor
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None

    def __getitem__(self, index):
        if isinstance(index, int):
            return tuple.__getitem__(self, index)
        return Text(*(None if part is None else part[index] for part in self))

    def to(self, *args, **kwargs):
        """The same on another device, or with its floating-point parts in another dtype; arguments of Tensor.to."""
        tokens = self.tokens.to(*args, **kwargs)
        mask = None if self.mask is None else self.mask.to(tokens.device)
        return Text(tokens, mask, None if self.pooled is None else self.pooled.to(*args, **kwargs))


def as_text(y, dim):
    """The condition y as Text; a bare tensor (B, L, dim) means that all tokens count and nothing is pooled."""
    if isinstance(y, torch.Tensor):
        y = Text(y)
    if not isinstance(y, Text) or y.tokens.ndim != 3 or y.tokens.shape[2] != dim:
        got = tuple(y.tokens.shape) if isinstance(y, Text) else type(y).__name__
        raise ValueError(
            f"the text is missing or does not fit: pass y=Text(tokens (B, L, {dim}), mask), or the bare tokens, or"
            f" network.null(...) for 'no text'; got {got}"
        )
    shape, mask = y.tokens.shape[:2], y.mask
    if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):  # numbers would be added to the logits
        raise ValueError(
            f"the mask of a text must be bool {tuple(shape)}, True where a token counts; got {mask.dtype}"
            f" {tuple(mask.shape)}: pass mask.bool() where 1 means that a token counts"
        )
    return y


def null_for_empty(text, null):
    """Tokens and mask of a Text, where a row that has no token at all gets one, `null` (D,), in its first place.

    So no softmax is without a key, and how far a row is padded changes nothing.
    """
    if text.mask is None:
        return text.tokens, None
    some = text.mask.any(dim=1, keepdim=True)  # (B, 1)
    tokens = torch.where(some[..., None], text.tokens, null.to(text.tokens.dtype))
    return tokens, text.mask | F.pad(~some, (0, text.mask.shape[1] - 1))


def no_text(y, dim, null):
    """The condition of the shape of y, Text or bare tokens, that means 'no text': no token counts, nothing is pooled.

    Bare tokens have no mask to say so: each of them becomes the token `null` (dim,).
    """
    text = as_text(y, dim)
    tokens = null.to(text.tokens.dtype).expand_as(text.tokens)
    if isinstance(y, torch.Tensor):
        return tokens
    mask = None if text.mask is None else torch.zeros_like(text.mask)
    return Text(tokens, mask, None if text.pooled is None else torch.zeros_like(text.pooled))


class PooledText(nn.Linear):
    """emb (B or 1, dim) and a Text -> emb plus what its pooled part (B, pooled_dim) says: nothing, if zeros or None."""

    def __init__(self, pooled_dim, dim):
        super().__init__(pooled_dim, dim, bias=False)

    def forward(self, emb, text):
        if text.pooled is None:
            return emb
        if text.pooled.shape != (len(text.tokens), self.in_features):
            expected, got = (len(text.tokens), self.in_features), tuple(text.pooled.shape)
            raise ValueError(f"pooled must be {expected}, one vector for each text, or None; got {got}")
        return emb + super().forward(text.pooled.to(emb.dtype))


def check_condition(num_classes, text_dim, pooled_dim=0):
    """Raise ValueError for a network of labels and text, and for pooled text without text."""
    if num_classes and text_dim:
        raise ValueError(f"choose labels (num_classes={num_classes}) or text (text_dim={text_dim}), not both")
    if pooled_dim and not text_dim:
        raise ValueError(f"pooled_dim={pooled_dim} belongs to text: set text_dim too")


observe = None  # while attention maps are recorded (attention_maps.py), what is shown every q, k and mask


def attention(q, k, v, mask=None):
    """Scaled dot-product attention: q (B, heads, N, d), k and v (B, heads, M, d) -> (B, heads, N, d).

    mask: (B, M) bool, True for the keys that count, or what broadcasts to (B, heads, N, M), bool or added to the
    logits. The others get -inf, so every query needs a key that counts: see `null_for_empty`.
    """
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None]
    if observe is not None:
        observe(q, k, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def split_heads(x, heads):
    """(B, N, heads * d) -> (B, heads, N, d), each head a contiguous part of the channels."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(x):
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention over tokens (B, N, dim); q, k and v are one linear map, in this order."""

    def __init__(self, dim, num_heads, qkv_bias=False):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width {dim} must be divisible by num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=2))
        return self.proj(merge_heads(attention(q, k, v, mask)))


class CrossAttention(nn.Module):
    """Tokens (B, N, dim) ask those of a condition (B, L, text_dim), of which only what the mask (B, L) allows answers.

    text_dim: `dim` if None.
    """

    def __init__(self, dim, num_heads, bias, text_dim=None):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv = nn.Linear(dim, dim, bias=bias), nn.Linear(text_dim or dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, text, mask=None):
        q, k, v = (split_heads(part, self.num_heads) for part in (self.q(x), *self.kv(text).chunk(2, dim=2)))
        return self.proj(merge_heads(attention(q, k, v, mask)))


class Mlp(nn.Module):
    """Linear, GELU, Linear; `approximate` is "none" for the exact GELU, "tanh" for that of DiT."""

    def __init__(self, dim, hidden, approximate="none"):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.approximate = approximate

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


def run(block, *args, checkpoint=False):
    """block(*args); with `checkpoint` its activations are not kept, but computed again in the backward pass.

    The memory of one block instead of all, for about a third more time (Chen et al. 2016). A backbone has
    the attribute `checkpoint`, False, and passes it here with each of its blocks: `network.checkpoint = True` turns it
    on. Outputs and gradients stay the same, with dropout too; without gradients it changes nothing.
    """
    if checkpoint and torch.is_grad_enabled():
        return recomputation.checkpoint(block, *args, use_reentrant=False)
    return block(*args)


def fast_layout(x):
    """x with its channels last in memory where that is faster: on a CPU, without gradients.

    A large U-Net gains 3 %, a small one up to 10. Training is no faster so, and group norms on CUDA would turn every
    map round and back.
    """
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        return x.contiguous(memory_format=torch.channels_last)
    return x


def check_images(x, shape, time=None, y=None):
    """Raise ValueError unless x is a batch of images of this shape, which the positions fix.

    time, and y where it is labels, must be (B,) or (1,): others would make another batch of x by broadcasting.
    """
    if x.shape[1:] != shape:
        raise ValueError(f"images must be {shape}, got {tuple(x.shape[1:])}; resize them or set img_size, in_channels")
    fits = ((1,), (len(x),))
    if time is not None and time.shape not in fits:
        raise ValueError(f"time must be ({len(x)},), one for each image, or (1,) for all; got {tuple(time.shape)}")
    if isinstance(y, torch.Tensor) and y.ndim == 1 and y.shape not in fits:
        raise ValueError(f"labels must be ({len(x)},), one for each image; got {tuple(y.shape)}")
    tokens = y.tokens if isinstance(y, Text) else y
    if isinstance(tokens, torch.Tensor) and tokens.ndim == 3 and len(tokens) != len(x):
        raise ValueError(f"there must be {len(x)} texts, one for each image; got tokens {tuple(tokens.shape)}")


def check_halving(x, channels, divisor, time=None, y=None):
    """Raise ValueError unless images x have so many channels, and sides that halve evenly down to 1 / divisor.

    time and y are checked as in `check_images`.
    """
    if x.shape[1] != channels or x.shape[2] % divisor or x.shape[3] % divisor:
        raise ValueError(
            f"images must have {channels} channels and sides divisible by {divisor}, got {tuple(x.shape)};"
            " pad or resize them, or use fewer levels"
        )
    check_images(x, x.shape[1:], time, y)


def check_sides(height, width, divisor, why):
    """Raise ValueError, with sides that would do, unless both are divisible by `divisor`; `why` says what that is."""
    if height % divisor or width % divisor:
        below, above = (
            tuple(max(1, rounded(side / divisor)) * divisor for side in (height, width))
            for rounded in (math.floor, math.ceil)
        )
        raise ValueError(
            f"sides must be divisible by {divisor}, {why}, got {height} x {width}; the nearest that are:"
            f" {below[0]} x {below[1]} and {above[0]} x {above[1]}"
        )


def patchify(x, p):
    """(B, C, H, W) -> (B, H/p * W/p, p * p * C): patches row by row, each in the order (row, column, C)."""
    x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, h, p, w, p)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(tokens, p, h, w):
    """(B, h * w, p * p * C) -> (B, C, h * p, w * p): the inverse of `patchify`."""
    x = tokens.unflatten(2, (p, p, -1)).unflatten(1, (h, w))  # (B, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def sincos_positions(dim, h, w):
    """The fixed table (h * w, dim) of DiT and MAE: sines and cosines of the column, then those of the row.

    Each has dim / 4 frequencies 10000^(-k / (dim / 4)); computed in float64, returned as float32.
    """
    if dim % 4:
        raise ValueError(f"the width must be divisible by 4 for sines and cosines of two axes, got {dim}")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    angles = [axis.flatten().double()[:, None] * frequencies for axis in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
