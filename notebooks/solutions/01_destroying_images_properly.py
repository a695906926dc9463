# %% tags=["exercise"] name="q_sample"
def q_sample(x0, index, eps, alphas_cumprod):
    """x_t (B, C, H, W); row 0 of the table is the first noisy step."""
    row = alphas_cumprod[index].view(-1, 1, 1, 1)
    return row.sqrt() * x0 + (1 - row).sqrt() * eps

# %% tags=["exercise"] name="cosine_betas"
def cosine_betas(steps, offset=0.008, max_beta=0.999):
    """The betas, float64 (steps,)."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * torch.pi / 2) ** 2  # (steps + 1,); f(0) cancels in the ratio
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)

# %% tags=["exercise"] name="equal_time"
def equal_time(schedule):
    """The time t in (0, 1) at which SNR is 1."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        alpha, sigma = schedule(middle)
        low, high = (middle, high) if alpha > sigma else (low, middle)
    return (low + high) / 2

# %% tags=["exercise"] name="log_linear"
def log_linear(t, first=10.0, last=-10.0):
    """(alpha, sigma), (B,) each, at times t (B,)."""
    log_snr = first + (last - first) * t
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
