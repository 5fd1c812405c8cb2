"The loop in several processes: what a notebook, which is one process, cannot show."

import subprocess
import sys

import torch
from conftest import ROOT
from safetensors.torch import load_file

TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import save_file
from skinrepro.core import ranks
from skinrepro.loop import TrainingError, fit

def train(folder, epochs, accumulate, bad=False):
    torch.manual_seed(0); model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    g = torch.Generator().manual_seed(1); x = torch.randn(24, 6, generator=g); y = x.sum(1, keepdim=True); seen = []
    if bad: x[9] = float('nan')
    def loss(m, batch): seen.append(len(batch[0])); return torch.nn.functional.mse_loss(m(batch[0]), batch[1])
    log = fit(model, lambda e: zip(x.split(4), y.split(4)), loss, torch.optim.Adam(model.parameters(), 1e-2), epochs, clip=1., accumulate=accumulate,
              folder=folder, ema=.9, progress=False)
    return model, log, len(seen)

out = sys.argv[2]
train(f'{out}/run', 2, 2); model, log, seen = train(f'{out}/run', 4, 2) # goes on from the checkpoint
alone, _, all_ = train(None, 4, 3)                                      # does not divide by two: everyone does everything
try: train(None, 1, 2, bad=True)
except TrainingError as e: said = str(e)
r, n = ranks()
save_file(model.state_dict() | {f'alone.{k}': v for k, v in alone.state_dict().items()}
          | dict(seen=torch.tensor([seen, all_]), loss=torch.tensor(log.loss.tolist()), named=torch.tensor('epoch 0, batch 2' in said)),
          f'{out}/{n}-{r}.safetensors')
"""


def test_two_processes_train_what_one_trains(tmp_path):
    "Gloo on the CPU stands for NCCL on two GPUs."
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    found = {}
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    for n, how in {1: [], 2: launch}.items():
        done = subprocess.run(
            [sys.executable, *how, str(script), str(ROOT), str(tmp_path / f"of{n}")],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found |= {f.stem: load_file(f) for f in (tmp_path / f"of{n}").glob("*.safetensors")}
    one = found.pop("1-0")
    assert len(found) == 2 and one["seen"].tolist() == [12, 24]
    for other in found.values():
        assert other["seen"].tolist() == [
            6,
            24,
        ], "half of the batches each, where they can be dealt out"
        for k in one.keys() - {"seen"}:
            torch.testing.assert_close(one[k], other[k], rtol=1e-4, atol=1e-6)
    assert one["named"], "the batch that is not finite is named, whoever had it"
