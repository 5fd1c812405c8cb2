"""What does a run cost besides its work? `skinrepro run` against papermill called once for each run
in a shell loop, the same notebooks, a fresh kernel each.

python benchmarks/runs.py               # 100 small runs on 2 cores; writes
benchmarks/results/runs.csv (6 minutes) python benchmarks/runs.py --runs 12     # quicker

The notebook imports pandas, computes next to nothing, and writes a record. Both sides run it with
one thread. Memory is the largest sum of the proportional memory (PSS) of all processes of a side,
sampled four times a second; threads the largest number of running threads at a sample.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import psutil

CODE = (
    "import pandas as pd\npd.DataFrame(dict(run_id=['toy'], value=[float(sum(i*i for i in"
    " range(seed, 1000)))])).to_csv('records.csv', index=False)"
)


def notebook(file):
    def cell(i, source, tags):
        return dict(
            cell_type="code",
            id=f"c{i}",
            metadata=dict(tags=tags),
            source=[source],
            outputs=[],
            execution_count=None,
        )

    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    file.write_text(
        json.dumps(
            dict(
                cells=[cell(0, "seed = 0", ["parameters"]), cell(1, CODE, [])],
                metadata=kernel,
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )


def measured(command, env):
    "Seconds, peak memory (MB), most threads that were running at a time."
    peak, busy, stop = [0.0], [0], threading.Event()
    child = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )

    def watch():
        while not stop.wait(0.25):
            try:
                family = [
                    psutil.Process(child.pid),
                    *psutil.Process(child.pid).children(recursive=True),
                ]
            except psutil.NoSuchProcess:
                return
            memory = running = 0
            for p in family:
                try:
                    memory += p.memory_full_info().pss
                    running += sum(_state(p.pid, t.id) == "R" for t in p.threads())
                except (psutil.Error, OSError):
                    continue
            peak[0] = max(peak[0], memory / 2**20)
            busy[0] = max(busy[0], running)

    begin = time.perf_counter()
    watcher = threading.Thread(target=watch)
    watcher.start()
    _, said = child.communicate()
    seconds = time.perf_counter() - begin
    stop.set()
    watcher.join()
    if child.returncode:
        raise SystemExit(f"{command[:3]} failed:\n{said[-2000:]}")
    return seconds, peak[0], busy[0]


def _state(pid, thread):
    return Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--runs", type=int, default=100)
    p.add_argument("--cores", type=int, default=2)
    p.add_argument("--repeats", type=int, default=1)
    a = p.parse_args()
    rows = []
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    for n in dict.fromkeys((1, a.runs)):
        for _ in range(a.repeats):
            with tempfile.TemporaryDirectory() as d:
                folder = Path(d) / "toy2030"
                folder.mkdir()
                notebook(folder / "toy.ipynb")
                (folder / "grid.toml").write_text(f"[toy]\nseed = {list(range(n))}\n")
                papermill = (
                    f"{shlex.quote(sys.executable)} -m papermill"
                    f" {shlex.quote(str(folder))}/toy.ipynb"
                )
                loop = (
                    f"set -e; for i in $(seq 0 {n - 1}); do mkdir -p {d}/loop/$i; {papermill}"
                    f" {d}/loop/$i/out.ipynb -p seed $i --cwd {d}/loop/$i -k python3"
                    " --no-progress-bar; done"
                )
                ours = (
                    "import sys\nfrom pathlib import Path\nfrom skinrepro.grid import"
                    " read_grid\nfrom skinrepro.workflow import execute\ndone ="
                    f" execute(read_grid(Path({str(folder)!r})), cores={a.cores},"
                    ' progress=False)\nsys.exit(any(o.status != "ran" for o in done))'
                )
                env = {**os.environ, **threads, "SKINREPRO_RUNS": f"{d}/runs"}
                for side, command in (
                    ("papermill in a shell loop", ["bash", "-c", loop]),
                    ("skinrepro run", [sys.executable, "-c", ours]),
                ):
                    seconds, memory, busy = measured(command, env)
                    rows.append(
                        dict(
                            runs=n,
                            cores=a.cores,
                            side=side,
                            seconds=round(seconds, 2),
                            seconds_per_run=round(seconds / n, 3),
                            peak_mb=round(memory),
                            most_running_threads=busy,
                        )
                    )
                    print(rows[-1], flush=True)
                assert (
                    len(list(Path(d).glob("loop/*/records.csv")))
                    == len(list(Path(d).glob("runs/toy2030/*/records.csv")))
                    == n
                )
    t = pd.DataFrame(rows)
    t["ratio"] = (t.groupby("runs").seconds.transform("first") / t.seconds).round(2)
    print(t.to_string(index=False))
    out = Path(__file__).parent / "results" / "runs.csv"
    t.to_csv(out, index=False)


if __name__ == "__main__":
    main()
