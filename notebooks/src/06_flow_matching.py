# %% [markdown]
# # 06 Flow matching
#
# After this notebook you can train a model on straight paths, say exactly when that is diffusion under another name, and bring it down to one step.
#
# Run time: one to two and a half minutes on a CPU, most of it training; a GPU is not used. Nothing is downloaded. The numbers in the text are those of this run.
#
# You will
#
# - derive flow matching from one straight line, and check loss and sampler against closed forms,
# - run a diffusion model along straight paths without training it, and find what really differs,
# - measure what straight paths and other training times buy,
# - straighten a model until one step is enough, and see what that cannot mend.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Why not a straight line?
#
# So far the way from data to noise was full of decisions: a table of $\beta$, square roots, a schedule for every paper. Forget them. You have a data point $x_0$ and a noise point $\varepsilon$, and want to get from one to the other. The simplest path is a straight line at constant speed:
#
# $$x_t = (1 - t)\,x_0 + t\,\varepsilon, \qquad \frac{dx_t}{dt} = \varepsilon - x_0 .$$
#
# In the language of [notebook 01](01_destroying_images_properly.ipynb) this is one more schedule, $x_t = \alpha x_0 + \sigma\varepsilon$ with $\alpha = 1 - t$ and $\sigma = t$. As always here, $t = 0$ is data and $t = 1$ is noise.
#
# Take eight small Gaussians on a circle for data. For them everything is known in closed form. Draw two million lines, each from a random noise point to a random data point, and pick those that at $t = 0.4$ pass within 0.05 of one spot.

# %%
import math

import torch
import torch.nn.functional as F

raw = minidiff.load_dataset("eight_gaussians", num=20_000)
points = 2 * raw.images()  # (20000, 2), spread so that each coordinate has variance 1
centres, WIDTH = 2 * raw.mixture.means, 0.12  # eight Gaussians of standard deviation 0.12 on a circle of radius 1.4

torch.manual_seed(0)
eps, spot, when = torch.randn_like(points), torch.tensor([0.3, 0.15]), 0.4
x0_many, eps_many = points.repeat(100, 1), torch.randn(100 * len(points), 2)  # 2 million lines
near = ((1 - when) * x0_many + when * eps_many - spot).norm(dim=1) < 0.05
through = torch.stack([eps_many[near], x0_many[near]])  # (2, lines through the spot, 2)
average = (through[0] - through[1]).mean(0)
print(f"{through.shape[1]:,} lines pass there, with average velocity ({average[0]:.2f}, {average[1]:.2f})")

# %% [markdown]
# Here are 40 of them. The arrow is explained below.

# %%
@plots.quiet
def draw_lines(panels, arrow=None):
    """panels: {title: clouds (T, N, 2), the first at the noise}; arrow: (from, to) in the last panel."""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(panels), figsize=(max(2.7 * len(panels), 3.4), 3.0), squeeze=False)
    for ax, (title, path) in zip(axes[0], panels.items()):
        path = torch.stack(list(path)).float().numpy()
        ax.plot(path[..., 0], path[..., 1], color="#999999", linewidth=0.6, linestyle="-")
        ax.plot(*path[0].T, ".", color=plots.COLORS[0], markersize=3, label="noise, t = 1")
        ax.plot(*path[-1].T, ".", color=plots.COLORS[1], markersize=3, label="data, t = 0")
        ax.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), aspect="equal", title=title)
        ax.grid(visible=False)
    if arrow is not None:
        line = {"arrowstyle": "-|>", "linewidth": 2.5, "color": "black", "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", arrow[1], arrow[0], arrowprops=line)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=3)
    return figure


draw_lines({"lines through one spot at t = 0.4": through[:, :40]}, (spot.tolist(), (spot - when * average).tolist()))

# %% [markdown]
# Here is the trouble. Through one spot run lines towards many Gaussians. A sampler that stands there has forgotten where it came from, and a function $u(x, t)$ can give it one velocity only. Which one?
#
# The arrow is the average of all these lines: from the spot, for the time that is left, against the average velocity, since you walk from noise to data. It ends on no Gaussian. Yet it is the right answer.
#
# ## The average is enough
#
# Call the average velocity of all lines that pass through $x$ at time $t$
#
# $$u(x, t) = \mathbb E[\varepsilon - x_0 \mid x_t = x].$$
#
# Let $h$ be any smooth function of a point, and watch its mean over all lines as time goes by. Use the chain rule, and then average in two stages, first over all lines with the same $x_t$:
#
# $$\frac{d}{dt}\,\mathbb E[h(x_t)] = \mathbb E\big[\nabla h(x_t)\cdot(\varepsilon - x_0)\big] = \mathbb E\big[\nabla h(x_t)\cdot u(x_t, t)\big].$$
#
# The right side no longer asks which line a point is on, only where it is. So take a second crowd that starts with the same distribution, and move each of its points by $dx/dt = u(x, t)$. For every $h$ its mean obeys the same equation, and the two crowds have the same distribution at every time. Each point leaves its line, and the crowd as a whole looks the same.
#
# You have met this ODE before. The probability-flow ODE of [notebook 04](04_scores_sdes_and_odes.ipynb) has the velocity $u = \alpha'\,\hat x_0 + \sigma'\,\hat\varepsilon$, where $'$ is the derivative in time and hats are conditional means, $\hat x_0 = \mathbb E[x_0 \mid x_t]$. Here $\alpha' = -1$ and $\sigma' = 1$, so that $u = \hat\varepsilon - \hat x_0$: it is the same.
#
# For the eight Gaussians $u$ can be written down. If $x$ came from the one with centre $\mu_j$ and standard deviation $\omega$, then $x - \alpha\mu_j$ has the variance $\alpha^2\omega^2 + \sigma^2$, and the usual formula for conditional means of Gaussians gives
#
# $$\mathbb E[x_0] = \mu_j + \frac{\alpha\,\omega^2}{\alpha^2\omega^2 + \sigma^2}(x - \alpha\mu_j), \qquad \mathbb E[\varepsilon] = \frac{\sigma}{\alpha^2\omega^2 + \sigma^2}(x - \alpha\mu_j).$$
#
# Bayes' rule gives each of the eight its weight.

# %%
def exact_velocity(x, t):
    """E[eps - x0 | x_t = x] for the eight Gaussians: x (N, 2), t a float -> (N, 2)."""
    alpha, sigma = 1 - t, t
    variance = (alpha * WIDTH) ** 2 + sigma**2
    away = x[:, None] - alpha * centres.to(x)  # (N, 8, 2)
    weight = torch.softmax(-away.square().sum(-1) / (2 * variance), dim=1)  # all eight are equally likely
    each = away * (sigma - alpha * WIDTH**2) / variance - centres.to(x)
    return (weight[..., None] * each).sum(1)


flow = minidiff.schedules.flow()
oracle = minidiff.oracles.Mixture(torch.ones(8), centres, WIDTH)
exact = oracle.denoiser(flow)  # a bound denoiser, as samplers take it
for t in (0.05, 0.5, 1.0):
    assert torch.allclose(exact_velocity(eps, t), exact(eps, t).flow, atol=1e-4)
drift, diffusion_squared = flow.sde(0.5)
probability_flow = drift * eps - diffusion_squared / 2 * oracle.score(eps, 0.5, flow)
assert torch.allclose(exact_velocity(eps, 0.5), probability_flow, atol=1e-4)
at_spot = exact_velocity(spot[None], when)[0]
print(f"at the spot: ({at_spot[0]:.2f}, {at_spot[1]:.2f}); averaged over lines: ({average[0]:.2f}, {average[1]:.2f})")
assert torch.allclose(at_spot, average, atol=0.05)

# %% [markdown]
# The formula agrees with the package's exact denoiser (an *oracle*), with the probability-flow ODE, and with the average over lines. Next come the paths. Start at the noise, and follow $u$ from $t = 1$ to $0$. Euler's method takes the velocity where it stands and goes straight on; Heun's averages it with the velocity at the far end.

# %%
@torch.no_grad()
def integrate(velocity, x, steps, heun=False):
    """Follow dx/dt = velocity(x, t) from t = 1 to 0; returns the steps + 1 clouds on the way."""
    times, path = torch.linspace(1, 0, steps + 1).tolist(), [x]
    for t, t_next in zip(times, times[1:]):
        u = velocity(x, t)
        if heun and t_next > 0:
            u = (u + velocity(x + (t_next - t) * u, t_next)) / 2
        x = x + (t_next - t) * u  # t_next < t: this walks against the velocity, from noise to data
        path.append(x)
    return path


for heun, theirs in ((False, minidiff.samplers.euler), (True, minidiff.samplers.heun)):
    *_, last = theirs(exact, flow, eps[:100], torch.linspace(1, 0, 9).tolist())
    assert torch.allclose(integrate(exact_velocity, eps[:100], 8, heun)[-1], last.x, atol=1e-4)
paths = integrate(exact_velocity, eps[:10_000], 80)
for h in (lambda x: x.norm(dim=1), lambda x: torch.cos(4 * x[:, 0])):
    for t in (0.75, 0.5, 0.25, 0.0):
        on_lines, on_paths = h((1 - t) * points + t * eps).mean(), h(paths[round(80 * (1 - t))]).mean()
        assert abs(on_lines - on_paths) < 0.04, (t, on_lines, on_paths)
draw_lines({"random lines": [eps[:60], points[:60]], "paths of the average": torch.stack(paths)[:, :60]})

# %% [markdown]
# Both panels start at the same noise. Lines cross. Paths of an ODE cannot meet, because a point has one velocity at each time. Where lines would cross the paths swerve apart, and each noise point ends at a Gaussian on its own side. Yet the crowds agree: the cell compared the means of two functions $h$ at four times.
#
# ## Five lines of training
#
# For data without a formula, a network $u_\theta$ must learn $u$. You know from [notebook 02](02_from_likelihood_to_a_squared_error.ipynb) which function minimises a mean squared error: the conditional mean of the target. So let the target be the velocity $\varepsilon - x_0$ of one random line. The network cannot guess it. Its best answer is the average, and the average is what you want:
#
# $$L = \mathbb E\,\big\| u_\theta(x_t, t) - (\varepsilon - x_0) \big\|^2 .$$
#
# This is **conditional flow matching** (Lipman et al. 2023; Liu et al. 2023; Albergo and Vanden-Eijnden 2023). In the package it is prediction `"flow"` on the schedule `flow()`. The network reads the time as 0 to 999, as in notebook 03.

# %%
def flow_loss(network, x0, eps, t):
    x_t = (1 - t)[:, None] * x0 + t[:, None] * eps
    return (network(x_t, 999 * t) - (eps - x0)).square().mean()


def new_model():
    torch.manual_seed(0)
    wide = (-9, 9)  # no point lies outside, so that nothing is clipped
    return minidiff.Diffusion(minidiff.create_model("mlp_2d"), flow, "flow", shape=(2,), value_range=wide)


model, t = new_model(), torch.rand(len(points))
mine = flow_loss(model.network, points, eps, t)
assert torch.allclose(mine, model.loss(points, t=t, eps=eps).mean())
print(f"loss of an untrained network: {mine:.3f}")

# %% [markdown]
# The loop is that of notebook 03. Only where pairs and times come from is left open, because you will want to change both.

# %%
def fit(draw, steps, times=torch.rand, batch=256):
    """A model trained on pairs (x0, eps) = draw(batch) at times(batch); returns its averaged weights."""
    model = new_model()
    ema = minidiff.training.EMA(model, 0.999)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=2e-3, fused=True)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x0, eps = draw(batch)
        loss = model.loss(x0, eps=eps, t=times(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
        ema.update(step)
    return ema.model.eval()


def random_pairs(n):
    return points[torch.randint(len(points), (n,))], torch.randn(n, 2)


steps = budget("each of six networks", smoke=20, cpu=6000, gpu=6000, seconds_per_step=0.0017)
trained = fit(random_pairs, steps)

# %% [markdown]
# Is it any good? The loss cannot say. Even a perfect network pays for the randomness of the lines. The scatter of the target around its conditional mean is uncorrelated with anything computed from $x_t$, so the loss is a sum:
#
# $$\mathbb E\,\|u_\theta - (\varepsilon - x_0)\|^2 = \underbrace{\mathbb E\,\|u - (\varepsilon - x_0)\|^2}_{\text{loss of the exact velocity}} + \underbrace{\mathbb E\,\|u_\theta - u\|^2}_{\text{error}}.$$
#
# Here $u$ is known, so measure all three.

# %%
levels = torch.linspace(0.02, 0.98, 25)


@torch.no_grad()
def by_time(model, num=4000):
    """Loss of the model, loss of the exact velocity, and squared error between the two: three rows (25,)."""
    rows = []
    for t in levels.tolist():
        torch.manual_seed(1)
        x0, eps = random_pairs(num)
        x = (1 - t) * x0 + t * eps
        guess, perfect, target = model.denoise(x, t).flow, exact_velocity(x, t), eps - x0
        rows.append([(a - b).square().mean() for a, b in ((guess, target), (perfect, target), (guess, perfect))])
    return torch.tensor(rows).T


loss, lowest, excess = by_time(trained)
print(f"mean loss {loss.mean():.4f}, of the exact velocity {lowest.mean():.4f},",
      f"error of the velocity {excess.mean():.4f}")
assert abs(loss.mean() - lowest.mean() - excess.mean()) < 0.1 * (excess.mean() + 0.02)  # up to sampling noise
curves = {"loss of the network": loss, "loss of the exact velocity": lowest, "error of the network's velocity": excess}
figure = plots.lines({name: (levels, value) for name, value in curves.items()}, x="t", y="mean squared", log="y")
figure.axes[0].lines[0].set(linewidth=6, alpha=0.4)
figure.axes[0].legend(frameon=False)
figure

# %% [markdown]
# The two losses lie on each other: nearly all of the loss is unavoidable. So do not judge a flow by its loss.
#
# Now sample, with fewer and fewer steps. The judge is the energy distance of [notebook 03](03_ddpm_in_a_hundred_lines.ipynb) to fresh data, 0 for equal distributions, and a little more for finite clouds.

# %%
def energy_distance(a, b):
    """1000 x the energy distance of two clouds with saturating distances, as in notebook 03; 0 for equal laws."""
    def mean(u, v):
        return (1 - torch.exp(-torch.cdist(u, v) / 0.2)).mean()
    return 1000 * (2 * mean(a, b) - mean(a, a) - mean(b, b)).item()


def clouds_of(velocity, counts, num=2000):
    torch.manual_seed(2)
    noise = torch.randn(num, 2)
    return {n: integrate(velocity, noise, n)[-1] for n in counts}


def learned(model):
    return lambda x, t: model.denoise(x, t).flow


fresh = 2 * minidiff.load_dataset("eight_gaussians", num=2000, split="test").images()
floor = energy_distance(points[-2000:], fresh)
made = clouds_of(learned(trained), (64, 8, 4, 2, 1))
for n, cloud in made.items():
    distance = energy_distance(cloud, fresh)
    print(f"steps: {n:2}, 1000 x energy distance to fresh data {distance:7.2f} (real data {floor:.2f})")
plots.density_2d({f"{n} step{'s' * (n > 1)}": made[n][:500] for n in (64, 4, 2, 1)}, extent=2.2)

# %% [markdown]
# One step gives a blot in the middle, where there is no data at all. It has to. One Euler step goes from $x_1 = \varepsilon$ to $\varepsilon - u = \hat x_0$, and at $t = 1$ nothing is known yet, so that $\hat x_0$ is the mean of all data. The *lines* are straight. The *paths* bend, since they decide on the way. The blot will be mended.
#
# ## When is it diffusion?
#
# Is this a new kind of model? Take any diffusion model, with $x_t = \alpha x_0 + \sigma\varepsilon$. Divide by $\alpha + \sigma$:
#
# $$\frac{x_t}{\alpha + \sigma} = (1 - s)\,x_0 + s\,\varepsilon, \qquad s = \frac{\sigma}{\alpha + \sigma}.$$
#
# That is a point on the straight line, at time $s$. Every noisy point of a diffusion model is a flow's point, on another scale and at another time, and a denoiser for one is a denoiser for the other. To use a given one at $s$, find the time $t$ at which its schedule has the ratio $\alpha/\sigma = (1 - s)/s$ (the schedule finds it by $\text{log-SNR} = 2\log(\alpha/\sigma)$), and scale back:

# %%
def as_flow(denoise, schedule):
    """Any bound denoiser, on any schedule, as a bound denoiser of the straight paths."""
    def straight(x, s):
        t = schedule.inverse(2 * math.log((1 - s) / s)) if s < 1 else 1.0  # log-SNR is 2 log(alpha / sigma)
        alpha, sigma = schedule(t)
        return minidiff.Prediction("flow", x, denoise((alpha + sigma) * x, t).flow, 1 - s, s)
    return straight


x = eps[:500].double()
for name in ("linear", "cosine", "sub_vp", "edm"):
    schedule = minidiff.make_schedule(name, **({"steps": None} if name in ("linear", "cosine") else {}))
    straight = as_flow(oracle.denoiser(schedule), schedule)
    gap = max((straight(x, s).flow - exact_velocity(x, s)).abs().max().item() for s in (0.05, 0.3, 0.6, 0.95))
    print(f"{name:7} as a flow: largest difference to the exact velocity {gap:.0e}")
    assert gap < 1e-6

# %% [markdown]
# What the network *says* is no difference either. Between $\hat x_0$ and $\hat\varepsilon$ there is one equation, $x_t = \alpha\hat x_0 + \sigma\hat\varepsilon$, so any one answer determines all others: $\hat x_0$, $\hat\varepsilon$, $v = \alpha\hat\varepsilon - \sigma\hat x_0$, the score $-\hat\varepsilon/\sigma$, and $\hat\varepsilon - \hat x_0$, which the package calls `flow`. `Prediction` does the arithmetic.
#
# The samplers coincide as well. DDIM (the sampler without dice of notebook 00) takes $\hat x_0$ and $\hat\varepsilon$ and mixes them anew at the next level. An Euler step on the straight path to a next time $r$ does just that: with $x = (1 - s)\hat x_0 + s\hat\varepsilon$,
#
# $$x + (r - s)(\hat\varepsilon - \hat x_0) = (1 - r)\,\hat x_0 + r\,\hat\varepsilon.$$
#
# So **DDIM is Euler's method on straight paths**, at the times $s = \sigma/(\alpha + \sigma)$. Check the languages and the sampler:

# %%
for schedule in (flow, minidiff.schedules.linear(None)):
    for t in (0.1, 0.5, 0.9):
        truth = oracle.denoiser(schedule)(x, t)
        for kind in ("x0", "eps", "v", "score", "flow"):
            answer = minidiff.Prediction(kind, x, getattr(truth, kind), *schedule(t))
            assert torch.allclose(answer.flow, truth.flow, atol=1e-6)

cosine = minidiff.schedules.cosine()  # the discrete one, which emoji-unet was trained on
times = minidiff.spacing(cosine, 12)
as_s = [sigma / (alpha + sigma) for alpha, sigma in map(cosine, times)]
first = sum(cosine(1.0))  # alpha + sigma at the start
*_, curved = minidiff.samplers.ddim(oracle.denoiser(cosine), cosine, first * x, times)
*_, line = minidiff.samplers.euler(as_flow(oracle.denoiser(cosine), cosine), flow, x, as_s)
gap = (curved.x - line.x).abs().max().item()
print(f"all languages agree; DDIM on the cosine schedule and Euler on straight paths, 12 steps: {gap:.0e}")
assert gap < 1e-8

# %% [markdown]
# So take a diffusion model that has never heard of flows, `emoji-unet` (it predicts $v$ on the cosine schedule), and sample it along straight paths, in even steps of $s$. Nothing is trained. Guidance, the subject of the next notebook, tells it what to draw.

# %%
unet = minidiff.load("emoji-unet").eval()
kinds = torch.tensor([9, 7, 4, 3, 1, 6, 5, 8] if run.tier != "smoke" else [9, 7])
told = minidiff.classifier_free(unet.denoise, kinds, 2.0, unet.network.null(kinds))
noise = minidiff.seeded_noise([(6, k) for k in range(len(kinds))])(torch.empty(len(kinds), 3, 16, 16))


def pictures(sampler, denoise, schedule, steps):
    *_, last = sampler(denoise, schedule, noise, minidiff.spacing(schedule, steps))
    return last.x


counts = (100, 10) if run.tier != "smoke" else (4, 2)
rows, straight = {}, as_flow(told, unet.schedule)
for n in counts:
    rows[f"DDIM, {n} steps"] = pictures(minidiff.samplers.ddim, told, unet.schedule, n)
    rows[f"straight, {n} steps"] = pictures(minidiff.samplers.euler, straight, flow, n)
reference = next(iter(rows.values()))
for name, images in rows.items():
    print(f"{name:22} root mean squared difference to the first row {(images - reference).square().mean() ** 0.5:.3f}")
plots.filmstrip(torch.stack([images.clamp(-1, 1) for images in rows.values()], dim=1), rows=list(rows))

# %% [markdown]
# The same noise gives the same pictures: with 100 steps the samplers differ by 0.004. They spend their steps at different noise levels, and that is all.
#
# What difference is left? Only the *training*: how much each noise level counts. Write every loss as a loss of $\varepsilon$, and average over the log-SNR $\lambda$ in place of $t$:
#
# $$L = \int w(\lambda)\; \mathbb E\,\|\varepsilon - \hat\varepsilon\|^2\, d\lambda, \qquad w(\lambda) = \underbrace{\Big|\frac{dt}{d\lambda}\Big|}_{\text{how often}} \times \underbrace{c^2}_{\text{how much}} .$$
#
# The first factor says how many training times fall on a unit of $\lambda$. The second compares errors: if $\hat\varepsilon$ is off by $e$, then $\hat x_0$ is off by $-\sigma e/\alpha$, and the network's answer by $c\,e$. For the flow $c = 1 + \sigma/\alpha = 1/\alpha$, for $v$ with $\alpha^2 + \sigma^2 = 1$ it is $\alpha + \sigma^2/\alpha = 1/\alpha$ again, and for $\varepsilon$ it is 1. For the flow, $\lambda = 2\log\frac{1 - t}{t}$ gives $|dt/d\lambda| = t(1 - t)/2$ and $w = \frac{t}{2(1 - t)} = \frac12 e^{-\lambda/2}$. The cell takes the derivative numerically, for four losses.

# %%
t = torch.linspace(1e-4, 1 - 1e-4, 20_000, dtype=torch.float64)


def weight_of(schedule, kind, density=1.0):
    """log-SNR and w, which is 1 at log-SNR 0; density: of the training times, up to a constant."""
    log_snr, alpha = schedule.log_snr(t), schedule(t)[0]
    w = density / torch.gradient(log_snr, spacing=(t,))[0].abs() * (1.0 if kind == "eps" else alpha**-2)
    return log_snr, w / w[log_snr.abs().argmin()]

cosine_t = minidiff.schedules.cosine(None)
curves = {
    "flow, even times": weight_of(flow, "flow"),
    "v, cosine": weight_of(cosine_t, "v"),
    "eps, linear": weight_of(minidiff.schedules.linear(None), "eps"),
    "flow, logit-normal times": weight_of(flow, "flow", torch.exp(-torch.logit(t).square() / 2) / (t * (1 - t))),
}
ratios = [(w * (log_snr / 2).exp())[log_snr.abs() < 6] for log_snr, w in list(curves.values())[:2]]
differ = max((ratio - 1).abs().max().item() for ratio in ratios)
print(f"w(log-SNR) exp(log-SNR / 2), flow and v on cosine: within {differ:.0%} of 1 for log-SNR from -6 to 6")
assert differ < 0.1
figure = plots.lines(curves, x="log-SNR (data at the right)", y="weight of the error of eps", log="y")
figure.axes[0].set(xlim=(-9, 9), ylim=(1e-4, 1e3))
figure.axes[0].lines[0].set(linewidth=6, alpha=0.4)
figure.axes[0].legend(frameon=False)
figure

# %% [markdown]
# Two of the curves are the same. Flow matching with even times has $w \propto e^{-\lambda/2}$, and so has $v$ on the cosine schedule (Kingma and Gao 2023; the schedule's small offset 0.008 bends it a little at the right). In this sense `emoji-unet` *was* trained by flow matching. The classic loss of $\varepsilon$ on the linear schedule cares far less for high noise. The fourth curve belongs to a choice of times that comes below.
#
# ## What straight paths buy
#
# Does the path matter at all, then? It does for the solver: Euler's error depends on how a path bends. Here is one coordinate of twelve paths, on DDPM's linear schedule, on the cosine schedule and on straight lines, from the same noise and solved so finely that they count as exact.

# %%
def velocity_on(schedule):
    """dx/dt = alpha' x0 + sigma' eps of the probability-flow ODE, exact, for any schedule."""
    denoise = oracle.denoiser(schedule)
    def velocity(x, t):
        (alpha, sigma), answer = schedule.rates(t), denoise(x, t)
        return alpha * answer.x0 + sigma * answer.eps
    return velocity


@plots.quiet
def draw_ways(ways):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(ways), figsize=(8.4, 2.7), sharey=True)
    for ax, (name, way) in zip(axes, ways.items()):
        ax.plot(torch.linspace(1, 0, len(way)), torch.stack(way)[:, :12, 0], "-", color=plots.COLORS[0], linewidth=1)
        ax.set(title=name, xlabel="t")
    axes[0].set_ylabel("first coordinate")
    return figure


routes = {"linear": minidiff.schedules.linear(None), "cosine": cosine_t, "straight": flow}
fine, num = (800, 1000) if run.tier != "smoke" else (40, 100)
start = torch.randn(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
ways = {name: integrate(velocity_on(schedule), start, fine, heun=True) for name, schedule in routes.items()}
draw_ways(ways)

# %% [markdown]
# All three take each noise (right) to the same data point (left). On the linear schedule points rest for half the time, and then move all at once. But the flow's paths are not straight either. Half-way they dip towards the middle, since half of a data point and half of a noise point make a cloud of half the variance.
#
# Put a number on it. The **bend** is the mean squared difference between the velocity along a path and its average over the path (Liu et al. 2023), 0 for a straight line at constant speed. Then see how far from the true end of its path an Euler walk ends.

# %%
def bend(path):
    """Mean squared difference between the velocity along a path (T clouds) and its average over the path."""
    path = torch.stack(list(path))
    velocity = (path[:-1] - path[1:]) * (len(path) - 1)
    return (velocity - velocity.mean(0)).square().sum(-1).mean().item()


ends = torch.stack([way[-1] for way in ways.values()])
print("bend:", ", ".join(f"{name} {bend(way):.2f}" for name, way in ways.items()))
print(f"root mean squared distance between the ends of the routes: {(ends - ends[2]).square().mean() ** 0.5:.0e}")
counts = [2, 4, 8, 16, 32, 64, 128] if run.tier != "smoke" else [2, 4]
errors = {}
for name, schedule in routes.items():
    walks = [integrate(velocity_on(schedule), start, n)[-1] for n in counts]
    errors["Euler, " + name] = [(x - ends[2]).square().sum(1).mean().sqrt().item() for x in walks]
halves = [integrate(exact_velocity, start, (n + 1) // 2, heun=True)[-1] for n in counts]  # 2 evaluations a step
errors["Heun, straight"] = [(x - ends[2]).square().sum(1).mean().sqrt().item() for x in halves]
for name, row in errors.items():
    print(f"{name:16}", " ".join(f"{n:3}: {e:.3f} " for n, e in zip(counts, row)))
plots.lines({name: (counts, row) for name, row in errors.items()}, x="evaluations of the denoiser",
            y="error of the end point", log="xy")

# %% [markdown]
# The linear schedule takes 16 evaluations for what the flow does in 8. But the cosine schedule, older than flow matching, bends least, and is the best of the three. (It keeps the variance, and these data have that of the noise.) Straight lines are a good default with nothing to tune, and no magic. From about forty evaluations on a second-order solver gains more than any change of path; see [notebook 05](05_samplers_are_integrators.ipynb).
#
# ## Which times to train on
#
# Even times are a choice as well. Stable Diffusion 3 draws them **logit-normal**: $t = 1/(1 + e^{-z})$ with $z \sim \mathcal N(0, 1)$, most often in the middle (Esser et al. 2024). And for large pictures it uses a **shift** by a factor $k$, say 3, $\sigma = k t/(1 + (k - 1)\,t)$, which moves all times towards noise. Train with each, once, and compare the errors of the velocities.

# %%
def logit_normal(n):
    return torch.sigmoid(torch.randn(n))


def shifted(t, k):
    return k * t / (1 + (k - 1) * t)


u = torch.linspace(0.01, 0.99, 99)
ours, theirs = (draw(100_000).quantile(u) for draw in (logit_normal, minidiff.losses.logit_normal_times))
assert torch.allclose(ours, theirs, atol=0.01)
assert torch.allclose(shifted(u, 3.0), minidiff.schedules.flow(shift=3.0)(u)[1])
ways_to_draw = {"even": torch.rand, "logit-normal": logit_normal, "shift 3": lambda n: shifted(torch.rand(n), 3.0)}
by_draw = {name: fit(random_pairs, steps, draw) if name != "even" else trained for name, draw in ways_to_draw.items()}
excesses = {name: by_time(model)[2] for name, model in by_draw.items()}

thirds = {name: [part.mean().item() for part in e.split([6, 13, 6])] for name, e in excesses.items()}
for name, parts in thirds.items():
    last = energy_distance(clouds_of(learned(by_draw[name]), [64])[64], fresh)
    print(f"{name:13} error below 0.25, between, above 0.75: " + ", ".join(f"{p:.4f}" for p in parts)
          + f"; samples {last:.2f}")
curves = {name: (levels, e) for name, e in excesses.items()}
plots.lines(curves, x=r"noise level $\sigma$", y="error of the velocity", log="y")

# %% [markdown]
# You get what you train on. Logit-normal times help a little in the middle and cost at both ends, at low noise a factor of four. The shift helps at high noise and costs at low. For these points neither pays: the width of the Gaussians is decided at low noise, and the samples are no better. Large pictures are another matter.
#
# Neighbouring pixels of a large picture say the same thing. Averaged over blocks of $k \times k$ pixels, the picture stays nearly the same, while the standard deviation of the noise falls by $k$. So at the same $\sigma$ a picture with $k$ times the edge is *less* destroyed. To destroy it equally, the ratio of noise to signal must be $k$ times as large, $\frac{\tilde\sigma}{1 - \tilde\sigma} = k\,\frac{\sigma}{1 - \sigma}$. Solved for $\tilde\sigma$ this is the shift. Here are the same emoji with 16 and with 64 pixels, at $\sigma = 0.6$.

# %%
small, large = (minidiff.load_dataset("emoji", size=size).images()[[3, 1524]] for size in (16, 64))
torch.manual_seed(4)
noise_small, noise_large = torch.randn_like(small), torch.randn_like(large)


def noised(x, eps, sigma):  # scaled so that it can be shown
    return ((1 - sigma) * x + sigma * eps) / (2 * math.hypot(1 - sigma, sigma))


t = 0.6
views = {"clean": large, "16 px": F.interpolate(noised(small, noise_small, t), 64),
         "64 px": noised(large, noise_large, t), "64 px, shift 4": noised(large, noise_large, shifted(t, 4.0))}
for name, level in (("no shift", t), ("shift 4", shifted(t, 4.0))):
    ratio = level * F.avg_pool2d(noise_large, 4).std() / (1 - level)
    print(f"64 pixels, averaged 4 x 4, {name}: noise / signal {ratio:.3f}; 16 pixels {t / (1 - t):.3f}")
assert abs(ratio / (t / (1 - t)) - 1) < 0.02
plots.filmstrip(torch.stack([view.clamp(-1, 1) for view in views.values()], dim=1), rows=list(views))

# %% [markdown]
# The small pictures are nearly lost, while the large ones can still be read. With the shift they are as lost as the small ones. Without it, a model for large pictures spends its training, and its sampler its steps, where the answer is plain.
#
# ## Reflow: straightening
#
# Back to the blot. One step fails because paths bend, and paths bend because lines cross: noise and data were paired at random. But the trained flow makes pairs of its own. Follow its ODE from $\varepsilon$ to the end, and keep both. The lines between them hardly cross. Train a second network on them, with the same loss. This is **reflow** (Liu et al. 2023). From left to right: the lines of the new pairs, the paths of the old network, and those of the new one.

# %%
num, ode_steps = (20_000, 50) if run.tier != "smoke" else (500, 4)
seeds = [(5, k) for k in range(100)]  # the noise that reflow_pairs takes for seed=5
mine = integrate(learned(trained), minidiff.seeded_noise(seeds)(torch.empty(100, 2)), ode_steps, heun=True)[-1]
settings = dict(sampler="heun", steps=ode_steps, seed=5, batch_size=10_000, progress=False)
paired, noise = minidiff.reflow_pairs(trained, num, **settings)  # (num, 2) each
assert torch.allclose(mine, paired[:100], atol=1e-3)


def pairs_from(x0, eps):
    def draw(n):
        chosen = torch.randint(len(x0), (n,))
        return x0[chosen], eps[chosen]
    return draw


straightened = fit(pairs_from(paired, noise), steps)
walks = {name: integrate(learned(model), noise[:2000], 64) for name, model in
         {"flow": trained, "after reflow": straightened}.items()}
bends = {name: bend(walk) for name, walk in walks.items()}
draw_lines({"pairs by the ODE": torch.stack([noise, paired])[:, :60],
            f"paths of the flow: bend {bends['flow']:.2f}": torch.stack(walks["flow"])[:, :60],
            f"after reflow: bend {bends['after reflow']:.3f}": torch.stack(walks["after reflow"])[:, :60]})

# %% [markdown]
# The new paths are as straight as the eye can tell, so one step should do. For comparison train a *weak* teacher, stopped after a twentieth of the steps, and the reflow of that one, fully trained.

# %%
weak = fit(random_pairs, max(steps // 20, 2))
weak_pairs = minidiff.reflow_pairs(weak, num, **settings)
weak_straight = fit(pairs_from(*weak_pairs), steps)
few = [1, 2, 4, 8, 16, 32, 64] if run.tier != "smoke" else [1, 2]
family = {"flow": trained, "its reflow": straightened, "weak flow": weak, "reflow of the weak one": weak_straight}
quality = {}
for name, model in family.items():
    quality[name] = [energy_distance(cloud, fresh) for cloud in clouds_of(learned(model), few).values()]
    print(f"{name:23}", " ".join(f"{n}: {value:.2f} " for n, value in zip(few, quality[name])))
curves = {name: (few, values) for name, values in quality.items()} | {"real data": (few, [floor] * len(few))}
display(plots.lines(curves, x="Euler steps", y="1000 x energy distance to fresh data", log="xy"))
ones = {name: clouds_of(learned(model), [1])[1][:500] for name, model in family.items() if "reflow" in name}
plots.density_2d(ones, extent=2.2)

# %% [markdown]
# In one step the reflowed network does better than its teacher in eight. The two clouds are those of one step: the good one leaves some strays between the Gaussians.
#
# ## What reflow cannot do
#
# **It inherits its teacher's errors.** The reflow of the weak flow was trained for as long as the good one, and still makes the weak one's errors, now in one step. The new network never sees data, only what the old one made of noise. With 64 steps both are about as good as their teachers, and no better.
#
# **It does not find the shortest way.** *Optimal transport* is the map from noise to data with the least total squared distance. By Brenier's theorem it is the gradient of a convex function, so its matrix of derivatives must be symmetric. Paths that do not cross are not enough for that. Test the exact flow: move each starting point a little along each axis, and see how the end moves. The data are one Gaussian, the eight Gaussians, and three of unequal shape.

# %%
three = minidiff.load_dataset("mixture", num=10).mixture
tilted = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
sets = {"one Gaussian": minidiff.oracles.Gaussian(torch.zeros(2), tilted), "eight Gaussians": oracle,
        "three unequal": minidiff.oracles.Mixture(three.weights, 2 * three.means, 4 * three.covariances)}
starts = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
nudge = 1e-4 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
skew = {}
for name, data in sets.items():
    nudged = (starts + nudge[:, None]).flatten(0, 1)  # right, left, up, down: (2000, 2)
    end = integrate(lambda x, t, data=data: data.denoise(x, t, flow).flow, nudged, fine // 2, heun=True)[-1]
    right, left, up, down = end.split(500)
    jacobian = torch.stack([right - left, up - down], dim=-1) / 2e-4  # (500, 2, 2)
    skews = (jacobian[:, 0, 1] - jacobian[:, 1, 0]).abs() / jacobian.flatten(1).norm(dim=1)
    skew[name] = skews.median().item()
    print(f"{name:16} asymmetry of the derivatives, median {skew[name]:.1e}")
assert skew["one Gaussian"] < 1e-8 and skew["three unequal"] > 1e-3
some = noise[:2000]
ends = {"random": points, "ODE": paired, "reflow": walks["after reflow"][-1]}
costs = {name: (end[: len(some)] - some).square().sum(1).mean().item() for name, end in ends.items()}
print("mean squared length of the lines:", ", ".join(f"{name} {value:.3f}" for name, value in costs.items()))

# %% [markdown]
# For one Gaussian the map *is* optimal. For mixtures it is close, and not optimal. The lines still became much shorter, as they must: Liu et al. prove that pairing by the exact ODE never raises a convex cost.
#
# ## Who runs time backwards
#
# One trap is left. SiT, and the code of the first rectified flows, run time the other way: $\tau = 1$ is data, and the network answers $x_0 - \varepsilon$. To use such a network, turn *both* the time and the sign. Turn only one, and nothing crashes.
#
# The safest test is one Euler step. At pure noise $\hat x_0$ is the mean of the data, so it must land there from whatever noise. Take the perfect SiT network for data from $\mathcal N(m, 0.3^2)$.

# %%
m, width = torch.tensor([1.5, -0.5]), 0.3


class SiT(torch.nn.Module):
    """E[x0 - eps | x] for x = tau x0 + (1 - tau) eps, the perfect network of SiT's convention, times `sign`."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x, tau, y=None):
        slope = (tau * width**2 - (1 - tau)) / ((tau * width) ** 2 + (1 - tau) ** 2)
        return self.sign * (m + slope[:, None] * (x - tau[:, None] * m))


for sign in (-1, 1):
    for time in ("1-t", "t"):
        model = minidiff.Diffusion(SiT(sign), flow, "flow", time=time, shape=(2,))
        ends = integrate(learned(model), eps[:1000], 1)[-1]
        which = f"sign {'turned' if sign < 0 else 'kept  '}, time {'turned' if time == '1-t' else 'kept  '}"
        print(f"{which}: mean ({ends[:, 0].mean():6.2f}, {ends[:, 1].mean():6.2f}), spread {ends.std(0).mean():.2f}")
        assert torch.allclose(ends, m.expand(1000, 2), atol=1e-4) == ((sign, time) == (-1, "1-t"))

# %% [markdown]
# Only the first line lands on $m$. The last is as tidy, with no spread, and in the wrong place. SiT is fed `time="1-t"`; the first rectified flows take `time="999(1-t)"`.
#
# ## What the papers found, what you measured
#
# FID judges pictures, energy distance (in thousandths) points; both are better when lower. Compare directions, not sizes.

# %%
from IPython.display import Markdown


def needed(name, goal=0.05):
    return next((str(n) for n, e in zip(counts, errors[name]) if e <= goal), f"more than {counts[-1]}")


findings = [
    ("Straight paths need fewer evaluations than diffusion paths (Lipman et al. 2023)",
     "evaluations for an error of 0.05, linear / cosine / straight: "
     + " / ".join(needed("Euler, " + name) for name in routes)),
    ("The weights of flow matching are those of v on the cosine schedule (Kingma and Gao 2023)",
     f"equal within {differ:.0%} for log-SNR from -6 to 6"),
    ("Logit-normal times train large pictures better than even ones (Esser et al. 2024)",
     "error in the middle, even / logit-normal: {:.4f} / {:.4f}; below 0.25: {:.4f} / {:.4f}".format(
         thirds["even"][1], thirds["logit-normal"][1], thirds["even"][0], thirds["logit-normal"][0])),
    ("After reflow one step is enough; distilled besides: FID 4.85 on CIFAR-10 (Liu et al. 2023)",
     f"one step: {quality['flow'][0]:.0f} before, {quality['its reflow'][0]:.1f} after"),
    ("With many steps reflow costs quality: FID 2.58 before, 3.36 after (Liu et al. 2023, RK45)",
     f"Euler, {few[-1]} steps: {quality['flow'][-1]:.2f} before, {quality['its reflow'][-1]:.2f} after"),
    ("Pairing by the ODE never raises a convex cost (Liu et al. 2023)",
     "squared length, random / ODE / reflow: " + " / ".join(f"{value:.2f}" for value in costs.values())),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. The grid of a shifted sampler (a line or two).** A sampler can walk over shifted noise levels, too. Return the `steps + 1` levels $\sigma$, from 1 down to 0, that come from even times by a shift of `k`.

# %% tags=["exercise"] name="shifted_grid"
def shifted_grid(steps, k):
    """steps + 1 floats (a list or a tensor), the first 1, the last 0; k = 1 gives even steps."""
    ...  # your code

# %% [markdown]
# The check compares several lengths and shifts.

# %%
exercises.check_shifted_grid(shifted_grid)

# %% [markdown]
# **2. The loss of SiT.** Write the loss for a network in SiT's convention. Its time `tau` runs from noise at 0 to data at 1, the network is fed `tau` as it is, and it answers with the velocity in the direction of growing `tau`. The mean is over points and coordinates.

# %% tags=["exercise"] name="sit_loss"
def sit_loss(network, x0, eps, tau):
    """The mean squared error, a number. x0, eps (B, 2); tau (B,); the network is called as network(x, tau)."""
    ...  # your code

# %% [markdown]
# The check knows what its network answers.

# %%
exercises.check_sit_loss(sit_loss)

# %% [markdown]
# **3. A project: fewer crossings without a teacher.** Reflow needs a trained flow to make pairs. Random pairs that are made to cross less would save that (Tong et al. 2024; Pooladian et al. 2023). Take two pairs $i$ and $j$, each of a noise and a data point: if exchanging the data points makes the sum of the two squared lengths smaller, do it. Write one round of this, for many couples $(i, j)$ at once.

# %% tags=["exercise"] name="untangle"
def untangle(x0, eps, i, j):
    """A new x0 (N, 2) in which x0[i[k]] and x0[j[k]] are exchanged wherever that shortens; no index occurs twice."""
    ...  # your code

# %% [markdown]
# The check plants couples that should be exchanged, and others that should not.

# %%
exercises.check_untangle(untangle)

# %% [markdown]
# Now the project. Untangle 20,000 random pairs with some thousand rounds, each over a new `torch.randperm(20_000).view(2, -1)`. Compare the mean squared length with that of the ODE's pairs. Train on the result with `fit(pairs_from(...), steps)`. How large is the bend, and how good is one step? Then untangle only 256 pairs at a time, as you would have to with pictures. What is lost?
#
# ## What you learned
#
# - Regression on random straight lines learns their average velocity. Its ODE moves the crowd as the lines do.
# - The lines are straight, the paths are not. One step of an exact flow gives the mean of the data.
# - A flow is a diffusion model with $\alpha = 1 - t$, $\sigma = t$, and DDIM is Euler's method there. Only the weights of training and the sampler's grid differ.
# - Training times are a budget. Large pictures need more noise, by the ratio of the edges.
# - Reflow makes paths straight and one step enough. It keeps the teacher's errors, and is not optimal transport.
# - Check time and sign of any foreign flow with one step on a Gaussian.
#
# ## Where to read on
#
# - Lipman et al., *Flow matching for generative modeling*, 2023, arXiv 2210.02747.
# - Liu, Gong, Liu, *Flow straight and fast*, 2023, arXiv 2209.03003: reflow.
# - Albergo, Vanden-Eijnden, 2023, arXiv 2209.15571: stochastic interpolants.
# - Kingma, Gao, 2023, arXiv 2303.00848: the weights of all losses.
# - Esser et al., 2024, arXiv 2403.03206: SD3. Hoogeboom et al., 2023, arXiv 2301.11093: noise and resolution.
# - Ma et al., 2024, arXiv 2401.08740: SiT. Tong et al., 2024, arXiv 2302.00482, and Pooladian et al., 2023, arXiv 2304.14772: better pairs.
#
# Next comes [notebook 07](07_guidance.ipynb), *Guidance*.
