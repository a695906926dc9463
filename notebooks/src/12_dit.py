# %% [markdown]
# # 12 DiT: conditioning by modulation
#
# After this notebook you can tell a network the time and the class in four ways, write the block of DiT from memory, and turn it into SiT by changing three words.
#
# Run time: about four minutes on a CPU with two idle cores, most of it training two small networks; as long on a T4 or a big GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - draw four ways of conditioning, and see what each costs,
# - build the adaLN-Zero block by hand, and get the package's numbers,
# - prove that an untrained DiT does nothing, and watch it wake up, step by step,
# - look at the modulation over time, and lie to it,
# - compare the four ways, and loss against work, in recorded runs beside the paper's figures,
# - make a flow of it, and load a network whose time runs the other way.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Two facts that are no pixels
#
# A denoiser gets a noisy picture and two small facts: how much noise there is, and what the picture should show. The U-ViT of [notebook 10](10_u_vit.ipynb) made tokens of both and let attention do the rest. Is that the best way? Peebles and Xie (2023) took a plain vision transformer, the **DiT**, and tried four.
#
# In each, time and class become vectors of the model's width $d$, the length of a token. Call $c$ what the blocks hear of them: in the two ways on the left both vectors, in the two on the right their sum. Below is one block of each kind, read from the bottom up. Grey boxes are in any vision transformer, orange boxes hear $c$. A line along the left is a residual connection: what the boxes compute is added to what came in.

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
                ax.annotate("c", (0.8, y), (1.5, y), va="center", arrowprops=dict(arrowstyle="-|>", color="grey"))
        ax.set(title=name, xlim=(-1.3, 1.7), ylim=(-0.9, 9.5), xticks=[], yticks=[], frame_on=False)
    return figure
draw_ways()

# %% [markdown]
# **In-context** is U-ViT's way: two more tokens, which leave after the last block. **Cross-attention** keeps these beside the picture, where every patch may ask them. **adaLN** has no tokens for them: $c$ decides how each layer norm scales and shifts. **adaLN-Zero** adds a gate at the end of each branch: one more vector from $c$, which multiplies what is about to be added. That one became DiT.
#
# ## A norm that listens
#
# A layer norm takes a token, subtracts its mean over the $d$ channels and divides by its standard deviation. Then it multiplies by a learned vector and adds another, the same for all tokens, times and classes. *Adaptive* layer norm (adaLN) computes these two from $c$:
#
# $$\text{norm}(x) = \frac{x - \mu(x)}{\sqrt{\operatorname{var}(x) + 10^{-6}}}, \qquad \text{adaLN}(x, c) = \text{norm}(x)\,\big(1 + \text{scale}(c)\big) + \text{shift}(c).$$
#
# The 1 is there so that scale 0 means "leave it as it is". The same scale and shift act on every patch. So $c$ cannot say *where* something should happen, only which channels speak up, and how loudly. You met the idea in the U-Net of [notebook 08](08_the_u_net.ipynb), where the time was added to the channels of each block: a shift alone.

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
# Now the whole network, with the weights of a small DiT of the package: 16-pixel pictures, patches of 2 by 2, so 64 tokens, of width $d = 96$, in 4 blocks. A fresh DiT has many zeros; the next section says why. For now, fill them with random numbers.

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
# In each block a linear map $W c + b$ of its own makes six vectors: shift, scale and gate of the attention, then shift, scale and gate of the MLP. The MLP widens a token to $4d$ channels and comes back; between the two it has the approximate GELU, with a tanh. The norms have no weights at all.

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
# Cut into patches, add positions (DiT does not learn them: a fixed table holds sines and cosines of each patch's column, then of its row), pass the blocks, norm once more with a shift and a scale from $c$, and make pixels of each token. All blocks read the same $c$, so in the package their maps $W$ are one large matrix. Cut it into the four first.

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


x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 3, 9, 10])  # 10: no class
time = torch.tensor([0.0, 10.0, 500.0, 999.0])
with torch.no_grad():
    mine, theirs = dit(x, time, y, network), network(x, time, y)
print(f"largest difference {(mine - theirs).abs().max():.0e}, the outputs have standard deviation {theirs.std():.2f}")
assert torch.allclose(mine, theirs, atol=1e-4)

# %% [markdown]
# Equal, with and without a class. That is all of DiT, but for what its weights are at the start.
#
# ## Nothing at first
#
# DiT sets the map $W$, $b$ of every block to zero before training. Then shift, scale *and gate* are zero whatever $c$ is, and each branch is multiplied by nothing: $x + 0 \cdot \text{attention}(\dots) = x$. **An untrained block is the identity**, to the bit. The last linear layer is zero as well, and so is the output.
#
# A network that always answers 0 has a loss you can compute. Let the target be $v = \alpha\varepsilon - \sigma x_0$. Noise and picture are independent, the mixed term averages to zero, and
#
# $$\mathbb E\,v^2 = \alpha^2 + \sigma^2\,\mathbb E\,x_0^2,$$
#
# averaged over the times. A DiT that starts elsewhere is wrong before its first step. Check it with a thousand pictures, one for each time.

# %%
cosine = minidiff.schedules.cosine()


def new_dit(schedule=cosine, prediction="v", **clock):
    torch.manual_seed(0)
    network = minidiff.create_model("dit_tiny", num_classes=len(data.classes))
    return minidiff.Diffusion(network, schedule, prediction, shape=(3, 16, 16), **clock)


fresh, passed = new_dit(), []
hooks = [layer.register_forward_hook(lambda _, given, out: passed.append((given[0], out)))
         for layer in fresh.network.blocks]
with torch.no_grad():
    out = fresh.network(x, time, y)
    x0, t = data.images()[:1000], torch.arange(1, 1001) / 1000
    measured = fresh.loss(x0, data.labels[:1000], t=t).mean().item()
[hook.remove() for hook in hooks]
assert all(torch.equal(before, after) for before, after in passed) and out.eq(0).all()
alpha, sigma = fresh.schedule(t)
expected = (alpha**2 + sigma**2 * x0.square().mean((1, 2, 3))).mean().item()
print(f"loss of the untrained network {measured:.4f}, computed {expected:.4f}")
assert abs(measured - expected) < 0.005

# %% [markdown]
# What is that good for? Follow the size of the tokens through 24 untrained blocks of all four kinds.

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
figure.axes[0].set_xticks(range(0, 25, 6))
figure

# %% [markdown]
# Without gates every random branch adds its own noise to the tokens, and what left the patches is buried under it. With zero gates a network of 24 blocks starts as a network of none, and adds what helps. The order of the three others is chance; another seed gives another.
#
# ## How can nothing learn?
#
# If all is zero, is the gradient zero too? Write one branch as $x' = x + g \odot f_\theta(x)$, with the gate $g$, and let $L$ be the loss. By the chain rule
#
# $$\frac{\partial L}{\partial g} = \sum_{\text{tokens}} \frac{\partial L}{\partial x'} \odot f_\theta(x), \qquad \frac{\partial L}{\partial \theta} = \Big(\frac{\partial f_\theta}{\partial\theta}\Big)^{\!\top}\! \Big(g \odot \frac{\partial L}{\partial x'}\Big).$$
#
# At $g = 0$ the branch gets no gradient, and the gate gets one: some channels of the random branch point the right way, and the gate learns which. But $\partial L/\partial x'$ has to come back through the last layer, and that is zero as well. So guess: who learns in which step?

# %%
from IPython.display import Markdown

parts = {"last linear layer": ["final_layer.linear"], "gates": [], "scale, shift before it": ["final_layer.modulation"],
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
# The network wakes from its end. In step 0 only the last layer learns; **the gradient of the gates is exactly zero**, and so are all others. In step 1 the last layer is no longer zero, and the gates get their first gradient, while attention and MLP behind them still get none. In step 2 everything learns. Nothing is stuck, because the zeros of a path leave one after the other. (Zero the end of the branch *and* its gate, and both gradients above have a factor zero, for ever.)
#
# ## Watch the gates open
#
# Train one, with the recipe of the runs that you will compare later, but for fewer steps, and record the root mean square (RMS) of the gates over all channels and sixteen times.

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
steps = budget("each of two networks", smoke=4, cpu=300, gpu=4000,
               per_step=lambda: minidiff.training.train(one_step, data, **recipe | {"steps": 1}))

# %% [markdown]
# `p_uncond` replaces one label in ten by "no class", as in [notebook 07](07_guidance.ipynb). Look at the gates some forty times.

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
plots.lines(curves, x="step", y="RMS of the gates")

# %% [markdown]
# All gates open, in every block, and stay well below 1. That the curves flatten proves little: the learning rate rises for 100 steps and then falls to zero.
#
# ## What it says when
#
# Now read the modulation. For one class and all times, here is the RMS over the channels of each of the six vectors, for each block. Both panels of a column share their colours.

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
# Does the time matter more, or the class? Tabulate the modulations for sixteen times and all ten classes, and split their variance: what depends on the time alone, on the class alone, and what is left, which needs both. Then measure what the class is worth: the loss on unseen pictures with the right class, none, or another.

# %%
every = torch.stack([modulations(trained.network, sixteen, y) for y in range(10)])  # (class, T, block, branch, 3, d)
centre = every.mean((0, 1), keepdim=True)
by_time, by_class = every.mean(0, keepdim=True) - centre, every.mean(1, keepdim=True) - centre
both = every - centre - by_time - by_class
shares = torch.stack([part.square().expand_as(every).mean((0, 1, 2, 3, 5)) for part in (by_time, by_class, both)])
assert torch.allclose(shares.sum(0), (every - centre).square().mean((0, 1, 2, 3, 5)), rtol=1e-3)
assert run.tier == "smoke" or (shares[0] > shares[1]).all()
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
# "Both" can only come from the SiLU in front of the map: up to there time and class are simply added. What surprises is how little the class has to say. The time matters in every pixel of every picture. A class is worth little as long as the picture can be seen through the noise, and a young network learns first what pays most.
#
# ## Lie to it
#
# Take unseen pictures at three noise levels, and tell the network any time you like. The guess of $x_0$ is made of the network's answer with the *true* $\alpha$ and $\sigma$, so that only the modulation is deceived. Two pictures at $t = 0.5$ show what the errors look like, and their part along $\varepsilon$ says how much of the noise is left in the guess.

# %%
smiley = held_out.images()[held_out.labels == 7][3:4]
images, labels_of = torch.cat([smiley, unseen[:95]]), torch.cat([torch.tensor([7]), right[:95]])
noise = minidiff.seeded_noise(range(len(images)))(images)
told = torch.linspace(0.02, 0.98, 25).tolist()


@torch.no_grad()
def guess(true, t):
    """What the network makes of the pictures at time `true` when it is told t."""
    x_t = trained.forward_process(images, true, noise)
    out = trained.network(x_t, torch.tensor([1000 * t - 1]), labels_of)
    return minidiff.Prediction("v", x_t, out, *trained.schedule(true)).x0


guesses = {true: torch.stack([guess(true, t) for t in told]) for true in (0.2, 0.5, 0.8)}
lies = {f"true t = {true}": (told, (x0 - images).square().mean((1, 2, 3, 4))) for true, x0 in guesses.items()}
print("best time to tell:", ", ".join(f"{name}: {told[error.argmin()]:.2f}" for name, (_, error) in lies.items()))
left = [(x0 * noise).mean().item() / noise.square().mean().item() for x0 in guesses[0.5]]
print("noise in the guess at t = 0.5:", ", ".join(f"told {told[k]:.2f}: {left[k]:+.2f}" for k in (4, 12, 20)))
assert run.tier == "smoke" or left[4] < left[12] < left[20]
display(plots.lines(lies, x="time it is told", y="squared error of its guess", log="y"))
plots.filmstrip(guesses[0.5][:, :2], [f"told {t:.2f}" for t in told], rows=2, columns=9)

# %% [markdown]
# Each curve should be lowest near its true time. On both sides the guess is wrong in its own way, perhaps not the one you expected. Near $t = 0$ the target $\alpha\varepsilon - \sigma x_0$ is almost $\varepsilon$ itself. A network that believes in little noise must blow a small trace up to full size, so here it takes away too much: the noise in its guess has the wrong sign, and the picture pales. Told too much noise, it takes away too little, and noise is left. The bottoms are flat: a small error of the time does not matter, which is why samplers may use times that training never saw.
#
# ## Four ways, measured
#
# The paper trained the four for 400,000 steps, as XL/2 on ImageNet. Here each has width 96 and had 600 steps on emoji of 16 pixels, all with the same data, order, noise and recipe (`python tools/ablation.py dit --tier cpu`).
#
# The last two columns are the loss on held-out pictures, and the Fréchet distance of 512 samples from [notebook 09](09_training_well.ipynb).

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
# (The paper's "Gflops" count a multiplication and an addition as one, ours as two.) What is the order here, and how large is luck? Runs repeated with another seed tell: those of this experiment if there are any, else those of notebook 10. The samples are from the same noise and for the same classes.

# %%
def luck(of):
    """The largest ratio of two runs that differ in their seed alone, and whose runs these are."""
    for whose in ("dit", "uvit"):
        runs = recorded(whose, "cpu")
        pairs = [(of(runs[name]), of(runs[name.removesuffix("-seed1")])) for name in runs if name.endswith("-seed1")]
        if pairs:
            return max(max(pair) / min(pair) - 1 for pair in pairs), whose


def order(values):
    return " < ".join(f"{name} {values[name]:.3g}" for name in sorted(values, key=values.get))


for title, values, of in (("held-out loss", loss, lambda r: r["held_out"]["mean"]),
                          ("Fréchet distance", frechet, lambda r: r["distances"]["frechet"]["value"])):
    gap = values["adaLN"] / values["adaLN-Zero"] - 1
    print(f"{title}: {order(values)}\n    adaLN is {gap:.0%} above adaLN-Zero; ", end="")
    print("luck, as seeds of {1} differ: {0:.0%}".format(*luck(of)))
base = records["adaln-zero"]["held_out"]
curves = {name: (base["times"], [a / b for a, b in zip(records[key]["held_out"]["losses"], base["losses"])])
          for name, key in four.items()}
assert max(curves[name][1][-1] for name in ("in-context", "cross-attention")) < curves["adaLN"][1][-1]
display(plots.lines(curves, x="t", y="held-out loss / that of adaLN-Zero"))
shown = torch.stack([records[key]["samples"][:10] for key in four.values()], dim=1)  # (10, 4, 3, 16, 16)
plots.filmstrip(shown, rows=list(four))

# %% [markdown]
# Believe only gaps that are larger than luck. Without a second seed of this experiment even the gain from the gates is a hint that agrees with the paper, no more. The curves say where the gain is *not* made: near $t = 1$, where the picture is gone and the class is most of what is left, the two ways with tokens do best of the three.
#
# In the paper in-context is last by far, at 28 blocks and 400,000 steps. In 4 blocks two tokens are close to everything, and 600 steps measure how fast a network *starts* to learn, not how good it gets. The samples show how young these networks are.
#
# ## Work, not weights
#
# The paper's other finding is about size. It has twelve networks: four sizes (S, B, L, XL), each with patches of 2, 4 and 8; XL/2 has patches of 2 by 2. `minidiff.summary` counts weights and work on the *meta* device, where tensors have shapes and no memory.

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
        figures = f"{known.flops / 2e9:.2f} | {gflops:.2f} | {fid:.2f}"
        rows.append(f"| {size.upper()}/{p} | {known.parameters:,} | {figures} |")
_, gflops, fids = map(torch.tensor, zip(*counted.values()))
correlation = torch.corrcoef(torch.stack([gflops.log(), fids]))[0, 1].item()
print(f"correlation of FID and log Gflops: {correlation:.2f}")
Markdown("\n".join(rows))

# %% [markdown]
# Look at the three rows of XL. They have almost the same weights, and yet the FID runs from 19 to 106: halving the patch makes four times as many tokens, four times the work, and a far better model. Weights do not tell. Does work? Draw it, with our own small family (again 600 steps) beside it.

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
    for k, (name, (weights, flops, value)) in enumerate(small.items()):
        axes[1].plot(flops / 1e6, value, "o", color=plots.COLORS[k], label=f"{name}: {weights / 1e6:.2f} M weights")
    axes[1].set(xscale="log", xlabel="MFLOPs", ylabel="held-out loss", title="here: emoji, 600 steps", xlim=(12, 84))
    axes[1].set_xticks([16, 32, 64], ["16", "32", "64"])
    axes[1].set_xticks([], minor=True)
    [ax.legend() for ax in axes]
    return figure


ours = {"the largest": "adaln-zero", "width 64": "narrow", "2 blocks": "shallow", "patch 4": "patch-4"}
small = {name: (records[key]["model"]["parameters"], records[key]["model"]["flops"], records[key]["held_out"]["mean"])
         for name, key in ours.items()}
assert max(small, key=lambda name: small[name][2]) == "patch 4"
draw_scaling(counted, small)

# %% [markdown]
# On the left patches of 2 and of 4 share one line, whichever way a network got its work: B/4 and S/2 cost the same and are equally good, with 130 and 33 million weights. Patches of 8 lie far above it. Work decides only as long as no detail is lost at the entrance. On the right, the network with patches of 4 has as many weights as the largest and a quarter of its work, and its loss is the worst of the four. Two thirds of the width, or half of the depth, cut the work in half.
#
# ## SiT: three words
#
# DiT as published has a second half of outputs, $o$, one for each pixel and channel. It sets the variance of the sampler's step between $\tilde\beta$ ($o = -1$) and $\beta$ ($o = 1$), as at the end of [notebook 02](02_from_likelihood_to_a_squared_error.ipynb). You left it out, and so does the next network.
#
# **SiT** (Ma et al. 2024) asks how much of DiT is the network and how much the diffusion. It keeps the network to the last weight, and trains a flow, as in [notebook 06](06_flow_matching.ipynb): straight paths, the velocity $\varepsilon - x_0$ for a target. Here that is another schedule, another prediction, another clock.

# %%
sit = new_dit(minidiff.schedules.flow(), "flow", time="1-t")
sit = minidiff.training.train(sit, data, steps=steps, **recipe).ema.cpu()
count = 256 if run.tier != "smoke" else 16
y = data.labels[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]]
settings = dict(y=y, steps=20 if run.tier != "smoke" else 2, batch_size=256, progress=False)
pictures = {"DiT, DDIM": minidiff.sample(trained, count, sampler="ddim", **settings),
            "SiT, Euler": minidiff.sample(sit, count, sampler="euler", **settings)}
gaps = {name: minidiff.metrics.frechet_distance(data.images(), made, "emoji") for name, made in pictures.items()}
print(f"Fréchet distance of {count} samples:", ", ".join(f"{name} {float(gap):.2f}" for name, gap in gaps.items()))
for unit in (1, 999):
    times = unit * torch.linspace(0, 1, 101)
    features = minidiff.layers.timestep_embedding(times, 256, order="cos_sin", divisor="half")
    print(f"time 0 to {unit}: {(features.amax(0) - features.amin(0) > 0.1).sum()} of 256 features change by over 0.1")
plots.filmstrip(torch.stack([made[:10] for made in pictures.values()], dim=1), rows=list(pictures))

# %% [markdown]
# Same start, same data, same number of steps, and no guidance for either. After so short a training on one seed, a few tenths mean nothing.
#
# One detail is odd. SiT feeds the time as it is, from 0 to 1, to features that were made for 0 to 999, and most of the 256 hardly move. It works all the same; whoever loads published weights must repeat their odd choices.
#
# ### The other direction of time
#
# There is a bigger trap. In SiT's own code time runs from noise to data, $\tau = 1 - t$, and the network answers $x_0 - \varepsilon$. So its weights need two changes: feed $1 - t$, and turn the sign of the output, which means of the last layer. The test is one Euler step from $t = 1$ to 0. There $x = \varepsilon$ says nothing about the picture, the best guess of $\varepsilon - x_0$ is $\varepsilon - m$ with $m$ the mean of the data, and the step lands at $\varepsilon - (\varepsilon - m) = m$, whatever the noise. Take pictures from a Gaussian around the mean smiley, with standard deviation 0.3. For these the perfect SiT network can be written down: the expectation of one Gaussian given another. It has a last layer, so that the package can turn it: `from_data_to_noise` makes both changes. The other three forget one or both.

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
# Only the first lands. The last takes the noise for a finished picture, and ends grey. The test needs no training and no second implementation, and catches every wrong combination. Do it whenever you load a foreign flow. (`load_official("sit_xl_2", path)` does both changes for you.)
#
# ## Where does it look?
#
# With conditioning in the norms, attention is for patches alone. The red frame marks the patch that asks.

# %%
from minidiff.course.attention import explore_attention

explore_attention(trained, smiley, torch.tensor([7]), times=[0.1, 0.3, 0.5, 0.7, 0.9])

# %% [markdown]
# Try the smallest and the largest time. Does a patch look farther when there is more noise? Is there a head that looks at the object alone? So young a network may have none.
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
     f"{small['patch 4'][2]:.3f} against {small['the largest'][2]:.3f}"),
    ("The same network as a flow is better: FID 2.06 (SDE sampler) against 2.27, both with guidance 1.5 (Ma et al.)",
     "Fréchet " + ", ".join(f"{name} {float(gap):.2f}" for name, gap in gaps.items())),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. The gradient of a gate (a line).** You are given the gradient of the loss by the output of a branch $x' = x + g \odot f(x)$, the branch $f(x)$ and the gate $g$, of which each picture has its own. Return the gradients by $g$ and by $f(x)$.

# %% tags=["exercise"] name="gate_gradients"
def gate_gradients(slope, branch, gate):
    """slope = dL/dx' (B, N, d), branch = f(x) (B, N, d), gate (B, d) -> (dL/dgate (B, d), dL/dbranch (B, N, d))."""
    ...  # your code

# %% [markdown]
# Check it, with an open gate and a closed one.

# %%
exercises.check_gate_gradients(gate_gradients)

# %% [markdown]
# **2. Count the weights.** Without building the network: how many parameters has a DiT of `depth` blocks of width $d$ with patches of $p$, for a latent (a small picture) of 4 channels and 32 by 32 pixels, 1000 classes, and twice the outputs, for the variance? Count the fixed positions too; each linear map has a bias. For XL/2, with 28 blocks of width 1152, the answer is 675,129,632.

# %% tags=["exercise"] name="dit_weights"
def dit_weights(depth, d, p):
    """The number of parameters, a whole number."""
    ...  # your code

# %% [markdown]
# Check all twelve.

# %%
exercises.check_dit_weights(dit_weights)

# %% [markdown]
# **3. A project: one modulation for all.** A third of DiT's weights only make modulations. PixArt-alpha shares: one map from $c$ gives six vectors for the *whole* network, and each block adds a learned table of six vectors of its own (adaLN-single). Write how the parts are joined; in `shared` the six vectors of a picture stand one after the other.

# %% tags=["exercise"] name="adaln_single"
def adaln_single(shared, tables):
    """shared (B, 6 d) from the one map, tables (L, 6, d) -> the six vectors of every block, (L, B, 6, d)."""
    ...  # your code

# %% [markdown]
# Check it, in three sizes.

# %%
exercises.check_adaln_single(adaln_single)

# %% [markdown]
# Now the project. Make a module with `forward(c)` that returns what the package's `Modulation` returns, a list of pairs of (shift, 1 + scale, gate), each $(B, 1, d)$. Put it in the place of `new_dit().network.modulation`, with zeros such that the blocks begin as the identity, and train with `recipe`. How many weights are saved, and what do they cost in loss? Which blocks differ most from the shared part?
#
# ## What you learned
#
# - Time and class can be tokens, a second sequence, or the scale and shift of every norm. The last costs almost no work, and most weights.
# - With zero gates a block begins as the identity. The network wakes from its end: last layer, gates, branches, one step after the other.
# - Told of too little noise, a denoiser takes away too much, and the other way round. Small lies cost next to nothing.
# - Small runs agree with the paper on small patches, and hint at the worth of the gates. They cannot confirm an order that needs 400,000 steps.
# - SiT is DiT with another schedule, target and clock. One step on a Gaussian tests all conventions at once.
#
# ## Where to read on
#
# - Peebles, Xie, *Scalable diffusion models with transformers*, 2023, arXiv 2212.09748: DiT; figure 3 is your first one.
# - Perez et al., *FiLM*, 2018, arXiv 1709.07871: scale and shift from a condition, before transformers.
# - Goyal et al., *Accurate, large minibatch SGD*, 2017, arXiv 1706.02677: residual branches that begin at zero.
# - Ma et al., *SiT*, 2024, arXiv 2401.08740. Chen et al., *PixArt-alpha*, 2023, arXiv 2310.00426.
#
# Next comes [notebook 13](13_diffit.ipynb), *DiffiT: attention that knows the time*.
