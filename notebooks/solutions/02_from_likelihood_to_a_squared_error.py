# %% tags=["exercise"] name="posterior_coefficients"
def posterior_coefficients(betas):
    """betas (T,) -> (on_x0, on_x_t, variance), (T,) each, of q(x_{t-1} | x_t, x0)."""
    now = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones_like(now[:1]), now[:-1]])  # before the first step there is the clean picture
    on_x0 = betas * before.sqrt() / (1 - now)
    on_x_t = (1 - betas).sqrt() * (1 - before) / (1 - now)
    return on_x0, on_x_t, betas * (1 - before) / (1 - now)


# %% tags=["exercise"] name="bound_weight"
def bound_weight(kind, log_snr_s, log_snr_t):
    """Weight (nats) on the squared error of a network of this kind, "x0", "eps" or "v", for the step from t up to s."""
    snr_s, snr_t = math.exp(log_snr_s), math.exp(log_snr_t)
    return (snr_s - snr_t) / 2 / {"x0": 1, "eps": snr_t, "v": snr_t + 1}[kind]


# %% tags=["exercise"] name="bound_of"
def bound_of(schedule, levels, histogram, variance="small"):
    """The average bound in bits per pixel: levels (K,) in [-1, 1], histogram (K,) with sum 1 -> a number."""
    (alpha, sigma), zero = schedule(1.0), torch.zeros((), dtype=torch.float64)
    total = gaussian_kl(alpha * levels, zero + 2 * math.log(sigma), zero, zero)
    for i in range(schedule.steps, 0, -1):
        s, t = (i - 1) / schedule.steps, i / schedule.steps
        alpha, sigma = schedule(t)
        x = line(schedule, t, sigma / 2)[:, None]
        guess = torch.softmax(histogram.log() - (x - alpha * levels) ** 2 / (2 * sigma**2), 1) @ levels
        log_var = log_variance(schedule, zero.view(1) + t, variance)
        mean = posterior(schedule, guess[:, None], x, s, t)[0]
        if i > 1:
            true_mean, true_var = posterior(schedule, levels, x, s, t)
            term = gaussian_kl(true_mean, zero + math.log(true_var), mean, log_var)
        else:
            term = -discretized_gaussian_log_likelihood(levels, mean, log_var / 2)
        total = total + (normal(x, alpha * levels, sigma**2) * term).sum(0) * sigma / 2
    return (total @ histogram).item() / math.log(2)


# Cosine is better with few steps, and this time small wins. Once there is less noise than the distance of the levels,
# x0 is certain, so Var[x0 | x_t] = 0 and the true way back has exactly the small variance.
ink, shares = torch.tensor([-1.0, 1.0]).double(), torch.tensor([0.3, 0.7]).double()
numbers, curves = [25, 50] if run.tier == "smoke" else [25, 50, 100, 200, 500], {}
for make in (schedules.linear, schedules.cosine):
    for variance in ("small", "large"):
        found = [bound_of(make(n), ink, shares, variance) for n in numbers]
        curves[f"{make.__name__}, {variance}"] = (numbers, found)
plots.lines(curves, x="number of steps", y="bits per pixel", log="x")
