"""What the benchmarks count, and that they run: the times themselves are no test."""

import json

import pytest
import torch

from minidiff import create_model


@pytest.fixture(scope="module")
def ascend_memory(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        import ascend_memory
    return ascend_memory


def test_a_step_of_the_large_ascend_fits_into_16_gb(ascend_memory):
    counted = ascend_memory.arithmetic()
    assert counted["weights"] == pytest.approx(4 * 0.59, rel=0.02), "590 M numbers in float32"
    assert counted["gradients"] == pytest.approx(counted["weights"], abs=0.002)
    assert counted["adamw"] == pytest.approx(2 * counted["weights"], abs=0.002)
    assert 9 < counted["total"]["checkpoint"] < ascend_memory.LIMIT
    assert counted["checkpointed"] + counted["largest_unit"] < counted["activations"] / 3


def test_activations_grow_with_the_batch_and_weights_do_not(ascend_memory):
    one, four = (ascend_memory.arithmetic("ascend_tiny", batch) for batch in (1, 4))
    assert four["weights"] == one["weights"] and four["which_unit"] == one["which_unit"]
    for part in ("activations", "checkpointed", "largest_unit"):
        assert four[part] == pytest.approx(4 * one[part], rel=0.1), part


@pytest.mark.parametrize("checkpoint", [True, False])
def test_what_is_kept_by_shapes_is_what_a_real_pass_keeps(ascend_memory, checkpoint):
    counts = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            network = create_model("ascend_test", text_dim=6, pooled_dim=4).train()
            counts.append(ascend_memory.kept_by(network, ascend_memory.inputs_of(network, 2, device), checkpoint))
    assert counts[0].keys() == counts[1].keys() > {"between", "middle.0", "encoder.0.units.0"}
    kept, by_shapes = (sum(count.values()) for count in counts)
    assert kept == by_shapes if checkpoint else kept <= by_shapes < 1.2 * kept  # on meta, attention keeps its weights


def test_the_benchmark_of_u_nets_runs(root, monkeypatch, tmp_path):
    """It stops where diffusers or timm give other numbers than ours."""
    pytest.importorskip("diffusers")
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(root / "benchmarks")
    import transformer_speed
    import unet_speed

    pairs = {name: unet_speed.PAIRS[name] for name in ("ddpm_tiny", "adm_tiny", "swin", "swin_shifted")}
    transformer_speed.main(["--smoke"], out=tmp_path / "speed.py", pairs=pairs, targets=unet_speed.TARGETS)
    rows = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["model"], row["task"]) for row in rows] == [
        (model, task) for model in pairs for task in ("forward", "train")
    ]
    assert all(row["ratio"] > 0 for row in rows)


def test_a_pair_that_differs_is_caught(root, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(root / "benchmarks")
    import transformer_speed
    import unet_speed

    pair = unet_speed.swin(1, True, shift=3)
    pair.modules["timm"][0].attn_mask.zero_()
    with pytest.raises(AssertionError, match="not close"):
        transformer_speed.tasks(pair, ("forward",))


def test_the_benchmark_of_the_text_cache_runs(root, monkeypatch, tmp_path):
    """It stops where the cache gives other numbers than the encoder, or asks it again."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import text_cache

    text_cache.main(["--count", "3000", "--repeats", "1", "--encoders", "words"], out=tmp_path / "cache.py")
    [row] = json.loads((tmp_path / "cache.json").read_text(encoding="utf-8"))["rows"]
    assert row["ratio"] > 1 and row["batches_ratio"] > 1
    assert row["encoded_after_a_break"] == 3000 - 1024  # a chunk was written before it
