"""What does a run cost besides its work? `skinrepro run` against papermill called by xargs, as
many processes at a time (`xargs -P`), the same notebooks, a fresh kernel each.

python benchmarks/runs.py                # 40 small runs on 2 cores; writes results/runs.csv
python benchmarks/runs.py --runs 12      # quicker
python benchmarks/runs.py --repeats 3    # both sides in turns, the order changes: on a busy machine

The notebook imports pandas, computes next to nothing, and writes a record. Both sides run it with
one thread. Memory is the largest sum of the proportional memory (PSS) of all processes of a side,
sampled four times a second; threads the largest number of running threads at a sample. `load` is
the load average of the machine when a side started; where it is above the cores, others were at
work, and the seconds of processors tell more than those of the clock.
"""

import argparse
import json
import os
import resource
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
    "Seconds, those of processors, peak memory (MB), most threads that were running at a time."
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

    begin, before = time.perf_counter(), _processor()
    watcher = threading.Thread(target=watch)
    watcher.start()
    _, said = child.communicate()
    seconds = time.perf_counter() - begin
    stop.set()
    watcher.join()
    if child.returncode:
        raise SystemExit(f"{command[:3]} failed:\n{said[-2000:]}")
    return seconds, _processor() - before, peak[0], busy[0]


def _processor():  # seconds of all children that have ended, and of theirs
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _state(pid, thread):
    return Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


def sides(folder, base, n, cores):
    "Name -> command: the same notebook n times, with a seed each."
    ours = (
        "import sys\nfrom pathlib import Path\nfrom skinrepro.grid import read_grid\nfrom"
        f" skinrepro.workflow import execute\ndone = execute(read_grid(Path({str(folder)!r})),"
        f' cores={cores}, progress=False)\nsys.exit(any(o.status != "ran" for o in done))'
    )
    papermill = (
        f"mkdir -p {base}/loop/{{}} && {shlex.quote(sys.executable)} -m papermill"
        f" {folder}/toy.ipynb {base}/loop/{{}}/out.ipynb -p seed {{}} --cwd {base}/loop/{{}}"
        " -k python3 --no-progress-bar"
    )
    each = f"seq 0 {n - 1} | xargs -P {cores} -I{{}} sh -c {shlex.quote(papermill)}"
    return {
        f"papermill, xargs -P {cores}": ["bash", "-c", f"set -o pipefail; {each}"],
        "skinrepro run": [sys.executable, "-c", ours],
    }


def compared(n, cores, turn):
    "Rows of one turn: both sides, each in the same empty folder."
    rows = []
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d) / "toy2030"
        folder.mkdir()
        notebook(folder / "toy.ipynb")
        (folder / "grid.toml").write_text(f"[toy]\nseed = {list(range(n))}\n")
        env = {**os.environ, **threads, "SKINREPRO_RUNS": f"{d}/runs"}
        both = list(sides(folder, d, n, cores).items())
        for side, command in both[:: -1 if turn % 2 else 1]:
            load = os.getloadavg()[0]
            seconds, processor, memory, busy = measured(command, env)
            rows.append(
                dict(
                    runs=n,
                    cores=cores,
                    turn=turn,
                    side=side,
                    seconds=round(seconds, 2),
                    seconds_per_run=round(seconds / n, 3),
                    processor_seconds_per_run=round(processor / n, 3),
                    peak_mb=round(memory),
                    most_running_threads=busy,
                    load=round(load, 1),
                )
            )
            print(rows[-1], flush=True)
        records = [len(list(Path(d).glob(f"{w}/*/records.csv"))) for w in ("loop", "runs/toy2030")]
        assert records == [n, n], records
    return rows


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--runs", type=int, default=40)
    p.add_argument("--cores", type=int, default=2)
    p.add_argument("--repeats", type=int, default=1)
    a = p.parse_args()
    rows = []
    for turn in range(a.repeats):
        rows += compared(a.runs, a.cores, turn)
        t = pd.DataFrame(rows)
        peer = t[t.side != "skinrepro run"].set_index("turn")
        for ratio, column in (
            ("ratio", "seconds"),
            ("processor_ratio", "processor_seconds_per_run"),
        ):
            t[ratio] = (t.turn.map(peer[column]) / t[column]).round(2)
        t.to_csv(Path(__file__).parent / "results" / "runs.csv", index=False)
    print(t.to_string(index=False))


if __name__ == "__main__":
    main()
