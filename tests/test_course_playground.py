"""The playground: what it draws and says, by a plain call, by its controls, and as a notebook stores it."""

import warnings

import pytest
import torch

from minidiff import create_model, schedules
from minidiff.course.playground import playground
from minidiff.diffusion import Diffusion
from minidiff.pipeline import TextToImage
from minidiff.samplers import SAMPLERS
from minidiff.text import text_encoder

NOTEBOOK = [
    """
import os
os.environ["MINIDIFF_STATIC"] = "0"
os.environ.pop("MINIDIFF_TIER", None)
from test_course_playground import made
from minidiff.course.playground import playground
pipe = made()""",
    "play = playground(pipe, steps=2, n=2)\nplay",
    "play.controls['prompt'].value = 'a blue cross'\nplay.controls['draw'].click()",
    "os.environ['MINIDIFF_STATIC'] = '1'\nplayground(pipe, 'a blue cross', steps=2, n=2)",
    "os.environ['MINIDIFF_STATIC'] = '0'\nbroken = playground(pipe, steps=2, n=2)\nbroken",
    "broken.controls['negative'].value = 'blue'\nbroken.controls['guidance'].value = 1\n"
    "broken.controls['draw'].click()",
]


def made():
    """A pipeline whose pictures depend on their prompt, with random weights."""
    encoder = text_encoder("words")
    torch.manual_seed(0)
    network = create_model("ascend_test", text_dim=encoder.dim, pooled_dim=encoder.pooled_dim)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    return TextToImage(Diffusion(network.eval(), schedules.cosine(), "v", shape=(3, 8, 8)), encoder)


@pytest.fixture(scope="module")
def pipe():
    return made()


@pytest.fixture
def still(monkeypatch):
    monkeypatch.setenv("MINIDIFF_STATIC", "1")


@pytest.fixture
def live(monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setenv("MINIDIFF_STATIC", "0")


def press_enter(box):
    box._handle_custom_msg({"event": "submit"}, [])  # what the browser sends


def drawn_by(play, pipe):
    """Whether the call that it shows gives the pictures that it shows, in a cell."""
    images = eval(play.call.replace("n=", "output='tensor', progress=False, n=", 1), {"pipe": pipe})
    return torch.equal(images, play.images)


def test_without_widgets_it_draws_once_and_says_how(still, pipe, capsys):
    play = playground(pipe, steps=2)
    assert play.call == (
        'pipe("a red circle above a blue square", n=4, guidance=4.0, sampler="dpmpp_2m", steps=2, seed=0)'
    )
    assert play.images.shape == (4, 3, 8, 8) and drawn_by(play, pipe) and play.controls == {} and play.notes == []
    assert play.result.axes and not capsys.readouterr().err  # a figure, and no progress bar
    play = playground(pipe, 'a "red"\nçircle', negative="blue", sampler="ddim", guidance=2, steps=3, seed=5, n=1)
    assert play.call == (
        r'pipe("a \"red\"\nçircle", negative="blue", n=1, guidance=2, sampler="ddim", steps=3, seed=5)'
    )
    assert play.images.shape == (1, 3, 8, 8) and drawn_by(play, pipe)


def test_the_first_values_are_checked_where_they_are_typed(still, pipe):
    with pytest.raises(ValueError, match="unknown sampler 'dim'. Did you mean 'ddim'"):
        playground(pipe, sampler="dim")
    with pytest.raises(ValueError, match="n must be a whole number"):
        playground(pipe, n=0)


def test_warnings_become_notes_that_do_not_break_the_code(still, pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play = playground(pipe, "a red circle " * 20, steps=2, n=1)
    assert len(play.notes) == 1 and "were cut" in play.notes[0]
    (_, _), (text, _) = play._shown()
    code, note = text["text/plain"].split("\n")
    assert code == play.call and note.startswith("# 1 of 1 prompts are longer")


def test_nothing_is_drawn_before_the_button(live, pipe):
    play = playground(pipe, steps=2, n=1)
    kinds = {name: type(widget).__name__ for name, widget in play.controls.items()}
    assert kinds == {"prompt": "Text", "negative": "Text", "guidance": "FloatSlider", "sampler": "Dropdown",
                     "steps": "IntSlider", "seed": "BoundedIntText", "draw": "Button"}  # fmt: skip
    assert play.controls["sampler"].options == tuple(SAMPLERS)
    before, first = play.call, play.images
    new = dict(prompt="a green cross", negative="blue", guidance=2.5, sampler="heun", steps=3, seed=7)
    for name, value in new.items():
        play.controls[name].value = value
    assert play.call == before and play.images is first
    play.controls["draw"].click()
    assert play.values == new and drawn_by(play, pipe) and not torch.equal(play.images, first)
    assert play.call == (
        'pipe("a green cross", negative="blue", n=1, guidance=2.5, sampler="heun", steps=3, seed=7)'
    )


@pytest.mark.parametrize("name", ["prompt", "negative"])
def test_enter_draws_too(live, pipe, name):
    play = playground(pipe, steps=2, n=1)
    play.controls[name].value = "a yellow triangle"
    press_enter(play.controls[name])
    assert play.values[name] == "a yellow triangle" and drawn_by(play, pipe)
    play.controls["prompt"].value = "a red cross"
    play.controls["prompt"]._handle_custom_msg({"event": "something"}, [])
    assert play.values["prompt"] != "a red cross"


def test_what_fails_is_said_and_can_be_mended(live, pipe, capsys):
    play = playground(pipe, steps=2, n=1)
    play.controls["negative"].value = "blue"
    play.controls["guidance"].value = 1.0
    play.controls["draw"].click()
    assert play.result.startswith("ValueError: negative: a change of classifier-free guidance, and guidance=1 is none")
    assert play.images is None and 'negative="blue"' in play.call
    assert not play.controls["draw"].disabled and play.controls["draw"].description == "Draw"
    play.controls["guidance"].value = 3.0
    play.controls["draw"].click()
    assert drawn_by(play, pipe) and not isinstance(play.result, str) and not capsys.readouterr().err


def test_the_button_waits_while_it_draws(live, pipe, monkeypatch):
    play, seen = playground(pipe, steps=2, n=1), []

    def look(**given):
        seen.append((play.controls["draw"].disabled, play.controls["draw"].description))
        raise MemoryError("no memory is left")

    play.pipe = look
    play.controls["draw"].click()
    assert seen == [(True, "Drawing ...")] and play.result == "MemoryError: no memory is left"
    assert not play.controls["draw"].disabled


def test_sliders_reach_to_where_they_begin(live, pipe):
    play = playground(pipe, steps=130, guidance=20, n=1, sampler="ddim")
    assert play.controls["steps"].max == 130 and play.controls["guidance"].max == 20


def test_a_notebook_stores_pictures_and_text(monkeypatch, root):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel would inherit it, and show no figure
    monkeypatch.setenv("PYTHONPATH", str(root / "tests"))
    for name in ("MINIDIFF_TIER", "CI"):
        monkeypatch.delenv(name, raising=False)
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipywidgets")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in NOTEBOOK])
    nbclient.NotebookClient(nb, timeout=120, kernel_name="python3", store_widget_state=False).execute()
    assert "widgets" not in nb.metadata
    data = [[o.data for o in cell.outputs if "data" in o] for cell in nb.cells]
    widget = "application/vnd.jupyter.widget-view+json"
    assert [[next(k for k in (widget, "image/png", "text/plain") if k in o) for o in cell] for cell in data] == [
        [], [widget, "image/png", "text/plain"], [], ["image/png", "text/plain"], [widget, "text/plain", "text/plain"],
        [],
    ]  # fmt: skip
    (_, moved, said), (plain, call) = data[1], data[3]
    assert moved["image/png"] == plain["image/png"] and said == call  # what is stored is what was drawn last
    assert call["text/plain"].startswith('pipe("a blue cross", n=2, guidance=4.0')
    assert data[4][1]["text/plain"].startswith("ValueError: ") and 'negative="blue"' in data[4][2]["text/plain"]
