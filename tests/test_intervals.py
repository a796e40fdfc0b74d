"""Intervals over patients: the draws, the kinds of interval, the table of all measures and its reasons"""
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from scipy.stats import bootstrap

from cxr_learn.curves import auc
from cxr_learn.intervals import (all_measures, bca_interval, count_patients, evaluate, leave_one_out,
                                 percentile_interval, resample_patients, simulate_predictions, weights_in_chunks)

@pytest.fixture
def rng(): return np.random.default_rng(0)

def table(labels, patients=None):
    n, classes = len(labels), sorted(set(labels))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(classes)), n)
    return pd.DataFrame({'image': range(n), 'patient_id': patients or range(n), 'label': labels,
                         **{f'probability_{c}': probabilities[:, i] for i, c in enumerate(classes)}})

def findings(**truth):
    n = len(next(iter(truth.values())))
    random = np.random.default_rng(7)
    return pd.DataFrame({'image': range(n), 'patient_id': range(n), **{f'label_{f}': np.asarray(t, float) for f, t in truth.items()},
                         **{f'probability_{f}': random.random(n) for f in truth}})

def test_resamples_draw_whole_patients():
    patients = np.repeat(['a', 'b', 'c'], [3, 1, 2])
    weights = resample_patients(patients, 200)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all()
    assert (resample_patients(patients, 200) == weights).all()
    assert (resample_patients(patients, 200, seed=1) != weights).any()

def test_strata_keep_their_patients(rng):
    patient, ill = np.repeat(np.arange(40), 2), np.repeat(np.arange(40) < 12, 2)
    ill[0] = False  # the first patient has an image of each kind: a stratum of its own
    first = np.arange(0, 80, 2)
    weights = resample_patients(patient, 300, strata=ill)[:, first]
    assert (weights[:, 0] == 1).all()
    assert (weights[:, 1:12].sum(axis=1) == 11).all() and (weights[:, 12:].sum(axis=1) == 28).all()
    assert weights[:, 5].std() > 0

def test_blocks_hold_the_memory_and_change_nothing():
    patient = np.arange(20_000) // 4
    whole = resample_patients(patient, 250, seed=5)
    tracemalloc.start()
    parts = [weights[:, 3].copy() for weights in weights_in_chunks(patient, 250, seed=5)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (np.concatenate(parts) == whole[:, 3]).all() and peak < whole.nbytes

def test_bca_equals_scipy_for_one_sample_and_for_pairs(rng):
    values, others = rng.exponential(size=40), rng.normal(size=40)
    def ratio(x, y, axis=-1): return (x + y).mean(axis=axis) / x.std(axis=axis)
    for data, measure in (((values,), np.mean), ((values, others), ratio)):
        theirs = bootstrap(data, measure, n_resamples=499, method='BCa', paired=True, rng=1)
        left_out = [measure(*(np.delete(column, i) for column in data)) for i in range(40)]
        ours = bca_interval(measure(*data), theirs.bootstrap_distribution, left_out)
        np.testing.assert_allclose(ours, theirs.confidence_interval, rtol=1e-10)

def test_an_interval_is_not_made_up():
    assert np.isnan(percentile_interval([np.nan, np.nan])).all()
    assert np.isnan(percentile_interval(np.ones(50))).all(), 'resamples that do not differ say nothing'
    assert np.isnan(bca_interval(.5, np.linspace(0, 1, 50), [.5, np.nan])).all()
    assert np.isnan(bca_interval(2., np.linspace(0, 1, 50), [.5, .6])).all(), 'the value lies outside of all resamples'
    assert percentile_interval([0, 1, np.nan]) == pytest.approx((.025, .975))

def test_leaving_one_out_leaves_out_all_images_of_a_patient():
    rows = np.concatenate(list(leave_one_out(list('abba'))))
    assert rows.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]

@pytest.mark.parametrize('kind', ['percentile', 'bca'])
def test_intervals_cover_the_truth_about_as_often_as_promised(kind):
    "AUC of two normal distributions one apart is Phi(1 / sqrt 2) = 0.760; 200 cohorts of 60 patients with two images each"
    rng, truth, hits = np.random.default_rng(3), .7602, 0
    patient = np.repeat(np.arange(60), 2)
    weights, jackknife = resample_patients(patient, 300, seed=1), np.concatenate(list(leave_one_out(patient)))
    for _ in range(200):
        ill = np.repeat(np.arange(60) % 2 == 0, 2)
        score = ill * 1. + np.sqrt(.5) * (np.repeat(rng.normal(size=60), 2) + rng.normal(size=120))
        drawn = auc(ill, score, weights)
        low, high = (percentile_interval(drawn) if kind == 'percentile' else
                     bca_interval(auc(ill, score), drawn, auc(ill, score, jackknife)))
        hits += low <= truth <= high
    assert .90 <= hits / 200 <= .99

def test_all_measures_of_one_label_equal_scikit_learn(rng):
    predictions = table(list('abc') * 20)
    point = {key: values[0] for key, values in all_measures(predictions, np.ones((1, 60))).items()}
    true, p = predictions['label'], predictions.filter(like='probability_').to_numpy()
    called = np.array(list('abc'))[p.argmax(axis=1)]
    assert point['accuracy', 'all'] == pytest.approx(sk.accuracy_score(true, called))
    assert point['macro_f1', 'all'] == pytest.approx(sk.f1_score(true, called, average='macro'))
    assert point['mcc', 'all'] == pytest.approx(sk.matthews_corrcoef(true, called))
    assert point['log_loss', 'all'] == pytest.approx(sk.log_loss(true, p))
    assert point['macro_auc', 'all'] == pytest.approx(sk.roc_auc_score(true, p, multi_class='ovr'))
    assert point['micro_auc', 'all'] == pytest.approx(sk.roc_auc_score(pd.get_dummies(true), p, average='micro'))
    assert point['average_precision', 'b'] == pytest.approx(sk.average_precision_score(true == 'b', p[:, 1]))

def test_weights_are_the_same_as_repeated_images():
    predictions, times = table(list('abc') * 12), np.random.default_rng(1).integers(1, 4, 36)
    weighted = all_measures(predictions, times[None], {c: .3 for c in 'abc'})
    repeated = predictions.loc[np.repeat(np.arange(36), times)]
    repeated = all_measures(repeated.assign(image=range(len(repeated))), np.ones((1, len(repeated))), {c: .3 for c in 'abc'})
    for key in weighted: assert weighted[key] == pytest.approx(repeated[key], abs=1e-12), key

def test_few_patients_get_no_interval():
    scores = evaluate(table(['rare'] * 9 + ['a'] * 20 + ['b'] * 20)).set_index(['measure', 'label'])
    assert np.isnan(scores.loc[('auc', 'rare'), 'low']) and np.isfinite(scores.loc[('auc', 'a'), 'low'])
    assert np.isfinite(scores.loc[('auc', 'rare'), 'value']) and np.isnan(scores.loc[('macro_auc', 'all'), 'low'])
    assert scores.loc[('auc', 'rare'), 'reason'] == '9 positive patients: fewer than 10'
    assert 'rare' in scores.loc[('macro_auc', 'all'), 'reason'] and scores.loc[('auc', 'a'), 'reason'] == ''
    same_patient = evaluate(table(['rare'] * 40 + ['a'] * 40, ['p'] * 40 + list(range(40)))).set_index(['measure', 'label'])
    assert np.isnan(same_patient.loc[('auc', 'rare'), 'low']), 'forty images of one patient are one patient'

def test_every_missing_value_or_interval_has_a_reason():
    predictions = table(['a'] * 30 + ['b'] * 30).assign(probability_a=.9, probability_b=.1)  # b is never called
    scores = evaluate(predictions, {'a': .5, 'b': np.nan}, resamples=50).set_index(['measure', 'label'])
    without = scores['value'].isna() | scores['low'].isna()
    assert (scores.loc[without, 'reason'] != '').all()
    assert scores.loc[('ppv', 'b'), 'reason'] == 'no image is called positive'
    assert scores.loc[('sensitivity_at_threshold', 'b'), 'reason'] == 'no threshold could be chosen'
    assert 'do not differ' in scores.loc[('sensitivity', 'a'), 'reason'], 'a perfect score is not a certain one'
    assert 'resampling' in scores.loc[('calibration_error', 'all'), 'reason']

def test_several_findings(rng):
    ill = rng.random(80) < .4
    predictions = findings(mass=np.where(np.arange(80) < 5, np.nan, ill), hernia=np.arange(80) < 4, never=np.zeros(80)).assign(
        **{'label_No Finding': 1. * ~ill, 'probability_No Finding': .5})
    scores = evaluate(predictions, resamples=100).set_index(['measure', 'label'])
    assert 'No Finding' not in scores.index.get_level_values('label')
    known = predictions['label_mass'].notna()
    expected = sk.roc_auc_score(predictions['label_mass'][known], predictions['probability_mass'][known])
    assert scores.loc[('auc', 'mass'), 'value'] == pytest.approx(expected) == scores.loc[('macro_auc', 'all'), 'value']
    assert scores.loc[('auc', 'mass'), 'images'] == 75
    assert scores.loc[('macro_auc', 'all'), 'reason'].startswith('mean of 1 finding, without hernia, never')
    assert scores.loc[('auc', 'never'), 'reason'] == 'no positive images' and np.isnan(scores.loc[('auc', 'never'), 'value'])
    assert np.isnan(evaluate(findings(hernia=np.arange(20) < 3), resamples=20)['low']).all()
    with pytest.raises(ValueError, match='stratify'): evaluate(predictions, stratified=True)

def test_unknown_patients_are_told():
    cohort, = simulate_predictions(60)
    with pytest.warns(UserWarning, match='no patient_id'): scores = evaluate(cohort.drop(columns='patient_id'), resamples=50)
    given = scores[scores['low'].notna()]
    assert len(given) and given['reason'].str.startswith('patients unknown').all()
    assert (evaluate(cohort, resamples=50).query('low == low')['reason'] == '').all()

def test_the_order_of_rows_and_the_asked_measures_change_nothing():
    cohort, = simulate_predictions(50)
    all_of_them = evaluate(cohort, resamples=60, stratified=True).set_index(['measure', 'label'])
    some = evaluate(cohort, resamples=60, stratified=True, measures=['accuracy', 'auc']).set_index(['measure', 'label'])
    pd.testing.assert_frame_equal(all_of_them.loc[some.index], some)
    backwards = evaluate(cohort[::-1], resamples=60)['value']
    np.testing.assert_allclose(backwards, evaluate(cohort, resamples=60)['value'], atol=1e-12)

def test_patients_are_counted_with_and_without_a_class():
    counts = count_patients(table(['a', 'b', 'a', 'a'], ['p', 'p', 'q', 'q']))
    assert counts.loc['a'].tolist() == [4, 3, 1, 2, 2, 1]

@pytest.mark.parametrize('change, words', [
    (dict(probability_a=2.), 'in [0, 1]'), (dict(probability_a=np.nan), 'in [0, 1]'), (dict(image=1), 'twice'),
    (dict(label='c'), 'No probability column')])
def test_wrong_predictions_are_refused(change, words):
    with pytest.raises(ValueError, match=words.replace('[', r'\[')): evaluate(table(['a', 'b'] * 8).assign(**change))

def test_an_unknown_kind_of_interval_is_refused():
    with pytest.raises(ValueError, match='percentile, bca'): evaluate(table(['a', 'b'] * 8), interval='normal')

def test_images_without_a_patient_are_refused():
    "They would all be counted as the last patient's"
    for draw in (resample_patients, lambda patients: list(leave_one_out(patients))):
        with pytest.raises(ValueError, match='1 image.s. have no patient_id'): draw(np.array(['a', None, 'b'], dtype=object))
    with pytest.raises(ValueError, match='once or more'): resample_patients(['a', 'b'], 0)

def test_what_cannot_be_measured_is_named():
    cohort = table(['a', 'b'] * 15)
    with pytest.raises(ValueError, match='no acuracy'): evaluate(cohort, resamples=5, measures=['acuracy'])
    with pytest.raises(ValueError, match='no ppv_at_threshold'): evaluate(cohort, resamples=5, measures=['ppv_at_threshold'])
    with pytest.raises(ValueError, match='No threshold for b'): evaluate(cohort, {'a': .5}, resamples=5)
    with pytest.raises(ValueError, match='alone is no finding'): evaluate(findings(**{'No Finding': [0, 1]}), resamples=5)
