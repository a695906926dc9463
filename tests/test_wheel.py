"""The wheel, installed far from the clone, has its own data and runs notebook 00 with them."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile

import nbformat
import notebook_build
import notebook_exercises
import notebook_run
import pytest

UNSET = ("PYTHONPATH", "MINIDIFF_DATA", "VIRTUAL_ENV", "MPLBACKEND")
FIRST = "00_a_picture_in_thirty_seconds"


def pip(command, *arguments):
    command = [sys.executable, "-m", "pip", command, "-q", "--no-deps", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    """The wheel, built without network."""
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "-w", str(out), str(root))
    return next(out.glob("minidiff-*.whl"))


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """(python, folder) of an environment with the wheel and all that this one has, except the editable minidiff."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=False)
    paths = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    site = sysconfig.get_path("purelib", "venv", paths)
    pip("install", "--no-index", "--target", site, str(wheel))
    # A line of a .pth file joins the path after the environment's own packages; the .pth files that lie there, such as
    # the one of the editable install, are not read again.
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    with open(os.path.join(site, "others.pth"), "w", encoding="utf-8") as file:
        file.write("\n".join(sorted(others)) + "\n")
    return sysconfig.get_path("scripts", "venv", paths) + "/python", folder


def run(elsewhere, *command):
    python, folder = elsewhere
    env = {key: value for key, value in os.environ.items() if key not in UNSET}
    env |= {"MINIDIFF_TIER": "smoke", "MINIDIFF_CACHE": f"{folder}/cache", "JUPYTER_DATA_DIR": f"{folder}/jupyter"}
    done = subprocess.run([python, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def execute(elsewhere, nb):
    """Runs a notebook by the environment's own Python and kernel; returns it with its outputs."""
    path = elsewhere[1] / "notebook.ipynb"
    notebook_build.write(nb, path)
    start = "from nbclient.cli import main; main()"
    run(elsewhere, "-c", start, "--inplace", "--kernel_name=python3", str(path))
    return nbformat.read(path, as_version=4)


def test_the_wheel_holds_the_package_and_the_data(root, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = {f"minidiff/_data/{path.relative_to(root / 'data').as_posix()}" for path in tracked(root, "data")}
    code = {path.relative_to(root).as_posix() for path in tracked(root, "minidiff")}
    assert data and data <= names
    assert code <= names
    assert {name.split("/")[0] for name in names} == {"minidiff", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert "LICENSE" in {name.rsplit("/", 1)[-1] for name in names}


def tracked(root, folder):
    """The files of a folder that belong to the repository and exist."""
    done = subprocess.run(["git", "ls-files", "-z", folder], cwd=root, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is not a clone")
    return [path for path in (root / name for name in done.stdout.split("\0") if name) if path.is_file()]


def test_the_sample_runs_from_the_wheel(elsewhere, root):
    nb = notebook_exercises.copy_for_ci(root / "tests" / "notebooks", "90_sample", root, solved=False)
    where = "import json, sys\nprint(json.dumps([minidiff.__file__, str(minidiff.data_folder()), sys.path]))"
    nb.cells.append(nbformat.v4.new_code_cell(where))
    package, data, path = json.loads(execute(elsewhere, nb).cells[-1].outputs[0].text)
    assert package.startswith(str(elsewhere[1])) and data.startswith(str(elsewhere[1]))
    assert str(root) not in path


def test_notebook_00_runs_from_the_wheel(elsewhere, root):
    if not (root / "notebooks" / "src" / f"{FIRST}.py").is_file():
        pytest.skip(f"notebooks/src/{FIRST}.py is not written yet")
    nb = notebook_exercises.copy_for_ci(root / "notebooks", FIRST, root, solved=False)
    nb = execute(elsewhere, nb)
    assert notebook_run.picture(nb), "notebook 00 shows no picture"
