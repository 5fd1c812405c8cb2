"""Transforms, sampling and batches against torchvision on many shapes; threads that fail or are
left; real photographs.
"""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from skinrepro.batches import (
    AUGMENTATIONS,
    STAINS,
    augment,
    augmentation,
    batches,
    blur,
    cache_pair,
    class_weights,
    colour_jitter,
    colour_statistics,
    crop_back,
    draw_augmentation,
    encode_labels,
    encode_multi,
    eval_transform,
    image_batches,
    match_colour,
    mixture_weights,
    normalisation,
    planned_sampler,
    resize_for,
    restain,
    row_sampler,
    scale_brightness,
    scale_contrast,
    scale_saturation,
    shift_hue,
    shuffled_sampler,
    stain_jitter,
    steps_between,
    strong_augmentation,
    train_store_size,
    train_transform,
    turn,
    weighted_sampler,
    whole_transform,
)
from skinrepro.core import data_folder, has_data
from skinrepro.images import fit_image, load_image


def picture(w, h, seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((w, h), Image.BICUBIC)


@pytest.fixture
def stores(tmp_path):  # of twelve pictures, for a network of 32 pixels
    for i in range(12):
        picture(60 + i, 50, seed=i).save(tmp_path / f"{i}.png")
    m = pd.DataFrame([dict(image_id=f"img{i}", path=f"{i}.png") for i in range(12)])
    return cache_pair(m, 32, root=tmp_path, folder=tmp_path / "cache", progress=False)


# --------------------------------------------------------------------------------------------------
# transforms
@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_evaluation_equals_torchvision(tmp_path, size):
    from torchvision import transforms as T

    mean, std = normalisation("vgg16")
    reference = T.Compose(
        [T.Resize(resize_for(size)), T.CenterCrop(size), T.ToTensor(), T.Normalize(mean, std)]
    )
    for w, h in [(301, 200), (200, 333), (150, 150)]:
        picture(w, h, seed=w).save(tmp_path / "x.png")
        cached = fit_image(load_image(tmp_path / "x.png"), resize_for(size))
        ours = eval_transform(size, mean, std)(torch.from_numpy(cached.copy())[None])[0]
        off = (
            (ours - reference(picture(w, h, seed=w))).abs() * torch.tensor(std).view(3, 1, 1) * 255
        )
        assert off.max() <= 1.01, (w, h, off.max())


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [-15.0, -3.3, 0.0, 7.7, 15.0])
@pytest.mark.parametrize("shape", [(301, 200), (180, 300), (90, 90), (800, 200)])
def test_training_equals_torchvision_with_the_same_draw(shape, angle, flip):
    from torchvision.transforms import functional as TF

    size, image = 64, picture(*shape, seed=3)
    draw = draw_augmentation([shape], np.random.default_rng(1))
    draw = draw._replace(angle=np.array([angle]), flip=np.array([flip]))
    left, top, w, h = (int(v) for v in draw.box[0])
    want = TF.rotate(TF.resized_crop(image, top, left, h, w, [resize_for(size)] * 2), angle)
    want = TF.pil_to_tensor(TF.center_crop(TF.hflip(want) if flip else want, [size, size])).float()
    for stored, tolerance in ((train_store_size(size), 1.0), (resize_for(size), 2.0)):
        x = torch.from_numpy(fit_image(image, stored, "squash").copy())[None]
        got = augment(x, draw, [shape], size)[0] * 127.5 + 127.5
        assert (got - want).abs().mean() < tolerance
        assert (
            (got < 0.5).all(0) != (want == 0).all(0)
        ).float().mean() < 0.002  # the same black corners, but for rounding


def test_draws_are_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    for w, h in [
        (400, 300),
        (300, 300),
        (1000, 200),
    ]:  # the last always falls back to a centred crop
        image = Image.new("L", (w, h))
        theirs = np.array(
            [RandomResizedCrop.get_params(image, [0.8, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)]
        )[:, [1, 0, 3, 2]]
        ours = draw_augmentation([(w, h)] * 1500, np.random.default_rng(0)).box
        for a, b in zip(ours.T, theirs.T):
            spread = max(b.std(), 1)
            assert (
                abs(a.mean() - b.mean()) < 0.15 * spread and abs(a.std() - b.std()) < 0.15 * spread
            )
            assert a.min() >= b.min() - 0.5 * spread and a.max() <= b.max() + 0.5 * spread


def test_a_draw_does_not_depend_on_the_device_or_slices():
    x = torch.randint(
        0, 256, (9, train_store_size(224), train_store_size(224), 3), dtype=torch.uint8
    )
    sizes = [(400, 300)] * 9
    draw = draw_augmentation(sizes, np.random.default_rng(0))
    whole = augment(x, draw, sizes)
    for k in (0, 4, 8):
        alone = augment(
            x[k : k + 1],
            draw._replace(
                box=draw.box[k : k + 1], angle=draw.angle[k : k + 1], flip=draw.flip[k : k + 1]
            ),
            sizes[:1],
        )
        assert torch.allclose(alone[0], whole[k], atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    x = torch.randint(0, 256, (4, 90, 90, 3), dtype=torch.uint8)
    for transform in (train_transform(64), eval_transform(64)):
        a, b = (transform(x.to(d), np.random.default_rng(0)).cpu() for d in ("cpu", "cuda"))
        assert (
            (a - b).abs() > 0.02
        ).float().mean() < 0.001  # nearest pixel: a tie may fall on either side


def test_transform_refuses_wrong_input():
    with pytest.raises(ValueError, match="uint8"):
        eval_transform(8)(torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match="shape"):
        train_transform(8)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), np.random.default_rng())
    with pytest.raises(ValueError, match="8 px; a network of 16"):
        eval_transform(16)(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def test_evaluation_refuses_a_squashed_store(stores):
    train, evaluate = stores

    def one(store):
        return list(batches(store, store.rows(store.ids[:2]), [0, 0], 2, eval_transform(32)))

    assert one(evaluate)[0][0].shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="squashed"):
        one(train)


def test_normalisation_of_an_unknown_model():
    with pytest.raises(ValueError, match="vgg99"):
        normalisation("vgg99")


# --------------------------------------------------------------------------------------------------
# sampling, batches
def test_sampler_weights_are_one_over_class_count():
    codes = np.repeat([0, 1, 3], [600, 350, 50])  # class 2 is absent
    drawn = np.concatenate([weighted_sampler(codes, 0, e) for e in range(30)])
    assert np.allclose(
        np.bincount(codes[drawn], minlength=4) / len(drawn), [1 / 3, 1 / 3, 0, 1 / 3], atol=0.01
    )
    within = np.bincount(drawn, minlength=1000)[codes == 3]
    assert within.min() > 0 and abs(within.mean() - 200) < 5
    assert (weighted_sampler(codes, 0, 2) == weighted_sampler(codes, 0, 2)).all()
    assert (weighted_sampler(codes, 1, 2) != weighted_sampler(codes, 0, 2)).any()


@pytest.mark.parametrize("seed, epoch", [(0, 0), (42, 7)])
def test_sampler_draws_what_it_always_drew(seed, epoch):
    "Records were made with weights 1 / count of each image, normalised, and this generator."
    codes = np.random.default_rng(9).integers(0, 7, 400) ** 2
    weight = 1 / np.bincount(codes)[codes]
    before = np.random.default_rng([seed, epoch]).choice(400, 400, p=weight / weight.sum())
    assert (weighted_sampler(codes, seed, epoch) == before).all()


def test_class_weights():
    codes = np.repeat([0, 1, 3], [100, 25, 4])
    assert class_weights(codes).tolist() == [0.01, 0.04, 0, 0.25]
    assert class_weights(codes, 0.5, 6).tolist() == [0.1, 0.2, 0, 0.5, 0, 0]
    assert class_weights(codes, 0).tolist() == [1, 1, 0, 1]
    drawn = np.concatenate([weighted_sampler(codes, 0, e, power=0.5) for e in range(200)])
    share = np.bincount(codes[drawn]) / len(drawn)  # count / root of count
    assert np.allclose(share, [10 / 17, 5 / 17, 0, 2 / 17], atol=0.01)


def test_unknown_label():
    with pytest.raises(ValueError, match="'acne'.*psoriasis"):
        encode_labels(["psoriasis", "acne"], ["folliculitis", "psoriasis"])
    with pytest.raises(ValueError, match="twice"):
        encode_labels(["a"], ["a", "a"])


def test_several_labels_are_those_of_sklearn_and_a_strange_one_is_refused():
    from sklearn.preprocessing import MultiLabelBinarizer

    classes = ["Edema", "Atelectasis", "Pneumonia"]  # not in the order of the alphabet
    texts = ["Pneumonia|Edema", "No Finding", "Atelectasis", "Edema|Atelectasis|Pneumonia"]
    names = [[n for n in t.split("|") if n != "No Finding"] for t in texts]
    expected = MultiLabelBinarizer(classes=classes).fit_transform(names)
    assert np.array_equal(encode_multi(texts, classes, ["No Finding"]), expected)
    assert encode_labels(["Pneumonia", "Edema"], classes).tolist() == [2, 0]
    for ignore in ((), ["No Finding"]):
        with pytest.raises(ValueError, match="'Hernia'"):
            encode_multi(["Edema|Hernia"], classes, ignore)
    with pytest.raises(ValueError, match="'No Finding'"):
        encode_multi(texts, classes)


def test_batches_are_the_same_however_they_are_prepared(stores):
    train, _ = stores
    rows, codes = train.rows(train.ids), np.arange(12) % 3

    def epoch(prefetch, e=1):
        order = weighted_sampler(codes, 0, e)
        return [
            x
            for x, _, _ in batches(
                train, rows, codes, 5, train_transform(32), order, epoch=e, prefetch=prefetch
            )
        ]

    a, b, c = epoch(0), epoch(1), epoch(7)
    assert [len(x) for x in a] == [5, 5, 2] and all(
        torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(a, b, c)
    )
    assert not torch.equal(epoch(0, 2)[0], a[0])
    assert len(list(batches(train, rows, codes, 5, train_transform(32), drop_last=True))) == 2


def test_an_error_in_the_thread_arrives_and_a_reader_may_leave(stores):
    _, store = stores
    rows, codes = store.rows(store.ids), np.zeros(12)

    def broken(*_):
        raise RuntimeError("in the thread")

    with pytest.raises(RuntimeError, match="in the thread"):
        list(batches(store, rows, codes, 2, broken))
    before = threading.active_count()
    for _ in batches(store, rows, codes, 1, eval_transform(32)):
        break
    end = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < end, "the thread goes on"
        time.sleep(0.01)
    with pytest.raises(ValueError, match="12 rows but 11"):
        list(batches(store, rows, codes[:11], 2, broken))


@pytest.mark.skipif(not has_data("pad_ufes20"), reason="SKINREPRO_DATA does not hold pad_ufes20")
def test_real_photographs(tmp_path):
    files = sorted((data_folder("pad_ufes20") / "images").glob("*.png"))[:6]
    m = pd.DataFrame(dict(image_id=[f.stem for f in files], path=[str(f) for f in files]))
    train, evaluate = cache_pair(m, 64, folder=tmp_path, progress=False)
    assert train.array.shape == (6, 90, 90, 3) and evaluate.array.shape == (6, 72, 72, 3)
    assert (
        evaluate.sizes == [Image.open(f).size for f in files]
    ).all() and evaluate.array.std() > 10


def test_import_is_light():
    code = (
        'import sys, skinrepro.batches; sys.exit(any(m in sys.modules for m in ("torch", "PIL",'
        ' "timm")))'
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == 0


# ---- for networks that draw


def test_pixels_without_labels(stores):
    _, store = stores
    ids = [store.ids[i] for i in (3, 0, 3, 7, 5)]  # an id may stand there twice
    whole = torch.cat([x for (x,) in image_batches(store, ids, 2)()])
    assert whole.min() >= -1 and whole.max() <= 1 and whole.shape[1] == 3
    pixels = torch.from_numpy(store.take(store.rows(ids))).permute(0, 3, 1, 2)
    assert torch.equal(((whole + 1) * 127.5).round().to(torch.uint8), pixels)
    with pytest.raises(ValueError, match="'nobody'"):
        image_batches(store, ["nobody"])


def test_an_epoch_is_a_permutation_with_mirrors(stores):
    _, store = stores
    plain = torch.cat([x for (x,) in image_batches(store, store.ids, 5)()])
    of = image_batches(store, store.ids, 5, seed=2, train=True)
    seen = set()
    for epoch in range(4):
        x = torch.cat([b for (b,) in of(epoch)])
        which = [
            [i for i, p in enumerate(plain) if torch.equal(p, y) or torch.equal(p, y.flip(2))]
            for y in x
        ]
        assert sorted(sum(which, [])) == list(range(len(plain)))
        seen.add(tuple(sum(which, [])))
        rng = np.random.default_rng([2, epoch])  # order, then the flips of each batch
        assert sum(which, []) == rng.permutation(len(plain)).tolist()
        flips = np.concatenate([rng.random(n) < 0.5 for n in (5, 5, 2)])
        assert [torch.equal(plain[w[0]], y) for w, y in zip(which, x)] == (~flips).tolist()
    assert len(seen) == 4


def test_strong_augmentation_is_that_of_torchvision_and_of_the_epoch():
    """Each image of a batch is changed by RandAugment with draws of run, epoch and batch; a
    training that is resumed sees the same, and the draws of the network are not touched.
    """
    from torchvision.transforms.v2 import RandAugment

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.randint(0, 256, (6, 3, 24, 24), generator=torch.Generator().manual_seed(0))
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    plain = (pixels / 255 - shift) / scale
    codes = torch.arange(6)

    def train(epoch):
        return iter([(plain[:4], codes[:4], codes[:4]), (plain[4:], codes[4:], codes[4:])])

    strong = strong_augmentation(train, mean, std, seed=3)
    before = torch.get_rng_state()
    made = list(strong(2))
    assert torch.equal(before, torch.get_rng_state())
    for k, (x, y, rows) in enumerate(made):
        part = slice(0, 4) if k == 0 else slice(4, 6)
        assert torch.equal(y, codes[part]) and torch.equal(rows, codes[part])
        change = RandAugment(num_ops=2, magnitude=9)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([3, 2, k, 1]).integers(2**63)))
            by_hand = [change(image.to(torch.uint8)) for image in pixels[part]]
        got = ((x * scale + shift) * 255).round().to(torch.int64)
        assert torch.equal(got, torch.stack(by_hand).to(torch.int64))
        assert not torch.equal(got, pixels[part])
    for (a, *_), (b, *_) in zip(made, strong(2), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(strong(3))[0], made[0][0])
    assert not torch.equal(next(strong_augmentation(train, mean, std, 4)(2))[0], made[0][0])


@pytest.mark.parametrize("draws", [3, 10, 11, 35])
def test_whole_passes_before_an_image_comes_again(draws):
    n = np.bincount(shuffled_sampler(10, 1, 2, draws), minlength=10)
    assert n.sum() == draws and n.max() - n.min() <= 1
    assert np.array_equal(
        shuffled_sampler(10, 1, 2, draws)[:10], shuffled_sampler(10, 1, 2)[:draws]
    )


# ---- whole images, changed by name


def some_images(n=5, side=40):
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))
    x[0] = x[0].mean(0)  # grey: no hue
    x[1, :, :9], x[1, :, 9:20] = 0, 1  # black and white
    return x


FACTORS, TURNS = np.array([0.0, 0.5, 1.0, 1.3, 2.5]), np.array([-0.5, -0.2, 0.0, 0.02, 0.5])


@pytest.mark.parametrize(
    "ours, theirs, drawn, within",
    [
        (scale_brightness, "adjust_brightness", FACTORS, 1e-6),
        (scale_contrast, "adjust_contrast", FACTORS, 1e-6),
        (scale_saturation, "adjust_saturation", FACTORS, 1e-6),
        (shift_hue, "adjust_hue", TURNS, 1e-5),
        (turn, "rotate", np.array([-150.0, -15, 0, 7.7, 90]), 1e-4),
        (blur, "gaussian_blur", np.array([0.001, 0.1, 1, 3, 7.0]), 1e-6),
        (crop_back, "resized_crop", np.array([[0, 0], [4, 1], [2, 3], [0, 4], [4, 4]]), 1e-6),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_operation_is_torchvisions_with_its_own_parameter(ours, theirs, drawn, within, layout):
    "On noise, which hides nothing; one image at a time there, a batch here."
    import torchvision.transforms.v2.functional as F

    x, f = some_images().contiguous(memory_format=layout), getattr(F, theirs)
    more = {crop_back: [36], blur: [13]}.get(ours, [])
    before, got = x.clone(), ours(x, drawn, *more)
    assert torch.equal(x, before), "the images that were given are as they were"
    for image, v, mine in zip(x, drawn, got):
        if theirs == "rotate":
            want = f(image, float(v), F.InterpolationMode.BILINEAR)
        elif theirs == "gaussian_blur":
            want = f(image, [13, 13], [float(v)] * 2)
        elif theirs == "resized_crop":
            want = f(image, int(v[1]), int(v[0]), 36, 36, [40, 40], antialias=True)
        else:
            want = f(image, float(v))
        assert (mine - want).abs().max() < within, (theirs, v)


def test_dyes_are_taken_apart_and_put_together_in_float64():
    """Ruifrok & Johnston's matrix and two lines of Tellez et al.'s code, written down with numpy,
    and Beer-Lambert by hand: twice a dye is the square of what it lets through.
    """
    x, rng = some_images(), np.random.default_rng(0)
    alpha, beta = rng.uniform(0.8, 1.2, (5, 3)), rng.uniform(-0.2, 0.2, (5, 3))
    pixels = x.double().permute(0, 2, 3, 1).numpy()
    for offset in (2.0, 0.0):
        stains = -np.log(np.maximum(pixels + offset, 1e-6)) @ np.linalg.inv(STAINS)
        want = np.exp(-(stains * alpha[:, None, None] + beta[:, None, None]) @ STAINS) - offset
        got = restain(x, alpha, beta, offset).permute(0, 2, 3, 1).numpy()
        assert np.abs(got - want.clip(0, 1)).max() < 2e-5, offset
        nothing = restain(x, np.ones((5, 3)), np.zeros((5, 3)), offset)
        assert (nothing - x.clamp(min=1e-6 - offset)).abs().max() < 1e-5
    dye = torch.from_numpy(np.exp(-0.7 * STAINS)).view(3, 3, 1, 1)  # one pixel of each
    assert torch.allclose(restain(dye, 1 + np.eye(3), np.zeros((3, 3)), 0), dye**2)
    assert torch.allclose(restain(dye, np.ones((3, 3)), 0.3 * np.eye(3), 0), dye ** (1 + 0.3 / 0.7))


def test_an_image_takes_over_the_colours_of_another():
    rng = np.random.default_rng(0)
    a, b = np.array([0.6, 0.5, 0.55]) + 0.05 * rng.standard_normal((2, 30, 30, 3)).cumsum(0)
    (mean,), (deviation,) = colour_statistics([b])
    x = torch.from_numpy(np.stack([a, a])).permute(0, 3, 1, 2).clamp(0, 1)
    got = match_colour(x, np.stack([mean, mean + [5, 0, 0]]), np.stack([deviation] * 2))
    assert got.min() > 0 and got.max() < 1, "nothing is clipped, or the check would be a weaker one"
    have_mean, have_deviation = colour_statistics(got.permute(0, 2, 3, 1).numpy())
    assert np.allclose(have_mean, [mean, mean + [5, 0, 0]], atol=0.01)
    assert np.allclose(have_deviation, deviation, atol=0.01)
    flat = torch.full((1, 3, 8, 8), 0.4)
    assert np.ptp(match_colour(flat, mean[None], deviation[None]).numpy(), axis=(2, 3)).max() < 0.01


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_named_augmentation_follows_its_generator_alone(name):
    x = some_images(4, 24)
    change = augmentation(
        name, references=(255 * some_images(3)).byte().permute(0, 2, 3, 1).numpy()
    )
    before, kept = x.clone(), torch.get_rng_state()
    a, b, c = (change(x, np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(x, before) and torch.equal(kept, torch.get_rng_state())
    assert a.shape == x.shape and a.min() >= 0 and a.max() <= 1 + 1e-6 and a.dtype == x.dtype
    assert torch.equal(a, b) and torch.equal(a, c) == (name == "none")
    if name not in ("none", "transfer"):  # each image has a draw of its own
        alike = change(x[1:2].repeat(4, 1, 1, 1), np.random.default_rng(3))
        assert not torch.allclose(alike[0], alike[1], atol=1e-3)


def test_what_is_drawn_has_the_stated_range():
    "A grey image tells brightness, contrast does nothing to it; a dye alone tells alpha and beta."
    grey = torch.full((4000, 3, 1, 1), 0.5)
    found = colour_jitter(hue=0, saturation=(1, 1))(grey, np.random.default_rng(0)) - 0.5
    assert abs(found.max() - 32 / 255) < 1e-3 and abs(found.min() + 32 / 255) < 1e-3
    dye = torch.from_numpy(np.exp(-STAINS[:1])).view(1, 3, 1, 1).repeat(4000, 1, 1, 1)
    got = stain_jitter(0.1, offset=0)(dye, np.random.default_rng(0))[:, :, 0, 0].numpy()
    stains = -np.log(got) @ np.linalg.inv(STAINS)
    assert np.allclose(stains.min(0), [0.8, -0.1, -0.1], atol=0.01)  # alpha and beta of 0.1
    assert np.allclose(stains.max(0), [1.2, 0.1, 0.1], atol=0.01)


def test_the_printed_radiograph_is_cropped_to_202_of_224():
    "A bright frame of one pixel is lost unless a crop touches the border, as 2 of 23 corners do."
    side, n = 224, 400
    x = torch.zeros(n, 1, side, side)
    x[:, :, 0] = 1
    change = augmentation("radiology", degrees=0.0, luminance=0.0, contrast=(1.0, 1.0))
    touched = change(x.expand(-1, 3, -1, -1), np.random.default_rng(0)).amax((1, 2, 3)) > 0.5
    assert abs(touched.float().mean() - 1 / 23) < 0.03


def test_augmentations_after_each_other_and_what_is_refused():
    x, references = some_images(), np.zeros((1, 4, 4, 3), np.uint8)
    both = augmentation("stain+strong")
    rng = np.random.default_rng(5)
    want = augmentation("strong")(augmentation("stain")(x, rng), rng)
    assert torch.equal(both(x, np.random.default_rng(5)), want)
    assert both.torch_draws and not augmentation("colour").torch_draws
    assert augmentation("transfer+colour", references)(x, rng).shape == x.shape
    for wrong, said in (
        (lambda: augmentation("color"), "colour"),
        (lambda: augmentation("colour+"), "''"),
        (lambda: augmentation("transfer"), "references"),
        (lambda: augmentation("colour+stain", sigma=0.2), "sigma"),
        (lambda: augmentation("colour", contrast=(1.5, 0.5)), "contrast"),
        (lambda: augmentation("stain", sigma=-1), "sigma"),
        (lambda: blur(x, [1.0] * 5, 4), "odd"),
        (lambda: blur(x, [1.0] * 5, 81), "twice"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_whole_images_are_normalised_as_by_torchvision():
    from torchvision.transforms.v2.functional import normalize

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    got = whole_transform(16, mean, std)(x, None)
    want = normalize(x.permute(0, 3, 1, 2) / 255, mean, std)
    assert torch.allclose(got, want, atol=1e-5)
    change = augmentation("stain")
    changed = whole_transform(16, mean, std, change)(x, np.random.default_rng(0))
    by_hand = change(x.permute(0, 3, 1, 2) / 255, np.random.default_rng(0))
    assert torch.allclose(changed, normalize(by_hand, mean, std), atol=1e-5)
    with pytest.raises(ValueError, match="16 px; whole images .* 8 px"):
        whole_transform(8)(x, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"strong"}))
def test_an_augmentation_is_the_same_on_a_gpu(name):
    references = (255 * some_images(3)).byte().permute(0, 2, 3, 1).numpy()
    change, x = augmentation(name, references=references), some_images()
    a, b = (change(x.to(d), np.random.default_rng(0)).cpu() for d in ("cpu", "cuda"))
    assert (a - b).abs().max() < 1e-3


# ---- real and generated images in one training


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_share_of_what_is_drawn_is_real(share):
    real = np.random.default_rng(0).permutation(np.repeat([True, False], [7, 50]))
    w = mixture_weights(real, share)
    assert np.allclose(w[real], share / 7) and np.allclose(w[~real], (1 - share) / 50)
    n = 20_000
    drawn = real[row_sampler(w, 1, 2, n)].mean()
    assert abs(drawn - share) <= 4 * np.sqrt(share * (1 - share) / n)
    within = np.arange(57.0)
    w = mixture_weights(real, share, within)
    assert np.isclose(w[real].sum(), share) and np.isclose(w.sum(), 1)
    assert np.allclose(w[real] * within[real].sum(), share * within[real])


def test_a_kind_that_is_not_there_cannot_be_drawn():
    for real, share, said in (
        ([True] * 3, 0.5, "generated .*set share_real to 1"),
        ([False] * 3, 0.5, "real .*set share_real to 0"),
        ([True, False], 1.5, "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=said):
            mixture_weights(real, share)
    assert mixture_weights([True] * 4, 1).tolist() == [0.25] * 4  # what the messages advise
    assert mixture_weights([False] * 4, 0).tolist() == [0.25] * 4
    with pytest.raises(ValueError, match="within"):
        mixture_weights([True, False], 0.5, [1, -1])
    with pytest.raises(ValueError, match="real"):
        mixture_weights([True, False], 0.5, [0, 1])


@pytest.mark.parametrize("steps, looks", [(10, 1), (10, 3), (200_000, 7), (5, 5)])
def test_all_steps_are_taken_however_often_one_looks(steps, looks):
    lengths = steps_between(steps, looks)
    assert len(lengths) == looks and sum(lengths) == steps and max(lengths) - min(lengths) <= 1
    for wrong in (0, steps + 1):
        with pytest.raises(ValueError, match=f"between 1 and {steps}"):
            steps_between(steps, wrong)


def test_what_a_step_draws_does_not_depend_on_the_looks():
    real, plan = np.arange(40) < 8, [(0.3, 0.0), (0.45, 0.25), (0.25, 1.0)]
    orders = []
    for looks in (1, 3, 20):
        sampler = planned_sampler(real, plan, 20, 16, looks, seed=4)
        parts = [sampler(e) for e in range(looks)]
        assert [len(p) for p in parts] == [16 * n for n in steps_between(20, looks)]
        assert np.array_equal(sampler(looks - 1), parts[-1])  # a resumed run asks for one alone
        orders.append(np.concatenate(parts))
    assert np.array_equal(orders[0], orders[1]) and np.array_equal(orders[0], orders[2])
    shares = real[orders[0].reshape(20, 16)].mean(1)
    assert not shares[:6].any() and (shares[15:] == 1).all() and 0.1 < shares[6:15].mean() < 0.4
    by_hand = [row_sampler(mixture_weights(real, 0.25), 4, s, 16) for s in range(6, 15)]
    assert np.array_equal(orders[0][6 * 16 : 15 * 16], np.concatenate(by_hand))
    other = planned_sampler(real, plan, 20, 16, 1, seed=5)(0)
    assert not np.array_equal(other, orders[0])
    with pytest.raises(ValueError, match="add up to 1"):
        planned_sampler(real, [(0.5, 0)], 20, 16, 1, 0)
