"Judges of one class and of several labels, kept and asked again."

import json

import numpy as np
import pytest

from skinrepro.judge import ABOUT, equal_thresholds, keep_judge, load_judge
from skinrepro.networks import build


@pytest.fixture
def network():
    return build("resnet_small", 3, 32, pretrained=False, seed=1).eval()


NOISE = np.random.default_rng(0).integers(0, 256, (6, 36, 36, 3), dtype=np.uint8)


def test_thresholds_say_that_there_may_be_several_labels(network, tmp_path):
    one = load_judge(keep_judge(tmp_path / "one", network, "abc", "resnet_small", 32)).see(NOISE)
    kept = keep_judge(tmp_path / "more", network, "abc", "resnet_small", 32, np.full(3, 0.5))
    more = load_judge(kept).see(NOISE)
    assert np.allclose(one.probabilities.sum(1), 1) and set(one.called) <= set("abc")
    assert "thresholds" not in json.loads((tmp_path / "one" / ABOUT).read_text())
    # the same logits, through a sigmoid
    logits = np.log(more.probabilities / (1 - more.probabilities))
    e = np.exp(logits - logits.max(1, keepdims=True))
    assert np.allclose(e / e.sum(1, keepdims=True), one.probabilities, atol=1e-5)
    for text, p in zip(more.called, more.probabilities):
        assert text == "|".join(name for name, v in zip("abc", p) if v >= 0.5)


@pytest.mark.parametrize("wrong", [[0.5, 0.5], [0.5, 0.5, 1.5], [0.5, 0.5, float("nan")]])
def test_what_is_no_threshold_is_refused_before_anything_is_written(network, tmp_path, wrong):
    with pytest.raises(ValueError, match="one probability, 0..1, for each of"):
        keep_judge(tmp_path, network, "abc", "resnet_small", 32, wrong)
    assert not list(tmp_path.iterdir())
    keep_judge(tmp_path, network, "abc", "resnet_small", 32, [0.0, 0.5, 1.0])


def test_sensitivity_and_specificity_meet():
    from scipy.optimize import brentq
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    y = rng.random(40000) < 0.05
    p = norm.cdf(rng.standard_normal(40000) + 2 * y - 3)  # two normals, two apart: they meet at -2
    even = brentq(lambda t: norm.sf(t + 1) - norm.cdf(t + 3), -6, 2)
    found = equal_thresholds(p[:, None], y[:, None])[0]
    assert abs(norm.ppf(found) - even) < 0.1 and found < 0.1  # and not at a half
