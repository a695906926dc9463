"""Where the words of a prompt are heard: maps over the picture, with sliders over time, layer and prompt; figures.

    heard = word_maps(diffusion, pictures, y, t=0.6)       # {layer: (B, heads, L, g, g)}
    explore_words(diffusion, encode, pictures, prompts)    # sliders; the last line of a cell
"""

import math

import torch
import torch.nn.functional as F

from minidiff.attention_maps import record_attention
from minidiff.backbones.ascend_text import TextWindowAttention
from minidiff.backbones.iuvit import JointAttention
from minidiff.course.pictures import pixels
from minidiff.course.style import ORANGE, SKY, quiet
from minidiff.course.widgets import explore
from minidiff.layers import CrossAttention
from minidiff.samplers import seeded_noise


@torch.no_grad()
def word_maps(diffusion, x0, y, t, seed=0):
    """How much every patch hears every token of a text, while pictures are denoised at the time t.

    x0: clean pictures (B, C, H, W), noised with `seed` and its followers, one for each. y: their Text (B, L, D).
    Returns {name of the layer: (B, heads, L, g, g)} of all layers where the picture asks the text, on their own grids,
    on the CPU. At a patch the weights of all tokens sum to 1 in a cross-attention, and to less where the picture's
    own keys share the softmax. Raises ValueError for a network without such layers, or with windows.
    """
    x0 = x0.to(diffusion.device)
    alpha, sigma = diffusion.schedule(t)
    eps = seeded_noise(range(seed, seed + len(x0)))(x0)
    modules = dict(diffusion.named_modules())
    with record_attention(diffusion) as maps:
        diffusion.denoise(alpha * x0 + sigma * eps, t, y.to(diffusion.device))
    kinds = (CrossAttention, JointAttention)
    found = {name: calls[0] for name, calls in maps.items() if isinstance(modules[name], kinds)}
    if not found:
        windows = any(isinstance(module, TextWindowAttention) for module in modules.values())
        raise ValueError(
            f"{type(diffusion.network).__name__} hears no text that a map could show: "
            + ("its windows hear the text each for themselves" if windows else "it needs text_dim, and a"
               " cross-attention or concatenated keys (text_attention='cross' or 'joint')")
        )  # fmt: skip
    first, length = getattr(diffusion.network, "extras", 0), y.tokens.shape[1]  # tokens of time come first
    heard = {}
    for name, weights in found.items():
        weights = weights[:, :, first:, :length].transpose(2, 3)  # (B, heads, L, g * g); the text's keys come first
        side = math.isqrt(weights.shape[3])
        heard[name] = weights.unflatten(3, (side, side)).cpu()
    return heard


def mean_maps(heard):
    """Maps (B, L, g, g) averaged over the heads and layers of `word_maps`, on the finest of their grids."""
    side = max(weights.shape[-1] for weights in heard.values())
    finest = [F.interpolate(weights.mean(1), size=(side, side), mode="nearest") for weights in heard.values()]
    return torch.stack(finest).mean(0)


def explore_words(diffusion, encode, pictures, prompts, times=(0.1, 0.3, 0.5, 0.7, 0.9), seed=0):
    """Sliders over what each word is heard by, picture by picture; write it as a cell's last line.

    encode: list of str -> Text, whose tokens are the words of the prompt (`text_encoder("words")`). pictures
    (N, C, H, W), one for each of the prompts. Shown are the noisy picture, and one map for each word, all in the same
    colours: what a patch gives to that word. Raises ValueError for other numbers of pictures and prompts.
    """
    if len(pictures) != len(prompts) or isinstance(prompts, str):
        raise ValueError(f"{len(pictures)} pictures for {len(prompts)} prompts: give one picture for each, in a list")
    kept = {}

    def maps(number, time):
        if (number, time) not in kept:
            text = encode([prompts[number]])
            kept[number, time] = word_maps(diffusion, pictures[number:number + 1], text, time, seed)
        return kept[number, time]

    layers, halfway = list(maps(0, times[0])), times[len(times) // 2]

    def show(prompt=prompts[0], time=halfway, layer="all"):
        number = prompts.index(prompt)
        heard = maps(number, time)
        chosen = mean_maps(heard if layer == "all" else {layer: heard[layer]})[0]
        alpha, sigma = diffusion.schedule(time)
        clean = pictures[number:number + 1].cpu()
        noisy = alpha * clean + sigma * seeded_noise([seed])(clean)
        return draw_words({f"t = {time:g}": (noisy[0], chosen)}, prompt.split())

    return explore(show, prompt=list(prompts), time=list(times), layer=["all", *layers])


@quiet
def draw_words(rows, words):
    """A row {name: (picture (C, H, W), maps (L, g, g))} for each name: the picture, then a map for each of the words.

    Dark is little, bright is much, in the same scale all over. Raises ValueError for another number of maps.
    """
    import matplotlib.pyplot as plt

    for name, (_, maps) in rows.items():
        if len(maps) != len(words):
            raise ValueError(f"{len(maps)} maps in the row {name!r} for {len(words)} words: give one for each")
    top = max(maps.max().item() for _, maps in rows.values())
    wide = 0.92 * (1 + len(words))
    figure, panels = plt.subplots(len(rows), 1 + len(words), figsize=(wide, 1.0 * len(rows) + 0.45), squeeze=False)
    for line, (name, (picture, maps)) in zip(panels, rows.items()):
        line[0].imshow(pixels(picture)[0])
        line[0].set_ylabel(name, fontsize=9)
        for axes, one in zip(line[1:], maps):
            axes.imshow(one.cpu().numpy(), cmap="magma", vmin=0, vmax=top)
    for axes, word in zip(panels[0][1:], words):
        axes.set_title(word, fontsize=9.5)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
    return figure


# ------------------------------------------------------------------------------------------- figures of notebook 17


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
        "joint tokens: one softmax": [picture, (0, 0, words, patches), (0, patches, words + patches, words)],
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
def draw_bars(evidence, x="", y="", log=False):
    """Shares with 95 % intervals: {name: {question: (share, of how many; 0 for no interval)}}.

    Upright bars, the questions below them; with `x`, the name of that axis, they lie, and `log` makes it logarithmic.
    """
    import matplotlib.pyplot as plt

    questions = len(next(iter(evidence.values())))
    figure, axes = plt.subplots(figsize=(8.6, 0.8 + 0.4 * questions) if x else (8.6, 3.2))
    _bars(axes, evidence, flat=bool(x))
    if x:
        axes.set(xlabel=x, xscale="log" if log else "linear")
    else:
        axes.set(ylabel=y, ylim=(0, 1.05))
    place = "outside upper right" if x else "outside lower center"
    figure.legend(*axes.get_legend_handles_labels(), loc=place, ncols=4)
    return figure


@quiet
def draw_obedience(runs, evidence):
    """The losses of recorded runs {name: record}, and bars of what each gets right, as `draw_bars` has them."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), width_ratios=(1, 1.8))
    for run in runs.values():
        steps = (torch.arange(len(run["curve"])) + 1) * run["training"]["steps"] / len(run["curve"])
        left.plot(steps, run["curve"])
    left.set(xlabel="step", ylabel="loss", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    _bars(right, evidence)
    right.set(ylabel="share", ylim=(0, 1.05))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
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
