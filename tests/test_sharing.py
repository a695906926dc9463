"""Model cards and shared folders: what they say, what they must not say, and what may be uploaded."""

import json

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from PIL import Image

from minidiff import Diffusion, create_model, from_pretrained, load, schedules
from minidiff.checkpoints import read_card, save_pretrained
from minidiff.model_card import clean_text, cleaned
from minidiff.official.diffusers import export_diffusers
from minidiff.safe_files import write_tensors
from minidiff.sharing import check_shared, model_card, push, save_shared

TOKEN = "hf_" + "aBcDeF0123456789" * 2
CARD = {
    "dataset": {"name": "cats", "path": "/home/anna/pictures/cats", "split": "train"}, "licence": "CC-BY-4.0",
    "steps": 12000, "seconds": 5302, "device": "cpu, 2 cores", "loss": 0.125, "wandb_api_key": "0123456789abcdef",
    "command": f"train --out ~/runs/one --data C:\\Users\\anna\\cats --token {TOKEN}", "limits": "Cats only.",
    "training": {"batch_size": 64, "lr": 0.001, "folder": "/scratch/anna/run7", "hf_token": TOKEN},
}  # fmt: skip


def model(**options):
    torch.manual_seed(0)
    return Diffusion(create_model("ddpm_test", **options), schedules.cosine(), "v", shape=(3, 8, 8)).eval()


def front_matter(text):
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def test_a_card_says_what_the_model_is_and_how_it_was_trained():
    about, text = front_matter(model_card(model(num_classes=3), CARD))
    assert about["license"] == "cc-by-4.0" and about["library_name"] == "minidiff" and about["datasets"] == ["cats"]
    assert "diffusion" in about["tags"] and "pipeline_tag" not in about  # classes are asked for
    count = sum(weight.numel() for weight in model(num_classes=3).network.parameters())
    for fact in ("ddpm_test", f"{count:,} weights", "8 x 8 pixels", "a class from 0 to 2, or 3 for none",
                 "cosine(steps", "| Steps | 12,000 |", "| Batch | 64 |", "| Time | 1 h 28 min |",
                 "cpu, 2 cores", "0.125", "lr=0.001", "CC-BY-4.0", "Cats only. It makes"):  # fmt: skip
        assert fact in text, fact


def test_a_card_of_a_model_that_nobody_wrote_about():
    about, text = front_matter(model_card(model()))
    assert about["license"] == "other" and about["license_name"] and "datasets" not in about
    assert about["pipeline_tag"] == "unconditional-image-generation"
    assert "How it was trained was not written down." in text and "Not written down. Ask who shares" in text
    _, text = front_matter(model_card(model(), {"steps": 5}))
    assert "Not written down: data, batch, time, device." in text


def test_weights_may_have_a_licence_of_their_own():
    about, text = front_matter(model_card(model(), {"licence": "MIT", "weights_licence": "Apache-2.0"}))
    assert about["license"] == "apache-2.0" and "MIT." in text and "The weights: Apache-2.0." in text


@pytest.mark.parametrize("name", ["emoji-unet", "shapes-unet"])
def test_bundled_models_have_cards_whose_code_runs(tmp_path, monkeypatch, name):
    """The five lines of the card, as a reader would run them once the folder is there."""
    text = model_card(load(name), read_card(name))
    code = text.split("```python\n")[1].split("```")[0].replace("steps=50", "steps=2")
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    monkeypatch.setattr("minidiff.from_pretrained", lambda folder, download: load(name))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert Image.open(tmp_path / "samples.png").width > 100
    assert name.split("-")[0] in front_matter(text)[0]["datasets"]


def test_nothing_private_is_in_what_is_shared(tmp_path):
    save_shared(model(), tmp_path / "share", CARD, pictures=False)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "share").iterdir()).decode(errors="ignore")
    for private in (TOKEN, "0123456789abcdef", "/home", "anna", "/scratch", "~/runs", "C:\\", str(tmp_path)):
        assert private not in everything, private
    card = json.loads((tmp_path / "share" / "config.json").read_text())["card"]
    assert card["dataset"]["path"] == "cats" and card["command"] == "train --out one --data cats --token [removed]"
    assert check_shared(tmp_path / "share") == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("text", [
    "see https://example.org/a/b and arXiv/2006", "either/or, 3 / 4, a -> b", "tokens=77, class_token=True",
    "a token of it",
])  # fmt: skip
def test_what_is_not_private_stays(text):
    assert clean_text(text) == text


@pytest.mark.parametrize("text, clean", [
    ("data=/data/me/cats.tar", "data=cats.tar"), ("(/tmp/x/)", "(x)"), ("file:///home/a/b", "b"), ("~anna/c", "c"),
    ("D:/cats/small", "small"), ("https://me:pass1234@host/x", "https://[removed]@host/x"), (TOKEN, "[removed]"),
    ("HF_TOKEN=abcdefgh run", "HF_TOKEN=[removed] run"), ("\\\\server\\share\\cats", "cats"),
])  # fmt: skip
def test_paths_and_passwords_go(text, clean):
    assert clean_text(text) == clean == clean_text(clean)
    assert cleaned({"a": [text], "password": text}) == {"a": [clean]}


def test_a_shared_folder_is_a_model_with_pictures(tmp_path):
    ours = model(num_classes=3)
    assert save_shared(ours, tmp_path, CARD) == tmp_path
    assert check_shared(tmp_path) == ["README.md", "config.json", "model.safetensors", "samples.png"]
    back = from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(back.network.parameters(), ours.network.parameters(), strict=True))
    assert "](samples.png)" in (tmp_path / "README.md").read_text() and Image.open(tmp_path / "samples.png").width > 200
    save_shared(ours, tmp_path, CARD, pictures=torch.zeros(1, 3, 8, 8), dtype="float16")
    assert Image.open(tmp_path / "samples.png").size == (64, 64)


def test_models_that_need_text_or_a_decoder_get_no_pictures_by_themselves(tmp_path):
    text = create_model("uvit_test", text_dim=8, num_text_tokens=4)
    save_shared(Diffusion(text, schedules.linear(), shape=(3, 8, 8)), tmp_path / "text")
    assert front_matter((tmp_path / "text" / "README.md").read_text())[0]["pipeline_tag"] == "text-to-image"
    latent = Diffusion(create_model("ddpm_test"), schedules.linear(), shape=(3, 8, 8), latents=0.5)
    save_shared(latent, tmp_path / "latent")
    for kind in ("text", "latent"):
        assert check_shared(tmp_path / kind) == ["README.md", "config.json", "model.safetensors"]
        assert "samples.png)" not in (tmp_path / kind / "README.md").read_text().split("## Use")[0]


# --- upload -----------------------------------------------------------------------------------------------------------


class Hub:
    """A stand-in for HfApi that writes down what it is asked for."""

    def __init__(self, private=True, fails=None):
        self.private, self.fails, self.calls = private, fails, []

    def __call__(self):
        return self

    def create_repo(self, repo, **options):
        self.calls.append(("create_repo", repo, options))
        if self.fails:
            raise self.fails

    def model_info(self, repo):
        return type("Info", (), {"private": self.private})

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch):
    def use(token="hf_x", **options):
        hub = Hub(**options)
        monkeypatch.setattr(huggingface_hub, "HfApi", hub)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        return hub

    return use


@pytest.fixture
def shared(tmp_path):
    return save_shared(model(), tmp_path / "share", CARD, pictures=torch.zeros(1, 3, 8, 8))


def test_push_makes_a_private_repository_and_uploads_what_is_listed(shared, hub):
    hub = hub()
    assert push(shared, "me/cats") == "https://huggingface.co/me/cats"
    (made, name, options), (sent, upload) = hub.calls
    assert (made, name, options["private"], options["exist_ok"]) == ("create_repo", "me/cats", True, True)
    assert sent == "upload_folder" and upload["folder_path"] == str(shared) and upload["repo_id"] == "me/cats"
    assert upload["allow_patterns"] == ["README.md", "config.json", "model.safetensors", "samples.png"]
    assert 'from_pretrained("me/cats", download=True)' in (shared / "README.md").read_text()
    assert "organisation/model" not in (shared / "README.md").read_text()


@pytest.mark.parametrize("private", [True, False])
def test_push_uploads_nothing_where_others_see_it_against_the_will(shared, hub, private):
    hub = hub(private=not private)
    with pytest.raises(ValueError, match=f"exists and is {'public' if private else 'private'}.*nothing was uploaded"):
        push(shared, "me/cats", private=private)
    assert [call[0] for call in hub.calls] == ["create_repo"]


@pytest.mark.parametrize("name", [
    "checkpoint-00001000.safetensors", "log.csv", "optimizer.pt", "runs/checkpoint.safetensors", ".env", "x/y.png",
])  # fmt: skip
def test_push_refuses_whatever_else_lies_there(shared, hub, name):
    hub = hub()
    (shared / name).parent.mkdir(exist_ok=True)
    (shared / name).write_text("x")
    with pytest.raises(ValueError, match=f"{name}.*only config, weights"):
        push(shared, "me/cats")
    assert not hub.calls


def test_push_looks_into_the_files(shared, hub, tmp_path):
    hub, readme = hub(), (shared / "README.md").read_text()
    private = {f"my {TOKEN}": "README.md holds what looks like a token", "in /home/anna/x": "'/home/anna/x'"}
    for text, message in private.items():
        (shared / "README.md").write_text(readme + text)
        with pytest.raises(ValueError, match=message) as caught:
            push(shared, "me/cats")
        assert TOKEN not in str(caught.value)
    (shared / "README.md").write_text(readme)
    (shared / "samples.png").write_text("no picture")
    with pytest.raises(ValueError, match="no PNG picture"):
        push(shared, "me/cats")
    (shared / "samples.png").unlink()
    write_tensors(shared / "model.safetensors", {"optimizer/w/exp_avg": torch.zeros(2)}, None)
    with pytest.raises(ValueError, match="checkpoint of a run"):
        push(shared, "me/cats")
    (shared / "model.safetensors").unlink()
    (shared / "model.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="model.safetensors.*only config"):
        push(shared, "me/cats")
    assert not hub.calls
    with pytest.raises(ValueError, match="no README.md.*save_shared"):
        push(tmp_path / "nowhere", "me/cats")


def test_weights_that_name_a_path_are_refused(shared, hub):
    hub()
    write_tensors(shared / "model.safetensors", {"w": torch.zeros(2)}, {"network": {"encoder": "/home/anna/t5"}})
    with pytest.raises(ValueError, match="model.safetensors names a path of this machine, '/home/anna/t5"):
        push(shared, "me/cats")


def test_a_folder_for_diffusers_can_be_pushed(tmp_path, hub):
    hub = hub()
    export_diffusers(model(), tmp_path)
    (tmp_path / "README.md").write_text(model_card(model()))
    push(tmp_path, "me/cats")
    assert "unet/diffusion_pytorch_model.safetensors" in hub.calls[1][1]["allow_patterns"]


@pytest.mark.parametrize("repo", ["cats", "me/cats/x", "", "../cats", "me/ca ts"])
def test_push_wants_a_whole_name(shared, hub, repo):
    hub = hub()
    with pytest.raises(ValueError, match="organisation/model"):
        push(shared, repo)
    assert not hub.calls


def test_push_without_a_token_says_how_to_get_one(shared, hub):
    hub = hub(token=None)
    with pytest.raises(PermissionError, match="no token.*hf auth login.*HF_TOKEN"):
        push(shared, "me/cats")
    assert not hub.calls


def answer(code):
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{code} Client Error")
    error.response = type("Response", (), {"status_code": code})()
    return error


class ConnectError(Exception):
    """As the library names it that carries the requests, which is no OSError."""

    __module__ = "httpx"


@pytest.mark.parametrize("fails, kind, message", [
    (ConnectError("no route"), ConnectionError, "could not be reached.*no route"),
    (answer(401), PermissionError, "refused the token for me/cats .status 401"), (answer(500), RuntimeError, "500"),
    (OfflineModeIsEnabled("offline"), ConnectionError, "could not be reached.*again"),
    (OSError("Name or service not known"), ConnectionError, "could not be reached.*Name or service"),
    (KeyError("a mistake of ours"), KeyError, "a mistake"),
])  # fmt: skip
def test_push_explains_failures(shared, hub, fails, kind, message):
    hub(fails=fails)
    with pytest.raises(kind, match=message):
        push(shared, "me/cats")


def test_push_without_network_really(shared, monkeypatch):
    """The hub's own client, told to stay offline as in all tests."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="could not be reached for me/cats"):
        push(shared, "me/cats")


def test_a_folder_that_was_saved_without_a_card_is_refused(tmp_path):
    save_pretrained(model(), tmp_path)
    with pytest.raises(ValueError, match="no README.md.*model_card"):
        check_shared(tmp_path)
