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
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from skinrepro import personalise
from skinrepro.latent import Base, Latents, prompt_ids
from skinrepro.loop import TrainingError, checkpoints
from skinrepro.personalise import (
    draw_generator,
    draw_noise,
    draw_rows,
    lora,
    loras,
    personalised,
    save_embeddings,
    textual_inversion,
    training_scheduler,
)

WORDS = (
    "a an the of on one skin image photo rendering rendition cropped close up - individual dark"
    " light very skinned psoriasis".split()
)
TOKENS = ["<nem-class>", "<neu-class>", "<pru-class>"]
CONCEPTS = [TOKENS[i % 3] for i in range(12)]
PROMPTS = [
    f"An image of psoriasis on the skin of a {tone}-skinned individual"
    for tone in ("dark", "light", "very light") * 4
]
WORDS_FAST = dict(steps=6, batch_size=2, accumulate=2, lr=1e-2, every=2, progress=False)
LORA_FAST = dict(rank=2, steps=6, batch_size=2, lr=1e-3, every=2, progress=False)


def toy(seed=0, dtype=torch.float32, offset=0.3):
    "Stable Diffusion's parts with a few thousand random weights."
    torch.manual_seed(seed)
    words = {w: i for i, w in enumerate(["<pad>", "<start>", "<end>", "<unk>", *WORDS])}
    t = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    t.normalizer = normalizers.Lowercase()
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tok = PreTrainedTokenizerFast(
        tokenizer_object=t,
        pad_token="<end>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=20,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tok),
            hidden_size=32,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=20,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    for m in (vae, text, unet):
        m.to(dtype).requires_grad_(False).eval()
    return Base(
        name="toy",
        weights="made for tests",
        weights_hash="0" * 64,
        vae=vae,
        text_encoder=text,
        tokenizer=tok,
        unet=unet,
        scheduler=scheduler,
        size=32,
        noise_offset=offset,
        random=False,
        device="cpu",
        dtype=dtype,
    )


def made_latents(n=12, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)

    def new():
        return torch.randn(n, 2, 4, 4, 4, generator=g, dtype=dtype)

    return Latents(mean=new(), std=new().abs() * 0.1, scaling_factor=1.0, hash=f"made {n}")


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
    textual_inversion(base, made_latents(), CONCEPTS, **WORDS_FAST)
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
        training_scheduler(base),
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
            which = np.random.default_rng([seed, personalise._key("template", token), k]).integers(
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
    z = made_latents(dtype=dtype)
    textual_inversion(base, z, CONCEPTS, **WORDS_FAST)
    assert (
        table(base)[n:] - table(base)[10]
    ).abs().max() > 0.2  # they have moved a thousand times the tolerance
    for i, token in enumerate(TOKENS):
        rows = [j for j, c in enumerate(CONCEPTS) if c == token]
        own = Latents(z.mean[rows], z.std[rows], 1.0, "part")
        alone = toy(dtype=dtype)
        textual_inversion(alone, own, [token] * len(rows), **WORDS_FAST)
        usual = official(toy(dtype=dtype), own, token, 6, 2, 2, 1e-2)
        assert (table(alone)[-1] - table(base)[n + i]).abs().max() < tolerance
        assert (usual - table(base)[n + i]).abs().max() < tolerance
    apart = toy(dtype=dtype)
    log = textual_inversion(apart, z, CONCEPTS, together=False, **WORDS_FAST)
    assert (table(apart) - table(base)).abs().max() < tolerance and log.token.tolist() == [
        t for t in TOKENS for _ in range(3)
    ]


def test_lora_leaves_the_base_and_weight_0_is_the_base():
    base = toy()
    before = picture(base.pipeline())
    old = states(base)
    lora(base, made_latents(), PROMPTS, **LORA_FAST)
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
    log = lora(base, made_latents(), PROMPTS, **LORA_FAST | dict(every=1))
    other = toy()
    z = made_latents()
    scheduler = training_scheduler(other)
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
    z = made_latents(8)
    noise, t = draw_noise(z.mean[:, 0], 1000, torch.Generator().manual_seed(3))
    monkeypatch.setattr(Latents, "sample", lambda self, i, g: self.mean[torch.as_tensor(i), 0])

    def given(like, *_):  # the noise that belongs to these latents, whatever their order
        i = [int((z.mean[:, 0] == x).flatten(1).all(1).nonzero()) for x in like]
        return noise[i], t[i]

    monkeypatch.setattr(personalise, "draw_noise", given)
    one, four = toy(dtype=torch.float64), toy(dtype=torch.float64)
    options = LORA_FAST | dict(steps=2)
    lora(one, z, PROMPTS[:8], **options | dict(batch_size=8))
    lora(four, z, PROMPTS[:8], **options | dict(batch_size=2, accumulate=4))
    assert all(torch.allclose(v, ab(four)[k], atol=1e-6) for k, v in ab(one).items())


# ------------------------------------------------------------------------------------------------
# saved files
FRESH = """
    import json, sys
    import numpy as np, torch
    from diffusers import StableDiffusionPipeline
    folder, prompt = sys.argv[1:3]
    pipe = StableDiffusionPipeline.from_pretrained(f'{folder}/base', safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    for name in ('nem-class', 'neu-class', 'pru-class'): pipe.load_textual_inversion(f'{folder}/{name}.safetensors')
    pipe.load_lora_weights(folder, weight_name='pytorch_lora_weights.safetensors')
    image = pipe(prompt, num_inference_steps=3, guidance_scale=2., generator=torch.Generator().manual_seed(0), output_type='np').images[0]
    assert not any(m.startswith('skinrepro') for m in sys.modules)
    np.save(f'{folder}/image.npy', image)
"""


def test_a_plain_diffusers_process_makes_the_same_image(tmp_path):
    prompt = "An image of <neu-class> on the skin of a dark-skinned individual"
    base = toy()
    base.pipeline().save_pretrained(tmp_path / "base")
    textual_inversion(base, made_latents(), CONCEPTS, folder=tmp_path, **WORDS_FAST)
    # alpha other than rank, so that a loader that forgets it is noticed
    lora(base, made_latents(), [prompt] * 12, folder=tmp_path, alpha=6, **LORA_FAST | dict(lr=1e-2))

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
    log = loras(base, made_latents(), PROMPTS, CONCEPTS, tmp_path, **LORA_FAST)
    assert all(same(old[p], states(base)[p]) for p in old) and log.groupby(
        "concept"
    ).step.max().to_dict() == dict.fromkeys(TOKENS, 5)
    only = toy()
    lora(only, made_latents(), PROMPTS, rows=[1, 4, 7, 10], **LORA_FAST)
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
        lora(base, made_latents(), PROMPTS, folder=folder, ema=0.9, **LORA_FAST | options)
        return ab(base)
    textual_inversion(
        base,
        made_latents(),
        CONCEPTS,
        folder=folder,
        together=kind == "together",
        **WORDS_FAST | options,
    )
    return {"rows": table(base).clone()}


def train_until_killed(kind, folder, calls):
    real, count = personalise.denoising_loss, iter(range(10**6))

    def deadly(*args):
        if next(count) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    personalise.denoising_loss = deadly
    train(kind, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("kind, calls, at", [("lora", 5, 3), ("together", 7, 1), ("apart", 20, 3)])
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
    assert not list((tmp_path / "killed").glob("*.safetensors"))  # nothing that looks finished
    calls = []
    real = personalise.denoising_loss
    with pytest.MonkeyPatch.context() as m:
        m.setattr(personalise, "denoising_loss", lambda *a: calls.append(1) or real(*a))
        assert same(train(kind, tmp_path / "killed"), whole)
    assert 0 < len(calls) < {"lora": 6, "together": 12, "apart": 36}[kind]


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
        lora(other, made_latents(), PROMPTS, folder=tmp_path / "b", ema=0.9, **LORA_FAST)
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
        lambda *a: make(real(*a)) if next(count) == call else real(*a),
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
            lora(base, made_latents(), PROMPTS, folder=tmp_path, **LORA_FAST)
        else:
            textual_inversion(base, made_latents(), CONCEPTS, folder=tmp_path, **WORDS_FAST)
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
        lora(base, made_latents(), PROMPTS, **LORA_FAST | dict(batch_size=4))
    assert same(old["unet"], base.unet.state_dict())
    with pytest.raises(
        TrainingError, match="6 images at a time.*batch_size=1, accumulate=4.*together=False"
    ):
        textual_inversion(base, made_latents(), CONCEPTS, **WORDS_FAST)
    with pytest.raises(TrainingError, match="bf16"):
        lora(base, made_latents(), PROMPTS, **LORA_FAST | dict(batch_size=1))


def test_a_token_that_exists_is_refused():
    base = toy()
    textual_inversion(base, made_latents(), CONCEPTS, **WORDS_FAST)
    old = states(base)
    for token in ("<neu-class>", "psoriasis"):
        with pytest.raises(ValueError, match=f"{token}.*exists already.*another name"):
            textual_inversion(base, made_latents(), [token] * 12, **WORDS_FAST)
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
def test_bad_textual_inversion(change, message):
    base = toy()
    n = len(table(base))
    with pytest.raises(ValueError, match=message):
        textual_inversion(base, made_latents(), **dict(concepts=CONCEPTS) | WORDS_FAST | change)
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
        lora(base, made_latents(), **dict(prompts=PROMPTS) | LORA_FAST | change)
    assert same(old["unet"], base.unet.state_dict())
    lora(base, made_latents(), PROMPTS, **LORA_FAST)  # and it can be tried again at once
    with pytest.raises(ValueError, match="has a LoRA already"):
        lora(base, made_latents(), PROMPTS, **LORA_FAST)


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
    lora(toy(), made_latents(), PROMPTS, weights=w, **LORA_FAST | dict(batch_size=50, steps=2))
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
                lora(base, made_latents(), PROMPTS, precision=precision, **LORA_FAST)
            else:
                textual_inversion(base, made_latents(), CONCEPTS, precision=precision, **WORDS_FAST)
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

    log = lora(toy(), made_latents(), PROMPTS, folder=tmp_path, **LORA_FAST)
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
