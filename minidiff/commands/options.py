"""The options of each command, one dataclass each: the comment beside a field is its help text.

A run's config.json is its `Train` options, nothing else, so everything that can be said on the command line can be
repeated from the file.
"""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec


def read_pairs(words):
    """{key: value} of words KEY=VALUE; values are JSON where they can be read as such, else strings."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ValueError(f"{word!r} is not of the form KEY=VALUE, like depth=4")
        try:
            pairs[key] = json.loads(value)
        except ValueError:
            pairs[key] = None if value == "None" else value == "True" if value in ("True", "False") else value
    return pairs


PAIRS = PrimitiveConstructorSpec(
    nargs="*", metavar="[KEY=VALUE ...]", instance_from_str=read_pairs, is_instance=lambda it: isinstance(it, dict),
    str_from_instance=lambda pairs: [f"{key}={json.dumps(value)}" for key, value in pairs.items()],
)  # fmt: skip
Pairs = Annotated[dict[str, Any], PAIRS]
Hidden = tyro.conf.Suppress[tyro.conf.Fixed[str]]


@dataclass
class Train:
    """Train a diffusion model. Started again, it goes on from its last checkpoint.

    NAME is a recipe (`minidiff recipes` lists them) or a registered network; the defaults below are its own.
    """

    recipe: Hidden = ""
    # --- what for: these are not kept in config.json
    config: str | None = None  # Instead of NAME: the config.json of a run, to repeat it, with or without changes.
    out: str | None = None  # Folder of the run; by default runs/NAME in the cache folder.
    resume: Literal["yes", "no", "changed"] = "yes"  # Go on from the newest checkpoint; or even if options differ.
    stop_after: float | None = None  # Stop after so many seconds, with a checkpoint.
    processes: int | None = None  # Refuse to run unless torchrun started so many.
    device: str | None = None  # cpu, cuda, ...; by default CUDA where there is one.
    progress: bool = True  # Show a bar.
    download: bool = False  # Fetch the data set, or the text encoder, if it is not there.
    smoke: bool = False  # Two steps of a tiny network on noise, to see that everything fits together.
    show: bool = False  # Print the recipe, with what is a guess, and stop.

    # --- data
    data: str | None = None  # Name of a data set, a folder of pictures, or shards (a folder or pattern of .tar files).
    data_options: Pairs = field(default_factory=dict)  # Arguments of the data set, such as scenes=one style=google.
    size: int = 16  # Side of the pictures, or of the latents.
    split: str | None = None  # Part of the data set; by default its own choice, mostly train.
    flip: bool = False  # Use every picture mirrored, too.
    labels: bool = False  # Tell the network the classes of the data set.
    encoder: str | None = None  # Of text: words, minilm, clip, t5-..., t5-...:FOLDER, or MODULE:FUNCTION.

    # --- model
    network: str = "ddpm_tiny"  # Name of the network.
    arguments: Pairs = field(default_factory=dict)  # Of the network, such as depth=4; the rest stays as published.
    schedule: str = "cosine"  # linear, cosine, scaled_linear, sigmoid, sub_vp, variance_exploding, edm or flow.
    schedule_options: Pairs = field(default_factory=dict)  # Arguments of the schedule, such as steps=1000.
    prediction: str = "eps"  # What the network predicts: eps, x0, v, flow, score or edm.
    time: str | None = None  # What it is fed for a time: index, 999t, log_sigma/4, ...
    learned_range: bool = False  # It also predicts a range of variances.
    value_range: tuple[float, float] = (-1.0, 1.0)  # Of the pictures, as the model sees them.
    latents: float | None = None  # The scale of latents, for a model that works on them.

    # --- training
    steps: int = 10_000  # Steps of the optimiser.
    batch_size: int = 64  # Pictures in a step, over all processes and accumulation.
    lr: float = 1e-3  # Learning rate, after warm-up.
    warmup: int = 100  # Steps in which it rises from 0.
    decay: Literal["cosine", "linear"] | None = "cosine"  # How it falls after that.
    final_lr: float = 0.0  # Where it falls to.
    betas: tuple[float, float] = (0.9, 0.999)  # Of AdamW.
    weight_decay: float = 0.0  # Of AdamW.
    clip: float | None = 1.0  # Largest norm of the gradient.
    ema: float | None = 0.999  # Decay of the averaged weights.
    ema_warmup: bool = True  # Average over fewer steps at first.
    ema_halflife: float | None = None  # Instead of ema: pictures after which a weight counts half.
    weight: str = "uniform"  # How much each noise level counts: uniform, min_snr, p2 or edm.
    times: str | None = None  # How times are drawn: as the schedule does, or logit_normal.
    p_uncond: float = 0.0  # Share of conditions left out, for classifier-free guidance.
    seed: int = 0  # Of the first weights, the order of pictures, noise and dropout.

    # --- machine
    amp: Literal["bf16", "fp16"] | None = None  # Mixed precision; recipes have it on CUDA alone.
    compile: bool = False  # torch.compile the network.
    checkpoint_activations: bool = False  # Compute activations twice instead of keeping them.
    accumulate: int = 1  # Parts that a batch is computed in.
    parallel: Literal["ddp", "fsdp"] = "ddp"  # What several processes share: only the batch, or the weights as well.
    workers: int = 0  # Processes that read data.

    # --- what is kept
    save_every: int = 1000  # Steps between checkpoints.
    keep: int = 2  # How many of them to keep.
    log_every: int = 50  # Steps between lines of log.csv.
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()  # Where else to log.
    sample_every: int | None = None  # Steps between grids of samples, in samples/.
    sampling: Pairs = field(default_factory=dict)  # Arguments of minidiff.sample for them, and for `minidiff sample`.
    features: Literal["digits", "emoji", "inception"] | None = None  # Log distances to the data, on these features.
    evaluate_every: int | None = None  # Steps between them; by default as checkpoints.
    evaluate_num: int = 1000  # Pictures to draw for them.


@dataclass
class Sample:
    """Draw pictures with a trained model.

    MODEL is the folder of a run or of a pretrained model, or the name of shipped weights, such as emoji-unet. What is
    not given is taken from the run's configuration.
    """

    num: int = 16  # How many.
    label: tuple[str, ...] = ()  # Class of the pictures, by number or name; several are repeated in turn. Default: all.
    prompt: tuple[str, ...] = ()  # What they should show, for a model that takes text; several are repeated in turn.
    encoder: str | None = None  # Of prompts, as in `minidiff train`; by default that of the run.
    sampler: str | None = None  # ddim, ddpm, heun, dpmpp_2m, unipc, ...
    steps: int | None = None  # Of the sampler.
    guidance: float | None = None  # Classifier-free; 1 is none.
    options: Pairs = field(default_factory=dict)  # More arguments of minidiff.sample, such as spacing=karras eta=1.
    seed: int = 0  # Picture i depends on (seed, i) alone.
    batch_size: int = 64  # How many at once.
    out: str = "samples.png"  # One .png with all, a folder for one .png each, or .safetensors (also latents).
    download: bool = False  # Allow the text encoder to be fetched.
    device: str | None = None  # By default CUDA where there is one.
    progress: bool = True  # Show a bar.


@dataclass
class Evaluate:
    """Measure a trained model: loss by noise level, distances to the data, and what its pictures show.

    MODEL is the folder of a run or of a pretrained model, or the name of shipped weights, such as emoji-unet.
    """

    data: str | None = None  # As in `minidiff train`; by default what the model was trained on.
    data_options: Pairs = field(default_factory=dict)  # Arguments of the data set.
    split: str | None = None  # By default "test" where the set has one.
    num: int = 500  # Pictures to draw, and at most so many held-out ones for the loss.
    features: Literal["auto", "digits", "emoji", "inception", "none"] = "auto"  # For the distances.
    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # Times at which the loss is measured.
    sampler: str | None = None  # As in `minidiff sample`.
    steps: int | None = None  # Of the sampler.
    guidance: float | None = None  # Classifier-free; 1 is none.
    options: Pairs = field(default_factory=dict)  # More arguments of minidiff.sample.
    seed: int = 0  # Of noise and samples.
    batch_size: int = 64  # How many at once.
    out: str | None = None  # The .json file; by default evaluation.json in the folder of the run, or here.
    download: bool = False  # Allow Inception's weights, the data set or the text encoder to be fetched.
    device: str | None = None  # By default CUDA where there is one.
    progress: bool = True  # Show a bar.


@dataclass
class Export:
    """Write the averaged weights of a run as a pretrained model: config.json and model.safetensors.

    MODEL is the folder of a run or of a pretrained model, or the name of shipped weights.
    """

    out: str | None = None  # Folder to write; by default `pretrained` in the folder of the run.
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # Of the file.
    licence: str | None = None  # Of the weights, for the data card.
    to: Literal["minidiff", "diffusers"] = "minidiff"  # Whose format.
    card: bool = False  # Also write README.md, a model card.
    push: str | None = None  # Also upload it to this repository of the Hugging Face hub, ORGANISATION/NAME.
