"""How far training and sampling with the miniature are from what one core can do.

python benchmarks/bound.py            # about two minutes of one core
python benchmarks/bound.py --quick    # fewer repeats, to see that it runs; nothing is written

The bound: the operations of the UNet (products and sums of its convolutions, linear layers and
attention, forward and, where something is learned, backward) over the largest rate that one core
reaches in any product measured here in the same run. Nothing that computes in float32 on this core
is faster; additions, norms and activations, which it leaves out, have to be done, too.

Three kinds of work, as the grid of wang2024 has them at mini: a step of a LoRA on 16 images, a step
of seven words on 28, and a sampling step of 32 images with guidance, which is 64. Each is computed
as diffusers and peft do (plain) and quickly (skinrepro.denoise.quickened), in turn, in a process
with glibc's own memory settings and in one with those of skinrepro.core.environment (`kept`; what
they save is shown by page faults, which other programs do not disturb). Compare columns within a
process only. By processor time,
which other programs disturb less than the clock; the best of the repeats.

Plain and quick must agree: losses to 1e-5, gradients (as one vector) and predictions to 1e-3,
relative (exit status 1 if not).
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd

from skinrepro.core import commit, environment

RESULTS = Path(__file__).resolve().parent / "results" / "bound.csv"
WORKS = {"LoRA": 16, "words": 28, "sampling": 64}  # images at a time
SETTINGS = [k for k in environment() if k.startswith("MALLOC_") or k == "GLIBC_TUNABLES"]


def best(functions: dict, repeats: int) -> dict:  # name -> seconds of the processor
    "Functions in turn; the smallest time of each."
    out = dict.fromkeys(functions, float("inf"))
    for k in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            took = time.process_time() - start
            out[name] = min(out[name], took) if k else out[name]  # the first warms up
    return out


def faults(function) -> int:  # pages that the operating system had to give
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start


def peaks(repeats) -> dict:  # largest GFLOP/s of one core in a matrix product and a convolution
    import torch

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    x = torch.randn(16, 256, 16, 16).to(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3).to(memory_format=torch.channels_last)
    work = dict(product=2 * 1024**3, convolution=2 * 16 * 256**2 * 9 * 16**2)
    run = dict(product=lambda: a @ b, convolution=lambda: torch.conv2d(x, w, padding=1))
    return {k: work[k] / s / 1e9 for k, s in best(run, 3 * repeats).items()}


class Work:
    "A batch, and what is done with it by a plain network and by its quick twin."

    def __init__(self, name, images, base):
        import torch

        from skinrepro.denoise import quicken_unet, training_scheduler
        from skinrepro.latent import encode_prompts

        self.name, self.images = name, images
        plain = copy.deepcopy(base.unet)
        g = torch.Generator().manual_seed(0)
        if name == "LoRA":
            with_lora(plain, g)
        self.nets = dict(plain=plain, quick=quicken_unet(copy.deepcopy(plain)))
        if name == "sampling":  # as it was: channels last, too
            plain.to(memory_format=torch.channels_last)
        self.scheduler = training_scheduler(base.scheduler)
        config = base.unet.config
        shape = (images, config.in_channels, config.sample_size, config.sample_size)
        self.x, self.noise = (torch.randn(shape, generator=g) for _ in range(2))
        self.t = torch.randint(0, 1000, (images,), generator=g)
        prompts = ["An image of psoriasis on the skin of a dark skinned individual"] * images
        self.text = encode_prompts(base, prompts).requires_grad_(name == "words")

    def loss(self, which):
        from skinrepro.denoise import denoising_loss, predictor

        predict, told = predictor(self.nets[which]), dict(encoder_hidden_states=self.text)
        return denoising_loss(predict, self.scheduler, self.x, self.noise, self.t, **told).mean()

    def learned(self, which) -> list:
        own = [p for p in self.nets[which].parameters() if p.requires_grad]
        return [self.text] if self.name == "words" else own

    def step(self, which):  # loss and gradients, or a prediction
        import torch

        if self.name == "sampling":
            with torch.inference_mode():
                return self.nets[which](self.x, self.t, self.text, return_dict=False)[0]
        value = self.loss(which)
        found = torch.autograd.grad(value, self.learned(which))
        return value.detach(), torch.cat([f.flatten() for f in found])

    def apart(self) -> tuple:  # relative difference of losses; of gradients or predictions
        plain, quick = self.step("plain"), self.step("quick")
        if self.name == "sampling":
            return 0.0, float((plain - quick).norm() / plain.norm())
        (a, g), (b, h) = plain, quick
        return abs(float(a) / float(b) - 1), float((g - h).norm() / g.norm())


def with_lora(unet, generator):  # rank 8, as trained for a while
    import torch
    from peft import LoraConfig

    unet.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=targets))
    for name, p in unet.named_parameters():
        if "lora_" in name:
            p.data = 0.05 * torch.randn(p.shape, generator=generator)


def operations(work: Work) -> float:  # GFLOP of a step
    from torch.nn import functional
    from torch.utils.flop_counter import FlopCounterMode

    usual, seen = functional.scaled_dot_product_attention, [0.0]
    passes = 1 if work.name == "sampling" else 3.5  # backward: five products instead of two

    def counted(q, k, *rest, **how):
        n, heads, length, width = q.shape
        seen[0] += passes * 4 * n * heads * length * k.shape[2] * width
        return usual(q, k, *rest, **how)

    functional.scaled_dot_product_attention = counted
    try:
        with FlopCounterMode(display=False) as counter:
            if work.name == "sampling":
                work.step("quick")
            else:
                work.loss("quick").backward()
    finally:
        functional.scaled_dot_product_attention = usual
    for p in work.learned("quick"):
        p.grad = None
    return (counter.get_total_flops() + seen[0]) / 1e9


def measure(repeats) -> list:  # a row for each work
    import torch

    from skinrepro.latent import load_base

    torch.set_num_threads(1)
    base, rows = load_base("miniature"), []
    peak = peaks(repeats)
    for name, images in WORKS.items():
        work = Work(name, images, base)
        loss, other = work.apart()
        runs = {which: partial(work.step, which) for which in work.nets}
        took = best(runs, repeats)
        rows.append(
            dict(work=name, images=images, gflop=operations(work))
            | {f"gflop_s_{k}": v for k, v in peak.items()}
            | {f"{k}_s": v for k, v in took.items()}
            | dict(loss_apart=loss, apart=other, faults=faults(runs["quick"]))
        )
        print(f"  {name}: {took}", file=sys.stderr, flush=True)
    return rows


def child(kept: bool, repeats) -> pd.DataFrame:
    "Measured in a process of its own, with the memory settings of runs or without."
    env = dict(environment(), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    env = {k: v for k, v in env.items() if kept or k not in SETTINGS}
    command = [sys.executable, __file__, "--child", "--repeats", str(repeats)]
    out = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return pd.DataFrame(json.loads(out.splitlines()[-1]))


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--quick", action="store_true", help="few repeats, nothing written")
    ask.add_argument("--repeats", type=int, default=8)
    ask.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    ask = ask.parse_args()
    repeats = 2 if ask.quick else ask.repeats
    if ask.child:
        print(json.dumps(measure(repeats)))
        return
    before, after = child(False, repeats), child(True, repeats)
    rate = max(t[c].max() for t in (before, after) for c in t if c.startswith("gflop_s_"))
    t = after[["work", "images", "gflop"]].assign(
        gflop_s=rate,
        gflop_s_product=max(before.gflop_s_product.max(), after.gflop_s_product.max()),
        bound_s=after.gflop / rate,
        plain_s=before.plain_s,
        quick_s=before.quick_s,
        ratio=before.plain_s / before.quick_s,
        kept_plain_s=after.plain_s,
        kept_quick_s=after.quick_s,
        kept_ratio=after.plain_s / after.quick_s,
        faults=before.faults,
        kept_faults=after.faults,
    )
    t = t.assign(
        times_bound_plain=t[["plain_s", "kept_plain_s"]].min(axis=1) / t.bound_s,
        times_bound_quick=t[["quick_s", "kept_quick_s"]].min(axis=1) / t.bound_s,
        loss_apart=after.loss_apart,
        apart=after.apart,
        cores=os.cpu_count(),
        commit=commit(),
    )
    print(t.round(4).to_string(index=False))
    for r in t.itertuples():
        print(
            f"{r.work}: {r.gflop:.1f} GFLOP, at {rate:.0f} GFLOP/s of one core {r.bound_s:.3f} s;"
            f" plainly {r.times_bound_plain:.1f} times that, quickly {r.times_bound_quick:.1f}"
            f" times; in one process {r.ratio:.2f} times as fast, with memory that is kept"
            f" {r.kept_ratio:.2f}; page faults of a step: {r.faults}, {r.kept_faults}"
        )
    if not ask.quick:
        t.round(7).to_csv(RESULTS, index=False)
        print(f"written: {RESULTS}")
    if (t.loss_apart > 1e-5).any() or (t.apart > 1e-3).any():
        sys.exit("FAILED: plain and quick differ by more than the tolerance.")


if __name__ == "__main__":
    main()
