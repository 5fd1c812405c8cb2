"The upsampler: how its input is spoilt, what it is told, what it gives back."

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2.functional import gaussian_blur

from skinrepro import cascade
from skinrepro.cascade import (
    CLEAN,
    LEVEL,
    Preprocessing,
    Upsampler,
    agreement,
    blurred,
    enlarged,
    gaussian_kernel,
    gradient_energy,
    load_upsampler,
    noised,
    normalised,
    preprocessed,
    presented,
    quantised,
    reduced,
    spoiling,
    teach_upsampler,
    train_upsampler,
    upsampler_conditions,
    with_level,
)
from skinrepro.ddpm import (
    Conditions,
    Denoiser,
    Learning,
    Network,
    Sampling,
    analyse,
    draw_images,
    fit_wiener,
    save_ddpm,
    to_model,
    train_ddpm,
)
from skinrepro.generate import generate, read_provenance
from skinrepro.loop import Training
from skinrepro.phantom import render
from skinrepro.pixel_drawer import PixelDrawer

NAMES = ("psoriasis", "folliculitis")
BASE = Conditions({"label": NAMES})
UNET = dict(channels=32, multipliers=(1, 2), blocks=1, attention=(), head_channels=None)
TINY = dict(UNET, size=8, channels=8, context=3)


def pictures(n, size, seed=0):
    "Whole grey levels with structure at all scales, (n, 3, size, size)."
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 200, (n, 3, 4, 4)).repeat(size // 4, 2).repeat(size // 4, 3)
    fine = rng.normal(0, 25, (n, 3, size, size))
    return torch.from_numpy((coarse + fine).clip(0, 255).round()).float()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_pillow(image, size):
    pixels = image.permute(1, 2, 0).to(torch.uint8).numpy()
    resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()


# --- step 1


def test_a_reduction_with_filter_is_pillows():
    "Pillow rounds after each axis: up to a level and a half."
    x = pictures(4, 64)
    small = reduced(x, 16, torch.tensor([True, True, False, True]))
    apart = [(by_pillow(i, 16) - s).abs().max() for i, s in zip(x, small, strict=True)]
    assert max(apart[0], apart[1], apart[3]) < 1.5 < 10 < apart[2]


def test_a_reduction_without_filter_takes_the_pixels_around_the_place():
    "64 to 16 px: place i lies at 4 i + 1.5, half-way between two pixels along each axis."
    x = pictures(2, 64)
    middle = (x[..., 1::4, :] + x[..., 2::4, :]) / 2
    expected = (middle[..., 1::4] + middle[..., 2::4]) / 2
    assert torch.allclose(reduced(x, 16, torch.tensor([False, False])), expected, atol=1e-4)


@pytest.mark.parametrize("size", [32, 56, 64])
def test_an_enlargement_is_pillows_and_no_filter_changes_it(size):
    x = pictures(2, 16)
    apart = [(by_pillow(i, size) - e).abs().max() for i, e in zip(x, enlarged(x, size))]
    assert max(apart) < 1.5
    by_torch = torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    assert torch.allclose(by_torch, enlarged(x, size), atol=1e-3)


# --- step 2


def test_noise_has_the_stated_variance_and_only_where_it_is_asked_for():
    grey = torch.full((3, 3, 200, 200), 128.0)
    noise = torch.randn(grey.shape, generator=seeded())
    out = noised(grey, torch.tensor([4.0, 0.0, 2.0]), noise)
    for image, sigma in zip(out, (4, 0, 2), strict=True):
        assert abs(image.var().item() - sigma**2) <= 4 * sigma**2 * (2 / image.numel()) ** 0.5
    assert abs(out.mean().item() - 128) < 0.05
    out = quantised(out)  # rounding is uniform in half a level to either side
    expected, n = 16 + 1 / 12, out[0].numel()
    assert abs(out[0].var().item() - expected) < 4 * expected * (2 / n) ** 0.5


# --- step 3


def test_blur_is_scipys_and_torchvisions():
    x, widths = pictures(5, 32), [0.1, 0.2, 0.45, 1.0, 3.0]
    ours = blurred(x, torch.tensor(widths))
    for image, width, out in zip(x, widths, ours, strict=True):
        theirs = gaussian_filter(
            image.double().numpy(), width, axes=(1, 2), radius=3, mode="mirror"
        )
        assert np.abs(theirs - out.numpy()).max() < 1e-3
        assert torch.allclose(gaussian_blur(image, [7, 7], [width, width]), out, atol=1e-3)


def test_no_width_is_no_blur_and_levels_are_kept():
    x = pictures(3, 16)
    assert torch.equal(blurred(x, torch.tensor([0.0, 1e-9, 0.05])), x)
    flat = torch.full((1, 3, 16, 16), 77.0)
    assert torch.allclose(blurred(flat, torch.tensor([1.3])), flat, atol=1e-4)
    assert torch.allclose(gaussian_kernel(torch.tensor([0.0, 0.4, 9.0])).sum(1), torch.ones(3))


# --- steps 4 and 5


def test_levels_are_256_whole_numbers_half_a_level_away_at_most():
    x = torch.rand(200_000, generator=seeded(), dtype=torch.float64) * 255
    out = quantised(x)
    assert out.unique().tolist() == list(range(256))
    assert (out - x).abs().max() <= 0.5
    assert abs((out - x).var().item() - 1 / 12) < 4 / 12 * 0.9 / 200_000**0.5
    beyond = torch.tensor([-9.0, 300.0, 3.49, 3.51])
    assert quantised(beyond).tolist() == [0, 255, 3, 4]
    assert quantised(torch.tensor([100.0, 200.0]), 2).tolist() == [0, 255]


def test_the_range_is_that_of_the_networks():
    from torchvision.transforms.v2.functional import normalize

    x = pictures(1, 16)
    assert torch.allclose(normalised(x), normalize(x / 255, [0.5] * 3, [0.5] * 3), atol=1e-6)


# --- all five


def test_coins_and_widths_are_drawn_as_printed():
    level = Preprocessing().draw(40_000, seeded())
    assert set(level[:, 0].tolist()) == {0, 1} and set(level[:, 1].tolist()) == {0, 4}
    for column, p in ((0, 0.5), (1, 0.2)):
        share = (level[:, column] > 0).double().mean().item()
        assert abs(share - p) < 4 * (p * (1 - p) / 40_000) ** 0.5
    from scipy.stats import halfnorm, kstest

    assert kstest(level[:, 2].numpy(), halfnorm(scale=0.2).cdf).pvalue > 1e-3
    coins = np.corrcoef((level > torch.tensor([0, 0, 0.1349])).double().numpy().T)
    assert np.abs(coins - np.eye(3)).max() < 4 / 40_000**0.5  # independent of each other


def test_the_steps_come_in_the_papers_order():
    "By hand with other people's functions; any other order gives other pixels."
    x = pictures(2, 64)
    how = Preprocessing(noise=1.0, noise_sigma=9.0, blur_mean=1.5, blur_spread=0.0)
    out, level = preprocessed(x, 16, seeded(4), how)
    for i in range(2):
        filtered = bool(level[i, 0])
        small = torch.nn.functional.interpolate(
            x[i : i + 1], size=16, mode="bilinear", antialias=filtered
        )
        large = torch.nn.functional.interpolate(small, size=64, mode="bilinear")[0]
        generator = seeded(4)
        how.draw(2, generator)
        noise = torch.randn((2, 3, 64, 64), generator=generator)[i]
        spoilt = gaussian_blur(large + 9 * noise, [7, 7], [1.5, 1.5])
        expected = spoilt.clamp(0, 255).round() / 127.5 - 1
        assert (out[i] - expected).abs().max() < 0.01  # a level where rounding goes both ways
        assert (out[i] - expected).abs().mean() < 1e-4
    assert len({bool(v) for v in level[:, 0]}) == 2, "choose a seed that draws both"


def test_the_same_seed_spoils_alike_and_another_does_not():
    x = pictures(6, 32)
    one, again, other = (preprocessed(x, 16, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[1], other[1])


def test_what_is_shown_has_the_stated_level():
    small = pictures(2, 16)
    noise = torch.randn((2, 3, 64, 64), generator=seeded())
    clean = presented(small, 64, torch.tensor([CLEAN] * 2), noise)
    expected = torch.stack([by_pillow(i, 64) for i in small]) / 127.5 - 1
    assert (clean - expected).abs().max() <= 1.6 / 127.5
    noisy = presented(small, 64, torch.tensor([[1.0, 0, 0], [1.0, 4, 0]]), noise)
    assert torch.equal(noisy[0], clean[0])
    assert abs((noisy[1] - clean[1]).std().item() * 127.5 - 4) < 0.2


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (dict(antialias=1.5), "antialias = 1.5 is no probability"),
        (dict(noise=-0.1), "noise = -0.1 is no probability"),
        (dict(noise_sigma=-1), "noise_sigma = -1 must be"),
        (dict(kernel=6), "6 px has no centre"),
        (dict(bins=1), "1 bins"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        Preprocessing(**wrong)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cannot be reduced to 16 px"):
        reduced(pictures(1, 16), 16, torch.tensor([True]))
    with pytest.raises(ValueError, match="too small for a kernel"):
        blurred(torch.zeros(1, 3, 3, 3), torch.tensor([1.0]))


# --- what the network is told


def awake(model):
    "The same network with an output that is not small, so that a wrong path is seen."
    torch.manual_seed(5)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    return model.eval()


def told_of(n):
    return BASE.encode(pd.DataFrame(dict(label=[NAMES[i % 2] for i in range(n)])))


def as_bytes(x):
    return x.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_the_level_stands_behind_what_the_base_model_is_told():
    how = Preprocessing(noise_sigma=8.0, blur_spread=0.5)
    level = torch.tensor([[1.0, 8.0, 0.25], [0.0, 0.0, 1.0]])
    full = with_level(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), level, how)
    assert full.tolist() == [[0, 1, 1, 1, 1, 1, 1, 0.5], [1, 0, 1, 0, 1, 0, 1, 2]]
    conditions = upsampler_conditions(BASE)
    assert list(conditions.slices) == ["label", *LEVEL] and conditions.size == full.shape[1]
    rows = dict(label=[NAMES[1], NAMES[0]], antialias=[1, 0], noise=[1, 0], blur=[0.5, 2])
    assert np.allclose(conditions.encode(rows), full)


def test_the_level_is_told_whatever_is_dropped():
    network = Network(**TINY)
    context = spoiling(network, 4)
    x = to_model(torch.from_numpy(as_bytes(pictures(4, 8))))
    dropped = torch.zeros(4, 8)
    second, told = context(x, dropped, seeded(3))
    expected, level = preprocessed((x + 1) * 127.5, 4, seeded(3))
    assert torch.equal(second, expected)
    assert torch.equal(told, with_level(torch.zeros(4, 2), level, Preprocessing()))
    assert (told[:, 2::2] == 1).all() and not told[:, :2].any()


def test_the_embedding_of_the_level_is_added_to_that_of_the_label():
    model = awake(Denoiser(Network(**TINY), upsampler_conditions(BASE)))
    label = torch.tensor([[1.0, 0.0]])
    vectors = [
        with_level(v, torch.tensor([level]), Preprocessing())
        for v in (label, 0 * label)
        for level in (CLEAN, (0.0, 4.0, 0.3))
    ]
    told, told_noisy, null, null_noisy = (model.condition(v) for v in vectors)
    assert torch.allclose(told_noisy - told, null_noisy - null, atol=1e-5)
    x, t = torch.randn(1, 3, 8, 8, generator=seeded()), torch.tensor([500])
    out = [model(x, t, v, x) for v in vectors]
    assert (out[0] - out[1]).abs().max() > 1e-3 < (out[0] - out[2]).abs().max()


# --- the start from the second image


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_untrained_network_adds_to_the_second_image_what_bayes_says(prediction):
    "Pixels that are the second image's plus white noise of known variance, in float64."
    network = Network(**TINY, haar=1, wiener=True, residual=True, prediction=prediction)
    model = Denoiser(network).double()
    spread = 0.2
    model.sd.fill_(spread)
    model.mean.fill_(7.0)  # of no importance here
    second, noisy = torch.randn(2, 3, 3, 8, 8, generator=seeded(1), dtype=torch.float64)
    t = torch.tensor([20, 400, 900])
    a2 = model.signal.double()[t].view(-1, 1, 1, 1)
    a, s = a2.sqrt(), (1 - a2).sqrt()
    precision = 1 / spread**2 + a2 / s**2
    best = (second / spread**2 + a * noisy / s**2) / precision
    noise = (noisy - a * best) / s
    right = noise if prediction == "epsilon" else a * noise - s * best
    assert torch.allclose(model(noisy, t, context=second), right, atol=1e-5)


def test_the_spread_is_that_of_what_is_to_be_added():
    model = Denoiser(Network(**TINY, haar=1, wiener=True, residual=True))
    x = as_bytes(pictures(64, 8))
    second = to_model(torch.from_numpy(x)) * 0.5
    fit_wiener(model, x, context=lambda v, told, generator: (v * 0.5, told))
    c = analyse(second, 1)
    assert torch.allclose(model.sd, c.std((0, 2, 3), correction=0), atol=1e-5)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="needs wiener=True and context = 3"):
        Network(**TINY, residual=True)
    with pytest.raises(ValueError, match="use context=3"):
        spoiling(Network(**TINY | dict(context=0)), 4)
    with pytest.raises(ValueError, match="low = 8 px must be below the 8 px"):
        spoiling(Network(**TINY), 8)
    with pytest.raises(ValueError, match="noise"):
        upsampler_conditions(Conditions({"noise": ("little", "much")}))
    model = Denoiser(Network(**TINY))
    with pytest.raises(ValueError, match="second image of 3 channels"):
        train_ddpm(model, as_bytes(pictures(4, 8)), None, Training(1, 2), progress=False)
    with pytest.raises(ValueError, match="no upsampler"):
        Upsampler(model)


# --- a small one, trained


@pytest.fixture(scope="module")
def others():
    "Phantoms that no training has seen, and the same at half the side."
    large = np.stack([render(NAMES[i % 2], 1 + i % 6, 1000 + i, 32) for i in range(24)])
    x = torch.from_numpy(large).permute(0, 3, 1, 2).float()
    return large, as_bytes(reduced(x, 16, torch.ones(24) > 0))


@pytest.fixture(scope="module")
def model():
    images = np.stack([render(NAMES[i % 2], 1 + i % 6, i, 32) for i in range(240)])
    network = Network(
        **UNET, size=32, context=3, prediction="v_prediction", schedule="cosine",
        haar=1, wiener=True, residual=True,
    )  # fmt: skip
    model = Denoiser(network, upsampler_conditions(BASE))
    learning = Learning(flips="all", warm=10, hold=0.4, focus=(0.2, 1.1))
    settings = Training(100, 16, lr=3e-3, ema=0.95, every=50)
    train_upsampler(model, images, told_of(240), 16, settings, learning, progress=False)
    return model


@pytest.fixture(scope="module")
def large(model, others):
    return Upsampler(model, Sampling("ddim", 10))(others[1], told_of(24), range(24))


def bilinear(small, size=32):
    return as_bytes(enlarged(torch.from_numpy(small).permute(0, 3, 1, 2).float(), size))


def test_reduced_again_it_is_its_input_and_not_anothers(large, others):
    own, chance = agreement(large, others[1]), agreement(large, others[1][::-1])
    assert own.min() > chance.max() and own.mean() > chance.mean() + 10


def test_its_gradients_are_nearer_to_the_truth_than_those_of_bilinear_enlargement(large, others):
    true = gradient_energy(others[0]).mean()
    ours, smooth = gradient_energy(large).mean(), gradient_energy(bilinear(others[1])).mean()
    assert smooth < 0.75 * true, "the phantoms must have detail to be lost"
    assert abs(np.log(ours / true)) < 0.5 * abs(np.log(smooth / true))


def test_there_is_no_tint(large, others):
    "Mean colour of each channel against that of the small images, in grey levels."
    tint = large.mean((0, 1, 2)) - others[1].mean((0, 1, 2))
    assert np.abs(tint).max() < 1.5


def test_an_image_does_not_depend_on_its_batch(model, others, large):
    u = Upsampler(model, Sampling("ddim", 10), batch_size=5)
    some = u(others[1][7:9], told_of(24)[7:9], [7, 8])
    assert np.abs(some.astype(int) - large[7:9]).max() <= 1
    again = u(others[1][7:9], told_of(24)[7:9], [8, 7])
    assert np.abs(again.astype(int) - large[7:9]).max() > 1


def test_stated_noise_is_added_from_the_images_own_seed(model, others):
    u = Upsampler(model, level=(1.0, 4.0, 0.0))
    noisy, clean = (
        cascade._shown(replace(u, level=v), others[1][:3], [1, 2, 2]) for v in (u.level, CLEAN)
    )
    assert abs((noisy - clean).std().item() * 127.5 - 4) < 0.3
    noise = noisy - clean
    apart = [(noise[i] - noise[2]).abs().median() for i in (0, 1)]
    assert apart[1] < 0.02 < apart[0]  # the same seed, the same noise up to rounding


def test_guidance_keeps_the_level_and_the_start_is_not_that_of_the_base_model(
    model, others, monkeypatch
):
    seen = {}

    def spy(model, told, seeds, how, **more):
        seen.update(told=told, seeds=seeds, how=how, **more)
        return draw_images(model, told, seeds, replace(how, steps=1), **more)

    monkeypatch.setattr(cascade, "draw_images", spy)
    u = Upsampler(model, Sampling("ddim", 10, omega=1.0), level=(1.0, 4.0, 0.1))
    u(others[1][:2], told_of(2), [3, 4])
    assert seen["how"].away_from == ("label",)
    null = model.conditions.hidden(seen["told"], seen["how"].away_from)
    assert not null[:, :2].any() and np.allclose(null[:, 2:], [1, 1, 1, 1, 1, 0.5])
    assert not {3, 4} & set(seen["seeds"]) and len(set(seen["seeds"])) == 2


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), "16 x 16 x 3; these are uint8 of"),
        (np.zeros((3, 16, 16, 3), np.uint8), "takes 2 images"),
        (np.zeros((2, 16, 16, 3), np.float32), "these are float32"),
    ],
)
def test_images_that_the_upsampler_does_not_know_are_refused(model, images, match):
    with pytest.raises(ValueError, match=match):
        Upsampler(model)(images, told_of(2), [0, 1])


@pytest.mark.parametrize("level", [(1.0, 0.0), (1.0, -1.0, 0.0), (2.0, 0.0, 0.0)])
def test_a_level_that_cannot_be_is_refused(model, level):
    with pytest.raises(ValueError, match="three numbers from 0"):
        Upsampler(model, level=level)


# --- kept, and drawn by


def test_made_once_and_read_with_its_preprocessing(tmp_path):
    how = Preprocessing(noise=0.5, noise_sigma=6.0)
    asked = dict(
        images=as_bytes(pictures(8, 8)), told=told_of(8), low=4, network=Network(**TINY), base=BASE,
        settings=Training(2, 2), preprocessing=how, home=tmp_path, progress=False,
    )  # fmt: skip
    folder = teach_upsampler(**asked)
    made = (folder / "asked.json").stat().st_mtime_ns
    assert teach_upsampler(**asked) == folder
    assert (folder / "asked.json").stat().st_mtime_ns == made
    u = load_upsampler(folder, Sampling("ddim", 2), (1.0, 6.0, 0.0))
    assert (u.size, u.low, u.preprocessing) == (8, 4, how)
    assert u.settings() == dict(
        weights_hash=u.model.weights_hash,
        sampling=u.settings()["sampling"],
        level=[1.0, 6.0, 0.0],
    )
    other = asked | dict(preprocessing=Preprocessing())
    assert teach_upsampler(**other) != folder
    save_ddpm(tmp_path / "plain", Denoiser(Network(**TINY)))
    with pytest.raises(ValueError, match="no upsampler"):
        load_upsampler(tmp_path / "plain")


def test_a_drawer_draws_with_it(tmp_path, model):
    save_ddpm(tmp_path / "up", model)
    u = load_upsampler(tmp_path / "up", Sampling("ddim", 4))
    tiny = Network(**UNET | dict(channels=8), size=16, prediction="v_prediction", schedule="cosine")
    base = awake(Denoiser(tiny, BASE))
    drawer = PixelDrawer(base, Sampling("ddim", 2), u)
    table = pd.DataFrame(dict(image_id=["a", "b"], seed=[1, 2], label=list(NAMES)))
    rows = generate(table, tmp_path / "images", drawer, progress=False)
    pixels = np.stack([np.asarray(Image.open(p)) for p in rows.path])
    assert pixels.shape == (2, 32, 32, 3)
    for other in (Denoiser(replace(tiny, size=8), BASE), Denoiser(tiny)):
        with pytest.raises(ValueError, match="small images of 16 px"):
            PixelDrawer(other, Sampling("ddim", 2), u)
    told = BASE.encode(table)
    small = draw_images(base, told, [1, 2], Sampling("ddim", 2))
    assert np.abs(u(small, told, [1, 2]).astype(int) - pixels).max() <= 1
    record = read_provenance(rows.path[0])
    assert json.loads(json.dumps(record["upsampler"]))["weights_hash"] == u.model.weights_hash
