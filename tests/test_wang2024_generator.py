"""What a generator of wang2024 leaves behind, who may use it, and what is shared: one small run,
looked at from all sides.
"""

import os

import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import runs
from skinrepro.grid import read_grid
from skinrepro.papers.wang2024 import read_weights
from skinrepro.records import read_record
from skinrepro.workflow import execute

WANG = ROOT / "nbs" / "papers" / "wang2024"


def of(grid, section):
    return [r for r in grid if r.section == section]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "A generator's run and two classifiers trained on its images, profile smoke."
    before = os.environ.get("SKINREPRO_RUNS")
    os.environ["SKINREPRO_RUNS"] = str(tmp_path_factory.mktemp("generator"))
    grid = read_grid(WANG, "smoke", "synthetic", scenario="ii", epochs=1, lora_steps=2)
    outcomes = execute(grid, progress=False)
    assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]
    yield grid
    if before is None:
        os.environ.pop("SKINREPRO_RUNS")
    else:
        os.environ["SKINREPRO_RUNS"] = before


def test_a_generator_leaves_images_that_say_what_they_are(store):
    from skinrepro.generate import read_provenance
    from skinrepro.manifest import read

    (run,) = of(store, "generator")
    m = read(run.folder / "manifest.parquet")
    r = read_record(run.folder / "records.csv")
    assert (
        len(m) == 14
        and (m.source == "synthetic").all()
        and set(m.group) == {"dark"}
        and m.parent_id.notna().all()
    )
    for row in m.itertuples():
        says = read_provenance(row.path)
        assert (
            says["what"].startswith("synthetic")
            and says["parent_id"] == row.parent_id
            and "-class on the skin of a" in says["prompt"]
        )
    values = r[r.group == "all"].set_index("metric").value
    assert values["n_images"] == 14 and -90 < values["ita"] < 90 and values["images_per_second"] > 0
    assert (
        r.weights.str.startswith("miniature").all()
        and r.weights_hash.str.len().eq(64).all()
        and (r.tokens != "").all()
    )


def test_what_was_learned_is_a_run_that_others_name(store):
    (run,) = of(store, "weights")
    r = read_record(run.folder / "records.csv")
    values = r.set_index(["metric", "group"]).value
    assert {("loss", "ti first"), ("loss", "lora last"), ("seconds_lora", "all")} <= set(
        values.index
    )
    tokens, loras = read_weights(run.id, "ti+lora", run.parameters)
    assert (
        len(list(tokens.glob("*.safetensors"))) == 7
        and (loras["psoriasis"] / "pytorch_lora_weights.safetensors").is_file()
    )
    assert not list(tokens.parent.rglob("checkpoint-*")), (
        "checkpoints go when the weights are there"
    )
    for change, words in [
        (dict(seed=42), "seed = 0 there, 42 here"),
        (dict(base="sd21-base"), "base"),
        (dict(val_fraction=0.0), "val_fraction"),
    ]:
        with pytest.raises(runs.ParameterError, match=words):
            read_weights(run.id, "ti+lora", run.parameters | change)
    with pytest.raises(runs.ParameterError, match="ti.lora"):
        read_weights(run.id, "lora", run.parameters)
    with pytest.raises(runs.ParameterError, match="--section weights"):
        read_weights("", "ti", run.parameters)
    with pytest.raises(runs.ParameterError, match="not of weights"):
        read_weights(of(store, "generator")[0].id, "ti", run.parameters)
    assert read_weights("", "vanilla", run.parameters) == (None, None)


def test_classifiers_on_synthetic_images_leave_the_other_parts_real(store):
    made = {
        i: len(pd.read_parquet(r.folder / "manifest.parquet"))
        for r in of(store, "generator")
        for i in [r.id]
    }
    for run in of(store, "synthetic"):
        r = read_record(run.folder / "records.csv")
        p = pd.read_parquet(run.folder / "predictions.parquet")
        n = made[run.parameters["images"]]
        size = r[r.metric == "train_size"].value.iloc[0]
        assert (
            set(r.n_synthetic) == {n}
            and set(r.generator_method) == {"ti+lora"}
            and r.generator_weights_hash.str.len().eq(64).all()
        )
        assert size == n if run.parameters["train"] == "syn" else size > n
        assert not p.image_id.str.contains("-syn").any() and set(p.split) == {"test"}


def test_images_of_another_draw_are_refused(store, tmp_path):
    (maker,) = of(store, "generator")
    user = of(store, "synthetic")[0]
    other = runs.Run("wang2024", "", user.notebook, user.parameters | dict(seed=42))
    wrong = runs.Run("wang2024", "", user.notebook, user.parameters | dict(images=user.id))
    of_other, of_wrong = execute([other, wrong], progress=False)
    assert of_other.status == of_wrong.status == "failed"
    assert maker.id in of_other.error and "seed = 0 there, 42 here" in of_other.error
    assert "not of generator" in of_wrong.error


def test_methods_share_what_they_learn_and_a_broken_run_goes_on(store):
    """A method that shares words does not train them again. Then the record and half of the images
    are lost, one is cut short: the same images again.
    """
    (first,) = of(store, "generator")
    (learned,) = of(store, "weights")
    weights = first.folder.parent / "weights"
    before = sorted(f.name for f in weights.iterdir() if f.is_dir())
    words = runs.Run("wang2024", "", learned.notebook, learned.parameters | dict(method="ti"))
    alone = runs.Run(
        "wang2024",
        "",
        first.notebook,
        first.parameters | dict(pipeline="txt2img", method="ti", learned=words.id, parents=3.0),
        needs=(words.id,),
    )
    outcomes = execute([words, alone], progress=False)
    assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]
    assert sorted(f.name for f in weights.iterdir() if f.is_dir()) == before
    from skinrepro.images import load_image

    files = sorted((first.folder / "images").iterdir())
    pixels = {f: load_image(f).astype(int) for f in files}
    whole = files[1].read_bytes()
    (first.folder / "records.csv").unlink()
    for f in files[::2]:
        f.unlink()
    files[1].write_bytes(whole[: len(whole) // 2])
    kept = {f: f.stat().st_mtime_ns for f in files[3::2]}
    (outcome,) = execute([first], progress=False)
    assert outcome.status == "ran", outcome.error
    assert {f: f.stat().st_mtime_ns for f in kept} == kept, "whole images are not made again"
    assert (
        max(abs(load_image(f) - pixels[f]).max() for f in files) <= 1
    )  # the size of the batch moves the last bit
    assert sorted(f.name for f in weights.iterdir() if f.is_dir()) == before
