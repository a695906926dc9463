# %% [markdown]
# # 01 Destroying images properly
#
# After this notebook you can turn any picture into noise with one line of code, say how much of it is left at any
# moment, and read the noise schedules of the papers.
#
# Run time: about a minute on a CPU; a T4 or a big GPU is not needed and not used. Nothing is trained here.
#
# Goals:
#
# - derive the one line that replaces a thousand small steps of noise, and watch the two agree
# - translate between the letters of the papers: $\beta$, $\bar\alpha$, $\alpha$, $\sigma$ and signal-to-noise ratios
# - measure when a schedule destroys a picture, and why that depends on the number of pixels
# - know where 0.008 and 0.999 come from, and whether the last step is really pure noise

# %%
import minidiff
from minidiff.course import budget, exercises, plots, setup, widgets
run = setup()

# %% [markdown]
# ## How do you ruin a picture so that it can be repaired?
#
# A diffusion model makes pictures by repairing noise. To learn that, it needs damaged pictures and their originals, so
# first you have to do the damage. Not every kind will do. At the end nothing of the picture may be left, because you
# will start from noise that you made yourself. And each step on the way must be so small that undoing it is easy.
# Notebook 00 mixed picture and noise in two amounts, $\alpha$ and $\sigma$, that fell from the sky. Here you find out
# where they come from.
#
# These are the victims: emoji, which come with the package.

# %%
import torch

sets = {size: minidiff.load_dataset("emoji", size=size, split="all", style="twitter") for size in (16, 32, 64)}
groups = sets[64].groups  # some emoji have the very same picture: keep the first of each group
first = [i for i, group in enumerate(groups) if group not in groups[:i]]
emoji = {size: data.images()[first] for size, data in sets.items()}  # (N, 3, size, size) in [-1, 1]
captions = [sets[64].captions[i] for i in first]
names = ("grinning face", "slice of pizza", "octopus", "rainbow", "automobile", "rose")
chosen = [captions.index(name) for name in names]
print(f"{len(first)} different emoji, as {', '.join(str(tuple(x.shape[1:])) for x in emoji.values())}")
plots.grid(emoji[32][chosen], titles=[captions[i] for i in chosen])

# %% [markdown]
# ## One small step, a thousand times
#
# One step of damage shrinks the picture a little and adds a little Gaussian noise:
#
# $$x_t = \sqrt{1-\beta_t}\;x_{t-1} + \sqrt{\beta_t}\;\varepsilon_t, \qquad \varepsilon_t \sim \mathcal N(0, I).$$
#
# Here $x_0$ is the picture and $x_t$ what is left of it after $t$ steps. $\mathcal N(0, I)$ means: for every pixel and
# colour its own random number, with mean 0 and variance 1, drawn anew at each step. The whole walk is called the
# *forward process*. DDPM (Ho et al. 2020) takes 1,000 steps, with $\beta_t$ rising in a straight line from 0.0001 to
# 0.02. That list of numbers is called a *schedule*.

# %%
betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
stops = [0, 20, 100, 200, 300, 500, 800]
generator = torch.Generator().manual_seed(0)

x = emoji[32][chosen[:2]]
frames = [x]
for step, beta in enumerate(betas, start=1):
    eps = torch.randn(x.shape, generator=generator)
    x = (1 - beta).sqrt() * x + beta.sqrt() * eps
    if step in stops:
        frames.append(x)
plots.filmstrip(frames, times=[f"step {s}" for s in stops])

# %% [markdown]
# Two things should bother you. Why these square roots? And must you walk through 500 steps to see step 500?
# One fact answers both.
#
# ## Variances add
#
# Take two independent random numbers $X$ and $Y$ with mean zero. Then
#
# $$\mathrm{Var}(aX + bY) = \mathbb E[(aX+bY)^2] = a^2\,\mathbb E[X^2] + 2ab\,\mathbb E[XY] + b^2\,\mathbb E[Y^2]
# = a^2\,\mathrm{Var}X + b^2\,\mathrm{Var}Y,$$
#
# because $\mathbb E[XY] = \mathbb E[X]\,\mathbb E[Y] = 0$. (For other means, subtract them first.) Variances add,
# standard deviations do not. If $X$ and $Y$ are Gaussian, so is the sum: 3 units of noise and 4 units of noise are 5
# units of noise, since $\sqrt{9 + 16} = 5$.
#
# Now let a step shrink by some factor $c$. The variance of a pixel becomes $c^2\,\mathrm{Var} + \beta$. You want noise
# of variance 1 to stay at variance 1, so that a network sees inputs of about the same size at every step:
#
# $$c^2 \cdot 1 + \beta = 1 \quad\Longrightarrow\quad c = \sqrt{1-\beta}.$$
#
# That is the only reason for the square root. Check the 3, 4 and 5 first, then see what two other choices of $c$ do to
# 20,000 pixels of real emoji.

# %%
X, Y = torch.randn(2, 1_000_000, generator=generator, dtype=torch.float64)
assert abs((3 * X + 4 * Y).std() - 5) < 0.03  # not 7

pixels = emoji[32].flatten()[torch.randperm(emoji[32].numel(), generator=generator)[:20_000]]
factors = {
    "c = 1": torch.ones_like(betas),
    "c = sqrt(1 - beta)": (1 - betas).sqrt(),
    "c = 1 - beta": 1 - betas,
}
spread = {}
for name, c in factors.items():
    x, stds = pixels, []
    for k in range(1000):
        x = c[k] * x + betas[k].sqrt() * torch.randn(x.shape, generator=generator)
        stds.append(x.std().item())
    spread[name] = (range(1, 1001), stds)
print(f"all betas add up to {betas.sum():.2f}; the pixels begin with a variance of {pixels.var():.2f}")
print("variance in the end:", ", ".join(f"{stds[-1] ** 2:.2f} ({name})" for name, (_, stds) in spread.items()))
plots.lines(spread, x="step", y="standard deviation of a pixel")

# %% [markdown]
# Without shrinking, the picture stays at full strength while noise piles up on it, a variance of $\sum_t\beta_t = 10$
# in the end. That is not wrong; it is the *variance exploding* family, which you meet again below. But a network must
# then cope with inputs of every size. With $c = 1-\beta$ the variance settles where $v = (1-\beta)^2 v + \beta$, that
# is at $v = 1/(2-\beta)$, one half. Only the square root ends at 1. It is called *variance preserving*, although these
# pixels begin with less: what it preserves is a variance of 1.
#
# ## A thousand steps in one line
#
# Write two steps as one. With $c_t = \sqrt{1-\beta_t}$, the noise of step $t$ has variance $\beta_t = 1-c_t^2$, and
#
# $$x_2 = c_2\,\bigl(c_1\,x_0 + \sqrt{1-c_1^2}\,\varepsilon_1\bigr) + \sqrt{1-c_2^2}\,\varepsilon_2
# = c_1 c_2\,x_0 + \underbrace{c_2\sqrt{1-c_1^2}\,\varepsilon_1 + \sqrt{1-c_2^2}\,\varepsilon_2}_{\text{variance } c_2^2 - c_1^2 c_2^2 + 1 - c_2^2 \,=\, 1 - c_1^2 c_2^2}.$$
#
# Two noises have merged into one, $\varepsilon$, and the formula has its old shape with $c_1 c_2$ in the place of
# $c_1$. So a third step multiplies in $c_3$, and so on. The squares are handier than the factors. With
# $\bar\alpha_t = \prod_{s\le t} c_s^2 = \prod_{s\le t} (1-\beta_s)$,
#
# $$\boxed{\;x_t = \sqrt{\bar\alpha_t}\;x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon\;}$$
#
# Every later notebook stands on this line. Test it before you trust it: let 20,000 walkers start at $x_0 = 0.8$, take
# every step, and compare.

# %%
alpha_bar = (1 - betas).cumprod(0)  # (1000,)

x, walked = torch.full((20_000,), 0.8, dtype=torch.float64), {}
for k in range(1000):
    x = (1 - betas[k]).sqrt() * x + betas[k].sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    if k + 1 in (1, 30, 100, 250, 1000):
        walked[k + 1] = x

print("step    mean: walked  formula     standard deviation: walked  formula")
for k, x in walked.items():
    mean, std = 0.8 * alpha_bar[k - 1].sqrt(), (1 - alpha_bar[k - 1]).sqrt()
    print(f"{k:4}{x.mean():17.4f}{mean:9.4f}{x.std():31.4f}{std:9.4f}")
    assert abs(x.mean() - mean) < 4 * std / 20_000**0.5  # four standard errors
    assert abs(x.std() - std) < 4 * std / 40_000**0.5  # a standard deviation's is 1 / sqrt(2 N) of itself

# %% [markdown]
# They agree as well as 20,000 walkers can: the last mean has a sampling error of $1/\sqrt{20{,}000} = 0.007$. And a sum
# of Gaussians is Gaussian, so mean and standard deviation are all there is to compare.
#
# A picture is many such numbers, each with its own noise, so nothing changes for pictures. For a whole *data set*
# something does: every point is pulled to the centre and blurred, and its fine structure goes first. With data of only
# two numbers you can see all of it. Here are 40,000 points on two spirals, dark where many lie; each panel is one jump
# from the data.

# %%
spirals = minidiff.load_dataset("spirals", num=40_000).images()  # (40000, 2)

clouds = {"step 0": spirals}
for k in (20, 100, 1000):
    eps = torch.randn(spirals.shape, generator=generator)
    clouds[f"step {k}"] = alpha_bar[k - 1].sqrt() * spirals + (1 - alpha_bar[k - 1]).sqrt() * eps
plots.density_2d(clouds, extent=2.5)

# %% [markdown]
# ## One object, many alphabets
#
# $\beta$ says how the walk is built. What a noisy picture holds is said better by the two factors of the boxed line.
# From here on we write $x_t = \alpha\,x_0 + \sigma\,\varepsilon$ with $\alpha = \sqrt{\bar\alpha_t}$, the
# *signal scale*, and $\sigma = \sqrt{1-\bar\alpha_t}$, the *noise scale*. The ratio of their squares is the *signal-to-noise
# ratio*, SNR. Everything else that papers write is a function of these two. Come back to the table when a paper
# confuses you.
#
# | name | here | where you meet it |
# |---|---|---|
# | $\bar\alpha_t$ | $\alpha^2$ | DDPM. Beware: the DDIM paper calls the same thing $\alpha_t$, and DDPM's own $\alpha_t$ is $1-\beta_t$ |
# | $\beta_t$ | $1 - \alpha_t^2/\alpha_{t-1}^2$ | DDPM, improved DDPM |
# | SNR | $\alpha^2/\sigma^2$ | Variational diffusion models, Min-SNR |
# | log-SNR | $\log(\alpha^2/\sigma^2)$ | the same; many call it $\lambda$. DPM-Solver's $\lambda$ is half of it |
# | $\sigma$ of EDM | $\sigma/\alpha$ | EDM: the noise left when the picture is scaled back to full strength |
# | $\beta(t)$ | $-2\,\frac{d}{dt}\log\alpha$ | score-based SDEs, whose time has no steps; more below |
#
# SNR is the quantity to think in: it says how strong the picture is against the noise, whatever the two are scaled by.
# It spans many powers of ten, so one takes its (natural) logarithm. For a variance-preserving schedule this one number
# says it all: put $\sigma^2 = 1-\alpha^2$ into $\text{SNR} = \alpha^2/\sigma^2$ and solve for $\alpha^2$,
#
# $$\alpha^2 = \frac{\text{SNR}}{1 + \text{SNR}} = \frac{1}{1 + e^{-\text{log-SNR}}} = \mathrm{sigmoid}(\text{log-SNR}),
# \qquad \sigma^2 = \mathrm{sigmoid}(-\text{log-SNR}).$$
#
# Go once around the table:

# %%
alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
log_snr = (alpha**2 / sigma**2).log()

assert torch.allclose(alpha**2, torch.sigmoid(log_snr), rtol=1e-9)  # log-SNR -> alpha-bar
assert torch.allclose(sigma**2, torch.sigmoid(-log_snr), rtol=1e-9)
assert torch.allclose(sigma / alpha, torch.exp(-log_snr / 2), rtol=1e-9)  # log-SNR -> sigma of EDM
before = torch.cat([torch.ones(1, dtype=alpha.dtype), alpha[:-1]])  # alpha is 1 before the first step
assert torch.allclose(1 - alpha**2 / before**2, betas, rtol=1e-9)  # alpha -> beta
for k in (1, 100, 500, 1000):
    print(f"step {k:4}: alpha {alpha[k - 1]:.4f}  sigma {sigma[k - 1]:.4f}  log-SNR {log_snr[k - 1]:+.2f}")

# %% [markdown]
# ## Linear against cosine
#
# Steps are counted from 1 to $T$, and $T$ differs between papers. This course puts all of them on one clock: step $k$
# of $T$ happens at $t = k/T$, so $t = 0$ is data and $t = 1$ is noise. From here on $t$ is this clock, and a step's
# number is $k$. Tables have no row for the clean picture, so step $k$ stands at index $k-1$.
#
# Nichol and Dhariwal (2021) found the linear schedule too hasty. They wanted $\bar\alpha$ to fall gently at both
# ends, and a squared cosine does that:
#
# $$\bar\alpha(t) = \frac{f(t)}{f(0)}, \qquad f(t) = \cos^2\!\Bigl(\frac{t + 0.008}{1.008}\cdot\frac{\pi}{2}\Bigr).$$
#
# The 0.008 has to wait. First look.

# %%
def cosine_bar(t, offset=0.008):
    """alpha-bar at times t (B,), float64."""
    angle = (torch.cat([torch.zeros(1), t]).double() + offset) / (1 + offset) * torch.pi / 2
    f = torch.cos(angle) ** 2
    return (f[1:] / f[0]).where(t < 1, 0.0)  # in floating point cos(pi / 2) is 6e-17


def scales(alpha_bar, t):
    """(alpha, sigma) at time t >= 1 / T, from a table (T,)."""
    row = alpha_bar[(torch.as_tensor(t) * len(alpha_bar)).round().long() - 1]
    return row.sqrt(), (1 - row).sqrt()


grid = torch.arange(1, 1001, dtype=torch.float64) / 1000
tables = {"linear": alpha_bar, "cosine": cosine_bar(grid)}
face = emoji[32][chosen[:1]]
eps = torch.randn(face.shape, generator=generator)
times = [0.02, 0.1, 0.2, 0.4, 0.6, 0.8]
rows = [torch.cat([a * face + s * eps for a, s in (scales(bar, t) for bar in tables.values())]) for t in times]
display(plots.filmstrip(rows, times=times, rows=list(tables), scale=2))
print("log-SNR at t = 0.6:", ", ".join(f"{(bar / (1 - bar)).log()[599]:.1f} ({name})" for name, bar in tables.items()))
plots.schedules({name: lambda t, bar=bar: scales(bar, t) for name, bar in tables.items()})

# %% [markdown]
# The noise is the same in both rows; only the schedule differs. To your eye, linear has finished by $t = 0.6$ and
# wastes the rest. The right panel says how much: there linear's log-SNR is 3 below that of cosine, and $e^3 = 20$. Only
# at the very end does cosine fall faster, to an $\alpha$ of exactly 0.
#
# ## Where does the information die?
#
# Your eye is a poor instrument here. Noise one emoji, hand the result to a detective who knows all
# 1,875 originals, $\alpha$ and $\sigma$, and ask: which one was it? A Gaussian makes large noise unlikely and looks at
# nothing but its length. So the best guess is the original whose shrunken copy $\alpha\,x$ lies nearest. When that is
# right no more often than by chance, the information is gone. (`budget` chooses how many cases to try on your machine.)

# %%
def identified(images, alpha, sigma, num, seed=0):
    """Share of `num` noisy pictures whose original is recognised among all images (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    originals = images.flatten(1)  # (N, D)
    truth = torch.randperm(len(images), generator=generator)[:num]
    noisy = alpha * originals[truth] + sigma * torch.randn(num, originals.shape[1], generator=generator)
    # |noisy - alpha x|^2 = |noisy|^2 - 2 alpha noisy.x + alpha^2 |x|^2, and the first part is the same for every x
    distance = alpha**2 * originals.square().sum(1) - 2 * alpha * noisy @ originals.T  # (num, N)
    return (distance.argmin(1) == truth).double().mean().item()


size = budget("detective", smoke={"pictures": 60, "levels": 10}, cpu={"pictures": 400, "levels": 20})
num, levels = size["pictures"], [(k + 1) / size["levels"] for k in range(size["levels"])]
share = {name: (levels, [identified(emoji[32], *scales(bar, t), num) for t in levels]) for name, bar in tables.items()}
print("at t = 0.6:", ", ".join(f"{shares[levels.index(0.6)]:.0%} ({name})" for name, (_, shares) in share.items()))
plots.lines(share, x="t", y="share of emoji identified", title="32 pixels")

# %% [markdown]
# Compare the curves with the pictures above them. At $t = 0.6$ the linear row looks like static to you, and the
# detective still names two in three, by adding up faint evidence from 3,072 numbers. What your eye calls noise can
# still teach a network.
#
# ## The same schedule destroys a bigger picture later
#
# If evidence adds up over pixels, then more pixels are more evidence. Here is one octopus at three sizes, and in each
# column every pixel has exactly the same signal-to-noise ratio. Guess which drowns first; then ask the detective.

# %%
def enlarged(x):
    """Every pixel as a block, so that all sizes are drawn at 64."""
    return x.repeat_interleave(64 // x.shape[-1], -1).repeat_interleave(64 // x.shape[-2], -2)


def destroyed(x, alpha, sigma, seed=0):
    return alpha * x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


octopus = {s: x[chosen[2]][None] for s, x in emoji.items()}
times = [0.1, 0.2, 0.3, 0.5]
rows = [torch.cat([enlarged(destroyed(x, *scales(alpha_bar, t))) for x in octopus.values()]) for t in times]
display(plots.filmstrip(rows, times=times, rows=[f"{s} px" for s in octopus], scale=1))

curves = {
    f"{s} px": (levels, [identified(x, *scales(alpha_bar, t), num) for t in levels]) for s, x in emoji.items()
}
print("at t = 0.8:", ", ".join(f"{shares[levels.index(0.8)]:.1%} ({name})" for name, (_, shares) in curves.items()))
plots.lines(curves, x="t", y="share of emoji identified", title="linear schedule")

# %% [markdown]
# The bigger the picture, the later it drowns. Why? Neighbouring pixels of a picture say nearly the same; their noises
# do not. Average a block of $4\times4$ pixels: the signal stays, and the standard deviation of the noise falls from
# $\sigma$ to $\sigma/4$, since variances add and $\sqrt{16} = 4$. Seen at 16 pixels, a picture of 64 pixels therefore
# has 16 times the SNR. See for yourself:

# %%
alpha, sigma = scales(alpha_bar, 0.5)
originals = emoji[64][[chosen[k] for k in (3, 5)]]
noisy = destroyed(originals, alpha, sigma)

frames = [originals, noisy]
for k in (4, 8):
    pooled = torch.nn.functional.avg_pool2d(noisy, k)
    left = pooled - torch.nn.functional.avg_pool2d(alpha * originals, k)
    print(f"noise of a pixel {sigma:.3f}, of a mean over {k} x {k} {left.std():.3f}, expected {sigma / k:.3f}")
    assert abs(left.std() / (sigma / k) - 1) < 0.1
    frames.append(enlarged(pooled / (alpha + sigma / k)))  # stronger contrast, for your eye only
heads = ["original", "noisy", "mean of 4 x 4", "mean of 8 x 8"]
plots.filmstrip(frames, times=heads, rows=["rainbow", "rose"], scale=2)

# %% [markdown]
# The second column is what the linear schedule leaves at $t = 0.5$. The other two are the same tensors, averaged, and
# an arc and a red flower come back. So the right question is not "how noisy is a pixel" but "how noisy is what is left
# after averaging". Twice the side means four times the pixels, four times the SNR, and $\log 4 = 1.386$ more log-SNR.
# If that is all there is to it, the three curves must fall onto one when you draw them over log-SNR
# $+\,2\log(\text{size}/16)$.

# %%
def half_point(log_snrs, shares):
    """The log-SNR at which half are identified, by a straight line between neighbours."""
    k = next(k for k, value in enumerate(shares) if value < 0.5)
    weight = (shares[k - 1] - 0.5) / (shares[k - 1] - shares[k])
    return log_snrs[k - 1] + weight * (log_snrs[k] - log_snrs[k - 1])


level = torch.linspace(3, -10, size["levels"], dtype=torch.float64)  # log-SNR
shifted, half = {}, {}
for s, x in emoji.items():
    pairs = zip(torch.sigmoid(level).sqrt(), torch.sigmoid(-level).sqrt())
    shares = [identified(x, alpha, sigma, num) for alpha, sigma in pairs]
    shifted[f"{s} px"] = (level + 2 * torch.tensor(s / 16).log(), shares)
    half[s] = half_point(level, shares).item()
apart = {s: (x[1:] - x[:-1]).flatten(1).norm(dim=1).median() for s, x in emoji.items()}  # from each to the next
for s in (16, 32):
    print(f"{s} to {2 * s} px: half point {half[s]:.2f} to {half[2 * s]:.2f}, down by {half[s] - half[2 * s]:.2f}; "
          f"squared distances of emoji say {2 * (apart[2 * s] / apart[s]).log():.2f}")
assert all(abs(half[s] - half[2 * s] - 1.386) < 0.5 for s in (16, 32))
plots.lines(shifted, x="log-SNR + 2 log(size / 16)", y="share of emoji identified")

# %% [markdown]
# They do, nearly: half of the emoji are lost at a log-SNR that sinks by about 1.5 with each doubling. That is a little
# more than 1.386 because bigger pictures also show new detail. How easily the detective confuses two emoji depends on
# their distance, and the squared distances grow by as much, within what 400 guesses can tell.
#
# So a schedule that is right at 16 pixels is too gentle at 64. The cure is to subtract what averaging adds, which is
# what you have just done to the axis of the figure (Hoogeboom et al. 2023; Chen 2023 scales the input instead, to the
# same effect, and Stable Diffusion 3 does the same for flows):
#
# $$\text{log-SNR}_{\text{size}}(t) = \text{log-SNR}_{16}(t) - 2\log\frac{\text{size}}{16}.$$
#
# ## Where 0.008 comes from
#
# Time to open the cosine schedule's two odd constants. A cosine is flat at its top, so without an offset the first
# steps do almost nothing. How little is too little? Pixels are bytes: in $[-1, 1]$ neighbouring values are $1/127.5$
# apart. Noise far below that is finer than the grain of the picture itself. Now the task of a network is, in most
# papers, to find the noise $\varepsilon$ in $x_t$, and the authors saw that it does so badly where there is hardly any.
# So they chose the offset such that the noise of the first step, $\sigma(1/T) = \sqrt{\beta_1}$, is slightly
# below one bin.

# %%
def first_sigma(offset, T):
    return (1 - cosine_bar(torch.tensor([1 / T]), offset)).sqrt().item()


bin_size = 1 / 127.5
for offset, T in ((0.0, 1000), (0.008, 1000), (0.0123, 1000), (0.008, 4000)):
    print(f"T = {T}, offset {offset}: noise of the first step = {first_sigma(offset, T) / bin_size:.2f} bins")
levels_8bit = (pixels.double() + 1) * 127.5  # 0 ... 255; 255 can become 256, which counts as a change
changed = {}
for offset in (0.008, 0.0):
    bars, noise = cosine_bar(grid[:20], offset), torch.randn(20, len(pixels), generator=generator)
    noisy = bars.sqrt()[:, None] * pixels + (1 - bars).sqrt()[:, None] * noise  # (20, 20000)
    share = (((noisy + 1) * 127.5).round() != levels_8bit.round()).double().mean(1)
    print(f"offset {offset}: the first step changes {share[0]:.0%} of the bytes")
    changed[f"offset {offset}"] = (range(1, 21), share)
figure = plots.lines(changed, x="step of 1000", y="share of bytes that differ")
figure.axes[0].set_xticks(range(0, 21, 5))
figure

# %% [markdown]
# Without the offset the noise of the first step is a fifth of a bin, and rounding to bytes would wipe nearly all of it
# away. With it, half of the bytes move at once. The offset that fits the bin exactly is near 0.0123, and with
# $T = 4000$, which the authors also used, 0.008 gives no more than 0.4 bins. It is a rule of thumb and no magic number: it
# belongs to 8-bit pixels and about a thousand steps.
#
# ## Where 0.999 comes from
#
# The other end is more dangerous. At $t = 1$ the cosine is zero: $\bar\alpha = 0$, and the last step has $\beta = 1$.
# That hurts when a network has found the noise and you want the picture. You solve the boxed line for it,
# $x_0 = (x_t - \sigma\varepsilon)/\alpha$, and divide by $\alpha$. Look at the last few betas, and at what becomes of $x_0$.

# %%
raw = torch.cat([torch.ones(1), cosine_bar(grid)])
raw_betas = 1 - raw[1:] / raw[:-1]
print("last betas:", ", ".join(f"{b:.4f}" for b in raw_betas[-5:]))
print(f"above 0.999: {(raw_betas > 0.999).sum()} of 1000")

alpha, sigma = (1 - raw_betas).cumprod(0)[-1].sqrt(), torch.tensor(1.0)
x_T = alpha * face + sigma * eps
x0 = (x_T - sigma * eps) / alpha
print(f"alpha at the end {alpha:.1f}; x0 from the true noise: {x0[0, 0, 0, :3].tolist()}")
assert x0.isnan().all()

capped_betas = raw_betas.clamp(max=0.999)
tables["cosine"] = (1 - capped_betas).cumprod(0)
for k in (500, 900, 990, 999, 1000):
    a, s = scales(tables["cosine"], k / 1000)
    print(f"step {k:4}: alpha {a:.2e}; predict the noise 1 % wrong, and x0 is wrong by {0.01 * s / a:.3g}")

# %% [markdown]
# A cosine falls to its zero in a straight line: with $n$ steps to go $\alpha$ is in proportion to $n$. So the betas end
# with $1 - \left(\frac{n}{n+1}\right)^2$ for $n = \dots, 2, 1, 0$, and only the very last reaches 1. There $x_0$
# becomes $0/0$, even though you gave it the true noise. Capping $\beta$ at 0.999 keeps that last $\alpha$ above zero.
#
# But look at the last line: the cap trades a NaN for an error of 200, where pixels live in $[-1, 1]$. That is
# survivable only because samplers, the programs that walk back, clip $x_0$ to that range, or because the network
# predicts something better behaved than noise, as in later notebooks. Remember it when a sampler explodes on its first
# step.
#
# ## Is the end really noise?
#
# When a sampler begins, it draws $x_T \sim \mathcal N(0, I)$ and claims that this is what the forward process ends in.
# It is true only if $\alpha(1) = 0$. Here are three schedules in use. The third is that of Stable Diffusion, with
# $\sqrt{\beta}$ in a straight line. The first thing to leak is brightness, since it is an average over all numbers of a
# picture: take each emoji to $t = 1$ and compare its mean with the mean of what is left.

# %%
import matplotlib.pyplot as plt


@plots.quiet
def leaks(images, tables):
    figure, panels = plt.subplots(1, len(tables), figsize=(3.1 * len(tables), 2.9), sharey=True)
    before = images.mean((1, 2, 3))
    for axes, (name, bar) in zip(panels, tables.items()):
        after = destroyed(images, *scales(bar, 1.0), seed=1).mean((1, 2, 3))
        # the line of least squares
        slope = ((before - before.mean()) * after).sum() / (before - before.mean()).square().sum()
        axes.plot(before[::3], after[::3], ".", markersize=2.5)  # every third, for a lighter picture
        axes.plot(before, after.mean() + slope * (before - before.mean()), color=plots.COLORS[1])
        axes.set(title=f"{name}: slope {slope:.4f}", xlabel="mean of the picture")
        print(f"{name:14} slope {slope:+.4f}, alpha(1) = {bar[-1].sqrt():.4f}")
        assert abs(slope - bar[-1].sqrt()) < 0.004
    panels[0].set_ylabel("mean at t = 1")
    return figure


tables["scaled linear"] = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
leaks(emoji[64], tables)

# %% [markdown]
# The slope is $\alpha(1)$, as it must be. With the third schedule, brightness survives in plain sight.
#
# A network trained on such inputs learns to trust what it sees there. Started from real noise, whose mean is always
# near zero, it concludes that you want a picture of medium brightness. Lin et al. (2024) traced the inability of such
# models to make very dark or very bright pictures to this. Their cure is to move the table of $\alpha$ until it ends at
# zero, and stretch it so that it begins as before.
#
# And it is not only brightness. How far is the end from the noise you start with? The *KL divergence* counts the bits
# by which one distribution can be told from another, 0 if they are equal; notebook 02 derives it. For
# $\mathcal N(m, s^2)$ against $\mathcal N(0, 1)$ it is $\tfrac12(m^2 + s^2 - 1 - \log s^2)/\log 2$, here with $m = \alpha x_0$ and
# $s^2 = 1-\alpha^2$. And for two Gaussians with the same variance it is $\tfrac12 (m_1 - m_2)^2/s^2/\log 2$. Taken
# between each emoji and their mean, and added up over all pixels, that is the most that $x_T$ can tell about which
# emoji it was.
#
# Guess before you run the cell: of the emoji that Stable Diffusion's schedule has turned into "pure noise", how many
# can the detective still name?

# %%
import math
from torch.distributions import Normal, kl_divergence


def bits_left(x0, alpha_bar):
    """KL(N(alpha x_0, sigma^2) || N(0, 1)) at the end of a table, in bits per number."""
    alpha2 = alpha_bar[-1]
    return 0.5 * (alpha2 * x0.square().mean() - alpha2 - torch.log1p(-alpha2)).item() / math.log(2)


leaky = tables["scaled linear"].sqrt()  # alpha
reference = kl_divergence(Normal(0.8 * leaky[-1], (1 - leaky[-1] ** 2).sqrt()), Normal(0.0, 1.0)).item() / math.log(2)
assert math.isclose(bits_left(torch.tensor(0.8), tables["scaled linear"]), reference, rel_tol=1e-5)
assert math.isclose(kl_divergence(Normal(0.3, 0.5), Normal(0.1, 0.5)), 0.5 * (0.3 - 0.1) ** 2 / 0.5**2, rel_tol=1e-5)

tables["repaired"] = ((leaky - leaky[-1]) * leaky[0] / (leaky[0] - leaky[-1])) ** 2
distance = (emoji[64] - emoji[64].mean(0)).square().sum((1, 2, 3)).mean()  # squared distance from the mean emoji
print(f"chance {1 / len(first):.2%}; naming one emoji of {len(first)} takes {math.log2(len(first)):.1f} bits")
for name, bar in tables.items():
    which = 0.5 * distance * bar[-1] / (1 - bar[-1]) / math.log(2)
    named = {s: identified(x, *scales(bar, 1.0), num=2 * num) for s, x in emoji.items()}
    print(f"{name:13}: {bits_left(emoji[64], bar):.1e} bits a number; at 64 px {which:5.2f} bits on which emoji it is; "
          "named", ", ".join(f"{share:.1%} ({s} px)" for s, share in named.items()))
assert named[64] < 0.02  # the repaired one

# %% [markdown]
# More than half at 64 pixels, although only $0.0683^2 = 0.5\,\%$ of the picture's variance is left. Per number the leak
# looks like nothing, but 12,288 numbers hold up to 14 bits about which emoji it was, and 10.9 would name it. (Stable
# Diffusion noises compressed pictures of $64\times64\times4$ numbers instead of pixels; the arithmetic is the same.)
# DDPM's own schedule leaks a hundredth of that, and the repaired one nothing.
#
# The repair has its price. The last step has $\alpha = 0$ again, and the 0/0 is back. There $x_T$ is the noise, so
# naming the noise says nothing about the picture. A model with zero terminal SNR must predict something else.
#
# ## Time without steps
#
# A thousand is an arbitrary number. Let $T$ grow and make each step smaller, $\beta_i = \beta(t)/T$ with
# $\beta(t) = 0.1 + 19.9\,t$, so that $T = 1000$ gives DDPM's own table. For small $a$, $\log(1-a)$ is nearly
# $-a$, and a sum over ever finer steps becomes an integral:
#
# $$\log\bar\alpha = \sum_i \log\Bigl(1 - \frac{\beta(t_i)}{T}\Bigr) \;\longrightarrow\; -\int_0^t \beta(u)\,du
# = -0.1\,t - 9.95\,t^2.$$
#
# Half of it is $\log\alpha$, so $\beta(t) = -2\,\frac{d}{dt}\log\alpha$, as the table of letters says. Compare both
# with finite tables.

# %%
errors = {}
for T in (100, 1000, 10_000):
    bar = (1 - torch.linspace(0.1, 20, T, dtype=torch.float64) / T).cumprod(0)
    t = torch.arange(1, T + 1, dtype=torch.float64) / T
    errors[T] = (bar.sqrt() - torch.exp(-0.05 * t - 4.975 * t**2)).abs().max().item()
    print(f"T = {T:6,}: alpha differs from its limit by at most {errors[T]:.1e}")
assert 9 < errors[1000] / errors[10_000] < 11
slope = -2 * T * bar.sqrt().log().diff()  # -2 d/dt log alpha, from neighbours in the longest table
assert (slope - (0.1 + 19.9 * t[1:])).abs().max() < 0.03

# %% [markdown]
# Ten times the steps, a tenth of the error. So there is one continuous process, and tables are samples of it. You may
# ask for $t = 0.1234$ and no longer care about $T$.
#
# ## Three families, one plane
#
# Variance preserving is not the only way from data to noise. *Variance exploding* keeps $\alpha = 1$ and lets $\sigma$
# grow to 50 or more. *Flow matching* walks the straight line $\alpha = 1-t$, $\sigma = t$. Draw all three as paths in
# the plane of $\sigma$ and $\alpha$. On a line through the origin $\alpha/\sigma$ stays the same, so the dotted lines
# are those of constant SNR.

# %%
@plots.quiet
def plane(points=200):
    t = torch.linspace(0, 1, points)
    figure, axes = plt.subplots(figsize=(7.4, 3.9))
    for level in (4, 2, 1, 0, -1):
        far = min(2.3, 1.12 * math.exp(-level / 2))
        axes.plot([0, far], [0, far * math.exp(level / 2)], ":", color=plots.COLORS[7], linewidth=1)
        axes.annotate(f"log-SNR {level}" if level < 0 else f"{level}", (far, far * math.exp(level / 2)), fontsize=8,
                      xytext=(2, 1), textcoords="offset points")
    angle = t * torch.pi / 2
    for name, sigma, alpha in [("variance preserving", angle.sin(), angle.cos()), ("flow", t, 1 - t)]:
        axes.plot(sigma, alpha, label=name)
    axes.annotate("", (2.3, 1), (0, 1), arrowprops={"arrowstyle": "->", "color": plots.COLORS[2], "lw": 1.8})
    axes.plot([], [], color=plots.COLORS[2], label=r"variance exploding, to $\sigma = 50$")
    axes.plot(0, 1, "o", color=plots.COLORS[6], markersize=7, label="data")
    axes.set(xlabel=r"noise scale $\sigma$", ylabel=r"signal scale $\alpha$", xlim=(-0.05, 2.45), ylim=(-0.03, 1.25))
    axes.set_aspect("equal")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


plane()

# %% [markdown]
# Every path crosses every dotted line once. And along a dotted line nothing happens but a change of scale:
# $x_t$ and $c\,x_t$ are the same picture at another contrast. So the families are one process in three units, and a
# single multiplication takes you from one to another. The next cell does it.
#
# ## The package
#
# You have built all of this by hand. `minidiff.schedules` holds the same things, and now you can check it rather than
# believe it. A schedule is a function of $t$ that returns $(\alpha, \sigma)$, for a float or for a tensor of times.

# %%
from minidiff import schedules

theirs = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(),
    "scaled linear": schedules.scaled_linear(),
    "repaired": schedules.zero_terminal_snr(schedules.scaled_linear()),
}
for name, schedule in theirs.items():
    assert torch.allclose(tables[name], torch.as_tensor(schedule.alphas_cumprod), rtol=1e-9, atol=1e-15), name
    for mine, package in zip(scales(tables[name], grid), schedule(grid)):
        assert torch.allclose(mine, package, rtol=1e-5, atol=1e-9), name
assert abs(schedules.linear(steps=None)(0.3)[0] - math.exp(-0.05 * 0.3 - 4.975 * 0.3**2)) < 1e-12

x_vp, level = 0.6 * face + 0.8 * eps, 2 * math.log(0.6 / 0.8)
for family in (schedules.flow(), schedules.variance_exploding()):
    alpha, sigma = family(family.inverse(level))  # at the time when it has the same log-SNR
    assert torch.allclose(x_vp / 0.6 * alpha, alpha * face + sigma * eps, atol=1e-5)
    print(f"variance preserving, times {alpha / 0.6:.3f}, is {family.name} at t = {family.inverse(level):.3f}")

# %% [markdown]
# With it you can build an instrument: move the sliders, and try to find two settings that look alike.

# %%
def look(schedule="cosine", size=32, t=0.5):
    alpha, sigma = schedules.make_schedule(schedule)(t)
    noisy = destroyed(emoji[size][chosen[:4]], alpha, sigma)
    return plots.grid(enlarged(noisy), titles=[f"SNR {alpha**2 / sigma**2:.2g}"] * 4)


widgets.explore(look, schedule=["linear", "cosine", "scaled_linear", "flow"], size=[16, 32, 64],
                t=[k / 10 for k in range(1, 11)])

# %% [markdown]
# ## What the papers found, what we measured
#
# | claim | paper | here |
# |---|---|---|
# | one jump replaces all steps | DDPM, eq. 4 | 20,000 walkers: mean and spread within four standard errors at five steps |
# | end of the linear schedule | DDPM: about $10^{-5}$ bits per dimension | $1.8\cdot10^{-5}$ |
# | linear is too hasty for small pictures | Nichol and Dhariwal: 20 % of the sampling steps can be skipped at 64 px with little harm | from $t = 0.8$ on, at most 15 % of emoji are named at 64 px, 1 % at 16 px |
# | 0.008 makes $\sqrt{\beta_1}$ slightly less than a bin | the same | 0.82 bins |
# | $\alpha(1)$ of Stable Diffusion | Lin et al.: 0.068 | 0.0683; 55 % of the 64 px emoji are still named |
# | shift of log-SNR with twice the side | Hoogeboom et al.: $\log 4 = 1.39$ | 1.47 and 1.53 |
#
# ## Exercises
#
# Each has a check that tells you what is wrong. Replace the `...` and run both cells.
#
# **1. A batch.** Training noises every picture of a batch at its own step. Write the boxed line for `x0` of shape
# (B, C, H, W) and `alphas_cumprod` of shape (T,), the table of $\bar\alpha$. `index`, of shape (B,), says which row of
# the table each picture gets; row 0 is step 1.

# %% tags=["exercise"] name="q_sample"
def q_sample(x0, index, eps, alphas_cumprod):
    """x_t (B, C, H, W); row 0 of the table is the first noisy step."""
    ...  # your code

# %% [markdown]
# One number per picture must be stretched over the picture. Mind the shapes.

# %%
exercises.check_q_sample(q_sample)

# %% [markdown]
# **2. The cosine schedule, from the formula.** Return the table of betas for any number of steps. The table of letters
# tells you how to come from $\bar\alpha$ to $\beta$; at $t = 0$, before the first step, $\bar\alpha$ is 1. Both
# constants are arguments.

# %% tags=["exercise"] name="cosine_betas"
def cosine_betas(steps, offset=0.008, max_beta=0.999):
    """The betas, float64 (steps,)."""
    ...  # your code

# %% [markdown]
# The check tries several step numbers, offsets and caps, and it wants six correct digits.

# %%
exercises.check_cosine_betas(cosine_betas)

# %% [markdown]
# **3. Half and half.** At which $t$ are signal and noise equally strong, SNR = 1? `schedule(t)` takes a float and
# returns floats $(\alpha, \sigma)$; SNR falls from infinity at $t = 0$, where $\sigma$ is 0, to below 1 at $t = 1$.
# Find $t$ to four digits for any such schedule, for example by halving, again and again, the interval that holds it.

# %% tags=["exercise"] name="equal_time"
def equal_time(schedule):
    """The time t in (0, 1) at which SNR is 1."""
    ...  # your code

# %% [markdown]
# You are tested on linear, cosine and flow. Guess the order before you print your three answers.

# %%
exercises.check_equal_time(equal_time)

# %% [markdown]
# **4. A small project: your own schedule.** If SNR is what matters, why not let it fall evenly? Write a
# variance-preserving schedule whose log-SNR runs in a straight line from `first` at $t=0$ to `last` at $t=1$. The cell
# after yours checks it and shows its destruction beside the cosine's. Then choose `first` and `last` for 64 pixels: you
# measured the log-SNR at which half of the emoji are lost. At which $t$ does your schedule pass it, and would you spend
# that share of your steps before it?

# %% tags=["exercise"] name="log_linear"
def log_linear(t, first=10.0, last=-10.0):
    """(alpha, sigma), (B,) each, at times t (B,)."""
    ...  # your code

# %% [markdown]
# The check is strict about precision at small $t$, where $1 - \alpha^2$ is a difference of nearly equal numbers.

# %%
exercises.check_log_linear(log_linear)
t = torch.linspace(0.1, 1, 10)
if log_linear(t) is not None:  # drawn once you have written it
    cosine = schedules.cosine()
    pairs = zip(*cosine(t), *log_linear(t))
    rows = [torch.cat([a * face + s * eps, c * face + d * eps]) for a, s, c, d in pairs]
    display(plots.filmstrip(rows, times=t, rows=["cosine", "log-linear"]))

# %% [markdown]
# ## What you learned
#
# Noise is added in steps whose shrink factor $\sqrt{1-\beta}$ keeps the variance at 1. Because variances add, any
# number of steps is one jump, $x_t = \alpha x_0 + \sigma\varepsilon$. A schedule is a path through the plane of
# $\alpha$ and $\sigma$; what it destroys depends on SNR alone, and on how many pixels share the evidence. Its two ends
# need care: too little noise at the start is below the grain of bytes, too much signal at the end is a lie about where
# sampling begins.
#
# ## Where to read on
#
# - Sohl-Dickstein et al. 2015, [arXiv 1503.03585](https://arxiv.org/abs/1503.03585), and Ho et al. 2020 (DDPM),
#   [2006.11239](https://arxiv.org/abs/2006.11239): where the forward process comes from.
# - Nichol and Dhariwal 2021, [2102.09672](https://arxiv.org/abs/2102.09672): the cosine schedule.
# - Kingma et al. 2021, [2107.00630](https://arxiv.org/abs/2107.00630): only the SNR at the two ends matters for the likelihood.
# - Hoogeboom et al. 2023, [2301.11093](https://arxiv.org/abs/2301.11093); Chen 2023,
#   [2301.10972](https://arxiv.org/abs/2301.10972); Esser et al. 2024 (Stable Diffusion 3),
#   [2403.03206](https://arxiv.org/abs/2403.03206): schedules and resolution.
# - Lin et al. 2024, [2305.08891](https://arxiv.org/abs/2305.08891): schedules that do not end in noise.
# - Song et al. 2021, [2011.13456](https://arxiv.org/abs/2011.13456), and Karras et al. 2022,
#   [2206.00364](https://arxiv.org/abs/2206.00364): variance exploding, and noise measured as $\sigma/\alpha$.
#
# Next: notebook 02, *From likelihood to a squared error*, asks how to walk back.
