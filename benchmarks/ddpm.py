"""Images per second that train a DDPM: skinrepro.ddpm against the Trainer of
denoising-diffusion-pytorch, on the same device, in one run.

python benchmarks/ddpm.py                      # writes benchmarks/results/ddpm.csv python
benchmarks/ddpm.py --quick             # few steps, nothing written

The peer is no dependency of the project. It goes into a folder of its own, without what it asks for
beside (the rest is here already, or only for its FID):

pip install --no-deps --target peer denoising-diffusion-pytorch==2.3.4 einops ema-pytorch
PYTHONPATH=peer:. python benchmarks/ddpm.py

Sides, in turn (A B C D A B ...), each after a few steps that are not timed:

* peer: its Unet and Trainer at their defaults: images from a folder of PNG files through as many
worker processes as there are cores, single precision, losses fetched in every step. * peer, tuned:
its own best documented switches: amp in bfloat16, and flash attention where there is CUDA. * peer,
our UNet: its Trainer at defaults around diffusers' UNet2DModel as we use it, so that trainers alone
are compared. * skinrepro: `train_ddpm` as it is; its UNet is made as wide as brings its parameters
nearest to the peer's. * skinrepro, tuned: the same in bfloat16.

Parameters and multiplications of both networks are printed, since equal size is not equal work.
Before any time is taken, both trainers' losses are compared on the same images, noise, time steps
and weights. Rates are medians over rounds; ratios are medians of the rounds' ratios to the peer at
its defaults (and to the peer's Trainer around our UNet).
"""

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skinrepro.core import device, device_name
from skinrepro.ddpm import Denoiser, Learning, Network, to_model, train_ddpm
from skinrepro.denoise import denoising_loss
from skinrepro.loop import Training

try:
    import denoising_diffusion_pytorch as peer
except ImportError as e:
    raise SystemExit(
        f"{e}. Install the peer into a folder: pip install --no-deps --target peer"
        " denoising-diffusion-pytorch==2.3.4 einops ema-pytorch; then PYTHONPATH=peer:. python"
        " benchmarks/ddpm.py"
    ) from None

RESULTS = Path(__file__).resolve().parent / "results" / "ddpm.csv"
MULTIPLIERS = (1, 2, 4, 8)  # the peer's default


def arguments():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = device().startswith("cuda")
    p.add_argument("--size", type=int, default=64 if cuda else 32)
    p.add_argument("--dim", type=int, default=64 if cuda else 32, help="width of the peer's Unet")
    p.add_argument("--batch", type=int, default=64 if cuda else 16)
    p.add_argument("--images", type=int, default=4096 if cuda else 512)
    p.add_argument("--steps", type=int, default=100 if cuda else 6, help="timed, a round")
    p.add_argument("--warm", type=int, default=20 if cuda else 2)
    p.add_argument("--rounds", type=int, default=5 if cuda else 3)
    p.add_argument("--quick", action="store_true")
    a = p.parse_args()
    if a.quick:
        a.steps, a.warm, a.rounds, a.images = 2, 1, 1, 128
    a.place, a.cuda = device(), cuda
    return a


def pictures(a) -> np.ndarray:  # (n, size, size, 3) uint8, smooth with some grain
    rng = np.random.default_rng(0)
    out = []
    for _ in range(a.images):
        coarse = Image.fromarray(rng.integers(40, 220, (6, 6, 3), dtype=np.uint8))
        x = np.asarray(coarse.resize((a.size, a.size), Image.BICUBIC), float)
        out.append((x + rng.normal(0, 4, x.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(out)


def network(a, channels) -> Network:
    lowest = a.size // 2 ** (len(MULTIPLIERS) - 1)
    return Network(
        size=a.size,
        channels=channels,
        multipliers=MULTIPLIERS,
        blocks=2,
        attention=(lowest,),
        head_channels=None,
    )


def count(module):
    return sum(p.numel() for p in module.parameters())


def as_large(a, wanted: int) -> Network:
    "Our UNet whose parameters are nearest."

    def apart(channels):
        with torch.device("meta"):
            return abs(count(Denoiser(network(a, channels)).unet) - wanted)

    return network(a, min(range(8, 4 * a.dim, 4), key=apart))


def multiplications(a, unet) -> float:  # of one image, forward, in 10**9
    x, t = torch.zeros(1, 3, a.size, a.size, device=a.place), torch.zeros(1, device=a.place)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(x, t)
    return counter.get_total_flops() / 2e9


class Ours(nn.Module):
    "diffusers' UNet as the peer calls its own."

    channels, out_dim, self_condition, random_or_learned_sinusoidal_cond = 3, 3, False, False

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, t, x_self_cond=None):
        return self.unet(x, t).sample


def diffusion(a, unet):
    how = dict(image_size=a.size, objective="pred_noise", beta_schedule="linear")
    return peer.GaussianDiffusion(unet, **how)


def same_losses(a, net) -> float:  # largest relative difference
    model = Denoiser(net, seed=1).to(a.place)
    theirs = diffusion(a, Ours(model.unet)).to(a.place)
    g = torch.Generator(a.place).manual_seed(0)
    x = to_model(torch.tensor(pictures(argparse.Namespace(size=a.size, images=8)))).to(a.place)
    noise = torch.randn(x.shape, generator=g, device=a.place)
    t = torch.randint(0, 1000, (8,), generator=g, device=a.place)
    with torch.no_grad():
        one = theirs.p_losses(x, t, noise=noise, loss_reduction="none")
        scheduler = net.scheduler()
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(a.place)
        two = denoising_loss(model, scheduler, x, noise, t)
    return float(((one - two).abs() / two).max())


class Peer:
    "Their Trainer, which goes on where it stopped."

    def __init__(self, a, unet, folder, work, amp=False):
        self.a = a
        self.trainer = peer.Trainer(
            diffusion(a, unet),
            str(folder),
            train_batch_size=a.batch,
            train_num_steps=0,
            save_and_sample_every=10**9,
            calculate_fid=False,
            results_folder=str(work),
            amp=amp,
            mixed_precision_type="bf16",
        )

    def run(self, steps):
        self.trainer.train_num_steps = self.trainer.step + steps
        self.trainer.train()


class Mine:
    "`train_ddpm` of as many steps; what it does before and after them is timed as well."

    def __init__(self, a, net, images, precision="no"):
        self.a, self.images, self.precision = a, images, precision
        self.model = Denoiser(net)

    def run(self, steps):
        a = self.a
        how = Training(
            steps, a.batch, lr=1e-4, clip=1.0, ema=0.995, precision=self.precision, every=steps
        )
        learning = Learning(flips="horizontal", betas=(0.9, 0.99))
        train_ddpm(self.model, self.images, None, how, learning, device=a.place, progress=False)


def seconds(a, side, steps) -> float:
    if a.cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    side.run(steps)
    if a.cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


SIDES = {
    "peer": lambda a, net, folder, work: Peer(a, their_unet(a), folder, work),
    "peer, tuned": lambda a, net, folder, work: Peer(
        a, their_unet(a, flash_attn=a.cuda), folder, work, amp=True
    ),
    "peer, our UNet": lambda a, net, folder, work: Peer(a, Ours(Denoiser(net).unet), folder, work),
    "skinrepro": lambda a, net, folder, work: Mine(a, net, pictures(a)),
    "skinrepro, tuned": lambda a, net, folder, work: Mine(a, net, pictures(a), "bf16"),
}


def their_unet(a, **how):
    return peer.Unet(dim=a.dim, dim_mults=MULTIPLIERS, **how)


def serve(pipe, a, name, net, folder, work):
    "In a process of its own: accelerate knows one precision at a time in each."
    side = SIDES[name](a, net, folder, work)
    while steps := pipe.recv():
        pipe.send(seconds(a, side, steps))


class Apart:
    "A side in a process of its own, which waits for its turn."

    def __init__(self, a, *args):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, there = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(there, a, *args))
        self.process.start()
        there.close()  # so that a side that fails is noticed

    def seconds(self, steps) -> float:
        self.pipe.send(steps)
        return self.pipe.recv()

    def end(self):
        self.pipe.send(0)
        self.process.join()


def compare(a, scratch: Path) -> pd.DataFrame:
    images, folder = pictures(a), scratch / "images"
    folder.mkdir()
    for i, x in enumerate(images):
        Image.fromarray(x).save(folder / f"{i}.png")
    theirs = their_unet(a)
    net = as_large(a, count(theirs))
    unet = Denoiser(net).unet
    sizes = {"peer": theirs, "skinrepro": unet}
    work = {k: multiplications(a, u.to(a.place)) for k, u in sizes.items()}
    apart = same_losses(a, net)
    print(f"losses differ by {apart:.1e} at most (relative)")
    assert apart < (1e-2 if a.cuda else 1e-4), apart
    sides = {k: Apart(a, k, net, folder, scratch / str(i)) for i, k in enumerate(SIDES)}
    for side in sides.values():
        side.seconds(a.warm)
    rows = []
    for r in range(a.rounds):
        for name, side in sides.items():
            rows.append(dict(side=name, round=r, seconds=side.seconds(a.steps)))
            print(rows[-1], flush=True)
    for side in sides.values():
        side.end()
    took = pd.DataFrame(rows).pivot(index="round", columns="side", values="seconds")
    own = {k: "skinrepro" if "skinrepro" in k or "our" in k else "peer" for k in sides}
    return pd.DataFrame(
        dict(
            side=k,
            images_per_second=(a.batch * a.steps / took[k]).median(),
            ratio_to_peer=(took["peer"] / took[k]).median(),
            ratio_to_peers_trainer=(took["peer, our UNet"] / took[k]).median(),
            parameters=count(sizes[own[k]]),
            gmac=work[own[k]],
        )
        for k in sides
    )


def main():
    a = arguments()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("ACCELERATE_USE_CPU", str(not a.cuda))
        t = compare(a, Path(scratch))
    t = t.assign(
        size=a.size,
        batch=a.batch,
        steps=a.steps,
        rounds=a.rounds,
        loss_difference="below 1e-4" if not a.cuda else "below 1e-2",
        device=device_name(),
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 1),
        peer=f"denoising-diffusion-pytorch {peer.version.__version__}",
    )
    print(t.round(3).to_string(index=False))
    if not a.quick:
        t.round(3).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
