"""Faults that the notebook cannot show: bad files, racing or dying processes, changing files."""

import io
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from skinrepro import images
from skinrepro.images import (
    REFUSE_PIXELS,
    ImageError,
    cache_images,
    file_md5s,
    fit_image,
    join_stores,
    load_image,
)


def picture(w=64, h=48, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((w, h), Image.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        picture(60 + i, 50, seed=i).save(tmp_path / f"{i}.png")
    return tmp_path


def manifest_of(folder, n=12):
    return pd.DataFrame([dict(image_id=f"img{i}", path=str(folder / f"{i}.png")) for i in range(n)])


def build(folder, n=12, size=24, **options):
    return cache_images(
        manifest_of(folder, n), size, folder=folder / "cache", progress=False, **options
    )


# --------------------------------------------------------------------------------------------------
# single files
def png(
    w, h, bits, colour, body=b""
):  # a PNG written by hand, so that its header may promise anything
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def encoded(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


JPG = encoded(picture(300, 200), "JPEG")
BAD = {
    "empty.jpg": (b"", "empty"),
    "page.jpg": (b"<!doctype html><title>404</title>", "not an image"),
    "random.png": (np.random.default_rng(0).bytes(3000), "not an image"),
    "cut.jpg": (JPG[: len(JPG) * 2 // 3], "truncated"),
    "header_only.jpg": (JPG[:250], ""),
    "cut.png": (encoded(picture(), "PNG")[:900], "truncated"),
    "flipped.png": (lambda b: b[:60] + bytes([b[60] ^ 255]) + b[61:], "damaged"),
    "cut.gif": (encoded(picture(300, 200).quantize(64), "GIF")[:1500], "truncated"),
    "bomb.png": (png(60_000, 60_000, 8, 2), "too large"),
    "above_limit.png": (png(10_000, 9_000, 8, 0), "too large"),
    "float.tif": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit"),
    "int32.tif": (encoded(Image.fromarray(np.full((4, 4), 100_000, np.int32)), "TIFF"), "32-bit"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_by_name(tmp_path, name):
    data, why = BAD[name]
    if callable(data):
        data = data(encoded(picture(), "PNG"))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError) as e:
        load_image(tmp_path / name)
    assert name in str(e.value) and why in str(e.value)
    assert any(w in str(e.value) for w in ("drop its row", "Save it with")), e.value  # the remedy


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jpg.*path column"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_limit_is_where_it_is_said_to_be(tmp_path):
    assert 10_000 * 9_000 > REFUSE_PIXELS > 50_000_000


rgb, grey = np.asarray(picture()), np.asarray(picture().convert("L").convert("RGB"))
SRGB = ImageCms.createProfile("sRGB")
GOOD = {  # the image to save, what must come back, tolerance in levels
    "grey.png": (picture().convert("L"), grey, 0),
    "grey.jpg": (picture().convert("L"), grey, 12),
    "one_bit.png": (picture().convert("1"), np.asarray(picture().convert("1").convert("RGB")), 0),
    "palette.png": (picture().quantize(64), np.asarray(picture().quantize(64).convert("RGB")), 0),
    "palette.gif": (picture().quantize(64), np.asarray(picture().quantize(64).convert("RGB")), 0),
    "cmyk.jpg": (picture().convert("CMYK"), rgb, 60),
    "cmyk.tif": (picture().convert("CMYK"), rgb, 0),
    "ycbcr.tif": (picture().convert("YCbCr"), rgb, 8),
    "lab.tif": (
        ImageCms.profileToProfile(picture(), SRGB, ImageCms.createProfile("LAB"), outputMode="LAB"),
        rgb,
        30,
    ),
    "opaque.png": (picture().convert("RGBA"), rgb, 0),
}


@pytest.mark.parametrize("name", GOOD)
def test_modes_become_rgb(tmp_path, name):
    image, want, tolerance = GOOD[name]
    image.save(tmp_path / name)
    got = load_image(tmp_path / name)
    assert got.shape == (48, 64, 3) and got.dtype == np.uint8
    off = np.abs(got.astype(int) - want)
    assert off.max() <= tolerance and off.mean() <= tolerance / 5


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    assert load_image(tmp_path / f"x{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_white(tmp_path):
    half = picture().convert("RGBA")
    half.putalpha(Image.fromarray(np.full((48, 64), 128, np.uint8)))
    half.save(tmp_path / "half.png")
    want = (rgb * (128 / 255) + 255 * (127 / 255)).round()
    assert np.abs(load_image(tmp_path / "half.png") - want).max() <= 1
    black = Image.fromarray(np.zeros((8, 8), np.uint8), "L").convert("P")
    black.save(tmp_path / "palette.gif", transparency=0)
    assert (load_image(tmp_path / "palette.gif") == 255).all()
    grey = Image.merge("LA", [Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 0)])
    grey.save(tmp_path / "la.png")
    assert (load_image(tmp_path / "la.png") == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["jpg", "png", "tif"])
def test_exif_orientation(tmp_path, orientation, format):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"x.{format}"
    picture().save(file, exif=exif)
    with Image.open(file) as image:
        want = np.asarray(ImageOps.exif_transpose(image))
    got, (w, h) = images._open_rgb(file.read_bytes(), file, 10**9)
    assert np.array_equal(np.asarray(got), want) and (w, h) == got.size == (
        (48, 64) if orientation > 4 else (64, 48)
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored(tmp_path):
    picture().save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert load_image(tmp_path / "x.jpg").shape == (48, 64, 3)


def test_first_frame_of_an_animation(tmp_path):
    Image.new("RGB", (8, 8), "red").save(
        tmp_path / "x.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]
    )
    assert load_image(tmp_path / "x.gif")[0, 0].tolist() == [255, 0, 0]


def peak_megabytes(code):  # of a fresh process, beyond what importing costs
    script = """
        import resource, sys
        import numpy as np
        from PIL import Image
        from skinrepro.images import load_image
        load_image(sys.argv[2])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        x = load_image(sys.argv[1])
        print(*x.shape, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024)"""
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *code],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return tuple(map(int, out[:3])), float(out[3])


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_50_megapixels_in_little_memory(tmp_path):
    Image.new("RGB", (8660, 5774), (200, 150, 120)).save(tmp_path / "large.jpg", quality=60)
    Image.new("L", (8660, 5774), 90).save(tmp_path / "large.png", compress_level=1)
    picture().save(tmp_path / "small.jpg")
    shape, megabytes = peak_megabytes([str(tmp_path / "large.jpg"), str(tmp_path / "small.jpg")])
    assert shape == (2887, 4330, 3) and megabytes < 120  # 50 MP of RGB in Pillow alone are 200
    shape, megabytes = peak_megabytes([str(tmp_path / "large.png"), str(tmp_path / "small.jpg")])
    assert shape == (2887, 4330, 3) and megabytes < 320  # PNG cannot be decoded in part


def test_panorama_does_not_explode():
    assert fit_image(np.zeros((3, 200_000, 3), np.uint8), 256).shape == (256, 256, 3)


# --------------------------------------------------------------------------------------------------
# the cache
def test_decoded_once_and_subsets_are_free(folder):
    first = build(folder, 6)
    assert (first.decoded, first.size, len(first.ids)) == (6, 24, 6)
    assert build(folder, 6).decoded == 0
    every = build(folder, 12)
    assert every.decoded == 6  # the six that were not there yet
    for i in range(6):
        assert (every.take(every.rows([f"img{i}"])) == first.take(first.rows([f"img{i}"]))).all()
    last = cache_images(
        manifest_of(folder).iloc[[11, 0]], 24, folder=folder / "cache", progress=False
    )
    assert last.decoded == 0 and len(last.array) == 12 and last.ids == ("img11", "img0")
    assert (
        last.take(last.rows(["img11"]))[0] == fit_image(load_image(folder / "11.png"), 24)
    ).all()
    assert (
        build(folder, 12, size=25).decoded == build(folder, 12, fit="squash").decoded == 12
    )  # other pixels, another store
    with pytest.raises(ValueError, match="'img5'"):
        last.rows(["img0", "img5"])


def test_a_changed_file_is_decoded_again(folder):
    before = build(folder)
    time.sleep(0.01)
    picture(60, 50, seed=77).save(folder / "0.png")
    after = build(folder)
    assert after.decoded == 1
    assert (
        after.take(after.rows(["img0"]))[0] == fit_image(load_image(folder / "0.png"), 24)
    ).all()
    assert (
        before.take(before.rows(["img0"])) != after.take(after.rows(["img0"]))
    ).any()  # an open store does not change


def test_same_size_and_old_time_stamp_does_not_deceive(folder):
    # within the clock's resolution a rewrite leaves size and time as they were; so young files are
    # not remembered
    (folder / "x").write_bytes(b"a" * 10)
    (a,) = file_md5s([folder / "x"], folder / "cache")
    stamp = os.stat(folder / "x").st_mtime_ns
    (folder / "x").write_bytes(b"b" * 10)
    os.utime(folder / "x", ns=(stamp, stamp))
    assert file_md5s([folder / "x"], folder / "cache") != [a]


def test_old_files_are_not_read_twice(folder, monkeypatch):
    for f in folder.glob("*.png"):
        os.utime(f, (1e9, 1e9))
    build(folder)
    monkeypatch.setattr(images, "_read", lambda path: pytest.fail(f"{path} was read again"))
    assert build(folder).decoded == 0
    with pytest.raises(pytest.fail.Exception):
        build(folder, size=30)


def test_md5_of_the_manifest_is_held(folder):
    m = manifest_of(folder)
    m["md5"] = file_md5s(m.path, folder / "cache")
    m.loc[3, "md5"] = None
    assert cache_images(m, 24, folder=folder / "cache", progress=False).decoded == 12
    m.loc[4, "md5"] = "0" * 32
    with pytest.raises(ImageError, match=r"4\.png"):
        cache_images(m, 24, folder=folder / "cache", progress=False)


def test_md5_of_digits_only_is_text(folder, monkeypatch):
    monkeypatch.setattr(images, "_md5", lambda data: "0" * 22 + "1234567e89")
    assert build(folder, 1).decoded == 1 and build(folder, 1).decoded == 0


def test_two_ids_of_one_file_share_a_row(folder):
    m = pd.concat(
        [manifest_of(folder, 2), pd.DataFrame([dict(image_id="copy", path=str(folder / "0.png"))])]
    )
    store = cache_images(m, 24, folder=folder / "cache", progress=False)
    assert store.decoded == 2 and store.rows(["copy"]) == store.rows(["img0"])


def test_all_bad_files_in_one_message_and_no_store_left(folder):
    (folder / "3.png").write_bytes(b"")
    (folder / "7.png").write_text("no image")
    with pytest.raises(ImageError) as e:
        build(folder)
    assert "2 of 12" in str(e.value) and "3.png" in str(e.value) and "7.png" in str(e.value)
    (kind,) = (f for f in (folder / "cache").iterdir() if f.is_dir())
    assert [f.name for f in kind.iterdir() if f.is_dir()] == []
    for i in (3, 7):
        picture(seed=i).save(folder / f"{i}.png")
    assert build(folder).decoded == 12


def test_wrong_arguments(folder):
    m = manifest_of(folder, 2)
    with pytest.raises(ValueError, match="fit"):
        cache_images(m, 24, fit="longer", folder=folder)
    with pytest.raises(ValueError, match="resample"):
        cache_images(m, 24, resample="best", folder=folder)
    with pytest.raises(ValueError, match="size"):
        cache_images(m, 0, folder=folder)
    with pytest.raises(ValueError, match="no rows"):
        cache_images(m[:0], 24, folder=folder)
    with pytest.raises(ValueError, match="'img0'.*unique"):
        cache_images(pd.concat([m, m]), 24, folder=folder)
    with pytest.raises(FileNotFoundError, match="gone.png"):
        cache_images(
            pd.DataFrame([dict(image_id="a", path="gone.png")]), 24, root=folder, folder=folder
        )


def test_a_store_is_read_only_and_joins(folder):
    a, b = (
        build(folder, 3),
        cache_images(manifest_of(folder).iloc[5:], 24, folder=folder / "cache", progress=False),
    )
    with pytest.raises(ValueError):
        a.array[0] = 0
    both = join_stores(a, b)
    order = ["img11", "img1", "img5", "img1"]
    want = np.stack([fit_image(load_image(folder / f"{i[3:]}.png"), 24) for i in order])
    assert (both.take(both.rows(order)) == want).all()
    assert [tuple(both.sizes[r]) for r in both.rows(order)] == [
        Image.open(folder / f"{i[3:]}.png").size for i in order
    ]
    with pytest.raises(ValueError, match="take"):
        both.array  # noqa: B018
    with pytest.raises(ValueError, match="img0"):
        join_stores(a, a)
    with pytest.raises(ValueError, match="size"):
        join_stores(a, build(folder, 3, size=30))


RACE = """
    import sys, time
    from pathlib import Path
    import pandas as pd
    from skinrepro import images
    folder = Path(sys.argv[1])
    m = pd.DataFrame([dict(image_id=f'img{i}', path=str(folder/f'{i}.png')) for i in range(12)])
    slow = images.fit_image
    def fit(*a):
        time.sleep(float(sys.argv[2])); return slow(*a)
    images.fit_image = fit
    (folder/f'ready{sys.argv[3]}').touch()
    while not (folder/'go').exists(): time.sleep(.005)
    s = images.cache_images(m, 24, folder=folder/'cache', threads=1, progress=False)
    print(s.decoded, int(s.array.sum()))
"""


def start(folder, pause, name):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RACE), str(folder), str(pause), name],
        stdout=subprocess.PIPE,
        text=True,
    )


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def test_two_processes_at_once_decode_once(folder):
    both = [start(folder, 0.02, name) for name in "ab"]
    until(lambda: all((folder / f"ready{n}").exists() for n in "ab"))
    (folder / "go").touch()
    out = [p.communicate(timeout=60)[0].split() for p in both]
    assert sorted(int(d) for d, _ in out) == [0, 12] and out[0][1] == out[1][1]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_while_building(folder):
    p = start(folder, 0.2, "a")
    (folder / "go").touch()
    until(lambda: list((folder / "cache").glob("v*/.tmp-*/pixels.npy")))
    time.sleep(0.3)
    p.kill()
    p.wait()
    assert list((folder / "cache").glob("v*/.tmp-*")) and not list(
        (folder / "cache").glob("v*/[0-9a-f]*")
    )  # a rest, but no store
    store = build(folder)
    assert store.decoded == 12 and not list(
        (folder / "cache").glob("v*/.tmp-*")
    )  # the rest is gone too
    assert (
        store.take(store.rows(["img9"]))[0] == fit_image(load_image(folder / "9.png"), 24)
    ).all()


def test_damaged_store_is_rebuilt(folder):
    build(folder)
    (file,) = (folder / "cache").glob("v*/*/pixels.npy")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:500])
    assert build(folder).decoded == 12


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate here")
def test_full_disk_is_an_error_not_a_crash(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="SKINREPRO_CACHE"):
        build(folder)


def test_import_is_light():
    code = (
        'import sys, skinrepro.images; sys.exit(any(m in sys.modules for m in ("torch", "PIL",'
        ' "timm")))'
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == 0
