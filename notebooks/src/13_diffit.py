# %% [markdown]
# # 13 DiffiT: attention that knows the time
#
# After this notebook you can build an attention that depends on the time, say what the time can and cannot do in it, and prove that a third of its time weights never do anything.
#
# Run time: four to five minutes on a CPU with two idle cores; expect as long on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - build time-dependent attention by hand, split its logits into four terms, and watch two of them vanish,
# - build the whole network, and count the weights of the published one,
# - train it beside a DiT, and measure how the maps of both change along the trajectory,
# - make its queries or its values deaf to the time, and see what that costs,
# - look into its windows, and guide with a weight that changes over time.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Should attention know the time?
#
# Near $t = 1$ a denoiser sees almost nothing, and has to decide on the plan: where the object stands, how large it is. Near $t = 0$ the plan is settled, and what is missing are edges and specks. It seems right that a patch should look at other places in the one case than in the other.
#
# You know two ways to tell a transformer the time. U-ViT ([notebook 10](10_u_vit.ipynb)) adds a token, which the patches may look at or not. DiT ([notebook 12](12_dit.ipynb)) scales and shifts what goes into attention. **DiffiT** (Hatamizadeh et al. 2024) puts the time into attention itself: what a token looks for, what it shows, and what it says each depend on $t$.
#
# ## The formula, in small steps
#
# In plain self-attention token $x_i$ makes a query, a key and a value, each by a matrix. DiffiT's *time-dependent multi-head self-attention* (TMSA) gives each of the three a second matrix, for a vector $c$ that knows the time and is the same for all tokens:
#
# $$q_i = W_q x_i + U_q c, \qquad k_j = W_k x_j + U_k c, \qquad v_j = W_v x_j + U_v c.$$
#
# From here on it is the attention you know, with one more ingredient, a learned bias $B_{ij}$ that depends only on where token $j$ lies as seen from token $i$:
#
# $$\text{out}_i = W_o \sum_j w_{ij} v_j, \qquad w_{ij} = \operatorname{softmax}_j\Big(\frac{q_i \cdot k_j}{\sqrt{d}} + B_{ij}\Big).$$
#
# Here $d$ is the width of a head. (Each linear map has a constant as well.)
#
# ### A bias by offset
#
# On a grid of $g \times g$ tokens two tokens are between $-(g-1)$ and $g-1$ rows apart, and as many columns. So there are $(2g-1)^2$ offsets, and the layer learns one number for each offset and each head: a table. Row $i$ of $B$ is a crop of that table, and where the crop is taken depends on where token $i$ stands. To see it, fill the table with something you recognise: a hill, a ditch around it, and a slope to the right.

# %%
import torch
import torch.nn.functional as F
from torch import nn


def bias(table, g):
    """table ((2g - 1)^2, heads) -> (heads, N, N): for tokens i and j the entry of their offset."""
    row, column = torch.arange(g * g) // g, torch.arange(g * g) % g
    down, right = row[:, None] - row, column[:, None] - column  # (N, N), each from -(g - 1) to g - 1
    return table[(down + g - 1) * (2 * g - 1) + right + g - 1].permute(2, 0, 1)


across = torch.arange(-7.0, 8)
radius = (across[:, None] ** 2 + across**2).sqrt()
painted = ((-(radius**2) / 6).exp() - 0.6 * (-((radius - 5) ** 2) / 2).exp() + 0.06 * across).flatten()[:, None]

# %% [markdown]
# Left the table, with the offset 0 in its middle; then the rows of $B$ of three asking tokens, each folded back into the grid. The white square is the asking token. Each crop is the pattern of the table turned by 180 degrees, the low side of the slope now to the right, since the table is read at $i - j$.

# %%
@plots.quiet
def draw_bias(table, g, asking):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 1 + len(asking), figsize=(9.0, 2.6))
    side, limit = 2 * g - 1, table.abs().max()
    axes[0].imshow(table[:, 0].view(side, side), cmap="RdBu_r", vmin=-limit, vmax=limit,
                   extent=(-g + 0.5, g - 0.5, g - 0.5, -g + 0.5))
    axes[0].set(title="the table", xlabel="columns apart", ylabel="rows apart", xticks=[-7, 0, 7], yticks=[-7, 0, 7])
    for ax, (i, j) in zip(axes[1:], asking):
        shown = ax.imshow(bias(table, g)[0, i * g + j].view(g, g), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.plot(j, i, "s", color="white", markeredgecolor="black", markersize=9)
        ax.set(title=f"token ({i}, {j}) asks", xticks=[], yticks=[])
    for ax in axes:
        ax.grid(False)
    figure.colorbar(shown, ax=axes, label="bias", fraction=0.03)
    return figure


draw_bias(painted, 8, [(0, 0), (3, 4), (7, 2)])

# %% [markdown]
# ### By hand
#
# Now write the layer, with the weights of the package's `TimeAttention`: four heads, 8 by 8 tokens, and a batch of two pictures at two times. `qkv` holds $W_q, W_k, W_v$ in this order, `qkv_temb` holds $U_q, U_k, U_v$.

# %%
from minidiff.backbones.diffit import TimeAttention


def parts(x, c, p):
    """q, k, v of the tokens x (B, N, dim) and of the time c (B, emb): two triples of (B, heads, N or 1, d)."""
    both = p.qkv(x), p.qkv_temb(c)[:, None]
    return [[part.unflatten(2, (p.num_heads, -1)).transpose(1, 2) for part in z.chunk(3, dim=2)] for z in both]


def time_attention(x, c, p, g):
    (qx, kx, vx), (qt, kt, vt) = parts(x, c, p)
    logits = (qx + qt) @ (kx + kt).mT / qx.shape[-1] ** 0.5
    weights = torch.softmax(logits + bias(p.relative_position_bias_table, g), dim=-1)  # (B, heads, N, N)
    return p.proj((weights @ (vx + vt)).transpose(1, 2).flatten(2))


torch.manual_seed(0)
layer = TimeAttention(dim=96, num_heads=4, window=8, emb=96)
x, c = torch.randn(2, 64, 96), torch.randn(2, 96)
with torch.no_grad():
    layer.relative_position_bias_table.normal_()
    mine, theirs = time_attention(x, c, layer, 8), layer(x, c)
print(f"largest difference {(mine - theirs).abs().max():.0e}, outputs of standard deviation {theirs.std():.2f}")
assert torch.allclose(mine, theirs, atol=1e-5)

# %% [markdown]
# ## Four terms
#
# What does the time do in the formula? Write $q^x_i = W_q x_i$ for the token's part and $q^t = U_q c$ for the time's, and the same for the keys. The product of two sums is four products:
#
# $$q_i \cdot k_j \;=\; \underbrace{q^x_i \cdot k^x_j}_{\text{token-token}} \;+\; \underbrace{q^x_i \cdot k^t}_{\text{token-time}} \;+\; \underbrace{q^t \cdot k^x_j}_{\text{time-token}} \;+\; \underbrace{q^t \cdot k^t}_{\text{time-time}}.$$
#
# Each is a table with a row for every asking token $i$ and a column for every token $j$ that may be looked at. Guess first: which have equal columns, which equal rows?

# %%
@torch.no_grad()
def four_terms(x, c, p):
    """The four parts of the logits, {name: (B, heads, N or 1, N or 1)}."""
    (qx, kx, _), (qt, kt, _) = parts(x, c, p)
    pairs = {"token-token": (qx, kx), "token-time": (qx, kt), "time-token": (qt, kx), "time-time": (qt, kt)}
    return {name: q @ k.mT / q.shape[-1] ** 0.5 for name, (q, k) in pairs.items()}


@plots.quiet
def draw_terms(terms, shown=16):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 4, figsize=(9.2, 2.7), sharey=True)
    for ax, (name, term) in zip(axes, terms.items()):
        image = ax.imshow(term[0, 0].expand(64, 64)[:shown, :shown], cmap="RdBu_r", vmin=-1.2, vmax=1.2)
        ax.set(title=name, xlabel="looked at, j")
        ax.grid(False)
    axes[0].set_ylabel("asking, i")
    figure.colorbar(image, ax=axes, label="logit", fraction=0.03)
    return figure


terms = four_terms(x, c, layer)
draw_terms(terms)

# %% [markdown]
# *token-time* says something about the asking token, the same for whatever it may look at: horizontal stripes. *time-token* says something about the token that is looked at, the same for whoever asks: vertical stripes. *time-time* is one number.
#
# A softmax divides by the sum, so a number $r_i$ added to a whole row cancels:
#
# $$\frac{e^{\ell_{ij} + r_i}}{\sum_m e^{\ell_{im} + r_i}} = \frac{e^{r_i}\, e^{\ell_{ij}}}{e^{r_i} \sum_m e^{\ell_{im}}} = \frac{e^{\ell_{ij}}}{\sum_m e^{\ell_{im}}}.$$
#
# Token-time and time-time are constant along each row. They drop out. And these two are the only ones that contain $k^t = U_k c$. **The time's part of the keys does nothing.** If that is true, you can fill $U_k$ with anything, and its gradient is zero.

# %%
def attend(*names):
    total = sum(terms[name] for name in names) + bias(layer.relative_position_bias_table.detach(), 8)
    return torch.softmax(total, dim=-1)


full, short = attend(*terms), attend("token-token", "time-token")
print(f"maps without the two terms: largest difference {(full - short).abs().max():.0e}")
assert torch.allclose(full, short, atol=1e-6)
layer.zero_grad()
layer(x, c).square().sum().backward()
slopes = layer.qkv_temb.weight.grad.unflatten(0, (3, -1)).norm(dim=(1, 2))
print("norm of the gradient:", ", ".join(f"U_{name} {v:.1e}" for name, v in zip("qkv", slopes)))
assert slopes[1] < 1e-4 * slopes[0] and slopes[1] < 1e-4 * slopes[2]
with torch.no_grad():
    for silent in (layer.qkv_temb.weight, layer.qkv_temb.bias, layer.qkv.bias):
        silent[96:192].normal_(std=3)
assert torch.allclose(layer(x, c), theirs, atol=1e-4)
print("U_k, its constant and that of W_k replaced by noise: the same output")

# %% [markdown]
# What is left of the gradient of $U_k$ is rounding. Training and size play no part in this. The paper's formula and the released weights have three maps of the time, and one of them never had an effect. (The same holds for the constant beside $W_k$, in every transformer that has one.)
#
# ## What the time can say
#
# The values simplify as well. The weights of a row sum to 1, so $\sum_j w_{ij} (v^x_j + v^t) = \sum_j w_{ij} v^x_j + v^t$. Put together, one layer does exactly this:
#
# $$\text{out}_i = W_o \sum_j \operatorname{softmax}_j\Big(\frac{q^x_i \cdot k^x_j}{\sqrt d} + a_j(t) + B_{ij}\Big)\, v^x_j \;+\; W_o U_v c, \qquad a_j(t) = \frac{U_q c \cdot k^x_j}{\sqrt d}.$$
#
# The time acts in two places. The last term is a vector added to every token alike, just as the U-Net adds its time embedding. And $a_j(t)$ is a **popularity**: at this time, tokens of this kind are looked at more, by everybody. There is no term with $t$, $i$ and $j$ together. Within a layer the time cannot say "eyes look at mouths now"; it can only say "mouths are worth looking at now". The next cell writes the layer in this form.

# %%
def popularity_attention(x, c, p, g):
    (qx, kx, vx), (qt, _, vt) = parts(x, c, p)
    popularity = qt @ kx.mT / qx.shape[-1] ** 0.5  # (B, heads, 1, N): no asking token in it
    logits = qx @ kx.mT / qx.shape[-1] ** 0.5 + popularity + bias(p.relative_position_bias_table, g)
    looked = p.proj((torch.softmax(logits, dim=-1) @ vx).transpose(1, 2).flatten(2))
    return looked + F.linear(vt.transpose(1, 2).flatten(2), p.proj.weight)


with torch.no_grad():
    assert torch.allclose(popularity_attention(x, c, layer, 8), theirs, atol=1e-5)
    tied = TimeAttention(dim=96, num_heads=4, window=8, emb=96)
    tied.qkv_temb.weight.copy_(tied.qkv.weight)
    tied.qkv_temb.bias.zero_()
    shifted = tied(x + c[:, None], torch.zeros(2, 96))
    assert torch.allclose(tied(x, c), shifted, atol=1e-5)
print("popularity and a shift: the same layer. With U = W it is a shift of the tokens: the same again")

# %% [markdown]
# The second half of the cell is about DiT. There the tokens are scaled and shifted before attention, $W(x \odot (1 + s) + b)$. The shift $b$ alone is a TMSA whose $U$ are tied to its $W$. The scale $s$ goes further than TMSA can: it changes the token-token term itself. So DiffiT's attention is freer in its shift, and DiT's has a scale. Which of them changes its maps more over time you will measure below.
#
# ## The rest of the network
#
# The block of DiffiT has no modulation and no gates: a norm without any constants, TMSA, another norm, the MLP, each with a residual. Before the last linear map come a norm and a SiLU. The time speaks in attention alone.
#
# In the text of the paper $c$ is the time. In the released network it is the sum of time and label, as in DiT, so all that was said about the time holds for the class as well. Here is all of it.

# %%
from minidiff.layers import timestep_embedding, unpatchify


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def condition(time, y, p):
    """time (B,) or (1,) in 0 .. 999, y (B,) labels, the last one for 'none' -> c (B, d)."""
    features = timestep_embedding(time, 256, order="cos_sin", divisor="half")
    return p.time_embed(features) + p.label_embed.weight[y]


def diffit(x, time, y, p):
    x = F.conv2d(x, p.patch_embed.weight, p.patch_embed.bias, stride=p.patch_size)  # (B, d, g, g)
    tokens, c = x.flatten(2).transpose(1, 2) + p.pos_embed, condition(time, y, p)
    for block in p.blocks:
        tokens = tokens + time_attention(norm(tokens), c, block.attn, p.grid)
        hidden = F.gelu(block.mlp.fc1(norm(tokens)), approximate="tanh")
        tokens = tokens + block.mlp.fc2(hidden)
    return unpatchify(p.head(F.silu(norm(tokens))), p.patch_size, p.grid, p.grid)

# %% [markdown]
# Compare with the package. Make its large network small: pixels of emoji in place of latents, width 96, and five blocks, which have about as many weights as the four of notebook 12's DiT. The last layer starts at zero, which would prove little, so fill it first.

# %%
data = minidiff.load_dataset("emoji", size=16)
held_out = minidiff.load_dataset("emoji", size=16, split="test")
small = dict(img_size=16, in_channels=3, hidden_size=96, depth=5, num_heads=4, learn_sigma=False, num_classes=10)
torch.manual_seed(0)
network = minidiff.create_model("diffit_xl_256", **small)
nn.init.normal_(network.head.weight, std=0.1)
x16, time, y = torch.randn(4, 3, 16, 16), torch.tensor([0.0, 10.0, 500.0, 999.0]), torch.tensor([0, 3, 9, 10])
with torch.no_grad():
    mine, theirs = diffit(x16, time, y, network), network(x16, time, y)
print(f"largest difference {(mine - theirs).abs().max():.0e}, outputs of standard deviation {theirs.std():.2f}")
assert torch.allclose(mine, theirs, atol=1e-4)

# %% [markdown]
# ## The published one, counted
#
# On the *meta* device tensors have shapes and no memory, so you can count the large network at once. The text of the paper says 30 blocks and 561 million parameters. Do both hold? The column *maps of c* counts the weights that tell the blocks the time and the label: TMSA's $U$, and DiT's modulation.

# %%
from IPython.display import Markdown

sizes = {"256 pixels, 28 blocks, as released": ("diffit_xl_256", {}), "512 pixels, 28 blocks": ("diffit_xl_512", {}),
         "256 pixels, 30 blocks, as in the text": ("diffit_xl_256", {"depth": 30}), "DiT-XL/2": ("dit_xl_2", {})}
counted, rows = {}, ["| | parameters | G multiply-adds | maps of $c$ | of these $U_k$ |", "|---|---:|---:|---:|---:|"]
for name, (model, options) in sizes.items():
    with torch.device("meta"):
        large = minidiff.create_model(model, **options)
    known = minidiff.summary(large)
    speak = ("qkv_temb", "modulation")
    maps = sum(w.numel() for key, w in large.named_parameters() if any(part in key for part in speak))
    dead = maps // 3 if "diffit" in model else 0
    counted[name] = known.parameters, known.flops / 2e9, maps, dead
    rows.append(f"| {name} | {known.parameters:,} | {known.flops / 2e9:.1f} | {maps / 1e6:.1f} M | "
                + (f"{dead / 1e6:.1f} M |" if dead else "none |"))
weights, _, _, dead = counted["256 pixels, 28 blocks, as released"]
assert weights == 561_330_144 and counted["512 pixels, 28 blocks"][0] == 563_562_464
assert counted["256 pixels, 30 blocks, as in the text"][0] == 601_201_664 and 14.5 < weights / dead < 15.5
Markdown("\n".join(rows))

# %% [markdown]
# The count decides: 561 million are 28 blocks. DiT-XL/2 spends twice as much on $c$, since it modulates more. And of every fifteen weights of the published DiffiT, one is in a matrix that cannot change its output.
#
# ## Train one, and a DiT beside it
#
# Both with the recipe of the recorded runs that come later, only shorter. Watch the first hundred steps. DiT's gates start at zero, so each of its blocks begins as the identity; DiffiT's blocks begin at full strength.

# %%
def wrap(network):
    return minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 16, 16))


makers = {"DiffiT": lambda: minidiff.create_model("diffit_xl_256", **small),
          "DiT": lambda: minidiff.create_model("dit_tiny", num_classes=10)}
recipe = dict(batch_size=64 if run.tier != "smoke" else 8, lr=1e-3, warmup=100, ema=0.995, p_uncond=0.1,
              progress=False, device=run.device)
trial = wrap(makers["DiffiT"]())
steps = budget("each of two networks", smoke=4, cpu=300, gpu=4000,
               per_step=lambda: minidiff.training.train(trial, data, **recipe | {"steps": 1}))
models, curves = {}, {}
for name, make in makers.items():
    torch.manual_seed(0)
    history = minidiff.training.train(wrap(make()), data, steps=steps, **recipe)
    models[name], curves[name] = history.ema.cpu(), history.losses
    print(f"{name}: {sum(w.numel() for w in models[name].parameters()):,} parameters")
plots.losses(curves)

# %% [markdown]
# ## One patch, along the trajectory
#
# Take a picture that neither has seen, noise it to seven times with the same noise, and record the attention of one patch, in the two heads of each network whose maps move most. The distance of two rows of weights is the share of attention that has moved from one place to another,
#
# $$D(w, w') = \tfrac12 \sum_j |w_j - w'_j|, \qquad 0 \le D \le 1.$$

# %%
@torch.no_grad()
def look(model, x_t, told, y):
    """The maps (blocks, B, heads, N, N) for pictures x_t (B, 3, 16, 16) when the network is told the time `told`."""
    with minidiff.record_attention(model.network) as recorded:
        model.network(x_t, torch.tensor([1000.0 * told - 1]), y)  # t = 0.001 .. 1 is fed as 0 .. 999
    return torch.stack([one for calls in recorded.values() for one in calls])


def distance(a, b):
    return 0.5 * (a - b).abs().sum(-1)  # one number for each asking token


smiley, seven = held_out.images()[held_out.labels == 7][3:4], torch.tensor([7])
eps, times = minidiff.seeded_noise([3])(smiley), [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]
noisy = [models["DiT"].forward_process(smiley, t, eps) for t in times]
strips = {}
for name, model in models.items():
    maps = torch.stack([look(model, x_t, t, seven)[:, 0] for x_t, t in zip(noisy, times)])  # (T, block, head, N, N)
    moved = distance(maps[0], maps[-1]).mean(-1)  # (block, head)
    for best in moved.flatten().topk(2).indices.tolist():
        block, head = divmod(best, moved.shape[1])
        strips[f"{name}, block {block}, head {head}"] = maps[:, block, head, 27].view(-1, 8, 8)  # row 3, column 3

# %% [markdown]
# Bright is where the framed patch looks, each row on its own scale.

# %%
@plots.quiet
def draw_strips(noisy, strips):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1 + len(strips), len(times), figsize=(8.8, 6.2))
    for ax, x_t, t in zip(axes[0], noisy, times):
        ax.imshow((x_t[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1))
        ax.set_title(f"t = {t:g}")
        ax.add_patch(plt.Rectangle((5.5, 5.5), 2, 2, fill=False, edgecolor="black", linewidth=2))
    for row, (name, maps) in zip(axes[1:], strips.items()):
        for ax, one in zip(row, maps):
            ax.imshow(one, cmap="magma", vmin=0, vmax=maps.quantile(0.99))
            ax.add_patch(plt.Rectangle((2.5, 2.5), 1, 1, fill=False, edgecolor="#56B4E9", linewidth=1.5))
        row[0].set_ylabel(name.replace(", ", "\n", 1), rotation=0, ha="right", va="center", fontsize=9)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return figure


draw_strips(noisy, strips)

# %% [markdown]
# What moves here may be the time's doing or the picture's, which changes as well. Look around before you separate the two.

# %%
from minidiff.course.attention import explore_attention

explore_attention(models["DiffiT"], smiley, seven, times=times)

# %% [markdown]
# ## Is it the picture, or the time?
#
# First let the noise and the time change together, as they do while sampling, and measure how far the maps at $t$ are from those at $t = 0.5$. Then keep the picture as it is at $t = 0.5$, and change only the time that the network is *told*. What remains is the time's own doing. For a scale, take the distance between two different pictures, each with its own noise and label, at $t = 0.5$.

# %%
few = 24 if run.tier != "smoke" else 4
images, labels = held_out.images()[::15][:few], held_out.labels[::15][:few]
noise, levels = minidiff.seeded_noise(range(few))(images), [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98]
travelled, moves = {}, {}
for name, model in models.items():
    middle = model.forward_process(images, 0.5, noise)
    start = look(model, middle, 0.5, labels)
    for kind in ("picture and time", "time alone"):
        way = []
        for t in levels:
            x_t = model.forward_process(images, t, noise) if kind == "picture and time" else middle
            way.append(distance(look(model, x_t, t, labels), start).mean().item())
        travelled[f"{name}: {kind}"] = (levels, way)
        moves[name, kind] = (way[0] + way[-1]) / 2
    moves[name, "another picture"] = distance(start, start.roll(1, dims=1)).mean().item()
    print(f"{name}: " + ", ".join(f"{kind} {v:.3f}" for (who, kind), v in moves.items() if who == name))
figure = plots.lines(travelled, x="t", y="distance from the maps at t = 0.5")
for k, line in enumerate(figure.axes[0].lines):  # a colour for each network, dashed where the picture stands still
    line.set(color=plots.COLORS[k // 2], linestyle="--" if k % 2 else "-")
figure.axes[0].legend(loc="upper center", frameon=False)
figure

# %% [markdown]
# Solid, all changes; dashed, only what the network is told. The printed numbers are means of the two ends, over all blocks, heads, patches and pictures. Compare "time alone" of the two: the paper's idea against DiT's modulation. "Another picture" tells how lively the maps are at all.
#
# Where DiT is not far behind, or even ahead, recall the algebra: its scale reaches the token-token term, which the time in DiffiT cannot. And these are two young networks, each trained once: a small difference is no verdict.
#
# ## Deaf queries, deaf values
#
# Which of its three ears does this DiffiT rely on? Let $U_q c$, $U_k c$ or $U_v c$ be what it would be at $t = 0.5$, whatever the time is. Then measure the loss on unseen pictures. Guess first. The last row is a control: if the time speaks in attention alone, a network deaf in queries and values cannot know it.

# %%
def make_deaf(network, deaf):
    """Hooks that tell the parts of q, k, v named in `deaf` the time 0.5; remove them afterwards."""
    still = condition(torch.tensor([499.0]), labels, network)

    def freeze(layer, given, out):
        other = F.linear(still, layer.weight, layer.bias)
        pairs = zip("qkv", out.chunk(3, dim=1), other.chunk(3, dim=1))
        return torch.cat([then if name in deaf else now for name, now, then in pairs], dim=1)

    return [block.attn.qkv_temb.register_forward_hook(freeze) for block in network.blocks]


ours, losses = models["DiffiT"], {}
start = look(ours, middle, 0.5, labels)
ears = {"all hear": "", "keys deaf": "k", "queries deaf": "q", "values deaf": "v", "q and v deaf": "qv"}
for name, deaf in ears.items():
    with torch.no_grad():
        hooks = make_deaf(ours.network, deaf)
        losses[name] = torch.stack([ours.loss(images, labels, t=torch.full((few,), t), eps=noise).mean()
                                    for t in levels])
    far = sum(distance(look(ours, middle, levels[k], labels), start).mean().item() for k in (0, -1)) / 2
    [hook.remove() for hook in hooks]
    print(f"{name:13} loss x {(losses[name] / losses['all hear']).mean():.2f}, the time alone moves the maps {far:.3f}")
assert far < 1e-4  # of the last, with queries and values deaf

# %% [markdown]
# Now the loss over $t$.

# %%
worse = {name: loss / losses["all hear"] for name, loss in losses.items() if name != "all hear"}
assert torch.allclose(worse["keys deaf"], torch.ones(len(levels)), atol=1e-3)
assert torch.allclose(worse["q and v deaf"][5], torch.ones(()), atol=1e-3)  # at t = 0.5 nobody is told anything else
figure = plots.lines({name: (levels, v) for name, v in worse.items()}, x="t", y="loss / loss when all hear")
figure.axes[0].lines[0].set(linestyle="--", zorder=3)
figure.axes[0].legend(loc="upper center", frameon=False)
figure

# %% [markdown]
# Deaf keys cost nothing, as they must: their line is at 1 for every $t$. The queries are the popularity, the values the shift. If the curve of the values lies above that of the queries, most of what this network knows about the time came through the plain sum, the way a U-Net is told. With deaf queries only the *tokens* carry the time, from block to block; the printed distances say how far the maps follow them.
#
# This measures what a trained network relies on, not what it would need. One whose queries were deaf from the start might do as well.
#
# ## Three ways to tell the time
#
# Recorded runs, each trained for 600 steps on the same data (`python tools/ablation.py diffit --tier cpu`, and the same for `dit`): the flat DiffiT beside DiT with adaLN-Zero and DiT with time and class as tokens, all of width 96, and two DiffiTs for pixels, which the next section explains. Tokens need no maps of $c$, so that DiT has fewer weights.

# %%
from minidiff.course.recorded import recorded

found = {name: recorded(name, "cpu") for name in ("dit", "diffit", "uvit")}
names = {"tokens (DiT in-context)": ("dit", "in-context"), "adaLN-Zero (DiT)": ("dit", "adaln-zero"),
         "in attention (DiffiT)": ("diffit", "flat"), "DiffiT, windows of 4": ("diffit", "pixels"),
         "DiffiT, windows of 2": ("diffit", "window-2")}
records = {name: found[experiment][key] for name, (experiment, key) in names.items()}
lines = ["| time and class | parameters | MFLOPs | held-out loss | Fréchet distance |", "|---|" + "---:|" * 4]
for name, one in records.items():
    lines.append(f"| {name} | {one['model']['parameters']:,} | {one['model']['flops'] / 1e6:.0f} | "
                 f"{one['held_out']['mean']:.4f} | {one['distances']['frechet']['value']:.2f} |")
Markdown("\n".join(lines))

# %% [markdown]
# The next figure has the held-out loss over $t$, divided by that of adaLN-Zero; below it are samples from the same noise and classes. Some U-ViTs were repeated with another seed. The largest change is printed; a smaller difference is no evidence.

# %%
def luck(of):
    return [abs(of(all_runs[name]) - of(all_runs[name.removesuffix("-seed1")]))
            for all_runs in found.values() for name in all_runs if name.endswith("-seed1")]


def order(of):
    values = {name: of(one) for name, one in records.items()}
    return " < ".join(f"{name} {values[name]:.3g}" for name in sorted(values, key=values.get))


measures = {"held-out loss": lambda one: one["held_out"]["mean"],
            "Fréchet distance": lambda one: one["distances"]["frechet"]["value"]}
for title, of in measures.items():
    print(f"{title}: {order(of)}")
    print(f"    another seed changed it by up to {max(luck(of)):.2g}")
base = records["adaLN-Zero (DiT)"]["held_out"]
ratios = {name: (base["times"], [a / b for a, b in zip(one["held_out"]["losses"], base["losses"])])
          for name, one in records.items()}
display(plots.lines(ratios, x="t", y="held-out loss / adaLN-Zero's"))
plots.filmstrip(torch.stack([one["samples"][:9] for one in records.values()], dim=1), rows=list(records))

# %% [markdown]
# DiT starts as the identity, and 600 steps may reward a good start. DiffiT has one block more for the same weights, and so does more work.
#
# ## DiffiT for pixels: a U of windows
#
# The other half of the paper is a network for images. It is a U-Net whose residual blocks are norm, SiLU, 3 by 3 convolution, then TMSA and MLP, and the shortcut. Every pixel is a token, so full attention would be too expensive: $n$ pixels make $n^2$ pairs. The picture is cut into **windows** of $w \times w$ pixels, and each attends to itself: $n w^2$ pairs.
#
# Cut without a loop, compare with slices, then look at the windows of 4 by 4 on the three levels of the small network, and at the reach of one block: all pixels whose change moves the orange one, its own window darker. Guess their number first.

# %%
from minidiff.backbones.diffit import ResBlock
from minidiff.backbones.swin import split_windows

image, panels = smiley.permute(0, 2, 3, 1), []  # (1, 16, 16, 3)
cut = torch.stack([image[0, i : i + 4, j : j + 4].flatten(0, 1) for i in range(0, 16, 4) for j in range(0, 16, 4)])
mine = image.view(1, 4, 4, 4, 4, 3).transpose(2, 3).reshape(16, 16, 3)  # window, token, channel
assert torch.equal(mine, cut) and torch.equal(split_windows(image, (4, 4)), cut)
for side in (16, 8, 4):
    odd = torch.arange(side) // 4 % 2
    board = 1 - 0.4 * (odd[:, None] ^ odd)  # every other window is darker
    panels.append(F.interpolate((F.avg_pool2d(smiley, 16 // side) + 1) * board - 1, 16)[0])
torch.manual_seed(0)
block = ResBlock(8, 8, head_dim=8, mlp_ratio=4, window=4, emb=8, num_groups=2)
block.norm, x8 = nn.Identity(), torch.randn(1, 8, 16, 16, requires_grad=True)  # a norm sees all pixels: left out
block(x8, torch.randn(1, 8))[0, :, 6, 6].sum().backward()
seen = (x8.grad[0].abs().sum(0) > 0).float()  # (16, 16)
window = F.pad(torch.ones(4, 4), (4, 8, 4, 8))
panels.append((0.8 - 0.6 * seen - 0.5 * window).repeat(3, 1, 1))
panels[-1][:, 6, 6] = torch.tensor([0.8, -0.3, -1.0])
assert seen.sum() == 6 * 6
titles = ["16 windows", "4 windows", "1 window", f"reach: {seen.sum():.0f} pixels"]
plots.grid(torch.stack(panels), titles=titles, scale=10)

# %% [markdown]
# Unlike Swin's in the next notebook, these windows do not shift. They exchange nothing but what the convolution carries over the border, one pixel a block: $(4 + 2)^2 = 36$. On a level where a window covers everything, attention is global; that is the job of the lower levels. The paper finds that windows of 4 in place of 2 improve the FID by 23 %, and 8 in place of 4 only by 1.5 %.
#
# ### What the paper leaves open
#
# No code of this network was published, and the text disagrees with itself. The docstring of `diffit.py` lists our choices, of which these are the main ones.
#
# | the paper | here |
# |---|---|
# | appendix H: four blocks on each level; appendix I: 1, 2, 2, 2 (FFHQ) and 2, 2, 2 (CIFAR-10) | appendix I |
# | how skips join: not said | concatenated, one for each block; our choice |
# | heads, MLP ratio, groups of the norm: not said | heads of 32 channels, ratio 4, 32 groups; our choice |
# | latent network: 30 blocks, guidance 4.6 in the text | 28 blocks, 4.4, as in the released files |
#
# The maps of this network belong to windows: on the first level of `diffit_tiny` (16, 2, 16, 16), for windows, heads, tokens, tokens. That is why the explorer above looked into the flat network. Exercise 2 puts such maps back in place.
#
# ## Guidance that grows
#
# The samples at 256 pixels are made with a guidance known from MDT. Constant guidance ([notebook 07](07_guidance.ipynb)) pulls as strongly at $t = 1$, where the plan is made, as at the end, and the plans of a class become alike. **Power-cosine** guidance begins with no guidance and grows to its full scale $s$ only near the data:
#
# $$\text{scale}(t) = 1 + (s - 1)\,\frac{1 - \cos\!\big(\pi (1 - t)^{p}\big)}{2}, \qquad p = 4.$$
#
# Draw it, and try it on the well-trained `emoji-unet` that comes with the course. The variety is the mean distance between two pictures of the same class, a smiley.

# %%
from minidiff.guidance import cosine_weight

t = torch.linspace(0, 1, 101)
by_hand = 1 + 3.4 * (1 - torch.cos(torch.pi * (1 - t) ** 4)) / 2
theirs = torch.tensor([cosine_weight(4.4, 4, at) for at in t.tolist()])
assert torch.allclose(by_hand, theirs, atol=1e-5)
shapes = {"power 4, as released": (t, theirs)}
shapes["power 1"] = (t, [cosine_weight(4.4, 1, at) for at in t.tolist()])
shapes["constant"] = (t, torch.full((101,), 4.4))
assert cosine_weight(4.4, 4, 0.5) < 1.05  # hardly any guidance before the middle
figure = plots.lines(shapes, x="t", y="guidance scale, s = 4.4")
figure.axes[0].legend(loc="upper right", bbox_to_anchor=(1.0, 0.92), frameon=False)
display(figure)
model = minidiff.load("emoji-unet", run.device)
count = 16 if run.tier != "smoke" else 4
settings = dict(y=seven.repeat(count).to(run.device), steps=20 if run.tier != "smoke" else 2, sampler="dpmpp_2m",
                progress=False, seed=2)
options = {"none": {}, "constant 4.4": {"guidance": 4.4}, "power-cosine 4.4": {"guidance": 4.4, "power": 4}}
drawn = {name: minidiff.sample(model, count, **settings, **extra).cpu() for name, extra in options.items()}
variety = {name: torch.pdist(made.flatten(1)).mean().item() for name, made in drawn.items()}
print("variety:", ", ".join(f"{name} {v:.1f}" for name, v in variety.items()))
plots.filmstrip(torch.stack([made[:9] for made in drawn.values()], dim=1), rows=list(drawn))

# %% [markdown]
# With $p = 4$ more than half of the trajectory is hardly guided at all, so 4.4 cannot be compared with DiT's constant 1.5. Constant guidance makes the pictures more typical and more alike. The late one keeps the plans of the first row and works on what is there. It keeps the mistakes as well, and they count as variety.
#
# ## What the paper found, what you measured

# %%
def measured(name):
    loss, frechet = (of(records[name]) for of in measures.values())
    return f"{loss:.4f} ({frechet:.2f})"


flat, zero, tokens = "in attention (DiffiT)", "adaLN-Zero (DiT)", "tokens (DiT in-context)"
findings = [
    ("Queries, keys and values should each know the time", f"the keys' part drops out: {dead / 1e6:.0f} of "
     f"{weights / 1e6:.0f} million weights of the published network have no effect; deaf queries multiply the loss by "
     f"{worse['queries deaf'].mean():.2f}, deaf values by {worse['values deaf'].mean():.2f}"),
    ("Attention should change along the trajectory", "maps told another time move by "
     + ", ".join(f"{moves[name, 'time alone']:.3f} ({name})" for name in models)),
    ("ImageNet-256: FID 1.73; DiT-XL/2 has 2.27, each with its own guidance",
     f"held-out loss (Fréchet distance) {measured(flat)}, adaLN-Zero {measured(zero)}, tokens {measured(tokens)}"),
    ("CIFAR-10: FID 1.95 with TMSA, 3.97 with the time in the position bias alone, 3.81 in the MLP alone",
     "not repeated; exercise 3 builds the second"),
    ("Windows of 4 in place of 2: FID better by 23 %", "held-out loss (Fréchet distance) "
     f"{measured('DiffiT, windows of 4')} in place of {measured('DiffiT, windows of 2')}"),
    ("561 million parameters, 114 Gflops", f"{weights:,} with 28 blocks, not 30; "
     f"{counted['256 pixels, 28 blocks, as released'][1]:.1f} G multiply-adds"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# Minutes of training cannot contradict an FID. If windows of 2 do no worse here than windows of 4, think of the size: in 16 by 16 pixels the convolutions and the lowest level, 4 by 4, reach far by themselves.
#
# ## Exercises
#
# **1. Count what does nothing (a line).** A latent DiffiT of `depth` blocks and width `dim` has a map of $c$ in every block, of width `dim` to $3\,\cdot$ `dim`, with constants. How many parameters have all these maps together, and how many of them can never change the output?

# %% tags=["exercise"] name="time_weights"
def time_weights(depth, dim):
    """(all parameters of the maps of c, those without any effect), two whole numbers."""
    ...  # your code

# %% [markdown]
# The last size that the check asks for is the published one.

# %%
exercises.check_time_weights(time_weights)

# %% [markdown]
# **2. Put windows back in place.** `record_attention` gives the maps of a windowed block as (windows, heads, $n$, $n$), the windows row by row and the tokens in each row by row. Return where the pixel at (row, column) looks, for each head a picture of the whole level: zero outside the pixel's window. With that you can draw `strips` for `diffit_tiny`.

# %% tags=["exercise"] name="look_from"
def look_from(maps, row, column, side, window):
    """maps (windows, heads, window^2, window^2) of a square of `side` pixels -> (heads, side, side)."""
    ...  # your code

# %% [markdown]
# The check tries several pixels, windows and sides.

# %%
exercises.check_look_from(look_from)

# %% [markdown]
# **3. A project: the time in the bias alone.** In an ablation of the paper the time enters the position bias alone, and the FID on CIFAR-10 is 3.97 in place of 1.95. Unlike TMSA, such a bias can tell pairs apart, by where they stand. Begin with the function: every picture has its own table; return the biases that are added to the logits, without a loop.

# %% tags=["exercise"] name="timed_bias"
def timed_bias(tables, g):
    """tables (B, (2g - 1)^2, heads), for rows apart first and columns apart second -> (B, heads, g^2, g^2)."""
    ...  # your code

# %% [markdown]
# The check compares with the untimed bias, picture by picture.

# %%
exercises.check_timed_bias(timed_bias)

# %% [markdown]
# Now the project. Write an attention with plain queries, keys and values and this bias, with tables from one linear map of $c$ that starts at zero. Put it in the place of `attn` in each block of the small network, train with `recipe`, and compare with TMSA. Then add a map of $c$ to its output, the shift. Which of the three is best, and does the order agree with the paper?
#
# ## What you learned
#
# - Of the four terms in the logits two drop out of the softmax, and with them all that the time says to the keys.
# - What remains is a popularity of tokens and a shift. Which pairs belong together changes only through the tokens.
# - Maps change along the trajectory since the picture does. What the *time* does must be measured with the picture held still.
#
# ## Where to read on
#
# - Hatamizadeh et al., *DiffiT: diffusion vision transformers for image generation*, 2024, arXiv 2312.02139.
# - Peebles, Xie, *Scalable diffusion models with transformers*, 2023, arXiv 2212.09748: the modulation it competes with.
# - Liu et al., *Swin transformer*, 2021, arXiv 2103.14030: windows that shift, and the bias by offset.
# - Gao et al., *Masked diffusion transformer*, 2023, arXiv 2303.14389: power-cosine guidance.
#
# Next comes [notebook 14](14_swin_and_hit.ipynb), *Windows, pyramids and blocks: Swin and HiT*.
