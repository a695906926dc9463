# %% [markdown]
# # 08 The U-Net, drawn from its tensors
#
# After this notebook you can write the U-Net of DDPM, say what each of its parts is for, and prove it by taking the part away.
#
# Run time: about four minutes on a CPU with two idle cores, most of it training; as long on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - measure how far a network sees,
# - build a U-Net by hand and get a trained model's numbers out of it,
# - make five mistakes that nothing reports, and see what each costs,
# - draw the network from its tensors, and count where its weights and its work are,
# - remove one part at a time, after training and before, and compare the two.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## A job with two halves
#
# [Notebook 03](03_ddpm_in_a_hundred_lines.ipynb) called its network "a small U-Net" and moved on. Why does it look as it does? Spoil three emoji that the package's emoji model has never seen with little, much and very much noise, and look at what it believes is underneath.

# %%
import torch

model = minidiff.load("emoji-unet")
network = model.network
unseen = minidiff.load_dataset("emoji", size=16, split="test")
images, labels = unseen.images(), unseen.labels  # (372, 3, 16, 16), (372,)
torch.manual_seed(0)
eps = torch.randn(images.shape)

some = [30, 111, 205]
columns, heads = [images[some]], ["clean"]
for t in (0.2, 0.6, 0.9):
    x_t = model.forward_process(images[some], t, eps[some])
    with torch.no_grad():
        columns += [x_t, model.denoise(x_t, t, labels[some]).x0]
    heads += [f"t = {t}", "its guess"]
plots.filmstrip(columns, heads, rows=3, scale=6)

# %% [markdown]
# At $t = 0.2$ the job is local. A pixel and its neighbours tell almost everything, and no detail may be lost. At $t = 0.9$ no pixel can be trusted. Only averages over large regions still say something; in the third row little is left but the label, "smileys and emotion", and a smiley it becomes. So the network must **see far**, and it must **keep detail**.
#
# ## How far does a network see?
#
# A convolution of size 3 sees one pixel to each side, and a stack of $n$ of them sees $n$ pixels. That is an upper limit. How much a far pixel really counts is told by the gradient: move an input pixel a little, how much does one output pixel move? Call the square of that derivative, summed over colours and some pictures, its *influence*.

# %%
import copy
from torch import nn

def influence(f, x, row, column):
    """How strongly each input pixel moves the output pixel at (row, column): a map (H, W) that sums to 1."""
    x = x.clone().requires_grad_()
    total = 0
    for value in f(x)[:, :, row, column].sum(dim=0):  # red, green and blue of the output
        total += torch.autograd.grad(value, x, retain_graph=True)[0].square().sum(dim=(0, 1))
    return total / total.sum()

def beyond(influence, row, column, radius):
    """The share of the influence that comes from farther away than `radius` pixels."""
    rows, columns = torch.meshgrid(*map(torch.arange, influence.shape), indexing="ij")
    return influence[(rows - row) ** 2 + (columns - column) ** 2 > radius**2].sum().item()

def shades(maps):
    """Grey pictures (N, 1, H, W) of influences on a logarithmic scale: black the largest, white a 10,000th of it."""
    return torch.stack([1 - 2 * (1 + (m / m.max()).log10() / 4).clamp(min=0) for m in maps.values()])[:, None]

x = torch.randn(1, 1, 9, 9)
box = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(2)])
assert (influence(box, x, 4, 4) > 0).sum() == 25  # two convolutions of size 3 see 5 x 5

# %% [markdown]
# Two candidates, at 64 by 64 pixels. The first is a plain stack of 28 convolutions. The second is a U-Net: it halves the picture three times, works on the small versions too, and comes back. It is shown without and with its attention, of which more below. `FlopCounterMode` counts multiplications and additions (floating-point operations, FLOP), and all cost nearly the same. All weights are random, so what you see is due to the layout alone. (In the package the branches of a new U-Net begin at almost nothing; `fresh` undoes that.) The scale is logarithmic: black is the largest influence on the centre, white a ten-thousandth of it or less.

# %%
from torch.utils.flop_counter import FlopCounterMode

def fresh(network):
    """The network with new random weights, large in every layer."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
    return network.eval()

inner = [layer for _ in range(26) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())]
stack = fresh(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), *inner, nn.Conv2d(16, 3, 3, padding=1)))
whole = fresh(minidiff.create_model("ddpm_tiny", image_size=64, ch=16, ch_mult=(1, 2, 2, 2), attn_resolutions=()))
bare = copy.deepcopy(whole)
bare.middle[0].attention = nn.Identity()
nets = {"plain stack": stack, "U-Net, convolutions only": lambda x: bare(x, torch.tensor([500.0])),
        "U-Net with attention": lambda x: whole(x, torch.tensor([500.0]))}
x, seen = torch.randn(4, 3, 64, 64), {}
for name, f in nets.items():
    with FlopCounterMode(display=False) as counter:
        f(x[:1])
    seen[name] = influence(f, x, 32, 32)
    far = ", ".join(f"{beyond(seen[name], 32, 32, r):5.1%} beyond {r}" for r in (4, 8, 16))
    print(f"{name:25} {counter.get_total_flops() / 1e6:4.0f} MFLOP   {far} pixels")
plots.grid(shades(seen), titles=list(seen), scale=4)

# %% [markdown]
# The stack could see 28 pixels. It hardly does: only one path leads to the farthest pixel, very many to the near ones, so its influence is a narrow bell. The U-Net sees much farther at the same price, because a step on its smallest map is a step of eight pixels. The dark square, 24 pixels wide, is 3 by 3 cells of that map. (Attention could look anywhere. With random weights it does not know where, and changes little.)
#
# ## Built by hand
#
# In each function below, `p` is a part of the trained emoji model that lends its weights, so every piece can be compared with the package at once.
#
# ### The time
#
# The network must know how much noise to expect. It gets the number of the step, $i = 1000\,t - 1$ from 0 to 999, as a vector of sines and cosines of $i\,\omega_k$ with frequencies $\omega_k$ that fall from 1 to $1/10000$. With $m$ frequencies, half the width of the vector,
#
# $$\omega_k = 10000^{-k/(m-1)}, \qquad k = 0, \dots, m-1.$$
#
# Two details are pure convention. The divisor is $m - 1$, so that the last frequency is exactly $1/10000$. And the sines come first. Other code bases divide by $m$ or begin with the cosines.
#
# Two linear layers turn these features into the vector that all blocks of the network share, `emb`. A label enters simply: each class has a learned vector, and it is added. The first figure shows the features. The second compares the vectors of the trained model: how much is step 100, 500 or 900 like any other? (1 means the same direction, 0 a right angle.)

# %%
import math
import torch.nn.functional as F

def time_features(time, dim):
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
    angles = time[:, None] * frequencies  # (B, half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)

def embed(time, y, p, features=time_features):
    emb = p.time_dense1(F.silu(p.time_dense0(features(time, p.ch))))  # (B, 4 ch)
    return F.silu(emb + p.label.weight[y])

steps, y = torch.arange(1000.0), torch.full((1000,), 3)
features, vectors = time_features(steps, 32), embed(steps, y, network).detach()
assert torch.allclose(features, minidiff.layers.timestep_embedding(steps, 32), atol=1e-4)
assert torch.allclose(vectors, network.embed(steps, y, torch.float32), atol=1e-4)
picture = features[:200].T[None].contiguous()  # (1, 32, 200): white is 1, black is -1
display(plots.grid(picture, scale=4, titles=["steps 0 to 199 across; downwards 16 sines, then 16 cosines"]))
unit = F.normalize(vectors, dim=1)
plots.lines({f"step {k}": (steps, unit @ unit[k]) for k in (100, 500, 900)}, x="other step", y="cosine of the angle")

# %% [markdown]
# Like hands of a clock, the first sines swing within a few steps and the last hardly move. The two layers have made a smooth scale of it.
#
# ### The residual block
#
# Everything else is made of one block: normalise, bend (SiLU), convolve, twice over, and add the result to what came in. The time is added in the middle, one number for each channel, the same at every pixel. Group normalisation gives each group of channels mean 0 and variance 1 over all its pixels. It divides by $\sqrt{\text{variance} + 10^{-6}}$; PyTorch's own default is $10^{-5}$: another convention. The test takes the first and the last block of the trained model; neither has attention.

# %%
def group_norm(x, p):
    groups = x.unflatten(1, (p.num_groups, -1))  # (B, G, C / G, H, W)
    centred = groups - groups.mean(dim=(2, 3, 4), keepdim=True)
    variance = centred.square().mean(dim=(2, 3, 4), keepdim=True)
    x = (centred / (variance + p.eps).sqrt()).flatten(1, 2)
    return x * p.weight[:, None, None] + p.bias[:, None, None]

def conv(x, p, **options):
    return F.conv2d(x, p.weight, p.bias, **options)

def residual_block(x, emb, p):
    h = conv(F.silu(group_norm(x, p.norm1)), p.conv1, padding=1)
    h = h + F.linear(emb, p.time.weight, p.time.bias)[:, :, None, None]
    h = conv(F.silu(group_norm(h, p.norm2)), p.conv2, padding=1)
    if p.conv1.in_channels != p.conv1.out_channels:
        x = conv(x, p.shortcut)  # 1 x 1, so that the widths agree
    return x + h

emb = vectors[[100, 500, 900]]
for p in (network.down[0]["blocks"][0], network.up[2]["blocks"][1]):
    x = torch.randn(3, p.conv1.in_channels, 16, 16)
    with torch.no_grad():
        assert torch.allclose(residual_block(x, emb, p), p(x, emb), atol=1e-4)
    print(f"{p.conv1.in_channels} -> {p.conv1.out_channels} channels: equal; eps of the norms {p.norm1.eps:g}")

# %% [markdown]
# ### Attention
#
# Convolutions pass messages to neighbours. Attention lets every pixel ask every other one. Each pixel's channels give three vectors, a query $q$, a key $k$ and a value $v$. A pixel takes the values of all pixels, weighted by how well its query fits their keys, and adds the mixture to itself:
#
# $$\text{softmax}\!\big(q\,k^\top / \sqrt{C}\big)\,v.$$
#
# The softmax runs over all keys, so that a pixel's weights sum to 1. (DDPM has one such table of weights for all $C$ channels, a single *head*; transformers split the channels among several.) For $N$ pixels the table is $N \times N$, so attention stands only where maps are small.
#
# `record_attention` keeps the weights while a network runs. Take all unseen emoji at $t = 0.5$: how much of the attention of an object's cells goes to the object, and not to the white around it? The figure shows three of them. The black square marks the cell that asks; to the right is where it looks, in the three attention layers of 8 by 8 cells, the darker the more. Each map has its own scale.

# %%
def attention(x, p):
    tokens = group_norm(x, p.norm).flatten(2).transpose(1, 2)  # (B, N, C), a row for each pixel
    q, k, v = F.linear(tokens, p.qkv.weight, p.qkv.bias).chunk(3, dim=-1)
    weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)  # (B, N, N)
    tokens = F.linear(weights @ v, p.out.weight, p.out.bias)
    return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])

p, x = network.up[1]["blocks"][1].attention, torch.randn(2, 64, 8, 8)
x_t = model.forward_process(images, 0.5, eps)
with torch.no_grad():
    assert torch.allclose(attention(x, p), p(x), atol=1e-4)
    with minidiff.record_attention(network) as maps:
        model.denoise(x_t, 0.5, labels)
maps = {name: m[0][:, 0] for name, m in maps.items() if m[0].shape[-1] == 64}  # those on 8 x 8 = 64 cells, (B, 64, 64)
inside = (F.avg_pool2d(images.mean(dim=1), 2) < 0.9).flatten(1).float()  # (B, 64): 1 where a cell is not white
for name, w in {**maps, "everywhere alike": torch.full((1, 64, 64), 1 / 64)}.items():
    share = ((w @ inside[..., None])[..., 0] * inside).sum() / inside.sum()
    print(f"{name:26} {share:.0%} of the objects' attention stays on the object")
shown = [images[some], x_t[some]]
for picture in shown:
    picture[:, :, 10:12, 6:8] = -1  # row 5, column 3 of the 8 x 8 cells
for w in maps.values():
    w = w[some, 8 * 5 + 3].view(3, 1, 8, 8)
    shown.append(F.interpolate(0.85 - 1.85 * w / w.amax(dim=(2, 3), keepdim=True), size=16).expand(-1, 3, -1, -1))
plots.filmstrip(shown, ["clean", "t = 0.5", *[name.replace(".attention", "") for name in maps]], rows=3, scale=8)

# %% [markdown]
# Some layers look at a few cells, some spread over the object. All prefer it to the background: even in noise this strong, cells of one object find each other.
#
# ### Down and up
#
# The way down halves the map by a convolution of stride 2. A kernel of size 3 needs one row and one column of padding to halve an even size, and the original puts them at the bottom and right *only*. So the kernel for output 0 looks at the inputs 0, 1, 2. With the usual padding on all sides it would look at $-1, 0, 1$, and every map would be shifted by a pixel. The way up repeats each pixel in both directions, then convolves.

# %%
def downsample(x, p):
    return conv(F.pad(x, (0, 1, 0, 1)), p.conv, stride=2)  # (left, right, top, bottom)

def upsample(x, p):
    return conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), p.conv, padding=1)

x = torch.randn(2, 64, 8, 8)
with torch.no_grad():
    assert torch.allclose(downsample(x, network.down[1]["resample"]), network.down[1]["resample"](x), atol=1e-4)
    assert torch.allclose(upsample(x, network.up[1]["resample"]), network.up[1]["resample"](x), atol=1e-4)

line, mean = torch.arange(8.0).view(1, 1, 1, 8), torch.full((1, 1, 1, 3), 1 / 3)
one_sided = F.conv2d(F.pad(line, (0, 1)), mean, stride=2)[..., :3].flatten().tolist()
both_sides = F.conv2d(line, mean, stride=2, padding=(0, 1))[..., :3].flatten().tolist()
print("positions 0, 1, 2, ... averaged by three, every second kept")
print("padded at the right:", [f"{v:.2f}" for v in one_sided], " at both ends:", [f"{v:.2f}" for v in both_sides])

# %% [markdown]
# ### The whole
#
# On the way down every result is kept. On the way up each block takes the one kept last and appends its channels to those of its own input: first in, last out. These are the **skips**. Between the two ways stand two blocks on the smallest map, the *middle*. There is one block more per level on the way up, because the results of `conv_in` and of the downsamplings are kept as well.

# %%
def unet(x, time, y, p, features=time_features, down=downsample, join=lambda h, skip: [h, skip]):
    emb = embed(time, y, p, features)

    def block(x, p):
        x = residual_block(x, emb, p)
        return attention(x, p.attention) if hasattr(p.attention, "qkv") else x

    h = conv(x, p.conv_in, padding=1)
    kept = [h]
    for level, stage in enumerate(p.down):
        for q in stage["blocks"]:
            h = block(h, q)
            kept.append(h)
        if level < len(p.down) - 1:
            h = down(h, stage["resample"])
            kept.append(h)
    for q in p.middle:
        h = block(h, q)
    for level, stage in enumerate(p.up):
        for q in stage["blocks"]:
            h = block(torch.cat(join(h, kept.pop()), dim=1), q)
        h = upsample(h, stage["resample"]) if level < len(p.up) - 1 else h
    return conv(F.silu(group_norm(h, p.norm_out)), p.conv_out, padding=1)

# %% [markdown]
# ## Five mistakes that nothing reports
#
# Now everything by hand, against the package, on unseen emoji at mixed times. The model predicts $v = \alpha\varepsilon - \sigma x_0$ (notebook 03), and its loss is the mean square of its error in $v$.
#
# You have met four conventions: the order of sines and cosines, the divisor, the eps, the padding. The order in which skip and input are joined is a fifth. Get one wrong, and nothing complains, for all shapes fit. Make each mistake on purpose. The picture shows what the network then believes about some emoji at $t = 0.5$.

# %%
from IPython.display import Markdown

def features_by(order, divisor):
    return dict(features=lambda i, dim: minidiff.layers.timestep_embedding(i, dim, order=order, divisor=divisor))

loose = copy.deepcopy(network)
for layer in loose.modules():
    layer.eps = 1e-5  # only norms have one that counts
mistakes = {
    "no mistake": {}, "norms with eps 1e-5": dict(p=loose), "divisor m": features_by("sin_cos", "half"),
    "cosines first": features_by("cos_sin", "half-1"),
    "padding on all sides": dict(down=lambda x, p: conv(x, p.conv, stride=2, padding=1)),
    "skip before input": dict(join=lambda h, skip: [skip, h] if h.shape == skip.shape else [h, skip])}
part = [*some, *range(0, 372, 1 if run.tier != "smoke" else 40)]
x0, y, noise, t = images[part], labels[part], eps[part], model.sample_times(len(part))
t[:8] = 0.5
x_t, v = model.forward_process(x0, t, noise), model.forward_process(noise, t, -x0)

# %% [markdown]
# Without a mistake your network must equal the package's, but for rounding.

# %%
rows, guesses = ["| mistake | error / size of output | loss |", "|---|---|---|"], {"clean": x0[:8], "noisy": x_t[:8]}
with torch.no_grad():
    right, (alpha, sigma) = network(x_t, 1000 * t - 1, y), model.schedule(0.5)
    for name, change in mistakes.items():
        out = unet(x_t, 1000 * t - 1, y, **{"p": network, **change})
        assert name != "no mistake" or torch.allclose(out, right, atol=1e-3)
        rows.append(f"| {name} | {(out - right).std() / right.std():.1e} | {(out - v).square().mean():.3f} |")
        guesses[name] = alpha * x_t[:8] - sigma * out[:8]  # x0, from x_t and v
display(Markdown("\n".join(rows)))
plots.filmstrip(torch.stack(list(guesses.values()), dim=1), rows=list(guesses), scale=3)

# %% [markdown]
# The eps of the norms is harmless, an error in the fifth digit. The others damage the model, and none raised an error. Nor is a look at pictures enough: with the cosines first all seems well at $t = 0.5$, yet over all times the loss is three times as large. Only a comparison number by number finds every mistake.
#
# ## Drawn from its tensors
#
# A hook is a function that PyTorch calls whenever a module has run. Hang one on every piece, send a picture through, and you hold every tensor that passed.
#
# So find the skips. Where a piece gets more channels than the piece before it put out, the rest came from elsewhere, so look for an earlier output that equals it number by number.

# %%
def pieces(network):
    """The parts of a U-Net, by name: blocks, resampling, first and last convolution."""
    kinds, ends = ("Block", "Downsample", "Upsample"), ("conv_in", "conv_out")
    return {n: part for n, part in network.named_modules() if type(part).__name__ in kinds or n in ends}

def watch(network, *inputs):
    """What went into each piece and what came out: a list of (name, input, output), in the order of the pass."""
    passed = []
    hooks = [part.register_forward_hook(lambda part, args, out, name=name: passed.append((name, args[0], out)))
             for name, part in pieces(network).items()]
    with torch.no_grad():
        network(*inputs)
    [hook.remove() for hook in hooks]
    return passed

one, skips = slice(111, 112), []  # skips: (from, to), as places in `passed`
x_t = model.forward_process(images[one], 0.5, eps[one])
passed = watch(network, x_t, torch.tensor([499.0]), labels[one])
for k in range(1, len(passed)):
    rest = passed[k][1][:, passed[k - 1][2].shape[1] :]
    if rest.shape[1]:
        source, = [j for j in range(k) if passed[j][2].shape == rest.shape and torch.equal(passed[j][2], rest)]
        skips.append((source, k))
        print(f"{passed[source][0]:16} -> {passed[k][0]:14} {tuple(rest.shape[1:])}")

# %% [markdown]
# First in, last out. Now draw. Every box is a tensor that passed. Its face is the map: the three directions in which its channels vary most (the first principal components), as red, green and blue. Its depth is the number of channels. An orange frame means that the block ends with attention.

# %%
def as_colours(maps):
    """Maps (B, C, H, W) -> (B, 3, H, W) in [-1, 1]: the three main directions of all pixels' channels as colours."""
    points = maps.permute(0, 2, 3, 1).flatten(0, 2)
    points = points - points.mean(dim=0)
    _, _, directions = torch.linalg.svd(points, full_matrices=False)
    directions = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    colours = points @ directions[:3].T
    colours = (colours / (2 * colours.std(dim=0))).clamp(-1, 1)
    return colours.unflatten(0, (len(maps), *maps.shape[2:])).permute(0, 3, 1, 2)

def draw_box(axes, x, y, out, attends):
    import matplotlib.pyplot as plt
    side, depth = 0.21 * out.shape[2] ** 0.5, out.shape[1] / 220
    left, bottom, right, top = x - side / 2, y - side / 2, x + side / 2, y + side / 2
    for corners in ([(left, top), (right, top), (right + depth, top + depth), (left + depth, top + depth)],
                    [(right, bottom), (right, top), (right + depth, top + depth), (right + depth, bottom + depth)]):
        axes.add_patch(plt.Polygon(corners, facecolor="#E6E6E6", edgecolor="#777777", linewidth=0.7))
    face = out if out.shape[1] == 3 else as_colours(out)
    axes.imshow((face[0].permute(1, 2, 0).clamp(-1, 1) + 1) / 2, extent=(left, right, bottom, top), zorder=2)
    style = dict(edgecolor=plots.COLORS[1], linewidth=2.2) if attends else dict(edgecolor="#777777", linewidth=0.8)
    axes.add_patch(plt.Rectangle((left, bottom), side, side, fill=False, zorder=3, **style))

# %% [markdown]
# The next function puts all boxes in their places.

# %%
@plots.quiet
def draw(passed, skips, x_t):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(11, 4.2))
    tensors = [("x_t", None, x_t), *passed]
    heights = [1.7 * math.log2(out.shape[2]) for _, _, out in tensors]
    for k, ((name, _, out), y) in enumerate(zip(tensors, heights)):
        draw_box(axes, k, y, out, hasattr(getattr(pieces(network).get(name), "attention", None), "qkv"))
        channels, rows, columns = out.shape[1:]
        short = name.replace("blocks.", "").replace(".resample", "\nresample")
        text = f"{short}\n{channels}×{rows}×{columns}"
        box = dict(facecolor="white", edgecolor="none", pad=0.6)
        axes.text(k, y - 0.11 * rows**0.5 - 0.1, text, ha="center", va="top", fontsize=6.8, bbox=box, zorder=1)
        if k:
            axes.plot([k - 1, k], [heights[k - 1], y], color="#777777", linewidth=1, linestyle="-", zorder=0)
    for source, to in skips:
        y, bend = heights[to + 1], -1.5 / (to - source)
        arrow = dict(arrowstyle="->", color=plots.COLORS[0], connectionstyle=f"arc3,rad={bend}", linewidth=1.2)
        top = y + 0.11 * tensors[to + 1][2].shape[2] ** 0.5 + 0.3
        axes.annotate("", (to + 1, top), (source + 1, top), arrowprops=arrow)
    axes.set(xlim=(-0.6, len(tensors) - 0.3), ylim=(2.2, 8.9), aspect="equal")
    axes.axis("off")
    return figure

draw(passed, skips, x_t)

# %% [markdown]
# Follow the grey line: 16 pixels become 8, then 4, and unfold again. Follow the arrows, from each size on the way down to the same size on the way up. Only they carry fine detail past the bottom. The faces: noise at both ends, blobs between.
#
# ## What is noise, and how far does it look?
#
# A map is made of picture and noise. How much is which? Spoil the same 64 emoji twice, with two draws of noise. The share of a map's variance that comes from the draw is half the mean square of the difference, divided by the variance.
#
# Below, the gradients of the beginning, now of a trained network. The number over each map is the share of the influence that comes from more than four pixels away.

# %%
def noise_share(t):
    """For each piece, in the order of the pass: the share of its map's variance that the noise makes."""
    first, second = (watch(network, model.forward_process(images[:64], t, eps[k : k + 64]),
                           torch.tensor([1000 * t - 1]), labels[:64]) for k in (0, 64))
    return [((a - b).square().mean() / 2 / a.var(dim=(0, 2, 3)).mean()).item()
            for (_, _, a), (_, _, b) in zip(first, second)]

shares = {f"t = {t}": (range(len(passed)), noise_share(t)) for t in (0.1, 0.4, 0.7, 0.9)}
display(plots.lines(shares, x="piece: 0 is conv_in, 4 to 9 have maps of 4 x 4, 16 is conv_out", y="share of noise"))

seen = {}
for t in (0.05, 0.2, 0.5, 0.8, 0.95):
    x_t = model.forward_process(images[:64], t, eps[:64])
    values = influence(lambda x, t=t: model.denoise(x, t, labels[:64]).x0, x_t, 8, 8)
    seen[f"t = {t}: {beyond(values, 8, 8, 4):.0%}"] = values
plots.grid(shades(seen), titles=list(seen))

# %% [markdown]
# On the way down the noise is averaged away: at $t = 0.4$ it is more than half of the first map and a tenth of the lowest. The bottom holds a plan of the picture. On the way up the skips bring detail back, and noise with it. And the output should be noise at small $t$, where $v$ is nearly all $\varepsilon$.
#
# The influence agrees. With little noise the network looks at a pixel and its next neighbours. With much noise it averages over the whole picture.
#
# ## Where the weights are, and where the work is
#
# `ddpm_cifar10` is the U-Net of the paper for 32 by 32 pixels. On the device `meta` tensors have shapes and no numbers, so a network of any size is built in no time, and its FLOPs can be counted all the same, also by module. Add up by level, counting the middle to the lowest. The number of weights is that of the released network.

# %%
with torch.device("meta"):
    cifar, large = minidiff.create_model("ddpm_cifar10").eval(), minidiff.create_model("ddpm_lsun256")

def weights(part):
    return sum(parameter.numel() for parameter in part.parameters())

assert weights(cifar) == 35_746_307 and weights(large) == 113_673_219
with FlopCounterMode(display=False) as counter, torch.no_grad():
    cifar(torch.empty(1, 3, 32, 32, device="meta"), torch.empty(1, device="meta"))
work = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
table = torch.zeros(4, 2, dtype=torch.float64)  # a row for each level; weights, work
for name, part in pieces(cifar).items():
    place, number = name.split(".")[:2] if "." in name else (name, "0")
    level = {"down": int(number), "up": 3 - int(number), "middle": 3}.get(place, 0)
    table[level] += torch.tensor([weights(part), work[f"UNet.{name}"]])
assert table[:, 0].sum() > 0.98 * weights(cifar) and table[:, 1].sum() > 0.98 * counter.get_total_flops()
print(f"{weights(cifar):,} weights, {counter.get_total_flops() / 1e9:.1f} GFLOP for one picture")
names = [f"{size} x {size}: {what}" for size in (32, 16, 8, 4) for what in ("weights", "work")]
plots.bars(names, (100 * table / table.sum(dim=0)).flatten(), x="per cent of the whole network")

# %% [markdown]
# At the lowest level sit a third of the weights, and they do 3 % of the work. At the highest, 8 % of the weights do 37 %. A weight of a convolution is used once per pixel, 1,024 times above and 16 times below. So widening the bottom is cheap in time. Imagen's Efficient U-Net (Saharia et al. 2022) moves blocks to low resolutions for that reason.
#
# ## Take one part away
#
# Remove a part from the trained emoji model and see what breaks. Hooks put zeros in the place of a skip, let an attention hand back what it got, or tell the network a wrong time.

# %%
def cut_skips(network, levels=(0, 1, 2)):
    """Zeros in place of the skips at these levels, 0 the finest. Returns the hooks, which can be removed."""
    hooks, width = [], network.middle[1].conv2.out_channels
    for k, stage in enumerate(network.up):
        for block in stage["blocks"]:
            def cut(block, args, width=width):
                h, skip = args[0][:, :width], args[0][:, width:]
                return torch.cat([h, torch.zeros_like(skip)], dim=1), *args[1:]
            if len(network.up) - 1 - k in levels:
                hooks.append(block.register_forward_pre_hook(cut))
            width = block.conv2.out_channels
    return hooks

def skip(network, places, kind="attention"):
    """Parts of this kind hand back what they get, where the name begins with one of `places`."""
    parts = [part for name, part in network.named_modules() if name.startswith(places) and kind in name.split(".")[-1]]
    return [part.register_forward_hook(lambda part, args, out: args[0]) for part in parts]

def tell_time(network, change):
    return [network.register_forward_pre_hook(lambda network, args: (args[0], change(args[1]), *args[2:]))]

# %% [markdown]
# Each change is measured alike: the loss of unseen emoji at several noise levels, with the same noise, divided by that of the unchanged model. 1 means that the part is not missed.

# %%
everywhere = ("down", "middle", "up")
changes = {
    "skips at 4 x 4": lambda n: cut_skips(n, [2]), "skips at 8 x 8": lambda n: cut_skips(n, [1]),
    "skips at 16 x 16": lambda n: cut_skips(n, [0]), "all skips": cut_skips,
    "attention at 4 x 4": lambda n: skip(n, ("down.2", "middle", "up.0")),
    "attention at 8 x 8": lambda n: skip(n, ("down.1", "up.1")), "all attention": lambda n: skip(n, everywhere),
    "both middle blocks": lambda n: [block.register_forward_hook(lambda b, args, out: args[0]) for block in n.middle],
    "time always 0.5": lambda n: tell_time(n, lambda i: torch.full_like(i, 499)),
    "time + 0.1": lambda n: tell_time(n, lambda i: i + 100),
    "time - 0.1": lambda n: tell_time(n, lambda i: i - 100),
}
times = [0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.98] if run.tier != "smoke" else [0.02, 0.2, 0.8]
chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: 128 if run.tier != "smoke" else 8]

@torch.no_grad()
def losses(model):
    x0, y, noise = (values[chosen].to(model.device) for values in (images, labels, eps))
    y = y if model.network.num_classes else None
    each = [model.loss(x0, y, t=torch.full((len(x0),), t, device=model.device), eps=noise) for t in times]
    return torch.stack(each).mean(dim=1).cpu()  # one number for each time

# %% [markdown]
# First samples, all from the same noise and labels. Then the numbers: rows are what was taken away, columns the noise level.

# %%
num, steps = (6, 20) if run.tier != "smoke" else (2, 2)
draws = dict(y=torch.arange(num), steps=steps, guidance=2.0, seed=1, progress=False)
usual, rows, drawn = losses(model), {}, {"unchanged": minidiff.sample(model, num, **draws)}
for name, change in changes.items():
    hooks, rows[name] = change(network), losses(model) / usual
    if name not in ("all skips", "all attention", "attention at 4 x 4"):
        drawn[name] = minidiff.sample(model, num, **draws)
    [hook.remove() for hook in hooks]
assert torch.equal(losses(model), usual)  # the model is whole again
display(plots.filmstrip(torch.stack(list(drawn.values()), dim=1), rows=list(drawn), scale=3))

@plots.quiet
def ratios(rows, title):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6.4, 0.27 * len(rows) + 0.8))
    axes.imshow(torch.stack(list(rows.values())), norm="log", vmin=1, vmax=10, cmap="Blues", aspect="auto")
    for k, value in enumerate(torch.cat(list(rows.values())).tolist()):
        color = "white" if value > 3 else "black"
        axes.text(k % len(times), k // len(times), f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
    axes.set(xticks=range(len(times)), xticklabels=times, yticks=range(len(rows)), yticklabels=rows)
    axes.set(xlabel="t", title=title)
    axes.grid(visible=False)
    return figure

ratios(rows, "loss / loss of the unchanged model")

# %% [markdown]
# The two halves of the job are torn apart. Without the skips at 16 x 16 the motifs are all there, drowned in noise: the plan arrives, the detail does not. Without attention at 8 x 8 it is the other way round, edges and texture without colours to fill them. A network told a wrong time removes too much noise or too little, step after step.
#
# The skips at full size are worth a factor of ten at $t = 0.2$, and nothing at $t = 0.98$: where all is noise, there is no detail to hand over. The lowest skips and the two middle blocks are hardly missed anywhere. Attention matters on the map of 8 by 8, by a factor of four, and little on that of 4 by 4, where a convolution reaches almost everything anyway. A time frozen at 0.5 is three to five times worse at both ends.
#
# ## The same parts, never there
#
# There is a catch. A trained network has arranged itself around all of its parts. That it stumbles without one shows that it *leans* on the part, not that the part was *needed*. So train without it. Here are five small U-Nets on the same emoji, without labels: one complete, one with another seed, to see what chance does, and three with a part missing from the first step on, by the same hooks.

# %%
emoji = minidiff.load_dataset("emoji", size=16)

def small_model(change, seed):
    torch.manual_seed(seed)
    small = minidiff.create_model("ddpm_tiny", ch=16).to(run.device)
    change(small)
    return minidiff.Diffusion(small, minidiff.schedules.cosine(), "v", shape=(3, 16, 16))

each = budget("each of five small U-Nets", smoke=3, cpu=600, gpu=4000, seconds_per_step=0.06)
recipe = dict(steps=each, batch_size=32 if run.tier != "smoke" else 4, lr=2e-3, ema=0.99, progress=False)
plans = {"complete": (lambda n: None, 0), "other seed": (lambda n: None, 1), "no skips": (cut_skips, 0),
         "no attention": (lambda n: skip(n, everywhere), 0), "no time": (lambda n: tell_time(n, torch.zeros_like), 0)}
small, strips, draws = {}, [], dict(steps=25 if run.tier != "smoke" else 2, seed=0, progress=False)
for name, (change, seed) in plans.items():
    small[name] = minidiff.training.train(small_model(change, seed), emoji, seed=seed, **recipe).ema
    strips.append(minidiff.sample(small[name], num, **draws).cpu())

x = torch.randn(2, 3, 16, 16, device=run.device)
with torch.no_grad():  # the averaged copy has kept the hook: it does not hear the time
    assert torch.equal(*[small["no time"].network(x, torch.full((1,), i, device=run.device)) for i in (9.0, 900.0)])
scratch = {name: losses(one) for name, one in small.items()}
display(plots.filmstrip(torch.stack(strips, dim=1), rows=list(small), scale=3))
ratios({name: values / scratch["complete"] for name, values in scratch.items()}, "loss / loss of the complete network")

# %% [markdown]
# Without skips the samples are noise. One reason is plain arithmetic. At small $t$ the network must name the noise, 3 x 16 x 16 = 768 independent numbers, and through the bottom of this one pass 32 maps of 4 by 4, which is 512. Noise cannot be compressed.
#
# The last two rows are not what you expect after the last section. Put both experiments side by side. To be fair, take the parts from the complete small network as well. And ask: could a network know the noise level without being told? Try the crudest estimate, the mean squared difference of neighbouring pixels, and compare the order in which it puts noisy emoji with that of their true times.

# %%
leaned, young, needed = {}, {}, {}  # taken from the shipped model, from the small one, never there
for part, row in {"skips": "all skips", "attention": "all attention", "time": "time always 0.5"}.items():
    hooks = changes[row](small["complete"].network)
    young[part] = (losses(small["complete"]) / scratch["complete"]).mean().item()
    [hook.remove() for hook in hooks]
    leaned[part], needed[part] = rows[row].mean().item(), (scratch[f"no {part}"] / scratch["complete"]).mean().item()

@plots.quiet
def three_bars(series):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7.2, 2.9))
    for k, (name, values) in enumerate(series.items()):
        bars = axes.barh(torch.arange(3) + 0.25 * (k - 1), list(values.values()), 0.23, label=name)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8.5)
    axes.set(xlabel="loss / loss of the complete network, mean over t", yticks=range(3), yticklabels=values)
    axes.grid(visible=False)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3)
    return figure

t = torch.rand(len(images))
rough = model.forward_process(images, t, eps).diff(dim=-1).square().mean(dim=(1, 2, 3))
ranks = torch.stack([t, rough]).argsort().argsort().float()
print(f"order of time and order of roughness: correlation {ranks.corrcoef()[0, 1]:.2f}")
three_bars({"taken from the shipped model": leaned, "taken from the small one": young, "never there": needed})

# %% [markdown]
# **Skips** are leaned on and needed. **Attention** is a matter of age: the shipped model leans on it heavily, the small one hardly, and a small one that never had it is as good. What a long training without it would give, this experiment cannot tell.
#
# The **time** is the surprise. Freeze it, and both trained networks pay dearly. The one that never heard it loses a few per cent, and its samples look no worse. The likely reason is that noise can be seen, as your crude estimate saw it. A network that is told has no reason to look; one that is not told learns to. The two experiments answer different questions. When you report one, say which.
#
# These are single, short runs on one data set, and one other seed is the only hint at chance. Compare directions, not digits.
#
# ## What the papers found, what you measured

# %%
findings = [
    ("DDPM has 35.7 million weights on CIFAR-10 (Ho et al. 2020); the released network has 35,746,307",
     f"{weights(cifar):,}, and {weights(large):,} at 256 pixels"),
    ("In a transformer with long skips, joining them by concatenation is best among concatenation, addition and "
     "no skips (U-ViT, Bao et al. 2023)",
     f"taken away {leaned['skips']:.1f} x the loss; never there {needed['skips']:.1f} x"),
    ("Attention at 16 x 16 and in the middle (Ho et al. 2020)",
     f"taken away {leaned['attention']:.1f} x the loss; never there, in a short training, {needed['attention']:.2f} x"),
    ("The time is added in every residual block (Ho et al. 2020)",
     f"taken away {leaned['time']:.1f} x the loss; never there {needed['time']:.2f} x"),
]
if run.tier != "smoke":
    assert needed["skips"] > 1.5 and needed["time"] < 1.3 < young["time"]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. Another house's time (a one-liner, nearly).** ADM, OpenAI's later U-Net, and its descendants have the features the other way round: cosines first, and $\omega_k = 10000^{-k/m}$ with $m$ frequencies. Write them, so that those weights can be loaded.

# %% tags=["exercise"] name="adm_features"
def adm_features(time, dim):
    """time (B,) -> (B, dim), dim even: dim / 2 cosines, then dim / 2 sines."""
    ...  # your code

# %% [markdown]
# The check knows eight wrong ways.

# %%
exercises.check_adm_features(adm_features)

# %% [markdown]
# **2. Padding, for any size.** TensorFlow's rule "SAME" makes a map of $n$ pixels into one of $\lceil n/2 \rceil$ at stride 2. It adds as many zeros as the kernel needs for that, half of them before and half after; if their number is odd, the one left over goes *after*. Work out what odd sizes need, and write a convolution of size 3 that is right for both. Rows and columns may differ.

# %% tags=["exercise"] name="downsample_same"
def downsample_same(x, weight, bias):
    """x (B, C, H, W), weight (D, C, 3, 3), bias (D,) -> (B, D, ceil(H / 2), ceil(W / 2))."""
    ...  # your code

# %% [markdown]
# The check tries even and odd sizes.

# %%
exercises.check_downsample_same(downsample_same)

# %% [markdown]
# **3. Who gets which skip?** Without building a network: given the width `ch` of the first level, the factors of all levels and the number of blocks on the way down, list for every block of the way up, in order, the width of its input $h$, which comes from the block before or from below, and the width of its skip. All blocks of a level put out the level's width, and the resamplings keep it. For the emoji model the answer begins `[(64, 64), (64, 64), (64, 64), (64, 32), ...]`.

# %% tags=["exercise"] name="up_widths"
def up_widths(ch, ch_mult, num_res_blocks):
    """A list of pairs (width of h, width of the skip), one for each block of the way up, from the lowest level."""
    ...  # your code

# %% [markdown]
# The check asks for four networks, `ddpm_cifar10` among them.

# %%
exercises.check_up_widths(up_widths)

# %% [markdown]
# Two projects. With your list you can count the weights of any such U-Net on paper: see whether you hit 35,746,307. And train "no time" again with `"eps"` in place of `"v"`, look at its samples, and explain why the missing time is no longer harmless. (By what is an error in $\varepsilon$ multiplied when $x_0$ is computed near $t = 1$?)
#
# ## What you learned
#
# - A denoiser must see far in much noise and keep detail in little. Halving buys sight at a low price; skips keep the detail.
# - A U-Net is one residual block, repeated. The time is added in each block, attention connects all pixels of small maps, the skips are a stack.
# - Order of sines, divisor, eps, padding, order of a concatenation: no mistake raises an error, most do harm.
# - The top level has few weights and much work, the bottom the reverse.
# - Taking a part from a trained network tells what it leans on, training without it what it needs. The answers can be opposite.
#
# ## Where to read on
#
# - Ho, Jain, Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv 2006.11239: appendix B describes this network.
# - Ronneberger, Fischer, Brox, *U-Net*, 2015, arXiv 1505.04597: where the shape comes from.
# - Luo, Li, Urtasun, Zemel, *Understanding the effective receptive field*, 2016, arXiv 1701.04128: why the influence is a bell.
# - Sun, Jiang, Zhao, He, *Is noise conditioning necessary for denoising generative models?*, 2025, arXiv 2502.13129: your last surprise, at full size.
# - Dhariwal, Nichol, *Diffusion models beat GANs on image synthesis*, 2021, arXiv 2105.05233: the U-Net grown up.
#
# Next: [notebook 09](09_training_well.ipynb), *Training well and knowing it*.
