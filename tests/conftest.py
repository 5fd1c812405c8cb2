"""What all tests share: nothing is written into the repository, nothing comes from the network, one
thread per process.
"""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# What scikit-learn leaves in the environment of whoever imports it. Kernels are copies of a process
# with loaded packages only where the environments are alike; else each starts from nothing.
os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "True")
os.environ.setdefault("KMP_INIT_AT_FORK", "FALSE")


_WARM = ExitStack()  # the kernels of notebooks are copies of a process that has loaded packages


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # one for all processes of the session
        from skinrepro.job import nursery

        os.environ.update(_WARM.enter_context(nursery()))


def pytest_unconfigure(config):
    _WARM.close()


@pytest.fixture(scope="session", autouse=True)
def outside_the_repository(tmp_path_factory):
    "Runs and caches of the tests go to a temporary folder that the session's processes share."
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    os.environ["SKINREPRO_CACHE"] = str(base / "cache")
    os.environ["SKINREPRO_RUNS"] = str(base / "runs")


def toy_notebook(file, parameters, *code):
    "A notebook of few cells: its parameters, tagged (None: it has none), then what it does."
    sources = [*([parameters] if parameters is not None else []), *code]
    cells = [
        dict(
            cell_type="code",
            id=f"c{i}",
            metadata=dict(tags=["parameters"]) if i == 0 and parameters is not None else {},
            source=[source],
            outputs=[],
            execution_count=None,
        )
        for i, source in enumerate(sources)
    ]
    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    file.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))


def experiments(folder) -> list:
    "Notebooks of a paper that are run with parameters: none that exports, reports or is the index."
    kept = (f for f in sorted(folder.glob("*.ipynb")) if f.stem not in ("index", "report"))
    return [f for f in kept if "default_exp" not in f.read_text(encoding="utf-8")]


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """Notebook -> folder with what it left when it was executed as it stands, once for all who ask:
    out.ipynb, figures, runs, elsewhere (where it worked), changed.json (files of the repository).
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def once(notebook) -> Path:
        from filelock import FileLock

        from skinrepro.runs import execute_notebook

        at = base / "executed" / notebook.relative_to(ROOT / "nbs").with_suffix("")
        (at / "elsewhere").mkdir(parents=True, exist_ok=True)
        with FileLock(at / ".lock"), pytest.MonkeyPatch.context() as patch:
            if not (at / "changed.json").is_file():
                for name in ("FIGURES", "RUNS"):
                    patch.setenv(f"SKINREPRO_{name}", str(at / name.lower()))
                before = _repository()
                where = dict(cwd=at / "elsewhere", execution_timeout=180)
                execute_notebook(notebook, at / "out.ipynb", **where)
                after = _repository()
                changed = [f for f in before | after if before.get(f) != after.get(f)]
                (at / "changed.json").write_text(json.dumps(changed))
        return at

    return once


def _repository() -> dict:  # file that no notebook may change -> when it was changed
    kept = [*ROOT.glob("skinrepro/*.py"), *ROOT.glob("figures/*/*")]
    return {str(f): f.stat().st_mtime_ns for f in kept}


def committed_runs(paper, notebook) -> set:
    """Ids of committed runs that the grid asks for today. None are where a notebook has got another
    parameter since: what was drawn from them is of another version, until they are made again.
    """
    from skinrepro.grid import read_grid
    from skinrepro.records import read_record

    folder = ROOT / "nbs" / "papers" / paper
    r = read_record(ROOT / "figures" / paper / "records.csv")
    r = r[r.notebook == notebook]
    wanted = [run for run in read_grid(folder, "mini") if run.notebook.stem == notebook]
    return set(r.run_id) & {run.id for run in wanted}


@pytest.fixture
def root() -> Path:
    return ROOT


ONE_PROCESS = {
    "test_cascade",
    "test_fairskin2024_report",
    "test_first",
    "test_ktena2023",
    "test_paper_reports",
    "test_publish",
    "test_records",
    "test_rehearse",
    "test_wang2024_generator",
    "test_wang2024_report",
    "test_warm",
    "test_workflow_generator",
}  # their tests share what takes long to make (each process would make its own), or go on from
# each other; none of them takes longer than two minutes
LONG = (
    *sorted(ONE_PROCESS),
    "test_wang2024",
    "test_fairskin2024",
    "test_workflow",
    "test_runs",
    "test_made_up_paper",
    "test_slurm",
    "test_notebooks",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if Path(file).stem in ONE_PROCESS else nodeid

    return Scheduler(config, log)


def pytest_collection_modifyitems(items):
    "Long tests go first, so that short ones fill up the end."
    items.sort(key=lambda i: LONG.index(i.path.stem) if i.path.stem in LONG else len(LONG))
