"""Models on disk: a folder of config.json (what the model is) and model.safetensors (its weights).

config.json holds the registered name and arguments of the network, everything of its Diffusion (or Classifier or
TextScorer), and a data card; so `from_pretrained` needs nothing but the folder. Only safetensors are read: a pickle
can run code.
"""

import json
import re
from pathlib import Path

import torch

from minidiff.errors import unknown_name
from minidiff.files import data_folder
from minidiff.safe_files import read_tensors, write_tensors, write_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What a model keeps besides network and schedule, by kind. A Diffusion's config.json names no kind, as in old files.
FIELDS = {
    "diffusion": ("prediction", "time", "learned_range", "shape", "value_range", "latents"),
    "classifier": ("time", "shape", "value_range"),
    "scorer": ("time", "shape", "value_range"),
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {None: None, "float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16,
          "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}


def describe(model):
    """What config.json says of a Diffusion, Classifier or TextScorer besides its weights: a dict of plain JSON values.

    Raises ValueError for a network that create_model did not make: it could not be built again from its name.
    """
    network, schedule, kind = model.network, model.schedule, getattr(model, "kind", "diffusion")
    if not hasattr(network, "name"):
        raise ValueError(
            f"a {type(network).__name__} without a registered name cannot be rebuilt from a file: make it with "
            "create_model(name, ...), after register_model(...) if the class is yours."
        )
    return json.loads(json.dumps({
        **({} if kind == "diffusion" else {"kind": kind}),
        "network": {"name": network.name, "arguments": network.arguments},
        "schedule": {"name": schedule.name, "arguments": schedule.arguments},
        **{field: getattr(model, field) for field in FIELDS[kind]},
        **({"tokenizer": model.tokenizer.arguments} if kind == "scorer" else {}),
    }))


def save_pretrained(diffusion, folder, card=None, dtype=None):
    """Write config.json and model.safetensors to `folder`, each whole or not at all.

    card   dict of plain values kept in config.json: data set, licence, how it was trained
    dtype  of the file: None as the weights are, "float16" or "bfloat16" (half the size; read back as float32)
    Raises ValueError if a weight does not fit into float16.
    """
    config = describe(diffusion)
    tensors = {name: _cast(name, tensor, dtype) for name, tensor in diffusion.network.state_dict().items()}
    write_tensors(Path(folder) / WEIGHTS, tensors, config)
    write_text(Path(folder) / CONFIG, json.dumps(config | {"card": card or {}}, indent=1) + "\n")


def from_pretrained(folder, device=None, download=False):
    """The Diffusion, Classifier or TextScorer that save_pretrained wrote to `folder`, float32, in eval mode.

    With download=True, `folder` may be a name 'organisation/model' on the Hugging Face hub; without, nothing is
    fetched. Raises FileNotFoundError if there is no such folder, ValueError if a file is truncated, a pickle, or has
    weights of another architecture.
    """
    folder = _local(folder, download)
    config = _read_config(folder / CONFIG)
    if not (folder / WEIGHTS).exists() and any(folder.glob("checkpoint-*.safetensors")):
        raise FileNotFoundError(f"{folder} is a run of training; `minidiff export {folder}` makes a model of it.")
    tensors, about = read_tensors(folder / WEIGHTS, "Copy the folder again, or make it again with save_pretrained.")
    about = about or config
    different = [key for key in about if about[key] != config.get(key)]
    if different:
        raise ValueError(
            f"{folder / WEIGHTS} and {CONFIG} beside it belong to different models: {', '.join(different)} differ. "
            "Copy the folder again, or make it again with save_pretrained."
        )
    diffusion = build(config)
    load_weights(diffusion.network, tensors, folder / WEIGHTS)
    return diffusion.to(device or "cpu").eval()


def load(name, device=None):
    """The model of the weights that come with the package, by name: "emoji-unet", "emoji-classifier", ...

    A Diffusion, or a Classifier or TextScorer (scorers.py), float32, in eval mode.
    """
    weights = data_folder() / "weights"
    valid = sorted(file.parent.name for file in weights.glob(f"*/{CONFIG}") if "network" in _read_config(file))
    if name not in valid:
        raise unknown_name("bundled weights", name, valid)
    return from_pretrained(weights / name, device)


def read_card(name, download=False):
    """The data card of bundled weights, of a folder or, with `download`, of a model on the Hugging Face hub: a dict.

    Under "encoder" it names the text encoder (minidiff.text.ENCODERS) of a network that was trained on text.
    """
    bundled = data_folder() / "weights" / name
    folder = bundled if bundled.is_dir() and not Path(name).is_dir() else _local(name, download)
    return _read_config(folder / CONFIG).get("card", {})


def build(config):
    """An untrained Diffusion, Classifier or TextScorer from the dict that `describe` gives."""
    from minidiff.backbones import create_model  # here: the backbones are many files
    from minidiff.diffusion import Diffusion
    from minidiff.schedules import make_schedule
    from minidiff.scorers import Classifier, TextScorer
    from minidiff.text import WordTokenizer

    kind = config.get("kind", "diffusion")
    if kind not in FIELDS:
        raise unknown_name("kind of model", kind, FIELDS)
    network = create_model(config["network"]["name"], **config["network"]["arguments"])
    schedule = make_schedule(config["schedule"]["name"], **config["schedule"]["arguments"])
    rest = {field: config[field] for field in FIELDS[kind]}
    if kind == "scorer":
        return TextScorer(network, schedule, WordTokenizer(**config["tokenizer"]), **rest)
    return {"diffusion": Diffusion, "classifier": Classifier}[kind](network, schedule, **rest)


def load_weights(network, tensors, source):
    """Copy `tensors` {name: tensor} into `network`, whatever their precision.

    Raises ValueError if names or shapes differ: the first few that are missing, unexpected or of another shape, and
    `source`, where they came from.
    """
    own = network.state_dict()
    wrong = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
                             for name in own if name in tensors and tensors[name].shape != own[name].shape],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{len(names)} {what}: {_few(names)}" for what, names in wrong.items() if names)
        raise ValueError(
            f"the weights in {source} are not those of {getattr(network, 'name', type(network).__name__)} as built "
            f"here. {listed}. Build the network with the arguments that the weights were trained with."
        )
    network.load_state_dict(tensors)


def refuse_pickle(path):
    """Raise ValueError: `path` is a pickle."""
    raise ValueError(
        f"{path} is a pickle, which can run code when read. Published weights: minidiff.load_official(name, path) "
        "reads them with weights_only=True. Your own: build the Diffusion, network.load_state_dict(torch.load(path, "
        "weights_only=True)), then minidiff.save_pretrained(diffusion, folder)."
    )


def _local(folder, download):
    path = Path(folder)
    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.is_dir():
        pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
        if pickles and not (path / WEIGHTS).exists():
            refuse_pickle(pickles[0])
        return path
    hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) is not None
    if hub_name and download:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(folder), allow_patterns=[CONFIG, WEIGHTS]))
    hint = f"To fetch it from the Hugging Face hub: from_pretrained({str(folder)!r}, download=True)." if hub_name else (
        f"Give a folder with {CONFIG} and {WEIGHTS}, or for weights that come with the package minidiff.load(name).")
    raise FileNotFoundError(f"there is no folder {str(folder)!r}. {hint}")


def _read_config(path):
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}: a model is a folder with {CONFIG} and {WEIGHTS}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no JSON ({error}). Copy the folder again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is truncated or no JSON of a model ({str(config)[:40]}). Copy the folder again.")
    return config


def _cast(name, tensor, dtype):
    if dtype not in DTYPES and dtype not in DTYPES.values():
        raise ValueError(f"dtype={dtype!r}: a file can be float32, float16 or bfloat16.")
    dtype = DTYPES.get(dtype, dtype)
    if dtype is None or not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not torch.isfinite(cast).all() and torch.isfinite(tensor).all():
        largest = tensor.abs().max()
        raise ValueError(f"{name} has values up to {largest:.3g}, too large for {dtype}: use dtype='bfloat16'.")
    return cast


def _few(names, count=3):
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
