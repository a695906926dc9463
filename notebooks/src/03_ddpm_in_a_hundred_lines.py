# %% [markdown]
# # 03 DDPM in a hundred lines
#
# After this notebook you have written a complete diffusion model from an empty file, checked each piece of it, trained it on points and on pictures, and measured which of its parts matter.
#
# Run time: about three minutes on a CPU with two idle cores, most of it training; expect as long on a GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - write all five pieces by hand, and count the lines,
# - watch noise fold into two moons, and check every piece against the package,
# - train a U-Net on pictures, and compare it with one trained longer,
# - write down the best denoiser that can exist, and see why you do not want it,
# - catch a network learning 64 pictures by heart,
# - change one thing at a time, seven times, and hold the results against the papers.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Can guessing noise be enough?
#
# [Notebook 02](02_from_likelihood_to_a_squared_error.ipynb) ended with one line: add noise to a picture, let a network guess the noise, take the squared error. Can that alone make anything? Write the whole model, with nothing but PyTorch, and see.
#
# Start with data that you can see: points in the plane. A network learns them in seconds, and a scatter plot shows the whole distribution at once. Two moons are a fair test: they are thin and curved, and the gap between them must stay empty.
#
# The package keeps them in $[-1, 1]$. Here they are spread by two, so that their variance is near 1: that is the size of data that the paper's schedule is made for.

# %%
import torch

raw = minidiff.load_dataset("moons", num=20_000)
moons = minidiff.datasets.InMemory(2 * raw.images(), raw.labels, raw.captions, raw.classes)
points = moons.images()  # (20000, 2)
plots.density_2d({"2,000 of 20,000 points": points[:2000]}, extent=2.5)

# %% [markdown]
# ## The hundred lines
#
# The model has five pieces, one cell each. The comment in its first line numbers it, so that the lines can be counted later.
#
# The first piece is the **schedule** of [notebook 01](01_destroying_images_properly.ipynb). Step $i$ of $T$ mixes in a little noise of variance $\beta_i$, and after $i$ steps a point has become $x_i = \alpha_i x_0 + \sigma_i \varepsilon$ with $\alpha_i^2 = \prod_{j \le i} (1 - \beta_j)$ (`alpha_bar` in the code) and $\sigma_i^2 = 1 - \alpha_i^2$. The paper lets $\beta$ grow evenly from 0.0001 to 0.02 in $T = 1000$ steps (Ho et al. 2020, section 4). Points need fewer steps than pictures. Take 100, with $\beta$ ten times as large, so that again next to nothing of the data is left at the end.

# %%
# DDPM 1 of 5: the schedule
import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Table(NamedTuple):
    beta: torch.Tensor  # (T,) each; entry i belongs to step i + 1
    alpha: torch.Tensor
    sigma: torch.Tensor


def linear_schedule(T):
    beta = torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - beta, dim=0)
    return Table(beta, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


table = linear_schedule(100)

# %% [markdown]
# The second piece puts noise on, at any step at once, and measures how well a network guesses it. This is equation 14 of the paper, $L_\text{simple} = \mathbb E\,\|\varepsilon - \varepsilon_\theta(x_i, i)\|^2$, and the whole of its training objective.
#
# The helper `at` gives each sample of a batch its own entry of a table, in a shape that multiplies points and pictures alike. The tables stay in float64, because a long product of numbers close to 1 loses digits.

# %%
# DDPM 2 of 5: noise, and the loss
def at(values, i, x):
    return values[i].to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def q_sample(x0, i, eps, table):
    return at(table.alpha, i, x0) * x0 + at(table.sigma, i, x0) * eps


def loss_simple(network, x0, i, eps, table):
    return (network(q_sample(x0, i, eps, table), i) - eps).square().mean()

# %% [markdown]
# The third piece is the **network**. It gets a noisy point and the number of the step, since how far to trust the point depends on how much noise there is. The number becomes 64 sines and cosines of different frequency, as in the paper. Four hidden layers follow. (`y` is where the package hands over a label; moons have none.)
#
# Three lines set the weights at the start. PyTorch's own are small: a signal shrinks from layer to layer, and two coordinates among 64 features of the step are hardly heard.

# %%
# DDPM 3 of 5: the network
class Denoiser(nn.Module):
    def __init__(self, hidden=128, depth=4):
        super().__init__()
        widths = [2 + 64] + [hidden] * depth + [2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        for layer in self.layers[:-1]:
            nn.init.normal_(layer.weight, std=1.7 / layer.in_features**0.5)
        self.layers[0].weight.data[:, :2] *= 5

    def forward(self, x, i, y=None):
        frequency = torch.exp(-math.log(10_000) * torch.arange(32) / 31)
        angle = (i[:, None] * frequency).expand(len(x), -1)
        h = torch.cat([x, angle.sin(), angle.cos()], dim=1)
        for layer in self.layers[:-1]:
            h = F.silu(layer(h))
        return self.layers[-1](h)

# %% [markdown]
# The fourth piece is the **training loop**. Draw data, steps and noise, and take one step down the gradient. What may be new is `average`, the exponential moving average (EMA) of the weights: a copy that after each step moves a small part of the way towards them. Sampling uses the copy, which is steadier than the weights that the last batches left.

# %%
# DDPM 4 of 5: training
def train(network, data, table, steps, batch=256, lr=2e-3, decay=0.999):
    average, losses = copy.deepcopy(network), []
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)  # fused: the same, but faster
    for _ in range(steps):
        x0 = data[torch.randint(len(data), (batch,))]
        i = torch.randint(len(table.beta), (batch,))
        loss = loss_simple(network, x0, i, torch.randn_like(x0), table)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters()):
                slow.lerp_(fast, 1 - decay)
        losses.append(loss.item())
    return average, losses

# %% [markdown]
# That is enough to train. Then look at the loss of each noise level by itself.

# %%
torch.manual_seed(0)
network = Denoiser()
settings = budget("the network for points", smoke=100, cpu=4000, gpu=4000, seconds_per_step=0.002)
average, losses = train(network, points, table, settings)
for part in range(0, settings, settings // 4):
    print(f"mean loss from step {part:4}: {torch.tensor(losses[part : part + settings // 4]).mean():.3f}")


@torch.no_grad()
def losses_by_step(network, repeats=40):
    torch.manual_seed(1)
    i = torch.arange(100).repeat(repeats)
    x0 = points[torch.randint(len(points), i.shape)]
    eps = torch.randn_like(x0)
    return (i + 1) / 100, (network(q_sample(x0, i, eps, table), i) - eps).square().mean(1)


t, trained = losses_by_step(average)
untrained = losses_by_step(Denoiser())[1]
plots.loss_by_noise_level(t, {"before training": untrained, "after": trained}, x="t = step / 100")

# %% [markdown]
# The mean soon lies flat, well above zero. It cannot reach zero: what noise was added cannot be known exactly from where a point landed. But the picture shows what the mean hides. Late steps (right) are nearly free, since almost everything there is noise, and the network may hand its input back. Early steps (left) are nearly hopeless: the noise is no larger than the width of a moon, and no one can tell the one from the other. The shape is decided in between.
#
# The fifth piece is the **sampler** (algorithm 2 of the paper). It walks the steps backwards. At step $i$ the network's guess $\hat\varepsilon$ gives the mean of the previous point,
#
# $$\mu = \frac{1}{\sqrt{1 - \beta_i}}\Big(x_i - \frac{\beta_i}{\sigma_i}\,\hat\varepsilon\Big),$$
#
# and fresh noise of the posterior's variance $\beta_i\,\sigma_{i-1}^2 / \sigma_i^2$ is added, except at the very end. Notebook 02 derives both. This is **ancestral** sampling: each point is drawn given its parent. The function yields the cloud after every step, so that you can watch.

# %%
# DDPM 5 of 5: ancestral sampling
@torch.no_grad()
def sample(network, table, x, noise=torch.randn_like):
    beta, _, sigma = table
    yield x
    for i in reversed(range(len(beta))):
        eps = network(x, torch.full((len(x),), i))
        x = (x - beta[i] / sigma[i] * eps) / (1 - beta[i]).sqrt()
        z = noise(x)  # drawn in the last step too, and left unused, as the package does
        if i > 0:
            x = x + beta[i].sqrt() * sigma[i - 1] / sigma[i] * z
        yield x

# %% [markdown]
# Start from 2,000 points of pure noise and let them go.

# %%
torch.manual_seed(2)
path = list(sample(average, table, torch.randn(2000, 2)))  # 101 clouds (2000, 2)
shown = {"noise": 0, "50 steps done": 50, "75 steps": 75, "90 steps": 90, "all 100": 100}
plots.density_2d({name: path[k][:1000] for name, k in shown.items()}, extent=3)

# %% [markdown]
# It works. Nobody told the network what a moon is. It guessed noise, and the moons are what remains when the guesses are taken away a little at a time. Note how little the first fifty steps do.
#
# ## How many lines was that?
#
# Jupyter keeps the cells that ran, so the notebook can count its own lines. Blank lines and comments do not count, imports do.

# %%
from IPython import get_ipython

ran = {cell.splitlines()[0]: cell for cell in get_ipython().user_ns["In"] if cell.startswith("# DDPM ")}
count = 0
for title, cell in ran.items():
    lines = [line for line in cell.splitlines() if line.strip() and not line.strip().startswith("#")]
    count += len(lines)
    print(f"{len(lines):3} lines  {title[2:]}")
print(f"{count:3} lines in all")
assert len(ran) == 5 and count <= 100

# %% [markdown]
# A hundred was generous. But a picture that looks right proves little: miss the step by one, and you may still see moons. So compare each piece with the package. The same noise and the same weights must give the same numbers.
#
# The package writes $t = (i + 1)/T$ in $[0, 1]$ for the time, and turns it back into $i$ for the network. Its `mlp_2d` has your layers under other names.

# %%
diffusion = minidiff.Diffusion(
    minidiff.create_model("mlp_2d"), minidiff.schedules.linear(100), "eps", shape=(2,), value_range=(-3, 3)
)
names = diffusion.network.state_dict()
diffusion.network.load_state_dict(dict(zip(names, average.state_dict().values())))

i, x0, eps = torch.arange(100), points[:100], torch.randn(100, 2)
t = (i + 1) / 100
alpha, sigma = diffusion.schedule(t)
assert torch.allclose(table.beta, torch.as_tensor(diffusion.schedule.betas))
assert torch.allclose(table.alpha.float(), alpha) and torch.allclose(table.sigma.float(), sigma)
noisy = q_sample(x0, i, eps, table)
assert torch.allclose(noisy, diffusion.forward_process(x0, t, eps), atol=1e-6)
assert torch.allclose(average(noisy, i), diffusion.denoise(noisy, t).eps, atol=1e-5)
mine = loss_simple(average, x0, i, eps, table)
assert torch.allclose(mine, diffusion.loss(x0, t=t, eps=eps).mean(), rtol=1e-4)

noise = minidiff.seeded_noise([(7, k) for k in range(50)])  # the streams that minidiff.sample(seed=7) draws from
*_, mine = sample(average, table, noise(torch.empty(50, 2)), noise)
theirs = minidiff.sample(diffusion, 50, sampler="ddpm", steps=100, seed=7, clipped=False, progress=False)
assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3)
error = (mine - theirs).abs().max() / theirs.abs().max()
print(f"all five agree; after 100 steps of sampling to {error:.0e} of the largest coordinate")

# %% [markdown]
# Your hundred lines are DDPM. From here on the package may do the work. It takes any network that is called as `network(x, time, y)`, so give it a fresh one of yours. The same model, trained and sampled from, in four lines:

# %%
schedule = minidiff.schedules.linear(100)
diffusion = minidiff.Diffusion(Denoiser(), schedule, "eps", shape=(2,), value_range=(-3, 3))
history = minidiff.training.train(diffusion, moons, steps=settings, batch_size=256, progress=False)
made = minidiff.sample(history.ema, 1000, sampler="ddpm", steps=100, batch_size=1000, progress=False)

clouds = {"data": points, "your hundred lines": path[-1], "four lines of minidiff": made}
plots.density_2d({name: cloud[:1000] for name, cloud in clouds.items()}, extent=2.5)

# %% [markdown]
# ## Pictures
#
# Apart from the network, nothing in your code knows that the data are points. So change two things. The data become scenes of 16 by 16 pixels, one or two coloured shapes on white. The network becomes a small U-Net, a convolutional network that looks at a picture at several resolutions (notebook 08 takes it apart). First your own loop runs for a few steps, word for word, and its loss falls.
#
# For a real run take the package's loop, which adds a learning rate that rises and falls, clipped gradients, and an average that forgets its random start. The model takes two improvements from later papers: the cosine schedule, and a network that predicts $v = \alpha\varepsilon - \sigma x_0$ in place of $\varepsilon$.

# %%
shapes = minidiff.load_dataset("shapes", size=16)  # an endless supply of small scenes


def picture_model():
    torch.manual_seed(0)
    network = minidiff.create_model("ddpm_tiny", ch=16).to(run.device)
    return minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(3, 16, 16))


unet, pictures = picture_model().network.cpu(), shapes.batch(range(512))[0]  # (512, 3, 16, 16), in [-1, 1]
_, losses = train(unet, pictures, table, steps=12 if run.tier != "smoke" else 2, batch=32)
print(f"{sum(w.numel() for w in unet.parameters()):,} weights; your loop: loss {losses[0]:.2f} -> {losses[-1]:.2f}")


def one_step():
    minidiff.training.train(picture_model(), shapes, steps=1, batch_size=32, progress=False)


tiers = dict(smoke=dict(steps=4, batch_size=8), cpu=dict(steps=1400, batch_size=32))
tiers["gpu"] = dict(steps=8000, batch_size=32)
recipe = dict(lr=2e-3, ema=0.99, progress=False) | budget("a U-Net on shapes", **tiers, per_step=one_step)
many = minidiff.training.train(picture_model(), shapes, **recipe)
many

# %% [markdown]
# How good is that? Set it beside the shapes model that comes with the package. Its network is wider, and was trained for longer on the same kind of scenes. It can be told what to draw; here it gets the "no label" that every such network has (`null`), and both start from the same noise. For shapes there is also a strict judge: `shapes.read` reads a picture back into words, and says `None` when a shape is not clean enough to be named.

# %%
num, sampling = (64, 50) if run.tier != "smoke" else (8, 4)
drawn = {}
for name, model in {"yours": many.ema, "shipped": minidiff.load("shapes-unet", run.device)}.items():
    y = model.network.null(torch.zeros(num, dtype=torch.int64)) if model.network.num_classes else None
    drawn[name] = minidiff.sample(model, num, y=y, steps=sampling, progress=False).cpu()
drawn["real"] = shapes.batch(range(90_000, 90_000 + num))[0]
for name, images in drawn.items():
    read = [scene is not None for scene in minidiff.datasets.shapes.read(images)]
    print(f"{name:10} {sum(read) / num:4.0%} of {num} pictures can be read")


def framed(images):
    return F.pad(images, (1, 1, 1, 1), value=0.6)  # a grey line around each picture, whose ground is white


shown = torch.stack([images[:10] for images in drawn.values()], dim=1)
plots.filmstrip(framed(shown), rows=list(drawn))

# %% [markdown]
# 1,400 steps give the plan of the pictures: white ground, one or two patches of the right size, more or less one colour each. The outlines are still missing, and the judge is merciless about them.
#
# ## The best denoiser there is
#
# What would a perfect network say? For a data set of $N$ pictures that can be computed, without any training. A clean picture is one of $x^{(1)}, \dots, x^{(N)}$, each as likely as the other. Given $x^{(k)}$, the noisy $x_t$ is Gaussian around $\alpha x^{(k)}$ with variance $\sigma^2$. Bayes' rule turns these densities into the probability $w_k$ that $x_t$ came from $x^{(k)}$, and the guess with the smallest squared error is the average with these weights:
#
# $$\hat x_0(x_t) = \mathbb E[x_0 \mid x_t] = \sum_k w_k\, x^{(k)}, \qquad w = \operatorname{softmax}_k\Big(-\frac{\|x_t - \alpha x^{(k)}\|^2}{2\sigma^2}\Big).$$
#
# This is the **ideal denoiser**: all training pictures, each weighted by how well it explains what you see. To be sure of the code, use a fact that notebook 04 proves, Tweedie's formula: $\mathbb E[x_0 \mid x_t] = (x_t + \sigma^2 \nabla \log p(x_t)) / \alpha$, where $p(x_t)$ is a mixture of $N$ Gaussians whose gradient PyTorch can take.

# %%
def ideal_denoiser(x_t, alpha, sigma, data):
    """E[x0 | x_t] for x_t (B, ...) when the clean pictures are exactly `data` (N, ...)."""
    distance = torch.cdist(x_t.flatten(1), alpha * data.flatten(1))  # (B, N)
    weights = torch.softmax(-distance.square() / (2 * sigma**2), dim=1)
    return (weights @ data.flatten(1)).view_as(x_t)


cosine = minidiff.schedules.cosine()
emoji = minidiff.load_dataset("emoji", size=16)
known = emoji.images()  # (N, 3, 16, 16)
for t in (0.1, 0.5, 0.9):
    alpha, sigma = cosine(t)
    x = (alpha * known[:2] + sigma * torch.randn(2, 3, 16, 16)).double().requires_grad_()
    squares = (x[:, None] - alpha * known[:100].double()).square().flatten(2).sum(2)  # (2, 100)
    log_p = torch.logsumexp(-squares / (2 * sigma**2), dim=1).sum()
    tweedie = (x + sigma**2 * torch.autograd.grad(log_p, x)[0]) / alpha
    assert torch.allclose(ideal_denoiser(x, alpha, sigma, known[:100].double()), tweedie, atol=1e-8)
print(f"Tweedie's formula agrees. The emoji set has {len(known):,} pictures.")

# %% [markdown]
# A sampler does not care where its predictions come from. It takes any function of $(x_t, t)$ that returns a `Prediction`. So sample with the ideal denoiser of all training emoji, no network anywhere, from four draws of noise. The sampler is DDIM, which adds no fresh noise; in exercise 2 you write it.

# %%
def ideal_model(data):
    def denoise(x_t, t):
        alpha, sigma = cosine(t)
        return minidiff.Prediction("x0", x_t, ideal_denoiser(x_t, alpha, sigma, data), alpha, sigma)
    return denoise


noise = minidiff.seeded_noise([(3, k) for k in range(4)])
times = minidiff.spacing(cosine, 50 if run.tier != "smoke" else 5)
guesses = list(minidiff.samplers.ddim(ideal_model(known), cosine, noise(torch.empty(4, 3, 16, 16)), times))
exact = guesses[-1].x
gap = (exact[:, None] - known).abs().flatten(2).amax(2).min(1).values  # (4,), to the nearest training picture
print("largest difference in any pixel to a training picture:", [f"{g:.0e}" for g in gap.tolist()])
assert gap.max() < 1e-4
plots.filmstrip([step.x0 for step in guesses], times=times[:-1])

# %% [markdown]
# Flawless emoji without any training, and every one of them is a **copy**, equal to a training picture in all 768 numbers. A row shows $\hat x_0$ on the way. It starts as the average of everything. Then one picture takes all the weight of the softmax, and nothing else can happen any more.
#
# This should worry you. No function has a lower training loss. A perfectly trained network would be this one, and useless: a slow way to draw a training picture at random. What makes diffusion models worth having is the error that they make. So measure it. The ideal denoiser and the shipped `emoji-unet` (again without labels) remove noise from emoji of the training set, and from emoji that neither has seen. Errors below $10^{-6}$ are drawn at $10^{-6}$.

# %%
@torch.no_grad()
def error_of_x0(denoise, images, times):
    torch.manual_seed(3)
    errors = []
    for t in times:
        alpha, sigma = cosine(t)
        x_t = alpha * images + sigma * torch.randn_like(images)
        errors.append((denoise(x_t, t) - images).square().mean().item())
    return torch.tensor(errors)


emoji_unet = minidiff.load("emoji-unet")
nothing = emoji_unet.network.null(torch.zeros(2 * num, dtype=torch.int64))
judges = {"ideal": lambda x, t: ideal_denoiser(x, *cosine(t), known),
          "emoji-unet": lambda x, t: emoji_unet.denoise(x, t, nothing).x0}
levels = [0.02, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98]
unseen = minidiff.load_dataset("emoji", size=16, split="test").images()
errors = {}
for where, images in {"training": known, "held-out": unseen}.items():
    some = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: 2 * num]]
    for who, denoise in judges.items():
        errors[who, where] = error_of_x0(denoise, some, levels)
assert (errors["ideal", "training"] <= 1.1 * errors["emoji-unet", "training"]).all()
curves = {f"{who}, {where} emoji": (levels, e.clamp(min=1e-6)) for (who, where), e in errors.items()}
plots.lines(curves, x="t", y=r"mean squared error of $\hat x_0$", log="y")

# %% [markdown]
# Take the ideal denoiser first. On training emoji its error falls off a cliff below $t = 0.8$: it has recognised the one picture that fits. On held-out emoji it does the same thing, and is wrong. It insists on the nearest picture it knows, however clearly it is shown another, so its error stops falling. The network's two lines run close together. It is far worse than the ideal on what it has seen, and far better on what it has not. It has learned less about these pictures than about what pictures have in common. The small gap between its lines is where the next section begins.
#
# ## Learning by heart
#
# Can a network be driven towards the ideal denoiser of its training set? The fewer the pictures, the easier. Train the same network with the same recipe again, but on 64 scenes instead of an endless stream of new ones. Then sample from both, let the judge read the samples, and put below each the nearest of the 64 pictures.

# %%
def in_memory(items):
    return minidiff.datasets.InMemory(*shapes.batch(items), shapes.classes)


def nearest(samples, images):
    """For each sample the root mean squared difference to its nearest picture, and that picture's number."""
    return (torch.cdist(samples.flatten(1), images.flatten(1)) / samples[0].numel() ** 0.5).min(dim=1)


few_set, others = in_memory(range(64)), in_memory(range(50_000, 50_064))  # 64 to train on, 64 that nobody trains on
few = minidiff.training.train(picture_model(), few_set, **recipe)
seen, made, strips, names = few_set.images(), {}, [], []
for name, model in {"endless stream": many, "64 pictures": few}.items():
    samples = made[name] = minidiff.sample(model.ema, 2 * num, steps=sampling, progress=False).cpu()
    read = [scene is not None for scene in minidiff.datasets.shapes.read(samples)]
    print(f"{name}: {model}\n    {sum(read) / len(read):.0%} of {len(read)} samples can be read")
    strips += [samples[:10], seen[nearest(samples[:10], seen).indices]]
    names += [name, "nearest of the 64"]
plots.filmstrip(framed(torch.stack(strips, dim=1)), rows=names)

# %% [markdown]
# The second loss is lower, and more of its samples can be read. By loss and judge you would take the second model. But one or two of its samples stand above their own original. To turn the impression into a number, measure for each sample the distance to the nearest of the 64 training pictures, and to the nearest of 64 pictures that neither network was trained on. A network that draws new scenes is as far from the one set as from the other.

# %%
@plots.quiet
def histograms(made, sets):
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, len(made), figsize=(8.6, 2.9), sharex=True, sharey=True)
    for axes, (name, samples) in zip(panels, made.items()):
        for k, (label, images) in enumerate(sets.items()):
            distance = nearest(samples, images).values
            axes.hist(distance, bins=24, range=(0, 0.6), alpha=0.6, color=plots.COLORS[k], label=label)
            axes.axvline(distance.median(), color=plots.COLORS[k], linestyle="--")
        axes.set(title=f"trained on: {name}", xlabel="distance to the nearest")
    panels[0].set_ylabel("samples")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


sets = {"the 64 training pictures": seen, "64 unseen pictures": others.images()}
medians = {name: [nearest(samples, x).values.median().item() for x in sets.values()] for name, samples in made.items()}
histograms(made, sets)

# %% [markdown]
# The dashed lines are medians. On the left they all but coincide: to a network that saw an endless stream, the 64 are pictures like any others. On the right they part. The network has begun to memorise, in 1,400 steps and with fewer than 300,000 weights. Training loss and judge both called it progress. Always compare samples with what was trained on, and have a set of pictures ready that was not.
#
# ## Seven ablations
#
# Your hundred lines made many choices. Which of them matter? An **ablation** changes one thing and keeps everything else. Two rules make it honest: the same budget for every variant, and several seeds, because a difference smaller than the spread between seeds is no difference.
#
# Three seeds cost little more than one if three networks become one, as a batch of matrix products. Each takes a third of the batch.

# %%
from minidiff.layers import timestep_embedding

SEEDS = 3


class Networks(nn.Module):
    """SEEDS independent networks like yours, but smaller; each takes its own part of the batch."""

    num_classes = 0

    def __init__(self, widths=(2 + 64, 64, 64, 64, 2)):
        super().__init__()
        pairs = list(zip(widths, widths[1:]))
        self.weight = nn.ParameterList(1.7 * torch.randn(SEEDS, a, b) / a**0.5 for a, b in pairs)
        self.bias = nn.ParameterList(torch.zeros(SEEDS, 1, b) for _, b in pairs)
        self.weight[0].data[:, :2] *= 5
        self.weight[-1].data *= 0.3

    def forward(self, x, time, y=None):
        h = torch.cat([x, timestep_embedding(time, 64).expand(len(x), -1)], dim=1).unflatten(0, (SEEDS, -1))
        for k, (weight, bias) in enumerate(zip(self.weight, self.bias)):
            h = torch.baddbmm(bias, F.silu(h) if k else h, weight)
        return h.flatten(0, 1)

# %% [markdown]
# The base model is that of the paper: it predicts $\varepsilon$, with the linear schedule and the same weight for every step. `bound` is the loss that was not simplified: it keeps the factor that the variational bound puts before each step, $\beta^2 / (2 \sigma_q^2 (1 - \beta)\,\sigma^2)$ in equation 12 of the paper, where $\sigma_q^2$ is the variance of the noise that the sampler adds, here $\beta$. `min_snr` does the opposite. It caps the weight of steps with little noise, those of a high signal-to-noise ratio $\alpha^2/\sigma^2$ (SNR).

# %%
def bound_weight(schedule, t):
    i = (t * schedule.steps).round().long() - 1
    beta = torch.as_tensor(schedule.betas)
    return (beta / (2 * (1 - beta) * (1 - torch.cumprod(1 - beta, 0)))).float()[i]


def train_three(steps, T=100, schedule=minidiff.schedules.linear, prediction="eps", weight="uniform", batch=128):
    torch.manual_seed(0)
    model = minidiff.Diffusion(Networks(), schedule(T), prediction, shape=(2,), value_range=(-3, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    ema = minidiff.training.EMA(model, 0.999)
    for step in range(steps):
        x0 = points[torch.randint(len(points), (SEEDS * batch,))]
        t = model.sample_times(len(x0))
        if weight == "bound":
            loss = (model.loss(x0, t=t) * bound_weight(model.schedule, t)).mean()
        else:
            loss = model.loss(x0, t=t, weight=weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(step)
    return ema.model, model

# %% [markdown]
# You also need a judge. The **energy distance** between two clouds is twice the mean distance from a point of the one to a point of the other, minus the mean distance within the one, minus that within the other. It is zero exactly when both come from the same distribution (Székely and Rizzo 2013). With finite clouds it is a little more; how much more, real points tell. Here a distance $d$ enters as $1 - e^{-d/0.2}$, which saturates, so that the judge sees whether points lie *on* a moon and not just whether each moon gets its share.

# %%
cloud = 2000 if run.tier != "smoke" else 200
fresh = 2 * minidiff.load_dataset("moons", num=5 * cloud // 2, split="test").images()


def energy_distance(a, b):
    def mean(u, v):
        return (1 - torch.exp(-torch.cdist(u, v) / 0.2)).mean()
    return (2 * mean(a, b) - mean(a, a) - mean(b, b)).item()


def judge(model, sampler=minidiff.samplers.ddpm, steps=None, **options):
    """(mean, standard deviation) over the seeds of 1000 x the energy distance to fresh data."""
    torch.manual_seed(1)
    steps = steps or (model.schedule.steps if run.tier != "smoke" else 4)
    times, x = minidiff.spacing(model.schedule, steps), torch.randn(SEEDS * cloud, 2)
    for step in sampler(model.denoise, model.schedule, x, times, torch.randn_like, **options):
        x = step.x
    scores = torch.tensor([1000 * energy_distance(part, fresh) for part in x.split(cloud)])
    return scores.mean().item(), scores.std().item()


real = [2 * minidiff.load_dataset("moons", num=cloud, seed=seed).images() for seed in (5, 6, 7)]
floor = sum(1000 * energy_distance(x, fresh) for x in real) / 3
print(f"{cloud:,} real points score {floor:.2f}")

# %% [markdown]
# Now run it all. Eight variants are trained, each with three seeds. The other questions need no training, only another sampler on the base model: fewer steps, DDIM instead of ancestral sampling, the larger variance $\beta_i$ instead of the posterior's, or the last weights instead of their average.

# %%
cosine_schedule, ddim, ddpm = minidiff.schedules.cosine, minidiff.samplers.ddim, minidiff.samplers.ddpm
variants = {
    "base": {}, "x0": dict(prediction="x0"), "v": dict(prediction="v"), "cosine": dict(schedule=cosine_schedule),
    "T = 25": dict(T=25), "T = 1000": dict(T=1000), "bound": dict(weight="bound"), "min-SNR": dict(weight="min_snr"),
}
each = budget("each of eight variants", smoke=8, cpu=4000, gpu=4000, seconds_per_step=0.0015)
models = {name: train_three(each, **options) for name, options in variants.items()}  # name -> (averaged, last)
scores = {name: judge(averaged) for name, (averaged, _) in models.items()}
base, last = models["base"]
scores |= {f"DDPM {n}": judge(base, ddpm, n) for n in (10, 50)}
scores |= {f"DDIM {n}": judge(base, ddim, n) for n in (10, 50, 100)}
scores |= {"large": judge(base, variance="large"), "large 10": judge(base, ddpm, 10, variance="large")}
scores["no EMA"] = judge(last)
questions = {
    "1  what is predicted": {"eps (base)": "base", "x0": "x0", "v": "v"},
    "2  schedule": {"linear (base)": "base", "cosine": "cosine"},
    "3  steps T in training": {"25": "T = 25", "100 (base)": "base", "1000": "T = 1000"},
    "4  weight of the loss": {"simple (base)": "base", "bound": "bound", "min-SNR": "min-SNR"},
    "5  sampler and its steps": {"DDPM 10": "DDPM 10", "DDPM 50": "DDPM 50", "DDPM 100 (base)": "base",
                                 "DDIM 10": "DDIM 10", "DDIM 50": "DDIM 50", "DDIM 100": "DDIM 100"},
    "6  variance": {"small (base)": "base", "large": "large", "small, 10": "DDPM 10", "large, 10": "large 10"},
    "7  averaged weights": {"EMA (base)": "base", "last weights": "no EMA"},
}

# %% [markdown]
# Shorter is better. The black lines are one standard deviation over three seeds to each side: only a difference clearly larger than they are counts. The dashed line is what real data get. The axis is logarithmic.

# %%
@plots.quiet
def seven_panels(questions, scores, floor):
    import matplotlib.pyplot as plt
    heights = [len(bars) + 1.2 for bars in questions.values()]
    size = (7.0, 0.27 * sum(heights))
    figure, panels = plt.subplots(len(questions), 1, figsize=size, sharex=True, height_ratios=heights)
    for axes, (question, bars) in zip(panels, questions.items()):
        values, errors = zip(*[scores[key] for key in bars.values()])
        best = min(range(len(values)), key=values.__getitem__)
        colors = [plots.COLORS[0] if k == best else plots.COLORS[4] for k in range(len(values))]
        axes.barh(range(len(values)), values, xerr=errors, color=colors, height=0.7, error_kw={"ecolor": "black"})
        for k, (value, error) in enumerate(zip(values, errors)):
            axes.text(1.1 * (value + error), k, f"{value:.2f} ± {error:.2f}", va="center", fontsize=8.5)
        axes.axvline(floor, color=plots.COLORS[7], linestyle="--", linewidth=1)
        axes.set(xscale="log", xlim=(0.7 * floor, 2.5 * max(v + e for v, e in scores.values())))
        axes.set_yticks(range(len(values)), list(bars))
        axes.set_title(question, loc="left", fontsize=9.5)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
    panels[-1].set_xlabel("1000 x energy distance to fresh data")
    return figure


seven_panels(questions, scores, floor)

# %% [markdown]
# **Prediction.** $\varepsilon$ and $v$ are alike, $x_0$ is several times worse. An error in a predicted $x_0$ stays in the point as it is; an error in $\varepsilon$ is multiplied by $\sigma/\alpha$, which is small in the last steps, where details are made.
#
# **Schedule.** No difference to speak of, although linear wastes its late steps. Cosine was made for pictures. Neighbouring pixels say the same thing, so a picture survives more noise than a point.
#
# **Steps in training.** 25 are too few; beyond 100 nothing is gained.
#
# **Weight.** Here the toy contradicts the paper: the bound's weight costs nothing. It stresses low noise. In pictures that is grain, but thin moons have their shape there. min-SNR takes weight away from the same steps, and is several times worse.
#
# **Sampler.** With 10 steps DDIM wins; with 50 and more the two are alike.
#
# **Variance.** With all 100 steps the two are close. With 10 steps large is *better*, where the DDIM paper found it ruinous. A likely reason: the small variance is right for an $x_0$ that is known exactly, so over long strides the cloud gets too narrow. In pictures the larger noise stays visible as grain, and the papers' judge, FID, is sensitive to that.
#
# **Averaging.** The last weights are clearly worse than their mean, which costs one line.
#
# ## What the papers found, what you measured
#
# FID compares statistics of generated and real pictures; energy distances, in thousandths, compare points. Lower is better for both. Compare directions, not sizes.

# %%
from IPython.display import Markdown

def seen_here(*names):
    return " / ".join(f"{scores[name][0]:.2f} ± {scores[name][1]:.2f}" for name in names)


ratio = [row[1] / row[0] for row in medians.values()]
findings = [
    ("Predicting x0 gave worse samples than eps (Ho et al. 2020, 3.2); v is as good (Salimans and Ho 2022)",
     "eps / x0 / v: " + seen_here("base", "x0", "v")),
    ("Cosine is better than linear at 32 and 64 pixels (Nichol and Dhariwal 2021)",
     "linear / cosine: " + seen_here("base", "cosine")),
    ("T = 1000 in DDPM, 4000 for a better likelihood (Nichol and Dhariwal 2021)",
     "25 / 100 / 1000: " + seen_here("T = 25", "base", "T = 1000")),
    ("FID 13.51 with the bound's weight, 3.17 with the simple loss (Ho et al. 2020, table 2)",
     "bound / simple: " + seen_here("bound", "base")),
    ("In 10 steps FID 13.4 with DDIM, 41 with ancestral sampling (Song et al. 2021, table 1)",
     "DDIM / DDPM: " + seen_here("DDIM 10", "DDPM 10")),
    ("Small and large variance alike at T = 1000 (Ho et al. 2020); at 10 steps large is ruinous, FID 367 "
     "(Song et al. 2021)", "large: " + seen_here("large") + "; in 10 steps " + seen_here("large 10")),
    ("EMA 0.9999 in all models (Ho et al. 2020)", "with / without: " + seen_here("base", "no EMA")),
    ("Small training sets are memorised, large ones are not (Yoon et al. 2023)",
     "unseen / training distance: {:.2f} for the stream, {:.2f} for 64 pictures".format(*ratio)),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. Another target (a line or two).** Write the loss for a network that predicts $v = \alpha\varepsilon - \sigma x_0$. Use `q_sample` and `at`.

# %% tags=["exercise"] name="v_loss"
def v_loss(network, x0, i, eps, table):
    """The mean squared error of v, a number; the network is called as network(x_i, i)."""
    ...  # your code

# %% [markdown]
# The check knows what its network answers.

# %%
exercises.check_v_loss(v_loss)

# %% [markdown]
# **2. From ancestral sampling to DDIM.** DDIM (Song et al. 2021) adds no noise: from $x_i$ and $\hat\varepsilon$ compute $\hat x_0 = (x_i - \sigma_i\hat\varepsilon)/\alpha_i$, then put the *same* noise back at the level of the next stop, $x_j = \alpha_j \hat x_0 + \sigma_j \hat\varepsilon$. Write a sampler that visits only every `stride`-th entry of the table, from the last one down, and ends at $\hat x_0$ of the final stop.

# %% tags=["exercise"] name="sample_ddim"
def sample_ddim(network, table, x, stride):
    """x (B, ...) of pure noise -> samples; stops at entries T - 1, T - 1 - stride, ... as long as they are >= 0."""
    ...  # your code

# %% [markdown]
# For the check's Gaussian data the right network is known in closed form.

# %%
exercises.check_ddim_sampler(sample_ddim)

# %% [markdown]
# **3. A project: when does memorising begin?** First a yardstick. Call a sample a copy if its nearest training picture is less than a third as far away as the second nearest (Yoon et al. 2023); `torch.cdist` gives all distances. Write the share of copies.

# %% tags=["exercise"] name="copied"
def copied(samples, training):
    """The share, from 0 to 1, of samples (M, ...) that are copies of one of the training pictures (N, ...)."""
    ...  # your code

# %% [markdown]
# The check plants copies in a crowd and counts.

# %%
exercises.check_copied(copied)

# %% [markdown]
# Now the project. Train the tiny U-Net on 16, 64, 256 and 1,024 shapes with the same number of steps, and plot `copied` over the number of pictures. Then fix 64 pictures, and follow the share over training: `train(..., on_step=...)` lets you sample every few hundred steps. Does the loss on unseen pictures turn up before or after the first copies appear?
#
# ## What you learned
#
# - DDPM is a table, a line that adds noise, a network, a squared error and a loop that walks the table backwards, for points and pictures alike.
# - The loss averages noise levels that behave quite differently; its flat curve hides what is learned.
# - The ideal denoiser of a finite data set is a softmax over its pictures. It has the lowest training loss, and returns copies.
# - A small training set is memorised, and the training loss applauds. Distances to seen and unseen pictures tell.
# - An ablation means one change, the same budget, several seeds, and a judge whose floor is known.
#
# ## Where to read on
#
# - Ho, Jain, Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv 2006.11239.
# - Nichol, Dhariwal, *Improved DDPM*, 2021, arXiv 2102.09672: the cosine schedule.
# - Song, Meng, Ermon, *Denoising diffusion implicit models*, 2021, arXiv 2010.02502: DDIM.
# - Salimans, Ho, *Progressive distillation*, 2022, arXiv 2202.00512: where $v$ comes from. Hang et al., 2023, arXiv 2303.09556: min-SNR.
# - Kadkhodaie, Guth, Simoncelli, Mallat, *Generalization in diffusion models arises from geometry-adaptive harmonic representations*, 2024, arXiv 2310.02557; Yoon et al., *Diffusion probabilistic models generalize when they fail to memorize*, ICML workshop 2023.
#
# Next comes notebook 04, *Scores, SDEs and ODEs: one object, five names*.
