"""Classifiers at the paper's size: what is trained, what it started from, and what happens without
a network.
"""

import pytest
import torch
from safetensors.torch import save_file

from skinrepro.classify import ARCHITECTURES, build, state_hash

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


@pytest.mark.parametrize("arch", [a.name for a in PAPER])
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
