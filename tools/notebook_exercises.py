"""Exercises: which cells hold one, merging solutions in, and turning checks into assertions.

An exercise is a code cell tagged `exercise` with a name; a later cell calls `exercises.check_...(my_function)`, which
returns a bool and prints what is wrong. A solution file holds the same cells, solved, and nothing else.
"""

import ast
from pathlib import Path

import nbformat
from notebook_build import inputs, read_source, tagged, write

STRICT_CELL = 'import os\nos.environ["MINIDIFF_STRICT"] = "1"  # a failing check raises'


def exercises(nb):
    """[(name, position of the cell, whether a check follows before the next exercise)] of a notebook."""
    at = [i for i, cell in enumerate(nb.cells) if cell.cell_type == "code" and tagged(cell, "exercise")]
    ends = [*at[1:], len(nb.cells)]
    return [
        (nb.cells[i].metadata.get("name"), i, any(checks(cell) for cell in nb.cells[i:end])) for i, end in zip(at, ends)
    ]


def checks(cell):
    """The syntax nodes of the statements `exercises.check_...(...)` in a code cell."""
    if cell.cell_type != "code" or "exercises.check_" not in cell.source:
        return []
    try:
        body = ast.walk(ast.parse(cell.source))
    except SyntaxError as error:
        raise ValueError(f"a cell that calls exercises.check_... must be plain Python: {error}") from None
    return [
        node
        for node in body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).startswith("exercises.check_")
    ]


def solutions(folder, name):
    """{exercise name: solved source}; empty without a solution file. ValueError for a cell that is no exercise."""
    path = Path(folder) / "solutions" / f"{name}.py"
    if not path.is_file():
        return {}
    solved = {}
    for cell in read_source(path).cells:
        if cell.cell_type == "markdown":
            continue
        if not tagged(cell, "exercise") or not cell.metadata.get("name"):
            first = (cell.source.splitlines() or [""])[0]
            raise ValueError(f'{path}: the cell {first!r} must be headed # %% tags=["exercise"] name="...".')
        solved[cell.metadata["name"]] = cell.source
    return solved


def with_asserts(source, nodes, passes):
    """The cell's source with each check asserted to pass, or to fail."""
    lines = source.splitlines()
    for node in sorted(nodes, key=lambda n: n.lineno, reverse=True):
        call, pad = ast.unparse(node.value), " " * node.col_offset
        claim = f"{call}, 'the solution fails its check'" if passes else f"not {call}, 'the stub passes its check'"
        lines[node.lineno - 1 : node.end_lineno] = [f"{pad}assert {claim}"]
    return "\n".join(lines)


def copy_for_ci(folder, name, root, solved):
    """The notebook as CI runs it, without outputs.

    With `solved`, solutions are merged in and every check must pass, strictly. Without, it is the reader's untouched
    notebook, in which every check must return False and none may raise.
    """
    nb = inputs(folder, name, root)
    answers = solutions(folder, name) if solved else {}
    for cell in nb.cells:
        nodes = checks(cell)
        if nodes:
            cell.source = with_asserts(cell.source, nodes, passes=solved)
        if solved and tagged(cell, "exercise"):
            cell.source = answers[cell.metadata["name"]]
    if solved:
        nb.cells.insert(1, nbformat.v4.new_code_cell(STRICT_CELL))
    return nb


def write_copies(folder, name, root, out):
    """Write OUT/notebooks/NAME.ipynb and, if it has exercises, OUT/solutions/NAME.ipynb; the paths."""
    paths = []
    for solved in (False, True):
        nb = copy_for_ci(folder, name, root, solved)
        if solved and not exercises(nb):
            continue
        paths.append(Path(out) / ("solutions" if solved else "notebooks") / f"{name}.ipynb")
        write(nb, paths[-1])
    return paths
