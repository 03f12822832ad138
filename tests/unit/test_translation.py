"""IWSLT'14: its files, its sentences as numbers, and a network that learns to translate made-up ones."""

import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bisam_ray.config import ConfigError, Data
from bisam_ray.training import datasets, models, text, translation
from bisam_ray.training.metrics import bleu
from bisam_ray.training.task import PADDED

pytest.importorskip("transformers")
pytest.importorskip("sacrebleu")

GERMAN = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def made_up(count: int, seed: int = 0, most: int = 8) -> list[tuple[str, str]]:
    """Digits in German, and in English in reverse order."""
    draw = random.Random(seed)
    digits = [[draw.randrange(10) for _ in range(draw.randint(4, most))] for _ in range(count)]
    return [(" ".join(GERMAN[i] for i in row), " ".join(ENGLISH[i] for i in reversed(row))) for row in digits]


def written(folder: Path, name: str, pairs: list[tuple[str, str]], end: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for side, language in enumerate(("de", "en")):
        lines = "".join(f"{pair[side]}\n" for pair in pairs)
        (folder / f"{name}.{language}{end}").write_text(lines, encoding="utf-8")


def config(root: Path, **options) -> Data:
    return Data(name="iwslt14", root=str(root), **{"vocabulary": 120, "length": 32, **options})


def refused(data: Data) -> str:
    with pytest.raises(ConfigError) as error:
        datasets.read(data)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("folder", translation.FOLDERS)
@pytest.mark.parametrize("between", ["", ".de-en"])
def test_prepared_files(tmp_path, folder, between):
    train, valid, test = made_up(20), made_up(5, 1), made_up(6, 2)
    for name, pairs in (("train", train), ("valid", valid), ("test", test)):
        written(tmp_path / folder, name + between, pairs)
    datasets.check(config(tmp_path))
    assert translation.pairs(config(tmp_path)) == (train + valid, test)


def test_subwords_and_escapes_of_fairseq_are_undone(tmp_path):
    pair = ("das ist &apos;n un@@ glau@@ blich@@ es bei@@ spiel &amp; mehr .", "it &apos;s in@@ credible .")
    plain = ("das ist 'n unglaubliches beispiel & mehr .", "it 's incredible .")
    separated = ("ein\u2028satz\rmit@@", "one sentence")  # what str.splitlines takes for two lines
    for name in ("train", "test"):
        written(tmp_path / "iwslt14", name, [pair, separated, ("leer", "")])
    train, test = translation.pairs(config(tmp_path))
    assert train == [plain, ("ein satz mit", "one sentence")]
    assert test == [*train, ("leer", "")]  # whose reference is empty, but nothing of test is left out


def test_official_files(tmp_path):
    folder = tmp_path / "iwslt14" / "de-en"
    talk = [
        ("<url>http://x</url>", "<url>http://x</url>"),
        ("<keywords>a, b</keywords>", "<keywords>a, b, c</keywords>"),
        ("<talkid>1</talkid>", "<talkid>1</talkid>"),
        ("<title>Ein Vortrag</title>", "<title>A talk</title>"),
        ("<description>Er sagt viel .</description>", "<description>He says a lot .</description>"),
        ("Vielen Dank, Chris.", "Thank you, Chris."),
        ("Ja.", "Yes, that is what I meant to say."),  # longer than 1.5 times the other
        ("", ""),
        ("wort " * 176, "word " * 176),
        ("<reviewer></reviewer>", "<translator>T</translator>"),
    ]
    written(folder, "train.tags.de-en", talk)
    for number, name in enumerate(translation.TESTS):
        around = [("<doc><hl>Titel</hl>", "<doc><hl>Title</hl>")]
        seg = [
            (f'<seg id="1"> Satz {number} &amp; das </seg>', f'<seg id="1"> Sentence’s {number} </seg>'),
            ('  <seg id="2">Ja. </seg>', f'  <seg id="2">Yes, that is what I meant to say, {number}.</seg>'),
        ]
        written(folder, f"IWSLT14.{name}.de-en", around + seg, ".xml")
    train, test = translation.pairs(config(tmp_path))
    assert train == [
        ("Ein Vortrag", "A talk"),
        ("Er sagt viel .", "He says a lot ."),
        ("Vielen Dank, Chris.", "Thank you, Chris."),
    ]
    expected = [
        [(f"Satz {i} & das", f"Sentence's {i}"), ("Ja.", f"Yes, that is what I meant to say, {i}.")] for i in range(5)
    ]
    assert test == [pair for document in expected for pair in document]
    (folder / "IWSLT14.TEDX.dev2012.de-en.en.xml").unlink()
    assert "no " + str(folder / "IWSLT14.TEDX.dev2012.de-en.en.xml") in refused(config(tmp_path))


def test_what_is_not_there_is_told(tmp_path, monkeypatch):
    told = refused(config(tmp_path))
    assert told.startswith(f"data.name=iwslt14: no train.de or train.tags.de-en.de in {tmp_path / 'iwslt14'}; unpack")
    folder = tmp_path / "iwslt14"
    written(folder, "train", made_up(20))
    assert f"no {folder / 'test.de'}" in refused(config(tmp_path))
    written(folder, "test", made_up(5)[:4])
    with (folder / "test.en").open("a") as file:
        file.write("one more\n")
    assert f"4 sentences in {folder / 'test.de'}, 5 in" in refused(config(tmp_path))
    (folder / "test.en").write_bytes(b"\xff\n" * 4)
    assert "is no UTF-8" in refused(config(tmp_path))
    written(folder, "test", made_up(5))
    assert "data.length=5: leaves 0 of 20 pairs" in refused(config(tmp_path, length=5))
    written(folder, "test", [])
    assert "no sentences" in refused(config(tmp_path))
    monkeypatch.setattr(translation.importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else 1)
    assert refused(config(tmp_path)).endswith("needs sacrebleu, which is not installed: pip install '.[text]'")


def test_sentences_as_numbers(tmp_path):
    train = [*made_up(40), ("null " * 28 + "eins", "one")]  # sources longer than all translations
    long = " ".join(GERMAN * 4)
    written(tmp_path / "iwslt14", "train", [*train, (long, "zero"), ("null", " ".join(ENGLISH * 4))])
    test = [(pair[0].capitalize(), pair[1].title()) for pair in made_up(10, 1)] + [(long, " ".join(ENGLISH * 4))]
    written(tmp_path / "iwslt14", "test", test)
    source = datasets.read(config(tmp_path))
    tokens = source.tokens
    assert tokens is not None
    assert source.classes == tokens.size <= 120
    assert source.task.score == "bleu"
    assert len(source.x) == len(source.y) == len(train)  # pairs that are too long are left out
    for x, y, pairs in ((source.x, source.y, train), (source.test_x, source.test_y, test)):
        whole = x[torch.arange(len(x))]
        length = whole.shape[2]
        assert y.shape[1] >= length
        assert (y[:, length:] == PADDED).all()
        for row, target, pair in zip(whole, y[:, :length], pairs, strict=True):
            there = target != PADDED
            end = int(there.sum()) - 1
            assert row[0, 0] == row[1, 0] == tokens.start
            assert target[end] == tokens.end
            assert torch.equal(row[1, 1 : end + 1], target[:end])  # what is said is what is seen one place later
            assert (row[1, end + 1 :] == tokens.pad).all()
            assert not there[end + 1 :].any()
            assert tokens.decode(row[0].tolist()) == pair[0].lower()
            assert tokens.decode(target[there].tolist()) == pair[1].lower()
    assert datasets.read(config(tmp_path, batch_size=7)).x is source.x  # read once
    assert datasets.read(config(tmp_path, length=30)).x is not source.x
    again = datasets.read(config(tmp_path))
    assert torch.equal(source.x.flat, again.x.flat)
    assert torch.equal(source.y, again.y)


@pytest.fixture(scope="module")
def learned(one_thread):
    """50 made-up sentences, and a transformer-tiny that has learned them."""
    pairs = made_up(50)
    tokens = text.train([side for pair in pairs for side in pair], 100)
    x, y = translation.numbered(pairs, tokens, 64, leave_out=True)
    torch.manual_seed(0)
    model = models.build("transformer-tiny", x.shape[1:], tokens.size, tokens=tokens)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    whole, steps = x[torch.arange(len(x))], 150
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 30) * (1 - step / steps)
        out = model(whole)
        loss = F.cross_entropy(out.flatten(0, 1), y[:, : out.shape[1]].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, tokens, pairs, x, y


def test_made_up_sentences_are_learned(learned):
    model, tokens, pairs, x, _ = learned
    found = [tokens.decode(row) for row in translation.translate(model, x, 5, tokens)]
    assert model.training
    assert bleu(found, [english for _, english in pairs]) > 90
    assert bleu(found[1:] + found[:1], [english for _, english in pairs]) < 50  # which is no matter of course


def test_padding_changes_neither_loss_nor_translation(learned):
    model, tokens, _, x, y = learned
    model.eval()
    whole = x[torch.arange(len(x))]
    padded = F.pad(whole, (0, 16), value=tokens.pad)
    losses = [
        F.cross_entropy(model(given).flatten(0, 1), F.pad(y, (0, 16), value=PADDED)[:, : given.shape[2]].flatten())
        for given in (whole, padded)
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    expected = translation.translate(model, x, 5, tokens)
    assert translation.translate(model, padded, 5, tokens) == expected
    assert translation.translate(model, whole[7:11], 5, tokens) == expected[7:11]
    model.train()


def test_batches_and_their_order_do_not_matter(learned, monkeypatch):
    model, tokens, _, x, _ = learned
    expected = translation.translate(model, x, 3, tokens)
    monkeypatch.setattr(translation, "AT_ONCE", 7)
    assert translation.translate(model, x, 3, tokens) == expected
    backwards = x.subset(torch.arange(len(x)).flip(0))
    assert translation.translate(model, backwards, 3, tokens) == expected[::-1]


@torch.no_grad()
def greedy(model, tokens, source: torch.Tensor, most: int) -> list[int]:
    """The most probable token after the other, of one sentence."""
    found = [tokens.start]
    while len(found) <= most:
        row = torch.tensor(found)
        length = max(len(row), len(source))
        x = torch.stack([F.pad(part, (0, length - len(part)), value=tokens.pad) for part in (source, row)])
        logits = model(x[None])[0, len(found) - 1]
        logits[[tokens.start, tokens.pad]] = -torch.inf
        if (best := int(logits.argmax())) == tokens.end:
            break
        found.append(best)
    return found[1:]


@torch.no_grad()
def mean_log_probability(model, tokens, source: torch.Tensor, found: list[int]) -> float:
    target = torch.tensor([tokens.start, *found, tokens.end])
    length = max(len(source), len(target) - 1)
    rows = (source, target[:-1])
    x = torch.stack([F.pad(part, (0, length - len(part)), value=tokens.pad) for part in rows])
    logs = model(x[None])[0, : len(target) - 1].log_softmax(-1)
    return logs.gather(1, target[1:, None]).mean().item()


def test_a_beam_of_one_is_greedy_and_wider_ones_find_no_worse(learned):
    model, tokens, _, _, _ = learned
    # sentences that it has not learned: of those that it has, all searches find the same
    new, _ = translation.numbered(made_up(40, seed=9), tokens, 64, leave_out=True)
    sources = [new[torch.tensor([i])][0, 0] for i in range(len(new))]
    model.eval()
    lengths = [int((source != tokens.pad).sum()) for source in sources]
    one, wide = (translation.translate(model, new, beam, tokens) for beam in (1, 5))
    assert one == [greedy(model, tokens, s, int(1.2 * n) + 10) for s, n in zip(sources, lengths, strict=True)]
    pairs = zip(sources, one, wide, strict=True)
    gains = [
        mean_log_probability(model, tokens, source, far) - mean_log_probability(model, tokens, source, near)
        for source, near, far in pairs
    ]
    model.train()
    assert one != wide
    assert sum(gains) > 0.1
    assert sum(gain < -1e-4 for gain in gains) <= 4  # a beam may lose the greedy path


def test_a_translation_is_not_endless():
    tokens = text.train(["ein wort", "a word"], 100)
    x, _ = translation.numbered([("ein wort", "a word")], tokens, 64, leave_out=True)
    torch.manual_seed(0)
    model = models.build("transformer-tiny", x.shape[1:], tokens.size, tokens=tokens)
    with torch.no_grad():
        model.network.model.decoder.layers[-1].final_layer_norm.weight.zero_()  # says the same at every place
        model.network.model.decoder.layers[-1].final_layer_norm.bias.copy_(model.network.lm_head.weight[7] * 10)
    length = int(x.lengths[0])
    assert translation.translate(model, x, 2, tokens) == [[7] * (int(1.2 * length) + 10)]
    with pytest.raises(ConfigError, match="nearest: transformer-iwslt"):
        translation.translate(torch.nn.Identity(), x, 2, tokens)
