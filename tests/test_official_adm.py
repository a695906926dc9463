"""Files of improved-diffusion, guided-diffusion, GLIDE and EDM: configs, names, and what they were trained with."""

import goldens_adm
import pytest
import torch
from golden import fill
from toy import GOLDEN

from minidiff import Diffusion, create_model, list_models, load_official, schedules
from minidiff.backbones.adm_blocks import Attention
from minidiff.layers import Text
from minidiff.official import adm as official
from minidiff.official import adm_classifier as official_classifier
from minidiff.official import edm_adm, from_official, released
from minidiff.scorers import Classifier


def test_the_order_of_each_published_model_is_said_by_its_name():
    """Only ADM at 64 pixels has the new order, only EDM's port its own; the classifiers' trunks are legacy."""
    orders = {}
    for name in [*list_models("adm_*"), *list_models("iddpm_*"), "edm_adm_imagenet64"]:
        with torch.device("meta"):
            orders[name] = create_model(name).arguments["qkv_order"]
    assert [name for name, order in orders.items() if order == "new"] == ["adm_imagenet64", "adm_tiny"]
    assert [name for name, order in orders.items() if order == "edm"] == ["edm_adm_imagenet64"]
    for config, order in (({}, "legacy"), ({"use_new_attention_order": True}, "new")):
        assert official.arguments({"attention_resolutions": (2,), **config})["qkv_order"] == order


# The flags of three published files (facts), for the constructors of the official code
ADM = dict(in_channels=3, out_channels=6, use_scale_shift_norm=True, resblock_updown=True, num_head_channels=64)
FLAGS = {
    "adm_imagenet64": ("guided_diffusion", ADM | dict(
        image_size=64, model_channels=192, num_res_blocks=3, attention_resolutions=(2, 4, 8), channel_mult=(1, 2, 3, 4),
        num_classes=1000, use_new_attention_order=True, dropout=0.1, num_heads=4, num_heads_upsample=-1)),
    "adm_upsample_64_256": ("guided_diffusion", ADM | dict(
        image_size=256, model_channels=192, num_res_blocks=2, attention_resolutions=(8, 16, 32), num_head_channels=-1,
        channel_mult=(1, 1, 2, 2, 4, 4), num_classes=1000, num_heads=4, super_resolution=True)),
    "iddpm_cifar10": ("improved_diffusion", dict(
        in_channels=3, out_channels=6, model_channels=128, num_res_blocks=3, attention_resolutions=(2, 4), dropout=0.3,
        channel_mult=(1, 2, 2, 2), num_heads=4, num_heads_upsample=-1, use_scale_shift_norm=True, image_size=32)),
    "adm_t2i_64": ("glide", ADM | dict(
        image_size=64, model_channels=192, num_res_blocks=3, attention_resolutions=(2, 4, 8), channel_mult=(1, 2, 3, 4),
        xf_width=512, text_ctx=128, xf_layers=16, xf_heads=8, xf_final_ln=True)),
    "adm_classifier_128": ("guided_diffusion_classifier", {**ADM, "out_channels": 1000} | dict(
        image_size=128, model_channels=128, num_res_blocks=2, attention_resolutions=(4, 8, 16), pool="attention",
        channel_mult=(1, 1, 2, 3, 4))),
    "edm_adm_imagenet64": ("edm_adm", dict(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000)),
}  # fmt: skip
KEY_MAPS = {"guided_diffusion_classifier": official_classifier, "edm_adm": edm_adm}


@pytest.mark.parametrize("name", FLAGS)
def test_published_flags_give_the_published_model(name):
    family, config = FLAGS[name]
    with torch.device("meta"):
        ours = create_model(name)
        theirs = create_model(name, **KEY_MAPS.get(family, official).arguments(config))
    assert {key: tuple(weight.shape) for key, weight in ours.named_parameters()} == {
        key: tuple(weight.shape) for key, weight in theirs.named_parameters()
    }
    same = ours.arguments.keys() - {"num_heads", "num_head_channels", "null_label", "attn_resolutions", "channel_mult"}
    assert {key: ours.arguments[key] for key in same} == {key: theirs.arguments[key] for key in same}
    heads = [[m.heads for m in network.modules() if isinstance(m, Attention)] for network in (ours, theirs)]
    assert heads[0] == heads[1]


def test_what_an_official_config_may_not_say():
    known = {"attention_resolutions": (2,), "out_channels": 3}
    for wrong, match in (
        ({"conv_resample": False}, "conv_resample"), ({"num_heads_upsample": 8}, "num_heads_upsample"),
        ({"norm": 1}, "norm: not arguments"),
    ):  # fmt: skip
        for key_map in (official, official_classifier):
            with pytest.raises(ValueError, match=match):
                key_map.arguments(known | wrong)
    with pytest.raises(ValueError, match="num_classes=5: not an argument of the official classifier"):
        official_classifier.arguments(known | {"num_classes": 5})
    for wrong in ({"augment_dim": 9}, {"embedding_type": "fourier"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            edm_adm.arguments(FLAGS["edm_adm_imagenet64"][1] | wrong)


def official_state(name):
    spec, _ = fill.load(GOLDEN / f"{name}.npz")
    return spec, {key: torch.from_numpy(value) for key, value in fill.make_weights(spec).items()}


def test_edm_files_with_their_preconditioning():
    spec, state = official_state("edm_dhariwal_a")
    wrapped = {f"model.{key}": value for key, value in state.items()}
    wrapped["model.enc.8x8_down.skip.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
    plain, network = (from_official("edm_adm", weights, spec["config"]) for weights in (state, wrapped))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))


def test_of_glide_the_image_network_is_read():
    spec, state = official_state("glide_unet_a")
    whole = state | {
        "transformer_proj.weight": torch.randn(256, 24), "transformer_proj.bias": torch.randn(256),
        "transformer.resblocks.0.attn.c_qkv.weight": torch.randn(72, 24), "token_embedding.weight": torch.randn(9, 24),
        "positional_embedding": torch.randn(7, 24), "padding_embedding": torch.randn(7, 24),
        "final_ln.weight": torch.randn(24),
    }  # fmt: skip
    config = {key: value for key, value in spec["config"].items() if key != "encoder_channels"} | {"xf_width": 24}
    network, alone = from_official("glide", whole, config), from_official("glide", state, spec["config"])
    x, time, last = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 24)
    tokens = torch.randn(2, 7, 24)
    projected = last @ whole["transformer_proj.weight"].T + whole["transformer_proj.bias"]
    with torch.no_grad():
        expected = alone(x, time, Text(tokens, pooled=projected))
        torch.testing.assert_close(network(x, time, Text(tokens, pooled=last)), expected, rtol=1e-4, atol=1e-5)


def test_what_each_was_trained_with(tmp_path, monkeypatch):
    """Times as the official code feeds them, and a classifier where one is published."""
    known = {name: trained for name, (_, trained) in released().items() if "adm" in name or "iddpm" in name}
    assert set(known) == {*list_models("adm_*"), *list_models("*iddpm_*"), "edm_adm_imagenet64"} - {
        "adm_test", "adm_tiny", "adm_classifier_test"
    }  # fmt: skip
    assert [name for name, trained in known.items() if trained["time"] == "index_rescaled"] == [
        "iddpm_cifar10", "iddpm_imagenet64",
    ]  # fmt: skip
    seen = []
    model = Diffusion(lambda x, time, y: seen.append(time) or x, schedules.cosine(4000), time="index_rescaled",
                      shape=(3, 8, 8))  # fmt: skip
    model.denoise(torch.zeros(1, 3, 8, 8), 1.0)
    model.denoise(torch.zeros(2, 3, 8, 8), torch.tensor([1 / 4000, 0.5]))
    torch.testing.assert_close(torch.cat(seen), torch.tensor([999.75, 0, 499.75]))

    spec, state = official_state("guided_encoder_attnpool_a")
    expected = from_official(spec["family"], state, spec["config"])
    arguments = official_classifier.arguments(spec["config"])
    monkeypatch.setattr("minidiff.backbones.create_model", lambda name: create_model(name, **arguments))
    torch.save(state, tmp_path / "classifier.pt")
    classifier = load_official("adm_classifier_128", tmp_path / "classifier.pt")
    assert isinstance(classifier, Classifier) and classifier.shape == (3, 16, 16) and classifier.schedule.steps == 1000
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(x, 0.5), expected(x, torch.tensor([499.0])))


def test_every_fixture_is_used():
    files = {path.stem for pattern in ("guided_*", "glide_*", "edm_dhariwal*") for path in GOLDEN.glob(pattern)}
    assert {name.split("/")[0] for name in goldens_adm.NETWORKS} == files
