"""What a parameter may be is declared once, in a parameters.toml, and refused before anything
starts; what is typed after --set arrives as it was meant.
"""

import json

import pytest
from conftest import ROOT, experiments
from typer.testing import CliRunner

from skinrepro import runs
from skinrepro.cli import app
from skinrepro.grid import Typed, read_grid
from skinrepro.runs import ParameterError, declared, execute_notebook, ranges

PAPERS = ROOT / "nbs" / "papers"
WANG, LOPEZ = PAPERS / "wang2024", PAPERS / "lopezperez2025"
FAIR = PAPERS / "fairskin2024"


@pytest.mark.parametrize("command", [["run", "--dry-run"], ["run"], ["todo", "--no-measure"]])
@pytest.mark.parametrize(
    "paper, wrong, says",
    [
        ("wang2024", "scenario=iv", "'iii'"),
        ("wang2024", "epochs=0", "from 1"),
        ("wang2024", "seed=-1", "from 0"),
        ("wang2024", "arch=vgg99", "'vgg16'"),
        ("wang2024", "fraction=1.5", "to 1.0"),
        ("wang2024", "methods=vanilla,magic", "'lora'"),
        ("wang2024", "strengths=0.3,1.5", "to 1.0"),
        ("lopezperez2025", "training_set=D101", "A|B|C|D"),
        ("lopezperez2025", "multipliers=1,x", "whole number from 1"),
        ("lopezperez2025", "repetition=0,-1", "from 0"),
        ("fairskin2024", "steps_as=real", "'added'"),
        ("fairskin2024", "ratio=-1", "from 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    tmp_path, monkeypatch, command, paper, wrong, says
):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    section = "strength" if wrong[:2] in ("me", "st") else "scenario"
    narrowed = ["--section", section] if paper == "wang2024" else []
    if "training_set" in wrong:  # the grid's own sections say which sets there are
        with pytest.raises(ParameterError, match="training_set = 'D101'"):
            runs.check_ranges(dict(training_set="D101"), ranges(LOPEZ))
        return
    told = CliRunner().invoke(app, [command[0], paper, *command[1:], *narrowed, "--set", wrong])
    assert told.exit_code == 1, told.output
    assert wrong.split("=")[0] in told.stderr and says in told.stderr
    assert not (tmp_path / "runs").exists()


def test_who_executes_a_notebook_is_told_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    from papermill import PapermillExecutionError

    with pytest.raises(PapermillExecutionError, match="epochs = 0 must be a whole number from 1"):
        execute_notebook(WANG / "scenario.ipynb", tmp_path / "out.ipynb", dict(epochs=0))


@pytest.mark.parametrize("paper", [WANG, LOPEZ, FAIR], ids=lambda p: p.name)
def test_every_parameter_but_ids_and_switches_is_declared(paper):
    books = experiments(paper)
    have = {k: v for f in books for k, v in declared(f).items()}
    free = {"images", "learned", "feature_weights", "tuned", "judge"} | {
        k for k, v in have.items() if v is True
    }
    free |= {k for k, v in have.items() if v is False}
    assert set(ranges(paper)) == set(have) - free
    for f in books:  # the smoke values are allowed, too
        runs.check_ranges(declared(f), ranges(paper))


def test_the_lists_are_what_the_code_has():
    from skinrepro.balance import DRAWS
    from skinrepro.features import NETWORKS
    from skinrepro.fitzpatrick17k import SKIN_TYPE_SOURCES
    from skinrepro.latent import BASES
    from skinrepro.networks import ARCHITECTURES
    from skinrepro.papers import fairskin2024, lopezperez2025, wang2024
    from skinrepro.splits import TRAIN_TYPES
    from skinrepro.vae import REDUCTIONS, SCHEDULES

    have = dict(
        data=wang2024.STUDIES,
        scenario=wang2024.SCENARIOS,
        train=TRAIN_TYPES,
        recipe=wang2024.RECIPES,
        base=BASES,
        method=wang2024.METHODS,
        ti_data=wang2024.TI_DATA,
        lora_per=wang2024.LORA_PER,
        pipeline=wang2024.PIPELINES,
        target=wang2024.TARGETS,
        flexible=["", *wang2024.READINGS],
        label_source=SKIN_TYPE_SOURCES,
    )
    wang = ranges(WANG)
    assert {k: set(wang[k]) for k in have} == {k: set(v) for k, v in have.items()}
    assert wang["methods"] == {"each": wang["method"]}
    assert set(wang["arch"]) <= set(ARCHITECTURES)
    have = dict(
        data=lopezperez2025.STUDIES,
        features=lopezperez2025.FEATURES,
        reading=lopezperez2025.READINGS,
        reduction=REDUCTIONS,
        schedule=SCHEDULES,
    )
    lopez = ranges(LOPEZ)
    assert {k: set(lopez[k]) for k in have} == {k: set(v) for k, v in have.items()}
    have = dict(
        data=fairskin2024.STUDIES,
        label_source=SKIN_TYPE_SOURCES,
        arm=["", fairskin2024.BASE, *fairskin2024.ARMS],
        base=BASES,
        words=fairskin2024.WORDS,
        term=fairskin2024.TERMS,
        others=DRAWS,
        drop=fairskin2024.DROPS,
        use=fairskin2024.USES,
        cells=fairskin2024.CELLS,
        accept=fairskin2024.ACCEPT,
        few=fairskin2024.TOO_FEW,
        steps_as=fairskin2024.STEPS_AS,
        joins=fairskin2024.JOINS,
        sampler=fairskin2024.SAMPLERS,
        reweight=fairskin2024.REWEIGHT,
        recipe=fairskin2024.RECIPES,
        features=NETWORKS,
        copies_features=NETWORKS,
    )
    fair = ranges(FAIR)
    assert {k: set(fair[k]) for k in have} == {k: set(v) for k, v in have.items()}
    assert set(fair["arch"]) <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    "text", ["epochs = 1", "epochs = {least = 1}", "epochs = {}", 'x = {each = "a"}', "x = ["]
)
def test_a_declaration_that_nobody_understands_is_named(tmp_path, text):
    (tmp_path / "parameters.toml").write_text(text)
    with pytest.raises(ParameterError, match="parameters.toml"):
        ranges(tmp_path)


def values(section, **typed):
    "Values of a parameter over the runs of a section, of one draw."
    (name,) = typed
    asked = dict(seed=0) | {k: Typed(v) for k, v in typed.items()}
    grid = read_grid(WANG, "mini", section, **asked)
    return [r.parameters[name] for r in grid if r.section == section]


@pytest.mark.parametrize(
    "section, name, typed, expected",
    [
        ("strength", "methods", "vanilla,ti", ["vanilla,ti"]),
        ("strength", "methods", '"vanilla,ti"', ["vanilla,ti"]),
        ("strength", "methods", '["vanilla,ti", "vanilla"]', ["vanilla,ti", "vanilla"]),
        ("strength", "strengths", "0.5", ["0.5"]),
        ("strength", "strengths", "0.3,0.6", ["0.3,0.6"]),
        ("weights", "scenario", "i,ii", ["i", "ii"]),
        ("weights", "scenario", "i, ii", ["i", "ii"]),
        ("weights", "seed", "3,4", [3, 4] * 3),
        ("weights", "ti_lr", "1", [1.0] * 3),
    ],
)
def test_what_is_typed_arrives_as_it_was_meant(section, name, typed, expected):
    assert values(section, **{name: typed}) == expected


def test_commas_of_a_text_that_nobody_declared(tmp_path):
    "The default or the grid shows that a parameter has them."
    cell = dict(
        cell_type="code", id="a", metadata=dict(tags=["parameters"]), outputs=[], source=["w = ''"]
    )
    book = dict(cells=[cell | dict(execution_count=None)], metadata={}, nbformat=4)
    (tmp_path / "a.ipynb").write_text(json.dumps(book | dict(nbformat_minor=5)))
    for grid, expected in {"w = '1,2'": ["3,4"], "w = '1'": ["3", "4"]}.items():
        (tmp_path / "grid.toml").write_text(f"[a]\n{grid}\n")
        assert [r.parameters["w"] for r in read_grid(tmp_path, w=Typed("3,4"))] == expected
