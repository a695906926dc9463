"""Checks of notebook 09: a forgetting average, a weight for a velocity, and a tool for diagnosis."""

import math

import torch

from minidiff import schedules
from minidiff.course.exercises import Wrong, compare, exercise
from minidiff.prediction import target


@exercise("decay 0.9999 needs 46,050 steps to forget all but a hundredth of its start: warm it up, or make it shorter.")
def check_steps_to_forget(steps_to_forget):
    for decay, share in ((0.999, 0.01), (0.97, 0.3), (0.9999, 0.01)):
        exact = math.log(share) / math.log(decay)
        mistakes = {
            "this is rounded down: one step earlier the share is still too large": math.floor(exact),
            "a whole number is asked for; round up": exact,
            "this is 1 / (1 - d), over which the average extends; solve decay^n = share": round(1 / (1 - decay)),
            "1 / (1 - d) is not what is asked for; solve decay^n = share": 1 / (1 - decay),
            "this is the half-life; the share is given": math.ceil(math.log(0.5) / math.log(decay)),
            "the logarithms are upside down: n = ln(share) / ln(decay)": 1 / exact,
            "the sign is wrong; both logarithms are negative, and their ratio is positive": -math.ceil(exact),
            "`share` is what may be left of the start, not what must be forgotten":
                math.ceil(math.log(1 - share) / math.log(decay)),
            "ln(decay) is close to decay - 1, but not equal; take the logarithm":
                math.ceil(-math.log(share) / (1 - decay)),
            "the share falls as decay^n, not evenly by 1 - decay a step": math.ceil((1 - share) / (1 - decay)),
        }  # fmt: skip
        compare(steps_to_forget(decay, share), math.ceil(exact), mistakes, name="the number of steps", rtol=1e-6)


@exercise("a weight means nothing without what the network predicts; here it comes to min(SNR, gamma) sigma^2.")
def check_min_snr_for_flow(min_snr_for_flow):
    alpha, sigma = schedules.flow()(torch.linspace(0.05, 0.95, 19))
    snr = (alpha / sigma) ** 2
    for gamma in (5.0, 2.0):
        capped = snr.clamp(max=gamma)
        mistakes = {
            "this is the weight for a loss of x0; divide by the rate of exchange to the velocity": capped,
            "this is the weight for a loss of eps; the velocity has another rate of exchange": capped / snr,
            "SNR + 1 is the rate for v on a variance-preserving schedule; here the errors of eps and x0 add up before"
            " they are squared": capped / (snr + 1),
            "the root is missing: the error of eps is alpha / sigma times that of x0, not SNR times":
                capped / (snr + 1) ** 2,
            "the rate of exchange must be squared, like the errors": capped / (snr.sqrt() + 1),
            "divide by the rate of exchange, do not multiply": capped * (snr.sqrt() + 1) ** 2,
            "the errors of eps and x0 have opposite signs, so their difference adds up: 1 + alpha / sigma":
                capped / (snr.sqrt() - 1) ** 2,
            "SNR is alpha^2 / sigma^2; the squares are missing in the ceiling":
                snr.sqrt().clamp(max=gamma) / (snr.sqrt() + 1) ** 2,
            "gamma is the ceiling of the SNR itself; apply it before the rate of exchange":
                (snr / (snr.sqrt() + 1) ** 2).clamp(max=gamma),
            "take the smaller of SNR and gamma; this takes the larger": snr.clamp(min=gamma) / (snr.sqrt() + 1) ** 2,
        }  # fmt: skip
        if gamma != 5:
            mistakes["gamma is an argument; this uses 5 whatever it is"] = snr.clamp(max=5.0) / (snr.sqrt() + 1) ** 2
        expected = capped / (snr.sqrt() + 1) ** 2
        compare(min_snr_for_flow(alpha, sigma, gamma), expected, mistakes, name="the weight")


@exercise("in the middle the three targets lie far apart, and an imperfect network is still nearest to its own.")
def check_what_it_predicts(what_it_predicts):
    schedule, x0 = schedules.cosine(), 0.5 * torch.randn(32, 3, 8, 8)
    told, times = {}, []
    for kind in ("eps", "x0", "v"):
        asked = []

        def network(x_t, t, kind=kind, asked=asked):
            asked.append(float(torch.as_tensor(t).flatten()[0]))
            alpha, sigma = schedule(asked[-1])
            eps = (x_t - alpha * x0) / sigma
            out = target(kind, x0, eps, alpha, sigma)
            if kind == "v" and asked[-1] < 0.1:  # what is left of v there drowns in the network's error
                out = target("eps", x0, eps, alpha, sigma)
            if kind != "v" and asked[-1] > 0.95:  # and here hardly anything of the picture is to be seen
                out = 0.1 * out
            return out + 0.1 * torch.randn_like(out)

        told[kind] = what_it_predicts(network, schedule, x0.clone())
        if told[kind] not in ("eps", "x0", "v"):
            raise Wrong(f'Your function returned {told[kind]!r}; expected one of the words "eps", "x0" and "v".')
        if not asked:
            raise Wrong("Your function never calls the network. Give it an x_t, and compare what it returns.")
        times += asked
    if all(kind == answer for kind, answer in told.items()):
        return
    if len(set(told.values())) == 1:
        raise Wrong(f'Your function says "{told["v"]}" of all three networks. Compare each output with all targets.')
    if min(times) < 0.1 and told["v"] == "eps":
        raise Wrong("With so little noise v is nearly eps, and no network tells them apart. Ask at t = 0.5.")
    if max(times) > 0.95:
        raise Wrong("With so much noise v is nearly -x0, and little can be told apart. Ask at t = 0.5.")
    if all(kind != answer for kind, answer in told.items()):
        raise Wrong("All three answers are wrong. Is it the target with the largest difference? Take the smallest.")
    if told["eps"] != "eps":
        raise Wrong(f'A network that predicts eps is called "{told["eps"]}". Compare with the very eps that made x_t.')
    if told["v"] != "v":
        raise Wrong(f'A network that predicts v is called "{told["v"]}". Is your v = alpha eps - sigma x0?')
    kind = next(kind for kind, answer in told.items() if kind != answer)
    raise Wrong(f'A network that predicts {kind} is called "{told[kind]}". Does it see alpha x0 + sigma eps at its t?')
