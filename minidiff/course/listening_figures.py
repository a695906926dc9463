"""Figures of notebook 17: what a text encoder says, who asks whom, how recorded runs learned to listen."""

import torch

from minidiff.course.style import GREY, ORANGE, SKY, quiet


@quiet
def draw_text(prompts, text, shown=32):
    """The first channels of the tokens of each prompt, a row a word; padding is grey."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(prompts), figsize=(9.4, 2.6))
    for axes, prompt, tokens, mask in zip(panels, prompts, text.tokens, text.mask):
        words = prompt.split() + ["·"] * (~mask).sum().item()
        axes.imshow(tokens[:, :shown].where(mask[:, None], torch.nan), cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto")
        axes.set(title=f'"{prompt}"', yticks=range(len(words)), yticklabels=words, xlabel=f"{shown} of the channels")
        axes.set_facecolor("#DDDDDD")
        axes.grid(visible=False)
    return figure


@quiet
def draw_tables(tables, names):
    """Tables {title: (N, N)} of cosines beside each other, their rows and columns named."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(tables), figsize=(9.2, 4.1), sharey=True)
    for axes, (title, table) in zip(panels, tables.items()):
        shown = axes.imshow(table, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title)
        axes.grid(visible=False)
    figure.colorbar(shown, ax=panels, label="cosine", fraction=0.03)
    return figure


@quiet
def draw_ways(patches=7, words=3):
    """Who asks whom in cross-attention, with concatenated keys, and among joint tokens: rows ask, columns answer."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    picture, gap = (words, 0, patches, patches), patches + 1.5  # left, top, width, height
    ways = {
        "cross-attention: two softmaxes": [(0, 0, patches, patches), (gap, 0, words, patches)],
        "concatenated keys: one softmax": [picture, (0, 0, words, patches)],
        "joint tokens: one softmax": [(words, words, patches, patches), (0, words, words, patches),
                                      (0, 0, words + patches, words)],
    }
    figure, panels = plt.subplots(1, len(ways), figsize=(9.2, 2.9))
    for axes, (name, blocks) in zip(panels, ways.items()):
        for left, top, width, height in blocks:
            color = SKY if (width, height) == (patches, patches) else ORANGE
            for cell in range(width * height):
                corner = (left + cell % width, top + cell // width)
                axes.add_patch(Rectangle(corner, 1, 1, edgecolor="white", facecolor=color))
        axes.set(xlim=(-0.5, 12), ylim=(10.5, -0.5), aspect="equal", title=name)
        axes.axis("off")
    return figure


@quiet
def draw_heard(ratios, times, sides):
    """How much more a word is heard over its own thing: {(layer or "mean", word): one ratio for each of the times}.

    On the left the means of all layers over time, on the right the layers of `sides` {layer: side of its map}, in the
    order of the network, averaged over time.
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.1), sharey=True)
    for word in dict.fromkeys(word for _, word in ratios):
        left.plot(times, ratios["mean", word], label=f"{word} word")
        means = [sum(ratios[layer, word]) / len(times) for layer in sides]
        right.plot(range(len(sides)), means, marker="o", markersize=4)
    for axes in (left, right):
        axes.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    left.set(xlabel="t", ylabel="own thing / other thing")
    names = [f"{'middle' if 'middle' in layer else 'encoder'}\n{side} x {side}" for layer, side in sides.items()]
    right.set_xticks(range(len(sides)), names)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@quiet
def draw_bars(evidence, x="", y="", log=False, panels=False):
    """Shares with 95 % intervals: {name: {question: (share, of how many; 0 for no interval)}}.

    Upright bars, the questions below them; with `x`, the name of that axis, they lie, and `log` makes it logarithmic.
    With `panels` evidence is {title: one of these}, upright and side by side.
    """
    import matplotlib.pyplot as plt

    shown = evidence if panels else {"": evidence}
    questions = len(next(iter(next(iter(shown.values())).values())))
    size = (9.4, 3.2) if panels else (8.6, 0.8 + 0.4 * questions) if x else (8.6, 3.2)
    figure, row = plt.subplots(1, len(shown), figsize=size, squeeze=False, sharey=True)
    for axes, (title, found) in zip(row[0], shown.items()):
        _bars(axes, found, flat=bool(x))
        axes.set(xlabel=x, xscale="log" if log else "linear") if x else axes.set(ylim=(0, 1.05), title=title)
    axes = row[0][0]
    axes.set_ylabel(y)
    place = "outside upper right" if x else "outside lower center"
    figure.legend(*axes.get_legend_handles_labels(), loc=place, ncols=5)
    return figure


@quiet
def draw_learning(runs):
    """Recorded runs {name: record}: their losses, and the share of pictures that is all right, with standard errors."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.3))
    for name, run in runs.items():
        steps = (torch.arange(len(run["curve"])) + 1) * run["training"]["steps"] / len(run["curve"])
        left.plot(steps.tolist(), run["curve"], label=name)
        asked, share = max(8, run["prompts"] // 4), torch.tensor(run["during"]["all"])  # as tools/text_runs.py asks
        error = (share * (1 - share) / asked).sqrt()
        (line,) = right.plot(run["during"]["step"], share.tolist(), marker="o", markersize=3.5)
        band = (share - error).tolist(), (share + error).tolist()
        right.fill_between(run["during"]["step"], *band, color=line.get_color(), alpha=0.13, linewidth=0)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    right.set(xlabel="step", ylabel="share all right")
    right.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    return figure


@quiet
def draw_worth(runs, words):
    """By how much the losses of recorded runs {name: record} grow without each of the words, over the noise level."""
    import matplotlib.pyplot as plt

    columns = min(3, len(words))
    rows = -(-len(words) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(9.2, 0.5 + 2.2 * rows), squeeze=False, sharex=True)
    titles = {"order": "colours exchanged", "all": "no words"}
    for axes, word in zip(panels.flat, words):
        for name, run in runs.items():
            axes.plot(run["worth"]["times"], run["worth"][word]["losses"], label=name)
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        axes.set(title=titles.get(word, f"wrong {word}"), xlim=(0, 1))
        axes.tick_params(axis="y", labelsize=8)
    for axes in panels.flat[len(words):]:
        axes.axis("off")
    for axes in panels[-1]:
        axes.set_xlabel("t")
    for axes in panels[:, 0]:
        axes.set_ylabel("growth of the loss")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    return figure


def _bars(axes, evidence, flat=False):
    """A bar for each name at each question, upright or `flat`."""
    wide = 0.8 / len(evidence)
    for k, (name, found) in enumerate(evidence.items()):
        share, count = torch.tensor(list(found.values()), dtype=torch.float64).T
        error = 1.96 * (share * (1 - share)).clamp(min=0).div(count.clamp(min=1)).sqrt()
        error = {"xerr" if flat else "yerr": error.tolist(), "error_kw": dict(elinewidth=0.8)} if count.any() else {}
        places = (torch.arange(len(share)) + wide * (k - (len(evidence) - 1) / 2)).tolist()
        (axes.barh if flat else axes.bar)(places, share.tolist(), 0.95 * wide, label=name, **error)
        if flat:
            axes.set_yticks(range(len(share)), found)
            axes.set_ylim(len(share) - 0.5, -0.5)
        else:
            axes.set_xticks(range(len(share)), found, rotation=20 if len(share) > 5 else 0)
