"""How large are the five diffusion models of Ktena et al. (2023), Table E1b-c, and what do they
take? One training step (noise, loss, gradients, AdamW, moving average) and one sampling step of
each, in full size, with random weights and random images.

python benchmarks/table_e1.py                    # parameters, operations, activations: no run
python benchmarks/table_e1.py --rehearse         # and the steps, one image at a time, 32 bits
python benchmarks/table_e1.py --rehearse --device cuda --batch table --precision bf16

Written: benchmarks/results/table_e1.csv. What is counted: parameters, multiplications and additions
of one pass of one image (torch's counter), and the bytes that one image keeps for the gradients,
found on tensors without data. What is measured, each model in a process of its own: seconds by the
wall clock and by the processor, and the peak of the memory (of the process on a CPU, allocated by
torch on a GPU), after the sampling step and after the training step. A model that would need more
than --limit GB (weights, gradients, two moments, average, activations) is not started.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from skinrepro.cascade import Upsampler, train_upsampler, upsampler_conditions
from skinrepro.core import atomic_path, commit, device_name
from skinrepro.ddpm import (
    Conditions,
    Denoiser,
    Network,
    Sampling,
    draw_images,
    nearest_levels,
    train_ddpm,
)
from skinrepro.loop import Training

RESULTS = Path(__file__).resolve().parent / "results" / "table_e1.csv"
ASKED = (32, 16, 8)  # attention, px
WIDE = dict(channels=192, multipliers=(1, 2, 3, 4), blocks=3, head_channels=64)
UP = dict(channels=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, head_channels=64, context=3)
NETWORKS = {  # Table E1b-c
    "histopathology": dict(
        size=96, channels=128, multipliers=(1, 1, 2, 3, 4), blocks=2, head_channels=64
    ),
    "radiology": dict(WIDE, size=64),
    "dermatology": dict(WIDE, size=64),
    "radiology upsampler": dict(UP, size=224),
    "dermatology upsampler": dict(UP, size=256),
}
LEARNED = {  # batch size and learning rate
    "histopathology": (64, 1e-4),
    "radiology": (128, 1.5e-5),
    "dermatology": (128, 1.5e-4),
    "radiology upsampler": (32, 1e-4),
    "dermatology upsampler": (32, 1e-4),
}
LOW = 64  # px, of what an upsampler is shown


def told(name):
    "A label and a property, as many values as the paper's data have."

    def values(n):
        return tuple(f"value {i}" for i in range(n))

    if name.startswith("histopathology"):
        return Conditions({"label": values(2), "domain": values(5)})
    if name.startswith("radiology"):
        return Conditions({"finding": values(5), "sex": values(2)}, ("finding",))
    return Conditions({"label": values(27), "sex": values(2)})


def model_of(name):
    known = NETWORKS[name]
    attention = nearest_levels(known["size"], len(known["multipliers"]), ASKED)
    network = Network(**known, attention=attention)
    base = told(name)
    return Denoiser(network, upsampler_conditions(base) if network.context else base)


def counted(name):
    "What follows from the shapes alone."
    with torch.device("meta"):
        model = model_of(name)
        net = model.network
        unet = model.unet
        x = torch.zeros(1, unet.config.in_channels, net.side, net.side)
        t = torch.zeros(1, dtype=torch.long)
        weights, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}

        def keep(tensor):
            place = tensor.untyped_storage()._cdata
            if place not in weights:
                kept[place] = tensor  # held, so that no other tensor gets its place
            return tensor

        def run():
            unet(x, t, model.condition(torch.zeros(1, model.conditions.size)))

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
            run()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
    activations = sum(v.untyped_storage().nbytes() for v in kept.values())
    n = model.parameter_count()
    return dict(
        model=name,
        px=net.size,
        attention_px=" ".join(map(str, net.attention)),
        parameters_million=round(n / 1e6, 2),
        gflop_per_pass=round(counter.get_total_flops() / 1e9, 1),
        # weights, gradients, two moments and the average in 32 bits
        states_gb=round(5 * 4 * n / 1e9, 2),
        activations_gb_per_image=round(activations / 1e9, 2),
    )


def peak_gb(device):
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)  # Linux


def timed(device, run):  # seconds: wall, processor
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return round(time.perf_counter() - wall, 2), round(time.process_time() - cpu, 2)


def rehearse(name, batch, device, precision):
    "One step each; prints a row."
    model = model_of(name).to(device)
    net, n = model.network, batch
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, net.size, net.size, 3), dtype=np.uint8)
    base = told(name)
    vector = rng.integers(0, 2, (n, base.size)).astype(np.float32)
    vector[:, 0] = 1
    how = Sampling("ddim", 1)
    up = bool(net.context)
    if up:
        settings = dict(low=LOW, preprocessing={})
        model.about = dict(upsampler=settings)
        small = images[:, :LOW, :LOW]
        drawn = timed(device, lambda: Upsampler(model, how, batch_size=n)(small, vector, range(n)))
    else:
        drawn = timed(device, lambda: draw_images(model, vector, range(n), how, batch_size=n))
    after_drawing = peak_gb(device)
    training = Training(1, n, lr=LEARNED[name][1], ema=0.9999, precision=precision)
    asked = dict(device=device, progress=False)
    if up:
        step = timed(device, lambda: train_upsampler(model, images, vector, LOW, training, **asked))
    else:
        step = timed(device, lambda: train_ddpm(model, images, vector, training, **asked))
    row = dict(
        batch=n,
        precision=precision,
        sampling_step_seconds=drawn[0],
        sampling_step_processor_seconds=drawn[1],
        sampling_peak_gb=after_drawing,
        training_step_seconds=step[0],
        training_step_processor_seconds=step[1],
        training_peak_gb=peak_gb(device),
        device=device_name(),
        threads=torch.get_num_threads(),
    )
    print(json.dumps(row))


def in_a_process_of_its_own(name, ask):
    n = LEARNED[name][0] if ask.batch == "table" else int(ask.batch)
    options = ["--one", name, "--batch", str(n), "--device", ask.device]
    command = [sys.executable, __file__, *options, "--precision", ask.precision]
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if out.returncode:
        sys.exit(f"{name}: {out.stderr[-2000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--rehearse", action="store_true", help="run the steps, too")
    ask.add_argument("--only", action="append", choices=list(NETWORKS), help="this model")
    ask.add_argument("--batch", default="1", help="images at a time, or 'table' for the paper's")
    ask.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    ask.add_argument("--precision", default="no", choices=["no", "bf16", "fp16"])
    ask.add_argument("--limit", type=float, default=20.0, help="GB")
    ask.add_argument("--out", type=Path, default=RESULTS)
    ask.add_argument("--one", choices=list(NETWORKS), help=argparse.SUPPRESS)
    ask = ask.parse_args()
    if ask.one:
        return rehearse(ask.one, int(ask.batch), ask.device, ask.precision)
    old = pd.read_csv(ask.out).set_index("model") if ask.out.is_file() else pd.DataFrame()
    rows = []
    for name in NETWORKS:
        row = counted(name) | dict(commit=commit())
        n = LEARNED[name][0] if ask.batch == "table" else int(ask.batch)
        needed = row["states_gb"] + n * row["activations_gb_per_image"]
        if ask.rehearse and name in (ask.only or NETWORKS) and needed < ask.limit:
            row |= in_a_process_of_its_own(name, ask)
        elif name in old.index:  # what was measured before
            measured = old.loc[name].drop(labels=list(row), errors="ignore").dropna()
            row |= measured.to_dict() | dict(commit=old.commit[name])
        rows.append(row)
        print(pd.DataFrame(rows[-1:]).T.to_string(header=False), "\n", flush=True)
    with atomic_path(ask.out) as tmp:
        pd.DataFrame(rows).to_csv(tmp, index=False)
    print(f"written: {ask.out}")


if __name__ == "__main__":
    main()
