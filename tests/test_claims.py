"""Claims: properties on random records, and the whole report on made-up ones."""
import json
import os
import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import runs
from skinrepro.claims import Claim, claim_rule, claims_layout, detectable, effect_interval, evaluate, pairs, printed_records
from skinrepro.core import paths, provenance
from skinrepro.tables import read_reported, save_table
from skinrepro.uncertainty import minimum_detectable_effect, paired_difference, smallest_spread

WANG = ROOT/'nbs'/'papers'/'wang2024'
SYN = Claim('syn beats real', 'made up', dict(train='syn'), (dict(train='real'),), ('scenario', 'arch'), dict(scenario=('i', 'ii')))
BOTH = Claim('both beat either', 'made up', dict(train='both'), (dict(train='real'), dict(train='syn')), ('scenario', 'arch'))


def made_up(effects, seeds=range(5), n=56, noise=.01, rng=0, sizes=None, **more):
    "Made-up records of two scenarios and two networks; `effects`: train type -> what it adds."
    rng = np.random.default_rng(rng); out = []
    for scenario in ('i', 'ii'):
        for arch in ('small', 'large'):
            for seed in seeds:
                for train, plus in effects.items():
                    base = dict(run_id=f'{scenario}-{arch}-{train}-{seed}', scenario=scenario, arch=arch, train=train, seed=seed, group='all', data='phantom',
                                profile='mini', version='1') | more
                    out.append(base | dict(metric='accuracy', value=.6 + plus + rng.normal(0, noise), n=n))
                    if sizes: out.append(base | dict(metric='train_size', value=sizes[train], n=sizes[train]))
    return pd.DataFrame(out)


# --- the interval

def test_interval_is_the_paired_t_interval_where_there_is_spread():
    rng = np.random.default_rng(0)
    for _ in range(50):
        d = rng.normal(.02, .05, rng.integers(3, 8)); overlap = rng.choice([0., .04, .2])
        r = paired_difference(d, np.zeros(len(d)), overlap=overlap)
        if r.sd > smallest_spread(56, len(d))['sample']/100: assert effect_interval(d, 56, overlap) == pytest.approx((r.mean, r.low, r.high))


@pytest.mark.parametrize('n_draws', [2, 3, 5])
def test_equal_draws_are_no_certainty(n_draws):
    "All draws give the same difference: the interval has the width that a single image more in a single draw would give."
    from scipy import stats
    for n, images in ((56, 1), (291, 1)):
        mean, low, high = effect_interval([images/n]*n_draws, n)
        half = stats.t.ppf(.975, n_draws - 1)*np.std([1/n] + [0]*(n_draws - 1), ddof=1)/n_draws**.5
        assert (high - low)/2 == pytest.approx(half) and (low < 0) == (n_draws < 5) and high > 0


def test_overlapping_draws_widen_the_interval_as_the_records_say():
    plain, sized = made_up(dict(real=0, syn=.03)), made_up(dict(real=0, syn=.03), sizes=dict(real=1519, syn=7595))
    a, b = SYN(plain), SYN(sized)
    assert a.effect == b.effect and (b.high - b.low)/(a.high - a.low) == pytest.approx(((1/5 + 56/1519)/(1/5))**.5), 'by photographs, not by synthetic images'


# --- the verdict

def test_verdicts_follow_the_printed_rule():
    rng = np.random.default_rng(1); seen = set()
    for i in range(30):
        t = made_up(dict(real=0, syn=rng.normal(0, .03), both=rng.normal(.02, .03)), seeds=range(rng.integers(1, 6)), noise=rng.uniform(.002, .04), rng=i)
        for claim in (SYN, BOTH):
            f = claim(t); seen.add((len(claim.worse), f.verdict)); k = len(claim.worse)
            d = {w['train']: (pairs(t, claim.better, w, claim.within).assign(d=lambda p: p.a - p.b).groupby('seed').d.mean()) for w in claim.worse}
            low = {w: effect_interval(v, 56)[1] for w, v in d.items()}; top = {w: effect_interval(v, 56, 0., 1 - .05/k)[2] for w, v in d.items()}
            expected = 'supported' if all(v > 0 for v in low.values()) else 'contradicted' if any(v < 0 for v in top.values()) else 'inconclusive'
            assert f.verdict == expected and f.effect == pytest.approx(min(v.mean() for v in d.values())) and f.rival == min(d, key=lambda w: d[w].mean())
    assert seen == {(k, v) for k in (1, 2) for v in ('supported', 'contradicted', 'inconclusive')}, 'every branch was taken'


def test_one_draw_decides_nothing_however_large_the_effect():
    f = SYN(made_up(dict(real=0, syn=.3), seeds=[0]))
    assert f.verdict == 'inconclusive' and f.draws == 1 and f.effect > .2 and np.isnan(f.low)


def test_a_rival_that_was_not_run_forbids_support_but_not_contradiction():
    t = made_up(dict(real=0, both=.1)); f = BOTH(t)
    assert f.verdict == 'inconclusive' and f.low > 0 and f.note == 'no runs of syn'
    assert BOTH(made_up(dict(real=0, both=-.1))).verdict == 'contradicted'
    assert BOTH(made_up(dict(real=0, syn=0))).verdict == 'not run'


def test_parts_are_tested_alone():
    t = made_up(dict(real=0, syn=.05)); t.loc[(t.scenario == 'ii') & (t.train == 'syn'), 'value'] -= .1
    found = evaluate([SYN], t).set_index('part')
    assert found.verdict.to_dict() == {'over all': 'inconclusive', 'scenario i': 'supported', 'scenario ii': 'contradicted'}
    assert found.effect['over all'] == pytest.approx((found.effect['scenario i'] + found.effect['scenario ii'])/2)


@pytest.mark.parametrize('n', [56, 291])
def test_the_detectable_effect_stands_beside_each_claim(n):
    t = evaluate([SYN], made_up(dict(real=0, syn=.05), n=n))
    assert t.mde.tolist() == pytest.approx([100*minimum_detectable_effect(n, discordance=.25)]*3) and set(t.n_test) == {str(n)}
    mixed = made_up(dict(real=0, syn=.05)); mixed.loc[mixed.scenario == 'ii', 'n'] = 291
    f = SYN(mixed); assert f.n_test == '56-291' and f.mde == detectable(56, .25), 'of the smallest test set'


# --- what is refused, and what is left out

@pytest.mark.parametrize('column, value', [('data', 'fitzpatrick17k'), ('profile', 'paper'), ('version', '2')])
def test_what_does_not_belong_together_is_refused(column, value):
    t = made_up(dict(real=0, syn=.05)); t.loc[t.train == 'syn', column] = value
    with pytest.raises(ValueError, match=f'mix {column}'): SYN(t)
    assert SYN(t[t[column] == value]).verdict == 'not run'


def test_two_records_for_one_place_are_refused():
    t = made_up(dict(real=0, syn=.05))
    with pytest.raises(ValueError, match='some other parameter varies'): SYN(pd.concat([t, t.assign(run_id='x' + t.run_id)]))
    t.loc[3, 'value'] = np.nan
    with pytest.raises(ValueError, match='recorded no accuracy'): SYN(t)


def test_incomplete_draws_are_left_out_and_named():
    t = made_up(dict(real=0, syn=.05)); t = t[~((t.seed == 3) & (t.scenario == 'i') & (t.arch == 'small') & (t.train == 'syn'))]
    f = SYN(t); assert f.draws == 4 and 'draw 3 incomplete' in f.note and not any(i.endswith('-3') for i in f.runs.split())


def test_the_order_of_records_does_not_matter():
    t = made_up(dict(real=0, syn=.01, both=.02), sizes=dict(real=100, syn=500, both=600))
    for claim in (SYN, BOTH): assert asdict(claim(t)) == asdict(claim(t.sample(frac=1, random_state=0)))


def test_text_numbers_and_numbers_select_alike():
    "A csv may give back a seed or a parameter as text."
    t = made_up(dict(real=0, syn=.05)).assign(size=64)
    c = Claim('x', 'x', dict(train='syn'), (dict(train='real'),), ('scenario', 'arch'), where=dict(size=64))
    assert c(t).verdict == c(t.assign(size='64')).verdict == 'supported' and c(t.assign(size=32)).verdict == 'not run'


# --- the paper's own numbers

def test_printed_numbers_through_the_same_function():
    "Means of Table 2 by hand: synthetic minus real accuracy 4.76, 0.60 and 3.81 points."
    reported = read_reported(WANG/'reported.csv'); printed = printed_records(reported[reported.artefact == 'table2'])
    f = SYN(printed); assert f.effect == pytest.approx((75 - 70.24 + 69.05 - 68.45 + 74.19 - 70.38)/300) and f.verdict == 'inconclusive' and f.draws == 1
    t = evaluate([SYN], pd.DataFrame(), printed)
    assert t.verdict.tolist() == ['not run']*3 and round(t.printed[0], 2) == 3.06 and t.mde[0] == pytest.approx(100*detectable(56, .25))


def test_a_table_of_claims_is_stamped_and_carries_its_rule(tmp_path):
    t = evaluate([SYN, BOTH], made_up(dict(real=0, syn=.05)))
    md, _, tex = (f.read_text(encoding='utf-8') for f in save_table(t, tmp_path/'claims', 'Claims', shown=claims_layout(t)))
    assert 'PHANTOM DATA' in md and 'PHANTOM DATA' in tex and claim_rule() in md and '| not run |' in md


# --- the whole report, on made-up records of every run of the grid (nothing of it is a result)

def numbers_of(run, rng):
    "Made-up numbers of the shape that the run's notebook records."
    p, kind = run.parameters, run.notebook.stem
    row = lambda metric, value, n, group='all', **more: dict(metric=metric, group=group, value=value, n=n) | more
    if kind in ('scenario', 'ablation'):
        gain = {'real': 0, 'syn': .06, 'real+syn': .12}[p.get('train', 'syn')] + .1*(p['scenario'] == 'ii')
        gain += dict(vanilla=0, ti=.05, lora=.08).get(p.get('method'), .2) - .2*(p.get('pipeline') == 'txt2img')
        test = dict(source='light').get(p.get('target'), 'dark'); n = 56 if p['scenario'] == 'i' else 291
        extra = dict(arch_paper=dict(vgg_small='VGG-16', resnet_small='ResNet-18', vit_small='ViT-B-16')[p['arch']], n_test=n) | (
            dict(test=test, train='syn') if kind == 'ablation' else {})
        return [row(m, min(.5 + gain + rng.normal(0, .004), 1.), n, low=.3, high=.9, select_on=rule, **extra) for m in ('accuracy', 'precision', 'recall', 'f1')
                for rule in ('val', 'test', 'last')] + [row('train_size', 1284, 1284, select_on=rule, **extra) for rule in ('val', 'test', 'last')]
    if kind == 'weights': return [row('loss', .3, 900, f'{p["method"]} last'), row('seconds_lora', 60., 900), row('n_train', 900, 900)]
    if kind == 'generator':
        tones = dict(ita=-20., ita_parents=50., dark_share=.9, dark_share_parents=0., structure=.6)
        sizes = dict(n_images=50, n_parents=10, images_per_second=9.)
        return [row(m, v, 50, g) for g in ('all', 'light parents') for m, v in tones.items()] + [row(m, v, 50) for m, v in sizes.items()]
    out = [row('judge_accuracy', .97, 200, g, what='judge') for g in ('all', 'light', 'dark')]
    for g in ('all', 'known conditions', 'psoriasis'):
        out += [row(m, v, 56, g, what='parents') for m, v in dict(ita=50., dark_share=0., called_asked=.95).items()]
        out += [row(m, v, 56, g, what='rendered dark') for m, v in dict(ita=-25., dark_share=1., kept=.99, structure=.8).items()]
        for method in p['methods'].split(','):
            for named in ('right', 'wrong'):
                for s in map(float, p['strengths'].split(',')):
                    out += [row(m, v, 56, g, what='img2img', method=method, named=named, strength=s)
                            for m, v in dict(ita=50 - 80*s, dark_share=s, kept=1 - s/5, structure=1 - s/2, called_asked=1 - s/5).items()]
    return out


def leave_images(run):
    "Images of a generator: gradients of two parents for each condition, two images each, with their own records."
    from skinrepro.generate import SYNTHETIC, write_image
    from skinrepro.manifest import make, write
    from skinrepro.papers.wang2024 import load
    pool, _ = load(run.parameters['data'], size=run.parameters['size'], fraction=run.parameters['fraction'])
    rows = []
    for p in pool[pool.skin_type.isin([1, 2])].sort_values('image_id').groupby('label').head(2).itertuples():
        for k in range(2):
            file = run.folder/'images'/f'{p.image_id}-syn{k}.png'; file.parent.mkdir(parents=True, exist_ok=True)
            said = dict(what=SYNTHETIC, prompt=f'An image of {p.label}', seed=k, strength=.6)
            write_image(np.full((64, 64, 3), (90, 60, 40 + 20*k), 'uint8'), file, said, 64)
            rows.append(dict(image_id=file.stem, path=str(file), label=p.label, skin_type=6, group='dark', parent_id=p.image_id, split='train'))
    write(make(pd.DataFrame(rows), source='synthetic'), run.folder/'manifest.parquet')


def execute_report(folder):
    runs.execute_notebook(WANG/'report.ipynb', folder/'report.ipynb')
    return json.loads((folder/'report.ipynb').read_text())


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    "The report from a made-up store, and again elsewhere from nothing but the records that the first one kept."
    base = tmp_path_factory.mktemp('report'); before = {k: os.environ.get(k) for k in ('SKINREPRO_RUNS', 'SKINREPRO_FIGURES')}
    try:
        os.environ |= dict(SKINREPRO_RUNS=str(base/'runs'), SKINREPRO_FIGURES=str(base/'first')); rng = np.random.default_rng(0)
        for run in [*runs.read_grid(WANG, 'mini'), *runs.read_grid(WANG, 'mini', 'pad_ufes20,pad_synthetic,pad_strength', seed=0)]:
            p = run.parameters; runs.finish(run, pd.DataFrame(numbers_of(run, rng)), provenance(p['data'], '0'*16, 'made up', '0'*64, 'mini', 'cpu'))
            if run.section == 'generator' and (p['scenario'], p['seed']) == ('iii', 0): leave_images(run)
        execute_report(base)
        (base/'second'/'wang2024').mkdir(parents=True)
        for f in ('records.csv', 'runs.csv'): shutil.copy(base/'first'/'wang2024'/f, base/'second'/'wang2024')
        os.environ |= dict(SKINREPRO_RUNS=str(base/'none'), SKINREPRO_FIGURES=str(base/'second'))
        execute_report(base)
    finally:
        for k, v in before.items():
            if v is None: os.environ.pop(k, None)
            else: os.environ[k] = v
    return base/'first'/'wang2024', base/'second'/'wang2024'


def test_the_report_makes_every_artefact(reports):
    names = {f.name for f in reports[0].iterdir()}
    own = ('claims', 'generators', 'strength', 'pad_ufes20', 'pad_ufes20_claims', 'pad_ufes20_strength')
    for stem in (*(f'table{i}' for i in range(1, 6)), *own):
        assert {f'{stem}.{s}' for s in ('md', 'csv', 'tex')} <= names
    for stem in ('fig1', 'fig2', 'tables2to4', 'claims_effects', 'strength_curves', 'pad_ufes20_strength_curves'):
        assert {f'{stem}.{s}' for s in ('png', 'svg', 'csv')} <= names


def test_every_row_of_the_tables_has_its_runs_and_none_is_comparable(reports):
    for name, cells in dict(table2=45, table3=45, table4=45, table5=12).items():
        t = pd.read_csv(reports[0]/f'{name}.csv', keep_default_na=False)
        keys = ['arch', 'train', 'metric', *(['test', 'pipeline', 'strategy'] if name == 'table5' else [])]
        assert set(t.verdict) == {'not comparable'} and len(t.drop_duplicates(keys)) == cells
    t = pd.read_csv(reports[0]/'table2.csv', keep_default_na=False)
    assert set(t.train) == {'real', 'syn', 'real+syn'} and set(t.n_seeds) == {2}
    why = t[(t.train == 'syn') & (t.metric == 'accuracy')].reason.iloc[0]
    assert 'phantom data' in why and 'generator with' in why and 'strength 0.6' in why and 'base miniature' in why


def test_claims_of_the_report(reports):
    t = pd.read_csv(reports[0]/'claims.csv').set_index(['claim', 'part'])
    syn = t.loc['Synthetic images train better classifiers than real ones']
    assert syn.index.tolist() == ['over all', *(f'scenario {s}' for s in ('i', 'ii', 'iii')), *(f'network {a}' for a in ('VGG-16', 'ResNet-18', 'ViT-B-16'))]
    assert syn.draws.eq(2).all() and syn.pairs.tolist() == [9, 3, 3, 3, 3, 3, 3] and syn.effect.between(4, 8).all()
    assert syn.printed['over all'] == pytest.approx(3.7178, abs=1e-4)
    one = t.loc['Textual inversion with LoRA is the best of six']
    assert one.verdict.eq('inconclusive').all() and one.draws.eq(1).all() and one.rival.eq('img2img lora').all() and set(one.n_test) == {'56'}
    assert t.loc['Image-to-image is better than text-to-image'].pairs.tolist() == [4, 2, 2]
    few = t.loc['A few dark images help (scenario ii against iii)']; assert few.effect.between(8, 12).all() and few.mde.notna().all()


def test_phantoms_are_stamped_wherever_they_are(reports):
    tables = [f'{t}.{s}' for t in ('table2', 'table5', 'claims', 'generators', 'strength') for s in ('md', 'tex')]
    for name in [*tables, 'fig1.svg', 'fig2.svg', 'tables2to4.svg', 'claims_effects.svg', 'strength_curves.svg']:
        assert 'PHANTOM DATA' in (reports[0]/name).read_text(encoding='utf-8'), name
    for name in ('pad_ufes20.md', 'pad_ufes20_claims.md', 'pad_ufes20_strength.md'):
        text = (reports[0]/name).read_text(encoding='utf-8'); assert 'PHANTOM' not in text and 'Data: pad_ufes20' in text
        assert 'CC BY 4.0' in text or 'strength' in name


def test_galleries_name_their_images_and_no_folder(reports):
    t = pd.read_csv(reports[0]/'fig2.csv', keep_default_na=False)
    assert len(t) == 7*6 and t.groupby('row').size().eq(6).all() and t.parent.sum() == 14
    made = t[~t.parent]
    assert set(made.parent_id) == set(t.image_id[t.parent]) and made.prompt.str.startswith('An image of').all() and made.seed.astype(str).isin(['0', '1']).all()
    assert set(t.skin_type[t.parent]) <= {1, 2} and 'path' not in t and str(reports[0].parents[1]) not in (reports[0]/'fig2.svg').read_text(encoding='utf-8')
    assert pd.read_csv(reports[0]/'fig1.csv', keep_default_na=False).role.tolist() == ['training image']*2 + ['synthetic']*2


def test_tables_and_figures_follow_from_the_records_alone(reports):
    "Byte by byte; the galleries need the images of the store (their csv has a column image_id)."
    first, second = reports; same = 0
    for f in sorted(first.iterdir()):
        if f.suffix not in ('.md', '.csv', '.tex', '.svg') or f.stem in ('fig1', 'fig2'): continue
        assert (second/f.name).read_bytes() == f.read_bytes(), f.name
        same += 1
    assert same > 30 and not (second/'fig2.csv').exists() and (second/'fig1.png').exists()


def test_nothing_made_up_is_in_the_repository():
    committed = paths().figures/'wang2024'/'records.csv'
    assert 'made up' not in set(runs.read_record(committed).weights)
