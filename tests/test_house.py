"The house: pins in one place, two commands, nothing that belongs to one machine."

import re
import subprocess
import tomllib

import pytest
from conftest import ROOT


def pins(lines):
    return {re.split(r"[=<>]", line)[0].lower(): line for line in lines}


def test_environment_yml_has_the_same_pins():
    direct = [
        line.strip()
        for line in (ROOT / "requirements.in").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    conda = [
        line.strip().removeprefix("- ").strip('"')
        for line in (ROOT / "environment.yml").read_text().split("- pip:")[1].splitlines()
        if line.strip()
    ]
    assert [c for c in conda if c != "-e ."] == direct


def test_lock_holds_every_pin():
    locked = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if m := re.match(r"([\w.-]+)==([^ ;]+)", line):
            locked.setdefault(m[1].lower(), set()).add(m[2])
    for name, pin in pins(
        line.strip()
        for line in (ROOT / "requirements.in").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ).items():
        assert name in locked, f"{name} is not in requirements.lock: run `make lock`"
        if "==" in pin:
            assert locked[name] == {pin.split("==")[1]}


def test_settings_and_pyproject_agree():
    import configparser

    s = configparser.ConfigParser()
    s.read(ROOT / "settings.ini")
    s = s["DEFAULT"]
    p = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert s["lib_name"] == p["name"] and p["requires-python"] == f">={s['min_python']}"
    assert s["allowed_cell_metadata_keys"] == "tags", (
        "without this nbdev_clean deletes the tag that papermill needs"
    )
    import skinrepro

    assert (
        skinrepro.__version__ == s["version"]
        and f"version: {s['version']}" in (ROOT / "CITATION.cff").read_text()
    )
    assert f"## {s['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_names_the_two_commands_and_files_that_exist():
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme
    links = [line for line in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in line]
    assert links and not [line for line in links if not (ROOT / line).exists()]


def test_make_help_lists_the_targets():
    out = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("demo", "test", "lab", "export", "check", "clean"):
        assert re.search(rf"^{target}\s+\w", out, re.M), target


def tracked():
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / f for f in out.stdout.splitlines() if (ROOT / f).is_file()]


def test_nothing_belongs_to_one_machine():
    """No absolute paths of a person's or a build machine, no addresses of package registries, no
    pickles, no uv.lock.
    """
    bad = re.compile(
        "|".join(
            [
                r"(?<![\w.:/])/(home|Users|root|work|mnt|scratch)/",
                "py" + r"pi\.org",
                "python" + "hosted",
                "npm" + r"js\.(org|com)",
                r"allow_pickle\s*=\s*True",
            ]
        )
    )
    for f in tracked():
        assert f.name != "uv.lock" and f.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".ckpt")
        if (
            f.suffix in (".png", ".jpg", ".npy", ".safetensors", ".parquet")
            or f == ROOT / "tests" / "test_house.py"
        ):
            continue
        found = [line for line in f.read_text(encoding="utf-8").splitlines() if bad.search(line)]
        assert not found, f"{f.relative_to(ROOT)}: {found[0][:120]}"


def test_no_large_files():
    base = (
        ROOT / "skinrepro" / "miniature_base"
    )  # the embedded base model: half precision, less than 12 MB in all
    large = [f for f in tracked() if f.stat().st_size > 3_000_000 and base not in f.parents]
    behind = ("records.csv", "predictions.parquet")  # each number of hundreds of runs, each image
    numbers = [f for f in large if f.name in behind and f.parent.parent == ROOT / "figures"]
    assert large == numbers and all(f.stat().st_size < 8_000_000 for f in numbers)
    assert sum(f.stat().st_size for f in base.rglob("*") if f.is_file()) < 12e6


def test_style():
    import sys

    out = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stdout[-3000:]
