"""ktena2023, beyond the paper: groups drawn alike and group DRO, as rivals of generation. What must
come out is from a closed form, or from an evaluation in float64 that shares no line with ours.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from skinrepro import runs
from skinrepro.classify import LOSSES, train_classifier
from skinrepro.grid import read_grid
from skinrepro.loop import Training
from skinrepro.papers import ktena2023 as ktena
from skinrepro.papers import ktena2023_dermatology as skin
from skinrepro.papers import ktena2023_radiology as radiology
from skinrepro.papers import ktena2023_rivals as rivals
from skinrepro.reweight import GroupDRO

PAPER = ROOT / "nbs" / "papers" / "ktena2023"
GROUPS = np.array(list("aaaabbbccd"))  # 4, 3, 2, 1 images


def batch(dro, x, y, rows):
    "Targets as a training gets them."
    return next(iter(dro.told(lambda epoch: [(x, y, rows)])(0)))[1]


def own_losses(logits, y):
    "Loss of each image, by the definition, in float64."
    z = np.asarray(logits, float)
    if y.ndim == 1:
        return np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
    return np.mean(np.log1p(np.exp(-z)) * y + np.log1p(np.exp(z)) * (1 - y), axis=1)


def own_shares(steps, eta, c):
    "q after some batches: (losses, groups) each; groups that a batch lacks keep their weight."
    n = {g: (GROUPS == g).sum() for g in "abcd"}
    log_q = dict.fromkeys("abcd", 0.0)
    for losses, groups in steps:
        for g in set(groups):
            log_q[g] += eta * (losses[groups == g].mean() + c / np.sqrt(n[g]))
    w = np.exp(np.array([log_q[g] for g in "abcd"]))
    return w / w.sum()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("c", [0.0, 0.7])
def test_shares_and_gradient_are_those_of_the_algorithm(several, c):
    rng, eta, steps = np.random.default_rng(4), 0.4, []
    dro = GroupDRO(GROUPS, eta, c)
    for k in range(6):
        rows = rng.choice(10, 5, replace=False) if k else np.array([0, 1, 4, 5, 6])  # no c, no d
        y = rng.integers(0, 2, (5, 3)) if several else rng.integers(0, 3, 5)
        z = torch.tensor(rng.normal(0, 2, (5, 3)), dtype=torch.float64, requires_grad=True)
        told = batch_without_reset(dro, z, torch.as_tensor(y), torch.as_tensor(rows))
        value = dro(z, told)
        value.backward()
        losses, groups = own_losses(z.detach().numpy(), y), GROUPS[rows]
        steps.append((losses, groups))
        q = dict(zip("abcd", own_shares(steps, eta, c)))
        assert np.allclose(dro.shares.share, list(q.values()), atol=1e-6)
        means = {g: losses[groups == g].mean() for g in set(groups)}
        assert np.isclose(float(value.detach()), sum(q[g] * v for g, v in means.items()), atol=1e-6)
        # the gradient is that of sum_g q_g L_g with q held still
        weight = np.array([q[g] / (groups == g).sum() for g in groups])[:, None]
        p = np.exp(z.detach().numpy())
        p = p / (1 + p) - y if several else p / p.sum(1, keepdims=True) - np.eye(3)[y]
        assert np.allclose(z.grad, weight * p / (3 if several else 1), atol=1e-6)


def batch_without_reset(dro, x, y, rows):
    "A batch of an epoch that goes on."
    kept = dro.q
    told = batch(dro, x, y, rows)
    dro.q = kept
    return told


def test_a_step_of_zero_leaves_all_groups_alike_and_nonsense_is_refused():
    dro = GroupDRO(GROUPS, 0.0)
    z, y = torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64)
    assert np.isclose(float(dro(z, batch(dro, z, y, torch.arange(10)))), np.log(3))
    assert np.allclose(dro.shares.share, 0.25) and dro.shares.n.tolist() == [4, 3, 2, 1]
    for wrong in (dict(step=-1), dict(adjustment=-1), dict(step=float("nan"))):
        with pytest.raises(ValueError, match="0 or more"):
            GroupDRO(GROUPS, **wrong)
    with pytest.raises(ValueError, match="have no group"):
        GroupDRO(["a", None])


def trained(epochs, folder):
    torch.manual_seed(0)
    x = torch.randn(10, 3, 8, 8)
    y = torch.arange(10) % 3
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    torch.nn.init.zeros_(net[1].weight)
    dro = GroupDRO(GROUPS, 0.5, folder=folder)
    log, p = train_classifier(
        net,
        dro.told(lambda epoch: [(x[r], y[r], r) for r in torch.arange(10).split(5)]),
        dict(val=lambda: [(x, y)]),
        Training(epochs, lr=1e-3),
        loss=dro,
        schedule="constant",
        folder=folder,
        progress=False,
    )
    return net[1].weight.detach(), dro.shares.share, p["val"]


def test_a_training_that_was_stopped_goes_on_with_its_shares(tmp_path):
    first = trained(2, tmp_path)[1]
    assert not np.allclose(first, 0.25, atol=1e-3)
    resumed, whole = trained(4, tmp_path), trained(4, None)
    assert torch.equal(resumed[0], whole[0]) and np.array_equal(resumed[1], whole[1])
    assert np.array_equal(resumed[2], whole[2])  # predictions are not told any group


def test_a_network_that_was_trained_without_a_folder_cannot_go_on():
    dro = GroupDRO(GROUPS)
    with pytest.raises(ValueError, match="folder"):
        list(dro.told(lambda epoch: [])(3))


# ---- in the experiment


def photographs():
    t = pd.DataFrame(
        dict(
            label=["acne"] * 50 + ["melanoma"] * 14,
            group=["female"] * 45 + ["male"] * 5 + ["female"] * 11 + ["male"] * 2 + [None],
            source="phantom",
            split="train",
        )
    )
    return t.astype(dict(label="string", group="string"))


P = dict(
    data="phantom_people", trains="real", target="label", sampling="group", share_real=0.5,
    steps=500, batch_size=16, looks=2, seed=0, loss="group_dro", profile="mini",
)  # fmt: skip


def test_groups_of_label_and_attribute_are_drawn_alike():
    m = photographs()
    groups = pd.Series(ktena.groups_of(m, P))
    assert groups.value_counts().to_dict() == {
        "acne / female": 45, "acne / male": 5, "melanoma / female": 11, "melanoma / male": 2,
        "melanoma / unknown": 1,
    }  # fmt: skip
    sampler = ktena.sampler_of(m, P)
    drawn = groups[np.concatenate([sampler(0), sampler(1)])].value_counts(normalize=True)
    assert sum(len(sampler(e)) for e in (0, 1)) == 8000  # steps and batches of every method
    assert np.allclose(drawn, 1 / 5, atol=0.02)  # sd of a share: .0045


def test_of_several_findings_any_counts():
    m = pd.DataFrame(
        dict(
            label=["cardiomegaly", "no finding", "edema"],
            labels=pd.array(["cardiomegaly|edema", radiology.NO_FINDING, "edema"], "string"),
            group=pd.array(["female", "female", "male"], "string"),
        )
    )
    of = ktena.groups_of(m, P | dict(data="phantom_radiograph")).tolist()
    assert of == ["finding / female", "no finding / female", "finding / male"]


@pytest.mark.parametrize("wrong", [dict(trains="mixed"), dict(trains="truth"), dict(target="cell")])
def test_groups_are_of_real_images_and_their_labels(wrong):
    m = photographs()
    for ask in (ktena.groups_of, ktena.sampler_of):
        with pytest.raises(runs.ParameterError, match="trains = 'real' and target = 'label'"):
            ask(m, P | wrong)
    with pytest.raises(runs.ParameterError, match="loss = 'group_dro'"):
        ktena.objective_of(None, m, P | wrong)
    ktena.objective_of(lambda epoch: [], m, P | dict(trains="real", target="label"))


def test_other_losses_are_handed_on_as_they_are():
    "The same objects: nothing of the methods that stand can have changed."
    batches = object()
    for name in (None, *LOSSES):
        found = ktena.objective_of(batches, None, P | dict(loss=name))
        assert found[0] is batches and found[1] is LOSSES[name or "entropy"]
        assert ktena.shares_in(found[1]) == []
    with pytest.raises(ValueError, match="one of 'entropy', 'focal', 'group_dro'"):
        ktena.objective_of(batches, None, P | dict(loss="dro"))


def test_shares_are_recorded_and_the_step_is_that_of_the_profile():
    for profile, step in (("paper", 0.01), ("mini", 0.1), ("smoke", 0.1)):
        _, loss = ktena.objective_of(lambda epoch: [], photographs(), P | dict(profile=profile))
        assert loss.step == step
    (t,) = ktena.shares_in(loss)
    assert np.isclose(t.value.sum(), 1) and t.n.sum() == 64
    assert set(t.metric) == {"group_share"} and "acne / male" in set(t.group)


def test_the_lists_of_values_are_those_of_the_code():
    allowed = runs.ranges(PAPER)
    assert set(allowed["loss"]) == {*LOSSES, ktena.ROBUST}
    with pytest.raises(runs.ParameterError, match="one of 'entropy', 'focal', 'group_dro'"):
        runs.check_ranges(dict(loss="dro"), allowed)
    with pytest.raises(runs.ParameterError, match=r"like group\|"):
        runs.check_ranges(dict(sampling="groups"), allowed)
    for good in ("group", "even", "filtered", "l0.5+filtered"):
        runs.check_ranges(dict(sampling=good), allowed)
    with pytest.raises(runs.ParameterError, match="use 'group' with trains = 'real'"):
        ktena.sampler_of(photographs(), P | dict(data="phantom_histology", sampling="even"))
    ktena.sampler_of(photographs(), P | dict(data="phantom_histology"))  # as it says


# ---- what is compared


def test_a_rival_is_nobody_else_and_each_is_found():
    usual = dict(
        trains="real", conditioning="", augment="none", target="label", loss="entropy",
        sampling=None, arch="resnet_plain",
    )  # fmt: skip
    rows = [usual, usual | dict(sampling="group"), usual | dict(sampling="group", loss="group_dro")]
    t = pd.DataFrame([*rows, usual | dict(loss="group_dro")])
    assert ktena.method_of(t).tolist() == ["Baseline", "", "", ""]
    for own in (radiology, skin):
        assert own.method_of(t).tolist() == ["Baseline", "", "", ""]
        assert rivals.method_of(t, own.method_of).tolist() == [rivals.BASE, *rivals.RIVALS, ""]
    assert set(rivals.GENERATED) <= set(radiology.METHODS) & set(skin.METHODS)


def rows_of(section, profile="mini"):
    return [r.parameters for r in read_grid(PAPER, profile, section) if r.section == section]


def test_every_rival_has_what_it_is_compared_with():
    "The same training set and initialisation, of each method; and as many steps and images each."
    all_of_them = []
    for name, sections in rivals.SECTIONS.items():
        others = ("real", "synthetic", "truth") if name == "radiology" else ()
        named = (*sections, *(f"{name}_{k}" for k in others))
        t = pd.DataFrame([p for s in named for p in rows_of(s)])
        own = dict(radiology=radiology, dermatology=skin)[name]
        t = t.assign(method=rivals.method_of(t, own.method_of))
        t = t[t.method.ne("")]
        wanted = set(rivals.COMPARED) - {"Oversampling"}
        for labelled in rivals.SKEWS[name]:
            n = t[t.labelled.eq(labelled)].groupby("method").seed.nunique()
            assert n.to_dict() == dict.fromkeys(wanted, 5)
        for column in ("steps", "batch_size", "arch", "size", "lr", "looks", "data"):
            assert t[column].nunique() == 1, column
        all_of_them.append(len(rows_of(sections[0])))
    assert all_of_them == [10, 20]
    assert {p["labelled"] for p in rows_of("dermatology_rivals", "paper")} == set(
        rivals.SKEWS["dermatology"]
    )


def test_claims_name_metrics_that_are_measured():
    for name, measures in rivals.MEASURES.items():
        claims = rivals.claims_of(name)
        assert {c.metric for c in claims} == set(measures)
        assert len({c.text for c in claims}) == len(claims)
        assert all(len(c.pairs) == len(rivals.GENERATED) for c in claims)
        gaps = {c.direction for c in claims if "gap" in c.metric}
        assert gaps == {"lower"}
