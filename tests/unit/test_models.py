"""Networks have the published sizes, take the images of their papers, and start from weights of their own kind only."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bisam_ray import config
from bisam_ray.config import ConfigError
from bisam_ray.training import models, weights

pytest.importorskip("pytorchcv")
timm = pytest.importorskip("timm")
CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "published"),
    [
        ("resnet20", CIFAR, 10, "0.27"),  # He et al., Deep Residual Learning, 2016, table 6
        ("resnet56", CIFAR, 10, "0.856"),  # pytorchcv's table: 855,770, with projections as shortcuts
        ("resnet110", CIFAR, 10, "1.7"),  # He et al., table 6
        ("wrn28-2", CIFAR, 10, "1.5"),  # Oliver et al., Realistic Evaluation of Semi-Supervised Learning, 2018
        ("wrn28-10", CIFAR, 10, "36.48"),  # pytorchcv's table; Zagoruyko and Komodakis, 2016: 36.5 M
        ("pyramidnet110", CIFAR, 10, "28.49"),  # pytorchcv's table, α = 270; Han et al., 2017: 28.3 M
        ("vgg19bn", CIFAR, 10, "20.04"),  # Liu et al., Network Slimming, 2017, table 1
        ("resnet18", CIFAR, 100, "11.2"),  # the table of github.com/weiaicunzai/pytorch-cifar100, as the next two
        ("resnet50", CIFAR, 100, "23.7"),
        ("densenet121", CIFAR, 100, "7.0"),
        ("densenet121", CIFAR, 10, "6.956298"),  # github.com/kuangliu/pytorch-cifar: no norm in the stem
        ("vit-small", IMAGENET, 1000, "22.05"),  # timm's table of results, 224 px, as the next
        ("vit-base", IMAGENET, 1000, "86.57"),
        ("resnet18", IMAGENET, 1000, "11.689512"),  # meta["num_params"] of torchvision's weights, as the rest
        ("resnet50", IMAGENET, 1000, "25.557032"),
        ("densenet121", IMAGENET, 1000, "7.978856"),
        ("vgg19bn", IMAGENET, 1000, "143.678248"),
    ],
)
def test_parameters_are_as_many_as_published(name, shape, classes, published):
    with torch.device("meta"):
        millions = count(models.build(name, shape, classes)) / 1e6
    assert f"{millions:.{len(published.partition('.')[2])}f}" == published


def test_patches_of_small_images_leave_the_blocks_of_a_vit_as_they_are():
    with torch.device("meta"):
        small, large = (models.build("vit-base", shape, 10) for shape in (CIFAR, IMAGENET))
    assert (small.patch_embed.grid_size, large.patch_embed.grid_size) == ((8, 8), (14, 14))
    assert count(small.blocks) == count(large.blocks)


SHAPES = {
    **dict.fromkeys(("resnet20", "resnet18", "resnet50", "densenet121", "wrn28-2"), (3, 16, 16)),
    "pyramidnet110": (3, 8, 8),
    "vgg19bn": CIFAR,
    "vit-small": CIFAR,
    "timm/vit_tiny_patch16_224": (1, 32, 32),
    "timm/resnet10t": (1, 32, 32),
}


@pytest.mark.parametrize("name", SHAPES)
def test_two_examples_go_forth_and_back(name):
    torch.manual_seed(0)
    model = models.build(name, SHAPES[name], 7).to(memory_format=torch.channels_last)
    x = torch.randn(2, *SHAPES[name]).to(memory_format=torch.channels_last)
    logits = model(x)
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([1, 5])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.abs().sum() > 0 for p in list(model.parameters())[:4])


def test_small_images_are_not_shrunk_by_the_stem():
    def sizes(shape, *stages):
        model, found = models.build("resnet18", shape, 10).eval(), []
        for stage in stages:
            getattr(model, stage).register_forward_hook(lambda m, i, out: found.append(out.shape[-1]))
        model(torch.zeros(1, *shape))
        return found

    assert sizes((3, 64, 64), "layer1", "layer4") == [64, 8]
    assert sizes((3, 96, 96), "layer1", "layer4") == [24, 3]


@pytest.mark.parametrize("name", ["resnet20", "vit-small"])
def test_grey_images_are_repeated_on_three_channels(name):
    torch.manual_seed(0)
    grey = models.build(name, (1, 8, 8), 10).eval()
    torch.manual_seed(0)
    coloured = models.build(name, (3, 8, 8), 10).eval()
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(grey(x), coloured(x.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "densenet121", "vgg19bn", "vit-small"])
def test_initialisation_follows_torchs_generator_alone(name):
    def values(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten()[:50] for p in models.build(name, CIFAR, 10).parameters()])

    first = values(1)
    torch.randn(100)
    assert torch.equal(values(1), first)
    assert not torch.equal(values(2), first)


def test_the_small_stem_is_scaled_for_relu():
    torch.manual_seed(0)
    stem = models.build("resnet18", CIFAR, 10).conv1.weight
    assert stem.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["resnet20", "timm/resnet10t"])
def test_compiling_finds_one_graph(name):
    torch._dynamo.reset()
    model = models.build(name, (1, 32, 32), 10).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_second_derivatives_of_a_vit_need_the_unfused_attention():
    torch.manual_seed(0)
    model = models.build("vit-small", CIFAR, 10)
    model.blocks = model.blocks[:2]
    params = list(model.parameters())

    def twice():
        loss = nn.functional.cross_entropy(model(torch.ones(2, *CIFAR)), torch.tensor([0, 1]))
        grads = torch.autograd.grad(loss, params, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in grads), params)

    with sdpa_kernel(SDPBackend.MATH):
        assert all(g.isfinite().all() for g in twice())
    with pytest.raises(RuntimeError, match="not implemented"):
        twice()


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(3)
    state = models.build("resnet20", CIFAR, 10).state_dict()

    def save(content, name="there.pth"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return state, save


@pytest.mark.parametrize("form", ["plain", "module.", "_orig_mod.", "state_dict", "model", "checkpoint", "safetensors"])
def test_weights_come_from_a_file(saved, tmp_path, form, capsys):
    state, save = saved
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, file := str(tmp_path / "there.safetensors"))
    elif form.endswith("."):
        file = save({form + key: value for key, value in state.items()})
    elif form == "checkpoint":
        file = save({"format": 3, "config": {"seed": 0}, "state": {"epoch": 1, "model": state}}, "there.pt")
    else:
        file = save(state if form == "plain" else {form: state, "epoch": 3})
    models.check("resnet20", file)
    loaded = models.build("resnet20", CIFAR, 10, file).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert capsys.readouterr().err == ""


def test_weights_of_colour_and_of_grey_networks_are_the_same(saved):
    state, save = saved
    grey = models.build("resnet20", (1, 32, 32), 10, save(state))
    assert torch.equal(grey[1].output.weight, state["output.weight"])
    colour = models.build("resnet20", CIFAR, 10, save(grey.state_dict()))
    assert torch.equal(colour.output.weight, state["output.weight"])


def test_a_head_for_other_classes_stays_as_initialised_and_says_so(saved, capsys):
    state, save = saved
    torch.manual_seed(0)
    fresh = models.build("resnet20", CIFAR, 7).state_dict()
    torch.manual_seed(0)
    loaded = models.build("resnet20", CIFAR, 7, file := save(state)).state_dict()
    for key, value in loaded.items():
        assert torch.equal(value, (fresh if key.startswith("output.") else state)[key])
    told = f"model.weights={file}: not taken from it, but initialised: output.weight, output.bias\n"
    assert capsys.readouterr().err == told
    models.build("resnet20", CIFAR, 7, save({k: v for k, v in state.items() if not k.startswith("output")}))
    assert "output.weight, output.bias" in capsys.readouterr().err


def test_other_weights_are_refused_by_the_first_key(saved):
    state, save = saved
    stem = "features.init_block.conv.weight"
    for content, told in [
        ({k: v for k, v in state.items() if k != stem}, f"without {stem}, which model.name=resnet20 has"),
        (
            {**state, stem: torch.zeros(16, 1, 3, 3)},
            rf"{stem} is \(16, 1, 3, 3\), of model.name=resnet20 \(16, 3, 3, 3\)",
        ),
        ({**state, "output.weight": torch.zeros(10, 65)}, r"output.weight is \(10, 65\)"),
        ({**state, "fc.weight": torch.zeros(1)}, "has fc.weight, which model.name=resnet20 has not"),
        ({"epoch": 3, "model": [1]}, "no state dict in it, but a mapping with epoch, model"),
        ([1, 2], "no state dict in it, but list"),
        ({"model": nn.Linear(1, 1)}, "not readable as weights"),
    ]:
        with pytest.raises(ConfigError, match=told) as caught:
            models.build("resnet20", CIFAR, 10, save(content))
        assert "\n" not in str(caught.value)


def test_files_that_are_none_are_told_before_a_network_is_built(tmp_path, saved):
    save = saved[1]
    save({}, "resnet.pth")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 not all of it")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for weights_, told in [
        ("resnt.pth", "no such file; did you mean resnet.pth"),
        ("nowhere/resnet.pth", "no such file$"),
        ("resnet.bin", "hub, or a file that ends in .pth, .pt, .safetensors"),
    ]:
        with pytest.raises(ConfigError, match=told):
            models.check("resnet20", str(tmp_path / weights_))
    with pytest.raises(ConfigError, match=r"model\.weights=hubb: hub, or a file.*; did you mean hub"):
        models.check("resnet18", "hubb")
    for name in ("cut.pt", "cut.safetensors"):
        with pytest.raises(ConfigError, match=r"not readable as weights \("):
            weights.read(str(tmp_path / name))


def test_position_embeddings_are_resampled_for_another_size_of_image(tmp_path, capsys):
    torch.manual_seed(0)
    large = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=1).state_dict()
    assert large["pos_embed"].shape == (1, 197, 192)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1, img_size=(32, 32), patch_size=4)
    weights.put(network, large, 3, "model.weights=there", "vit")
    loaded = network.state_dict()
    assert loaded["pos_embed"].shape == (1, 65, 192)
    assert torch.equal(loaded["blocks.0.attn.qkv.weight"], large["blocks.0.attn.qkv.weight"])
    # the class token keeps its own embedding; the others are smoothed, not replaced
    assert torch.allclose(loaded["pos_embed"][:, 0], large["pos_embed"][:, 0])
    assert loaded["pos_embed"].mean().item() == pytest.approx(large["pos_embed"].mean().item(), abs=1e-3)
    assert capsys.readouterr().err.endswith("initialised: head.weight, head.bias\n")


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "timm/resnet18.tv_in1k"])
def test_published_weights_come_by_timms_downloader(monkeypatch, name):
    torch.manual_seed(1)
    state, asked = timm.create_model("resnet18").state_dict(), []

    def load(repository, **options):
        asked.append(repository)
        return dict(state)

    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", load)
    monkeypatch.setattr(weights, "reach", lambda published: None)
    loaded = models.build(name, IMAGENET, 10, "hub").state_dict()
    assert asked == ["timm/resnet18.tv_in1k" if "tv" in name else "timm/resnet18.a1_in1k"]
    assert torch.equal(loaded["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    if name == "resnet18":
        with pytest.raises(ConfigError, match=r"model.weights=hub: conv1.weight is \(64, 3, 7, 7\)"):
            models.build(name, CIFAR, 10, "hub")


def test_what_is_not_published_or_not_within_reach_is_told(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    for name, told in [
        (
            "resnet56",
            "nothing is published for model.name=resnet56; there is for resnet18, resnet50, densenet121, vit-",
        ),
        ("timm/vit_tiny_patch16_18x2_224", "model.name=timm/vit_tiny_patch16_18x2_224: unknown; did you mean vit_"),
        ("timm/vit_small_patch16_18x2_224", "timm publishes none for model.name=timm/vit_small_patch16_18x2_224; did"),
        ("timm/resnet18.tv_in1", "unknown; did you mean resnet18.tv_in1k"),
        ("vit-base", r"cannot be reached; bring http.*/timm/vit_base_patch16_224.*/model.safetensors here"),
    ]:
        with pytest.raises(ConfigError, match=told):
            models.check(name, "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="switched off by HF_HUB_OFFLINE"):
        models.check("vit-base", "hub")
    file = tmp_path / "models--timm--resnet18.a1_in1k"  # as the hub's cache lays it out
    (file / "snapshots/abc").mkdir(parents=True)
    (file / "snapshots/abc/model.safetensors").touch()
    (file / "refs").mkdir()
    (file / "refs/main").write_text("abc")
    models.check("resnet18", "hub")


@pytest.mark.parametrize(
    ("name", "library"), [("resnet56", "pytorchcv"), ("pytorchcv/vgg11", "pytorchcv"), ("vit-small", "timm")]
)
def test_a_missing_library_says_what_to_install(monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    for call in (lambda: models.check(name), lambda: models.build(name, CIFAR, 10)):
        with pytest.raises(ConfigError, match=rf"model.name={name}: needs {library}, .*pip install '\.\[models\]'"):
            call()


def test_images_that_a_network_cannot_take():
    for name, shape, told in [
        ("resnet56", (2, 32, 32), "needs grey or colour images"),
        ("resnet56", (64,), "needs grey or colour images"),
        ("vgg19bn", (3, 16, 16), "at least 32×32 px, not 16×16"),
        ("vit-small", (3, 30, 30), "multiples of 4 .nearest: 28"),
        ("vit-base", (3, 100, 100), "multiples of 16 .nearest: 96"),
    ]:
        with pytest.raises(ConfigError, match=told):
            models.build(name, shape, 10)


def test_names_are_those_of_the_configuration():
    assert models.NAMES == config.MODELS
