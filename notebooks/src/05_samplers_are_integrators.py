# %% [markdown]
# # 05 Samplers are integrators
#
# After this notebook you can write the samplers that everyone uses, measure how fast each converges, say why one fails, and choose one with a reason.
#
# Run time: two to three minutes on two CPU cores; a GPU (a T4, say) helps only with the pictures. Nothing is trained, nothing is downloaded. The text quotes numbers of the cpu tier; the smoke tier prints others.
#
# You will
#
# - measure the error of samplers against their cost, and find that the better method can be the worse one,
# - derive DDIM from a trick of 1960 and write DPM-Solver++ in fifteen lines,
# - see a grid of times, or the last step alone, ruin a good method,
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
# carries each noise to one picture. A sampler walks along it in finite steps, and each look at the right side runs the network once. That is an **evaluation**, and nearly the whole price. How close to the true path do you get with a given number of them?
#
# Begin with the three Gaussian bumps of notebook 04, whose $\hat x_0$ an oracle knows exactly. Take 64 noises from $t = 1$ to $t = 0.01$ (why not to 0, you will see). Below, `solve` runs any sampler of the package on a budget of evaluations. Its `grid` says where the steps stop, by default evenly in log-SNR. The ODE has no closed solution even here, so "exact" is a run of 4,000 evaluations, with which another method must agree.

# %%
import math
import torch
from minidiff import samplers, schedules, spacing

oracle = minidiff.load_dataset("mixture").mixture.oracle
vp = schedules.linear(steps=None)  # vp(t) -> (alpha, sigma), DDPM's schedule in continuous time
denoise = oracle.denoiser(vp)  # denoise(x, t).x0 and .eps, exact
start = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(run.seed))
END, COST = 0.01, {"heun": 2, "churn": 2}  # evaluations a step, where it is not 1


def solve(sampler, evaluations, grid="log_snr", t_end=END, denoise=denoise, schedule=vp, x=start, **options):
    """x at t_end, by a sampler of the package with at most so many evaluations."""
    steps = evaluations / COST.get(sampler, 1)
    steps = math.floor(steps) if t_end else math.ceil(steps)  # the last step to t = 0 costs one, for every sampler
    network, times = samplers.counted(denoise), spacing(schedule, steps, grid, t_end=t_end)
    *_, last = samplers.SAMPLERS[sampler](network, schedule, x, times, **options)
    assert network.evaluations <= evaluations
    return last.x

fine = 4000 if run.tier != "smoke" else 300
exact = solve("dpmpp_3m", fine, taylor=True)  # you will meet it below
gap = (solve("heun", fine) - exact).norm(dim=1).median()
print(f"two samplers with {fine:,} evaluations differ by {gap:.0e}")
assert gap < 1e-4

# %% [markdown]
# ## Euler and Heun
#
# The oldest integrator is **Euler's**: look at the slope $x' = dx/dt$ here, and walk along it. A step from $t$ to $s$ has length $h = s - t$ (below zero, as time falls) and gives $x + h\,x'$. Taylor's series goes on, $x + h\,x' + \tfrac12 h^2 x'' + \dots$, so each step errs by about $h^2$. There are $1/|h|$ steps, and the errors add up to about $|h|$: halve the steps, halve the error. Euler's method has **order one**.
#
# **Heun's** method takes Euler's step on trial, looks at the slope there as well, and walks along the mean of both. That mean is $x' + \tfrac12 h\,x''$, so the $h^2$ term is right, and the total error falls as $h^2$: order two. But each step costs two evaluations.

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
# See both with 8 evaluations: eight steps of Euler, four of Heun. Grey is the exact path from the same noise, outside in; each stop has a dot.

# %%
import matplotlib.pyplot as plt

@plots.quiet
def paths(attempts, num=7):
    """attempts: {title: paths (T, N, 2)}; drawn beside the exact paths."""
    true = torch.stack([start, *heun(start, spacing(vp, fine // 10, "log_snr", t_end=END))])
    figure, panels = plt.subplots(1, len(attempts), figsize=(4.0 * len(attempts), 3.3), sharey=True)
    for axes, (title, path) in zip(panels, attempts.items()):
        axes.plot(*oracle.sample(200).T, ".", color="#D6EAF6", markersize=5)
        for k in range(num):
            axes.plot(*true[:, k].T, color="#777777", linestyle="-", linewidth=1)
            axes.plot(*path[:, k].T, color=plots.COLORS[1], linestyle="-", marker="o", markersize=3, linewidth=1.2)
        axes.set(title=title, xlabel="first coordinate", xlim=(-2.4, 1.4), ylim=(-1.5, 2.2))
        axes.grid(visible=False)
    panels[0].set_ylabel("second coordinate")
    return figure


few = {"Euler, 8 steps of 1 evaluation": (euler, 8), "Heun, 4 steps of 2 evaluations": (heun, 4)}
paths({name: torch.stack([start, *method(start, spacing(vp, n, "log_snr", t_end=END))])
       for name, (method, n) in few.items()})

# %% [markdown]
# That is not what order two promises: one long step throws Heun past the end of the grey path. Measure it. The error is the distance of a sampler's end point from the exact one, the median over the 64 starts. (In a mean, one start that ends in the wrong bump would drown all others.) On logarithmic axes an error like $n^{-p}$ is a straight line of slope $-p$.

# %%
def error(x):
    return (x - exact).norm(dim=1).median().item()


def order(errors):
    """The power with which errors fall, from the last two; their evaluations differ by a factor of 2."""
    return math.log2(errors[-2] / errors[-1])


counts = [4, 8, 16, 32, 64, 128, 256, 512] if run.tier != "smoke" else [4, 8, 16, 32]
found = {name: [error(solve(name, n)) for n in counts] for name in ("euler", "heun")}
for name, errors in found.items():
    print(f"{name:6} error with 4 evaluations {errors[0]:.2f}, 8: {errors[1]:.3f}, 16: {errors[2]:.3f}; "
          f"order at the end {order(errors):.2f}")
plots.lines({name: (counts, e) for name, e in found.items()}, x="evaluations", y="median error", log="xy")

# %% [markdown]
# At the right the promise is kept: orders 1.01 and 2.03. At the left it is worthless. With 4 evaluations Heun errs seven times as much as Euler, with 8 twice. **The order is a statement about small steps.** It tells how fast the error falls, not where it begins. Samplers are wanted for 5 to 50 evaluations, so measure there.
#
# ## The part that need not be guessed
#
# Heun treats the right side as a black box. It is not one: only $\hat x_0$ comes from the network. Put $\hat\varepsilon = (x - \alpha\hat x_0)/\sigma$ in, and the ODE is
#
# $$\frac{dx}{dt} = \frac{\sigma'}{\sigma}\,x + \Big(\alpha' - \frac{\alpha\sigma'}{\sigma}\Big)\hat x_0 .$$
#
# The first term is linear in $x$, with a factor known for all times. Such an ODE is called **semi-linear**, and its linear part can be solved exactly. Here a division by $\sigma$ does it:
#
# $$\frac{d}{dt}\Big(\frac{x}{\sigma}\Big) = \frac{x'}{\sigma} - \frac{\sigma' x}{\sigma^2} = \Big(\frac{\alpha}{\sigma}\Big)'\,\hat x_0 .$$
#
# With $\lambda = \ln(\alpha/\sigma)$, half the log-SNR, $\alpha/\sigma = e^\lambda$, and integrating from $t$ to $s$ gives
#
# $$\frac{x_s}{\sigma_s} = \frac{x_t}{\sigma_t} + \int_{\lambda_t}^{\lambda_s} e^{\lambda}\,\hat x_0\,d\lambda .$$
#
# No approximation yet, for any schedule. Now hold $\hat x_0$ constant during the step. The integral is $(e^{\lambda_s} - e^{\lambda_t})\,\hat x_0$. From here on $h = \lambda_s - \lambda_t > 0$ is a step in $\lambda$, and multiplying by $\sigma_s$ gives
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\,(1 - e^{-h})\,\hat x_0 .$$
#
# Such integrators are called **exponential**; this simplest one is from 1960 (Certaine). You have met it under another name.

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
# It is DDIM, to rounding. So DDIM is a first-order integrator, and **not the same one as Euler's in $t$**. It is Euler's method for $x/\sigma$ in the variable $\alpha/\sigma$ or, equally, for $x/\alpha$ in $\sigma/\alpha$. Where $\alpha = 1$ and $\sigma \propto t$, as in EDM's schedule, the two coincide. On the variance-preserving one (VP) they do not. Test both claims, and DDIM's best case: data that are one single point. There $\hat x_0$ is constant, so one step of any length is exact.

# %%
edm = schedules.edm()  # alpha = 1, sigma = 80 t
there, high = spacing(edm, 10, "karras", t_end=1e-3), 80 * start
gaps = {}
for name, run_of in (("EDM", (oracle.denoiser(edm), edm, high, there)), ("VP", (denoise, vp, start, times))):
    both = zip(samplers.euler(*run_of), samplers.ddim(*run_of))
    gaps[name] = max((a.x - b.x).abs().max().item() for a, b in both)
    print(f"{name:3}: Euler and DDIM differ by {gaps[name]:.0e}")
assert gaps["EDM"] < 1e-10 and gaps["VP"] > 0.1

point = torch.tensor([0.3, -0.4], dtype=torch.float64)


def single(x, t):
    return minidiff.Prediction("x0", x, point.expand_as(x), *vp(t))  # of kind x0, which is always the point


(alpha, sigma), (alpha_end, sigma_end) = vp(1.0), vp(END)
true = alpha_end * point + sigma_end * (start - alpha * point) / sigma  # the same eps all the way
for name, n in (("ddim", 1), ("euler", 10), ("euler", 100)):
    off = (solve(name, n, denoise=single) - true).norm(dim=1).median()
    print(f"one point as data, {name}, {n} step{'s' * (n > 1)}: error {off:.0e}")
    assert (off < 1e-12) == (name == "ddim")

# %% [markdown]
# Real data are not one point. But look at both views: left what Euler sees, $x$ over $t$; right what DDIM sees, $\hat x_0$ over $\lambda$. Each line is one start.

# %%
@plots.quiet
def two_views(num=7):
    t = spacing(vp, 300 if run.tier != "smoke" else 60, "log_snr", t_end=END)
    path = [start[:num], *heun(start[:num], t)]
    x = torch.stack(path)[..., 0]
    x0 = torch.stack([denoise(p, at).x0 for p, at in zip(path, t)])[..., 0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 2.9))
    left.plot(t, x, linestyle="-", linewidth=1.3)
    left.set(xlabel="t", ylabel="first coordinate of x", title="the state over time", xlim=(1, 0))
    right.plot([lam(at) for at in t], x0, linestyle="-", linewidth=1.3)
    right.set(xlabel=r"$\lambda = \ln(\alpha/\sigma)$", ylabel=r"first coordinate of $\hat x_0$",
              title="the prediction over half the log-SNR")
    return figure


two_views()

# %% [markdown]
# On the right little happens at the ends: first the prediction is the mean of all data, later it is settled. Between them are smooth bends, and those are what higher order is for.
#
# ## Fifteen lines
#
# Now let $\hat x_0$ run along a straight line in $\lambda$. A line needs two points. One is the prediction $m$ here. The other is paid for: the prediction $m_-$ of the step before, whose length was $h_-$. Continue the line through both, and take its value **half a step ahead**, which is the mean over the step:
#
# $$D = m + \frac h2\cdot\frac{m - m_-}{h_-}, \qquad x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s(1 - e^{-h})\,D .$$
#
# This is **DPM-Solver++(2M)** (Lu et al. 2022b), one of the most used samplers: second order, one evaluation a step. M is for *multistep*: it remembers earlier steps. (The weight $e^\lambda$ makes the mean slightly wrong, by a term of order $h^3$ in a step, so order two survives.) The first step has no memory, and is DDIM's.

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
# All together, with two more of the package. `dpmpp_3m` draws a parabola through three predictions. (The published code gives its curvature half the weight and has order two; `taylor=True` gives the full weight.) `unipc` (Zhao et al. 2023) takes a step like 2M's, evaluates the network where it arrives, and uses that prediction twice: to correct the step, and to start the next one. So the correction is free. Its last step has order one, as published, which shows at the end. Dotted lines have orders 1, 2 and 3.

# %%
@plots.quiet
def convergence(curves, y="median error", guides=(1, 2)):
    figure, axes = plt.subplots(figsize=(5.6, 3.3))
    for name, (n, e) in curves.items():
        axes.plot(n, e, "o-", markersize=4, label=name, color=plots.COLORS[ORDERS[name][1]])
    for p in guides:
        (line,) = axes.plot(n, [0.5 * (n[0] / k) ** p for k in n], linestyle=":", color="#BBBBBB", zorder=0)
        axes.text(n[-1], line.get_ydata()[-1], f"  $n^{{-{p}}}$", color="#777777")
    axes.set(xscale="log", yscale="log", xlabel="evaluations", ylabel=y, xticks=n, xticklabels=n)
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1.04, 0.5))
    return figure

ORDERS = {"euler": (1, 0), "ddim": (1, 2), "heun": (2, 1), "dpmpp_2m": (2, 3), "dpmpp_3m": (3, 5), "unipc": (2, 6)}
options = {name: {"taylor": True} if name == "dpmpp_3m" else {} for name in ORDERS}  # ORDERS: theory, colour
found = {name: [error(solve(name, n, **options[name])) for n in counts] for name in ORDERS}
for name, e in found.items():
    print(f"{name:9}", *(f"{n}: {v:.1e} " for n, v in zip(counts[:5], e)), f"order at the end {order(e):.2f}")
    assert order(e) > ORDERS[name][0] - 0.2
convergence({name: (counts, errors) for name, errors in found.items()}, guides=(1, 2, 3))

# %% [markdown]
# From 8 evaluations on, 2M beats Heun by a factor of 1.5 to 4, because its steps cost half. It beats DDIM by a factor of 3 to 200, at the same price.
#
# One result contradicts what everybody says. Euler in $t$ beats DDIM, by a factor of up to two. Both errors fall as $C/n$, and whose $C$ is smaller depends on the data: for the one point DDIM was perfect. Never rank samplers by one data set.
#
# ## The grid
#
# So far the stops were even in log-SNR. Try others with 2M, between the same noise levels. "Karras" is EDM's spacing, even in $(\sigma/\alpha)^{1/7}$. The last is even in $\sigma$ on EDM's schedule: the same ODE for $x/\alpha$. Left, where 16 steps stop; right, the errors.

# %%
edm = schedules.edm(sigma_max=vp(1.0)[1] / vp(1.0)[0])  # begins at the noise level of vp
grids = {"even in log-SNR": (vp, "log_snr"), "even in sqrt(t)": (vp, "quadratic"), "Karras": (vp, "karras"),
         "even in t": (vp, "uniform"), "even in sigma": (edm, "uniform")}

@plots.quiet
def compare_grids():
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.1), width_ratios=(1.15, 1))
    for k, (name, (schedule, kind)) in enumerate(grids.items()):
        t_end, color = schedule.inverse(vp.log_snr(END)), plots.COLORS[k]
        x, network = start / vp(1.0)[0] * schedule(1.0)[0], oracle.denoiser(schedule)
        ends = [solve("dpmpp_2m", n, kind, t_end, network, schedule, x) for n in counts]
        e = [error(x * vp(END)[0] / schedule(t_end)[0]) for x in ends]
        print(f"{name:17} error with 16: {e[2]:.4f}, order 8 to 16: {order(e[:3]):.2f}, at the end {order(e):.2f}")
        stops = [schedule.log_snr(t) / 2 for t in spacing(schedule, 16, kind, t_end=t_end)]
        left.plot(stops, [k] * 17, "|", markersize=15, markeredgewidth=1.8, color=color)
        right.plot(counts, e, "o-", markersize=4, color=color)
    left.set(xlabel=r"$\lambda$: noise at the left, data at the right", yticks=range(len(grids)), yticklabels=grids)
    left.set_ylim(len(grids) - 0.5, -0.5)
    right.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="median error of 2M")
    right.set(xticks=counts, xticklabels=counts)
    right.minorticks_off()
    return figure


compare_grids()

# %% [markdown]
# With 16 evaluations the same method on the same ODE errs 15 times more if the grid is even in $t$, and its measured order from 8 to 16 is one half. At the right end the order is back. But with 16 steps $\lambda$ jumps so far in the last one that no line can follow. Even steps in $\sigma$ are hopeless: nearly all lie where nothing happens. Hence EDM's own spacing (Karras et al. 2022), which still spends more stops on noise than these data need.
#
# ## The step to zero
#
# Every run so far stopped at $t = 0.01$. Pictures must go on to $t = 0$, where $\lambda = \infty$: the last step is infinitely long. There DDIM, 2M and UniPC return $\hat x_0$. Euler takes its slope, and so does Heun. On VP schedules $\sigma$ grows like $\sqrt t$ at first, so $\sigma' = \sigma/2t$ there, and a step of $-t\,\sigma'$ removes *half* of the noise.
#
# Which is right? Let the data be a Gaussian of width $c$, and take the last step from noise of size $\sigma$.

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
          f"at sigma / c = {ratios[-1]:.0f} the result has {width[name][-1] * c / sigma:.3f} sigma")
assert 0.4 < width["Euler, Heun"][-1] * c / sigma < 0.5 and width["DDIM, 2M, UniPC"][-1] < 0.1
plots.lines({name: (ratios, w) for name, w in width.items()}, x="last noise / width of the data", log="xy",
            y="width of the result / true width")

# %% [markdown]
# Both are wrong. Where the data are wide compared with the last noise (left), both are close, and $\hat x_0$ is slightly too narrow: it is the *mean* of the possible pictures. Where the data are narrow (right), as in smooth areas of a picture, $\hat x_0$ wipes out fine detail, and Euler leaves about **half of the last noise** as grain. The cure is a last stop close to 0.
#
# ## A trained model, and a mystery
#
# Now `emoji-unet`, on 16-pixel pictures. The "exact" answer is that of the network's own ODE, a very fine run from the same noise. `bind` gives the network its labels and clips $\hat x_0$ to the range of pixels, $-1$ to $1$. The schedule is a cosine in a table of 1,000 steps, the grid even in $t$ down to 0, the error a root mean square over all pixels.

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
gap = pixel_error(draw("dpmpp_2m", long), reference)
print(f"UniPC and 2M with {long} evaluations differ by {gap:.4f}")
assert gap < (0.002 if run.tier != "smoke" else 0.1)
on_pictures = {name: [pixel_error(draw(name, n, **options[name]), reference) for n in budgets] for name in ORDERS}
calls = 2 * long + len(ORDERS) * sum(budgets)
print(f"about {1000 * (time.perf_counter() - began) / calls:.0f} ms for an evaluation of {len(labels)} pictures")
convergence({name: (budgets, errors) for name, errors in on_pictures.items()}, y="pixel error")

# %% [markdown]
# UniPC, then 2M, then DDIM: the ranking is as before. But Euler and Heun have gone mad. With 20 evaluations Euler errs six times as much as DDIM, and Heun is worse still. Is it the grain of the last step? Look at both ends.

# %%
smooth, table = schedules.cosine(steps=None), emoji_unet.schedule  # the formula, and the table made from it
(_, sigma), (_, sigma_rate) = table(0.05), table.rates(0.05)
print(f"20 even steps: the last begins at sigma = {sigma:.3f}, and Euler leaves {sigma - 0.05 * sigma_rate:.3f} of it")
for t in (1.0, 0.999, 0.99):
    print(f"t = {t}: alpha' from the table {table.rates(t)[0]:.3f}, from the formula {smooth.rates(t)[0]:.3f}")
assert smooth.rates(1.0)[0] / table.rates(1.0)[0] > 9
rescued = {name + " on the formula": [pixel_error(draw(name, n, schedule=smooth), reference) for n in budgets]
           for name in ("euler", "heun")}
for name, errors in (on_pictures | rescued).items():
    if name.split()[0] in ("euler", "ddim", "heun"):
        print(f"{name:20}", "  ".join(f"{n}: {e:.3f}" for n, e in zip(budgets, errors)))
for grid in ("uniform", "log_snr", "karras"):
    errors = [pixel_error(draw("dpmpp_2m", n, grid), reference) for n in budgets[:4]]
    print(f"2M on {grid:14}", "  ".join(f"{n}: {e:.3f}" for n, e in zip(budgets, errors)))

# %% [markdown]
# It is not the grain: Euler leaves 0.01 there, and errs by 0.37. It is the first step. The table caps its last $\beta$ at 0.999, so that $\alpha$ stays above 0 (notebook 01). In its last thousandth $\alpha$ therefore follows another curve, whose slope at $t = 1$ is nine times too small. Euler looks at the slope *there*, and trusts it for a whole step.
#
# Give Euler the formula, and it is as good as DDIM; Heun becomes three to eighteen times better. DDIM and its children never had the problem. They use the *values* of $\alpha$ and $\sigma$ at both ends of a step, never a derivative, and so they work on every schedule.
#
# The last lines try 2M on other grids. With 5 and 10 evaluations the grid even in $t$ is the best, from 20 on the one in log-SNR. No grid wins always.
#
# What does an error of 0.1 look like? Two emoji, from the same two noises.

# %%
columns = [5, 10, 20, 50] if run.tier != "smoke" else [5]
recipes = {"Euler": ("euler", {}), "Euler, formula": ("euler", {"schedule": smooth}), "DDIM": ("ddim", {}),
           "UniPC": ("unipc", {})}


def pair(x, which=(-3, -1)):
    """Two of the pictures side by side, (1, 3, 18, 36) with a thin frame."""
    framed = torch.nn.functional.pad(x[list(which)].cpu().clamp(-1, 1), (1, 1, 1, 1), value=0.6)
    return torch.cat(list(framed), dim=-1)


frames = [torch.stack([pair(draw(name, n, **o)) for name, o in recipes.values()]) for n in columns]
frames.append(torch.stack([pair(reference)] * len(recipes)))
plots.filmstrip(frames, times=[f"{n} evaluations" for n in columns] + [f"reference ({long})"], rows=list(recipes))

# %% [markdown]
# An error of 0.1 (DDIM, 10 evaluations) is hard to see. With 5, DDIM and UniPC make pale, smooth pictures, since $\hat x_0$ is a mean; Euler makes gaudy ones. The broken Euler may arrive at another picture.
#
# ## Guidance makes it harder
#
# People sample with classifier-free guidance (notebook 07), which exaggerates what the label does to a prediction. That makes the field steeper, and the clipping of $\hat x_0$ puts kinks into it. Take scale 4, with its own reference. In brackets: how many times as large as without guidance.

# %%
tried = budgets if run.tier != "smoke" else budgets[:2]
goal, guided = draw("unipc", long, guidance=4.0), {}
for name in ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc"):
    guided[name] = [pixel_error(draw(name, n, guidance=4.0, **options[name]), goal) for n in tried]
    grown = [f"{n:3}: {e:.3f} ({e / e1:.1f})" for n, e, e1 in zip(tried, guided[name], on_pictures[name])]
    print(f"{name:9}", "  ".join(grown))

# %% [markdown]
# With 5 and 10 evaluations the errors are 1.9 to 3.2 times as large, and the third order is no better than the second, or worse. Hence the authors' advice to use 2M for guided sampling (Lu et al. 2022b). Turn the knobs yourself.

# %%
def show(sampler="dpmpp_2m", evaluations=10, guidance=1.0, grid="uniform"):
    return plots.grid(draw(sampler, evaluations, grid, guidance).clamp(-1, 1), columns=5)


widgets.explore(show, sampler=["euler", "ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc"],
                evaluations=[3, 5, 10, 20, 50], guidance=[1.0, 2.0, 4.0, 8.0], grid=["uniform", "log_snr", "karras"])

# %% [markdown]
# ## What is noise good for?
#
# Why does anyone still sample with noise? Take the reverse SDE of notebook 04 apart ($s$ is the score, and $dt < 0$):
#
# $$dx = \underbrace{\big(f x - \tfrac12 g^2 s\big)\,dt}_{\text{the ODE}} \;+\; \underbrace{\big(-\tfrac12 g^2 s\big)\,dt + g\,d\bar w}_{\text{a Langevin step}}$$
#
# A Langevin step leaves the right distribution alone and pulls a wrong one towards it. So the SDE is an ODE, *corrected* at every level. DDIM's $\eta$ (not the step size of notebook 04) scales that noise, from none at 0 to DDPM's at 1. EDM's **churn** adds a little noise, so that $\sigma/\alpha$ grows by a factor of $1 + \gamma$, with $\gamma$ = churn / steps (at most 0.41), then takes a Heun step in $\sigma/\alpha$ down from there.
#
# Give it two kinds of errors to correct. The *early* error: above $t = 0.4$ the oracle's $\hat x_0$ is 0.3 too far right, below it is exact. The *constant* error: $\hat x_0$ is 5 % too small at all times. With noise there is no point to converge to. So compare crowds, by the energy distance of notebook 04, in thousandths, between 2,048 samples and 8,192 exact points at $t = 0.001$. The starts are a Sobol sequence, spread more evenly than by chance.

# %%
import itertools
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
# Sweep $\eta$ and the churn, 128 evaluations each, four throws of the dice; for the exact score also 16. Lower is better. Dotted: what as many exact samples score.

# %%
etas, churns = ([0, 0.25, 0.5, 1.0], [0, 2, 10, 30]) if run.tier != "smoke" else ([0, 1.0], [0, 20])
most, dice = (128, 4) if run.tier != "smoke" else (16, 1)
floor, swept = sum(energy_distance(oracle.sample(num, draws)) for _ in range(dice)) / dice, {}
networks = {"exact, 16 evaluations": (denoise, 16), "exact": (denoise, most), "early error": (early, most),
            "constant error": (constant, most)}
@plots.quiet
def sweep():
    figure, panels = plt.subplots(1, 2, figsize=(9.2, 3.2), sharey=True)
    for axes, sampler, option, values in zip(panels, ("ddim", "churn"), ("eta", "churn"), (etas, churns)):
        for name, (network, n) in networks.items():
            mean = dict.fromkeys(values, 0.0)
            for value, seed in itertools.product(values, range(dice)):
                torch.manual_seed(seed)
                x = solve(sampler, n, "log_snr", 1e-3, network, x=crowd, noise=torch.randn_like, **{option: value})
                mean[value] += energy_distance(x) / dice
            print(f"{option:5} {name:21}", *(f"{value}: {d:5.2f} " for value, d in mean.items()))
            axes.plot(values, mean.values(), "o-", markersize=4, label=name)
            swept[name, option] = [*mean.values()]
        axes.axhline(floor, color="#777777", linestyle=":", linewidth=1.2, label=f"exact samples: {floor:.2f}")
    panels[0].set(yscale="log", xlabel=r"$\eta$ of DDIM: noise in every step", ylabel="1000 x energy distance")
    panels[1].set(xlabel="churn: noise, then Heun's step")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure

sweep()

# %% [markdown]
# An **early error** is what noise is for. The ODE carries it to the end (4.4); the more noise, the more the later, correct score repairs, down to the level of exact samples. A **constant error** is the opposite: noise makes it up to four times worse. Each repair asks the same wrong score, and the crowd settles where *that* score wants it. The **exact** score needs no repair. With 128 evaluations noise costs nothing but the even spread of the starts. With **16** it costs a lot: steps that are too large already must digest every kick. (Eight steps reach the cap on $\gamma$ at churn 3.3, hence the flat end.)
#
# So it depends on the network, as Karras et al. (2022) found: churn helped their ImageNet model and harmed the better one on CIFAR-10.
#
# ## Which sampler?
#
# Do errors against the ODE matter for what the pictures look like? Judge sets of pictures by the kernel distance of their features to those of real emoji (lower is better; [notebook 09](09_training_well.ipynb) is about such judges).

# %%
from minidiff.metrics import kernel_distance, load_features

emoji = minidiff.load_dataset("emoji", size=16)
shuffled = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(run.seed))
each, few = (128, [5, 10, 20, 50]) if run.tier != "smoke" else (8, [5, 10])
kinds, real = torch.as_tensor(emoji.labels)[shuffled[:each]], emoji.images()[shuffled[: 1500 if each > 8 else 50]]
features, quality, spread = load_features("emoji"), {}, 0.0
for name, option in {"ddim": {}, "ddim, eta = 1": {"eta": 1.0}, "dpmpp_2m": {}, "unipc": {}}.items():
    quality[name] = []
    for n in few:
        made = minidiff.sample(emoji_unet, each, y=kinds, sampler=name.split(",")[0], steps=n, progress=False, **option)
        judged = kernel_distance(real, made.cpu().clamp(-1, 1), features)
        quality[name], spread = [*quality[name], judged.value], max(spread, judged.spread)
    print(f"{name:13}", "  ".join(f"{n}: {q:.3f}" for n, q in zip(few, quality[name])))
print(f"standard deviation over random halves of the pictures: at most {spread:.3f}")
plots.lines({name: (few, q) for name, q in quality.items()}, x="evaluations", y="kernel distance")

# %% [markdown]
# The ranking is that of the errors. From 20 evaluations on, 2M and UniPC have nothing left to gain: what remains is the network's own fault. Noise ($\eta = 1$) is worst with few steps and catches up at 50. (Halves of so few pictures differ more than that, but all four samplers get the same noises and labels.)
#
# The notebook in one table, the best of each column in bold. Euler and Heun have the broken slopes on emoji. The last column is the price of a step without the network: nothing beside an evaluation, timed above.

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


rows = {name: [*found[name][1:3], *on_pictures[name][1:3], quality.get(name, [math.nan] * 2)[1]] for name in ORDERS}
best = [min(v for v in column if not math.isnan(v)) for column in zip(*rows.values())]
lines = ["| sampler | order | mixture: error with 8 | with 16 | emoji: error with 10 | with 20 "
         "| kernel distance with 10 | own arithmetic |", "|" + "---|" * 8]
for name, row in rows.items():
    shown = [f"**{v:.2g}**" if v == b else "" if math.isnan(v) else f"{v:.2g}" for v, b in zip(row, best)]
    lines.append(f"| {name} | {order(found[name]):.2f} | {' | '.join(shown)} | {overhead(name):.2f} ms |")
Markdown("\n".join(lines))

# %% [markdown]
# | you have | take |
# |---|---|
# | 5 to 20 evaluations | UniPC or 2M; under guidance order two, not three |
# | 20 to 50, and no wish to think | 2M: hardly longer than DDIM, never bad here |
# | to encode a picture and decode it again, or to explain a sampler | DDIM |
# | a model in EDM's form, 35 evaluations | Heun in $\sigma$ (`churn` with churn 0) on Karras's grid: their finding |
# | 100 evaluations, and doubts about the network at high noise | some noise: `churn`, or DDIM with $\eta > 0$ |
#
# ## What the papers found, what you measured

# %%
def at(values, *places):
    return " / ".join(f"{values[k]:.3g}" for k in places)


findings = [
    ("On CIFAR-10 in 10 steps FID 13.4 with DDIM, 41 with its noise (Song et al. 2021, table 1)",
     f"kernel distance in 10 steps {at(quality['ddim'], 1)}, with noise {at(quality['ddim, eta = 1'], 1)}"),
    ("DDIM is first-order DPM-Solver (Lu et al. 2022, section 4)",
     f"equal to {alike:.0e}; order "
     f"{order(found['ddim']):.2f}"),
    ("2M has second order, and suits guided sampling (Lu et al. 2022b)",
     f"order {order(found['dpmpp_2m']):.2f}; guided, 10 evaluations, 2M / 3M: "
     f"{at(guided['dpmpp_2m'], 1)} / {at(guided['dpmpp_3m'], 1)}"),
    ("UniPC's corrector helps most with few evaluations (Zhao et al. 2023)",
     f"pixel error with 5 / 10 / 20: 2M {at(on_pictures['dpmpp_2m'], 0, 1, 2)}, "
     f"UniPC {at(on_pictures['unipc'], 0, 1, 2)}"),
    ("Heun gives the best trade-off in sigma, with 18 steps (Karras et al. 2022, section 3)",
     f"in t: not below 16 evaluations (mixture, 8 / 16: {at(found['heun'], 1, 2)}, Euler {at(found['euler'], 1, 2)})"),
    ("Noise helps some models and harms others (Karras et al. 2022, section 4)",
     f"no churn / much: early error {at(swept['early error', 'churn'], 0, -1)}, "
     f"constant error {at(swept['constant error', 'churn'], 0, -1)}"),
]
Markdown("| paper | here |\n|---|---|\n" + "\n".join(f"| {paper} | {here} |" for paper, here in findings))

# %% [markdown]
# ## Exercises
#
# **1. A fair budget (a line or two).** On a budget of evaluations, how many steps may each take, down to $t = 0$? Heun's last step is Euler's. A *predictor-corrector* follows each Langevin step with a step of the SDE, so every step costs two, the last one too.

# %% tags=["exercise"] name="steps_for"
def steps_for(evaluations, sampler):
    """The most steps that cost at most so many; sampler: "ddim", "dpmpp_2m", "heun" or "predictor_corrector"."""
    ...  # your code

# %% [markdown]
# The check counts.

# %%
exercises.check_steps_for(steps_for)

# %% [markdown]
# **2. Second order without a memory.** Go half-way *in $\lambda$* by DDIM, evaluate there, and use that prediction for the whole step, from the start. This is DPM-Solver++(2S), S for single step. Use the `schedule` that you are given: `exponential_step` above knows `vp` alone. `schedule.inverse(log_snr)` is the time of a log-SNR.

# %% tags=["exercise"] name="midpoint_step"
def midpoint_step(denoise, schedule, x, t, s):
    """x at s < t, both above 0, with two evaluations of denoise(x, t).x0; schedule.log_snr(t) is 2 lambda."""
    ...  # your code

# %% [markdown]
# The check tries two schedules.

# %%
exercises.check_midpoint_step(midpoint_step)

# %% [markdown]
# **3. The trick of 1883.** Bashforth and Adams had second order at one evaluation a step. Write it for $dx/dt = u(x, t)$ on an uneven grid: continue the line in $t$ through the two latest slopes, and walk along its value half a step ahead. The first step is Euler's.

# %% tags=["exercise"] name="adams_bashforth"
def adams_bashforth(u, x, times):
    """x at times[-1], from x at times[0]; times fall. u(x, t) may be called once a step."""
    ...  # your code

# %% [markdown]
# The check takes uneven steps.

# %%
exercises.check_adams_bashforth(adams_bashforth)

# %% [markdown]
# **A project: the best grid.** `spacing(schedule, steps, "karras", rho=...)` goes from even in $\sigma/\alpha$ (rho 1) to nearly even in log-SNR (large rho). Find the best rho for 2M with 8 evaluations, on the mixture and on `emoji-unet`. Then let an optimiser move the stops. Does its grid also win for other noises?
#
# ## What you learned
#
# - A sampler is an integrator. Its cost is counted in evaluations; its order is a promise for small steps alone.
# - Solve the linear part exactly: with $\hat x_0$ held constant you get DDIM, with $\hat x_0$ on a line in $\lambda$ DPM-Solver++ 2M. Neither needs a derivative of the schedule.
# - A bad grid can cost more than a good method gains, and the step to zero is infinitely long in $\lambda$.
# - Noise repairs errors made earlier, and amplifies errors made always.
#
# ## Where to read on
#
# - Song et al., *Denoising diffusion implicit models*, 2021, arXiv 2010.02502.
# - Karras et al., *Elucidating the design space of diffusion-based generative models*, 2022, arXiv 2206.00364.
# - Lu et al., *DPM-Solver*, 2022, arXiv 2206.00927; *DPM-Solver++*, 2022b, arXiv 2211.01095. Zhang and Chen, *Fast sampling of diffusion models with exponential integrator*, 2023, arXiv 2204.13902.
# - Zhao et al., *UniPC*, 2023, arXiv 2302.04867. Xu et al., *Restart sampling for improving generative processes*, 2023, arXiv 2306.14878.
# - Hochbruck and Ostermann, *Exponential integrators*, Acta Numerica 2010. Hairer et al., *Solving ordinary differential equations I*.
#
# Next comes [notebook 06](06_flow_matching.ipynb), *Flow matching*: choose the path so that it is easy to integrate.
