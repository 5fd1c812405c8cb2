"""Networks by name and their embeddings: what happens without weights, what is computed once, and
whether copies of real photographs are found.
"""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from skinrepro import features
from skinrepro.copies import cosine_distances
from skinrepro.core import data_folder, has_data
from skinrepro.features import (
    NETWORKS,
    PURPOSES,
    embed,
    feature_network,
    perceptual_trunk,
)
from skinrepro.images import load_image
from skinrepro.vae import Features, perceptual_loss

PRINTED = ["vgg16", "vgg19", "resnet18", "inception_v3"]


@pytest.fixture(scope="module")
def lite0():
    return feature_network("efficientnet_lite0")


def noise(n, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_an_image_is_described_once(lite0, tmp_path):
    passes = []
    hook = lite0.module.register_forward_hook(lambda module, given, out: passes.append(len(out)))
    try:
        images = noise(5)
        first = embed(lite0, images, folder=tmp_path)
        assert sum(passes) == 10, "each picture and its mirror image"
        again = embed(lite0, [*images[::-1], *noise(1, seed=9)], folder=tmp_path)
        assert sum(passes) == 12 and np.array_equal(again[:5], first[::-1])
        assert first.dtype == np.float32 and np.isfinite(first).all()
        embed(lite0, images, size=32, folder=tmp_path)
        assert sum(passes) == 22, "another size is another description"
        for file in tmp_path.rglob("*.npz"):
            file.write_bytes(b"cut off")
        assert np.array_equal(embed(lite0, images, folder=tmp_path), first)
        assert sum(passes) == 32, "what cannot be read is computed anew"
        twice = embed(lite0, np.concatenate([images[:1]] * 3), folder=tmp_path / "new")
        assert sum(passes) == 34 and np.array_equal(twice[0], twice[2])
    finally:
        hook.remove()


def test_another_network_does_not_read_what_this_one_wrote(lite0, tmp_path):
    "The key holds the hash of the weights."
    from dataclasses import replace

    images = noise(2)
    embed(lite0, images, folder=tmp_path)
    other = replace(lite0, weights_hash="0" * 64)
    embed(other, images, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_changed_code_does_not_read_what_the_old_one_wrote(lite0, tmp_path, monkeypatch):
    "Descriptions that other code has made are computed anew."
    images = noise(2)
    embed(lite0, images, folder=tmp_path)
    embed(lite0, images, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(features, "code_hash", lambda *names: "another")
    embed(lite0, images, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros(3)])
def test_what_is_no_image_is_refused(lite0, bad, tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        embed(lite0, [bad], folder=tmp_path)
    assert embed(lite0, [], folder=tmp_path).shape == (0, 0)
    with pytest.raises(ValueError, match="purpose"):
        embed(lite0, noise(1), "beauty", folder=tmp_path)


@pytest.mark.parametrize("name", PRINTED)
def test_a_network_without_weights_says_what_to_do(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError) as e:
        feature_network(name)
    assert f"hf download timm/{name}" in str(e.value) and "efficientnet_lite0" in str(e.value)


@pytest.mark.parametrize("name", PRINTED)
def test_a_local_file_of_weights(name, tmp_path):
    "Saved under timm's names, read back, and not taken for another network's."
    import timm

    whole = timm.create_model(f"{name}.tv_in1k", pretrained=False)
    file, other = tmp_path / "w.safetensors", tmp_path / "other.safetensors"
    save_file({k: v.clone() for k, v in whole.state_dict().items()}, file)
    network = feature_network(name, str(file))
    own = network.module.state_dict()
    there = {
        k.removeprefix("features.") if name[:3] == "vgg" else k: v
        for k, v in whole.state_dict().items()
    }
    assert own and all(torch.equal(v, there[k]) for k, v in own.items())
    assert network.weights == f"{name} ({file})" and len(network.weights_hash) == 64
    side = 96 if name == "inception_v3" else 64
    for purpose in PURPOSES:
        layer = network.module.get_submodule(NETWORKS[name][purpose])
        assert isinstance(layer, torch.nn.Module)
        e = embed(network, noise(2, side), purpose, size=side, folder=tmp_path / "e")
        assert len(e) == 2 and np.isfinite(e).all() and not np.array_equal(e[0], e[1])
    save_file({"conv.weight": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="these are not"):
        feature_network(name, str(other))


def test_the_perceptual_loss_takes_any_network(lite0):
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    statistics = (lite0.mean, lite0.std)
    for stages, convolutions in ((3, 15), (None, 49)):
        features = Features(perceptual_trunk(lite0, stages), lite0.weights, statistics)
        assert len(features.layers) == convolutions
        y = (x * 0.9).requires_grad_()
        loss = perceptual_loss(features, x, y)
        loss.backward()
        assert loss > 0 and y.grad.abs().sum() > 0 and perceptual_loss(features, x, x) == 0
    with pytest.raises(ValueError, match="stages"):
        perceptual_trunk(lite0, 8)
    with pytest.raises(ValueError, match="as a whole"):
        perceptual_trunk(feature_network("vgg16", trained=False), 3)


def copy_of(image, rng, brightness):
    "Cropped to 90 % of each side anywhere, mirrored, perhaps brighter or darker, JPEG 30."
    from PIL import Image

    h, w = image.shape[:2]
    ch, cw = round(0.9 * h), round(0.9 * w)
    top, left = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
    part = image[top : top + ch, left : left + cw][:, ::-1] * rng.uniform(*brightness)
    file = io.BytesIO()
    Image.fromarray(part.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=30)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.skipif(not has_data("pad_ufes20"), reason="needs $SKINREPRO_DATA/pad_ufes20")
@pytest.mark.parametrize("brightness", [(1.0, 1.0), (0.8, 1.2)], ids=["plain", "brightness"])
def test_copies_of_real_photographs_are_found(lite0, brightness):
    """A photograph is closer to its flipped, cropped, recompressed copy than to any photograph of
    another patient. Layer and pooling were chosen on HAM10000.
    """
    folder = data_folder("pad_ufes20")
    table = pd.read_csv(folder / "metadata.csv").sort_values("img_id")
    rng = np.random.default_rng(0)
    table = table.iloc[rng.permutation(len(table))[:150]]
    images = [load_image(folder / "images" / name) for name in table.img_id]
    original = embed(lite0, images)
    copies = embed(lite0, [copy_of(image, rng, brightness) for image in images])
    own = np.diag(cosine_distances(original, copies))
    patient = table.patient_id.to_numpy()
    others = cosine_distances(original, original) + 9 * (patient[:, None] == patient)
    found = (own < others.min(1)).mean()
    print(f"{found:.1%} of {len(images)} photographs are closest to their own copy")
    assert found >= 0.97


def test_descriptions_are_those_of_the_layers_called_one_by_one(lite0, tmp_path):
    """Blocks of timm's network on pixels normalised by numpy: per channel mean and standard
    deviation over places, mean of both mirror images, length 1; or the mean of the last map.
    """
    m, rng = lite0.module, np.random.default_rng(3)
    pictures = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    x = torch.from_numpy((pictures.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found = []
        for view in (x, torch.from_numpy(x.numpy()[:, :, :, ::-1].copy())):
            view = m.bn1(m.conv_stem(view))
            for block in m.blocks[:5]:
                view = block(view)
            places = view.flatten(2).numpy()
            found.append(np.concatenate([places.mean(2), places.std(2, ddof=1)], 1))
        fidelity = m.forward_features(x).mean((2, 3)).numpy()
    copies = (found[0] + found[1]) / 2
    copies /= np.sqrt((copies**2).sum(1, keepdims=True))
    assert np.abs(found[0] - found[1]).max() > 1e-2  # a mirror image is another image
    assert np.allclose(embed(lite0, pictures, folder=tmp_path), copies, atol=1e-4)
    last = embed(lite0, pictures, "fidelity", size=64, folder=tmp_path)
    assert np.allclose(last, fidelity, atol=1e-3)
    large = rng.integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)  # the size that is the default
    expected = embed(lite0, large, "fidelity", size=128, folder=tmp_path / "asked")
    assert np.array_equal(embed(lite0, large, "fidelity", folder=tmp_path), expected)


def test_pictures_of_the_same_bytes_and_another_shape_are_not_confused(lite0, tmp_path):
    flat = np.random.default_rng(0).integers(0, 256, 16 * 64 * 3, dtype=np.uint8)
    wide, high = flat.reshape(16, 64, 3), flat.reshape(64, 16, 3)
    together = embed(lite0, [wide, high], folder=tmp_path)
    alone = embed(lite0, [high], folder=tmp_path / "alone")
    assert np.allclose(together[1], alone[0], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
