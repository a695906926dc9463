"""`load_official`: published weights of the official repositories, as a Diffusion that samples as they do.

Each family of official code has a file in this folder: MODEL, one of our names for its network; `arguments(config)`,
the arguments of its constructor in ours; `convert(state, arguments)`, its state dict in ours; and RELEASED, for each of
our names whose weights were published what they were trained with. Files of a network that differs from a named one by
a few arguments have a name of their own there, and under "network" ours and those arguments.
"""

import pickle  # for the name of its error only
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import torch

from minidiff.checkpoints import PICKLES, load_weights
from minidiff.errors import unknown_name
from minidiff.safe_files import read_tensors

# The family of the official code -> its file here
FAMILIES = {
    "diffusers_unet2d": "ddpm", "ddpm_tf": "ddpm", "uvit": "uvit", "dit": "dit", "sit": "sit", "genvit": "genvit",
    "improved_diffusion": "adm", "guided_diffusion": "adm", "glide": "adm", "edm_adm": "edm_adm",
    "guided_diffusion_classifier": "adm_classifier", "diffit_latent": "diffit",
    "score_sde": "ncsnpp", "edm": "ncsnpp", "hit": "hit",
}  # fmt: skip


def released():
    """What was published: our name -> (family, what it was trained with)."""
    files = dict.fromkeys(FAMILIES.values())
    return {name: (file, trained) for file in files for name, trained in _key_map(file).RELEASED.items()}


def load_official(name, path, device=None):
    """The Diffusion of published weights, for a classifier the Classifier: `name` in `released()`, `path` the file.

    `path` may be the folder that it was downloaded as.

    ddpm_*: google/ddpm-cifar10-32 and google/ddpm-{cat,church,bedroom,celebahq}-256 of the Hugging Face hub.
    All other names: the files of their repositories; EDM's are programs, and official/ncsnpp.py says how to take the
    weights out. Schedule, prediction, time and the scale of latents
    are those of the training. Reads safetensors, and anything else with weights_only=True. Raises ValueError for a
    truncated file or weights of another architecture.
    """
    from minidiff.backbones import create_model

    known = released()
    if name not in known:
        raise unknown_name("published weights", name, known)
    file, trained = known[name]
    ours, changes = trained.get("network", (name, {}))
    path, network = _weights_file(path), create_model(ours, **changes)
    load_weights(network, _key_map(file).convert(_read_official(path), network.arguments), path)
    return tie(network, trained).to(device or "cpu").eval()


def tie(network, trained):
    """The Diffusion or Classifier of a network and what it was `trained` with, see `released()`."""
    from minidiff.diffusion import Diffusion
    from minidiff.schedules import make_schedule
    from minidiff.scorers import Classifier

    options = {"shape": getattr(network, "shape", None), **trained}
    name, arguments = options.pop("schedule")
    options.pop("network", None)
    model = {"diffusion": Diffusion, "classifier": Classifier}[options.pop("kind", "diffusion")]
    return model(network, make_schedule(name, **arguments), **options)


def from_official(family, state, config):
    """Our network for an official `config` (dict), with the official weights `state` {name: tensor}, in eval mode.

    config: the arguments of the official constructor. Raises ValueError for an unknown family, for an argument that
    ours has no equal of, and for weights that do not fit.
    """
    from minidiff.backbones import create_model

    if family not in FAMILIES:
        raise unknown_name("family of official weights", family, FAMILIES)
    key_map = _key_map(FAMILIES[family])
    network = create_model(key_map.MODEL, **key_map.arguments(config))
    state = {name: torch.as_tensor(value) for name, value in state.items()}
    load_weights(network, key_map.convert(state, network.arguments), family)
    return network.eval()


def _key_map(file):
    return import_module(f"minidiff.official.{file}")


def _weights_file(path):
    path = Path(path)
    if not path.is_dir():
        return path
    names = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    for place in (folder / name for folder in (path, path / "unet") for name in names):
        if place.is_file():
            return place
    raise FileNotFoundError(f"the folder {path} holds neither {' nor '.join(names)}: give the file itself.")


def _read_official(path):
    advice = "Download it again."
    if path.suffix not in PICKLES:
        return read_tensors(path, advice)[0]
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}. {advice}")
    try:
        with torch.serialization.safe_globals([Namespace]):  # plain settings, which DiT's training script keeps there
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is truncated, or holds more than tensors ({reason}). {advice}") from error
