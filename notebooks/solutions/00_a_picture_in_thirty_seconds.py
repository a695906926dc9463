# %% tags=["exercise"] name="evaluations"
def evaluations(num, steps, guidance=1.0):
    return num * steps * (1 if guidance == 1.0 else 2)

# %% tags=["exercise"] name="ddim_step"
def ddim_step(x, guess, alpha, sigma, alpha_next, sigma_next):
    noise = (x - alpha * guess) / sigma
    return alpha_next * guess + sigma_next * noise

# %% tags=["exercise"] name="between"
def between(a, b, share):
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
