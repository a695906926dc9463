"""The exercises of notebook 02: posterior tables, weights of the bound, a bound for any pixel."""

import math

import torch

from minidiff import schedules
from minidiff.course.exercises import Wrong, compare, exercise, unpack
from minidiff.prediction import KINDS
from minidiff.variational import discretized_gaussian_log_likelihood, gaussian_kl, log_variance, posterior


@exercise("these are the tables that every DDPM code base keeps; the variance of the first step is 0, as x0 is known.")
def check_posterior_coefficients(posterior_coefficients):
    schedule = schedules.linear(40)
    betas = torch.as_tensor(schedule.betas)
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    steps = [(i / 40, (i + 1) / 40) for i in range(40)]
    on_x0 = torch.stack([posterior(schedule, one, zero, s, t)[0] for s, t in steps])
    on_x_t = torch.stack([posterior(schedule, zero, one, s, t)[0] for s, t in steps])
    variance = torch.tensor([posterior(schedule, one, one, s, t)[1] for s, t in steps], dtype=torch.float64)
    got = unpack(posterior_coefficients(betas), "on_x0", "on_x_t", "variance")
    now = torch.cumprod(1 - betas, 0)
    before = torch.cat([now[:1] * 0 + 1, now[:-1]])
    shifted = "alpha-bar of the step before is needed where you have that of the step itself; start it with 1"
    squared = "a root is missing: x0 is scaled by alpha, the root of alpha-bar, not by alpha-bar"
    first = "only the first entry is wrong: the step before it is the clean picture, whose alpha-bar is 1"
    wrapped, none = torch.cat([now[-1:], now[:-1]]), torch.cat([now[:1] * 0, now[:-1]])
    swapped = "you swapped the factors of x0 and x_t"
    compare(got[0], on_x0, {
        swapped: on_x_t, squared: betas * before / (1 - now), shifted: betas * now.sqrt() / (1 - now),
        first: betas * wrapped.sqrt() / (1 - now), first + ", not 0": betas * none.sqrt() / (1 - now),
        "the root belongs over alpha-bar alone, beta stays as it is": betas.sqrt() * before.sqrt() / (1 - now),
    }, name="on_x0")
    compare(got[1], on_x_t, {
        swapped: on_x0, shifted: (1 - betas).sqrt(),
        "a root is missing: x_t is scaled by the root of 1 - beta": (1 - betas) * (1 - before) / (1 - now),
        "x_t is scaled by the root of 1 - beta of this step, not of alpha-bar": now.sqrt() * (1 - before) / (1 - now),
    }, name="on_x_t")
    compare(got[2], variance, {
        "that is beta, the variance of the step down; knowing x0 makes the way back narrower": betas,
        "that is the standard deviation; the variance is its square": variance.sqrt(),
        "that is the logarithm of the variance": variance.clamp(min=1e-20).log(),
        "the fraction is upside down": betas * (1 - now) / (1 - before).clamp(min=1e-300),
    }, name="variance")


@exercise("a step up is paid for by the signal-to-noise ratio it gains; the schedule matters in no other way.")
def check_bound_weight(bound_weight):
    schedule = schedules.cosine(200)
    for i in (2, 20, 100, 199):
        before, after = schedule.log_snr((i - 1) / 200), schedule.log_snr(i / 200)
        gain = (math.exp(before) - math.exp(after)) / 2
        for kind in ("x0", "eps", "v"):
            factor = KINDS[kind](*schedule(i / 200))[0][1] ** 2  # (d x0 / d out)^2
            at_s = {"x0": 1, "eps": math.exp(before), "v": math.exp(before) + 1}[kind]
            mistakes = {
                "the half is missing": 2 * gain * factor,
                "the difference has the wrong sign: the signal-to-noise ratio is larger at s": -gain * factor,
                "take the exponentials first: SNR = exp(log-SNR), and the weight is a difference of SNRs":
                    (before - after) / 2 * factor,
                "that is the weight on the error of x0; eps and v errors are larger, so each counts less": gain,
                f"you multiplied where an error in {kind} has to be divided by its size": gain / factor,
                "the errors are squared, so the factor between them is squared, too": gain * factor**0.5,
                "an error in x0 is 1/sigma times as large in v, and sigma^2 = 1 / (1 + SNR)":
                    gain / (1 + math.exp(-after)) if kind == "v" else gain * math.nan,
                "the network sees x_t, so its error is converted with the SNR at t, not at s": gain / at_s,
                "that is the weight for the other of eps and v": gain / math.exp(after) if kind == "v"
                    else gain / (math.exp(after) + 1),
            }
            mine = bound_weight(kind, before, after)
            compare(mine, gain * factor, mistakes, name=f"the weight on {kind}", atol=1e-12)


def _bound(schedule, levels, histogram, variance):
    """The terms of the bound of the best denoiser in nats: L_T, the KL terms, L_0, for each level (K,)."""
    (alpha, sigma), zero = schedule(1.0), torch.zeros((), dtype=torch.float64)
    prior, kls = gaussian_kl(alpha * levels, zero + 2 * math.log(sigma), zero, zero), 0.0
    for i in range(schedule.steps, 0, -1):
        s, t, (alpha, sigma) = (i - 1) / schedule.steps, i / schedule.steps, schedule(i / schedule.steps)
        reach = torch.arange(-7, 7.01, 0.25, dtype=torch.float64)[:, None]
        x = alpha * levels + sigma * reach  # (N, K): around each level
        share = torch.exp(-reach**2 / 2) / torch.exp(-reach**2 / 2).sum()
        distance = -((x[:, :, None] - alpha * levels) ** 2) / (2 * sigma**2)
        guess = torch.softmax(histogram.log() + distance, 2) @ levels  # (N, K)
        log_var = log_variance(schedule, torch.tensor([t], dtype=torch.float64), variance)
        mean = posterior(schedule, guess, x, s, t)[0]
        if i == 1:
            return prior, kls, -(share * discretized_gaussian_log_likelihood(levels, mean, log_var / 2)).sum(0)
        true_mean, true_variance = posterior(schedule, levels, x, s, t)
        kls = kls + (share * gaussian_kl(true_mean, zero + math.log(true_variance), mean, log_var)).sum(0)


@exercise("the squared errors alone do not say which variance is right; the data do.")
def check_bound_of(bound_of):
    cases = [([-1.0, 1.0], [0.3, 0.7]), ([-0.8039215686, 0.0039215686, 0.6], [0.2, 0.7, 0.1])]
    for levels, histogram in cases:
        levels, histogram = torch.tensor(levels).double(), torch.tensor(histogram).double()
        for schedule, variance in ((schedules.linear(25), "small"), (schedules.cosine(12), "large")):
            prior, kls, last = _bound(schedule, levels, histogram, variance)
            nats = (prior + kls + last) @ histogram
            other = sum(_bound(schedule, levels, histogram, "large" if variance == "small" else "small"))
            mistakes = {
                "that is in nats; divide by log 2 for bits": nats,
                "the last step, the likelihood of the grey level, is missing": (prior + kls) @ histogram / math.log(2),
                "only the last step is there; the KL terms of the others are missing": last @ histogram / math.log(2),
                "all levels count alike; weight them with the histogram": sum((prior, kls, last)).mean() / math.log(2),
                f'you used the other variance; asked for was "{variance}"': other @ histogram / math.log(2),
                "that is the entropy, the floor under the bound": -(histogram * histogram.log2()).sum(),
                "that is the sum over the levels' bounds; average it over the data": sum((prior, kls, last)).sum()
                    / math.log(2),
            }
            mine = bound_of(schedule, levels, histogram, variance)
            if isinstance(mine, torch.Tensor) and mine.numel() > 1:
                raise Wrong(f"Your function returned {mine.numel()} values; expected their average over the data.")
            name = f"the bound with {schedule.name}({schedule.steps}) and {variance} variance"
            compare(torch.as_tensor(float(mine)).double(), nats / math.log(2), mistakes, name=name, rtol=0.02)
