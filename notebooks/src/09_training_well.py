# %% [markdown]
# # 09 Training well and knowing it
#
# After this notebook you know what a loss curve hides, which numbers tell you whether your model is good, and how to find out in minutes why it is not.
#
# Run time: about four minutes on a CPU with two idle cores; as long on a T4 or a bigger GPU, which trains for more steps. Nothing is downloaded.
#
# You will
#
# - split a loss into the part that no network can avoid and the part that training works on,
# - choose a weight for each noise level, and see what you pay for it,
# - average weights, and compute how long an average your run can afford,
# - measure the distance between two sets of pictures, prove its bias, and remove it,
# - diagnose six broken set-ups from their samples.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## A loss that stops falling
#
# You start a training run. The loss drops for a minute, then it lies there. Is it finished, or is something wrong? Train a small network, keep copies on the way, and see what the loss did not say.
#
# The data are the 1,797 handwritten digits of 8 by 8 pixels that come with the package. Set 500 of them aside, at random; the network will never see these. The model is a small U-Net that predicts $v = \alpha\varepsilon - \sigma x_0$ on the cosine schedule and is told the label, as in [notebook 03](03_ddpm_in_a_hundred_lines.ipynb).

# %%
import copy
import torch
from minidiff.training import EMA

everything = minidiff.load_dataset("digits", split="all")
order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))


def part_of(dataset, numbers):
    captions = [dataset.captions[k] for k in numbers]
    return minidiff.datasets.InMemory(dataset.images()[numbers], dataset.labels[numbers], captions, dataset.classes)


def digit_model():
    torch.manual_seed(0)
    size = dict(image_size=8, in_channels=1, out_channels=1, ch=16, ch_mult=(1, 2), attn_resolutions=(4,))
    network = minidiff.create_model("ddpm_tiny", num_classes=10, **size).to(run.device)
    return minidiff.Diffusion(network, minidiff.schedules.cosine(), "v", shape=(1, 8, 8))


held_out, digits = part_of(everything, order[:500]), part_of(everything, order[500:])
print(f"{len(digits)} digits to train on, {len(held_out)} held out")
plots.grid(torch.stack([digits.images()[digits.labels == k][0] for k in range(10)]), columns=10)

# %% [markdown]
# Train it. The learning rate stays constant after a short rise. `watch` runs after every step: it keeps copies of the model at seven moments, and feeds four moving averages of the weights, for a later section.

# %%
def one_step():
    minidiff.training.train(digit_model(), digits, steps=1, progress=False)


total = budget("a U-Net on digits", smoke=6, cpu=2000, gpu=4000, per_step=one_step)
moments = sorted({max(1, total * k // 2000) for k in (50, 100, 200, 400, 800, 1400, 2000)})
recipe = dict(batch_size=64 if run.tier != "smoke" else 8, lr=2e-3, warmup=100, decay=None, ema=None, progress=False)
model = digit_model()
averages = {f"decay {d}": EMA(model, d, warmup=False) for d in (0.99, 0.999, 0.9999)}
averages["0.9999, warmed up"] = EMA(model, 0.9999, warmup=True)
saved = {}  # step -> {name: model}


def watch(step, history):
    for average in averages.values():
        average.update(step - 1)
    if step in moments:
        now = {"last weights": model} | {name: average.model for name, average in averages.items()}
        saved[step] = {name: copy.deepcopy(each).eval() for name, each in now.items()}


history = minidiff.training.train(model, digits, steps=total, on_step=watch, **recipe)
plots.losses(history.losses)

# %% [markdown]
# By this curve, little happens after step 500. Sample from the seven copies, from the same noise.

# %%
def draw(model, num=500 if run.tier != "smoke" else 20, y=None, steps=15):
    """`num` digits (num, 1, 8, 8), with the labels of the held-out ones unless y is given."""
    y = held_out.labels[:num] if y is None else y
    return minidiff.sample(model, num, y=y, steps=steps, batch_size=num, progress=False).cpu()


ten = torch.stack([draw(saved[step]["last weights"], 10, list(range(10))) for step in moments], dim=1)
plots.filmstrip(ten, rows=[f"{step} steps" for step in moments])

# %% [markdown]
# From the third row on, do they get better? Take a judge on trust for now, the **Fréchet distance** between samples and training digits, which is small when they look alike to a network that knows digits.

# %%
from minidiff.metrics import features_of, frechet, load_features

judge = load_features("digits", run.device)
known = features_of(digits.images(), judge)  # (1297, 64)
distance = {step: frechet(known, features_of(draw(saved[step]["last weights"]), judge)) for step in moments}
loss = {step: history.losses[max(0, step - 100) : step].mean().item() for step in moments}


def plain(figure):
    """A little smaller, and numbers instead of powers of ten on logarithmic axes."""
    from matplotlib.ticker import LogLocator, NullFormatter
    figure.set_size_inches(0.85 * figure.get_size_inches())
    for axis in [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) if axis.get_scale() == "log"]:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    return figure


print("step     " + "".join(f"{step:8}" for step in moments))
print("loss     " + "".join(f"{value:8.3f}" for value in loss.values()))
print("distance " + "".join(f"{value:8.2f}" for value in distance.values()))
curves = {"training loss": loss, "Fréchet distance": distance}
curves = {name: (moments, [value / curve[moments[0]] for value in curve.values()]) for name, curve in curves.items()}
plain(plots.lines(curves, x="step", y=f"as a share of that at step {moments[0]}", log="xy"))

# %% [markdown]
# From step 200 to step 800 the loss loses a quarter, and the distance falls to a fifth. Later the loss still creeps down, and the distance does not. So the loss does not tell you how good the samples are.
#
# ## What no network can avoid
#
# Why is the loss so silent? Go where everything is known, to a mixture of three Gaussians in the plane. For these the package has an **oracle**, the ideal denoiser $\mathbb E[\varepsilon \mid x_t]$ in closed form ([notebook 04](04_scores_sdes_and_odes.ipynb)). With $\hat\varepsilon$ the answer of a network, the loss at each noise level falls into two parts,
#
# $$\mathbb E\,\|\hat\varepsilon - \varepsilon\|^2 = \underbrace{\mathbb E\,\|\mathbb E[\varepsilon\mid x_t] - \varepsilon\|^2}_{\text{floor}} + \underbrace{\mathbb E\,\|\hat\varepsilon - \mathbb E[\varepsilon\mid x_t]\|^2}_{\text{excess}},$$
#
# because the remainder $\mathbb E[\varepsilon\mid x_t] - \varepsilon$ has mean zero for each $x_t$, so the mixed term vanishes. Only the excess is the network's fault.

# %%
raw = minidiff.load_dataset("mixture", num=20_000)
points, mixture = 2 * raw.images(), raw.mixture  # spread by two, to a variance near 1
oracle = minidiff.oracles.Mixture(mixture.weights, 2 * mixture.means, 4 * mixture.covariances)
schedule = minidiff.schedules.linear(100)


def fit(steps, weight="uniform", seed=0, marks=()):
    """A small network for the mixture: {step: its averaged model}."""
    torch.manual_seed(seed)
    network = minidiff.create_model("mlp_tiny")
    model = minidiff.Diffusion(network, schedule, "eps", shape=(2,), value_range=(-5, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    average, kept = EMA(model, 0.995), {}
    for step in range(1, steps + 1):
        x0 = points[torch.randint(len(points), (512,))]
        optimizer.zero_grad()
        model.loss(x0, weight=weight).mean().backward()
        optimizer.step()
        average.update(step - 1)
        if step in (*marks, steps):
            kept[step] = copy.deepcopy(average.model)
    return kept

# %% [markdown]
# Measure loss, floor and excess at each of the 100 levels. The scatter of the mixed term over the levels says how far from zero chance may take it.

# %%
@torch.no_grad()
def three_parts(model, num=4000 if run.tier != "smoke" else 200):
    """(100, 3): loss, floor and excess at each step of the schedule."""
    generator, rows = torch.Generator().manual_seed(1), []
    for i in range(100):
        t = (i + 1) / 100
        x0, eps = oracle.sample(num, generator).float(), torch.randn(num, 2, generator=generator)
        x_t = model.forward_process(x0, t, eps)
        ideal, mine = oracle.denoise(x_t, t, schedule).eps, model.denoise(x_t, t).eps
        rows.append([(a - b).square().mean() for a, b in ((mine, eps), (ideal, eps), (mine, ideal))])
    return torch.tensor(rows)


length = budget("a network for points", smoke=30, cpu=3000, seconds_per_step=0.002)
parts = {step: three_parts(kept) for step, kept in fit(length, marks=[length // 30]).items()}
for step, part in parts.items():
    mixed = part[:, 0] - part[:, 1] - part[:, 2]
    print("step {:4}: loss {:.4f}, floor {:.4f}, excess {:.4f}".format(step, *part.mean(0)), end="; ")
    print(f"mixed term {mixed.mean():+.5f} ± {mixed.std() / 10:.5f}")
    assert mixed.mean().abs() < 4 * mixed.std() / 10
t = torch.arange(1, 101) / 100
curves = {f"loss, {length} steps": (t, parts[length][:, 0]), "floor": (t, parts[length][:, 1])}
curves |= {f"excess, {step} steps": (t, part[:, 2]) for step, part in parts.items()}
print(f"share of the floor that lies at t < 1/3: {parts[length][:33, 1].sum() / parts[length][:, 1].sum():.0%}")
plots.lines(curves, x="t", y="mean squared error of eps", log="y")

# %% [markdown]
# Training cuts the excess to a twentieth, and the loss hardly moves: nearly all of it is floor. This is why the curve lies flat while the model improves.
#
# The floor falls by five powers of ten from left to right. With little noise, most of the noise cannot be told from the data; with much noise it is plain to see. So a mean over $t$ is mostly a mean over the left third, and the right half could get ten times better or worse unnoticed. **Look at the loss by noise level.**
#
# For pictures no floor is known, but you can compare each level with the same level of another run, or earlier in the run. Here are three copies of the digit model, on held-out digits.

# %%
levels = [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95]


@torch.no_grad()
def error_by_level(denoise, schedule, x0):
    """(levels, mean squared error of v at each), with the same noise on every call."""
    generator, errors = torch.Generator().manual_seed(0), []
    for t in levels:
        (alpha, sigma), eps = schedule(t), torch.randn(x0.shape, generator=generator).to(x0.device)
        guess = denoise(alpha * x0 + sigma * eps, t).v
        errors.append((guess - (alpha * eps - sigma * x0)).square().mean().item())
    return levels, errors


def on_digits(model, data=held_out):
    images, kinds = data.images()[:300].to(run.device), data.labels[:300].to(run.device)
    return error_by_level(minidiff.condition(model.denoise, kinds), model.schedule, images)


centres, means = history.loss_by_time()  # what every run records while it trains, in 20 bins of t
assert run.tier == "smoke" or abs(means.mean() - history.losses.mean()) < 0.01
curves = {f"step {step}": on_digits(saved[step]["last weights"]) for step in (moments[1], moments[3], total)}
plain(plots.lines(curves | {"mean of the whole run": (centres, means)}, x="t", y="error of v", log="y"))

# %% [markdown]
# The average loss hid this: between steps 400 and 2,000 the error falls most in the left half, and near $t = 1$ hardly at all. The fourth curve comes for nothing: every training run records it as `history.loss_by_time()`.
#
# ## A weight for each level
#
# The average over levels is a choice too. Predict $\varepsilon$, $x_0$ or $v$, and the same error counts in three currencies. Fix $x_t = \alpha x_0 + \sigma\varepsilon$: if $\hat x_0$ is off by $e$, then $\hat\varepsilon$ is off by $-\frac\alpha\sigma e$. With the signal-to-noise ratio $\text{SNR} = \alpha^2/\sigma^2$ and $\alpha^2 + \sigma^2 = 1$,
#
# $$\|\hat\varepsilon - \varepsilon\|^2 = \text{SNR}\;\|\hat x_0 - x_0\|^2,\qquad \|\hat v - v\|^2 = (\text{SNR} + 1)\,\|\hat x_0 - x_0\|^2.$$
#
# So the plain loss for $\varepsilon$ is the loss for $x_0$ with weight SNR. "Unweighted" means nothing until you name the currency. **Min-SNR** puts a ceiling on that weight, $\min(\text{SNR}, 5)$. **P2** takes it back where there is little noise: $\text{SNR}/(1 + \text{SNR})$. To use a weight $w$ on $x_0$ in a loss for $\varepsilon$ divide by SNR, in a loss for $v$ by $\text{SNR} + 1$.

# %%
from minidiff.losses import loss_weight
from minidiff.prediction import target

on_x0 = {"uniform eps": lambda snr: snr, "uniform x0": torch.ones_like, "uniform v": lambda snr: snr + 1,
         "min-SNR": lambda snr: snr.clamp(max=5.0), "P2": lambda snr: snr / (1 + snr)}
exchange = {"eps": lambda snr: snr, "x0": torch.ones_like, "v": lambda snr: snr + 1}
cosine = minidiff.schedules.cosine()
t = torch.linspace(0.02, 0.98, 49)
alpha, sigma = cosine(t)
snr = (alpha / sigma) ** 2
for kind, rate in exchange.items():
    for mine, theirs in {"min-SNR": "min_snr", "P2": "p2", f"uniform {kind}": "uniform"}.items():
        weight = on_x0[mine](snr) / rate(snr)
        assert torch.allclose(weight, loss_weight(theirs, kind, alpha, sigma), rtol=1e-4)

x0, eps, wrong = torch.randn(3, 49, 8).unbind()  # and the exchange itself, with a wrong guess of x0
a, s = alpha[:, None], sigma[:, None]
for kind, rate in exchange.items():
    off = target(kind, x0, eps, a, s) - target(kind, wrong, (a * x0 + s * eps - a * wrong) / s, a, s)
    assert torch.allclose(off.square().sum(1), rate(snr) * (x0 - wrong).square().sum(1), rtol=1e-3)
plots.lines({name: (snr.log(), w(snr)) for name, w in on_x0.items()},
            x="log SNR (much noise to the left)", y="weight of the error of x0", log="y")

# %% [markdown]
# To the left, where noise rules, $\varepsilon$, min-SNR and P2 agree and give an error of $x_0$ next to no weight, while $x_0$ and $v$ still count it in full. To the right $\varepsilon$ and $v$ weigh an error more than a hundred times as much as the others do.
#
# What does a weight do to the network? Train the small network again with min-SNR and with P2, two seeds each, and compare the excess at each level with that of the uniform loss for $\varepsilon$.

# %%
short = budget("each of six networks", smoke=10, cpu=1500, seconds_per_step=0.002)
weights = {"uniform": "uniform eps", "min_snr": "min-SNR", "p2": "P2"}
excess = {name: sum(three_parts(fit(short, weight, seed)[short])[:, 2] for seed in (0, 1))
          for weight, name in weights.items()}
t = torch.arange(1, 101) / 100
ratio = {name: (excess[name] / excess["uniform eps"]).view(20, 5).mean(1) for name in ("min-SNR", "P2")}
curves = {name: (t.view(20, 5).mean(1), value) for name, value in ratio.items()}
curves["uniform"] = (t, torch.ones(100))
assert run.tier == "smoke" or ratio["P2"][10:].mean() < 0.8 < 2 < ratio["P2"][:2].mean()
for name, value in ratio.items():
    print(f"{name}: excess x {value[:2].mean():.1f} for t up to 0.1, x {value[10:].mean():.2f} beyond 0.5")
plain(plots.lines(curves, x="t", y="excess, relative to the uniform loss", log="y"))

# %% [markdown]
# Nothing is free. P2 halves the excess in the right half, where the layout of a picture is decided, and pays with several times as much at the left, where the finest details are. Min-SNR makes a milder trade of the same kind. Only samples can say which is better.
#
# ## Averaging the weights
#
# With a constant learning rate the weights never come to rest: the last few batches push them about. So sample from an **exponential moving average** (EMA) of where they have been:
#
# $$\bar w \leftarrow d\,\bar w + (1 - d)\,w \quad\text{after each step.}$$
#
# It is three lines. Check them against the package, then judge the four averages that were running beside your digits. The last column is the share $d^n$ of the random start that an average still holds after $n$ steps: each step keeps a share $d$ of what was there.

# %%
import math

mine, net = digit_model().network, digit_model().network
theirs = EMA(net, 0.9, warmup=False)
for step in range(2):
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn_like(weight))  # stands for a step of training
        for slow, fast in zip(mine.parameters(), net.parameters()):
            slow.mul_(0.9).add_(fast, alpha=0.1)
    theirs.update(step)
assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine.parameters(), theirs.model.parameters()))

late, warmed = moments[2:], "0.9999, warmed up"
scores = {name: [frechet(known, features_of(draw(saved[step][name]), judge)) for step in late] for name in saved[total]}
floor = frechet(known, features_of(held_out.images(), judge))
for name, values in scores.items():
    left = math.prod(averages[name].decay_at(step) for step in range(total)) if name in averages else 0
    print(f"{name:18} distance at the end {values[-1]:5.2f}, share of the random start {left:.0%}")
print(f"held-out digits    distance            {floor:5.2f}")
assert run.tier == "smoke" or scores[warmed][-1] < scores["last weights"][-1] < scores["decay 0.9999"][-1]
curves = {name: (late, values) for name, values in scores.items()} | {"held-out digits": (late, [floor] * len(late))}
plain(plots.lines(curves, x="step", y="Fréchet distance", log="xy"))

# %% [markdown]
# The last weights stop improving early. The average with 0.99 and the warmed-up one go on, and end close to what real digits get. (Why not zero, you will see soon.)
#
# But look at decay 0.9999, the number of DDPM and its heirs, made for hundreds of thousands of steps. After your run it is still mostly random start, and draws noise. The remedy is **warm-up**: in step $n = 0, 1, \dots$ the package uses $d_n = \min\big(d, \frac{1 + n}{10 + n}\big)$. Three steps leave $\frac1{10}\cdot\frac2{11}\cdot\frac3{12}$ of the start, less than half a per cent. And since $1 - d_n \approx 9/n$, the average reaches back over about the last ninth of the run, however long that is, until $d_n$ meets $d$.
#
# ## A distance between two sets of pictures
#
# Pixels compare badly: a digit shifted by one is far from itself. So send both sets through a network trained to tell digits apart, and take what its last layer sees, here 64 numbers a picture, its **features**. Fit a Gaussian to each cloud of features. Between Gaussians with means $m_1, m_2$ and covariances $C_1, C_2$ the squared Fréchet distance is
#
# $$F = \|m_1 - m_2\|^2 + \operatorname{tr}\big(C_1 + C_2 - 2\,(C_1 C_2)^{1/2}\big).$$
#
# The square is what everybody reports, and what we print. With the features of the Inception network and 50,000 samples it is called FID. The trace of the root is the sum of the roots of the eigenvalues of $C_1 C_2$.
#
# A second one, the **kernel distance**, needs no Gaussian. With the similarity $k(x, y) = (x\cdot y/64 + 1)^3$ of two features, and a bar for the mean over pairs of different pictures, it is $\bar k_{11} + \bar k_{22} - 2\,\bar k_{12}$: how much more alike the pictures are within a set than across.

# %%
def by_hand(a, b):
    c1, c2 = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(c1 @ c2).real.clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + c1.trace() + c2.trace() - 2 * root).item()


def kernel_by_hand(a, b):
    def similarity(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):  # of different pictures: a picture is always similar to itself
        return (similarity(x, x).sum() - similarity(x, x).diagonal().sum()) / (len(x) * (len(x) - 1))
    return (within(a) + within(b) - 2 * similarity(a, b).mean()).item()


unseen = features_of(held_out.images(), judge)  # (500, 64)
assert math.isclose(by_hand(known, unseen), frechet(known, unseen), rel_tol=1e-3)
assert math.isclose(kernel_by_hand(known, unseen), minidiff.metrics.kernel(known, unseen), rel_tol=1e-6)
print(f"Fréchet {by_hand(known, unseen):.3f}, kernel {kernel_by_hand(known, unseen):.5f}, both between real digits")

# %% [markdown]
# The first number is not zero, though both sets are real digits; two finite sets never have the same mean. Each mean misses the true one by $\operatorname{tr}(C)/N$ in mean square, which puts $2\operatorname{tr}(C)/N$ into $F$ where zero would be right; errors of the covariances add more. Draw two disjoint sets of $N$ real digits, forty times for each $N$.

# %%
features = features_of(everything.images(), judge)  # (1797, 64)
counts, generator = [25, 50, 100, 200, 400, 800] if run.tier != "smoke" else [25, 50], torch.Generator().manual_seed(0)
shuffled = {n: [features[torch.randperm(len(features), generator=generator)] for _ in range(40)] for n in counts}
pairs = {n: [(f[:n], f[n : 2 * n]) for f in each] for n, each in shuffled.items()}
law = torch.tensor([2 * torch.cov(features.T).trace().item() / n for n in counts])
of_means = torch.tensor([sum((a.mean(0) - b.mean(0)).square().sum().item() for a, b in pairs[n]) / 40 for n in counts])
assert abs((of_means / law).mean() - 1) < 0.15


@plots.quiet
def halves(pairs, counts):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.4))
    for ax, name, measure in zip(axes, ("Fréchet", "kernel"), (frechet, minidiff.metrics.kernel)):
        values = torch.tensor([[measure(a, b) for a, b in pairs[n]] for n in counts], dtype=torch.float64)
        ax.fill_between(counts, values.quantile(0.1, 1), values.quantile(0.9, 1), alpha=0.2, linewidth=0)
        ax.plot(counts, values.mean(1), "o-", label="mean; band: 10 to 90 %")
        ax.set(xscale="log", xlabel="N, pictures in each set", title=f"{name} distance, real against real")
        print(f"{name:7} mean times N:", *(f"{m * n:.1f}" for m, n in zip(values.mean(1), counts)))
    axes[0].plot(counts, law, "--", color=plots.COLORS[1], label="from the means: 2 tr(C) / N")
    axes[0].set_yscale("log")
    axes[0].legend()
    return plain(figure)

halves(pairs, counts)

# %% [markdown]
# The true distance is zero each time. What you see at the left is bias, and it has the law: multiplied by $N$ it hardly changes. The part from the means is the closed form, dashed. The kernel distance scatters about zero for every $N$: it has spread, but no bias, since pairs of a picture with itself, which would pull it one way, are left out. For a few hundred pictures it is the better judge.
#
# ## The distance at infinity
#
# A bias proportional to $1/N$ can be removed: measure at several $N$, draw a line over $1/N$, and read off where it meets $1/N = 0$. Do it for your model at two moments and for the held-out digits, each against the training digits.

# %%
middle = moments[len(moments) // 2]
early, final = f"step {middle}, last weights", f"step {total}, averaged"
made = {early: draw(saved[middle]["last weights"]), final: draw(saved[total][warmed])}
made["held-out digits"] = held_out.images()
sizes = [60, 100, 150, 250, 400] if run.tier != "smoke" else [8, 12, 16]
draws, lines, at_infinity = 60 if run.tier != "smoke" else 3, {}, {}
x = 1 / torch.tensor(sizes, dtype=torch.float64)
for name, images in made.items():
    values = features_of(images, judge)
    picks = [[torch.randperm(len(values), generator=generator)[:n] for _ in range(draws)] for n in sizes]
    means = torch.tensor([sum(frechet(known, values[p]) for p in several) / draws for several in picks]).double()
    slope = ((x - x.mean()) * (means - means.mean())).sum() / (x - x.mean()).square().sum()
    at_infinity[name] = (means.mean() - slope * x.mean()).item()
    lines[name] = (x, means, [0, x[0]], [at_infinity[name], at_infinity[name] + slope * x[0]])
    print(f"{name:24}", *(f"{n}: {value:.2f}  " for n, value in zip(sizes, means)), f"∞: {at_infinity[name]:.2f}")
figure = plots.lines({name: line[2:] for name, line in lines.items()}, x="N, spaced by 1 / N", y="Fréchet distance")
for k, (across, up, *_) in enumerate(lines.values()):
    figure.axes[0].plot(across, up, "o", color=plots.COLORS[k])
figure.axes[0].set_xticks([0, *x.tolist()], ["∞", *map(str, sizes)])
plain(figure)

# %% [markdown]
# At the right end, with 60 pictures, nearly all of the distance is bias, and the averaged model cannot be told from real digits. At the left end the early model stands several times as far away as the other two. (What the 1,297 training digits themselves add stays in all three numbers.) So compare at equal $N$, and better at infinity.
#
# A distance alone means nothing. It needs its features and its counts, and those of the package carry them along. Here the worse model wins, because it was given more pictures. With fewer pictures than features the covariance is singular, and the result says so.

# %%
few, most = (60, 500) if run.tier != "smoke" else (8, 20)
for name, n in ((final, few), (early, most)):
    images = made[name][:n].clamp(-1, 1)
    print(f"{name:24}", minidiff.metrics.frechet_distance(digits.images(), images, "digits"))


def pixels(x):
    return x.flatten(1)


pair = digits.images(), held_out.images()
print("held out, pixels:       ", minidiff.metrics.frechet_distance(*pair, pixels))
print("held out, kernel:       ", minidiff.metrics.kernel_distance(*pair, "digits"))

# %% [markdown]
# A Fréchet distance on 2,000 pictures, or with other features than Inception's, is a useful number. It is not FID, and must not be called so.
#
# ## A score that copies would win
#
# One thing no such distance can see. A model that returned its training digits, each exactly once, would score a perfect zero. So look for copies: for each sample, take the distance to the nearest of 500 training digits, and to the nearest of 500 that the network never saw. If nothing is copied, half of the samples lie closer to the first set, up to the luck of the division, which three random sets of real digits tell.

# %%
def nearest(samples, images):
    return torch.cdist(samples.flatten(1), images.flatten(1)).min(dim=1).values

def closer(samples, a, b):
    return (nearest(samples, a) < nearest(samples, b)).double().mean().item()

@plots.quiet
def histograms(sets, samples):
    import matplotlib.pyplot as plt
    figure, ax = plt.subplots(figsize=(6.2, 3.2))
    for (name, images), color in zip(sets.items(), plots.COLORS):
        gap = nearest(samples, images)
        ax.hist(gap, 45, range=(0, 4.5), alpha=0.5, color=color, label=f"{name}, median {gap.median():.2f}")
        ax.axvline(gap.median(), ymax=0.75, color=color, linestyle="--")
    ax.set(xlabel="distance of a sample to the nearest digit", ylabel="samples")
    ax.set_ylim(0, 1.35 * ax.get_ylim()[1])  # room for the legend
    ax.legend(loc="upper left")
    return figure

shuffles = [everything.images()[torch.randperm(1797, generator=generator)[:1500]] for _ in range(40)]
luck = torch.tensor([closer(*images.chunk(3)) for images in shuffles]).std().item()
share = closer(made[final], digits.images()[:500], held_out.images())
print(f"{share:.0%} of the samples lie closer to a training digit; real digits: 50% ± {2 * luck:.0%} (two sigma)")
histograms({"500 training digits": digits.images()[:500], "500 held-out digits": held_out.images()}, made[final])

# %% [markdown]
# No sample is an outright copy, and the medians, dashed, differ little. But the share exceeds one half by more than luck explains: after a hundred passes or more over the same digits, memorising has begun. The Fréchet distance said nothing of it. [Notebook 03](03_ddpm_in_a_hundred_lines.ipynb) shows the late stage.
#
# ## The clinic: my samples are noise
#
# The loss went down, and the samples are rubbish. Of six patients, the first four are the shipped `emoji-unet`, a healthy network in wrong hands. The last two fell ill in training, and draw digits. The next two cells make them ill, so skip their code, look at the pictures, and write down six guesses.

# %%
from minidiff.prediction import clip

emoji = minidiff.load("emoji-unet", run.device)
net, table, shape = emoji.network, emoji.schedule, (3, 16, 16)
y = torch.tensor([9, 7, 4, 3, 1, 6, 5, 8], device=run.device)
x_T = minidiff.seeded_noise([(6, k) for k in range(8)])(torch.empty(8, *shape)).to(run.device)


def bound(model, low=-1.0, high=1.0, y=y):
    return clip(minidiff.condition(model.denoise, y), low, high)


right = bound(emoji)
wards = {  # name -> (denoiser, what the sampler starts from)
    "healthy": (right, x_T),
    "A": (bound(minidiff.Diffusion(net, table, "v", time="t", shape=shape)), x_T),
    "B": (bound(minidiff.Diffusion(net, table, "eps", shape=shape)), x_T),
    "C": (right, 2 * torch.rand(8, *shape, generator=torch.Generator().manual_seed(1)).to(run.device) - 1),
    "D": (bound(emoji, 0.0, 1.0), x_T),
}

# %% [markdown]
# E needs nothing but the run above. F is trained for some steps, on data that a colleague prepared. "Healthy" in grey is your model with the warmed-up average.

# %%
pale = minidiff.datasets.InMemory((digits.images() + 1) / 2, digits.labels, digits.captions, digits.classes)
ill = digit_model()
minidiff.training.train(ill, pale, steps=budget("patient F", smoke=3, cpu=500, gpu=500), **recipe)

times = minidiff.spacing(table, 20 if run.tier != "smoke" else 4)
ends = {name: list(minidiff.samplers.ddim(denoise, table, x, times))[-1].x for name, (denoise, x) in wards.items()}
display(plots.filmstrip(torch.stack(list(ends.values()), dim=1), rows=list(ends)))

grey = {"healthy": saved[total][warmed], "E": saved[total]["decay 0.9999"], "F": ill}
strips = [draw(patient, 8, list(range(8))) for patient in grey.values()]
plots.filmstrip(torch.stack(strips, dim=1), rows=list(grey))

# %% [markdown]
# Different diseases share symptoms. So the first measurement is always the same one, the error by noise level, **taken through the very denoiser that the sampler calls**, with its times and its clipping. It is the error of $v$, since that is finite everywhere.

# %%
pictures = minidiff.load_dataset("emoji", size=16, split="test")
some = torch.cat([torch.nonzero(pictures.labels == k)[:8].flatten() for k in range(10)])
x0, labels = pictures.images()[some].to(run.device), pictures.labels[some].to(run.device)
judged = {"healthy, C": emoji, "A": minidiff.Diffusion(net, table, "v", time="t", shape=shape),
          "B": minidiff.Diffusion(net, table, "eps", shape=shape)}
curves = {name: error_by_level(bound(each, y=labels), table, x0) for name, each in judged.items()}
curves["D"] = error_by_level(bound(emoji, 0.0, 1.0, y=labels), table, x0)
plain(plots.lines(curves, x="t", y="error of v", log="y"))

# %% [markdown]
# The curve of C is the healthy one itself. Then each patient gets one measurement of its own.
#
# - **A**: noise in all colours, and a large error everywhere. Listen to what the network is told.
# - **B**: noise too, but in pure, saturated colours. The error begins healthy and grows with the noise. Ask which target the output resembles, at $t = 0.5$, where the targets are well apart.
# - **C**: no noise at all, but pale, smooth, simple shapes. The healthy curve acquits network, time, prediction and clipping. What remains is what the sampler starts from.
# - **D**: good pictures, but the dark is missing. The error explodes at little noise, where the guess should be all but exact. Look at the range of the guesses.

# %%
fed = []
hook = net.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[1].max().item()))
for name in ("A", "healthy"):
    fed.clear()
    list(minidiff.samplers.ddim(wards[name][0], table, x_T, times))
    print(f"{name:8} the network is told times from {min(fed):g} to {max(fed):g}")
hook.remove()

(alpha, sigma), eps = table(0.5), torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(run.device)
with torch.no_grad():
    out = net(alpha * x0 + sigma * eps, torch.tensor([499.0], device=run.device), labels)
for kind in ("eps", "x0", "v"):
    gap = (out - target(kind, x0, eps, alpha, sigma)).square().mean()
    print(f"B        mean squared difference of the output to {kind:3}: {gap:.2f}")
for name in ("C", "healthy"):
    print(f"{name:8} start: mean {wards[name][1].mean():+.2f}, standard deviation {wards[name][1].std():.2f}")
for name in ("D", "healthy"):
    guesses = torch.stack([step.x0 for step in minidiff.samplers.ddim(wards[name][0], table, x_T, times)])
    print(f"{name:8} guesses of x0 from {guesses.min():+.2f} to {guesses.max():+.2f}")

# %% [markdown]
# **A.** The network was trained on the index 0 to 999, and is told $t$ in $[0, 1]$. It believes that there is next to no noise, and removes next to none. Cure: `time="index"`.
#
# **B.** The network speaks $v$, and is read as if it spoke $\varepsilon$. At little noise the two are nearly the same, which is why the curve begins so well. Cure: `prediction="v"`.
#
# **C.** The start is `2 * torch.rand(...) - 1`. That has the range of a picture, but the standard deviation $1/\sqrt 3$ where the network expects 1. Too little noise looks like a picture without detail, and stays one. Cure: `schedule.start`.
#
# **D.** The guesses are clipped to $[0, 1]$, but the data live in $[-1, 1]$. What should be dark is cut to mid grey in every step. Cure: clip to the range of the data.
#
# Now **E** and **F**. Measure F on the data it was trained with, as its own loss curve did.

# %%
curves = {"healthy": on_digits(grey["healthy"]), "E": on_digits(grey["E"]), "F, its own data": on_digits(ill, pale)}
print(f"E: share of the random start in the average {0.9999**total:.0%}")
for name, data in {"F": pale, "healthy": digits}.items():
    x = data.images()
    print(f"{name}: a batch goes from {x.min():+.1f} to {x.max():+.1f}, mean {x.mean():+.2f}, spread {x.std():.2f}")
display(plain(plots.lines(curves, x="t", y="error of v", log="y")))

strips = {"E": strips[1], "E, average warmed up": strips[0], "F": strips[2], "F, 2 x - 1": 2 * strips[2] - 1}
plots.filmstrip(torch.stack(list(strips.values()), dim=1), rows=list(strips))

# %% [markdown]
# **E** is bad at all levels, while the loss that you watched was fine: that was the loss of the last weights, and the samples come from the average, here the one with 0.9999. Cure: warm up the average, or shorten it.
#
# **F** is the sly one. Its curve is *lower* than the healthy one, so its training looked better. The colleague scaled bytes to $[0, 1]$. Such data vary half as much, so there is less to guess; and they lie within $[-1, 1]$, so no check complains. Its samples lie in $[0, 1]$ too, and look pale where black is $-1$. First aid: $2x - 1$. The cure is the right range, since the schedule drowns weak data sooner.
#
# All six on one card:
#
# | symptom | error by level | what to measure | cause |
# |---|---|---|---|
# | coloured noise | far too high everywhere | what the network is told as time | A: wrong units of time |
# | saturated specks | healthy at little noise, ever worse with more | which target the output is closest to | B: prediction read in the wrong language |
# | pale, smooth, simple | healthy | mean and standard deviation of $x_T$ | C: start noise too weak |
# | no dark, or no light | explodes at little noise | range of the guesses $\hat x_0$ | D: clipping to the wrong range |
# | noise, while the loss is fine | high at all levels | $d^n$, and the same samples with the last weights | E: average too long for the run |
# | everything pale | lower than usual | least, largest and mean value of a batch | F: data in the wrong range |
#
# ## What the papers found, what you measured
#
# Data, features and counts differ, so compare directions only.

# %%
from IPython.display import Markdown

ends_at = {name: values[-1] for name, values in scores.items()}
findings = [
    ("Without EMA FID 8.06, with it 3.21 (issue 22 of pytorch-ddpm, CIFAR-10)",
     f"{ends_at['last weights']:.2f} without, {ends_at[warmed]:.2f} with, {floor:.2f} for real digits"),
    ("DDPM averages with 0.9999 from its first step on, for 800,000 steps (Ho et al. 2020)",
     f"{total:,} steps: {ends_at['decay 0.9999']:.1f}; warmed up: {ends_at[warmed]:.2f}"),
    ("GenViT: FID 20.20 with 10,000 samples, 17.72 with 50,000, same run", "held-out digits: "
     f"{lines['held-out digits'][1][0]:.2f} with {sizes[0]}, {at_infinity['held-out digits']:.2f} extrapolated"),
    ("A run on CIFAR-10 overfits: FID 3.66 at 70,000 steps, 10.6 at 230,000 (issue 25 of DDPM-IP)",
     f"{share:.0%} of the samples are closer to training than to held-out digits (luck: 50% ± {2 * luck:.0%})"),
    ("Min-SNR with gamma 5: ImageNet FID 2.06 with a ViT (Hang et al. 2023)",
     f"excess at t > 0.5: x {ratio['min-SNR'][10:].mean():.2f}, at t < 0.1: x {ratio['min-SNR'][:2].mean():.1f}"),
]
rows = [f"| {paper} | {mine} |" for paper, mine in findings]
Markdown("\n".join(["| what others found | what you measured |", "|---|---|", *rows]))

# %% [markdown]
# The first three rows agree in direction. In the fourth the others' FID went up; yours shows the disease only beside held-out digits. Min-SNR had no judge here.
#
# ## Exercises
#
# **1. How long is too long?** Write the smallest whole number of steps after which an average with decay $d$, without warm-up, holds at most `share` of its random start.

# %% tags=["exercise"] name="steps_to_forget"
def steps_to_forget(decay, share):
    """The smallest whole number n of steps with decay^n <= share."""
    ...  # your code

# %% [markdown]
# Check it, then ask about decay 0.9999 and one per cent.

# %%
exercises.check_steps_to_forget(steps_to_forget)

# %% [markdown]
# **2. Min-SNR for a flow.** A flow network predicts the velocity $\varepsilon - x_0$, with $x_t = \alpha x_0 + \sigma\varepsilon$ and $\alpha + \sigma = 1$. Given $x_t$, by how much is the velocity off if $\hat x_0$ is off by $e$? Find the rate of exchange as above, and write the factor for the squared error of the velocity that makes it the loss with weight $\min(\text{SNR}, \gamma)$ on $x_0$.

# %% tags=["exercise"] name="min_snr_for_flow"
def min_snr_for_flow(alpha, sigma, gamma=5.0):
    """alpha, sigma (B,) -> the factor (B,) for the squared error of eps - x0."""
    ...  # your code

# %% [markdown]
# The check tries an SNR above and below $\gamma$.

# %%
exercises.check_min_snr_for_flow(min_snr_for_flow)

# %% [markdown]
# **3. A project: a tool for the clinic.** Patient B took five lines. Make them a function that names what a network predicts. Then break `emoji-unet` in a seventh way (the null label, the order of the times), give the samples to somebody else, and count the measurements they need.

# %% tags=["exercise"] name="what_it_predicts"
def what_it_predicts(network, schedule, x0):
    """'eps', 'x0' or 'v'. network(x_t, t) -> like x_t; schedule(t) -> alpha, sigma; t is a number in (0, 1)."""
    ...  # your code

# %% [markdown]
# The networks of the check make errors, as real ones do.

# %%
exercises.check_what_it_predicts(what_it_predicts)

# %% [markdown]
# ## What you learned
#
# - A loss is floor plus excess, averaged over noise levels. Where the floor is nearly all of it, the curve lies flat. Look at it level by level.
# - A weight means nothing without the prediction it belongs to. It moves the excess from level to level.
# - Averaged weights beat the last ones, if the average is short enough for the run, or warmed up.
# - The bias of a Fréchet distance shrinks as $1/N$. Give features and counts, extrapolate, or take the kernel distance. No distance notices copies.
# - For bad samples: first the error by level through the sampler's own denoiser, then one measurement.
#
# ## Where to read on
#
# - Ho, Jain, Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv 2006.11239. Nichol, Dhariwal, *Improved DDPM*, 2021, arXiv 2102.09672: loss by noise level.
# - Hang et al., *Efficient diffusion training via min-SNR weighting*, 2023, arXiv 2303.09556. Choi et al., *Perception prioritized training*, 2022, arXiv 2204.00227: P2.
# - Karras et al., *Analyzing and improving the training dynamics of diffusion models*, 2024, arXiv 2312.02696: averages of any length, chosen after training.
# - Heusel et al., *GANs trained by a two time-scale update rule*, 2017, arXiv 1706.08500: FID. Bińkowski et al., *Demystifying MMD GANs*, 2018, arXiv 1801.01401: the kernel distance. Chong, Forsyth, *Effectively unbiased FID*, 2020, arXiv 1911.07023: extrapolation.
#
# Next: [notebook 10](10_u_vit.ipynb), *U-ViT: everything is a token*.
