"The upsampler: how its input is spoilt, what it is told, what it gives back."

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2.functional import gaussian_blur

from skinrepro.cascade import (
    Preprocessing,
    blurred,
    enlarged,
    gaussian_kernel,
    noised,
    normalised,
    preprocessed,
    presented,
    quantised,
    reduced,
)


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
    clean = presented(small, 64, torch.tensor([[1.0, 0, 0]] * 2), seeded())
    expected = torch.stack([by_pillow(i, 64) for i in small]) / 127.5 - 1
    assert (clean - expected).abs().max() <= 1.6 / 127.5
    noisy = presented(small, 64, torch.tensor([[1.0, 0, 0], [1.0, 4, 0]]), seeded())
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
