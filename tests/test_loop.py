"The loop beside closed forms, and in several processes: a notebook is one process."

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from skinrepro.loop import Training, checkpoints, fit, precision_on

TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import save_file
from skinrepro.core import ranks
from skinrepro.loop import Training, TrainingError, fit
from torch import nn

def train(folder, epochs, accumulate, bad=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    y = x.sum(1, keepdim=True)
    seen = []
    if bad:
        x[9] = float('nan')
    def loss(m, batch):
        seen.append(len(batch[0]))
        return nn.functional.mse_loss(m(batch[0]), batch[1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    settings = Training(epochs, clip=1., accumulate=accumulate, ema=.9)
    log = fit(model, lambda e: zip(x.split(4), y.split(4)), loss, optimizer, settings,
              folder=folder, progress=False)
    return model, log, len(seen)

out = sys.argv[2]
train(f'{out}/run', 2, 2)
model, log, seen = train(f'{out}/run', 4, 2)  # goes on from the checkpoint
alone, _, all_ = train(None, 4, 3)  # does not divide by two: everyone does everything
try:
    train(None, 1, 2, bad=True)
except TrainingError as e:
    said = str(e)
r, n = ranks()
found = model.state_dict() | {f'alone.{k}': v for k, v in alone.state_dict().items()}
found['seen'] = torch.tensor([seen, all_])
found['loss'] = torch.tensor(log.loss.tolist())
found['named'] = torch.tensor('epoch 0, batch 2' in said)
save_file(found, f'{out}/{n}-{r}.safetensors')
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


def network():
    "A frozen body with two normalisation layers, and a head."
    torch.manual_seed(0)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.InstanceNorm2d(4, 1e-5, 0.1, True, True),
    ).requires_grad_(False)
    head = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    return torch.nn.Sequential(body, head)


@pytest.mark.parametrize("statistics", ["kept", "updated"])
def test_statistics_of_frozen_layers(statistics, tmp_path):
    """A frozen layer keeps its statistics or not, as asked; also after a callback that leaves
    everything in evaluation mode, and after a resume. A trained layer's always move.
    """
    batch = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 3

    def train(epochs, folder, seen=None):
        model = network()
        fit(
            model,
            lambda epoch: [batch],
            lambda m, b: m(b).square().mean(),
            torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3),
            Training(epochs),
            after_epoch=lambda m, epoch: m.eval() and {},
            folder=folder,
            progress=False,
            frozen_statistics=statistics,
        )
        return model.state_dict()

    start = network().state_dict()
    train(1, tmp_path)
    found, whole = train(3, tmp_path), train(3, None)
    assert checkpoints(tmp_path)[-1].name == "checkpoint-00002"
    moved = {k for k in start if "running" in k and not torch.equal(start[k], found[k])}
    assert {k[:3] for k in moved} == ({"1.0"} if statistics == "kept" else {"0.1", "0.2", "1.0"})
    assert all(torch.equal(found[k], whole[k]) for k in start)
    assert found["1.0.num_batches_tracked"] == 3


def test_statistics_are_kept_or_updated():
    with pytest.raises(ValueError, match="frozen_statistics = 'frozen'"):
        fit(network(), None, None, None, Training(1), frozen_statistics="frozen")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=0), "steps = 0"),
        (dict(steps=2.5), "steps = 2.5"),
        (dict(batch_size=-1), "batch_size = -1"),
        (dict(accumulate=True), "accumulate = True"),
        (dict(every=0), "every = 0"),
        (dict(sample_every=-1), "sample_every = -1"),
        (dict(seed=-1), "seed = -1"),
        (dict(lr=0.0), "lr = 0.0"),
        (dict(lr=float("nan")), "lr = nan"),
        (dict(weight_decay=-0.1), "weight_decay = -0.1"),
        (dict(clip=0.0), "clip = 0.0"),
        (dict(ema=1.0), "ema = 1.0"),
        (dict(ema="0.9"), "ema = '0.9'"),
        (dict(precision="half"), "precision = 'half'"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Training(**dict(steps=3) | change)


# --- one weight, whose path is known in closed form


class Weight(torch.nn.Module):
    "One number, which stochastic gradient descent moves by the learning rate times the gradient."

    def __init__(self, start=0.0):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(start))


def walk(settings, gradients=(1.0,), rate=1.0, **options):
    "Descend with given gradients, one a batch; -> the weight at the end, the log."
    model, unit = Weight(), options.pop("unit", "step")
    log = fit(
        model,
        lambda epoch: [torch.tensor([g]) for g in gradients],
        lambda m, g: (m.w * g).sum(),
        torch.optim.SGD(model.parameters(), rate),
        settings,
        progress=False,
        unit=unit,
        **options,
    )
    return model.w.item(), log


def test_an_average_lags_behind_by_decay_over_one_minus_decay_steps():
    """Of a weight that falls by .1 a step an exponential average with decay d lies d / (1 - d)
    steps behind, once its start is forgotten. The callback sees the average, the training does not.
    """
    seen = []
    settings = Training(400, ema=0.9, every=200)  # the decay itself warms up for 80 steps
    kept, _ = walk(settings, rate=0.1, after_epoch=lambda m, step: seen.append(m.w.item()))
    assert kept == pytest.approx(-0.1 * (400 - 9), abs=1e-3)
    assert seen == pytest.approx([-0.1 * (200 - 9), kept], abs=1e-3)


def test_a_short_average_warms_up_as_written():
    "Decay (1 + n) / (10 + n) before step n + 1, and none at the first."
    average = 0.0
    for n in range(12):
        decay = min(0.9, (1 + n) / (10 + n)) if n else 0.0
        average = decay * average + (1 - decay) * -(n + 1)
    assert walk(Training(12, ema=0.9))[0] == pytest.approx(average)


def test_an_average_goes_on_after_a_resume(tmp_path):
    whole, _ = walk(Training(12, ema=0.9))
    walk(Training(5, ema=0.9), folder=tmp_path)
    assert walk(Training(12, ema=0.9), folder=tmp_path)[0] == pytest.approx(whole, rel=1e-6)


def test_gradients_of_a_step_are_averaged_and_clipped_by_their_norm():
    gradients = [1.0, 2.0, 3.0, 6.0, 5.0]  # the last is alone, and counts as half a step
    w, log = walk(Training(1, accumulate=2), gradients, unit="epoch")
    assert w == pytest.approx(-(1.5 + 4.5 + 2.5)) and log.images.tolist() == [5]
    assert walk(Training(1), gradients, unit="epoch")[0] == pytest.approx(-17)
    w, _ = walk(Training(1, accumulate=2, clip=2.0), gradients, unit="epoch")
    assert w == pytest.approx(-(1.5 + 2 + 2), abs=1e-4)


def test_a_row_of_the_log_is_the_mean_of_its_batches():
    "The weight is 0, -1, -2, ... and so is the loss; the rate is halved after every step."
    _, log = walk(Training(7, every=3))
    assert log.step.tolist() == [2, 5, 6] and log.loss.tolist() == [-1.0, -4.0, -6.0]
    assert log.images.tolist() == [3, 3, 1]
    model = Weight()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    log = fit(
        model,
        lambda step: [torch.ones(1)],
        lambda m, g: (m.w * g).sum(),
        optimizer,
        Training(6, every=2),
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        progress=False,
    )
    assert model.w.item() == -(2 - 0.5**5) and log.lr.tolist() == [0.5**k for k in (1, 3, 5)]


def test_the_callback_sees_evaluation_mode_and_the_next_step_trains():
    model, modes = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout()), []
    fit(
        model,
        lambda epoch: [torch.ones(1, 1)],
        lambda m, b: modes.append(m.training) or m(b).sum(),
        torch.optim.SGD(model.parameters(), 0.1),
        Training(2),
        after_epoch=lambda m, epoch: modes.append(m.training),
        progress=False,
    )
    assert modes == [True, False, True, False]


def test_a_layer_of_which_a_part_is_trained_is_not_frozen():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    model[0].bias.requires_grad_(False)
    fit(
        model,
        lambda epoch: [torch.tensor([[4.0], [6.0]])],
        lambda m, b: m(b).square().sum(),
        torch.optim.SGD([model[0].weight], 0.1),
        Training(1),
        progress=False,
    )
    assert model[0].running_mean.item() == 0.5  # a tenth of the mean of the batch


@pytest.mark.parametrize("has", [True, False])
def test_half_precision_where_the_hardware_has_it(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(avx512_bf16=has))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    expected = "bf16" if has else "no"
    assert [precision_on("auto", d) for d in ("cpu", "cuda", "cuda:1")] == [expected] * 3
    assert precision_on("auto", "mps") == "no" and precision_on("fp16", "cpu") == "fp16"
    with pytest.raises(ValueError, match="auto"):
        precision_on("half")
