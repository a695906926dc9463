# %% [markdown]
# # 12 DiT: conditioning by modulation
#
# After this notebook you can tell a network the time and the class in four ways, write the block of DiT from memory, and turn it into SiT by changing three words.
#
# Run time: three to five minutes on a CPU with two idle cores, most of it training two small networks; expect as long on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - draw four ways of conditioning, and see what each costs,
# - build the adaLN-Zero block by hand, and get the package's numbers out of it,
# - prove that an untrained DiT does nothing, and watch it wake up in three steps,
# - look at what the modulation does over time, and what happens when you lie to it,
# - compare the four ways, and loss against work, in recorded runs beside the paper's figures,
# - make a flow of it, and load a network whose time runs the other way.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Two things that are no pixels
#
# A denoiser gets a noisy picture and two small facts: how much noise there is, and what the picture should show. U-ViT made tokens of both and let attention do the rest. Is that the best way? Peebles and Xie (2023) took a plain vision transformer, the **DiT**, and tried four.
#
# In each, time and class become vectors of the model's width $d$. Call $c$ what the blocks hear of them. Below is one block of each kind, read from the bottom up. Grey boxes are what any vision transformer has. Orange boxes hear $c$. A line along the left is a residual connection: what the boxes compute is added to what came in.

# %%
PLAIN, ADALN = "norm|attention|+|norm|MLP|+", "norm|*scale, shift|attention|+|norm|*scale, shift|MLP|+"
ways = {  # from the bottom up; * hears the condition, + closes a residual branch
    "in-context": "*join tokens, once|" + PLAIN,
    "cross-attention": PLAIN.replace("+|norm|M", "+|norm|*cross-attention|+|norm|M"),
    "adaLN": ADALN, "adaLN-Zero": ADALN.replace("n|+", "n|*gate|+").replace("P|+", "P|*gate|+")}

@plots.quiet
def draw_ways():
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 4, figsize=(9.2, 4.9), sharey=True)
    for ax, (name, boxes) in zip(axes, ways.items()):
        start = -0.6 if boxes[0] == "n" else 0.45
        for y, box in enumerate(boxes.split("|")):
            ax.plot([0, 0], [y - 0.8, y + 0.5], "-", color="grey", linewidth=1.4, zorder=0)
            if box == "+":
                ax.plot([0, -1.15, -1.15, 0], [start, start, y, y], "-", color="grey", linewidth=1.2, zorder=0)
                start = y + 0.45
            frame = dict(boxstyle="circle" if box == "+" else "square,pad=0.5", edgecolor="grey",
                         facecolor={"*": "#F3C267", "+": "w"}.get(box[0], "#E4E4E4"))
            ax.text(0, y, box.strip("*").center(18 * (box != "+")), ha="center", va="center", fontsize=8.5, bbox=frame)
            if box[0] == "*":
                ax.annotate("c", (0.7, y), (1.5, y), va="center", arrowprops=dict(arrowstyle="-|>", color="grey"))
        ax.set(title=name, xlim=(-1.3, 1.7), ylim=(-0.9, 9.5), xticks=[], yticks=[], frame_on=False)
    return figure
draw_ways()

# %% [markdown]
# **In-context** is U-ViT's way: two more tokens, which leave after the last block. **Cross-attention** keeps them beside the picture, as two tokens that every patch may ask. **adaLN** takes them out of the sequence altogether. Time and class are added to one vector $c$, and $c$ decides how each layer norm scales and shifts. **adaLN-Zero** adds a gate at the end of each branch. That one became DiT.
#
# ## A norm that listens
#
# A layer norm takes a token, one vector of $d$ channels, subtracts its mean over the channels and divides by its standard deviation. Then it multiplies by a learned vector $\gamma$ and adds a learned $\beta$, the same for all tokens, all times and all classes. *Adaptive* layer norm (adaLN) throws these two constants away, and computes others from $c$:
#
# $$\text{norm}(x) = \frac{x - \mu(x)}{\sqrt{\operatorname{var}(x) + 10^{-6}}}, \qquad \text{adaLN}(x, c) = \text{norm}(x)\,\big(1 + \text{scale}(c)\big) + \text{shift}(c).$$
#
# The 1 is there so that scale 0 means "leave it as it is". The same scale and shift act on every patch. So $c$ cannot say *where* something should happen, only which channels speak up. You met the idea in the U-Net of [notebook 08](08_the_u_net.ipynb), where the time was added to the channels of each block: a shift alone.

# %%
import math

import torch
import torch.nn.functional as F


def norm(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def adaln(x, shift, scale):
    """x (B, N, d), shift and scale (B, 1, d)."""
    return norm(x) * (1 + scale) + shift


x, shift, scale = 3 + 2 * torch.randn(2, 5, 24), torch.randn(2, 1, 24), torch.randn(2, 1, 24)
for k in range(2):
    usual = F.layer_norm(x[k], (24,), weight=1 + scale[k, 0], bias=shift[k, 0], eps=1e-6)
    assert torch.allclose(adaln(x, shift, scale)[k], usual, atol=1e-5)
print("for each condition adaLN is a layer norm, with constants of its own")

# %% [markdown]
# ## Built by hand
#
# Now the whole network, with the weights of a small DiT of the package: 16-pixel pictures, patches of 2 by 2, so 64 tokens, of width $d = 96$, in 4 blocks. A fresh DiT has many zeros, for reasons that are the next section. For the comparison, fill them with random numbers.

# %%
data = minidiff.load_dataset("emoji", size=16)
held_out = minidiff.load_dataset("emoji", size=16, split="test")
torch.manual_seed(0)
network = minidiff.create_model("dit_tiny", num_classes=len(data.classes))
with torch.no_grad():
    for weight in network.parameters():
        if weight.requires_grad and not weight.any():
            weight.normal_(std=0.1)
print(f"{sum(w.numel() for w in network.parameters()):,} weights")

# %% [markdown]
# ### The condition and the block
#
# The time is DDPM's index, 0 to 999. It becomes 256 sines and cosines, whatever $d$ is; cosines come first, and the frequencies are $10000^{-k/128}$. Two linear layers follow. A class is a row of a table, with one row more than there are classes, for "no class". The sum of both, through one more SiLU, is $c$.
#
# In each block one linear map $W c + b$ makes six vectors: shift, scale and gate of the attention, then shift, scale and gate of the MLP. (The MLP has the approximate GELU, with a tanh.)

# %%
def condition(time, y, p):
    angles = time[:, None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    first, _, second = p.time_embed
    time = second(F.silu(first(torch.cat([angles.cos(), angles.sin()], dim=1))))
    return F.silu(time + p.label_embed.weight[y])  # (B, d)


def attention(x, p):
    q, k, v = (part.unflatten(2, (p.num_heads, -1)).transpose(1, 2) for part in p.qkv(x).chunk(3, dim=2))
    weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)  # (B, heads, N, N)
    return p.proj((weights @ v).transpose(1, 2).flatten(2))


def mlp(x, p):
    return p.fc2(F.gelu(p.fc1(x), approximate="tanh"))


def block(x, c, p, weight, bias):
    six = F.linear(c, weight, bias)[:, None].chunk(6, dim=2)  # each (B, 1, d), the same for every token
    shift1, scale1, gate1, shift2, scale2, gate2 = six
    x = x + gate1 * attention(adaln(x, shift1, scale1), p.attn)
    return x + gate2 * mlp(adaln(x, shift2, scale2), p.mlp)

# %% [markdown]
# ### The whole
#
# Cut into patches, add positions (DiT does not learn them: a fixed table holds sines and cosines of each patch's column, then of its row), pass the blocks, norm once more with a shift and a scale from $c$, and make pixels of each token. In the package the maps $W$ of all blocks are one large matrix, since all of them read the same $c$: one product in place of four. So cut it into blocks first.

# %%
def dit(x, time, y, p):
    x = F.conv2d(x, p.patch_embed.weight, p.patch_embed.bias, stride=p.patch_size)  # (B, d, 8, 8)
    tokens, c = x.flatten(2).transpose(1, 2) + p.pos_embed, condition(time, y, p)
    rows = [part.chunk(len(p.blocks)) for part in (p.modulation.linear.weight, p.modulation.linear.bias)]
    for layer, weight, bias in zip(p.blocks, *rows):
        tokens = block(tokens, c, layer, weight, bias)
    shift, scale = p.final_layer.modulation(c)[:, None].chunk(2, dim=2)
    tokens = p.final_layer.linear(adaln(tokens, shift, scale))  # (B, 64, 2 * 2 * 3)
    patches = tokens.unflatten(2, (p.patch_size, p.patch_size, -1)).unflatten(1, (p.grid, p.grid))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, 3, 16, 16)


x, time, y = torch.randn(4, 3, 16, 16), torch.tensor([0.0, 10.0, 500.0, 999.0]), torch.tensor([0, 3, 9, 10])
with torch.no_grad():
    mine, theirs = dit(x, time, y, network), network(x, time, y)
print(f"largest difference {(mine - theirs).abs().max():.0e}, the outputs have standard deviation {theirs.std():.2f}")
assert torch.allclose(mine, theirs, atol=1e-4)

# %% [markdown]
# Equal. That is all of DiT, but for what its weights are at the start.
#
# ## Nothing at first
#
# DiT sets the map $W$, $b$ of every block to zero before training. Then shift, scale *and gate* are zero whatever $c$ is, and each branch is multiplied by nothing: $x + 0 \cdot \text{attention}(\dots) = x$. **An untrained block is the identity**, to the bit. The last linear layer is zero as well, and so is the output.
#
# A network that always answers 0 has a loss you can compute. Its target is $v = \alpha\varepsilon - \sigma x_0$, so
#
# $$\mathbb E\,v^2 = \alpha^2 + \sigma^2\,\mathbb E\,x_0^2,$$
#
# averaged over the times. If a DiT starts elsewhere, something is wrong before the first step.

# %%
def new_dit(**options):
    torch.manual_seed(0)
    network = minidiff.create_model("dit_tiny", num_classes=len(data.classes), **options)
    return minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 16, 16))


fresh, passed = new_dit(), []
hooks = [layer.register_forward_hook(lambda _, given, out: passed.append((given[0], out)))
         for layer in fresh.network.blocks]
with torch.no_grad():
    out = fresh.network(x, time, y)
    measured = fresh.loss(data.images()[:1000], data.labels[:1000]).mean().item()
[hook.remove() for hook in hooks]
assert all(torch.equal(before, after) for before, after in passed) and out.eq(0).all()
alpha, sigma = fresh.schedule(torch.arange(1, 1001) / 1000)
expected = (alpha**2 + sigma**2 * data.images().square().mean()).mean().item()
print(f"loss of the untrained network {measured:.3f}, computed {expected:.3f}")
assert abs(measured - expected) < 0.03

# %% [markdown]
# What is that good for? Stack 24 blocks and look at the size of the tokens as they pass through untrained networks of all four kinds.

# %%
def growth(conditioning):
    torch.manual_seed(0)
    size = dict(hidden_size=48, depth=24, num_heads=4, num_classes=10, conditioning=conditioning)
    deep, sizes = minidiff.create_model("dit_tiny", **size), []
    for layer in deep.blocks:
        layer.register_forward_hook(lambda _, given, out: sizes.extend([given[0][:, :64], out[:, :64]]))
    with torch.no_grad():
        deep(x, time, y)
    sizes = [sizes[0]] + sizes[1::2]
    return range(25), [tokens.square().mean().sqrt().item() for tokens in sizes]


kinds = {"in-context": "in_context", "cross-attention": "cross_attention", "adaLN": "adaln", "adaLN-Zero": "adaln_zero"}
sizes = {name: growth(kind) for name, kind in kinds.items()}
assert len(set(sizes["adaLN-Zero"][1])) == 1
figure = plots.lines(sizes, x="blocks passed", y="root mean square of the tokens")
figure.axes[0].lines[0].set(linewidth=5, alpha=0.4)
figure

# %% [markdown]
# Without gates every random branch adds its own noise to the tokens, and what left the patches is buried under it. With zero gates depth costs nothing: a network of 24 blocks starts as a network of none, and adds what helps. Among the three others the differences are chance: before training their shifts and scales are zero as well.
#
# ## How can nothing learn?
#
# If all is zero, is the gradient zero too? Write one branch as $x' = x + g \odot f_\theta(x)$, with the gate $g$, and let $L$ be the loss. By the chain rule
#
# $$\frac{\partial L}{\partial g} = \sum_{\text{tokens}} \frac{\partial L}{\partial x'} \odot f_\theta(x), \qquad \frac{\partial L}{\partial \theta} = \Big(\frac{\partial f_\theta}{\partial\theta}\Big)^{\!\top}\! \Big(g \odot \frac{\partial L}{\partial x'}\Big).$$
#
# At $g = 0$ the branch gets no gradient, and the gate gets one: random as the branch is, some of its channels point the right way, and the gate learns which. But $\partial L/\partial x'$ has to come back through the last layer, and that is zero as well. So guess: who learns in which step? Then look.

# %%
from IPython.display import Markdown

parts = {"last linear layer": ["final_layer.linear"], "gates": [], "norm before it": ["final_layer.modulation"],
         "patch embedding": ["patch_embed"], "shifts and scales": [], "attention and MLP": [".attn.", ".mlp."],
         "time and class vectors": ["time_embed", "label_embed"]}
norms = {name: [] for name in parts}
optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-3)
for _ in range(4):
    optimizer.zero_grad()
    fresh.loss(data.images()[:64], data.labels[:64]).mean().backward()
    slopes = {name: w.grad for name, w in fresh.network.named_parameters() if w.requires_grad}
    six = slopes["modulation.linear.weight"].view(4, 2, 3, -1)  # block, branch, shift or scale or gate
    for name, keys in parts.items():
        chosen = [slope for weight, slope in slopes.items() if any(key in weight for key in keys)]
        chosen = chosen or [six[:, :, 2] if name == "gates" else six[:, :, :2]]
        norms[name].append(torch.stack([slope.norm() for slope in chosen]).norm().item())
    optimizer.step()
assert [name for name, values in norms.items() if values[0]] == ["last linear layer"]
assert norms["gates"][1] > 0 == norms["attention and MLP"][1] and norms["attention and MLP"][2] > 0
rows = [f"| {name} | " + " | ".join(f"{v:.0e}" if v else "**0**" for v in values) + " |"
        for name, values in norms.items()]
Markdown("| gradient, its norm | step 0 | step 1 | step 2 | step 3 |\n|---|---|---|---|---|\n" + "\n".join(rows))

# %% [markdown]
# The network wakes up from its end, in three steps. In step 0 only the last layer learns; **the gradient of the gates is exactly zero**, and so is every other one. In step 1 the last layer is no longer zero, and the gates get their first gradient, while attention and MLP behind them still get none. In step 2 everything learns. Nothing is stuck, because on every path at most one factor at a time has to leave zero. (Had you zeroed the branch *and* its gate, the product would stay zero for ever.)
#
# ## Watch the gates open
#
# Train one. The recipe is that of the runs you will compare later, the record is the root mean square of the gates, over all channels and sixteen times.

# %%
@torch.no_grad()
def modulations(network, times, y):
    """What the blocks get at times (T,) in [0, 1] with one class: (T, block, branch, shift/scale/gate, d)."""
    device = network.pos_embed.device
    index, y = (1000 * times - 1).to(device), torch.full((len(times),), y, device=device)
    c = network.time_embed(minidiff.layers.timestep_embedding(index, 256, order="cos_sin", divisor="half"))
    six = network.modulation.linear(F.silu(c + network.label_embed(y)))
    return six.view(len(times), len(network.blocks), 2, 3, -1).cpu()


def rms(x, *dims):
    return x.square().mean(dims).sqrt()


recipe = dict(batch_size=64 if run.tier != "smoke" else 8, lr=1e-3, warmup=100, ema=0.995, p_uncond=0.1,
              progress=False, device=run.device)
one_step = new_dit()
steps = budget("each of two networks", smoke=4, cpu=400, gpu=4000,
               per_step=lambda: minidiff.training.train(one_step, data, **recipe | {"steps": 1}))

# %% [markdown]
# Then train, and look at the gates some forty times on the way.

# %%
gates, sixteen = {}, (torch.arange(16) + 0.5) / 16


def watch(step, history):
    if step % max(1, steps // 40) == 0 or step in (1, 2, 3, steps):
        gates[step] = rms(modulations(model.network, sixteen, 7)[..., 2, :], 0, -1)  # (block, branch)


model = new_dit()
gates[0] = rms(modulations(model.network, sixteen, 7)[..., 2, :], 0, -1)
history = minidiff.training.train(model, data, steps=steps, on_step=watch, **recipe)
trained = history.ema.cpu()
grown = torch.stack([gates[step] for step in sorted(gates)])  # (records, block, branch)
curves = {f"{name} of block {k}": (sorted(gates), grown[:, k, b])
          for b, name in enumerate(("attention", "MLP")) for k in range(4)}
plots.lines(curves, x="step", y="root mean square of the gates")

# %% [markdown]
# All gates open while the learning rate rises, and settle well below 1.
#
# ## What it says when
#
# Now read the modulation. For one class and all times, here is the root mean square over the channels of each of the six vectors, for each block.

# %%
times = torch.linspace(0.001, 1, 100)
six = modulations(trained.network, times, 7)  # class 7, smileys


@plots.quiet
def draw_modulation(six):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 3, figsize=(9.0, 3.6), sharex=True, sharey=True)
    for j, kind in enumerate(("shift", "scale", "gate")):
        size = rms(six[:, :, :, j], -1)  # (T, block, branch)
        for i, branch in enumerate(("attention", "MLP")):
            shown = axes[i, j].imshow(size[:, :, i].T, extent=(0, 1, 3.5, -0.5), aspect="auto", cmap="viridis",
                                      vmin=0, vmax=size.max())
            axes[i, j].set(title=f"{kind}, {branch}", yticks=range(4))
            axes[i, j].grid(False)
        figure.colorbar(shown, ax=axes[:, j], fraction=0.05, pad=0.02)
    [ax.set_xlabel("t") for ax in axes[1]]
    [ax.set_ylabel("block") for ax in axes[:, 0]]
    return figure


draw_modulation(six)

# %% [markdown]
# Does the time matter more, or the class? Put all times and all classes into a table and split the variance of each modulation: what depends on the time alone, on the class alone, and on both together. Then measure what the class is worth: the loss on unseen pictures if you name the right class, none, or another one.

# %%
every = torch.stack([modulations(trained.network, sixteen, y) for y in range(10)])  # (class, T, block, branch, 3, d)
centre = every.mean((0, 1), keepdim=True)
by_time, by_class = every.mean(0, keepdim=True) - centre, every.mean(1, keepdim=True) - centre
both = every - centre - by_time - by_class
shares = torch.stack([part.square().expand_as(every).mean((0, 1, 2, 3, 5)) for part in (by_time, by_class, both)])
assert torch.allclose(shares.sum(0), (every - centre).square().mean((0, 1, 2, 3, 5)), rtol=1e-3)
print("share of the variance   time  class   both")
for j, kind in enumerate(("shift", "scale", "gate")):
    print(f"{kind:20}", " ".join(f"{v:7.1%}" for v in (shares / shares.sum(0))[:, j]))
few = slice(0, 372 if run.tier != "smoke" else 8)
unseen, right = held_out.images()[few], held_out.labels[few]
with torch.no_grad():
    for name, y in (("right", right), ("none", trained.network.null(right)), ("wrong", (right + 1) % 10)):
        loss = [trained.loss(unseen, y, t=torch.full((len(y),), t), eps=minidiff.seeded_noise(range(len(y)))(unseen))
                for t in (0.3, 0.6, 0.9)]
        print(f"class {name:5}: loss", ", ".join(f"{v.mean():.4f} at t = {t}" for v, t in zip(loss, (0.3, 0.6, 0.9))))

# %% [markdown]
# "Both" can only come from the SiLU in front of the map: up to there time and class are simply added. What surprises is how little the class has to say. The time is worth a lot in every pixel of every picture, from the first step on. A class is worth little as long as the picture can be seen through the noise, and a young network learns first what pays most.
#
# Now see what reaches one picture: how much does each block change the tokens of an unseen smiley, from little noise to much?

# %%
smiley = held_out.images()[held_out.labels == 7][3:4]
eps = minidiff.seeded_noise([3])(smiley)
work = {k: [] for k in range(4)}
hooks = [layer.register_forward_hook(
    lambda _, given, out, k=k: work[k].append(((out - given[0]).norm() / given[0].norm()).item()))
    for k, layer in enumerate(trained.network.blocks)]
levels = torch.linspace(0.02, 0.98, 25).tolist()
guesses = []
with torch.no_grad():
    for t in levels:
        guesses.append(trained.denoise(trained.forward_process(smiley, t, eps), t, torch.tensor([7])).x0)
[hook.remove() for hook in hooks]
display(plots.lines({f"block {k}": (levels, values) for k, values in work.items()}, x="t", y="change / tokens"))
noisy = [trained.forward_process(smiley, t, eps) for t in levels]
plots.filmstrip([torch.cat(pair) for pair in zip(noisy, guesses)], levels, rows=["noisy", "its guess"], columns=9)

# %% [markdown]
# The same weights do different work at different times. That is what modulation is for.
#
# ## Lie to it
#
# How much does the network trust what it is told? Take unseen pictures at three noise levels, and tell it any time you like.

# %%
images, labels_of = unseen[:96], right[:96]
noise = minidiff.seeded_noise(range(len(images)))(images)
told = torch.linspace(0.02, 0.98, 25).tolist()
lies = {}
with torch.no_grad():
    for true in (0.2, 0.5, 0.8):
        x_t, error = trained.forward_process(images, true, noise), []
        for t in told:
            out = trained.network(x_t, torch.tensor([1000 * t - 1]), labels_of)
            x0 = minidiff.Prediction("v", x_t, out, *trained.schedule(true)).x0
            error.append((x0 - images).square().mean().item())
        lies[f"true t = {true}"] = (told, error)
best = {name: told[torch.tensor(error).argmin()] for name, (_, error) in lies.items()}
print("best time to tell:", ", ".join(f"{name}: {t:.2f}" for name, t in best.items()))
plots.lines(lies, x="time it is told", y="squared error of its guess", log="y")

# %% [markdown]
# Each curve should be lowest near its true time. On both sides it is wrong in its own way: told too little noise it leaves noise in the picture, told too much it washes details away. And note how flat the bottoms are. A fraction of a step does not matter, which is why samplers may use times that training never saw.
#
# ## Four ways, measured
#
# The paper trained the four for 400,000 steps, as XL/2 on ImageNet. Here each was trained as a network of width 96 for 600 steps on emoji of 16 pixels, all with the same data, order, noise and recipe: `python tools/ablation.py dit --tier cpu` makes the records again.
#
# The first number is the loss on pictures that were held out, the second the Fréchet distance of 512 samples, from [notebook 09](09_training_well.ipynb).

# %%
from minidiff.course.recorded import recorded

records = recorded("dit", "cpu")
four = {name: kind.replace("_", "-") for name, kind in kinds.items()}
paper = {"in-context": (449, 119.37, 35.24), "cross-attention": (598, 137.62, 26.14), "adaLN": (600, 118.56, 25.21),
         "adaLN-Zero": (675, 118.64, 19.47)}  # millions of weights, Gflops, FID at 400,000 steps
loss = {name: records[key]["held_out"]["mean"] for name, key in four.items()}
frechet = {name: records[key]["distances"]["frechet"]["value"] for name, key in four.items()}
heads = "| | weights, paper | Gflops | FID | weights, here | MFLOPs | held-out loss | Fréchet |"
lines = [heads, "|---|" + "---:|" * 7]
for name, (weights, gflops, fid) in paper.items():
    own = records[four[name]]["model"]
    lines.append(f"| {name} | {weights} M | {gflops} | {fid} | {own['parameters'] / 1e6:.2f} M | "
                 f"{own['flops'] / 1e6:.0f} | {loss[name]:.4f} | {frechet[name]:.2f} |")
Markdown("\n".join(lines))

# %% [markdown]
# (The paper's "Gflops" count a multiplication and an addition as one, ours as two.) How large is luck? Runs that were repeated with another seed tell, where there are any. The last figure has samples of the four, from the same noise and for the same classes.

# %%
def luck(of):
    """Differences between runs that differ in their seed alone, of all experiments in this tier."""
    every = [recorded(experiment, "cpu") for experiment in ("dit", "uvit")]
    return [abs(of(runs[name]) - of(runs[name.removesuffix("-seed1")]))
            for runs in every for name in runs if name.endswith("-seed1")]


def order(values):
    return " < ".join(f"{name} {values[name]:.3g}" for name in sorted(values, key=values.get))


for title, values, of in (("held-out loss", loss, lambda r: r["held_out"]["mean"]),
                          ("Fréchet distance", frechet, lambda r: r["distances"]["frechet"]["value"])):
    seeds = luck(of)
    print(f"{title}: {order(values)}")
    print(f"    another seed changes it by {max(seeds):.3g} at most" if seeds else "    no second seed is recorded")
print("FID in the paper:", order({name: values[2] for name, values in paper.items()}))
base = records["adaln-zero"]["held_out"]
curves = {name: (base["times"], [a / b for a, b in zip(records[key]["held_out"]["losses"], base["losses"])])
          for name, key in four.items()}
display(plots.lines(curves, x="t", y="held-out loss / that of adaLN-Zero"))
shown = torch.stack([records[key]["samples"][:10] for key in four.values()], dim=1)  # (10, 4, 3, 16, 16)
plots.filmstrip(shown, rows=list(four))

# %% [markdown]
# Read it with care. What holds in both worlds is the gap between adaLN and adaLN-Zero: the gates cost almost no work and make the loss fall faster. What need not hold is the rest of the order. In the paper in-context is last by far, at 28 blocks and 400,000 steps, and here it may well be second or better: in 4 blocks two tokens are close to everything, and 600 steps measure how fast a network *starts* to learn, not how good it gets. Distances of 512 samples from such young models are noisier than losses. Believe only differences that are larger than luck.
#
# ## Work, not weights
#
# The paper's other finding is about size. Take its twelve networks: four sizes (S, B, L, XL), each with patches of 2, 4 and 8. `minidiff.summary` counts weights and work on the *meta* device, where tensors have shapes and no memory, so that even XL takes no time. Compare with the paper.

# %%
SIZES, PATCHES = ("s", "b", "l", "xl"), (2, 4, 8)
PAPER_GFLOPS = dict(s=(6.06, 1.41, 0.36), b=(23.01, 5.56, 1.42), l=(80.71, 19.70, 5.01), xl=(118.64, 29.05, 7.39))
PAPER_FID = dict(s=(68.40, 100.41, 153.60), b=(43.47, 68.38, 122.74), l=(23.33, 45.64, 118.87),
                 xl=(19.47, 43.01, 106.41))  # 400,000 steps, no guidance
counted, rows = {}, ["| | weights | Gflops, counted | Gflops, paper | FID, paper |", "|---|---:|---:|---:|---:|"]
for size in SIZES:
    for p, gflops, fid in zip(PATCHES, PAPER_GFLOPS[size], PAPER_FID[size]):
        with torch.device("meta"):
            large = minidiff.create_model(f"dit_{size}_{p}")
        known = minidiff.summary(large)
        counted[size, p] = known.parameters, known.flops / 2e9, fid
        assert abs(known.flops / 2e9 / gflops - 1) < 0.02
        rows.append(f"| {size.upper()}/{p} | {known.parameters:,} | {known.flops / 2e9:.2f} | {gflops} | {fid:.2f} |")
_, gflops, fids = map(torch.tensor, zip(*counted.values()))
correlation = torch.corrcoef(torch.stack([gflops.log(), fids]))[0, 1].item()
print(f"correlation of FID and log Gflops: {correlation:.2f}")
Markdown("\n".join(rows))

# %% [markdown]
# Look at the three rows of one size. They have almost the same weights, and yet the FID runs from 19 to 106: halving the patch makes four times as many tokens, four times the work, and a far better model. Counting weights tells you nothing about that. Counting work does, and our own small family (again 600 steps) can be drawn beside it.

# %%
@plots.quiet
def draw_scaling(counted, small):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.6))
    for p, marker in zip(PATCHES, "osD"):
        chosen = [counted[size, p][1:] for size in SIZES]
        axes[0].plot(*zip(*chosen), marker + "-", label=f"patch {p}", linewidth=1)
        side = dict(xytext=(-4, -12), ha="right") if p == 4 else dict(xytext=(4, 4))
        for size, spot in zip(SIZES, chosen):
            axes[0].annotate(size.upper(), spot, textcoords="offset points", fontsize=8, **side)
    axes[0].set(xscale="log", xlabel="Gflops", ylabel="FID", title="paper: ImageNet, 400,000 steps")
    axes[0].legend()
    for k, (name, (weights, flops, value)) in enumerate(small.items()):
        axes[1].plot(flops / 1e6, value, "o", color=plots.COLORS[k], label=f"{name}: {weights / 1e6:.2f} M weights")
    axes[1].set(xscale="log", xlabel="MFLOPs", ylabel="held-out loss", title="here: emoji, 600 steps", xlim=(12, 84))
    axes[1].set_xticks([16, 32, 64], ["16", "32", "64"])
    axes[1].set_xticks([], minor=True)
    axes[1].legend()
    return figure


ours = {"the large one": "adaln-zero", "width 64": "narrow", "2 blocks": "shallow", "patch 4": "patch-4"}
small = {name: (records[key]["model"]["parameters"], records[key]["model"]["flops"], records[key]["held_out"]["mean"])
         for name, key in ours.items()}
draw_scaling(counted, small)

# %% [markdown]
# On the left all twelve fall along one band, whichever way they got their work. On the right, the network with patches of 4 has as many weights as the large one and a quarter of its work, and its loss is the worst of the four. Two thirds of the width, or half of the depth, leave half of the work, and cost about as much.
#
# ## Learned sigma, in short
#
# DiT has twice as many outputs as it needs. The second half, $o$, sets the variance of the sampler's step (improved DDPM, Nichol and Dhariwal 2021): between the smallest that makes sense, $\tilde\beta$ of the posterior, and the largest, $\beta$,
#
# $$\log \text{variance} = s \log\beta + (1 - s)\log\tilde\beta, \qquad s = \frac{o + 1}{2}.$$
#
# It is learned with a small variational term beside the squared error. A fresh DiT has $o = 0$ and begins halfway.

# %%
from minidiff.variational import log_variance

torch.manual_seed(0)
wide = minidiff.create_model("dit_tiny", num_classes=10, learn_sigma=True)
ranged = minidiff.Diffusion(wide, minidiff.schedules.linear(1000), "eps", learned_range=True, shape=(3, 16, 16))
t = torch.arange(2, 1001) / 1000
(alpha, sigma), (alpha_s, sigma_s) = ranged.schedule(t), ranged.schedule(t - 0.001)
beta = 1 - (alpha / alpha_s) ** 2
small_beta = beta * (sigma_s / sigma) ** 2
with torch.no_grad():
    o = ranged.denoise(torch.randn(1, 3, 16, 16), 0.5, torch.tensor([3])).v_range.mean()
half = (o + 1) / 2 * beta.log() + (1 - o) / 2 * small_beta.log()
assert torch.allclose(half, log_variance(ranged.schedule, t, "learned", o.expand(len(t))), atol=1e-2)
curves = {r"$\beta$": (1000 * t, beta), "untrained": (1000 * t, half.exp()), r"$\tilde\beta$": (1000 * t, small_beta)}
plots.lines(curves, x="step of 1000", y="variance of the step", log="xy")

# %% [markdown]
# The two bounds meet within a few steps from the data. With many steps the choice hardly matters for pictures, with few it does, and likelihoods feel it most.
#
# ## SiT: three words
#
# **SiT** (Ma et al. 2024) asks how much of DiT is the network and how much the diffusion. It keeps the network to the last weight, drops the variance, and trains a flow, as in [notebook 06](06_flow_matching.ipynb): straight paths, the velocity $\varepsilon - x_0$ for a target. In this package that is another schedule, another prediction, another clock.

# %%
def new_sit():
    torch.manual_seed(0)
    network = minidiff.create_model("sit_tiny", num_classes=len(data.classes))
    return minidiff.Diffusion(network, minidiff.schedules.flow(), "flow", time="1-t", shape=(3, 16, 16))


sit = minidiff.training.train(new_sit(), data, steps=steps, **recipe).ema.cpu()
count = 512 if run.tier != "smoke" else 16
y = data.labels[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]]
settings = dict(y=y, steps=20 if run.tier != "smoke" else 2, batch_size=256, progress=False)
pictures = {"DiT, DDIM": minidiff.sample(trained, count, sampler="ddim", **settings),
            "SiT, Euler": minidiff.sample(sit, count, sampler="euler", **settings)}
gaps = {name: minidiff.metrics.frechet_distance(data.images(), made, "emoji") for name, made in pictures.items()}
print("Fréchet distance, 20 evaluations:", ", ".join(f"{name} {float(gap):.2f}" for name, gap in gaps.items()))
plots.filmstrip(torch.stack([made[:10] for made in pictures.values()], dim=1), rows=list(pictures))

# %% [markdown]
# Same network, same data, same number of steps, and no guidance for either. The paper reports an FID of 2.06 for SiT-XL/2 (with an SDE sampler and guidance 1.5), where DiT-XL/2 has 2.27. Who is ahead here, after a short training, the numbers say; a difference of a few tenths means nothing.
#
# One detail is odd. SiT feeds the time as it is, from 0 to 1, to features that were made for 0 to 999, so most of the 256 hardly move. It works all the same, since the layers behind can stretch what is left. Strange choices survive in published weights, and whoever loads these must repeat them.
#
# ### The other direction of time
#
# There is a bigger trap. In SiT's own code time runs from noise to data, $\tau = 1 - t$, and the network answers $x_0 - \varepsilon$. So its weights need two changes: feed $1 - t$, and turn the sign of the output, which means of the last layer. The test is one Euler step from pure noise: it must land on the mean of the data, whatever the noise. Take pictures from a Gaussian around the mean smiley $m$, with standard deviation 0.3. For these the perfect SiT network can be written down. It has a last layer, so that the package can turn it: `from_data_to_noise` makes both changes. The other three are what you get by forgetting one or both.

# %%
from minidiff.official.flow import from_data_to_noise
m, flow, shape = data.images()[data.labels == 7].mean(0), minidiff.schedules.flow(), (3, 16, 16)


class PerfectSiT(torch.nn.Module):
    """E[x0 - eps | x] for x = tau x0 + (1 - tau) eps and x0 from N(m, 0.3^2), as SiT answers; time is tau."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Conv2d(3, 3, 1, bias=False)
        self.last.weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, x, tau, y=None):
        slope = (0.09 * tau - (1 - tau)) / (0.09 * tau**2 + (1 - tau) ** 2)
        return self.last(m + slope.view(-1, 1, 1, 1) * (x - tau.view(-1, 1, 1, 1) * m))


models = {"both turned": from_data_to_noise(PerfectSiT(), "sit", last="last", shape=shape)}
for name, network, clock in (("only the sign", models["both turned"].network, "t"),
                             ("only the time", PerfectSiT(), "1-t"), ("neither", PerfectSiT(), "t")):
    models[name] = minidiff.Diffusion(network, flow, "flow", time=clock, shape=shape)
noise = minidiff.seeded_noise([4])(m[None])
ends = {name: (noise - model.denoise(noise, 1.0).flow)[0].detach() for name, model in models.items()}
assert [name for name, end in ends.items() if torch.allclose(end, m, atol=1e-5)] == ["both turned"]
plots.grid(torch.stack([m, *ends.values()]), titles=["the mean", *ends])

# %% [markdown]
# Only the first lands. The last is as tidy, and wrong. The test needs no data, no training and no second implementation, and it catches every wrong combination. Do it whenever you load a foreign flow. (`load_official("sit_xl_2", path)` does both changes for you.)
#
# ## Where does it look?
#
# With conditioning in the norms, attention is for patches alone. Choose the block, head, time and asking patch. The red frame marks who asks.

# %%
from minidiff.course.attention import explore_attention

explore_attention(trained, smiley, torch.tensor([7]), times=[0.1, 0.3, 0.5, 0.7, 0.9])

# %% [markdown]
# Try the smallest and the largest time. Does a patch look farther when there is more noise? Is there a head that looks at the object and leaves the background out?
#
# ## What the paper found, what you measured

# %%
xl = counted["xl", 2][0]
share = 28 * (6 * 1152 * 1152 + 6 * 1152) / xl
findings = [
    ("adaLN-Zero is the best of four ways: FID " + order({name: values[2] for name, values in paper.items()}),
     "held-out loss " + order(loss) + "; Fréchet " + order(frechet)),
    ("Zero gates help: FID 25.21 without, 19.47 with", f"held-out loss {loss['adaLN']:.3f} without, "
     f"{loss['adaLN-Zero']:.3f} with; the blocks begin as the identity, to the bit"),
    ("adaLN costs next to no work: 118.56 Gflops for XL/2, cross-attention 137.62",
     f"{records['adaln']['model']['flops'] / 1e6:.1f} MFLOPs, cross-attention "
     f"{records['cross-attention']['model']['flops'] / 1e6:.1f}"),
    ("675 million weights for XL/2", f"{xl:,} with the fixed positions; {share:.0%} of them make modulations"),
    ("Work decides, not weights: correlation of FID and Gflops -0.93",
     f"{correlation:.2f} with log Gflops, from the paper's table; here patch 4 against patch 2, at equal weights: loss "
     f"{small['patch 4'][2]:.3f} against {small['the large one'][2]:.3f}"),
    ("The same network as a flow is better: FID 2.06 against 2.27, with guidance (Ma et al. 2024)",
     "Fréchet " + ", ".join(f"{name} {float(gap):.2f}" for name, gap in gaps.items())),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. The gradient of a gate (a line).** You are given the gradient of the loss by the output of a branch $x' = x + g \odot f(x)$, and the branch $f(x)$. Return the gradients by $g$ and by $f(x)$.

# %% tags=["exercise"] name="gate_gradients"
def gate_gradients(slope, branch, gate):
    """slope = dL/dx' (B, N, d), branch = f(x) (B, N, d), gate (B, d) -> (dL/dgate (B, d), dL/dbranch (B, N, d))."""
    ...  # your code

# %% [markdown]
# The check compares with automatic differentiation, at an open gate and at a closed one.

# %%
exercises.check_gate_gradients(gate_gradients)

# %% [markdown]
# **2. Count the weights.** Without building the network: how many parameters has a DiT of `depth` blocks of width $d$ with patches of $p$, for a latent of 4 by 32 by 32, 1000 classes and learned sigma? Count the fixed positions too. "Built by hand" has everything; each linear map has a bias. For XL/2 the answer is 675,129,632.

# %% tags=["exercise"] name="dit_weights"
def dit_weights(depth, d, p):
    """The number of parameters, a whole number."""
    ...  # your code

# %% [markdown]
# The check asks for all twelve.

# %%
exercises.check_dit_weights(dit_weights)

# %% [markdown]
# **3. A project: one modulation for all.** A third of DiT's weights only make modulations. PixArt-alpha shares: one map from $c$ gives six vectors for the *whole* network, and each block adds a learned table of six vectors of its own (adaLN-single). Write how the parts are joined.

# %% tags=["exercise"] name="adaln_single"
def adaln_single(shared, tables):
    """shared (B, 6 d) from the one map, tables (L, 6, d) -> the six vectors of every block, (L, B, 6, d)."""
    ...  # your code

# %% [markdown]
# The check compares three sizes.

# %%
exercises.check_adaln_single(adaln_single)

# %% [markdown]
# Now the project. Make a module with `forward(c)` that returns what the package's `Modulation` returns, a list of pairs of (shift, 1 + scale, gate), each $(B, 1, d)$. Put it into `new_dit().network.modulation`, with zeros such that the blocks begin as the identity, and train it with `recipe`. How many weights are saved, and what do they cost in loss? Which blocks differ most from the shared part?
#
# ## What you learned
#
# - Time and class can be tokens, a second sequence, or the scale and shift of every norm. The last costs almost no work, and most weights.
# - With zero gates a block begins as the identity. The network wakes from its end: last layer, gates, branches, one step each.
# - A denoiser told the wrong time errs in a predictable way, and small lies cost nothing.
# - Small runs confirm the gates and the value of small patches. They cannot confirm an order that needs 400,000 steps.
# - SiT is DiT with another schedule, target and clock. One step on a Gaussian tests all conventions at once.
#
# ## Where to read on
#
# - Peebles, Xie, *Scalable diffusion models with transformers*, 2023, arXiv 2212.09748: DiT; figure 3 is your first one.
# - Perez et al., *FiLM*, 2018, arXiv 1709.07871: scale and shift from a condition, before transformers.
# - Goyal et al., *Accurate, large minibatch SGD*, 2017, arXiv 1706.02677: residual branches that begin at zero.
# - Ma et al., *SiT*, 2024, arXiv 2401.08740. Chen et al., *PixArt-alpha*, 2023, arXiv 2310.00426.
#
# Next comes notebook 13, *DiffiT: attention that knows the time*.
