"""Measures against scikit-learn, and the bootstrap against what is known of it"""
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from cxr_learn.curves import auc, roc_curve
from cxr_learn.intervals import evaluate, resample_patients
from cxr_learn.measures import class_measures, confusion_matrix
from cxr_learn.thresholds import youden_threshold

@pytest.fixture
def rng(): return np.random.default_rng(0)

@pytest.mark.parametrize('levels', [2, 7, 1000])
def test_auc_equals_scikit_learn_with_ties_and_weights(rng, levels):
    for _ in range(20):
        positive, score = rng.random(90) < .3, rng.integers(0, levels, 90) / levels
        weights = rng.integers(0, 5, 90)
        assert auc(positive, score) == pytest.approx(sk.roc_auc_score(positive, score), abs=1e-12)
        assert auc(positive, score, weights) == pytest.approx(sk.roc_auc_score(positive, score, sample_weight=weights), abs=1e-12)

def test_class_measures_equal_scikit_learn(rng):
    true, called = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    measures = class_measures(confusion_matrix(true, called, 4))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(true, called)
    for name, expected in (('ppv', precision), ('sensitivity', recall), ('f1', f1)):
        np.testing.assert_allclose(measures[name], expected, atol=1e-12)

def test_youden_is_the_best_of_all_thresholds(rng):
    positive, score = rng.random(60) < .4, rng.integers(0, 12, 60) / 12
    def j(t): return (score[positive] >= t).mean() + (score[~positive] < t).mean() - 1
    assert j(youden_threshold(positive, score)) == pytest.approx(max(j(t) for t in np.unique(score)))
    assert np.isnan(youden_threshold(np.ones(5, bool), np.arange(5)))

def test_the_roc_curve_encloses_the_auc(rng):
    positive, score = rng.random(80) < .5, rng.integers(0, 9, 80)
    x, y, _ = roc_curve(positive, score)
    assert np.trapezoid(y, x) == pytest.approx(auc(positive, score), abs=1e-12)

def test_resamples_draw_whole_patients():
    patients = np.repeat(['a', 'b', 'c'], [3, 1, 2])
    weights = resample_patients(patients, 200)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all()
    assert (resample_patients(patients, 200) == weights).all()

def test_intervals_cover_the_truth_about_as_often_as_promised():
    "AUC of two normal distributions one apart is Phi(1 / sqrt 2) = 0.760; 200 cohorts of 60 patients with two images each"
    rng, truth, hits = np.random.default_rng(3), .7602, 0
    for _ in range(200):
        ill = np.repeat(np.arange(60) % 2 == 0, 2)
        score = ill * 1. + np.sqrt(.5) * (np.repeat(rng.normal(size=60), 2) + rng.normal(size=120))
        drawn = auc(ill, score, resample_patients(np.repeat(np.arange(60), 2), 300, seed=1))
        low, high = np.percentile(drawn, [2.5, 97.5])
        hits += low <= truth <= high
    assert .90 <= hits / 200 <= .99

def table(labels, patients=None):
    n, classes = len(labels), sorted(set(labels))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(classes)), n)
    return pd.DataFrame({'image': range(n), 'patient_id': patients or range(n), 'label': labels,
                         **{f'probability_{c}': probabilities[:, i] for i, c in enumerate(classes)}})

def test_few_patients_get_no_interval():
    scores = evaluate(table(['rare'] * 9 + ['a'] * 20 + ['b'] * 20)).set_index(['measure', 'label'])
    assert np.isnan(scores.loc[('auc', 'rare'), 'low']) and np.isfinite(scores.loc[('auc', 'a'), 'low'])
    assert np.isfinite(scores.loc[('auc', 'rare'), 'value']) and np.isnan(scores.loc[('macro_auc', 'all'), 'low'])
    same_patient = evaluate(table(['rare'] * 40 + ['a'] * 40, ['p'] * 40 + list(range(40)))).set_index(['measure', 'label'])
    assert np.isnan(same_patient.loc[('auc', 'rare'), 'low']), 'forty images of one patient are one patient'

@pytest.mark.parametrize('change, words', [
    (dict(probability_a=2.), 'in [0, 1]'), (dict(probability_a=np.nan), 'in [0, 1]'), (dict(image=1), 'twice'),
    (dict(label='c'), 'No probability column')])
def test_wrong_predictions_are_refused(change, words):
    with pytest.raises(ValueError, match=words.replace('[', r'\[')): evaluate(table(['a', 'b'] * 8).assign(**change))
