"""What must hold of every stored notebook. Each check returns its complaints as strings."""

import re
from pathlib import Path

import badges
import nbformat
from notebook_build import code_stamp, difference, names, tagged
from notebook_exercises import checks, exercises, solutions
from notebook_run import WIDGET

MAX_BYTES = 1_500_000
MAX_LINES = 25
MARKDOWN_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\))*\]\(\s*<?([^)\s>]+)[^)]*\)")
LINKED_IMAGE = re.compile(r"\[!\[[^\]]*\]\(([^)\s]+)\)")
HTML_LINK = re.compile(r"""(?:href|src)=["']([^"']+)["']""")


def links(text):
    """Every link and image target in a Markdown text, code left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    return [*MARKDOWN_LINK.findall(text), *LINKED_IMAGE.findall(text), *HTML_LINK.findall(text)]


def anchors(text):
    """The anchors that GitHub and Jupyter give to the headings of a Markdown text, lower-cased."""
    titles = re.findall(r"(?m)^#{1,6} +(.+?)\s*$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(text, path, root):
    """Internal links in `text`, a file at `path`, that lead nowhere: missing paths, anchors, another address."""
    root, complaints = Path(root).resolve(), []
    home = badges.address(root)
    ours = tuple(f"{base}/blob/main/" for base in (home, badges.colab_link("", root).split("/blob/")[0]))
    for target in links(text):
        where, _, anchor = target.partition("#")
        if target.startswith(ours):
            where = where.split("/blob/main/", 1)[1]
            if not (root / where).exists():
                complaints.append(f"links to {target}, but there is no {where}")
        elif "colab.research.google.com/github/" in target:
            complaints.append(f"has a Colab link to {target}, which is not this repository ({home})")
        elif "://" in target or target.startswith("mailto:") or target == home:
            continue  # another site: not checked without network
        elif where and not (Path(path).parent / where).exists():
            complaints.append(f"links to {where}, which does not exist")
        elif not where and anchor and anchor.lower() not in anchors(text):
            complaints.append(f"links to #{anchor}, but has no such heading")
    return complaints


def check_outputs(nb):
    complaints = []
    if "widgets" in nb.metadata:
        complaints.append("stores widget state: execute it with this tool, not in the browser")
    for number, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                complaints.append(f"cell {number} stores an error: {output.ename}: {output.evalue[:80]}")
            if WIDGET in output.get("data", {}):
                complaints.append(f"cell {number} stores a widget")
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            if "site-packages" in text or str(badges.ROOT) in text:
                complaints.append(f"cell {number} shows a path of the machine it ran on (a warning?): {text[:150]!r}")
    made_with = nb.metadata.get("minidiff", {}).get("code")
    if made_with is None:
        complaints.append("was never executed")
    elif made_with != code_stamp(nb):
        complaints.append("has outputs made with other code: execute it again")
    return complaints


def check_shape(nb):
    """Header, set-up cell, length of cells, text between them."""
    complaints = []
    code = [cell for cell in nb.cells if cell.cell_type == "code" and not tagged(cell, "colab")]
    head = "\n\n".join(cell.source for cell in nb.cells[:4] if cell.cell_type == "markdown")
    if not re.match(r"# \S", nb.cells[0].source):
        complaints.append("does not begin with a title, '# ...'")
    if "colab-badge.svg" not in nb.cells[0].source:
        complaints.append("has no Colab badge")
    if not re.search(r"(?m)^.*\bCPU\b.*\b(T4|GPU)\b", head):
        complaints.append("has no line with run times (CPU, T4, GPU) in its header")
    if not re.search(r"(?m)^([-*]|\d\.) ", head):
        complaints.append("has no list of goals in its header")
    if not code or len(code[0].source.strip().splitlines()) != 3 or "import minidiff" not in code[0].source:
        complaints.append("does not begin with the set-up cell of three lines")
    for number, cell in enumerate(nb.cells):
        lines = len(cell.source.splitlines())
        if cell.cell_type == "code" and lines > MAX_LINES:
            complaints.append(f"cell {number} has {lines} lines of code, {MAX_LINES} at most")
        if number and cell.cell_type == "code" == nb.cells[number - 1].cell_type:
            complaints.append(f"cells {number - 1} and {number} are code without a sentence between them")
    return complaints


def check_exercises(nb, folder, name):
    complaints = []
    try:
        solved, found = solutions(folder, name), exercises(nb)
    except ValueError as error:
        return [str(error)]
    labels = [label for label, _, _ in found]
    for label, position, followed in found:
        if not label:
            complaints.append(f'cell {position}: an exercise needs a name, # %% tags=["exercise"] name="..."')
        elif label not in solved:
            complaints.append(f"exercise {label!r} has no solution in solutions/{name}.py")
        if not followed:
            complaints.append(f"no cell calls exercises.check_... after exercise {label!r}")
    complaints += [f"two exercises are named {label!r}" for label in set(labels) if labels.count(label) > 1]
    complaints += [f"solution {label!r} belongs to no exercise" for label in solved if label not in labels]
    complaints += [
        f"cell {number}: a check must stand in a cell of its own, after the exercise's"
        for number, cell in enumerate(nb.cells)
        if tagged(cell, "exercise") and checks(cell)
    ]
    return complaints


def check_notebook(folder, name, root):
    """All complaints about one notebook; the diff between source and notebook comes last, as lines."""
    path = Path(folder) / f"{name}.ipynb"
    if not path.is_file():
        return [f"is not built: {path} does not exist"]
    nb = nbformat.read(path, as_version=4)
    complaints = []
    if path.stat().st_size > MAX_BYTES:
        complaints.append(f"has {path.stat().st_size / 1e6:.2f} MB, {MAX_BYTES / 1e6} at most")
    text = "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    complaints += broken_links(text, path, root)
    complaints += check_outputs(nb) + check_shape(nb) + check_exercises(nb, folder, name)
    changed = difference(folder, name, root)
    if changed:
        lines = "\n".join(changed)
        complaints.append(f"differs from its source; `python tools/notebooks.py build` makes it agree\n{lines}")
    return complaints


def check_all(folder, root):
    """{name: complaints} of every notebook of the folder that has any."""
    folder, found = Path(folder), {}
    sources = names(folder)
    setups = {}
    for name in sources:
        found[name] = check_notebook(folder, name, root)
        path = folder / f"{name}.ipynb"
        if path.is_file():
            cells = nbformat.read(path, as_version=4).cells
            code = [cell.source for cell in cells if cell.cell_type == "code" and not tagged(cell, "colab")]
            setups.setdefault(code[0] if code else "", []).append(name)
    if len(setups) > 1:
        usual = max(setups, key=lambda source: len(setups[source]))
        for source, users in setups.items():
            for name in users if source != usual else []:
                found[name].append(f"has another set-up cell than the rest, which have\n{usual}")
    for path in [*folder.glob("*.ipynb"), *(folder / "solutions").glob("*.py")]:
        if path.stem not in sources:
            found.setdefault(path.stem, []).append(f"{path} has no source in src/")
    return {name: complaints for name, complaints in found.items() if complaints}
