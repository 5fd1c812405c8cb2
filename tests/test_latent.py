"""Faults that the notebook cannot show: folders that lack something, wrong weights, mirrors that
fail, files that are damaged or change.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from PIL import Image
from transformers import CLIPTokenizer

from skinrepro import latent
from skinrepro.codec import PatchCodec
from skinrepro.images import load_image
from skinrepro.latent import (
    BASES,
    BaseModel,
    BaseModelError,
    encode_images,
    encode_prompts,
    load_base,
    module_hash,
    prompt_ids,
    refuse_random,
    toy_base,
    toy_tokenizer,
)

FACTS = {  # of the small Stable Diffusion below
    "scheduler._class_name": "PNDMScheduler",
    "scheduler.beta_start": 0.00085,
    "scheduler.prediction_type": "epsilon",
    "vae._class_name": "AutoencoderKL",
    "vae.scaling_factor": 0.18215,
    "unet.block_out_channels": [16, 32],
    "unet.cross_attention_dim": 32,
    "unet.attention_head_dim": 8,
    "tokenizer.model_max_length": 12,
    "text_encoder.hidden_size": 32,
}
UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


def clip_files(
    folder,
    # vocab.json and merges.txt as the released repositories have them: bytes, a chain of merges per
    # word, BOS and EOS last
):
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens, merges = [*letters, *(f"{c}</w>" for c in letters)], []
    for word in ("skin", "dark", "an", "image", "of"):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    about = dict(
        tokenizer_class="CLIPTokenizer",
        model_max_length=12,
        pad_token="!",
        unk_token="<|endoftext|>",
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return len(tokens)


@pytest.fixture(scope="session")
def small_sd(tmp_path_factory):
    "A folder like those of Stable Diffusion, in every respect but size."
    folder = tmp_path_factory.mktemp("bases") / "small"
    clip_files(folder / "tokenizer")
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    base = toy_base(tokenizer=tokenizer, scheduler=scheduler)
    for part in ("vae", "unet", "text_encoder", "scheduler"):
        getattr(base, part).save_pretrained(folder / part)
    return folder


@pytest.fixture
def model(small_sd, tmp_path, monkeypatch):
    "A copy that a test may spoil, registered as 'small'; no place of this machine is looked at."
    for v in ("SKINREPRO_BASE", "SKINREPRO_DATA"):
        monkeypatch.delenv(v, raising=False)
    monkeypatch.setitem(
        BASES,
        "small",
        BaseModel(
            "small",
            "owner/small",
            (("copy/one", "a" * 40), ("copy/two", "b" * 40), ("owner/small", "main")),
            "none",
            16,
            FACTS,
            dead_since="2025-11",
        ),
    )
    return Path(shutil.copytree(small_sd, tmp_path / "models" / "small"))


def load(folder, **k):
    return load_base("small", folder=folder, **k)


def edit(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(values))


# ------------------------------------------------------------------------------------------------
# is it the right one?
def test_a_folder_of_stable_diffusion_s_kind(model):
    base = load(model)
    assert (
        base.weights == "small (folder small)"
        and len(base.weights_hash) == 64
        and set(base.hashes) == {UNET, VAE, TEXT}
    )
    assert (
        base.noise_offset == 0
        and base.size == 16
        and not any(p.requires_grad for p in base.unet.parameters())
    )
    assert (
        type(base.tokenizer).__name__.startswith("CLIPTokenizer")
        and len(base.tokenizer("dark skin").input_ids) == 4
    )
    image = base.pipeline("img2img")(
        "dark skin",
        np.zeros((1, 16, 16, 3), np.float32),
        strength=0.5,
        num_inference_steps=4,
        output_type="np",
    ).images
    assert image.shape == (1, 16, 16, 3) and base.pipeline().safety_checker is None
    with pytest.raises(ValueError, match="kind = 'inpaint'"):
        base.pipeline("inpaint")


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_other_bytes_are_refused(model, monkeypatch, name):
    from skinrepro.core import sha256_file

    right = {f: sha256_file(model / f) for f in (UNET, VAE, TEXT)}
    monkeypatch.setitem(BASES, "small", replace(BASES["small"], sha256=right))
    assert load(model).hashes == right
    data = bytearray((model / name).read_bytes())
    data[-1] ^= 1
    (model / name).write_bytes(data)  # one bit
    with pytest.raises(
        BaseModelError, match=f"(?s){name}: SHA-256 .* expected {right[name]}.*[Ff]etch"
    ):
        load(model)


@pytest.mark.parametrize(
    "file, changes, words",
    [
        (
            "scheduler/scheduler_config.json",
            dict(prediction_type="v_prediction"),
            "scheduler.prediction_type is 'v_prediction', expected 'epsilon'",
        ),
        (
            "scheduler/scheduler_config.json",
            dict(beta_start=0.0001),
            "scheduler.beta_start is 0.0001, expected 0.00085",
        ),
        (
            "scheduler/scheduler_config.json",
            dict(_class_name="DDIMScheduler"),
            "scheduler._class_name is 'DDIMScheduler', expected 'PNDMScheduler'",
        ),
        ("scheduler/scheduler_config.json", dict(_class_name="Popen"), "'Popen' is no scheduler"),
        (
            "unet/config.json",
            dict(attention_head_dim=4),
            "unet.attention_head_dim is 4, expected 8",
        ),
        (
            "vae/config.json",
            dict(scaling_factor=0.13025),
            "vae.scaling_factor is 0.13025, expected 0.18215",
        ),
        ("vae/config.json", dict(_class_name="VQModel"), "'VQModel' is not one of"),
        (
            "tokenizer/tokenizer_config.json",
            dict(model_max_length=77),
            "tokenizer.model_max_length is 77, expected 12",
        ),
    ],
)
def test_another_architecture_or_schedule_is_refused(model, file, changes, words):
    edit(model / file, **changes)
    with pytest.raises(ValueError) as e:
        load(model)
    assert words in str(e.value)


def test_parts_that_do_not_fit_each_other(model, monkeypatch):
    monkeypatch.setitem(BASES, "small", replace(BASES["small"], facts={}))
    load(model)  # without facts it is fine
    from transformers import CLIPTextConfig, CLIPTextModel

    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
        )
    ).save_pretrained(model / "text_encoder")
    with pytest.raises(BaseModelError, match="unet.cross_attention_dim is 32, expected 16"):
        load(model)


# ------------------------------------------------------------------------------------------------
# is it whole?
@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "scheduler/scheduler_config.json", UNET, TEXT, "tokenizer/vocab.json"],
)
def test_what_is_missing_is_named(model, name):
    (model / name).unlink()
    with pytest.raises(BaseModelError, match=f"not a complete base model; missing: {name}"):
        load(model)


def test_a_pickle_is_not_read(model):
    (model / UNET).rename(model / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(BaseModelError, match="diffusion_pytorch_model.bin is a pickle"):
        load(model)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_truncated_weights(model, name):
    data = (model / name).read_bytes()
    (model / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(BaseModelError, match=f"{Path(name).parent} cannot be loaded"):
        load(model)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
@pytest.mark.parametrize("fault", ["missing", "another shape"])
def test_a_weight_that_is_missing_is_not_made_up(model, name, fault):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / name)
    key = sorted(k for k in tensors if k.endswith("weight") and tensors[k].ndim > 1)[0]
    if fault == "missing":
        del tensors[key]
    else:
        tensors[key] = tensors[key].repeat(2, *[1] * (tensors[key].ndim - 1))
    save_file(tensors, model / name, metadata=dict(format="pt"))
    with pytest.raises(
        BaseModelError, match="weights are missing or of another shape|cannot be loaded"
    ):
        load(model)


def test_a_damaged_configuration(model):
    (model / "vae/config.json").write_text('{"_class_name": "Autoenc')
    with pytest.raises(BaseModelError, match="vae/config.json is damaged"):
        load(model)


def test_half_precision_files_are_used_when_there_are_no_others(model):
    full = load(model)
    full.unet.half().save_pretrained(model / "unet", variant="fp16")
    (model / UNET).unlink()
    half = load(model)
    assert (
        any(".fp16." in f for f in half.hashes)
        and half.unet.dtype == torch.float32
        and half.weights_hash != full.weights_hash
    )
    assert load(model, dtype=torch.float16).vae.dtype == torch.float16


def test_the_hash_covers_tokenizer_and_configuration(model):
    first = load(model).weights_hash
    assert load(model).weights_hash == first
    edit(model / "tokenizer/tokenizer_config.json", pad_token="<|endoftext|>")
    second = load(model).weights_hash
    edit(model / "scheduler/scheduler_config.json", steps_offset=0)
    assert len({first, second, load(model).weights_hash}) == 3


# ------------------------------------------------------------------------------------------------
# where is it?
def test_order_of_places(model, monkeypatch, tmp_path):
    shutil.copytree(model, tmp_path / "data" / "base_models" / "small")
    monkeypatch.setenv("SKINREPRO_DATA", str(tmp_path / "data"))
    assert load(None).weights == "small ($SKINREPRO_DATA)"
    monkeypatch.setenv("SKINREPRO_BASE", str(model.parent))
    assert load(None).weights == "small ($SKINREPRO_BASE)"
    assert load(tmp_path / "data" / "base_models" / "small").weights == "small (folder small)"
    (
        model / UNET
    ).unlink()  # a place that has it, but badly, is an error: another one might be another model
    with pytest.raises(BaseModelError, match="missing: unet"):
        load(None)


def test_a_folder_that_is_not_there(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder"):
        load(tmp_path / "nowhere")


def test_an_unknown_base_model():
    with pytest.raises(
        ValueError, match="base model = 'sd3' is not one of 'miniature', 'sd21-base'"
    ):
        load_base("sd3")


@pytest.fixture
def hub(monkeypatch, model):
    """A stand-in for the hub: (repository, online) -> folder or exception. `asked` is what was
    asked for, in order.
    """
    import huggingface_hub
    from huggingface_hub import constants

    answers, asked = {}, []

    def snapshot_download(repo, *, revision, local_files_only, allow_patterns):
        asked.append((repo, not local_files_only))
        answer = answers.get((repo, not local_files_only), OSError(f"{repo} is not to be had"))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def hub():
        return None

    hub.answers, hub.asked, hub.constants = answers, asked, constants
    return hub


def test_the_local_cache_before_the_network(hub, model):
    hub.answers["owner/small", False] = model
    hub.answers["copy/one", True] = model
    assert load(None).weights == "small (owner/small@main)" and not any(
        online for _, online in hub.asked
    )


def test_copies_in_order_and_not_the_removed_original(hub, model, tmp_path):
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / UNET).unlink()
    hub.answers["copy/one", False] = broken  # an interrupted download
    hub.answers["copy/two", True] = model
    assert load(None).weights == f"small (copy/two@{'b' * 12})"
    hub.answers.clear()
    hub.asked.clear()
    with pytest.raises(FileNotFoundError):
        load(None)
    assert hub.asked == [
        ("copy/one", False),
        ("copy/two", False),
        ("owner/small", False),
        ("copy/one", True),
        ("copy/two", True),
    ]


def test_a_wrong_hash_from_a_mirror_is_refused(hub, model, monkeypatch):
    monkeypatch.setitem(BASES, "small", replace(BASES["small"], sha256={UNET: 64 * "0"}))
    hub.answers["copy/one", True] = model
    with pytest.raises(BaseModelError, match="expected 0000"):
        load(None)


def test_nothing_to_be_had_lists_every_place(hub, model, monkeypatch, tmp_path):
    monkeypatch.setenv("SKINREPRO_BASE", str(tmp_path / "empty"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as e:
        load(None)
    text = str(e.value)
    for words in (
        str(tmp_path / "empty" / "small"),
        "$SKINREPRO_DATA: not set",
        "copy/one, in the local",
        "copy/two, in the local",
        "owner/small, in the local",
        "not asked, since HF_HUB_OFFLINE",
        "removed 2025-11",
        f"hf download copy/one --revision {'a' * 40}",
        "set SKINREPRO_BASE",
        '"miniature"',
    ):
        assert words in text, f"{words!r} not in:\n{text}"
    assert all(not online for _, online in hub.asked)
    assert (
        subprocess.run(
            ["bash", "-nc", next(line for line in text.split("\n") if "hf download" in line)]
        ).returncode
        == 0
    )  # a command that a shell can read


# ------------------------------------------------------------------------------------------------
# random weights
def test_random_weights_are_marked_and_refused():
    base = load_base("sd21-base", weights="random", device="meta")
    assert (
        base.random
        and base.weights.startswith("random")
        and latent.TIMING_ONLY in base.weights
        and base.weights_hash == ""
    )
    assert base.unet.device.type == "meta" and base.noise_offset == 0
    with pytest.raises(BaseModelError, match="no table can be made from random weights"):
        refuse_random(base, "table")
    with pytest.raises(BaseModelError, match="timing"):
        load_base("miniature", weights="random")
    with pytest.raises(ValueError, match="weights = 'none'"):
        load_base("sd14", weights="none")
    with pytest.raises(RuntimeError, match="meta"):
        load_base("sd14", device="meta")  # only random weights can lack numbers
    ids = prompt_ids(
        base,
        ["An image of squamous cell carcinoma on the skin of a very dark-skinned individual", ""],
    )
    assert ids.shape == (2, 77) and (ids[1, 1:] == 49407).all() and (ids[0] != 49407).sum() < 40


def test_random_weights_work(monkeypatch):
    "The same code with small widths: an image comes out, and twice the same."
    b = BASES["sd14"]
    small = {
        "unet.block_out_channels": [32, 32, 32, 32],
        "unet.sample_size": 8,
        "unet.cross_attention_dim": 32,
        "vae.block_out_channels": [32] * 4,
        "text_encoder.hidden_size": 32,
        "text_encoder.intermediate_size": 64,
        "text_encoder.num_attention_heads": 2,
        "text_encoder.num_hidden_layers": 1,
    }
    monkeypatch.setitem(BASES, "thin", replace(b, role="thin", facts={**b.facts, **small}, size=64))
    one, two = (
        load_base("thin", weights="random", dtype=t) for t in (torch.float32, torch.bfloat16)
    )
    image = one.pipeline()("skin", num_inference_steps=2, output_type="np").images[0]
    assert (
        image.shape == (64, 64, 3) and np.isfinite(image).all() and two.unet.dtype == torch.bfloat16
    )
    assert (
        module_hash(one.unet) == module_hash(load_base("thin", weights="random").unet)
        and len(module_hash(two.unet)) == 64
    )
    latent._check_facts(
        BASES["thin"],
        {p: getattr(one, p) for p in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")},
        "it",
    )  # its own facts hold


# ------------------------------------------------------------------------------------------------
# the codec
@pytest.mark.parametrize("patch", [4, 8])
def test_codec_is_a_stock_model(tmp_path, patch):
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    torch.manual_seed(0)
    codec = PatchCodec(12, patch, width=16)
    codec.save_pretrained(tmp_path)
    back = PatchCodec.from_pretrained(tmp_path)
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    z = codec.encode(x).latent_dist.sample()
    assert z.shape == (2, 12, 32 // patch, 48 // patch)
    with torch.no_grad():
        assert (
            torch.equal(codec.decode(z).sample, back.decode(z, return_dict=False)[0])
            and codec.decode(z).sample.shape == x.shape
        )
    assert {k.split(".")[0] for k in codec.state_dict()} == {
        "encoder",
        "decoder",
        "deep",
        "mid",
        "fine",
    }
    # the shipped base names the module of its loader
    assert codec.__class__.__module__ == "skinrepro.codec" and latent.PatchCodec is PatchCodec
    assert (
        set(codec.config)
        >= {
            k
            for k in (
                "latent_channels",
                "scaling_factor",
                "shift_factor",
                "force_upcast",
                "block_out_channels",
            )
        }
        and AutoencoderKL
    )
    assert (
        StableDiffusionPipeline(
            codec, None, None, None, None, None, None, requires_safety_checker=False
        ).vae_scale_factor
        == patch
    )
    edit(
        tmp_path / "config.json", block_out_channels=[1, 1]
    )  # written by hand, wrong: the patch decides
    assert len(PatchCodec.from_pretrained(tmp_path).config.block_out_channels) == patch.bit_length()


def test_codec_keeps_the_principal_components():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(48, 5)))[0]  # patches of rank 5 about a grey mean
    P = (rng.normal(size=(400, 5)) * [2, 1, 0.5, 0.3, 0.2]) @ basis.T * 0.1
    X = torch.tensor(
        P.reshape(4, 10, 10, 3, 4, 4).transpose(0, 3, 1, 4, 2, 5).reshape(4, 3, 40, 40),
        dtype=torch.float32,
    )
    for power in (0.0, 0.5, 1.0):
        codec = PatchCodec(5, 4)
        scale = codec.fit(X, power)
        with torch.no_grad():
            z = codec.encode(X).latent_dist.mean
            error = (codec.decode(z).sample - X).abs().max()
        assert (
            error < 0.03 and torch.allclose(z.std((0, 2, 3)), scale, rtol=0.02) and scale[0] == 1
        )  # rank 5: only the mean within a patch is lost
        ratio = scale[4]
        assert torch.isclose(ratio, scale.new_tensor(1.0)) if power == 0 else ratio < 1
    with pytest.raises(ValueError, match="patch = 5"):
        PatchCodec(5, 5)


@pytest.fixture
def mini():
    "A miniature with random weights: few words, PatchCodec, v-prediction."
    torch.manual_seed(0)
    base = toy_base(
        codec=PatchCodec(8, 4, 16, sample_size=32),
        tokenizer=toy_tokenizer(8, "an image of skin psoriasis dark".split()),
        noise_offset=0.5,
    )
    return replace(base, name="miniature", weights="made", weights_hash="")


PLAIN = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder = sys.argv[1]
try:
    StableDiffusionPipeline.from_pretrained(folder)
except ValueError as e:  # a library does not import what a folder names
    print('import skinrepro.%s before' % sys.argv[2] in str(e))
import skinrepro.latent
codec = skinrepro.latent.PatchCodec.from_pretrained(folder + '/vae')
for options in ({}, dict(vae=codec)):
    pipe = StableDiffusionPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    options = dict(generator=torch.Generator().manual_seed(0), output_type='np')
    images = pipe('an image of skin', num_inference_steps=2, **options).images
    print(float(images.astype('float64').sum()))
"""


@pytest.mark.parametrize("module", ["codec", "latent"])
def test_plain_diffusers_in_a_fresh_process(mini, tmp_path, module):
    "As saved, and as the shipped base names its codec."
    folder = tmp_path / "m"
    mini.pipeline().save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["vae"] == ["skinrepro.codec", "PatchCodec"]
    edit(
        folder / "model_index.json",
        tokenizer=["transformers", "PreTrainedTokenizerFast"],
        vae=[f"skinrepro.{module}", "PatchCodec"],
    )
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder), module], capture_output=True, text=True
    )
    images = mini.pipeline()(
        "an image of skin",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    total = float(images.astype("float64").sum())
    assert done.stdout == f"True\n{total}\n{total}\n", done.stderr[-800:]


def test_miniature_says_its_noise_offset(mini, tmp_path):
    mini.pipeline().save_pretrained(tmp_path / "m")
    assert load_base("miniature", folder=tmp_path / "m").noise_offset == 0.5
    (tmp_path / "m" / "miniature.json").write_text('{"noise_offset": 0.3}')
    assert load_base("miniature", folder=tmp_path / "m").noise_offset == 0.3


def test_a_copy_shares_nothing(mini):
    twin = mini.copy()
    before = [module_hash(m) for m in (mini.unet, mini.text_encoder, mini.vae)]
    for m in (twin.unet, twin.text_encoder, twin.vae):
        for p in m.parameters():
            p.data.add_(1)
    twin.tokenizer.add_tokens(["<new-class>"])
    twin.scheduler.set_timesteps(3)
    assert (
        [module_hash(m) for m in (mini.unet, mini.text_encoder, mini.vae)] == before
        and len(mini.tokenizer) == 10
        and len(twin.tokenizer) == 11
    )


# ------------------------------------------------------------------------------------------------
# prompts
def test_prompts(mini):
    texts = ["an image of skin", "dark skin", "an image of skin", ""]
    calls = []
    forward = mini.text_encoder.forward
    mini.text_encoder.forward = lambda ids, *a, **k: (
        calls.append(len(ids)),
        forward(ids, *a, **k),
    )[1]
    rows = encode_prompts(mini, texts, batch_size=2)
    assert calls == [2, 1]  # three different ones
    assert (
        rows.shape == (4, 8, 32)
        and torch.equal(rows[0], rows[2])
        and torch.allclose(rows, encode_prompts(mini, texts, batch_size=9), atol=1e-6)
    )
    assert not rows.requires_grad


def test_the_longest_prompt_and_one_word_more(mini):
    fits = "an image of dark dark skin"
    assert prompt_ids(mini, [fits]).shape == (1, 8)
    with pytest.raises(
        ValueError,
        match=(
            r"1 prompt\(s\) are too long for miniature, first 'an image of dark dark skin dark': 9"
            r" tokens .* 8. Shorten"
        ),
    ):
        encode_prompts(mini, [fits, fits + " dark"])


@pytest.mark.parametrize(
    "prompts, words",
    [
        ([], "at least one"),
        ("skin", "give a list"),
        (["skin", None], "not None"),
        ([3.0], "not 3.0"),
    ],
)
def test_what_is_no_prompt(mini, prompts, words):
    with pytest.raises(ValueError, match=words):
        encode_prompts(mini, prompts)


def test_unknown_words_are_named_once(mini, model, monkeypatch):
    monkeypatch.setattr(latent, "_warned", set())
    with pytest.warns(UserWarning, match="does not know 'Nematode', 'rash'"):
        encode_prompts(mini, ["skin Nematode", "an image of rash"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompts(mini, ["rash"])
        encode_prompts(load(model), ["zyxw"])  # known by now; CLIP spells


# ------------------------------------------------------------------------------------------------
# images
def pictures(n=6, h=32, w=32):
    return np.random.default_rng(0).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


@pytest.fixture
def coded(mini, small_sd):  # a codec with a spread
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(small_sd / "vae").eval()
    asked = []
    encode = vae.encode

    def count(x):
        asked.append(len(x))
        return encode(x)

    vae.encode = count
    base = replace(mini, vae=vae)
    base.asked = asked
    return base


@pytest.mark.parametrize(
    "images", [pictures().astype(np.float32) / 255, pictures()[..., 0], pictures()[..., :2]]
)
def test_what_is_no_image(mini, images):
    with pytest.raises(ValueError, match="must be uint8 of shape"):
        encode_images(mini, images)


def test_bad_options(mini):
    with pytest.raises(ValueError, match="There are no images"):
        encode_images(mini, [])
    with pytest.raises(ValueError, match="crops = 0"):
        encode_images(mini, pictures(), crops=0)
    with pytest.raises(ValueError, match="crops = 2"):
        encode_images(mini, pictures(), crops=2, squash=True)
    with pytest.raises(ValueError, match="size = 30 px is not a multiple of 4"):
        encode_images(mini, pictures(), size=30)


def test_files(coded, tmp_path):
    a = pictures(3)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for f, x in zip(files, a):
        Image.fromarray(x).save(f)
    turned = Image.fromarray(np.rot90(a[0], -1))
    exif = turned.getexif()
    exif[0x112] = 8  # lies on its side, and says so
    turned.save(tmp_path / "side.png", exif=exif)
    from_files = encode_images(coded, [*files, str(tmp_path / "side.png")], load_image, size=16)
    from_array = encode_images(coded, a, size=16)
    assert torch.allclose(from_files.mean[:3], from_array.mean, atol=1e-5) and torch.allclose(
        from_files.mean[3], from_array.mean[0], atol=1e-5
    )
    coded.asked.clear()
    with pytest.raises(
        FileNotFoundError, match="1 of 4 images are missing, first in row 2: .*gone.png"
    ):
        encode_images(coded, [*files[:2], tmp_path / "gone.png", files[2]], load_image)
    with pytest.raises(ValueError, match="read=images.load_image"):
        encode_images(coded, files)
    assert not coded.asked  # before anything is encoded
    files[1].write_bytes(files[1].read_bytes()[:900])
    with pytest.raises(ValueError, match=r"1.png is damaged or truncated"):
        encode_images(coded, files, load_image)


def test_grey_of_16_bits_is_grey_and_transparency_is_white(mini, tmp_path):
    "The pixels are written with Pillow and worked out here."
    grey = np.random.default_rng(1).integers(0, 65536, (32, 32), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert Image.open(tmp_path / "grey.png").mode.startswith("I")
    colour = np.random.default_rng(2).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    colour[..., 3] = np.where(np.arange(32) < 16, 0, 255)  # the left half is not to be seen
    Image.fromarray(colour, "RGBA").save(tmp_path / "clear.png")
    want = np.stack([np.repeat((grey / 257).round()[..., None], 3, 2), colour[..., :3]])
    want[1, :, :16] = 255
    files = [tmp_path / "grey.png", tmp_path / "clear.png"]
    found = encode_images(mini, files, load_image)
    assert torch.equal(found.mean, encode_images(mini, want.astype(np.uint8)).mean)


def test_the_decoder_is_a_part_of_the_cache(mini, tmp_path):
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")

    def dark(path, by=2):
        return load_image(path) // by

    def get(read):
        return encode_images(mini, [tmp_path / "a.png"], read, cache=tmp_path / "kept.safetensors")

    found = [get(r) for r in (load_image, dark, partial(dark, by=3), partial(dark, by=3))]
    assert len({f.hash for f in found}) == 3 and found[2].hash == found[3].hash
    assert not torch.equal(found[0].mean, found[1].mean)


@pytest.mark.parametrize("h, w", [(50, 81), (81, 50), (32, 32), (20, 21), (33, 100)])
def test_same_pixels_as_torchvision(h, w):
    from PIL import Image
    from torchvision import transforms as T

    image = Image.fromarray(pictures(1, h, w)[0])
    how = dict(digest="ab" * 32, size=32, flips=True, squash=False, seed=0)
    stock = T.Compose([T.Resize(32), T.CenterCrop(32)])(image)
    mine = latent._variants(image, crops=1, **how)
    assert np.array_equal(mine[0], np.asarray(stock)) and np.array_equal(
        mine[1], np.asarray(T.functional.hflip(stock))
    )
    resized = np.asarray(T.Resize(32)(image))
    crops = latent._variants(image, crops=5, **(how | dict(flips=False)))
    windows = (
        np.lib.stride_tricks.sliding_window_view(resized, (32, 32), axis=(0, 1))
        .transpose(0, 1, 3, 4, 2)
        .reshape(-1, 32, 32, 3)
    )
    assert all(
        (windows == c).all((1, 2, 3)).any() for c in crops
    )  # each is a square of the resized image
    if len(windows) > 20:
        assert len({c.tobytes() for c in crops}) > 1
    squashed = latent._variants(image, crops=1, **(how | dict(squash=True, flips=False)))[0]
    assert np.array_equal(squashed, np.asarray(image.resize((32, 32), Image.BICUBIC)))


def test_crops_belong_to_the_image_and_the_seed(coded):
    x = pictures(4, 32, 60)

    def get(a, **k):
        return encode_images(coded, a, size=16, crops=3, **k).mean

    first = get(x)
    assert first.shape == (4, 3, 4, 8, 8)
    assert torch.allclose(get(x[::-1].copy()).flip(0), first, atol=1e-5) and torch.allclose(
        get(x[2:3]), first[2:3], atol=1e-5
    )
    assert not torch.allclose(get(x, seed=1), first, atol=1e-2)


def test_draws(coded):
    latents = encode_images(coded, pictures(2), size=16, flips=True)
    index = torch.zeros(4000, dtype=torch.long)
    z = latents.sample(index, torch.Generator().manual_seed(0)) / latents.scaling_factor
    mean, std = latents.mean[0], latents.std[0]
    d = (z[:, None] - mean[None]).square().sum((2, 3, 4))
    variant = d.argmin(1)
    n = torch.bincount(variant, minlength=2)
    assert n.min() > 1800  # both variants, evenly
    for v in (0, 1):
        own = z[variant == v]
        assert torch.allclose(
            own.mean(0), mean[v], atol=0.12 * std.max().item()
        ) and torch.allclose(own.std(0), std[v], rtol=0.12)
    a, b, c = (latents.sample([1, 0], torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert len(latents) == 2 and latents.to("cpu").hash == latents.hash


def test_cache(coded, tmp_path):
    x = pictures()
    file = tmp_path / "new folder" / "latents.safetensors"

    def get(a=x, **k):
        return encode_images(coded, a, size=16, cache=file, **k)

    first = get()
    assert sum(coded.asked) == 6
    assert (
        torch.equal(get().mean, first.mean) and get().hash == first.hash and sum(coded.asked) == 6
    )

    def again():
        return (coded.asked.clear(), get(), sum(coded.asked))[2]

    good = file.read_bytes()
    for bad in (
        good[: len(good) // 2],
        b"",
        b"not a safetensors file",
        good[:-3] + bytes([good[-3] ^ 1]) + good[-2:],
    ):  # cut, empty, other, one bit
        file.write_bytes(bad)
        assert again() == 6 and file.read_bytes() == good
    for change in (dict(flips=True), dict(squash=True), dict(crops=2)):
        coded.asked.clear()
        get(**change)
        assert sum(coded.asked) >= 6
    get()
    coded.asked.clear()
    get(x[::-1].copy())
    assert sum(coded.asked) == 6  # another order
    get()
    next(coded.vae.parameters()).data.mul_(1.001)
    coded.asked.clear()
    assert get().hash != first.hash and sum(coded.asked) == 6  # another codec
    get()
    coded.unet.conv_in.weight.data.zero_()
    coded.asked.clear()
    get()
    assert not coded.asked  # the UNet does not matter


def test_a_killed_writer_leaves_no_cache(coded, tmp_path, monkeypatch):
    def die(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(latent, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        encode_images(coded, pictures(), size=16, cache=tmp_path / "latents.safetensors")
    assert os.listdir(tmp_path) == []


def test_out_of_memory_says_what_to_try(coded):
    def encode(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    coded.vae.encode = encode
    with pytest.raises(
        torch.OutOfMemoryError, match="with 6 images of 16 px at once: use batch_size=3"
    ):
        encode_images(coded, pictures(), size=16)
