"""The look of every figure in the course: a quiet style and a palette that the colour-blind can read."""

import functools

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#8C8C8C"
COLORS = [BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK, GREY]
DPI = 110
STYLE = {
    "figure.dpi": DPI, "figure.facecolor": "white", "savefig.facecolor": "white", "figure.constrained_layout.use": True,
    "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#777777", "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.7, "xtick.color": "#444444",
    "ytick.color": "#444444", "lines.linewidth": 1.8, "image.interpolation": "nearest",
}  # fmt: skip


def quiet(draw):
    """Decorator: run `draw` in the course's style and close the figure it returns, so that Jupyter shows it once."""

    @functools.wraps(draw)
    def wrapper(*args, **options):
        import matplotlib.pyplot as plt
        from cycler import cycler

        cycle = cycler(color=COLORS, linestyle=["-"] * 4 + ["--"] * 4)
        before = set(plt.get_fignums())
        try:
            with plt.style.context(["default", STYLE | {"axes.prop_cycle": cycle}]):
                return draw(*args, **options)
        finally:  # also when it raised: a half-drawn figure would show up under the next cell
            for number in set(plt.get_fignums()) - before:
                plt.close(number)

    return wrapper
