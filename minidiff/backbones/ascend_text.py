"""How the units of ASCEND (ascend.py) hear a text: by a layer of its own, or inside the attention to the picture.

`Listen` is the paper's way, a cross-attention with a softmax of its own. `TextSwinBlock` is GLIDE's, for comparison:
the keys and values of the text stand before those of the picture, in one softmax. A window is small, so the text is
there in every one: N places of a window ask these N places and all L tokens. The bias by distance and the mask of the
shift are about places; tokens have neither. So each window keeps the text again, which is what this costs in memory.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.backbones.swin import SwinBlock, WindowAttention, join_windows, split_windows
from minidiff.layers import CrossAttention, attention, merge_heads


class Listen(nn.Module):
    """Every place of a map (B, H, W, c) asks the text (B, L, text_dim)."""

    def __init__(self, width, num_heads, text_dim):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, num_heads, bias=True, text_dim=text_dim)

    def forward(self, x, text, mask=None):
        return x + self.cross(self.norm(x).flatten(1, 2), text, mask).view_as(x)


class TextSwinBlock(SwinBlock):
    """A `SwinBlock` told by emb, whose windows also hear the text (B, L, text_dim), where the mask (B, L) is True."""

    def __init__(self, dim, num_heads, resolution, window_size, shift, mlp_ratio, emb_dim, text_dim):
        super().__init__(dim, num_heads, resolution, window_size, shift, mlp_ratio, emb_dim)
        self.attn = TextWindowAttention(dim, num_heads, resolution, window_size, shift, text_dim)

    def forward(self, x, emb, text, mask=None):
        shift1, scale1, shift2, scale2 = self.modulation(emb)[:, None, None].chunk(4, dim=3)
        x = x + self.attn(torch.addcmul(shift1, self.norm1(x), 1 + scale1), text, mask)
        return x + self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2))


class TextWindowAttention(WindowAttention):
    """`WindowAttention` of tokens (B, H, W, dim), with the keys and values of the text before those of each window."""

    def __init__(self, dim, num_heads, resolution, window_size, shift, text_dim):
        super().__init__(dim, num_heads, resolution, window_size, shift)
        self.text_kv = nn.Linear(text_dim, 2 * dim)

    def forward(self, x, text, mask=None):
        batch, dim = len(x), x.shape[3]
        x = x.roll((-self.shift[0], -self.shift[1]), (1, 2)) if any(self.shift) else x
        x = F.pad(x, (0, 0, 0, self.pad[1], 0, self.pad[0])) if any(self.pad) else x
        height, width = x.shape[1:3]
        windows = split_windows(x, self.window)  # (B * windows, N, C)
        count = len(windows) // batch
        q, kv = self.qkv(windows).split((dim, 2 * dim), dim=2)
        words = self.text_kv(text)[:, None].expand(-1, count, -1, -1).flatten(0, 1)  # (B * windows, L, 2 C)
        parts = (q, *torch.cat([words, kv], dim=1).chunk(2, dim=2))
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        bias = self.text_bias(batch, count, text.shape[1], mask)
        windows = self.proj(merge_heads(attention(q, k, v, bias)))
        x = join_windows(windows, self.window, height, width)
        x = x[:, : self.resolution[0], : self.resolution[1]] if any(self.pad) else x
        return x.roll(self.shift, (1, 2)) if any(self.shift) else x

    def text_bias(self, batch, count, length, mask):
        """The bias of the window (1 or B * windows, heads, N, L + N), 0 for tokens of the text, -inf for padding."""
        bias = F.pad(self.bias(batch), (length, 0))
        if mask is None:
            return bias
        mask = mask[:, None].expand(-1, count, -1).flatten(0, 1)[:, None, None]  # (B * windows, 1, 1, L)
        return bias.masked_fill(~F.pad(mask, (0, bias.shape[3] - length), value=True), -torch.inf)
