"""Networks for text: their sizes, their masks, their derivatives, and those that are published."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bisam_ray.config import ConfigError
from bisam_ray.training import language, models, text

pytest.importorskip("transformers")

WORDS = 60
PAD, START, END = 0, 2, 3


def vocabulary(size: int = WORDS, pad: int = PAD) -> SimpleNamespace:
    return SimpleNamespace(size=size, pad=pad, start=START, end=END)


def classifier(name: str = "bert-tiny", classes: int = 3, tokens=None) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, (2, 16), classes, tokens=tokens or vocabulary())


def translator() -> nn.Module:
    torch.manual_seed(0)
    return models.build("transformer-tiny", (2, 16), WORDS, tokens=vocabulary())


def texts(translated: bool, lengths: tuple[int, ...] = (12, 5, 9), pad: int = PAD) -> torch.Tensor:
    """(B, 2, 12): tokens and segments, or a source and a target that are not equally long."""
    x = torch.randint(4, WORDS, (len(lengths), 2, 12), generator=torch.Generator().manual_seed(1))
    for row, length in zip(x, lengths, strict=True):
        if translated:
            row[1, 0], row[1, (3 * length) // 4 :] = START, PAD
        else:
            row[1] = (torch.arange(12) >= length // 2) & (torch.arange(12) < length)
        row[0, length - 1], row[0, length:] = END, pad
    return x


def numbers(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def transformer_numbers(layers: int, width: int, within: int) -> int:
    """Of encoder and decoder, without the embeddings."""
    attention, norm = 4 * linear(width, width), 2 * width
    feed = linear(width, within) + linear(within, width)
    return layers * (attention + feed + 2 * norm) + layers * (2 * attention + feed + 3 * norm)


def test_bert_tiny_is_as_large_as_the_published_one():
    # google/bert_uncased_L-2_H-128_A-2 has 4,385,920 parameters, its head comes on top
    assert numbers(classifier(classes=2, tokens=vocabulary(30_522))) == 4_385_920 + linear(128, 2)


def test_transformer_iwslt_is_as_large_as_that_of_fairseq():
    large = models.build("transformer-iwslt", (2, 16), 10_000, tokens=vocabulary(10_000))
    within = transformer_numbers(6, 512, 1024)
    assert numbers(large) == within + 10_000 * 512 == 36_663_296
    # fairseq's transformer_iwslt_de_en: 39,469,056 with its vocabularies of 8,848 and 6,632, which it does not share
    assert within + (8_848 + 6_632) * 512 == 39_469_056
    dropouts = {layer.dropout for layer in large.network.model.decoder.layers}
    assert dropouts == {0.3} == {layer.dropout for layer in large.network.model.encoder.layers}


def test_transformer_tiny():
    network = translator()
    assert numbers(network) == transformer_numbers(2, 64, 128) + 64 * WORDS
    model = network.network.model
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is network.network.lm_head.weight


def test_positions_are_those_of_marian():
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    expected = MarianSinusoidalPositionalEmbedding(40, 64).create_weight()
    torch.testing.assert_close(language.sinusoids(40, 64), expected)
    model = translator().network.model
    for stack in (model.encoder, model.decoder):
        torch.testing.assert_close(stack.embed_positions.weight[:40], expected)


@pytest.mark.parametrize("name", ["bert-tiny", "transformer-tiny"])
def test_padding_changes_no_logits(name):
    network, x = (translator(), texts(True)) if "transformer" in name else (classifier(), texts(False))
    network.eval()
    found, longer = network(x), network(F.pad(x, (0, 8)))
    if found.dim() == 3:
        there = x[:, 1] != PAD
        found, longer = found[there], longer[:, :12][there]
    torch.testing.assert_close(found, longer, rtol=1e-4, atol=1e-5)
    alone = network(x[1:2, :, :8])
    alone = alone[0][x[1, 1, :8] != PAD] if alone.dim() == 3 else alone[0]
    there = network(x)[1]
    there = there[:8][x[1, 1, :8] != PAD] if there.dim() == 2 else there
    torch.testing.assert_close(alone, there, rtol=1e-4, atol=1e-5)


def test_no_token_sees_what_follows_it():
    network, x = translator().eval(), texts(True)
    changed = x.clone()
    changed[:, 1, 3] = 7
    moved = (network(x) - network(changed)).abs().amax((0, 2))
    assert (moved[:3] < 1e-5).all()
    assert moved[3] > 1e-3


def test_segments_and_sources_are_seen():
    for network, x, row in ((classifier(), texts(False), 1), (translator(), texts(True), 0)):
        network.eval()
        changed = x.clone()
        changed[0, row, 2] = 1 - x[0, row, 2] if row else 9
        moved = (network(x) - network(changed)).abs().flatten(1).amax(1)
        assert moved[0] > 1e-4
        assert (moved[1:] < 1e-5).all()


def loss(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits = network(x)
    if logits.dim() == 2:
        return F.cross_entropy(logits, torch.tensor([0, 1, 2]))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1, 1:].flatten(), ignore_index=PAD)


@pytest.mark.parametrize("name", ["bert-tiny", "transformer-tiny"])
def test_second_derivatives_without_fused_attention(name):
    network, x = (translator(), texts(True)) if "transformer" in name else (classifier(), texts(False))
    network = network.eval().double()
    params = [p for p in network.parameters() if p.requires_grad]
    v = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(2)) for p in params]

    def gradient(create_graph: bool = False) -> tuple[torch.Tensor, ...]:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad(loss(network, x), params, create_graph=create_graph)

    product = sum((g * w).sum() for g, w in zip(gradient(create_graph=True), v, strict=True))
    found = torch.autograd.grad(product, params)
    eps = 1e-7  # small: between the two points no rectifier should switch

    def moved(sign: float) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            torch._foreach_add_(params, v, alpha=sign * eps)
        there = gradient()
        with torch.no_grad():
            torch._foreach_add_(params, v, alpha=-sign * eps)
        return there

    expected = [(a - b) / (2 * eps) for a, b in zip(moved(1), moved(-1), strict=True)]
    size = max(e.abs().max() for e in expected)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * size


@pytest.mark.parametrize("name", ["bert-tiny", "transformer-tiny"])
def test_half_precision(name):
    network, x = (translator(), texts(True)) if "transformer" in name else (classifier(), texts(False))
    network.eval()
    whole = loss(network, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
        half = loss(network, x)
    half.backward()
    assert abs(half.item() - whole.item()) < 0.02 * whole.item()
    gradients = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("name", ["bert-tiny", "transformer-tiny"])
def test_dropout_is_drawn_from_torchs_generator(name):
    network, x = (translator(), texts(True)) if "transformer" in name else (classifier(), texts(False))
    network.train()

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return network(x)

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.allclose(drawn(3), drawn(4), atol=1e-2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of small published classifiers of two classes, by architecture."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 34,
    }
    small = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 34}
    deberta = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
    options = {
        "bert": sizes,
        "roberta": {**sizes, "type_vocab_size": 1, "pad_token_id": 1},
        "deberta-v2": {**sizes, **deberta, "position_buckets": 8, "share_att_key": True},
        "distilbert": {"vocab_size": WORDS, **small},
    }
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(5)
    for kind, given in options.items():
        config = AutoConfig.for_model(kind, **given, num_labels=2)
        network = AutoModelForSequenceClassification.from_config(config)
        if kind == "deberta-v2":
            network = network.half()  # as some are published
        network.save_pretrained(root / kind)
    return root


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "distilbert"])
def test_published_networks_train_on_text(saved, kind, capfd):
    pad = 1 if kind == "roberta" else PAD
    x = texts(False, pad=pad)
    torch.manual_seed(0)
    network = models.build(f"transformers/{saved / kind}", (2, 16), 3, tokens=vocabulary(pad=pad)).eval()
    told = capfd.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "not published, but initialised: classifier." in told.err
    longer = torch.stack([F.pad(x[:, 0], (0, 8), value=pad), F.pad(x[:, 1], (0, 8))], dim=1)
    torch.testing.assert_close(network(x), network(longer), rtol=1e-4, atol=1e-5)
    assert network(x).shape == (3, 3)
    params = list(network.parameters())
    assert all(p.dtype == torch.float32 for p in params)
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(loss(network, x), params, create_graph=True, allow_unused=True)
    square = sum((g * g).sum() for g in gradients if g is not None)
    second = torch.autograd.grad(square, params, allow_unused=True)
    assert sum(float(g.abs().sum()) for g in second if g is not None) > 0


def test_published_weights_are_taken_and_a_new_head_is_a_function_of_the_seed(saved, capfd, monkeypatch):
    from transformers import AutoModelForSequenceClassification

    def built(seed: int, classes: int) -> nn.Module:
        torch.manual_seed(seed)
        return models.build("transformers/~/bert", (2, 16), classes, tokens=vocabulary()).network

    monkeypatch.setenv("HOME", str(saved))
    there = AutoModelForSequenceClassification.from_pretrained(saved / "bert").state_dict()
    capfd.readouterr()
    same = built(0, 2).state_dict()
    assert capfd.readouterr().err == ""  # a head of the same size is published too
    assert all(torch.equal(value, same[key]) for key, value in there.items())
    first, again, other = (built(seed, 3).state_dict() for seed in (0, 0, 1))
    for key, value in there.items():
        if key.startswith("classifier."):
            assert first[key].shape[0] == 3
        else:
            assert torch.equal(value, first[key])
    assert torch.equal(first["classifier.weight"], again["classifier.weight"])
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_what_does_not_fit_is_refused(saved, tmp_path, monkeypatch):
    def refused(name: str, shape=(2, 16), classes=3, tokens=None) -> str:
        with pytest.raises(ConfigError) as error:
            models.build(name, shape, classes, tokens=tokens)
        told = str(error.value)
        assert "\n" not in told
        return told

    tokens = vocabulary()
    bert = f"transformers/{saved / 'bert'}"
    assert "needs text" in refused("bert-tiny", (3, 32, 32), 10)
    assert "takes images, not text" in refused("resnet18", tokens=tokens)
    assert "classifies nothing" in refused("transformer-tiny", tokens=tokens)
    assert "translates nothing" in refused("bert-tiny", classes=WORDS, tokens=tokens)
    assert "translates nothing" in refused(bert, classes=WORDS, tokens=tokens)
    assert "set data.length=512" in refused("bert-tiny", (2, 513), tokens=tokens)
    assert "set data.length=840" in refused("transformer-tiny", (2, 841), WORDS, tokens)
    assert "set data.length=32" in refused(bert, (2, 33), tokens=tokens)
    assert f"set data.length={(34 - 2) // 8 * 8}" in refused(
        f"transformers/{saved / 'roberta'}", (2, 33), tokens=vocabulary(pad=1)
    )
    assert f"knows {WORDS} tokens, and the data have 61" in refused(bert, tokens=vocabulary(61))
    assert "no such folder; did you mean bert?" in refused(f"transformers/{saved}/brt", tokens=tokens)
    assert "no such folder" in refused("transformers/a/b/c", tokens=tokens)
    assert "no config.json" in refused(f"transformers/{tmp_path}", tokens=tokens)
    (tmp_path / "config.json").write_text("{}")
    assert "not to be had" in refused(f"transformers/{tmp_path}", tokens=tokens)
    monkeypatch.setattr(text, "answers", lambda url: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    told = refused("transformers/microsoft/deberta-v3-base", tokens=tokens)
    assert "the hub cannot be reached; bring it into a folder" in told
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused("transformers/microsoft/deberta-v3-base", tokens=tokens)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    assert refused("bert-tiny", tokens=tokens).endswith(
        "needs transformers, which is not installed: pip install '.[text]'"
    )
