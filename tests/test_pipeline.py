"""Pipelines: prompts and classes to pictures; the same ones in any batch and company, and clear words where not."""


import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff import Text, create_model, sample, save_pretrained, schedules
from minidiff.diffusion import Diffusion
from minidiff.drawing import draw, usual_batch
from minidiff.images import pixels
from minidiff.pipeline import ClassToImage, TextToImage
from minidiff.text import text_encoder

QUICK = dict(steps=3, progress=False, output="tensor")
PROMPTS = ["a red circle", "", "a small blue square above a large green cross", "a red circle"]


class Letters:
    """An encoder for tests: each letter a fixed random vector, L the length of the longest prompt; it counts."""

    name, dim, pooled_dim = "letters", 6, 4

    def __init__(self):
        self.asked = []
        generator = torch.Generator().manual_seed(0)
        self.table, self.mix = (torch.randn(shape, generator=generator) for shape in ((256, 6), (6, 4)))

    def __call__(self, prompts):
        self.asked.append(list(prompts))
        rows = [prompt.encode() for prompt in prompts]
        tokens = torch.zeros(len(rows), max(1, *map(len, rows)), 6)
        for row, letters in zip(tokens, rows):
            row[:len(letters)] = self.table[list(letters)]
        mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return Text(tokens, mask, (tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)) @ self.mix)


def network(name="ascend_test", **arguments):
    torch.manual_seed(0)
    made = create_model(name, **arguments).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if not weight.any():
                weight.normal_(std=0.1)  # so that every input reaches the output
    return made


def diffusion(name="ascend_test", shape=(3, 8, 8), **arguments):
    return Diffusion(network(name, **arguments), schedules.cosine(), "v", shape=shape).eval()


@pytest.fixture
def pipe():
    return TextToImage(diffusion(text_dim=6, pooled_dim=4), Letters())


@pytest.fixture
def classes():
    return ClassToImage(diffusion("ddpm_test", num_classes=3), ["cat", "dog", "tree"])


def close(a, b, limit=1e-4):
    return a.shape == b.shape and (a - b).abs().max() < limit


# --- what it returns -------------------------------------------------------------------------------------------------


def test_images_and_tensors(pipe):
    images = pipe("a red circle", n=3, steps=2, progress=False)
    assert len(images) == 3 and all(isinstance(image, Image.Image) and image.size == (8, 8) for image in images)
    rows = pipe(["a red circle", "b"], n=2, steps=2, progress=False)
    assert [len(row) for row in rows] == [2, 2]
    tensor = pipe(("a red circle", "b"), n=2, **QUICK | dict(steps=2))
    assert tensor.shape == (2, 2, 3, 8, 8) and tensor.dtype == torch.float32 and tensor.abs().max() <= 1
    for row, expected in zip(rows, tensor):
        assert np.array_equal(np.stack([np.asarray(image) for image in row]), pixels(expected))
    assert pipe("a red circle", n=3, **QUICK).shape == (3, 3, 8, 8)
    assert len(pipe("b", steps=2, progress=False)) == 4  # by default
    assert not torch.equal(tensor[0], tensor[1]) and not torch.equal(tensor[0, 0], tensor[0, 1])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_it_is_what_sample_draws(pipe, sampler):
    text = pipe.encoder(["a red circle"])
    expected = sample(pipe.diffusion, 5, y=text, steps=3, guidance=4.0, seed=7, sampler=sampler, progress=False)
    assert close(pipe("a red circle", n=5, guidance=4.0, seed=7, sampler=sampler, **QUICK), expected.clamp(-1, 1))
    expected = sample(pipe.diffusion, 2, y=text, steps=3, guidance=4.0, sampler=sampler, progress=False, clipped=False,
                      interval=(0.2, 0.9), rescale=0.5)  # fmt: skip
    found = pipe("a red circle", n=2, guidance=4.0, sampler=sampler, clipped=False, interval=(0.2, 0.9), rescale=0.5,
                 **QUICK)  # fmt: skip
    assert close(found, expected.clamp(-1, 1))


def test_the_same_picture_in_any_batch_and_company(pipe):
    whole = pipe(PROMPTS, n=3, seed=5, **QUICK)
    for batch_size in (1, 4, 5, 64):
        assert close(pipe(PROMPTS, n=3, seed=5, batch_size=batch_size, **QUICK), whole)
    for prompt, row in zip(PROMPTS, whole):
        assert close(pipe(prompt, n=2, seed=5, **QUICK), row[:2])
    assert close(pipe(PROMPTS[::-1], n=3, seed=5, **QUICK), whole.flip(0))
    assert close(whole[0], whole[3]) and not close(whole[0], whole[2], 0.01)
    assert not close(pipe(PROMPTS, n=3, seed=6, **QUICK), whole, 0.01)


def test_a_seed_for_each_prompt(pipe):
    rows = pipe(PROMPTS, n=2, seed=[3, 4, 5, 6], **QUICK)
    for seed, prompt, row in zip((3, 4, 5, 6), PROMPTS, rows):
        assert close(pipe(prompt, n=2, seed=seed, **QUICK), row)
    assert not close(rows[0], rows[3], 0.01)
    for seeds in (range(3, 7), torch.arange(3, 7), np.arange(3, 7)):
        assert close(pipe(PROMPTS, n=2, seed=seeds, **QUICK), rows)


def test_the_empty_prompt_is_the_unconditional_model(pipe):
    null = pipe.diffusion.network.null(pipe.encoder(["some words"]))
    expected = sample(pipe.diffusion, 3, y=null, steps=3, progress=False).clamp(-1, 1)
    for guidance in (1.0, 5.0):
        assert close(pipe("", n=3, guidance=guidance, **QUICK), expected)
    assert close(pipe("a red circle", n=3, guidance=0.0, **QUICK), expected)  # nothing of the prompt is left
    assert not close(pipe("a red circle", n=3, **QUICK), expected, 0.01)


def test_negative_prompts(pipe):
    plain = pipe("a red circle", n=2, **QUICK)
    for nothing in (None, "", [""], [None]):
        assert close(pipe("a red circle", n=2, negative=nothing, **QUICK), plain)
    text, away = pipe.encoder(["a red circle"]), pipe.encoder(["a blue one.."])  # equally long
    expected = sample(pipe.diffusion, 2, y=text, negative=away, guidance=5.0, steps=3, progress=False).clamp(-1, 1)
    found = pipe("a red circle", n=2, negative="a blue one..", **QUICK)
    assert close(found, expected) and not close(found, plain, 0.01)
    assert close(pipe(PROMPTS, n=1, negative=["", None, "", None], guidance=1, **QUICK),
                 pipe(PROMPTS, n=1, guidance=1, **QUICK))  # fmt: skip
    assert close(pipe("a red circle", n=1, negative="a red circle", guidance=9, **QUICK),
                 pipe("a red circle", n=1, guidance=1, **QUICK))  # the two halves agree
    rows = pipe(PROMPTS, n=1, negative=["b", "", "a much longer one", None], **QUICK)
    assert close(rows[0], pipe(PROMPTS[0], n=1, negative="b", **QUICK))
    assert close(rows[2], pipe(PROMPTS[2], n=1, negative="a much longer one", **QUICK))
    assert close(rows[3], pipe(PROMPTS[3], n=1, **QUICK))
    assert close(pipe(PROMPTS, n=1, negative="b", **QUICK)[1], pipe("", n=1, negative="b", **QUICK))


def test_networks_with_places_for_so_many_tokens():
    """Prompts are padded and cut to 7 places: pictures stay the same in other company, and what is cut is said."""
    made = diffusion("uvit_test", text_dim=6, num_text_tokens=7)
    pipe = TextToImage(made, Letters())
    rows = pipe(["abc", "abcdefg", ""], n=1, **QUICK)
    for prompt, row in zip(["abc", "abcdefg", ""], rows):
        assert close(pipe(prompt, n=1, **QUICK), row)
    with pytest.warns(UserWarning, match="a prompt of 9 tokens was cut to the 7 that this network") as said:
        cut = pipe(["ab", "abcdefghi"], n=1, **QUICK)
    assert close(cut[1], rows[1]) and said[0].filename == __file__
    assert close(pipe("abc", n=1, negative="a", **QUICK), pipe(["abc", "b"], n=1, negative=["a", "abcdef"], **QUICK)[0])


# --- how much it takes -----------------------------------------------------------------------------------------------


def test_ten_thousand_prompts_in_batches_that_fit(pipe, monkeypatch):
    """Never more than a batch is encoded, noised or drawn at once; with a network that only counts."""
    sizes = []

    def counted(x, time, y):
        sizes.append(len(x))
        return torch.zeros_like(x)

    monkeypatch.setattr(pipe.diffusion.network, "forward", counted)
    prompts = [f"a red circle {i % 3000}" for i in range(10_000)]
    found = pipe(prompts, n=1, steps=1, progress=False, output="tensor", guidance=1, batch_size=256)
    assert found.shape == (10_000, 1, 3, 8, 8)
    assert max(sizes) == max(map(len, pipe.encoder.asked)) == 256 and sum(sizes) == 10_000
    assert sum(sizes[:-1]) == 256 * 39


def test_prompts_are_encoded_once_a_batch(pipe):
    pipe(["a", "b", "c"], n=4, batch_size=8, **QUICK)
    assert pipe.encoder.asked == [["a", "b"], ["c"]]


def test_usual_batches():
    made = diffusion("ddpm_test")
    sizes = {}
    for side in (8, 64, 128, 1024):
        made.shape = (3, side, side)
        sizes[side] = usual_batch(made)
    assert sizes == {8: 64, 64: 64, 128: 16, 1024: 1}


def test_what_does_not_fit_into_memory_is_halved(pipe, monkeypatch):
    whole, forward = pipe(PROMPTS, n=5, **QUICK), pipe.diffusion.network.forward
    sizes = []

    def small(x, *rest):
        if len(x) > 2 * 6:  # both halves of guidance
            raise torch.OutOfMemoryError("no memory is left")
        sizes.append(len(x))
        return forward(x, *rest)

    monkeypatch.setattr(pipe.diffusion.network, "forward", small)
    with pytest.warns(UserWarning, match="did not fit into memory; going on with batch_size=5") as said:
        assert close(pipe(PROMPTS, n=5, **QUICK), whole)
    assert [int(str(warning.message).split("=")[1]) for warning in said] == [10, 5] and set(sizes) == {10}
    assert said[0].filename == __file__  # it points at the caller
    monkeypatch.setattr(pipe.diffusion.network, "forward", lambda *given: small(torch.zeros(13)))
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        pipe("a", **QUICK)


def test_progress(pipe, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have brought it
    pipe(PROMPTS, n=2, steps=3, batch_size=3)
    shown = capsys.readouterr().err
    assert "100%" in shown and "8/8" in shown
    pipe(PROMPTS, n=2, **QUICK)
    assert not capsys.readouterr().err
    pipe(PROMPTS, n=2, steps=3, t_end=0.2)
    assert "100%" in capsys.readouterr().err  # also where the last step ends before the data
    steps = []
    pipe(PROMPTS, n=1, batch_size=3, on_step=steps.append, **QUICK)
    assert [len(step.x) for step in steps] == [3, 3, 3, 1, 1, 1]


def test_compiled(pipe):
    plain, calls = pipe(PROMPTS, n=1, **QUICK), []

    def backend(graph, example):
        calls.append(graph)
        return graph.forward

    torch._dynamo.reset()
    assert pipe.enable_compile(backend=backend) is pipe
    assert close(pipe(PROMPTS, n=1, **QUICK), plain) and calls
    assert all("_orig_mod" not in name for name in pipe.diffusion.state_dict())


# --- models ----------------------------------------------------------------------------------------------------------


def test_from_a_folder(tmp_path):
    encoder = text_encoder("words")
    made = diffusion(text_dim=encoder.dim, pooled_dim=encoder.pooled_dim)
    save_pretrained(made, tmp_path, card={"encoder": "words"})
    pipe = TextToImage.from_pretrained(tmp_path, device="cpu")
    expected = sample(made, 2, y=encoder(["a red circle"]), guidance=5.0, steps=3, progress=False).clamp(-1, 1)
    assert pipe.encoder.name == "words" and close(pipe("a red circle", n=2, **QUICK), expected)
    long = "a red circle " * 200
    with pytest.warns(UserWarning, match="1 of 1 prompts are longer than the .* tokens .* were cut"):
        cut = pipe(long, n=1, **QUICK)
    assert close(cut, pipe(" ".join(long.split()[:encoder.length]), n=1, **QUICK))
    assert pipe.to("cpu") is pipe


def test_the_encoder_of_a_folder(tmp_path):
    made = diffusion(text_dim=6, pooled_dim=4)
    save_pretrained(made, tmp_path)
    with pytest.raises(ValueError, match="the text encoder of .* is not known: pass encoder=.*words, minilm"):
        TextToImage.from_pretrained(tmp_path)
    assert TextToImage.from_pretrained(tmp_path, encoder=Letters())("a", n=1, **QUICK).shape == (1, 3, 8, 8)
    save_pretrained(made, tmp_path, card={"encoder": "my_module:encode"})
    with pytest.raises(ValueError, match="is 'my_module:encode', none of ours"):  # a card must not run code
        TextToImage.from_pretrained(tmp_path)
    save_pretrained(made, tmp_path, card={"encoder": "words"})
    with pytest.raises(ValueError, match="'words' has dim=128, and the network was made for text_dim=6"):
        TextToImage.from_pretrained(tmp_path)


def test_missing_and_damaged_models(tmp_path):
    for cls in (TextToImage, ClassToImage):
        with pytest.raises(ValueError, match="unknown bundled weights 'emoji-unit'. Did you mean 'emoji-unet'"):
            cls.from_pretrained("emoji-unit")
        with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'"):
            cls.from_pretrained(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"from_pretrained\('org/name', download=True\)"):
            cls.from_pretrained("org/name")
        with pytest.raises(FileNotFoundError, match="a model is a folder with config.json and model.safetensors"):
            cls.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="a Classifier draws nothing"):
            cls.from_pretrained("emoji-classifier")
    save_pretrained(diffusion("ddpm_test", num_classes=3), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors .* is truncated"):
        ClassToImage.from_pretrained(tmp_path / "cut")
    for damaged in (b"{", b"[]", b"null", b"\xff\xfe"):
        (tmp_path / "cut" / "config.json").write_bytes(damaged)
        with pytest.raises(ValueError, match="config.json is truncated or no JSON"):
            ClassToImage.from_pretrained(tmp_path / "cut")


def test_a_run_is_not_yet_a_model(digits_run):
    with pytest.raises(FileNotFoundError, match="is a run of training.*minidiff export .*digits"):
        ClassToImage.from_pretrained(digits_run)


def test_shipped_names_may_be_paths():
    assert ClassToImage.from_pretrained(Path("emoji-unet"), device="cpu").count == 10


def test_models_of_another_kind():
    plain, labels, text = diffusion("ddpm_test"), diffusion("ddpm_test", num_classes=3), diffusion(text_dim=6)
    with pytest.raises(ValueError, match="ddpm_test takes classes: use ClassToImage"):
        TextToImage(labels, Letters())
    with pytest.raises(ValueError, match="ascend_test takes text: use TextToImage"):
        ClassToImage(text)
    for make in (ClassToImage, lambda model: TextToImage(model, Letters())):
        with pytest.raises(ValueError, match="ddpm_test takes neither: use minidiff.sample"):
            make(plain)
        with pytest.raises(ValueError, match="a DDPM draws nothing|draws nothing: give a Diffusion"):
            make(plain.network)


def test_latents_stay_as_they_are():
    made = diffusion("ddpm_test", num_classes=3)
    latents = Diffusion(made.network, made.schedule, "v", shape=(3, 8, 8), latents=0.18)
    with pytest.raises(ValueError, match='this model draws latents.*output="tensor"'):
        ClassToImage(latents)(0, n=1, steps=2, progress=False)
    found = ClassToImage(latents)(0, n=8, **QUICK)
    assert close(found, sample(latents, 8, y=0, guidance=3.0, steps=3, progress=False)) and found.abs().max() > 1


def test_other_value_ranges():
    made = diffusion("ddpm_test", num_classes=3)
    unit = Diffusion(made.network, made.schedule, "v", shape=(3, 8, 8), value_range=(0.0, 1.0))
    expected = sample(unit, 2, y=0, guidance=3.0, steps=3, progress=False)
    assert close(ClassToImage(unit)(0, n=2, **QUICK), (2 * expected - 1).clamp(-1, 1))


# --- classes ---------------------------------------------------------------------------------------------------------


def test_classes_by_number_and_name(classes):
    expected = sample(classes.diffusion, 2, y=1, guidance=3.0, steps=3, progress=False).clamp(-1, 1)
    for dog in (1, "dog", torch.tensor(1), np.int64(1), np.array(1)):
        assert close(classes(dog, n=2, **QUICK), expected)
    rows = classes(["tree", 1, None], n=2, **QUICK)
    assert rows.shape == (3, 2, 3, 8, 8) and close(rows[1], expected)
    assert close(classes(torch.tensor([2, 1]), n=2, **QUICK), rows[:2])
    null = sample(classes.diffusion, 2, y=3, steps=3, progress=False).clamp(-1, 1)
    assert close(rows[2], null) and close(classes(None, n=2, **QUICK), null)
    away = sample(classes.diffusion, 2, y=1, negative=2, guidance=3.0, steps=3, progress=False).clamp(-1, 1)
    assert close(classes("dog", n=2, negative="tree", **QUICK), away)
    assert [len(row) for row in classes(["cat", "dog"], n=3, steps=2, progress=False)] == [3, 3]


@pytest.mark.parametrize("name, wanted", [("emoji-unet", "Food & Drink"), ("shapes-unet", "red circle")])
def test_shipped_models(name, wanted):
    pipe = ClassToImage.from_pretrained(name)
    assert wanted in pipe.classes and len(pipe.classes) == pipe.count
    images = pipe([wanted, 0], n=2, steps=2, progress=False)
    assert [image.size for row in images for image in row] == [(16, 16)] * 4
    number = pipe.classes.index(wanted)
    assert np.array_equal(np.asarray(pipe(number, n=1, steps=2, progress=False)[0]), np.asarray(images[0][0]))


def test_shapes_unet_draws_the_class_that_was_asked_for():
    """The first object is the class in all scenes of its training; the oracle reads most of them so."""
    from minidiff.datasets import shapes

    pipe = ClassToImage.from_pretrained("shapes-unet", device="cpu")
    wanted = ["red circle", "blue square", "green cross", "purple square"]
    found = pipe(wanted, n=6, steps=20, sampler="dpmpp_2m", progress=False, output="tensor")
    right = sum(
        any(f"{thing.colour} {thing.shape}" == name for thing in scene.things)
        for name, row in zip(wanted, found) for scene in shapes.read(row) if scene
    )  # fmt: skip
    assert right > 12


def test_classes_of_the_card(tmp_path):
    made = diffusion("ddpm_test", num_classes=3)
    for card, names in (({"classes": ["a", "b", "c"]}, ["a", "b", "c"]), ({}, None), ({"dataset": "nothing"}, None),
                        ({"dataset": {"name": "folder", "path": "/nowhere"}}, None)):  # fmt: skip
        save_pretrained(made, tmp_path, card=card)
        assert ClassToImage.from_pretrained(tmp_path).classes == names
    with pytest.raises(ValueError, match="class 'a': .* is not known; give a number from 0 to 2"):
        ClassToImage.from_pretrained(tmp_path)("a")
    save_pretrained(made, tmp_path, card={"dataset": "emoji"})
    with pytest.raises(ValueError, match="classes must be 3 names, one for each label of the network, got 10"):
        ClassToImage.from_pretrained(tmp_path)("Flags")


# --- values that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
    (dict(n=0), "n must be a whole number of at least 1, got 0"),
    (dict(n=2.0), "n must be a whole number of at least 1, got 2.0"),
    (dict(output="png"), "unknown output 'png'.*pil, tensor"),
    (dict(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
    (dict(seed=-1), "seed must be a whole number of at least 0, got -1"),
    (dict(seed="a"), "seed must be a whole number of at least 0, got 'a'"),
    (dict(seed=[1, 2]), "seed must be one for all, or a list of 1, .* got 2"),
    (dict(sampler="dim"), "unknown sampler 'dim'. Did you mean 'ddim'"),
    (dict(steps=0), "steps"),
    (dict(etta=0.5), "unknown option of ddim 'etta'. Did you mean 'eta'"),
    (dict(clipped="static"), "clipped must be True, False or"),
    (dict(guidance="a lot"), "a lot"),
    (dict(guidance=1, rescale=0.5), "rescale: a change of classifier-free guidance, and guidance=1 is none"),
])  # fmt: skip
def test_arguments(pipe, classes, changes, message):
    for draws, what in ((pipe, "a"), (classes, 0)):
        with pytest.raises(ValueError, match=message):
            draws(what, **dict(progress=False) | changes)


def test_prompts_and_classes_that_are_none(pipe, classes):
    for wrong, message in (
        (None, "must be a list of strings, got None"), (["a", 3], "prompt number 1 must be a string, got 3"),
        ([], "nothing to draw: give at least one prompt or class"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pipe(wrong)
    with pytest.raises(ValueError, match="negative must be one for all, or a list of 2, .* got 1"):
        pipe(["a", "b"], negative=["c"])
    with pytest.raises(ValueError, match="prompt number 0 must be a string, got 3"):
        pipe("a", negative=3)
    with pytest.raises(ValueError, match="negative: a change of classifier-free guidance, and guidance=1 is none"):
        pipe("a", negative="b", guidance=1, progress=False)
    for wrong in ("dgo", 3, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"unknown class {wrong!r}.*cat, dog, tree"):
            classes(wrong)
    with pytest.raises(ValueError, match="nothing to draw"):
        classes([])
    with pytest.raises(ValueError, match="classes must be 3 names"):
        ClassToImage(classes.diffusion, ["a"])


def test_encoders_that_do_not_answer(pipe):
    with pytest.raises(ValueError, match="must give a minidiff.Text of 1 prompts, got Tensor"):
        TextToImage(pipe.diffusion, lambda prompts: torch.zeros(1, 3, 6))("a", **QUICK)
    with pytest.raises(ValueError, match="must give a minidiff.Text of 2 prompts, got one of 1"):
        TextToImage(pipe.diffusion, lambda prompts: Letters()(prompts[:1]))(["a", "b"], **QUICK)


def test_each_picture_has_its_own_target(pipe):
    """Also where they are drawn in several batches."""
    options = dict(gradient=lambda x, t, target: target.view(-1, 1, 1, 1) - x, target=torch.linspace(-1, 1, 8))
    whole = pipe(PROMPTS, n=2, guidance=1, **options, **QUICK)
    assert close(pipe(PROMPTS, n=2, guidance=1, batch_size=3, **options, **QUICK), whole)
    options["target"] = options["target"].tolist()
    assert close(pipe(PROMPTS, n=2, guidance=1, batch_size=3, **options, **QUICK), whole)
    assert not close(pipe(PROMPTS, n=2, guidance=1, **options | dict(target=0.5), **QUICK), whole, 0.01)


def test_drawing_needs_no_pipeline():
    made = diffusion("ddpm_test", num_classes=3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    found = draw(made, lambda part: (labels[part], None), [(9, i) for i in range(5)], steps=3, batch_size=2,
                 guidance=2.0, progress=False)  # fmt: skip
    assert close(found, sample(made, 5, y=labels, seed=9, guidance=2.0, steps=3, progress=False))


def test_a_learned_variance_is_used():
    made = network("ddpm_test", num_classes=3, out_channels=6)
    made = Diffusion(made, schedules.linear(50), "eps", learned_range=True, shape=(3, 8, 8))
    options = dict(guidance=2.0, sampler="ddpm", steps=4, progress=False)
    expected = sample(made, 3, y=1, **options)
    found = draw(made, lambda part: (torch.tensor([1, 1, 1])[part], None), [(0, i) for i in range(3)], **options)
    assert close(found, expected)
    assert not close(found, sample(made, 3, y=1, variance="small", **options), 0.01)


def test_it_leaves_the_model_as_it_was(pipe):
    pipe.diffusion.train()
    pipe("a", n=1, **QUICK)
    assert pipe.diffusion.training
