"""What textual inversion and LoRA may change, and what happens when they are killed, fed nonsense,
or run out of memory.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from skinrepro import personalise
from skinrepro.denoise import (
    denoising_loss,
    draw_generator,
    draw_key,
    draw_noise,
    draw_rows,
    training_scheduler,
)
from skinrepro.latent import (
    Latents,
    encode_prompts,
    module_hash,
    prompt_ids,
    toy_base,
    toy_latents,
)
from skinrepro.loop import Training, TrainingError, checkpoints
from skinrepro.personalise import (
    fine_tune,
    lora,
    loras,
    personalised,
    prompted_loss,
    save_embeddings,
    textual_inversion,
)

TOKENS = ["<nem-class>", "<neu-class>", "<pru-class>"]
CONCEPTS = [TOKENS[i % 3] for i in range(12)]
PROMPTS = [
    f"An image of psoriasis on the skin of a {tone}-skinned individual"
    for tone in ("dark", "light", "very light") * 4
]
WORDS_FAST = Training(6, batch_size=2, accumulate=2, lr=4e-2, weight_decay=1e-2, every=2)
LORA_FAST = Training(6, batch_size=2, lr=1e-3, clip=1.0, weight_decay=1e-2, every=2)


def toy(seed=0, dtype=torch.float32):
    return toy_base(seed, dtype=dtype, noise_offset=0.3)


def changed(settings, options):
    "Settings with those of the options that are settings; they are taken out of the options."
    own = {k: options.pop(k) for k in list(options) if k in asdict(settings)}
    return replace(settings, **own)


def words(base, latents=None, concepts=CONCEPTS, **options):
    settings = changed(WORDS_FAST, options)
    latents = toy_latents() if latents is None else latents
    return textual_inversion(base, latents, concepts, settings, progress=False, **options)


def low_rank(base, latents=None, prompts=PROMPTS, rank=2, **options):
    settings = changed(LORA_FAST, options)
    latents = toy_latents() if latents is None else latents
    return lora(base, latents, prompts, settings, rank, progress=False, **options)


def tune(base, latents=None, prompts=PROMPTS, **options):
    settings = changed(LORA_FAST, options)
    latents = toy_latents() if latents is None else latents
    return fine_tune(base, latents, prompts, settings, progress=False, **options)


def table(base):
    return base.text_encoder.get_input_embeddings().weight.detach()


def ab(base):
    return {k: v.clone() for k, v in base.unet.state_dict().items() if "lora_" in k}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def states(base):
    return {
        p: {k: v.clone() for k, v in getattr(base, p).state_dict().items()}
        for p in ("vae", "text_encoder", "unet")
    }


def picture(pipe):
    return pipe(
        PROMPTS[0],
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]


# ------------------------------------------------------------------------------------------------
# what is changed
def test_textual_inversion_changes_its_rows_and_nothing_else():
    base = toy()
    old = states(base)
    vocabulary = base.tokenizer.get_vocab()
    n = len(table(base))
    words(base)
    new = states(base)
    key = next(k for k in new["text_encoder"] if k.endswith("token_embedding.weight"))
    rows = new["text_encoder"].pop(key)
    assert torch.equal(rows[:n], old["text_encoder"].pop(key)) and len(rows) == n + 3
    assert all(same(old[p], new[p]) for p in old)
    start = rows[vocabulary["skin"]]
    assert ((rows[n:] - start).abs().amax(1) > 0.05).all() and not torch.equal(rows[n], rows[n + 1])
    assert base.tokenizer.get_vocab() == vocabulary | {t: n + i for i, t in enumerate(TOKENS)}
    assert not any(
        p.requires_grad for m in (base.text_encoder, base.unet, base.vae) for p in m.parameters()
    )


def official(base, latents, token, steps, batch_size, accumulate, lr, seed=0):
    "The usual way: the whole table is trained, and after each step the other rows are put back."
    tok, text, unet, scheduler = (
        base.tokenizer,
        base.text_encoder,
        base.unet,
        training_scheduler(base.scheduler),
    )
    tok.add_tokens(token)
    new = tok.convert_tokens_to_ids(token)
    text.resize_token_embeddings(len(tok), mean_resizing=False)
    weight = text.get_input_embeddings().weight.requires_grad_()
    with torch.no_grad():
        weight[new] = weight[tok.convert_tokens_to_ids("skin")]
    kept = weight.detach().clone()
    others = torch.arange(len(kept)) != new
    opt = torch.optim.AdamW([weight], lr * batch_size * accumulate, weight_decay=1e-2)
    for step in range(steps):
        for k in range(step * accumulate, (step + 1) * accumulate):
            g = draw_generator("cpu", seed, token, k)
            z = latents.sample(draw_rows(len(latents), batch_size, k, seed, token), g)
            noise, t = draw_noise(z, 1000, g, base.noise_offset)
            which = np.random.default_rng([seed, draw_key("template", token), k]).integers(
                0, 11, batch_size
            )
            ids = prompt_ids(base, [personalise.TEMPLATES[i].format(token) for i in which])
            target = scheduler.get_velocity(z, noise, t)
            out = unet(scheduler.add_noise(z, noise, t), t, text(ids)[0]).sample
            (torch.nn.functional.mse_loss(out, target) / accumulate).backward()
        opt.step()
        opt.zero_grad()
        with torch.no_grad():
            weight[others] = kept[others]
    return weight.detach()[new]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_words_together_alone_and_the_usual_way_are_the_same(dtype, tolerance):
    base = toy(dtype=dtype)
    n = len(table(base))
    z = toy_latents(dtype=dtype)
    words(base, z, CONCEPTS)
    assert (
        table(base)[n:] - table(base)[10]
    ).abs().max() > 0.2  # they have moved a thousand times the tolerance
    for i, token in enumerate(TOKENS):
        rows = [j for j, c in enumerate(CONCEPTS) if c == token]
        own = Latents(z.mean[rows], z.std[rows], 1.0, "part")
        alone = toy(dtype=dtype)
        words(alone, own, [token] * len(rows))
        usual = official(toy(dtype=dtype), own, token, 6, 2, 2, 1e-2)
        assert (table(alone)[-1] - table(base)[n + i]).abs().max() < tolerance
        assert (usual - table(base)[n + i]).abs().max() < tolerance
    apart = toy(dtype=dtype)
    log = words(apart, z, CONCEPTS, together=False)
    assert (table(apart) - table(base)).abs().max() < tolerance and log.token.tolist() == [
        t for t in TOKENS for _ in range(3)
    ]


def test_lora_leaves_the_base_and_weight_0_is_the_base():
    base = toy()
    before = picture(base.pipeline())
    old = states(base)
    low_rank(base)
    own = {
        k.replace(".base_layer", ""): v
        for k, v in base.unet.state_dict().items()
        if "lora_" not in k
    }
    assert same(old["unet"], own) and all(
        same(old[p], states(base)[p]) for p in ("vae", "text_encoder")
    )
    after = picture(base.pipeline())
    assert not np.array_equal(before, after)
    pipe = base.pipeline()
    pipe.set_adapters("default", 0.0)
    assert np.array_equal(picture(pipe), before)
    base.unet.unload_lora()
    assert same(old["unet"], base.unet.state_dict()) and np.array_equal(
        picture(base.pipeline()), before
    )


def test_lora_is_the_usual_lora():
    "The losses and the weights of a plain loop with peft that encodes the prompts at each step."
    from peft import LoraConfig

    base = toy()
    log = low_rank(base, every=1)
    other = toy()
    z = toy_latents()
    scheduler = training_scheduler(other.scheduler)
    torch.manual_seed(0)
    other.unet.add_adapter(
        LoraConfig(
            r=2,
            lora_alpha=2,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    learned = [p for p in other.unet.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(learned, 1e-3, weight_decay=1e-2)
    losses = []
    for step in range(6):
        g = draw_generator("cpu", 0, "lora", step)
        i = draw_rows(12, 2, step, 0, "lora")
        x = z.sample(i, g)
        noise, t = draw_noise(x, 1000, g, other.noise_offset)
        text = other.text_encoder(prompt_ids(other, [PROMPTS[j] for j in i]))[0]
        value = torch.nn.functional.mse_loss(
            other.unet(scheduler.add_noise(x, noise, t), t, text).sample,
            scheduler.get_velocity(x, noise, t),
        )
        value.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        opt.step()
        opt.zero_grad()
        losses.append(value.item())
    assert np.allclose(log.loss, losses, rtol=1e-6)
    assert (
        all(torch.allclose(v, ab(other)[k], atol=1e-6) for k, v in ab(base).items())
        and len({*losses}) == 6
    )


def test_accumulated_batches_are_one_large_batch(monkeypatch):
    "8 images are 8 images; the draws are tied to the micro-batch, so they are given here."
    z = toy_latents(8)
    noise, t = draw_noise(z.mean[:, 0], 1000, torch.Generator().manual_seed(3))
    monkeypatch.setattr(Latents, "sample", lambda self, i, g: self.mean[torch.as_tensor(i), 0])

    def given(like, *_):  # the noise that belongs to these latents, whatever their order
        i = [int((z.mean[:, 0] == x).flatten(1).all(1).nonzero()) for x in like]
        return noise[i], t[i]

    monkeypatch.setattr(personalise, "draw_noise", given)
    one, four = toy(dtype=torch.float64), toy(dtype=torch.float64)
    low_rank(one, z, PROMPTS[:8], steps=2, batch_size=8)
    low_rank(four, z, PROMPTS[:8], steps=2, batch_size=2, accumulate=4)
    assert all(torch.allclose(v, ab(four)[k], atol=1e-6) for k, v in ab(one).items())


# ------------------------------------------------------------------------------------------------
# saved files
FRESH = """
    import sys
    import numpy as np, torch
    from diffusers import StableDiffusionPipeline
    folder, prompt = sys.argv[1:3]
    pipe = StableDiffusionPipeline.from_pretrained(f'{folder}/base', safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    for name in ('nem-class', 'neu-class', 'pru-class'):
        pipe.load_textual_inversion(f'{folder}/{name}.safetensors')
    pipe.load_lora_weights(folder, weight_name='pytorch_lora_weights.safetensors')
    how = dict(num_inference_steps=3, guidance_scale=2., output_type='np')
    image = pipe(prompt, generator=torch.Generator().manual_seed(0), **how).images[0]
    assert not any(m.startswith('skinrepro') for m in sys.modules)
    np.save(f'{folder}/image.npy', image)
"""


def test_a_plain_diffusers_process_makes_the_same_image(tmp_path):
    prompt = "An image of <neu-class> on the skin of a dark-skinned individual"
    base = toy()
    base.pipeline().save_pretrained(tmp_path / "base")
    words(base, folder=tmp_path)
    # alpha other than rank, so that a loader that forgets it is noticed
    low_rank(base, toy_latents(), [prompt] * 12, folder=tmp_path, alpha=6, lr=1e-2)

    def draw(b):
        return b.pipeline()(
            prompt,
            num_inference_steps=3,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]

    want = draw(base)
    assert np.array_equal(draw(personalised(toy(), tmp_path, tmp_path)), want)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FRESH), tmp_path, prompt],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert np.abs(np.load(tmp_path / "image.npy") - want).max() < 1e-5
    assert (
        np.abs(draw(personalised(toy(), tmp_path)) - want).max() > 1e-3
    )  # without the LoRA it is another image
    token, vector = next(iter(load_file(tmp_path / "neu-class.safetensors").items()))
    assert token == "<neu-class>" and vector.shape == (1, 32) and vector.dtype == torch.float32


def test_one_lora_per_condition(tmp_path):
    base = toy()
    old = states(base)
    log = loras(base, toy_latents(), PROMPTS, CONCEPTS, LORA_FAST, tmp_path, rank=2, progress=False)
    assert all(same(old[p], states(base)[p]) for p in old) and log.groupby(
        "concept"
    ).step.max().to_dict() == dict.fromkeys(TOKENS, 5)
    only = toy()
    low_rank(only, rows=[1, 4, 7, 10])
    assert same(ab(personalised(toy(), lora=tmp_path / "neu-class")), ab(only))
    assert not same(ab(personalised(toy(), lora=tmp_path / "nem-class")), ab(only))


def test_personalised_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="textual_inversion"):
        personalised(toy(), tmp_path)
    with pytest.raises(FileNotFoundError, match="pytorch_lora_weights"):
        personalised(toy(), lora=tmp_path)
    save_embeddings(tmp_path, {"<x>": torch.zeros(7)})
    with pytest.raises(ValueError, match="'<x>'.* 7 numbers.* 32"):
        personalised(toy(), tmp_path)


# ------------------------------------------------------------------------------------------------
# killed and resumed
def train(kind, folder, **options):
    "The result of a training, as tensors."
    base = toy()
    if kind == "lora":
        low_rank(base, folder=folder, ema=0.9, **options)
        return ab(base)
    if kind == "whole":
        tune(base, folder=folder, ema=0.9, weights=np.arange(12.0), **options)
        return base.unet.state_dict()
    words(base, folder=folder, together=kind == "together", **options)
    return {"rows": table(base).clone()}


def train_until_killed(kind, folder, calls):
    real, count = personalise.denoising_loss, iter(range(10**6))

    def deadly(*args, **told):
        if next(count) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **told)

    personalise.denoising_loss = deadly
    train(kind, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    "kind, calls, at", [("lora", 5, 3), ("whole", 5, 3), ("together", 7, 1), ("apart", 20, 3)]
)
def test_killed_and_resumed_is_uninterrupted(tmp_path, kind, calls, at):
    whole = train(kind, tmp_path / "whole")
    p = multiprocessing.get_context("fork").Process(
        target=train_until_killed, args=(kind, tmp_path / "killed", calls)
    )
    p.start()
    p.join(100)
    assert p.exitcode == -signal.SIGKILL
    files = sorted((tmp_path / "killed").rglob("checkpoint-*"))
    assert files[-1].name == f"checkpoint-{at:05d}", files
    done = [*(tmp_path / "killed").glob("*.safetensors"), *(tmp_path / "killed").glob("unet")]
    assert not done  # nothing that looks finished
    calls = []
    real = personalise.denoising_loss
    with pytest.MonkeyPatch.context() as m:
        m.setattr(personalise, "denoising_loss", lambda *a, **k: calls.append(1) or real(*a, **k))
        assert same(train(kind, tmp_path / "killed"), whole)
    assert 0 < len(calls) < {"lora": 6, "whole": 6, "together": 12, "apart": 36}[kind]


def test_more_steps_go_on_and_other_settings_are_refused(tmp_path):
    longer = train("lora", tmp_path / "a", steps=9)
    train("lora", tmp_path / "b")
    assert same(train("lora", tmp_path / "b", steps=9), longer)
    for options, what in [
        (dict(lr=2e-3), "lr: 0.001 there, 0.002 now"),
        (dict(seed=1), "seed"),
        (dict(targets=["to_q"]), "targets"),
    ]:
        with pytest.raises(ValueError, match=what):
            train("lora", tmp_path / "b", **options)
    other = toy()
    other.weights_hash = "1" * 64
    with pytest.raises(ValueError, match="base:"):
        low_rank(other, folder=tmp_path / "b", ema=0.9)
    (tmp_path / "b" / "training.json").unlink()  # nobody knows what this checkpoint is of
    with pytest.raises(ValueError, match="another training"):
        train("lora", tmp_path / "b")


def test_samples_do_not_change_the_training(tmp_path):
    plain = train("together", None)
    assert same(train("together", tmp_path, sample_every=3), plain)
    assert sorted(f.name for f in tmp_path.rglob("*.png")) == ["step-00003.png", "step-00006.png"]
    assert (
        same(train("lora", tmp_path / "lora", sample_every=2), train("lora", None))
        and len(list((tmp_path / "lora").rglob("*.png"))) == 3
    )


# ------------------------------------------------------------------------------------------------
# bad input
def fail_at(monkeypatch, call, make):
    real, count = personalise.denoising_loss, iter(range(10**6))
    monkeypatch.setattr(
        personalise,
        "denoising_loss",
        lambda *a, **k: make(real(*a, **k)) if next(count) == call else real(*a, **k),
    )


@pytest.mark.parametrize("kind, call", [("lora", 5), ("together", 11)])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, kind, call
):
    fail_at(monkeypatch, call, lambda loss: loss * float("nan"))
    base = toy()
    old = states(base)
    with pytest.raises(TrainingError, match="not finite in step 5.*checkpoint of step 3 is kept"):
        if kind == "lora":
            low_rank(base, folder=tmp_path)
        else:
            words(base, folder=tmp_path)
    place = tmp_path if kind == "lora" else tmp_path / "training" / "all"
    (kept,) = checkpoints(place)
    assert kept.name == "checkpoint-00003"
    assert all(v.isfinite().all() for v in load_file(kept / "model.safetensors").values())
    assert all(same(old[p], states(base)[p]) for p in old) and not list(
        tmp_path.glob("*.safetensors")
    )  # the base is as it was


def test_gpu_memory_names_a_batch_size_to_try():
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    base = toy()
    old = states(base)
    base.unet.forward = full
    with pytest.raises(TrainingError, match="batch_size=4.*Try batch_size=2, accumulate=2"):
        low_rank(base, batch_size=4)
    assert same(old["unet"], base.unet.state_dict())
    with pytest.raises(
        TrainingError, match="6 images at a time.*batch_size=1, accumulate=4.*together=False"
    ):
        words(base)
    with pytest.raises(TrainingError, match="bf16"):
        low_rank(base, batch_size=1)


def test_a_token_that_exists_is_refused():
    base = toy()
    words(base)
    old = states(base)
    for token in ("<neu-class>", "psoriasis"):
        with pytest.raises(ValueError, match=f"{token}.*exists already.*another name"):
            words(base, toy_latents(), [token] * 12)
    assert all(same(old[p], states(base)[p]) for p in old)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(concepts=CONCEPTS[:5]), "5 concepts for 12 images"),
        (dict(concepts=[*CONCEPTS[:11], None]), r"concepts\[11\]"),
        (dict(concepts=["two words"] * 12), "is no token"),
        (dict(concepts=["<end>x"] * 12), "read back as one token"),
        (dict(concepts=["<a>", "a>"] * 6), "same file name"),
        (dict(init="xylophone"), "init = 'xylophone'"),
        (dict(init="dark skin"), "not one word"),
        (dict(templates=["a photo"]), "must hold"),
        (
            dict(templates=[" ".join(["very"] * 30) + " {}"]),
            "too long for toy.*20|longer than the 20 tokens",
        ),
        (dict(steps=0), "steps = 0"),
    ],
)
def test_bad_words(change, message):
    base = toy()
    n = len(table(base))
    with pytest.raises(ValueError, match=message):
        words(base, **change)
    assert len(table(base)) == n and len(base.tokenizer) == n


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompts=PROMPTS[:5]), "5 prompts for 12 images"),
        (dict(prompts=["very " * 30] * 12), "too long for toy.*20|longer than the 20 tokens"),
        (dict(weights=np.zeros(12)), "not all 0"),
        (dict(weights=np.ones(3)), "12 finite numbers"),
        (dict(rows=[]), "rows is empty"),
        (dict(targets=["to_nothing"]), "to_nothing"),
    ],
)
def test_bad_lora(change, message):
    base = toy()
    old = states(base)
    with pytest.raises(ValueError, match=message):
        low_rank(base, **change)
    assert same(old["unet"], base.unet.state_dict())
    low_rank(base)  # and it can be tried again at once
    with pytest.raises(ValueError, match="has a LoRA already"):
        low_rank(base)


# ------------------------------------------------------------------------------------------------
# options
def test_sampling_weights_are_used(monkeypatch):
    seen = []
    real = Latents.sample
    monkeypatch.setattr(
        Latents, "sample", lambda self, i, g: seen.extend(map(int, i)) or real(self, i, g)
    )
    w = np.zeros(12)
    w[[2, 7]] = 1, 3
    low_rank(toy(), weights=w, batch_size=50, steps=2)
    assert set(seen) == {2, 7} and 0.6 < np.mean(np.array(seen) == 7) < 0.9


@pytest.mark.parametrize("kind", ["lora", "words"])
def test_mixed_precision_trains_in_16_bits_and_keeps_the_base_in_32(kind):
    full, half = toy(), toy()
    old = states(half)
    types = []
    forward = UNet2DConditionModel.forward
    with pytest.MonkeyPatch.context() as m:
        for base, precision in ((full, "no"), (half, "bf16")):
            m.setattr(
                UNet2DConditionModel,
                "forward",
                lambda self, x, *a, **k: types.append(x.dtype) or forward(self, x, *a, **k),
            )
            if kind == "lora":
                low_rank(base, precision=precision)
            else:
                words(base, precision=precision)
    assert set(types) == {torch.float32, torch.bfloat16}
    if kind == "lora":
        own = {
            k.replace(".base_layer", ""): v
            for k, v in half.unet.state_dict().items()
            if "lora_" not in k
        }
        assert same(old["unet"], own) and all(v.dtype == torch.float32 for v in ab(half).values())
        assert all((v - ab(full)[k]).abs().max() < 8e-3 for k, v in ab(half).items()) and not same(
            ab(half), ab(full)
        )
    else:
        n = len(old["text_encoder"]["embeddings.token_embedding.weight"])
        start = table(full)[10]
        assert torch.equal(table(half)[:n], table(full)[:n]) and table(half).dtype == torch.float32
        a, b = (
            table(half)[n:] - start,
            table(full)[n:] - start,
        )  # the same direction, not the same numbers
        assert torch.nn.functional.cosine_similarity(a, b).min() > 0.9 and not torch.equal(a, b)


def test_the_log_is_on_disk(tmp_path):
    import pandas as pd

    log = low_rank(toy(), folder=tmp_path)
    assert log.columns.tolist() == [
        "step",
        "lr",
        "loss",
        "images",
        "seconds",
    ] and log.step.tolist() == [1, 3, 5]
    assert pd.read_csv(tmp_path / "log.csv").step.tolist() == [1, 3, 5]
    assert json.loads((tmp_path / "training.json").read_text())["rank"] == 2
    assert Path(tmp_path / "pytorch_lora_weights.safetensors").is_file()


# ------------------------------------------------------------------------------
# all of the UNet
def test_fine_tuning_moves_every_weight_of_the_unet_and_nothing_else():
    base = toy()
    old = states(base)
    log = tune(base, toy_latents(1, 1), PROMPTS[:1], steps=60, batch_size=8, lr=3e-3, every=12)
    assert log.loss.iloc[-1] < 0.7 * log.loss.iloc[0]
    new = states(base)
    assert not any(torch.equal(v, new["unet"][k]) for k, v in old["unet"].items())
    assert all(same(old[p], new[p]) for p in ("vae", "text_encoder"))
    assert base.weights == "toy + fine-tuning" and base.weights_hash != toy().weights_hash
    assert not base.unet.training and not any(p.requires_grad for p in base.unet.parameters())


def test_fine_tuning_is_the_usual_loop_with_the_draws_of_lora(monkeypatch):
    # in float64: Adam makes a whole step of a gradient that is nothing but rounding
    base, other = toy(dtype=torch.float64), toy(dtype=torch.float64)
    z = toy_latents(dtype=torch.float64)
    log = tune(base, z, clip=None, every=1)
    other.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(other.unet.parameters(), 1e-3, weight_decay=1e-2)
    losses = []
    for step in range(6):
        g = draw_generator("cpu", 0, "lora", step)
        i = draw_rows(12, 2, step, 0, "lora")
        x = z.sample(i, g)
        noise, t = draw_noise(x, 1000, g, other.noise_offset)
        text = other.text_encoder(prompt_ids(other, [PROMPTS[j] for j in i]))[0]
        scheduler = training_scheduler(other.scheduler)
        out = other.unet(scheduler.add_noise(x, noise, t), t, text).sample
        value = torch.nn.functional.mse_loss(out, scheduler.get_velocity(x, noise, t))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert np.allclose(log.loss, losses, rtol=1e-5)
    moved = zip(base.unet.parameters(), other.unet.parameters())
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in moved)
    seen = []
    real = Latents.sample
    monkeypatch.setattr(
        Latents, "sample", lambda self, i, g: seen.append(real(self, i, g)) or seen[-1]
    )
    tune(toy())
    low_rank(toy())
    assert len(seen) == 12 and all(torch.equal(a, b) for a, b in zip(seen[:6], seen[6:]))


def test_rate_offset_and_rows_of_a_fine_tuning_are_those_that_were_asked_for():
    "What the loss is given beside what the draws are made of, image by image."
    z, chosen, seen = toy_latents(), np.array([1, 4, 9]), []

    def loss(predict, scheduler, b):
        g = draw_generator("cpu", 0, "lora", b.number)
        x = z.sample(b.rows, g)
        noise, t = draw_noise(x, 1000, g, 0.7)
        same_draws = [torch.equal(p, q) for p, q in ((b.x, x), (b.noise, noise), (b.t, t))]
        seen.append((same_draws, b.rows.tolist()))
        return prompted_loss(predict, scheduler, b)

    halved = dict(rate=lambda step: 0.5**step, every=1, about=dict(rate="halved"))
    log = tune(toy(), z, loss=loss, rows=chosen, noise_offset=0.7, **halved)
    assert log.lr.tolist() == pytest.approx([1e-3 * 0.5**k for k in range(6)])
    assert all(all(same_draws) for same_draws, _ in seen)
    drawn = np.array([rows for _, rows in seen])
    assert (drawn == [chosen[draw_rows(3, 2, k, 0, "lora")] for k in range(6)]).all()


def test_an_offset_that_is_asked_for_is_that_of_a_base_that_has_it():
    for train, learned in ((words, lambda base: dict(all=table(base))), (low_rank, ab)):
        asked, has, other = toy(), toy_base(0, noise_offset=0.1), toy()
        train(asked, noise_offset=0.1)
        train(has)
        train(other)
        found = [learned(base) for base in (asked, has, other)]
        assert same(found[0], found[1]) and not same(found[0], found[2])


def test_a_checkpoint_of_another_part_or_offset_is_refused(tmp_path):
    tune(toy(), only=("attn2",), folder=tmp_path)
    with pytest.raises(ValueError, match="only:"):
        tune(toy(), folder=tmp_path)
    with pytest.raises(ValueError, match="noise_offset: 0.3 there, 0.1 now"):
        tune(toy(), only=("attn2",), noise_offset=0.1, folder=tmp_path)


@pytest.mark.parametrize("alpha", [None, 6])
def test_a_lora_changes_a_layer_by_scale_alpha_over_rank_times_b_a(alpha, tmp_path):
    "Hu et al. 2022, section 4.1: W + alpha / r B A, by hand, at once and when it is read back."
    base = toy()
    low_rank(base, alpha=alpha, folder=tmp_path, lr=1e-2)
    half = personalised(toy(), lora=tmp_path, scale=0.5)
    layers = {n: m for n, m in toy().unet.named_modules() if n.endswith("attn2.to_q")}
    for name, plain in layers.items():
        ours, read = (b.unet.get_submodule(name) for b in (base, half))
        a, b = ours.lora_A["default"].weight, ours.lora_B["default"].weight
        x = torch.randn(5, plain.in_features, generator=torch.Generator().manual_seed(1))
        change = x @ a.T @ b.T * (alpha or 2) / 2
        torch.testing.assert_close(ours(x), plain(x) + change)
        torch.testing.assert_close(read(x), plain(x) + change / 2)
        assert change.abs().max() > 1e-4


def test_a_part_of_the_unet():
    base = toy()
    old = states(base)["unet"]
    tune(base, only=("attn2", "time_embedding"))
    for k, v in states(base)["unet"].items():
        part = "attn2" in k or "time_embedding" in k
        assert torch.equal(v, old[k]) != part, k
    with pytest.raises(ValueError, match="only = .*no parameter .* 'attn3'"):
        tune(toy(), only=("attn2", "attn3"))


def test_a_loss_of_ones_own_knows_the_images_and_the_batch(tmp_path):
    seen = []

    def loss(predict, scheduler, b):
        seen.append((b.number, b.rows.tolist()))
        same_text = encode_prompts(base, [PROMPTS[i] for i in b.rows])
        assert torch.allclose(same_text, b.text, atol=1e-6)
        text = dict(encoder_hidden_states=b.text)
        return 2 * denoising_loss(predict, scheduler, b.x, b.noise, b.t, **text).mean()

    base = toy()
    ours, plain = tune(base, loss=loss, about=dict(tau=2), folder=tmp_path), tune(toy())
    assert seen == [(k, draw_rows(12, 2, k, 0, "lora").tolist()) for k in range(6)]
    assert ours.loss[0] > 1.5 * plain.loss[0]
    with pytest.raises(ValueError, match="tau: 2 there, 3 now"):
        tune(toy(), loss=loss, about=dict(tau=3), folder=tmp_path)
    with pytest.raises(ValueError, match="tau: 2 there, None now"):
        tune(toy(), folder=tmp_path)


def test_a_fine_tuning_that_fails_leaves_the_base(tmp_path, monkeypatch):
    fail_at(monkeypatch, 5, lambda loss: loss * float("nan"))
    base = toy()
    old = states(base)
    with pytest.raises(TrainingError, match="not finite in step 5.*checkpoint of step 3 is kept"):
        tune(base, folder=tmp_path)
    assert same(old["unet"], base.unet.state_dict()) and not (tmp_path / "unet").exists()
    assert base.weights == "toy" and not any(p.requires_grad for p in base.unet.parameters())
    low_rank(base)
    with pytest.raises(ValueError, match="has a LoRA already"):
        tune(base)


def test_a_fine_tuned_unet_is_read_back_by_us_and_by_diffusers(tmp_path):
    base = toy()
    tune(base, folder=tmp_path / "tuned")
    again = personalised(toy(), unet=tmp_path / "tuned")
    assert same(again.unet.state_dict(), base.unet.state_dict())
    assert (again.weights, again.weights_hash) == (base.weights, base.weights_hash)
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "tuned" / "unet")
    assert module_hash(plain) == module_hash(base.unet)
    with pytest.raises(FileNotFoundError, match="fine_tune"):
        personalised(toy(), unet=tmp_path)
    wider = toy_base(addition_embed_type="text", addition_embed_type_num_heads=4)
    with pytest.raises(ValueError, match="is not one of 'toy'.*another base model"):
        personalised(wider, unet=tmp_path / "tuned")


def test_fine_tuning_in_mixed_precision_keeps_its_weights_in_32_bits():
    full, mixed, half = toy(), toy(), toy(dtype=torch.bfloat16)
    tune(full)
    tune(mixed, precision="bf16")
    tune(half, precision="bf16")  # a base in 16 bits is trained in 32
    for (name, a), b, c in zip(
        full.unet.named_parameters(), mixed.unet.parameters(), half.unet.parameters()
    ):
        assert b.dtype == torch.float32 and c.dtype == torch.bfloat16
        assert (a - b).abs().max() < 8e-3 and (a - c.float()).abs().max() < 2e-2, name
    assert not same(full.unet.state_dict(), mixed.unet.state_dict())
