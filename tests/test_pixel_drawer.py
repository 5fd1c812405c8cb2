"""A DDPM as a drawer of tables: what its files say, what is refused, and an upsampler behind it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from skinrepro.ddpm import Conditions, Denoiser, Network, Sampling, draw_images, save_ddpm
from skinrepro.generate import generate, read_provenance
from skinrepro.pixel_drawer import PixelDrawer, pixel_drawer

TINY = dict(size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(), head_channels=None)
TOLD = Conditions({"label": ("normal", "tumor"), "domain": ("hospital 0", "hospital 3")})
HOW = Sampling("ddim", 4, omega=0.5)


@pytest.fixture
def kept(tmp_path):
    model = Denoiser(Network(**TINY), TOLD)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    return save_ddpm(tmp_path / "model", model)


def wishes(**columns):
    given = dict(
        image_id=["a", "b", "c"],
        seed=[1, 2, 3],
        label=["normal", "tumor", "tumor"],
        domain=["hospital 0", None, "hospital 3"],
    )
    return pd.DataFrame(given | columns)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_a_file_is_what_the_model_draws_and_says_so(kept, tmp_path):
    drawer = pixel_drawer(kept, HOW)
    made = generate(wishes(), tmp_path / "images", drawer, progress=False)
    told = TOLD.encode(dict(label=wishes().label, domain=wishes().domain))
    right = draw_images(drawer.model, told, [1, 2, 3], HOW)
    for path, image in zip(made.path, right, strict=True):
        assert np.abs(pixels(path) - image).max() <= 1
    said = read_provenance(made.path[2])
    assert said["domain"] == "hospital 3" and said["seed"] == 3 and said["guidance"] == 1.5
    assert said["weights_hash"] == drawer.model.weights_hash
    assert said["sampling"]["scale"] == 1.5 and "omega" not in said["sampling"]
    assert "domain" not in read_provenance(made.path[1])  # it was unknown


def test_omega_and_scale_ask_for_the_same_file(kept, tmp_path):
    one = generate(wishes(), tmp_path / "a", pixel_drawer(kept, HOW), progress=False)
    same = pixel_drawer(kept, Sampling("ddim", 4, scale=1.5))
    two = generate(wishes(), tmp_path / "b", same, progress=False)
    assert one.md5.tolist() == two.md5.tolist()


def test_guidance_of_a_row_is_its_own(kept, tmp_path):
    drawer = pixel_drawer(kept, HOW)
    rows = wishes(guidance=[1.5, 1.0, 6.0])
    made = generate(rows, tmp_path / "a", drawer, progress=False)
    told = TOLD.encode(dict(label=rows.label, domain=rows.domain))
    for k, scale in enumerate(rows.guidance):
        alone = draw_images(
            drawer.model, told[k : k + 1], [k + 1], Sampling("ddim", 4, scale=scale)
        )
        assert np.abs(pixels(made.path[k]) - alone[0]).max() <= 1


def test_a_part_can_be_left_unknown(kept, tmp_path):
    drawer = pixel_drawer(kept, HOW, unknown=("domain",))
    rows = wishes().drop(columns="domain")
    made = generate(rows, tmp_path / "a", drawer, progress=False)
    told = TOLD.encode(dict(label=rows.label))
    right = draw_images(drawer.model, told, [1, 2, 3], HOW)
    assert np.abs(pixels(made.path[2]) - right[2]).max() <= 1
    assert read_provenance(made.path[0])["unknown"] == ["domain"]


def test_what_cannot_be_drawn_is_refused_before_anything_is(kept, tmp_path):
    drawer = pixel_drawer(kept, HOW)

    def ask(rows):
        return generate(rows, tmp_path / "images", drawer, progress=False)

    with pytest.raises(
        ValueError, match="Row 1, image_id 'b', column label: 'melanoma' is none of"
    ):
        ask(wishes(label=["normal", "melanoma", "tumor"]))
    with pytest.raises(ValueError, match="image_id 'c', column domain: 'hospital 9' is none of"):
        ask(wishes(domain=["hospital 0", None, "hospital 9"]))
    with pytest.raises(ValueError, match=r"lacks the column\(s\) \['domain'\].*`unknown`"):
        ask(wishes().drop(columns="domain"))
    with pytest.raises(ValueError, match="image_id 'b', column guidance: -1.0 is not in 0..100"):
        ask(wishes(guidance=[1.0, -1.0, 2.0]))
    assert not list(Path(tmp_path / "images").glob("*.png"))
    with pytest.raises(ValueError, match="'site'"):
        pixel_drawer(kept, HOW, unknown=("site",))
    with pytest.raises(FileNotFoundError, match="ddpm.json"):
        pixel_drawer(tmp_path, HOW)
    with pytest.warns(UserWarning, match="do not divide"):
        pixel_drawer(kept, Sampling("ddim", 7))


class Twice:
    "An upsampler in miniature: each pixel becomes four, and its seed a grey level of one of them."

    size = 16

    def __init__(self, weights="w"):
        self.weights = weights

    def settings(self):
        return dict(weights_hash=self.weights)

    def __call__(self, images, told, seeds):
        assert told.shape == (len(images), TOLD.size)
        out = images.repeat(2, 1).repeat(2, 2)
        out[:, 0, 0] = np.array(seeds, np.uint8)[:, None]
        return out


def test_an_upsampler_stands_behind_the_model(kept, tmp_path):
    small = generate(wishes(), tmp_path / "a", pixel_drawer(kept, HOW), progress=False)
    large = pixel_drawer(kept, HOW, upsampler=Twice())
    assert large.size == 16
    made = generate(wishes(), tmp_path / "b", large, progress=False)
    for k in range(3):
        got = pixels(made.path[k])
        assert got[0, 0].tolist() == [k + 1] * 3
        assert np.array_equal(got[3::2, 3::2], pixels(small.path[k])[1:, 1:])
    assert read_provenance(made.path[0])["upsampler"] == dict(weights_hash="w")
    other = pixel_drawer(kept, HOW, upsampler=Twice("v"))
    assert other.settings() != large.settings()


def test_grey_images_are_saved_with_three_channels(tmp_path):
    model = Denoiser(Network(**TINY, colours=1))
    save_ddpm(tmp_path / "grey", model)
    drawer = pixel_drawer(tmp_path / "grey", Sampling("ddim", 2))
    rows = wishes()[["image_id", "seed", "label"]]
    made = generate(rows, tmp_path / "images", drawer, progress=False)
    got = pixels(made.path[0])
    assert got.shape == (8, 8, 3) and (got[..., 0] == got[..., 2]).all()


def test_batches_are_smaller_for_larger_images():
    class Sized(Denoiser):
        def __init__(self, size):
            torch.nn.Module.__init__(self)
            self.network, self.conditions = Network(**TINY | dict(size=size)), TOLD
            self.signal = torch.zeros(1)

    sizes = {s: PixelDrawer(Sized(s), HOW).default_batch_size() for s in (32, 64, 256)}
    assert sizes == {32: 128, 64: 32, 256: 2}
