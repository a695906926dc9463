# %% [markdown]
# # 14 Windows, pyramids and blocks: Swin and HiT
#
# After this notebook you can say which pixel sees which in any attention layer, and what that costs; you can write Swin's shifted windows and HiT's two axes by hand, and train a denoiser made of the second.
#
# Run time: about five minutes on a CPU with two idle cores, half of it training one small network; expect as long on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - measure how the cost of four layers grows up to 256 pixels,
# - cut a picture into windows, shift them, and find out what the mask is for,
# - draw how far a token sees after one, two and four blocks,
# - build a pyramid of resolutions,
# - take HiT apart: two axes of attention, one key for all heads, sixteen tokens that know what to draw,
# - turn the generator of a GAN into a diffusion backbone, and train it.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## The bill
#
# U-ViT and DiT let every token look at every other one. With $N$ tokens that makes $N^2$ pairs. Twice the side of the picture is four times the tokens and sixteen times the pairs. If you want every pixel to be a token, a token must look at fewer others. Let $K$ be how many keys a query meets on average, and $C$ the number of channels. Four linear maps make queries, keys, values and the output; two products per pair do the looking. Count a multiplication and an addition as two:
#
# $$\text{FLOPs} = \underbrace{8 N C^2}_{\text{linear maps}} + \underbrace{4 N K C}_{\text{pairs}}, \qquad \text{and the matrix of weights has } N K \text{ numbers for each head.}$$
#
# Everything in this notebook is about $K$. **Global** attention has $K = N$. **Windows** of 8 by 8 (Swin) have $K = 64$ whatever the picture. HiT's **multi-axis blocks** cut the picture into blocks of $p$ by $p$; half of the heads look inside the block, the other half at the same place of every block, so $K = \tfrac12(p^2 + N/p^2)$. A 3 by 3 convolution has nine neighbours and no keys, and needs $18 N C^2$. Lay out all four.

# %%
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from minidiff.backbones.hit import LatentAttention, MultiAxisAttention, pixel_shuffle, pixel_unshuffle
from minidiff.backbones.swin import (PatchExpanding, PatchMerging, SwinBlock, WindowAttention, join_windows,
                                     relative_index, shift_mask, split_windows)
from minidiff.layers import Attention
C, BLOCK = 64, {16: 4, 32: 8, 64: 8, 128: 16, 256: 16}  # for each side a power of two near its root

def layers(side):
    """Four layers, each a function of a map (1, side, side, C)."""
    everyone, windows = Attention(C, 4, qkv_bias=True), WindowAttention(C, 4, (side, side), 8, 0)
    axes, conv, p = MultiAxisAttention(C, 4, "multi_head"), torch.nn.Conv2d(C, C, 3, padding=1), BLOCK[side]
    return {"global attention": lambda x: everyone(x.flatten(1, 2)), "windows of 8": windows,
            "multi-axis blocks": lambda x: axes(split_windows(x, (p, p)).unflatten(0, (1, -1))),
            "convolution 3 x 3": lambda x: conv(x.permute(0, 3, 1, 2))}

def keys(side):
    p, n = BLOCK[side], side * side
    return {"global attention": n, "windows of 8": 64, "multi-axis blocks": (p * p + n / p**2) / 2}

# %% [markdown]
# Tensors on the *meta* device have shapes and no memory, so the work of any size can be counted, and compared with the formula. Time needs real ones.

# %%
import time

flops, seconds = {}, {}
with torch.no_grad():
    for side in BLOCK:
        with torch.device("meta"):
            for name, layer in layers(side).items():
                with FlopCounterMode(display=False) as counter:
                    layer(torch.empty(1, side, side, C))
                flops.setdefault(name, {})[side] = total = counter.get_total_flops()
                pairs = 4 * side**2 * keys(side).get(name, 0) * C
                assert total == (pairs + 8 * side**2 * C**2 if pairs else 18 * side**2 * C**2)
        if side > 64 and run.tier == "smoke":
            continue
        x = torch.randn(1, side, side, C)
        for name, layer in layers(side).items():
            if (name, side) == ("global attention", 256):
                continue  # counted, not run
            tries = []
            for _ in range(2 if side > 64 else 5):
                start = time.perf_counter()
                layer(x)
                tries.append(time.perf_counter() - start)
            seconds.setdefault(name, {})[side] = min(tries)

# %% [markdown]
# Both axes of the figure are logarithmic, so a power is a straight line. The legend gives its exponent in the number of *tokens*, from the largest size and the one of a sixteenth of its tokens.

# %%
def slope(values):
    """The exponent of the number of tokens, between the largest size and a quarter of its side."""
    *_, small, _, large = values.items()
    return torch.tensor(large[1] / small[1]).log2().item() / 4

@plots.quiet
def draw_cost():
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.0))
    for ax, known, label in zip(axes, (flops, seconds), ("FLOPs", "seconds on the CPU")):
        for name, values in known.items():
            ax.plot(values.keys(), values.values(), "o-", label=f"{name}: N$^{{{slope(values):.2f}}}$")
        ax.set(xscale="log", yscale="log", xlabel="side in pixels", ylabel=label)
        ax.set_xticks(list(BLOCK), list(BLOCK))
        ax.set_xticks([], minor=True)
        ax.set_ylim(ax.get_ylim()[0], ax.get_ylim()[1] * 30)  # room for the legend
        ax.legend(loc="upper left")
    return figure

print("weights of four heads in GB, for each side:")
for name in keys(16):
    print(f"{name:18}", "  ".join(f"{s}: {4 * 4 * s**2 * keys(s)[name] / 1e9:.3g}" for s in BLOCK))
draw_cost()

# %% [markdown]
# The work of windows and convolutions grows with the pixels: exponent 1. That of global attention approaches 2. Multi-axis blocks lie between, on their way to 1.5 as the pairs outgrow the linear maps: with $p^2 = \sqrt N$ both halves have $\sqrt N$ keys. (Keep $p$ fixed, and the second half is quadratic again.) How closely the seconds follow depends on caches, and on what else your machine is doing.
#
# At 256 pixels global attention is counted and not run. Written out as in a textbook, the weights of one layer for one picture would fill the tens of gigabytes that are printed above. The fused kernel behind the package's `attention` works tile by tile and never stores them; for it the wall is time. Nor do FLOPs rank the layers by time. The convolution has half as many again as the windows; which of the two is faster in your figure? Cutting, joining and a softmax move memory about, and FLOPs do not count that.
#
# ## Windows
#
# Tokens in different windows never meet, so a network of windows draws many small pictures that know nothing of each other. Swin (Liu et al. 2021) alternates: in every second block the windows move by half their side. Take an emoji of 16 pixels, each a token, with windows of 8 and a shift of 4.
#
# Cutting after a shift leaves stripes at the border. Swin's trick: do not move the windows, **roll the picture** by (-4, -4), and cut as before. What falls off at the top comes back at the bottom. The last window now holds the four corners of the picture, which are no neighbours at all. A mask forbids pairs that only the roll has brought together. The colours below come from the package's mask itself: tokens have one colour if the mask lets them meet.

# %%
held_out = minidiff.load_dataset("emoji", size=16, split="test")
smiley = held_out.images()[held_out.labels == 7][3:4]
picture = (smiley[0].permute(1, 2, 0) + 1) / 2  # (H, W, 3) in [0, 1]
mask = shift_mask((16, 16), (8, 8), (4, 4))  # (4 windows, 64, 64), 0 or -100
group = (mask == 0).int().argmax(2) + 64 * torch.arange(4)[:, None]  # the first token that each may meet
group = join_windows(group.unique(return_inverse=True)[1][..., None], (8, 8), 16, 16)[0, ..., 0]

@plots.quiet
def draw_shift():
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 4, figsize=(9.2, 4.9))
    shown = {"picture, cut": picture, "rolled, cut": picture.roll((-4, -4), (0, 1)),
             "who may meet (rolled)": group, "the same, rolled back": group.roll((4, 4), (0, 1))}
    for k, (name, image) in enumerate(shown.items()):
        cuts = (0, 8, 16) if k < 3 else (0, 4, 12, 16)
        axes[0, k].imshow(image, cmap="Set1", extent=(0, 16, 16, 0))
        axes[0, k].vlines(cuts, 0, 16, color="k"), axes[0, k].hlines(cuts, 0, 16, color="k")
        axes[0, k].set(title=name, xticks=[], yticks=[])
        axes[1, k].imshow(mask[k], cmap="gray", vmin=-130, vmax=0), axes[1, k].spines[:].set_visible(True)
        axes[1, k].set(title=f"mask of window {k}", xticks=[], yticks=[], xlabel="key", ylabel="query")
    return figure

assert (mask == 0).float().mean((1, 2)).tolist() == [1, 1 / 2, 1 / 2, 1 / 4]
print(f"{len(group.unique())} groups of", sorted(group.unique(return_counts=True)[1].tolist()), "tokens")
draw_shift()

# %% [markdown]
# Rolled back, it is plain: one full window in the middle that joins all four of the old ones, half windows along the edges, quarters in the corners. Nine groups, in four windows of equal size. In the masks white is allowed: everything in the first, half of the pairs in the next two, a quarter in the last.
#
# The mask is *added* to the logits, as -100 and not as minus infinity. After the softmax that leaves $e^{-100} \approx 10^{-44}$.
#
# ## How far does a token see?
#
# Ask the network. Take the gradient of one output token with respect to all input tokens: where it is zero, nothing can be seen. Here is a map of 32 by 32 tokens with windows of 8, after one, two and four Swin blocks with random weights. The asking token is marked with a cross.

# %%
def reach(blocks, side, at):
    """How strongly the output at one place depends on each input token: (side, side), 1 at most."""
    x = torch.randn(4, side, side, 32).requires_grad_()
    (torch.nn.Sequential(*blocks)(x)[:, at[0], at[1]] * torch.randn(32)).sum().backward()
    size = x.grad.square().sum((0, 3)).sqrt()
    return size / size.max()

@plots.quiet
def draw_reach(maps, at):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 3, figsize=(8.6, 5.6))
    for ax, (name, size) in zip(axes.flat, maps.items()):
        seen = ax.imshow(size.where(size > 1e-12, torch.nan).log10(), cmap="viridis", vmin=-5, vmax=0)
        ax.plot(at[1], at[0], "x", color="#D55E00", markersize=8, markeredgewidth=2.5)
        ax.set(title=f"{name}: {(size > 1e-12).sum()} tokens", xticks=[], yticks=[])
    figure.colorbar(seen, ax=axes, fraction=0.02, label="log10 of the gradient")
    return figure

torch.manual_seed(0)
maps = {}
for name, shift in (("no shift", 0), ("shift 4", 4)):
    blocks = [SwinBlock(32, 4, (32, 32), 8, shift if k % 2 else 0) for k in range(4)]
    maps |= {f"{name}, {n} block{'s' * (n > 1)}": reach(blocks[:n], 32, (13, 13)) for n in (1, 2, 4)}
assert [(size > 1e-12).sum() for size in maps.values()] == [64, 64, 64, 64, 256, 1024]
draw_reach(maps, (13, 13))

# %% [markdown]
# White is zero. Without shift a token sees its window and nothing else, however deep the network. With shift the view grows block by block. Two blocks make 16 by 16: the shifted window touches four plain ones. From this place four blocks see the whole map. But look at the colours: to be reachable is not to be heard, and the far tokens are orders of magnitude fainter.
#
# (Gradients below $10^{-12}$ of the largest count as zero, because of the mask's $e^{-100}$.)
#
# ## Where am I?
#
# Attention does not know the order of its tokens. U-ViT gives each a position. Swin gives each *pair* a number instead, which depends on how far apart they are: a bias $B$ that is added to the logits ($q_i$ asks, $k_j$ answers, each of $d$ numbers, in row $y$ and column $x$),
#
# $$\text{softmax}\Big(\frac{q_i \cdot k_j}{\sqrt d} + B_{y_i - y_j,\; x_i - x_j} + \text{mask}_{ij}\Big).$$
#
# In a window of $w$ by $w$ each difference takes $2w - 1$ values. So there are $(2w-1)^2$ numbers to learn for each head, and a table of indices that says which pair takes which. For $w = 4$:

# %%
@plots.quiet
def draw_index(index):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 4, figsize=(9.2, 2.6), width_ratios=(1.15, 1, 1, 1))
    axes[0].imshow(index, cmap="viridis")
    axes[0].set(title="index of 16 x 16 pairs", xlabel="key", ylabel="query", xticks=[0, 5, 10, 15], yticks=[0, 5, 15])
    for ax, query in zip(axes[1:], (0, 5, 15)):
        row = index[query].view(4, 4)
        ax.imshow(row, cmap="viridis", vmin=0, vmax=48)
        for k, number in enumerate(row.flatten().tolist()):
            color = "#FFB070" if k == query else "w" if number < 30 else "k"
            ax.text(k % 4, k // 4, number, ha="center", va="center", color=color, fontweight="bold")
        ax.set(title=f"token {query} asks", xticks=[], yticks=[])
    [ax.grid(False) for ax in axes]
    return figure


index = relative_index((4, 4))
assert len(index.unique()) == 7 * 7 and (index.diagonal() == 24).all()
draw_index(index)

# %% [markdown]
# Whoever asks finds number 24 at home and 25 at its left neighbour. The bias is the same wherever a pair stands in the window, as in a convolution.
#
# ### By hand
#
# Now the whole layer. Here the mask is found in another way than in the package: carry the coordinates of each token along through the roll. Two tokens of one window that are $w$ or more apart in the original picture have no business with each other.

# %%
def window_attention(x, p):
    """x (B, H, W, C), p a layer of the package, whose weights are used; sides are multiples of the window."""
    (B, H, W, _), w, s = x.shape, p.window[0], p.shift[0]
    place = torch.stack(torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij"), -1)[None]  # (1, H, W, 2)
    x, place = (split_windows(part.roll((-s, -s), (1, 2)), (w, w)) for part in (x, place))
    apart = place[:, :, None] - place[:, None]  # (windows, query, key, 2)
    mask = torch.where((apart.abs() >= w).any(-1), -100.0, 0.0)
    dy, dx = apart[0].unbind(-1)  # in the first window nothing has come around
    bias = p.relative_position_bias_table[(dy + w - 1) * (2 * w - 1) + dx + w - 1]  # (query, key, heads)
    qkv = F.linear(x, p.qkv.weight, p.qkv.bias).unflatten(2, (3, p.num_heads, -1)).unflatten(0, (B, -1))
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, w * w, d)
    logits = q @ k.transpose(3, 4) / q.shape[-1] ** 0.5 + bias.permute(2, 0, 1) + mask[:, None]
    out = (logits.softmax(-1) @ v).transpose(2, 3).flatten(3).flatten(0, 1)  # (B * windows, w * w, C)
    return join_windows(F.linear(out, p.proj.weight, p.proj.bias), (w, w), H, W).roll((s, s), (1, 2))

torch.manual_seed(1)
for side, w, shift in ((16, 8, 0), (16, 8, 4), (12, 4, 2), (12, 4, 1)):
    layer, x = WindowAttention(24, 3, (side, side), w, shift), torch.randn(2, side, side, 24)
    torch.nn.init.normal_(layer.relative_position_bias_table)
    with torch.no_grad():
        mine, theirs = window_attention(x, layer), layer(x)
    assert torch.allclose(mine, theirs, atol=1e-5)
    print(f"side {side}, window {w}, shift {shift}: largest difference {(mine - theirs).abs().max():.0e}")

# %% [markdown]
# Equal. The package's tests compare it with timm's blocks.
#
# ## A pyramid
#
# Four blocks to cross 32 tokens: how about 256? The U-Net's answer is to make the map smaller. Swin's **patch merging** takes the four tokens of each 2 by 2 square, writes their channels one after the other, norms, and maps the $4C$ channels to $2C$. **Patch expanding** goes back: one token of $C$ channels makes $2C$, which are read as four tokens of $C/2$. Here are the four parts of a picture that merging puts behind one another.

# %%
four = [(row, column) for column in (0, 1) for row in (0, 1)]  # Swin's order: down, then across

def merge(x, p):
    return p.reduction(p.norm(torch.cat([x[:, row::2, column::2] for row, column in four], dim=3)))

def expand(x, p):
    parts, (B, H, W, c) = p.expand(x).chunk(4, dim=3), x.shape
    out = torch.empty(B, 2 * H, 2 * W, c // 2)
    for k, part in enumerate(parts):  # here across first, then down
        out[:, k // 2::2, k % 2::2] = part
    return p.norm(out)

x, down, up = torch.randn(2, 8, 8, 48), PatchMerging(48), PatchExpanding(96)
with torch.no_grad():
    assert torch.allclose(merge(x, down), down(x), atol=1e-5)
    assert torch.allclose(expand(down(x), up), up(down(x)), atol=1e-5)
print(f"{tuple(x.shape)} -> merged {tuple(down(x).shape)} -> expanded {tuple(up(down(x)).shape)}")
plots.grid(torch.cat([smiley[:, :, row::2, column::2] for row, column in four]),
           titles=[f"row {row}, column {column}" for row, column in four])

# %% [markdown]
# What does a pyramid cost? With each level the tokens become four times fewer and the channels twice as many. Take pixels of a picture of 64 by 64, 96 channels, windows of 8. Attention's linear maps take $8NC^2$, and an MLP that is four times as wide inside $16NC^2$.

# %%
from IPython.display import Markdown

rows = ["| side | channels | linear maps and MLP | pairs in windows | pairs, global | one window sees |",
        "|---:|---:|---:|---:|---:|---:|"]
for level in range(4):
    side, width = 64 >> level, 96 << level
    n, share = side**2, min(1, (8 / side) ** 2)
    rows.append(f"| {side} | {width} | {24 * n * width**2 / 1e6:,.0f} MFLOPs | {4 * n * 64 * width / 1e6:,.0f} | "
                f"{4 * n * n * width / 1e6:,.0f} | {share:.1%} of the picture |")
Markdown("\n".join(rows))

# %% [markdown]
# The linear maps cost the same at each level: that is what doubling the channels is for. The pairs become cheaper, and a window sees more and more, until at 8 pixels windows *are* global attention. [Notebook 08](08_the_u_net.ipynb) told this story with convolutions; ASCEND, in notebook 15, tells it with these very blocks.
#
# ## HiT: near and far at once
#
# Why wait for the second block, or the next level, to look far? HiT (Zhao et al. 2021) is the generator of a GAN for large pictures. It does both in each layer, with half of the heads each. Cut the map into blocks. The first half of the heads attends **inside** the block. The second half attends **across** blocks, to the token that stands at the same place in each.
#
# In tokens $(B, \text{blocks}, \text{places}, C)$ these are the two middle axes, hence "multi-axis". One picture says it: who may look at whom in all layers so far, among the 256 tokens of a map of 16 by 16 with windows and blocks of 4. The masks are made from `split_windows` and `shift_mask`.

# %%
def numbers(side, w, shift=0):
    """Which token stands where after a roll and a cut: (windows, places)."""
    tokens = torch.arange(side**2).view(1, side, side, 1).roll((-shift, -shift), (1, 2))
    return split_windows(tokens, (w, w))[..., 0]

def same(rows):
    """(N, N), True for two tokens that stand in one row."""
    row = torch.empty(rows.numel(), dtype=torch.long)
    row[rows] = torch.arange(len(rows))[:, None].expand_as(rows)
    return row[:, None] == row

def shifted(side, w, shift):
    allowed, rows = torch.zeros(side**2, side**2, dtype=torch.bool), numbers(side, w, shift)
    allowed[rows[:, :, None], rows[:, None]] = shift_mask((side, side), (w, w), (shift, shift)) == 0
    return allowed

near, far = same(numbers(16, 4)), same(numbers(16, 4).T)
allowed = {"global": (near | ~near, near | ~near), "windows": (near, near), "then shifted": (shifted(16, 4, 2), near),
           "HiT, in and across": (near | far, near | far)}  # this layer, and the one before it
for name, (pairs, _) in allowed.items():
    print(f"{name:19} {pairs.sum().item():5} pairs, keys of one token: {sorted(set(pairs.sum(1).tolist()))}")

# %% [markdown]
# First row: all pairs. Second: what the token with the cross sees. Third: what it sees through two layers, this one and the one before. A product of masks says that: $i$ reaches $j$ if there is a token in between that $i$ may look at in this layer, and that may look at $j$ in the one before.

# %%
@plots.quiet
def draw_masks(asks=16 * 6 + 5, side=16):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(3, 4, figsize=(8.4, 6.4))
    for (top, middle, bottom), (name, (pairs, before)) in zip(axes.T, allowed.items()):
        heads = pairs.int() + (pairs & ~near) if "HiT" in name else pairs  # across blocks: darker
        reached = pairs.float() @ before.float() > 0
        for ax, shown in zip((middle, bottom), (heads[asks], reached[asks])):
            ax.imshow(shown.view(side, side), cmap="Blues", vmin=0, vmax=2.5, extent=(0, side, side, 0))
            ax.plot(asks % side + 0.5, asks // side + 0.5, "x", color="#D55E00", markersize=8, markeredgewidth=2.5)
            ax.vlines(range(side + 1), 0, side, color="w", linewidth=0.7)
            ax.hlines(range(side + 1), 0, side, color="w", linewidth=0.7)
        top.imshow(heads, cmap="Blues", vmin=0, vmax=2.5)
        top.set(title=name, xlabel="key", ylabel="query")
        middle.set(title=f"{(heads[asks] > 0).sum()} tokens"), bottom.set(title=f"two layers: {reached[asks].sum()}")
        [ax.set(xticks=[], yticks=[]) for ax in (top, middle, bottom)]
    return figure

two_layers = ((near | far).float() @ (near | far).float() > 0).sum(1)
assert (two_layers == 256).all()
draw_masks()

# %% [markdown]
# The dark tokens are those of the second half. Of 31 tokens, each head meets only 16, itself among them: that is $K$. A step inside and a step across reach *every* token, since moving within a block and jumping between blocks reach every square, however large the map. Two layers of Swin reach four windows.
#
# ### By hand
#
# Both halves can be had from one dense attention over all tokens, in which each head has a mask of its own. That is slow, and hard to get wrong. The published layer is a **multi-query** one: each head has its own queries, but all share *one* key and *one* value per token.

# %%
def multi_axis(x, p, near, far):
    """x (B, N, C), tokens row by row; p a layer of the package, whose weights are used."""
    q, k, v = (part.unflatten(2, (-1, p.head_dim)).transpose(1, 2)  # (B, heads or 1, N, d)
               for part in F.linear(x, p.qkv.weight, p.qkv.bias).split(p.sizes, dim=2))
    half = q.shape[1] // 2
    mask = torch.stack([near] * half + [far] * half)  # (heads, N, N)
    logits = (q @ k.transpose(2, 3) / p.head_dim**0.5).masked_fill(~mask, -torch.inf)
    return F.linear((logits.softmax(-1) @ v).transpose(1, 2).flatten(2), p.proj.weight, p.proj.bias)

for kind in ("multi_query", "multi_head"):
    layer, x = MultiAxisAttention(32, 4, kind), torch.randn(2, 16, 16, 32)
    with torch.no_grad():
        blocks = layer(split_windows(x, (4, 4)).unflatten(0, (2, -1)))
        theirs = join_windows(blocks.flatten(0, 1), (4, 4), 16, 16).flatten(1, 2)
        mine = multi_axis(x.flatten(1, 2), layer, near, far)
    assert torch.allclose(mine, theirs, atol=1e-5)
    print(f"{kind}: largest difference {(mine - theirs).abs().max():.0e}; qkv has {layer.qkv.weight.numel():,} weights")

# %% [markdown]
# ## One key for all heads
#
# What does sharing save? Weights: $C^2 + 2Cd$ instead of $3C^2$ to make queries, keys and values, where $d = C/\text{heads}$. Memory: $2Nd$ numbers for keys and values instead of $2NC$, fewer by the number of heads. What it does not save are the pairs: each head still asks every key. Here are the four stages with attention of the published generator for 128 pixels, and the whole of it on the meta device.

# %%
rows = ["| map | channels, heads | q, k, v weights, multi-head | multi-query | keys and values kept | multi-query |",
        "|---:|---|---:|---:|---:|---:|"]
for side, width, heads in zip((8, 16, 32, 64), (512, 512, 256, 128), (16, 8, 4, 4)):
    with torch.device("meta"):
        full, shared = (MultiAxisAttention(width, heads, kind) for kind in ("multi_head", "multi_query"))
    kept = [sum(layer.sizes[1:]) * side**2 for layer in (full, shared)]
    assert kept[0] == heads * kept[1]
    rows.append(f"| {side} x {side} | {width}, {heads} | {full.qkv.weight.numel():,} | {shared.qkv.weight.numel():,} "
                f"| {kept[0]:,} | {kept[1]:,} |")
generators = {}
with torch.device("meta"):
    for name, kind in (("hit_128", "multi_query"), ("hit_128", "multi_head"), ("hit_256", "multi_query"),
                       ("hit_1024", "multi_query")):
        large = minidiff.create_model(name, attn_type=kind)
        generators[name, kind] = sum(w.numel() for w in large.parameters())
        last = large.stages[-1]["tokens"].positions.numel() / generators[name, kind]
        print(f"{name}, {kind:11}: {generators[name, kind]:,} weights; the last map's positions are {last:.0%} of them")
assert [generators[f"hit_{n}", "multi_query"] for n in (128, 256, 1024)] == [32_866_627, 46_217_670, 88_216_300]
Markdown("\n".join(rows))

# %% [markdown]
# At 1024 pixels more than a third of all weights are one table: a learned vector for each place of the last map. Whoever learns absolute positions pays for each pixel. Swin's bias does not.
#
# ## Sixteen tokens that know what to draw
#
# A GAN's generator gets a latent vector $z$, and all places must hear of it. StyleGAN scales channels, as DiT does: the same for all places. HiT turns $z$ into sixteen **latent tokens**. At the start of each stage every place asks them by cross-attention. What a place hears depends on what it already is: **self-modulation**. Here $K = 16$. By hand it is four lines:

# %%
def ask(x, tokens, p):
    """x (B, N, C) asks tokens (B, M, D): multi-query, so one key and one value for all heads."""
    q = F.linear(x, p.q.weight, p.q.bias).unflatten(2, (p.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
    k, v = F.linear(tokens, p.kv.weight, p.kv.bias)[:, None].chunk(2, dim=3)  # (B, 1, M, d)
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)  # (B, heads, N, M)
    return F.linear((weights @ v).transpose(1, 2).flatten(2), p.proj.weight, p.proj.bias)


layer, x, tokens = LatentAttention(32, 4, "multi_query", 48), torch.randn(2, 8, 8, 32), torch.randn(2, 16, 48)
with torch.no_grad():
    mine, theirs = ask(x.flatten(1, 2), tokens, layer), layer(x, tokens).flatten(1, 2)
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert torch.allclose(layer(x, tokens[:, torch.randperm(16)]), layer(x, tokens), atol=1e-5)
print("equal, and the order of the sixteen does not matter")

# %% [markdown]
# ## Pixel shuffle, and a trap
#
# Going up, HiT splits a token of $4C$ channels into a square of four with $C$ each, without any weights: **pixel shuffle**. Then a linear map, if the next stage wants another width. But which channel goes where? TensorFlow, in which HiT was written, reads the $4C$ channels as (row, column, $C$). Torch's `pixel_shuffle` reads them as ($C$, row, column). Both run. Take the emoji apart in one order and put it together in the other:

# %%
packed = pixel_unshuffle(smiley.permute(0, 2, 3, 1))  # (1, 8, 8, 12), TensorFlow's order
theirs = F.pixel_shuffle(packed.permute(0, 3, 1, 2), 2)  # torch's order: wrong here
mine = pixel_shuffle(packed).permute(0, 3, 1, 2)
ordered = packed.unflatten(3, (4, 3)).transpose(3, 4).flatten(3)  # (row column, C) -> (C, row column)
mended = F.pixel_shuffle(ordered.permute(0, 3, 1, 2), 2)
assert torch.equal(mine, smiley) and torch.equal(mended, smiley) and not torch.equal(theirs, smiley)
plots.grid(torch.cat([smiley, mine, theirs, mended]), titles=["the picture", "(row, column, C)", "torch's order",
                                                             "torch, channels sorted"])

# %% [markdown]
# With pixels you see it at once, with features you would not. If you start from random weights, either order will do; if you load weights, only one.
#
# ## From a generator to a denoiser
#
# HiT is a decoder only: $z$ in, picture out. A diffusion backbone gets a noisy picture and must return something of its size. What follows is **ours**, not the paper's (`minidiff/backbones/hit_denoiser.py` lists it):
#
# - An encoder mirrors the generator from fine to coarse, with pixel *un*shuffle. Its map is added to the decoder's at each resolution.
# - The sixteen tokens are made from time and class instead of $z$. Encoder and decoder both ask them.
# - Layer norm takes the place of batch norm, whose statistics would mix noise levels.
# - There are blocks at all resolutions, since at 16 or 32 pixels all of them are small. The generator stops attending at 128.
# - Each stage adds its share to the picture, as the last stages of the generator do: coarse ones four times repeated, and so on. These layers start at zero.

# %%
data = minidiff.load_dataset("emoji", size=16)

def new_hit():
    torch.manual_seed(0)
    network = minidiff.create_model("hit_tiny", num_classes=len(data.classes))
    return minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 16, 16))


recipe = dict(batch_size=64 if run.tier != "smoke" else 8, lr=1e-3, warmup=100, ema=0.995, p_uncond=0.1,
              progress=False, device=run.device)
one_step = new_hit()
known = minidiff.summary(one_step)
print(f"{known.parameters:,} weights, {known.flops / 1e6:.0f} MFLOPs; maps of 8 x 8 x 96 and 16 x 16 x 48, blocks of 4")
steps = budget("training HiT", smoke=4, cpu=400, gpu=4000,
               per_step=lambda: minidiff.training.train(one_step, data, **recipe | {"steps": 1}))

# %% [markdown]
# Train it with the recipe of [notebook 12](12_dit.ipynb), and draw its loss beside that of the recorded DiT of about the same number of weights. The comparison is rough: the DiT had 600 steps to plan for, and its learning rate fell more slowly. Below are samples of the ten classes, one in each column, without guidance and with a little.

# %%
from minidiff.course.recorded import recorded

model = new_hit()
history = minidiff.training.train(model, data, steps=steps, **recipe)
hit = history.ema.cpu()
dit = recorded("dit", "cpu")["adaln-zero"]
every = dit["training"]["steps"] // len(dit["curve"])
losses = history.losses.cpu()
means = losses[: len(losses) // every * every].view(-1, every).mean(1) if len(losses) >= every else losses
curves = {f"HiT, {known.flops / 1e6:.0f} MFLOPs": means, f"DiT, {dit['model']['flops'] / 1e6:.0f} MFLOPs": dit["curve"]}
display(plots.lines({name: ([every * (k + 1) for k in range(len(values))], values) for name, values in curves.items()},
                    x="step", y="loss"))
y = torch.arange(10) if run.tier != "smoke" else torch.arange(2)
settings = dict(y=y, sampler="ddim", steps=50 if run.tier != "smoke" else 2, progress=False)
rows = {f"guidance {g:g}": minidiff.sample(hit, len(y), guidance=g, **settings) for g in (1.0, 2.0)}
plots.filmstrip(torch.stack(list(rows.values()), dim=1), rows=list(rows))

# %% [markdown]
# A few minutes do not make a good model: expect blots of colour rather than emoji. Compare the curves at the same step, and then the work that a step takes, in the legend. Two of our choices cost HiT work, and are not the paper's. DiT's patches join four neighbours before the first block. Here each pixel of the fine map is a token, which must learn from a table of positions who stands beside whom; and with that many tokens we can afford one layer on the way down and one on the way up.
#
# ### What it says, and what it is told
#
# Look inside. The network's answer is a sum of a coarse part, 8 by 8, and a fine one. It is $v = \alpha\varepsilon - \sigma x_0$: mostly noise when there is little noise, mostly minus the picture when there is much.
#
# And watch the self-modulation. The cross-attention of the decoder's fine stage tells each place a vector of 48 numbers. The last row shows the three directions in which these differ most, as red, green and blue: places of one colour heard the same. With DiT's modulation the whole square would have one colour.

# %%
seen, shown, times, label = {}, [], (0.1, 0.3, 0.5, 0.7, 0.9), torch.tensor([7])
coarse, fine = hit.network.decoder
watched = {"coarse": coarse["rgb"], "fine": fine["rgb"], "told": fine["tokens"].cross.attn}
hooks = [module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
         for name, module in watched.items()]
with torch.no_grad():
    for t in times:
        x_t = hit.forward_process(smiley, t, minidiff.seeded_noise([0])(smiley))
        guess = hit.denoise(x_t, t, label)
        parts = [F.interpolate(seen["coarse"].movedim(3, 1), scale_factor=2.0), seen["fine"].movedim(3, 1)]
        assert torch.allclose(sum(parts), guess.out, atol=1e-5)
        told = join_windows(seen["told"].flatten(0, 1), (4, 4), 16, 16)[0].flatten(0, 1)  # (256, 48)
        apart = told - told.mean(0)
        corners = apart.view(8, 2, 8, 2, 48).mean((0, 2))  # means over places of even and odd rows and columns
        print(f"t = {t}: {apart.square().sum() / told.square().sum():4.0%} of what is told differs between places, "
              f"{64 * corners.square().sum() / apart.square().sum():4.0%} of that by even and odd")
        colours = apart @ torch.linalg.svd(apart, full_matrices=False)[2][:3].T
        colours = (colours / colours.abs().amax(0)).T.view(1, 3, 16, 16)
        shown.append(torch.cat([x_t, *parts, guess.out, guess.x0, colours]).clamp(-1, 1))
[hook.remove() for hook in hooks]
plots.filmstrip(torch.stack(shown), [f"t = {t}" for t in times], columns=5,
                rows=["noisy", "coarse part", "fine part", "sum: v", "guess of x0", "what is told"])

# %% [markdown]
# Read the first percentages from top to bottom: the nearer to zero, the more this is DiT's modulation. The second ones look for a pattern that repeats every two pixels. Among places that differ at random they would be about 1% (3 of 255 directions). For what is above that suspect the pixel shuffle, which fills the four places of a square from four different parts of the channels.
#
# ### Silence half of the heads
#
# Which axis does the trained network need? Silence one in all layers at once, by zeros in the columns of the output map that read those heads, and measure the loss on held-out pictures at each noise level. Do the same to the cross-attention. Guess first: who misses the far heads more, a picture with little noise or one with much?

# %%
import copy

def silenced(what):
    """A copy of the model in which an axis, or the cross-attention, says nothing."""
    quiet = copy.deepcopy(hit)
    for layer in quiet.modules():
        if isinstance(layer, MultiAxisAttention) and what in ("near", "far"):
            half = layer.proj.weight.shape[1] // 2
            layer.proj.weight.data[:, slice(half) if what == "near" else slice(half, None)] = 0
        if isinstance(layer, LatentAttention) and what == "cross":
            layer.proj.weight.data.zero_()
    return quiet

few, times = slice(0, 372 if run.tier != "smoke" else 8), [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]
images, labels = held_out.images()[few], held_out.labels[few]
noise, missed = minidiff.seeded_noise(range(len(images)))(images), {}
with torch.no_grad():
    for what in ("nothing", "near", "far", "cross"):
        deaf = silenced(what)
        missed[what] = torch.stack([deaf.loss(images, labels, t=torch.full((len(labels),), t), eps=noise).mean()
                                    for t in times])
print("mean loss:", ", ".join(f"{what} silenced {value.mean():.3f}" for what, value in missed.items()))
plots.lines({f"{what} silenced": (times, value / missed["nothing"]) for what, value in missed.items()},
            x="t", y="loss, times that of the whole")

# %% [markdown]
# A line at 1 loses nothing. The cross-attention is the only way by which time and class get in, so its line says what they are worth at each noise level. For the axes, hold your guess against the lines for near and far.
#
# Two warnings. A silenced network was not trained to do without. And on our coarse map a block of 4 is half the width, so "near" is not very near.
#
# ## What the paper found, what you measured

# %%
findings = [
    ("Swin: a window's cost grows with the pixels, not with their square",
     f"FLOPs grow as N^{slope(flops['windows of 8']):.2f}, time as N^{slope(seconds['windows of 8']):.2f}; global "
     f"N^{slope(flops['global attention']):.2f} and N^{slope(seconds['global attention']):.2f}"),
    ("Swin: shifted windows connect those of the layer before",
     f"one token of 1,024 sees {(maps['no shift, 4 blocks'] > 1e-12).sum()} after four blocks without shift, "
     f"{(maps['shift 4, 4 blocks'] > 1e-12).sum()} with"),
    ("HiT: attention inside and across blocks sees near and far at once",
     f"two layers see all {two_layers.min()} tokens; silenced, near heads cost "
     f"{missed['near'].mean() / missed['nothing'].mean() - 1:.0%} of loss, far heads "
     f"{missed['far'].mean() / missed['nothing'].mean() - 1:.0%}"),
    ("HiT: 32.9 M weights for ImageNet 128, FID 30.83 without labels",
     f"{generators['hit_128', 'multi_query']:,} weights counted, multi-head {generators['hit_128', 'multi_head']:,}; "
     "no weights were published, so no FID to repeat"),
    ("HiT at 256 pixels: FID 2.95 on FFHQ, 3.39 on CelebA-HQ; at 1024: 6.37 and 8.83, as a GAN",
     f"not a GAN: a diffusion backbone of its parts, {known.parameters:,} weights, {steps} steps, held-out loss "
     f"{missed['nothing'].mean():.3f} (average of {len(times)} noise levels)"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. The mask on a line.** A line of $n$ tokens is rolled by $-s$ and cut into windows of $w$. Return the mask that is added to the logits: -100 for pairs that only the roll has brought together, 0 for all others.

# %% tags=["exercise"] name="line_mask"
def line_mask(n, w, s):
    """-> (n / w windows, w, w), 0.0 or -100.0; 0 <= s < w, and w divides n."""
    ...  # your code

# %% [markdown]
# The check compares several lines, one of them without shift.

# %%
exercises.check_line_mask(line_mask)

# %% [markdown]
# **2. Torch's shuffle in TensorFlow's order (a line).** You have features in torch's layout, whose channels are in TensorFlow's order (row, column, $C$). Use `F.pixel_shuffle` to get what TensorFlow would.

# %% tags=["exercise"] name="tf_shuffle"
def tf_shuffle(x):
    """x (B, 4 C, H, W), channels in the order (row, column, C) -> (B, C, 2 H, 2 W)."""
    ...  # your code

# %% [markdown]
# The check looks for each of the orders that are possible.

# %%
exercises.check_tf_shuffle(tf_shuffle)

# %% [markdown]
# **3. A project: who is reached.** You are given the masks of the layers of a network, in the order in which they run: `allowed[k][i, j]` says that in layer $k$ token $i$ may look at token $j$. Every layer has a residual connection. Return which inputs each output depends on.

# %% tags=["exercise"] name="reached"
def reached(allowed):
    """allowed: a list of (N, N) bool, the first layer first -> (N, N) bool, True where output i depends on input j."""
    ...  # your code

# %% [markdown]
# The check has masks that are not symmetric, and some in which a token may not look at itself.

# %%
exercises.check_reached(reached)

# %% [markdown]
# Now use it, with `near | far`, `numbers`, `same` and `shifted` from above. How many Swin blocks until every token of 32 by 32 sees every other, with windows of 8, and of 4? Is a shift of 1 enough? Then change `hit_tiny`: with `block_sizes=(8, 4)` the coarse map is one block, and the far heads see only themselves. What becomes of the last figure?
#
# ## What you learned
#
# - Cost is $K$, the keys that a query meets: $N$, a constant, or $\sqrt N$.
# - A shifted window is a roll, the same cut, and a mask against false neighbours.
# - Swin's positions belong to pairs; HiT's to places, and cost a vector for each pixel.
# - Attention inside and across blocks reaches everything in two steps. One key for all heads saves weights and memory, not pairs.
# - Sixteen tokens that each place may ask are a modulation that differs from place to place.
#
# ## Where to read on
#
# - Liu et al., *Swin transformer*, 2021, arXiv 2103.14030. Cao et al., *Swin-Unet*, 2021, arXiv 2105.05537: patch expanding.
# - Zhao et al., *Improved transformer for high-resolution GANs*, 2021, arXiv 2106.07631: HiT.
# - Shazeer, *Fast transformer decoding: one write-head is all you need*, 2019, arXiv 1911.02150: multi-query attention.
# - Tu et al., *MaxViT*, 2022, arXiv 2204.01697: blocks and grids one after the other, in a classifier.
#
# Next comes notebook 15, *ASCEND: a strong encoder and a light decoder*.
