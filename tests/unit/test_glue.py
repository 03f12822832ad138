"""GLUE's tasks: read alike from every format, refused in one line where a file is damaged."""

import json
import shutil
import time

import pyarrow
import pytest
import torch
from pyarrow import parquet

from bisam_ray.config import ConfigError, Data
from bisam_ray.training import data, datasets, glue, text
from bisam_ray.training.task import Classification, Regression

# the official columns: what they hold of an example ({0}, {1} the sentences, {label}), or a filler
OFFICIAL = {
    "cola": "gj04\t{label}\t\t{0}",
    "sst2": "sentence={0}\tlabel={label}",
    "mrpc": "Quality={label}\t#1 ID=702876\t#2 ID=702977\t#1 String={0}\t#2 String={1}",
    "qqp": "id=133273\tqid1=213221\tqid2=213222\tquestion1={0}\tquestion2={1}\tis_duplicate={label}",
    "stsb": "index=0\tgenre=main-captions\tfilename=MSRvid\tyear=2012test\told_index=1\tsource1=none\tsource2=none\t"
    "sentence1={0}\tsentence2={1}\tscore={label}",
    "mnli": "index=0\tpromptID=31193\tpairID=31193n\tgenre=government\tsentence1_binary_parse=( x )\t"
    "sentence2_binary_parse=( x )\tsentence1_parse=(ROOT)\tsentence2_parse=(ROOT)\tsentence1={0}\tsentence2={1}\t"
    "label1=neutral\tgold_label={label}",
    "qnli": "index=0\tquestion={0}\tsentence={1}\tlabel={label}",
    "rte": "index=0\tsentence1={0}\tsentence2={1}\tlabel={label}",
    "wnli": "index=0\tsentence1={0}\tsentence2={1}\tlabel={label}",
}
NUMBERED = ("cola", "sst2", "mrpc", "qqp", "stsb", "wnli")  # in the official files; the others have names
WORDS = ["the", "cat", "sat", '"', "on\u2028a\rb", "mat", "who?", "[SEP]", "naïve", "\x85", "dog."]


def made(task, count, seed=0):
    """Sentences and labels, as the hub has them."""
    table, generator = glue.TASKS[task], torch.Generator().manual_seed(seed)

    def sentence():
        size = int(torch.randint(1, 12, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (size,), generator=generator).tolist())

    few = len(table.classes) or 26
    labels = torch.randint(few, (count,), generator=generator).tolist()
    labels = [*range(len(table.classes)), *labels][:count] if table.classes else [label / 5 for label in labels]
    return [[sentence() for _ in table.texts] for _ in range(count)], labels


def tsv(task, file, sentences, labels):
    cells = [cell.partition("=")[::2] if "=" in cell else (cell, "") for cell in OFFICIAL[task].split("\t")]
    header = "\t".join(name for name, _ in cells)
    pattern = OFFICIAL[task] if task == "cola" else "\t".join(value for _, value in cells)
    rows = []
    for texts, label in zip(sentences, labels, strict=True):
        shown = label if task in NUMBERED else glue.TASKS[task].classes[label]
        rows.append(pattern.format(*texts, label=shown))
    file.write_bytes(("\n".join(rows if task == "cola" else [header, *rows]) + "\n").encode())


def jsonl(task, file, sentences, labels):
    columns = [*glue.TASKS[task].texts, "label"]
    rows = [dict(zip(columns, [*texts, label], strict=True)) for texts, label in zip(sentences, labels, strict=True)]
    file.write_text("".join(json.dumps({**row, "idx": index}) + "\n" for index, row in enumerate(rows)))


def columnar(task, file, sentences, labels):
    columns = dict(zip(glue.TASKS[task].texts, map(list, zip(*sentences, strict=True)), strict=True))
    parquet.write_table(pyarrow.table({**columns, "label": labels, "idx": list(range(len(labels)))}), file)


WRITERS = {".tsv": tsv, ".jsonl": jsonl, ".parquet": columnar, "-00000-of-00001.parquet": columnar}


def write(task, root, end=".tsv", folder=None, sizes=(40, 12)):
    place = root / "glue" / (folder or glue.TASKS[task].folder)
    place.mkdir(parents=True, exist_ok=True)
    for seed, (stem, size) in enumerate(zip(("train", f"dev{glue.TASKS[task].dev}"), sizes, strict=True)):
        WRITERS[end](task, place / f"{stem}{end}", *made(task, size, seed))
    return place


def config(task, root, **fields):
    return Data(
        name=f"glue/{task}", root=str(root), **{"tokenizer": "train", "vocabulary": 200, "length": 99, **fields}
    )


def refused(called, *words):
    with pytest.raises(ConfigError) as error:
        called()
    line = str(error.value)
    assert "\n" not in line
    missing = [str(word) for word in words if str(word) not in line]
    assert not missing, line
    assert error.value.__suppress_context__ or error.value.__context__ is None  # no second traceback
    return line


def test_nine_tasks_with_the_hub_s_order_of_labels_and_the_scores_of_the_paper():
    assert {task: (table.classes, *glue.SCORES[task]) for task, table in glue.TASKS.items()} == {
        "cola": (("unacceptable", "acceptable"), "matthews"),
        "sst2": (("negative", "positive"), "accuracy"),
        "mrpc": (("not_equivalent", "equivalent"), "accuracy", "f1"),
        "qqp": (("not_duplicate", "duplicate"), "accuracy", "f1"),
        "stsb": ((), "pearson", "spearman"),
        "mnli": (("entailment", "neutral", "contradiction"), "accuracy"),
        "qnli": (("entailment", "not_entailment"), "accuracy"),
        "rte": (("entailment", "not_entailment"), "accuracy"),
        "wnli": (("not_entailment", "entailment"), "accuracy"),
    }
    assert set(OFFICIAL) == set(glue.TASKS)


@pytest.mark.parametrize("task", glue.TASKS)
def test_the_official_files_are_read_as_they_are(task, tmp_path):
    write(task, tmp_path)
    datasets.check(config(task, tmp_path))
    source = datasets.read(config(task, tmp_path))
    table = glue.TASKS[task]
    for x, y, (sentences, labels) in (
        (source.x, source.y, made(task, 40)),
        (source.test_x, source.test_y, made(task, 12, 1)),
    ):
        assert x.pads == (source.tokens.pad, 0)
        assert y.dtype == (torch.int64 if table.classes else torch.float32)
        assert y.tolist() == pytest.approx(labels)
        first, *second = map(list, zip(*sentences, strict=True))
        ids, segments = source.tokens.encode(first, second[0] if second else None, 99)
        for index in range(len(y)):
            size = len(ids[index])
            found = x[torch.tensor([index])][0]
            assert found[0].tolist() == ids[index] + [0] * (found.shape[1] - size)
            assert found[1, :size].tolist() == segments[index]
        assert (max(max(row) for row in segments) == 1) == bool(second)
    assert source.classes == (len(table.classes) or 1)
    assert source.confused.tolist() == [*range(1, source.classes), 0]
    assert isinstance(source.task, Classification if table.classes else Regression)
    assert isinstance(source.task, Regression) == (not table.classes)
    assert tuple(source.task.scores) == glue.SCORES[task]


@pytest.mark.parametrize("task", glue.TASKS)
def test_every_format_gives_the_same(task, tmp_path):
    found = []
    for end in WRITERS:
        root = tmp_path / end.replace(".", "")
        write(task, root, end, folder=task if end == ".jsonl" else None)
        found.append(datasets.read(config(task, root)))
    for other in found[1:]:
        for mine, its in ((found[0].x, other.x), (found[0].test_x, other.test_x)):
            assert torch.equal(mine.flat, its.flat)
            assert torch.equal(mine.starts, its.starts)
        assert torch.equal(found[0].y, other.y)
        assert torch.equal(found[0].test_y, other.test_y)


def test_labels_may_be_names_and_validation_is_dev(tmp_path):
    place = write("mnli", tmp_path, ".jsonl")
    (place / "dev_matched.jsonl").rename(place / "validation_matched.jsonl")
    file = place / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    names = glue.TASKS["mnli"].classes
    file.write_text("\n".join(json.dumps({**row, "label": names[row["label"]]}) for row in rows))
    assert datasets.read(config("mnli", tmp_path)).y.tolist() == [row["label"] for row in rows]


def test_the_test_set_teaches_the_vocabulary_nothing(tmp_path):
    place = write("sst2", tmp_path)
    before = datasets.read(config("sst2", tmp_path))
    (place / "dev.tsv").write_text("sentence\tlabel\nжжж\t1\n")
    after = datasets.read(config("sst2", tmp_path))
    assert torch.equal(before.x.flat, after.x.flat)
    assert after.test_x.flat.tolist()[:3] == [2, after.tokens.encode(["ж"], None, 9)[0][0][1], 1]


def test_windows_lines_a_byte_order_mark_and_empty_lines(tmp_path):
    place = write("mrpc", tmp_path)
    before = datasets.read(config("mrpc", tmp_path))
    file = place / "train.tsv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n")
    after = datasets.read(config("mrpc", tmp_path))
    assert torch.equal(before.x.flat, after.x.flat)
    assert torch.equal(before.y, after.y)


@pytest.mark.parametrize("task", ["rte", "stsb", "cola"])
def test_a_bad_row_is_named_with_its_line(task, tmp_path):
    place = write(task, tmp_path)
    file, good = place / "train.tsv", (place / "train.tsv").read_bytes().split(b"\n")
    label = good[6].split(b"\t")[1 if task == "cola" else -1]

    def broken(row):
        file.write_bytes(b"\n".join([*good[:6], row, *good[7:]]))
        return lambda: datasets.read(config(task, tmp_path))

    refused(broken(b"1\tx"), f"data.name=glue/{task}: ", file, "line 7: 2 columns", "replace")
    for wrong in (b"maybe", b"-1", b"7", b"nan", b""):
        row = good[6].replace(b"\t" + label, b"\t" + wrong)
        refused(broken(row), file, "line 7: ", "hidden" if wrong == b"-1" else f"label {wrong.decode()!r} is not")
    refused(broken(b"\xff\xfe"), file, "not UTF-8")
    if task != "cola":
        file.write_bytes(good[0].replace(b"sentence1", b"sentenceI") + b"\n")
        refused(lambda: datasets.read(config(task, tmp_path)), file, "line 1: no column sentence1")
    file.write_bytes(b"" if task == "cola" else good[0])
    refused(lambda: datasets.read(config(task, tmp_path)), file, "no examples")


def test_bad_json(tmp_path):
    file = write("rte", tmp_path, ".jsonl") / "dev.jsonl"
    good = file.read_text().splitlines()
    for row, words in (
        ('{"sentence1": ', "line 3: no JSON"),
        ('{"sentence1": "a", "label": 1}', "line 3: no sentence2"),
        ('["a"]', "line 3: no sentence1"),
        ('{"sentence1": null, "sentence2": "b", "label": 1}', "line 3: a sentence is missing"),
        ('{"sentence1": "a", "sentence2": "b", "label": -1}', "line 3: the label is hidden"),
        ('{"sentence1": "a", "sentence2": "b", "label": true}', "line 3: label True is not"),
        ('{"sentence1": "a", "sentence2": "b", "label": 0.5}', "line 3: label 0.5 is not"),
    ):
        file.write_text("\n".join([*good[:2], row, *good[3:]]))
        refused(lambda: datasets.read(config("rte", tmp_path)), file, words)


def test_bad_parquet(tmp_path):
    file = write("rte", tmp_path, ".parquet") / "train.parquet"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PAR1"):
        file.write_bytes(content)
        refused(lambda: datasets.read(config("rte", tmp_path)), file, "no whole Parquet file")
    parquet.write_table(pyarrow.table({"sentence1": ["a"], "label": [1]}), file)
    refused(lambda: datasets.read(config("rte", tmp_path)), file, "no column sentence2")
    parquet.write_table(pyarrow.table({"sentence1": ["a", "b"], "sentence2": ["a", None], "label": [1, 0]}), file)
    refused(lambda: datasets.read(config("rte", tmp_path)), file, "row 2: a sentence is missing")


def test_broken_rows_of_qqp_are_left_out_as_by_the_hub(tmp_path):
    place = write("qqp", tmp_path)
    before = datasets.read(config("qqp", tmp_path))
    lines = (place / "train.tsv").read_bytes().split(b"\n")
    (place / "train.tsv").write_bytes(
        b"\n".join([*lines[:9], b"1\t2\t3\twho", b"what?\t1", b"1\t2\t3\ta\tb\t", *lines[9:]])
    )
    assert torch.equal(datasets.read(config("qqp", tmp_path)).x.flat, before.x.flat)


def test_what_is_missing_and_what_to_do(tmp_path, far):
    for look in (datasets.check, datasets.read):
        line = refused(lambda look=look: look(config("mrpc", tmp_path)))
        assert line == (
            f"data.name=glue/mrpc: no {tmp_path}/glue/MRPC/train (.tsv, .jsonl or .parquet); set data.download=true, "
            "or put train and dev there"
        )
        refused(lambda look=look: look(config("mnli-mm", tmp_path)), "no task mnli-mm", "did you mean mnli?")
        refused(lambda look=look: look(config("STS-B", tmp_path)), "no task STS-B", "did you mean stsb?")
        began = time.perf_counter()
        asked = config("mrpc", tmp_path, download=True)
        refused(lambda look=look, asked=asked: look(asked), "cannot be reached", f"put train and dev into {tmp_path}")
        assert time.perf_counter() - began < 10
    place = write("mnli", tmp_path)
    (place / "dev_matched.tsv").unlink()
    refused(lambda: datasets.check(config("mnli", tmp_path)), f"no {place}/dev_matched (.tsv", place / "train.tsv")


def test_without_the_library(tmp_path, monkeypatch):
    write("rte", tmp_path)
    monkeypatch.setattr(glue.text.importlib.util, "find_spec", lambda name: None)
    for name, library in (("train", "tokenizers"), ("bert-base-cased", "transformers")):
        for look in (datasets.check, datasets.read):
            line = refused(lambda look=look, name=name: look(config("rte", tmp_path, tokenizer=name)))
            assert line == f"data.name=glue/rte: needs {library}, which is not installed: pip install '.[text]'"


@pytest.fixture
def far(monkeypatch, tmp_path):
    """A hub that cannot be reached, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def test_what_lies_in_the_hub_s_cache_needs_no_network(tmp_path, far):
    place = write("mnli", tmp_path, ".parquet")
    expected = datasets.read(config("mnli", tmp_path))
    kept, commit = far / "datasets--nyu-mll--glue", 40 * "a"
    folder = kept / "snapshots" / commit / "mnli"
    folder.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text(commit)
    shutil.move(place / "train.parquet", folder / "train-00000-of-00001.parquet")
    shutil.move(place / "dev_matched.parquet", folder / "validation_matched-00000-of-00001.parquet")
    found = datasets.read(config("mnli", tmp_path))
    assert torch.equal(found.x.flat, expected.x.flat)
    assert torch.equal(found.test_y, expected.test_y)


def test_what_is_downloaded_is_read(tmp_path, far, monkeypatch):
    place = write("rte", tmp_path / "far", ".parquet")
    asked = []

    def download(repository, file, repo_type):
        asked.append((repository, file, repo_type))
        if len(asked) > 2:
            raise OSError("no room\nat all")
        return str(place / ("train.parquet" if "train" in file else "dev.parquet"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(glue.text, "answers", lambda url: True)
    found = datasets.read(config("rte", tmp_path, download=True))
    assert found.y.tolist() == made("rte", 40)[1]
    assert asked == [
        ("nyu-mll/glue", f"rte/{part}-00000-of-00001.parquet", "dataset") for part in ("train", "validation")
    ]
    refused(lambda: datasets.read(config("rte", tmp_path, download=True)), "not to be had from the hub (no room)")


@pytest.mark.parametrize("task", glue.TASKS)
def test_generated_examples_have_the_true_shape(task):
    asked = Data(name=f"generated/glue/{task}", vocabulary=150, length=32, batch_size=4)
    datasets.check(asked)
    source, again = datasets.read(asked), datasets.read(asked)
    assert torch.equal(source.x.flat, again.x.flat)
    assert torch.equal(source.y, again.y)
    assert (len(source.x), len(source.test_x)) == (10, 16)
    assert source.tokens.size == 150
    ids, segments = source.x[torch.arange(10)].unbind(1)
    assert ids.shape[1] <= 32
    assert 100 < int(ids.max()) < 150
    assert (ids[:, 0] == source.tokens.start).all()
    assert ((ids == source.tokens.end).sum(1) == len(glue.TASKS[task].texts)).all()
    assert int(segments.max()) == len(glue.TASKS[task].texts) - 1
    assert (segments[ids == source.tokens.pad] == 0).all()
    assert source.y.dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert 0 <= source.y.min() < source.y.max() <= (source.classes - 1 if source.classes > 1 else 5)
    refused(lambda: datasets.check(Data(name="generated/glue/mprc")), "did you mean mrpc?")


def test_the_four_splits_are_of_one_kind(tmp_path):
    write("stsb", tmp_path, sizes=(40, 12))
    splits = data.load(config("stsb", tmp_path))
    assert [len(part) for part in (splits.train, splits.hyper, splits.val, splits.test)] == [32, 4, 4, 12]
    assert splits.tokens is not None


def test_files_are_cut_into_tokens_once_and_again_when_they_change(tmp_path, monkeypatch):
    write("cola", tmp_path)
    trained, train = [], text.train
    monkeypatch.setattr(text, "train", lambda *given: trained.append(1) or train(*given))
    first, again = (datasets.read(config("cola", tmp_path, split_seed=seed)) for seed in (0, 1))
    assert len(trained) == 1
    assert first.x is again.x
    datasets.read(config("cola", tmp_path, vocabulary=150))
    assert len(trained) == 2
    write("cola", tmp_path, sizes=(41, 12))
    assert len(datasets.read(config("cola", tmp_path)).y) == 41
    assert len(trained) == 3
