"""Paired tests: DeLong, McNemar, the bootstrap of a difference, the function that chooses, Holm, and the verdicts"""
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from cxr_learn.comparison import compare, compare_models, compare_with_first, delong, holm, mcnemar
from cxr_learn.curves import auc
from cxr_learn.intervals import evaluate, simulate_predictions

@pytest.fixture
def rng(): return np.random.default_rng(0)

def single(*visibilities, patients=120, seed=0):
    "Predictions of one image per patient"
    return [table.drop_duplicates('patient_id').reset_index(drop=True)
            for table in simulate_predictions(patients, visibilities, seed=seed)]

@pytest.mark.parametrize('levels', [3, 10**6])
def test_delong_equals_the_sum_over_all_pairs(rng, levels):
    ill = rng.random(70) < .4
    scores = [rng.integers(0, levels, 70) / levels + shift * ill for shift in (.2, .5)]
    won = np.stack([(np.sign(s[ill][:, None] - s[~ill]) + 1) / 2 for s in scores])
    expected = np.cov(won.mean(axis=2)) / ill.sum() + np.cov(won.mean(axis=1)) / (~ill).sum()
    test = delong(ill, *scores)
    np.testing.assert_allclose(test.covariance, expected, atol=1e-12)
    assert (test.auc_one, test.auc_other) == pytest.approx([auc(ill, s) for s in scores], abs=1e-12)
    spread = np.sqrt(expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
    assert test.z == pytest.approx((test.auc_one - test.auc_other) / spread, abs=1e-10)

def test_delong_of_seeds_is_that_of_their_mean_auc(rng):
    ill, scores = rng.random(60) < .5, rng.normal(size=(4, 60))
    test = delong(ill, scores[:2], scores[2:])
    assert test.difference == pytest.approx(np.mean([auc(ill, s) for s in scores[:2]]) - np.mean([auc(ill, s) for s in scores[2:]]))
    alone = delong(ill, scores[0], scores[2])
    assert delong(ill, scores[[0, 0]], scores[[2, 2]]).p_value == pytest.approx(alone.p_value)

def test_delong_where_nothing_can_be_said():
    score = np.arange(6.)
    assert np.isnan(delong(np.ones(6, bool), score, score).p_value) and np.isnan(delong(np.arange(6) < 1, score, score).z)
    same = delong(np.arange(6) % 2 == 0, score, score)
    assert same.difference == 0 and same.p_value == 1

def test_mcnemar_is_a_fair_coin(rng):
    for _ in range(30):
        one, other = rng.random(40) < .8, rng.random(40) < .6
        test = mcnemar(one, other)
        if test.only_one + test.only_other:
            assert test.p_value == pytest.approx(binomtest(test.only_one, test.only_one + test.only_other).pvalue)
        assert test.mid_p <= test.p_value and test.low <= test.difference <= test.high
        assert test.difference == pytest.approx(one.mean() - other.mean())
    assert mcnemar(one, one).p_value == 1 and np.isnan(mcnemar([], []).p_value)
    with pytest.raises(ValueError, match='same ones'): mcnemar([True], [True, False])

def test_holm_by_the_book():
    "Holm's own procedure, step by step: reject the smallest while p <= .05 / (those left)"
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(8) ** 4
        rejected, left = set(), 8
        for i in np.argsort(p):
            if p[i] > .05 / left: break
            rejected.add(i); left -= 1
        assert set(np.flatnonzero(holm(p) <= .05)) == rejected
    assert np.isnan(holm([np.nan, .02])[0]) and holm([np.nan, .02])[1] == .02 and len(holm([])) == 0

def test_the_test_that_fits_is_chosen():
    one, other = single(1.6, 1.2)
    rows = compare(one, other, ['macro_auc', ('auc', 'healthy'), 'accuracy', ('specificity', 'ill'), 'macro_f1', 'calibration_error'])
    assert rows['method'].str.split(':').str[0].tolist() == ['DeLong', 'DeLong', 'McNemar, exact', 'McNemar, exact', 'clustered bootstrap', 'none']
    values = [evaluate(table, resamples=2).set_index(['measure', 'label'])['value'] for table in (one, other)]
    expected = [values[0][key] - values[1][key] for key in zip(rows['measure'], rows['label'])]
    np.testing.assert_allclose(rows['difference'], expected, atol=1e-12)
    given = rows[rows['method'] != 'none']
    assert (given['low'] <= given['difference']).all() and (given['difference'] <= given['high']).all()
    several = simulate_predictions(60, [1.5, 1.5])
    assert 'several images' in compare(*several, 'accuracy')['method'].iloc[0]
    unknown = [table.assign(patient_id='image:' + table['image'].astype(str)) for table in (one, other)]
    assert 'patients unknown' in compare(*unknown)['method'].iloc[0]
    assert 'mean over seeds' in compare([one] * 2, [other] * 2, 'accuracy')['method'].iloc[0]

def test_seeds_are_kept_apart_from_patients():
    tables = single(1.5, 1.5, 1.5, 1.5, 1.5, 1.5)
    row, = compare(tables[:3], tables[3:]).to_dict('records')
    areas = [auc(t['label'] == 'ill', t['probability_ill']) for t in tables]
    assert row['seed_spread'] == pytest.approx(np.sqrt(np.var(areas[:3], ddof=1) + np.var(areas[3:], ddof=1)))
    assert row['seeds'] == 3 and np.isnan(compare(tables[:2], tables[3:])['seed_spread'].iloc[0])

def test_findings_are_compared_where_they_are_known():
    one, other = single(1.6, 1.2)
    def findings(table): return pd.DataFrame({
        'image': table['image'], 'patient_id': table['patient_id'], 'label_mass': np.where(table.index < 8, np.nan, table['label'] == 'ill'),
        'label_hernia': (table.index < 3) * 1., 'probability_mass': table['probability_ill'], 'probability_hernia': table['probability_ill']})
    rows = compare(findings(one), findings(other), [('auc', 'mass'), ('auc', 'hernia'), 'macro_auc'])
    known = one.index >= 8
    expected = delong((one['label'] == 'ill')[known], one['probability_ill'][known], other['probability_ill'][known])
    assert rows['p_value'].iloc[0] == pytest.approx(expected.p_value)
    assert np.isnan(rows['p_value'].iloc[1]) and 'hernia' in rows['reason'].iloc[1]
    assert rows['method'].iloc[2].startswith('clustered bootstrap') and np.isfinite(rows['low'].iloc[2])

def test_other_images_or_labels_are_refused():
    one, other = single(1.5, 1.5)
    for wrong in (other[:-1], other.assign(image=other['image'] + 1), other.assign(label=other['label'].iloc[::-1].to_numpy())):
        with pytest.raises(ValueError, match='same images'): compare(one, wrong)
    swapped = other[['image', 'patient_id', 'label', 'probability_ill', 'probability_healthy']].sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(compare(one, swapped), compare(one, other))

def test_equal_models_are_called_different_about_as_often_as_promised():
    hits = {'delong': 0, 'bootstrap': 0}
    for seed in range(100):
        one, other = single(1.5, 1.5, patients=60, seed=seed)
        ill = one['label'] == 'ill'
        hits['delong'] += delong(ill, one['probability_ill'], other['probability_ill']).p_value < .05
        if seed < 30: hits['bootstrap'] += compare_models(one, other, ['macro_auc'], 200, seed)['p_value'].iloc[0] < .05
    assert .01 <= hits['delong'] / 100 <= .12 and hits['bootstrap'] <= 6

def study(*visibilities, seeds=3, patients=150):
    tables = single(*np.repeat(visibilities, seeds), patients=patients)
    named = [(f'model {i // seeds}', i % seeds, table) for i, table in enumerate(tables)]
    return dict(predictions=pd.concat([t.assign(model=m, seed=s, split='test') for m, s, t in named], ignore_index=True),
                results=pd.concat([evaluate(t, resamples=20).assign(model=m, seed=s) for m, s, t in named], ignore_index=True),
                plan=dict(measures=['macro_auc', 'accuracy']))

def test_verdicts_need_seeds_and_the_correction():
    rows = compare_with_first(study(1., 2.5, 1.)).set_index(['model', 'measure'])
    assert rows.loc[('model 1', 'macro_auc'), 'verdict'] == 'higher'
    assert rows.loc[('model 2', 'macro_auc'), 'verdict'] == 'no clear difference'
    np.testing.assert_allclose(rows['p_corrected'], holm(rows['p_value']))
    alone = compare_with_first(study(1., 2.5, seeds=1)).set_index('measure')
    assert alone.loc['macro_auc', 'verdict'] == 'higher in 1 seed(s): not yet a claim'
    assert len(compare_with_first(study(1.))) == 0
    few = compare_with_first(study(1., 2.5, patients=14))
    assert (few['verdict'] == 'too few patients').all()

def test_two_models_without_any_spread_are_not_tested():
    "A perfect model against a constant: no resample differs, and no width could be believed"
    table, = single(1.)
    perfect, constant = (table.assign(probability_ill=p, probability_healthy=1 - p)
                         for p in ((table['label'] == 'ill').astype(float), .5))
    test = compare(perfect, constant, ['macro_auc', 'macro_sensitivity'], resamples=50)
    assert test[['low', 'high', 'p_value']].isna().all(axis=None) and test['reason'].str.contains('do not differ').all()
    assert (test['difference'] == .5).all()

def test_what_cannot_be_compared_is_named():
    one, other = single(1., 2., patients=60)
    for measures, words in (('auc', "no auc of all.*'auc', 'ill'"), ('acuracy', 'no acuracy'), ([('auc', 'il')], 'no auc of il')):
        with pytest.raises(ValueError, match=words): compare(one, other, measures, resamples=20)
    with pytest.raises(ValueError, match='patient_id'): compare(one.assign(patient_id=None), other, resamples=20)
    truth, score = np.array([1, 0, 1, 0, np.nan]), np.arange(5.)
    with pytest.raises(ValueError, match='not known'): delong(truth, score, score)
    with pytest.raises(ValueError, match='not known'): mcnemar(truth, truth)
    with pytest.raises(ValueError, match='missing'): delong(truth[:4] == 1, score[:4], np.full(4, np.nan))
    with pytest.raises(ValueError, match='4 truths, 4 and 5'): delong(truth[:4] == 1, score[:4], score)

def test_a_claim_needs_the_seeds_of_both_models():
    whole = study(1., 2.5)
    once = {name: whole[name][~((whole[name]['model'] == 'model 0') & (whole[name]['seed'] > 0))] for name in ('predictions', 'results')}
    row = compare_with_first(whole | once).iloc[0]
    assert row['seeds'] == 1 and row['verdict'] == 'higher in 1 seed(s): not yet a claim'
