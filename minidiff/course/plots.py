"""Figures for the notebooks: pictures, curves, densities and paths, in one quiet style.

Every function returns a closed Matplotlib figure, so a cell that ends with the call shows it exactly once; elsewhere in
a cell write `display(plots.grid(x))`. The style is set inside each call and leaves Matplotlib's own settings alone.
Colours are those of Okabe and Ito, which people with any common colour blindness can tell apart.
"""

import numpy as np
import torch

from minidiff.course.pictures import animation, filmstrip, grid
from minidiff.course.style import BLUE, COLORS, GREY, SKY, VERMILION, quiet

__all__ = ["animation", "bars", "density_2d", "filmstrip", "grid", "lines", "loss_by_noise_level", "losses"]
__all__ += ["schedules", "trajectories_2d", "quiet", "COLORS"]


# ---------------------------------------------------------------------------------------------------- curves


@quiet
def lines(curves, x="", y="", log="", title=None):
    """Named curves in one panel. curves: {name: (x values, y values)}; x, y: axis labels; log: "", "x", "y", "xy"."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.2, 3.4))
    for name, (across, up) in curves.items():
        axes.plot(_numbers(across, f"{name!r}, x"), _numbers(up, f"{name!r}, y"), label=name)
    _label(axes, x, y, title, log)
    _legend(axes, len(curves))
    return figure


@quiet
def schedules(schedules, points=400):
    """Signal scale alpha, noise scale sigma and log-SNR over t. schedules: {name: schedule}, or one schedule.

    A schedule takes t (B,) in (0, 1] and returns (alpha, sigma), (B,) each: one of minidiff.schedules, or your own.
    """
    import matplotlib.pyplot as plt

    if not isinstance(schedules, dict):
        schedules = {getattr(schedules, "name", "schedule"): schedules}
    t = torch.linspace(1 / points, 1, points)
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 2.9))
    largest = 0.0
    for name, schedule in schedules.items():
        alpha, sigma = (torch.as_tensor(v).double().expand(points) for v in schedule(t))
        log_snr = 2 * (alpha.log() - sigma.log())
        largest = max(largest, sigma.max().item())
        for axes, values in zip(panels, (alpha, sigma, log_snr.where(log_snr.isfinite(), torch.nan))):
            axes.plot(t, values, label=name)
    names = (r"signal scale $\alpha(t)$", r"noise scale $\sigma(t)$", r"log-SNR $\log(\alpha^2/\sigma^2)$")
    for axes, title in zip(panels, names):
        _label(axes, "t", "", title)
    panels[0].set_ylim(-0.03, 1.05)
    if largest > 2:  # variance-exploding ones reach 80: the others would be flat lines at the bottom
        panels[1].set_yscale("log")
    if len(schedules) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(schedules), 5))
    return figure


@quiet
def loss_by_noise_level(t, losses, bins=20, x="t"):
    """Median of the per-sample loss over the noise level, with a band from the 10 % to the 90 % quantile.

    t: (M,) noise levels; losses: (M,), or {name: (M,)}. The loss axis is logarithmic where all values are positive,
    the other one where the noise level goes beyond 1 (sigma instead of t). Raises ValueError for unequal lengths.
    """
    import matplotlib.pyplot as plt

    t = _numbers(t, "t")
    named = losses if isinstance(losses, dict) else {"": losses}
    wide = t.max() > 1.5 and t.min() > 0
    edges = np.geomspace(t.min(), t.max(), bins + 1) if wide else np.linspace(t.min(), t.max(), bins + 1)
    where = np.clip(np.digitize(t, edges) - 1, 0, bins - 1)
    figure, axes = plt.subplots(figsize=(6.2, 3.4))
    for name, values in named.items():
        values = _numbers(values, f"losses {name}")
        if len(values) != len(t):
            raise ValueError(f"{len(values)} losses {name} for {len(t)} noise levels: give one loss for each t.")
        full = [k for k in range(bins) if (where == k).any()]
        low, middle, high = np.array([np.quantile(values[where == k], (0.1, 0.5, 0.9)) for k in full]).T
        centres = np.array([t[where == k].mean() for k in full])
        (line,) = axes.plot(centres, middle, marker="o", markersize=3, label=name or "median")
        axes.fill_between(centres, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    positive = all(_numbers(values, "losses").min() > 0 for values in named.values())
    _label(axes, x, "loss (median, 10-90 %)", None, ("x" if wide else "") + ("y" if positive else ""))
    _legend(axes, len(named))
    return figure


@quiet
def losses(history, every=1, y="loss"):
    """Training curves: the raw loss pale, its running mean strong.

    history: losses in order, or pairs (step, loss), or {name: either}. every: steps between two entries.
    """
    import matplotlib.pyplot as plt

    named = history if isinstance(history, dict) else {"": history}
    figure, axes = plt.subplots(figsize=(6.2, 3.2))
    spread = []
    for k, (name, values) in enumerate(named.items()):
        values = torch.as_tensor(values).double().cpu().numpy()
        paired = values.ndim == 2 and values.shape[1] == 2
        steps, values = values.T if paired else (np.arange(len(values)) * every, values)
        values = _numbers(values, f"history {name}")
        window = max(1, len(values) // 40)
        sums = np.cumsum(np.insert(values, 0, 0.0))
        start = np.maximum(np.arange(len(values)) + 1 - window, 0)  # mean of the last `window`
        mean = (sums[1:] - sums[start]) / (np.arange(len(values)) + 1 - start)
        color = COLORS[k % len(COLORS)]
        axes.plot(steps, values, color=color, linestyle="-", alpha=0.25, linewidth=0.8)
        axes.plot(steps, mean, color=color, linestyle="-" if k < 4 else "--", label=name)
        spread.append((np.quantile(values, 0.02), np.quantile(values, 0.999), values.min()))
    low, high, least = min(s[0] for s in spread), max(s[1] for s in spread), min(s[2] for s in spread)
    _label(axes, "step", y, None, "y" if least > 0 and high / low > 8 else "")
    _legend(axes, len(named))
    return figure


@quiet
def bars(names, values, errors=None, x="", best=None):
    """Horizontal bars with their numbers, for ablations. errors: half-widths; best: "low" or "high" is coloured.

    Raises ValueError where the lengths differ.
    """
    import matplotlib.pyplot as plt

    values = _numbers(values, "values")
    errors = None if errors is None else _numbers(errors, "errors")
    if len(names) != len(values) or (errors is not None and len(errors) != len(values)):
        raise ValueError(f"{len(names)} names, {len(values)} values and {0 if errors is None else len(errors)} errors: "
                         "give one of each for every bar.")
    figure, axes = plt.subplots(figsize=(6.2, 0.7 + 0.34 * len(values)))
    color = [SKY] * len(values)
    if best is not None:
        color[int(np.nanargmin(values) if best == "low" else np.nanargmax(values))] = BLUE
    axes.barh(range(len(values)), values, xerr=errors, color=color, height=0.66, error_kw={"ecolor": "#444444"})
    reach = np.nan_to_num(values) + (0 if errors is None else errors)
    for k, value in enumerate(values):
        note = f"{value:.3g}" + (f" ± {errors[k]:.1g}" if errors is not None else "")
        axes.annotate(note, (max(reach[k], 0), k), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(values)), names)
    axes.invert_yaxis()
    axes.set_xlim(min(0, reach.min() * 1.1), max(reach.max(), 0) * 1.2 or 1)
    axes.grid(axis="y", visible=False)
    _label(axes, x, "", None)
    return figure


# ---------------------------------------------------------------------------------------------------- two dimensions


@quiet
def density_2d(data, points=None, extent=None):
    """Densities in the plane, dark where likely; up to 5,000 points are drawn as dots.

    data: points (N, 2), or a function log p of points (M, 2) -> (M,), or {name: either}, one panel each.
    points: (K, 2) drawn as dots over every panel. extent: half-width of the square around 0, by default wide enough.
    """
    import matplotlib.pyplot as plt

    named = data if isinstance(data, dict) else {"": data}
    named = {name: value if callable(value) else _plane(value, "data " + name) for name, value in named.items()}
    points = None if points is None else _plane(points, "points")
    given = [v for v in [*named.values(), points] if v is not None and not callable(v)]
    extent = extent or (1.1 * max(np.quantile(np.abs(v), 0.998) for v in given) if given else 3.0)
    size = 3.0 if len(named) < 4 else 2.4
    figure, panels = plt.subplots(1, len(named), figsize=(size * len(named), size + 0.2 * any(named)), squeeze=False)
    for axes, (name, value) in zip(panels[0], named.items()):
        if callable(value):
            _shade(axes, _density_of(value, extent), extent)
        elif len(value) > 5000:
            bins = int(min(np.sqrt(len(value)) / 2, 100))
            _shade(axes, np.histogram2d(value[:, 1], value[:, 0], bins, [[-extent, extent]] * 2)[0], extent)
        else:
            axes.plot(*value.T, ".", color=BLUE, markersize=2.5, alpha=0.5, markeredgewidth=0)
        if points is not None:
            axes.plot(*points.T, ".", color=VERMILION, markersize=3)
        _square(axes, extent, name)
    return figure


@quiet
def trajectories_2d(paths, points=None, extent=None):
    """Paths in the plane, pale at their start (noise) and dark at their end. paths: (T, N, 2) or a list of T (N, 2).

    points: (K, 2), the data, as grey dots behind. extent: half-width of the square, by default wide enough.
    """
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    paths = np.stack([_plane(p, "paths") for p in paths])  # (T, N, 2)
    if len(paths) < 2:
        raise ValueError(f"paths hold {len(paths)} time; expected at least 2: (T, N, 2), the time first.")
    points = None if points is None else _plane(points, "points")
    extent = extent or 1.08 * max(np.quantile(np.abs(v), 0.998) for v in (paths, points) if v is not None)
    figure, axes = plt.subplots(figsize=(4.4, 4.4))
    if points is not None:
        axes.plot(*points.T, ".", color="#C8C8C8", markersize=3, label="data")
    segments = np.stack([paths[:-1], paths[1:]], axis=2)  # (T - 1, N, 2 ends, 2)
    shade = np.repeat(np.linspace(0.25, 1, len(segments)), paths.shape[1])
    segments = segments.reshape(-1, 2, 2)
    axes.add_collection(LineCollection(segments, array=shade, cmap="Blues", linewidths=0.8, clim=(0, 1)))
    axes.plot(*paths[0].T, "o", color="white", markeredgecolor=GREY, markersize=4, label="start")
    axes.plot(*paths[-1].T, "o", color=VERMILION, markersize=4, label="end")
    _square(axes, extent, "")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _shade(axes, density, extent):
    top = np.quantile(density[density > 0], 0.99) if (density > 0).any() else 1
    axes.imshow(density, extent=[-extent, extent] * 2, origin="lower", cmap="Blues", vmin=0, vmax=top)


def _density_of(log_density, extent, cells=160):
    """exp(log p - max) on a square grid (cells, cells), the second axis across."""
    line = (torch.arange(cells) + 0.5) / cells * 2 * extent - extent
    across, up = torch.meshgrid(line, line, indexing="xy")
    values = torch.as_tensor(log_density(torch.stack([across, up], -1).reshape(-1, 2))).detach().double().cpu()
    if values.shape != (cells * cells,):
        raise ValueError(f"the log density gave shape {tuple(values.shape)} for points ({cells * cells}, 2); expected "
                         f"({cells * cells},), one number a point.")
    return (values - values[values.isfinite()].max()).exp().reshape(cells, cells).numpy()


# ---------------------------------------------------------------------------------------------------- small helpers


def _numbers(values, name):
    """A sequence of numbers as a float64 array (M,)."""
    values = torch.as_tensor(values).detach().double().cpu().numpy()
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name}: shape {values.shape}; expected (M,), one number each and at least one.")
    return values


def _plane(points, name):
    points = torch.as_tensor(points).detach().double().cpu().numpy()
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name}: shape {points.shape}; expected (N, 2), points in the plane.")
    return points


def _label(axes, x, y, title, log=""):
    axes.set(xlabel=x, ylabel=y, title=title or "")
    from matplotlib.ticker import LogLocator, NullFormatter

    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name not in log:
            continue
        axes.set(**{f"{name}scale": "log"})
        low, high = axis.get_view_interval()
        if low > 1e-4 and high < 1e5 and high / low < 1e3:  # few decades: plain numbers, 1, 2, 5
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())


def _legend(axes, curves):
    if curves > 4:  # beside the panel: inside it would hide the curves
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif curves > 1:
        axes.legend()


def _square(axes, extent, title):
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", title=title)
    axes.grid(visible=False)
    axes.locator_params(nbins=5)
