# %% tags=["exercise"] name="score_from_v"
def score_from_v(v, x_t, alpha, sigma):
    """The score at x_t from v; alpha and sigma are numbers with alpha^2 + sigma^2 = 1."""
    return -(sigma * x_t + alpha * v) / sigma

# %% tags=["exercise"] name="family_step"
def family_step(x, score, t, h, z, schedule, lam):
    """x at t - h. score: the values (B, D) at x and t; z: unit noise (B, D); schedule.sde(t) gives (f, g^2)."""
    f, g2 = schedule.sde(t)
    drift = f * x - (1 + lam**2) / 2 * g2 * score
    return x - drift * h + lam * (g2 * h) ** 0.5 * z

# %% tags=["exercise"] name="divergence"
def divergence(velocity, x, probes):
    """velocity(x) -> (B, D) acts on each point alone; x (B, D); probes (K, B, D) of random signs. Returns (B,)."""
    x = x.detach().requires_grad_()
    u = velocity(x)
    rows = [torch.autograd.grad((u * z).sum(), x, retain_graph=True)[0] for z in probes]
    return torch.stack([(row * z).sum(1) for row, z in zip(rows, probes)]).mean(0)
