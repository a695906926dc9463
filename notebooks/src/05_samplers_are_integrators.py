# %% [markdown]
# # 05 Samplers are integrators
#
# After this notebook you can write the samplers that everyone uses, measure how fast each converges, say why a sampler fails when it fails, and choose one with a reason.
#
# Run time: about two minutes on two CPU cores; a GPU (a T4, say) helps only with the pictures. Nothing is trained, nothing is downloaded.
#
# You will
#
# - measure the error of a sampler against its cost, on data whose exact answer is known,
# - find that the better method can be the worse one,
# - derive DDIM from a trick of 1960 and write DPM-Solver++ in fifteen lines,
# - see a grid of times ruin a good method, and the last step blur or roughen what all others made,
# - solve a small mystery on a trained model,
# - learn which mistakes noise repairs, and which it makes worse.

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## What does a picture cost?
#
# [Notebook 04](04_scores_sdes_and_odes.ipynb) ended with an equation. The probability-flow ODE
#
# $$\frac{dx}{dt} = \alpha'(t)\,\hat x_0(x, t) + \sigma'(t)\,\hat\varepsilon(x, t)$$
#
# carries each noise to one picture. Nobody can solve it exactly. A sampler walks along it in finite steps, and each look at the right side runs the network once. This is an **evaluation**, and it is all that costs. So how close to the true solution does a sampler get with a given number of evaluations?
#
# On pictures the true solution is unknown. Begin with data where it can be had: a mixture of three Gaussians in the plane, whose $\hat x_0$ is known exactly (an *oracle*). There are 64 starting noises, and the way goes from $t = 1$ to $t = 0.01$. Why not to 0, you will see.

# %%
import torch
from minidiff import samplers, schedules, spacing

oracle = minidiff.load_dataset("mixture").mixture.oracle
vp = schedules.linear(steps=None)  # vp(t) -> (alpha, sigma), DDPM's schedule in continuous time
denoise = oracle.denoiser(vp)  # denoise(x, t).x0 and .eps, exact
start = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(run.seed))
END, COST = 0.01, {"heun": 2, "churn": 2}  # evaluations a step, where it is not 1


def solve(sampler, evaluations, grid="log_snr", t_end=END, denoise=denoise, schedule=vp, x=start, noise=None, **options):
    """x at t_end, by a sampler of the package with at most so many evaluations."""
    steps = evaluations // COST.get(sampler, 1) if t_end else -(-evaluations // COST.get(sampler, 1))
    counting = samplers.counted(denoise)
    times = spacing(schedule, steps, grid, t_end=t_end)
    for step in samplers.SAMPLERS[sampler](counting, schedule, x, times, noise or torch.zeros_like, **options):
        x = step.x
    assert counting.evaluations <= evaluations
    return x


fine = 4000 if run.tier != "smoke" else 300
exact = solve("dpmpp_3m", fine, taylor=True)

print(f"two samplers with {fine:,} evaluations differ by {(solve('heun', fine) - exact).norm(dim=1).median():.0e}")

# %% [markdown]
# ## Euler and Heun
#
# The oldest integrator is **Euler's**: look at the slope here, and walk along it. A step of length $h$ gives $x + h\,x'$, where Taylor's series has $x + h\,x' + \tfrac12 h^2 x'' + \dots$ So each step errs by about $h^2$. There are $1/h$ steps, and the errors add up to about $h$: halve the steps, halve the error. Euler's method has **order one**.
#
# **Heun's** method takes Euler's step on trial, looks at the slope there as well, and walks along the mean of both. The mean slope contains $\tfrac12 h\,x''$, so the $h^2$ term is right, and the total error falls as $h^2$: order two. But it costs two evaluations a step.

# %%
def velocity(x, t):
    (alpha_rate, sigma_rate), guess = vp.rates(t), denoise(x, t)
    return alpha_rate * guess.x0 + sigma_rate * guess.eps


def euler(x, times):
    for t, s in zip(times, times[1:]):  # from t down to s
        x = x + (s - t) * velocity(x, t)
        yield x


def heun(x, times):
    for t, s in zip(times, times[1:]):
        here = velocity(x, t)
        there = velocity(x + (s - t) * here, s)
        x = x + (s - t) * (here + there) / 2
        yield x


times = spacing(vp, 10, "log_snr", t_end=END)  # 11 times, evenly spaced in log-SNR
for mine, package in ((euler, samplers.euler), (heun, samplers.heun)):
    for x, step in zip(mine(start, times), package(denoise, vp, start, times)):
        assert torch.allclose(x, step.x, atol=1e-9)
print("your Euler and Heun are the package's, in every step")

# %% [markdown]
# See both with 8 evaluations: eight steps of Euler, four of Heun. Grey is the exact path from the same noise, and each stop has a dot.

# %%
import matplotlib.pyplot as plt

@plots.quiet
def paths(attempts, num=7):
    """attempts: {title: paths (T, N, 2)}; drawn beside the exact paths."""
    true = torch.stack([start, *heun(start, spacing(vp, fine // 10, "log_snr", t_end=END))])
    figure, panels = plt.subplots(1, len(attempts), figsize=(4.4 * len(attempts), 4.0), sharey=True)
    for axes, (title, path) in zip(panels, attempts.items()):
        axes.plot(*oracle.sample(400).T, ".", color="#D6EAF6", markersize=4)
        for k in range(num):
            axes.plot(*true[:, k].T, color="#777777", linestyle="-", linewidth=1)
            axes.plot(*path[:, k].T, color=plots.COLORS[1], linestyle="-", marker="o", markersize=3, linewidth=1.2)
        axes.set(title=title, xlabel="first coordinate", xlim=(-2.3, 2.3), ylim=(-2.3, 2.3))
    panels[0].set_ylabel("second coordinate")
    return figure


few = {"Euler, 8 steps of 1 evaluation": (euler, 8), "Heun, 4 steps of 2 evaluations": (heun, 4)}
paths({name: torch.stack([start, *method(start, spacing(vp, n, "log_snr", t_end=END))])
       for name, (method, n) in few.items()})

# %% [markdown]
# That is not what order two promises. Measure it. The error is the distance of a sampler's end point from the exact one, the median over the 64 starts. (Not the mean. A start near the watershed between two bumps may end in the wrong bump, and that one distance would drown all others.) On logarithmic axes an error like $n^{-p}$ is a straight line of slope $-p$.

# %%
INK = {"euler": 0, "heun": 1, "ddim": 2, "dpmpp_2m": 3, "dpmpp_3m": 5, "unipc": 6}


@plots.quiet
def convergence(panels, y="median error", guides=(1, 2)):
    """panels: {title: {name: (evaluations, errors)}}; grey lines show what orders 1 and 2 look like."""
    figure, row = plt.subplots(1, len(panels), figsize=(3.2 + 3.2 * len(panels), 3.9), sharey=True, squeeze=False)
    for axes, (title, curves) in zip(row[0], panels.items()):
        for name, (n, e) in curves.items():
            axes.plot(n, e, marker="o", markersize=4, label=name, color=plots.COLORS[INK[name]], linestyle="-")
        n, top = next(iter(curves.values()))[0], max(max(e) for _, e in curves.values())
        for p in guides:
            axes.plot(n[1:], [0.8 * top * (n[1] / k) ** p for k in n[1:]], color="#BBBBBB", linestyle=":", zorder=0)
            axes.text(n[-1] * 1.06, 0.8 * top * (n[1] / n[-1]) ** p, f"$n^{{-{p}}}$", color="#777777", fontsize=9)
        axes.set(xscale="log", yscale="log", xlabel="evaluations", title=title, xlim=(0.85 * n[0], 1.5 * n[-1]))
        axes.set_xticks(n, [str(k) for k in n], minor=False)
        axes.minorticks_off()
    row[0][0].set_ylabel(y)
    row[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure

# %% [markdown]
# Grey dotted lines will show what an order looks like. Run both methods with 4 to 512 evaluations.

# %%
import math

def error(x):
    return (x - exact).norm(dim=1).median().item()


def order(errors):
    """The power with which errors fall, from the last two; their evaluations differ by a factor of 2."""
    return math.log2(errors[-2] / errors[-1])


counts = [4, 8, 16, 32, 64, 128, 256, 512] if run.tier != "smoke" else [4, 8, 16, 32]
found = {name: [error(solve(name, n)) for n in counts] for name in ("euler", "heun")}
for name, errors in found.items():
    print(f"{name:6} error with 4 evaluations {errors[0]:.2f}, 8: {errors[1]:.2f}, 16: {errors[2]:.3f}; "
          f"order at the end {order(errors):.2f}")
convergence({"": {name: (counts, errors) for name, errors in found.items()}})

# %% [markdown]
# At the right the promise is kept: orders 1.01 and 2.03. At the left it is worthless. With 4 evaluations Heun errs seven times as much as Euler, with 8 twice. **The order is a statement about small steps.** It tells how fast the error falls, not where it begins; and with large steps the terms that Taylor's series calls small are the large ones. Samplers are wanted for 5 to 50 evaluations, exactly where the theory is not yet true. So measure.
#
# ## The part that need not be guessed
#
# Heun treats the right side as a black box. It is not one. Only $\hat x_0$ comes from the network. Put $\hat\varepsilon = (x - \alpha\hat x_0)/\sigma$ in, and the ODE is
#
# $$\frac{dx}{dt} = \frac{\sigma'}{\sigma}\,x + \Big(\alpha' - \frac{\alpha\sigma'}{\sigma}\Big)\hat x_0 .$$
#
# The first term is linear in $x$ with a factor that we know for all times. It is also the one that grows without bound as $\sigma \to 0$. Such an ODE is called **semi-linear**, and its linear part can be solved exactly, by variation of constants. Here that is a division by $\sigma$:
#
# $$\frac{d}{dt}\Big(\frac{x}{\sigma}\Big) = \frac{x'}{\sigma} - \frac{\sigma' x}{\sigma^2} = \Big(\frac{\alpha}{\sigma}\Big)'\,\hat x_0 .$$
#
# The linear term is gone. With $\lambda = \ln(\alpha/\sigma)$, half the log-SNR, $\alpha/\sigma = e^\lambda$, and integrating from $t$ to $s$ gives
#
# $$\frac{x_s}{\sigma_s} = \frac{x_t}{\sigma_t} + \int_{\lambda_t}^{\lambda_s} e^{\lambda}\,\hat x_0\,d\lambda .$$
#
# No approximation yet, for any schedule. Even time has left: the schedule only says which $\lambda$ belongs to which $t$. Now approximate as crudely as possible and hold $\hat x_0$ constant during the step. The integral is $(e^{\lambda_s} - e^{\lambda_t})\,\hat x_0$, and with $h = \lambda_s - \lambda_t > 0$
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\,(1 - e^{-h})\,\hat x_0 .$$
#
# Integrators of this kind are called **exponential**; Euler's version of them is from 1960 (Certaine). You have met it under another name.

# %%
def lam(t):
    return vp.log_snr(t) / 2


def exponential_step(x, x0, t, s):
    """From t down to s, exact if x0 does not change on the way."""
    (_, sigma), (alpha_s, sigma_s) = vp(t), vp(s)
    return sigma_s / sigma * x - alpha_s * math.expm1(lam(t) - lam(s)) * x0  # expm1(-h) = e^-h - 1


x, alike = start, 0.0
for step in samplers.ddim(denoise, vp, start, times):
    t = times[times.index(step.t) - 1]
    x = exponential_step(x, denoise(x, t).x0, t, step.t)
    alike = max(alike, (x - step.x).abs().max().item())
print(f"difference to DDIM in ten steps: {alike:.0e}")
assert alike < 1e-12

# %% [markdown]
# It is DDIM, to rounding. So DDIM is a first-order integrator, and **not the same one as Euler's in $t$**. It is Euler's method for $x/\sigma$ in the variable $\alpha/\sigma$ or, as is easily checked, for $x/\alpha$ in $\sigma/\alpha$. Where $\alpha = 1$ and $\sigma \propto t$, as in EDM, the two coincide. On the variance-preserving schedule they do not. Test both claims, and the strongest case for DDIM: data that are one single point. There $\hat x_0$ is constant, so one step of any length is exact.

# %%
edm = schedules.edm()  # alpha = 1, sigma = 80 t
there, high = spacing(edm, 10, "karras", t_end=1e-3), 80 * start
pairs = [zip(samplers.euler(oracle.denoiser(edm), edm, high, there), samplers.ddim(oracle.denoiser(edm), edm, high, there)),
         zip(samplers.euler(denoise, vp, start, times), samplers.ddim(denoise, vp, start, times))]
for name, both in zip(("EDM", "VP"), pairs):
    gap = max((a.x - b.x).abs().max().item() for a, b in both)
    print(f"{name:3}: Euler and DDIM differ by {gap:.0e}")

point = torch.tensor([0.3, -0.4], dtype=torch.float64)


def single(x, t):
    return minidiff.Prediction("x0", x, point.expand_as(x), *vp(t))


(alpha, sigma), (alpha_end, sigma_end) = vp(1.0), vp(END)
true = alpha_end * point + sigma_end * (start - alpha * point) / sigma  # the same eps all the way
for name, n in (("ddim", 1), ("euler", 10), ("euler", 100)):
    off = (solve(name, n, denoise=single) - true).norm(dim=1).median()
    print(f"one point as data, {name}, {n} step{'s' * (n > 1)}: error {off:.0e}")

# %% [markdown]
# Real data are not one point. But look at the solutions in both languages: left what Euler sees, $x$ over $t$; right what DDIM sees, $\hat x_0$ over $\lambda$. Each line is one start.

# %%
@plots.quiet
def two_views(num=9):
    t = spacing(vp, 300 if run.tier != "smoke" else 60, "log_snr", t_end=END)
    path = [start[:num], *heun(start[:num], t)]
    x = torch.stack(path)[..., 0]
    x0 = torch.stack([denoise(p, at).x0 for p, at in zip(path, t)])[..., 0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4))
    left.plot(t, x, linestyle="-", linewidth=1.3)
    left.set(xlabel="t", ylabel="first coordinate of x", title="the state over time", xlim=(1, 0))
    right.plot([lam(at) for at in t], x0, linestyle="-", linewidth=1.3)
    right.set(xlabel=r"$\lambda = \ln(\alpha/\sigma)$", ylabel=r"first coordinate of $\hat x_0$",
              title="the prediction over half the log-SNR")
    return figure


two_views()

# %% [markdown]
# On the right nothing happens at the ends: first the prediction is the mean of all data, later it is settled. In between are smooth bends, and smooth bends are what higher order is for.
#
# ## Fifteen lines
#
# Hold $\hat x_0$ not constant but let it run along a straight line in $\lambda$. A line needs two points. The one is the prediction $m$ here. The other has been paid for already: the prediction $m_-$ of the step before, $h_-$ back. Continue the line through both, and take its value **half a step ahead**, which is the mean over the step:
#
# $$D = m + \frac h2\cdot\frac{m - m_-}{h_-}, \qquad x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s(1 - e^{-h})\,D .$$
#
# This is **DPM-Solver++(2M)** (Lu et al. 2022b), one of the most used samplers of all: second order, multistep, one evaluation a step. (The weight $e^\lambda$ makes the mean slightly wrong, by an amount of third order in $h$, which is allowed.) In the first step there is no step before. There it is DDIM.

# %%
def two_m(x, times):
    before = None  # (lambda, prediction) of the step before
    for t, s in zip(times, times[1:]):
        m = denoise(x, t).x0
        ahead = m
        if before is not None and s > 0:  # at s = 0 lambda is infinite; there the prediction itself is the answer
            slope = (m - before[1]) / (lam(t) - before[0])
            ahead = m + (lam(s) - lam(t)) / 2 * slope
        x = exponential_step(x, ahead, t, s)
        before = lam(t), m
        yield x


for grid, t_end in (("log_snr", END), ("uniform", 0.0), ("karras", 0.0)):
    there = spacing(vp, 12, grid, t_end=t_end)
    for x, step in zip(two_m(start, there), samplers.SAMPLERS["dpmpp_2m"](denoise, vp, start, there)):
        assert torch.allclose(x, step.x, atol=1e-10)
print("your 2M is the package's, on three grids")

# %% [markdown]
# All together, with two more of the package. `dpmpp_3m` draws a parabola through three predictions. (The published code weighs its curvature by half and has order two; `taylor=True` gives it the full weight.) `unipc` (Zhao et al. 2023) takes a step like 2M's, evaluates the network where it arrives, and uses that prediction first to correct the step and then to start the next one. So the correction is free. Its last step has order one, as published, which shows in the end.

# %%
family = {"euler": {}, "ddim": {}, "heun": {}, "dpmpp_2m": {}, "dpmpp_3m": {"taylor": True}, "unipc": {}}
found = {name: [error(solve(name, n, **o)) for n in counts] for name, o in family.items()}
for name, errors in found.items():
    shown = ", ".join(f"{n}: {e:.1e}" for n, e in list(zip(counts, errors))[:5])
    print(f"{name:9} {shown}; order at the end {order(errors):.2f}")
convergence({"": {name: (counts, errors) for name, errors in found.items()}}, guides=(1, 2, 3))

# %% [markdown]
# From 8 evaluations on, 2M beats Heun by a factor of 1.5 to 4, mostly because its steps cost half. It beats DDIM by a factor of 3 to 200, at the same price.
#
# And one result contradicts what everybody says: from 8 evaluations on, Euler in $t$ beats DDIM, by a factor of up to two. Both have order one, and no theorem says whose constant is smaller. It depends on the data: for the one point DDIM was perfect. Never rank samplers by one data set.
#
# ## The grid
#
# A sampler may choose where to stop. All the above used a grid that is even in log-SNR. Try others with 2M, all to the same noise level. The last is EDM's schedule with even steps in $t$, that is in $\sigma$: the same ODE in other units.

# %%
end_snr = vp.log_snr(END)
edm = schedules.edm(sigma_max=vp(1.0)[1] / vp(1.0)[0])  # begins at the noise level of vp
grids = {"even in log-SNR": (vp, "log_snr"), "even in sqrt(t)": (vp, "quadratic"), "Karras": (vp, "karras"),
         "even in t, VP": (vp, "uniform"), "even in t, EDM": (edm, "uniform")}
stops, by_grid = {}, {}
for name, (schedule, kind) in grids.items():
    t_end = schedule.inverse(end_snr)
    stops[name] = [schedule.log_snr(t) / 2 for t in spacing(schedule, 16, kind, t_end=t_end)]
    x, oracle_there = start / vp(1.0)[0] * schedule(1.0)[0], oracle.denoiser(schedule)
    ends = [solve("dpmpp_2m", n, kind, t_end, oracle_there, schedule, x) for n in counts]
    by_grid[name] = (counts, [error(x * vp(END)[0] / schedule(t_end)[0]) for x in ends])
    e = by_grid[name][1]
    print(f"{name:16} error with 16: {e[2]:.4f}, order from 8 to 16: {order(e[:3]):5.2f}, at the end: {order(e):.2f}")

# %% [markdown]
# At the left, where the grids put 16 steps; at the right, the errors.

# %%
@plots.quiet
def grid_figure():
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.7), width_ratios=(1.15, 1))
    for k, (name, places) in enumerate(stops.items()):
        left.plot(places, [k] * len(places), "|", markersize=16, markeredgewidth=1.8, color=plots.COLORS[k])
        right.plot(*by_grid[name], marker="o", markersize=4, label=name, color=plots.COLORS[k], linestyle="-")
    left.set_yticks(range(len(stops)), list(stops))
    left.set(xlabel=r"$\lambda$: noise at the left, data at the right", ylim=(len(stops) - 0.5, -0.5),
             title="where 16 steps stop")
    left.grid(visible=False)
    right.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="median error", title="what 2M makes of it")
    right.set_xticks(counts, [str(n) for n in counts])
    right.minorticks_off()
    return figure


grid_figure()

# %% [markdown]
# With 16 evaluations the same method on the same ODE errs 15 times more if the grid is even in $t$, and its measured order from 8 to 16 is one half. The order is not lost, as the right end shows. But in the last step $\lambda$ jumps so far that no line can follow. Even steps in $\sigma$ are hopeless: nearly all of them lie where nothing happens, and that is why EDM has its own spacing, even in $\sigma^{1/7}$ (Karras et al. 2022).
#
# ## The step to zero
#
# Every run so far stopped at $t = 0.01$. Pictures must go on to $t = 0$, where $\lambda = \infty$: no grid in $\lambda$ gets there, and the last step is always infinitely long. What do samplers do with it? DDIM and 2M return $\hat x_0$. Euler takes its slope. On VP schedules $\sigma$ grows like $\sqrt t$ at first, so $\sigma' = \sigma/2t$ there, and a step of $-t\,\sigma'$ removes *half* of the noise. Heun's last step is Euler's.
#
# Which is right? Let the data be a Gaussian of width $c$, and take the last step from noise of size $\sigma$. The result should have width $c$.

# %%
from minidiff.oracles import Gaussian

last = 1e-3  # the last stop before zero
alpha, sigma = vp(last)
ratios = torch.logspace(-1.3, 1.3, 40).tolist()  # sigma / c
width = {"DDIM, 2M, UniPC": [], "Euler, Heun": [], "exact": [1.0] * len(ratios)}
for ratio in ratios:
    c = sigma / ratio
    x = torch.tensor([[math.sqrt(alpha**2 * c**2 + sigma**2)]], dtype=torch.float64)  # one standard deviation, noisy
    data = Gaussian(torch.zeros(1), c**2).denoiser(vp)
    for name, sampler in (("DDIM, 2M, UniPC", samplers.ddim), ("Euler, Heun", samplers.euler)):
        [step] = sampler(data, vp, x, [last, 0.0])
        width[name].append(step.x.item() / c)
for name in ("DDIM, 2M, UniPC", "Euler, Heun"):
    print(f"{name:15}: width off by {abs(width[name][0] - 1):.1e} at sigma / c = {ratios[0]:.2f}; "
          f"at sigma / c = {ratios[-1]:.0f} the result has {width[name][-1] * c / sigma:.2f} sigma")
plots.lines({name: (ratios, w) for name, w in width.items()}, x="last noise / width of the data", log="xy",
            y="width of the result / true width")

# %% [markdown]
# Both are wrong, in opposite cases. Where the data are wide compared with the last noise (left), Euler is nearly exact and $\hat x_0$ slightly too narrow: it is the *mean* of the possible pictures, and means are tame. Where the data are narrow (right), as in the smooth areas of a picture, $\hat x_0$ is clean, if a little pale, and Euler leaves about **half of the last noise** as grain. The cure for both is a last stop so close to 0 that there is nothing left to lose.
#
# ## A trained model, and a mystery
#
# Now `emoji-unet`, on 16-pixel pictures. The "exact" answer is that of the network's own ODE: a very fine solution from the same noise, on which two samplers must agree. The schedule is a cosine in a table of 1,000 steps, the grid even in $t$, the way goes to $t = 0$. The error is the root mean square over the pixels, whose values run from $-1$ to $1$.

# %%
import time

emoji_unet = minidiff.load("emoji-unet", run.device)
labels = torch.arange(10 if run.tier != "smoke" else 4, device=run.device)
streams = minidiff.seeded_noise([(run.seed, k) for k in range(len(labels))])
noises = streams(torch.empty(len(labels), 3, 16, 16)).to(run.device)
budgets, long = ([5, 10, 20, 50, 100], 300) if run.tier != "smoke" else ([5, 10, 20], 20)


def draw(sampler, evaluations, grid="uniform", guidance=1.0, schedule=emoji_unet.schedule, clipped=True, **options):
    bound = samplers.bind(emoji_unet, labels, guidance, clipped)
    return solve(sampler, evaluations, grid, 0.0, bound, schedule, noises, **options)


def pixel_error(a, b):
    return (a - b).square().mean().sqrt().item()


began = time.perf_counter()
reference = draw("unipc", long)
print(f"UniPC and 2M with {long} evaluations differ by {pixel_error(draw('dpmpp_2m', long), reference):.4f}")
on_pictures = {name: [pixel_error(draw(name, n, **o), reference) for n in budgets] for name, o in family.items()}
calls = 2 * long + len(family) * sum(budgets)
print(f"about {1000 * (time.perf_counter() - began) / calls:.0f} ms for an evaluation of {len(labels)} pictures")
convergence({"emoji-unet": {name: (budgets, errors) for name, errors in on_pictures.items()}}, y="pixel error")

# %% [markdown]
# The order of merit among the exponential samplers is as before, and order is nearly invisible at 5 to 20 evaluations. But Euler and Heun have gone mad. With 20 evaluations Euler errs six times as much as DDIM, and Heun is worse still. Is it the grain of the last step? Something else is broken. Look at both ends of the way.

# %%
smooth = schedules.cosine(steps=None)  # the formula that the table of 1,000 steps was made from
(_, sigma), (_, sigma_rate) = emoji_unet.schedule(0.05), emoji_unet.schedule.rates(0.05)
print(f"20 even steps: the last one begins at sigma = {sigma:.3f}, and Euler leaves {sigma - 0.05 * sigma_rate:.3f} of it")
for t in (1.0, 0.999, 0.99):
    print(f"t = {t}: alpha' from the table {emoji_unet.schedule.rates(t)[0]:.3f}, from the formula {smooth.rates(t)[0]:.3f}")
rescued = {name + " on the formula": [pixel_error(draw(name, n, schedule=smooth), reference) for n in budgets]
           for name in ("euler", "heun")}
for name, errors in (on_pictures | rescued).items():
    if name.split()[0] in ("euler", "ddim", "heun"):
        print(f"{name:20}", "  ".join(f"{n}: {e:.3f}" for n, e in zip(budgets, errors)))
for grid in ("uniform", "log_snr", "karras"):
    errors = [pixel_error(draw("dpmpp_2m", n, grid), reference) for n in budgets[:4]]
    print(f"2M on {grid:14}", "  ".join(f"{n}: {e:.3f}" for n, e in zip(budgets, errors)))

# %% [markdown]
# It is not the grain: Euler leaves 0.01 there, and errs by 0.37. It is the first step. Improved DDPM clips the last $\beta$ to 0.999, so that $\alpha$ stays above 0. In the last thousandth of the table $\alpha$ therefore follows another curve, whose slope at $t = 1$ is nine times too small. Euler looks at the slope *there*, and trusts it for a whole step. So with 20 steps most of what the first twentieth of the way should add is missing.
#
# Give Euler the smooth formula (same network, same noises) and it is as good as DDIM; Heun becomes three to eighteen times better. DDIM and its children never had the problem. They use the *values* of $\alpha$ and $\sigma$ at both ends of a step, never a derivative. This, and not order, is why they work on every schedule.
#
# The last lines try 2M on other grids. With 5 and 10 evaluations the even grid in $t$ is the best, from 20 on the one in log-SNR, which won everywhere in the plane. No grid wins always. Pictures have structure at more noise levels than three bumps, and few steps must not waste any on levels where next to nothing happens.
#
# What does an error of 0.1 look like? Two emoji, from the same two noises.

# %%
columns = [5, 10, 20, 50] if run.tier != "smoke" else [5]
recipes = {"Euler": ("euler", {}), "Euler, formula": ("euler", {"schedule": smooth}), "DDIM": ("ddim", {}),
           "2M": ("dpmpp_2m", {}), "UniPC": ("unipc", {})}


def pair(x, which=(-3, -1)):
    """Two of the pictures side by side, (1, 3, 18, 36) with a thin frame."""
    framed = torch.nn.functional.pad(x[list(which)].cpu().clamp(-1, 1), (1, 1, 1, 1), value=0.6)
    return torch.cat(list(framed), dim=-1)


frames = [torch.stack([pair(draw(name, n, **o)) for name, o in recipes.values()]) for n in columns]
frames.append(torch.stack([pair(reference)] * len(recipes)))
plots.filmstrip(frames, times=[f"{n} evaluations" for n in columns] + [f"reference ({long})"], rows=list(recipes))

# %% [markdown]
# An error of 0.1 (DDIM, 10 evaluations) is hard to see. With 5, exponential samplers make pale, smooth pictures, since $\hat x_0$ is a mean; Euler makes gaudy ones. The broken Euler arrives at other pictures altogether.
#
# ## Guidance makes it harder
#
# People sample with classifier-free guidance (notebook 07), which multiplies the difference of two predictions. That makes the field steeper, and the clipping of $\hat x_0$ puts kinks into it. Compare scales 1 and 4. Each scale has its own reference.

# %%
exponential, tried = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc"), budgets if run.tier != "smoke" else budgets[:2]
by_scale = {"guidance 1": {name: (tried, on_pictures[name][: len(tried)]) for name in exponential}, "guidance 4": {}}
goal = draw("unipc", long, guidance=4.0)
for name in exponential:
    errors = [pixel_error(draw(name, n, guidance=4.0, **family[name]), goal) for n in tried]
    by_scale["guidance 4"][name] = (tried, errors)
convergence(by_scale, y="pixel error")

# %% [markdown]
# With 5 and 10 evaluations all errors grow by a factor of two or more, and the third order is no better than the second, or worse. This is the reason for the authors' advice to use 2M for guided sampling (Lu et al. 2022b). Turn the knobs yourself.

# %%
def show(sampler="dpmpp_2m", evaluations=10, guidance=1.0, grid="uniform"):
    return plots.grid(draw(sampler, evaluations, grid, guidance).clamp(-1, 1), columns=5)


widgets.explore(show, sampler=["euler", "ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc"],
                evaluations=[3, 5, 10, 20, 50], guidance=[1.0, 2.0, 4.0, 8.0], grid=["uniform", "log_snr", "karras"])

# %% [markdown]
# ## What is noise good for?
#
# Why, then, does anyone still sample with noise? Take the reverse SDE of notebook 04 apart:
#
# $$\underbrace{f x - \tfrac12 g^2 s}_{\text{the ODE}} \;\; \underbrace{-\,\tfrac12 g^2 s \;+\; \text{noise of variance } g^2}_{\text{a Langevin step}}$$
#
# A Langevin step leaves the right distribution alone and pulls a wrong one towards it. So the SDE is an ODE that is *corrected* at every level. DDIM's $\eta$ scales that noise, from none at 0 to DDPM's at 1. EDM's **churn** is the same idea made explicit: add a little noise, so that $\sigma$ grows by a factor of $1 + \gamma$, with $\gamma$ = churn / steps (at most 0.41), then take a Heun step down from there.
#
# If noise corrects errors, it needs errors to correct. Give it two kinds. The *early* error: above $t = 0.4$ the oracle's $\hat x_0$ is off by 0.3 to the right, below it is exact. The *constant* error: $\hat x_0$ is 5 % too small at all times. With noise there is no point to converge to, so compare crowds: the energy distance of notebook 04, in thousandths, between 2,048 samples and 8,192 exact points. The starts are spread evenly, by a Sobol sequence, so that chance plays a small part.

# %%
num, many = (2048, 8192) if run.tier != "smoke" else (256, 512)
draws = torch.Generator().manual_seed(run.seed)
(alpha_end, sigma_end), target = vp(1e-3), oracle.sample(many, draws)
target = alpha_end * target + sigma_end * torch.randn(target.shape, dtype=torch.float64, generator=draws)
even = torch.quasirandom.SobolEngine(2, scramble=True, seed=run.seed).draw(num, dtype=torch.float64)
crowd = torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6))  # (num, 2), normally distributed
shift = torch.tensor([0.3, 0.0], dtype=torch.float64)


def early(x, t):
    guess = denoise(x, t)
    return guess.replace("x0", guess.x0 + shift) if t > 0.4 else guess


def constant(x, t):
    guess = denoise(x, t)
    return guess.replace("x0", 0.95 * guess.x0)


within = torch.cdist(target, target).mean()


def energy_distance(x):
    return 1000 * (2 * torch.cdist(x, target).mean() - torch.cdist(x, x).mean() - within).item()

# %% [markdown]
# Sweep $\eta$ and the churn, 128 evaluations each; for the exact score also 16.

# %%
etas, churns = ([0, 0.25, 0.5, 0.75, 1.0], [0, 2, 5, 10, 20, 30]) if run.tier != "smoke" else ([0, 1.0], [0, 20])
networks = {"exact, 16 evaluations": (denoise, 16), "exact": (denoise, 128), "early error": (early, 128),
            "constant error": (constant, 128)}


def sweep(sampler, option, values):
    for name, (network, n) in networks.items():
        n, distances = n if run.tier != "smoke" else 16, []
        for value in values:
            torch.manual_seed(run.seed)
            x = solve(sampler, n, t_end=1e-3, denoise=network, x=crowd, noise=torch.randn_like, **{option: value})
            distances.append(energy_distance(x))
        yield name, distances


by_eta, by_churn = dict(sweep("ddim", "eta", etas)), dict(sweep("churn", "churn", churns))
floor = energy_distance(oracle.sample(num, draws))
for name in networks:
    print(f"{name:21} eta " + " ".join(f"{d:6.2f}" for d in by_eta[name])
          + "   churn " + " ".join(f"{d:6.2f}" for d in by_churn[name]))
print(f"{num} exact samples score {floor:.2f}")

# %% [markdown]
# Lower is better. The dotted line is what exact samples score.

# %%
@plots.quiet
def noise_figure():
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 3.7), sharey=True)
    for axes, values, curves in zip(panels, (etas, churns), (by_eta, by_churn)):
        for name, distances in curves.items():
            axes.plot(values, [max(d, 0.02) for d in distances], marker="o", markersize=4, label=name)
        axes.axhline(floor, color="#777777", linestyle=":", linewidth=1.2)
        axes.set(yscale="log")
    panels[0].set(xlabel=r"$\eta$ of DDIM", ylabel="1000 x energy distance", title="noise in every step")
    panels[1].set(xlabel="churn of EDM's sampler", title="noise, then Heun's step")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


noise_figure()

# %% [markdown]
# Read it line by line. An **early error** is what noise is for. The ODE carries it to the end (4.3); each bit of noise lets the later, correct score repair more, down to the level of exact samples. A **constant error** is the opposite: noise makes it up to four times worse. Each repair asks the same wrong score, and the more often it is asked, the more the crowd settles where *that* score wants it. The **exact** score needs no repair. With 128 evaluations noise costs nothing but the even spread of the starts (0.08 becomes 0.6, as for random points). With **16 evaluations** it costs a lot, because every kick must be digested by steps that are too large already.
#
# So the advice depends on the network, which is just what Karras et al. (2022) found: churn helped their ImageNet model and harmed the better one on CIFAR-10. Noise is a remedy with side effects, for long runs of imperfect models.
#
# ## Which sampler?
#
# One more measurement: do errors against the ODE matter for what the pictures look like? Judge sets of pictures, by the kernel distance of their features to those of real emoji (notebook 09 is about such judges; lower is better). All sets have the same noises and labels.

# %%
from minidiff.metrics import kernel_distance, load_features

emoji = minidiff.load_dataset("emoji", size=16)
shuffled = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(run.seed))
each, few = (128, [5, 10, 20, 50]) if run.tier != "smoke" else (8, [5, 10])
kinds, real = torch.as_tensor(emoji.labels)[shuffled[:each]], emoji.images()[shuffled[: 1500 if each > 8 else 50]]
features, quality = load_features("emoji"), {}
for name, o in {"ddim": {}, "ddim, eta = 1": {"eta": 1.0}, "dpmpp_2m": {}, "unipc": {}}.items():
    quality[name] = []
    for n in few:
        made = minidiff.sample(emoji_unet, each, y=kinds, sampler=name.split(",")[0], steps=n, progress=False, **o)
        quality[name].append(kernel_distance(real, made.cpu().clamp(-1, 1), features).value)
plots.lines({name: (few, q) for name, q in quality.items()}, x="evaluations", y="kernel distance")

# %% [markdown]
# The order is the same as for the errors. From 20 evaluations on, 2M and UniPC have nothing left to gain: what remains is the network's own fault, and no sampler mends it. Noise ($\eta = 1$) is worst with few steps and catches up at 50. (The judge is uncertain by about 0.02 with so few pictures, but all four get the same noises and labels.)
#
# The whole notebook in one table. Bold is the best of a column. The last column is what a step costs without the network: 2M and UniPC think harder than DDIM, but that is nothing beside an evaluation, printed above.

# %%
from IPython.display import Markdown

def overhead(sampler, steps=20):
    """Milliseconds of the sampler's own arithmetic a step: the network is replaced by one that answers at once."""
    answer, took = torch.zeros_like(noises), []
    for _ in range(8):
        began = time.perf_counter()
        solve(sampler, steps * COST.get(sampler, 1), "uniform", 0.0,
              lambda x, t: minidiff.Prediction("x0", x, answer, 0.6, 0.8), emoji_unet.schedule, noises)
        took.append(time.perf_counter() - began)
    return 1000 * min(took) / steps


rows = {name: [*found[name][1:3], *on_pictures[name][1:3], quality.get(name, [math.nan] * 2)[1]] for name in family}
best = [min(v for v in column if not math.isnan(v)) for column in zip(*rows.values())]
lines = ["| sampler | order | mixture, 8 | 16 | emoji, 10 | 20 | kernel distance, 10 | own arithmetic |", "|" + "---|" * 8]
for name, row in rows.items():
    shown = [f"**{v:.2g}**" if v == b else "" if math.isnan(v) else f"{v:.2g}" for v, b in zip(row, best)]
    lines.append(f"| {name} | {order(found[name]):.2f} | {' | '.join(shown)} | {overhead(name):.2f} ms |")
Markdown("\n".join(lines))

# %% [markdown]
# | you have | take |
# |---|---|
# | 5 to 20 evaluations | UniPC or 2M; under strong guidance order two, not three |
# | 20 to 50, and no wish to think | 2M: one line more than DDIM, never bad here |
# | to encode a picture and decode it again, or to explain a sampler | DDIM |
# | a model in EDM's form, 35 evaluations or more | Heun in $\sigma$ on Karras's grid, `churn` with churn 0 (their finding, not measured here) |
# | 100 evaluations or more, and doubts about the network at high noise | some noise: `churn`, or DDIM with $\eta > 0$ |
# | Euler or Heun in $t$ on a table | first check the slopes at its ends |
#
# ## What the papers found, what you measured

# %%
def at(values, *places):
    return " / ".join(f"{values[k]:.3g}" for k in places)


findings = [
    ("On CIFAR-10 in 10 steps FID 13.4 with DDIM, 41 with its noise (Song et al. 2021, table 1)",
     f"kernel distance in 10 steps {at(quality['ddim'], 1)}, with noise {at(quality['ddim, eta = 1'], 1)}"),
    ("DDIM is first-order DPM-Solver (Lu et al. 2022, section 4)", f"equal to {alike:.0e}; order {order(found['ddim']):.2f}"),
    ("2M has second order, and suits guided sampling (Lu et al. 2022b)",
     f"order {order(found['dpmpp_2m']):.2f}; guided, 10 evaluations, 2M / 3M: "
     f"{at(by_scale['guidance 4']['dpmpp_2m'][1], 1)} / {at(by_scale['guidance 4']['dpmpp_3m'][1], 1)}"),
    ("UniPC's corrector helps most with few evaluations (Zhao et al. 2023)",
     f"pixel error with 5 / 10 / 20: 2M {at(on_pictures['dpmpp_2m'], 0, 1, 2)}, UniPC {at(on_pictures['unipc'], 0, 1, 2)}"),
    ("Heun gives the best trade-off in sigma, with 18 steps (Karras et al. 2022, section 3)",
     f"in t: not below 16 evaluations (mixture, 8 / 16: {at(found['heun'], 1, 2)}, Euler {at(found['euler'], 1, 2)})"),
    ("Noise helps some models and harms others (Karras et al. 2022, section 4)",
     f"no churn / much: early error {at(by_churn['early error'], 0, -1)}, constant error {at(by_churn['constant error'], 0, -1)}"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. A fair budget (a line or two).** Samplers are compared at equal *evaluations*. How many steps may each take, down to $t = 0$? Heun's last step is Euler's. The predictor-corrector of notebook 04's SDE takes one Langevin step and one predictor step at each stop.

# %% tags=["exercise"] name="steps_for"
def steps_for(evaluations, sampler):
    """The most steps that cost at most so many; sampler: "ddim", "dpmpp_2m", "heun" or "predictor_corrector"."""
    ...  # your code

# %% [markdown]
# The check has counted.

# %%
exercises.check_steps_for(steps_for)

# %% [markdown]
# **2. Second order in a single step.** Not every second-order method needs a memory. Go half-way *in $\lambda$* by DDIM, evaluate there, and use that prediction for the whole step, from the start. This is DPM-Solver++(2S). `schedule.inverse(log_snr)` gives the time of a log-SNR.

# %% tags=["exercise"] name="midpoint_step"
def midpoint_step(denoise, schedule, x, t, s):
    """x at s < t, both above 0, with two evaluations of denoise(x, t).x0; schedule.log_snr(t) is 2 lambda."""
    ...  # your code

# %% [markdown]
# The check compares with the package on two schedules.

# %%
exercises.check_midpoint_step(midpoint_step)

# %% [markdown]
# **3. The trick of 1883.** Bashforth and Adams used the slope of the step before to get second order with one evaluation a step, long before 2M. Write it for $dx/dt = u(x, t)$ on an uneven grid. Take $u$ as a line in $t$ through the two latest slopes, and walk along its value half a step ahead. The first step is Euler's.

# %% tags=["exercise"] name="adams_bashforth"
def adams_bashforth(u, x, times):
    """x at times[-1], from x at times[0]; times fall. u(x, t) may be called once a step."""
    ...  # your code

# %% [markdown]
# The check counts, and uses steps of unequal length.

# %%
exercises.check_adams_bashforth(adams_bashforth)

# %% [markdown]
# **A project: the best grid.** `spacing(schedule, steps, "karras", rho=...)` goes from even in $\sigma/\alpha$ (rho 1) to nearly even in log-SNR (large rho). Find the best rho for 2M with 8 evaluations, on the mixture and on `emoji-unet`. Then let an optimiser move the 8 stops themselves, with the error as its loss. How much is gained, and does the grid still win for other noises?
#
# ## What you learned
#
# - A sampler is an integrator of the ODE or SDE; its cost is counted in evaluations, its order is the slope of error against cost.
# - Order is a promise for small steps. With 4 or 8 evaluations Heun was worse than Euler.
# - The ODE is semi-linear. Solved exactly in its linear part, with $\hat x_0$ held constant, it is DDIM; with $\hat x_0$ on a line in $\lambda$, DPM-Solver++ 2M.
# - DDIM is Euler in $\sigma/\alpha$, not in $t$. It needs no derivative of the schedule, which saved it on a clipped table.
# - A bad grid can cost more than a good method gains. The step to zero is infinitely long in $\lambda$.
# - Noise repairs errors made earlier, and amplifies errors made always.
#
# ## Where to read on
#
# - Song, Meng, Ermon, *Denoising diffusion implicit models*, 2021, arXiv 2010.02502.
# - Karras, Aittala, Aila, Laine, *Elucidating the design space of diffusion-based generative models*, 2022, arXiv 2206.00364: grids, Heun, churn.
# - Lu et al., *DPM-Solver*, 2022, arXiv 2206.00927; *DPM-Solver++*, 2022b, arXiv 2211.01095. Zhang and Chen, *Fast sampling of diffusion models with exponential integrator*, 2023, arXiv 2204.13902.
# - Zhao et al., *UniPC*, 2023, arXiv 2302.04867.
# - Xu et al., *Restart sampling for improving generative processes*, 2023, arXiv 2306.14878: which errors noise repairs, with proofs.
# - Hochbruck and Ostermann, *Exponential integrators*, Acta Numerica 2010; Hairer, Nørsett, Wanner, *Solving ordinary differential equations I*, for order, multistep methods and their history.
#
# Next comes notebook 06, *Flow matching*: choose the path so that it is easy to integrate.
