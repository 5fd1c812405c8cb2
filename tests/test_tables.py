"""What the notebook of tables cannot show: random records, nasty text, faults of the disk, the
committed files.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skinrepro import tables
from skinrepro.core import paths
from skinrepro.tables import (
    compare,
    judge,
    latex_table,
    layout,
    markdown_table,
    read_reported,
    save_table,
    stamp_of,
    stand_in,
    verdict_rule,
)

BY = dict(scenario="scenario", arch="arch_paper", train="train")
SETTING = dict(data="fitzpatrick17k", profile="paper")
HEADER = "artefact,keys,metric,value,std,unit,source,note\n"
LINE = (
    'table2,scenario=i;arch=VGG-16;train=real;n_test=56,accuracy,70.24,0.12,percent,"paper, Table'
    ' 2",\n'
)


def wang(artefact):
    t = read_reported(paths().papers / "wang2024" / "reported.csv")
    return t[t.artefact == artefact]


def runs(cell, values, **more):
    "Records that answer one printed cell, one per seed."
    base = dict(
        scenario=cell["scenario"],
        arch_paper=cell["arch"],
        train=cell["train"],
        metric=cell["metric"],
        group="all",
        select_on="val",
        data="fitzpatrick17k",
        profile="paper",
        n=56 if cell["artefact"] == "table2" else 291,
    )
    return [
        base | dict(run_id=f"{cell['arch']}-{cell['train']}-{i}", seed=i, value=v) | more
        for i, v in enumerate(values)
    ]


def random_records(rng, **more):
    """A random part of Table 2, random values and seeds; the printed values themselves are among
    them.
    """
    out = []
    for cell in wang("table2").to_dict("records"):
        if rng.random() < 0.3:
            continue
        scale = 100 if cell["unit"] == "percent" else 1
        exact = np.full(rng.integers(1, 6), cell["value"] / scale)
        values = (
            exact
            if rng.random() < 0.5 or scale == 1
            else np.clip(exact + rng.normal(0, 0.02, len(exact)), 0, 1)
        )
        for level in rng.permutation(["val", "test", "last"])[: rng.integers(1, 4)]:
            out += runs(cell, values, select_on=level, **more)
    return pd.DataFrame(out)


# --- the printed numbers


@pytest.mark.parametrize(
    "file", sorted(paths().papers.glob("*/reported.csv")), ids=lambda f: f.parent.name
)
def test_committed_numbers_are_readable_and_sourced(file):
    t = read_reported(file)
    assert len(t) and t.artefact.ne("").all() and t.source.str.contains(r"paper|https?://").all()


def test_wang_has_all_its_cells():
    t = read_reported(paths().papers / "wang2024" / "reported.csv")
    assert t[t.unit == "percent"].groupby("artefact").size().to_dict() == dict(
        table2=36, table3=36, table4=36, table5=12
    )
    one = wang("table1")
    inner = one[(one.fst != "total") & (one.condition != "total")]
    assert (
        len(one) == 40
        and inner.value.sum()
        == one.value[(one.fst == "total") & (one.condition == "total")].item()
        == 1631
    )


@pytest.mark.parametrize(
    "text, says",
    [
        (HEADER.replace("unit,", "") + LINE, r"missing column\(s\) \['unit'\]"),
        ("", "missing column"),
        (HEADER + LINE.replace("train=real", "train"), "line 2: key .* name=value"),
        (HEADER + LINE.replace("train=real", "=real"), "line 2: key .* name=value"),
        (HEADER + LINE.replace("train=real", "train="), "line 2: key .* name=value"),
        (HEADER + LINE.replace("train=real", "train=real=syn"), "line 2: key .* name=value"),
        (HEADER + LINE.replace("train=real", "arch=real"), "'arch' appears twice"),
        (HEADER + LINE.replace("train=real", "std=real"), "'std' has the name of a column"),
        (HEADER + LINE + LINE, "line 3: the same cell and metric as line 2"),
        (
            HEADER + LINE + LINE.replace("scenario=i;arch=VGG-16", "arch=VGG-16;scenario=i"),
            "line 3: the same cell",
        ),
        (HEADER + LINE.replace("70.24", "70,24"), "line 2: not 8 fields"),
        (HEADER + LINE.replace("70.24", "7O.24"), "line 2, column value: '7O.24' is not a number"),
        (HEADER + LINE.replace("0.12", "±0.12"), "line 2, column std"),
        (HEADER + LINE.replace("accuracy", ""), "line 2: column metric is empty"),
    ],
)
def test_a_slip_in_reported_names_file_and_line(tmp_path, text, says):
    file = tmp_path / "reported.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says) as e:
        read_reported(file)
    assert str(file) in str(e.value)


def test_text_that_a_paper_prints_is_kept(tmp_path):
    file = tmp_path / "reported.csv"
    file.write_text(
        HEADER + "fig2,N=1,gain,~24,,points,paper,\nfig3,,values,,,,paper,none printed\n"
    )
    t = read_reported(file)
    assert t.printed.tolist() == ["~24", ""] and t.value.isna().all()
    assert compare(pd.DataFrame(), t, ["N"], SETTING).verdict.tolist() == ["not run"] * 2


def test_missing_file_says_where_it_belongs(tmp_path):
    with pytest.raises(FileNotFoundError, match="reported.csv"):
        read_reported(tmp_path / "no.csv")


# --- the verdict


@pytest.mark.parametrize(
    "values, reported, expected",
    [
        ([69, 70, 71], 70 + 3.14713, "agrees"),
        ([69, 70, 71], 70 + 3.1473, "differs"),  # t(.975, 2) sqrt(1/3 + 1/5) = 3.14226, + .005
        ([69, 70, 71], 70 - 3.14713, "agrees"),
        ([69, 70, 71], 70 - 3.1473, "differs"),
        ([70, 70], 70.005, "agrees"),
        ([70, 70], 70.0051, "differs"),  # no spread: what rounding can do
        ([70.0], 70.0, "one run"),
    ],
)
def test_boundaries(values, reported, expected):
    assert judge(values, reported)[1] == expected


def test_boundary_follows_the_printed_rule():
    from scipy import stats

    rng = np.random.default_rng(0)
    for _ in range(200):
        n, n_paper = int(rng.integers(2, 8)), int(rng.integers(1, 8))
        values = rng.normal(60, rng.uniform(0.1, 5), n)
        edge = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) * np.sqrt(1 / n + 1 / n_paper) + 0.005
        for sign in (-1, 1):
            assert (
                judge(values, values.mean() + sign * (edge - 1e-6), n_paper=n_paper)[1] == "agrees"
            )
            assert (
                judge(values, values.mean() + sign * (edge + 1e-6), n_paper=n_paper)[1] == "differs"
            )


@pytest.mark.parametrize(
    "reported, expected",
    [(57.995, "agrees"), (57.99, "differs"), (81.005, "agrees"), (81.01, "differs")],
)
def test_one_run_is_judged_by_its_test_images(reported, expected):
    assert judge([70.0], reported, interval=(58, 81))[1] == expected


def test_the_rule_of_one_run_reaches_the_table():
    cell = wang("table2").query('metric == "accuracy"').iloc[[0]]
    one = runs(cell.iloc[0].to_dict(), [0.69])
    assert compare(pd.DataFrame(one), cell, BY, SETTING).verdict.item() == "one run"
    t = compare(pd.DataFrame(one).assign(low=0.57, high=0.80), cell, BY, SETTING)
    assert t.verdict.item() == "agrees" and (t.low.item(), t.high.item()) == pytest.approx((57, 80))
    assert (
        compare(pd.DataFrame(one).assign(low=0.60, high=0.70), cell, BY, SETTING).verdict.item()
        == "differs"
    )
    assert (
        compare(pd.DataFrame(one).assign(low="", high=""), cell, BY, SETTING).verdict.item()
        == "one run"
    )
    assert (
        compare(pd.DataFrame(one).assign(low=0.0, high=0.9), cell, BY, SETTING).verdict.item()
        == "agrees"
    )  # 0 is a bound, not a gap


def test_counts_are_equal_or_differ():
    cell = wang("table2").query('metric == "train_size"').iloc[[0]]

    def verdict(values):
        return compare(
            pd.DataFrame(runs(cell.iloc[0].to_dict(), values)), cell, BY, SETTING
        ).verdict.item()

    assert verdict([1519, 1519]) == "equal" and verdict([1519]) == "equal"
    assert verdict([1519, 1518]) == "differs" and verdict([1520, 1518]) == "differs"


def test_printed_rule_names_the_runs_of_the_paper():
    t = compare(pd.DataFrame(), wang("table2"), BY, SETTING, n_paper=3)
    assert t.attrs["rule"] == verdict_rule(3) and "sqrt(1/n + 1/3)" in t.attrs["rule"]


# --- no cell is lost, no phantom agrees


@pytest.mark.parametrize("artefact", ["table2", "table3", "table4"])
def test_every_printed_cell_is_there_without_records(artefact):
    t = compare(pd.DataFrame(), wang(artefact), BY, SETTING)
    assert (
        len(t) == len(wang(artefact)) == 45
        and (t.verdict == "not run").all()
        and t.reported.tolist() == wang(artefact).value.tolist()
    )
    shown = layout(t, ["arch", "train"])
    assert shown.shape == (9, 7) and shown.iloc[:, 2:].map(lambda c: c.endswith("not run")).all(
        axis=None
    )


@pytest.mark.parametrize("seed", range(8))
def test_random_records_never_lose_a_cell_and_phantoms_never_agree(seed):
    rng = np.random.default_rng(seed)
    printed = wang("table2")
    for data in ("phantom", "Phantom-v2", "my_phantoms", "pad_ufes20", "", None, "fitzpatrick17k"):
        records = random_records(rng, data=data)
        t = compare(records, printed, BY, SETTING)
        cells = list(dict.fromkeys(zip(t.scenario, t.arch, t.train, t.metric)))
        assert cells == list(
            zip(printed.scenario, printed.arch, printed.train, printed.metric)
        )  # all of them, in the paper's order
        ran = t.verdict != "not run"
        assert ran.any() and t.reproduced.notna().eq(ran).all()
        if data == "fitzpatrick17k":
            assert t.verdict.isin(["agrees", "equal"]).any()  # the property is not empty
        else:
            assert (t.verdict[ran] == "not comparable").all() and (t.reason[ran] != "").all()
        if tables.is_phantom(data):
            assert t.reason[ran].str.contains("phantom data").all() and "PHANTOM" in stamp_of(t)


@pytest.mark.parametrize("loose", [lambda record: True, ["fitzpatrick17k", "phantom"], ["phantom"]])
def test_no_setting_talks_a_phantom_into_agreeing(loose):
    t = compare(
        random_records(np.random.default_rng(0), data="phantom"),
        wang("table2"),
        BY,
        dict(data=loose),
    )
    assert set(t.verdict) <= {"not run", "not comparable"}


def test_other_profile_weights_or_test_set_is_not_comparable():
    cell = wang("table2").query('metric == "accuracy"').iloc[[0]]

    def reason(setting=SETTING, **more):
        return compare(
            pd.DataFrame(runs(cell.iloc[0].to_dict(), [0.7, 0.7], **more)), cell, BY, setting
        ).reason.item()

    assert reason() == "" and reason(profile="mini") == "profile mini instead of paper"
    assert reason(SETTING | dict(weights=["a", "b"]), weights="c") == "weights c instead of a or b"
    assert reason(SETTING | dict(weights="a")) == "weights not recorded"
    assert reason(n=40) == "not tested on 56 images as in the paper"


# --- a part of the data is not the data


WHOLE = dict(n_train=1366, n_val=153, n_test=56, n_classes_train=7, n_classes_test=7)


def judged(**more):
    "The row of a cell whose three runs hit the printed number, with what their records say."
    cell = wang("table2").query('metric == "accuracy"').iloc[[0]]
    records = pd.DataFrame(runs(cell.iloc[0].to_dict(), [0.70, 0.7024, 0.7048], **more))
    return compare(records, cell, BY, SETTING, sizes=lambda record: WHOLE).iloc[0]


def test_all_of_the_data_agrees():
    row = judged(**WHOLE, n_classes=7, missing="error")
    assert (row.verdict, row.reason, row.classes) == ("agrees", "", "7 of 7")
    assert (row.n_train, row.n_test) == ("1366", "56")
    assert judged(**{k: f"{v}.0" for k, v in WHOLE.items()}).verdict == "agrees"  # as a csv has it


@pytest.mark.parametrize(
    "more, reason",
    [
        (dict(n_train=810), "training size 810 instead of 1366"),
        (dict(n_train=""), "training size not recorded"),
        (dict(n_train=float("nan")), "training size not recorded"),
        (dict(n_val=90), "validation size 90 instead of 153"),
        (dict(n_test=32), "test size 32 instead of 56"),
        (dict(n_classes_train=4), "classes that train 4 instead of 7"),
        (dict(n_classes_test=4), "classes that are tested 4 instead of 7"),
        (dict(missing="drop"), "missing drop instead of error"),
        (dict(lacking="psoriasis, prurigo nodularis"), "no images of psoriasis, prurigo nodularis"),
    ],
)
def test_a_part_of_the_data_never_agrees(more, reason):
    row = judged(**(WHOLE | more))
    assert row.verdict == "not comparable" and row.reason == reason
    # the same in a table whose paper declares no sizes, as far as the record itself says it
    cell = wang("table2").query('metric == "accuracy"').iloc[[0]]
    records = pd.DataFrame(runs(cell.iloc[0].to_dict(), [0.7024], **(WHOLE | more)))
    alone = compare(records, cell, BY, SETTING).reason.item()
    assert alone == (reason if {"missing", "lacking"} & set(more) else "")


@pytest.mark.parametrize("train, test", [(4, 7), (7, 4), (4, 4)])
def test_the_part_with_fewer_classes_counts(train, test):
    row = judged(**(WHOLE | dict(n_classes_train=train, n_classes_test=test)), n_classes=7)
    assert row.classes == "4 of 7"


def test_one_partial_draw_is_enough():
    cell = wang("table2").query('metric == "accuracy"').iloc[[0]]
    t = pd.DataFrame(runs(cell.iloc[0].to_dict(), [0.70, 0.71, 0.70], **WHOLE))
    t.loc[1, "n_train"] = 1300
    row = compare(t, cell, BY, SETTING, sizes=lambda record: WHOLE).iloc[0]
    assert row.verdict == "not comparable" and row.n_train == "1300-1366"


def test_a_table_with_four_of_seven_classes_says_so_in_its_heading(tmp_path):
    part = judged(**(WHOLE | dict(n_classes_train=4, n_classes_test=4)), n_classes=7)
    whole = judged(**WHOLE, n_classes=7)
    for rows, says in {
        (1, 0): "# Table 2 (with 4 of 7 classes, chance 25 %)\n",
        (1, 1): "# Table 2 (in part with 4 of 7 classes, chance 25 %)\n",
        (0, 1): "# Table 2\n",
    }.items():
        t = pd.DataFrame([part] * rows[0] + [whole] * rows[1])
        md, _, tex = save_table(t, tmp_path / "t", "Table 2", rule="r")
        assert md.read_text(encoding="utf-8").startswith(says)
        levels = ["25 % (4 of 7 classes)"] * rows[0] + ["14.3 % (7 of 7 classes)"] * rows[1]
        assert f"Chance level: {', '.join(levels)}." in md.read_text(encoding="utf-8")
        assert ("4 of 7 classes" in tex.read_text(encoding="utf-8")) == bool(rows[0])


def test_a_small_network_keeps_its_name():
    own = {"vgg16": "VGG-16", "resnet18": "ResNet-18"}
    for network, printed, name in [
        ("vgg16", "VGG-16", "VGG-16"),
        ("vgg_small", "VGG-16", "vgg_small in the place of VGG-16"),
        ("resnet18", "VGG-16", "resnet18 in the place of VGG-16"),
        ("", "VGG-16", "VGG-16"),
        ("efficientnet_lite0", "EfficientNet-Lite0", "EfficientNet-Lite0"),
    ]:
        assert stand_in(network, printed, own) == name


def test_counts_of_trainings_of_two_sizes_stand_side_by_side():
    """The epoch chosen on a validation part: 1366 train; on the test set, as released: all 1519.
    Two trainings of one draw.
    """
    cell = wang("table2").query('metric == "train_size"').iloc[[0]]
    one = cell.iloc[0].to_dict()
    records = [
        r | dict(run_id=f"{n}-{r['seed']}", select_on=rule)
        for n, rules in {1366: ["val"], 1519: ["test", "last"]}.items()
        for rule in rules
        for r in runs(one, [n, n])
    ]
    t = compare(pd.DataFrame(records), cell, BY, SETTING)
    assert t.select_on.tolist() == ["val", "test", "last"]
    assert t.reproduced.tolist() == [1366, 1519, 1519]
    assert t.verdict.tolist() == ["differs", "equal", "equal"]
    shown = layout(t, ["arch", "train"])
    assert shown["train_size (val)"].item() == "1519 → 1366 ≠"


def test_what_does_not_belong_together_is_not_averaged():
    cell = wang("table2").query('metric == "accuracy"').iloc[[0]]
    one = pd.DataFrame(runs(cell.iloc[0].to_dict(), [0.7, 0.71], version="1"))
    for column, other in [("data", "phantom"), ("profile", "mini"), ("version", "2")]:
        mixed = pd.concat([one, one.assign(seed=[2, 3], **{column: other})])
        with pytest.raises(ValueError, match=f"mix {column}"):
            compare(mixed, cell, BY, SETTING)
    with pytest.raises(ValueError, match="share seed 0"):
        compare(pd.concat([one, one]), cell, BY, SETTING)
    with pytest.raises(ValueError, match="fractions"):
        compare(one.assign(value=70.0), cell, BY, SETTING)
    with pytest.raises(ValueError, match="only one of them"):
        compare(one, cell.assign(select_on="val"), BY | dict(select_on="select_on"), SETTING)


def test_records_that_answer_no_cell_are_pointed_out():
    records = pd.DataFrame(runs(wang("table2").iloc[1].to_dict(), [0.7])).assign(arch_paper="VGG16")
    with pytest.warns(UserWarning, match="VGG16"):
        t = compare(records, wang("table2"), BY, SETTING)
    assert (t.verdict == "not run").all()


def test_records_may_come_from_memory_or_from_a_csv(tmp_path):
    records = random_records(np.random.default_rng(1))
    records.to_csv(tmp_path / "r.csv", index=False)
    a, b = (
        compare(r, wang("table2"), BY, SETTING)
        for r in (records, pd.read_csv(tmp_path / "r.csv", keep_default_na=False))
    )
    pd.testing.assert_frame_equal(a, b)


def test_selection_rules_stand_side_by_side_and_counts_once():
    records = pd.DataFrame(
        [
            r | dict(select_on=rule)
            for c in wang("table2").to_dict("records")[:5]
            for r in runs(c, [1519 if c["unit"] == "images" else 0.7] * 2)
            for rule in ("test", "last", "val")
        ]
    )
    shown = layout(compare(records, wang("table2"), BY, SETTING), ["arch", "train"])
    metrics = ["accuracy", "precision", "recall", "f1"]
    assert list(shown) == [
        "arch",
        "train",
        "train_size",
        *(f"{m} ({rule})" for m in metrics for rule in ("val", "test", "last")),
    ]
    assert shown.train_size.tolist()[:2] == ["1519 → 1519 =", "7595 → not run"] and (
        shown != ""
    ).all(axis=None)


# --- the files


def test_same_input_same_bytes(tmp_path):
    records = random_records(np.random.default_rng(2), data="phantom")
    contents = []
    for i in range(3):
        t = compare(records.sample(frac=1, random_state=i), wang("table2"), BY, SETTING)
        files = save_table(
            t, tmp_path / "wang2024" / "table2", "Table 2", shown=layout(t, ["arch", "train"])
        )
        contents.append([f.read_bytes() for f in files])
    assert contents[0] == contents[1] == contents[2]
    assert sorted(f.name for f in (tmp_path / "wang2024").iterdir()) == [
        "table2.csv",
        "table2.md",
        "table2.tex",
    ]
    for text in contents[0]:
        assert b"\r" not in text and text.endswith(b"\n")


def test_default_place_is_the_figures_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_FIGURES", str(tmp_path))
    files = save_table(pd.DataFrame({"a": [1]}), "wang2024/v1.2", "Title", stamp="Data: none")
    assert [f.relative_to(tmp_path).as_posix() for f in files] == [
        "wang2024/v1.2.md",
        "wang2024/v1.2.csv",
        "wang2024/v1.2.tex",
    ]
    monkeypatch.delenv("SKINREPRO_FIGURES")  # then beside the runs, and never where git looks
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "store"))
    md, *_ = save_table(pd.DataFrame({"a": [1]}), "wang2024/table9", "Title", stamp="Data: none")
    assert md == tmp_path / "store" / "figures" / "wang2024" / "table9.md"


def structure(tex):
    "Braces, environments and columns of a LaTeX text; raises AssertionError."
    tex = re.sub(r"(?<!\\)%.*", "", tex)
    depth = 0
    for token in re.findall(r"\\\\|\\.|[{}]", tex):
        depth += (token == "{") - (token == "}")
        assert depth >= 0
    assert depth == 0
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", tex):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    spec, body = re.search(r"\\begin\{tabular\}\{(\w+)\}\n(.*)\\end\{tabular\}", tex, re.S).groups()
    rows = [r for r in body.split("\n") if r.endswith(r"\\")]
    assert rows and all(len(re.findall(r"(?<!\\)&", r)) == len(spec) - 1 for r in rows)
    assert len(re.findall(r"(?<!\\)\$", tex)) % 2 == 0 and not re.search(
        r"(?<!\\)[#_^~](?![^$]*\$)", re.sub(r"\$[^$]*\$", "", body)
    )
    assert not any(r.lstrip().startswith(("[", "*")) for r in rows)
    return rows


NASTY = [
    "50 %",
    "a_b",
    "x & y",
    "{",
    "}",
    "\\",
    "#1",
    "$5",
    "~",
    "^",
    "<tag>",
    "[val]",
    "*",
    "70.24 → 68.10 ± 1.20 (5) ≠ †",
    "a|b",
    "two\nlines",
    "",
]


def test_latex_is_well_formed_for_any_text():
    rng = np.random.default_rng(0)
    for _ in range(100):
        shown = pd.DataFrame(rng.choice(NASTY, (3, 4)), columns=list(rng.choice(NASTY, 4)))
        assert (
            len(
                structure(
                    latex_table(shown, " ".join(rng.choice(NASTY, 3)), "l", rng.choice(NASTY, 2))
                )
            )
            == 4
        )


def test_latex_of_a_whole_table(tmp_path):
    t = compare(
        random_records(np.random.default_rng(3), data="phantom"), wang("table2"), BY, SETTING
    )
    tex = save_table(t, tmp_path / "table2", "Table 2", shown=layout(t, ["arch", "train"]))[
        2
    ].read_text(encoding="utf-8")
    assert len(structure(tex)) == 10 and "PHANTOM DATA" in re.search(r"\\caption\{(.*)\}", tex)[1]


def test_markdown_has_the_same_columns_in_each_line():
    rng = np.random.default_rng(0)
    lines = markdown_table(pd.DataFrame(rng.choice(NASTY, (5, 3)), columns=["a", "b", "c"])).split(
        "\n"
    )
    assert len(lines) == 7 and all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines)


def test_a_table_says_what_it_was_measured_on(tmp_path):
    t = pd.DataFrame({"a": [1.5], "data": ["phantom"]})
    md = save_table(t, tmp_path / "t", "T", licence="CC BY 4.0")[0].read_text(encoding="utf-8")
    assert "**PHANTOM DATA" in md and md.endswith("CC BY 4.0\n")
    with pytest.raises(ValueError, match="phantoms"):
        save_table(t, tmp_path / "t", "T", stamp="Data: patients")
    with pytest.raises(ValueError, match="no column `data`"):
        save_table(t[["a"]], tmp_path / "t", "T")
    with pytest.raises(ValueError, match="rule"):
        save_table(t.assign(verdict="agrees", reason=""), tmp_path / "t", "T")


def test_models_with_random_weights_are_in_no_table(tmp_path):
    """Full-size models with random weights measure speed; `random` alone is a network trained from
    scratch.
    """
    name = "random weights of sd21-base, timing only"
    with pytest.raises(ValueError, match="Column weights says .*timing only"):
        compare(
            random_records(np.random.default_rng(0), data="fitzpatrick17k", weights=name),
            wang("table2"),
            BY,
            SETTING,
        )
    t = pd.DataFrame({"a": [1.0], "data": ["x"], "base": [name]})
    with pytest.raises(ValueError, match="Column base"):
        save_table(t, tmp_path / "t", "T")
    assert not list(tmp_path.iterdir()) and save_table(t.assign(base="random"), tmp_path / "t", "T")


def test_verdicts_that_are_not_about_printed_cells(tmp_path):
    "Claims have verdicts and a rule, but no cells `reported → reproduced` to explain."
    t = pd.DataFrame({"claim": ["x"], "verdict": ["inconclusive"], "data": ["phantom"]})
    with pytest.raises(ValueError, match="needs its rule"):
        save_table(t, tmp_path / "t", "T")
    md = save_table(t, tmp_path / "t", "T", rule="as printed")[0].read_text(encoding="utf-8")
    assert (
        "Verdicts: 1 inconclusive." in md
        and "Rule: as printed" in md
        and "A cell reads" not in md
        and "PHANTOM DATA" in md
    )


def test_layout_refuses_to_hide_a_cell():
    t = compare(pd.DataFrame(), wang("table2"), BY, SETTING)
    with pytest.raises(ValueError, match="do not tell them apart"):
        layout(t, "arch")


# --- faults of the disk


@pytest.fixture
def open_folder():
    "A folder that every user may enter (pytest's own are private to one)."
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_unwritable_folder_is_named_with_the_remedy(open_folder):
    t = pd.DataFrame({"a": [1], "data": ["x"]})
    folder = open_folder / "wang2024"
    folder.mkdir()
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # permissions do not bind root
    try:
        with pytest.raises(PermissionError) as e:
            save_table(t, folder / "table2", "T")
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
    assert (
        str(folder) in str(e.value)
        and "SKINREPRO_FIGURES" in str(e.value)
        and not list(folder.iterdir())
    )


def test_a_fault_during_writing_keeps_the_old_table(tmp_path, monkeypatch):
    t = pd.DataFrame({"a": [1], "data": ["x"]})
    old = [f.read_bytes() for f in save_table(t, tmp_path / "table2", "T")]

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_table(t.assign(a=2), tmp_path / "table2", "T")
    assert [f.read_bytes() for f in sorted(tmp_path.iterdir())] == [
        old[1],
        old[0],
        old[2],
    ]  # csv, md, tex and nothing else
