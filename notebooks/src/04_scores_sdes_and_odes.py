# %% [markdown]
# # 04 Scores, SDEs and ODEs: one object, five names
#
# After this notebook you can read a trained denoiser as a score, turn it into a random walk or a smooth flow from noise to data, compute exact likelihoods with it, and translate between the dialects of the papers without a sign error.
#
# Run time: one to two minutes on two CPU cores; a GPU (a T4, say) helps only with the pictures. Nothing is trained, nothing is downloaded.
#
# You will
#
# - see what a network that guesses noise knows about the data,
# - sample with that knowledge alone, and catch the sampler lying about frequencies,
# - let noise grow in continuous time, and walk back in two ways,
# - find that the two ways agree on every crowd and on no single point,
# - compute the exact log-likelihood of a point, and of pictures, with a surprise,
# - build a table of conversions that checks itself.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## What does a network that guesses noise know?
#
# In [notebook 03](03_ddpm_in_a_hundred_lines.ipynb) a network guessed noise, and moons appeared. Other papers train networks to estimate a *score*, a *velocity*, a *denoised picture*; some samplers throw dice, some do not. It looks like five methods. It is one object under five names, and three Gaussian bumps in the plane, of unequal weight, prove it: for them everything can be computed.
#
# Put noise on such data, $x_t = \alpha x_0 + \sigma\varepsilon$, and each bump stays a Gaussian. Its centre moves to $\alpha\mu_k$, its covariance grows to $\alpha^2 C_k + \sigma^2 I$. So the density $p_t$ of noisy points is known at every time $t$. The **score** is the gradient of its logarithm, the direction in which points become more likely the fastest:
#
# $$s(x, t) = \nabla_x \log p_t(x) = -\sum_k r_k(x)\,(\alpha^2 C_k + \sigma^2 I)^{-1}(x - \alpha\mu_k),$$
#
# where $r_k(x)$ is the probability that $x$ belongs to bump $k$. Write both by hand. The times come from the schedule `vp`: DDPM's linear schedule with infinitely many steps, for which $\alpha^2 + \sigma^2 = 1$.

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
# The score weighs the three pulls by $r_k$, a softmax. Check it twice: against PyTorch's own gradient of `log_p`, and against the package, where such a data set with exact answers is called an **oracle**.

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
# With little noise each arrow points to the nearest bump, and says nothing about the others. With much noise all arrows point to one place. Remember this; it will decide everything.
#
# ## The noise guesser is the score
#
# What has this to do with guessing noise? The density of $x_t$ averages over all clean points, $p_t(x) = \int p(x_0)\,\mathcal N(x; \alpha x_0, \sigma^2 I)\,dx_0$. Take the gradient of a Gaussian, which is the Gaussian itself times $-(x - \alpha x_0)/\sigma^2$, and divide by $p_t(x)$. What remains is an average over those $x_0$ that could have led here:
#
# $$\nabla\log p_t(x) = \mathbb E\Big[-\frac{x - \alpha x_0}{\sigma^2}\,\Big|\,x_t = x\Big] = -\frac{\mathbb E[\varepsilon \mid x_t = x]}{\sigma}.$$
#
# The best guess of the noise, the one with the least squared error, is exactly this conditional mean. So every network of notebook 03 was a score network, up to the factor $-1/\sigma$. Solve for $x_0$ instead and you have **Tweedie's formula**, which notebook 03 used: $\mathbb E[x_0 \mid x_t] = (x_t + \sigma^2 s)/\alpha$. Test it by brute force. Draw 400,000 clean points, weigh each by how well it explains $x_t$, and average their noises.

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
# Can you sample from $p$ knowing only its score? Climbing along the arrows is not enough: all points would end on three peaks. **Langevin dynamics** climbs and shakes,
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
num, many = (3000, 2000) if run.tier != "smoke" else (500, 100)
start = 1.3 * torch.randn(num, 2, dtype=torch.float64)
plain = langevin(lambda x: score(x, 0.0), start, 0.004, many)
print("share of each bump:   true", [round(w, 2) for w in weights.tolist()])
for name, x in {"at the start": start, f"after {many} steps": plain}.items():
    print(f"{name:>26}", [round(s, 2) for s in shares(x).tolist()])
other, near = Mixture([0.01, 0.01, 0.98], means, covariances), means + 0.3 * torch.randn(3, 2, dtype=torch.float64)
difference = (other.score(near, 0.0, vp) - score(near, 0.0)).abs().max().item()
print(f"with weights 1, 1 and 98 % the score near the bumps would change by {difference:.0e}")

# %% [markdown]
# Thousands of steps, the exact score, and the frequencies are wrong: about a third each, instead of 60, 30 and 10 %. Each point is captured by the bump near its start, and an empty valley is crossed once in ages. Looking harder does not help: change the weights altogether, and near a bump the score stays the same (last line).
#
# At low noise the score does not hold the weights anywhere that points go. At high noise it does, since the bumps overlap. So start with much noise, where points move freely, and lower it slowly, with some Langevin steps at each level. This is **annealed Langevin dynamics** (Song and Ermon 2019). They used $\alpha = 1$, with $\sigma$ falling geometrically: a *variance exploding* (VE) schedule.

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


levels = torch.linspace(1.0, 0.3, 30 if run.tier != "smoke" else 6).tolist()
cooled = annealed(score, ve, 20 * start, levels, 100 if run.tier != "smoke" else 5)
kinds = {"start": start, "Langevin": plain, "annealed": cooled}
clouds({f"{k}: {', '.join(f'{s:.0%}' for s in shares(x).tolist())}": (x, 0.0) for k, x in kinds.items()})

# %% [markdown]
# The numbers are the shares of the bumps at lower left, right and top. Plain Langevin fills each bump well, and gets each frequency wrong. Annealed, the shares come out close to 60, 30 and 10 %. Noise is no nuisance here. It is how distant modes learn of each other.
#
# ## Noise in continuous time
#
# Annealing has two knobs at each level, step size and number of steps, and no theory for either. Continuous time removes both. Let the noise level change a little in each step of length $dt$, and write that step as a **stochastic differential equation** (SDE):
#
# $$dx = f(t)\,x\,dt + g(t)\,dw \qquad\text{means}\qquad x \leftarrow x + f x\,dt + g\sqrt{dt}\;z.$$
#
# Note the root. Variances of independent kicks add: $1/dt$ kicks of variance $g^2 dt$ make $g^2$ in a unit of time, however small $dt$ is. With $dt$ in place of $\sqrt{dt}$, noise would vanish as steps get finer.
#
# Which $f$ and $g$ give a wanted $\alpha(t)$ and $\sigma(t)$? In one step the mean is multiplied by $1 + f\,dt$, so $\alpha' = f\alpha$. The variance is multiplied by $(1 + f\,dt)^2$ and gains $g^2 dt$, so $(\sigma^2)' = 2f\sigma^2 + g^2$. Hence
#
# $$f = \frac{\alpha'}{\alpha}, \qquad g^2 = (\sigma^2)' - 2f\sigma^2.$$
#
# For DDPM's schedule this is $f = -\beta(t)/2$ and $g^2 = \beta(t)$ with $\beta(t) = 0.1 + 19.9\,t$, the **variance preserving** (VP) SDE. For VE it is $f = 0$ and $g^2 = 2\sigma^2\ln(\sigma_\text{max}/\sigma_\text{min})$. Check both against the package. Then let 4,000 copies of one point go, and compare their mean and spread with $\alpha$ and $\sigma$.

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
        f, g2 = sde((k + 0.5) / steps)
        x = x + f * x / steps + math.sqrt(g2 / steps) * torch.randn_like(x)
        walks[name].append(x[:8, 0])  # the first coordinate of 8 walkers
        if (k + 1) % (steps // 2) == 0:
            alpha, sigma = processes[name]((k + 1) / steps)
            print(f"{name}, t = {(k + 1) / steps}: mean {x[:, 0].mean():6.3f} (alpha x0 = {alpha * means[1, 0]:.3f}), "
                  f"standard deviation {x[:, 0].std():.3f} (sigma = {sigma:.3f})")
            assert abs(x[:, 0].std() / sigma - 1) < 0.05

# %% [markdown]
# (The mean of a VE cloud of width 20 is uncertain by $20/\sqrt{4000} \approx 0.3$.) Draw some of the walks, in a band of $\alpha x_0 \pm 2\sigma$.

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
# You know how $x$ got from $t - h$ to $t$. Where did it come from? Bayes' rule for one short step: the earlier point $y = x + d$ was likely beforehand, and must have led to $x$:
#
# $$\log p(y \mid x) = \underbrace{\log p(x) + d\cdot s(x)}_{\approx\,\log p(y)} - \frac{\lVert d + f x\,h\rVert^2}{2 g^2 h} + \text{const}.$$
#
# This is quadratic in $d$, so it is a Gaussian. Complete the square: its mean is $d = -(f x - g^2 s)\,h$, its variance $g^2 h$. So the way back is an SDE of the same kind, with the score as the only new thing (Anderson 1982),
#
# $$dx = \big[f x - g^2\, s(x, t)\big]\,dt + g\,d\bar w, \qquad dt < 0.$$
#
# Stepping along it is called **Euler-Maruyama**. The function below has two knobs that you need soon: `pull` multiplies the score, `kick` the noise. The reverse SDE has both at 1.

# %%
def walk(score, schedule, x, times, pull=1.0, kick=1.0, noise=torch.randn_like):
    """From times[0] down to times[-1]; yields x at every time, the first included."""
    yield x
    for t, s in zip(times, times[1:]):
        (f, g2), h = schedule.sde(t), t - s
        x = x - (f * x - pull * g2 * score(x, t)) * h
        if kick:
            x = x + kick * math.sqrt(g2 * h) * noise(x)
        yield x


steps = 500 if run.tier != "smoke" else 50
times = minidiff.spacing(vp, steps, t_end=1e-3)  # evenly spaced from 1 to 0.001
torch.manual_seed(run.seed)
start = torch.randn(num, 2, dtype=torch.float64)
sde_path = list(walk(score, vp, start, times))
clouds({f"t = {times[k]:.2g}": (sde_path[k], times[k]) for k in (0, steps * 7 // 10, steps * 17 // 20, steps)})

# %% [markdown]
# Dots come from the walk, the blue ground from the formula; they agree at every time. Compare with the package, given the same noise. And *measure* agreement by notebook 03's energy distance between clouds, which is zero exactly for equal distributions; what two clouds of true samples score is the floor.

# %%
def energy_distance(a, b):
    def mean(u, v):
        return torch.cdist(u, v).mean()
    return 1000 * (2 * mean(a, b) - mean(a, a) - mean(b, b)).item()


def recorded(kicks):
    drawn = iter(kicks)
    return lambda x: next(drawn)


kicks = torch.randn(steps, num, 2, dtype=torch.float64)
mine = list(walk(score, vp, start, times, noise=recorded(kicks)))
theirs = samplers.euler_maruyama(oracle.denoiser(vp), vp, start, times, recorded(kicks))
for x, step in zip(mine[1:], theirs):
    assert torch.allclose(x, step.x, atol=1e-6)
truth = oracle.sample(num, generator)
print(f"equal to the package's in all {steps} steps; 1000 x energy distance to the data: "
      f"{energy_distance(mine[-1], truth):.2f} (true samples: {energy_distance(oracle.sample(num, generator), truth):.2f})")

# %% [markdown]
# ## The way back, without dice
#
# Now forget single points and look at the crowd. Its density changes for two reasons: points drift, and noise smears them. The balance is the Fokker-Planck equation,
#
# $$\frac{\partial p}{\partial t} = -\nabla\cdot(f x\,p) + \tfrac12 g^2\,\nabla\cdot\nabla p = -\nabla\cdot\Big(\big[f x - \tfrac12 g^2\,\nabla\log p\big]\,p\Big).$$
#
# The second form only uses $\nabla p = p\,\nabla\log p$. But read it: it is the balance of a crowd that drifts with the velocity in brackets, and *has no noise at all*. To the crowd, smearing is the same as everyone walking down the density at a speed of $\tfrac12 g^2$ times the slope of its logarithm. So the **probability-flow ODE** (Song et al. 2021),
#
# $$\frac{dx}{dt} = f x - \tfrac12 g^2\, s(x, t),$$
#
# has the same densities at all times, forwards and backwards. In `walk` it has `pull` one half and `kick` zero. Written with $x_0 = (x + \sigma^2 s)/\alpha$ and $\varepsilon = -\sigma s$ it is even simpler: $dx/dt = \alpha' \hat x_0 + \sigma' \hat\varepsilon$, the best guess of the velocity of $\alpha x_0 + \sigma\varepsilon$.

# %%
for schedule in (vp, ve):
    for t in (0.1, 0.5, 0.9):
        (alpha, sigma), (alpha_rate, sigma_rate), (f, g2) = schedule(t), schedule.rates(t), schedule.sde(t)
        s = score(start, t, schedule)
        guess = alpha_rate * (start + sigma**2 * s) / alpha + sigma_rate * (-sigma * s)
        assert torch.allclose(f * start - g2 / 2 * s, guess, rtol=1e-9, atol=1e-9)
ode_path = list(walk(score, vp, start, times, pull=0.5, kick=0.0))
theirs = samplers.euler(oracle.denoiser(vp), vp, start, times)
for x, step in zip(ode_path[1:], theirs):
    assert torch.allclose(x, step.x, atol=1e-6)
print("f x - g^2 score / 2 = alpha' x0 + sigma' eps, and your walk is the package's Euler sampler")

# %% [markdown]
# Let both start from the same noise and follow the first coordinate through time. Behind them is the exact density of that coordinate. In a live notebook, try few steps, and VE (drawn in units in which its total variance stays the same).

# %%
@plots.quiet
def draw_paths(process="VP", steps=100, seed=0):
    torch.manual_seed(seed)
    schedule = processes[process]
    times = minidiff.spacing(schedule, steps, t_end=1e-3)
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
        axes.contourf(torch.linspace(1, 0, len(image)), at[:, 0], torch.stack(image, 1) ** 0.5, 9, cmap="Blues", vmax=1.4)
        bound = walk(lambda x, t: score(x, t, schedule), schedule, noise, times, *knobs)
        path = torch.stack([c * x[:, 0] for c, x in zip(scale, bound)])
        axes.plot(times, path, linestyle="-", linewidth=1)
        axes.set(xlim=(1, 0), ylim=(-2.8, 2.8), xlabel="t, from noise to data",
                 ylabel="first coordinate", title=f"{title}, {process}")
    return figure


widgets.explore(draw_paths, process=["VP", "VE"], steps=[10, 30, 100, 300], seed=range(5))

# %% [markdown]
# The same crowds, other lives. A path on the left and one on the right of the same colour have the same start, and nothing else in common. SDE paths jitter, and change their minds until late. ODE paths are smooth. (They never meet. Where two seem to cross, they differ in the coordinate you do not see.) Is it really the same distribution? Measure it at several times, with two common mistakes beside them: the ODE with the SDE's full score, and the SDE with the ODE's half.

# %%
knobs = {"SDE: pull 1, kick 1": (1, 1), "ODE: pull 1/2, kick 0": (0.5, 0),
         "mistake: pull 1, kick 0": (1, 0), "mistake: pull 1/2, kick 1": (0.5, 1)}
marks, result = [steps * k // 10 for k in (2, 4, 6, 7, 8, 9, 10)], {}


def fresh(t):
    alpha, sigma = vp(t)
    x0 = oracle.sample(min(num, 2000), generator)
    return alpha * x0 + sigma * torch.randn(x0.shape, dtype=x0.dtype, generator=generator)


def far(x, t):  # the mean over three fresh clouds
    return sum(energy_distance(x[:2000], fresh(t)) for _ in range(3)) / 3


for name, (pull, kick) in knobs.items():
    path = list(walk(score, vp, start, times, pull, kick))
    result[name] = [far(path[k], times[k]) for k in marks]
result["true samples"] = [far(fresh(times[k]), times[k]) for k in marks]
plots.lines({name: ([times[k] for k in marks], r) for name, r in result.items()}, x="t (1 is noise, 0 is data)",
            y="1000 x energy distance", log="y")

# %% [markdown]
# SDE and ODE stay at the floor, which is not zero because clouds are finite. Each mistake ends hundreds of times above it. If your samples are too tight or too loose, look for a factor of one half first.
#
# ## Noise as an address
#
# One difference is left, and it is large. An ODE has one path through each point, so it maps noises to data one to one. Colour each starting noise by the bump that its walk ends in:

# %%
@plots.quiet
def fates(panels):
    figure, row = plt.subplots(1, 2, figsize=(6.8, 3.6), sharey=True)
    for axes, (title, end) in zip(row, panels.items()):
        owner = components(end, 1.0, 0.0)[0].argmax(1)
        for k, name in enumerate(("lower left", "right", "top")):
            axes.plot(*start[:1500][owner[:1500] == k].T, ".", color=plots.COLORS[k], markersize=3, label=name)
        axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", title=title, xlabel="noise, first coordinate")
    row[0].set_ylabel("second coordinate")
    handles = row[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, markerscale=3, title="ends in the bump at ...")
    return figure


fates({"ODE: the start decides": ode_path[-1], "SDE: the dice decide": sde_path[-1]})

# %% [markdown]
# For the ODE the noise is an address, in countries that hold 60, 30 and 10 % of all noise. For the SDE the start means nothing. So only the ODE lets you *encode*: run time upwards from a point to its noise, and down again to the point. The package's `heun` averages two velocities in each step, and errs far less than Euler; notebook 05 is about such things. Watch the error of the round trip fall.

# %%
def drive(x, times, schedule=vp, denoise=oracle.denoiser):
    """The probability-flow ODE along `times`, up or down, by Heun's method."""
    for step in samplers.heun(denoise(schedule), schedule, x, times):
        x = step.x
    return x


trips = {}
for n in (8, 16, 32, 64, 128):
    down = minidiff.spacing(vp, n, t_end=1e-3)
    address = drive(truth[:500], down[::-1])
    trips[n] = (drive(address, down) - truth[:500]).norm(dim=1).mean().item()
    print(f"{n:4} steps each way: mean error {trips[n]:.1e}; codes have mean {address.mean():+.2f}, "
          f"standard deviation {address.std():.2f}")
assert trips[128] < 1e-2

# %% [markdown]
# ## Exact likelihood
#
# A one-to-one map carries probability with it, and gives back a density that DDPM could only bound ([notebook 02](02_from_likelihood_to_a_squared_error.ipynb)). Where the flow spreads points apart, density falls; the rate is the divergence of the velocity $u$:
#
# $$\frac{d}{dt}\log p_t(x_t) = -\nabla\cdot u(x_t, t) \qquad\Longrightarrow\qquad \log p_0(x_0) = \log p_1(x_1) + \int_0^1 \nabla\cdot u(x_t, t)\,dt.$$
#
# So follow a point to its noise and add up the divergence on the way. In two dimensions the divergence is two entries of the Jacobian, one backward pass each. (With $D$ pixels that would be $D$ passes. **Hutchinson's trick** needs one: for random signs $z$ the mean of $z\cdot Jz$ is the trace. Exercise 3.)

# %%
def velocity_and_divergence(x, t, schedule=vp):
    x = x.detach().requires_grad_()
    f, g2 = schedule.sde(t)
    u = f * x - g2 / 2 * score(x, t, schedule)
    parts = [torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)]
    return u.detach(), sum(parts)


def log_likelihood(x, times, schedule=vp, log_end=None):
    """log p at times[0] of points x (N, 2); times rise to 1. log_end: density there, N(0, I) if not given."""
    gained = 0.0
    for t, s in zip(times, times[1:]):
        u, spread = velocity_and_divergence(x, t, schedule)
        u_next, spread_next = velocity_and_divergence(x + (s - t) * u, s, schedule)
        x, gained = x + (s - t) * (u + u_next) / 2, gained + (s - t) * (spread + spread_next) / 2
    end = -x.square().sum(1) / 2 - math.log(2 * math.pi) if log_end is None else log_end(x)
    return end + gained

# %% [markdown]
# The truth is known, so compare. One curve assumes, as everybody must with real data, that at $t = 1$ there is nothing left but unit noise. The other takes the exact density there. The package's `log_likelihood` is measured, too; it takes any denoiser, and the exact trace or Hutchinson's.

# %%
from minidiff.likelihood import bits_per_dim, dequantize, log_likelihood as package_likelihood

points, errors = truth[:200], {"end: N(0, I)": [], "end: exact density": []}
counts = [10, 20, 40, 80, 160, 320] if run.tier != "smoke" else [10, 20, 40]
for n in counts:
    rising = minidiff.spacing(vp, n, t_end=1e-3)[::-1]
    for name, end in zip(errors, (None, lambda x: log_p(x, 1.0))):
        wrong_by = log_likelihood(points, rising, log_end=end) - log_p(points, 1e-3)
        errors[name].append(wrong_by.abs().mean().item())
options = {"steps": 60 if run.tier != "smoke" else 20, "t_start": 1e-3, "prior": lambda x: log_p(x, 1.0)}
alpha = vp(1e-3)[0]
exact = log_p(alpha * points, 1e-3) + 2 * math.log(alpha)  # the package asks for x0, where x_t = alpha x0
for trace, probes in {"exact": 1, "hutchinson": 16}.items():
    nats = package_likelihood(oracle.denoiser(vp), vp, points, trace=trace, probes=probes, generator=generator, **options)
    print(f"package, {trace} trace: mean error {(nats - exact).abs().mean():.1e} nats")
plots.lines({name: (counts, e) for name, e in errors.items()}, x="steps of Heun's method",
            y="mean error of log p, nats", log="xy")

# %% [markdown]
# With the exact end the error falls as $1/n^2$, as Heun's should. With unit noise it stops falling: $\alpha(1)$ is 0.0066 and not 0, so a trace of the data's mean is left at $t = 1$. *Exact* likelihood means: exact but for that and the solver. Sixteen random probes cost a tenth of a nat for a point; over the many pixels of a picture such noise averages out.
#
# ## None of this was about toys
#
# Nothing above asked where the score came from. So hand `walk` the score of a trained network, and see whether its ODE and its SDE behave alike. Take `emoji-unet` and emoji that it has never seen. Encode each by the ODE, decode the code by the ODE, and decode it twice by the SDE.

# %%
emoji_unet = minidiff.load("emoji-unet", run.device)
unseen = minidiff.load_dataset("emoji", size=16, split="test").images()[[5, 41, 77, 113, 149, 185, 221]].to(run.device)


def bound(x_t, t):  # without a label: the network's own "nothing"
    y = emoji_unet.network.null(torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device))
    return emoji_unet.denoise(x_t, t, y)


n, cosine = (100, emoji_unet.schedule) if run.tier != "smoke" else (6, emoji_unet.schedule)
down = torch.linspace(0.98, 0.005, n + 1).tolist()
codes = drive(unseen, down[::-1], cosine, lambda schedule: bound)
returned = drive(codes, down, cosine, lambda schedule: bound)
print(f"mean error of a channel after the round trip: {(returned - unseen).abs().mean():.4f}; "
      f"standard deviation of the codes: {codes.std():.2f}")
rows = {"unseen picture": unseen, "its code": codes / 2, "ODE back": returned}
torch.manual_seed(run.seed)
for name in ("SDE back", "SDE again"):
    with torch.no_grad():
        *_, rows[name] = walk(lambda x, t: bound(x, t).score, cosine, codes, torch.linspace(0.98, 0.005, 3 * n).tolist())
frames = torch.stack([torch.nn.functional.pad(x.cpu(), (1, 1, 1, 1), value=0.6) for x in rows.values()], dim=1)
plots.filmstrip(frames, rows=list(rows))

# %% [markdown]
# The code looks like noise, but is a faithful file: the ODE reads the picture back from it, though the network never saw that picture. The SDE starts from the same code and draws something else, twice. (Look at the codes again: outlines shine through, and their standard deviation is below 1. Pictures that the model might have drawn itself would give perfect noise. These it never saw, and it shows.)
#
# Now the likelihood, by Hutchinson's trick. Before you look: which should the model find likely? Emoji, emoji upside down, with shuffled pixels, random pixels, an empty white square, a grey one? The unit is bits per dimension, as in notebook 02: fewer bits, more likely. (Pictures get the usual uniform noise within a grey level, and the likelihood is that at $t = 0.005$: at 0, pictures have no density.)

# %%
probe = torch.Generator().manual_seed(run.seed)
shuffled = unseen.flatten(2)[..., torch.randperm(256, generator=probe)].view_as(unseen)
square = torch.ones_like(unseen[:3])
crowd = {"emoji, unseen": unseen, "upside down": unseen.flip(2), "pixels shuffled": shuffled,
         "random pixels": 2 * torch.rand(3, 3, 16, 16, generator=probe).to(run.device) - 1,
         "white square": square, "grey square": 0 * square}
found = {}
for name, images in crowd.items():
    nats = package_likelihood(bound, cosine, dequantize(images, probe), steps=25 if run.tier != "smoke" else 2,
                              t_start=0.005, generator=probe)
    found[name] = bits_per_dim(nats, images.shape[1:])
middle, deviation = ([f(bits).item() for bits in found.values()] for f in (torch.mean, torch.std))
plots.bars(list(found), middle, deviation, x="bits per dimension, mean ± standard deviation over pictures")

# %% [markdown]
# Likelihood knows that shuffled pixels are absurd, and gives random ones more than the 8 bits that storing them takes. It hardly minds emoji upside down. And it prefers an empty square, even a grey one, to any emoji. This is no error of the computation. A density is not a probability: the empty square sits on a high but thin peak in 768 dimensions, and the emoji together fill far more volume. Never use likelihood alone to tell familiar from foreign.
#
# ## Five names
#
# Time for the dictionary. At a point $x_t$ with known $\alpha$ and $\sigma$, each of the five quantities determines all others. Here $\alpha'$ and $\sigma'$ are derivatives with respect to $t$, $\Delta = \alpha\sigma' - \alpha'\sigma$, and the velocity is that of the ODE. Each row of the table has been run on 1,000 points, from the oracle's answer in that language to $x_0$ and $\varepsilon$, which must be the same for all.

# %%
from IPython.display import Markdown

t, x = 0.4, 1.5 * torch.randn(1000, 2, dtype=torch.float64)
(a, s), (da, ds), exact = vp(t), vp.rates(t), oracle.denoise(x, t, vp)  # alpha, sigma; their rates; the oracle
x0, eps, det = exact.x0, exact.eps, a * ds - s * da
language = {  # name: (the network's answer, (x0, eps) from it, as formulas, and the package's name of it)
    r"noise $\varepsilon$": (eps, lambda o: ((x - s * o) / a, o), r"$(x_t-\sigma\varepsilon)/\alpha$ | $\varepsilon$", "eps"),
    r"data $x_0$": (x0, lambda o: (o, (x - a * o) / s), r"$x_0$ | $(x_t-\alpha x_0)/\sigma$", "x0"),
    r"$v = \alpha\varepsilon - \sigma x_0$": (a * eps - s * x0, lambda o: (a * x - s * o, s * x + a * o),
        r"$\alpha x_t-\sigma v$ (VP) | $\sigma x_t+\alpha v$ (VP)", "v"),
    r"score $s$": (score(x, t), lambda o: ((x + s**2 * o) / a, -s * o), r"$(x_t+\sigma^2 s)/\alpha$ | $-\sigma s$", "score"),
    r"velocity $u = \alpha' x_0 + \sigma'\varepsilon$": (da * x0 + ds * eps, lambda o: ((ds * x - s * o) / det,
        (a * o - da * x) / det), r"$(\sigma' x_t-\sigma u)/\Delta$ | $(\alpha u-\alpha' x_t)/\Delta$", None),
}
lines = ["| the network returns | $x_0$ from it | $\\varepsilon$ from it | largest error |", "|---|---|---|---|"]
for name, (answer, read, formulas, kind) in language.items():
    error = max((mine - exact).abs().max().item() for mine, exact in zip(read(answer), (x0, eps)))
    lines.append(f"| {name} | {formulas} | {error:.0e} |")
    package = kind and minidiff.Prediction(kind, x, answer, a, s)
    assert error < 1e-10 and (not kind or torch.allclose(package.x0, x0) and torch.allclose(package.eps, eps))
Markdown("\n".join(lines))

# %% [markdown]
# Papers also name *time* differently. What all mean is the ratio $\sigma/\alpha$. EDM (Karras et al. 2022) uses it directly, as its $\sigma$. Others use its logarithm: $\text{log-SNR} = -2\ln(\sigma/\alpha)$. Flow matching uses $\tau = \sigma/(\alpha + \sigma)$. Each row below is one state of the same noisy picture.

# %%
lines = ["| $t$ of VP | DDPM's index | $\\beta(t)$ | $\\alpha$ | $\\sigma$ | $\\sigma/\\alpha$ (EDM) | log-SNR | flow time |",
         "|---|---|---|---|---|---|---|---|"]
edm, flow = schedules.edm(), schedules.flow()
for t in (0.01, 0.1, 0.25, 0.5, 0.75, 1.0):
    (a, s), log_snr = vp(t), vp.log_snr(t)
    beta = -2 * vp.rates(t)[0] / a
    assert math.isclose(beta, 0.1 + 19.9 * t) and math.isclose(vp.inverse(log_snr), t)
    assert math.isclose(80 * edm.inverse(log_snr), s / a) and math.isclose(flow.inverse(log_snr), s / (a + s))
    assert abs(schedules.linear(1000)(t)[0] - a) < 1e-3  # the table of 1000 steps, at index 1000 t - 1
    lines.append(f"| {t:g} | {1000 * t - 1:.0f} | {beta:.3g} | {a:.4f} | {s:.4f} | {s / a:.4g} | {log_snr:.2f} "
                 f"| {s / (a + s):.4f} |")
Markdown("\n".join(lines))

# %% [markdown]
# If it is all the same picture at another contrast, then VP, VE and flow matching must have the same ODE, in other units. Test it: take one cloud at $t = 0.9$, translate it into each dialect, drive it down with 100 steps in that dialect's own time, and translate back.

# %%
log_snrs, arrived = (vp.log_snr(0.9), vp.log_snr(1e-3)), {}
for schedule in (vp, ve, flow):
    first, last = (schedule.inverse(value) for value in log_snrs)
    there = torch.linspace(first, last, 101 if run.tier != "smoke" else 21, dtype=torch.float64).tolist()
    x = start / vp(0.9)[0] * schedule(first)[0]  # the same contrast-free picture x / alpha
    arrived[schedule.name] = drive(x, there, schedule) / schedule(last)[0]
for name in ("variance_exploding", "flow"):
    gap = (arrived[name] - arrived["linear"]).norm(dim=1).mean().item()
    print(f"{name}: mean distance from where VP arrives {gap:.1e}")
    assert gap < (0.01 if run.tier != "smoke" else 0.2)

# %% [markdown]
# What differs is only how a solver's steps are spread (notebooks 05 and 06). One trap is left: **who runs time backwards**.
#
# | | time | data at | noise at | its velocity is |
# |---|---|---|---|---|
# | DDPM, ADM, DiT | index $0 \dots 999$ | 0 | 999 | |
# | Song et al. 2021, this course | $t \in [0, 1]$ | 0 | 1 | $dx/dt = \alpha' x_0 + \sigma'\varepsilon$ |
# | EDM | $\sigma \in [80, 0]$ | 0 | 80 | $dx/d\sigma = \varepsilon$ |
# | rectified flow (code of Liu et al.), SiT's code | $\tau \in [0, 1]$ | **1** | **0** | $dx/d\tau$, **data minus noise** |
# | flow matching (Lipman et al. 2023) | $\tau \in [0, 1]$ | **1** | **0** | $dx/d\tau$, **data minus noise** |
# | Stable Diffusion 3 | $\tau \in [0, 1]$ | 0 | 1 | $dx/d\tau$, noise minus data |
#
# To use such a network here, flip the time *and* the sign. Do it for an exact network of that kind, and see what becomes of those who flip one.

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
    for t, s in zip(steps_down, steps_down[1:]):
        x = x + (s - t) * u(x, t)
    landed[f"{name}: {energy_distance(x, truth):.1f}"] = (x, 0.0)
clouds(landed)

# %% [markdown]
# The number above each panel is 1000 times the energy distance to the data.
#
# ## What the papers found, what you measured

# %%
def percent(x):
    return " / ".join(f"{s:.0%}" for s in shares(x).tolist())


sde, ode, _, _, true = (f"{values[-1]:.1f}" for values in result.values())
findings = [
    ("Langevin dynamics gets the weights of separated modes wrong; annealed, it gets them right "
     "(Song and Ermon 2019, sections 3.2 and 4)",
     f"true 60% / 30% / 10%; plain {percent(plain)}; annealed {percent(cooled)}"),
    ("SDE and probability-flow ODE have the same marginals (Song et al. 2021, 4.3)",
     f"energy distance x 1000: SDE {sde}, ODE {ode}, true samples {true}"),
    ("The ODE encodes data uniquely, and the code gives them back (Song et al. 2021, 4.3)",
     f"round trip in 128 steps: points off by {trips[128]:.0e}, pictures in {n} by {(returned - unseen).abs().mean():.0e}"),
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
# The check has its own $x_0$ and $\varepsilon$.

# %%
exercises.check_score_from_v(score_from_v)

# %% [markdown]
# **2. Half the dice.** Between ODE and SDE lies a whole family. Let the noise of the way back be $\lambda g$ instead of $g$. How strong must the pull of the score be, so that the marginals stay right? ($\lambda = 1$ and $\lambda = 0$ you know; think of variances, not of standard deviations.) Write one step from $t$ down to $t - h$.

# %% tags=["exercise"] name="family_step"
def family_step(x, score, t, h, z, schedule, lam):
    """x at t - h. score: the values (B, D) at x and t; z: unit noise (B, D); schedule.sde(t) gives (f, g^2)."""
    ...  # your code

# %% [markdown]
# The check knows $\lambda = 0$ and $1$, and what lies between.

# %%
exercises.check_family_step(family_step)

# %% [markdown]
# **3. Hutchinson's trick.** Estimate the divergence of a velocity at each point with the given probes: the mean over the probes of $z \cdot Jz$, where $J_{ij} = \partial u_i/\partial x_j$. One call of `torch.autograd.grad` for each probe is enough, because $z^\top J$ is the gradient of $z\cdot u$.

# %% tags=["exercise"] name="divergence"
def divergence(velocity, x, probes):
    """velocity(x) -> (B, D) acts on each point alone; x (B, D); probes (K, B, D) of random signs. Returns (B,)."""
    ...  # your code

# %% [markdown]
# The check compares with the full Jacobian.

# %%
exercises.check_divergence(divergence)

# %% [markdown]
# **A project: how many dice?** Put `family_step` into a loop. Plot the energy distance to the data over $\lambda$ from 0 to 2, for 10, 30, 100 and 300 steps. Then make the score slightly wrong, say 10 % too long or with a constant added. A perfect score and many steps do not care about $\lambda$. Which $\lambda$ is best when steps are few, and which when the score is wrong?
#
# ## What you learned
#
# - The score is the gradient of $\log p_t$. The best guess of the noise is $-\sigma$ times it, so every denoiser is a score network.
# - Langevin dynamics samples with a score alone, and gets frequencies wrong where valleys are empty; noise connects the modes.
# - $f = \alpha'/\alpha$ and $g^2 = (\sigma^2)' - 2f\sigma^2$ turn a schedule into an SDE; noise enters with $\sqrt{dt}$.
# - Backwards there is an SDE with the full score, and an ODE with half of it. Their crowds agree, their paths do not.
# - The ODE encodes, decodes and gives exact likelihoods; likelihood is not familiarity.
# - $\varepsilon$, $x_0$, $v$, score and velocity are one vector in five languages, and all schedules are one clock in several units. Check the direction of time first.
#
# ## Where to read on
#
# - Song and Ermon, *Generative modeling by estimating gradients of the data distribution*, 2019, arXiv 1907.05600: annealed Langevin dynamics.
# - Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, *Score-based generative modeling through stochastic differential equations*, 2021, arXiv 2011.13456: all of this notebook.
# - Vincent, *A connection between score matching and denoising autoencoders*, 2011; Anderson, *Reverse-time diffusion equation models*, 1982.
# - Chen et al., *Neural ordinary differential equations*, 2018, arXiv 1806.07366; Grathwohl et al., *FFJORD*, 2019, arXiv 1810.01367: likelihoods by flows.
# - Nalisnick et al., *Do deep generative models know what they don't know?*, 2019, arXiv 1810.09136.
# - Karras et al., *Elucidating the design space of diffusion-based generative models*, 2022, arXiv 2206.00364: the units put in order.
#
# Next comes notebook 05, *Samplers are integrators*: the same two equations, solved with fewer steps.
