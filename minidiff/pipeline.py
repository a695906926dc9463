"""From words to pictures, and from classes to pictures: a trained model with all that it needs around it.

    pipe = TextToImage.from_pretrained("shapes-ascend")
    pipe("a red circle above a blue square", n=4, guidance=5, seed=0)      # four PIL images
    pipe(prompts, n=1, output="tensor")                                    # (P, 1, 3, H, W) in [-1, 1]
    ClassToImage.from_pretrained("emoji-unet")(["Food & Drink", "Flags"])  # two lists of four

Both take as many prompts as one likes: they are encoded and drawn in batches that fit, and only finished pictures are
kept. Picture j of a prompt depends on the prompt, its seed and j alone, not on the others or on the batch.
"""

import functools
import numbers
from pathlib import Path

import torch

from minidiff.checkpoints import from_pretrained, load, read_card
from minidiff.diffusion import Diffusion
from minidiff.drawing import draw
from minidiff.errors import check_whole, unknown_name, warn
from minidiff.images import pixels
from minidiff.layers import Text
from minidiff.text import ENCODERS, check_prompts, padded, text_encoder

OUTPUTS = ("pil", "tensor")


class TextToImage:
    """Prompts -> pictures. diffusion: a Diffusion whose network takes text; encoder: list of str -> minidiff.Text.

    Raises ValueError for a network that takes no text, and an encoder whose vectors are not as wide as it needs.
    """

    def __init__(self, diffusion, encoder):
        check_model(diffusion, "text_dim", "TextToImage draws what a text says")
        for name, theirs in (("dim", "text_dim"), ("pooled_dim", "pooled_dim")):
            has, needs = getattr(encoder, name, None), getattr(diffusion.network, theirs, 0)
            if has is not None and needs and has != needs:
                raise ValueError(
                    f"the text encoder {getattr(encoder, 'name', encoder)!r} has {name}={has}, and the network was made"
                    f" for {theirs}={needs}: take the encoder that it was trained with"
                )
        self.diffusion, self.encoder = diffusion, encoder

    @classmethod
    def from_pretrained(cls, name, *, encoder=None, device=None, download=False):
        """The pipeline of shipped weights by name, of a folder, or with `download` of 'organisation/model' on the hub.

        encoder: a name of minidiff.text.ENCODERS, or a function list of str -> Text; by default the one that the data
        card names under "encoder". device: by default CUDA if there is one. Raises FileNotFoundError or ValueError for
        a model that is missing, damaged or of another kind, and where no encoder is known.
        """
        diffusion, card = open_model(name, device, download)
        check_model(diffusion, "text_dim", "TextToImage draws what a text says")
        encoder = card.get("encoder") if encoder is None else encoder
        if not callable(encoder):
            if encoder not in ENCODERS:
                raise ValueError(
                    f"the text encoder of {str(name)!r} is {f'{encoder!r}, none of ours' if encoder else 'not known'}:"
                    f" pass encoder=..., the name of the one that it was trained with ({', '.join(ENCODERS)}), or a"
                    " function list of str -> minidiff.Text"
                )
            options = {"download": True} if download and encoder not in ("words", "minilm") else {}
            encoder = text_encoder(encoder, device=diffusion.device, **options)
        return cls(diffusion, encoder)

    def to(self, device):
        """The pipeline, with model and encoder on this device."""
        self.diffusion.to(device)
        if isinstance(self.encoder, torch.nn.Module):
            self.encoder.to(device)
        return self

    def enable_compile(self, **options):
        """Compile the network at its next call, which takes a minute; returns the pipeline.

        options: those of torch.compile. For many pictures on a GPU: on a CPU small networks become slower.
        """
        self.diffusion.network.compile(**options)
        return self

    def __call__(
        self, prompts, n=4, *, guidance=5.0, steps=50, sampler="ddim", seed=0, negative=None, batch_size=None,
        progress=True, output="pil", **options,
    ):  # fmt: skip
        """n pictures of a prompt, a list of PIL images; of a list of P prompts a list of P such lists.

        guidance    the classifier-free scale, 1 for none
        seed        a whole number, so that all prompts start from the same noise, or a list of P: to measure, range(P)
        negative    what to lead away from: a prompt for all, or a list of P; "" and None lead away from nothing
        batch_size  pictures at a time; by default as many as should fit, then fewer if they do not
        output      "tensor" gives (n, C, H, W), or (P, n, C, H, W), float32 in [-1, 1] on the CPU
        options     those of minidiff.sample besides: spacing, t_end, clipped, interval, rescale, eta, on_step, ...
        The empty prompt asks for nothing: the unconditional model, at any guidance. A prompt that is too long for the
        encoder is cut, with a warning that shows what was lost. Raises ValueError for values that do not fit.
        """
        single = isinstance(prompts, str)
        prompts = check_prompts([prompts] if single else prompts)
        negatives = None if negative in (None, "") else for_each("negative", negative, len(prompts))
        negatives = negatives and check_prompts(["" if text is None else text for text in negatives])
        negatives = negatives if negatives and any(negatives) else None
        options |= dict(guidance=guidance, steps=steps, sampler=sampler, batch_size=batch_size, progress=progress)
        return pictures_of(self.diffusion, self._encode, prompts, negatives, single, n, seed, output, options)

    def _encode(self, prompts, negatives):
        """(Text of some pictures' prompts, Text of their negative ones or None), equally long, on the device."""
        texts = [self._text(part) for part in (prompts, negatives) if part is not None]
        longest = max(text.tokens.shape[1] for text in texts)
        places = getattr(self.diffusion.network, "num_text_tokens", None) or longest
        if longest > places:
            warn(f"a prompt of {longest} tokens was cut to the {places} that this network has places for")
        if len(texts) > 1 or longest != places:
            texts = [padded(text, places) for text in texts]
        return texts[0], texts[1] if len(texts) > 1 else None

    def _text(self, prompts):
        """The Text of some pictures' prompts; each is encoded once, however many pictures it has."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        text = self.encoder(list(places))
        if not isinstance(text, Text) or len(text.tokens) != len(places):
            got = f"one of {len(text.tokens)}" if isinstance(text, Text) else type(text).__name__
            raise ValueError(f"the text encoder must give a minidiff.Text of {len(places)} prompts, got {got}")
        return text.to(self.diffusion.device)[torch.tensor([places[prompt] for prompt in prompts])]


class ClassToImage:
    """Classes -> pictures. diffusion: a Diffusion whose network takes labels; classes: a list of their names, or None.

    Raises ValueError for a network without classes, and for another number of names.
    """

    def __init__(self, diffusion, classes=None):
        check_model(diffusion, "num_classes", "ClassToImage draws classes")
        self.diffusion, self.count = diffusion, diffusion.network.num_classes
        if classes is not None:
            self.classes = self._checked(classes)

    @classmethod
    def from_pretrained(cls, name, *, device=None, download=False):
        """The pipeline of shipped weights by name, of a folder, or with `download` of 'organisation/model' on the hub.

        The names of the classes are those of the data card, or of the data set that it names. device: by default CUDA
        if there is one. Raises FileNotFoundError or ValueError for a model that is missing, damaged or of another kind.
        """
        diffusion, card = open_model(name, device, download)
        pipeline = cls(diffusion)
        pipeline._card = card
        return pipeline

    _card = None  # what is known of the training, where it was read with the model

    @functools.cached_property
    def classes(self):
        """The names of the classes in the order of their numbers, or None where they are not known."""
        return self._checked(class_names(self._card or {}))

    def to(self, device):
        """The pipeline, with its model on this device."""
        self.diffusion.to(device)
        return self

    enable_compile = TextToImage.enable_compile

    def __call__(
        self, labels, n=4, *, guidance=3.0, steps=50, sampler="ddim", seed=0, negative=None, batch_size=None,
        progress=True, output="pil", **options,
    ):  # fmt: skip
        """n pictures of a class, its number or name: a list of PIL images; of a list of P classes P such lists.

        The class None asks for nothing: the unconditional model. All else is as in TextToImage; negative is a class.
        """
        labels = labels.tolist() if hasattr(labels, "tolist") else labels
        single = isinstance(labels, str) or not hasattr(labels, "__iter__")
        labels = [self.number(label) for label in ([labels] if single else labels)]
        negatives = None if negative is None else for_each("negative", negative, len(labels))
        negatives = negatives and [self.number(label) for label in negatives]
        options |= dict(guidance=guidance, steps=steps, sampler=sampler, batch_size=batch_size, progress=progress)
        return pictures_of(self.diffusion, self._labels, labels, negatives, single, n, seed, output, options)

    def number(self, label):
        """The number of a class, from its number or name; that of 'no class' from None. ValueError if there is none."""
        if label is None:
            return self.count
        if isinstance(label, numbers.Integral) and not isinstance(label, bool) and 0 <= label < self.count:
            return int(label)
        if isinstance(label, str) and self.classes and label in self.classes:
            return self.classes.index(label)
        if isinstance(label, str) and not self.classes:
            raise ValueError(f"class {label!r}: what the classes of this model are called is not known; give a number"
                             f" from 0 to {self.count - 1}, or ClassToImage(diffusion, classes=[...])")  # fmt: skip
        raise unknown_name("class", label, [*(self.classes or []), f"0 to {self.count - 1}"])

    def _labels(self, labels, negatives):
        """(labels, negative labels or None) of some pictures, on the device."""
        device = self.diffusion.device
        return tuple(None if part is None else torch.tensor(part, device=device) for part in (labels, negatives))

    def _checked(self, names):
        if names is not None and len(names) != self.count:
            raise ValueError(f"classes must be {self.count} names, one for each label of the network, got {len(names)}")
        return None if names is None else list(names)


# --- what both share -------------------------------------------------------------------------------------------------


def open_model(name, device=None, download=False):
    """(the model, its data card) of a folder, of the hub, or of shipped weights by name; on CUDA if there is one."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if Path(name).is_dir() or Path(name).suffix or "/" in str(name) or "\\" in str(name):
        return from_pretrained(name, device, download), read_card(name, download)
    return load(str(name), device), read_card(str(name))


def check_model(model, takes, what):
    """Raise ValueError unless `model` is a Diffusion whose network has the attribute `takes`."""
    if not isinstance(model, Diffusion):
        raise ValueError(f"{what}, and a {type(model).__name__} draws nothing: give a Diffusion")
    if not getattr(model.network, takes, 0):
        others = {"num_classes": "classes: use ClassToImage", "text_dim": "text: use TextToImage"}
        does = [way for name, way in others.items() if getattr(model.network, name, 0)]
        name = getattr(model.network, "name", type(model.network).__name__)
        raise ValueError(f"{what}, and {name} takes {does[0] if does else 'neither: use minidiff.sample'}")


def class_names(card):
    """The names of the classes that a data card tells, or those of the data set that it names; None if unknown."""
    from minidiff.datasets import load_dataset

    if card.get("classes"):
        return card["classes"]
    dataset = card.get("dataset") or {}
    options = {"name": dataset} if isinstance(dataset, str) else {k: v for k, v in dataset.items() if k != "download"}
    try:
        return list(load_dataset(**options).classes)
    except (ValueError, TypeError, OSError, ImportError, AttributeError):  # not on this machine, or without classes
        return None


def for_each(name, value, count):
    """A list of `count`: the value for all, or the list or tuple that it is. ValueError for another length."""
    if hasattr(value, "tolist"):  # a tensor or an array
        value = value.tolist()
    if not isinstance(value, (list, tuple, range)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one for all, or a list of {count}, one for each prompt or class; got"
                         f" {len(value)}")  # fmt: skip
    return list(value)


def pictures_of(diffusion, condition, wanted, negatives, single, n, seed, output, options):
    """What the pipelines return: n pictures of each of what is `wanted`, drawn together, as images or as a tensor."""
    check_whole("n", n)
    if output not in OUTPUTS:
        raise unknown_name("output", output, OUTPUTS)
    if output == "pil" and diffusion.latents is not None:
        raise ValueError('this model draws latents, which need their decoder to become pictures: output="tensor" gives'
                         " them as they are")  # fmt: skip
    if not wanted:
        raise ValueError("there is nothing to draw: give at least one prompt or class")
    seeds = for_each("seed", seed, len(wanted))
    for each in set(seeds) if all(isinstance(each, numbers.Integral) for each in seeds) else seeds:
        check_whole("seed", each, 0)
    number = [i for i in range(len(wanted)) for _ in range(n)]

    def condition_of(part):
        return condition([wanted[i] for i in number[part]], negatives and [negatives[i] for i in number[part]])

    drawn = draw(diffusion, condition_of, [(seed, j) for seed in seeds for j in range(n)], **options)
    if diffusion.latents is None:
        low, high = diffusion.value_range
        drawn = ((drawn - low) * (2 / (high - low)) - 1).clamp(-1, 1)
    if output == "tensor":
        return drawn if single else drawn.unflatten(0, (len(wanted), n))
    from PIL import Image

    images = [Image.fromarray(cell) for cell in pixels(drawn)]
    return images if single else [images[first:first + n] for first in range(0, len(images), n)]
