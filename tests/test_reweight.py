"""Weights of groups between epochs, samplers, and how many synthetic images each cell gets."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from skinrepro.batches import row_sampler, shuffled_sampler, weighted_sampler
from skinrepro.classify import data_parts, train_classifier
from skinrepro.loop import Training
from skinrepro.manifest import make
from skinrepro.networks import build
from skinrepro.reweight import Reweighting, group_weights
from skinrepro.splits import allocate, take


def seen(right, part="val"):
    right = np.asarray(right)
    return {part: (np.eye(3)[np.where(right, 2, 0)], np.full(len(right), 2))}


def test_weights_by_hand():
    "Accuracies 1/4, 1/2, 1; 2, 3, 5 images: 4, 2, 1 over the mean (8 + 6 + 5) / 10."
    w = group_weights(dict(a=0.25, b=0.5, c=1.0), dict(a=4, b=4, c=4), dict(a=2, b=3, c=5))
    assert w == pytest.approx(dict(a=4 / 1.9, b=2 / 1.9, c=1 / 1.9))
    assert sum(w[g] * n for g, n in dict(a=2, b=3, c=5).items()) == pytest.approx(10)


@pytest.mark.parametrize("n, floor, ratio", [(1, None, 2), (5, None, 10), (5, 0.25, 4), (5, 1, 1)])
def test_none_right_is_half_an_image_or_the_given_floor(n, floor, ratio):
    w = group_weights(dict(a=0.0, b=1.0), dict(a=n, b=9), dict(a=7, b=11), floor)
    assert w["a"] / w["b"] == pytest.approx(ratio)


def test_a_group_that_nobody_validates_is_refused_before_training():
    with pytest.raises(ValueError, match="'b' has 2 training images and none to validate.*merge"):
        Reweighting(["a", "b", "b"], ["a", "a"])
    assert Reweighting(["a", "b", "b"], ["a", "b"])  # one was moved
    assert Reweighting(["a"], ["a", "a"])  # or left out
    with pytest.raises(ValueError, match="1 of 3 images of train have no group"):
        Reweighting(["a", None, "b"], ["a", "b"])
    with pytest.raises(ValueError, match="by = 'los'"):
        Reweighting(["a"], ["a"], by="los")


def test_what_is_asked_in_the_wrong_way_is_said():
    r = Reweighting(["a", "b"], ["a", "b"], by="sampling")
    assert len(r.sampler(0)) == 2
    with pytest.raises(ValueError, match="after epoch 2.*on_epoch"):
        r.sampler(3)
    with pytest.raises(ValueError, match="no part 'val', only .'test'.: set val_fraction"):
        r.on_epoch(0, seen([1, 0], "test"))
    with pytest.raises(ValueError, match="2 groups for 3 images"):
        r.on_epoch(0, seen([1, 0, 1]))
    with pytest.raises(ValueError, match='by="sampling"'):
        Reweighting(["a"], ["a"]).sampler(0)
    with pytest.raises(ValueError, match="sum to 0"):
        group_weights(dict(a=1.0), dict(a=1), dict(a=0))


def test_sampling_follows_the_last_epoch_only():
    groups = ["a"] * 100 + ["b"] * 300
    r = Reweighting(groups, ["a", "a", "b", "b"], by="sampling", draws=20000)
    r.on_epoch(0, seen([0, 1, 1, 1]))  # a counts twice
    r.on_epoch(1, seen([1, 1, 0, 0]))  # b counts four times
    share = [(r.sampler(e) < 100).mean() for e in range(3)]
    assert share == pytest.approx([100 / 400, 200 / 500, 100 / 1300], abs=0.015)
    assert np.array_equal(r.sampler(1), r.sampler(1))
    other = Reweighting(groups, ["a", "a", "b", "b"], by="sampling", draws=20000, seed=1)
    assert not np.array_equal(other.sampler(0), r.sampler(0))
    weights = r.history.pivot(index="epoch", columns="group", values="weight")
    assert weights.a.tolist() == pytest.approx([2 / 1.25, 1 / 3.25])
    assert (weights.a * 100 + weights.b * 300).tolist() == pytest.approx([400, 400])


def test_several_labels_count_as_shares():
    r = Reweighting(["a", "b"], ["a", "b"])
    p, y = np.array([[0.9, 0.1], [0.9, 0.8]]), np.array([[1, 0], [0, 1]])
    assert r.on_epoch(0, dict(val=(p, y))).tolist() == pytest.approx([2 / 3, 4 / 3])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows = []
    for i in range(48):
        label, group = "xy"[i % 2], "ab"[i % 8 == 7]
        split = ["train", "train", "val", "test"][i // 12]
        pixels = rng.normal(110, 20, (32, 32, 3))
        pixels[8:24, 8:24, i % 2] += 60 if group == "a" else 15
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append(dict(image_id=f"i{i}", label=label, group=group, split=split))
    t = pd.DataFrame(rows)
    return make(t.assign(path=[str(folder / f"{i}.png") for i in range(48)]))


@pytest.mark.parametrize("by", ["loss", "sampling"])
def test_a_training_from_a_manifest_is_reweighted_and_resumes(manifest, tmp_path, by):
    groups = [manifest.group[manifest.split == part] for part in ("train", "val")]
    used = []

    def run(folder, epochs, kind=Reweighting):
        r = kind(*groups, by=by)

        def loss(logits, targets, weights):
            used.append(None if weights is None else weights.tolist())
            each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            return (each if weights is None else each * weights).mean()

        sampler = r.sampler if by == "sampling" else lambda e: shuffled_sampler(24, 0, e)
        train, parts = data_parts(
            manifest, ["x", "y"], "resnet_small", 32, 8, progress=False, sampler=sampler
        )
        net = build("resnet_small", 2, 32)
        options = dict(on_epoch=r.on_epoch, folder=folder, progress=False, loss=loss)
        return r, train_classifier(net, train, parts, Training(epochs), **options)[1]["test"]

    class Stopped(Reweighting):
        def on_epoch(self, epoch, seen):
            if epoch == 1:
                raise KeyboardInterrupt
            return super().on_epoch(epoch, seen)

    r, whole = run(tmp_path / "whole", 3)
    first_epoch, later = used[:3], used[3:]
    assert len(used) == 9 and first_epoch == [None] * 3
    if by == "loss":
        after = r.history[r.history.epoch == 0].set_index("group").weight
        order = shuffled_sampler(24, 0, 1)
        expected = groups[0].map(after).to_numpy()[order]
        assert np.concatenate(later[:3]) == pytest.approx(expected)
    else:
        assert later == [None] * 6
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", 3, Stopped)
    again, resumed = run(tmp_path / "again", 3)
    assert np.array_equal(resumed, whole) and again.history.equals(r.history)
    assert len(r.history) == 6


def test_samplers_keep_their_numbers():
    "The order of an epoch is part of every record."
    codes = np.repeat([0, 1, 2], [20, 5, 2])
    weight = (1 / np.array([20, 5, 2]))[codes]
    order = np.random.default_rng([3, 4]).choice(27, 27, p=weight / weight.sum())
    assert np.array_equal(weighted_sampler(codes, 3, 4), order)
    assert np.array_equal(row_sampler(weight, 3, 4), order)
    assert np.array_equal(shuffled_sampler(27, 3, 4), np.random.default_rng([3, 4]).permutation(27))
    with pytest.raises(ValueError, match="27 images sum to 0.*positive weight"):
        row_sampler(np.zeros(27), 0, 0)
    assert set(row_sampler(np.eye(27)[5], 0, 0)) == {5}
    for wrong in ([1, np.inf], [1, -2], [[1, 2]]):
        with pytest.raises(ValueError, match="finite and not negative"):
            row_sampler(wrong, 0, 0)


CELLS = [
    (g, d) for g in ("African", "Asian", "Caucasian") for d in ("acd", "bcc", "lp", "p", "scc")
]


def test_the_allocation_of_the_paper():
    plan = allocate(dict(African=0.3, Asian=0.2, Caucasian=0.5), 7500, CELLS)
    assert plan.groupby("group").sum().to_dict() == dict(African=2250, Asian=1500, Caucasian=3750)
    assert plan["Asian"].tolist() == [300] * 5 and plan.index.names == ["group", "label"]


@pytest.mark.parametrize("total", [0, 1, 7, 100, 7499])
def test_what_does_not_divide_is_spread_and_nothing_is_lost(total):
    share = dict(African=0.37, Asian=0.215, Caucasian=0.415)
    plan = allocate(share, total, CELLS)
    of_group = plan.groupby("group").sum()
    assert plan.sum() == total
    assert all(abs(of_group[g] - s * total) < 1 for g, s in share.items())
    assert (plan.groupby("group").max() - plan.groupby("group").min()).max() <= 1


def test_largest_remainders_come_first():
    "Hamilton's method on 10 of .43, .35, .22: 4.3, 3.5, 2.2 are 4, 4, 2."
    cells = [("a", "x"), ("b", "x"), ("c", "x")]
    assert allocate(dict(a=0.43, b=0.35, c=0.22), 10, cells).tolist() == [4, 4, 2]
    ragged = [("a", "x"), ("a", "y"), ("b", "x")]  # a group without one of the labels
    assert allocate(dict(a=0.5, b=0.5), 9, ragged).tolist() == [3, 2, 4]


@pytest.mark.parametrize(
    "share, said",
    [
        (dict(African=0.3, Asian=0.2, Caucasian=0.4), r"sum to 0.9, not to 1"),
        (dict(African=-0.3, Asian=0.8, Caucasian=0.5), r"negative or no number"),
        (dict(African=np.nan, Asian=0.5, Caucasian=0.5), r"negative or no number"),
        (dict(African=0.3, Asian=0.2, Caucasian=0.5, Other=0), r"No cell of group Other"),
        (dict(African=0.5, Asian=0.5), r"No proportion for Caucasian: give 0"),
    ],
)
def test_proportions_that_are_none_are_refused(share, said):
    with pytest.raises(ValueError, match=said):
        allocate(share, 100, CELLS)


def test_zero_leaves_a_group_out():
    plan = allocate(dict(African=0.5, Asian=0.5, Caucasian=0), 100, CELLS)
    assert plan["Caucasian"].sum() == 0 and plan.sum() == 100
    with pytest.raises(ValueError, match="total = 10.5"):
        allocate(dict(African=0.5, Asian=0.5, Caucasian=0), 10.5, CELLS)


def test_the_first_images_of_each_cell_are_taken():
    rng = np.random.default_rng(0)
    order = rng.permutation(len(CELLS) * 6)
    made = pd.DataFrame([dict(group=CELLS[i % 15][0], label=CELLS[i % 15][1]) for i in order])
    made = made.assign(image_id=[f"s{i}" for i in range(90)])
    plan = allocate(dict(African=0.5, Asian=0.3, Caucasian=0.2), 40, CELLS)
    got = take(made, plan)
    assert got.groupby(["group", "label"]).size().to_dict() == plan[plan > 0].to_dict()
    assert got.image_id.tolist() == [i for i in made.image_id if i in set(got.image_id)]
    for cell, rows in made.groupby(["group", "label"]):
        mine = got[(got.group == cell[0]) & (got.label == cell[1])].image_id.tolist()
        assert mine == rows.image_id.tolist()[: plan[cell]]
    too_many = allocate(dict(African=0.5, Asian=0.3, Caucasian=0.2), 65, CELLS)
    with pytest.raises(
        ValueError, match="African / acd has 6 of 7.*Generate more, or ask for fewer"
    ):
        take(made, too_many)
    assert len(take(made, 6)) == 90
    unnamed = made.assign(group=made.group.where(made.group != "Asian"))
    assert set(take(unnamed, {("African", "bcc"): 2}).group) == {"African"}
    with pytest.raises(ValueError, match="Asian / bcc has 0 of 1"):
        take(unnamed, {("Asian", "bcc"): 1})
