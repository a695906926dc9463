# %% [markdown]
# # 10 U-ViT: everything is a token
#
# After this notebook you can build a diffusion backbone from a plain transformer, say what it gives up with its convolutions, and judge which parts of U-ViT earn their place.
#
# Run time: four to five minutes on a CPU with two idle cores, most of it training; expect about as long on a T4 or a big GPU. Nothing is downloaded.
#
# You will
#
# - cut a picture into tokens, and put a plain vision transformer to work as a denoiser,
# - see what it draws when nobody tells it where the patches belong,
# - tell it the time as GenViT does, and as U-ViT does,
# - see the borders of the patches in samples, and measure them,
# - type U-ViT by hand, and get the numbers of the package,
# - compare an ablation with the paper's, find a contradiction, and find its cause.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## A network that knows nothing about pictures
#
# The U-Net of [notebook 08](08_the_u_net.ipynb) has opinions. Neighbouring pixels belong together, a motif may stand anywhere, detail and plan live on different scales: all this is built in before training starts. A transformer has none of it. It takes a set of vectors, called **tokens**, and lets each of them ask all others. Can that denoise a picture?
#
# First, make tokens of a picture. Cut it into patches of $p \times p$ pixels and write down the numbers of each patch in a row. For an emoji of 16 by 16 pixels and $p = 4$ that makes 16 tokens of 48 numbers.

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
x = unseen.images()[205:206]
tokens = cut(x, 4)
assert torch.equal(tokens, minidiff.layers.patchify(x, 4))
assert torch.equal(minidiff.layers.unpatchify(tokens, 4, 4, 4), x)
display(plots.grid(x))
print("patch by patch, the same picture as a sequence of", tokens.shape[1], "tokens of", tokens.shape[2], "numbers:")
plots.grid(tokens[0].unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2), columns=16)

# %% [markdown]
# `patchify` does the same without a loop. Its inverse, `unpatchify`, will put the answer of the network back in place.
#
# ## A plain vision transformer
#
# Each row of 48 numbers becomes a vector of width $d$ by one linear map, the same for all patches. Then come blocks, all alike:
#
# $$h \leftarrow h + \text{Attention}(\text{LN}(h)), \qquad h \leftarrow h + \text{MLP}(\text{LN}(h)).$$
#
# LN is layer normalisation: each token for itself gets mean 0 and variance 1 over its channels. The MLP is two linear maps with a GELU between, again each token for itself. So attention is the only place where tokens meet. Notebook 08 had attention with one head. Here the channels are split among several heads, each of which makes its own table of weights over its own part.

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
# The whole network: patches, a linear map, positions, blocks, a linear map, picture. It is not told the time. Notebook 08 found that a denoiser can live without it, because noise is visible. It comes back soon.
#
# Look at `positions`. Attention is a sum over tokens, and a sum has no order. Without positions, reordering the input tokens by any permutation $P$ reorders the output and does nothing else, $f(Px) = P f(x)$. The network cannot know where a patch lies. The usual cure is a table of learned vectors, one for each place, added at the start.

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
    print(f"positions {positions}: shuffling before or after is {'the same' if same else 'not the same'}")

# %% [markdown]
# What does a network draw that does not know where? Train both, on the digits of 8 by 8 pixels, with patches of 2 by 2. Besides, train a third one, which you will take apart after that: GenViT, of the same width and depth, and told the time. Samples of all are from the same noise; on the right is the mean of 200.

# %%
digits = minidiff.load_dataset("digits", split="all")

def wrap(network, shape):
    return minidiff.Diffusion(network.to(run.device), minidiff.schedules.cosine(), "v", shape=shape)

small = budget("each of three small transformers", smoke=3, cpu=800, gpu=3000, seconds_per_step=0.025)
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

num, steps = (200, 20) if run.tier != "smoke" else (8, 2)
drawn = {n: minidiff.sample(m, num, steps=steps, seed=1, progress=False).cpu() for n, m in vits.items()}
drawn["real digits"] = digits.images()[:num]
columns = [torch.stack([images[k] for images in drawn.values()]) for k in range(8)]
mean = torch.stack([images.mean(dim=0) for images in drawn.values()])
plots.filmstrip([*columns, mean], [""] * 8 + ["mean"], rows=list(drawn), columns=9, scale=7)

# %% [markdown]
# Without positions you get strokes, corners and dots, each patch well drawn, some even joined to the next, scattered over the picture. To this network a digit and the same digit shuffled are equally likely, so it has learned the average of all arrangements; its mean is as good as flat. With positions the strokes find their places.
#
# ## GenViT: a time for each token
#
# The third row looks best. Its network, **GenViT** (Yang et al. 2022), is a vision transformer as made for classification, class token included. It is told the time in an unusual way. An MLP of the time gives, in every block, a scale $s_n$ and a shift $b_n$ for each token $n$, which act on the whole token, all channels alike:
#
# $$h_n \leftarrow h_n\,(1 + s_n(t)) + b_n(t).$$
#
# And they act on the residual stream itself, before attention and once more before the MLP. Write it down, with the weights of the trained network.

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
# What did it learn to do with the time? One panel for each block. Down go the tokens, the class token first and then the patches, row by row; across goes the time. Red means that a token is made larger, blue that it is made smaller.

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
# The scales depend on the time, and single tokens have a behaviour of their own: a number for each token is a number for each *place*. The price is that the size of the time's layers is tied to the number of tokens. A trained GenViT cannot take a larger picture.
#
# GenViT reached an FID (smaller is better) of 20.2 on CIFAR-10, or 17.7 with 50,000 samples in place of 10,000. U-ViT got 3.11, with simpler conditioning. Before you see how, look at what both share.
#
# ## The patch effect
#
# Every patch of the output comes from its own token, by its own linear map. Two patches that touch have only the talk of their tokens to agree on an edge. Do they agree? The package keeps records of six U-ViTs trained on emoji for 600 steps, on equal terms, with samples (`python tools/ablation.py uvit --tier cpu` makes them again). "Convolution" is a 3 by 3 convolution over the finished picture, the last layer of U-ViT.

# %%
from minidiff.course.recorded import recorded

records = recorded("uvit", "cpu")
kinds = {"patch 2, no convolution": ("no-conv", 2), "patch 2": ("concat", 2), "patch 4": ("patch-4", 4)}
strips = {name: records[key]["samples"] for name, (key, _) in kinds.items()}
strips["unseen emoji"] = unseen.images()[100:132]
plots.filmstrip([torch.stack([s[k] for s in strips.values()]) for k in range(8, 16)], rows=list(strips), scale=5)

# %% [markdown]
# The training was short and all are poor. But they are poor in different ways, and the first is made of tiles. To put a number on it, take the absolute difference between neighbouring pixels, for each of the 15 places in a row or column where two pixels meet, averaged over all samples. Real pictures have no reason to change more at the border of a patch than inside.

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

for name, images in strips.items():
    for p in {2, 4} if "emoji" in name else {kinds[name][1]}:
        border, inside = at_borders(images, p)
        print(f"{name:24} borders of {p}: {border:.2f}, inside {inside:.2f}, ratio {border / inside:.2f}")
figure = plots.lines({n: (torch.arange(1, 16), steps_at(s)) for n, s in strips.items()}, x="place", y="mean step")
figure.axes[0].set(ylim=(0, 0.75), xticks=range(2, 16, 2))
figure

# %% [markdown]
# A comb, with its teeth at every second or every fourth place. What is periodic in space is a line in the **spectrum**. Divide each curve by that of real emoji (whose steps are not quite the same everywhere), subtract the mean, and take the power of the Fourier transform. Patches of side $p$ must show up at $1/p$ cycles per pixel.

# %%
usual = steps_at(emoji.images())

def spectrum(images):
    wave = steps_at(images) / usual
    wave = (wave / wave.mean() - 1) * torch.hann_window(len(wave), periodic=False)
    return torch.fft.rfft(wave, n=240).abs().square()

frequency = torch.arange(121) / 240
curves = {name: (frequency, spectrum(images)) for name, images in strips.items()}
plots.lines(curves, x="cycles per pixel", y="power of the steps")

# %% [markdown]
# Lines at 1/2 for patches of 2, at 1/4 for patches of 4 (and at 1/2, its overtone), nothing for real emoji. Two things follow. Small patches are better, and cost dearly: half the side means four times the tokens, and sixteen times the entries in every attention table. And a convolution behind the head seems to help, as the ratio says. But read both numbers. With the convolution the step at a border is a little smaller, and the step inside is half as large again. The ratio fell mostly because the inside became rougher. Keep that in mind.
#
# ## Everything is a token
#
# How should a transformer learn the time, or the class, or a text? GenViT invents a mechanism. **U-ViT** (Bao et al. 2023) needs none, because a transformer already has a way to take in vectors: put them into the sequence. The features of the time are a token, the embedded label is a token, each word of a text is a token, and each patch. All get positions, all go through the same blocks, and attention finds out who needs whom:
#
# | label | time | patch 1 | patch 2 | ... | patch $N$ |
# |---|---|---|---|---|---|
#
# In all published models the time token is the bare sinusoid, without any weights. At the end the tokens of the conditions are dropped, and the patches become a picture.
#
# ## Long skips
#
# The second idea gives the network its U. Half of the blocks lie below a middle block, half above. The first block above the middle takes what the last one below it put out, and so on outwards, first in, last out, as in a U-Net. The two are joined by a concatenation of channels and a linear map back to the width:
#
# $$h \leftarrow W\,[h, h_\text{lower}] + b.$$
#
# Unlike a U-Net, nothing is ever made smaller. Type it.

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
# Those are the parts. The pass through them reads like the figure in the paper. Names are as in the package, so its weights fit, and the numbers must agree.

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
# Why skips? In notebook 08 the answer was arithmetic: 768 numbers of noise do not pass through a bottom of 512. Here there is no such bottleneck. Between any two blocks of this network run 64 patches of 96 channels, 6,144 numbers. The skips are no necessity, then, but a convenience: the upper blocks need not keep the details in the stream while they work on the plan. Whether that pays is a question for an experiment.
#
# ## Real sizes
#
# The published models are built on the device `meta`, which keeps shapes and no numbers. The weights of the official code were counted, and its multiplications as well. They stand beside ours.

# %%
from IPython.display import Markdown

official = {  # weights, and billions of multiplications with addition (GMAC) for one picture
    "cifar10": (44_255_328, 12.2), "celeba64": (44_292_228, 12.2), "imagenet64_m": (130_940_292, 35.2),
    "imagenet64_l": (286_827_652, 76.5), "imagenet256_l": (286_763_172, 76.5), "imagenet256_h": (500_832_016, 133.2),
    "imagenet512_l": (286_861_524, 76.5), "imagenet512_h": (500_942_656, 133.2),
    "coco": (44_692_644, 16.2), "coco_deep": (58_345_636, 21.2)}
fid = dict(zip(official, (3.11, 2.87, 5.85, 4.26, 3.40, 2.29, 4.67, 4.05, 5.95, 5.48)))
lines = ["| model | input | patch | tokens | weights | official | GMAC | official | FID |", "|" + "---|" * 9]
for name, (count, work) in official.items():
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
# The paper decided each of its choices by an experiment. Ours are on emoji of 16 by 16 pixels: a network of 0.6 million weights, 600 steps of 64 pictures. Judged is the loss on 372 unseen emoji, mean over ten noise levels, with the same noise for all. Where a run was repeated with another seed, the bar is the mean, and the line above the figure says how far the two are apart. The second figure has each run as a multiple of the standard U-ViT, by noise level.

# %%
labels = {"concat": "U-ViT: concatenation", "add": "skips added", "none": "no skips", "time-adaln": "time by adaLN",
          "no-conv": "no convolution", "patch-4": "patch 4"}

def by_run(records):
    """{run: held-out losses, one for each seed}, in the order of `labels`."""
    found = {run: [r["held_out"]["mean"] for name, r in records.items() if name.split("-seed")[0] == run]
             for run in labels}
    return {run: torch.tensor(losses) for run, losses in found.items() if losses}

def compare(records):
    losses = by_run(records)
    middle = [values.mean() for values in losses.values()]
    return plots.bars([labels[run] for run in losses], middle, x="held-out loss", best="low")

short = by_run(records)
seeds = [f"{labels[run]} {(v.max() - v.min()):.4f}" for run, v in short.items() if len(v) > 1]
print("difference of two seeds:", ", ".join(seeds) or "only one seed was run")
display(compare(records))
base = records["concat"]["held_out"]
curves = {labels[run]: (base["times"], [a / b for a, b in zip(records[run]["held_out"]["losses"], base["losses"])])
          for run in short if run != "concat"}
plots.lines(curves, x="t", y="loss / loss of U-ViT")

# %% [markdown]
# With "time by adaLN" the time is no token. A linear map of it scales and shifts the channels behind each layer norm (notebook 12 is about that). That network has 31 % more weights.
#
# First the measure of luck. A second run of the standard U-ViT, with another seed, came out at 0.336 in place of 0.310. So the order of concatenation, addition, no skips and patch 4, which in the first runs is the paper's, is not decided here: these gaps are no larger than that. (Patch 4 also does a quarter of the work.) Two results are beyond luck, and contradict the paper flatly. Here adaLN beats the time token. And the network *without* the last convolution is the best of all, by a margin. The paper recommends this convolution after the head. (Its two largest models, among them the one with FID 2.29, do without.)
#
# ## Finding the cause
#
# A contradiction is worth more than an agreement, if you chase it. The convolution has 84 weights. How can they cost so much? Look at it as what it is, a linear map from 768 numbers to 768, drawn at random at the start. The head before it must produce whatever the convolution turns into the right answer, so directions that it shrinks must be made large in advance. Its singular values say by how much each direction is shrunk.

# %%
torch.manual_seed(0)
random = nn.Conv2d(3, 3, 3, padding=1, bias=False)
basis = torch.eye(768).view(768, 3, 16, 16)
with torch.no_grad():
    values = torch.linalg.svdvals(random(basis).flatten(1))
print(f"{(values < 0.1 * values[0]).double().mean():.0%} of the directions are shrunk ten times more than the first")
curves = {"random convolution": (torch.arange(768), values), "identity": (torch.arange(768), torch.ones(768))}
plots.lines(curves, x="direction", y="singular value")

# %% [markdown]
# So a random convolution leaves some directions almost unheard, and gradient descent is slow in them. At small $t$ the answer is nearly pure noise and needs *all* directions alike. If that is the cause, a cure follows: start the convolution as the **identity**. The network keeps every weight, and the handicap should be gone. Test it, with patches of 4, which train fast.

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
    for t in base["times"]:
        losses.append(model.loss(x0, y, t=torch.full((num,), t, device=run.device), eps=eps).mean().item())
    return torch.tensor(losses)

length = budget("each of three U-ViTs", smoke=3, cpu=600, gpu=3000, seconds_per_step=0.05)
ends = {}
for start in ("random", "none", "identity"):
    ends[start] = minidiff.training.train(last_layer(start), emoji, steps=length, **recipe).ema
    print(f"convolution {start}: held-out loss {held_out(ends[start]).mean():.4f}")

# %% [markdown]
# Now with samples and their borders.

# %%
judged = {start: held_out(model) for start, model in ends.items()}
some = 64 if run.tier != "smoke" else 4
draws = dict(y=torch.arange(some) % 10, steps=steps, seed=1, progress=False)
pictures = {start: minidiff.sample(model, some, **draws).cpu() for start, model in ends.items()}
for start, images in pictures.items():
    border, inside = at_borders(images, 4)
    print(f"{start:9} at borders {border:.2f}, inside {inside:.2f}, ratio {border / inside:.2f}")
curves = {start: (base["times"], losses / judged["none"]) for start, losses in judged.items()}
display(plots.lines(curves, x="t", y="loss / loss of none"))
rows = [f"convolution: {start}" for start in pictures]
plots.filmstrip([torch.stack([i[k] for i in pictures.values()]) for k in range(min(some, 9))], rows=rows, scale=5)

# %% [markdown]
# The suspicion holds. From the identity, the convolution costs nothing; the whole handicap was its start, and it was largest at small and middle $t$, where the answer is mostly noise. (One seed each. But start the convolution at random with another seed, and you draw another handicap. That may be why the two runs of the standard U-ViT were so far apart.) In 500,000 steps, as in the paper, a bad start is forgotten. In 600 it decides the ranking. The samples show it too: the grain inside the patches of the first row is noise that the network failed to take away. The steps at the borders are about as high in all three. At this length the convolution hardly mends the patch effect. In the first row the ratio is lower because the inside is worse.
#
# The time is harder to explain. A token must first be found: at the start attention is nearly uniform, and of 66 tokens one is the time. AdaLN hands the time to every block, and has more weights. If this is the reason, the token should catch up in a longer training. So should the standard U-ViT against "no convolution". Some runs were repeated for 3,000 steps.

# %%
try:
    longer = recorded("uvit", "cpu-long")
except FileNotFoundError:
    longer = {}
    print("not recorded here: python tools/ablation.py uvit --tier cpu-long")
long = by_run(longer)
lines = ["| | 600 steps | / U-ViT | 3,000 steps | / U-ViT |", "|" + "---|" * 5]
for name in [run for run in short if run in long]:
    cells = [f"{losses[name].mean():.4f} | {losses[name].mean() / losses['concat'].mean():.2f}" if "concat" in losses
             else f"{losses[name].mean():.4f} | " for losses in (short, long)]
    lines.append(f"| {labels[name]} | {' | '.join(cells)} |")
Markdown("\n".join(lines))

# %% [markdown]
# If a ratio below 1 moves towards 1, the standard U-ViT is catching up. Whatever it says, 3,000 steps are not 500,000, emoji are not CIFAR-10, and one seed is one seed. An ablation ranks *choices under a budget*. The paper's ranking is for long trainings. If yours are short, rank again.
#
# ## Where it looks
#
# For the end, look inside. A U-ViT with patches of 2 has 64 patches, each with a map of its own in each head of each block. Train one, narrow and with the good start, and move the sliders (they need a running notebook; a stored one shows one setting).

# %%
def narrow():
    torch.manual_seed(0)
    network = minidiff.create_model("uvit_tiny", num_classes=10, embed_dim=64)
    nn.init.dirac_(network.head.conv.weight)
    nn.init.zeros_(network.head.conv.bias)
    return wrap(network, (3, 16, 16))

length = budget("a U-ViT to look at", smoke=3, cpu=500, gpu=5000, seconds_per_step=0.1)
watched = minidiff.training.train(narrow(), emoji, steps=length, lr=2e-3, **recipe).ema
print(f"held-out loss {held_out(watched).mean():.4f}")

# %% [markdown]
# The picture is an unseen emoji. Try early blocks against late ones, and little noise against much.

# %%
from minidiff.course.attention import explore_attention

explore_attention(watched, unseen.images()[205], unseen.labels[205:206])

# %% [markdown]
# How much do patches ask the label and the time? Here is the share of their attention that goes to each of these tokens, averaged over patches, heads and 64 emoji. If all were asked alike, it would be 1 of 66, or 1.5 %.

# %%
shares = {}
x0, y = unseen.images()[:64].to(run.device), unseen.labels[:64].to(run.device)
for t in (0.1, 0.3, 0.5, 0.7, 0.9):
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(run.device)
    with torch.no_grad(), minidiff.record_attention(watched.network) as maps:
        watched.denoise(watched.forward_process(x0, t, eps), t, y)
    shares[t] = [calls[0][:, :, 2:, :2].mean(dim=(0, 1, 2)).cpu() for calls in maps.values()]
blocks = torch.arange(1, len(shares[0.1]) + 1)
curves = {f"{name}, t = {t}": (blocks, [share[k] for share in shares[t]])
          for k, name in enumerate(("label", "time")) for t in (0.1, 0.9)}
figure = plots.lines(curves, x="block", y="share of attention")
figure.axes[0].set_xticks(blocks)
figure

# %% [markdown]
# The time is asked in the first block, most of all when there is much noise, and then no more: what it said is in the patches by then. The label is asked in the last block, and only where the noise hides the picture. Nobody designed this division of labour. The other blocks leave the two tokens alone.
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
if run.tier == "cpu":
    assert judged["identity"].mean() < 1.03 * judged["none"].mean() < judged["random"].mean()
Markdown("\n".join(lines))

# %% [markdown]
# ## Exercises
#
# **1. A convolution is a linear map.** U-ViT and DiT embed patches by a convolution of size and stride $p$, GenViT by `patchify` and a linear map. Translate the weight of the first into that of the second, so that one may load the other's. All is in the order of the pixels.

# %% tags=["exercise"] name="linear_from_conv"
def linear_from_conv(weight):
    """weight (dim, C, p, p) of a convolution with stride p -> (dim, p * p * C), the same map for patchify(x, p)."""
    ...  # your code

# %% [markdown]
# The check knows five wrong orders.

# %%
exercises.check_linear_from_conv(linear_from_conv)

# %% [markdown]
# **2. What concatenation can do (a one-liner).** Find the weight of a block's `skip_linear` with which it makes $a\,h + b\,h_\text{lower}$. With $a = b = 1$ that is the skip by addition, with $a = 1$, $b = 0$ no skip. So both are special cases of concatenation, and where they win, it is by being easier to train.

# %% tags=["exercise"] name="skip_weight"
def skip_weight(dim, a, b):
    """The weight (dim, 2 dim) of a Linear that makes a * x + b * lower of the concatenation [x, lower]."""
    ...  # your code

# %% [markdown]
# Check it.

# %%
exercises.check_skip_weight(skip_weight)

# %% [markdown]
# **3. A larger picture (a small project).** The blocks of a U-ViT take any number of tokens; only its table of positions is tied to the size of the picture. Enlarge it: keep the first `extras` rows, and resize the rest as a map, bilinearly (`F.interpolate` with its defaults otherwise).

# %% tags=["exercise"] name="grow_positions"
def grow_positions(pos_embed, extras, size):
    """pos_embed (1, extras + N, dim), N a square -> (1, extras + size * size, dim), the grid resized bilinearly."""
    ...  # your code

# %% [markdown]
# The check has one and two tokens before the patches.

# %%
exercises.check_grow_positions(grow_positions)

# %% [markdown]
# Go on with it: make a `uvit_tiny` for 32 pixels from `watched` above, whose other weights fit as they are, sample from it, train it for 200 steps on emoji of 32 pixels, and compare with 200 steps from scratch. A second project: start `skip_linear` as $h + h_\text{lower}$ or as $h$ alone, in place of at random, and repeat the chase of this notebook for skips.
#
# ## What you learned
#
# - Patches as tokens, positions and plain blocks make a denoiser. Without positions it draws the right parts in the wrong places.
# - GenViT scales and shifts each token by the time. U-ViT puts time, label and text into the sequence, and needs no mechanism for them.
# - Each patch is drawn by itself, and its borders show: in the steps between pixels, and as lines of the spectrum at $1/p$.
# - Concatenated long skips contain addition and no skips as special cases.
# - An ablation holds for its budget. Here a layer of 84 weights turned a ranking round by the way it was initialised, and an experiment found it.
#
# ## Where to read on
#
# - Bao et al., *All are worth words: a ViT backbone for diffusion models*, 2023, arXiv 2209.12152.
# - Yang et al., *Your ViT is secretly a hybrid discriminative-generative diffusion model*, 2022, arXiv 2208.07791.
# - Dosovitskiy et al., *An image is worth 16x16 words*, 2021, arXiv 2010.11929: the vision transformer.
# - `minidiff/backbones/uvit.py` and `genvit.py`: both networks, with all options of the ablation.
#
# Next, notebook 11 gives the transformer a little convolution in other places, and the borders will go.
