"""Published data sets: read as they are, refused in one line when damaged, fetched once by however many processes."""

import contextlib
import http.server
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from torch._utils import ExceptionWrapper
from torchvision import datasets as published
from torchvision.transforms import v2

from bisam_ray.config import ConfigError, Data
from bisam_ray.training import data, datasets, download
from bisam_ray.training.files import BrokenImage, Files, read_image

from . import formats


def config(name, root, **fields):
    return Data(name=name, root=str(root), **fields)


def refused(called, *words):
    """The one line with which it is refused; it contains all the words."""
    with pytest.raises((ConfigError, BrokenImage)) as error:
        called()
    line = str(error.value)
    assert "\n" not in line
    missing = [str(word) for word in words if str(word) not in line]
    assert not missing, line
    assert error.value.__suppress_context__ or error.value.__context__ is None  # no second traceback
    return line


def test_cifar10_is_read_in_order_and_copied_once(tmp_path, monkeypatch):
    written = formats.cifar(tmp_path, monkeypatch)
    source = datasets.read(config("cifar10", tmp_path))
    assert source.x.shape == (100, 3, 32, 32)
    assert (source.x.dtype, source.y.dtype, source.classes) == (torch.uint8, torch.int64, 10)
    for index in range(5):
        images, labels = written[f"data_batch_{index + 1}"]
        assert (source.x[20 * index : 20 * index + 20].numpy() == images).all()
        assert (source.y[20 * index : 20 * index + 20].numpy() == labels).all()
    assert (source.test_x.numpy() == written["test_batch"][0]).all()
    assert (source.test_y.numpy() == written["test_batch"][1]).all()
    assert source.x.is_contiguous()


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    written = formats.cifar(tmp_path, monkeypatch, hundred=True, per_file=120)
    source = datasets.read(config("cifar100", tmp_path))
    assert (source.y.numpy() == written["train"][1]).all()
    assert (source.x.numpy() == written["train"][0]).all()
    assert (source.test_x.numpy() == written["test"][0]).all()
    assert source.classes == 100
    assert int(source.y.max()) == 99


def test_svhn_is_turned_and_its_ten_is_zero(tmp_path, monkeypatch):
    written = formats.svhn(tmp_path, monkeypatch)
    source = datasets.read(config("svhn", tmp_path))
    for x, y, split in ((source.x, source.y, "train"), (source.test_x, source.test_y, "test")):
        assert (x.numpy() == written[split][0]).all()
        assert (y.numpy() == written[split][1]).all()
        assert x.is_contiguous()
    assert int(source.y.min()) == 0
    assert int(source.y.max()) == 9


class Trap:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_wrong_checksum_is_named_and_the_pickle_not_opened(tmp_path, monkeypatch, file):
    formats.cifar(tmp_path, monkeypatch)
    path, sprung = tmp_path / "cifar-10-batches-py" / file, tmp_path / "sprung"
    right = formats.md5(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    pickle.loads(path.read_bytes())
    assert sprung.exists()  # the trap works
    sprung.unlink()
    line = refused(lambda: datasets.read(config("cifar10", tmp_path)), path, right, formats.md5(path), "delete")
    assert line.startswith("data.name=cifar10: ")
    assert not sprung.exists()


def test_what_is_missing_and_where_to_put_it(tmp_path, monkeypatch):
    for look in (datasets.check, datasets.read):
        line = refused(lambda look=look: look(config("cifar10", tmp_path)))
        assert line == (
            f"data.name=cifar10: no {tmp_path}/cifar-10-batches-py; set data.download=true, "
            f"or put cifar-10-python.tar.gz into {tmp_path}"
        )
    refused(lambda: datasets.check(config("svhn", tmp_path)), tmp_path / "train_32x32.mat", "data.download=true")
    refused(lambda: datasets.check(config("pets", tmp_path)), "images.tar.gz into", tmp_path / "oxford-iiit-pet")
    refused(lambda: datasets.check(config("flowers102", tmp_path)), tmp_path / "flowers-102/jpg", "102flowers.tgz")
    refused(lambda: datasets.check(config("imagenet", tmp_path)), tmp_path / "imagenet/train", "CLASS/IMAGE")
    datasets.check(config("cifar10", tmp_path, download=True))
    assert list(tmp_path.iterdir()) == []  # a check writes nothing
    formats.cifar(tmp_path, monkeypatch)
    datasets.check(config("cifar10", tmp_path))
    (tmp_path / "cifar-10-batches-py/data_batch_2").unlink()
    refused(lambda: datasets.read(config("cifar10", tmp_path)), tmp_path / "cifar-10-batches-py/data_batch_2")


def test_an_archive_at_hand_is_unpacked_without_a_network(tmp_path, monkeypatch):
    written = formats.cifar(tmp_path, monkeypatch)
    archive = formats.pack_cifar(tmp_path, monkeypatch)
    datasets.check(config("cifar10", tmp_path))
    source = datasets.read(config("cifar10", tmp_path))
    assert (source.x[:20].numpy() == written["data_batch_1"][0]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cifar10.lock", "cifar-10-batches-py", archive.name]


def test_a_truncated_archive_is_named_and_leaves_nothing_behind(tmp_path, monkeypatch):
    formats.cifar(tmp_path, monkeypatch)
    archive = formats.pack_cifar(tmp_path, monkeypatch)
    right = formats.md5(archive)
    archive.write_bytes(archive.read_bytes()[:-1000])
    refused(lambda: datasets.read(config("cifar10", tmp_path)), archive, right, formats.md5(archive), "delete")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cifar10.lock", archive.name]


def test_flowers_official_train_and_val_are_the_training_examples(tmp_path, monkeypatch):
    splits = formats.flowers(tmp_path, monkeypatch)
    source = datasets.read(config("flowers102", tmp_path))
    numbers = [*splits["trnid"], *splits["valid"]]
    assert [Path(path).name for path in source.x.paths] == [f"image_{number:05d}.jpg" for number in numbers]
    assert source.y.tolist() == [(number - 1) % 102 for number in numbers]
    assert source.test_y.tolist() == [(number - 1) % 102 for number in splits["tstid"]]
    assert (source.classes, len(source.test_x)) == (102, 4)
    gone = Path(source.test_x.paths[1])
    gone.unlink()
    refused(lambda: datasets.read(config("flowers102", tmp_path)), gone, "data.download=true")
    (tmp_path / "flowers-102/setid.mat").write_bytes(b"no")
    refused(lambda: datasets.read(config("flowers102", tmp_path)), tmp_path / "flowers-102/setid.mat", "md5")


def test_pets(tmp_path):
    formats.pets(tmp_path)
    source = datasets.read(config("pets", tmp_path))
    assert source.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert Path(source.x.paths[1]).name == "Abyssinian_trainval1.jpg"
    assert Path(source.test_x.paths[0]).name == "american_bulldog_test0.jpg"
    assert (source.classes, source.x.shape) == (37, (6, 3, 224, 224))
    line = (tmp_path / "oxford-iiit-pet/annotations/test.txt", tmp_path / "oxford-iiit-pet/annotations")
    line[0].write_text("Abyssinian_test1 99 1 1\n")
    refused(lambda: datasets.read(config("pets", tmp_path)), "labels", "37")
    line[0].write_text("Abyssinian_test1 1\n")
    refused(lambda: datasets.read(config("pets", tmp_path)), line[0], "delete")
    line[0].unlink()
    refused(lambda: datasets.read(config("pets", tmp_path)), line[0], "delete")
    (tmp_path / "oxford-iiit-pet/images/Abyssinian_trainval3.jpg").unlink()
    refused(lambda: datasets.read(config("pets", tmp_path)), "Abyssinian_trainval3.jpg")


@pytest.mark.parametrize("inside", ["imagenet100", "."])
def test_image_folders_lie_below_their_name_or_the_root(tmp_path, inside):
    formats.image_folders(tmp_path / inside)
    source = datasets.read(config("imagenet100", tmp_path))
    assert source.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.test_y.tolist() == [0, 0, 1, 1, 2, 2]
    assert (source.classes, source.confused.tolist()) == (3, [1, 2, 0])
    assert Path(source.x.paths[4]) == (tmp_path / inside / "train/n00000001/n00000001_0.JPEG").absolute()


def test_image_folders_that_are_not_as_they_should_be(tmp_path):
    base = tmp_path / "imagenet"
    formats.image_folders(base)

    def look():
        return datasets.check(config("imagenet", tmp_path, download=True))

    (base / "val/n00000009").mkdir()
    refused(look, base / "val/n00000009", base / "train", "same")
    (base / "train/n00000009").mkdir()
    refused(look, base / "train/n00000009", "empty")
    (base / "train/n00000009/readme.txt").touch()
    (base / "val/n00000009/readme.txt").touch()
    refused(lambda: datasets.read(config("imagenet", tmp_path)), base / "train", "n00000009")
    shutil.rmtree(base / "val/n00000009")
    refused(look, base / "train/n00000009", base / "val")
    shutil.rmtree(base / "val")
    refused(look, f"no {base / 'val'}", "cannot be downloaded")


def test_images_come_out_as_torchvision_makes_them(tmp_path):
    formats.image_folders(tmp_path, classes=1)
    files = datasets.read(config("imagenet", tmp_path)).x
    evaluation = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    images = [read_image(path) for path in files.paths]
    chosen = torch.tensor([2, 0, 1])
    assert torch.equal(files[chosen], torch.stack([evaluation(images[index]) for index in (2, 0, 1)]))
    assert torch.equal(torch.cat(list(files.pieces(3))), files[torch.arange(4)])
    assert [len(piece) for piece in files.pieces(3)] == [3, 1]
    torch.manual_seed(7)
    cropped = v2.RandomResizedCrop(224, antialias=True)(images[2])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(files.decode(2, seed=7), cropped)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(files.decode(2, seed=8), cropped)
    parts = files.subset(torch.tensor([3])) + files.subset(torch.tensor([0, 1]))
    assert parts.paths == [files.paths[index] for index in (3, 0, 1)]
    assert parts.shape == (3, 3, 224, 224)


def test_threads_decode_the_same_as_one(tmp_path):
    formats.image_folders(tmp_path)
    one = datasets.read(config("imagenet", tmp_path, readers=0)).x
    four = datasets.read(config("imagenet", tmp_path, readers=4)).x
    assert four.readers == 4
    assert torch.equal(one[torch.arange(12)], four[torch.arange(12)])


def test_a_broken_image_is_told_in_one_line(tmp_path):
    formats.image_folders(tmp_path, classes=1)
    files = datasets.read(config("imagenet", tmp_path)).x
    whole = Path(files.paths[1]).read_bytes()
    for content, word in ((whole[: len(whole) // 2], "truncated"), (b"#!/bin/sh", "no image"), (b"", "no image")):
        Path(files.paths[1]).write_bytes(content)
        refused(lambda: files[torch.arange(4)], files.paths[1], word, "delete")
        refused(lambda: files.decode(1, seed=3), files.paths[1], word)
    Path(files.paths[1]).unlink()
    refused(lambda: files.decode(1), files.paths[1], "gone")


def test_a_broken_image_in_a_data_loader_is_told_in_one_line(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    try:
        Files([str(tmp_path / "a.jpg")]).decode(0)
    except BrokenImage:
        carried = ExceptionWrapper(where="in DataLoader worker process 0")  # as its processes hand over what they raise
    assert "Traceback" in carried.exc_msg
    line = refused(carried.reraise, "delete")
    assert line.startswith(str(tmp_path / "a.jpg"))


@contextlib.contextmanager
def as_nobody():
    """Without root's permission to read and write everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_no_permission(monkeypatch):
    with as_nobody() as folder:
        root = os.getuid() == 0
        if root:
            os.seteuid(0)
        formats.cifar(folder, monkeypatch)
        formats.image_folders(folder)
        batch, wnid = folder / "cifar-10-batches-py/data_batch_4", folder / "val/n00000001"
        batch.chmod(0)
        wnid.chmod(0)
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        refused(lambda: datasets.read(config("cifar10", folder)), batch, "permission")
        refused(lambda: datasets.check(config("imagenet", folder)), wnid, "permission")
        line = refused(lambda: datasets.read(config("svhn", folder, download=True)), "cannot write", "data.root=")
        assert str(folder) in line
        if root:
            os.seteuid(0)
        batch.parent.chmod(0)
        if root:
            os.seteuid(65534)
        refused(lambda: datasets.check(config("cifar10", folder)), batch.parent, "permission", "chmod")
        if root:
            os.seteuid(0)
        for path in (folder, batch.parent, wnid):
            path.chmod(0o755)
        if root:
            os.seteuid(65534)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, and counts the files that were fetched; sends only `share` of each, and then stalls."""

    def __init__(self, folder, share=1.0, stall=0.0):
        self.folder, self.share, self.stall, self.fetched = folder, share, stall, []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        file = self.server.folder / self.path.lstrip("/")
        if not file.exists():
            self.send_error(404)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content[: int(len(content) * self.server.share)])
            self.wfile.flush()
            if self.server.share == 1:
                self.server.fetched.append(file.name)
        time.sleep(self.server.stall)

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def serving(monkeypatch, folder, **manner):
    """CIFAR-10's archive comes from this machine."""
    server = Server(folder, **manner)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(published.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """CIFAR-10's archive in a folder beside data.root."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    formats.cifar(tmp_path / "server", monkeypatch)
    return formats.pack_cifar(tmp_path / "server", monkeypatch)


def read_into(queue, root):
    torch.set_num_threads(1)
    queue.put(int(datasets.read(config("cifar10", root, download=True)).x.sum()))


def test_processes_that_download_at_once_fetch_it_once(tmp_path, monkeypatch, archive):
    root = tmp_path / "data"
    (root / ".cifar-10-batches-py.part").mkdir(parents=True)
    (root / ".cifar-10-batches-py.part/cifar-10-python.tar.gz").write_bytes(b"left by a killed process")
    fork = multiprocessing.get_context("fork")
    with serving(monkeypatch, archive.parent, stall=0.3) as server:
        queue = fork.Queue()
        processes = [fork.Process(target=read_into, args=(queue, root)) for _ in range(3)]
        for process in processes:
            process.start()
        sums = {queue.get(timeout=30) for _ in processes}
        for process in processes:
            process.join(30)
        assert server.fetched == [archive.name] * 2  # torchvision asks once more, for where the address leads
    assert sums == {int(datasets.read(config("cifar10", root)).x.sum())}
    assert sorted(path.name for path in root.iterdir()) == [".cifar10.lock", "cifar-10-batches-py"]


def test_who_waits_says_so(tmp_path, monkeypatch, archive, capsys):
    with serving(monkeypatch, archive.parent):
        settings = config("cifar10", tmp_path, download=True)
        with download.locked(settings):
            waiting = threading.Thread(target=datasets.read, args=(settings,))
            waiting.start()
            time.sleep(0.3)
            assert not (tmp_path / "cifar-10-batches-py").exists()
        waiting.join(30)
    assert (tmp_path / "cifar-10-batches-py").exists()
    assert f"waits for another process that writes into {tmp_path}" in capsys.readouterr().err


def test_downloads_that_fail(tmp_path, monkeypatch, archive):
    root, hint = tmp_path / "data", f"or put {archive.name} into {tmp_path / 'data'}"

    def fetch():
        began = time.perf_counter()
        datasets.check(config("cifar10", root, download=True))
        try:
            datasets.read(config("cifar10", root, download=True))
        finally:
            assert time.perf_counter() - began < 5

    monkeypatch.setattr(download, "PATIENCE", 0.3)
    with serving(monkeypatch, archive.parent) as server:
        pass
    refused(fetch, server.server_port, "refused", hint)  # nobody listens there any more
    with serving(monkeypatch, tmp_path):
        refused(fetch, "Not Found", hint)
    with serving(monkeypatch, archive.parent, share=0.5):
        refused(fetch, published.CIFAR10.tgz_md5, "truncated", hint)
    with serving(monkeypatch, archive.parent, share=0.5, stall=1):
        refused(fetch, "timed out", hint)
    monkeypatch.setattr(published.CIFAR10, "url", "http://no-such-host.invalid/cifar-10-python.tar.gz")
    refused(fetch, "no-such-host.invalid", hint)
    assert [path.name for path in root.iterdir()] == [".cifar10.lock"]
    shutil.rmtree(root)
    root.write_text("a file")
    refused(fetch, root, "data.root=")


def test_generated_data_have_the_shape_of_what_they_stand_for():
    for name, (shape, classes) in datasets.SHAPES.items():
        settings = Data(name=f"generated/{name}", batch_size=8)
        datasets.check(settings)
        source = datasets.read(settings)
        again = datasets.read(settings)
        assert source.x.shape == (20, *shape)
        assert source.test_x.shape == (16, *shape)
        assert (source.x.dtype, source.y.dtype, source.classes) == (torch.uint8, torch.int64, classes)
        assert 0 <= int(source.y.min()) <= int(source.y.max()) < classes
        assert torch.equal(source.x, again.x)
        assert torch.equal(source.y, again.y)
        assert abs(float(source.x.float().mean()) - 127.5) < 5
        assert len(source.confused) == classes
    parts = data.partition(Data(batch_size=33), len(datasets.read(Data(name="generated/svhn", batch_size=33)).y), True)
    assert len(parts["train"]) >= 2 * 33
    refused(lambda: datasets.check(Data(name="generated/cifar11")), "cifar11", "did you mean cifar10")


def test_digits_resized():
    small, source = data.digits(), datasets.read(Data(name="digits32"))
    assert source.x.shape == (1797, 1, 32, 32)
    assert (source.x.dtype, source.classes, source.test_x) == (torch.uint8, 10, None)
    assert torch.equal(source.y, small[1])
    assert int(source.x.max()) == 255
    blocks = source.x.float().unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5))
    assert torch.corrcoef(torch.stack([blocks.flatten(), small[0].flatten()]))[0, 1] > 0.97
    plain = datasets.read(Data(name="digits"))
    assert torch.equal(plain.x, small[0])
    assert plain.test_x is None


def test_the_class_that_each_is_mistaken_for():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    confused = datasets.confusion("cifar10", 10).tolist()
    mistaken = {names[a]: names[b] for a, b in enumerate(confused) if a != b}
    assert mistaken == {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    }
    confused = datasets.confusion("cifar100", 100)
    assert sorted(confused.tolist()) == list(range(100))
    # beaver, dolphin, otter, seal, whale; and the trees: maple, oak, palm, pine, willow
    for group in ([4, 30, 55, 72, 95], [47, 52, 56, 59, 96]):
        assert confused[torch.tensor(group)].tolist() == [*group[1:], group[0]]
    five = torch.arange(100)
    for _ in range(5):
        five = confused[five]
    assert torch.equal(five, torch.arange(100))
    assert datasets.confusion("svhn", 10).tolist() == [*range(1, 10), 0]
    assert torch.equal(datasets.confusion("generated/cifar10", 10), datasets.confusion("cifar10", 10))


def test_digits_and_checks_do_without_torchvision(tmp_path):
    formats.image_folders(tmp_path)
    code = f"""
import sys
from bisam_ray.config import ConfigError, Data
from bisam_ray.training import datasets
datasets.read(Data(name="digits32")), datasets.read(Data(name="generated/pets", batch_size=1))
datasets.check(Data(name="imagenet", root={str(tmp_path)!r})), datasets.check(Data(name="cifar10", download=True))
print([name for name in ("torchvision", "sklearn", "scipy", "filelock") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() in ("[]", "['filelock']")
