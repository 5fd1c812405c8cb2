"""Kernels that are copied from a process which has loaded the packages: they must be kernels like
any other, and where they cannot be had a kernel starts as usual.
"""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat.v4 as v4
import pytest

from skinrepro import job, runs
from skinrepro.core import THREADS, WARM


@pytest.fixture(scope="module")
def warm():
    "Variables of a nursery of this file's own, started as a plain process would start it."
    before = os.environ.pop(WARM, None)
    with job.nursery() as variables:
        if before is not None:  # for whatever else starts kernels meanwhile
            os.environ[WARM] = before
        assert list(variables) == [WARM]
        yield variables


def told(tmp_path, *code, **variables):
    "What a notebook with these cells prints, in a kernel with these variables; '' ones are unset."
    cells = [v4.new_code_cell(c) for c in code]
    kernel = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    (tmp_path / "a.ipynb").write_text(json.dumps(v4.new_notebook(cells=cells, metadata=kernel)))
    with pytest.MonkeyPatch.context() as m:
        for name, value in variables.items():
            m.setenv(name, value) if value else m.delenv(name, raising=False)
        done = runs.execute_notebook(tmp_path / "a.ipynb", tmp_path / "out.ipynb", cwd=tmp_path)
    return done.cells


def printed(cells) -> list:
    return ["".join(o.get("text", "") for o in c.outputs).strip() for c in cells]


TWO = dict.fromkeys(THREADS, "2")
LOADED = "import sys; print('torch' in sys.modules)"  # before anything asks for it


def test_a_copy_has_its_own_place_environment_and_threads(tmp_path, warm):
    asks = (
        "import os; print(os.getcwd()); print(os.environ['HERE'], 'THERE' in os.environ)",
        "import torch; print(torch.get_num_threads())",
        "import skinrepro.core as c; print(c.__file__ == ORIGIN)".replace(
            "ORIGIN", repr(runs.__file__.replace("runs.py", "core.py"))
        ),
    )
    first = printed(told(tmp_path, LOADED, *asks, HERE="1", THERE="", **TWO, **warm))
    assert first == ["True", f"{tmp_path}\n1 False", "2", "True"]
    second = printed(told(tmp_path, *asks[:2], HERE="2", **warm))
    assert second == [f"{tmp_path}\n2 False", "1"]


def test_kernels_of_these_tests_are_copies(tmp_path):
    "Whatever a test has imported before; else each of some hundred starts from nothing."
    import sklearn.metrics  # noqa: F401  (it writes into the environment)

    assert os.environ.get(WARM) and printed(told(tmp_path, LOADED)) == ["True"]


def test_it_computes_what_a_kernel_computes_that_starts_as_usual(tmp_path, warm):
    code = (
        "import numpy as np, torch; torch.manual_seed(3)",
        "a = torch.randn(400, 400); print((a @ a).double().sum().item())",
        "c = torch.nn.Conv2d(3, 8, 3); y = c(torch.randn(2, 3, 32, 32)).square().mean()",
        "y.backward()",
        "print(y.item(), c.weight.grad.double().sum().item(), np.random.default_rng(1).normal())",
    )
    for threads in ("1", "2"):
        own = dict.fromkeys(THREADS, threads)  # as a run sets them
        one = printed(told(tmp_path, LOADED, *code, **own, **warm))
        other = printed(told(tmp_path, LOADED, *code, **own, **{WARM: ""}))
        assert (one[0], other[0]) == ("True", "False") and one[1:] == other[1:] and one[2]


def test_pictures_are_shown(tmp_path, warm):
    before = os.environ.pop("MPLBACKEND", None)
    try:
        with job.nursery() as own:
            shown = told(tmp_path, "import matplotlib.pyplot as plt; plt.plot([1, 2]);", **own)
    finally:
        if before is not None:
            os.environ["MPLBACKEND"] = before
    assert [list(o["data"]) for o in shown[0].outputs] == [["text/plain", "image/png"]] or any(
        "image/png" in o.get("data", {}) for o in shown[0].outputs
    )


@pytest.mark.parametrize(
    "variables",
    [
        dict(PYTHONPATH="elsewhere"),
        dict(HF_HOME="elsewhere"),
        dict(MKL_NUM_THREADS="2"),
        {WARM: "/no/such/socket"},
    ],
    ids=["modules from elsewhere", "another cache", "two numbers of threads", "nobody there"],
)
def test_another_environment_gets_a_kernel_as_usual(tmp_path, warm, variables):
    assert printed(told(tmp_path, LOADED, **warm | variables)) == ["False"]


def test_a_copy_that_is_killed_is_told_like_any_other(tmp_path, warm):
    from nbclient.exceptions import DeadKernelError

    begin = time.monotonic()
    with pytest.raises(DeadKernelError):
        told(tmp_path, "import os; os.kill(os.getpid(), 9)", **warm)
    assert time.monotonic() - begin < 60
    assert printed(told(tmp_path, LOADED, **warm)) == ["True"]  # the next is not concerned


def test_it_ends_with_whoever_has_asked(tmp_path, warm):
    asks = """
import json, sys
from skinrepro import runs
runs.execute_notebook(sys.argv[1], sys.argv[2])
"""
    marked = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    cells = [v4.new_code_cell(marked + "; time.sleep(600)")]
    (tmp_path / "a.ipynb").write_text(json.dumps(v4.new_notebook(cells=cells)))
    command = [sys.executable, "-c", asks, tmp_path / "a.ipynb", tmp_path / "out.ipynb"]
    asker = subprocess.Popen(command, env=os.environ | warm)
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert asker.poll() is None
        time.sleep(0.1)
    kernel = int((tmp_path / "pid").read_text())
    os.kill(kernel, 0)  # it lives
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    for _ in range(300):
        try:
            os.kill(kernel, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the kernel goes on")


def test_kernels_end_with_the_nursery(tmp_path):
    before = os.environ.pop(WARM, None)
    try:
        with job.nursery() as own:
            line = "import os; print(os.getpid(), os.getppid())"
            kernel, mother = map(int, printed(told(tmp_path, line, **own))[0].split())
            assert mother != os.getpid() and kernel != mother
        with pytest.raises(ProcessLookupError):
            os.kill(mother, 0)
    finally:
        if before is not None:
            os.environ[WARM] = before
    assert printed(told(tmp_path, LOADED, **own)) == ["False"]  # and a kernel starts as usual


def test_whoever_wants_none_gets_none(monkeypatch):
    monkeypatch.setenv(WARM, "")
    with job.nursery() as variables:
        assert variables == {}


@pytest.mark.parametrize("devices, kept", [("", True), ("0", False), (None, False)])
def test_a_run_on_a_gpu_has_a_process_of_its_own(monkeypatch, devices, kept):
    monkeypatch.setenv(WARM, "somewhere")
    with job._environment(devices, 1):
        assert (WARM in os.environ) is kept
    assert os.environ[WARM] == "somewhere"


def test_a_forecast_counts_imports_only_where_they_are_made(monkeypatch):
    """A forked kernel imports nothing again, so none is forecast for it; a kernel that
    starts from nothing, and every one of a GPU, has its own.
    """
    import torch

    from skinrepro.estimate import start_rate

    made = []
    monkeypatch.setattr("skinrepro.estimate.subprocess.run", lambda *a, **k: made.append(a))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv(WARM, raising=False)
    start_rate("json")
    assert not made
    monkeypatch.setenv(WARM, "")
    start_rate("json")
    monkeypatch.delenv(WARM)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    start_rate("json")
    assert len(made) == 2
