"""Sharing a model: its card, a folder that anybody can load, and that folder on the Hugging Face hub.

What leaves this machine is a list of files written down here, and nothing else: no checkpoint, no path of this machine,
no password. `model_card` and `save_shared` take such things out of the card, `push` looks once more and refuses.
"""

import re
from pathlib import Path

from minidiff.checkpoints import CONFIG, WEIGHTS, save_pretrained
from minidiff.model_card import NAME, PLACES, SECRETS, clean_text, cleaned, draws_alone, model_card
from minidiff.safe_files import write_text

README, SAMPLES = "README.md", "samples.png"
# What a shared folder may hold, of ours and of official.diffusers; pictures besides.
FILES = (
    CONFIG, WEIGHTS, README, "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)  # fmt: skip


def save_shared(diffusion, folder, card=None, pictures=None, dtype=None):
    """Write what to share to `folder`: config.json, model.safetensors, README.md and samples.png.

    pictures  images (N, C, H, W) in [-1, 1]; None draws 16 (50 steps, all classes), where the network needs no text
              and no decoder; False leaves them out
    dtype     of the weights, see save_pretrained
    Returns the folder. Nothing leaves this machine before `push`.
    """
    from minidiff.images import save_grid

    folder, text = Path(folder), model_card(diffusion, card)
    if pictures is None and draws_alone(diffusion):
        pictures = _draw(diffusion)
    if pictures is not None and pictures is not False:
        save_grid(pictures, folder / SAMPLES)
        text = text.replace("## Training", f"![Pictures that this model made]({SAMPLES})\n\n## Training", 1)
    save_pretrained(diffusion, folder, cleaned(card or {}), dtype)
    write_text(folder / README, text)
    return folder


def _draw(diffusion, count=16):
    """Pictures by DDIM in 50 steps, of all classes in turn."""
    from minidiff.samplers import sample

    classes = getattr(diffusion.network, "num_classes", 0)
    steps = min(50, diffusion.schedule.steps or 50)
    return sample(diffusion, count, y=[k % classes for k in range(count)] if classes else None, steps=steps)


def push(folder, repo, private=True):
    """Upload a folder of `save_shared` or `export_diffusers` to the hub as `repo`, "organisation/model"; its address.

    The repository is made if there is none, private by default. README.md gets the name of the repository. Uploads
    config, weights, README.md and .png files; any other file in the folder is an error, and nothing is uploaded then.
    Needs a token that may write: `hf auth login`, or the variable HF_TOKEN. Raises ValueError for a folder or name
    that does not fit and for a repository that is public when private was asked for (or the reverse),
    PermissionError without a valid token, ConnectionError without network.
    """
    import huggingface_hub

    folder = Path(folder)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(repo)):
        raise ValueError(f"repo={repo!r} must be 'organisation/model', or 'your-name/model'.")
    files = check_shared(folder)
    if huggingface_hub.get_token() is None:
        raise PermissionError(
            f"no token of the Hugging Face hub was found, so nothing was uploaded to {repo}. Make one that may write "
            "at https://huggingface.co/settings/tokens, then run `hf auth login`, or set the variable HF_TOKEN."
        )
    readme = folder / README
    if NAME in (text := readme.read_text(encoding="utf-8")):
        write_text(readme, text.replace(NAME, repo))
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        if bool(api.model_info(repo).private) != private:  # an old repository keeps who may see it
            there, wanted = ("public", "private") if private else ("private", "public")
            raise ValueError(
                f"{repo} exists and is {there}, not {wanted}; nothing was uploaded. Call push(..., private="
                f"{not private}), change it in the settings of the repository, or give another name."
            )
        api.upload_folder(
            repo_id=repo, folder_path=str(folder), repo_type="model", allow_patterns=files,
            commit_message="Upload a model of minidiff",
        )  # fmt: skip
    except OSError as error:
        raise _explained(error, repo) from error
    except Exception as error:  # what carries the requests has errors of its own, and their classes change their homes
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            raise
        raise _explained(error, repo) from error
    return f"https://huggingface.co/{repo}"


# --- what may leave this machine --------------------------------------------------------------------------------------


def check_shared(folder):
    """The names of the files of a folder to share, sorted. ValueError if anything in it should stay on this machine."""
    folder = Path(folder)
    if not (folder / README).is_file():
        raise ValueError(
            f"{folder} holds no {README}: make the folder with minidiff.sharing.save_shared, or write the text of "
            "minidiff.sharing.model_card there."
        )
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in found]
    strange = [
        name for path, name in zip(found, names)
        if path.is_symlink() or name not in FILES and not ("/" not in name and name.endswith(".png"))
    ]  # fmt: skip
    if strange:
        raise ValueError(
            f"{folder} holds {', '.join(strange[:5])}{' and more' * (len(strange) > 5)}: only config, weights, "
            f"{README} and .png files are uploaded, no checkpoint or log. Move them away, or use save_shared again."
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{folder} holds no weights: make the folder with minidiff.sharing.save_shared.")
    for path, name in zip(found, names):
        _check_content(path, name)
    return names


def _check_content(path, name):
    from safetensors import safe_open

    if name.endswith(".png"):
        if path.read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"{path} is no PNG picture, whatever its name: move it away.")
        return
    text = path.read_text(encoding="utf-8") if not name.endswith(".safetensors") else ""
    if name.endswith(".safetensors"):
        with safe_open(path, framework="pt") as file:
            training = [key for key in file.keys() if key.split("/")[0] in ("optimizer", "ema", "model", "history")]
            text = "\n".join((file.metadata() or {}).values())
        if training:
            raise ValueError(f"{path} is a checkpoint of a run ({training[0]}, ...): share its averages.")
    private = [found.group() for found in SECRETS.finditer(text)]
    if private:  # the message must not repeat it
        raise ValueError(f"{path} holds what looks like a token or password ({private[0][:3]}...): take it out.")
    paths = [found["path"] for found in PLACES.finditer(text) if found["path"]]
    if paths:
        raise ValueError(f"{path} names a path of this machine, {paths[0]!r}: take it out, or make it by save_shared.")


def _explained(error, repo):
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code in (401, 403):
        return PermissionError(
            f"the hub refused the token for {repo} (status {code}): it must be valid, may write, and belong to a "
            f"member of {repo.split('/')[0]}. Make another at https://huggingface.co/settings/tokens, then log in."
        )
    if code is not None:
        return RuntimeError(f"the hub answered with status {code}; {repo} may be incomplete: {clean_text(str(error))}")
    if isinstance(error, PermissionError):
        return error
    reason = clean_text(str(error)).splitlines() or [type(error).__name__]
    return ConnectionError(
        f"the Hugging Face hub could not be reached for {repo} ({reason[0]}). The folder is whole on this machine: "
        "call push again when there is a network (and HF_HUB_OFFLINE is not set)."
    )
