"""Set-up, tiers and budgets."""

import random

import numpy as np
import pytest
import torch

from minidiff.course import budget, runtime, setup

EACH = {"smoke": 20, "cpu": 800, "gpu": 20_000, "big": 50_000}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("MINIDIFF_TIER", "MINIDIFF_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def pretend_gpu(monkeypatch, memory):
    properties = type("Properties", (), {"total_memory": memory})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_setup_seeds_everything_and_prints_one_line(capsys):
    run = setup(seed=7)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    setup(seed=7)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())
    setup(seed=8)
    assert drawn[2] != torch.rand(1).item()
    assert (run.device.type, run.dtype, run.seed, run.tier) == ("cpu", torch.float32, 7, "cpu")
    line = capsys.readouterr().out.splitlines()[0]
    words = ("cpu", "float32", "seed 7", "tier cpu", f"torch {torch.__version__}", "Python 3.")
    assert all(word in line for word in words)
    with run.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("MINIDIFF_THREADS", "1")
    setup()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    monkeypatch.setenv("MINIDIFF_THREADS", "all")
    with pytest.raises(ValueError, match="MINIDIFF_THREADS='all'"):
        setup()


def test_tier(monkeypatch):
    assert runtime.tier() == "cpu"
    pretend_gpu(monkeypatch, 16e9)
    assert runtime.tier() == "gpu"
    pretend_gpu(monkeypatch, 80e9)
    assert runtime.tier() == "big"
    monkeypatch.setenv("MINIDIFF_TIER", "smoke")
    assert runtime.tier() == "smoke"
    monkeypatch.setenv("MINIDIFF_TIER", "smok")
    with pytest.raises(ValueError, match="'smok'.*'smoke'"):
        runtime.tier()


@pytest.mark.parametrize("tier", runtime.TIERS)
def test_budget_takes_the_value_of_the_tier(tier, monkeypatch, capsys):
    monkeypatch.setenv("MINIDIFF_TIER", tier)
    assert budget("training", **EACH) == EACH[tier]
    assert f"{EACH[tier]:,} (tier {tier})" in capsys.readouterr().out
    assert budget(smoke=1, cpu=2) == {"smoke": 1}.get(tier, 2)  # what is left out comes from the tier below
    assert budget(smoke=1, cpu=2, gpu={"steps": 3}) == {"smoke": 1, "cpu": 2}.get(tier, {"steps": 3})


def test_budget_estimates_from_measured_steps(monkeypatch, capsys):
    calls, clock = [], iter(range(0, 1000))

    def step():  # by the false clock the warm-up takes 100 s a step, the others 1 s
        calls.append(torch.rand(1).item())
        if len(calls) <= 2:
            [next(clock) for _ in range(99)]

    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(clock))
    torch.manual_seed(0)
    expected = torch.rand(1).item()
    torch.manual_seed(0)
    assert budget("training", **EACH, per_step=step) == 800
    assert len(calls) == 5 and torch.rand(1).item() == expected  # the random state is put back
    assert "steps 800 (tier cpu), about 13 min here at 1 s a step\n" in capsys.readouterr().out
    budget(smoke=1, cpu={"steps": 80_000, "batch": 64}, seconds_per_step=0.25)
    assert "steps 80,000, batch 64 (tier cpu), about 5.6 h here at 0.25 s a step. Too long?" in capsys.readouterr().out
    monkeypatch.setenv("MINIDIFF_TIER", "smoke")
    assert budget("training", **EACH, per_step=step) == 20 and len(calls) == 5  # not timed
    with pytest.raises(TypeError, match="per_step=3"):
        budget("training", **EACH, per_step=3)
