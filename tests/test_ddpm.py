"""A DDPM in pixels: what it is told, its network against printed counts, sampling against the
pipelines of diffusers, and training against one that was stopped.
"""

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline
from safetensors.torch import load_file

from skinrepro import ddpm
from skinrepro.ddpm import (
    Conditions,
    Denoiser,
    Learning,
    Network,
    Sampling,
    analyse,
    colour_drift,
    conditions_of,
    ddpm_unet,
    draw_images,
    drop_told,
    flipped,
    levels,
    load_ddpm,
    nearest_levels,
    save_ddpm,
    synthesise,
    teach_ddpm,
    to_bytes,
    to_model,
    train_ddpm,
    walk,
)
from skinrepro.loop import Training

TINY = dict(size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(), head_channels=None)
TOLD = Conditions({"label": ("normal", "tumor"), "domain": ("hospital 0", "hospital 3")})


def awake(model):
    "The same network with an output that is not small, so that a wrong path is seen."
    torch.manual_seed(5)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    return model.eval()


def pictures(n=24, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (n, size, size, 3), dtype=np.uint8)


def told_of(n):
    rows = dict(label=["normal", "tumor"] * (n // 2), domain=["hospital 0", None] * (n // 2))
    return TOLD.encode(rows)


# ------------------------------------------------------------------------------------------- told
def test_a_label_that_was_never_seen_is_refused_by_row():
    with pytest.raises(ValueError, match="Row 1, label = 'melanoma'.*'normal', 'tumor'.*train"):
        TOLD.encode(dict(label=["tumor", "melanoma"], domain=[None, None]))


def test_rows_without_a_label_are_refused_where_labels_are_needed():
    rows = pd.DataFrame(dict(label=["tumor", None], domain=["hospital 0", "hospital 3"]))
    assert TOLD.encode(rows)[1].tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="Row 1 has no label.*drop the row"):
        TOLD.encode(rows, needed=["label"])
    assert TOLD.encode(rows.dropna(), needed=["label"]).shape == (1, 4)  # the remedy


def test_an_attribute_with_one_value_is_refused():
    rows = pd.DataFrame(dict(label=["a", "b"], domain=["hospital 0"] * 2))
    with pytest.raises(ValueError, match="'domain' has only.*hospital 0.*Leave it out"):
        conditions_of(rows, ["label", "domain"])
    assert conditions_of(rows, ["label"]).size == 2


def test_no_finding_is_not_unknown():
    c = Conditions({"finding": ("effusion", "oedema")}, ("finding",))
    assert c.encode(dict(finding=["oedema|effusion", (), None])).tolist() == [
        [1, 1],
        [-1, -1],
        [0, 0],
    ]
    printed = Conditions({"finding": ("effusion", "oedema")}, ("finding",), absent=0)
    assert printed.encode(dict(finding=["", ["oedema"]])).tolist() == [[0, 0], [0, 1]]


def test_missing_values_of_pandas_are_unknown():
    label = pd.Series(["tumor", pd.NA, "normal"], dtype="string")
    domain = pd.Series([np.nan, "hospital 3", None])
    got = TOLD.encode(pd.DataFrame(dict(label=label, domain=domain)))
    assert got.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]


# ---------------------------------------------------------------------------------------- network
def test_parameter_counts_are_those_that_ho_et_al_print():
    "Ho et al. 2020, appendix B: 35.7 million at 32 px, 114 million at 256 px."
    with torch.device("meta"):
        small = ddpm_unet(32, 128, (1, 2, 2, 2), 2, (16,), None)
        large = ddpm_unet(256, 128, (1, 1, 2, 2, 4, 4), 2, (16,), None)
    assert sum(p.numel() for p in small.parameters()) == 35_746_307  # google/ddpm-cifar10-32
    assert sum(p.numel() for p in large.parameters()) == 113_673_219  # google/ddpm-celebahq-256


@pytest.mark.parametrize(
    ("size", "multipliers", "attention"),
    [(64, (1, 2, 3, 4), (32, 16, 8)), (96, (1, 1, 2, 3, 4), (24, 12, 6)), (64, (1, 2), (64,))],
)
def test_attention_is_where_it_was_asked_for(size, multipliers, attention):
    with torch.device("meta"):
        unet = ddpm_unet(size, 64, multipliers, 1, attention)
    seen = set()

    def note(module, args):
        seen.add(args[0].shape[-1])

    for name, m in unet.named_modules():
        if "attentions." in name and name.count(".") == 3 and "mid" not in name:
            m.register_forward_pre_hook(note)
    unet(torch.zeros(1, 3, size, size, device="meta"), torch.zeros(1, device="meta"))
    assert seen == set(attention)


def test_a_resolution_that_is_no_level_is_refused_and_the_nearest_is_named():
    with pytest.raises(ValueError, match=r"no level has 32 px.*\[96, 48, 24, 12, 6\]"):
        ddpm_unet(96, attention=(32, 16, 8))
    assert nearest_levels(96, 5, (32, 16, 8)) == (24, 12, 6)
    assert nearest_levels(256, 6, (32, 16, 8)) == (32, 16, 8)


@pytest.mark.parametrize("size", [8, 90, 100])
def test_images_that_the_unet_cannot_halve_are_refused(size):
    with pytest.raises(ValueError, match=f"{size} px.*multiple of 16 px"):
        levels(size, 5)
    with pytest.raises(ValueError, match="multiple of 16"):
        Network(size=size)
    assert levels(80, 5) == [80, 40, 20, 10, 5]


def test_told_zeros_add_nothing_and_labels_add_their_column():
    model = awake(Denoiser(Network(**TINY), TOLD))
    assert model.condition.bias is None
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 900])
    told = torch.tensor([[0, 0, 0, 0], [0, 1.0, 0, 0]])
    with torch.no_grad():
        got = model(x, t, told)
        width = model.condition.out_features
        bare = model.unet(x, t, torch.zeros(2, width)).sample
        column = model.unet(x, t, model.condition.weight[:, 1].expand(2, width)).sample
    assert torch.equal(got[0], bare[0])
    assert torch.allclose(got[1], column[1], atol=1e-6)
    assert (got[1] - bare[1]).abs().max() > 1e-3


def test_what_is_not_told_is_unknown_and_a_second_image_is_asked_for():
    model = awake(Denoiser(Network(**TINY), TOLD))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x, 5), model(x, 5, torch.zeros(2, 4)))
    above = awake(Denoiser(Network(**TINY, context=3, haar=1, wiener=True)))
    with pytest.raises(ValueError, match="second image of 3 channels"):
        above(x, 5)
    with torch.no_grad():
        a, b = above(x, 5, context=x), above(x, 5, context=-x)
    assert (a - b).abs().max() > 1e-3


def test_classes_have_a_null_row_that_is_trained():
    one = Conditions({"label": ("a", "b", "c")})
    model = Denoiser(Network(**TINY, embedding="classes"), one)
    assert model.unet.class_embedding.num_embeddings == 4
    told = torch.tensor([[0, 0, 1.0], [1, 0, 0], [0, 0, 0]])
    assert model.classes(told).tolist() == [2, 0, 3]
    model(torch.randn(3, 3, 8, 8), torch.tensor([1, 2, 3]), told).square().sum().backward()
    moved = model.unet.class_embedding.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [True, False, True, True]
    with pytest.raises(ValueError, match="use 'vector'"):
        Denoiser(Network(**TINY, embedding="classes"), TOLD)


# -------------------------------------------------------------------------------- Haar and Wiener
@pytest.mark.parametrize("count", [1, 2, 3])
def test_haar_is_orthonormal_and_begins_with_the_mean(count):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 16, 16, generator=g, dtype=torch.float64)
    c = analyse(x, count)
    side = 2**count
    assert c.shape == (6, 3 * side**2, 16 // side, 16 // side)
    assert torch.allclose(synthesise(c, count), x, atol=1e-12)
    assert torch.allclose(c.square().sum(), x.square().sum(), rtol=1e-12)
    mean = torch.nn.functional.avg_pool2d(x, side) * side
    assert torch.allclose(c[:, :: side**2], mean, atol=1e-12)
    eye = analyse(torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16), count).flatten(1)
    assert torch.allclose(eye @ eye.T, torch.eye(256, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("prediction", ddpm.PREDICTIONS)
@pytest.mark.parametrize("schedule", list(ddpm.SCHEDULES))
def test_the_wiener_start_is_the_optimal_denoiser_of_gaussian_data(prediction, schedule):
    "Against the solution of the normal equations in float64, for data with correlated pixels."
    network = Network(**TINY, prediction=prediction, schedule=schedule, haar=1, wiener=True)
    model = Denoiser(network).double()
    g = torch.Generator().manual_seed(1)
    model.sd.copy_(torch.rand(12, generator=g, dtype=torch.float64) + 0.1)
    model.mean.copy_(torch.randn(12, generator=g, dtype=torch.float64))
    # the same Gaussian in pixels: mean and covariance of all 192 of them
    basis = analyse(torch.eye(192, dtype=torch.float64).view(192, 3, 8, 8), 1).flatten(1)
    wide = model.sd.repeat_interleave(16), model.mean.repeat_interleave(16)
    covariance, mean = basis @ (wide[0] ** 2).diag() @ basis.T, basis @ wide[1]
    noisy = torch.randn(3, 192, generator=g, dtype=torch.float64)
    t = torch.tensor([20, 400, 900])
    got = model(noisy.view(3, 3, 8, 8), t).flatten(1)
    for i, a2 in enumerate(model.signal.double()[t]):
        a, s = a2.sqrt(), (1 - a2).sqrt()
        seen = a2 * covariance + s**2 * torch.eye(192, dtype=torch.float64)
        best = mean + a * covariance @ torch.linalg.solve(seen, noisy[i] - a * mean)
        noise = (noisy[i] - a * best) / s
        right = noise if prediction == "epsilon" else a * noise - s * best
        assert torch.allclose(got[i], right, atol=1e-5)


def test_fit_wiener_takes_the_moments_of_coefficients():
    model = Denoiser(Network(**TINY, haar=1, wiener=True, gain=2.0))
    x = pictures(40)
    ddpm.fit_wiener(model, x)
    c = analyse(to_model(torch.tensor(x), 2.0), 1)
    assert torch.allclose(model.mean, c.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model.sd, c.std((0, 2, 3), correction=0), atol=1e-5)


def test_bytes_survive_the_way_to_the_model_and_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    for gain in (1.0, 2.5):
        assert torch.equal(to_bytes(to_model(every, gain), gain), every)
        assert float(to_model(every, gain).abs().max()) == gain


# --------------------------------------------------------------------------------------- training
def test_flips_are_the_eight_of_a_square_and_keep_pixels():
    x = torch.arange(9.0).view(1, 1, 3, 3).expand(400, 1, 3, 3)
    got = flipped(x, "all", torch.Generator().manual_seed(0))
    square = x[0, 0]
    eight = {
        tuple(torch.rot90(y, k).flatten().tolist()) for y in (square, square.T) for k in range(4)
    }
    assert {tuple(y.flatten().tolist()) for y in got} == eight
    sides = flipped(x, "horizontal", torch.Generator().manual_seed(0))
    assert {tuple(y.flatten().tolist()) for y in sides} == {
        tuple(y.flatten().tolist()) for y in (square, square.flip(-1))
    }
    assert flipped(x, "none", None) is x


def test_dropped_conditions_are_zeros_of_whole_parts():
    told = torch.tensor(TOLD.encode(dict(label=["tumor"] * 4000, domain=["hospital 3"] * 4000)))
    rng = np.random.default_rng(0)
    left = drop_told(told, TOLD, Learning(drop=0.1, drop_each=0.25), rng).bool()
    both, none = left[:, 1] & left[:, 3], ~left.any(1)
    for share, p in ((both, 0.9 * 0.75**2), (none, 0.1 + 0.9 * 0.25**2)):
        assert abs(float(share.float().mean()) - p) < 4 * math.sqrt(p * (1 - p) / 4000)
    assert torch.equal(drop_told(told, TOLD, Learning(drop=0), rng), told)


def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    def run(steps, folder):
        model = Denoiser(Network(**TINY, haar=1, wiener=True), TOLD, seed=1)
        how = Training(steps, 6, lr=1e-3, ema=0.9, every=2)
        learning = Learning(drop=0.3, drop_each=0.2, flips="all", focus=(0.2, 1.1), hold=0.5)
        args = dict(steps=4, folder=folder, progress=False)
        train_ddpm(model, pictures(), told_of(24), how, learning, **args)
        return model.state_dict()

    straight = run(4, tmp_path / "a")
    run(2, tmp_path / "b")
    resumed = run(4, tmp_path / "b")
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    with pytest.raises(ValueError, match="another training"):
        model = Denoiser(Network(**TINY), TOLD)
        train_ddpm(model, pictures(), told_of(24), Training(4, 6), folder=tmp_path / "b")


TRAIN = """
import sys
sys.path[:0] = sys.argv[1:3]
from safetensors.torch import save_file
from skinrepro.core import ranks
from test_ddpm import trained_in_parts
r, n = ranks()
save_file(trained_in_parts(sys.argv[3]), f"{sys.argv[3]}/{n}-{r}.safetensors")
"""


def trained_in_parts(folder):
    "A model after three steps of two micro-batches each."
    model = Denoiser(Network(**TINY, haar=1, wiener=True), TOLD, seed=1)
    how = Training(3, 4, lr=1e-3, ema=0.9, accumulate=2, clip=1.0, every=3)
    learning = Learning(drop=0.3, flips="all", focus=(0.2, 1.1))
    train_ddpm(
        model, pictures(), told_of(24), how, learning, folder=f"{folder}/run", progress=False
    )
    return model.state_dict()


def test_two_processes_train_what_one_trains(tmp_path):
    "Gloo on the CPU stands for NCCL on two GPUs."
    (tmp_path / "train.py").write_text(TRAIN)
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
    launch += " --mixed_precision no --dynamo_backend no --main_process_port 0"
    done = subprocess.run(
        [sys.executable, *launch.split(), "train.py", ROOT, ROOT / "tests", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "one").mkdir()
    one = trained_in_parts(tmp_path / "one")
    for rank in (0, 1):
        other = load_file(tmp_path / f"2-{rank}.safetensors")
        for k in one:
            torch.testing.assert_close(one[k], other[k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", ddpm.PREDICTIONS)
def test_the_loss_is_that_of_ho_et_al_in_float64(prediction, monkeypatch):
    network = Network(**TINY, prediction=prediction)
    model = Denoiser(network, TOLD, seed=2)
    x, told = pictures(6), told_of(6)
    batches = []
    real = ddpm._Batches.__call__
    monkeypatch.setattr(
        ddpm._Batches, "__call__", lambda self, k: batches.append(real(self, k)) or batches[-1]
    )
    before = Denoiser(network, TOLD, seed=2).double()
    log = train_ddpm(model, x, told, Training(1, 6, lr=1e-4), progress=False)
    x, noise, t, told, _ = batches[0]
    a2 = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t]
    a, s = (v.sqrt().view(-1, 1, 1, 1) for v in (a2, 1 - a2))
    target = noise if prediction == "epsilon" else a * noise - s * x
    with torch.no_grad():
        error = before((a * x + s * noise).double(), t, told.double()) - target
    assert float(error.square().mean()) == pytest.approx(log.loss[0], rel=1e-5)


def test_noise_is_drawn_in_32_bits_under_mixed_precision():
    seen = []

    class Spy(Denoiser):
        def forward(self, x, t, told=None, context=None):
            out = super().forward(x, t, told, context)
            seen.append((x.dtype, out.dtype, self.unet.conv_in.weight.dtype))
            return out

    model = Spy(Network(**TINY, haar=1, wiener=True), TOLD)
    how = Training(2, 4, precision="bf16", every=2)
    log = train_ddpm(model, pictures(), told_of(24), how, progress=False)
    assert set(seen) == {(torch.float32,) * 3} and np.isfinite(log.loss).all()


def test_host_and_device_memory_train_alike():
    def run(memory):
        model = Denoiser(Network(**TINY), TOLD)
        how = dict(memory=memory, progress=False)
        train_ddpm(model, pictures(), told_of(24), Training(2, 4, every=2), **how)
        return model.unet.conv_in.weight

    assert torch.equal(run("device"), run("host"))


def test_what_cannot_be_trained_is_refused():
    model, how = Denoiser(Network(**TINY), TOLD), Training(1, 2)
    with pytest.raises(ValueError, match=r"shape \(n, 8, 8, 3\)"):
        train_ddpm(model, pictures(size=16), told_of(24), how)
    with pytest.raises(ValueError, match=r"told must be \(24, 4\)"):
        train_ddpm(model, pictures(), told_of(24)[:, :2], how)
    with pytest.raises(ValueError, match="No image has a label.*train without conditions"):
        train_ddpm(model, pictures(), 0 * told_of(24), how)
    train_ddpm(Denoiser(Network(**TINY)), pictures(), None, how, progress=False)  # the remedies
    train_ddpm(model, pictures(), None, how, progress=False)
    with pytest.raises(ValueError, match="drop = 1"):
        Learning(drop=1.0)


def test_a_model_that_was_told_nothing_learns_labels_later():
    "Its labels and the null are one until then: nothing has moved what tells them apart."
    model, how = Denoiser(Network(**TINY), TOLD), Training(2, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_ddpm(model, pictures(), None, how, progress=False)
    after = model.state_dict()
    assert not torch.equal(after["unet.conv_in.weight"], before["unet.conv_in.weight"])
    assert torch.equal(after["condition.weight"], before["condition.weight"])
    train_ddpm(model, pictures(), told_of(24), how, progress=False)
    assert not torch.equal(model.condition.weight, before["condition.weight"])


def test_the_average_forgets_its_start():
    "Closed form: 10! n! / (n + 9)! of the weights after the first step are left after n."
    from skinrepro import loop

    p = torch.nn.Parameter(torch.tensor(7.0, dtype=torch.float64))
    average = loop._average([p], 0.9999)
    for n in range(1, 31):
        p.data.fill_(1.0 if n == 1 else 0.0)
        average.step([p])
        right = math.factorial(10) * math.factorial(n) / math.factorial(n + 9)
        assert float(average.shadow_params[0]) == pytest.approx(right, rel=1e-9)


# --------------------------------------------------------------------------------------- sampling
@pytest.mark.parametrize("prediction", ddpm.PREDICTIONS)
@pytest.mark.parametrize("schedule", list(ddpm.SCHEDULES))
@pytest.mark.parametrize(("method", "steps"), [("ancestral", 20), ("ancestral", 50), ("ddim", 20)])
def test_sampling_equals_the_pipelines_of_diffusers(prediction, schedule, method, steps):
    network = Network(**TINY, prediction=prediction, schedule=schedule)
    model = awake(Denoiser(network))
    seeds = [3, 4]
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    call = dict(batch_size=2, generator=generators, num_inference_steps=steps, output_type="np")
    if method == "ancestral":
        pipe = DDPMPipeline(model.unet, network.scheduler())
    else:
        scheduler = DDIMScheduler.from_config(network.scheduler().config)
        pipe = DDIMPipeline(model.unet, scheduler)
        # DDIMPipeline replaces the scheduler by one with its default spacing
        pipe.scheduler = scheduler
        call |= dict(use_clipped_model_output=True)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(**call).images
    again = [torch.Generator().manual_seed(s) for s in seeds]
    noise = torch.stack([torch.randn(3, 8, 8, generator=g) for g in again])
    ours = walk(model, noise, None, Sampling(method, steps), generators=again)
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - theirs).max() < 1e-5
    assert theirs.std() > 0.1


@pytest.mark.parametrize("method", ddpm.METHODS)
def test_an_image_does_not_depend_on_its_batch(method):
    model = awake(Denoiser(Network(**TINY), TOLD))
    told = told_of(6)
    how = Sampling(method, 10, omega=0.5)
    together = draw_images(model, told, range(6), how)
    apart = draw_images(model, told, range(6), how, batch_size=1)
    backwards = draw_images(model, told[::-1], range(5, -1, -1), how, batch_size=4)[::-1]
    assert np.abs(together.astype(int) - apart).max() <= 1
    assert np.abs(together.astype(int) - backwards).max() <= 1
    assert np.abs(together[0].astype(int) - together[2]).max() > 5  # its seed is its own


def test_omega_is_scale_less_one_and_only_one_of_them_is_given():
    assert Sampling(omega=0.5).guidance == Sampling(scale=1.5).guidance == 1.5
    assert Sampling().guidance == 1.0
    with pytest.raises(ValueError, match="scale is omega \\+ 1"):
        Sampling(omega=0.5, scale=1.5)
    model = awake(Denoiser(Network(**TINY), TOLD))
    x, told = torch.randn(2, 3, 8, 8), torch.tensor(told_of(2))
    with torch.no_grad():
        with_, without = model(x, 500, told), model(x, 500, 0 * told)
        got = ddpm.guided_prediction(model, x, 500, told, 0 * told, torch.tensor([1.5, 3.0]))
    omega = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    assert torch.allclose(got, (1 + omega) * with_ - omega * without, atol=1e-5)


def test_guidance_away_from_an_unknown_label_keeps_the_hospital():
    model = awake(Denoiser(Network(**TINY), TOLD))
    asked = []
    forward = model.forward
    model.forward = lambda x, t, told, context: asked.append(told) or forward(x, t, told, context)
    told = TOLD.encode(dict(label=["tumor"], domain=["hospital 3"]))
    draw_images(model, told, [0], Sampling("ddim", 2, scale=2, away_from=("label",)))
    assert asked[0].tolist() == [[0, 0, 0, 1], [0, 1, 0, 1]]
    asked.clear()
    draw_images(model, told, [0], Sampling("ddim", 2, scale=2))
    assert asked[0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 1]]
    asked.clear()
    draw_images(model, told, [0], Sampling("ddim", 4, scale=2, between=(600, 800)))
    assert [len(a) for a in asked] == [1, 2, 1, 1]  # time steps 999, 749, 499, 249
    with pytest.raises(ValueError, match="'parts' = 'site'|parts = 'site'"):
        draw_images(model, told, [0], Sampling("ddim", 2, scale=2, away_from=("site",)))


def test_the_last_steps_can_be_left_out():
    model = awake(Denoiser(Network(**TINY)))
    asked = []
    forward = model.forward
    model.forward = lambda x, t, *a: asked.append((int(t), x)) or forward(x, t, *a)
    noise = torch.randn(2, 3, 8, 8)
    got = walk(model, noise, None, Sampling("ddim", 10, finish=300))
    assert [t for t, _ in asked] == [999, 899, 799, 699, 599, 499, 399]
    t, x = asked[-1]
    a, s = model.signal[t].sqrt(), (1 - model.signal[t]).sqrt()
    with torch.no_grad():
        right = ((x - s * forward(x, torch.tensor(t))) / a).clamp(-1, 1)
    assert torch.allclose(got, right, atol=1e-5)
    asked.clear()
    walk(model, noise, None, Sampling("ddim", 10))
    assert len(asked) == 10


def test_half_precision_of_the_network_changes_images_little():
    model, _ = gaussian_world()
    awake(model)
    full, half = (
        draw_images(model, None, range(4), Sampling("ddim", 10, precision=p)).astype(int)
        for p in ("no", "bf16")
    )
    assert 0 < np.abs(full - half).mean() < 3


def test_steps_that_do_not_divide_the_training_warn():
    network = Network(**TINY)
    with pytest.warns(UserWarning, match="30 steps do not divide 1000.*Take 25"):
        Sampling("ddim", 30).scheduler(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walker = Sampling("ddim", 25).scheduler(network)
    assert walker.timesteps.tolist() == list(range(999, 0, -40))
    with pytest.raises(ValueError, match="trained with 1000"):
        Sampling("ddim", 2000).scheduler(network)
    with pytest.raises(ValueError, match="whole number from 1"):
        Sampling("ddim", 0)


def gaussian_world(spread=0.15, **more):
    "A denoiser that is optimal for images of independent Gaussian pixels around a colour."
    centre = torch.tensor([0.45, -0.3, 0.2])
    how = dict(prediction="v_prediction", schedule="cosine", haar=1, wiener=True) | more
    model = Denoiser(Network(**TINY, **how))
    model.mean.copy_(analyse(centre.view(1, 3, 1, 1).expand(1, 3, 8, 8), 1)[0, :, 0, 0])
    model.sd.fill_(spread)
    g = torch.Generator().manual_seed(0)
    real = to_bytes(centre.view(3, 1, 1) + spread * torch.randn(200, 3, 8, 8, generator=g)).numpy()
    return model, real


@pytest.mark.parametrize(
    "how",
    [Sampling("ancestral", 100), Sampling("ddim", 50), Sampling("dpm", 25)],
    ids=lambda h: h.method,
)
@pytest.mark.parametrize("prediction", ddpm.PREDICTIONS)
def test_drawn_images_have_the_colours_of_the_data(how, prediction):
    model, real = gaussian_world(prediction=prediction)
    drift = colour_drift(draw_images(model, None, range(200), how, batch_size=200), real)
    assert (drift.drift.abs() < 4 * drift.error).all(), drift
    assert drift.spread.between(0.75, 1.25).all(), drift


def test_a_tint_is_seen():
    model, real = gaussian_world()
    made = draw_images(model, None, range(200), Sampling("ddim", 25), batch_size=200)
    tinted = (made.astype(int) + np.array([0, 2, 0])).clip(0, 255).astype(np.uint8)
    drift = colour_drift(tinted, real)
    assert (drift.drift.abs() < 4 * drift.error).tolist() == [True, False, True]


def test_a_trained_model_has_no_tint():
    "Colours that a label decides, learned from pixels without a Wiener start."
    centre = np.array([[200, 60, 120], [60, 160, 90]])
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    real = (centre[label][:, None, None] + rng.normal(0, 15, (200, 8, 8, 3))).clip(0, 255)
    real = real.astype(np.uint8)
    told = Conditions({"label": ("a", "b")})
    network = Network(**TINY, prediction="v_prediction", schedule="cosine")
    model = Denoiser(network, told)
    wish = told.encode(dict(label=np.array(["a", "b"])[label]))
    settings = Training(200, 32, lr=3e-3, ema=0.99, every=100)
    train_ddpm(model, real, wish, settings, Learning(warm=10, hold=0.4), progress=False)
    made = draw_images(model, wish[:64], range(64), Sampling("ddim", 20))
    for k in (0, 1):
        drift = colour_drift(made[label[:64] == k], real[label == k])
        assert (drift.drift.abs() < 12).all(), drift


# ---------------------------------------------------------------------------------------- keeping
def test_a_kept_model_is_the_same_and_a_changed_file_is_refused(tmp_path):
    films = Conditions({"finding": ("a", "b"), "sex": ("F", "M")}, ("finding",), ("age",))
    model = awake(Denoiser(Network(**TINY, haar=1, wiener=True, gain=2.0), films))
    ddpm.fit_wiener(model, pictures())
    found = load_ddpm(save_ddpm(tmp_path, model))
    assert found.network == model.network and found.conditions == films
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in found.state_dict().items())
    about = json.loads((tmp_path / "ddpm.json").read_text())
    assert about["parameters"] == model.parameter_count()
    other = awake(Denoiser(Network(**TINY, haar=1, wiener=True, gain=2.0), films, seed=9))
    save_ddpm(tmp_path / "other", other)
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not the file that"):
        load_ddpm(tmp_path)
    with pytest.raises(FileNotFoundError, match="teach_ddpm write"):
        load_ddpm(tmp_path / "nowhere")


def test_a_model_that_is_told_less_is_the_one_to_which_the_rest_is_unknown(tmp_path):
    whole = dict(label=("normal", "tumor"), finding=("edema", "mass"), domain=("a", "b", "c"))
    wide = Denoiser(Network(**TINY), Conditions(whole, ("finding",), ("age",)))
    awake(wide)
    folder = save_ddpm(tmp_path / "wide", wide)
    fewer = Conditions(dict(domain=whole["domain"], finding=whole["finding"]), ("finding",))
    narrow = load_ddpm(ddpm.told_less(folder, fewer, tmp_path))
    rows = dict(domain=["c", "a", None], finding=["mass", (), None])
    nothing = dict(label=[None] * 3, age=[None] * 3)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([3, 500, 990])
    with torch.no_grad():
        expected = wide.eval()(x, t, torch.tensor(wide.conditions.encode(rows | nothing)))
        answer = narrow(x, t, torch.tensor(fewer.encode(rows)))
        unlike = narrow(x, t, torch.tensor(fewer.encode(dict(rows, domain=["b", "a", None]))))
    # the parts have another order, and sums another rounding
    assert torch.allclose(answer, expected, atol=1e-5)
    assert (answer[0] - unlike[0]).abs().max() > 1e-3 and torch.equal(answer[1:], unlike[1:])


def test_a_model_is_told_less_once_and_only_of_what_it_knows(tmp_path):
    told = Conditions(dict(label=("a", "b"), finding=("c", "d")), ("finding",))
    folder = save_ddpm(tmp_path / "wide", Denoiser(Network(**TINY), told))
    assert ddpm.told_less(folder, told, tmp_path) == folder
    less = Conditions(dict(label=("a", "b")))
    made = ddpm.told_less(folder, less, tmp_path)
    assert ddpm.told_less(folder, less, tmp_path) == made != folder
    for other in (
        Conditions(dict(label=("b", "a"))),
        Conditions(dict(label=("a", "b"), sex=("female", "male"))),
        Conditions(dict(finding=("c", "d"))),  # one of them, where it learned any number
        Conditions(dict(finding=("c", "d")), ("finding",), absent=0.0),
        Conditions(numbers=("age",)),
        Conditions(),
    ):
        with pytest.raises(ValueError, match="was told .*'finding', 'label'.* train one anew"):
            ddpm.told_less(folder, other, tmp_path)


def test_made_once_with_points_on_the_way(tmp_path):
    read = []

    def images():
        read.append(1)
        return pictures()

    settings = Training(4, 4, lr=1e-3, every=2)
    asked = dict(network=Network(**TINY), conditions=TOLD, progress=False, told=told_of(24))
    through = teach_ddpm(
        images, settings=settings, home=tmp_path, data="noise", points=[2], **asked
    )
    assert (
        teach_ddpm(images, settings=settings, home=tmp_path, data="noise", points=[2], **asked)
        == through
    )
    assert len(read) == 1 and not (through / "training").exists()
    straight = teach_ddpm(pictures(), settings=settings, home=tmp_path, **asked)
    assert straight != through
    assert load_ddpm(straight).weights_hash == load_ddpm(through).weights_hash
    half = load_ddpm(ddpm.step_folder(through, 2))
    assert half.weights_hash != load_ddpm(through).weights_hash
    with pytest.raises(ValueError, match="`data` must name"):
        teach_ddpm(images, settings=settings, home=tmp_path, **asked)
    with pytest.raises(ValueError, match="points"):
        teach_ddpm(pictures(), settings=settings, home=tmp_path, points=[4], **asked)
