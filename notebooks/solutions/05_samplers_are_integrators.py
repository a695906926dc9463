# %% tags=["exercise"] name="steps_for"
def steps_for(evaluations, sampler):
    """The most steps that cost at most so many; sampler: "ddim", "dpmpp_2m", "heun" or "predictor_corrector"."""
    return {"heun": (evaluations + 1) // 2, "predictor_corrector": evaluations // 2}.get(sampler, evaluations)

# %% tags=["exercise"] name="midpoint_step"
def midpoint_step(denoise, schedule, x, t, s):
    """x at s < t, both above 0, with two evaluations of denoise(x, t).x0; schedule.log_snr(t) is 2 lambda."""
    def exponential(x0, end):
        (_, sigma), (alpha_end, sigma_end) = schedule(t), schedule(end)
        h = (schedule.log_snr(end) - schedule.log_snr(t)) / 2
        return sigma_end / sigma * x + alpha_end * (1 - math.exp(-h)) * x0

    middle = schedule.inverse((schedule.log_snr(t) + schedule.log_snr(s)) / 2)
    half_way = exponential(denoise(x, t).x0, middle)
    return exponential(denoise(half_way, middle).x0, s)

# %% tags=["exercise"] name="adams_bashforth"
def adams_bashforth(u, x, times):
    """x at times[-1], from x at times[0]; times fall. u(x, t) may be called once a step."""
    before = None
    for t, s in zip(times, times[1:]):
        here = u(x, t)
        change = 0.0 if before is None else (here - before[0]) / (t - before[1])
        x = x + (s - t) * (here + (s - t) / 2 * change)
        before = here, t
    return x
