"""Execute notebooks, and leave in their outputs only what a reader wants to see."""

import base64
import io
import os
import time
from pathlib import Path

import nbformat
from notebook_build import METADATA, code_stamp, tagged, write

WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 900
COLORS, NEAR = 256, 2.0  # a figure is stored with so many colours if they are as near as this, of 255, on average


def last_lines(text):
    """Text as a terminal leaves it: a carriage return goes back to the start of the line, what follows overwrites."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip() if "\r" in line else shown)
    return "\n".join(lines)


def clean_outputs(outputs):
    """Outputs without widgets, streams joined, progress bars reduced to their last line, figures with a palette."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        if WIDGET in output.get("data", {}):
            del output.data[WIDGET]
            if set(output.data) <= {"text/plain"}:  # all that is left is the widget's repr
                continue
        output.get("metadata", {}).pop(WIDGET, None)
        kept.append(output)
    for output in kept:
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = with_palette(output.data["image/png"])
        if output.output_type == "stream":
            output.text = last_lines(output.text)
    return [output for output in kept if output.get("text", "x").strip()]


def with_palette(png):
    """A PNG (base64) with a palette of its own colours, a third of the size; as it was if its colours need more."""
    import numpy as np
    from PIL import Image

    data = base64.b64decode(png)
    image = Image.open(io.BytesIO(data))
    if getattr(image, "n_frames", 1) > 1 or image.mode == "P":  # an animation, or done already
        return png
    image = image.convert("RGB")
    small = image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE, kmeans=3)
    away = np.abs(np.asarray(small.convert("RGB"), dtype=np.int16) - np.asarray(image, dtype=np.int16)).mean()
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode() if away < NEAR and out.tell() < len(data) else png


def clean(nb):
    """Drop what is noise in a stored notebook: widget state, timing, versions, progress bars."""
    nb.metadata = {**METADATA, **{key: nb.metadata[key] for key in ("minidiff",) if key in nb.metadata}}
    for cell in nb.cells:
        for key in ("execution", "collapsed", "scrolled", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = clean_outputs(cell.outputs)


def run(nb, cwd):
    """Execute in place, in the Python that runs this; an error in a cell raises with the cell and the message."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    os.environ.pop("MPLBACKEND", None)  # the kernel would inherit it and show no figures
    client = NotebookClient(nb, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False,
                            store_widget_state=False, extra_arguments=["--log-level=ERROR"],
                            resources={"metadata": {"path": str(cwd)}})
    try:
        client.execute()
    except CellExecutionError as error:
        raise SystemExit(str(error)) from None


def execute(path, tier="cpu"):
    """Execute a notebook in a tier and store its outputs; returns the seconds it took."""
    os.environ["MINIDIFF_TIER"] = tier
    os.environ.pop("MINIDIFF_STRICT", None)  # in a reader's notebook a failing check explains and does not raise
    nb = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    run(nb, Path(path).parent)
    seconds = time.perf_counter() - start
    clean(nb)
    nb.metadata["minidiff"] = {"code": code_stamp(nb), "tier": tier}
    write(nb, path)
    return seconds


def picture(nb):
    """The PNG of the cell tagged `picture`, or the notebook's last one; None if it has none. Bytes."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    marked = [cell for cell in code if tagged(cell, "picture")]
    found = [output.get("data", {}).get("image/png") for cell in marked or code for output in cell.outputs]
    found = [image for image in found if image]
    return base64.b64decode(found[-1]) if found else None


def tour(notebook, out):
    """Execute one notebook into a folder of its own: the executed copy, an HTML page and the picture; their paths."""
    from nbconvert import HTMLExporter

    nb = nbformat.read(notebook, as_version=4)
    out.mkdir(parents=True, exist_ok=True)
    run(nb, notebook.parent)
    clean(nb)
    paths = [out / notebook.name, out / f"{notebook.stem}.html"]
    write(nb, paths[0])
    page, _ = HTMLExporter().from_notebook_node(nb)
    paths[1].write_text(page, encoding="utf-8")
    image = picture(nb)
    if image:
        paths.append(out / f"{notebook.stem}.png")
        paths[2].write_bytes(image)
    return paths
