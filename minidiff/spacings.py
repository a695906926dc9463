"""Where a sampler stops on its way from noise to data: lists of times."""

import math
import numbers

import numpy as np

from minidiff.errors import check_whole, unknown_name


def spacing(schedule, steps, kind="uniform", *, t_end=0.0, rho=7.0):
    """The times of a sampler with `steps` steps: steps + 1 floats, from the start down to `t_end`, 0 by default.

    kind:
      "uniform"    evenly spaced in t from 1 (on a discrete schedule between its points, if steps does not divide T)
      "quadratic"  evenly spaced in the square root of t: more steps near the data
      "trailing"   discrete steps T, T - T/N, ... (Lin et al. 2024); "leading": those that end at step 1
      "sections"   ADM's respacing: `steps` is a count, or "90,60,60,20,20" for equal sections with their own counts
      "ddim"       every n-th discrete step from the first, with the n that takes exactly `steps` of them
      "karras"     evenly spaced in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5), then `t_end`
      "log_snr"    evenly spaced in log-SNR (Lu et al. 2022)
    Raises ValueError for fewer than one step, more than T, counts that do not fit the schedule, or a `t_end` that is
    not below all other times.
    """
    if not isinstance(kind, str) or kind not in SPACINGS:
        raise unknown_name("spacing", kind, SPACINGS)
    if kind != "sections" or not isinstance(steps, str):
        check_whole("steps", steps)
        if schedule.steps and steps > schedule.steps:
            raise ValueError(
                f"steps must be at most {schedule.steps}, the number of steps of {schedule}; got {steps}"
            )
    if not isinstance(t_end, numbers.Real) or not 0 <= t_end < 1:
        raise ValueError(f"t_end must be at least 0 and below 1, got {t_end!r}")
    if kind in DISCRETE:
        if not schedule.steps:
            raise ValueError(f'spacing "{kind}" picks discrete steps, and {schedule} has none; use "uniform"')
        times = [(i + 1) / schedule.steps for i in reversed(SPACINGS[kind](schedule.steps, steps))]
    else:
        times = SPACINGS[kind](schedule, steps, t_end, rho)[:-1]
    if t_end >= times[-1]:
        raise ValueError(f"t_end must be below the last time before it, {times[-1]:g}; got {t_end}")
    return [*times, t_end]  # t_end exactly, not through the inverse of a scale


# --- picking discrete steps: (T, steps) -> indices in 0 .. T-1, ascending ---------------------------------------------


def _trailing(total, steps):
    return sorted(round(total - k * total / steps) - 1 for k in range(steps))


def _leading(total, steps):
    return [k * (total // steps) for k in range(steps)]


def _ddim(total, steps):
    stride = next((s for s in range(1, total + 1) if len(range(0, total, s)) == steps), None)
    if stride is None:
        near = min((len(range(0, total, s)) for s in range(1, total + 1)), key=lambda n: (abs(n - steps), n))
        raise ValueError(f"no whole stride takes exactly {steps} of {total} steps; try steps={near}, or 'trailing'")
    return list(range(0, total, stride))


def _sections(total, counts):
    try:
        counts = [int(count) for count in str(counts).split(",")]
    except ValueError:
        raise ValueError(f"sections must be counts such as '90,60,60,20,20', got {counts!r}") from None
    indices, first = [], 0
    for k, count in enumerate(counts):
        size = total // len(counts) + (k < total % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"section {k + 1} of {len(counts)} has {size} steps, so it cannot give {count} of them")
        stride, place = ((size - 1) / (count - 1) if count > 1 else 1), 0.0
        for _ in range(count):  # a running sum, rounded half to even: the official indices depend on it
            indices.append(first + round(place))
            place += stride
        first += size
    return indices


# --- placing times on a scale: (schedule, steps, t_end, rho) -> times -------------------------------------------------


def _uniform(schedule, steps, t_end, rho):
    return np.linspace(1.0, t_end, steps + 1).tolist()


def _quadratic(schedule, steps, t_end, rho):
    return (np.linspace(1.0, math.sqrt(t_end), steps + 1) ** 2).tolist()


def _last_noisy_time(schedule, t_end):
    """The last time above 0 on a scale that has no 0: t_end, or the schedule's own least noise."""
    if t_end > 0:
        return t_end
    if schedule.name == "edm":
        return schedule.inverse(-2 * math.log(schedule.arguments["sigma_min"]))
    return 1 / schedule.steps if schedule.steps else 1e-3


def _first_noisy_time(schedule):
    """The first time of a scale on which pure noise, alpha = 0, lies at infinity: slightly below 1 there."""
    return 1.0 if schedule(1.0)[0] > 1e-8 else 1 - 1 / (schedule.steps or 1000)


def _on_scale(schedule, steps, t_end, to_scale, from_scale):
    """Times evenly spaced on a scale: steps + 1 points to t_end, or `steps` points and then 0."""
    first, last = _first_noisy_time(schedule), _last_noisy_time(schedule, t_end)
    count = steps + 1 if t_end > 0 else steps
    points = np.linspace(to_scale(schedule.log_snr(first)), to_scale(schedule.log_snr(last)), count)
    times = [schedule.inverse(from_scale(point)) for point in points]
    times[0] = first  # exactly, not through the inverse
    return times + ([] if t_end > 0 else [0.0])


def _karras(schedule, steps, t_end, rho):
    return _on_scale(
        schedule, steps, t_end, lambda log_snr: math.exp(-log_snr / 2 / rho), lambda point: -2 * rho * math.log(point)
    )


def _log_snr(schedule, steps, t_end, rho):
    return _on_scale(schedule, steps, t_end, lambda log_snr: log_snr, float)


DISCRETE = {"trailing": _trailing, "leading": _leading, "ddim": _ddim, "sections": _sections}
SPACINGS = {"uniform": _uniform, "quadratic": _quadratic, "karras": _karras, "log_snr": _log_snr, **DISCRETE}
