"""How good is the shipped miniature base model, and what does its design rest on?

python benchmarks/miniature.py card      # samples, judged; writes the model card and its pictures
(15 min on 2 cores) python benchmarks/miniature.py ablation  # noise offset and schedule on and off:
which tone does image-to-image reach? (20 min) python benchmarks/miniature.py judge     # trains the
small judge that `skinrepro first` asks, and measures it (3 min on 1 core)

The ablation trains four smaller U-Nets (widths 32 and 64) for fewer steps, on the shipped codec; it
compares them with each other, not with it.

The judge is a small residual network trained on rendered phantoms of all conditions; its own
accuracy on fresh phantoms is printed first, and nothing that it says is better than that. Skin tone
is measured, not judged: the median individual typology angle (ITA) of the image; below 10 degrees
is dark. Everything is seeded.
"""

import argparse
import json
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from skinrepro.colour import ita
from skinrepro.core import atomic_path, paths, seed_all
from skinrepro.phantom import CONDITIONS, render

NAMES = list(CONDITIONS)
DARK = 10  # degrees: ITA below it is "brown" or "dark" (Del Bino and Bernerd 2013)
OUT = paths().figures / "miniature"


def phantoms(n, stream, difficulty):
    """n phantoms of all ten conditions and six skin types, from a stream of seeds that nothing else
    uses.
    """
    from joblib import Parallel, delayed

    rng = np.random.default_rng([stream, n])
    k, t, d = rng.integers(len(NAMES), size=n), rng.integers(1, 7, n), rng.uniform(*difficulty, n)
    draw = delayed(render)
    x = Parallel(2, batch_size=64)(
        draw(NAMES[a], int(b), stream * 10**9 + i, 64, difficulty=float(e))
        for i, (a, b, e) in enumerate(zip(k, t, d))
    )
    return np.stack(x), k, t


def signed(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_judge(n=12000, epochs=12, seed=0):
    """A classifier of the ten conditions; flips, gain and colour are varied so that it looks at the
    lesion.
    """
    import torch
    import torch.nn.functional as F

    from skinrepro.loop import fit
    from skinrepro.networks import build

    seed_all(seed)
    x, y, _ = phantoms(n, 9, (0.2, 1.0))
    x, y = signed(x), torch.tensor(y)
    model = build("resnet_small", len(NAMES), 64, seed=seed)
    steps = -(-n // 64)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.02)
    once = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * steps + 1)

    def batches(_):
        for i in torch.randperm(n).split(64):
            b = x[i]
            if torch.rand(()) < 0.5:
                b = b.flip(3)
            if torch.rand(()) < 0.5:
                b = b.flip(2)
            yield (
                b * (1 + 0.1 * torch.randn(len(b), 1, 1, 1))
                + 0.05 * torch.randn(len(b), 3, 1, 1)
                + 0.03 * torch.rand(1) * torch.randn_like(b),
                y[i],
            )

    def loss(m, batch):
        value = F.cross_entropy(m(batch[0]), batch[1], label_smoothing=0.05)
        if optimizer.state:
            once.step()
        return value

    fit(model, batches, loss, optimizer, epochs, progress=False)
    return model.eval()


def asked(model):
    "What a judge calls images."
    import torch

    def judge(images):  # uint8 (n, 64, 64, 3) -> names
        with torch.inference_mode():
            return np.array(NAMES)[
                torch.cat([model(b).argmax(1) for b in signed(images).split(256)]).numpy()
            ]

    return judge


def tone(images):  # (n,) degrees
    return np.array([np.nanmedian(ita(i)) for i in images])


def read(manifest):
    from skinrepro.images import load_image

    return np.stack([np.asarray(load_image(p)) for p in manifest.path])


def make(base, specs, folder):
    from skinrepro.generate import generate
    from skinrepro.latent_drawer import LatentDrawer

    return read(generate(specs, folder, LatentDrawer(base), batch_size=32, progress=False))


def structure(a, b):  # (n,) correlation of the lightness inside each pair, tone removed
    from skinrepro.colour import lab

    u, v = (lab(i)[..., 0].reshape(len(i), -1) for i in (a, b))
    u, v = u - u.mean(1, keepdims=True), v - v.mean(1, keepdims=True)
    return (u * v).sum(1) / np.sqrt((u * u).sum(1) * (v * v).sum(1))


def text_to_image(base, judge, folder, guidance, n=24, steps=25):
    "Known conditions and healthy skin in four tones: does the judge see what was asked?"
    from skinrepro.miniature import KNOWN, NO_LESION, caption

    rows = [
        dict(
            image_id=f"t2i-{c[:2]}-{t}-{i}",
            path="",
            prompt=caption(c, t),
            strength=1.0,
            guidance=guidance,
            steps=steps,
            seed=1000 * t + i + 7 * len(c),
            label=c,
            skin_type=t,
            parent_id="",
        )
        for c in (*KNOWN, NO_LESION)
        for t in (1, 2, 5, 6)
        for i in range(n)
    ]
    specs = pd.DataFrame(rows)
    x = make(base, specs, folder)
    angle = tone(x)
    out = specs.assign(
        seen=judge(x),
        ita=angle,
        right=lambda d: d.seen == d.label,
        tone=np.where(specs.skin_type >= 5, angle < DARK, angle > 28),
    )
    return x, out


def numbers(parents, images, seen, label, asked):
    "Tone, identity and structure of images beside their parents."
    label, asked = np.array(label), np.array(asked)
    return dict(
        dark=float((tone(images) < DARK).mean()),
        ita=float(np.median(tone(images))),
        parents_condition=float((seen == label).mean()),
        prompts_condition=float((seen == asked).mean()),
        structure=float(structure(parents, images).mean()),
    )


def image_to_image(
    base, judge, folder, strengths, guidance, n=60, steps=25, controls=(False, True)
):
    "Light parents of the known conditions, a dark prompt; the control names another condition."
    from PIL import Image

    from skinrepro.miniature import KNOWN, caption

    folder.mkdir(parents=True, exist_ok=True)
    label = [KNOWN[i % len(KNOWN)] for i in range(n)]
    light = np.stack(
        [render(c, 1 + i // 4 % 2, 88_000 + i, 64, difficulty=0.8) for i, c in enumerate(label)]
    )
    truth = np.stack(
        [render(c, 5 + i // 4 % 2, 88_000 + i, 64, difficulty=0.8) for i, c in enumerate(label)]
    )
    files = [folder / f"parent-{i}.png" for i in range(n)]
    for f, a in zip(files, light):
        Image.fromarray(a).save(f)
    rows, shown = [], {}
    for s in strengths:
        for control in controls:
            other = [KNOWN[(KNOWN.index(c) + 1) % len(KNOWN)] if control else c for c in label]
            specs = pd.DataFrame(
                [
                    dict(
                        image_id=f"i2i-{s:g}-{control}-{i}",
                        path=str(f),
                        prompt=caption(o, 5 + i // 4 % 2),
                        strength=s,
                        guidance=guidance,
                        steps=steps,
                        seed=i,
                        label=c,
                        skin_type=5 + i // 4 % 2,
                        parent_id=f.stem,
                    )
                    for i, (f, c, o) in enumerate(zip(files, label, other))
                ]
            )
            x = make(base, specs, folder / "out")
            seen = judge(x)
            shown[s, control] = x
            rows.append(
                dict(
                    strength=s,
                    guidance=guidance,
                    wrong_prompt=control,
                    **numbers(light, x, seen, label, other),
                )
            )
    reference = dict(
        strength="truth",
        guidance=guidance,
        wrong_prompt=False,
        **numbers(light, truth, judge(truth), label, label),
    )
    return light, truth, shown, pd.DataFrame([*rows, reference])


def sheet(
    rows, file, titles=(), stamp="drawn by the miniature base model from phantoms: not patients"
):
    "Rows of images as one picture, with the stamp."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    h, w = len(rows), max(map(len, rows))
    fig, axes = plt.subplots(h, w, figsize=(0.85 * w + 1.3, 0.87 * h + 0.35), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for r, (line, row) in enumerate(zip(axes, rows)):
        for ax, image in zip(line, row):
            ax.imshow(image, interpolation="none")
        if r < len(titles):
            line[0].text(-6, 32, titles[r], ha="right", va="center", fontsize=7)
    fig.subplots_adjust(
        left=1.25 / (0.85 * w + 1.3),
        right=0.998,
        top=0.995,
        bottom=0.3 / (0.87 * h + 0.35),
        wspace=0.03,
        hspace=0.03,
    )
    fig.text(0.5, 0.01, stamp, ha="center", fontsize=8, color="crimson")
    with atomic_path(file) as tmp:
        fig.savefig(tmp, dpi=130)
    plt.close(fig)


CARD = """---
license: apache-2.0
tags: [stable-diffusion, text-to-image, phantom]
---
# Miniature base model {version}

A text-to-image latent diffusion model with the anatomy of Stable Diffusion and {parameters:.1f} million parameters, 64 px, for running the methods of
this project without a download and without a GPU.

**It has seen procedural phantoms only (`skinrepro.phantom`). What it draws is no photograph and says nothing about patients; no number made with it
can be compared with a printed one.**

## Data
{pictures:,} phantoms of all six skin types, rendered with seeds that no experiment uses (`skinrepro.miniature.training_set`): healthy skin 12 %,
basal cell carcinoma, folliculitis, psoriasis and squamous cell
carcinoma 12 % each, allergic contact dermatitis and lichen planus 5 % each, the rest 40 labels of Fitzpatrick17k as generic lesions. It has **never
seen** nematode infection, neutrophilic dermatoses or
prurigo nodularis, and it **has** seen dark skin, with the four known conditions on it.

## Parts
Codec: 8 principal components of 4 x 4 patches and a small convolutional network ({codec_db:.1f} dB on held-out pictures;
`skinrepro.latent.PatchCodec`). Text: word-level tokenizer of 225 words, CLIP text encoder (2 layers,
width 96, 24 tokens). U-Net2DConditionModel (48, 96, 128) with cross-attention at every scale, on 16 x 16 x 8 latents, v-prediction, shifted cosine
schedule (sigma/alpha = {shift} tan(pi u/2)), noise with a per-channel offset of {noise_offset}.

## Training
{steps:,} steps of {batch_size} on two CPU cores, AdamW {lr}, EMA {ema}, captions dropped in 10 %, seed {seed}.{note} `skinrepro.miniature.train`
trains it anew.

## Measured
By `benchmarks/miniature.py card`. The judge, a classifier trained on other phantoms, is itself right on {judge[all]:.1%} of fresh ones (light skin
{judge[light]:.1%}, dark skin {judge[dark]:.1%}).

Text to image (guidance {guidance}, 25 steps, {n} samples): {condition:.1%} show the asked condition, {skin_group:.1%} the asked tone group (types
I-II above 28 degrees ITA, V-VI below {dark}).

{by_label}

Image to image, light parents of the known conditions and a prompt that asks for dark skin (guidance {img2img_guidance}, 25 steps); `structure` is the
correlation of lightness with the parent. The control
prompt names another condition. `truth` is the same scene really rendered on dark skin.

{img2img}

Pictures: `figures/miniature/samples.png`, `figures/miniature/img2img.png`.
"""  # noqa: E501


def write_card(facts, table, guidance, shipped):
    "The model card, every number from this measurement."
    made = json.loads((shipped / "miniature.json").read_text())
    rows = ["| asked | condition | tone |", "|---|---|---|"] + [
        f"| {k} | {v['right']:.0%} | {v['tone']:.0%} |" for k, v in facts["text_to_image"].items()
    ]
    control = table[table.wrong_prompt.astype(bool)][["strength", "parents_condition"]].rename(
        columns={"parents_condition": "control"}
    )
    both = table.merge(control, on="strength", how="left")
    lines = [
        (
            "| strength | ITA below 10 | ITA, median | judged as the parent | the same, control"
            " prompt | structure |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for r in both[~both.wrong_prompt.astype(bool)].itertuples():
        other = "" if np.isnan(r.control) else f"{r.control:.0%}"
        lines.append(
            f"| {r.strength} | {r.dark:.0%} | {r.ita:.0f} | {r.parents_condition:.0%} | {other} |"
            f" {r.structure:.2f} |"
        )
    n = sum(int(v["n"]) for v in facts["text_to_image"].values())
    values = {"note": "", **made, **facts, "n": n, "dark": DARK, "img2img_guidance": guidance}
    text = CARD.format(**values, by_label="\n".join(rows), img2img="\n".join(lines))
    with atomic_path(shipped / "README.md") as tmp:
        tmp.write_text(text)


def card(a):
    import tempfile
    from pathlib import Path

    from skinrepro.latent import load_base
    from skinrepro.miniature import KNOWN, NO_LESION

    base = load_base("miniature", folder=a.base or None)
    judge = asked(train_judge())
    fresh, y, t = phantoms(1500, 11, (0.25, 0.8))
    right = judge(fresh) == np.array(NAMES)[y]
    own = {
        g: round(float(right[m].mean()), 4)
        for g, m in dict(all=t > 0, light=t < 3, dark=t > 4).items()
    }
    print("judge on fresh phantoms:", own, flush=True)
    with tempfile.TemporaryDirectory() as d:
        x, seen = text_to_image(base, judge, Path(d) / "t2i", a.guidance)
        by = seen.groupby("label").agg(
            right=("right", "mean"), tone=("tone", "mean"), n=("right", "size")
        )
        spread = seen.groupby("skin_type").ita.agg(["mean", "std"])
        print(
            by.round(3),
            "\nITA\n",
            spread.round(1),
            "\nall:",
            seen.right.mean().round(4),
            seen.tone.mean().round(4),
            flush=True,
        )
        light, truth, shown, table = image_to_image(
            base, judge, Path(d) / "i2i", a.strengths, a.img2img_guidance
        )
        print(table.round(3).to_string(), flush=True)
    facts = dict(
        judge=own,
        guidance=a.guidance,
        text_to_image={
            k: {c: round(float(v), 4) for c, v in r.items()} for k, r in by.to_dict("index").items()
        },
        condition=round(float(seen.right.mean()), 4),
        skin_group=round(float(seen.tone.mean()), 4),
        ita={
            int(k): {c: round(float(v), 1) for c, v in r.items()}
            for k, r in spread.to_dict("index").items()
        },
        weights_hash=base.weights_hash,
        parameters=sum(
            p.numel() for m in (base.unet, base.text_encoder, base.vae) for p in m.parameters()
        )
        / 1e6,
    )
    OUT.mkdir(parents=True, exist_ok=True)
    with atomic_path(OUT / "card.json") as tmp:
        tmp.write_text(json.dumps(facts, indent=1) + "\n")
    with atomic_path(OUT / "img2img.csv") as tmp:
        table.round(4).to_csv(tmp, index=False)
    if not a.base:
        write_card(facts, table, a.img2img_guidance, paths().root / "skinrepro" / "miniature_base")
    groups = [
        x[((seen.label == c) & (seen.skin_type == s)).to_numpy()][:3]
        for c in (NO_LESION, *KNOWN)
        for s in (1, 2, 5, 6)
    ]
    rows = [np.concatenate(groups[i : i + 4]) for i in range(0, len(groups), 4)]
    sheet(rows, OUT / "samples.png", [c.replace(" ", "\n") for c in ("healthy skin", *KNOWN)])
    titles = ["parent", "same scene\ntruly dark", *(f"strength {s:g}" for s in a.strengths)]
    sheet(
        [light[:12], truth[:12], *(shown[s, False][:12] for s in a.strengths)],
        OUT / "img2img.png",
        titles,
    )


def ablation(a):
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    from skinrepro.latent import load_base
    from skinrepro.miniature import TRAINING, Recipe, train, training_set

    judge = asked(train_judge(6000, 8))
    fresh, y, _ = phantoms(1000, 11, (0.25, 0.8))
    rows = []
    print(f"judge on fresh phantoms: {(judge(fresh) == np.array(NAMES)[y]).mean():.3f}", flush=True)
    given, codec = training_set(a.pictures), load_base("miniature").vae
    for offset in (0.5, 0.0):
        for shift in (0.6, 1.0):  # 1 is the plain cosine schedule
            with tempfile.TemporaryDirectory() as d:
                recipe = Recipe(a.pictures, widths=(32, 64), noise_offset=offset, shift=shift)
                training = replace(TRAINING, steps=a.steps, every=a.steps)
                train(Path(d) / "base", recipe, training, given=given, codec=codec, progress=False)
                base = load_base("miniature", folder=Path(d) / "base")
                *_, table = image_to_image(
                    base,
                    judge,
                    Path(d) / "i2i",
                    (0.5, 0.6, 0.7, 0.8),
                    a.img2img_guidance,
                    n=40,
                    controls=(False,),
                )
                rows.append(table[~table.wrong_prompt].assign(noise_offset=offset, shift=shift))
                print(rows[-1].round(3).to_string(), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    with atomic_path(OUT / "ablation.csv") as tmp:
        pd.concat(rows).round(4).assign(steps=a.steps, pictures=a.pictures).to_csv(tmp, index=False)


def ship_judge(a):
    """Train a judge and keep it in the package, with how it was made and what it is worth. Its
    weights are kept in half precision, and it is measured with what is read back.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from skinrepro.core import commit, sha256_file

    recipe, made_at = dict(pictures=12000, epochs=5, seed=0), commit()
    model = train_judge(*recipe.values())
    folder = paths().root / "skinrepro" / "phantom_judge"
    with atomic_path(folder / "judge.safetensors") as tmp:
        save_file(
            {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()},
            tmp,
        )
    kept = load_file(folder / "judge.safetensors")
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in kept.items()})
    fresh, y, t = phantoms(3000, 13, (0.25, 0.8))
    right = asked(model)(fresh) == np.array(NAMES)[y]
    about = dict(
        made_by="benchmarks/miniature.py judge",
        commit=made_at,
        torch=torch.__version__,
        network="resnet_small",
        pixels=64,
        **recipe,
        difficulty=[0.2, 1.0],
        sha256=sha256_file(folder / "judge.safetensors"),
        labels=NAMES,
        right_on_fresh_phantoms=dict(
            n=len(y),
            all=round(float(right.mean()), 4),
            light=round(float(right[t < 3].mean()), 4),
            dark=round(float(right[t > 4].mean()), 4),
            **{c: round(float(right[y == i].mean()), 4) for i, c in enumerate(NAMES)},
        ),
        licence="Apache-2.0",
        note="Trained and measured on procedural phantoms alone: it knows nothing of patients.",
    )
    with atomic_path(folder / "judge.json") as tmp:
        tmp.write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("what", choices=["card", "ablation", "judge"])
    p.add_argument("--base", default="", help="model folder; the shipped one where absent")
    p.add_argument("--guidance", type=float, default=2.0)
    p.add_argument("--img2img-guidance", type=float, default=4.0)
    p.add_argument("--strengths", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.7, 0.8])
    p.add_argument("--steps", type=int, default=500)
    p.add_argument("--pictures", type=int, default=6000)
    a = p.parse_args()
    {"card": card, "ablation": ablation, "judge": ship_judge}[a.what](a)
