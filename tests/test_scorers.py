"""Judges of noisy images: what they return, that their gradients are right, and that they learn."""

import pytest
import torch

from minidiff import create_model, from_pretrained, list_models, load, save_pretrained, schedules
from minidiff.checkpoints import build, describe, read_card
from minidiff.datasets import InMemory
from minidiff.scorers import Classifier, TextScorer
from minidiff.text import WordTokenizer
from minidiff.training import train

WORDS = ["red", "green", "blue", "heart", "cat", "face", "pizza", "flag"]
TEXTS = ["red heart", "cat", "blue flag"]


def classifier(**arguments):
    torch.manual_seed(0)
    return randomised(Classifier(create_model("classifier_test", **arguments), schedules.cosine(), shape=(3, 8, 8)))


def scorer(length=4, **arguments):
    torch.manual_seed(0)
    network = create_model("clip_test", **arguments)
    return randomised(TextScorer(network, schedules.cosine(), WordTokenizer(WORDS, length), shape=(3, 8, 8)))


def randomised(judge):
    """In eval mode, with noise in the layers that start as nothing and would hide what lies before them."""
    with torch.no_grad():
        for weight in judge.parameters():
            if weight.abs().max() < 1e-3:
                weight.add_(0.1 * torch.randn_like(weight))
    return judge.eval()


def images(count=3, seed=0, dtype=torch.float32):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the networks ----------------------------------------------------------------------------------------------------


def test_registered_by_their_kind():
    assert {"classifier_tiny", "classifier_test"} <= set(list_models(kind="classifier"))
    assert set(list_models(kind="scorer")) == {"clip_tiny", "clip_test"}
    for name in ("classifier_tiny", "clip_tiny"):
        assert 3e5 < sum(weight.numel() for weight in create_model(name).parameters()) < 8e5


@pytest.mark.parametrize("make", [classifier, scorer])
def test_each_image_is_judged_alone_and_by_its_time(make):
    judge, x, t = make(), images(), torch.tensor([0.1, 0.5, 0.9])
    look = judge.logits if make is classifier else judge.image
    with torch.no_grad():
        whole = look(x, t)
        assert whole.shape[0] == 3 and whole.isfinite().all()
        for i in range(3):
            torch.testing.assert_close(look(x[i : i + 1], t[i].item()), whole[i : i + 1], rtol=1e-4, atol=1e-5)
        shared = look(x, 0.5)
        torch.testing.assert_close(shared[1], whole[1], rtol=1e-4, atol=1e-5)
        assert (shared[0] - whole[0]).abs().max() > 1e-4
        assert (whole[0] - whole[1]).abs().max() > 1e-4


def test_every_parameter_gets_a_gradient():
    for judge, y in ((classifier(), torch.tensor([0, 1, 2])), (scorer(), TEXTS)):
        judge.loss(images().clamp(-1, 1), y, t=torch.tensor([0.1, 0.4, 0.7])).sum().backward()
        for name, weight in judge.named_parameters():
            assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_compiles_into_one_graph():
    network, x = classifier().network, images()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, torch.tensor([5.0])), network(x, torch.tensor([5.0])))


# --- the classifier --------------------------------------------------------------------------------------------------


def test_probabilities_of_classes_sum_to_one_and_are_the_softmax_of_the_logits():
    judge, x = classifier(), images()
    t = torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        logs = torch.stack([judge.log_prob(x, t, torch.full((3,), y)) for y in range(3)], dim=1)
        torch.testing.assert_close(logs.exp().sum(1), torch.ones(3))
        torch.testing.assert_close(logs, judge.logits(x, t).log_softmax(1))
        torch.testing.assert_close(judge.log_prob(x, 0.5, torch.tensor([2, 0, 1]))[1], logs[1, 0])


def test_the_network_is_fed_the_index():
    judge, seen = classifier(), []
    judge.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[1]))
    judge.logits(images(), 0.5)
    judge.logits(images(), torch.tensor([0.001, 0.5, 1.0]))
    assert seen[0].tolist() == [499] and seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[1], torch.tensor([0.0, 499.0, 999.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("make, y", [(classifier, torch.tensor([2, 0])), (scorer, ["red heart", "cat"])])
def test_the_gradient_in_x_is_right(make, y):
    judge, x = make().double(), images(2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: judge.log_prob(x, 0.3, y), x, fast_mode=True, atol=1e-4)


def test_the_loss_is_the_cross_entropy_at_the_noise_of_the_schedule():
    judge, x0, y = classifier(), images().clamp(-1, 1), torch.tensor([0, 1, 2])
    t = torch.tensor([0.001, 0.4, 1.0])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    alpha, sigma = (value.view(3, 1, 1, 1) for value in judge.schedule(t))
    with torch.no_grad():
        losses = judge.loss(x0, y, t=t, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(losses, -judge.log_prob(alpha * x0 + sigma * eps, t, y))
        drawn = [judge.loss(x0, y, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# --- the scorer ------------------------------------------------------------------------------------------------------


def test_similarities_are_cosines_and_log_prob_scales_them():
    judge, x = scorer(), images()
    with torch.no_grad():
        cosines = judge.similarity(x, 0.4, TEXTS)
        assert cosines.shape == (3, 3) and cosines.abs().max() <= 1 + 1e-6
        torch.testing.assert_close(judge.image(x, 0.4).norm(dim=1), torch.ones(3))
        torch.testing.assert_close(judge.text(TEXTS).norm(dim=1), torch.ones(3))
        torch.testing.assert_close(judge.log_prob(x, 0.4, TEXTS), cosines.diag() / 0.07)
        torch.testing.assert_close(judge.log_prob(x, 0.4, TEXTS[:1]), cosines[:, 0] / 0.07)
        tokens, _ = judge.tokenizer(TEXTS)
        torch.testing.assert_close(judge.similarity(x, 0.4, tokens), cosines)
        judge.network.logit_scale.fill_(9.0)
        assert judge.network.scale() == pytest.approx(100)


def test_padding_and_the_order_of_texts_do_not_matter_and_words_do():
    short, long = scorer(length=2), scorer(length=7)
    long.load_state_dict(short.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(short.text(TEXTS), long.text(TEXTS))
        torch.testing.assert_close(short.text(TEXTS[::-1]), short.text(TEXTS).flip(0))
        assert (short.text(["red heart"]) - short.text(["blue heart"])).abs().max() > 1e-3
        assert short.text(["", "dragon"]).isfinite().all()  # no word, and an unknown one


def test_the_contrastive_loss_by_its_definition():
    judge, x0, t = scorer(), images().clamp(-1, 1), torch.tensor([0.1, 0.4, 0.7])
    x_t, _ = judge.draw(x0, t, torch.Generator().manual_seed(3))
    with torch.no_grad():
        scores = judge.similarity(x_t, t, TEXTS) / 0.07
        expected = -(scores.log_softmax(1).diag() + scores.log_softmax(0).diag()) / 2
        torch.testing.assert_close(judge.loss(x0, TEXTS, t=t, generator=torch.Generator().manual_seed(3)), expected)


def test_equal_texts_are_no_mistakes_of_each_other():
    judge, x0 = scorer(), images(4).clamp(-1, 1)
    with torch.no_grad():
        assert judge.loss(x0, ["red heart", "Red heart!"] * 2).abs().max() < 1e-6
        assert judge.loss(x0, ["red heart", "cat"] * 2).min() > 0


def test_words_are_dropped_only_while_it_trains():
    judge = scorer(word_dropout=0.999999)
    with torch.no_grad():
        unknown = judge.text(["dragon"])
        assert (judge.text(["cat"]) - unknown).abs().max() > 1e-3
        torch.testing.assert_close(judge.train().text(["cat"]), unknown)


# --- learning --------------------------------------------------------------------------------------------------------


def colours(labels):
    """Pictures of one of three colours each."""
    pictures = -torch.ones(len(labels), 3, 8, 8)
    pictures[torch.arange(len(labels)), labels] = 1.0
    return pictures


@pytest.mark.parametrize("make", [classifier, scorer])
def test_the_training_loop_trains_them_and_their_gradient_leads_to_the_class(make):
    labels = torch.arange(3).repeat(8)
    names = ["red", "green", "blue"]
    judge = make()
    told = labels if make is classifier else judge.tokens([names[label] for label in labels])
    history = train(judge, InMemory(colours(labels), told, [""] * 24, names), steps=60, batch_size=24, lr=5e-3,
                    warmup=5, progress=False)  # fmt: skip
    assert history.losses[-10:].mean() < 0.5 * history.losses[:5].mean()
    x_t, y = judge.draw(colours(labels), torch.full((24,), 0.4), torch.Generator().manual_seed(1))[0], labels.roll(1)
    scores = judge.logits if make is classifier else lambda x, t: judge.similarity(x, t, names)
    assert (scores(x_t, 0.4).argmax(1) == labels).float().mean() > 0.9
    wanted = y if make is classifier else [names[label] for label in y]
    for _ in range(20):  # from one colour towards another one
        x_t = x_t.detach().requires_grad_()
        gradient, = torch.autograd.grad(judge.log_prob(x_t, 0.4, wanted).sum(), x_t)
        x_t = x_t + 2 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    assert (scores(x_t, 0.4).argmax(1) == y).float().mean() > 0.9


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [classifier, scorer])
def test_what_is_saved_comes_back(make, tmp_path):
    judge = make(dropout=0.1)
    save_pretrained(judge, tmp_path, card={"dataset": "none"})
    again = from_pretrained(tmp_path)
    assert type(again) is type(judge) and not again.training and describe(again) == describe(judge)
    assert describe(again)["kind"] == {classifier: "classifier", scorer: "scorer"}[make]
    y = torch.tensor([0, 1, 2]) if make is classifier else TEXTS
    with torch.no_grad():
        assert torch.equal(again.log_prob(images(), 0.3, y), judge.log_prob(images(), 0.3, y))
    assert read_card(tmp_path) == {"dataset": "none"}


def test_an_unknown_kind_of_model_is_named():
    with pytest.raises(ValueError, match="unknown kind of model 'clasifier'. Did you mean 'classifier'"):
        build(describe(classifier()) | {"kind": "clasifier"})


def test_weights_that_are_no_model_are_not_among_the_names(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    (tmp_path / "README.md").touch()  # by which a data folder is known
    save_pretrained(classifier(), tmp_path / "weights" / "mine")
    (tmp_path / "weights" / "features").mkdir()
    (tmp_path / "weights" / "features" / "config.json").write_text('{"features": {}}')
    assert isinstance(load("mine"), Classifier)
    with pytest.raises(ValueError, match="'features'.*Valid names: mine[.]"):
        load("features")


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_a_classifier():
    judge, y = classifier(), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="classes must be from 0 to 2, got 0 to 3"):
        judge.loss(images().clamp(-1, 1), torch.tensor([0, 1, 3]))
    for wrong in (y[:2], y.float(), 1, TEXTS):
        with pytest.raises(ValueError, match=r"classes must be an int64 tensor \(3,\)"):
            judge.log_prob(images(), 0.5, wrong)
    with pytest.raises(ValueError, match=r"shape \(B, 3, 8, 8\), got \(3, 3, 4, 4\).*make the Classifier"):
        judge.loss(torch.zeros(3, 3, 4, 4), y)
    with pytest.raises(ValueError, match="from 200 to 200"):
        judge.loss(torch.full((3, 3, 8, 8), 200.0), y)
    with pytest.raises(ValueError, match="3 channels and sides divisible by 2"):
        judge.logits(torch.zeros(1, 1, 8, 8), 0.5)
    with pytest.raises(ValueError, match='leave weight="uniform"'):
        judge.loss(torch.zeros(3, 3, 8, 8), y, p_uncond=0.1)
    with pytest.raises(ValueError, match="unknown time 'idx'"):
        Classifier(judge.network, judge.schedule, time="idx", shape=(3, 8, 8))
    with pytest.raises(ValueError, match='has none; use time="999t"'):
        Classifier(judge.network, schedules.cosine(None), shape=(3, 8, 8))


def test_what_does_not_fit_a_scorer():
    judge = scorer()
    with pytest.raises(ValueError, match="must be 3 texts, one for each image, or one for all; got 2"):
        judge.log_prob(images(), 0.5, TEXTS[:2])
    with pytest.raises(ValueError, match="must be 3 texts, one for each image, got 1"):
        judge.loss(images().clamp(-1, 1), TEXTS[:1])
    with pytest.raises(ValueError, match="list of strings"):
        judge.log_prob(images(), 0.5, "red heart")
    with pytest.raises(ValueError, match=r"int64 tensor \(N, L\), got torch.int64 \(3,\)"):
        judge.log_prob(images(), 0.5, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="tokens must be from 0 to 9, got 0 to 99"):
        judge.check_batch(images().clamp(-1, 1), torch.tensor([[0], [1], [99]]))
    with pytest.raises(ValueError, match="10 numbers and the network 12 words; make it with vocab_size=10"):
        TextScorer(create_model("clip_test", vocab_size=12), judge.schedule, judge.tokenizer, shape=(3, 8, 8))
