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
# - derive the two formulas that those terms need, and check both by brute force
# - see when a step back from noise is Gaussian
# - know what the best possible denoiser is, and why its loss is not zero
# - measure a model in bits, and find out where its bound loses some

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## Why is the loss a squared error?
#
# The recipe of diffusion models fits in one line: add noise to a picture, let a network guess the noise, take the
# squared error. Nothing in it speaks of probability. Yet the trained network gives you new pictures with the right
# frequencies. Why should it?
#
# The answer is a derivation, and you need not trust any step of it. Take pictures with **one pixel**. It has 256 grey
# levels, and some are more common than others. Now every average is a sum over 256 levels or an integral along a line,
# and brute force can judge every claim.

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
    figure, axes = plt.subplots(figsize=(6.2, 2.4))
    axes.fill_between(levels, histogram, step="mid", color=plots.COLORS[4], linewidth=0)
    axes.set(xlabel="grey level $x_0$ (-1 black, 1 white)", ylabel="share of pictures", ylim=(0, None))
    return figure


draw_data()

# %% [markdown]
# ## Likelihood is code length
#
# Call the data $q$. A model is another distribution $p$ over pictures, and $p(x_0)$, the probability that it gives to a
# picture $x_0$, is the picture's **likelihood**. How good is $p$? Let it compress the data. The best code that $p$ can
# make spends $-\log_2 p(x_0)$ bits on $x_0$: short words for what it expects, long ones for what surprises it. Average
# that over the data, then add and subtract $\log_2 q(x_0)$:
#
# $$-\mathbb E_q \log_2 p(x_0) \;=\; \underbrace{-\mathbb E_q \log_2 q(x_0)}_{\text{entropy of the data}}
# \;+\; \underbrace{\mathbb E_q \log_2 \frac{q(x_0)}{p(x_0)}}_{\mathrm{KL}(q\,\|\,p)\;\ge\;0}.$$
#
# The first part is the floor: no model can change it. The second is the **Kullback-Leibler divergence** (KL), the bits
# you waste by believing in $p$ when the world is $q$. It is zero only for $p = q$. So raising the likelihood,
# shortening the code and moving $p$ towards the data are the same thing. Three models:

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
    assert math.isclose(bits[name], entropy + divergence) and divergence >= 0
plots.bars(list(bits), list(bits.values()), x="average code length in bits per pixel", best="low")

# %% [markdown]
# The Gaussian has the right mean and the right width, and is worse than knowing nothing: it spends its probability
# where no pictures are.
#
# ## Down the ladder
#
# A diffusion model reaches the data over a ladder of distributions. The rungs are made by noise, as in
# [notebook 01](01_destroying_images_properly.ipynb): $x_t = \alpha_t x_0 + \sigma_t \varepsilon$. Given $x_0$, that is
# a Gaussian. So the distribution of *all* noisy pictures, the **marginal** $q(x_t)$, is a sum of 256 Gaussians, one for
# each level. Here are four rungs, from almost clean data to pure noise; the last has become the standard normal, the
# dashed line.

# %%
from minidiff import schedules

schedule = schedules.linear(1000)


def normal(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


def marginal(schedule, x, t):  # q(x_t) at the points x (N,)
    alpha, sigma = schedule(t)
    return normal(x[:, None], alpha * levels, sigma**2) @ histogram


x, times = torch.linspace(-2.6, 2.6, 400, dtype=torch.float64), (0.02, 0.1, 0.3, 1)
figure = plots.lines({f"t = {t:g}": (x, marginal(schedule, x, t)) for t in times}, x="$x_t$", y="density")
figure.axes[0].plot(x, normal(x, 0.0, 1.0), "k--", linewidth=1, label="standard normal")
figure.axes[0].legend(frameon=False, fontsize=9)
figure

# %% [markdown]
# ## Up the ladder: an integral nobody can do
#
# The model climbs. It starts with noise, $p(x_T) = \mathcal N(0, 1)$, and takes steps $p_\theta(x_{t-1}\mid x_t)$ with
# learnt parameters $\theta$, until it arrives at a picture $x_0$. In formulas $t$ counts the $T$ steps; in code it is
# the clock of notebook 01, which shows $t/T$. Many paths end at the same picture, and its likelihood is the sum over
# all of them:
#
# $$p_\theta(x_0) = \int p_\theta(x_{0:T})\; dx_1 \cdots dx_T, \qquad
# p_\theta(x_{0:T}) = p(x_T)\, \prod_{t=1}^{T} p_\theta(x_{t-1}\mid x_t).$$
#
# With one pixel you can do that on a grid, and later you will. With many you cannot, and trying paths at random does
# not help: one arrives at a given picture with probability $p_\theta(x_0)$, so you wait for about $1/p_\theta(x_0)$ of
# them. How long is that for 16 x 16 colour pictures, were their values independent and distributed as here?

# %%
values = 3 * 16 * 16
print(f"one pixel: one path in {2**entropy:.0f} arrives")
print(f"{values} values: one path in 10^{values * entropy * math.log10(2):.0f} arrives")

# %% [markdown]
# ## A bound that needs no luck
#
# Nearly all paths miss $x_0$. So use only paths that do not: take $x_0$ and destroy it. That gives paths
# $x_{1:T} = (x_1, \dots, x_T)$ from $q(x_{1:T}\mid x_0) = \prod_t q(x_t\mid x_{t-1})$, and walked upwards, each leads
# to $x_0$. Six small steps make a loss of them.
#
# **One: change who draws the paths.** Multiply and divide by their density. An integral over a density is an average,
# so
#
# $$p_\theta(x_0) = \int q(x_{1:T}\mid x_0)\,\frac{p_\theta(x_{0:T})}{q(x_{1:T}\mid x_0)}\,dx_{1:T}
# = \mathbb E_{q}\left[\frac{p_\theta(x_{0:T})}{q(x_{1:T}\mid x_0)}\right].$$
#
# **Two: swap logarithm and average.** The logarithm bends downwards, so the average of logarithms is at most the
# logarithm of the average (Jensen's inequality). With a minus sign that becomes
#
# $$-\log p_\theta(x_0) \;\le\; \mathbb E_{q}\left[\log\frac{q(x_{1:T}\mid x_0)}{p_\theta(x_{0:T})}\right] =: L(x_0).$$
#
# $L$ is the **variational bound**; its negative is called the evidence lower bound, ELBO. Only this step loses
# something. How much? Put in $p_\theta(x_{0:T}) = p_\theta(x_0)\,p_\theta(x_{1:T}\mid x_0)$, and $L$ is
# $-\log p_\theta(x_0)$ plus $\mathrm{KL}\big(q(x_{1:T}\mid x_0)\,\|\,p_\theta(x_{1:T}\mid x_0)\big)$: the distance of
# your paths from those that the model itself would take to $x_0$.
#
# **Three: turn the steps around.** In $L$ the steps of $q$ lead down and those of $p_\theta$ lead up. Bayes' rule turns
# a step of $q$ around. Once $x_{t-1}$ is known, $x_0$ makes no difference to $x_t$, so you may keep it in every
# condition:
#
# $$q(x_t\mid x_{t-1}) = q(x_t\mid x_{t-1}, x_0) = q(x_{t-1}\mid x_t, x_0)\;\frac{q(x_t\mid x_0)}{q(x_{t-1}\mid x_0)}
# \qquad\text{for } t \ge 2.$$
#
# **Four: cancel.** Multiply over $t$, and each fraction cancels against its neighbour. For $T = 3$ the fractions and
# the first step make
#
# $$q(x_1\mid x_0)\;\frac{q(x_2\mid x_0)}{q(x_1\mid x_0)}\;\frac{q(x_3\mid x_0)}{q(x_2\mid x_0)} = q(x_3\mid x_0),
# \qquad\text{and in general}\qquad
# q(x_{1:T}\mid x_0) = q(x_T\mid x_0)\prod_{t=2}^{T} q(x_{t-1}\mid x_t,x_0).$$
#
# **Five: pair.** Now both products go upwards. The logarithm of a product is a sum, so put the two factors of each step
# together:
#
# $$\log\frac{q(x_{1:T}\mid x_0)}{p_\theta(x_{0:T})} = \log\frac{q(x_T\mid x_0)}{p(x_T)}
# + \sum_{t=2}^{T}\log\frac{q(x_{t-1}\mid x_t,x_0)}{p_\theta(x_{t-1}\mid x_t)} - \log p_\theta(x_0\mid x_1).$$
#
# **Six: average.** The average of $\log q - \log p$ over $q$ is a KL divergence. Three kinds of terms are left (Ho et
# al. 2020, eq. 5):
#
# $$L = \underbrace{\mathrm{KL}\big(q(x_T\mid x_0)\,\|\,p(x_T)\big)}_{L_T:\ \text{is the end noise?}}
# + \sum_{t=2}^{T} \underbrace{\mathbb E_q\,\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\,\|\,p_\theta(x_{t-1}\mid x_t)\big)}
# _{L_{t-1}:\ \text{one step up}}
# \;\underbrace{-\;\mathbb E_q\log p_\theta(x_0\mid x_1)}_{L_0:\ \text{the last step}} .$$
#
# Each term needs one $x_t$, and you can draw that in one jump. This is why a diffusion model can train on one random
# time per picture. Two ingredients are missing: the posterior $q(x_{t-1}\mid x_t,x_0)$, and the KL divergence of two
# Gaussians.
#
# ## Ingredient one: where was the pixel a step ago?
#
# You see $x_t$ and know the original $x_0$. Where was the pixel at the earlier time $s$, say $s = t - 1$? Two things
# speak. One is the prior, the noise on the original: $q(x_s\mid x_0) = \mathcal N(\alpha_s x_0, \sigma_s^2)$. The other
# is the step down, $q(x_t\mid x_s) = \mathcal N(r x_s, \beta)$. It must shrink the signal from $\alpha_s$ to
# $\alpha_t$, so $r = \alpha_t/\alpha_s$. And it must fill up the noise to $\sigma_t^2$; variances add, so
# $\sigma_t^2 = r^2\sigma_s^2 + \beta$. (For neighbours in DDPM this $\beta$ is $\beta_t$.)
#
# By Bayes' rule, multiply the two. In the exponent you get a parabola in $x_s$:
#
# $$-\tfrac12\left[\frac{(x_t - r x_s)^2}{\beta} + \frac{(x_s-\alpha_s x_0)^2}{\sigma_s^2}\right]
# = -\tfrac12\Big[a\,x_s^2 - 2 b\,x_s + \dots\Big], \qquad
# a = \frac{r^2}{\beta}+\frac1{\sigma_s^2}, \quad b = \frac{r x_t}{\beta}+\frac{\alpha_s x_0}{\sigma_s^2}.$$
#
# The dots do not contain $x_s$. Completing the square says that such a parabola is a Gaussian with variance $1/a$ and
# mean $b/a$. Bring $a$ to one fraction, $a = (r^2\sigma_s^2+\beta)/(\beta\sigma_s^2) = \sigma_t^2/(\beta\sigma_s^2)$,
# and read off both:
#
# $$\tilde\beta = \frac1a = \beta\,\frac{\sigma_s^2}{\sigma_t^2}, \qquad
# \tilde\mu(x_t, x_0) = \frac ba = \frac{\beta}{\sigma_t^2}\,\alpha_s\; x_0 + r\,\frac{\sigma_s^2}{\sigma_t^2}\; x_t .$$
#
# Bayes on a grid needs no algebra: multiply prior and likelihood at each point, divide by the sum. Do they agree?

# %%
def my_posterior(schedule, x0, x_t, s, t):
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    r = alpha_t / alpha_s
    beta = sigma_t**2 - r**2 * sigma_s**2
    mean = beta / sigma_t**2 * alpha_s * x0 + r * sigma_s**2 / sigma_t**2 * x_t
    return mean, beta * sigma_s**2 / sigma_t**2


s, t, x0, x_t = 0.1, 0.2, 0.75, -0.2
(alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
r = alpha_t / alpha_s
x = torch.linspace(-2, 2, 801, dtype=torch.float64)
prior = normal(x, alpha_s * x0, sigma_s**2)
likelihood = normal(x_t, r * x, sigma_t**2 - r**2 * sigma_s**2)  # of the x_t that you see, for each x_s
by_bayes = prior * likelihood / torch.trapezoid(prior * likelihood, x)
mean, variance = my_posterior(schedule, x0, x_t, s, t)
assert torch.allclose(by_bayes, normal(x, mean, variance), atol=1e-6)
figure = plots.lines({"prior: noise on $x_0$ = 0.75": (x, prior), "likelihood of $x_t$ = -0.2": (x, likelihood),
                      "posterior, by the formula": (x, normal(x, mean, variance))},
                     x=f"$x_s$ at s = {s} (seen from t = {t})", y="density")
figure.axes[0].plot(x[::40], by_bayes[::40], "k.", label="posterior, by brute force")
figure.axes[0].legend(frameon=False, fontsize=9)
figure

# %% [markdown]
# The posterior lies between what $x_0$ suggests and what $x_t$ suggests, and is narrower than either.
#
# Now you can also test steps three and four. They claim an identity, so it must hold for *any* path, even one that no
# diffusion would ever take. On the way, compare with the package.

# %%
from minidiff.variational import gaussian_kl, log_variance, posterior, step_variances


def log_normal(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2


T, path = 50, torch.randn(51, dtype=torch.float64)  # x_0, x_1, ..., x_50
chain = schedules.linear(T)
down, up = 0.0, log_normal(path[T], chain(1.0)[0] * path[0], chain(1.0)[1] ** 2)  # up begins with q(x_T | x0)
for i in range(1, T + 1):
    s, t = (i - 1) / T, i / T
    r, beta = chain(t)[0] / chain(s)[0], step_variances(chain, s, t)[1]
    down += log_normal(path[i], r * path[i - 1], beta)
    if i > 1:
        mean, variance = my_posterior(chain, path[0], path[i], s, t)
        up += log_normal(path[i - 1], mean, variance)
        theirs = posterior(chain, path[0], path[i], s, t)
        assert math.isclose(mean, theirs[0], rel_tol=1e-6) and math.isclose(variance, theirs[1], rel_tol=1e-6)
assert math.isclose(down, up)
print(f"log q of the path: {down:.6f} by steps down, {up:.6f} by steps up")

# %% [markdown]
# **Exercise 1.** Papers write the posterior of neighbouring steps with $\beta_t$ and
# $\bar\alpha_t = \prod_{i\le t}(1-\beta_i) = \alpha_t^2$. Write that version: from the table of betas, the factor of
# $x_0$, the factor of $x_t$ and the variance of each step (Ho et al. 2020, eq. 7). Mind the first entry: the step
# before it is the clean picture.

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
# $\mathrm{KL}(p_1\|p_2)$ is the average of $\log p_1 - \log p_2$ over $p_1$. With the natural logarithm its unit is the
# nat; divide by $\log 2$ for bits. For Gaussians with means $m_1, m_2$ and variances $V_1, V_2$ the logarithms are
# parabolas:
#
# $$\log p_1(x)-\log p_2(x) = \tfrac12\Big[\log\frac{V_2}{V_1} - \frac{(x-m_1)^2}{V_1} + \frac{(x-m_2)^2}{V_2}\Big].$$
#
# Average each square over $p_1$. The first, $(x-m_1)^2$, gives $V_1$: that is what a variance is. For the second write
# $x - m_2 = (x - m_1) + (m_1 - m_2)$; the mixed term averages to zero, and $V_1 + (m_1-m_2)^2$ is left. Therefore
#
# $$\mathrm{KL} = \tfrac12\Big[\log\frac{V_2}{V_1} - 1 + \frac{V_1}{V_2} + \frac{(m_1-m_2)^2}{V_2}\Big].$$
#
# If the variances agree, the first three parts cancel and only $(m_1-m_2)^2/2V_2$ is left. **That is where the squared
# error comes from.** Check it with dice:

# %%
def my_kl(m_1, V_1, m_2, V_2):
    return (math.log(V_2 / V_1) - 1 + V_1 / V_2 + (m_1 - m_2) ** 2 / V_2) / 2


draws = 0.5 + torch.randn(100_000, dtype=torch.float64)  # from p_1: mean 0.5, variance 1
ratios, by_dice = [0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 5.0], []
for ratio in ratios:  # p_2: mean 0, variance `ratio`
    logs = log_normal(draws, 0.5, 1.0) - log_normal(draws, 0.0, ratio)
    by_dice.append(logs.mean().item())
    assert abs(by_dice[-1] - my_kl(0.5, 1.0, 0.0, ratio)) < 4 * logs.std() / 100_000**0.5
    theirs = gaussian_kl(*torch.tensor([0.5, 0.0, 0.0, math.log(ratio)], dtype=torch.float64)).item()
    assert math.isclose(my_kl(0.5, 1.0, 0.0, ratio), theirs)
wide = torch.logspace(-1, 1, 80, base=6).tolist()
figure = plots.lines({f"means differ by {gap}": (wide, [my_kl(gap, 1.0, 0.0, r) for r in wide]) for gap in (0.5, 0.0)},
                     x="variance of the model / true variance", y="KL (nats)", log="x")
figure.axes[0].plot(ratios, by_dice, "k.", label="100,000 draws")
figure.axes[0].set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
figure.axes[0].set_xticks([], minor=True)
figure.axes[0].legend(frameon=False, fontsize=9)
figure

# %% [markdown]
# The curve is lopsided: too wide by a factor of five costs little, too narrow by the same factor costs a lot. That will
# explain a mystery at the end.
#
# ## May a step up be Gaussian?
#
# The model's steps will be Gaussians. But the model does not know $x_0$. What it should match on average is the way
# back *without* $x_0$, $q(x_s\mid x_t)$, and nobody said that this is a Gaussian. On the grid it is Bayes once more,
# with the marginal $q(x_s)$ as the prior. Take $x_t = 0.1$ at $t = 0.3$ and look back over steps of four sizes. Blue is
# the truth, orange the Gaussian with the same mean and variance; above each panel, their KL divergence.

# %%
@plots.quiet
def draw_ways_back(x_t, t, sizes):
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, len(sizes), figsize=(9.6, 2.6))
    x = torch.linspace(-2.6, 2.6, 2001, dtype=torch.float64)
    for axes, size in zip(panels, sizes):
        s = t - size
        r, beta = schedule(t)[0] / schedule(s)[0], step_variances(schedule, s, t)[1]
        density = marginal(schedule, x, s) * normal(x_t, r * x, beta)
        density = density / torch.trapezoid(density, x)
        mean = torch.trapezoid(density * x, x)
        variance = torch.trapezoid(density * (x - mean) ** 2, x)
        gaussian = normal(x, mean, variance)
        misfit = torch.trapezoid(torch.special.xlogy(density, density / gaussian), x)
        axes.fill_between(x, density, color=plots.COLORS[4], linewidth=0)
        axes.plot(x, gaussian, color=plots.COLORS[1], linewidth=1.3)
        axes.set(title=f"step of {size:g}: KL {misfit:.2g}", xlabel="$x_s$", xlim=(-1.9, 1.9), yticks=[])
    panels[0].set_ylabel("density")
    return figure


draw_ways_back(0.1, 0.3, [0.28, 0.2, 0.1, 0.05])

# %% [markdown]
# In one big step the pixel may have come from any of three bumps, and a single Gaussian puts its weight into the gaps
# between them. In a small step the truth *is* a Gaussian, to the eye. Halve the step from 0.2 to 0.1 to 0.05: you need
# twice as many, but each fits thirty times better or more. Why? The logarithm of $q(x_s\mid x_t)$ is the parabola of
# the step plus $\log q(x_s)$. A small step makes the parabola so narrow that within its reach $\log q(x_s)$ is a
# straight line, which only shifts it. That is what buys Gaussian steps, and what costs a thousand of them.
#
# ## From KL to a squared error
#
# So let $p_\theta(x_s\mid x_t)$ be Gaussian. Its mean is $\tilde\mu(x_t, \hat x_0)$: the posterior mean, with the
# network's guess $\hat x_0$ in the place of the unknown $x_0$. Its variance is $\tilde\beta$ as well. Equal variances
# leave only the squared distance of the means, and in that the part with $x_t$ is the same on both sides and cancels:
#
# $$L_{t-1} = \frac{(\tilde\mu(x_t,x_0) - \tilde\mu(x_t,\hat x_0))^2}{2\tilde\beta} = w\,(x_0-\hat x_0)^2,
# \qquad w = \frac{1}{2\tilde\beta}\Big(\frac{\beta\,\alpha_s}{\sigma_t^2}\Big)^2 .$$
#
# To simplify $w$, put in $\tilde\beta = \beta\sigma_s^2/\sigma_t^2$, then $\beta = \sigma_t^2 - r^2\sigma_s^2$, and
# last $r\alpha_s = \alpha_t$:
#
# $$w = \frac{\beta\,\alpha_s^2}{2\,\sigma_s^2\sigma_t^2}
# = \tfrac12\Big(\frac{\alpha_s^2}{\sigma_s^2} - \frac{r^2\alpha_s^2}{\sigma_t^2}\Big)
# = \tfrac12\big(\mathrm{SNR}_s - \mathrm{SNR}_t\big), \qquad \mathrm{SNR} = \frac{\alpha^2}{\sigma^2}.$$
#
# The weight is half the **signal-to-noise ratio** that the step up gains (Kingma et al. 2021). And if the network
# guesses the noise? From $x_0 = (x_t - \sigma_t\varepsilon)/\alpha_t$, an error in $\varepsilon$ is an error in $x_0$
# that is $\sigma_t/\alpha_t$ times as large. Squared, that is one over the SNR:
#
# $$L_{t-1} = w_\varepsilon\,(\varepsilon-\hat\varepsilon)^2, \qquad w_\varepsilon = \frac{w}{\mathrm{SNR}_t}.$$
#
# The package computes the KL divergence itself, without this algebra. Its `Prediction` holds $x_t$ and a guess, and
# translates between $x_0$ and $\varepsilon$.

# %%
from minidiff.prediction import Prediction
from minidiff.variational import variational_term


def weight_on_x0(schedule, t):  # of the step from t up to t - 1/T
    return (math.exp(schedule.log_snr(t - 1 / schedule.steps)) - math.exp(schedule.log_snr(t))) / 2


x0, guess, eps = torch.randn(3, 4, 1, 1, 1, dtype=torch.float64)  # four pictures of one pixel
for step in (2, 50, 500, 1000):
    t, (alpha, sigma) = step / 1000, schedule(step / 1000)
    x_t = alpha * x0 + sigma * eps
    prediction = Prediction("x0", x_t, guess, alpha, sigma)
    times = torch.full((4,), t, dtype=torch.float64)
    term = variational_term(schedule, x0, times, prediction, "small") * math.log(2)  # bits -> nats
    on_x0, on_eps = weight_on_x0(schedule, t), weight_on_x0(schedule, t) * sigma**2 / alpha**2
    assert torch.allclose(term, on_x0 * (x0 - guess).flatten() ** 2)
    assert torch.allclose(term, on_eps * (eps - prediction.eps).flatten() ** 2)
    print(f"step {step:4}: weight on x0 {on_x0:10.4g}, on eps {on_eps:8.4g}")

# %% [markdown]
# ## The best guess is an average
#
# What does a network do that minimises a squared error? Many different $x_0$ could have led to the $x_t$ it sees. Write
# $m = \mathbb E[x_0\mid x_t]$ for their mean. A guess $g$ pays
#
# $$\mathbb E[(x_0-g)^2\mid x_t] = \mathbb E[(x_0-m)^2\mid x_t] + 2\,(m-g)\,\underbrace{\mathbb E[x_0-m\mid x_t]}_{0}
# {} + (m-g)^2 = \operatorname{Var}[x_0\mid x_t] + (m-g)^2 .$$
#
# So the best guess is $m$, the average of all originals that are still possible, and even that pays their variance. The
# loss of a perfect network is **not zero**. For one pixel both are sums over 256 levels. Compare with trying all
# guesses:

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
guesses = torch.linspace(-1, 1, 4001, dtype=torch.float64)
costs = ((levels - guesses[:, None]) ** 2) @ possible
mean, spread = best_guess(schedule, x_t, t)
assert abs(guesses[costs.argmin()] - mean) < 5e-4 and abs(costs.min() - spread) < 1e-6
print(f"cheapest of 4,001 guesses: {guesses[costs.argmin()]:.4f} at {costs.min():.4f}; "
      f"mean {mean.item():.4f}, variance {spread.item():.4f}")

# %% [markdown]
# Does a network find that average? The one below sees single pixels with noise on them, and is asked for the noise. All
# times count alike: no weight.

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
# You know what a perfect network would pay: at each $t$ the average variance, times $\mathrm{SNR}_t$, since the network
# is judged in $\varepsilon$. What yours pays on top is its squared distance from $m$.

# %%
def line(schedule, t, width):
    """A grid (N,) that covers all of q(x_t), with spacing `width`."""
    alpha, sigma = schedule(t)
    return torch.arange(-alpha - 7 * sigma, alpha + 7 * sigma, width, dtype=torch.float64)


def mean_error(guesser, t):  # E (x0 - guess)^2 over data and noise, an integral over x_t
    x = line(schedule, t, schedule(t)[1] / 4)
    mean, spread = best_guess(schedule, x, t)
    return (marginal(schedule, x, t) @ (spread + (guesser(x, t) - mean) ** 2) * (x[1] - x[0])).item()


guessers = {"best guess, exact": lambda x, t: best_guess(schedule, x, t)[0],
            "learnt": lambda x, t: diffusion.denoise(x.float()[:, None], t).x0[:, 0].double()}
index = range(2, 1001, 20 if run.tier == "smoke" else 2)
snr = torch.tensor([math.exp(schedule.log_snr(i / 1000)) for i in index])
with torch.no_grad():
    floor, paid = (snr * torch.tensor([mean_error(g, i / 1000) for i in index]) for g in guessers.values())
print(f"the best possible denoiser pays {floor.mean():.4f}, this network {(paid - floor).mean():.4f} more")
if run.tier != "smoke":
    assert (paid - floor).mean() < 0.1 * floor.mean()

# %% [markdown]
# Look at the guesses, at three noise levels. The band is one standard deviation of what $x_0$ may be.

# %%
@plots.quiet
@torch.no_grad()
def draw_guesses(times):
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, len(times), figsize=(9.6, 2.8), sharey=True)
    for axes, t in zip(panels, times):
        reach = schedule(t)[0] + 2 * schedule(t)[1]
        x = torch.linspace(-reach, reach, 400, dtype=torch.float64)
        mean, spread = best_guess(schedule, x, t)
        axes.fill_between(x, mean - spread.sqrt(), mean + spread.sqrt(), color="#D6EAF6", linewidth=0)
        for (name, guesser), style in zip(guessers.items(), ("-", "--")):
            axes.plot(x, guesser(x, t), style, label=name)
        axes.set(xlabel="$x_t$", title=f"t = {t:g}")
    panels[0].set_ylabel("guess of $x_0$")
    panels[0].legend()
    return figure


draw_guesses([0.05, 0.2, 0.5])

# %% [markdown]
# A network that was asked for noise has found the averages of the data. It strays where it hardly ever saw a pixel, and
# where noise is so strong that an error in $x_0$ hardly shows in $\varepsilon$.
#
# With little noise the best guess is a staircase with three soft steps, one a bump. With much noise it sinks to the
# mean of all data. At $t = 0.2$ it passes smoothly through values that hardly any picture has. That is the smear of
# [notebook 00](00_a_picture_in_thirty_seconds.ipynb): a denoiser asked once gives a blurry picture, and is *right* to
# do so. Sharpness comes from asking a thousand times, deciding a little in each step.
#
# ## What $L_{\text{simple}}$ drops
#
# The network above was trained without the weight. That one step is not derived. Ho et al. found that pictures get
# better if you leave it out:
#
# $$L_{\text{simple}} = \mathbb E_{t, x_0, \varepsilon}\,(\varepsilon - \hat\varepsilon(x_t, t))^2 .$$
#
# The best denoiser stays the best, since the minimum at one $t$ does not depend on the weights of others. But a real
# network has to trade one $t$ against another, and the weight is the exchange rate. You saw it printed: on
# $\varepsilon$ it falls a hundredfold from step 2 to step 500. Setting it to 1 takes attention away from the first
# steps, where a pixel is settled to the last grey level, and gives it to the noisier ones. How much? Add up both losses
# of the best possible denoiser over $t$:

# %%
on_x0 = torch.tensor([weight_on_x0(schedule, i / 1000) for i in index])
shares = {"KL terms of the bound": on_x0 * floor / snr, "L_simple": floor}
shares = {name: (list(index), (value / value.sum()).cumsum(0)) for name, value in shares.items()}
for name, (at, share) in shares.items():
    print(f"{name}: half of it by step {at[(share < 0.5).sum()]} of 1,000")
plots.lines(shares, x="up to step t (of 1,000)", y="share of the loss", log="x")

# %% [markdown]
# The bound has half of its KL terms in the first ten steps. $L_{\text{simple}}$ looks elsewhere. This is no proof of
# better pictures; those Ho et al. measured.
#
# **Exercise 2.** A network may also guess $v = \alpha\varepsilon - \sigma x_0$ (Salimans and Ho 2022). How large is an
# error in $x_0$, seen in $v$? Write $v$ with $x_t$ and $x_0$ only. Then give the weights on the squared error of $x_0$,
# $\varepsilon$ and $v$ for a variance-preserving schedule, $\alpha^2+\sigma^2=1$, from the log-SNR at $s$ and at $t$
# alone: no $\alpha$, no $\sigma$.

# %% tags=["exercise"] name="bound_weight"
def bound_weight(kind, log_snr_s, log_snr_t):
    """Weight (nats) on the squared error of a network of this kind, "x0", "eps" or "v", for the step from t up to s."""
    ...

# %% [markdown]
# Check it:

# %%
exercises.check_bound_weight(bound_weight)

# %% [markdown]
# ## The last step lands on a grey level
#
# One term is left: $L_0 = -\log p_\theta(x_0\mid x_1)$. Pictures are whole numbers from 0 to 255, and a density at a
# whole number can be made as large as you like. So turn the last Gaussian into probabilities. Each level gets the share
# that falls into its bin of width 2/255; the outermost bins reach to infinity.

# %%
from minidiff.variational import discretized_gaussian_log_likelihood


def bin_probabilities(mean, std):  # (256,); ndtr is the distribution function of the standard normal
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
# Take the **best possible denoiser** as the network, so that no training blurs the comparison. The package adds the
# terms up, with one random $x_t$ for each. The unit is bits per dimension, here bits per pixel.

# %%
class BestDenoiser(torch.nn.Module):
    """A network that returns E[x0 | x_t]; it reads the time t itself."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, time, y=None):
        t = round(time[0].item() * T) / T  # float32 -> the exact step
        return best_guess(self.schedule, x.flatten(), t)[0].view(x.shape)


best = minidiff.Diffusion(BestDenoiser(chain), chain, "x0", time="t", shape=(1, 1, 1))  # the chain of 50 steps
draws = levels[torch.multinomial(histogram, 4000, replacement=True)].view(-1, 1, 1, 1)
each = best.bits_per_dim(draws)
by_dice, error = each.mean().item(), each.std().item() / len(each) ** 0.5
print(f"{T} steps: {by_dice:.2f} ± {error:.2f} bits per pixel, and the floor is {entropy:.2f}")

# %% [markdown]
# For fine comparisons dice are too noisy, so here is the same sum with every average done on the grid.
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
        added = (normal(x, alpha * levels, sigma**2) * term).sum(0) * sigma / 2  # the average over x_t
        total = total + added
    return total / math.log(2), added / math.log(2)

# %% [markdown]
# Now the integral that nobody can do. With one pixel it is a chain of sums: start with the standard normal on a grid,
# let each step of the model spread it, and collect what lands on each grey level. That is $p_\theta(x_0)$ itself.

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
# Does what the model makes look like the data? And does the bound hold for every grey level?

# %%
@plots.quiet
def draw_truth(p, each):
    import matplotlib.pyplot as plt
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 2.8))
    left.fill_between(levels, histogram, step="mid", color=plots.COLORS[4], linewidth=0, label="data")
    left.plot(levels, p, color=plots.COLORS[1], linewidth=1.3, label="model, exactly")
    left.set(xlabel="grey level $x_0$", ylabel="probability", ylim=(0, None))
    right.plot(levels, each, label="bound")
    right.plot(levels, -p.log2(), color=plots.COLORS[1], label="truth, $-\\log_2 p(x_0)$")
    right.set(xlabel="grey level $x_0$", ylabel="bits")
    left.legend()
    right.legend()
    return figure


p, each = climb(chain), bound(chain)[0]
assert abs(each @ histogram - by_dice) < 4 * error  # the grid agrees with the dice
assert abs(p.sum() - 1) < 1e-4 and (each > -p.log2()).all()
print(f"bound {each @ histogram:.3f}, truth {-p.log2() @ histogram:.3f}, floor {entropy:.3f} bits per pixel")
draw_truth(p, each)

# %% [markdown]
# The bound is never below the truth. But look at the numbers: with 50 steps the model is 0.04 bits above the floor, and
# its bound says 1.80. Do more steps help?

# %%
counts = [25, 50, 100] if run.tier == "smoke" else [25, 50, 100, 200, 500, 1000]
bounds, last = zip(*[[(b @ histogram).item() for b in bound(schedules.linear(n))] for n in counts])
truths = [-(climb(schedules.linear(n)).log2() @ histogram).item() for n in counts]
for n, *values in zip(counts, bounds, last, truths):
    print("{:5} steps: bound {:7.3f} (of which the last step {:.3f}), truth {:.4f}".format(n, *values))

# %% [markdown]
# The truth reaches the floor of 6.958 quickly. The bound comes down and then stays more than half a bit too high. What
# is wrong with it?
#
# ## Which variance?
#
# The gap of the bound is a distance between paths: those made by destroying $x_0$, and those that the model takes to
# it. On average their means agree by now. But the *variance* of the true way back is not $\tilde\beta$. That is the
# variance for known $x_0$. If $x_0$ may vary by $\operatorname{Var}[x_0\mid x_t]$, then $\tilde\mu$ varies with it, by
# the square of the factor before $x_0$:
#
# $$\operatorname{Var}[x_{s}\mid x_t] = \tilde\beta + \Big(\frac{\beta\alpha_s}{\sigma_t^2}\Big)^2
# \operatorname{Var}[x_0\mid x_t].$$
#
# If all pictures are alike, the second part is 0 and $\tilde\beta$ is right. If $x_0$ is standard normal,
# $\operatorname{Var}[x_0\mid x_t]=\sigma_t^2$, and with $\alpha^2+\sigma^2=1$ the sum is $\beta$. These are DDPM's
# *small* and *large* variance, and reality lies between. On the grid it is known:

# %%
places = torch.unique(torch.logspace(math.log10(2), 3, 60).round()).tolist()
rows = {"large": [], "true way back": [], "small": []}
for i in places:
    small, large = step_variances(schedule, (i - 1) / 1000, i / 1000)
    factor = large * schedule((i - 1) / 1000)[0] / schedule(i / 1000)[1] ** 2
    true = small + factor**2 * mean_error(guessers["best guess, exact"], i / 1000)
    for row, value in zip(rows.values(), (large, true, small)):
        row.append(value / large)
assert all(a >= b >= c for a, b, c in zip(*rows.values()))
names = {"large": r"large, $\beta$", "true way back": "true way back, on average", "small": r"small, $\tilde\beta$"}
plots.lines({names[name]: (places, row) for name, row in rows.items()},
            x="step t (of 1,000)", y=r"variance / $\beta$", log="x")

# %% [markdown]
# The three differ only in the first steps, exactly where the bound earns its bits. There the truth is close to *large*:
# under a microscope the bumps of this histogram look flat, so nothing narrows $x_0$ down but $x_t$ itself. And a step
# too narrow by a factor of two is what the lopsided KL punishes. Give each step the true variance, "matched" to each
# $x_t$:

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
    print(f"{name:8} variance: bound {gap[-1]:.4f} bits above the floor with {counts[-1]} steps")
assert gaps["matched"][-1] < gaps["large"][-1] < gaps["small"][-1]
curves = {f"bound, {name} variance": (counts, gap) for name, gap in gaps.items()}
exact = [-(climb(schedules.linear(n), matched_variance).log2() @ histogram).item() - entropy for n in counts]
curves["truth, matched variance"] = counts, exact
print(f"truth with {counts[-1]} steps: small {truths[-1] - entropy:.6f}, matched {exact[-1]:.6f} bits above the floor")
figure = plots.lines(curves, x="number of steps", y="bits above the floor", log="xy")
figure.axes[0].set_xticks(counts, [str(n) for n in counts])
figure.axes[0].set_xticks([], minor=True)
figure

# %% [markdown]
# With the right variance the bound comes down to the floor. The model itself gains, too: it is 0.000004 bits from the
# data, where the small variance left 0.003. What was lost is not in the squared error but in the variance that
# $L_{\text{simple}}$ never looks at. A real network has no grid to look it up, so Nichol and Dhariwal (2021) give it a
# second output: where the truth lies between $\log\tilde\beta$ and $\log\beta$. In minidiff that is
# `learned_range=True`.
#
# ## What the papers found, what we measured
#
# | | the papers, on pictures | here, one pixel, best denoiser |
# |---|---|---|
# | training without the weight | CIFAR-10: FID (lower is better) 3.17 with $L_{\text{simple}}$, 13.51 with the bound (Ho et al., table 1) | not measured |
# | where the bits go | 1.97 of 3.75 bits in the last step, finer than the eye sees (section 4.3) | 2.49 of 7.61 bits in the last step, with 1,000 steps |
# | where the bound is lost | in the first steps, where the variance matters most (Nichol and Dhariwal, section 3.1) | the same: 0.65 bits too many with the small variance, under 0.002 with the matched one |
#
# **Exercise 3, a small project.** Write the bound of the best denoiser for *any* one-pixel data set, schedule and
# choice of small or large variance, to 2 %. Start from `bound` above, but not from `best_guess`, which reads this
# notebook's own histogram. Then plot it against the number of steps (25 to 500) for `schedules.linear` and
# `schedules.cosine`, with `levels = [-1, 1]` and `histogram = [0.3, 0.7]`. Which schedule is better with few steps?
# Which variance wins this time, and why?

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
# Likelihood is code length, and its only obstacle is an integral over paths. The bound removes it with paths that are
# known to lead to the picture, and falls apart into KL divergences of Gaussians, one a step. With equal variances each
# is a squared error, times a weight; $L_{\text{simple}}$ drops the weight. What minimises it is the average of all
# originals that are still possible. Gaussian steps are right if they are small, and the bound is tight if their
# variance is right.
#
# ## Where to read on
#
# - Sohl-Dickstein et al. 2015, arXiv:1503.03585: the ladder and its bound.
# - Ho, Jain and Abbeel 2020, arXiv:2006.11239: sections 2 and 3.
# - Nichol and Dhariwal 2021, arXiv:2102.09672: the learned range.
# - Kingma et al. 2021, arXiv:2107.00630: the weight as a difference of SNRs.
# - Bao et al. 2022, arXiv:2201.06503: the matched variance without training.
#
# Next, [notebook 03](03_ddpm_in_a_hundred_lines.ipynb) turns $L_{\text{simple}}$ into a program, and the program into
# pictures.
