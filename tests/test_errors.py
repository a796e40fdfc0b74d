"""Worst cases and suspects: by loop, for several findings, with unknown truth, and refusals"""
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_learn.errors import in_words, label_suspects, plot_cases, with_copies, with_paths, worst_cases

def table(n=80, classes=('a', 'b', 'c'), seed=0, **columns):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(len(classes)), n)
    return pd.DataFrame(dict(image=[f'{i}.png' for i in range(n)], patient_id=[f'p{i // 2}' for i in range(n)],
                             label=rng.choice(classes, n)) | {f'probability_{c}': p[:, i] for i, c in enumerate(classes)}
                        | columns)

def findings(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(image=[f'{i}.png' for i in range(n)], patient_id=[f'p{i}' for i in range(n)],
                             label_mass=rng.integers(0, 2, n).astype(float), label_edema=rng.integers(0, 2, n).astype(float),
                             probability_mass=rng.random(n), probability_edema=rng.random(n)))

def test_worst_cases_by_loop():
    predictions = table()
    expected = []
    for row in predictions.to_dict('records'):
        p = {c: row[f'probability_{c}'] for c in 'abc'}
        called = max(p, key=p.get)
        if called != row['label']: expected.append((p[row['label']], row['image'], called, p[called]))
    expected = sorted(expected)[:15]
    found = worst_cases(predictions, count=15)
    assert found['image'].tolist() == [image for _, image, _, _ in expected]
    assert found['called'].tolist() == [called for _, _, called, _ in expected]
    np.testing.assert_allclose(found[['probability_true', 'probability_called']], [(t, c) for t, _, _, c in expected])

def test_each_finding_is_a_case_of_its_own_and_the_unknown_is_none():
    predictions = findings()
    predictions.loc[:29, 'label_mass'] = np.nan
    found = worst_cases(predictions, count=200)
    mass = found[found['label'].isin(['mass', 'no mass'])]
    assert len(mass) and set(mass['image']) <= set(predictions['image'][30:])
    assert (found['probability_true'] < .5).all() and found['probability_true'].is_monotonic_increasing
    row = found.iloc[0]
    finding = row['label'].removeprefix('no ')
    origin = predictions.set_index('image').loc[row['image']]
    present = not row['label'].startswith('no ')
    assert origin[f'label_{finding}'] == present
    share = origin[f'probability_{finding}']
    assert row['probability_true'] == pytest.approx(share if present else 1 - share)

def test_suspects_by_loop():
    predictions = table(120)
    usual = {c: predictions.loc[predictions['label'] == c, f'probability_{c}'].mean() for c in 'abc'}
    expected = {}
    for row in predictions.to_dict('records'):
        others = {c: row[f'probability_{c}'] for c in 'abc' if c != row['label'] and row[f'probability_{c}'] >= usual[c]}
        if others: expected[row['image']] = max(others, key=others.get)
    found = label_suspects(predictions)
    assert dict(zip(found['image'], found['suggested'])) == expected
    assert found['margin'].is_monotonic_increasing

def test_planted_labels_come_first():
    rng = np.random.default_rng(0)
    true, score = np.repeat([0, 1], 200), np.r_[rng.beta(2, 6, 200), rng.beta(6, 2, 200)]
    wrong = rng.random(400) < .1
    label = np.where(wrong, 1 - true, true)
    predictions = pd.DataFrame(dict(image=np.arange(400).astype(str), label=np.array(['well', 'ill'])[label],
                                    probability_well=1 - score, probability_ill=score))
    first = label_suspects(predictions).head(20)['image'].astype(int)
    assert wrong[first].mean() > .8

def test_a_class_without_images_is_never_suggested_and_training_images_are_refused():
    predictions = table(classes=('a', 'b', 'c'))
    predictions = predictions[predictions['label'] != 'c']
    assert 'c' not in set(label_suspects(predictions)['suggested'])
    with pytest.raises(ValueError, match='trained on'): label_suspects(predictions.assign(split='train'))
    with pytest.raises(ValueError): label_suspects(predictions.assign(probability_a=np.nan))
    several = findings()
    several['label_mass'] = np.nan
    assert not label_suspects(several)['label'].str.contains('mass').any()

def test_nothing_wrong_gives_an_empty_table():
    right = pd.DataFrame(dict(image=['a', 'b'], label=['x', 'y'], probability_x=[.9, .1], probability_y=[.1, .9]))
    assert len(worst_cases(right)) == 0 and len(label_suspects(right)) == 0

@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    names = []
    for i in range(4):
        smooth = np.kron(rng.integers(0, 255, (12, 12)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(smooth).save(tmp_path/f'{i}.png')
        names.append(f'{i}.png')
    (tmp_path/'copy.png').write_bytes((tmp_path/'1.png').read_bytes())
    names.append('copy.png')
    return pd.DataFrame(dict(image=names, path=[str(tmp_path/n) for n in names], label=list('xyxyx'),
                             patient_id=[f'p{i}' for i in range(5)]))

def test_a_copy_is_found_in_both_directions(files):
    found = with_copies(files[['image', 'label']], files).set_index('image')
    assert found.loc['1.png', 'copy'] == 'copy.png' and found.loc['1.png', 'copy_label'] == 'x'
    assert found.loc['copy.png', 'copy'] == '1.png' and found.loc['copy.png', 'copy_patient_id'] == 'p1'
    assert found.drop(index=['1.png', 'copy.png'])['copy'].isna().all()

def test_unknown_images_are_named_and_unreadable_files_are_shown_as_such(files):
    with pytest.raises(ValueError, match='first is z.png'): with_paths(pd.DataFrame(dict(image=['z.png'])), files)
    with pytest.raises(ValueError, match='are not in the cohort'): worst_cases(table(), files)
    broken = files.assign(path='nowhere.png', probability_true=.1, called='x', probability_called=.9)
    plot_cases(broken)
    assert in_words(files.iloc[0]) == 'x'
    assert in_words(broken.iloc[0]) == 'x 0.10\ncalled x 0.90'
