"""The phantom: same seed same bytes, faults as asked, folders whole or not at all"""
import json
import os
import signal
import subprocess
import sys
import time
from math import sqrt

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cxr_learn import phantom
from cxr_learn.cohorts import findings_of, load_phantom
from cxr_learn.observer import draw_one, observer_auc, phantom_widget
from cxr_learn.phantom import DEMO_FINDINGS, FINDINGS, make_phantoms, save_phantoms
from cxr_learn.planning import Knobs, joined, mislabel, plan_cohort, read_knobs
from cxr_learn.sources import NEAR_COPIES, SHORTCUTS, SOURCES

SMALL = dict(patients=12, findings=DEMO_FINDINGS, image_size=48)
EVERYTHING = dict(
    sources=3, children=.3, anteroposterior=.3, label_noise=.2, duplicates=.2, near_duplicates=.4,
    official_test=.4, patient_overlap=.4, shortcut='border', shortcut_class='normal', shortcut_strength=.5)

def same(one, other):
    return (one.images.equal(other.images) and one.table.equals(other.table) and list(one.masks) == list(other.masks)
            and all(one.masks[name].equal(other.masks[name]) for name in one.masks))

def planned(patients=1000, findings=DEMO_FINDINGS, seed=0, **knobs):
    k = read_knobs(knobs, findings, (1, 3))
    plan, has = plan_cohort(patients, findings, (1, 3), seed, k)
    return plan.assign(true_label=joined(has), label=joined(mislabel(has, findings, seed, k)))

def within(share, n): return 4 * sqrt(share * (1 - share) / n) + 1e-9  # four standard deviations of a count

# Same seed, same bytes

def test_same_seed_same_bytes_whatever_is_planted():
    assert same(make_phantoms(**SMALL, **EVERYTHING), make_phantoms(**SMALL, **EVERYTHING))
    assert not make_phantoms(**SMALL, seed=1).images.equal(make_phantoms(**SMALL).images)

def test_bytes_do_not_depend_on_threads():
    threads, cohorts = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            cohorts.append(make_phantoms(**SMALL, **EVERYTHING))
    finally: torch.set_num_threads(threads)
    assert same(*cohorts)

@pytest.mark.parametrize('batch, chunk', [(1, 64), (3, 5), (16, 7)])
def test_a_picture_does_not_depend_on_its_neighbours(monkeypatch, batch, chunk):
    usual = make_phantoms(**SMALL, **EVERYTHING)
    monkeypatch.setattr(phantom, 'BATCH', batch)
    monkeypatch.setattr(phantom, 'CHUNK', chunk)
    other = make_phantoms(**SMALL, **EVERYTHING)
    different = (usual.images.int() - other.images.int()).abs()
    assert different.max() <= 2 and (different > 0).float().mean() < 1e-3  # sums of floating-point numbers may round otherwise
    assert list(usual.table.image_id) == list(other.table.image_id)

@pytest.mark.parametrize('knobs', [dict(label_noise=.3), dict(official_test=.3), dict(duplicates=.3, near_duplicates=.3),
                                   dict(shortcut='source', shortcut_class='normal', shortcut_strength=0, sources=2)])
def test_one_knob_changes_nothing_else(knobs):
    plain, turned = make_phantoms(**SMALL), make_phantoms(**SMALL, **knobs)
    n = len(plain.images)
    assert list(turned.table.image_id[:n]) == list(plain.table.image_id)
    if 'sources' not in knobs: assert turned.images[:n].equal(plain.images)
    for name in plain.masks: assert turned.masks[name][:n].equal(plain.masks[name])

# Faults come out as asked and are told

@pytest.mark.parametrize('share', [.05, .3])
def test_shares_are_exact(share):
    plan = planned(children=share, anteroposterior=share, label_noise=share, duplicates=share, near_duplicates=share)
    first = plan[plan.copy_of.isna()]
    assert first.groupby('patient').child.first().mean() == pytest.approx(share, abs=1e-3)
    assert (first.view == 'AP').mean() == pytest.approx(share, abs=1e-3)
    assert (plan.label != plan.true_label).mean() == pytest.approx(share, abs=1e-3)
    assert (plan.copy_kind == 'exact').sum() == round(share * len(first))
    kinds = plan.copy_kind[plan.copy_kind.isin(NEAR_COPIES)].value_counts()
    assert kinds.sum() == round(share * len(first)) and kinds.max() - kinds.min() <= 1

def test_prevalence_is_as_asked():
    wanted = {'nodule': .1, 'effusion': .3, 'hernia': .01}
    for most in (1, 3):
        plan = planned(findings=tuple(FINDINGS), prevalence=wanted, findings_per_patient=most)
        labels = plan.groupby('patient').true_label.first().str.split('|')
        assert labels.explode().value_counts()[list(wanted)].to_dict() == {name: 1000 * share for name, share in wanted.items()}
        assert labels.str.len().max() <= most

def test_findings_are_even_by_default():
    labels = planned(findings=tuple(FINDINGS), patients=170).groupby('patient').true_label.first()
    assert set(labels.value_counts()) == {10}

def test_wrong_labels_are_another_finding_and_remembered():
    plan = planned(label_noise=.4, seed=3)
    wrong = plan[plan.label != plan.true_label]
    counts = pd.crosstab(wrong.true_label, wrong.label)
    assert (np.diag(counts) == 0).all()
    for _, row in counts.iterrows():
        assert (abs(row[row > 0] / row.sum() - 1/3) < within(1/3, row.sum())).all()

@pytest.mark.parametrize('kind', [kind for kind in SHORTCUTS if kind != 'source'])
@pytest.mark.parametrize('strength', [0, .6, 1])
def test_a_shortcut_is_as_strong_as_asked(kind, strength):
    plan = planned(shortcut=kind, shortcut_class='normal', shortcut_strength=strength)
    for ill, part in plan.groupby(plan.true_label == 'normal'):
        share = .5 + .5 * strength * (1 if ill else -1)
        assert part.shortcut.mean() == pytest.approx(share, abs=within(share, len(part)))

def test_a_shortcut_is_seen_exactly_where_the_table_says():
    plain = make_phantoms(**SMALL)
    for kind in ('marker', 'border', 'exposure'):
        marked = make_phantoms(**SMALL, shortcut=kind, shortcut_class='normal', shortcut_strength=.5)
        changed = (plain.images != marked.images).flatten(1).any(1)
        assert changed.tolist() == marked.table.shortcut.astype(bool).tolist()

def test_sources_look_different_and_are_told():
    cohort = make_phantoms(40, ('normal',), (1, 1), 48, sources=4)
    assert set(cohort.table.source) == set(SOURCES)
    assert cohort.table.source.value_counts().tolist() == [10] * 4
    darkest = cohort.images[:, 10:].flatten(1).min(1).values
    assert darkest[torch.tensor(cohort.table.source == 'phantom-D')].min() >= 20
    assert make_phantoms(**SMALL).table.source.unique().tolist() == ['phantom']

def test_copies_are_copies():
    cohort = make_phantoms(**SMALL, duplicates=.5, near_duplicates=1)
    place = {name: i for i, name in enumerate(cohort.table.image_id)}
    small = lambda i: torch.nn.functional.adaptive_avg_pool2d(cohort.images[i, 8:][None].float(), 12).flatten()
    for i, row in cohort.table[cohort.table.copy_of.notna()].iterrows():
        first = place[row.copy_of]
        original = cohort.table.iloc[first]
        assert row.true_patient_id == original.patient_id != row.patient_id and row.label == original.label
        if row.copy_kind == 'exact': assert cohort.images[i].equal(cohort.images[first])
        else: assert torch.corrcoef(torch.stack([small(i), small(first)]))[0, 1] > .85 and not cohort.images[i].equal(cohort.images[first])
        overlap = (cohort.masks['lungs'][i] & cohort.masks['lungs'][first]).sum() / cohort.masks['lungs'][first].sum()
        assert overlap == 1 if row.copy_kind != 'cropped' else .7 < overlap

def test_patients_on_both_sides_are_as_many_as_asked():
    for share in (0, .25, 1):
        sides = planned(official_test=.2, patient_overlap=share).groupby('patient_id').split.agg(set)
        tested = sides[sides.map(lambda parts: 'test' in parts)]
        assert len(tested) == 200 and (tested.map(len) == 2).sum() == 200 * share
    assert 'split' not in planned()

def test_several_findings_have_columns_of_their_own(tmp_path):
    findings = ('normal', 'effusion', 'nodule', 'cardiomegaly')
    wishes = dict(patients=20, findings=findings, image_size=48, findings_per_patient=3, label_noise=.2)
    cohort = make_phantoms(**wishes)
    told = cohort.table.filter(like='label_')
    assert [name.removeprefix('label_') for name in told] == list(findings[1:])
    assert ['|'.join(np.array(findings[1:])[row == 1]) or 'normal' for row in told.to_numpy()] == cohort.table.label.tolist()
    assert (cohort.table.label != cohort.table.true_label).sum() == round(.2 * len(cohort.table))
    for finding in findings[1:]:
        truly = cohort.table.true_label.str.contains(finding)
        assert (cohort.table[f'visibility_{finding}'] > 0).tolist() == truly.tolist()
        assert (cohort.masks[finding].flatten(1).any(1).numpy() <= truly).all()
    assert findings_of(load_phantom(save_phantoms(tmp_path/'cohort', **wishes))) == list(findings[1:])
    assert not findings_of(load_phantom(save_phantoms(tmp_path/'single', **SMALL)))

def test_children_are_children_and_views_are_told():
    cohort = make_phantoms(20, ('normal',), (1, 2), 48, children=.5, anteroposterior=.5)
    ages = cohort.table.groupby('patient_id').age.first()
    assert (ages < 18).sum() == 10 and ages.min() >= 1
    assert set(cohort.table.view) == {'PA', 'AP'}

# Impossible wishes

@pytest.mark.parametrize('wish, words', [
    (dict(patients=0), 'patients is 0'), (dict(findings=('flu',)), 'flu'), (dict(findings='normal'), 'list of names'),
    (dict(findings=('nodul',)), "did you mean 'nodule'"), (dict(images_per_patient=(3, 1)), '(3, 1)'),
    (dict(image_size=16), 'image_size is 16'), (dict(label_noise=1.5), 'label_noise is 1.5'),
    (dict(label_noise=float('nan')), 'nan'), (dict(duplicate=.1), "did you mean 'duplicates'"),
    (dict(sources=('phantom-Z',)), 'phantom-Z'), (dict(official_test=.01), 'less than one'),
    (dict(patient_overlap=.5), 'official_test'), (dict(shortcut_strength=2), 'shortcut_strength is 2'),
    (dict(shortcut='marker', shortcut_class='flu'), 'flu'), (dict(prevalence={'nodule': .9, 'mass': .2}), '1.1'),
    (dict(findings=('nodule', 'mass'), prevalence={'nodule': .5}), 'add "normal"')])
def test_impossible_wishes_are_refused_with_a_remedy(wish, words, tmp_path):
    for make in (make_phantoms, lambda **wishes: save_phantoms(tmp_path/'cohort', **wishes)):
        with pytest.raises(ValueError) as caught: make(**wish)
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())

# On disk

def test_a_saved_cohort_equals_the_one_in_memory(tmp_path):
    folder = save_phantoms(tmp_path/'cohort', **SMALL, **EVERYTHING, masks=True)
    cohort = make_phantoms(**SMALL, **EVERYTHING)
    pixels = [np.array(Image.open(folder/'images'/f'{name}.png')) for name in cohort.table.image_id]
    lungs = [np.array(Image.open(folder/'masks/lungs'/f'{name}.png')) for name in cohort.table.image_id]
    assert np.array_equal(pixels, cohort.images) and np.array_equal(lungs, 255 * cohort.masks['lungs'].numpy().astype(np.uint8))
    written = pd.read_csv(folder/'cohort.csv')
    assert list(written) == list(cohort.table) and written.true_label.tolist() == cohort.table.true_label.tolist()
    assert json.loads((folder/'phantom.json').read_text())['knobs']['label_noise'] == .2
    loaded = load_phantom(folder)
    assert set(loaded.source) == set(list(SOURCES)[:3]) and set(loaded.split) == {'train', 'test'} and loaded.lung_mask.notna().all()

def test_a_folder_is_kept_or_refused_never_changed(tmp_path):
    folder = save_phantoms(tmp_path/'cohort', **SMALL)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob('*')}
    assert save_phantoms(folder, **SMALL) == folder
    for other in (dict(seed=1), dict(label_noise=.1), dict(masks=True)):
        with pytest.raises(ValueError, match='another folder'): save_phantoms(folder, **SMALL, **other)
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob('*')}
    assert [path.name for path in tmp_path.iterdir()] == ['cohort']

SAVE = "import sys; from cxr_learn.phantom import save_phantoms; save_phantoms(sys.argv[1], patients=60, image_size=64)"

def test_killed_while_saving_leaves_nothing_that_looks_whole(tmp_path):
    folder = tmp_path/'cohort'
    for images in (1, 70):
        process = subprocess.Popen([sys.executable, '-c', SAVE, folder], env=os.environ | {'OMP_NUM_THREADS': '1'})
        while len(list(tmp_path.rglob('*.png'))) < images and process.poll() is None: time.sleep(.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not folder.exists()
        for left in tmp_path.iterdir():
            assert left.name.startswith('.') and not (left/'phantom.json').exists()
            for file in left.rglob('*.png'): file.unlink()
    assert len(list((save_phantoms(folder, patients=60, image_size=64)/'images').iterdir())) == len(pd.read_csv(folder/'cohort.csv'))

def test_two_savers_at_once_agree(tmp_path):
    folder = tmp_path/'cohort'
    both = [subprocess.Popen([sys.executable, '-c', SAVE, folder], env=os.environ | {'OMP_NUM_THREADS': '1'}) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ['cohort']

# The observer and the panel

def test_the_observer_is_between_chance_and_certainty():
    cohort = make_phantoms(16, ('normal', 'nodule'), (1, 2), 48)
    value, low, high = observer_auc(cohort, 'nodule')
    assert .5 < low <= value <= high <= 1
    blind = cohort._replace(table=cohort.table.assign(visibility=0.))
    assert observer_auc(blind, 'nodule') == pytest.approx((.5, .5, .5))
    with pytest.raises(ValueError, match='normal'): observer_auc(cohort, 'normal')

def test_a_severer_finding_is_more_visible():
    for finding in ('nodule', 'consolidation', 'effusion'):
        seen = [draw_one((finding,), severity, size=64)[2][finding] for severity in (.1, .5, .9)]
        assert seen == sorted(seen) and seen[0] < seen[2]

def test_turning_any_knob_of_the_panel_changes_the_picture():
    panel = phantom_widget(64)
    controls, (picture, text) = panel.children[0].children, panel.children[1].children
    settings = (('mass',), .9, 7, True, 'AP', .1, 'phantom-B', 'marker', False)
    assert len(settings) == len(controls)
    for control, value in zip(controls, settings):
        before = picture.value
        control.value = value
        assert picture.value != before, control.description
    assert 'mass' in text.value

def test_the_defaults_plant_nothing():
    defaults = Knobs()
    assert read_knobs({}, DEMO_FINDINGS, (1, 3)) == defaults._replace(sources=())
