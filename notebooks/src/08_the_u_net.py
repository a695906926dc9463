# %% [markdown]
# # 08 The U-Net, drawn from its tensors
#
# After this notebook you can write the U-Net of DDPM from memory, say what each of its parts is for, and prove it by taking the part away.
#
# Run time: about four minutes on a CPU with two idle cores, most of it training; expect as long on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - measure how far a network sees, with gradients,
# - build a U-Net by hand, piece by piece, and get a trained model's numbers out of it,
# - make five mistakes that nothing reports, and see what each costs,
# - draw the network from the tensors that pass through it,
# - count where its weights are and where its work is,
# - remove one part at a time, from a trained network and before training, and compare the two.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## A job with two halves
#
# [Notebook 03](03_ddpm_in_a_hundred_lines.ipynb) called its network "a small U-Net" and moved on. Why does it look the way it does? Begin with what it is asked to do. Take the emoji model of the package and three emoji it has never seen, spoil them with little, much and very much noise, and look at what the network believes is underneath.
#
# (All but the training near the end runs on the CPU.)

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
# At $t = 0.2$ the job is local. A pixel and its neighbours tell almost everything, and what counts is to lose no detail. At $t = 0.9$ no pixel can be trusted. Only averages over large regions still say something, and the answer is a blur; in the third row little is left but the label, "smileys and emotion", and a smiley it becomes. So the network must **see far**, and it must **keep detail**.
#
# ## How far does a network see?
#
# A convolution of size 3 sees one pixel to each side, and a stack of $n$ of them sees $n$ pixels. That is an upper limit. How much a far pixel really counts is told by the gradient: if you move an input pixel a little, how much does one output pixel move? Call the square of that derivative, summed over colours, its *influence*.

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
# Two candidates, at 64 by 64 pixels. The first is a plain stack of 28 convolutions. The second is a U-Net: it halves the picture three times, works on the small versions too, and comes back. `FlopCounterMode` counts multiplications and additions (floating-point operations, FLOP), and the two cost the same. Both have random weights, so what you see is due to the layout alone. The U-Net is shown without and with its attention, of which more below. Black is the largest influence on the centre, white less than a ten-thousandth of it, in between the scale is logarithmic.

# %%
from torch.utils.flop_counter import FlopCounterMode

def fresh(network):
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
# The stack could see 28 pixels. It hardly does: there is only one path to the farthest pixel and very many to the near ones, so its influence is a bell, much narrower than the limit. The U-Net sees much farther at the same price, because a step on its smallest map is a step of eight pixels. The square outlines are the cells of that map. (Attention could look anywhere. With random weights it does not yet know where, and changes little.) How it keeps detail all the same comes below.
#
# ## Built by hand
#
# Now build one. In each function, `p` is a part of the trained emoji model that lends its weights, so every piece can be compared with the package at once.
#
# ### The time
#
# The network must know how much noise to expect. It gets the number of the step, $i$ from 0 to 999, as a vector of sines and cosines of $i\,\omega_k$ with frequencies that fall from 1 to $1/10000$. With $h$ the number of frequencies (half the width of the vector),
#
# $$\omega_k = 10000^{-k/(h-1)}, \qquad k = 0, \dots, h-1.$$
#
# Two details are pure convention. The divisor is $h - 1$, so that the last frequency is exactly $1/10000$. And the sines come first. Other code bases divide by $h$ or begin with the cosines. Remember that for later.
#
# Two linear layers turn these features into the vector that all blocks of the network share. A label enters in the simplest way there is: each class has a learned vector, and it is added. The first figure shows the features. The second compares the vectors of the trained model: how much is step 100, 500 or 900 like any other?

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
# Like the hands of a clock, the first sines swing within a few steps and the last ones hardly move. The two layers have turned this code into a smooth scale: neighbouring steps are told nearly the same, distant ones something else.
#
# ### The residual block
#
# Everything else is made of one block: normalise, bend (SiLU), convolve, twice over, and add the result to what came in. The time is added in the middle, one number for each channel, the same at every pixel. Group normalisation takes some of the channels together and gives them mean 0 and variance 1 over all their pixels. It divides by $\sqrt{\text{variance} + 10^{-6}}$; PyTorch's own default is $10^{-5}$, and this too is a convention that must be matched. Two blocks of the trained model serve as test, the first and the last; neither is followed by attention.

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
# DDPM uses a single head as wide as all $C$ channels. For $N$ pixels the table of weights is $N \times N$, so attention stands only where maps are small.

# %%
def attention(x, p):
    tokens = group_norm(x, p.norm).flatten(2).transpose(1, 2)  # (B, N, C), a row for each pixel
    q, k, v = F.linear(tokens, p.qkv.weight, p.qkv.bias).chunk(3, dim=-1)
    weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)  # (B, N, N)
    tokens = F.linear(weights @ v, p.out.weight, p.out.bias)
    return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])

p = network.up[1]["blocks"][1].attention
x = torch.randn(2, 64, 8, 8)
with torch.no_grad():
    assert torch.allclose(attention(x, p), p(x), atol=1e-4)
print("attention: equal")

# %% [markdown]
# What do pixels ask for? `record_attention` keeps the weights while a network runs. Here the model works on three unseen emoji at $t = 0.5$. The black square marks the cell of the 8 by 8 map that asks. To the right is where it looks, in the three attention layers of that size, in the order in which they come.

# %%
three, t = [30, 111, 205], 0.5
x_t = model.forward_process(images[three], t, eps[three])
with torch.no_grad(), minidiff.record_attention(network) as maps:
    model.denoise(x_t, t, labels[three])
names = [name for name in maps if maps[name][0].shape[-1] == 64]  # those on 8 x 8 = 64 pixels
row, column = 5, 3

@plots.quiet
def looks(pictures, maps, names):
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(3, 5, figsize=(8.4, 4.9))
    for axes, title in zip(panels[0], ("clean", f"t = {t}", *[name.replace(".attention", "") for name in names])):
        axes.set_title(title, fontsize=9)
    for k, line in enumerate(panels):
        for axes, picture in zip(line, pictures):
            axes.imshow((picture[k].permute(1, 2, 0).clamp(-1, 1) + 1) / 2)
            axes.add_patch(plt.Rectangle((2 * column - 0.5, 2 * row - 0.5), 2, 2, fill=False, color="black", lw=2))
        for axes, name in zip(line[2:], names):
            axes.imshow(maps[name][0][k, 0, 8 * row + column].view(8, 8), cmap="Blues", vmin=0)
        for axes in line:
            axes.set(xticks=[], yticks=[])
    return figure

looks([images[three], x_t], maps, names)

# %% [markdown]
# Some layers look mostly at the asking cell and a few others, some spread over the object and leave most of the background out. In noise this strong, cells of one object find each other. So a left ear can know about the right one.
#
# ### Down and up
#
# The way down halves the map by a convolution of stride 2. A kernel of size 3 needs one row and one column of padding to halve an even size, and the original puts them at the bottom and right *only*. So the kernel for output 0 looks at the inputs 0, 1, 2. With the usual padding on all sides it would look at $-1, 0, 1$: every map would be shifted by a pixel. The way up repeats each pixel twice in both directions, then smooths by a convolution.

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
# All that is left is the order. On the way down every result is kept. On the way up each block takes the one kept last, glues it to its input channel by channel, and goes on: first in, last out. These are the **skips**. There is one block more per level on the way up, because the results of `conv_in` and of the downsamplings are kept as well.

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
# Now everything by hand, against the package, on held-out emoji at mixed times. And a second question at once. You have met four conventions, and the order in which a skip is joined is a fifth. Get one wrong, and nothing complains: all shapes fit. How bad is it? Make each mistake on purpose.

# %%
from IPython.display import Markdown

def features_by(order, divisor):
    return dict(features=lambda i, dim: minidiff.layers.timestep_embedding(i, dim, order=order, divisor=divisor))

loose = copy.deepcopy(network)
for layer in loose.modules():
    layer.eps = 1e-5  # only norms have one that counts
mistakes = {
    "none": {}, "norms with eps 1e-5": dict(p=loose), "divisor h": features_by("sin_cos", "half"),
    "cosines first": features_by("cos_sin", "half-1"),
    "padding on all sides": dict(down=lambda x, p: conv(x, p.conv, stride=2, padding=1)),
    "skip before h": dict(join=lambda h, skip: [skip, h] if h.shape == skip.shape else [h, skip])}
rows, part = ["| mistake | error / size of output | loss |", "|---|---|---|"], slice(372 if run.tier != "smoke" else 16)
x0, y, noise, t = images[part], labels[part], eps[part], model.sample_times(len(images[part]))
x_t, v = model.forward_process(x0, t, noise), model.forward_process(noise, t, -x0)  # v: what this model predicts
with torch.no_grad():
    right = network(x_t, 1000 * t - 1, y)
    for name, change in mistakes.items():
        out = unet(x_t, 1000 * t - 1, y, **{"p": network, **change})
        assert name != "none" or torch.allclose(out, right, atol=1e-3)
        rows.append(f"| {name} | {(out - right).std() / right.std():.1e} | {(out - v).square().mean():.3f} |")
Markdown("\n".join(rows))

# %% [markdown]
# The eps of the norms is the harmless one, an error in the fifth digit, invisible in pictures. The others wreck the model, and none of them raised an error. Only a comparison with the original, number by number, finds them all.
#
# ## Drawn from its tensors
#
# Papers draw their U-Nets by hand. Yours can draw itself. A hook is a function that PyTorch calls whenever a module has run. Hang one on every piece, send one picture through, and you hold every tensor that passed.
#
# Nobody tells the cell below where the skips are. The tensors know. Where a piece gets more channels than the piece before it put out, the rest must have come from elsewhere, so look for an earlier output that equals it number by number.

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
# First in, last out, as you wrote it. Now draw. Every box is a tensor that really passed. The face is the map itself: its channels, reduced to the three directions in which they vary most, as red, green and blue. The depth of a box is its number of channels. A thick orange frame means that the block ends with attention.

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
# That was one box. The next function puts all of them in their places.

# %%
@plots.quiet
def draw(passed, skips, x_t):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(10.4, 4.0))
    tensors = [("x_t", None, x_t), *passed]
    heights = [1.7 * math.log2(out.shape[2]) for _, _, out in tensors]
    for k, ((name, _, out), y) in enumerate(zip(tensors, heights)):
        draw_box(axes, k, y, out, hasattr(getattr(pieces(network).get(name), "attention", None), "qkv"))
        channels, rows, columns = out.shape[1:]
        short = name.replace("blocks.", "").replace(".resample", "\nresample")
        text = f"{short}\n{channels}×{rows}×{columns}"
        axes.text(k, y - 0.11 * rows**0.5 - 0.1, text, ha="center", va="top", fontsize=6.5)
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
# Follow the grey line: sides of 16 pixels become 8, then 4, and unfold again. Follow the arrows: short cuts from each size on the way down to the same size on the way up. Only they carry fine detail past the bottom. And look at the faces: blobs near the bottom, an outline on the way up, noise at both ends.
#
# ## What the maps hold
#
# The same pieces at other times. Each column is one piece, enlarged to the same size, and colours can be compared down a column.

# %%
times, shown = [0.1, 0.4, 0.7, 0.9], {}
x_t = torch.cat([model.forward_process(images[one], t, eps[one]) for t in times])
for name, _, out in watch(network, x_t, 1000 * torch.tensor(times) - 1, labels[one].expand(4)):
    if "resample" not in name and "conv" not in name:
        shown[name.replace("blocks.", "")] = F.interpolate(as_colours(out), size=(16, 16), mode="nearest")
with torch.no_grad():
    guess = model.denoise(x_t, torch.tensor(times), labels[one].expand(4)).x0
shown = {"x_t": x_t, **shown, "guess": guess}
plots.filmstrip(list(shown.values()), list(shown), rows=[f"t = {t}" for t in times], columns=len(shown), scale=4)

# %% [markdown]
# At full size on the way down (`down.0.0`) the noise is still there. At the bottom it hardly matters: the maps of 4 by 4, a rough plan of the picture, change little up to $t = 0.4$ and slowly after. On the way up the plan gets an outline from the skips. The last block looks like noise again, and should: this model predicts $v = \alpha\varepsilon - \sigma x_0$, which at small $t$ is nearly all noise.
#
# The gradients of the beginning can now be asked of a trained network. How far does it look, and does that depend on the noise? The number over each map is the share of the influence that comes from more than four pixels away.

# %%
seen = {}
for t in (0.05, 0.2, 0.5, 0.8, 0.95):
    x_t = model.forward_process(images[:64], t, eps[:64])
    values = influence(lambda x, t=t: model.denoise(x, t, labels[:64]).x0, x_t, 8, 8)
    seen[f"t = {t}: {beyond(values, 8, 8, 4):.0%}"] = values
plots.grid(shades(seen), titles=list(seen))

# %% [markdown]
# With little noise the network is a sharpening filter that looks at a pixel and its next neighbours. With much noise it averages over the whole picture, and half of what counts comes from more than four pixels away. The same weights do both.
#
# ## Where the weights are, and where the work is
#
# Now to a real size. `ddpm_cifar10` is the U-Net of the paper for 32 by 32 pixels. On the device `meta` tensors have shapes and no numbers, so a network of any size is built in no time, and its FLOPs can be counted all the same. The count of the released network comes out to the last weight.

# %%
with torch.device("meta"):
    cifar = minidiff.create_model("ddpm_cifar10").eval()
    large = minidiff.create_model("ddpm_lsun256")
    once_per_level = minidiff.create_model("ddpm_cifar10")
    for block in list(once_per_level.up[2]["blocks"])[:2]:  # the level of 16 x 16: leave one attention of three
        block.attention = nn.Identity()

def weights(part):
    return sum(parameter.numel() for parameter in part.parameters())

assert weights(cifar) == 35_746_307 and weights(large) == 113_673_219 and weights(once_per_level) == 35_218_947
print(f"ddpm_cifar10 {weights(cifar):,} weights, ddpm_lsun256 {weights(large):,}")
print(f"with one attention per level on the way up, as in another code base: {weights(once_per_level):,}")

# %% [markdown]
# The last line is one more silent convention: attention follows *every* block of its level. (Published weights of this network load by `minidiff.load_official("ddpm_cifar10", path)`; you need the file.)
#
# The counter of FLOPs also keeps a sum for each module. Add up by level, counting the middle to the lowest.

# %%
with FlopCounterMode(display=False) as counter, torch.no_grad():
    cifar(torch.empty(1, 3, 32, 32, device="meta"), torch.empty(1, device="meta"))
work = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
levels, table = ["32 x 32", "16 x 16", "8 x 8", "4 x 4"], torch.zeros(2, 4, dtype=torch.float64)
for name, part in pieces(cifar).items():
    place, number = name.split(".")[:2] if "." in name else (name, "0")
    level = {"down": int(number), "up": 3 - int(number), "middle": 3}.get(place, 0)
    table[:, level] += torch.tensor([weights(part), work[f"UNet.{name}"]])
assert table[0].sum() > 0.98 * weights(cifar) and table[1].sum() > 0.98 * counter.get_total_flops()
for level, (m, f) in zip(levels, (table / table.sum(dim=1, keepdim=True)).T):
    print(f"{level:8} {m:4.0%} of the weights, {f:4.0%} of the work")
display(plots.bars(levels, table[0] / 1e6, x="millions of weights"))
plots.bars(levels, table[1] / 1e9, x="GFLOP for one picture")

# %% [markdown]
# At the lowest level sit 34 % of the weights, and they do 3 % of the work. At the highest, 8 % of the weights do 37 %, and most work is done at 16 x 16. A weight of a convolution is used once per pixel, 1,024 times above and 16 times below. So widening the bottom is cheap in time, and every layer at the top is dear. Imagen's Efficient U-Net (Saharia et al. 2022) moves blocks to low resolutions for that reason.
#
# ## Take one part away
#
# What is each part for? Remove it from the trained emoji model and see what breaks. No retraining: hooks put zeros in the place of a skip, let an attention hand back what it got, or tell the network another time than the true one.

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
# Each change is measured alike: the loss of unseen emoji at nine noise levels, with the same noise for all, divided by the loss of the unchanged model. 1 means that the part is not missed.

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
# First the samples, all from the same noise with the same labels.

# %%
kinds = torch.arange(6 if run.tier != "smoke" else 2)
draws = dict(y=kinds, steps=20 if run.tier != "smoke" else 2, guidance=2.0, seed=1, progress=False)
usual, rows, drawn = losses(model), {}, {"unchanged": minidiff.sample(model, len(kinds), **draws)}
for name, change in changes.items():
    hooks = change(network)
    rows[name] = losses(model) / usual
    if name not in ("all skips", "all attention", "attention at 4 x 4"):
        drawn[name] = minidiff.sample(model, len(kinds), **draws)
    [hook.remove() for hook in hooks]
assert torch.equal(losses(model), usual)  # the model is whole again
plots.filmstrip(torch.stack(list(drawn.values()), dim=1), rows=list(drawn), scale=3)

# %% [markdown]
# The two halves of the job are torn apart. Without the skips at 16 x 16 the motifs are all there, drowned in noise: the plan arrives, the detail does not. Without attention at 8 x 8 it is the other way round, edges and texture without any colours to fill them. A network that is told a wrong time removes too much noise or too little, in every step again.
#
# Now the numbers. Rows are what was taken away, columns the noise level.

# %%
@plots.quiet
def ratios(rows, times):
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm
    figure, axes = plt.subplots(figsize=(6.4, 0.27 * len(rows) + 0.8))
    axes.imshow(torch.stack(list(rows.values())), norm=LogNorm(1, 10), cmap="Blues", aspect="auto")
    for k, values in enumerate(rows.values()):
        for j, value in enumerate(values.tolist()):
            color = "white" if value > 3 else "black"
            axes.text(j, k, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(times)), times)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_xlabel("t")
    axes.grid(visible=False)
    axes.set_title("loss / loss of the unchanged model")
    return figure

ratios(rows, times)

# %% [markdown]
# The skips at full size are worth a factor of ten at $t = 0.2$, and nothing at $t = 0.98$: where all is noise, there is no detail to hand over. The lowest skips and the two middle blocks are hardly missed anywhere. Attention matters on the map of 8 by 8, by a factor of four, and little on that of 4 by 4, where a convolution reaches almost everything anyway. A time frozen at 0.5 is right at $t = 0.5$, and three to five times worse at both ends.
#
# ## The same parts, never there
#
# There is a catch. A trained network has arranged itself around all of its parts. That it stumbles when you pull one out shows that it *leans* on the part, not that the part was *needed*. To learn that, train without it. Here are five small U-Nets on the same emoji, without labels: one complete, one complete with another seed, to see what chance does, and three with a part missing from the first step on. The same hooks do it; data, steps and size are equal.

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
small = {}
for name, (change, seed) in plans.items():
    history = minidiff.training.train(small_model(change, seed), emoji, seed=seed, **recipe)
    small[name] = history.ema
    print(f"{name:13} {weights(history.ema.network):,} weights   {history}")

x = torch.randn(2, 3, 16, 16, device=run.device)
with torch.no_grad():  # the averaged copy has kept the hook: it does not hear the time
    assert torch.equal(*[small["no time"].network(x, torch.full((1,), i, device=run.device)) for i in (9.0, 900.0)])

# %% [markdown]
# Look at their samples, and compare them by noise level, again as multiples of the loss of the complete network.

# %%
num, steps = (6, 25) if run.tier != "smoke" else (2, 2)
strips = [minidiff.sample(one, num, steps=steps, seed=0, progress=False).cpu() for one in small.values()]
display(plots.filmstrip(torch.stack(strips, dim=1), rows=list(small), scale=3))
scratch = {name: losses(one) for name, one in small.items()}
curves = {name: (times, values / scratch["complete"]) for name, values in scratch.items()}
plots.lines(curves, x="t", y="loss / loss of the complete one")

# %% [markdown]
# Without skips the samples are noise, and the loss is up to four times as high. One reason is plain arithmetic. At small $t$ the network must name the noise, 768 independent numbers, and through the bottom pass 32 maps of 4 by 4, which is 512. Noise cannot be compressed.
#
# The other two lines lie where nobody would put them after the last section. Put both experiments side by side. To be fair, take the parts from the complete small network as well.

# %%
removals = {"skips": "all skips", "attention": "all attention", "time": "time always 0.5"}
leaned, young, needed = {}, {}, {}  # taken from the shipped model, from the small one, never there
for part, row in removals.items():
    hooks = changes[row](small["complete"].network)
    young[part] = (losses(small["complete"]) / scratch["complete"]).mean().item()
    [hook.remove() for hook in hooks]
    leaned[part], needed[part] = rows[row].mean().item(), (scratch[f"no {part}"] / scratch["complete"]).mean().item()

@plots.quiet
def three_bars(series):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7.2, 2.9))
    for k, (name, values) in enumerate(series.items()):
        places = torch.arange(3) + 0.25 * (k - 1)
        axes.barh(places, [v - 1 for v in values.values()], 0.23, left=1, color=plots.COLORS[k], label=name)
        for place, value in zip(places, values.values()):
            axes.text(max(value, 1) + 0.05, place, f"{value:.2f}", va="center", fontsize=8.5)
    axes.set_yticks(range(3), list(removals))
    axes.set(xlabel="loss / loss of the complete network, mean over t", xlim=(0.9, 6.2))
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3)
    return figure

print(f"another seed: {(scratch['other seed'] / scratch['complete']).mean():.2f}")
three_bars({"taken from the shipped model": leaned, "taken from the small one": young, "never there": needed})

# %% [markdown]
# **Skips** are leaned on and needed. **Attention** is a matter of age: the shipped model leans on it heavily, the small one hardly, and a small one that never had it is just as good. In 600 steps there was no time to make use of it; what a long training would say, this experiment cannot tell.
#
# The **time** is the surprise. Freeze it, and both trained networks pay dearly. The one that never heard it loses 7 %, and its samples look no worse. The likely reason is that noise can be seen: 768 pixels are plenty to estimate how strong it is. A network that is told has no reason to learn to look. One that is not told learns it, and pays little. So the two experiments answer different questions. When you report one, say which.
#
# These are single, short runs of small networks on one data set, and another seed is the only hint at chance. Compare directions, not digits.
#
# ## What the papers found, what you measured

# %%
findings = [
    ("DDPM has 35.7 million weights on CIFAR-10 (Ho et al. 2020); the released network has 35,746,307",
     f"{weights(cifar):,}, and {weights(large):,} at 256 pixels"),
    ("The network called \"ddpm\" in the code of Song et al. 2021 is not the same: 35,218,947 weights",
     f"{weights(once_per_level):,} with attention once per level on the way up"),
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
# **1. Another house's time (a one-liner, nearly).** The networks of OpenAI's later diffusion code, ADM, and all that descend from them have their features the other way round: cosines first, and $\omega_k = 10000^{-k/h}$. Write them, so that those weights can be loaded.

# %% tags=["exercise"] name="adm_features"
def adm_features(time, dim):
    """time (B,) -> (B, dim), dim even: dim / 2 cosines, then dim / 2 sines."""
    ...  # your code

# %% [markdown]
# The check knows five wrong ways.

# %%
exercises.check_adm_features(adm_features)

# %% [markdown]
# **2. Padding, for any size.** TensorFlow's rule "SAME" makes a map of $n$ pixels into one of $\lceil n/2 \rceil$ at stride 2. It adds as many zeros as the kernel needs for that, half of them before and half after, and where the number is odd, the one left over goes *after*. Even sizes you know. Work out what odd ones need, and write a convolution of size 3 that is right for both. Rows and columns may differ.

# %% tags=["exercise"] name="downsample_same"
def downsample_same(x, weight, bias):
    """x (B, C, H, W), weight (D, C, 3, 3), bias (D,) -> (B, D, ceil(H / 2), ceil(W / 2))."""
    ...  # your code

# %% [markdown]
# The check tries even and odd sizes.

# %%
exercises.check_downsample_same(downsample_same)

# %% [markdown]
# **3. Who gets which skip?** Without building a network: given the width `ch` of the first level, the factors of all levels and the number of blocks on the way down, list for every block of the way up, in order, the width of what comes from below and the width of its skip. For the emoji model the answer begins `[(64, 64), (64, 64), (64, 64), (64, 32), ...]`.

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
# - A denoiser must see far when there is much noise and keep detail when there is little. Halving buys sight at a low price; skips keep the detail.
# - A U-Net is one residual block, repeated. The time is added inside each block, attention connects all pixels of small maps, and the skips are a stack: first in, last out.
# - Order of sines, divisor, eps, padding, order of a concatenation: none raises an error, most ruin the result.
# - The weights sit at the bottom, the work is done at the top.
# - Taking a part from a trained network tells what it leans on. Training without it tells what it needs. The answers can be opposite.
#
# ## Where to read on
#
# - Ho, Jain, Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv 2006.11239: appendix B describes this network.
# - Ronneberger, Fischer, Brox, *U-Net*, 2015, arXiv 1505.04597: where the shape comes from.
# - Luo, Li, Urtasun, Zemel, *Understanding the effective receptive field in deep convolutional neural networks*, 2016, arXiv 1701.04128: why the influence is a bell.
# - Sun, Jiang, Zhao, He, *Is noise conditioning necessary for denoising generative models?*, 2025, arXiv 2502.13129: your last surprise, at full size.
# - Dhariwal, Nichol, *Diffusion models beat GANs on image synthesis*, 2021, arXiv 2105.05233: the U-Net grown up. Bao et al., *All are worth words*, 2023, arXiv 2209.12152: skips without convolutions, for notebook 10.
#
# Next: [notebook 09](09_training_well.ipynb), *Training well and knowing it*.
