# %% [markdown]
# # 04 Scores, SDEs and ODEs: one object, five names
#
# After this notebook you can read a trained denoiser as a score, turn it into a random walk or a smooth flow from noise to data, compute exact likelihoods with it, and translate between the dialects of the papers without a sign error.
#
# Run time: about a minute on two CPU cores; a GPU (a T4) helps only with the pictures. Nothing is trained, nothing is downloaded.
#
# You will
#
# - sample with a score alone, and catch the sampler lying about frequencies,
# - let noise grow in continuous time, and walk back with dice and without,
# - find that the two ways agree on every crowd and on no single point,
# - compute exact likelihoods, of points and of pictures,
# - build a dictionary that checks itself.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## What does a network that guesses noise know?
#
# In [notebook 03](03_ddpm_in_a_hundred_lines.ipynb) a network guessed noise, and moons appeared. Other papers train networks to estimate a *score*, a *velocity* or a *denoised picture*; some samplers throw dice, some do not. It looks like five methods. It is one object under five names. Three Gaussian bumps in the plane prove it, because there everything can be computed.
#
# Bump $k$ has weight $w_k$, centre $\mu_k$ and covariance $C_k$. With noise, $x_t = \alpha x_0 + \sigma\varepsilon$, each stays Gaussian, so the density of noisy points is known at every time $t$:
#
# $$p_t(x) = \sum_k w_k\,\mathcal N(x;\; \alpha\mu_k,\; \alpha^2 C_k + \sigma^2 I).$$
#
# The **score** is the gradient of its logarithm, the direction in which points become more likely the fastest. For one Gaussian that is a pull towards its centre. For a sum, the pulls are averaged:
#
# $$s(x, t) = \nabla_x \log p_t(x) = -\sum_k r_k(x)\,(\alpha^2 C_k + \sigma^2 I)^{-1}(x - \alpha\mu_k),$$
#
# where $r_k(x)$ is the share of term $k$ in $p_t(x)$: the probability that $x$ belongs to that bump. Write both by hand. The schedule `vp` is DDPM's linear one with infinitely many steps (notebook 01); $\alpha^2 + \sigma^2 = 1$.

# %%
import math
import matplotlib.pyplot as plt
import torch
from minidiff import samplers, schedules
from minidiff.oracles import Mixture

weights = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
means = torch.tensor([[-1.1, -0.7], [1.2, -0.3], [0.0, 1.2]], dtype=torch.float64)
covariances = [[[0.08, 0.03], [0.03, 0.04]], [[0.04, 0.0], [0.0, 0.04]], [[0.07, -0.03], [-0.03, 0.03]]]
covariances = torch.tensor(covariances, dtype=torch.float64)  # (3, 2, 2)
vp = schedules.linear(steps=None)  # vp(t) -> (alpha, sigma); t = 0 is data, t = 1 is noise


def components(x, alpha, sigma):
    """log w_k N(x; alpha mu_k, alpha^2 C_k + sigma^2), (N, 3), and its gradient, (N, 3, 2), for x (N, 2)."""
    spread = alpha**2 * covariances + sigma**2 * torch.eye(2, dtype=x.dtype)
    away = x[:, None] - alpha * means
    pull = -torch.einsum("kij,nkj->nki", spread.inverse(), away)
    return weights.log() + (away * pull).sum(2) / 2 - spread.logdet() / 2 - math.log(2 * math.pi), pull


def log_p(x, t, schedule=vp):
    return components(x, *schedule(t))[0].logsumexp(1)

# %% [markdown]
# The shares $r_k$ are the softmax of the logarithms of the terms. Check it twice: against PyTorch's own gradient of `log_p`, and against the package, where such a data set with exact answers is called an **oracle**.

# %%
def score(x, t, schedule=vp):
    log_terms, pull = components(x, *schedule(t))
    return (log_terms.softmax(1)[..., None] * pull).sum(1)


oracle = Mixture(weights, means, covariances)
for t in (0.0, 0.1, 0.5, 1.0):
    x = 2 * torch.randn(500, 2, dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(log_p(x, t).sum(), x)
    assert torch.allclose(score(x, t), gradient, rtol=1e-9, atol=1e-9)
    assert torch.allclose(score(x, t), oracle.score(x, t, vp), rtol=1e-9, atol=1e-9)
    assert torch.allclose(log_p(x, t), oracle.log_density(x, t, vp), rtol=1e-9, atol=1e-9)
print("score by hand = gradient of log p = the package's oracle, at four times")

# %% [markdown]
# Look at it as arrows over the density. (Their lengths are compressed, or the long ones would hide the rest.)

# %%
def shade(axes, t, schedule, title, extent, cells=90):
    """The exact density at time t, dark where likely."""
    line = torch.linspace(-extent, extent, cells, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line).flip(1)
    density = log_p(grid, t, schedule).exp().view(cells, cells)
    shades = [density.max().item() * share for share in (0.004, 0.03, 0.1, 0.25, 0.5, 0.75, 1)]
    axes.contourf(line, line, density, shades, cmap="Blues", vmax=1.3 * shades[-1])
    axes.set(title=title, aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent))
    axes.grid(visible=False)


@plots.quiet
def arrows(times, extent=2.6):
    figure, panels = plt.subplots(1, len(times), figsize=(2.8 * len(times), 2.9), sharey=True)
    where = torch.cartesian_prod(*[torch.linspace(-2.3, 2.3, 11, dtype=torch.float64)] * 2)
    for axes, t in zip(panels, times):
        shade(axes, t, vp, f"t = {t:g}, sigma = {vp(t)[1]:.2f}", extent)
        s = score(where, t)
        s = 0.4 * s / s.norm(dim=1).max() ** 0.4 / s.norm(dim=1, keepdim=True) ** 0.6
        axes.quiver(*where.T, *s.T, color=plots.COLORS[1], angles="xy", scale_units="xy", scale=1, width=0.006)
    return figure


arrows([0.03, 0.3, 0.7])

# %% [markdown]
# With little noise each arrow points to one bump nearby, and knows nothing of the others. With much noise all arrows point to one place. Remember this; it will decide everything.
#
# ## The noise guesser is the score
#
# The density of $x_t$ averages over all clean points, $p_t(x) = \int p(x_0)\,\mathcal N(x; \alpha x_0, \sigma^2 I)\,dx_0$. Take the gradient under the integral: a Gaussian times $-(x - \alpha x_0)/\sigma^2$. Divide by $p_t(x)$. By Bayes' rule, $p(x_0)\,\mathcal N/p_t$ is the density of those $x_0$ that could have led here, so what remains is their average:
#
# $$\nabla\log p_t(x) = \mathbb E\Big[-\frac{x - \alpha x_0}{\sigma^2}\,\Big|\,x_t = x\Big] = -\frac{\mathbb E[\varepsilon \mid x_t = x]}{\sigma}.$$
#
# The guess with the least squared error is this conditional mean (notebook 02). So every network of notebook 03 was a score network, up to the factor $-1/\sigma$; training it was *denoising score matching* (Vincent 2011). Solve for $x_0$ instead, and you have **Tweedie's formula**, which notebook 03 borrowed: $\mathbb E[x_0 \mid x_t] = (x_t + \sigma^2 s)/\alpha$.
#
# Test it by brute force: draw many clean points, weigh each by how well it explains $x_t$, and average their noises.

# %%
generator = torch.Generator().manual_seed(run.seed)
clean = oracle.sample(400_000 if run.tier != "smoke" else 100_000, generator)  # (N, 2)
alpha, sigma = vp(0.3)
for x_t in torch.tensor([[0.0, 0.0], [-1.0, 0.5], [1.5, 1.0]], dtype=torch.float64):
    noises = (x_t - alpha * clean) / sigma  # the eps that would have made x_t of each clean point
    plausible = torch.softmax(-noises.square().sum(1) / 2, 0)
    averaged, exact = plausible @ noises, -sigma * score(x_t[None], 0.3)[0]
    print(f"at {x_t.tolist()}: mean noise {averaged.numpy().round(3)}, -sigma * score {exact.numpy().round(3)}")
    assert torch.allclose(averaged, exact, atol=0.02)

# %% [markdown]
# ## Sampling with arrows alone
#
# Can you sample from $p$ knowing only its score? Climbing along the arrows is not enough: all points would end on three peaks. **Langevin dynamics** climbs and shakes, with a step size $\eta$:
#
# $$x \leftarrow x + \eta\, s(x) + \sqrt{2\eta}\;z, \qquad z \sim \mathcal N(0, I).$$
#
# For small $\eta$ and enough steps its points are distributed as $p$, wherever they start. That is a theorem; watch what it is worth.

# %%
def langevin(score, x, eta, steps, noise=torch.randn_like):
    for _ in range(steps):
        x = x + eta * score(x) + math.sqrt(2 * eta) * noise(x)
    return x


def shares(x):
    """Which share of the points x (N, 2) belongs to each bump."""
    return torch.bincount(components(x, 1.0, 0.0)[0].argmax(1), minlength=3) / len(x)


torch.manual_seed(run.seed)
num, many = (3000, 2000) if run.tier != "smoke" else (500, 500)
begin = 1.3 * torch.randn(num, 2, dtype=torch.float64)
plain = langevin(lambda x: score(x, 0.0), begin, 0.004, many)
print("share of each bump:   true", [round(w, 2) for w in weights.tolist()])
for name, x in {"at the start": begin, f"after {many} steps": plain}.items():
    print(f"{name:>26}", [round(share, 2) for share in shares(x).tolist()])
other, near = Mixture([0.01, 0.01, 0.98], means, covariances), means + 0.3 * torch.randn(3, 2, dtype=torch.float64)
size, difference = (s.norm(dim=1).max() for s in (score(near, 0.0), other.score(near, 0.0, vp) - score(near, 0.0)))
print(f"near the bumps: scores up to {size:.0f}; with weights 1, 1, 98 % they would change by {difference:.0e} at most")

# %% [markdown]
# Many steps, the exact score, and the frequencies are wrong: they are those of the start, far from 60, 30 and 10 %. Each point is captured by the bump near it, and an empty valley is crossed once in ages. Nor could the score correct them. Change the weights altogether, and near a bump it stays the same (last line).
#
# Only at high noise, where the bumps overlap, does the score hold the weights. So start there, where points move freely, and lower the noise slowly, with some Langevin steps at each level, of a size $\eta$ in proportion to $\sigma^2$. This is **annealed Langevin dynamics** (Song and Ermon 2019). They kept $\alpha = 1$ and let $\sigma$ fall geometrically: a *variance exploding* (VE) schedule. Here $\sigma$ falls from 20 to 0.1.

# %%
ve = schedules.variance_exploding(sigma_min=0.01, sigma_max=20.0)  # alpha = 1, sigma = 0.01 * 2000^t


def annealed(score, schedule, x, times, steps, r=0.1, noise=torch.randn_like):
    for t in times:
        x = langevin(lambda x, t=t: score(x, t, schedule), x, r * schedule(t)[1] ** 2, steps, noise)
    return x


@plots.quiet
def clouds(panels, schedule=vp, extent=2.6):
    """panels: {title: (points (N, 2), t)}, each over the exact density at t."""
    figure, row = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.7), sharey=True)
    for axes, (title, (x, t)) in zip(row, panels.items()):
        shade(axes, t, schedule, title, extent)
        axes.plot(*x[:500].T, ".", color=plots.COLORS[1], markersize=3.2, markeredgewidth=0)
    return figure


levels = torch.linspace(1.0, 0.3, 30).tolist()  # sigma from 20 to 0.1
cooled = annealed(score, ve, 20 * torch.randn_like(begin), levels, 100 if run.tier != "smoke" else 40)
kinds = {"start": begin, "Langevin": plain, "annealed": cooled}
clouds({f"{k}: {', '.join(f'{s:.0%}' for s in shares(x).tolist())}": (x, 0.0) for k, x in kinds.items()})

# %% [markdown]
# Above each panel are the shares of the bumps at lower left, right and top. Annealed, they come out close to 60, 30 and 10 %. Noise is no nuisance here. It is how distant modes learn of each other.
#
# ## Noise in continuous time
#
# Annealing has two knobs at each level, step size and number of steps. Continuous time removes both. Let each step of length $dt$ scale the point a little and add a little noise. That is a **stochastic differential equation** (SDE):
#
# $$dx = f(t)\,x\,dt + g(t)\,dw \qquad\text{means}\qquad x \leftarrow x + f x\,dt + g\sqrt{dt}\;z.$$
#
# Note the root. Variances of independent kicks add: $1/dt$ kicks of variance $g^2 dt$ make $g^2$ in a unit of time. With $dt$ in place of $\sqrt{dt}$, noise would vanish as steps get finer.
#
# Which $f$ and $g$ give a wanted $\alpha(t)$ and $\sigma(t)$? Write $\alpha'$ for the derivative in time. One step multiplies the mean by $1 + f\,dt$, so $\alpha' = f\alpha$. It multiplies the variance by $(1 + f\,dt)^2 \approx 1 + 2f\,dt$ and adds $g^2 dt$, so $(\sigma^2)' = 2f\sigma^2 + g^2$. Hence
#
# $$f = \frac{\alpha'}{\alpha}, \qquad g^2 = (\sigma^2)' - 2f\sigma^2.$$
#
# For DDPM's schedule this is $f = -\beta(t)/2$ and $g^2 = \beta(t)$ with $\beta(t) = 0.1 + 19.9\,t$, the **variance preserving** (VP) SDE. For VE it is $f = 0$ and $g^2 = 2\sigma^2\ln(\sigma_\text{max}/\sigma_\text{min})$. Check both against the package. Then let 4,000 copies of one point go, and compare mean and spread.

# %%
by_hand = {
    "VP": lambda t: (-(0.1 + 19.9 * t) / 2, 0.1 + 19.9 * t),
    "VE": lambda t: (0.0, 2 * (0.01 * 2000**t) ** 2 * math.log(2000)),
}
processes, walks = {"VP": vp, "VE": ve}, {}
torch.manual_seed(run.seed)
for name, sde in by_hand.items():
    for t in (0.1, 0.5, 0.9):
        assert all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(sde(t), processes[name].sde(t)))
    steps = 1000 if run.tier != "smoke" else 200
    x, walks[name] = means[1].expand(4000, 2), []
    for k in range(steps):
        f, g2 = sde((k + 0.5) / steps)  # in the middle of the step
        x = x + f * x / steps + math.sqrt(g2 / steps) * torch.randn_like(x)
        walks[name].append(x[:8, 0])  # the first coordinate of 8 walkers
        if (k + 1) % (steps // 2) == 0:
            alpha, sigma = processes[name]((k + 1) / steps)
            mean, std = x[:, 0].mean(), x[:, 0].std()
            print(f"{name}, t = {(k + 1) / steps}: mean {mean:6.3f} ± {std / 4000**0.5:.3f} (alpha x0 = "
                  f"{alpha * means[1, 0]:.3f}), standard deviation {std:6.3f} (sigma = {sigma:.3f})")
            assert abs(mean - alpha * means[1, 0]) < 4 * std / 4000**0.5 and abs(std / sigma - 1) < 0.05

# %% [markdown]
# Draw some of the walks, around $\alpha x_0$ (black) in a band of $\pm 2\sigma$. (Printed ± is the uncertainty of the mean.)

# %%
@plots.quiet
def fans():
    figure, panels = plt.subplots(1, 2, figsize=(9.4, 3.1))
    for axes, (name, paths) in zip(panels, walks.items()):
        paths = torch.stack(paths)[:: len(paths) // 100]
        t = torch.linspace(0, 1, len(paths))
        alpha, sigma = processes[name](t)
        centre = alpha * means[1, 0]
        axes.fill_between(t, centre - 2 * sigma, centre + 2 * sigma, color="#D6EAF6", linewidth=0)
        axes.plot(t, paths, color=plots.COLORS[1], linestyle="-", linewidth=0.6, alpha=0.7)
        axes.plot(t, centre, color=plots.COLORS[6], linestyle="-", linewidth=1.5)
        title = {"VP": "VP: the signal fades", "VE": "VE: the signal drowns"}[name]
        axes.set(xlabel="t", ylabel="first coordinate", title=title)
    return figure


fans()

# %% [markdown]
# ## The way back, with dice
#
# You know how $x$ got from $t - h$ to $t$. Where did it come from? Bayes' rule for one short step: the earlier point $y = x + d$ was likely beforehand, and must have led to $x$. The noise of that step is $x - y - f y\,h \approx -(d + f x\,h)$, of variance $g^2 h$:
#
# $$\log p(y \mid x) = \underbrace{\log p(x) + d\cdot s(x)}_{\approx\,\log p(y)} - \frac{\lVert d + f x\,h\rVert^2}{2 g^2 h} + \text{const}.$$
#
# This is quadratic in $d$, so it is a Gaussian. Complete the square: its mean is $d = -(f x - g^2 s)\,h$, its variance $g^2 h$. So the way back is an SDE too, with the score as the only new thing (Anderson 1982),
#
# $$dx = \big[f x - g^2\, s(x, t)\big]\,dt + g\,d\bar w, \qquad dt < 0,$$
#
# where $d\bar w$ is $\sqrt{|dt|}\;z$ again. Stepping along it is called **Euler-Maruyama**. The function has two knobs for later: `pull` multiplies the score, `kick` the noise. Here both are 1.

# %%
def walk(score, schedule, x, times, pull=1.0, kick=1.0, noise=torch.randn_like):
    """From times[0] down to times[-1]; yields x at every time, the first included."""
    yield x
    for t, t_next in zip(times, times[1:]):
        (f, g2), h = schedule.sde(t), t - t_next
        x = x - (f * x - pull * g2 * score(x, t)) * h
        if kick:
            x = x + kick * math.sqrt(g2 * h) * noise(x)
        yield x


steps = 500 if run.tier != "smoke" else 200
times = minidiff.spacing(vp, steps, t_end=1e-3)  # evenly spaced from 1 to 0.001
start = torch.randn(num, 2, dtype=torch.float64)  # at t = 1 there is next to nothing but noise
torch.manual_seed(run.seed)
sde_path = list(walk(score, vp, start, times))
clouds({f"t = {times[k]:.2g}": (sde_path[k], times[k]) for k in (0, steps * 7 // 10, steps * 17 // 20, steps)})

# %% [markdown]
# Dots come from the walk, the blue ground from the formula. They agree at every time.
#
# ## The way back, without dice
#
# Forget single points and look at the crowd. Its density changes for two reasons. Points drift, and the **divergence** of the current, $\nabla\cdot j = \sum_i \partial j_i/\partial x_i$, is how much more flows out of a place than in. And noise smears hills into valleys. The balance is the Fokker-Planck equation,
#
# $$\frac{\partial p}{\partial t} = -\nabla\cdot(f x\,p) + \tfrac12 g^2\,\nabla\cdot\nabla p = -\nabla\cdot\Big(\big[f x - \tfrac12 g^2\,\nabla\log p\big]\,p\Big).$$
#
# The second form only uses $\nabla p = p\,\nabla\log p$. But read it: it is the balance of a crowd that drifts with the velocity in brackets, *with no noise at all*. So the **probability-flow ODE** (Song et al. 2021),
#
# $$\frac{dx}{dt} = u(x, t) = f x - \tfrac12 g^2\, s(x, t),$$
#
# has the same densities at all times, forwards and backwards. In `walk` it has `pull` one half and `kick` zero. With the best guesses $\hat x_0 = (x + \sigma^2 s)/\alpha$ and $\hat\varepsilon = -\sigma s$ it is even simpler: $u = \alpha' \hat x_0 + \sigma' \hat\varepsilon$, the best guess of the velocity of $\alpha x_0 + \sigma\varepsilon$.
#
# Check the balance, divided by $p$, as $\partial_t \log p = -\nabla\cdot u - u\cdot s$; then the simple form, and both walks against the package.

# %%
def velocity_and_divergence(x, t, schedule=vp):
    x, (f, g2) = x.detach().requires_grad_(), schedule.sde(t)
    u = f * x - g2 / 2 * score(x, t, schedule)
    parts = [torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)]
    return u.detach(), sum(parts)


for schedule in (vp, ve):
    for t in (0.1, 0.5, 0.9):
        (alpha, sigma), (alpha_rate, sigma_rate), s = schedule(t), schedule.rates(t), score(start, t, schedule)
        u, divergence = velocity_and_divergence(start, t, schedule)
        change = (log_p(start, t + 1e-5, schedule) - log_p(start, t - 1e-5, schedule)) / 2e-5
        assert torch.allclose(change, -divergence - (u * s).sum(1), rtol=1e-5, atol=1e-5)
        x0, eps = (start + sigma**2 * s) / alpha, -sigma * s
        assert torch.allclose(u, alpha_rate * x0 + sigma_rate * eps, rtol=1e-9, atol=1e-9)
ode_path = list(walk(score, vp, start, times, pull=0.5, kick=0.0))
torch.manual_seed(run.seed)  # the dice of the SDE's walk
package = {"SDE": samplers.euler_maruyama(oracle.denoiser(vp), vp, start, times, torch.randn_like),
           "ODE": samplers.euler(oracle.denoiser(vp), vp, start, times)}
for mine, theirs in zip((sde_path, ode_path), package.values()):
    for x, step in zip(mine[1:], theirs, strict=True):
        assert torch.allclose(x, step.x, atol=1e-6)
print(f"the balance holds, u = alpha' x0 + sigma' eps, and {steps} steps of both walks equal the package's")

# %% [markdown]
# Let both start from the same noise and follow the first coordinate through time, over its exact density (the square root, so that thin parts show). Live, try few steps, and VE, drawn at constant total variance.

# %%
@plots.quiet
def draw_paths(process="VP", steps=100, seed=0):
    torch.manual_seed(seed)
    times = minidiff.spacing(schedule := processes[process], steps, t_end=1e-3)
    scale = [math.hypot(*schedule(t)) ** -1 for t in times]
    noise = torch.randn(6, 2, dtype=torch.float64) / scale[0]
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.4), sharey=True)
    at = torch.linspace(-2.8, 2.8, 120, dtype=torch.float64)[:, None]
    for axes, (title, knobs) in zip(panels, {"SDE": (1.0, 1.0), "ODE": (0.5, 0.0)}.items()):
        image = []
        for t, c in list(zip(times, scale))[:: -(-len(times) // 100)]:
            (alpha, sigma), variance = schedule(t), covariances[:, 0, 0]
            spread = c * (alpha**2 * variance + sigma**2).sqrt()  # of each bump, in the first coordinate
            image.append((weights * torch.exp(-(((at - c * alpha * means[:, 0]) / spread) ** 2) / 2) / spread).sum(1))
        along, density = torch.linspace(1, 0, len(image)), torch.stack(image, 1)
        axes.contourf(along, at[:, 0], density**0.5, 9, cmap="Blues", vmax=1.4)
        walks_down = walk(lambda x, t: score(x, t, schedule), schedule, noise, times, *knobs)
        path = torch.stack([c * x[:, 0] for c, x in zip(scale, walks_down)])
        axes.plot(times, path, linestyle="-", linewidth=1)
        axes.set(xlim=(1, 0), ylim=(-2.8, 2.8), xlabel="t, from noise to data",
                 ylabel="first coordinate", title=f"{title}, {process}")
    return figure


widgets.explore(draw_paths, process=["VP", "VE"], steps=[10, 30, 100, 300], seed=range(5))

# %% [markdown]
# The same crowds, other lives. Paths of one colour have the same start, and nothing else in common. SDE paths jitter, and change their minds until late. ODE paths are smooth. (They never meet; where two seem to cross, they differ in the coordinate you do not see.)
#
# Is it really the same distribution? Measure it by notebook 03's energy distance, here with plain distances; what true samples score is the floor. Beside the two stand two common mistakes: the ODE with the SDE's full score, and the SDE with the ODE's half.

# %%
def energy_distance(a, b):
    def mean(x, y):
        return torch.cdist(x, y).mean()
    return 1000 * (2 * mean(a, b) - mean(a, a) - mean(b, b)).item()


def fresh(t):  # true samples
    (alpha, sigma), x0 = vp(t), oracle.sample(min(num, 2000), generator)
    return alpha * x0 + sigma * torch.randn(x0.shape, dtype=x0.dtype, generator=generator)


marks = [steps * k // 10 for k in (2, 4, 6, 7, 8, 9, 10)]
paths = {"SDE: pull 1, kick 1": sde_path, "ODE: pull 1/2, kick 0": ode_path,
         "mistake: pull 1, kick 0": list(walk(score, vp, start, times, pull=1.0, kick=0.0)),
         "mistake: pull 1/2, kick 1": list(walk(score, vp, start, times, pull=0.5, kick=1.0))}
seen = {name: [path[k][:2000] for k in marks] for name, path in paths.items()}
seen["true samples"], result = [fresh(times[k]) for k in marks], {}
for name, row in seen.items():  # each against three fresh clouds
    result[name] = [sum(energy_distance(x, fresh(times[k])) for _ in range(3)) / 3 for x, k in zip(row, marks)]
sde, ode, *mistakes, true = result.values()
assert min(map(min, mistakes)) > 10 * max(sde + ode) and max(sde + ode) < 5 * max(true)
plots.lines({name: ([times[k] for k in marks], r) for name, r in result.items()}, x="t (1 is noise, 0 is data)",
            y="1000 x energy distance", log="y")

# %% [markdown]
# SDE and ODE stay at the floor. The mistakes are far above it: one cloud is too tight, the other too loose. If your samples look like that, search for a factor of one half first.
#
# ## Noise as an address
#
# One difference is left. An ODE has one path through each point, so it maps noises to data one to one. Colour each starting noise by the bump that its walk ends in.

# %%
def percent(x):
    return " / ".join(f"{share:.0%}" for share in shares(x).tolist())


@plots.quiet
def fates(panels):
    figure, row = plt.subplots(1, 2, figsize=(6.8, 3.8), sharey=True)
    for axes, (title, end) in zip(row, panels.items()):
        owner = components(end, 1.0, 0.0)[0].argmax(1)
        for k, name in enumerate(("lower left", "right", "top")):
            axes.plot(*start[:1500][owner[:1500] == k].T, ".", color=plots.COLORS[k], markersize=3, label=name)
        axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xlabel="noise, first coordinate")
        axes.set_title(f"{title}\n{percent(end)}")
    row[0].set_ylabel("second coordinate")
    handles = row[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, markerscale=3, title="ends in the bump at ...")
    return figure


fates({"ODE: the start decides": ode_path[-1], "SDE: the dice decide": sde_path[-1]})

# %% [markdown]
# For the ODE the noise is an address, in countries that hold about 60, 30 and 10 % of all noise. For the SDE the start means nothing. So only the ODE lets you *encode*: run time upwards from a point to its noise, its **code**, and down again to the point. The package's `heun` averages the velocities at both ends of a step, and errs far less than Euler (notebook 05).

# %%
def drive(x, times, schedule=vp, denoise=None):
    """The probability-flow ODE along `times`, up or down, by Heun's method."""
    for step in samplers.heun(denoise or oracle.denoiser(schedule), schedule, x, times):
        x = step.x
    return x


truth, trips = oracle.sample(num, generator), {}
for n in (8, 16, 32, 64, 128):
    down = minidiff.spacing(vp, n, t_end=1e-3)
    codes = drive(truth, down[::-1])
    trips[n] = (drive(codes, down) - truth).norm(dim=1).mean().item()
    print(f"{n:4} steps each way: mean error {trips[n]:.1e}; codes have mean {codes.mean():+.2f}, "
          f"standard deviation {codes.std():.2f}")
assert trips[128] < 1e-3 and abs(codes.std() - 1) < 0.1

# %% [markdown]
# ## Exact likelihood
#
# A one-to-one map carries probability with it, and gives a density that DDPM could only bound ([notebook 02](02_from_likelihood_to_a_squared_error.ipynb)). Go with a point: $\log p_t(x_t)$ changes because the density changes, by $-\nabla\cdot u - u\cdot s$ as you checked, and because the point moves, by $u\cdot s$. Only the divergence is left. Where the flow spreads points apart, density falls:
#
# $$\frac{d}{dt}\log p_t(x_t) = -\nabla\cdot u(x_t, t) \qquad\Longrightarrow\qquad \log p_0(x_0) = \log p_1(x_1) + \int_0^1 \nabla\cdot u(x_t, t)\,dt.$$
#
# So follow a point to its noise and add up the divergence on the way. Here the truth is known. One curve assumes, as you must with real data, that at $t = 1$ there is nothing but unit noise. The other takes the exact density there.

# %%
def flow_up(x, times):
    """Points x (N, 2) carried along `times` by Heun's method, and the integral of the divergence on the way."""
    gained = 0.0
    for t, t_next in zip(times, times[1:]):
        u, divergence = velocity_and_divergence(x, t)
        u_next, divergence_next = velocity_and_divergence(x + (t_next - t) * u, t_next)
        x = x + (t_next - t) * (u + u_next) / 2
        gained = gained + (t_next - t) * (divergence + divergence_next) / 2
    return x, gained


ends = {"end: N(0, I)": lambda x: -x.square().sum(1) / 2 - math.log(2 * math.pi),
        "end: exact density": lambda x: log_p(x, 1.0)}
points, errors, counts = truth[:200], {name: [] for name in ends}, [10, 20, 40, 80, 160, 320]
for n in counts:
    x, gained = flow_up(points, minidiff.spacing(vp, n, t_end=1e-3)[::-1])
    for name, log_end in ends.items():
        errors[name].append((log_end(x) + gained - log_p(points, 1e-3)).abs().mean().item())
unit, exact = errors.values()
assert exact[0] / exact[-1] > (counts[-1] / counts[0]) ** 2 / 2 and unit[-1] > 3 * exact[-1]
plots.lines({name: (counts, e) for name, e in errors.items()}, x="steps of Heun's method",
            y="mean error of log p, nats", log="xy")

# %% [markdown]
# With the exact end the error falls as $1/n^2$, as Heun's should. With unit noise it stops falling: $\alpha(1)$ is 0.0066 and not 0, so a trace of the data is left at $t = 1$. *Exact* likelihood means: exact but for that and the solver.
#
# ## None of this was about toys
#
# Nothing above asked where the score came from. So hand `walk` the score of a trained network, `emoji-unet`, and take emoji that it has never seen, at $t = 0.005$, with a trace of noise that you cannot see. Encode each by the ODE, decode the code by the ODE, and decode it twice by the SDE.

# %%
emoji_unet = minidiff.load("emoji-unet", run.device)
unseen = minidiff.load_dataset("emoji", size=16, split="test").images()[[5, 41, 77, 113, 149, 185, 221]].to(run.device)


def bound(x_t, t):  # without a label: the network's own "nothing"
    y = emoji_unet.network.null(torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device))
    return emoji_unet.denoise(x_t, t, y)


n, cosine = 60 if run.tier != "smoke" else 6, emoji_unet.schedule
down, slowly = (torch.linspace(0.98, 0.005, k + 1).tolist() for k in (n, 5 * n))
torch.manual_seed(run.seed)
alpha, sigma = cosine(0.005)
traced = alpha * unseen + sigma * torch.randn(unseen.shape).to(run.device)  # x_t at t = 0.005
codes, careless = (drive(x, down[::-1], cosine, bound) for x in (traced, unseen))
returned = drive(codes, down, cosine, bound)
print(f"mean error of a channel after the round trip: {(returned - traced).abs().mean():.4f}\n"
      f"standard deviation of the codes: {codes.std():.2f}, without the trace of noise {careless.std():.2f}")
rows = {"unseen picture": traced, "its code": codes / 2, "ODE back": returned}
for name in ("SDE back", "SDE again"):
    with torch.no_grad():
        *_, rows[name] = walk(lambda x, t: bound(x, t).score, cosine, codes, slowly)
frames = torch.stack([torch.nn.functional.pad(x.cpu(), (1, 1, 1, 1), value=0.6) for x in rows.values()], dim=1)
plots.filmstrip(frames, rows=list(rows))

# %% [markdown]
# The code looks like noise, but is a faithful file: the ODE reads the picture back from it. The SDE starts from the same code and draws something else, twice. (The trace of noise matters. At $t = 0.005$ the model expects some; white ground without any is too smooth, and so is its code.)
#
# Now the likelihood. Its divergence would take 768 backward passes. **Hutchinson's trick** needs one: with $J$ the matrix of all $\partial u_i/\partial x_j$, the mean of $z\cdot Jz$ over random signs $z$ is the sum of its diagonal. The package's `log_likelihood` uses it, once its exact mode has agreed with the truth on the points.
#
# Before you look: which should the model find likely? Emoji, emoji upside down, with shuffled pixels, random pixels, an empty white square, a grey one? The unit is bits per dimension, as in notebook 02: fewer bits, more likely. (The density is that at $t = 0.005$, of data blurred by two grey levels.)

# %%
from minidiff.likelihood import bits_per_dim, dequantize, log_likelihood

alpha, options = vp(1e-3)[0], {"trace": "exact", "steps": 60, "t_start": 1e-3, "prior": ends["end: exact density"]}
nats = log_likelihood(oracle.denoiser(vp), vp, points, **options)  # asks for x0, where x_t = alpha x0
assert (nats - log_p(alpha * points, 1e-3) - 2 * math.log(alpha)).abs().mean() < 1e-3

probe = torch.Generator().manual_seed(run.seed)
shuffled = unseen.flatten(2)[..., torch.randperm(256, generator=probe)].view_as(unseen)
square = torch.ones_like(unseen[:3])
crowd = {"emoji, unseen": unseen, "upside down": unseen.flip(2), "pixels shuffled": shuffled,
         "random pixels": 2 * torch.rand(3, 3, 16, 16, generator=probe).to(run.device) - 1,
         "white square": square, "grey square": 0 * square}
found = {}
for name, images in crowd.items():
    nats = log_likelihood(bound, cosine, dequantize(images, probe), steps=25 if run.tier != "smoke" else 2,
                          t_start=0.005, generator=probe)
    found[name] = bits_per_dim(nats, images.shape[1:])
print(f"the likeliest emoji: {found['emoji, unseen'].min():.2f} bits per dimension")
middle, deviation = ([f(bits).item() for bits in found.values()] for f in (torch.mean, torch.std))
plots.bars(list(found), middle, deviation, x="bits per dimension, mean ± standard deviation over pictures")

# %% [markdown]
# To the model shuffled and random pixels are absurd, emoji upside down hardly. And it prefers an empty square, even a grey one, to any of the emoji. The computation is right. But a density is not a probability: the empty square sits on a high but thin peak in 768 dimensions, and the emoji together fill far more volume. Never use likelihood alone to tell familiar from foreign.
#
# ## Five names
#
# At a point $x_t$ with known $\alpha$ and $\sigma$, each of five quantities gives all others. In the table $\Delta = \alpha\sigma' - \alpha'\sigma$, and (VP) marks what needs $\alpha^2 + \sigma^2 = 1$. Each row has been run on 1,000 points, from the oracle's answer in that language.

# %%
from IPython.display import Markdown

t, x = 0.4, 1.5 * torch.randn(1000, 2, dtype=torch.float64)
(alpha, sigma), (alpha_rate, sigma_rate), exact = vp(t), vp.rates(t), oracle.denoise(x, t, vp)
x0, eps, delta = exact.x0, exact.eps, alpha * sigma_rate - sigma * alpha_rate
v, s, u = alpha * eps - sigma * x0, score(x, t), velocity_and_divergence(x, t)[0]
rows = {  # what a network returns: its name in the package, the values, (x0, eps) from them, and the formulas for that
    r"noise $\varepsilon$": ("eps", eps, ((x - sigma * eps) / alpha, eps),
        r"$(x_t-\sigma\varepsilon)/\alpha$ | $\varepsilon$"),
    r"data $x_0$": ("x0", x0, (x0, (x - alpha * x0) / sigma), r"$x_0$ | $(x_t-\alpha x_0)/\sigma$"),
    r"$v = \alpha\varepsilon - \sigma x_0$": ("v", v, (alpha * x - sigma * v, sigma * x + alpha * v),
        r"$\alpha x_t-\sigma v$ (VP) | $\sigma x_t+\alpha v$ (VP)"),
    r"score $s$": ("score", s, ((x + sigma**2 * s) / alpha, -sigma * s), r"$(x_t+\sigma^2 s)/\alpha$ | $-\sigma s$"),
    r"velocity $u = \alpha' x_0 + \sigma'\varepsilon$": (None, u, ((sigma_rate * x - sigma * u) / delta,
        (alpha * u - alpha_rate * x) / delta), r"$(\sigma' x_t-\sigma u)/\Delta$ | $(\alpha u-\alpha' x_t)/\Delta$"),
}
lines = ["| the network returns | $x_0$ from it | $\\varepsilon$ from it | largest error |", "|---|---|---|---|"]
for name, (kind, values, (found_x0, found_eps), formulas) in rows.items():
    package = minidiff.Prediction(kind, x, values, alpha, sigma) if kind else exact
    for mine, theirs in ((found_x0, package.x0), (found_eps, package.eps)):
        assert torch.allclose(mine, theirs)
    error = max((found_x0 - x0).abs().max(), (found_eps - eps).abs().max()).item()
    lines.append(f"| {name} | {formulas} | {error:.0e} |")
Markdown("\n".join(lines))

# %% [markdown]
# Papers also name *time* differently. What all mean is the ratio $\sigma/\alpha$. EDM (Karras et al. 2022) uses it directly, as its $\sigma$. Others use a logarithm, $\text{log-SNR} = -2\ln(\sigma/\alpha)$. Flow matching, with $\alpha = 1 - \tau$ and $\sigma = \tau$, has the same ratio at $\tau = \sigma/(\alpha + \sigma)$. Each row of the table is one state of one noisy picture.
#
# If it is all the same picture at another contrast (notebook 01), then VP, VE and flow matching must have the same ODE in other units. Test it: translate one cloud at $t = 0.75$ into each dialect, drive it down in 100 steps of that dialect's time, and translate back.

# %%
edm, flow, arrived = schedules.edm(), schedules.flow(), {}
for schedule in (vp, ve, flow):
    first, last = (schedule.inverse(vp.log_snr(t)) for t in (0.75, 1e-3))
    there = torch.linspace(first, last, 101, dtype=torch.float64).tolist()
    x = start / vp(0.75)[0] * schedule(first)[0]  # the same picture x / alpha
    arrived[schedule.name] = drive(x, there, schedule) / schedule(last)[0]
for name in ("variance_exploding", "flow"):
    gap = (arrived[name] - arrived["linear"]).norm(dim=1).mean().item()
    print(f"{name}: mean distance from where VP arrives {gap:.1e}")
    assert gap < 0.01
lines = ["| $t$ | DDPM index | $\\beta(t)$ | $\\alpha$ | $\\sigma$ | $\\sigma/\\alpha$ (EDM) | log-SNR | $\\tau$ |",
         "|---|---|---|---|---|---|---|---|"]
for t in (0.01, 0.1, 0.25, 0.5, 0.75, 1.0):
    (alpha, sigma), log_snr = vp(t), vp.log_snr(t)
    beta, ratio, tau = -2 * vp.rates(t)[0] / alpha, sigma / alpha, sigma / (alpha + sigma)
    assert math.isclose(beta, 0.1 + 19.9 * t) and math.isclose(log_snr, -2 * math.log(ratio))
    assert math.isclose(80 * edm.inverse(log_snr), ratio) and math.isclose(flow.inverse(log_snr), tau)
    assert abs(schedules.linear(1000)(t)[0] - alpha) < 1e-3  # the table of 1000 steps, at index 1000 t - 1
    lines.append(f"| {t:g} | {1000 * t - 1:.0f} | {beta:.2f} | {alpha:.4f} | {sigma:.4f} | {ratio:.4g} | {log_snr:.2f} "
                 f"| {tau:.4f} |")
Markdown("\n".join(lines))

# %% [markdown]
# They arrive at the same points. Only a solver's steps are spread differently. One trap is left: **who runs time backwards**.
#
# | | time | data at | noise at | its velocity is |
# |---|---|---|---|---|
# | DDPM, ADM, DiT | index $0 \dots 999$ | 0 | 999 | |
# | Song et al. 2021, this course | $t \in [0, 1]$ | 0 | 1 | $dx/dt = \alpha' x_0 + \sigma'\varepsilon$ |
# | EDM | $\sigma \in [0, 80]$ | 0 | 80 | $dx/d\sigma = \varepsilon$ |
# | Stable Diffusion 3 | $\tau \in [0, 1]$ | 0 | 1 | $dx/d\tau$, noise minus data |
# | Lipman et al. 2023, code of rectified flow and SiT | $\tau \in [0, 1]$ | **1** | **0** | $dx/d\tau$, **data minus noise** |
#
# To use a network of the last row here, flip the time *and* the sign. Do it for an exact one, and see what becomes of those who flip one. (Numbers: 1000 x energy distance to the data.)

# %%
def foreign(x, tau):
    """An exact rectified-flow network: time from noise (0) to data (1), returns data minus noise."""
    prediction = oracle.denoise(x, min(max(1 - tau, 1e-3), 0.999), flow)
    return prediction.x0 - prediction.eps


converted = {"time and sign flipped": lambda x, t: -foreign(x, 1 - t), "only the time": lambda x, t: foreign(x, 1 - t),
             "only the sign": lambda x, t: -foreign(x, t)}
steps_down, landed = torch.linspace(1, 0, 101).tolist(), {}
for name, u in converted.items():
    x = start
    for t, t_next in zip(steps_down, steps_down[1:]):
        x = x + (t_next - t) * u(x, t)
    landed[f"{name}: {energy_distance(x, truth):.1f}"] = (x, 0.0)
clouds(landed)

# %% [markdown]
# Flip only the time, and you walk away from the data (middle). Flip only the sign, and you walk towards them, but ask about another noise level. That looks almost right, which is worse.
#
# ## What the papers found, what you measured

# %%
sde, ode, _, _, true = (f"{sum(values) / len(values):.1f}" for values in result.values())
findings = [
    ("Langevin dynamics gets the weights of separated modes wrong; annealed, it gets them right "
     "(Song and Ermon 2019, sections 3.2 and 4)",
     f"true 60% / 30% / 10%; plain {percent(plain)}; annealed {percent(cooled)}"),
    ("SDE and probability-flow ODE have the same marginals (Song et al. 2021, 4.3)",
     f"1000 x energy distance, mean of {len(marks)} times: SDE {sde}, ODE {ode}, true samples {true}"),
    ("The ODE encodes data uniquely, and the code gives them back (Song et al. 2021, 4.3)",
     f"off by {trips[128]:.0e} (points, 128 steps) and {(returned - traced).abs().mean():.0e} (pictures, {n} steps)"),
    ("Its likelihood is exact; 2.99 bits per dimension on CIFAR-10 (Song et al. 2021, table 2)",
     f"off by {errors['end: exact density'][-1]:.0e} nats in {counts[-1]} steps, by "
     f"{errors['end: N(0, I)'][-1]:.0e} if the end is taken for unit noise"),
    ("Likelihood prefers simple pictures it never saw to the data (Nalisnick et al. 2019, for flows)",
     f"white square {middle[4]:.2f} bits per dimension, unseen emoji {middle[0]:.2f}"),
    ("VP and VE differ by a change of variables (Karras et al. 2022, section 2)",
     f"ends of their ODEs differ by {(arrived['linear'] - arrived['variance_exploding']).norm(dim=1).mean():.0e}"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. Another language (one line).** A network predicts $v = \alpha\varepsilon - \sigma x_0$ on a VP schedule. Return the score.

# %% tags=["exercise"] name="score_from_v"
def score_from_v(v, x_t, alpha, sigma):
    """The score at x_t from v; alpha and sigma are numbers with alpha^2 + sigma^2 = 1."""
    ...  # your code

# %% [markdown]
# Check it:

# %%
exercises.check_score_from_v(score_from_v)

# %% [markdown]
# **2. Half the dice.** Between ODE and SDE lies a whole family. Let the noise of the way back be $\lambda g$ instead of $g$. How strong must the pull of the score be, so that the marginals stay right? ($\lambda = 1$ and $0$ you know; the Fokker-Planck equation says what pull makes up for added noise.) Write one step from $t$ down to $t - h$.

# %% tags=["exercise"] name="family_step"
def family_step(x, score, t, h, z, schedule, lam):
    """x at t - h. score: the values (B, D) at x and t; z: unit noise (B, D); schedule.sde(t) gives (f, g^2)."""
    ...  # your code

# %% [markdown]
# Check it:

# %%
exercises.check_family_step(family_step)

# %% [markdown]
# **3. Hutchinson's trick.** Estimate the divergence of a velocity at each point with the given probes: the mean over the probes of $z \cdot Jz$. One call of `torch.autograd.grad` for each probe is enough, because $J^\top z$ is the gradient of $z\cdot u$. (Prepare $x$ as `velocity_and_divergence` does, and keep the graph for the next probe.)

# %% tags=["exercise"] name="divergence"
def divergence(velocity, x, probes):
    """velocity(x) -> (B, D) acts on each point alone; x (B, D); probes (K, B, D) of random signs. Returns (B,)."""
    ...  # your code

# %% [markdown]
# Check it against the full Jacobian:

# %%
exercises.check_divergence(divergence)

# %% [markdown]
# **A project: how many dice?** Put `family_step` into a loop. Plot the energy distance to the data over $\lambda$ from 0 to 2, for 10, 30, 100 and 300 steps. Then make the score 10 % too long. Which $\lambda$ is best when steps are few, and which when the score is wrong?
#
# ## What you learned
#
# The best guess of the noise is $-\sigma\,\nabla\log p_t$. Langevin dynamics samples with that alone, and gets frequencies wrong; noise connects the modes. $\alpha$ and $\sigma$ fix the SDE that makes the noise. Back leads an SDE with the full score, or an ODE with half of it: their crowds agree, their paths do not. The ODE encodes, decodes and gives exact likelihoods; likelihood is not familiarity. And $\varepsilon$, $x_0$, $v$, score and velocity are one vector in five languages. Check the direction of time first.
#
# ## Where to read on
#
# - Song and Ermon, *Generative modeling by estimating gradients of the data distribution*, 2019, arXiv 1907.05600.
# - Song et al., *Score-based generative modeling through stochastic differential equations*, 2021, arXiv 2011.13456: most of this notebook.
# - Vincent, *A connection between score matching and denoising autoencoders*, 2011; Anderson, *Reverse-time diffusion equation models*, 1982.
# - Chen et al., *Neural ordinary differential equations*, 2018; Grathwohl et al., *FFJORD*, 2019, arXiv 1810.01367.
# - Nalisnick et al., *Do deep generative models know what they don't know?*, 2019, arXiv 1810.09136.
# - Karras et al., *Elucidating the design space of diffusion-based generative models*, 2022, arXiv 2206.00364.
#
# Next comes notebook 05, *Samplers are integrators*: the same two equations, solved with fewer steps.
