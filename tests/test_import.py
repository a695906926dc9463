"""`import minidiff` is quick, brings in nothing that a function can import itself, and lets torchvision be imported."""

import ast
import importlib.util
import json
import os
import statistics
import subprocess
import sys

import pytest

LATE = ("matplotlib", "transformers", "torchvision", "timm", "torchmetrics", "huggingface_hub", "sklearn", "diffusers")


def python(code, *options):
    """The last line a fresh interpreter prints."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_import_brings_in_nothing_heavy():
    loaded = json.loads(python("import sys, json, minidiff; print(json.dumps(sorted(sys.modules)))"))
    assert "torch" in loaded
    assert not [name for name in LATE if name in loaded]


def test_the_public_names_bring_in_nothing_heavy():
    code = "import sys, json, minidiff; [getattr(minidiff, n) for n in minidiff.__all__ if n != 'course'];"
    loaded = json.loads(python(code + "print(json.dumps(sorted(sys.modules)))"))
    assert not [name for name in LATE if name in loaded]


def test_import_takes_less_than_a_third_of_a_second_beyond_torch():
    # Processor time, so that a busy machine does not count; the median of three, so that a cold disk does not.
    code = "import time, torch; t = time.process_time(); import minidiff; print(time.process_time() - t)"
    seconds = statistics.median(float(python(code)) for _ in range(3))
    assert seconds < 0.3, f"import minidiff takes {seconds:.2f} s beyond torch"


@pytest.mark.parametrize("order", ["minidiff, torchvision, timm", "minidiff, timm, torchmetrics, transformers"])
def test_torchvision_can_be_imported_after_minidiff(order):
    code = f"import {order}; from torchvision.transforms import v2; import torchvision; print(torchvision.__version__)"
    assert python(code)


def test_declaring_the_operators_is_harmless_twice_and_after_a_failed_import():
    code = """
import torch
try:
    import torchvision
except RuntimeError:
    pass
from minidiff._torchvision import declare_missing_ops
declare_missing_ops(); declare_missing_ops()
import torchvision
print(torchvision.utils.make_grid(torch.zeros(4, 3, 2, 2)).shape[0])
"""
    assert python(code) == "3"


def test_nothing_is_declared_for_a_torchvision_that_has_its_own_operators(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "version.py").write_text("__version__ = '0.28.0+cpu'\n")
    first = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch, minidiff;"
    assert python(first + "print(hasattr(torch.ops.torchvision, 'nms'))") == "False"


def test_an_unknown_public_name_is_named():
    import minidiff

    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = minidiff.smaple
    assert "sample" in dir(minidiff)


def test_every_public_name_is_there():
    import minidiff

    missing = []
    for name in minidiff.__all__:
        try:
            getattr(minidiff, name)
        except (AttributeError, ImportError) as error:
            missing.append(f"{name}: {error}")
    assert not missing


def test_no_file_imports_a_late_package_at_module_level(root):
    found = []
    for path in sorted((root / "minidiff").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.relative_to(root)}: {name}" for name in names if name.split(".")[0] in LATE]
    assert not found


def test_the_editable_install_uses_this_clone(root):
    if importlib.util.find_spec("minidiff").origin != str(root / "minidiff" / "__init__.py"):
        pytest.skip("minidiff is installed from a wheel")
    if "MINIDIFF_DATA" in os.environ:
        pytest.skip("MINIDIFF_DATA names another data folder")
    import minidiff

    assert minidiff.data_folder() == root / "data"
