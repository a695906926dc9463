"""The registry of backbones: names of published networks -> classes and their arguments."""

import fnmatch
import inspect

from minidiff.errors import unknown_name

KINDS = ("denoiser", "upsampler", "classifier", "scorer", "generator")
_MODELS = {}  # name -> (kind, class, arguments)


def register_model(name, model, *, kind="denoiser", **arguments):
    """Give a network class with these arguments a name, so that `create_model(name)` and checkpoints can make it.

    `model` is a class whose constructor takes plain keyword arguments. Raises ValueError for a name that is taken.
    """
    if kind not in KINDS:
        raise unknown_name("kind of model", kind, KINDS)
    if name in _MODELS and _MODELS[name][1].__qualname__ != model.__qualname__:  # a notebook cell may run twice
        raise ValueError(f"the name {name!r} belongs to {_MODELS[name][1].__name__}; choose another one")
    _MODELS[name] = (kind, model, arguments)


def create_model(name, **overrides):
    """The network of this name with random weights; keyword arguments replace the published ones.

    It carries `.name` and `.arguments`, which is all that a checkpoint needs to make it again. Raises ValueError for
    an unknown name or an argument that the network does not take.
    """
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    _, model, arguments = _MODELS[name]
    defaults = {key: parameter.default for key, parameter in inspect.signature(model).parameters.items()}
    for key in overrides:
        if key not in defaults:
            raise unknown_name(f"argument of {name}", key, defaults)
    arguments = {**defaults, **arguments, **overrides}  # all of them: a default that changes must not change old files
    network = model(**arguments)
    network.name, network.arguments = name, arguments
    return network


def list_models(pattern="*", kind=None):
    """The names of all registered networks that match a pattern such as "ddpm*", sorted; of one kind if given."""
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind of model", kind, KINDS)
    return sorted(n for n, (k, _, _) in _MODELS.items() if fnmatch.fnmatch(n, pattern) and kind in (None, k))
