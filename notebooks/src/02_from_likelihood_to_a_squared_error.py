# %% [markdown]
# # 02 From likelihood to a squared error
#
# After this notebook you can derive the loss that trains every diffusion model from the likelihood of the data, and say
# at each step what is exact, what is a bound, and what was simply dropped.
#
# Run time: one to two minutes on two CPU cores; a GPU is not needed and not used.
#
# Goals:
#
# - turn an integral that nobody can do into a sum of small, exact terms
# - derive the posterior $q(x_{t-1}\mid x_t, x_0)$ and the KL divergence of two Gaussians, and check both by brute force
# - see when a reverse step is Gaussian, and when it is not at all
# - know what the best possible denoiser is, and why its loss is not zero
# - measure a model in bits per dimension, and find out where its bound loses bits

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Why is the loss a squared error?
#
# The recipe that trains diffusion models fits in one line: add noise to a picture, let a network guess the noise, take
# the squared error. Nothing in it speaks of probability. Yet the trained network gives you new pictures with the right
# frequencies. Why should it?
#
# The answer is a derivation, and you will not have to trust any step of it. Real pictures have thousands of pixels, and
# no integral over them can be done. So take pictures with **one pixel**. It has 256 grey levels, and some are more
# common than others. Now every expectation is a sum over 256 levels or an integral along a line, and brute force can
# judge every claim.

# %%
import math
import torch

levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1  # the grey levels in [-1, 1]
bumps = [(0.35, -0.65, 0.06), (0.40, 0.05, 0.16), (0.25, 0.75, 0.04)]  # share, centre, width
histogram = sum(share * torch.softmax(-((levels - c) / w) ** 2 / 2, 0) for share, c, w in bumps)  # (256,)
entropy = -(histogram * histogram.log2()).sum().item()
print(f"the shares add up to {histogram.sum():.6f}, the entropy is {entropy:.4f} bits")


@plots.quiet
def draw_data():
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6.2, 2.6))
    axes.bar(levels, histogram, width=2 / 255, color=plots.COLORS[4])
    axes.set(xlabel="grey level $x_0$ (-1 black, 1 white)", ylabel="share of pictures")
    return figure


draw_data()

# %% [markdown]
# ## Why likelihood
#
# A model is a distribution $p$ over pictures. How good is it? Let it compress the data. The best code that $p$ can make
# spends $-\log_2 p(x_0)$ bits on picture $x_0$: short words for what it expects, long ones for what surprises it. The
# average over the data $q$ splits into two parts:
#
# $$-\mathbb E_q \log_2 p(x_0) \;=\; \underbrace{-\mathbb E_q \log_2 q(x_0)}_{\text{entropy, the floor}}
# \;+\; \underbrace{\mathbb E_q \log_2 \frac{q(x_0)}{p(x_0)}}_{\mathrm{KL}(q\,\|\,p)\;\ge\;0}.$$
#
# The first part belongs to the data. The second is a distance of sorts: it is zero only for $p = q$. So maximising the
# likelihood, shortening the code and moving $p$ towards the data are the same thing. Three models:

# %%
mean = histogram @ levels
std = (histogram @ (levels - mean) ** 2).sqrt()
models = {
    "all levels alike": torch.full((256,), 1 / 256, dtype=torch.float64),
    "one Gaussian": torch.softmax(-((levels - mean) / std) ** 2 / 2, 0),
    "the data itself": histogram,
}
bits = {name: -(histogram @ p.log2()).item() for name, p in models.items()}
for name, p in models.items():
    divergence = (histogram @ (histogram / p).log2()).item()
    assert math.isclose(bits[name], entropy + divergence)
plots.bars(list(bits), list(bits.values()), x="average code length in bits per pixel", best="low")

# %% [markdown]
# The Gaussian has the right mean and the right width, and is worse than knowing nothing: it spends its probability
# where no pictures are. No model can do better than the last bar.
#
# ## Down the ladder
#
# A diffusion model reaches the data through a ladder of distributions. The rungs are made by noise, as in
# [notebook 01](01_destroying_images_properly.ipynb): $x_t = \alpha_t x_0 + \sigma_t \varepsilon$. Given $x_0$, that is a
# Gaussian, so the distribution of *all* noisy pictures, the **marginal** $q(x_t)$, is a sum of 256 Gaussians.

# %%
from minidiff import schedules

schedule = schedules.linear(1000)


def normal(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


def marginal(schedule, x, t):  # q(x_t) at the points x (N,)
    alpha, sigma = schedule(t)
    return normal(x[:, None], alpha * levels, sigma**2) @ histogram


def line(schedule, t, width):
    """A grid (N,) that covers all of q(x_t), with spacing `width`."""
    alpha, sigma = schedule(t)
    return torch.arange(-alpha - 7 * sigma, alpha + 7 * sigma, width, dtype=torch.float64)

# %% [markdown]
# Draw some rungs, from almost clean data at the top to pure noise at the bottom. The dashed line is the standard
# normal.

# %%
@plots.quiet
def draw_ladder(times):
    import matplotlib.pyplot as plt
    figure, rungs = plt.subplots(len(times), 1, figsize=(6.2, 0.78 * len(times)), sharex=True)
    x = torch.linspace(-2.6, 2.6, 700, dtype=torch.float64)
    for axes, t in zip(rungs, times):
        axes.fill_between(x, marginal(schedule, x, t), color=plots.COLORS[4], linewidth=0)
        axes.plot(x, normal(x, 0.0, 1.0), color=plots.COLORS[1], linestyle="--", linewidth=1)
        axes.set(yticks=[], ylim=(0, None), xlabel="$x_t$" if t == times[-1] else "")
        axes.set_ylabel(f"t = {t:g}", rotation=0, ha="right", va="center")
    return figure


draw_ladder([0.02, 0.1, 0.2, 0.3, 0.5, 1])

# %% [markdown]
# ## Up the ladder: an integral nobody can do
#
# The model climbs. It starts with noise, $p(x_T) = \mathcal N(0, 1)$, and takes steps $p_\theta(x_{t-1}\mid x_t)$ with
# learnt parameters $\theta$, until it arrives at a picture. Its likelihood sums over all paths that end there:
#
# $$p_\theta(x_0) = \int p(x_T)\, \prod_{t=1}^{T} p_\theta(x_{t-1}\mid x_t)\; dx_1 \cdots dx_T .$$
#
# With one pixel you can do that on a grid, and later you will. With many you cannot, and sampling does not help either:
# a random path arrives at one given picture with probability $p_\theta(x_0)$, so you wait for about $1/p_\theta(x_0)$
# of them. How long is that for 16 x 16 colour pictures, were their values independent and distributed as here?

# %%
values = 3 * 16 * 16
print(f"one pixel: a path in {2**entropy:.0f} arrives")
print(f"{values} values: a path in 10^{values * entropy * math.log10(2):.0f} arrives")

# %% [markdown]
# ## A bound that needs no luck
#
# Nearly all paths miss $x_0$. So use only paths that do not: take $x_0$ and destroy it. That gives paths
# $x_{1:T} = (x_1, \dots, x_T)$ from $q(x_{1:T}\mid x_0)$, all of which lead to $x_0$ when walked upwards. Multiply and
# divide by their density, then pull the logarithm inside the average. It is concave, so the average of the
# logarithm is at most the logarithm of the average (Jensen):
#
# $$-\log p_\theta(x_0) = -\log \mathbb E_{q}\left[\frac{p_\theta(x_{0:T})}{q(x_{1:T}\mid x_0)}\right]
# \;\le\; \mathbb E_{q}\left[\log\frac{q(x_{1:T}\mid x_0)}{p_\theta(x_{0:T})}\right] =: L(x_0).$$
#
# $L$ is the **variational bound** (its negative is the evidence lower bound, ELBO). What it loses is exactly
# $\mathrm{KL}\big(q(x_{1:T}\mid x_0)\,\|\,p_\theta(x_{1:T}\mid x_0)\big)$: how far your paths are from the paths that
# the model itself would take to $x_0$.
#
# Now sort the factors by step. The numerator has steps down, $q(x_t\mid x_{t-1})$; the denominator has steps up. Turn
# the steps down around with Bayes, keeping $x_0$ in mind throughout:
#
# $$q(x_t\mid x_{t-1}) = q(x_{t-1}\mid x_t, x_0)\;\frac{q(x_t\mid x_0)}{q(x_{t-1}\mid x_0)}
# \qquad\text{for } t \ge 2.$$
#
# In the product over $t$ the fractions cancel, each with its neighbour. All that stays is $q(x_T\mid x_0)$ from the
# top, since the $q(x_1\mid x_0)$ at the bottom cancels the first step down. Three kinds of terms are left (Ho et al.
# 2020, eq. 5):
#
# $$L = \underbrace{\mathrm{KL}\big(q(x_T\mid x_0)\,\|\,p(x_T)\big)}_{L_T:\ \text{is the end noise?}}
# + \sum_{t=2}^{T} \underbrace{\mathbb E_q\,\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\,\|\,p_\theta(x_{t-1}\mid x_t)\big)}
# _{L_{t-1}:\ \text{one step up}}
# \;\underbrace{-\;\mathbb E_q\log p_\theta(x_0\mid x_1)}_{L_0:\ \text{the last step}} .$$
#
# No integral over paths is left. Each term needs one $x_t$, and you can draw that in one go. This is why a diffusion
# model can train on one random time per picture. Two ingredients are missing: the posterior
# $q(x_{t-1}\mid x_t,x_0)$, and the KL divergence of two Gaussians.
#
# ## Ingredient one: where was the pixel a step ago?
#
# You see $x_t$ and you know the original $x_0$. Where was the pixel at an earlier time $s$? Two things speak. One is
# the prior $q(x_s\mid x_0) = \mathcal N(\alpha_s x_0, \sigma_s^2)$. The other is the step down,
# $q(x_t\mid x_s) = \mathcal N(r x_s, \beta)$ with $r = \alpha_t/\alpha_s$ and $\beta = \sigma_t^2 - r^2\sigma_s^2$; for neighbours in
# DDPM this $\beta$ is $\beta_t$. Multiply the two, and in the exponent you get a parabola in $x_s$:
#
# $$-\tfrac12\left[\frac{(x_t - r x_s)^2}{\beta} + \frac{(x_s-\alpha_s x_0)^2}{\sigma_s^2}\right]
# = -\tfrac12\left[\Big(\frac{r^2}{\beta}+\frac1{\sigma_s^2}\Big) x_s^2
# - 2\Big(\frac{r x_t}{\beta}+\frac{\alpha_s x_0}{\sigma_s^2}\Big)x_s + \dots\right].$$
#
# A parabola $-\frac12(a x_s^2 - 2 b x_s)$ is a Gaussian with variance $1/a$ and mean $b/a$: that is all that completing
# the square says. Since $r^2\sigma_s^2 + \beta = \sigma_t^2$, the two come out as
#
# $$\tilde\beta = \beta\,\frac{\sigma_s^2}{\sigma_t^2}, \qquad
# \tilde\mu(x_t, x_0) = \frac{\beta}{\sigma_t^2}\,\alpha_s\; x_0 + r\,\frac{\sigma_s^2}{\sigma_t^2}\; x_t .$$

# %%
from minidiff.variational import gaussian_kl, log_variance, posterior, step_variances


def my_posterior(schedule, x0, x_t, s, t):
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    r = alpha_t / alpha_s
    beta = sigma_t**2 - r**2 * sigma_s**2
    mean = beta / sigma_t**2 * alpha_s * x0 + r * sigma_s**2 / sigma_t**2 * x_t
    return mean, beta * sigma_s**2 / sigma_t**2


x0, x_t = torch.randn(2, 5, dtype=torch.float64)
for s, t in ((0.001, 0.002), (0.2, 0.5), (0.999, 1.0)):
    mine, theirs = my_posterior(schedule, x0, x_t, s, t), posterior(schedule, x0, x_t, s, t)
    assert torch.allclose(mine[0], theirs[0]) and math.isclose(mine[1], theirs[1], rel_tol=1e-6)
print("agrees with minidiff.variational.posterior, which is also Diffusion.posterior")

# %% [markdown]
# Both could have made the same slip. Bayes on a grid knows nothing of squares: prior times likelihood at each point,
# then divide by the sum.

# %%
s, t, x0, x_t = 0.1, 0.2, 0.75, -0.2
(alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
beta = step_variances(schedule, s, t)[1]
x = torch.linspace(-2, 2, 801, dtype=torch.float64)
prior = normal(x, alpha_s * x0, sigma_s**2)
likelihood = normal(torch.tensor(x_t), alpha_t / alpha_s * x, beta)  # as a function of x_s
by_bayes = prior * likelihood / ((prior * likelihood).sum() * (x[1] - x[0]))
mean, variance = my_posterior(schedule, x0, x_t, s, t)
assert torch.allclose(by_bayes, normal(x, mean, variance), atol=1e-6)
figure = plots.lines({"prior: noise on $x_0$ = 0.75": (x, prior), "likelihood of $x_t$ = -0.2": (x, likelihood),
                      "posterior, by the formula": (x, normal(x, mean, variance))},
                     x=f"$x_s$ at s = {s} (seen from t = {t})", y="density")
figure.axes[0].plot(x[::20], by_bayes[::20], "k.", label="posterior, by brute force")
figure.axes[0].legend(frameon=False, fontsize=9)
figure

# %% [markdown]
# The posterior lies between what $x_0$ suggests and what $x_t$ suggests, and is narrower than either.
#
# **Exercise 1.** Papers write the same thing for neighbouring steps with $\beta_t$ and
# $\bar\alpha_t = \prod_{i\le t}(1-\beta_i) = \alpha_t^2$. Write that version: from the table of betas, the three tables
# of Ho et al. (2020), eq. 7. Mind the first entry, whose predecessor is the clean picture.

# %% tags=["exercise"] name="posterior_coefficients"
def posterior_coefficients(betas):
    """betas (T,) -> (on_x0, on_x_t, variance), (T,) each, of q(x_{t-1} | x_t, x0)."""
    ...

# %% [markdown]
# Check it:

# %%
exercises.check_posterior_coefficients(posterior_coefficients)

# %% [markdown]
# ## Ingredient two: the distance between two Gaussians
#
# $\mathrm{KL}(p_1\|p_2)$ is the average of $\log p_1 - \log p_2$ over $p_1$, in nats with the natural logarithm.
# For two Gaussians with means $m_i$ and variances $v_i$ the logarithms are parabolas:
#
# $$\log p_1(x)-\log p_2(x) = \tfrac12\Big[\log\frac{v_2}{v_1} - \frac{(x-m_1)^2}{v_1} + \frac{(x-m_2)^2}{v_2}\Big].$$
#
# Under $p_1$ the middle square averages to $v_1$, and the last to $v_1 + (m_1-m_2)^2$. Therefore
#
# $$\mathrm{KL} = \tfrac12\Big[\log\frac{v_2}{v_1} - 1 + \frac{v_1}{v_2} + \frac{(m_1-m_2)^2}{v_2}\Big].$$
#
# If the variances agree, only $(m_1-m_2)^2/2v_2$ is left. **That is where the squared error comes from.**

# %%
def my_kl(m_1, v_1, m_2, v_2):
    return (math.log(v_2 / v_1) - 1 + v_1 / v_2 + (m_1 - m_2) ** 2 / v_2) / 2


def kl_by_dice(m_1, v_1, m_2, v_2, n=100_000):
    x = m_1 + v_1**0.5 * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gaps = normal(x, m_1, v_1).log() - normal(x, m_2, v_2).log()
    return gaps.mean().item(), (gaps.std() / n**0.5).item()


ratios = [0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 5.0]  # v_2 / v_1: how wide the model's step is against the true one
for ratio in ratios:
    estimate, error = kl_by_dice(0.0, 1.0, 0.5, ratio)
    assert abs(estimate - my_kl(0.0, 1.0, 0.5, ratio)) < 4 * error + 1e-9
    theirs = gaussian_kl(*torch.tensor([0.0, 0.0, 0.5, math.log(ratio)], dtype=torch.float64)).item()
    assert math.isclose(my_kl(0.0, 1.0, 0.5, ratio), theirs)
wide = torch.logspace(-1, 1, 80, base=6).tolist()
figure = plots.lines({f"means differ by {gap}": (wide, [my_kl(0.0, 1.0, gap, r) for r in wide]) for gap in (0.5, 0.0)},
                     x="variance of the model / true variance", y="KL (nats)", log="x")
figure.axes[0].plot(ratios, [kl_by_dice(0.0, 1.0, 0.5, r)[0] for r in ratios], "k.", label="100,000 draws")
figure.axes[0].set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
figure.axes[0].set_xticks([], minor=True)
figure.axes[0].legend(frameon=False, fontsize=9)
figure

# %% [markdown]
# The curve is lopsided. Too wide by a factor of five costs little, too narrow by the same factor costs a lot. Keep that
# in mind; it will explain a mystery at the end.
#
# **Exercise 2.** Pictures have many pixels. Write the KL divergence of two Gaussians in $D$ dimensions with full
# covariance matrices, in nats. The three averages above become a trace, a quadratic form and a log-determinant.

# %% tags=["exercise"] name="kl_full"
def kl_full(mean_1, cov_1, mean_2, cov_2):
    """KL(N(mean_1, cov_1) || N(mean_2, cov_2)) with means (D,) and covariances (D, D): a scalar tensor."""
    ...

# %% [markdown]
# Check it:

# %%
exercises.check_kl_full(kl_full)

# %% [markdown]
# ## May a step up be Gaussian?
#
# The model's steps $p_\theta(x_{t-1}\mid x_t)$ will be Gaussians. But what they should match on average is the true way
# back, $q(x_s\mid x_t)$ *without* knowing $x_0$, and nobody said that this is a Gaussian. On the grid it is Bayes once
# more, with the marginal $q(x_s)$ as the prior. Take $x_t = 0.1$ at $t = 0.3$ and look back over steps of four sizes:

# %%
def way_back(schedule, x_t, s, t):
    """The density q(x_s | x_t) on a grid, for x_t (M,): grid (N,), density (M, N), and its mean and variance (M,)."""
    ratio, beta = schedule(t)[0] / schedule(s)[0], step_variances(schedule, s, t)[1]
    width = min(schedule(s)[1], beta**0.5) / 8
    x = line(schedule, s, width)
    density = marginal(schedule, x, s) * normal(x_t[:, None], ratio * x, beta)
    density = density / (density.sum(1, keepdim=True) * width)
    mean = density @ x * width
    return x, density, mean, density @ x**2 * width - mean**2


@plots.quiet
def draw_ways_back(x_t, t, sizes):
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, len(sizes), figsize=(9.6, 2.7))
    for axes, size in zip(panels, sizes):
        x, density, mean, variance = way_back(schedule, torch.tensor([x_t], dtype=torch.float64), t - size, t)
        axes.fill_between(x, density[0], color=plots.COLORS[4], linewidth=0)
        axes.plot(x, normal(x, mean, variance), color=plots.COLORS[1], linewidth=1.3)
        reach = 3.6 * variance.item() ** 0.5
        axes.set(title=f"step of {size:g}", xlabel="$x_s$", xlim=(mean.item() - reach, mean.item() + reach), yticks=[])
    return figure


draw_ways_back(0.1, 0.3, [0.28, 0.2, 0.1, 0.01])

# %% [markdown]
# Blue is the truth, orange the Gaussian with the same mean and variance. In one big step the pixel may have come from
# any of three bumps, and a single Gaussian puts its weight into the gaps between them. In a small step the truth *is* a
# Gaussian, to the eye. How fast does that happen? Average the KL divergence from the truth to its Gaussian over all
# $x_t$.

# %%
t, sizes, misfit = 0.3, [0.28, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01], []
x_t = torch.linspace(-3, 3, 61, dtype=torch.float64)
weight = marginal(schedule, x_t, t) / marginal(schedule, x_t, t).sum()
for size in sizes:
    x, density, mean, variance = way_back(schedule, x_t, t - size, t)
    log_gaussian = -((x - mean[:, None]) ** 2) / (2 * variance[:, None]) - (2 * math.pi * variance[:, None]).log() / 2
    gaps = torch.special.xlogy(density, density) - density * log_gaussian
    misfit.append((weight @ gaps.sum(1) * (x[1] - x[0])).item())
print(f"halving the step from 0.2 to 0.1 divides the misfit by {misfit[1] / misfit[3]:.0f}, "
      f"from 0.02 to 0.01 by {misfit[5] / misfit[6]:.1f}")
plots.lines({"": (sizes, misfit)}, x="size of the step in t, back from t = 0.3", y="KL to the best Gaussian", log="xy")

# %% [markdown]
# Halve the step, and there are twice as many, but each fits nine times better or more. Why? The logarithm of
# $q(x_s\mid x_t)$ is the parabola of the step plus $\log q(x_s)$. A small step makes the parabola so narrow that within
# its reach $\log q(x_s)$ is a straight line, which only shifts it. That is what buys Gaussian steps, and what costs a
# thousand of them.
#
# ## From KL to a squared error
#
# So let $p_\theta(x_{t-1}\mid x_t)$ be Gaussian, with mean $\tilde\mu(x_t, \hat x_0)$: the posterior mean, with the
# network's guess $\hat x_0$ in the place of the unknown $x_0$. Give it the variance $\tilde\beta$ as well. Then the
# variances cancel, $x_t$ cancels, and one term of the bound is
#
# $$L_{t-1} = \frac{(\tilde\mu(x_t,x_0) - \tilde\mu(x_t,\hat x_0))^2}{2\tilde\beta} = w\,(x_0-\hat x_0)^2,
# \qquad w = \frac{1}{2\tilde\beta}\Big(\frac{\beta\,\alpha_s}{\sigma_t^2}\Big)^2
# = \tfrac12\Big(\frac{\alpha_s^2}{\sigma_s^2} - \frac{\alpha_t^2}{\sigma_t^2}\Big).$$
#
# The last form takes a line of algebra and is worth it: the weight is half the **signal-to-noise ratio** that the step
# up gains (Kingma et al. 2021). And if the network guesses the noise, then $x_0 = (x_t - \sigma_t\varepsilon)/\alpha_t$
# turns an error in $\varepsilon$ into one in $x_0$, larger by $\sigma_t/\alpha_t$:
#
# $$L_{t-1} = \lambda_t\,(\varepsilon-\hat\varepsilon)^2, \qquad \lambda_t = w\,\frac{\sigma_t^2}{\alpha_t^2}.$$

# %%
from minidiff.prediction import KINDS, Prediction
from minidiff.variational import variational_term


def weight_on_x0(schedule, t):  # of the step from t to t - 1/T
    s = t - 1 / schedule.steps
    return (math.exp(schedule.log_snr(s)) - math.exp(schedule.log_snr(t))) / 2


x0, guess, eps = torch.randn(3, 4, 1, 1, 1, dtype=torch.float64)
for index in (2, 50, 500, 1000):
    t, (alpha, sigma) = index / 1000, schedule(index / 1000)
    x_t = alpha * x0 + sigma * eps
    term = variational_term(schedule, x0, torch.full((4,), t, dtype=torch.float64),
                            Prediction("x0", x_t, guess, alpha, sigma), "small") * math.log(2)  # bits -> nats
    eps_guess = (x_t - alpha * guess) / sigma
    on_x0, on_eps = weight_on_x0(schedule, t), weight_on_x0(schedule, t) * sigma**2 / alpha**2
    assert torch.allclose(term, on_x0 * (x0 - guess).flatten() ** 2)
    assert torch.allclose(term, on_eps * (eps - eps_guess).flatten() ** 2)
    print(f"step {index:4}: weight on x0 {on_x0:10.4g}, on eps {on_eps:8.4g}")

# %% [markdown]
# ## The best guess is an average
#
# What does a network do that minimises a squared error? Say many different $x_0$ could have led to this $x_t$. The
# guess $g$ pays $\mathbb E[(x_0-g)^2\mid x_t]$. Write $m = \mathbb E[x_0\mid x_t]$, and the middle term of the square
# vanishes:
#
# $$\mathbb E[(x_0-g)^2\mid x_t] = \operatorname{Var}[x_0\mid x_t] + (m-g)^2 .$$
#
# So the best guess is the mean of all originals that are still possible, and what it pays even then is their
# variance. The loss of a perfect network is **not zero**. For one pixel both are sums over 256 levels:

# %%
def best_guess(schedule, x, t):
    """E[x0 | x_t] and Var[x0 | x_t] at the points x (N,)."""
    alpha, sigma = schedule(t)
    possible = torch.softmax(histogram.log() - (x[:, None] - alpha * levels) ** 2 / (2 * sigma**2), 1)  # (N, 256)
    mean = possible @ levels
    return mean, possible @ levels**2 - mean**2


x_t, t = torch.tensor([0.1], dtype=torch.float64), 0.2
alpha, sigma = schedule(t)
possible = histogram * normal(x_t, alpha * levels, sigma**2)
possible = possible / possible.sum()
guesses = torch.linspace(-1, 1, 4001, dtype=torch.float64)  # try them all
costs = ((levels - guesses[:, None]) ** 2) @ possible
mean, spread = best_guess(schedule, x_t, t)
assert abs(guesses[costs.argmin()] - mean) < 5e-4 and abs(costs.min() - spread) < 1e-6
print(f"cheapest of 4,001 guesses: {guesses[costs.argmin()]:.4f} at {costs.min():.4f}; "
      f"mean {mean.item():.4f}, variance {spread.item():.4f}")

# %% [markdown]
# The best guess as a function of what you see, at three noise levels. The band is one standard deviation of what $x_0$
# may be.

# %%
@plots.quiet
def draw_best_guess(times, learnt=None):
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, len(times), figsize=(9.6, 3.0), sharey=True)
    for axes, t in zip(panels, times):
        reach = schedule(t)[0] + 2 * schedule(t)[1]
        x = torch.linspace(-reach, reach, 400, dtype=torch.float64)
        mean, spread = best_guess(schedule, x, t)
        axes.fill_between(x, mean - spread.sqrt(), mean + spread.sqrt(), color="#D6EAF6", linewidth=0)
        axes.plot(x, mean, label="best guess, exact")
        if learnt is not None:
            axes.plot(x, learnt(x, t), color=plots.COLORS[1], linestyle="--", label="learnt")
        axes.set(xlabel="$x_t$", title=f"t = {t:g}")
    panels[0].set_ylabel("guess of $x_0$")
    panels[0].legend()
    return figure


draw_best_guess([0.05, 0.2, 0.5])

# %% [markdown]
# With little noise it is a staircase with three soft steps, one a bump. With much noise it sinks to the mean of all
# data, whatever you see: regression to the mean. At $t = 0.2$ it passes smoothly through values that hardly any picture
# has.
#
# In the plane that looks stranger still. The data are two moons; the orange dots are originals that may have led to the
# noisy point in black, the larger the more likely. The best guess is the green cross.

# %%
moons = minidiff.load_dataset("moons", num=500).images().double()  # (500, 2)


@plots.quiet
def draw_moons(x_t, times):
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, len(times), figsize=(9.6, 3.1))
    for axes, t in zip(panels, times):
        alpha, sigma = schedule(t)
        possible = torch.softmax(-((x_t - alpha * moons) ** 2).sum(1) / (2 * sigma**2), 0)  # (500,)
        axes.plot(*moons.T, ".", color="#C8C8C8", markersize=2.5, zorder=1)
        axes.scatter(*moons.T, s=(5000 * possible).clamp(max=60), color=plots.COLORS[3], linewidths=0, zorder=2)
        axes.plot(*(possible @ moons), "P", color=plots.COLORS[2], markersize=12, markeredgecolor="white", zorder=3)
        axes.plot(*x_t, "o", color="black", markersize=4.5, zorder=4)
        axes.set(title=f"t = {t:g}", aspect="equal", xlim=(-1.1, 1.1), ylim=(-0.7, 0.7), xticks=[-1, 0, 1], yticks=[])
    return figure


draw_moons(torch.tensor([0.02, 0.1], dtype=torch.float64), [0.05, 0.1, 0.3])

# %% [markdown]
# The cross lies where there is no data at all. For pictures this average is what you know as blur. A denoiser asked
# once gives a blurry picture, and it is *right* to do so. Sharpness comes from asking a thousand times, with a little
# noise decided in each step.
#
# ## What $L_{\text{simple}}$ drops
#
# Now the one step that is not derived. Ho et al. found that pictures get better if you leave out the weight:
#
# $$L_{\text{simple}} = \mathbb E_{t, x_0, \varepsilon}\,(\varepsilon - \hat\varepsilon(x_t, t))^2 .$$
#
# The best denoiser at each $t$ stays the best, since the minimum at one $t$ does not depend on weights between the $t$.
# But a real network has to trade one $t$ against another, and the weight is the exchange rate. A network may guess
# $x_0$, $\varepsilon$ or $v = \alpha\varepsilon - \sigma x_0$. They are the same knowledge in three languages, because
# given $x_t$ each is a linear function of each other. Their errors differ by a factor that depends on $t$ alone, so
# each language has its own weight in the bound, and dropping it means something else in each:

# %%
x0, eps, error = torch.randn(3, 5, dtype=torch.float64)
for t in (0.05, 0.4, 0.9):
    alpha, sigma = schedule(t)
    x_t, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
    seen = Prediction("x0", x_t, x0 + error, alpha, sigma)  # a guess of x0 that is off by `error`
    assert torch.allclose(seen.eps - eps, -alpha / sigma * error)
    assert torch.allclose(seen.v - v, -error / sigma)
    assert torch.allclose(Prediction("v", x_t, seen.v, alpha, sigma).x0, seen.x0)  # and back

steps = torch.arange(2, 1001)
weights = {"$x_0$": [], r"$\varepsilon$": [], "$v$": []}
for index in steps.tolist():
    alpha, sigma = schedule(index / 1000)
    for column, kind in zip(weights.values(), ("x0", "eps", "v")):
        (_, b), _ = KINDS[kind](alpha, sigma)  # x0 = a x_t + b out, so an error in out counts b^2
        column.append(weight_on_x0(schedule, index / 1000) * b**2)
plots.lines({f"weight on the error of {name}": (steps, column) for name, column in weights.items()},
            x="step t (of 1,000)", y="weight in the bound (nats)", log="xy")

# %% [markdown]
# An error in $x_0$ is $\alpha/\sigma$ times larger in $\varepsilon$ and $1/\sigma$ times larger in $v$: the asserts
# agree. The weight on $\varepsilon$ falls a hundredfold over the first few hundred steps. Setting it to 1 takes
# attention away from the first steps, where a pixel is settled to the last grey level, and gives it to the noisier
# ones, where it is settled what the picture shows. How much? Here are the shares of both losses for the best possible
# denoiser, summed up over $t$. The expectation over $x_t$ is an integral on the grid.

# %%
def mean_spread(schedule, t):
    """E Var[x0 | x_t], the squared error of the best denoiser at time t."""
    x = line(schedule, t, schedule(t)[1] / 4)
    return (marginal(schedule, x, t) @ best_guess(schedule, x, t)[1] * (x[1] - x[0])).item()


index = range(2, 1001, 20 if run.tier == "smoke" else 2)
spread = torch.tensor([mean_spread(schedule, i / 1000) for i in index])
on_x0 = torch.tensor([weight_on_x0(schedule, i / 1000) for i in index])
snr = torch.tensor([math.exp(schedule.log_snr(i / 1000)) for i in index])
shares = {"KL terms of the bound": on_x0 * spread, "L_simple: eps, no weight": snr * spread}
shares = {name: (list(index), (value / value.sum()).cumsum(0)) for name, value in shares.items()}
for name, (at, share) in shares.items():
    print(f"{name}: half of it by step {at[(share < 0.5).sum()]} of 1,000")
plots.lines(shares, x="up to step t (of 1,000)", y="share of the loss", log="x")

# %% [markdown]
# The bound has half of its KL terms in the first ten steps. $L_{\text{simple}}$ looks elsewhere. This is no proof that
# it makes better pictures; it says where it looks, and Ho et al. measured that pictures agree.
#
# **Exercise 3.** Write the three weights for a variance-preserving schedule ($\alpha^2+\sigma^2=1$) as functions of the
# log-SNR alone, before and after the step: no $\alpha$, no $\sigma$.

# %% tags=["exercise"] name="bound_weight"
def bound_weight(kind, log_snr_s, log_snr_t):
    """Weight (nats) on the squared error of a network of this kind, "x0", "eps" or "v", for the step from t up to s."""
    ...

# %% [markdown]
# Check it:

# %%
exercises.check_bound_weight(bound_weight)

# %% [markdown]
# ## A network finds the average
#
# Does minimising $L_{\text{simple}}$ find the posterior mean? The network below never sees the histogram, a posterior
# or a mean. It sees single pixels with noise on them, and is asked for the noise.

# %%
network = minidiff.create_model("mlp_tiny", dim=1)
diffusion = minidiff.Diffusion(network, schedule, "eps", shape=(1,))
optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
generator = torch.Generator().manual_seed(run.seed)


def train_step(batch=512):
    pixels = levels[torch.multinomial(histogram, batch, replacement=True, generator=generator)].float()[:, None]
    loss = diffusion.loss(pixels, generator=generator).mean()  # (eps - guess)^2 at random times
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


steps = budget("training the guesser", smoke=60, cpu=6000)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
history = []
for _ in range(steps):
    history.append(train_step())
    decay.step()
print(f"mean loss of the last tenth: {sum(history[-steps // 10:]) / len(history[-steps // 10:]):.4f}")

# %% [markdown]
# The loss of a perfect network is known: at each $t$ it is the mean posterior variance, translated into the language of
# $\varepsilon$ by $\alpha^2/\sigma^2$. What the network pays on top is its squared distance from the posterior mean, in
# the same language.

# %%
@torch.no_grad()
def learnt(x, t):
    return diffusion.denoise(x.float()[:, None], t).x0[:, 0].double()


excess = []
for i in list(index)[::10]:
    t, snr_t = i / 1000, math.exp(schedule.log_snr(i / 1000))
    x = line(schedule, t, schedule(t)[1] / 4)
    share = marginal(schedule, x, t) * (x[1] - x[0])
    excess.append(snr_t * (share @ (learnt(x, t) - best_guess(schedule, x, t)[0]) ** 2).item())
floor, excess = (snr * spread).mean().item(), sum(excess) / len(excess)
print(f"the best possible denoiser pays {floor:.4f}, this network {excess:.4f} more")
if run.tier != "smoke":
    assert excess < 0.1 * floor
draw_best_guess([0.05, 0.2, 0.5], learnt)

# %% [markdown]
# A network that was asked for noise has found the averages of the data. At the edges, where it hardly ever saw a pixel,
# it strays.
#
# ## The last step lands on a grey level
#
# One term is left: $L_0 = -\log p_\theta(x_0\mid x_1)$. Pictures are whole numbers from 0 to 255, and a density at a
# whole number can be made as large as you like. So the last Gaussian is turned into probabilities. Each level gets the
# share that falls into its bin of width 2/255, and the outermost bins reach to infinity, so that nothing is lost.

# %%
from minidiff.variational import discretized_gaussian_log_likelihood


def bin_probabilities(mean, std):  # (256,)
    edges = torch.cat([torch.tensor([-math.inf]), (levels[1:] + levels[:-1]) / 2, torch.tensor([math.inf])])
    return torch.special.ndtr((edges - mean) / std).diff()


mean, std_1 = torch.tensor([-0.97, 0.3]).double()[:, None], 0.012
exact = torch.stack([bin_probabilities(m, std_1) for m in mean])
theirs = discretized_gaussian_log_likelihood(levels, mean, torch.tensor(math.log(std_1))).exp()
assert torch.allclose(exact, theirs, atol=3e-4) and torch.allclose(exact.sum(1), torch.ones(2).double())
print(f"both sum to 1; largest difference {(exact - theirs).abs().max():.1e}: the package, like the official code, "
      "uses a tanh in place of the exact integral")

# %% [markdown]
# ## The bound against the truth
#
# Everything is in place. Take the **best possible denoiser** as the network, so that no training blurs the comparison.
# The package adds the terms up by drawing one $x_t$ for each. The unit is bits per dimension, which here is bits per
# pixel.

# %%
class BestDenoiser(torch.nn.Module):
    """A network that returns E[x0 | x_t]; it reads the time t itself."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, time, y=None):
        return best_guess(self.schedule, x.flatten(), round(time[0].item() * T) / T)[0].view(x.shape)


T = 50
best = minidiff.Diffusion(BestDenoiser(schedules.linear(T)), schedules.linear(T), "x0", time="t", shape=(1, 1, 1))
draws = levels[torch.multinomial(histogram, 4000, replacement=True)].view(-1, 1, 1, 1)
each = best.bits_per_dim(draws)
by_dice, error = each.mean().item(), each.std().item() / len(each) ** 0.5
print(f"{T} steps: {by_dice:.2f} ± {error:.2f} bits per pixel, and the floor is {entropy:.2f}")

# %% [markdown]
# For fine comparisons dice are too noisy, so here is the same sum with every expectation done on the grid. The argument
# `log_variance_of` says which variance the step up gets; so far it was $\tilde\beta$, which DDPM calls the small one.

# %%
def small_variance(schedule, t, spread):
    """log of the variance of the step up from t, for each x_t with Var[x0 | x_t] = spread (N,)."""
    return log_variance(schedule, torch.full_like(spread, t), "small")


def bound(schedule, log_variance_of=small_variance):
    """The bound of the best denoiser for each of the 256 levels, in bits (256,), and its last term L_0."""
    (alpha, sigma), zero = schedule(1.0), torch.zeros((), dtype=torch.float64)
    total = gaussian_kl(alpha * levels, zero + 2 * math.log(sigma), zero, zero)  # L_T
    for i in range(schedule.steps, 0, -1):
        s, t = (i - 1) / schedule.steps, i / schedule.steps
        alpha, sigma = schedule(t)
        x = line(schedule, t, sigma / 2)[:, None]  # (N, 1)
        guess, spread = best_guess(schedule, x[:, 0], t)
        log_var = log_variance_of(schedule, t, spread)[:, None]
        mean = posterior(schedule, guess[:, None], x, s, t)[0]  # of the model's step, (N, 1)
        if i > 1:
            true_mean, true_var = posterior(schedule, levels, x, s, t)  # (N, 256)
            term = gaussian_kl(true_mean, zero + math.log(true_var), mean, log_var)
        else:
            term = -discretized_gaussian_log_likelihood(levels, mean, log_var / 2)
        added = (normal(x, alpha * levels, sigma**2) * term).sum(0) * sigma / 2
        total = total + added
    return total / math.log(2), added / math.log(2)


# %% [markdown]
# Now the integral that nobody can do. With one pixel it is a chain of sums: start with the standard normal on a grid,
# let each step of the model spread it, and collect what lands on each grey level. The result is $p_\theta(x_0)$ itself,
# no bound, no samples.

# %%
def spacing(schedule, t):  # half the standard deviation of the step up from t
    return log_variance(schedule, torch.tensor([t], dtype=torch.float64), "small").div(2).exp().item() / 2


def climb(schedule, log_variance_of=small_variance):
    """p(x0) of the model with the best denoiser, (256,), by pushing the whole density up the ladder."""
    x = line(schedule, 1.0, spacing(schedule, 1.0))
    density = normal(x, 0.0, 1.0)
    for i in range(schedule.steps, 0, -1):
        s, t = (i - 1) / schedule.steps, i / schedule.steps
        guess, spread = best_guess(schedule, x, t)
        mean, log_var = posterior(schedule, guess, x, s, t)[0], log_variance_of(schedule, t, spread)
        density = density * spacing(schedule, t)
        if i > 1:
            x = line(schedule, s, spacing(schedule, s))
            density = normal(x[:, None], mean, log_var.exp()) @ density  # the integral over x_t
    return discretized_gaussian_log_likelihood(levels[:, None], mean, log_var / 2).exp() @ density



# %% [markdown]
# Does it hold for every single grey level? And does what the model makes look like the data?

# %%
@plots.quiet
def draw_truth(p, each):
    import matplotlib.pyplot as plt
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.0))
    left.bar(levels, histogram, width=2 / 255, color=plots.COLORS[4], label="data")
    left.plot(levels, p, color=plots.COLORS[1], linewidth=1.3, label="model, exactly")
    left.set(xlabel="grey level $x_0$", ylabel="probability")
    right.plot(levels, each, label="bound")
    right.plot(levels, -p.log2(), color=plots.COLORS[1], label="truth, $-\\log_2 p(x_0)$")
    right.set(xlabel="grey level $x_0$", ylabel="bits")
    left.legend()
    right.legend()
    return figure


p, each = climb(schedules.linear(T)), bound(schedules.linear(T))[0]
assert abs(each @ histogram - by_dice) < 4 * error  # the grid agrees with the dice
assert abs(p.sum() - 1) < 1e-4 and (each > -p.log2()).all()
print(f"bound {each @ histogram:.3f}, truth {-p.log2() @ histogram:.3f}, floor {entropy:.3f} bits per pixel")
draw_truth(p, each)

# %% [markdown]
# One step of the derivation is still unchecked: that the ratio of paths falls apart into these terms. So draw whole
# paths from $x_0$ down, step by step, and keep $\log q(x_{1:T}\mid x_0) - \log p_\theta(x_{0:T})$ for each, with no KL
# anywhere. Its mean must be the bound. And the average *before* the logarithm must be the truth.

# %%
def log_normal(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * float(variance)) / 2


level, chain = 134, schedules.linear(T)
x = levels[level].repeat(500 if run.tier == "smoke" else 4000)
log_ratio = torch.zeros_like(x)
for i in range(1, T + 1):
    s, t = (i - 1) / T, i / T
    ratio, beta = chain(t)[0] / chain(s)[0], step_variances(chain, s, t)[1]
    above, x = x, ratio * x + beta**0.5 * torch.randn_like(x)  # a step down
    mean, log_var = posterior(chain, best_guess(chain, x, t)[0], x, s, t)[0], small_variance(chain, t, x[:1])
    up = log_normal(above, mean, log_var.exp())
    if i == 1:  # the last step up lands on a grey level
        up = discretized_gaussian_log_likelihood(above, mean, log_var / 2)
    log_ratio += log_normal(x, ratio * above, beta) - up
log_ratio = (log_ratio - log_normal(x, 0.0, 1.0)) / math.log(2)
jensen, error = log_ratio.mean(), log_ratio.std() / len(x) ** 0.5
assert abs(jensen - each[level]) < 4 * error
print(f"mean over paths {jensen:.2f} ± {error:.2f} bits, bound {each[level]:.2f}")
print(f"averaged before the logarithm {-(2**-log_ratio).mean().log2():.2f}, truth {-p[level].log2():.2f}")

# %% [markdown]
# The bound is what it claims to be. But look at the numbers: with 50 steps the model is 0.04 bits above the floor, and
# its bound says 1.80. Will it find out with more steps?

# %%
counts = [25, 50, 100] if run.tier == "smoke" else [25, 50, 100, 200, 500, 1000]
bounds, last = zip(*[[(b @ histogram).item() for b in bound(schedules.linear(n))] for n in counts])
truths = [-(climb(schedules.linear(n)).log2() @ histogram).item() for n in counts]
for n, *values in zip(counts, bounds, last, truths):
    print("{:5} steps: bound {:7.3f} (of which the last step {:.3f}), truth {:.4f}".format(n, *values))


def with_ticks(figure):  # the numbers of steps themselves on the axis
    figure.axes[0].set_xticks(counts, [str(n) for n in counts])
    figure.axes[0].set_xticks([], minor=True)
    return figure


with_ticks(plots.lines({
    "bound, small variance": (counts, bounds), "truth": (counts, truths),
    "floor: entropy of the data": (counts, [entropy] * len(counts)),
}, x="number of steps", y="bits per pixel", log="x"))

# %% [markdown]
# The truth reaches the floor quickly. The bound comes down and then stays more than half a
# bit too high. More steps hardly help. What is wrong with it?
#
# ## Which variance?
#
# The gap of the bound is a distance between paths: those made by destroying $x_0$, and those that the model takes to
# it. Their steps have the same mean by now. But the *variance* of the true way back is not $\tilde\beta$. That is the
# variance for known $x_0$; if $x_0$ may vary by $\operatorname{Var}[x_0\mid x_t]$, its share in $\tilde\mu$ varies too:
#
# $$\operatorname{Var}[x_{s}\mid x_t] = \tilde\beta + \Big(\frac{\beta\alpha_s}{\sigma_t^2}\Big)^2
# \operatorname{Var}[x_0\mid x_t].$$
#
# If all pictures are alike, the second part is 0 and $\tilde\beta$ is right. If $x_0$ is standard normal,
# $\operatorname{Var}[x_0\mid x_t]=\sigma_t^2$, and the sum is exactly $\beta$. These are the *small* and the *large*
# variance of DDPM, and reality lies between. Nichol and Dhariwal (2021) let the network say where: a second output $v$
# in $[-1, 1]$ (not the $v$ above) gives $\log\text{variance} = \frac{v+1}{2}\log\beta + \frac{1-v}{2}\log\tilde\beta$.
# In minidiff that is `learned_range=True`. On the grid the right answer is known:

# %%
places = torch.unique(torch.logspace(math.log10(2), 3, 60).round()).tolist()
rows = {"large": [], "true way back": [], "small": []}
for i in places:
    small, large = step_variances(schedule, (i - 1) / 1000, i / 1000)
    c = large * schedule((i - 1) / 1000)[0] / schedule(i / 1000)[1] ** 2
    for row, value in zip(rows.values(), (large, small + c**2 * mean_spread(schedule, i / 1000), small)):
        row.append(value / large)
assert all(a >= b >= c for a, b, c in zip(*rows.values()))
names = {"large": r"large, $\beta$", "true way back": "true way back, on average", "small": r"small, $\tilde\beta$"}
plots.lines({names[name]: (places, row) for name, row in rows.items()},
            x="step t (of 1,000)", y=r"variance / $\beta$", log="x")

# %% [markdown]
# The three differ only in the first steps, exactly where the bound earns its bits. There the truth is close to *large*:
# under a microscope the bumps of this histogram look flat, so nothing narrows $x_0$ down but $x_t$ itself. And a step
# too narrow by a factor of two is what the lopsided KL punishes. Give each step the variance of the true way back
# instead.

# %%
def large_variance(schedule, t, spread):
    return log_variance(schedule, torch.full_like(spread, t), "large")


def matched_variance(schedule, t, spread):
    s, sigma = max(t - 1 / schedule.steps, 0.0), schedule(t)[1]
    small, large = step_variances(schedule, s, t)
    return (small + (large * schedule(s)[0] / sigma**2) ** 2 * spread).clamp(min=1e-8).log()


gaps = {"small": [b - entropy for b in bounds]}
for name, choice in (("large", large_variance), ("matched", matched_variance)):
    gaps[name] = [(bound(schedules.linear(n), choice)[0] @ histogram).item() - entropy for n in counts]
for name, gap in gaps.items():
    print(f"{name:8} variance: {gap[-1]:.4f} bits above the floor with {counts[-1]} steps")
assert gaps["matched"][-1] < gaps["large"][-1] < gaps["small"][-1]
with_ticks(plots.lines({f"{name} variance": (counts, gap) for name, gap in gaps.items()},
                       x="number of steps", y="bound - entropy (bits)", log="xy"))

# %% [markdown]
# With the right variance the bound closes on the truth, and the truth on the data. What was lost is not
# in the squared error at all, it is in the variance that $L_{\text{simple}}$ never looks at.
#
# ## What the papers found, what we measured
#
# | | the papers, on pictures | here, one pixel, best denoiser |
# |---|---|---|
# | training without the weight | CIFAR-10: FID (lower is better) 3.17 with $L_{\text{simple}}$, 13.51 with the bound (Ho et al., table 1) | not measured: one pixel has no looks |
# | price in likelihood | at most 3.75 against 3.70 bits per dimension (same table) | none for a perfect denoiser, which minimises both |
# | where the bits go | 1.97 of 3.75 bits in the last step, finer than the eye sees (section 4.3) | 2.49 of 7.61 bits in the last step, with 1,000 steps |
# | where the bound is lost | in the first steps, where the variance matters most (Nichol and Dhariwal, section 3.1) | the same: 0.65 bits too many with the small variance, under 0.002 with the matched one |
#
# **Exercise 4, a small project.** Printed text is black and white: two levels, one of them rare. Write the bound of the
# best denoiser for *any* one-pixel data set, schedule and choice of small or large variance, to 2 %. (Dice can do it
# too, but most of the sum comes from rare draws: take 100,000.) Then plot it against the number of steps (25 to 500)
# for `schedules.linear` and `schedules.cosine`, with `levels = [-1, 1]` and `histogram = [0.3, 0.7]`. Which schedule is
# better with few steps? Which variance wins this time, and why?

# %% tags=["exercise"] name="bound_of"
def bound_of(schedule, levels, histogram, variance="small"):
    """The average bound in bits per pixel: levels (K,) in [-1, 1], histogram (K,) with sum 1 -> a number."""
    ...

# %% [markdown]
# Check it:

# %%
exercises.check_bound_of(bound_of)

# %% [markdown]
# ## What you learned
#
# Likelihood is code length, and its only obstacle is an integral over paths. The bound removes it by using paths that
# are known to lead to the picture, and falls apart into KL divergences of Gaussians, one a step. With equal variances
# each is a squared error, times a weight. What minimises it is the average of all originals that are still possible;
# the rest of the loss is a property of the data. $L_{\text{simple}}$ drops the weight, and with it the attention to the
# last grey level. Gaussian steps are right if they are small, and the bound is tight if their variance is right.
#
# ## Where to read on
#
# - Sohl-Dickstein et al. 2015, *Deep Unsupervised Learning using Nonequilibrium Thermodynamics*, arXiv:1503.03585:
#   where the ladder and its bound come from.
# - Ho, Jain and Abbeel 2020, *Denoising Diffusion Probabilistic Models*, arXiv:2006.11239, sections 2 and 3 and
#   appendix A.
# - Nichol and Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*, arXiv:2102.09672: the learned range.
# - Kingma et al. 2021, *Variational Diffusion Models*, arXiv:2107.00630: the weight as a difference of SNRs, and the
#   limit of infinitely many steps.
# - Bao et al. 2022, *Analytic-DPM*, arXiv:2201.06503: the matched variance without training.
#
# Next, [notebook 03](03_ddpm_in_a_hundred_lines.ipynb) turns $L_{\text{simple}}$ into a program, and the program into
# pictures.
