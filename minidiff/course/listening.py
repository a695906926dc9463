"""Where the words of a prompt are heard: maps over the picture, with sliders over time, layer and prompt.

    heard = word_maps(diffusion, pictures, y, t=0.6)       # {layer: (B, heads, L, g, g)}
    explore_words(diffusion, encode, pictures, prompts)    # sliders; the last line of a cell
    with deaf(diffusion, list(heard)[:1]): ...             # what if one layer heard no word?

And what they do, with captioned shapes: where each thing lies, captions with one word exchanged, mistakes by kind.
"""

import contextlib
import math

import torch
import torch.nn.functional as F

from minidiff.attention_maps import record_attention
from minidiff.backbones.ascend_text import TextWindowAttention
from minidiff.backbones.iuvit import JointAttention
from minidiff.course.style import quiet
from minidiff.course.widgets import explore
from minidiff.datasets import shapes
from minidiff.images import pixels
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


# ------------------------------------------------------------------------------------------ what words do to pictures


@contextlib.contextmanager
def deaf(diffusion, layers):
    """Inside, these layers of `word_maps` that attend to the text alone hear the empty prompt, the others as always.

    layers: names of cross-attentions. Raises ValueError for others, such as attention to picture and text at once.
    """
    modules = dict(diffusion.named_modules())
    for name in layers:
        if not isinstance(modules.get(name), CrossAttention):
            valid = [known for known, module in modules.items() if isinstance(module, CrossAttention)]
            raise ValueError(f"{name!r} is no cross-attention of this network; there are {', '.join(valid) or 'none'}")
    null = diffusion.network.null_text.detach()
    embed = getattr(diffusion.network, "text_embed", None)  # IU-ViT and ASCEND map the text once, for all layers

    def nothing(module, given):
        x, tokens = given[:2]
        silence = (null if embed is None else embed(null)).to(tokens)
        return x, silence.expand(len(x), 1, -1), None

    hooks = [modules[name].register_forward_pre_hook(nothing) for name in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def thing_inks(images, scenes):
    """Where each of two things of different colours lies on clean pictures of these scenes: (B, 2, S, S) of 0 and 1."""
    palette = {name: torch.tensor(rgb) / 127.5 - 1 for name, rgb in shapes.COLOURS.items()}
    rows = [[(image - palette[thing.colour][:, None, None]).abs().amax(0) < 0.3 for thing in scene.things]
            for image, scene in zip(images, scenes)]  # fmt: skip
    return torch.stack([torch.stack(row) for row in rows]).float()


def exchanged(scene, k, part):
    """The caption of a scene in which thing k has another colour, shape or size; where it can be, one that none has."""
    values = {"size": list(shapes.SIZES), "colour": list(shapes.COLOURS), "shape": list(shapes.SHAPES)}[part]
    own, there = getattr(scene.things[k], part), {getattr(thing, part) for thing in scene.things}
    other = next((value for value in values if value not in there), None) or next(v for v in values if v != own)
    things = [thing._replace(**{part: other}) if i == k else thing for i, thing in enumerate(scene.things)]
    return shapes.describe(scene._replace(things=tuple(things)))


def exchanges(pictures, captions):
    """{property: {"right", "exchanged" or "other": (share, of how many)}} in pictures of two things.

    Of the pictures that the oracle can read, whose things stand as asked, and whose caption names two values of the
    property: are both right, does each thing have the other's, or is it neither?
    """
    found = {part: [] for part in shapes.Thing._fields}
    for picture, caption in zip(pictures, captions, strict=True):
        wanted, shown = shapes.canonical(shapes.parse(caption)), shapes.read(picture)
        if shown is None or wanted.relation is None or shown.relation != wanted.relation:
            continue  # `read` gives the left or upper thing first, as `canonical` does
        for part, kinds in found.items():
            asked, got = ([getattr(thing, part) for thing in scene.things] for scene in (wanted, shown))
            if len(set(asked)) == 2:
                kinds.append("right" if got == asked else "exchanged" if got == asked[::-1] else "other")
    return {part: {kind: (kinds.count(kind) / max(len(kinds), 1), len(kinds))
                   for kind in ("right", "exchanged", "other")} for part, kinds in found.items()}  # fmt: skip
