"""What CBDM, dropped labels and weights of rare classes do to a training, against evaluations in
float64 that share nothing with the library: by hand, by finite differences, and image by image.
"""

import gzip
import warnings
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch

from skinrepro import latent
from skinrepro.balance import (
    balanced_loss,
    cbdm_term,
    cell_weights,
    class_draw,
)
from skinrepro.denoise import draw_rows, training_scheduler
from skinrepro.latent import (
    clip_tokenizer,
    encode_prompts,
    load_base,
    prompt_ids,
    toy_base,
    toy_latents,
)
from skinrepro.loop import Training
from skinrepro.personalise import Prompted, add_words, fine_tune

# Fitzpatrick17k, five diseases in three groups, as FairSkin has them
COUNTS = [25, 12, 120, 87, 56, 108, 154, 183, 145, 166, 295, 302, 181, 412, 329]
CELLS = [f"c{c:02}" for c, n in enumerate(COUNTS) for _ in range(n)]
PROMPTS = [
    "psoriasis",
    "folliculitis",
    "dark skin",
    "folliculitis",
    "psoriasis",
    "folliculitis",
] * 2
CLASSES = ["psoriasis", "folliculitis", "dark skin"]
FAST = Training(6, batch_size=4, lr=1e-3, clip=1.0, every=2, seed=3)


# ------------------------------------------------------------------------------------------------
# how often an image is drawn
@pytest.mark.parametrize("how, power", [("natural", 1), ("cbrs", 0), ("sqrs", 0.5)])
def test_share_of_each_class_among_what_is_drawn(how, power):
    "A class of N images gets N^1, N^0 or N^(1/2) of the draws; seen in the draws of a training."
    w = cell_weights(CELLS, how)
    assert w.shape == (2575,) and w.mean() == pytest.approx(1, rel=1e-12)
    expected = np.array(COUNTS, float) ** power
    expected /= expected.sum()
    share = pd.Series(w / w.sum()).groupby(CELLS).sum().to_numpy()
    assert share == pytest.approx(expected, rel=1e-12)
    drawn = np.concatenate([draw_rows(2575, 500, k, 0, "lora", w / w.sum()) for k in range(40)])
    seen = np.bincount([int(CELLS[i][1:]) for i in drawn], minlength=15)
    chi2 = ((seen - 20000 * expected) ** 2 / (20000 * expected)).sum()
    assert chi2 < 36.1  # 99.9 % of chi-squared with 14 degrees of freedom


def test_weights_of_the_rarest_image_against_the_commonest():
    first = {c: CELLS.index(c) for c in ("c01", "c13")}  # 12 and 412 images
    for how, ratio in (("natural", 1), ("cbrs", 412 / 12), ("sqrs", (412 / 12) ** 0.5)):
        w = cell_weights(CELLS, how)
        assert w[first["c01"]] / w[first["c13"]] == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize(
    "how, options, message",
    [
        ("cbrs", dict(classes=["a", "b", "c"]), r"No image of class 'c' \(1 of 3 classes"),
        ("cbrs", dict(classes=["a"]), "Class 'b' of 1 images is not among the"),
        ("square", {}, "how = 'square' is not one of 'natural', 'cbrs', 'sqrs'"),
    ],
)
def test_bad_weights(how, options, message):
    with pytest.raises(ValueError, match=message):
        cell_weights(["a", "a", "b"], how, **options)


@pytest.mark.parametrize("cells", [[], ["a", None], ["a", float("nan")]])
def test_an_image_without_a_class(cells):
    with pytest.raises(ValueError, match="class of each image"):
        cell_weights(cells, "cbrs")


def test_a_class_that_is_left_out_of_the_list_can_be_weighed():
    with pytest.raises(ValueError, match="Leave it out of `classes`"):
        cell_weights(["a", "a", "b"], "sqrs", classes=["a", "b", "c"])
    w = cell_weights(["a", "a", "b"], "sqrs", classes=["a", "b"])
    assert w == pytest.approx(np.array([0.5**0.5, 0.5**0.5, 1]) * 3 / (2**0.5 + 1), rel=1e-12)


# ------------------------------------------------------------------------------------------------
# the other class
@pytest.mark.parametrize("kind", [dict, pd.Series, lambda d: list(d.values())])
def test_distribution_of_the_other_class(kind):
    counts = kind(dict(a=1, b=9, c=0, d=90))
    for how, of in (("train", [1, 9, 0, 90]), ("uniform", [1, 1, 0, 1])):
        assert class_draw(counts, how) == pytest.approx(np.array(of) / sum(of), rel=1e-12)
    root = np.sqrt([1, 9, 0, 90])
    assert class_draw(counts, "sqrt") == pytest.approx(root / root.sum(), rel=1e-12)


@pytest.mark.parametrize("counts", [[0, 0], [-1, 2], [np.nan, 1], [[1, 2]]])
def test_bad_counts(counts):
    with pytest.raises(ValueError, match="counts must be"):
        class_draw(counts, "train")
    with pytest.raises(ValueError, match="'train', 'sqrt', 'uniform'"):
        class_draw([1, 2], "root")


# ------------------------------------------------------------------------------------------------
# the term
def by_hand(h, other, t, tau, form, steps=1000):
    "(n,) values, and gradients of their sum in h and in each other (k, n, ...)."
    k, n = other.shape[:2]
    value, g, g_other = np.zeros(n), np.zeros_like(h), np.zeros_like(other)
    for i in range(n):
        d, size = h[i] - other[:, i], h[i].size
        squares = [float((d[j] * d[j]).sum()) / size for j in range(k)]
        if form == "official":
            weight = tau * (t[i] / steps)
            value[i] = weight * sum(s + s / 4 for s in squares) / k
            back = 1 / 4
        else:
            weight = tau * t[i]
            value[i] = weight * sum(squares) / k
            back = 1
        for j in range(k):
            g[i] += weight * 2 * d[j] / size / k
            g_other[j, i] = -back * weight * 2 * d[j] / size / k
    return value, g, g_other


@pytest.mark.parametrize("form", ["official", "printed"])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_the_term_and_its_gradients_by_hand(form, k):
    rng = np.random.default_rng(1)
    h, other = rng.normal(size=(5, 2, 3, 4)), rng.normal(size=(k or 1, 5, 2, 3, 4))
    t = np.array([0, 1, 10, 437, 999])
    value, g, g_other = by_hand(h, other, t, 0.7, form)
    a = torch.tensor(h, requires_grad=True)
    b = torch.tensor(other if k else other[0], requires_grad=True)
    term = cbdm_term(a, b, torch.tensor(t), tau=0.7, form=form)
    term.sum().backward()
    assert term.shape == (5,) and term[0] == 0 and (term[1:] > 0).all()
    assert term.detach().numpy() == pytest.approx(value, rel=1e-12)
    assert a.grad.numpy() == pytest.approx(g, rel=1e-12)
    assert b.grad.numpy() == pytest.approx(g_other if k else g_other[0], rel=1e-12)


def test_gradient_in_shared_weights_by_finite_differences():
    """Both predictions come from the same weights. What a stop-gradient holds still is held still
    in the function that is differenced.
    """
    rng = np.random.default_rng(2)
    x, y, z, w = rng.normal(size=(4, 6))
    t, tau = 400, 0.9

    def told(w, y):  # a small network in numpy
        return np.tanh(w * x + y) + w * y

    def official(v):
        h, other = told(v, y), told(v, z)
        part = ((h - told(w, z)) ** 2).mean() + ((told(w, y) - other) ** 2).mean() / 4
        return tau * t / 1000 * part

    def printed(v):
        return tau * t * ((told(v, y) - told(v, z)) ** 2).mean()

    for form, f in (("official", official), ("printed", printed)):
        v = torch.tensor(w, requires_grad=True)
        tx, ty, tz = (torch.tensor(u) for u in (x, y, z))
        h, other = ((torch.tanh(v * tx + u) + v * u).reshape(1, 1, 2, 3) for u in (ty, tz))
        cbdm_term(h, other, torch.tensor([t]), tau=tau, form=form).sum().backward()
        step = 1e-6
        slope = [(f(w + e) - f(w - e)) / (2 * step) for e in step * np.eye(6)]
        assert v.grad.numpy() == pytest.approx(np.array(slope), rel=1e-6, abs=1e-8)


def test_the_two_forms_pull_alike_where_tau_is_a_thousandth():
    numbers = np.random.default_rng(3).normal(size=(2, 3, 1, 2, 2))
    t, found = torch.tensor([5, 500, 999]), {}
    for form, tau in (("official", 1.0), ("printed", 0.001)):
        a, b = (torch.tensor(u, requires_grad=True) for u in numbers)
        value = cbdm_term(a, b, t, tau=tau, form=form)
        value.sum().backward()
        found[form] = value.detach(), a.grad, b.grad
    (v, g, back), (v_printed, g_printed, back_printed) = found["official"], found["printed"]
    torch.testing.assert_close(v_printed, 0.8 * v, rtol=1e-12, atol=0)
    torch.testing.assert_close(g_printed, g, rtol=1e-12, atol=0)
    torch.testing.assert_close(back_printed, 4 * back, rtol=1e-12, atol=0)


def test_half_precision_is_compared_in_single():
    h, other = torch.full((1, 1, 2, 2), 1.0).half(), torch.full((1, 1, 2, 2), 1.0 + 2**-10).half()
    term = cbdm_term(h, other, torch.tensor([999]))
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(0.999 * 1.25 * 2**-20, rel=1e-6)


@pytest.mark.parametrize(
    "h, other, t", [((2, 1, 2, 2), (1, 1, 2, 2), 2), ((2, 1, 2, 2), (2, 1, 2, 2), 1)]
)
def test_what_does_not_belong_together(h, other, t):
    with pytest.raises(ValueError, match="do not belong together"):
        cbdm_term(torch.zeros(h), torch.zeros(other), torch.zeros(t))
    with pytest.raises(ValueError, match="form = 'paper'"):
        cbdm_term(torch.zeros(h), torch.zeros(h), torch.zeros(2), form="paper")


# ------------------------------------------------------------------------------------------------
# the loss of a training, image by image
class Network:
    "A small function of all that it is told, in float64; it counts its calls."

    def __init__(self, weight=0.3):
        self.weight, self.sizes = torch.tensor(weight, dtype=torch.float64, requires_grad=True), []

    def __call__(self, noisy, t, encoder_hidden_states):
        self.sizes.append(len(noisy))
        text = encoder_hidden_states[..., :3].mean((1, 2))[:, None, None, None]
        return torch.tanh(self.weight * noisy + 5 * text) + self.weight * text * t.view(-1, 1, 1, 1)

    @staticmethod
    def alone(w, noisy, t, text):  # of one image, in numpy
        text = text[:, :3].mean()  # of all channels it is 0
        return np.tanh(w * noisy + 5 * text) + w * text * t


def micro_batch(base, number, n=8, rows=None):
    z = toy_latents(dtype=torch.float64)
    g = torch.Generator().manual_seed(number)
    rows = torch.arange(n) if rows is None else torch.as_tensor(rows)
    noise = torch.randn(len(rows), 4, 4, 4, generator=g, dtype=torch.float64)
    t = torch.randint(0, 1000, (len(rows),), generator=g)
    text = encode_prompts(base, [PROMPTS[i] for i in rows])
    return Prompted(z.mean[rows, 0], noise, t, text, rows, number)


def image_by_image(base, loss, batch, w0, w, term, tau, weights):
    """The loss as a function of the network's weight w; what stop-gradients hold still is computed
    with w0. Read from the definition: one image, one prompt, one prediction at a time.
    """
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    dropped, others = loss.draws(batch.number, len(batch.x))
    texts = {p: encode_prompts(base, [p])[0].numpy() for p in [*CLASSES, ""]}
    losses = []
    for i, row in enumerate(batch.rows.tolist()):
        x, e, t = batch.x[i].numpy(), batch.noise[i].numpy(), int(batch.t[i])
        noisy = np.sqrt(alphas[t]) * x + np.sqrt(1 - alphas[t]) * e
        own = texts["" if dropped[i] else PROMPTS[row]]
        h, h0 = (Network.alone(v, noisy, t, own) for v in (w, w0))
        value = ((h - e) ** 2).mean()
        for j in range(len(others)) if term and not dropped[i] else ():
            text = texts[CLASSES[others[j, i]]]
            k, k0 = (Network.alone(v, noisy, t, text) for v in (w, w0))
            if term == "official":
                pull = ((h - k0) ** 2).mean() + 0.25 * ((h0 - k) ** 2).mean()
                value += tau * t / 1000 * pull / len(others)
            else:
                value += tau * t * ((h - k) ** 2).mean() / len(others)
        losses.append(value * (1 if weights is None else weights[row]))
    return np.mean(losses)


KINDS = [
    dict(term=None),
    dict(term="official"),
    dict(term="official", tau=0.3, others="train", drop_rate=0.5),
    dict(term="official", drop=None),
    dict(term="official", drop="batch", drop_rate=0.5),
    dict(term="official", others="all"),
    dict(term="printed", tau=0.001, others="sqrt"),
    dict(term="printed", tau=0.001, others="all", drop_rate=0.4),
    dict(term="official", loss_weights=cell_weights(PROMPTS, "cbrs"), drop_rate=0.4),
]


@pytest.mark.parametrize("how", KINDS, ids=lambda k: "-".join(map(str, list(k.values())[:3]))[:40])
def test_the_loss_and_its_gradient_image_by_image(how):
    base = toy_base(dtype=torch.float64, prediction="epsilon")
    scheduler = training_scheduler(base.scheduler)
    loss = balanced_loss(base, PROMPTS, seed=7, **how)
    told = how["term"], how.get("tau", 1.0), how.get("loss_weights")
    droppings = set()
    for number in range(4):
        batch, network = micro_batch(base, number, rows=[0, 1, 2, 3, 5, 8, 2, 1]), Network()
        value = loss(network, scheduler, batch)
        value.backward()
        w, step = 0.3, 1e-6

        def f(v):
            return image_by_image(base, loss, batch, w, v, *told)  # noqa: B023

        # the schedule of diffusers is of 32 bits
        assert value.item() == pytest.approx(f(w), rel=3e-6)
        slope = (f(w + step) - f(w - step)) / (2 * step)
        assert network.weight.grad.item() == pytest.approx(slope, rel=1e-4)
        dropped, others = loss.draws(number, 8)
        droppings.add(int(dropped.sum()))
        with_term = 0 if how["term"] is None else len(others) * int((~dropped).sum())
        assert network.sizes == [8 + with_term]  # one pass, of what is needed
    if how.get("drop", "sample") == "batch":
        assert droppings == {0, 8}
    if how.get("drop", "sample") is None:
        assert droppings == {0}


def test_a_dropped_image_reads_the_empty_prompt_and_has_no_term():
    base = toy_base(dtype=torch.float64, prediction="epsilon")
    scheduler, network = training_scheduler(base.scheduler), Network()
    loss = balanced_loss(base, PROMPTS, term="official", tau=1e6, drop_rate=0.99, seed=1)
    number = next(k for k in range(99) if loss.draws(k, 3)[0].all())
    batch = micro_batch(base, number, 3)
    empty = encode_prompts(base, [""] * 3)
    noisy = scheduler.add_noise(batch.x, batch.noise, batch.t)
    plain = (network(noisy, batch.t, empty) - batch.noise).square().mean()
    assert loss(network, scheduler, batch).item() == pytest.approx(plain.item(), rel=1e-12)


# ------------------------------------------------------------------------------------------------
# what is drawn
@pytest.mark.parametrize("how", ["uniform", "train", "sqrt"])
def test_labels_are_dropped_and_others_drawn_as_often_as_asked(how):
    loss = balanced_loss(toy_base(), PROMPTS, term="official", others=how, drop_rate=0.1)
    dropped, others = zip(*(loss.draws(k, 8) for k in range(2500)))
    rate = np.mean(dropped)
    assert abs(rate - 0.1) < 4 * (0.1 * 0.9 / 20000) ** 0.5
    assert {0, 1, 2} <= {int(d.sum()) for d in dropped}  # by image, not by batch
    counts = np.array([4.0, 6.0, 2.0]) ** dict(uniform=0, train=1, sqrt=0.5)[how]
    expected = 20000 * counts / counts.sum()
    seen = np.bincount(np.concatenate(others, 1)[0], minlength=3)
    assert ((seen - expected) ** 2 / expected).sum() < 13.8  # 99.9 %, 2 degrees of freedom
    left = pd.crosstab(np.concatenate(dropped), np.concatenate(others, 1)[0])
    assert abs(left.loc[True] / left.sum() - rate).max() < 0.02  # one does not tell the other


def test_the_whole_batch_is_dropped_as_often_as_asked():
    loss = balanced_loss(toy_base(), PROMPTS, term="official", drop="batch", drop_rate=0.1)
    whole = np.array([loss.draws(k, 8)[0] for k in range(4000)])
    assert set(whole.sum(1)) == {0, 8}
    assert abs(whole[:, 0].mean() - 0.1) < 4 * (0.1 * 0.9 / 4000) ** 0.5


def test_draws_depend_on_seed_and_number_alone():
    "So that arms of one seed drop the same labels, and a resumed training goes on."
    a = balanced_loss(toy_base(), PROMPTS, term="official", seed=5, drop_rate=0.5)
    b = balanced_loss(toy_base(1), PROMPTS, term=None, seed=5, drop_rate=0.5)
    c = balanced_loss(toy_base(), PROMPTS, term="official", seed=6, drop_rate=0.5)
    of = {k: np.array([m.draws(n, 8)[0] for n in range(20)]) for k, m in zip("abc", (a, b, c))}
    assert (of["a"] == of["b"]).all() and (of["a"] != of["c"]).any()
    assert (a.draws(3, 8)[1] == a.draws(3, 8)[1]).all()
    assert (a.draws(3, 8)[1] != a.draws(4, 8)[1]).any()
    assert (of["a"][0] != of["a"][1]).any()


def test_a_class_that_is_not_trained_on_is_no_other_class():
    rows = [i for i, p in enumerate(PROMPTS) if p != "dark skin"]
    for others in ("uniform", "train", "sqrt", "all"):
        loss = balanced_loss(toy_base(), PROMPTS, term="official", others=others, rows=rows)
        drawn = np.concatenate([loss.draws(k, 8)[1].ravel() for k in range(50)])
        assert set(drawn) == {0, 1}


# ------------------------------------------------------------------------------------------------
# in a training
def trained(folder=None, steps=6, settings=FAST, sampling=None, **how):
    base = toy_base(noise_offset=0.3)
    loss = balanced_loss(base, PROMPTS, **how)
    log = fine_tune(
        base,
        toy_latents(),
        PROMPTS,
        replace(settings, steps=steps),
        loss=loss,
        about=loss.about,
        folder=folder,
        weights=sampling,
        progress=False,
    )
    return base.unet.state_dict(), log


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_nothing_dropped_and_no_term_is_plain_fine_tuning():
    plain = toy_base(noise_offset=0.3)
    log = fine_tune(plain, toy_latents(), PROMPTS, FAST, progress=False)
    unet, own = trained(drop=None)
    assert same(unet, plain.unet.state_dict()) and (own.loss == log.loss).all()
    assert not same(trained(drop=None, term="official")[0], unet)


def test_a_stopped_training_goes_on_with_the_same_draws(tmp_path):
    how = dict(term="official", drop_rate=0.4, seed=2, sampling=cell_weights(PROMPTS, "sqrs"))
    averaged = replace(FAST, ema=0.9)  # warms up, see test_loop.py
    whole, _ = trained(tmp_path / "whole", settings=averaged, **how)
    trained(tmp_path / "parts", 4, averaged, **how)
    assert same(trained(tmp_path / "parts", 6, averaged, **how)[0], whole)
    assert not same(trained(None, 6, averaged, **how | dict(seed=3))[0], whole)


def test_draws_and_loss_have_32_bits_in_mixed_precision():
    base, seen = toy_base(noise_offset=0.3, dtype=torch.bfloat16), []
    inner = balanced_loss(base, PROMPTS, term="official")

    def loss(predict, scheduler, batch):
        value = inner(predict, scheduler, batch)
        seen.extend([batch.x.dtype, batch.noise.dtype, value.dtype])
        return value

    settings = replace(FAST, steps=2, precision="bf16")
    fine_tune(base, toy_latents(), PROMPTS, settings, loss=loss, progress=False)
    assert seen == 6 * [torch.float32]


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(tau=0.5), "tau: 1.0 there, 0.5 now"),
        (dict(term="printed"), "term: official there, printed now"),
        (dict(drop="batch"), "drop: sample there, batch now"),
        (dict(seed=1), "loss_seed: 0 there, 1 now"),
        (dict(others="train"), "others: uniform there, train now"),
        (dict(loss_weights=cell_weights(PROMPTS, "cbrs")), "loss_weights: None there"),
    ],
)
def test_a_folder_of_another_loss_is_refused(tmp_path, change, named):
    trained(tmp_path, 2, term="official")
    with pytest.raises(ValueError, match=named):
        trained(tmp_path, 2, **dict(term="official") | change)


def test_what_is_told_of_a_loss_does_not_hide_a_setting():
    about = balanced_loss(toy_base(), PROMPTS, term="official").about
    taken = {*asdict(FAST), "kind", "only", "base", "images", "prompts", "rows", "weights"}
    assert not taken & {*about}


def test_rare_classes_weigh_as_much_in_the_loss_as_they_would_be_drawn():
    "The mean over all images of weighted losses is the expectation under weighted sampling."
    base = toy_base(dtype=torch.float64, prediction="epsilon")
    scheduler, w = training_scheduler(base.scheduler), cell_weights(PROMPTS, "cbrs")
    plain = balanced_loss(base, PROMPTS, term="official", others="all", drop=None)
    weighted = replace(plain, weights=torch.tensor(w))
    batch = micro_batch(base, 0, 12)
    each = [
        plain(Network(), scheduler, Prompted(*(v[i : i + 1] for v in batch[:5]), 0)).item()
        for i in range(12)
    ]
    expected = np.average(each, weights=w)
    assert weighted(Network(), scheduler, batch).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(term="cbdm"), "term = 'cbdm' is not one of None, 'official', 'printed'"),
        (dict(others="square"), "others = 'square' is not one of"),
        (dict(drop="image"), "drop = 'image' is not one of"),
        (dict(drop_rate=1.0), "drop_rate = 1.0 must be"),
        (dict(drop_rate=-0.1), "drop_rate = -0.1 must be"),
        (dict(tau=-1.0), "tau = -1.0 must be"),
        (dict(tau=float("nan")), "tau = nan must be"),
        (dict(loss_weights=np.zeros(12)), "weights of all 12 images sum to 0"),
        (dict(loss_weights=np.ones(3)), "must be 12 finite numbers"),
        (dict(loss_weights=np.r_[np.ones(11), np.nan]), "must be 12 finite numbers"),
        (dict(term="official", rows=[0, 4]), "one prompt"),
    ],
)
def test_bad_losses(how, message):
    with pytest.raises(ValueError, match=message):
        balanced_loss(toy_base(), PROMPTS, **how)


# ------------------------------------------------------------------------------------------------
# words of a paper that a small tokenizer lacks
GROUPS = [f"{g} people basal cell carcinoma" for g in ("Asian", "African", "Caucasian")]


def test_the_miniature_reads_new_words(monkeypatch):
    monkeypatch.setattr(latent, "_warned", set())
    base, random = load_base("miniature"), torch.get_rng_state()
    was = base.weights_hash
    old = base.text_encoder.get_input_embeddings().weight.clone()
    with pytest.warns(UserWarning, match="does not know 'African', 'Asian', 'Caucasian', 'people'"):
        confused = encode_prompts(base, GROUPS)
    assert torch.equal(confused[0], confused[1])  # one <unk> for all
    assert add_words(base, GROUPS) == ["african", "asian", "caucasian", "people"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = encode_prompts(base, [*GROUPS, GROUPS[0].upper()])
        assert latent.unknown_words(base, GROUPS) == []
    assert not torch.equal(text[0], text[1]) and not torch.equal(text[1], text[2])
    assert torch.equal(text[0], text[3])
    ids = prompt_ids(base, [*GROUPS, "people"])
    assert len({int(i) for i in ids[:3, 1]}) == 3 and (ids[:3, 2] == ids[3, 1]).all()
    assert (ids[:, :3] != base.tokenizer.unk_token_id).all() and (ids[:3, 3:] == ids[0, 3:]).all()
    table = base.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(old)], old) and len(table) == len(old) + 4
    assert base.weights.endswith(" + words") and base.weights_hash != was
    assert torch.equal(random, torch.get_rng_state())  # no draw of others is moved
    assert add_words(base, GROUPS) == [] and base.weights.count("words") == 1


def test_a_word_is_not_found_within_another(monkeypatch):
    base = toy_base()
    monkeypatch.setattr(latent, "_warned", {"eurasian", "asians", "caucasian"})
    assert add_words(base, ["asian"]) == ["asian"]
    unknown = base.tokenizer.unk_token_id
    rows = prompt_ids(base, ["eurasian", "asians", "caucasian", "Asian - skin"])
    assert (rows[:3, 1] == unknown).all() and rows[3, 1] != unknown
    assert rows[3, 3] == prompt_ids(base, ["skin"])[0, 1]


def test_new_vectors_are_as_the_table_and_can_be_made_again():
    a, b, c = toy_base(), toy_base(), toy_base()
    names = [f"q{x}{y}" for x in "abcdefghijklmnopqrst" for y in "bcdfghjkmnpqrstvwxyz"]
    add_words(a, names)
    add_words(b, names[::-1])
    add_words(c, names, seed=1)
    ta, tb, tc = (x.text_encoder.get_input_embeddings().weight for x in (a, b, c))
    assert torch.equal(ta, tb) and a.weights_hash == b.weights_hash != c.weights_hash
    n = len(toy_base().tokenizer)
    old, new = ta[:n], ta[n:]
    assert len(new) == 400
    far = (new.mean(0) - old.mean(0)) / (old.std(0) / 20)
    assert far.abs().max() < 4.5 and far.abs().mean() > 0.4
    assert (new.std(0) / old.std(0) - 1).abs().max() < 0.2
    wide = toy_base()
    add_words(wide, names, spread=3.0)
    away = wide.text_encoder.get_input_embeddings().weight[n:] - old.mean(0)
    torch.testing.assert_close(away, 3 * (new - old.mean(0)), rtol=1e-4, atol=1e-6)


def test_a_new_word_keeps_its_vector_when_another_is_asked_for_too():
    one, two = toy_base(), toy_base()
    add_words(one, ["asian"])
    add_words(two, ["african asian"])
    of = [
        b.text_encoder.get_input_embeddings().weight[b.tokenizer.convert_tokens_to_ids("asian")]
        for b in (one, two)
    ]
    assert torch.equal(*of)


def test_a_tokenizer_that_spells_knows_every_word(tmp_path):
    "CLIP's, with made-up merges: nothing changes, so Stable Diffusion stays what it is."
    letters = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    more = (f"{a} {b}{end}" for end in ("", "</w>") for a in letters for b in letters)
    with gzip.open(tmp_path / "merges.txt.gz", "wt", encoding="utf-8") as f:
        f.write("\n".join(["#version", *islice(more, 48894), "one too many"]))
    base = toy_base(tokenizer=clip_tokenizer(tmp_path / "merges.txt.gz", 40))
    was, table = (base.weights, base.weights_hash), len(base.tokenizer)
    before = encode_prompts(base, GROUPS)
    assert add_words(base, GROUPS) == [] and latent.unknown_words(base, GROUPS) == []
    assert (base.weights, base.weights_hash) == was and len(base.tokenizer) == table
    assert torch.equal(encode_prompts(base, GROUPS), before)


def test_words_are_a_list():
    with pytest.raises(ValueError, match="must be a list of texts"):
        add_words(toy_base(), "asian")
