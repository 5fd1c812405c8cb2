"""The same graph on a SLURM cluster: one node on the loopback, started here and stopped here, all
its state in one folder.
"""

import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress

import pandas as pd
import pytest
from conftest import ROOT
from test_workflow import start, toy

from skinrepro.grid import read_grid
from skinrepro.workflow import execute

PROGRAMS = [
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "squeue",
    "sinfo",
    "srun",
    "scancel",
    "scontrol",
]
lacking = [p for p in PROGRAMS if not shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = pytest.mark.skipif(
    bool(lacking),
    reason=(
        "needs SLURM: apt-get install slurmctld slurmd slurm-client munge (lacking:"
        f" {', '.join(lacking)})"
    ),
)

CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=600 State=UP
"""
PROFILE = """
executor: slurm
jobs: 4
slurm-no-account: true
slurm-status-command: squeue
slurm-init-seconds-before-status-checks: 1
seconds-between-status-checks: 1
latency-wait: 10
default-resources:
  slurm_partition: "debug"
"""


def free_port():
    """One that the system does not hand to whoever asks for any port: between this look and its use
    nobody takes it by accident.
    """
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free between 20000 and 32000")


def wait_for(what, seconds, why):
    end = time.time() + seconds
    while not what():
        assert time.time() < end, why()
        time.sleep(0.1)


@contextmanager
def cluster(folder):  # -> environment in which SLURM's commands speak to it
    for d in ("munge", "state", "spool", "bin"):
        (folder / d).mkdir(parents=True)
    (folder / "munge").chmod(0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host, conf = socket.gethostname().split(".")[0], folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=host, control=free_port(), node=free_port(), folder=folder, user=getpass.getuser()
        )
    )
    path = f"{os.environ['PATH']}:/usr/sbin"
    for name in PROGRAMS[3:]:  # inside a job, too, they must find this configuration
        f = folder / "bin" / name
        f.write_text(
            f'#!/bin/sh\nexport SLURM_CONF={conf}\nexec {shutil.which(name, path=path)} "$@"\n'
        )
        f.chmod(0o755)
    env = {**os.environ, "SLURM_CONF": str(conf), "PATH": f"{folder / 'bin'}:{path}"}
    started = []

    def daemon(*command):
        started.append(
            subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    def log():
        return "\n".join(f.read_text(errors="replace")[-1500:] for f in folder.glob("*.log"))

    try:
        m = folder / "munge"
        daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={m}/socket",
            f"--pid-file={m}/pid",
            f"--log-file={m}/log",
            f"--seed-file={m}/seed",
        )
        wait_for(
            (m / "socket").exists,
            60,
            lambda: (m / "log").read_text() if (m / "log").exists() else "munged did not start",
        )
        daemon("slurmctld", "-D", "-f", str(conf))
        daemon("slurmd", "-D", "-f", str(conf), "-N", host)

        def idle():
            return (
                "idle"
                in subprocess.run(
                    ["sinfo", "-h", "-o", "%T"], env=env, capture_output=True, text=True
                ).stdout
            )

        wait_for(idle, 60, log)
        yield env
    finally:
        for p in reversed(started):
            p.terminate()
            try:
                p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()


def test_a_grid_on_slurm_gives_the_records_of_a_local_run(tmp_path, monkeypatch):
    "Two classifiers of wang2024 in the smallest size, and a graph with a need that fails."
    narrowed = dict(
        section="scenario",
        seed=0,
        scenario=["i", "iii"],
        epochs=1,
        fraction=0.05,
        size=32,
        arch="resnet_small",
    )

    def all_runs(name):
        monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / name))
        return read_grid(ROOT / "nbs" / "papers" / "wang2024", "smoke", **narrowed)

    def records(grid):
        return [pd.read_csv(r.folder / "records.csv").drop(columns=["seconds"]) for r in grid]

    grid = all_runs("local")
    assert [o.status for o in execute(grid, cores=2, progress=False)] == ["ran", "ran"]
    local = records(grid)
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(PROFILE)
    with cluster(tmp_path / "slurm") as env:
        for k, v in env.items():
            monkeypatch.setenv(k, v)
        grid = all_runs("cluster")
        outcomes = execute(grid, slurm=profile, progress=False)
        assert [o.status for o in outcomes] == ["ran", "ran"], [o.error for o in outcomes]
        assert [o.status for o in execute(grid, slurm=profile, progress=False)] == ["done", "done"]
        jobs = list((tmp_path / "cluster" / ".snakemake").rglob("*.log"))
        assert any("slurm" in str(j) for j in jobs), "the jobs were SLURM's"
    for a, b in zip(local, records(grid), strict=True):
        pd.testing.assert_frame_equal(a, b)


def test_an_interrupted_command_takes_back_what_it_has_submitted(tmp_path):
    folder = toy(tmp_path, "[a]\n", a='Path("here").write_text(""); time.sleep(300)')
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(PROFILE)
    code = (
        "from pathlib import Path\nfrom skinrepro import workflow\n"
        "from skinrepro.grid import read_grid\n"
        f"workflow.execute(read_grid(Path({str(folder)!r})), slurm=Path({str(profile)!r}))"
    )
    with cluster(tmp_path / "slurm") as env:

        def queued():
            command = ["squeue", "-h", "-o", "%i %T"]
            return subprocess.run(command, env=env, capture_output=True, text=True).stdout

        child = start(code, **env | dict(SKINREPRO_RUNS=str(tmp_path / "store")))
        here = (tmp_path / "store").glob
        wait_for(lambda: [*here("*/*/here")], 180, lambda: f"the run never began: {queued()}")
        assert "RUNNING" in queued()
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=120)
        wait_for(lambda: "RUNNING" not in queued(), 60, lambda: f"still there: {queued()}")
