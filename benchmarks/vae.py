"""How fast is a training step of the VAE with the perceptual loss? Against a plain implementation
of the same loss, on the same device, in one run.

python benchmarks/vae.py                # the paper's network at 128 px; writes
benchmarks/results/vae.csv (minutes on 2 cores, seconds on a GPU) python benchmarks/vae.py --batch 8
--size 64 --width 32

The plain side does what public code for this loss does: target and reconstruction go through VGG-19
as one batch, so that gradients run through the target's half as well, tensors in the default memory
order, seven numbers fetched from the device in every step, Adam without fusing. Ours: the target
without gradients, channels last where that is faster, nothing fetched. VGG-19 has random weights
here, on both sides the same: speed does not depend on their values, and nothing here is a result.
"""

import argparse
import copy
import time
from pathlib import Path

import pandas as pd
import timm
import torch

from skinrepro.core import device, device_name
from skinrepro.vae import Features, build_vae, memory_format, negative_elbo, perceptual_loss

LATENT = 64  # channels of the code


def plain_step(model, layers, network, optimizer, x, noise, scaler, dtype):
    "One step as public code writes it."
    kept = []
    hooks = [m.register_forward_hook(lambda module, given, out: kept.append(out)) for m in layers]
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        y, mean, log_var = model(x, noise)
        kl = (0.5 * (mean.float() ** 2 + log_var.float().exp() - 1 - log_var.float())).mean()
        mse = ((x - y.float()) ** 2).mean()
        network(torch.cat([y, x]))
        n = len(x)
        feature = torch.stack([((k[:n].float() - k[n:].float()) ** 2).mean() for k in kept]).mean()
        loss = mse + kl + feature
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    scaler.step(optimizer)
    scaler.update()
    for h in hooks:
        h.remove()
    log = [
        v.item() for v in (loss, mse, kl, feature, mean.mean(), log_var.mean(), y.mean())
    ]  # seven waits for the device
    return log[0]


def our_step(model, features, optimizer, x, noise, scaler, dtype):
    "The step of skinrepro.vae.train_vae."
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        y, mean, log_var = model(x, noise)
        a, b = negative_elbo(x, y, mean, log_var)
        loss = a + b + perceptual_loss(features, x, y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def arguments():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--batch", type=int, default=0, help="64 on a GPU, 8 on a CPU")
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument(
        "--steps", type=int, default=0, help="timed steps a side and round; 20 on a GPU, 2 on a CPU"
    )
    p.add_argument(
        "--precision", default="", help="no, bf16, fp16; fp16 on a GPU, as the public code"
    )
    a = p.parse_args()
    a.place = device()
    a.cuda = a.place.startswith("cuda")
    a.batch = a.batch or (64 if a.cuda else 8)
    a.steps = a.steps or (20 if a.cuda else 2)
    a.precision = a.precision or ("fp16" if a.cuda else "no")
    return a


def sides(a):
    "The two steps, each a function of pictures and noise; and the number that divides a side."
    dtype = dict(no=None, bf16=torch.bfloat16, fp16=torch.float16)[a.precision]
    torch.manual_seed(0)
    vgg = timm.create_model("vgg19", pretrained=False).features
    vgg.requires_grad_(False).eval().to(a.place)
    for m in vgg.modules():
        if getattr(m, "inplace", False):
            m.inplace = False
    theirs = build_vae(LATENT, width=a.width).to(a.place).train()
    order = memory_format(theirs, a.place)
    ours = copy.deepcopy(theirs).to(memory_format=order)
    layers = [m for m in vgg.modules() if isinstance(m, torch.nn.Conv2d)]
    features = Features(copy.deepcopy(vgg).to(memory_format=order), "random")
    kind, half = "cuda" if a.cuda else a.place, a.precision == "fp16"
    scalers = [torch.amp.GradScaler(kind, enabled=half) for _ in range(2)]
    plain = torch.optim.Adam(theirs.parameters(), 1e-4)
    fused = torch.optim.Adam(ours.parameters(), 1e-4, fused=True)

    def plain_side(x, noise):
        return plain_step(theirs, layers, vgg, plain, x, noise, scalers[0], dtype)

    def our_side(x, noise):
        x = x.to(memory_format=order)
        return our_step(ours, features, fused, x, noise, scalers[1], dtype)

    return dict(plain=plain_side, skinrepro=our_side), theirs.stride


def data(a, seed, stride):
    "Pictures and noise of one batch."
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(a.batch, 3, a.size, a.size, generator=g) * 2 - 1
    side = a.size // stride
    noise = torch.randn(a.batch, LATENT, side, side, generator=g)
    return x.to(a.place), noise.to(a.place)


def timed(a, step, x, noise) -> dict:
    "Time and memory of some steps, after one that warms up."

    def wait():
        torch.cuda.synchronize() if a.cuda else None

    if a.cuda:
        torch.cuda.reset_peak_memory_stats()
    step(x, noise)
    wait()
    begin = time.perf_counter()
    for _ in range(a.steps):
        step(x, noise)
    wait()
    seconds = (time.perf_counter() - begin) / a.steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if a.cuda else float("nan")
    return dict(seconds_per_step=seconds, images_per_second=a.batch / seconds, peak_gb=peak)


def main():
    a = arguments()
    steps, stride = sides(a)
    apart = 0.0
    for k in range(3):  # the same batches: the same losses
        theirs, ours = (float(step(*data(a, k, stride))) for step in steps.values())
        apart = max(apart, abs(theirs - ours) / abs(theirs))
    rows = []
    for r in range(a.rounds):
        for side, step in steps.items():
            rows.append(dict(side=side, round=r) | timed(a, step, *data(a, 100 + r, stride)))
            print(rows[-1], flush=True)
    t = pd.DataFrame(rows).groupby("side", sort=False)
    t = t[["seconds_per_step", "images_per_second", "peak_gb"]].median().reset_index()
    t = t.assign(
        ratio=t.seconds_per_step[0] / t.seconds_per_step,
        largest_relative_difference_of_losses=apart,
        batch=a.batch,
        size=a.size,
        width=a.width,
        precision=a.precision,
        device=device_name(),
        threads=torch.get_num_threads(),
    )
    print(t.round(4).to_string(index=False))
    assert apart < 1e-3 or a.precision != "no", f"the losses differ by {apart:.1e}"
    t.round(4).to_csv(Path(__file__).parent / "results" / "vae.csv", index=False)


if __name__ == "__main__":
    main()
