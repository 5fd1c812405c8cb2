"""Adapters on small folders in the publishers' layouts, on the real files where they are, and on
what goes wrong with downloads.
"""

import dataclasses
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from skinrepro import sources
from skinrepro.core import has_data, md5_file
from skinrepro.manifest import ManifestError

PAD = "patient_id,lesion_id,age,gender,fitspatrick,region,diagnostic,img_id,biopsed\n"
HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"


def photograph(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype="uint8")).save(
        path
    )


@pytest.fixture
def pad(tmp_path):
    "Three photographs of two patients, in two of the publisher's parts."
    for i, name in enumerate(
        ["imgs_part_1/PAT_1_1_1.png", "imgs_part_1/PAT_1_1_2.png", "imgs_part_3/PAT_2_5_3.png"]
    ):
        photograph(tmp_path / "images" / name, i)
    (tmp_path / "metadata.csv").write_text(
        PAD
        + "PAT_1,1,8,,1.0,ARM,NEV,PAT_1_1_1.png,False\nPAT_1,1,8,,1.0,ARM,NEV,PAT_1_1_2.png,False\n"
        "PAT_2,5,55,FEMALE,,NECK,BCC,PAT_2_5_3.png,True\n"
    )
    return tmp_path


@pytest.fixture
def ham(tmp_path):
    for i in (1, 2):
        photograph(tmp_path / f"HAM10000_images_part_{i}" / f"ISIC_000000{i}.jpg", i)
    (tmp_path / "HAM10000_metadata.csv").write_text(
        HAM + "HAM_1,ISIC_0000001,mel,histo,40.0,male,trunk,rosendahl\n"
        "HAM_2,ISIC_0000002,nv,follow_up,,female,,vidir_molemax\n"
    )
    return tmp_path


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_pad_from_parts(pad):
    m = sources.read_pad_ufes20(pad)
    assert m.image_id.tolist() == ["PAT_1_1_1", "PAT_1_1_2", "PAT_2_5_3"] and m.label.tolist() == [
        "NEV",
        "NEV",
        "BCC",
    ]
    assert m.patient_id.tolist() == ["PAT_1", "PAT_1", "PAT_2"] and m.skin_type.fillna(
        0
    ).tolist() == [1, 1, 0]
    assert all(md5_file(p) == h for p, h in zip(m.path, m.md5))


def test_pad_from_one_folder_is_the_same(pad):
    parts = sources.read_pad_ufes20(pad)
    for p in list((pad / "images").rglob("*.png")):
        p.rename(pad / "images" / p.name)
    flat = sources.read_pad_ufes20(pad)
    assert flat.drop(columns="path").equals(parts.drop(columns="path"))


def test_ham(ham):
    m = sources.read_ham10000(ham)
    assert m.label.tolist() == ["mel", "nv"] and m.domain.tolist() == ["rosendahl", "vidir_molemax"]
    assert m.patient_id.tolist() == ["HAM_1", "HAM_2"]
    (ham / "HAM10000_metadata.csv").rename(
        ham / "HAM10000_metadata"
    )  # as Harvard Dataverse calls it
    assert sources.read_ham10000(ham).equals(m)


@pytest.mark.parametrize(
    "old,new,match",
    [
        ("fitspatrick", "fitzpatrick", r"metadata.csv: missing column\(s\) \['fitspatrick'\]"),
        (",1.0,ARM", ",7.0,ARM", r"metadata.csv, line 2, column fitspatrick: '7.0'"),
        (",1.0,ARM", ",fair,ARM", r"line 2, column fitspatrick: 'fair'"),
        (",1.0,ARM", ",1.5,ARM", r"line 2, column fitspatrick: '1.5'"),
        ("NECK,BCC", "NECK,BOD", r"line 4, column diagnostic: 'BOD' is not one of ACK"),
        ("NECK,BCC", "NECK,", r"line 4, column diagnostic: an empty cell"),
        ("PAT_1_1_2.png", "PAT_1_1_1.png", r"line 3, column img_id: 'PAT_1_1_1.png' occurs twice"),
        ("\nPAT_2,5", "\n,5", r"line 4, column patient_id: an empty cell"),
        ("PAT_1,1,8", '"PAT_1,1,8', r"metadata.csv is not a readable csv|missing column|column"),
    ],
)
def test_a_bad_cell_is_named(pad, old, new, match):
    edit(pad / "metadata.csv", old, new)
    with pytest.raises(ManifestError, match=match):
        sources.read_pad_ufes20(pad)


@pytest.mark.parametrize(
    "content,match",
    [
        (b"", "not a readable csv"),
        (PAD.encode(), "no rows"),
        (b"\xff\xfe\x00PAT", "not a readable csv"),
    ],
)
def test_a_broken_table_is_named(pad, content, match):
    (pad / "metadata.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=match) as e:
        sources.read_pad_ufes20(pad)
    assert "metadata.csv" in str(e.value)


def test_ham_without_sites(ham):
    edit(ham / "HAM10000_metadata.csv", ",dataset", "")
    with pytest.raises(ManifestError, match=r"missing column\(s\) \['dataset'\].*doi.org"):
        sources.read_ham10000(ham)


def test_a_byte_order_mark_is_harmless(pad):
    file = pad / "metadata.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(sources.read_pad_ufes20(pad)) == 3


def test_missing_photographs_are_listed(pad):
    for p in (pad / "images" / "imgs_part_1").iterdir():
        p.unlink()
    with pytest.raises(sources.MissingImages, match="2 of 3 photographs") as e:
        sources.read_pad_ufes20(pad)
    assert e.value.names == ["PAT_1_1_1.png", "PAT_1_1_2.png"] and isinstance(
        e.value, FileNotFoundError
    )
    with pytest.warns(UserWarning, match="PAT_1_1_1.png, PAT_1_1_2.png"):
        m = sources.read_pad_ufes20(pad, missing="drop")
    assert m.image_id.tolist() == ["PAT_2_5_3"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = sources.read_pad_ufes20(pad, missing="keep")
    assert len(m) == 3 and m.md5.isna().tolist() == [True, True, False]
    assert m.path[0] == str(pad / "images" / "PAT_1_1_1.png")  # where it belongs
    with pytest.raises(ValueError, match="'error', 'drop', 'keep'"):
        sources.read_pad_ufes20(pad, missing="ignore")


def test_archives_that_were_not_unpacked(pad):
    for p in (pad / "images").rglob("*.png"):
        p.unlink()
    with zipfile.ZipFile(pad / "images" / "imgs_part_1.zip", "w") as z:
        z.writestr("a", "b")
    for missing in ("error", "drop"):  # nothing is not a part
        with pytest.raises(sources.MissingImages, match="Unpack imgs_part_1.zip"):
            sources.read_pad_ufes20(pad, missing=missing)
    assert len(sources.read_pad_ufes20(pad, missing="keep")) == 3  # for those who count


def test_a_second_copy_of_the_collection(pad):
    photograph(pad / "small" / "PAT_1_1_1.png", 99)  # e.g. resized
    with pytest.raises(ManifestError, match="Two different files are called PAT_1_1_1.png"):
        sources.read_pad_ufes20(pad)
    (pad / "small" / "PAT_1_1_1.png").write_bytes(
        (pad / "images" / "imgs_part_1" / "PAT_1_1_1.png").read_bytes()
    )  # an equal one is harmless
    assert len(sources.read_pad_ufes20(pad)) == 3


def test_leftovers_of_a_mac(pad):
    for name in ("__MACOSX/PAT_1_1_1.png", "images/imgs_part_1/._PAT_1_1_1.png"):
        (pad / name).parent.mkdir(exist_ok=True)
        (pad / name).write_bytes(b"Mac OS X        2")
    m = sources.read_pad_ufes20(pad)
    assert all(Image.open(p).size == (5, 6) for p in m.path)


def test_copies_are_kept_once(pad):
    source, copy = (
        pad / "images" / "imgs_part_1" / "PAT_1_1_1.png",
        pad / "images" / "imgs_part_1" / "PAT_1_1_2.png",
    )
    copy.write_bytes(source.read_bytes())
    with pytest.warns(UserWarning, match=r"PAT_1_1_2 = PAT_1_1_1\."):
        assert len(sources.read_pad_ufes20(pad)) == 2
    edit(pad / "metadata.csv", "NEV,PAT_1_1_2", "MEL,PAT_1_1_2")
    with pytest.warns(UserWarning, match="disagree"):
        assert len(sources.read_pad_ufes20(pad)) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(sources.read_pad_ufes20(pad, md5=False)) == 3


@pytest.mark.parametrize(
    "read,source",
    [(sources.read_pad_ufes20, sources.PAD_UFES20), (sources.read_ham10000, sources.HAM10000)],
)
def test_no_folder_says_how_to_get_it(read, source, tmp_path, monkeypatch):
    monkeypatch.delenv("SKINREPRO_DATA", raising=False)
    for folder in (None, tmp_path / "nowhere", tmp_path):  # not set, not there, empty
        with pytest.raises(FileNotFoundError) as e:
            read(folder)
        assert source.homepage in str(e.value) and source.how in str(e.value)
    monkeypatch.setenv("SKINREPRO_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="SKINREPRO_DATA is"):
        read()


def test_records_are_complete():
    for s in sources.SOURCES:
        for f in dataclasses.fields(s):
            if f.name != "labels":
                assert getattr(s, f.name).strip(), (s.name, f.name)
        assert s.licence in str(s) and s.citation in str(s) and "\n" not in s.credit


@pytest.mark.skipif(not has_data("pad_ufes20"), reason="needs $SKINREPRO_DATA/pad_ufes20")
def test_real_pad():
    with pytest.warns(UserWarning, match="PAT_701_1321_156 = PAT_701_4056_457"):
        m = sources.read_pad_ufes20()
    assert (
        set(m.label) == set(sources.PAD_UFES20.labels)
        and m.image_id.str.match(r"PAT_\d+_\d+_\d+$").all()
    )
    assert (
        m.skin_type.isna().any()
        and set(m.skin_type.dropna()) <= set(range(1, 7))
        and m.patient_id.nunique() < len(m)
    )


@pytest.mark.skipif(not has_data("ham10000"), reason="needs $SKINREPRO_DATA/ham10000")
def test_real_ham():
    m = sources.read_ham10000()
    assert set(m.label) == set(sources.HAM10000.labels) and m.skin_type.isna().all()
    assert set(m.domain) == {"rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"}
