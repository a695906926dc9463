# %% tags=["exercise"] name="steps_to_forget"
def steps_to_forget(decay, share):
    """The smallest whole number n of steps with decay^n <= share."""
    return math.ceil(math.log(share) / math.log(decay))

# %% tags=["exercise"] name="min_snr_for_flow"
def min_snr_for_flow(alpha, sigma, gamma=5.0):
    """alpha, sigma (B,) -> the factor (B,) for the squared error of eps - x0."""
    ratio = alpha / sigma  # how many times the error of x0 that of eps is; it has the other sign
    return ratio.square().clamp(max=gamma) / (1 + ratio).square()

# %% tags=["exercise"] name="what_it_predicts"
def what_it_predicts(network, schedule, x0):
    """'eps', 'x0' or 'v'. network(x_t, t) -> like x_t; schedule(t) -> alpha, sigma; t is a number in (0, 1)."""
    (alpha, sigma), eps = schedule(0.5), torch.randn_like(x0)
    out = network(alpha * x0 + sigma * eps, 0.5)
    targets = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}
    return min(targets, key=lambda kind: (out - targets[kind]).square().mean().item())
