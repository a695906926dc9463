"""The files around the package agree with each other: one address, one tested set, links that lead somewhere."""

import os
import re
import shutil
import subprocess
import tomllib

import badges
import notebook_checks
import pytest
import torch_index
import yaml

NAMED = "torch jupyterlab einops matplotlib torchvision timm ipywidgets transformers nbmake torchmetrics".split()


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def package(requirement):
    """The name a requirement line begins with, in lower case with dashes."""
    return re.match(r"[A-Za-z0-9_.\-]+", requirement).group().lower().replace("_", "-")


def lines(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]


def test_extras_and_ranges(project):
    assert {"notebooks", "test", "train", "text"} <= set(project["optional-dependencies"])
    needed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    assert not [line for line in needed if "==" in line or "<" in line], "pins belong in constraints.txt"


def test_requirements_name_what_a_reader_needs_without_pins(root, project):
    required = lines(root / "requirements.txt")
    names = {package(line) for line in required}
    assert set(NAMED) <= names
    needed = [*project["dependencies"], *project["optional-dependencies"]["notebooks"]]
    assert {package(line) for line in needed} <= names
    assert not [line for line in required if "==" in line or "<" in line]


def test_constraints_pin_everything_named(root, project):
    pins = dict(line.split("==") for line in lines(root / "constraints.txt"))
    pins = {package(name): version for name, version in pins.items()}
    needed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    assert {package(line) for line in needed} - {"minidiff"} <= set(pins)
    assert "+" not in pins["torch"], "a local version such as +cpu would refuse the CUDA build"
    assert int(pins["torchvision"].split(".")[1]) == int(pins["torch"].split(".")[1]) + 15, "the two go together"


def test_environment_leaves_all_but_python_to_pip(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert [package(line) for line in conda] == ["python", "pip"]
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}
    assert conda[0].removeprefix("python").startswith(project["requires-python"])


def test_the_workflow_runs_the_ci_script_on_lowest_and_highest_python_and_macos(root, project):
    text = (root / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["test"]
    rows = job["strategy"]["matrix"]["include"]
    linux = [row["python"] for row in rows if row["os"].startswith("ubuntu")]
    assert f">={linux[0]}" == project["requires-python"] and len(linux) > 1
    assert any(row["os"].startswith("macos") for row in rows)
    assert job["steps"][-1] == {"run": ".ci/run"}


def test_the_ci_script_is_make_test(root):
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    code = [line for line in script.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert code == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("target", ["tour", "lab", "test", "test-slow", "verify", "notebooks", "weights"])
def test_make_knows_its_targets_and_their_tools_exist(root, target, tmp_path):
    done = subprocess.run(["make", "-n", target, f"VENV={tmp_path}/v"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for tool in re.findall(r"tools/\w+\.py", done.stdout):
        assert (root / tool).is_file(), f"make {target} runs {tool}, which does not exist"
    assert "pip install" in done.stdout and "-c constraints.txt" in done.stdout


def test_make_names_the_python_it_needs(root, tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\necho "minidiff needs Python 3.11 or newer" >&2\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "tour", f"PYTHON={old}", f"VENV={tmp_path}/v"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode and "Python 3.11" in done.stderr and not (tmp_path / "v").exists()


def test_generated_text_is_up_to_date(root):
    for path, text in badges.generated(root).items():
        assert path.read_text(encoding="utf-8") == text, f"run `python tools/badges.py`: {path.name} is out of date"


def test_the_address_stands_once(root):
    address = badges.address(root)
    assert address.startswith("https://github.com/") and not address.endswith("/")
    short, places = address.removeprefix("https://"), []
    generated = set(badges.generated(root))
    for pattern in ("*", ".ci/*", ".github/**/*", "minidiff/**/*.py", "tools/*.py", "tests/*.py", "notebooks/s*/*.py"):
        for path in root.glob(pattern):
            if path.is_file() and path not in generated and short in path.read_text(encoding="utf-8", errors="ignore"):
                places.append(path.relative_to(root).as_posix())
    assert places == ["pyproject.toml"]


def test_every_link_of_the_readme_leads_somewhere(root):
    for name in ("README.md", "data/README.md"):
        text = (root / name).read_text(encoding="utf-8")
        assert not notebook_checks.broken_links(text, root / name, root)


def test_the_two_commands_stand_at_the_top_of_the_readme(root):
    top = (root / "README.md").read_text(encoding="utf-8").splitlines()[:6]
    assert any(line.startswith("make tour") for line in top) and any(line.startswith("make test") for line in top)


def test_the_code_of_the_readme_runs(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(re.sub(r"steps=\d+", "steps=2", block), names)
    assert names["smileys"].shape == names["images"].shape == (8, 3, 16, 16) and (tmp_path / "smileys.png").exists()
    assert len(names["pictures"]) == 4 and (tmp_path / "scene.png").exists()
    assert names["mine"].network.layers[0].out_channels == 32
    names["training"].train(names["mine"], names["data"], steps=2, batch_size=4)


def test_the_licence_is_whole(root):
    text = (root / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_citation_can_be_parsed(root, project):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == project["license"] and citation["repository-code"] == badges.address(root)
    version = re.search(r'__version__ = "(.*)"', (root / "minidiff" / "__init__.py").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version.group(1)


@pytest.mark.parametrize(
    ("system", "nvidia", "wheel", "answers", "expected"),
    [
        ("Linux", None, False, True, f"--extra-index-url {torch_index.CPU_INDEX}"),
        ("Linux", None, False, False, ""),  # out of reach: pip would retry for minutes
        ("Linux", None, True, True, ""),  # pip has a CPU wheel at hand
        ("Linux", "/usr/bin/nvidia-smi", False, True, ""),
        ("Darwin", None, False, True, ""),  # PyPI's torch has no CUDA there
    ],
)
def test_who_takes_the_cpu_index(monkeypatch, system, nvidia, wheel, answers, expected):
    monkeypatch.setattr(torch_index.platform, "system", lambda: system)
    monkeypatch.setattr(torch_index.shutil, "which", lambda name: nvidia)
    monkeypatch.setattr(torch_index, "local_cpu_wheel", lambda: wheel)
    monkeypatch.setattr(torch_index, "answers", lambda address: answers)
    assert torch_index.option() == expected


def test_a_cpu_wheel_in_pips_own_links_is_found(monkeypatch, tmp_path):
    python = f"cp{torch_index.sys.version_info.major}{torch_index.sys.version_info.minor}"
    monkeypatch.setenv("PIP_FIND_LINKS", f"https://example.org/links {tmp_path}")
    assert not torch_index.local_cpu_wheel()
    (tmp_path / f"torch-2.13.0+cpu-{python}-{python}-manylinux_2_28_x86_64.whl").touch()
    assert torch_index.local_cpu_wheel()


def test_an_address_out_of_reach_is_given_up_quickly():
    assert not torch_index.answers("http://127.0.0.1:9")
