"""`minidiff train`: from a recipe, a network's name or a config.json to a run of Trainer."""

import dataclasses
import hashlib
import json
import typing
from pathlib import Path

from minidiff.cli import first_process, say
from minidiff.errors import unknown_name

CONFIG = "config.json"
ASIDE = ("config", "out", "resume", "stop_after", "processes", "device", "progress", "download", "smoke", "show")
MODEL = ("network", "arguments", "schedule", "schedule_options", "prediction", "time", "learned_range", "value_range",
         "latents")  # fmt: skip
# What goes to Trainer under the same name
TRAINER = ("steps", "batch_size", "lr", "warmup", "decay", "final_lr", "betas", "weight_decay", "clip", "ema",
           "ema_warmup", "ema_halflife", "weight", "times", "p_uncond", "seed", "amp", "compile",
           "checkpoint_activations", "accumulate", "parallel", "workers", "save_every", "keep", "log_every", "track",
           "sample_every", "sampling", "evaluate_every", "stop_after", "processes", "device", "progress")  # fmt: skip
RESUME = {"yes": True, "no": False, "changed": "changed"}


def main(words):
    """Parse, then show or train."""
    options, source = parse(words)
    if options.show:
        say(shown(options, source))
        return
    train(options)


def parse(words):
    """(Train options, the Recipe they began with or None) of the words after `train`."""
    from minidiff.commands.options import Train
    from minidiff.commands.parsing import option, parsed
    from minidiff.recipes import recipe

    name = words[0] if words and not words[0].startswith("-") else None
    file, smoke, source, place = option(words, "--config"), "--smoke" in words, None, "NAME"
    if (name is None) == (file is None) and not {"-h", "--help"} & set(words):
        raise ValueError("say what to train: minidiff train NAME (minidiff recipes lists them), or a configuration, "
                         "minidiff train --config RUN/config.json; one of both.")
    if file is not None:
        default = from_config(file)
    elif name is not None:
        source = recipe(name)
        default, place = from_recipe(name, source, smoke), name + "-smoke" * smoke
    else:
        default = Train()
    options = parsed(Train, words[name is not None:], f"train {name or ''}".strip(), default)
    for given, belongs in (("data", "data_options"), ("network", "arguments"), ("schedule", "schedule_options")):
        if getattr(default, given) not in (None, getattr(options, given)):  # what suited that one would not suit this
            before, now = getattr(default, belongs), getattr(options, belongs)
            setattr(options, belongs, {key: value for key, value in now.items() if before.get(key) != value})
    if options.out is None:
        from minidiff.files import cache_folder

        if file is not None:  # a run of its own, which is the same one when this is started again
            changed = hashlib.sha256(json.dumps(kept(options)).encode()).hexdigest()[:6]
            place = f"{options.recipe or options.network}-{changed}"
        options.out = str(cache_folder() / "runs" / place)
    return options, source


def from_recipe(name, source, smoke=False):
    """The Train options of a Recipe; `smoke` shrinks everything."""
    from minidiff.commands.options import Train
    from minidiff.recipes import process

    how = {"prediction": "eps", **process(source.network), **source.process}
    schedule, schedule_options = how.pop("schedule")
    options = Train(
        recipe=name, data=source.data, data_options=dict(source.options), size=source.size or own_size(source),
        flip=source.flip, labels=source.labels, network=source.network, arguments=dict(source.arguments),
        schedule=schedule, schedule_options=dict(schedule_options), sampling=dict(source.sampling), **how,
        **source.training,
    )  # fmt: skip
    if options.amp and not cuda():
        options.amp = None
    if smoke:
        from minidiff.commands.smoke import shrink

        shrink(options)
    return options


def own_size(source):
    """The side of the pictures that a network is made for."""
    arguments = published(source)
    return arguments.get("img_size") or arguments["image_size"]


def from_config(file):
    """The Train options of a run's config.json. Raises ValueError for a key or type that does not belong there."""
    from minidiff.commands.options import Train

    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--config {file}: no JSON ({error}). A run writes it; mend what was edited.") from error
    hints = typing.get_type_hints(Train)
    if not isinstance(values, dict):
        raise ValueError(f"--config {file}: holds no options, expected what a run writes: {{\"data\": ..., ...}}.")
    for key, value in values.items():
        if key not in hints or key in ASIDE:
            raise unknown_name(f"option in {file}", key, [name for name in hints if name not in ASIDE])
        if not fits(value, hints[key]):
            expected = getattr(hints[key], "__name__", None) or str(hints[key]).replace("typing.", "")
            raise ValueError(f"{file}: {key}={value!r}, expected {expected}.")
    return Train(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def fits(value, hint):
    """Whether a JSON value is of this type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return fits(value, parts[0])
    if origin is typing.Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, list) and all(fits(one, parts[0]) for one in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if parts:  # A | None
        return any(fits(value, part) for part in parts)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float)) if hint is float else isinstance(value, hint)


def kept(options):
    """What config.json holds: everything that the result depends on."""
    values = {key: value for key, value in dataclasses.asdict(options).items() if key not in ASIDE}
    return json.loads(json.dumps(values))


def train(options):
    """Run Trainer as the options say; returns its History. The folder gets config.json beside the checkpoints."""
    from minidiff.commands.data import first_of
    from minidiff.safe_files import write_text
    from minidiff.training import Trainer, checkpoints

    if options.device is None:
        options.device = "cuda" if cuda() else "cpu"
    known = published(options)
    dataset = data_of(options, known)
    first = first_of(dataset)
    encode = encoder_of(options, known, first)
    diffusion = model_of(options, known, dataset, encode, first)
    folder, text = Path(options.out), json.dumps(kept(options), indent=1) + "\n"

    def write_config(step=None, history=None):  # only now it is sure that the run in this folder is this one
        if first_process() and not write_config.done:
            write_text(folder / CONFIG, text)
        write_config.done = True

    write_config.done = False
    if not checkpoints(folder):
        write_config()
    weights = sum(weight.numel() for weight in diffusion.parameters())
    say(f"{options.recipe or options.network}: {weights:,} weights, {options.steps} steps of {options.batch_size} on "
        f"{options.device}, in {folder}")
    history = Trainer(diffusion, dataset, folder=str(folder), encode=encode, on_step=write_config,
                      evaluate=evaluation(options, diffusion, dataset),
                      resume=RESUME[options.resume], **{name: getattr(options, name) for name in TRAINER}).run()
    say(f"{history} in {folder}\nnow: minidiff sample {folder}")
    return history


def published(options):
    """All arguments of the network that the options name, before it is fitted to the data."""
    import torch

    from minidiff.backbones import create_model

    with torch.device("meta"):  # what it would be, without making it
        return create_model(options.network, **options.arguments).arguments


def data_of(options, known):
    """The data set that the options name. Raises ValueError if it has to be given and is not."""
    from minidiff.commands.data import load_data
    from minidiff.recipes import RECIPES

    if options.data is None:
        wants = RECIPES[options.recipe].wants if options.recipe in RECIPES else "pictures"
        raise ValueError(f"{options.recipe or options.network} is trained on {wants}, which does not come with "
                         "minidiff: say where it is with --data (a folder, or .tar files), or try --data emoji.")
    return load_data(options.data, size=options.size, split=options.split, flip=options.flip,
                     value_range=options.value_range, download=options.download, **options.data_options,
                     needs="labels" if options.labels else "text" if known.get("text_dim") else None)


def encoder_of(options, known, first):
    """The encoder of captions. Where the data set has embeddings, as its `first` record tells, only prompts need it."""
    from minidiff.commands.data import Encoded, load_encoder
    from minidiff.layers import Text

    if known.get("text_dim") and isinstance(first[2], Text) and "prompts" not in options.sampling:
        return Encoded(first[2])
    return load_encoder(options.encoder, options.device, options.download)


def model_of(options, known, dataset, encode=None, first=None):
    """The untrained Diffusion for this data set; options.arguments then hold all arguments of its network.

    known: what `published` gives. first: the first record of the data set, if it was read already.
    """
    import torch

    from minidiff.backbones import create_model
    from minidiff.commands.data import first_of
    from minidiff.diffusion import Diffusion
    from minidiff.schedules import make_schedule

    channels, size = (first or first_of(dataset)).image.shape[0], options.size
    fit = {key: size for key in ("img_size", "image_size") if key in known and known[key] != size}
    if known["in_channels"] != channels:
        fit |= {"in_channels": channels}
    if known.get("out_channels", 0) not in (0, outputs := channels * (1 + options.learned_range)):
        fit |= {"out_channels": outputs}
    fit |= condition(options, known, dataset, encode)
    torch.manual_seed(options.seed)
    network = create_model(options.network, **options.arguments | fit)
    options.arguments = json.loads(json.dumps(network.arguments))
    try:
        schedule = make_schedule(options.schedule, **options.schedule_options)
    except TypeError as error:  # Python names the option
        raise ValueError(f"--schedule {options.schedule}: {error}; see minidiff/schedules.py.") from error
    return Diffusion(network, schedule, options.prediction, time=options.time, learned_range=options.learned_range,
                     shape=(channels, size, size), value_range=options.value_range, latents=options.latents)


def condition(options, known, dataset, encode):
    """The arguments of the network that say what it is told: classes, or the width of the text."""
    classes = len(getattr(dataset, "classes", None) or ())
    if known.get("num_classes"):
        if not options.labels:
            raise ValueError(f"{options.network} knows num_classes={known['num_classes']} labels: add --labels, or "
                             "--arguments num_classes=0.")
        if hasattr(dataset, "stream"):
            return {}
    if options.labels and "num_classes" not in options.arguments:
        return {"num_classes": classes}
    if options.labels and options.arguments["num_classes"] < classes:
        raise ValueError(f"num_classes={options.arguments['num_classes']}, and the data set has {classes} classes: "
                         "leave it out, or give at least as many.")
    if known.get("text_dim") and hasattr(encode, "dim"):
        return {"text_dim": encode.dim} | ({"pooled_dim": encode.pooled_dim} if known.get("pooled_dim") else {})
    return {}


def evaluation(options, diffusion, dataset):
    """What Trainer calls to measure distances to the data; None where they were not asked for."""
    if options.features is None:
        return None
    from minidiff.commands.evaluate import chosen_features
    from minidiff.training import distance_to

    if diffusion.latents is not None or hasattr(dataset, "stream"):
        raise ValueError(f"--features {options.features}: distances are those of pictures, to a data set that can be "
                         "read by number; leave it out here, and use minidiff evaluate.")
    sampling = {key: value for key, value in options.sampling.items() if key != "prompts"}
    return distance_to(dataset, chosen_features(options, diffusion)[0], options.evaluate_num, **sampling)


def cuda():
    """Whether there is a GPU."""
    import torch

    return torch.cuda.is_available()


def shown(options, source):
    """The options as lines `name = value`, with '(guess)' where the paper does not give it."""
    guesses = source.guesses if source else {}
    lines = [f"{options.recipe}: {source.source if source else 'a configuration'}"]
    values = {**kept(options), "out": options.out}
    for key, value in values.items():
        if value in (None, {}, []) and key not in guesses and key not in ("clip", "decay", "ema", "data"):
            continue
        if key == "data" and value is None:
            value = f"--data needed: {source.wants}" if source else "--data needed"
        text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        mark = f"  (guess: {guesses[key]})" if key in guesses else ""
        lines.append(f"  {key:<22} {text}{mark}")
    lines += [f"  {key:<22} (guess: {why})" for key, why in guesses.items() if key not in values]
    lines += [f"  differs from the paper: {what}" for what in (source.differs if source else ())]
    return "\n".join(lines)
