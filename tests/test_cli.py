"""The command line: it says what is wrong in one line, and repeats a run from its file."""

import inspect
import json
import signal
import subprocess
import sys
import time

import pytest
from averages import equal, weights

from minidiff import cli
from minidiff.commands import train
from minidiff.commands.options import Train, read_pairs
from minidiff.training import Trainer

# --- the words ------------------------------------------------------------------------------------------------------


def test_help_loads_nothing_but_torch():
    code = "import sys; from minidiff.cli import main; main(['--help']);"
    code += "print([m for m in sys.modules if m in ('tyro', 'accelerate', 'minidiff.backbones', 'minidiff.recipes')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "minidiff train NAME" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_help_of_a_recipe_has_its_own_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "uvit_cifar10", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "0.99 0.999" in text and "500000" in text


def test_options_mirror_the_trainer():
    takes = set(inspect.signature(Trainer).parameters) - {"diffusion", "dataset", "self"}
    assert takes - set(inspect.signature(Train).parameters) == {"folder", "encode", "on_step", "evaluate"}
    assert takes == {*train.TRAINER, "folder", "encode", "on_step", "evaluate", "resume"}
    defaults = inspect.signature(Trainer).parameters
    for name in ("clip", "ema", "betas", "warmup", "decay", "keep", "log_every", "batch_size", "lr", "save_every"):
        assert inspect.signature(Train).parameters[name].default == defaults[name].default, name


def test_values_of_pairs():
    words = ["depth=4", "widths=[1, 2]", "style=google", "scale=0.5", "flag=true", "none=null", "path=a=b"]
    assert read_pairs(words) == {"depth": 4, "widths": [1, 2], "style": "google", "scale": 0.5, "flag": True,
                                 "none": None, "path": "a=b"}  # fmt: skip
    with pytest.raises(ValueError, match="'depth' is not of the form KEY=VALUE"):
        read_pairs(["depth"])


def test_pairs_are_added_to_those_of_the_recipe():
    options, _ = train.parse(["emoji_tiny", "--arguments", "dropout=0.1", "--data-options", "style=google"])
    assert options.arguments == {"ch": 32, "dropout": 0.1} and options.data_options == {"style": "google"}
    options, _ = train.parse(["shapes_tiny", "--data", "emoji"])
    assert options.data_options == {}, "what suited shapes does not suit emoji"
    assert train.parse(["shapes_tiny"])[0].data_options == {"scenes": "one"}


@pytest.mark.parametrize(("words", "said"), [
    (["trian"], "unknown command 'trian'. Did you mean 'train'"),
    (["train"], "say what to train"),
    (["train", "uvit_cifar10", "--config", "x.json"], "one of both"),
    (["train", "uvit_cifar"], "Did you mean 'uvit_cifar10'"),
    (["train", "uvit_cifar10"], "--download"),
    (["train", "dit_xl_2"], "latents of ImageNet"),
    (["train", "emoji_tiny", "--data", "emojis"], "Did you mean 'emoji'"),
    (["train", "emoji_tiny", "--data", "no/such/folder"], "no such folder of pictures"),
    (["train", "emoji_tiny", "--data", "moons"], "points in the plane"),
    (["train", "emoji_tiny", "--data-options", "stile=google"], "stile='google'"),
    (["train", "emoji_tiny", "--arguments", "depht=3"], "unknown argument of ddpm_tiny 'depht'"),
    (["train", "emoji_tiny", "--schedule", "cosin"], "Did you mean 'cosine'"),
    (["train", "emoji_tiny", "--schedule-options", "step=3"], "--schedule cosine"),
    (["train", "emoji_tiny", "--smoke", "--lr", "-1"], "lr=-1.0"),
    (["train", "emoji_tiny", "--smoke", "--processes", "3"], "processes=3, but 1 is running"),
    (["train", "shapes_tiny", "--flip"], "use --no-flip"),
    (["train", "ddpm_tiny", "--arguments", "num_classes=5"], "add --labels"),
    (["train", "emoji_tiny", "--arguments", "num_classes=5"], "the data set has 10 classes"),
    (["train", "--config", "nothing.json"], "nothing.json: No such file"),
    (["sample"], "say which model"),
    (["sample", "emoji-unt"], "Did you mean 'emoji-unet'"),
    (["sample", "no/folder"], "there is no folder no/folder"),
    (["sample", "emoji-classifier"], "holds a Classifier"),
    (["sample", "emoji-unet", "--label", "12"], "0 to 9"),
    (["sample", "emoji-unet", "--prompt", "a cat"], "takes no text; choose a class"),
    (["sample", "emoji-unet", "--out", "x.jpg"], ".png file"),
    (["sample", "emoji-unet", "--sampler", "dim"], "Did you mean 'ddim'"),
    (["evaluate", "emoji-unet", "--features", "digits"], "emoji is, or none"),
    (["evaluate", "emoji-unet", "--features", "none", "--levels", "0", "0.5"], "times in (0, 1]"),
    (["evaluate", "emoji-unet", "--data", "digits", "--features", "none"], "(1, 16, 16)"),
])  # fmt: skip
def test_a_mistake_is_said_in_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIDIFF_CACHE", str(tmp_path))
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("minidiff: ") and not any("Traceback" in line for line in lines)
    assert len([line for line in lines if line.startswith("minidiff")]) == 1
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("*.safetensors"))


def test_a_word_that_is_no_option_ends_with_2():
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "emoji_tiny", "--learning-rate", "3"])
    assert stop.value.code == 2


def test_a_place_where_nobody_can_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "digits_tiny", "--smoke", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "--out" in capsys.readouterr().err
    assert "Choose a place that you may write to" in cli.said(PermissionError(13, "Permission denied", "/x"))
    assert "Make room" in cli.said(OSError(28, "No space left on device", "/x"))


def test_a_defect_shows_its_traceback(monkeypatch):
    monkeypatch.setattr(train, "main", lambda words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "emoji_tiny"])
    monkeypatch.setattr(train, "main", lambda words: int("x"))
    assert cli.main(["train", "emoji_tiny"]) == 2
    monkeypatch.setenv("MINIDIFF_DEBUG", "1")
    with pytest.raises(ValueError):
        cli.main(["train", "emoji_tiny"])


def test_messages_speak_of_options_not_of_python():
    said = cli.said(ValueError("by load_dataset('cifar10', download=True), or\n resume='changed' or resume=False."))
    assert said == "by --download, or --resume changed or --resume no."


def test_show_marks_guesses(capsys):
    assert cli.main(["train", "iuvit_cifar10", "--show"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "(guess: as U-ViT)" in lines["batch_size"] and "(guess" not in lines["steps"]
    assert "(guess" in lines["num_heads"]


def test_recipes_are_listed(capsys):
    assert cli.main(["recipes", "uvit_c"]) == 0
    out = capsys.readouterr().out
    assert "uvit_cifar10" in out and "500,000" in out and "ddpm" not in out


# --- training -------------------------------------------------------------------------------------------------------


def test_a_run_is_repeated_from_its_config(digits_run, tmp_path):
    config = json.loads((digits_run / "config.json").read_text())
    assert config["arguments"]["num_classes"] == 10 and config["arguments"]["in_channels"] == 1
    assert config["data"] == "digits" and "out" not in config and config["p_uncond"] == 0.2
    assert cli.main(["train", "--config", str(digits_run / "config.json"), "--out", str(tmp_path / "again")]) == 0
    assert equal(weights(digits_run), weights(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config
    (tmp_path / "edited.json").write_text(json.dumps(config | {"seed": 1}))
    assert cli.main(["train", "--config", str(tmp_path / "edited.json"), "--out", str(tmp_path / "edited")]) == 0
    assert not equal(weights(digits_run), weights(tmp_path / "edited"))


def test_a_repetition_has_a_folder_of_its_own(digits_run):
    file = str(digits_run / "config.json")
    places = [train.parse(["--config", file, *more])[0].out for more in ([], [], ["--lr", "1"])]
    assert places[0] == places[1] != places[2] and str(digits_run) not in places


@pytest.mark.parametrize(("change", "said"), [
    ({"stepps": 3}, "unknown option in .*'stepps'. Did you mean 'steps'"),
    ({"steps": "many"}, "steps='many', expected int"), ({"lr": None}, "lr=None, expected float"),
    ({"flip": 1}, "flip=1"), ({"betas": [0.9, "x"]}, "betas"), ({"decay": "cubic"}, "decay='cubic'"),
])  # fmt: skip
def test_an_edited_config_is_checked(digits_run, tmp_path, change, said):
    config = json.loads((digits_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=said):
        train.from_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        train.from_config(tmp_path / "config.json")


def test_another_run_in_the_same_folder_leaves_it_alone(digits_run, capsys):
    before = (digits_run / "config.json").read_text()
    words = ["train", "--config", str(digits_run / "config.json"), "--lr", "0.5", "--out", str(digits_run)]
    assert cli.main(words) == 2
    assert "--resume changed" in capsys.readouterr().err and (digits_run / "config.json").read_text() == before
    words = ["train", "--config", str(digits_run / "config.json"), "--out", str(digits_run)]
    assert cli.main(words) == 0  # it is at its end


def test_two_processes_train_what_one_does(tmp_path):
    words = ["train", "digits_tiny", "--smoke", "--steps", "4", "--out"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minidiff",
               *words, str(tmp_path / "two"), "--processes", "2"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("digits_tiny:") == 1, "both processes printed"
    assert cli.main([*words, str(tmp_path / "one")]) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((one[key] - two[key]).abs().max() for key in one) < 1e-5


def test_a_reader_who_has_read_enough_is_no_mistake():
    listing = subprocess.Popen([sys.executable, "-m", "minidiff", "train", "ascend_t2i_128", "--show"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    listing.stdout.close()
    assert listing.stderr.read() == "" and listing.wait() == 0


def hear_interrupts():
    """What was started in the background, as these tests may have been, ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path):
    words = [sys.executable, "-m", "minidiff", "train", "digits_tiny", "--smoke", "--steps", "1000000"]
    words += ["--save-every", "5", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=hear_interrupts)  # fmt: skip
    for _ in range(600):
        if list((tmp_path / "run").glob("checkpoint-*.safetensors")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-2000:]
    assert said.strip().splitlines()[-1].endswith("the same command goes on from the last checkpoint.")
    assert "Traceback" not in said and (tmp_path / "run" / "config.json").exists()


def test_python_m_minidiff():
    done = subprocess.run([sys.executable, "-m", "minidiff", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip()[0].isdigit()
