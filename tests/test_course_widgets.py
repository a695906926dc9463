"""Sliders: plain cells without a front end, callbacks that fire from Python, outputs that are read without widgets."""

import pytest

from minidiff.course import widgets

NOTEBOOK = [
    """
import os
os.environ["MINIDIFF_STATIC"] = "0"
os.environ.pop("MINIDIFF_TIER", None)
import torch
from minidiff.course import plots, setup, widgets
run = setup()""",
    "figure = plots.grid(torch.zeros(2, 3, 4, 4))",  # shows nothing
    "plots.grid(torch.zeros(2, 3, 4, 4))",  # shows one picture
    "film = plots.animation(torch.rand(5, 2, 3, 4, 4))\nfilm",
    "def show(steps=2, seed=0):\n    return plots.grid(torch.full((steps, 3, 4, 4), -1.0))\n"
    "explorer = widgets.explore(show, steps=[1, 2, 3], seed=range(3))\nexplorer",
    "explorer.sliders['steps'].value = 3\nassert explorer.values == {'steps': 3, 'seed': 0}",
    "os.environ['MINIDIFF_STATIC'] = '1'\nwidgets.explore(show, steps=[1, 2, 3])",
]


@pytest.fixture
def live(monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setenv("MINIDIFF_STATIC", "0")


def test_static_calls_once_with_the_defaults(monkeypatch):
    monkeypatch.setenv("MINIDIFF_STATIC", "1")
    calls = []

    def show(steps, seed=3, guided=True):
        calls.append((steps, seed, guided))
        return "picture"

    explorer = widgets.explore(show, steps=[5, 10], seed=range(5), guided=False)
    assert calls == [(5, 3, True)] and explorer.result == "picture" and explorer.sliders == {}
    explorer = widgets.explore(show, steps=[5, 10], seed=range(2))
    assert calls[1] == (5, 0, True)  # a default that is not among the choices gives way to the first of them


def test_when_sliders_are_left_out(monkeypatch):
    for name in ("MINIDIFF_STATIC", "MINIDIFF_TIER", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(widgets.sys.modules, "ipykernel", widgets)
    monkeypatch.setattr(widgets.importlib.util, "find_spec", lambda name: name if live else None)
    for live in (True, False):
        assert widgets.static() is not live
    live = True
    for name, value in (("MINIDIFF_STATIC", "1"), ("MINIDIFF_TIER", "smoke"), ("CI", "true")):
        monkeypatch.setenv(name, value)
        assert widgets.static()
        monkeypatch.delenv(name)
    monkeypatch.delitem(widgets.sys.modules, "ipykernel")
    assert widgets.static()


def test_sliders_call_the_function(live):
    def show(steps=10, method="ddim", clip=True):
        if steps == 50:
            raise ValueError("too many")
        return steps, method, clip

    explorer = widgets.explore(show, steps=[5, 10, 50], method=["ddpm", "ddim"], clip=True)
    assert explorer.result == (10, "ddim", True)
    kinds = [type(slider).__name__ for slider in explorer.sliders.values()]
    assert kinds == ["SelectionSlider", "Dropdown", "Checkbox"]
    explorer.sliders["steps"].value = 5
    explorer.sliders["method"].value = "ddpm"
    explorer.sliders["clip"].value = False
    assert explorer.result == (5, "ddpm", False)
    explorer.sliders["steps"].value = 50
    assert explorer.result == "ValueError: too many"


def test_wrong_choices_are_named():
    with pytest.raises(ValueError, match=r"steps=\[\] offers nothing"):
        widgets.explore(lambda steps: steps, steps=[])
    with pytest.raises(TypeError, match="sets"):
        widgets.explore(lambda steps: steps, sets=[1])


def test_a_notebook_shows_each_picture_once(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel would inherit it, and show no figure
    for name in ("MINIDIFF_TIER", "CI"):  # either would leave out the sliders
        monkeypatch.delenv(name, raising=False)
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipywidgets")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in NOTEBOOK])
    nbclient.NotebookClient(nb, timeout=120, kernel_name="python3", store_widget_state=False).execute()
    data = [[set(o.data) for o in cell.outputs if "data" in o] for cell in nb.cells]
    pictures = [sum("image/png" in kinds for kinds in cell) for cell in data]
    assert pictures == [0, 0, 1, 1, 1, 0, 1], data
    widget = "application/vnd.jupyter.widget-view+json"
    assert [sum(widget in kinds for kinds in cell) for cell in data] == [0, 0, 0, 0, 1, 0, 0]
    assert len(nb.cells[0].outputs) == 1 and nb.cells[0].outputs[0].text.count("\n") == 1
    moved, first = (nb.cells[i].outputs[-1].data["image/png"] for i in (4, 6))
    assert moved != first  # the stored picture is the one of the last slider position, and no part of a widget
