"""What the notebook cannot show of skinrepro.latent_drawer: equality with the stock pipelines in
every mix, what is computed once, what is refused, and keys that stay.
"""

from pathlib import Path

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from skinrepro import generate as g
from skinrepro import latent
from skinrepro import latent_drawer as d
from skinrepro.codec import PatchCodec
from skinrepro.images import load_image
from skinrepro.latent import toy_base, toy_tokenizer

PROMPTS = [
    "an image of psoriasis",
    "an image of folliculitis on the dark skin",
    "an image of psoriasis on the light skin",
]


def toy(seed=0, noise_offset=0.0, scheduler=None, addition=None, patch=False):
    "Stable Diffusion's parts with a few thousand random weights: 16 px images, 8 x 8 latents."
    if scheduler:
        scheduler = getattr(diffusers, scheduler)(
            prediction_type="v_prediction", steps_offset=1, skip_prk_steps=True
        )
    torch.manual_seed(seed)
    codec = PatchCodec(latent_channels=8, patch=4, sample_size=16) if patch else None
    embedding = dict(addition_embed_type=addition, addition_embed_type_num_heads=4)
    return toy_base(
        seed, codec, toy_tokenizer(length=12), scheduler, noise_offset=noise_offset, **embedding
    )


@pytest.fixture(scope="module")
def base():
    return toy()


def parents(folder, n=3):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40 + i, 30), Image.BICUBIC).save(folder / f"p{i}.png")
    return [folder / f"p{i}.png" for i in range(n)]


def table(folder, n=8, steps=6, **options):
    files = parents(folder / "parents")
    rows = [
        dict(
            image_id=f"p{i % 3}-{i}",
            path=files[i % 3],
            parent_id=f"p{i % 3}",
            prompt=PROMPTS[i // 2 % 3],
            strength=[0.5, 0.9][i % 2],
            guidance=[2.0, 1.0, 5.0][i // 2 % 3],
            steps=steps,
            seed=100 + i,
            label="psoriasis",
            skin_type=5,
            method="vanilla",
        )
        for i in range(n)
    ]
    return pd.DataFrame(rows).assign(**options)


def run(base, specs, folder, batch_size=None, files=None, **options):
    drawer = d.LatentDrawer(base, **options)
    return g.generate(specs, folder, drawer, files, batch_size, progress=False)


def pixels(manifest):
    return np.stack([load_image(p) for p in manifest.path]).astype(int)


def written(folder):
    return {f.name: f.stat().st_mtime_ns for f in Path(folder).iterdir()}


# --------------------------------------------------------------------------------------------------
# equality
def stock(base, row):
    import torch

    common = dict(
        prompt=row.prompt,
        guidance_scale=row.guidance,
        num_inference_steps=row.steps,
        generator=torch.Generator().manual_seed(row.seed),
    )
    if not row.path:
        return np.asarray(base.pipeline("txt2img")(**common).images[0])
    image = Image.open(row.path).convert("RGB").resize((16, 16), Image.BILINEAR)
    return np.asarray(
        base.pipeline("img2img")(image=image, strength=row.strength, **common).images[0]
    )


def mixture(folder):  # every kind of row in one table, in an order that splits parents and groups
    t = table(folder, 10)
    t["steps"] = [6, 6, 9, 6, 9, 6, 6, 9, 9, 6]
    t["path"] = [str(p) if i not in (3, 8) else "" for i, p in enumerate(t.path)]
    return t.sample(frac=1, random_state=0).reset_index(drop=True)


@pytest.mark.parametrize(
    "kind",
    [dict(), dict(addition="text", patch=True), dict(scheduler="PNDMScheduler")],
    ids=["ddim", "miniature", "pndm"],
)
def test_equals_the_stock_pipelines_whatever_is_mixed(tmp_path, kind):
    """Tolerance: one of 255 levels in any pixel, and fewer than 1 % of the values differ at all
    (rounding at .5).
    """
    base = toy(**kind)
    t = mixture(tmp_path)
    ours = pixels(run(base, t, tmp_path / "out", batch_size=4))
    theirs = np.stack([stock(base, r) for r in t.itertuples()]).astype(int)
    assert abs(ours - theirs).max() <= 1 and (ours != theirs).mean() < 0.01
    apart = [abs(theirs[i] - theirs[j]).max() for i in range(len(t)) for j in range(i)]
    assert min(apart) > 3, "the pictures must differ, or equality says nothing"


def test_latents_equal_the_stock_pipeline_to_float_precision(tmp_path, base):
    """Before rounding to bytes: largest difference 1e-4 where latents have a standard deviation
    near 1.
    """
    import torch

    row = table(tmp_path, 1).iloc[0]
    image = Image.open(row.path).resize((16, 16), Image.BILINEAR)
    theirs = base.pipeline("img2img")(
        prompt=row.prompt,
        image=image,
        strength=0.5,
        guidance_scale=2.0,
        num_inference_steps=6,
        output_type="latent",
        generator=torch.Generator().manual_seed(5),
    ).images
    with torch.inference_mode():
        x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        dist = base.vae.encode(x).latent_dist
        gen = torch.Generator().manual_seed(5)
        first, noise = d.start_noise(gen, dist.mean.shape[1:], torch.float32, posterior=True)
        z = (dist.mean + dist.std * first) * base.vae.config.scaling_factor
        unet = d.prepared(base.unet)
        text = latent.encode_prompts(base, ["", row.prompt])
        index, guidance = torch.tensor([1]), torch.tensor([2.0])
        predict = d.guided(unet, text, index, guidance, d.remember_text(unet))
        ours = d.sample(predict, base.scheduler, noise[None], 6, 3, z)
    assert theirs.std() > 0.3 and (ours - theirs).abs().max() < 1e-4


def test_batch_size_and_order_of_rows_change_nothing(tmp_path, base):
    t = mixture(tmp_path)

    def by_id(m):
        return pixels(m.sort_values("image_id"))

    one = by_id(run(base, t, tmp_path / "a", batch_size=1))
    for k, size in enumerate((3, 64)):
        other = by_id(run(base, t.iloc[::-1], tmp_path / f"b{k}", batch_size=size))
        assert abs(one - other).max() <= 1 and (one != other).mean() < 0.01


def test_the_noise_offset_of_the_base_starts_text_to_image_only(tmp_path):
    import torch

    base = toy(noise_offset=0.5)
    t = mixture(tmp_path).assign(steps=6)
    by_default, without = (
        pixels(run(base, t, tmp_path / "a")),
        pixels(run(base, t, tmp_path / "b", start_noise_offset=0.0)),
    )
    text = (t.path == "").to_numpy()
    differs = abs(by_default - without).max((1, 2, 3))
    assert text.any() and (differs[text] > 3).all() and (differs[~text] == 0).all()
    row = t[t.path == ""].iloc[0]  # the same start handed to the stock pipeline
    _, start = d.start_noise(
        torch.Generator().manual_seed(int(row.seed)), (4, 8, 8), torch.float32, False, 0.5
    )
    theirs = base.pipeline("txt2img")(
        prompt=row.prompt, guidance_scale=row.guidance, num_inference_steps=6, latents=start[None]
    ).images[0]
    assert (
        abs(by_default[t.image_id == row.image_id][0] - np.asarray(theirs).astype(int)).max() <= 1
    )


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_an_adapter_is_merged_into_a_copy_and_equals_the_stock_pipeline_with_the_adapter(
    tmp_path, scale
):
    from peft import LoraConfig

    base = toy()
    t = table(tmp_path, 4)
    plain = pixels(run(base, t, tmp_path / "plain"))
    base.unet.add_adapter(
        LoraConfig(
            r=2,
            lora_alpha=4,
            init_lora_weights=False,
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        ),
        adapter_name="default",
    )
    base.unet.set_adapters("default", scale)
    names = list(base.unet.state_dict())
    ours, theirs = (
        pixels(run(base, t, tmp_path / "lora")),
        np.stack([stock(base, r) for r in t.itertuples()]).astype(int),
    )
    assert abs(ours - theirs).max() <= 1 and abs(ours - plain).max() > 3
    assert list(base.unet.state_dict()) == names and any(
        "lora" in n for n in names
    )  # ours was a copy
    run(base, t, tmp_path / "plain")
    assert (pixels(run(base, t, tmp_path / "plain")) == ours).all()  # other weights: made again


def test_parents_and_prompts_pass_the_encoders_once(tmp_path, base, monkeypatch):
    t = table(tmp_path, 10)
    seen = dict(images=0, prompts=0)
    encode, forward = base.vae.encode, base.text_encoder.forward

    def count_images(x, *a, **k):
        seen["images"] += len(x)
        return encode(x, *a, **k)

    def count_prompts(x, *a, **k):
        seen["prompts"] += len(x)
        return forward(x, *a, **k)

    monkeypatch.setattr(base.vae, "encode", count_images)
    monkeypatch.setattr(base.text_encoder, "forward", count_prompts)
    run(
        base, t, tmp_path / "out", batch_size=2
    )  # two strengths, three weights: each parent is in several batches and groups
    assert seen == dict(images=3, prompts=1 + t.prompt.nunique())


def test_without_guidance_nothing_is_doubled(tmp_path, base, monkeypatch):
    sizes, prepared = [], d.prepared

    def spy(unet):
        unet = prepared(unet)
        forward = unet.forward

        def counted(x, *a, **k):
            sizes.append(len(x))
            return forward(x, *a, **k)

        unet.forward = counted
        return unet

    monkeypatch.setattr(d, "prepared", spy)
    run(base, table(tmp_path, 4, guidance=1.0, strength=0.5), tmp_path / "a")
    assert set(sizes) == {4} and len(sizes) == 3
    sizes.clear()
    run(base, table(tmp_path, 4, guidance=2.0, strength=0.5), tmp_path / "b")
    assert set(sizes) == {8} and len(sizes) == 3


# --------------------------------------------------------------------------------------------------
# resuming


@pytest.mark.parametrize(
    "change",
    [
        dict(guidance=3.0),
        dict(prompt=PROMPTS[1]),
        dict(label="folliculitis"),
        dict(method="lora"),
        dict(steps=7),
    ],
)
def test_another_wish_is_another_file(tmp_path, base, change):
    t = table(tmp_path, 3, guidance=2.0, prompt=PROMPTS[0])
    out = tmp_path / "out"
    run(base, t, out)
    before = written(out)
    run(base, t, out)
    assert written(out) == before  # the control: nothing is made twice
    t.loc[0, list(change)] = list(change.values())
    run(base, t, out)
    after = written(out)
    assert [n for n in before if before[n] != after[n]] == [f"{t.image_id[0]}.png"]


def test_other_weights_settings_or_parents_make_all_again(tmp_path, base):
    t = table(tmp_path, 3)
    out = tmp_path / "out"
    run(base, t, out)
    before = written(out)
    for what, options in (
        (toy(1), {}),
        (base, dict(files=g.Files(size=24))),
        (base, dict(fast_steps=3)),
        (base, dict(fit="shorter")),
    ):
        run(what, t, out, **options)
        after = written(out)
        assert all(before[n] != after[n] for n in before)
        before = after
    run(base, t, out)
    before = written(out)
    Image.new("RGB", (30, 30), "red").save(
        t.path[1]
    )  # the parent is another picture under the same name
    run(base, t, out)
    after = written(out)
    assert [n for n in sorted(before) if before[n] != after[n]] == ["p1-1.png"]


def test_a_table_from_csv_finds_the_same_files(tmp_path, base):
    t = table(tmp_path, 3)
    out = tmp_path / "out"
    run(base, t, out)
    before = written(out)
    t.to_csv(tmp_path / "t.csv", index=False)
    extra = pd.read_csv(tmp_path / "t.csv").astype(dict(skin_type=float))
    assert len(run(base, extra, out)) == 3 and written(out) == before


# --------------------------------------------------------------------------------------------------
# provenance
@pytest.mark.parametrize("format", ["png", "jpg"])
def test_provenance_is_read_back(tmp_path, base, format):
    t = table(tmp_path, 2)
    m = run(base, t, tmp_path / "out", files=g.Files(24, format, 90))
    r = g.read_provenance(m.path[1])
    row = t.iloc[1]
    for k in (
        "image_id",
        "prompt",
        "strength",
        "guidance",
        "steps",
        "seed",
        "label",
        "skin_type",
        "parent_id",
        "method",
    ):
        assert r[k] == row[k], k
    assert (
        r["what"] == "synthetic: not a photograph"
        and r["weights"] == base.weights
        and r["weights_hash"] == base.weights_hash
    )
    image = Image.open(m.path[1])
    assert image.size == (24, 24)
    seen = image.text["Description"] if format == "png" else image.getexif()[0x010E]
    assert seen.startswith("synthetic: not a photograph")  # what an ordinary viewer shows
    assert str(tmp_path) not in str(r), "no place of one machine in a file that travels"
    assert (
        m.source.eq("synthetic").all()
        and m.parent_id.tolist() == t.parent_id.tolist()
        and m.group.isna().all()
        and m.skin_type.eq(5).all()
    )
    with pytest.raises(ValueError, match="no record"):
        g.read_provenance(t.path[0])
    with pytest.raises(FileNotFoundError):
        g.read_provenance(tmp_path / "nothing.png")


# --------------------------------------------------------------------------------------------------
# bad input
def refuses_before_any_work(base, specs, folder, error, match, monkeypatch):
    def work(*a, **k):
        raise AssertionError("work was done")

    with monkeypatch.context() as m:
        m.setattr(d, "prepared", work)
        with pytest.raises(error, match=match):
            run(base, specs, folder)
    assert not list(Path(folder).glob("*.png"))


def test_bad_tables_are_refused_before_any_work(tmp_path, base, monkeypatch):
    t = table(tmp_path, 3)

    def check(specs, error, match):
        return refuses_before_any_work(base, specs, tmp_path / "out", error, match, monkeypatch)

    gone = t.copy()
    gone.loc[2, "path"] = str(tmp_path / "gone.jpg")
    check(
        gone, FileNotFoundError, r"Row 2, image_id 'p2-2', column path: .*gone\.jpg' does not exist"
    )
    check(t.assign(prompt="an image " * 9), ValueError, "Shorten")
    check(t.assign(strength=0.1), ValueError, "no step to walk")
    check(t.assign(image_id="same"), ValueError, "twice")
    check(t.assign(skin_type=9.5), ValueError, "skin_type")
    check(t[:0], ValueError, "no rows")
    check(t.drop(columns="prompt"), ValueError, r"\['prompt'\]")
    with pytest.raises(ValueError, match="fit"):
        run(base, t, tmp_path / "out", fit="stretch")


def test_a_parent_that_is_no_image_is_named(tmp_path, base):
    t = table(tmp_path, 3)
    Path(t.path[1]).write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"p1\.png is not an image"):
        run(base, t, tmp_path / "out")


def test_random_weights_make_images_for_timing_only(tmp_path):
    from dataclasses import replace

    base = replace(toy(), random=True, weights="random")
    t = table(tmp_path, 1)
    with pytest.raises(latent.BaseModelError, match="random"):
        run(base, t, tmp_path / "out")
    assert len(run(base, t, tmp_path / "out", timing_only=True)) == 1


def test_memory_that_a_device_lacks_names_the_batch_size(tmp_path, base, monkeypatch):
    import torch

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(d, "sample", full)
    t = table(tmp_path, 4, guidance=1.0, strength=0.5)
    with pytest.raises(g.GenerationError, match=r"on cpu with 4 image.*batch_size=2"):
        run(base, t, tmp_path / "out", batch_size=4)
    with pytest.raises(g.GenerationError, match="half precision"):
        run(base, t, tmp_path / "out", batch_size=1)


def test_numbers_that_are_not_finite_are_never_an_image(tmp_path):
    base = toy()
    t = table(tmp_path, 3)
    base.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(g.GenerationError, match=r"Row \d, image_id 'p\d-\d'.*not finite"):
        run(base, t, tmp_path / "out")
    assert not written(tmp_path / "out")


# --------------------------------------------------------------------------------------------------
# images of a user's earlier runs
def test_keys_stay_what_they_were(tmp_path):
    """Computed by the function that this drawer and the renderer were made from: images made before
    are found, not made again. When a library changes a scheduler's settings, keys change; say so in
    the changelog.
    """
    import torch

    base = toy(noise_offset=0.5)
    for part in (base.unet, base.text_encoder, base.vae):
        for p in part.parameters():  # numbers that each machine has alike
            p.data = (torch.arange(p.numel()) % 7 - 3.0).div(8).view(p.shape)
    (tmp_path / "p.ppm").write_bytes(b"P6 4 4 255\n" + bytes(range(48)))
    common = dict(strength=0.5, steps=4, group="dark", method="ti")
    t = pd.DataFrame(
        [
            dict(
                image_id="a",
                path=str(tmp_path / "p.ppm"),
                parent_id="p",
                prompt="an image of psoriasis",
                guidance=2.0,
                seed=3,
                label="psoriasis",
                skin_type=5,
                **common,
            ),
            dict(
                image_id="b",
                path="",
                parent_id=pd.NA,
                prompt="an image of folliculitis",
                guidance=1.0,
                seed=4,
                label="folliculitis",
                skin_type=pd.NA,
                **common,
            ),
        ]
    )
    all_options = dict(fit="shorter", fast_steps=2, start_noise_offset=0.0)
    for files, options, keys in (
        (None, {}, ["927fca6630c99535238ce8637bad8c6f", "f12f186587a247d5c69d3a2f52b7b12b"]),
        (
            g.Files(24, "jpg", 90),
            all_options,
            ["0c35887711117333340589875bddd149", "32329a3319d7b7e0ff2959e491d846f6"],
        ),
    ):
        made = run(base, t, tmp_path / "out", files=files, **options)
        assert [g.read_provenance(p)["key"] for p in made.path] == keys


def test_a_base_personalised_anew_for_each_part(tmp_path, base, monkeypatch):
    "One copy at a time, each row by its own; the base itself where there is nothing to add."
    made = []

    def personal(base, embeddings, lora):
        made.append((embeddings, lora))
        return toy(int(lora))

    monkeypatch.setattr(d, "personalised", personal)
    t = table(tmp_path, 6)
    by = ["1", None, "1", "2", None, "2"]
    m = g.generate_by(
        t, tmp_path / "by", by, d.personalised_drawers(base), batch_size=1, progress=False
    )
    assert made == [(None, "1"), (None, "2")]
    for name, of in (("1", toy(1)), (None, base), ("2", toy(2))):
        rows = [b == name for b in by]
        alone = run(of, t[rows], tmp_path / f"alone{name}", batch_size=1)
        assert (alone.md5.to_numpy() == m[rows].md5.to_numpy()).all()
