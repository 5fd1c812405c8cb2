"""Phantom histology: the closed form of the stain, the rule of the centre, one tissue everywhere,
bad input; what reads well is shown in nbs/18_phantom_histology.ipynb instead.
"""

import hashlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinrepro import phantom_histology as histology
from skinrepro.phantom_histology import (
    CENTRE,
    DEPTH,
    HOSPITALS,
    LABELS,
    NATIVE,
    SIZES,
    Tissue,
    develop,
    draw_tissue,
    drawn_histology,
    histology_manifest,
    render,
    seed_of,
    stain_matrix,
    write_histology,
)

EDGE = (NATIVE - CENTRE) // 2


def counts(*rows):
    return pd.DataFrame(rows, columns=["label", "domain", "n"])


def flat(haematoxylin, eosin):
    "A square with the same amount of stain everywhere."
    h, e = (np.full((NATIVE, NATIVE), v, np.float32) for v in (haematoxylin, eosin))
    return Tissue(h, e, np.zeros_like(h))


def density(light, hospital):
    "Optical density of light, by the definition."
    return -np.log(light / np.array(HOSPITALS[hospital].white)[:, None, None])


# Stain
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_a_pure_stain_lies_along_its_vector(hospital):
    h = HOSPITALS[hospital]
    for k, vector in enumerate((h.haematoxylin, h.eosin)):
        unit = np.array(vector) / np.linalg.norm(vector)
        for amount in (0.2, 0.7):
            tissue = flat(*np.eye(2)[k] * amount)
            od = density(develop(tissue, hospital, 7, spread=0, noise=False), hospital)
            expected = amount * DEPTH[k] * h.amount[k] * unit
            assert np.abs(od - expected[:, None, None]).max() < 1e-3


def test_densities_of_both_stains_add():
    def od(h, e):
        return density(develop(flat(h, e), 3, 7, spread=0, noise=False), 3)

    assert np.allclose(od(0.3, 0.5), od(0.3, 0) + od(0, 0.5), atol=1e-3)
    assert np.allclose(od(0, 0), 0, atol=1e-5)  # nothing but the white of the scanner


def plane_angle(images, hospital):
    """Angle between the plane of all optical densities and each stain vector of the hospital, in
    degrees: the first step of Macenko et al. 2009.
    """
    white = np.array(HOSPITALS[hospital].white)
    od = -np.log(np.clip(images.reshape(-1, 3) / 255, 1 / 255, 1) / white)
    od = od[(od > 0.15).all(1) & (images.reshape(-1, 3) > 12).all(1)]
    normal = np.linalg.svd(od, full_matrices=False)[2][2]  # through the origin
    unit = stain_matrix(hospital)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return np.degrees(np.arcsin(np.abs(unit @ normal)))


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_pictures_lie_in_the_plane_of_the_two_stains(hospital):
    some = np.stack([render(LABELS[k % 2], hospital, 60 + k, spread=0) for k in range(10)])
    assert plane_angle(some, hospital).max() < 6


# One tissue everywhere
# -------------------------------------------------------------------------------------------------

PINNED = [("normal", 0, 3), ("tumor", 2, 3), ("normal", 3, 11), ("tumor", 4, 2**59)]
LEVELS = [  # mean of each quarter of these patches, 0..255
    [180.7, 190.1, 182.2, 198.8],
    [148.2, 142.4, 165.1, 148.7],
    [159.1, 137.1, 146.5, 153.8],
    [115.5, 132.2, 162.1, 138.5],
]


def test_pixels_of_this_version_are_fixed():
    "Another order of the random draws changes every number."
    assert histology.VERSION == "1", "pin the new pixels here, and let every record be made anew"
    for which, levels in zip(PINNED, LEVELS):
        quarters = render(*which, size=48).reshape(2, 24, 2, 24, 3).mean((1, 3, 4)).ravel()
        assert np.abs(quarters - levels).max() < 0.1, which


def test_the_same_in_another_process():
    code = (
        "import hashlib; from skinrepro.phantom_histology import render; h = hashlib.sha256()\n"
        f"for a in {PINNED!r}[::-1]: h.update(render(*a, size=48).tobytes())\n"
        "print(h.hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(render(*a, size=48).tobytes() for a in PINNED[::-1]))
    assert there.stdout.strip() == here.hexdigest()


@pytest.mark.parametrize("size", [s for s in SIZES if NATIVE % s == 0 and s < NATIVE])
def test_small_is_large_averaged(size):
    k = NATIVE // size
    large = render("tumor", 4, 21).astype(float).reshape(size, k, size, k, 3).mean((1, 3))
    assert np.abs(large - render("tumor", 4, 21, size)).max() <= 1


def test_64_pixels_are_areas_of_one_and_a_half():
    large = render("tumor", 4, 21).astype(float)  # 3 x 3 pixels are 2 x 2 small ones
    twice = large.repeat(2, 0).repeat(2, 1).reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(twice - render("tumor", 4, 21, 64)).max() <= 1


def test_hospitals_differ_in_stain_only():
    """Stains are taken off again by the hospital's own matrix: what remains is the tissue, the same
    for all. Without blur and noise, which are the scanner's.
    """
    tissue = draw_tissue("tumor", 5)
    for number in HOSPITALS:
        light = develop(tissue, number, 5, spread=0, noise=False)
        od = density(light, number).reshape(3, -1)
        found = np.linalg.pinv(stain_matrix(number).T) @ od
        for name, layer in zip(("haematoxylin", "eosin"), found):
            same = np.corrcoef(layer, getattr(tissue, name).ravel())[0, 1]
            assert same > 0.9, (number, name, same)
    a, b = (render("tumor", h, 5).astype(int) for h in (0, 3))
    assert np.abs(a - b).mean() > 8
    other = render("tumor", 0, 6).astype(int)
    assert np.abs(a - other).mean() > 8


def test_slides_of_one_hospital_differ_and_need_not():
    slides = np.stack([stain_matrix(0, seed) for seed in range(200)])
    assert slides.std(0).min() > 0.005
    assert np.allclose(slides.mean(0), stain_matrix(0), atol=0.03)
    assert np.array_equal(stain_matrix(0, 3, spread=0), stain_matrix(0))


# The rule of the centre
# -------------------------------------------------------------------------------------------------


def test_the_centre_decides_the_label():
    "Veeling et al. 2018: positive if the central 32 x 32 pixels hold tumour tissue."
    touched = 0
    for seed in range(40):
        for label in LABELS:
            mask = draw_tissue(label, seed).tumor
            middle = mask[EDGE:-EDGE, EDGE:-EDGE]
            assert middle.shape == (32, 32) and middle.any() == (label == "tumor"), (label, seed)
            assert label == "normal" or middle.mean() > 0.35
            touched += label == "normal" and mask.any()
    assert 4 <= touched <= 20  # tumour outside the centre alone leaves a patch normal


def test_the_centre_holds_for_every_shape():
    "The field alone, which is quick: many seeds, both ends of the difficulty."
    for seed in range(300):
        for label, difficulty in ((label, d) for label in LABELS for d in (0.0, 1.0)):
            section = histology.Section(seed, 0, histology.FIELD)
            field = histology._extent(section, label, difficulty)
            inside = (field[EDGE:-EDGE, EDGE:-EDGE] > 0).mean()
            assert inside > 0.35 if label == "tumor" else inside == 0, (label, seed, inside)


def test_the_mask_is_averaged_with_the_picture():
    _, large = render("tumor", 0, 9, mask=True)
    image, small = render("tumor", 0, 9, 32, mask=True)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert np.allclose(small, large.reshape(32, 3, 32, 3).mean((1, 3)), atol=1e-5)


def test_tumour_has_large_open_nuclei_where_the_mask_is():
    "Nuclei are placed only where the mask is: elsewhere both labels have the same kinds of cells."
    share = []
    for seed in range(12):
        tissue = draw_tissue("tumor", seed, difficulty=0)
        inside = tissue.haematoxylin[tissue.tumor > 0]
        share.append((inside > 0.45).mean())
    assert 0.25 < np.mean(share) < 0.75  # sheets of nuclei with cytoplasm between them


# Counts, ids, files
# -------------------------------------------------------------------------------------------------


def test_manifest_has_exactly_the_counts():
    table = counts(
        ("normal", "hospital 0", 3), ("tumor", "hospital 0", 0), ("tumor", "hospital 2", 2)
    )
    m = histology_manifest(table)
    assert m.groupby(["label", "domain"]).size().to_dict() == {
        ("normal", "hospital 0"): 3,
        ("tumor", "hospital 2"): 2,
    }
    assert (m.source == "phantom").all() and m.image_id.map(seed_of).is_unique
    assert set(histology_manifest(table, "fresh").image_id).isdisjoint(m.image_id)


def test_more_of_a_kind_keeps_the_first():
    few, more = (histology_manifest(counts(("tumor", "hospital 3", n))) for n in (2, 5))
    assert more.image_id[:2].tolist() == few.image_id.tolist()


def test_files_are_drawn_once_and_what_is_damaged_is_drawn_again(tmp_path, monkeypatch):
    table = counts(("normal", "hospital 0", 2), ("tumor", "hospital 4", 1))
    m = drawn_histology(table, "t", size=32, jobs=1, folder=tmp_path)
    pixels = np.asarray(Image.open(m.path[2]))
    assert np.array_equal(pixels, render("tumor", "hospital 4", seed_of(m.image_id[2]), 32))
    with Image.open(m.path[0]) as image:
        assert image.text["Source"].startswith("phantom: procedural, not a patient")
    with open(m.path[1], "r+b") as f:
        f.truncate(200)
    drawn = []
    monkeypatch.setattr(histology, "render", lambda *a, **k: drawn.append(a) or render(*a, **k))
    assert drawn_histology(table, "t", size=32, jobs=1, folder=tmp_path).equals(m)
    assert len(drawn) == 1 and drawn[0][2] == seed_of(m.image_id[1])


def test_options_have_folders_of_their_own(tmp_path):
    m = histology_manifest(counts(("tumor", "hospital 1", 1)))
    plain = write_histology(m, tmp_path, 16)
    easy = write_histology(m, tmp_path, 16, difficulty=0)
    same = write_histology(m, tmp_path, 16, difficulty=1.0)
    assert plain.path[0] == same.path[0] != easy.path[0] and plain.md5[0] != easy.md5[0]


# Bad input
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(label="tumour"), "label"),
        (dict(label=None), "label"),
        (dict(hospital=5), "hospital must be one of"),
        (dict(hospital="hospital 7"), "hospital must be one of"),
        (dict(hospital=True), "hospital must be one of"),
        (dict(hospital=[3]), "hospital must be one of"),
        (dict(seed=-1), "seed must be"),
        (dict(seed=1.5), "seed must be"),
        (dict(size=50), "size must be one of"),
        (dict(size=128), "size must be one of"),
        (dict(difficulty=2), "difficulty must lie in 0..1"),
        (dict(spread=-1), "spread must lie in 0..3"),
        (dict(field=0), "field must lie in 48..128"),
        (dict(field="wide"), "field must lie in 48..128"),
    ],
)
def test_render_says_what_is_wrong(change, says):
    with pytest.raises(ValueError, match=says):
        render(**{**dict(label="tumor", hospital=0, seed=1, size=32), **change})


@pytest.mark.parametrize(
    "table, says",
    [
        (counts(("tumor", "hospital 9", 1)), "Row 0: domain is 'hospital 9', not one of"),
        (counts(("tumor", "hospital 1", 1), ("benign", "hospital 1", 2)), "Row 1: label"),
        (counts(("tumor", "hospital 1", -1)), "Row 0: n is -1"),
        (counts(("tumor", "hospital 1", 0)), "every n is 0"),
        (counts(("tumor", "hospital 1", 1), ("tumor", "hospital 1", 1)), "Row 1.*counted twice"),
        (counts(("tumor", None, 1)), "Row 0: domain is"),
        (pd.DataFrame(dict(label=["tumor"], n=[1])), r"Missing column\(s\) \['domain'\]"),
    ],
)
def test_counts_are_refused_by_row_and_column(table, says):
    with pytest.raises(ValueError, match=says):
        histology_manifest(table)


def test_nothing_is_written_where_something_cannot_be_drawn(tmp_path):
    m = histology_manifest(counts(("tumor", "hospital 1", 1)))
    for bad, says in (
        (m.assign(domain="hospital 8"), "hospital must be one of"),
        (m.assign(label="benign"), "label"),
        (m.assign(source="real"), "not a phantom"),
        (m.assign(domain=pd.NA), "not a phantom with a domain"),
    ):
        with pytest.raises(ValueError, match=says):
            write_histology(bad, tmp_path)
    with pytest.raises(ValueError, match="Unknown option"):
        write_histology(m, tmp_path, zoom=2)
    assert not list(tmp_path.iterdir())
