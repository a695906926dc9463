# %% [markdown]
# # 15 ASCEND: a strong encoder and a light decoder
#
# After this notebook you can build a diffusion backbone out of two halves of different kinds, and ask each half what it is for.
#
# Run time: about three minutes on a CPU with two idle cores, most of it training three small networks; expect as long on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - build a small ASCEND by hand and get the package's numbers,
# - count what encoder and decoder cost,
# - take apart an experiment on encoder and decoder: two effects and their interaction,
# - watch a U-Net, IU-ViT and ASCEND learn, side by side,
# - ask every layer what it knows, and silence the skips,
# - compare patch merging with convolutions, and count the text models.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Two jobs
#
# The U-Net of [notebook 08](08_the_u_net.ipynb) looks symmetric: what goes down comes up, and both ways are made of the same blocks. Should they be? On the way down the network has to find out what is in a noisy picture. On the way up it only has to write down, at full size, what was found.
#
# A *masked autoencoder* has unequal halves. It hides most patches of a picture, lets a large transformer understand the rest, and gives the result to a small decoder that paints what was hidden.
#
# **ASCEND** (arXiv 2212.13771, the paper that also brought IU-ViT) carries the argument over to diffusion. Its encoder is a Swin transformer, strong and hierarchical. Its decoder is made of the U-Net's residual blocks, convolutions alone. At each resolution skips hand the encoder's maps to the decoder. And the choices are independent: any encoder could go with any decoder.
#
# Here is the small one that you will build, with the channels and sides of its maps. At the bottom the map goes two ways: by a skip, and through the *middle*, which belongs to neither half.

# %%
import torch
import torch.nn.functional as F

WIDTHS, SIZES = (24, 48, 48), (16, 8, 4)

@plots.quiet
def draw_ascend():
    import matplotlib.pyplot as plt
    figure, ax = plt.subplots(figsize=(8.6, 3.2))
    line = dict(arrowstyle="-|>", color="grey", linewidth=1.3)
    for k, (width, size) in enumerate(zip(WIDTHS, SIZES)):
        x, y = 3.4 - k, -k
        for at, kind, color in ((-x, "a pair of Swin blocks", "#F3C267"), (x, "two residual blocks", "#A9D3EE")):
            ax.text(at, y, f"{kind}\n{width} x {size} x {size}", ha="center", va="center", fontsize=8.5,
                    bbox=dict(boxstyle="square,pad=0.5", facecolor=color, edgecolor="grey"))
        ax.annotate("", (x - 0.75, y), (0.75 - x, y), arrowprops=line | dict(linestyle="--"))
        ax.text(0, y + 0.25, "skips", ha="center", fontsize=8.5, color="grey")
        if k < 2:
            ax.annotate("merge", (1 - x, y - 0.75), (-x - 0.1, y - 0.27), va="top", fontsize=8.5, arrowprops=line)
            ax.annotate("expand", (x, y - 0.27), (x - 1, y - 0.75), va="bottom", fontsize=8.5, arrowprops=line)
    ax.text(0, -2, "middle", ha="center", va="center", fontsize=8.5, bbox=dict(facecolor="#E4E4E4", edgecolor="grey"))
    ax.set(xlim=(-4.4, 4.4), ylim=(-2.4, 0.4), xticks=[], yticks=[], frame_on=False)
    return figure
draw_ascend()

# %% [markdown]
# No code or weights of ASCEND were published, and only fragments of the paper's tables are known. What is known: the kinds of the two halves, pairs of window attention without and with a shift, heads of 64 channels, a skip at every resolution, the cosine schedule with 1000 steps, an FID of 2.98 on CIFAR-10, and a text model of about 590 million weights with five levels. Widths, numbers of blocks, how the time gets in: decided in this course, and called *ours*.
#
# ## Windows
#
# [Notebook 14](14_swin_and_hit.ipynb) is about windows. In short: attention among all pixels costs the square of their number. So cut the map into **windows** of $w \times w$ and let each attend only within itself: then the price grows with the number of pixels, as for a convolution. The next block **shifts** all windows by half their side, so that pixels that a border kept apart now meet. The shift is cyclic: what leaves on the left comes back on the right. So some windows hold strips from opposite ends of the picture, and a **mask** forbids these to see each other.

# %%
from minidiff.backbones.swin import join_windows, shift_mask, split_windows

data = minidiff.load_dataset("emoji", size=16)
held_out = minidiff.load_dataset("emoji", size=16, split="test")

@plots.quiet
def draw_windows(picture):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 4, figsize=(9.2, 2.6))
    shown = (picture.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)
    partners = shift_mask((16, 16), (4, 4), (2, 2)).eq(0).sum(2, keepdim=True).float()  # (windows, N, 1)
    partners = join_windows(partners, (4, 4), 16, 16)[0, :, :, 0]
    panels = {"windows": (shown, 0), "shifted": (shown, 2), "as computed": (shown.roll((-2, -2), (0, 1)), 0),
              "partners of each pixel": (partners, 0)}
    for ax, (title, (image, first)) in zip(axes, panels.items()):
        ax.imshow(image, interpolation="nearest", cmap="Blues", vmin=0, vmax=32)
        for k in range(first, 17, 4):
            ax.axhline(k - 0.5, color="#0072B2", linewidth=1.3)
            ax.axvline(k - 0.5, color="#0072B2", linewidth=1.3)
        ax.set(title=title, xticks=[], yticks=[], xlim=(-0.6, 15.6), ylim=(15.6, -0.6))
        ax.grid(False)
    for row, column in ((5, 5), (12, 5), (14, 5), (5, 12), (5, 14), (12, 12), (14, 14), (12, 14), (14, 12)):
        axes[3].text(column + 0.5, row + 0.5, int(partners[row, column]), ha="center", va="center", fontsize=8)
    return figure
draw_windows(held_out.images()[held_out.labels == 7][3])

# %% [markdown]
# The third panel is what the machine works on: the picture rolled by two pixels, cut as before. The last panel counts, from the masks, whom each pixel may ask (itself included). In an inner window that is all 16. In the corner, where four ends of the picture meet, it is four.
#
# ## Built by hand
#
# Take the package's small ASCEND, `p`, for its weights, and fill the many zeros of a fresh one with random numbers, or most branches would be invisible.
#
# ### The encoder's unit
#
# Within a window each head adds a learned number to the logit of every pair of tokens. The number depends only on how far apart the two are, in rows and columns. `p.index` says which number of the table belongs to which pair. The mask is $-100$ where two must not meet, so the softmax gives next to nothing there.

# %%
torch.manual_seed(0)
p = minidiff.create_model("ascend_tiny")
with torch.no_grad():
    [weight.normal_(std=0.1) for weight in p.parameters() if not weight.any()]


def window_attention(x, p):
    """x (B, H, W, c) -> the same."""
    size = x.shape[1:3]
    windows = split_windows(x.roll((-p.shift[0], -p.shift[1]), (1, 2)), p.window)  # (B * windows, N, c)
    q, k, v = (part.unflatten(2, (p.num_heads, -1)).transpose(1, 2) for part in p.qkv(windows).chunk(3, dim=2))
    logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + p.relative_position_bias_table[p.index].permute(2, 0, 1)
    mask = shift_mask(size, p.window, p.shift)[:, None]  # (windows, 1, N, N)
    weights = (logits.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1).softmax(dim=-1)
    windows = p.proj((weights @ v).transpose(1, 2).flatten(2))
    return join_windows(windows, p.window, *size).roll(p.shift, (1, 2))


h = torch.randn(2, 16, 16, 24)
with torch.no_grad():
    for block in p.encoder[0]["units"][0].blocks:
        mine, theirs = window_attention(h, block.attn), block.attn(h)
        print(f"shift {block.attn.shift}: largest difference {(mine - theirs).abs().max():.0e}")
        assert torch.allclose(mine, theirs, atol=1e-4)

# %% [markdown]
# Attention, then an MLP, each behind a layer norm: a transformer block. The time comes in as in [DiT](12_dit.ipynb), as a shift and a scale of both norms, which are zero before training. (That is ours. The paper's way is lost.) A **unit** of the encoder is two such blocks, the second one shifted.

# %%
def swin_block(x, emb, p):
    shift1, scale1, shift2, scale2 = p.modulation(emb)[:, None, None].chunk(4, dim=3)
    x = x + window_attention(p.norm1(x) * (1 + scale1) + shift1, p.attn)
    return x + p.mlp(p.norm2(x) * (1 + scale2) + shift2)


def pair(x, emb, p):
    """A map (B, c, H, W) -> the same."""
    x = x.permute(0, 2, 3, 1)
    for block in p.blocks:
        x = swin_block(x, emb, block)
    return x.permute(0, 3, 1, 2)


x, time, h = torch.randn(2, 3, 16, 16), torch.tensor([30.0, 800.0]), torch.randn(2, 24, 16, 16)
with torch.no_grad():
    emb = F.silu(p.time_embed(time, x.dtype))  # what every block is told, (B, 96)
    assert torch.allclose(pair(h, emb, p.encoder[0]["units"][0]), p.encoder[0]["units"][0](h, emb), atol=1e-4)
print("a unit of the encoder: equal")

# %% [markdown]
# ### Between the levels
#
# **Patch merging** halves the map: the channels of four neighbours are put into one vector, normed, and mapped to the new width. **Patch expanding** goes back: one linear map makes four vectors of each, which become four neighbours and are normed. Swin goes down the first column, then the second; expanding goes along the rows.

# %%
def merge(x, p):
    corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # down the columns
    four = torch.cat(corners, dim=1).permute(0, 2, 3, 1)
    return p.reduction(p.norm(four)).permute(0, 3, 1, 2)


def expand(x, p):
    four = p.expand(x.permute(0, 2, 3, 1)).chunk(4, dim=3)
    large = x.new_empty(len(x), 2 * x.shape[2], 2 * x.shape[3], four[0].shape[3])
    for k, part in enumerate(four):
        large[:, k // 2 :: 2, k % 2 :: 2] = part  # along the rows
    return p.norm(large).permute(0, 3, 1, 2)


low = torch.randn(2, 48, 8, 8)
with torch.no_grad():
    down, up = p.encoder[0]["down"], p.decoder[1]["up"]
    assert torch.allclose(merge(h, down), down(h), atol=1e-5)
    assert torch.allclose(expand(low, up), up(low), atol=1e-5)
print("down:", tuple(merge(h, down).shape), " up:", tuple(expand(low, up).shape))

# %% [markdown]
# ### The decoder's unit
#
# The residual block of ADM, a grown-up relative of notebook 08's: norm, SiLU, convolution, twice. The second norm is scaled and shifted by the time. Nothing attends. Only the middle has one attention over its whole small map: that is the function's last line.

# %%
def residual(x, emb, p):
    h = p.conv1(F.silu(p.norm1(x)))
    scale, shift = p.emb(emb)[:, :, None, None].chunk(2, dim=1)
    h = p.conv2(F.silu(p.norm2(h) * (1 + scale) + shift))
    h = p.shortcut(x) + h
    return h if p.attention is None else p.attention(h)


unit = p.decoder[2]["units"][0]
two = torch.randn(2, 48, 16, 16)  # 24 channels from below, 24 from a skip
with torch.no_grad():
    assert torch.allclose(residual(two, emb, unit.block), unit(two, emb), atol=1e-4)
print("a unit of the decoder:", tuple(two.shape), "->", tuple(unit(two, emb).shape))

# %% [markdown]
# ### The whole
#
# On the way down every map is kept: that of the first convolution, of each unit, of each merge. On the way up each unit takes the one that was kept last. So a level of the encoder with $n$ units feeds $n + 1$ in the decoder.

# %%
def ascend(x, time, p):
    emb = F.silu(p.time_embed(time, x.dtype))
    h = p.conv_in(x)
    kept = [h]
    for stage in p.encoder:
        for unit in stage["units"]:
            h = pair(h, emb, unit)
            kept.append(h)
        if "down" in stage:
            h = merge(h, stage["down"])
            kept.append(h)
    for unit in p.middle:
        h = residual(h, emb, unit.block)
    for stage in p.decoder:
        for unit in stage["units"]:
            h = residual(torch.cat([h, kept.pop()], dim=1), emb, unit.block)
        if "up" in stage:
            h = expand(h, stage["up"])
    return p.conv_out(F.silu(p.norm_out(h)))


with torch.no_grad():
    mine, theirs = ascend(x, time, p), p(x, time)
print(f"largest difference {(mine - theirs).abs().max():.0e}, the outputs have standard deviation {theirs.std():.2f}")
assert torch.allclose(mine, theirs, atol=1e-4)

# %% [markdown]
# ## What does each half cost?
#
# Where are the weights, and where is the work? Count on the *meta* device, where tensors have shapes and no memory. The second line of each model has a residual encoder in its place, for comparison. It is ADM's, so it is not free of attention: at some sizes (8 and 4 in the tiny model, but not 16) each of its blocks also attends over the whole map.

# %%
from IPython.display import Markdown

from minidiff.layers import Text

def cost(name, **options):
    """(millions of weights, GFLOPs) of encoder, middle, decoder and the whole."""
    with torch.device("meta"):
        net = minidiff.create_model(name, **options)
        words = Text(torch.zeros(1, 256, 1024), torch.ones(1, 256, dtype=torch.bool), torch.zeros(1, 1024))
    known = minidiff.summary(net, y=words if net.text_dim else None)
    rows = {row.name: row for row in known.rows}
    parts = [(rows[part].parameters / 1e6, rows[part].flops / 1e9) for part in ("encoder", "middle", "decoder")]
    return parts + [(known.parameters / 1e6, known.flops / 1e9)]

models = ["ascend_tiny", "ascend_cifar10", "ascend_t2i_64", "ascend_t2i_128"]
costs = {(name, kind): cost(name, encoder=kind) for name in models for kind in ("swin", "residual")}
for name, aim in (("ascend_t2i_64", 300), ("ascend_t2i_128", 590)):
    assert abs(costs[name, "swin"][3][0] / aim - 1) < 0.02
lines = ["| model | encoder | M weights: encoder | middle | decoder | all | GFLOPs: encoder | middle | decoder | all |",
         "|---|---|" + "---:|" * 8]
for (name, kind), parts in costs.items():
    cells = [f"{part[k]:.3g}" for k in (0, 1) for part in parts]
    lines.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
Markdown("\n".join(lines))

# %% [markdown]
# The same as shares of the whole. (What is missing to 1 is the first and the last layer, and those of time and text.)

# %%
@plots.quiet
def draw_costs(costs):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 2.5), sharey=True)
    for k, (ax, title) in enumerate(zip(axes, ("share of the weights", "share of the work"))):
        for row, name in enumerate(models):
            parts, start = costs[name, "swin"], 0
            for part, label, color in zip(parts, ("encoder", "middle", "decoder"), ("#F3C267", "#E4E4E4", "#A9D3EE")):
                share = part[k] / parts[3][k]
                ax.barh(row, share, left=start, color=color, label=label if not row else None)
                if share > 0.1:
                    ax.text(start + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=8.5)
                start += share
        ax.set(title=title, xlim=(0, 1), yticks=range(len(models)))
        ax.set_yticklabels(models)
        ax.invert_yaxis() if not k else None
        ax.grid(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure

assert all(parts[2][k] > parts[0][k] for (_, kind), parts in costs.items() for k in (0, 1))
draw_costs(costs)

# %% [markdown]
# In all our models the "light" decoder has *more* weights than the encoder, and does more work. Three reasons. It has a unit more in each level. Each unit reads twice the channels, because of its skip. And a 3 by 3 convolution has nine weights where a linear map has one. A residual unit of width $c$ with a skip of the same width takes $(18 + 9 + 2)\,c^2 = 29\,c^2$ for its two convolutions and its shortcut. A pair of Swin blocks takes $2\,(3 + 1 + 8)\,c^2 = 24\,c^2$ for queries, keys and values, the projection and the MLP, twice.
#
# So light must mean something else, at least in ours: light in *kind*. Nothing in the decoder attends or listens to a text. Whether the paper's was also light in weight, its lost table would tell. Exercise 3 makes one that is lighter than its encoder.
#
# ## Encoder times decoder
#
# The idea makes two claims. A Swin encoder is better than a residual one. And the choices are independent: which encoder is better should not depend on the decoder. The paper had runs on CIFAR-10, for 120,000 steps each: residual blocks on both sides, Swin with a residual decoder, probably the reverse. Its numbers are lost.
#
# Ours are the small network on emoji of 16 pixels, with equal data, order, noise and recipe: 600 steps of 64 (`python tools/ablation.py ascend --tier cpu`). The loss is on held-out pictures.

# %%
from minidiff.course.recorded import recorded

def runs_of(experiment):
    try:
        return recorded(experiment, "cpu")
    except FileNotFoundError:
        print(f"nothing recorded of {experiment}: python tools/ablation.py {experiment} --tier cpu")
        return {}

records = runs_of("ascend")
four = [f"{encoder}-{decoder}" for encoder in ("swin", "residual") for decoder in ("residual", "swin")]
loss = {name: record["held_out"]["mean"] for name, record in records.items()}
lines = ["| encoder-decoder | weights | MFLOPs | held-out loss | Fréchet distance |", "|---|" + "---:|" * 4]
for name in four:
    if name in records:
        size, far = records[name]["model"], records[name]["distances"]["frechet"]["value"]
        lines.append(f"| {name} | {size['parameters']:,} | {size['flops'] / 1e6:.1f} | {loss[name]:.4f} | {far:.2f} |")
print("not recorded yet:", ", ".join(name for name in four if name not in records) or "none missing")
Markdown("\n".join(lines))

# %% [markdown]
# The four are not equal in size. A table of two by two says three things. Write $L_{ed}$ for the loss with encoder $e$ and decoder $d$, where $S$ is Swin and $R$ residual. The effect of the encoder, averaged over the decoders, and that of the decoder, averaged over the encoders, are
#
# $$E = \tfrac12\big[(L_{SR} - L_{RR}) + (L_{SS} - L_{RS})\big], \qquad D = \tfrac12\big[(L_{RS} - L_{RR}) + (L_{SS} - L_{SR})\big],$$
#
# and the **interaction** says whether the one depends on the other: $I = (L_{SS} - L_{RS}) - (L_{SR} - L_{RR})$. Independent means $I = 0$. A negative $E$ favours the Swin encoder. None of it means anything unless it is larger than luck, which you know from pairs of runs that differ in their seed alone. If the luck of single runs has the spread $s$ and is independent, such a pair differs by $\sqrt2\,s$, $E$ and $D$ spread by $s$ and $I$ by $2s$. So the interaction is the hardest to see.

# %%
def luck(experiments=("uvit", "iuvit", "dit", "diffit", "ascend")):
    """Relative differences of the held-out loss between runs that differ in their seed alone."""
    found = []
    for experiment in experiments:
        try:
            runs = recorded(experiment, "cpu")
        except FileNotFoundError:
            continue
        means = {name: record["held_out"]["mean"] for name, record in runs.items()}
        found += [abs(means[name] / means[name.split("-seed")[0]] - 1) for name in means if "-seed" in name]
    return found

effects, seeds = {}, luck()
if set(four) <= set(loss):
    sr, ss, rr, rs = (loss[name] for name in four)
    values = ((sr - rr + ss - rs) / 2, (rs - rr + ss - sr) / 2, ss - rs - sr + rr)
    effects = dict(zip(("Swin encoder", "Swin decoder", "interaction"), [100 * v / rr for v in values]))
    for name, value in effects.items():
        print(f"{name}: {value:+.1f} % of the loss of residual-residual")
print(f"another seed: {100 * max(seeds):.1f} % at most, of {len(seeds)}" if seeds else "no run has a second seed")
plots.bars(list(effects), list(effects.values()), x="change of the held-out loss, %") if effects else None

# %% [markdown]
# Hold the three against the last line, the largest difference within a pair of seeds. (The pairs may be of other networks: take it as a rough scale.) A first number that is negative and larger than luck agrees with the paper. A positive one beyond luck contradicts it. One within luck decides nothing, and need not surprise: the residual encoder attends too, and at 16 pixels a few convolutions see most of the map. A positive second number beyond luck says that the lighter *kind* of decoder is also the better one. The second claim is about the third number: an interaction beyond luck, and as large as an effect, means that you cannot choose one half without knowing the other.
#
# Where in the noise do they differ? And what do they draw?

# %%
shown = [name for name in four if name in records]
if shown:
    base = records[shown[-1] if "residual-residual" not in shown else "residual-residual"]
    curves = {name: (base["held_out"]["times"],
                     [a / b for a, b in zip(records[name]["held_out"]["losses"], base["held_out"]["losses"])])
              for name in shown if records[name] is not base}
    if curves:
        display(plots.lines(curves, x="t", y=f"loss / that of {base['run']}"))
    display(plots.filmstrip(torch.stack([records[name]["samples"][:10] for name in shown], dim=1), rows=shown))

# %% [markdown]
# At small $t$ the answer is mostly noise, to be passed on pixel by pixel; at large $t$ it is a guess of the whole picture. If attention helps to understand, it should show at large $t$.
#
# A step of each costs a different time. Measure it, with a batch of 16.

# %%
import time as clock

tick = clock.process_time if run.device.type == "cpu" else clock.perf_counter  # a busy CPU does not count

def seconds(name, repeat=3, **options):
    """The fastest of `repeat` training steps."""
    net = minidiff.create_model(name, **options).to(run.device)
    model, batch = minidiff.Diffusion(net, minidiff.schedules.cosine(), "v", shape=(3, 16, 16)), data.images()[:16]
    best = float("inf")
    for _ in range(repeat + 1):
        start = tick()
        model.loss(batch.to(run.device)).mean().backward()
        torch.cuda.synchronize() if run.device.type == "cuda" else None
        best = min(best, tick() - start)
    return best

repeat = 5 if run.tier != "smoke" else 1
speed = {name: seconds("ascend_tiny", repeat, encoder=name.split("-")[0], decoder=name.split("-")[1]) for name in four}
plots.bars(four, [1000 * value for value in speed.values()], x="milliseconds a step", best="low")

# %% [markdown]
# Work is not time. The four do nearly the same number of operations, but a Swin pair is made of many small steps: norms, rolls, reshapes, four linear maps a block.
#
# ## Three families, side by side
#
# Three kinds of backbone: the U-Net, [IU-ViT](11_iu_vit.ipynb), a transformer with long skips and a little convolution, and ASCEND. Like the paper, lay samples from early in the training side by side, at the same steps. All three have about 0.7 million weights, the same data in the same order, the same noise, the same recipe.

# %%
FAMILIES = {"U-Net": "ddpm_tiny", "IU-ViT": "iuvit_tiny", "ASCEND": "ascend_tiny"}

def new(name):
    torch.manual_seed(0)
    net = minidiff.create_model(name, num_classes=len(data.classes))
    return minidiff.Diffusion(net.to(run.device), minidiff.schedules.cosine(), "v", shape=(3, 16, 16))

recipe = dict(batch_size=64 if run.tier != "smoke" else 8, lr=2e-3, warmup=20, ema=0.97, p_uncond=0.1, progress=False)
steps = budget("each of three families", smoke=3, cpu=150, gpu=3000, seconds_per_step=0.3)
marks = sorted({max(1, round(steps * part)) for part in (1 / 6, 1 / 3, 2 / 3, 1)})
kinds = torch.tensor([1, 3, 4, 5, 6, 7, 8, 9])
unseen = slice(0, 96 if run.tier != "smoke" else 8)
x0, y0 = held_out.images()[unseen].to(run.device), held_out.labels[unseen].to(run.device)
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(run.device)
levels = (0.1, 0.3, 0.5, 0.7, 0.9)

@torch.no_grad()
def judged(model, y=y0):
    """The loss of unseen pictures at each of the five levels (5,), the same noise for every model."""
    each = [model.loss(x0, y, t=torch.full((len(x0),), t, device=run.device), eps=noise) for t in levels]
    return torch.stack(each).mean(dim=1).cpu()

# %% [markdown]
# At four moments of the training the averaged weights are judged on unseen pictures, and draw eight of their own, one column for each class, from the same noise.

# %%
draws = dict(y=kinds, sampler="dpmpp_2m", steps=20 if run.tier != "smoke" else 2, seed=3, progress=False)
early, tested, spent = {}, {}, {}

def grow(family, name):
    watch = {"busy": 0.0, "since": tick()}

    def look(step, history):
        watch["busy"] += tick() - watch["since"]
        if step in marks:
            early[family, step] = minidiff.sample(history.ema, len(kinds), **draws).cpu()
            tested[family, step], spent[family, step] = judged(history.ema), watch["busy"]
        watch["since"] = tick()

    return minidiff.training.train(new(name), data, steps=steps, on_step=look, **recipe).ema

grown = {family: grow(family, name) for family, name in FAMILIES.items()}
for family, model in grown.items():
    weights = sum(w.numel() for w in model.parameters())
    print(f"{family}: {weights:,} weights, {spent[family, steps]:.0f} s, loss {tested[family, steps].mean():.4f}")
for step in marks:
    heads = [data.classes[k].split()[0] for k in kinds] if step == marks[0] else None
    frames = torch.stack([early[family, step] for family in FAMILIES], dim=1)
    display(plots.filmstrip(frames, heads, rows=[f"{family}, {step}" for family in FAMILIES]))

# %% [markdown]
# See what each learns first. Shapes on dirty ground: it has a plan, and cannot clean up yet. Pictures of small squares: it has not joined its patches. Now the numbers, at the same step and at the same time spent in computing.

# %%
curves = {family: (marks, [tested[family, step].mean() for step in marks]) for family in FAMILIES}
display(plots.lines(curves, x="step", y="held-out loss", log="y"))
curves = {family: ([spent[family, step] for step in marks], [tested[family, step].mean() for step in marks])
          for family in FAMILIES}
plots.lines(curves, x="seconds of computing, here", y="held-out loss", log="y")

# %% [markdown]
# Neither figure tells who will lead after the 120,000 steps of the paper. These are comparisons of *starts*, with one seed and one learning rate for all, which suits some better than others.
#
# ## Does the encoder understand?
#
# Can that be tested? Give the trained ASCEND noisy emoji, as much noise as signal, and do *not* tell it the class. After each unit take mean and spread of every channel, and fit a linear reader that tells the ten classes from these numbers. How often it is right on unseen emoji says how plainly the class stands there. The same reader on the untrained network tells what training added.

# %%
def units(net):
    """{place: unit}: conv_in, E of the encoder and its map's side, M of the middle, D of the decoder."""
    named = {"conv": net.conv_in} | {f"E{size}": stage["units"][0] for size, stage in zip(SIZES, net.encoder)}
    named |= {f"M{'ab'[k]}": unit for k, unit in enumerate(net.middle)}
    return named | {f"D{size}{'ab'[k]}": unit for size, stage in zip(SIZES[::-1], net.decoder)
                    for k, unit in enumerate(stage["units"])}

def reduced(maps):
    return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], dim=1).cpu()  # (N, 2 c)

@torch.no_grad()
def read_maps(model, images, t):
    """{place: (N, numbers)} of noisy images whose class is not told."""
    seen, net = {}, model.network
    hooks = [unit.register_forward_hook(lambda _, __, out, name=name: seen.update(
        {name: reduced(out)})) for name, unit in units(net).items()]
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    x_t = model.forward_process(images, t, eps).to(run.device)
    model.denoise(x_t, t, net.null(torch.zeros(len(images), dtype=torch.int64, device=run.device)))
    [hook.remove() for hook in hooks]
    return {"pixels": reduced(x_t)} | seen

# %% [markdown]
# The reader is ridge regression to rows with a 1 at the class.

# %%
def right(train_x, train_y, test_x, test_y, penalty=0.01):
    """How often a linear reader, fitted to the first pair, is right on the second."""
    middle, scale = train_x.mean(0), train_x.std(0) + 1e-4
    a, b = ((part - middle) / scale for part in (train_x, test_x))
    a, b = F.pad(a, (0, 1), value=1.0).double(), F.pad(b, (0, 1), value=1.0).double()
    target = F.one_hot(train_y, len(data.classes)).double()
    w = torch.linalg.solve(a.T @ a + penalty * len(a) * torch.eye(a.shape[1]), a.T @ target)
    return ((b @ w).argmax(1) == test_y).double().mean().item()

some = torch.arange(0, len(data), 2 if run.tier != "smoke" else 100)
known = {}
for kind, model in (("trained", grown["ASCEND"]), ("untrained", new("ascend_tiny"))):
    fit, test = (read_maps(model, images, 0.5) for images in (data.images()[some], held_out.images()))
    scores = [right(fit[name], data.labels[some], test[name], held_out.labels) for name in fit]
    known[kind] = (range(len(fit)), scores)
figure = plots.lines(known, x="after the unit", y="right, of 372 unseen")
figure.axes[0].set_xticks(range(len(fit)), list(fit), fontsize=8)
most = held_out.labels.bincount().max().item() / len(held_out)
print(f"always naming the commonest class: {most:.0%} right")
figure

# %% [markdown]
# E8 is the encoder's unit on the map of 8 by 8, M the middle, D8a and D8b the decoder's two at that size. The story of the paper would be a curve that rises through E and falls through D, and does so more than before the training. Does the gap between trained and untrained open inside E, or only later? Be careful before you believe or reject the story. The training was very short, and a share of 372 emoji has a standard error of up to 2.6 %. The finest maps have 24 channels, the others 48, so compare the curves at one place, not one curve at two.
#
# ## What the skips carry
#
# The decoder hears the encoder through the bottom, a map of 4 by 4, and through the skips. Notebook 08 silenced the skips of a U-Net. Do it here, level by level: a hook puts zeros in the place of the skip, just before a unit of the decoder reads it. The pictures show what the network then guesses of one unseen smiley, at five noise levels.

# %%
def silence(net, sizes):
    """Zeros in place of the skips into the decoder's units at maps of these sizes; returns the hooks."""
    def mute(unit, args):
        h, skip = args[0].chunk(2, dim=1)  # from below, from the encoder
        return torch.cat([h, torch.zeros_like(skip)], dim=1), *args[1:]
    return [unit.register_forward_pre_hook(mute) for size, stage in zip(SIZES[::-1], net.decoder) if size in sizes
            for unit in stage["units"]]

trained = grown["ASCEND"]
smiley = held_out.images()[held_out.labels == 7][3:4].to(run.device)
seven, eps = torch.tensor([7], device=run.device), minidiff.seeded_noise([3])(smiley)
usual, missed, guesses = judged(trained), {}, {}
for name, sizes in {"none": (), "4 x 4": (4,), "8 x 8": (8,), "16 x 16": (16,), "all": SIZES}.items():
    hooks = silence(trained.network, sizes)
    missed[name] = judged(trained) / usual
    with torch.no_grad():
        noisy = [trained.forward_process(smiley, t, eps) for t in levels]
        guesses[name] = torch.cat([trained.denoise(x_t, t, seven).x0 for x_t, t in zip(noisy, levels)]).cpu()
    [hook.remove() for hook in hooks]
assert torch.allclose(judged(trained), usual)
curves = {f"silent: {name}": (levels, ratio) for name, ratio in missed.items() if name != "none"}
display(plots.lines(curves, x="t", y="loss / usual loss", log="y"))
frames = torch.stack([torch.cat(noisy).cpu(), *guesses.values()], dim=1)  # (level, row, 3, 16, 16)
plots.filmstrip(frames, list(levels), rows=["noisy", *(f"silent: {name}" for name in guesses)], scale=5)

# %% [markdown]
# Where the guess looks as noisy as the picture above it, the network has failed to name the noise. Its answer is $\hat v$, and the guess $\alpha x_t - \sigma \hat v$: what $\hat v$ leaves out stays in.
#
# How much could go through the bottom? It is 48 maps of 4 by 4, 768 numbers, exactly as many as the picture has. So arithmetic alone does not forbid a network without skips, as it did in notebook 08. But filled with a copy of the pixels it has no room for what was understood.
#
# A network that never had skips can arrange itself otherwise. The paper reports that leaving them out hurts; the figures are lost. Here is a recorded run.

# %%
def beside(other, base="swin-residual"):
    """What a recorded run has beside the standard ASCEND, in a line; None if one of the two is missing."""
    if not {other, base} <= set(records):
        print("not recorded yet:", ", ".join({other, base} - set(records)))
        return None
    change, size = loss[other] / loss[base], [records[name]["model"]["parameters"] for name in (base, other)]
    return f"{change:.2f} x the loss, {size[1] / size[0]:.2f} x the weights"

print("no skips:", beside("no-skips"))
if beside("no-skips"):
    one, two = (records[name]["held_out"] for name in ("swin-residual", "no-skips"))
    ratio = [b / a for a, b in zip(one["losses"], two["losses"])]
    curves = {"never had skips (600 steps)": (one["times"], ratio), "silenced (above)": (levels, missed["all"])}
    display(plots.lines(curves, x="t", y="loss / loss with skips", log="y"))

# %% [markdown]
# Silencing says how much a trained decoder leans on its skips. Training without says how much a network needs them: it can use its bottom instead, as far as there is room. (Its decoder reads half the channels, so it has fewer weights, too.)
#
# ## Merging or convolving
#
# Between two levels the package offers patch merging and expanding, or convolutions (`resample="conv"`): stride 2 on the way down, on the way up doubled pixels and a convolution. To see the difference, change one pixel, send it down and up again through untrained layers.

# %%
from minidiff.backbones.ascend import ConvDown, ConvUp, PatchExpand, PatchMerge

def footprint(down, up, row, column):
    torch.manual_seed(0)
    there_and_back = torch.nn.Sequential(down(24, 48), up(48, 24))
    base = torch.randn(32, 24, 16, 16)
    other = base.clone()
    other[:, :, row, column] += 1
    with torch.no_grad():
        return (there_and_back(other) - there_and_back(base)).abs().mean((0, 1))

pairs_of = {"merge, expand": (PatchMerge, PatchExpand), "convolutions": (ConvDown, ConvUp)}
prints = {f"{name}: pixel ({k}, {k})": footprint(*layers, k, k) for name, layers in pairs_of.items() for k in (6, 7, 8)}
assert all((spot > 0).sum() == 4 for name, spot in prints.items() if "merge" in name)
plain, with_conv = costs["ascend_tiny", "swin"][3], cost("ascend_tiny", resample="conv")[3]
print(f"weights: merging {plain[0]:.3f} M, convolutions {with_conv[0]:.3f} M; "
      f"work: {1000 * plain[1]:.1f} and {1000 * with_conv[1]:.1f} MFLOPs")
print("trained, convolutions in place of merging:", beside("conv-resampling"))
shade = [1 - 2 * (spot / spot.max())[None] for spot in prints.values()]
plots.grid(torch.stack(shade), columns=6, titles=list(prints), scale=8)

# %% [markdown]
# Merging keeps strictly to its squares of 2 by 2: pixels 6 and 7 touch the same four, 7 and 8 have none in common, though they are neighbours. Something else has to join the squares: the shifted windows, the decoder's convolutions. Convolutions overlap, and cost more. The paper found similar results for both.
#
# ## The sizes for text
#
# The largest ASCEND is for text: 128 pixels in one stage, from T5-XXL embeddings, with about 590 million weights. The package has it, and one for 64 pixels that aims at 300 million, the size of IU-ViT for text. The table of costs has them, within 2 % of both. That is weak evidence: several choices of width and depth come near 590.
#
# | from the paper | ours |
# |---|---|
# | Swin encoder, residual decoder, skips at every resolution | how many blocks, and one more in each level of the decoder, as in ADM |
# | two window attentions a block, the second shifted | windows of 8 (4 in the tiny one), MLP ratio 4 |
# | heads of 64 channels (12 in the tiny one); multipliers 1, 2, 3, 4, 4 for 128 pixels | base widths, the multipliers of all others |
# | text of 256 tokens, 1024 channels, from T5-XXL | cross-attention in the encoder and the middle alone; the pooled text is added to the time |
# | cosine schedule, 1000 steps | time as shift and scale of the norms, from zero in the Swin blocks |
#
# ## What the paper found, what you measured

# %%
def say(name):
    return f"{effects[name]:+.1f} % of the loss" if effects else "not all recorded yet"

light = costs["ascend_tiny", "swin"][2]
last = {family: tested[family, steps].mean().item() for family in FAMILIES}
findings = [
    ("A Swin encoder with a residual decoder is a good pairing (CIFAR-10, 120,000 steps; numbers lost)",
     f"Swin encoder {say('Swin encoder')}, Swin decoder {say('Swin decoder')}"),
    ("Encoder and decoder are independent choices", f"interaction {say('interaction')}; another seed "
     + (f"up to {100 * max(seeds):.1f} %" if seeds else "not run")),
    ("The decoder is light", f"in kind; it has {light[0] / plain[0]:.0%} of the weights of the tiny one and does "
     f"{light[1] / plain[1]:.0%} of its work"),
    ("Without skips it is worse (numbers lost)", f"{beside('no-skips') or 'not recorded yet'}"),
    ("Patch merging and convolutions are similar", f"convolutions: {beside('conv-resampling') or 'not recorded yet'}"),
    ("Early samples of the families differ", f"after {steps} steps, held-out loss: "
     + ", ".join(f"{family} {value:.3f}" for family, value in last.items())),
    ("About 590 M weights for text at 128 pixels", f"{costs['ascend_t2i_128', 'swin'][3][0]:.1f} M, by our choices"),
    ("FID 2.98 on CIFAR-10", "not run"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. What windows save (a line).** How many pairs of query and key does attention in windows look at, on a map of `size` by `size`? A map that is smaller than the window is one window; a side that the window does not divide is padded up to the next multiple, and padded tokens ask and answer like any other.

# %% tags=["exercise"] name="pairs_in_windows"
def pairs_in_windows(size, window):
    """The number of (query, key) pairs, a whole number."""
    ...  # your code

# %% [markdown]
# The check tries several sizes.

# %%
exercises.check_pairs_in_windows(pairs_in_windows)

# %% [markdown]
# **2. Merging is a convolution.** Without its norm, patch merging is a convolution of size 2 and stride 2. Turn the weight of its linear map into that of the convolution. The order of the four neighbours stands in `merge` above; each brings all its $c$ channels in turn.

# %% tags=["exercise"] name="conv_from_merge"
def conv_from_merge(weight):
    """weight (out, 4 c) of PatchMerging.reduction -> (out, c, 2, 2), a convolution of stride 2 that does the same."""
    ...  # your code

# %% [markdown]
# The check knows the usual wrong orders.

# %%
exercises.check_conv_from_merge(conv_from_merge)

# %% [markdown]
# **3. A decoder that is light (a project).** One residual unit a level, which sees only the last map of the encoder's level. Write the way up. `h` comes from the middle. `last`, `units` and `ups` go from the finest level to the coarsest: `last[k]` is the encoder's map of level $k$, `units[k](joined, emb)` the unit of that level, which wants what comes from below first and then the skip, and `ups[k](h)` leads from level $k + 1$ to level $k$.

# %% tags=["exercise"] name="light_decode"
def light_decode(h, last, units, ups, emb):
    """The map that the unit of level 0 returns."""
    ...  # your code

# %% [markdown]
# The check uses random units.

# %%
exercises.check_light_decode(light_decode)

# %% [markdown]
# Now the project. Make a class `Light(ASCEND)` whose decoder has one `Residual` a level and whose `forward` calls your function (both classes stand in `minidiff/backbones/ascend.py`). Give it a name with `minidiff.register_model`, train it with `grow`, and draw its curve beside the three. What share of the weights is left to the decoder, and what does the loss say? Then spend the weights that you saved on a second unit in each level of the encoder: the paper's idea at its purest.
#
# ## What you learned
#
# - A denoiser can be two networks of different kinds, joined by skips. Any encoder can go with any decoder, if they agree on the maps.
# - "Light" has to be counted. A decoder that reads twice the channels through 3 by 3 convolutions is not light merely because nothing in it attends.
# - A table of two by two has two effects and one interaction, and all are to be held against the luck of seeds.
# - Silencing tells what a trained network leans on, and training without tells what it needs.
#
# ## Where to read on
#
# - The paper of IU-ViT and ASCEND, arXiv 2212.13771. `minidiff/backbones/ascend.py` lists what it leaves open.
# - Liu et al., *Swin transformer*, 2021, arXiv 2103.14030.
# - He et al., *Masked autoencoders are scalable vision learners*, 2022, arXiv 2111.06377: the asymmetry that inspired this one.
# - Dhariwal, Nichol, *Diffusion models beat GANs on image synthesis*, 2021, arXiv 2105.05233: the residual blocks.
#
# Next comes notebook 16, *The backbone shoot-out*, with every backbone of the course on equal terms.
