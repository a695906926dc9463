# %% [markdown]
# # 10 U-ViT: everything is a token
#
# After this notebook you can build a diffusion backbone from a plain transformer, and judge which parts of U-ViT earn their place.
#
# Run time: about four minutes on a CPU with two idle cores, most of it training; expect about as long on a T4 or a big GPU. Nothing is downloaded.
#
# You will
#
# - put a plain vision transformer to work as a denoiser, with and without places,
# - tell it the time as GenViT does, and as U-ViT does,
# - measure the borders of the patches in samples,
# - type U-ViT by hand,
# - find where an ablation contradicts the paper's, and chase the cause.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## A network that knows nothing about pictures
#
# The U-Net of [notebook 08](08_the_u_net.ipynb) has opinions. Neighbouring pixels belong together, a motif may stand anywhere, detail and plan live on different scales: all this is built in before training starts. A transformer has none of it. It takes a set of vectors, called **tokens**, and lets each of them ask all others. Can that denoise a picture?
#
# First cut a picture into patches of $p \times p$ pixels, and write down the numbers of each patch in a row. For an emoji of 16 by 16 pixels and $p = 4$ that makes 16 tokens of 48 numbers.

# %%
import torch
import torch.nn.functional as F
from torch import nn

def cut(x, p):
    """(B, C, H, W) -> (B, N, p * p * C): patches row by row; in each, row, column, channel."""
    rows = [x[:, :, i : i + p, j : j + p] for i in range(0, x.shape[2], p) for j in range(0, x.shape[3], p)]
    return torch.stack([patch.permute(0, 2, 3, 1).flatten(1) for patch in rows], dim=1)

emoji = minidiff.load_dataset("emoji", size=16)
unseen = minidiff.load_dataset("emoji", size=16, split="test")
x = unseen.images()[62:63]
tokens = cut(x, 4)
assert torch.equal(tokens, minidiff.layers.patchify(x, 4))
assert torch.equal(minidiff.layers.unpatchify(tokens, 4, 4, 4), x)
display(plots.grid(x))
print("patch by patch, the same picture as a sequence of", tokens.shape[1], "tokens of", tokens.shape[2], "numbers:")
plots.grid(tokens[0].unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2), columns=16)

# %% [markdown]
# In a row the panda is gone: nothing tells a token which others were its neighbours. `patchify` cuts without a loop. Its inverse, `unpatchify`, will put the answer of the network back in place.
#
# ## A plain vision transformer
#
# Each row of 48 numbers becomes a vector of width $d$ by one linear map, the same for all patches. Then come blocks, all alike:
#
# $$h \leftarrow h + \text{Attention}(\text{LN}(h)), \qquad h \leftarrow h + \text{MLP}(\text{LN}(h)).$$
#
# LN is layer normalisation: each token for itself gets mean 0 and variance 1 over its channels. The MLP is two linear maps with a GELU between, again each token for itself. So tokens meet in attention only. Notebook 08 had one head. Here the channels are split among several heads, each with a table of weights of its own.

# %%
from minidiff.layers import Attention, Mlp, patchify, unpatchify

def attention(h, p):
    q, k, v = (part.unflatten(2, (p.num_heads, -1)).transpose(1, 2) for part in p.qkv(h).chunk(3, dim=2))
    weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)  # (B, heads, N, N)
    return p.proj((weights @ v).transpose(1, 2).flatten(2))

class Block(nn.Module):
    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim, ratio * dim)

    def forward(self, h):
        h = h + self.attn(self.norm1(h))
        return h + self.mlp(self.norm2(h))

h, layer = torch.randn(2, 16, 64), Attention(64, 4)
assert torch.allclose(attention(h, layer), layer(h), atol=1e-5)

# %% [markdown]
# The whole network: patches, a linear map, positions, blocks, a linear map, picture. It is not told the time: notebook 08 found that a denoiser can live without it, because noise is visible.
#
# Look at `positions`. Attention is a sum over tokens, and a sum has no order. Without positions, reordering the patches of the input by any permutation $P$ reorders those of the output and does nothing else, $f(Px) = P f(x)$. The network cannot know where a patch lies. The usual cure is a table of learned vectors, one for each place, added at the start.

# %%
class PlainViT(nn.Module):
    def __init__(self, img_size=8, p=2, channels=1, dim=64, depth=4, heads=4, positions=True):
        super().__init__()
        self.p, self.grid = p, img_size // p
        self.embed, self.head = nn.Linear(channels * p * p, dim), nn.Linear(dim, channels * p * p)
        self.pos = nn.Parameter(0.02 * torch.randn(1, self.grid**2, dim)) if positions else None
        self.blocks, self.norm = nn.Sequential(*[Block(dim, heads, 2) for _ in range(depth)]), nn.LayerNorm(dim)

    def forward(self, x, time=None, y=None):
        tokens = self.embed(patchify(x, self.p))  # (B, N, dim)
        if self.pos is not None:
            tokens = tokens + self.pos
        return unpatchify(self.head(self.norm(self.blocks(tokens))), self.p, self.grid, self.grid)

x, order = torch.randn(2, 1, 8, 8), torch.randperm(16)

def shuffled(x):
    return unpatchify(patchify(x, 2)[:, order], 2, 4, 4)

for positions in (False, True):
    f = PlainViT(positions=positions)
    same = torch.allclose(f(shuffled(x)), shuffled(f(x)), atol=1e-5)
    assert same != positions
    print(f"positions {positions}: shuffling before or after is {'the same' if same else 'not the same'}")

# %% [markdown]
# What does a network draw that does not know where? Train both, on the digits of 8 by 8 pixels, with patches of 2 by 2. As in the notebooks before, all networks predict $v = \alpha\varepsilon - \sigma x_0$, and the loss is the mean square of the error. Beside them train a third one, which you will take apart next: GenViT, of the same width and depth, and told the time. Samples of all are from the same noise; on the right is the mean of 200.

# %%
digits = minidiff.load_dataset("digits", split="all")

def wrap(network, shape):
    return minidiff.Diffusion(network.to(run.device), minidiff.schedules.cosine(), "v", shape=shape)

small = budget("each of three small transformers", smoke=2, cpu=600, gpu=3000, seconds_per_step=0.025)
recipe = dict(batch_size=64 if run.tier != "smoke" else 8, ema=0.99, progress=False)
makers = {
    "without positions": lambda: PlainViT(positions=False), "with positions": lambda: PlainViT(),
    "GenViT": lambda: minidiff.create_model("genvit_tiny", img_size=8, in_channels=1, embed_dim=64),
}
vits = {}
for name, make in makers.items():
    torch.manual_seed(0)
    history = minidiff.training.train(wrap(make(), (1, 8, 8)), digits, steps=small, lr=2e-3, **recipe)
    vits[name] = history.ema
    print(f"{name:17} loss at the end of the training {history.losses[-max(1, small // 10) :].mean():.3f}")

num, steps = (200, 20) if run.tier != "smoke" else (8, 2)
drawn = {n: minidiff.sample(m, num, steps=steps, seed=1, progress=False).cpu() for n, m in vits.items()}
drawn["real digits"] = digits.images()[:num]
columns = [torch.stack([images[k] for images in drawn.values()]) for k in range(8)]
mean = torch.stack([images.mean(dim=0) for images in drawn.values()])
plots.filmstrip([*columns, mean], [""] * 8 + ["mean"], rows=list(drawn), columns=9, scale=7)

# %% [markdown]
# Without positions you get pieces of strokes, scattered over the picture. To this network a digit and the same digit shuffled are equally likely, and few arrangements are digits. Its mean is as good as flat. With positions the strokes find their places.
#
# ## GenViT: a time for each token
#
# The third network, **GenViT** (Yang et al. 2022), is a vision transformer as made for classification, with a class token: one more learned vector in front, which stands for no patch. It is told the time in an unusual way. An MLP of the time gives, in every block, a scale $s_n$ and a shift $b_n$ for each token $n$, which act on the whole token, all channels alike:
#
# $$h_n \leftarrow h_n\,(1 + s_n(t)) + b_n(t).$$
#
# And they act on the residual stream $h$ itself, not behind a layer norm, before attention and once more before the MLP. Write it down, with the weights of the trained network.

# %%
from minidiff.layers import timestep_embedding

def genvit(x, time, p):
    features = F.silu(p.time_embed(timestep_embedding(time, p.embed_dim)))  # (B, 4 T), T tokens
    h = torch.cat([p.cls_token.expand(len(x), -1, -1), p.patch_embed(x)], dim=1) + p.pos_embed
    for block, modulation in zip(p.blocks, p.modulations):
        scale, shift = modulation(features)[..., None].chunk(2, dim=1)  # (B, T, 1): a number for each token
        h = h * (1 + scale) + shift
        h = h + block.attn(block.norm1(h))
        h = h * (1 + scale) + shift
        h = h + block.mlp(block.norm2(h))
    return unpatchify(p.head(h[:, 1:]), p.patch_size, p.grid, p.grid)

p = vits["GenViT"].network.cpu()
x, time = torch.randn(10, 1, 8, 8), torch.linspace(0, 999, 10)
with torch.no_grad():
    assert torch.allclose(genvit(x, time, p), p(x, time), atol=1e-4)
print("GenViT by hand: equal")

# %% [markdown]
# What did it learn to do with the time? Down go the tokens, the class token first, then the patches row by row; across goes the time. Red tokens are made larger, blue ones smaller.

# %%
@plots.quiet
def modulations(p):
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, len(p.blocks), figsize=(9.0, 2.7), sharey=True)
    time = torch.linspace(0, 999, 100)
    features = F.silu(p.time_embed(timestep_embedding(time, p.embed_dim)))
    scales = [modulation(features).chunk(2, dim=1)[0].T for modulation in p.modulations]  # (T, 100) each
    limit = max(scale.abs().max() for scale in scales)
    for k, (axes, scale) in enumerate(zip(panels, scales)):
        shown = axes.imshow(scale, extent=(0, 1, 16.5, -0.5), aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set(title=f"block {k + 1}", xlabel="t")
        axes.grid(visible=False)
    panels[0].set(ylabel="token", yticks=(0, 4, 8, 12, 16))
    figure.colorbar(shown, ax=panels, label="scale", fraction=0.03)
    return figure

with torch.no_grad():
    figure = modulations(p)
figure

# %% [markdown]
# Rows differ: a number for each token is a number for each *place*. The price is that the time's layers are as large as the number of tokens demands. A trained GenViT cannot take a larger picture.
#
# GenViT reached an FID (smaller is better) of 20.2 on CIFAR-10, or 17.7 with 50,000 samples in place of 10,000. U-ViT got 3.11, with four times the weights and simpler conditioning.
#
# ## The patch effect
#
# Every patch of the output comes from its own token, by one linear map. Two patches that touch have only the talk of their tokens to agree on an edge. Do they agree? The package keeps records of U-ViTs trained on emoji for 600 steps, on equal terms, with samples (`python tools/ablation.py uvit --tier cpu` makes them again). "Convolution" is a 3 by 3 convolution over the finished picture, the last layer of U-ViT.

# %%
from minidiff.course.recorded import recorded

records = recorded("uvit", "cpu")
kinds = {"patch 2, no convolution": ("no-conv", 2), "patch 2": ("concat", 2), "patch 4": ("patch-4", 4)}
strips = {name: records[key]["samples"] for name, (key, _) in kinds.items()}
strips["unseen emoji"] = unseen.images()[100:]
plots.filmstrip([torch.stack([s[k] for s in strips.values()]) for k in range(8, 16)], rows=list(strips), scale=5)

# %% [markdown]
# After so short a training all are poor, and the first row is made of tiles. To put a number on it, take the step, the absolute difference, between neighbouring pixels, at each of the 15 places of a row or column where two pixels meet, averaged over all samples. Real pictures have no reason to change more at the border of a patch than inside. Tiles of one colour must have no steps inside.

# %%
def steps_at(images):
    """Mean absolute difference of neighbours at each place between two pixels (S - 1,), of rows and columns."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(0, 1, 2))
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean(dim=(0, 1, 3))
    return (across + down) / 2

def at_borders(images, p):
    """(mean step at the borders of patches, mean step inside them)."""
    steps = steps_at(images)
    border = torch.arange(len(steps)) % p == p - 1
    return steps[border].mean().item(), steps[~border].mean().item()

tiles = torch.randn(8, 3, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
assert at_borders(tiles, 2)[1] == 0 < at_borders(tiles, 2)[0]
again = {f"{n}, seed 1": (f"{key}-seed1", p) for n, (key, p) in kinds.items() if f"{key}-seed1" in records}
found = [(name, records[key]["samples"], p) for name, (key, p) in (kinds | again).items()]
for name, images, p in [*found, *(("unseen emoji", strips["unseen emoji"], p) for p in (2, 4))]:
    border, inside = at_borders(images, p)
    print(f"{name:31} borders of {p}: {border:.2f}, inside {inside:.2f}, ratio {border / inside:.2f}")
figure = plots.lines({n: (torch.arange(1, 16), steps_at(s)) for n, s in strips.items()}, x="place", y="mean step")
figure.axes[0].set(ylim=(0, 0.75), xticks=range(2, 16, 2))
figure

# %% [markdown]
# A comb, with its teeth at every second or every fourth place. What is periodic in space is a line in the **spectrum**. Divide each curve by that of the training emoji (whose steps are not quite the same everywhere) and by its mean, subtract 1, fade its ends out, and take the power of the Fourier transform. Patches of side $p$ must show up at $1/p$ cycles per pixel. With only 15 places, lines are wide.

# %%
usual = steps_at(emoji.images())

def spectrum(images):
    wave = steps_at(images) / usual
    wave = (wave / wave.mean() - 1) * torch.hann_window(len(wave), periodic=False)
    return torch.fft.rfft(wave, n=240).abs().square()

frequency = torch.arange(121) / 240
curves = {name: (frequency, spectrum(images)) for name, images in strips.items()}
for name, (_, p) in kinds.items():
    assert curves[name][1][240 // p] > 5 * curves["unseen emoji"][1][240 // p]
assert at_borders(strips["patch 2"], 2)[1] > 1.3 * at_borders(strips["patch 2, no convolution"], 2)[1]
plots.lines(curves, x="cycles per pixel", y="power of the steps")

# %% [markdown]
# Lines at 1/2 for patches of 2, at 1/4 for patches of 4 (and at 1/2, its overtone), next to nothing for real emoji. Smaller patches leave less to each linear map, but cost dearly: half the side means four times the tokens, and sixteen times the entries in every attention table. A convolution behind the head seems to help, for its ratio is much lower. But read both numbers, for each seed. With the convolution the inside of the patches is far rougher, and the step at the border is not reliably smaller. Keep that in mind.
#
# ## Everything is a token
#
# How should a transformer learn the time, or the class, or a text? **U-ViT** (Bao et al. 2023) uses the way in which a transformer takes in vectors anyway: put them into the sequence. The features of the time are a token, the embedded label is a token, each word of a text is a token, and each patch. All get positions, all go through the same blocks, and attention finds out who needs whom:
#
# | label | time | patch 1 | patch 2 | ... | patch $N$ |
# |---|---|---|---|---|---|
#
# In all published models the time token is the bare sinusoids of the time, without any weights. At the end the tokens of the conditions are dropped, and the patches become a picture.
#
# ## Long skips
#
# The second idea gives the network its U. Half of the blocks lie below a middle block, half above. The first block above the middle takes what the last one below it put out, and so on outwards, first in, last out, as in a U-Net. The two are joined by a concatenation of channels and a linear map back to the width:
#
# $$h \leftarrow W\,[h, h_\text{lower}] + b.$$
#
# Unlike a U-Net, nothing is ever made smaller. Here is the one you will build, with two blocks on either side.

# %%
@plots.quiet
def drawing():
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8.6, 2.3))
    parts = ["tokens,\nplaces", "block 1", "block 2", "middle\nblock", "block 3", "block 4"]
    parts += ["linear,\npatches", "3 x 3\nconv."]
    for k, part in enumerate(parts):
        color = plots.COLORS[0] if "block" in part else "#777777"
        box = dict(boxstyle="round", facecolor=color, edgecolor=color)
        axes.text(k, 0, part, ha="center", va="center", color="white", bbox=box)
        if k:
            axes.annotate("", (k - 0.38, 0), (k - 0.62, 0), arrowprops=dict(arrowstyle="->"))
    for lower, upper, height in ((2, 4, 0.8), (1, 5, 1.5)):
        axes.plot([lower, lower, upper], [0.35, height, height], color=plots.COLORS[1])
        axes.annotate("", (upper, 0.3), (upper, height + 0.02), arrowprops=dict(arrowstyle="->", color=plots.COLORS[1]))
        axes.text(3, height + 0.08, f"what block {lower} put out", ha="center", color=plots.COLORS[1])
    axes.set(xlim=(-0.6, 7.5), ylim=(-0.5, 2.0))
    axes.axis("off")
    return figure

drawing()

# %% [markdown]
# Now type it.

# %%
class UpperBlock(Block):
    def __init__(self, dim, heads, ratio):
        super().__init__(dim, heads, ratio)
        self.skip_linear = nn.Linear(2 * dim, dim)

    def forward(self, h, lower):
        return super().forward(self.skip_linear(torch.cat([h, lower], dim=2)))

class MyUViT(nn.Module):
    def __init__(self, img_size=16, p=2, dim=96, depth=4, heads=4, num_classes=10):
        super().__init__()
        self.p, self.dim, self.grid = p, dim, img_size // p
        self.label_embed = nn.Embedding(num_classes + 1, dim)  # the last one: no label
        self.patch_embed = nn.Conv2d(3, dim, p, stride=p)  # a linear map of each patch (exercise 1)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 2 + self.grid**2, dim))
        self.in_blocks = nn.ModuleList(Block(dim, heads, 4) for _ in range(depth // 2))
        self.mid_block = Block(dim, heads, 4)
        self.out_blocks = nn.ModuleList(UpperBlock(dim, heads, 4) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.ModuleDict({"linear": nn.Linear(dim, 3 * p * p), "conv": nn.Conv2d(3, 3, 3, padding=1)})

# %% [markdown]
# Those are the parts. The pass through them reads like the figure. Names are as in the package, so its weights fit, and the numbers must agree. (`order` and `divisor` choose among the conventions of the sinusoids: cosines come first here.)

# %%
def forward(self, x, time, y):
    label = self.label_embed(y)[:, None]
    time = timestep_embedding(time, self.dim, order="cos_sin", divisor="half")[:, None].expand_as(label)
    patches = self.patch_embed(x).flatten(2).transpose(1, 2)
    h, kept = torch.cat([label, time, patches], dim=1) + self.pos_embed, []
    for block in self.in_blocks:
        h = block(h)
        kept.append(h)
    h = self.mid_block(h)
    for block in self.out_blocks:
        h = block(h, kept.pop())
    pixels = self.head["linear"](self.norm(h[:, 2:]))  # label and time have done their work
    return self.head["conv"](unpatchify(pixels, self.p, self.grid, self.grid))

MyUViT.forward = forward
theirs, mine = minidiff.create_model("uvit_tiny", num_classes=10), MyUViT()
mine.load_state_dict(theirs.state_dict())
x, time, y = torch.randn(4, 3, 16, 16), torch.tensor([3.0, 250.0, 600.0, 990.0]), torch.tensor([0, 3, 9, 10])
with torch.no_grad():
    assert torch.allclose(mine(x, time, y), theirs(x, time, y), atol=1e-5)
print(f"equal, with all {sum(w.numel() for w in mine.parameters()):,} weights")

# %% [markdown]
# Why skips? In notebook 08 the bottom of the U-Net was too narrow for the noise. Here there is no bottleneck. Between any two blocks of this network run 64 patches of 96 channels, 6,144 numbers. The skips are no necessity, then, but a convenience: the middle need not carry the details. Whether that pays, an experiment must say.
#
# ## Real sizes
#
# Build the published models on the device `meta`, which keeps shapes and no numbers. The weights of the official code were counted, and its multiplications as well. They stand beside ours.

# %%
from IPython.display import Markdown

official = {  # weights, and billions of multiplications with addition (GMAC) for one picture
    "cifar10": (44_255_328, 12.2), "celeba64": (44_292_228, 12.2), "imagenet64_m": (130_940_292, 35.2),
    "imagenet64_l": (286_827_652, 76.5), "imagenet256_l": (286_763_172, 76.5), "imagenet256_h": (500_832_016, 133.2),
    "imagenet512_l": (286_861_524, 76.5), "imagenet512_h": (500_942_656, 133.2),
    "coco": (44_692_644, 16.2), "coco_deep": (58_345_636, 21.2)}
fid = dict(zip(official, (3.11, 2.87, 5.85, 4.26, 3.40, 2.29, 4.67, 4.05, 5.95, 5.48)))
lines = ["| model | input | patch | tokens | weights | official | GMAC | official | FID |", "|" + "---|" * 9]
for name, (count, work) in list(official.items())[: 2 if run.tier == "smoke" else None]:
    with torch.device("meta"):
        network = minidiff.create_model(f"uvit_{name}")
        text = torch.empty(1, 77, 768) if network.text_dim else None
    ours = minidiff.summary(network, y=text)
    assert ours.parameters == count and abs(ours.flops / 2e9 - work) < 0.06
    shape, side = "x".join(map(str, network.shape)), network.head.patch_size
    lines.append(f"| {name} | {shape} | {side} | {network.pos_embed.shape[1]} | {ours.parameters:,} | {count:,} |"
                 f" {ours.flops / 2e9:.1f} | {work} | {fid[name]:.2f} |")
Markdown("\n".join(lines))

# %% [markdown]
# Count tokens. From 32 to 64 pixels, or from 256 to 512, the patch doubles with the picture, so all models with labels work on 256 patches and the same work buys any resolution. The text of COCO costs 77 tokens, a third more work. And the models for 256 and 512 pixels do not see pixels: they work on four-channel latents an eighth as wide, of which notebook 20 tells. FIDs are those of the authors' table; models on ImageNet-256 and 512 and COCO use guidance.
#
# ## The ablation
#
# The paper decided each of its choices by an experiment. Ours are on emoji of 16 by 16 pixels: a network of 0.6 million weights, 600 steps of 64 pictures. Judged is the loss on 372 unseen emoji, mean over ten noise levels, with the same noise. "Time by adaLN" has no time token; a linear map of the time scales and shifts the channels behind each layer norm (notebook 12 is about that).
#
# How much of a difference is luck? Some runs were repeated with another seed. Their losses stand side by side, and the largest distance between two seeds of one run is called luck here. A gap that is no larger decides nothing. The second figure has each run as a multiple of the standard U-ViT, whose own seeds span the grey band.

# %%
labels = {"concat": "U-ViT: concatenation", "add": "skips added", "none": "no skips", "time-adaln": "time by adaLN",
          "no-conv": "no convolution", "patch-4": "patch 4"}

def by_run(records):
    """{run: held-out losses (seeds, 10 noise levels)}, in the order of `labels`."""
    found = {run: [r["held_out"]["losses"] for name, r in records.items() if name.split("-seed")[0] == run]
             for run in labels}
    return {run: torch.tensor(losses) for run, losses in found.items() if losses}

short, times = by_run(records), records["concat"]["held_out"]["times"]
luck = max(losses.mean(1).max() - losses.mean(1).min() for losses in short.values())
for key, losses in short.items():
    gap, seeds = losses.mean() - short["concat"].mean(), ", ".join(f"{x:.3f}" for x in losses.mean(1))
    size = records[key]["model"]["parameters"] / records["concat"]["model"]["parameters"]
    says = f"{'luck would do' if abs(gap) <= luck else 'more than luck'} ({luck:.3f})" if key != "concat" else ""
    print(f"{labels[key]:21} loss {seeds:13} gap {gap:+.3f}  weights x {size:.2f}  {says}")
display(plots.bars([labels[key] for key in short], [x.mean() for x in short.values()], x="held-out loss", best="low"))
band = short["concat"] / short["concat"].mean(0)
curves = {labels[key]: (times, (x / short["concat"].mean(0)).mean(0)) for key, x in short.items() if key != "concat"}
figure = plots.lines(curves, x="t", y="loss / loss of U-ViT")
figure.axes[0].fill_between(times, band.amin(0), band.amax(0), color="#BBBBBB", alpha=0.5, linewidth=0)
assert max(short["no-conv"].mean(), short["time-adaln"].mean()) < short["concat"].mean(1).min()
figure

# %% [markdown]
# Concatenation, addition, no skips, patch 4: the paper ranks them, and here luck would do for the gaps. (Patch 4 also does a quarter of the work.) Two results contradict the paper flatly. AdaLN beats the time token, though with more weights. And so does the network *without* the last convolution beat the one with it, which the paper recommends. (Its two largest models, among them the one with FID 2.29, do without.)
#
# ## Finding the cause
#
# The convolution has 84 weights. How can they cost so much? It is a linear map $A$ from 768 numbers to 768, drawn at random at the start. The head before it must put out the $u$ with $Au = v$. Suppose that it could choose $u$ freely, and went down the gradient of $\frac12|Au - v|^2$ in steps of $\eta$. The singular directions of $A$ do not mix, and in direction $i$, with singular value $s_i$, each step leaves of the error
#
# $$e_i \leftarrow (1 - \eta s_i^2)\, e_i.$$
#
# A tenth of the singular value is a hundredth of the speed. Check that, and look at the values.

# %%
def matrix(conv):
    with torch.no_grad():
        return F.conv2d(torch.eye(768).view(768, 3, 16, 16), conv.weight.cpu(), padding=1).flatten(1).T  # (768, 768)

torch.manual_seed(0)
A, v, u = matrix(nn.Conv2d(3, 3, 3, padding=1)), torch.randn(768), torch.zeros(768)
directions, values, _ = torch.linalg.svd(A)
for _ in range(50):
    u = u - 0.5 * A.T @ (A @ u - v)
assert torch.allclose(directions.T @ (A @ u - v), (1 - 0.5 * values**2) ** 50 * (directions.T @ -v), atol=1e-4)

print(f"random: {(values < 0.1 * values[0]).double().mean():.0%} of the directions below a tenth of the first")
curves = {"random convolution": (torch.arange(768), values), "identity": (torch.arange(768), torch.ones(768))}
plots.lines(curves, x="direction", y="singular value")

# %% [markdown]
# So a random convolution leaves some directions almost unheard. A wrong guess at noise lies in *all* directions alike, and $v$ is mostly noise where $t$ is small. If that is the cause, a cure follows: start the convolution as the **identity**. The network keeps every weight, and the handicap should be gone. Test it, with patches of 4, which train fast.

# %%
def last_layer(start):
    torch.manual_seed(0)
    network = minidiff.create_model("uvit_tiny", num_classes=10, patch_size=4, conv=start != "none")
    if start == "identity":
        nn.init.dirac_(network.head.conv.weight)  # 1 in the middle, from each channel to itself
        nn.init.zeros_(network.head.conv.bias)
    return wrap(network, (3, 16, 16))

@torch.no_grad()
def held_out(model, num=372 if run.tier != "smoke" else 8):
    x0, y, losses = unseen.images()[:num].to(run.device), unseen.labels[:num].to(run.device), []
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(run.device)
    for t in times:
        losses.append(model.loss(x0, y, t=torch.full((num,), t, device=run.device), eps=eps).mean().item())
    return torch.tensor(losses)

length = budget("each of three U-ViTs", smoke=2, cpu=600, gpu=3000, seconds_per_step=0.05)
ends = {start: minidiff.training.train(last_layer(start), emoji, steps=length, **recipe).ema
        for start in ("random", "none", "identity")}
judged = {start: held_out(model) for start, model in ends.items()}
for start, losses in judged.items():
    print(f"convolution {start:8} held-out loss {losses.mean():.3f}")
if run.tier == "cpu":
    assert judged["identity"].mean() < 1.03 * judged["none"].mean() < judged["random"].mean()

# %% [markdown]
# Now by noise level, and with samples and their borders.

# %%
some = 64 if run.tier != "smoke" else 4
draws = dict(y=torch.arange(some) % 10, steps=steps, seed=1, progress=False)
pictures = {start: minidiff.sample(model, some, **draws).cpu() for start, model in ends.items()}
for start, images in pictures.items():
    border, inside = at_borders(images, 4)
    print(f"{start:9} at borders {border:.2f}, inside {inside:.2f}, ratio {border / inside:.2f}")
curves = {start: (times, losses / judged["none"]) for start, losses in judged.items()}
display(plots.lines(curves, x="t", y="loss / loss of none"))
rows = [f"convolution: {start}" for start in pictures]
plots.filmstrip([torch.stack([i[k] for i in pictures.values()]) for k in range(min(some, 9))], rows=rows, scale=5)

# %% [markdown]
# From the identity, the convolution costs nothing. The handicap was its start. It is largest at small and middle $t$ and gone near $t = 1$, where $v$ is almost the picture. (At the very smallest $t$ the noise is so faint that all three hardly find it.) In the 500,000 steps of the paper a bad start may be forgotten. In 600 it can decide the ranking. The samples show it too: the grain inside the patches of the first row is noise that the network failed to take away. At this length the convolution hardly mends the patch effect; the ratio is lower in the first row because the inside is worse.
#
# Two cautions. Another seed draws another convolution, hence another handicap; compare how far two seeds were apart above, with the convolution and without. And the identity differs from a random start in more than its singular values: it mixes no colours, for one. The start is convicted, the unheard directions are only suspected. Exercise 3 goes on.
#
# The time is harder to explain. A token must first be found: at the start attention is nearly uniform, and of 66 tokens one is the time. AdaLN hands the time to every block, and has more weights. If the first is the reason, the token should catch up in a longer training. And so should the standard U-ViT against "no convolution". Here are the runs of 3,000 steps.

# %%
try:
    longer = recorded("uvit", "cpu-long")
except FileNotFoundError:
    longer = {}
long = by_run(longer)
curves = {f"{labels[k]}, {n:,} steps": (torch.arange(1, 41) * n / 40, of[k]["curve"])
          for k in ("concat", "no-conv") for n, of in ((600, records), (3000, longer)) if k in of}
display(plots.lines(curves, x="step", y="training loss", log="x"))
lines = ["| | 600 steps | / U-ViT | 3,000 steps | / U-ViT |", "|" + "---|" * 5]
for name in short:
    cells = [f"{of[name].mean():.3f} | {of[name].mean() / of['concat'].mean():.2f}" if {name, "concat"} <= set(of)
             else "not run | " for of in (short, long)]
    lines.append(f"| {labels[name]} | {' | '.join(cells)} |")
Markdown("\n".join(lines))

# %% [markdown]
# (`python tools/ablation.py uvit time-adaln --tier cpu-long` fills in a row.) If a ratio below 1 moves towards 1, the standard U-ViT is catching up. But 3,000 steps are not 500,000. An ablation ranks *choices under a budget*. The paper's ranking is for long trainings. If yours are short, rank again.
#
# ## Where it looks
#
# For the end, look inside. A U-ViT with patches of 2 has 64 patches, each with a map of its own in each head of each block. Train one, narrow and with the good start. The rows show where one patch of the panda, the red one over its eye, looks in each block, averaged over heads, with little noise and with much. Below are sliders for single heads (a stored notebook shows one setting).

# %%
from minidiff.course.attention import explore_attention

torch.manual_seed(0)
narrow = minidiff.create_model("uvit_tiny", num_classes=10, embed_dim=64)
nn.init.dirac_(narrow.head.conv.weight)
nn.init.zeros_(narrow.head.conv.bias)
length = budget("a U-ViT to look at", smoke=2, cpu=400, gpu=5000, seconds_per_step=0.1)
watched = minidiff.training.train(wrap(narrow, (3, 16, 16)), emoji, steps=length, lr=2e-3, **recipe).ema
panda, label, asking = unseen.images()[62:63].to(run.device), unseen.labels[62:63].to(run.device), 37
framed, rows = panda.cpu().clone(), []
framed[..., 8:10, 10:12] = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)  # patch 37: row 4, column 5, from 0
for t in (0.05, 0.5):
    noisy = watched.forward_process(panda, t, torch.randn(panda.shape).to(run.device))
    with torch.no_grad(), minidiff.record_attention(watched.network) as maps:
        watched.denoise(noisy, t, label)
    looks = [calls[0][0, :, 2 + asking, 2:].mean(0).view(1, 8, 8).cpu() for calls in maps.values()]
    rows.append([framed[0], *(F.interpolate((2 * x / x.max() - 1)[None], 16)[0].expand(3, 16, 16) for x in looks)])
heads = ["asks", *(f"block {k + 1}" for k in range(len(looks)))]
display(plots.filmstrip([torch.stack(pair) for pair in zip(*rows)], heads, rows=["t = 0.05", "t = 0.5"]))
explore_attention(watched, panda, label, times=(0.05, 0.1, 0.2, 0.5, 0.9), patch=asking)

# %% [markdown]
# In the middle blocks the eye asks the other eye and the ears: dark patches, far apart. Distance costs nothing here. (Move the patch: the others ask them, too.)
#
# How much do patches ask the label and the time? Here is the share of their attention that goes to each of these tokens, averaged over patches, heads and 64 emoji. If all were asked alike, it would be 1 of 66, or 1.5 %, which is how a network begins.

# %%
shares = {}
x0, y = unseen.images()[:64].to(run.device), unseen.labels[:64].to(run.device)
for t in (0.1, 0.9):
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(run.device)
    with torch.no_grad(), minidiff.record_attention(watched.network) as maps:
        watched.denoise(watched.forward_process(x0, t, eps), t, y)
    shares[t] = [calls[0][:, :, 2:, :2].mean(dim=(0, 1, 2)).cpu() for calls in maps.values()]
fresh = wrap(minidiff.create_model("uvit_tiny", num_classes=10, embed_dim=64), (3, 16, 16))
with torch.no_grad(), minidiff.record_attention(fresh.network) as maps:
    fresh.denoise(x0, 0.9, y)
before = torch.stack([calls[0] for calls in maps.values()])
print(f"before training, no token gets less than {before.min():.1%} or more than {before.max():.1%}")
blocks = torch.arange(1, len(shares[0.1]) + 1)
curves = {f"{name}, t = {t}": (blocks, [share[k] for share in shares[t]])
          for k, name in enumerate(("label", "time")) for t in (0.1, 0.9)}
figure = plots.lines(curves, x="block", y="share of attention")
figure.axes[0].set_xticks(blocks)
if run.tier == "cpu":
    assert [int(torch.stack(shares[0.9])[:, k].argmax()) for k in (0, 1)] == [4, 0]
figure

# %% [markdown]
# The time is asked in the first block, and above all when there is much noise. Later blocks ask it far less: what it said is in the patches by then. The label is asked most in the last block, and only where the noise hides the picture. Nobody designed this division of labour.
#
# ## What the paper found, what you measured

# %%
def ratio(a, b, losses=short):
    return f"{(losses[a].mean() / losses[b].mean()).item():.2f}" if a in losses and b in losses else "not run"

def row(claim, a, b):
    return f"| {claim} | {ratio(a, b)} | {ratio(a, b, long)} |"

cure = {start: f"{(judged[start].mean() / judged['none'].mean()).item():.2f}" for start in judged}
lines = [
    "| what the paper found | as a ratio of losses | here, 600 steps | here, 3,000 steps |", "|---|---|---|---|",
    row("skips: concatenation is better than none | concatenation / none", "concat", "none"),
    row("skips: concatenation is better than addition | concatenation / addition", "concat", "add"),
    row("time: a token is better than adaLN | token / adaLN", "concat", "time-adaln"),
    row("a convolution, and behind the head | with / without", "concat", "no-conv"),
    row("small patches are better | 2 / 4", "concat", "patch-4"),
    f"| (not in the paper) | patch 4, with / without, random start | {cure['random']} | |",
    f"| (not in the paper) | patch 4, with / without, start as identity | {cure['identity']} | |",
    "| weights of the ten published models | | equal | |",
    "| FID on CIFAR-10: GenViT 20.2 or 17.7 (of 10,000 or 50,000 samples), U-ViT 3.11 | | not run | |"]
print(f"luck: two seeds of one run differ by up to {luck / short['concat'].mean():.0%} after 600 steps")
Markdown("\n".join(lines))

# %% [markdown]
# ## Exercises
#
# **1. A convolution is a linear map.** U-ViT and DiT embed patches by a convolution of size and stride $p$, GenViT by `patchify` and a linear map. Translate the weight of the first into that of the second, so that one may load the other's. The numbers stay; only their order changes, from (channel, row, column) to that of `cut` above.

# %% tags=["exercise"] name="linear_from_conv"
def linear_from_conv(weight):
    """weight (dim, C, p, p) of a convolution with stride p -> (dim, p * p * C), the same map for patchify(x, p)."""
    ...  # your code

# %% [markdown]
# The check knows five wrong orders.

# %%
exercises.check_linear_from_conv(linear_from_conv)

# %% [markdown]
# **2. What concatenation can do (a one-liner).** Find the weight of a block's `skip_linear` with which it makes $a\,h + b\,h_\text{lower}$. With $a = b = 1$ that is the skip by addition, with $a = 1$, $b = 0$ no skip. Both are special cases of concatenation: what they can do, it can do, and where they win, it is by training faster or by luck.

# %% tags=["exercise"] name="skip_weight"
def skip_weight(dim, a, b):
    """The weight (dim, 2 dim) of a Linear that makes a * x + b * lower of the concatenation [x, lower]."""
    ...  # your code

# %% [markdown]
# Check it.

# %%
exercises.check_skip_weight(skip_weight)

# %% [markdown]
# **3. A larger picture (a small project).** The blocks of a U-ViT take any number of tokens; only its table of positions is tied to the size of the picture. Enlarge it: keep the first `extras` rows, which belong to time and label, and resize the rest as a map with `dim` channels, bilinearly (`F.interpolate` with `mode="bilinear"`, else its defaults; it wants channels before rows and columns).

# %% tags=["exercise"] name="grow_positions"
def grow_positions(pos_embed, extras, size):
    """pos_embed (1, extras + N, dim), N a square -> (1, extras + size * size, dim), the grid resized bilinearly."""
    ...  # your code

# %% [markdown]
# The check has one and two tokens before the patches.

# %%
exercises.check_grow_positions(grow_positions)

# %% [markdown]
# Go on with it: make a `uvit_tiny` for 32 pixels with `embed_dim=64`, give it the grown positions and all other weights of `watched`, train it for 200 steps on emoji of 32 pixels, and compare with 200 steps from scratch. A second project: which part of the random start hurts? Start the convolution as half the identity (all directions equally faint), or with a random 3 by 3 matrix of colours in its middle (no pixels mixed), and repeat the chase.
#
# ## What you learned
#
# - Patches as tokens, positions and plain blocks make a denoiser. Without positions it draws the right parts in the wrong places.
# - GenViT scales and shifts each token by the time. U-ViT puts time, label and text into the sequence, and needs no mechanism for them.
# - Each patch is drawn by itself, and its borders show: in the steps between pixels, and as lines of the spectrum at $1/p$.
# - Concatenated long skips contain addition and no skips as special cases.
# - An ablation holds for its budget. Here the start of a layer of 84 weights could turn a ranking round, and an experiment showed it.
#
# ## Where to read on
#
# - Bao et al., *All are worth words: a ViT backbone for diffusion models*, 2023, arXiv 2209.12152.
# - Yang et al., *Your ViT is secretly a hybrid discriminative-generative diffusion model*, 2022, arXiv 2208.07791.
# - Dosovitskiy et al., *An image is worth 16x16 words*, 2021, arXiv 2010.11929: the vision transformer.
# - `minidiff/backbones/uvit.py` and `genvit.py`: both networks, with all options of the ablation.
#
# Next, [notebook 11](11_iu_vit.ipynb) gives the transformer a little convolution in other places.
