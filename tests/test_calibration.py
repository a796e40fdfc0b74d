"""Calibration against scikit-learn and torch, and its refusals"""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import torch
from scipy.special import expit, logit, softmax
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression

from cxr_learn.calibration import (Temperature, brier, calibration_error, fit_isotonic, fit_temperature, log_loss,
                                   plot_reliability, refuse_test, reliability, top_label)
from cxr_learn.curves import auc
from cxr_learn.measures import classes_of, probabilities_of, truth_of

@pytest.fixture
def rng(): return np.random.default_rng(0)

def table(n, classes, seed=0, sharpness=2.5, split='valid'):
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(size=(n, classes))
    true = (softmax(log_odds, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    names, said = 'abcdef'[:classes], softmax(sharpness * log_odds, axis=1)
    return pd.DataFrame({'image': np.arange(n), 'patient_id': np.arange(n), 'split': split,
                         'label': np.array(list(names))[true], **{f'probability_{c}': said[:, i] for i, c in enumerate(names)}})

def findings(n, temperatures, seed=0):
    rng = np.random.default_rng(seed)
    columns = {'image': np.arange(n), 'patient_id': np.arange(n)}
    for name, temperature in temperatures.items():
        log_odds = rng.normal(-1, 1.5, n)
        columns[f'label_{name}'] = (rng.random(n) < expit(log_odds)).astype(float)
        columns[f'probability_{name}'] = expit(temperature * log_odds)
    return pd.DataFrame(columns)

# measures

def test_proper_scores_equal_scikit_learn(rng):
    true, said, weights = rng.integers(0, 3, 200), rng.dirichlet([.3, 1, 2], 200), rng.integers(0, 4, (2, 200))
    truth = np.eye(3)[true]
    for row, once in enumerate(weights):
        assert log_loss(truth, said, weights)[row] == pytest.approx(sk.log_loss(true, said, sample_weight=once), abs=1e-12)
        assert brier(truth, said, weights)[row] == pytest.approx(
            sk.brier_score_loss(true, said, sample_weight=once), abs=1e-12)
        assert brier(truth[:, 0], said[:, 0], weights)[row] == pytest.approx(
            sk.brier_score_loss(true == 0, said[:, 0], sample_weight=once), abs=1e-12)
    assert log_loss([1, 0, 1], [0, 1, 1]) == pytest.approx(sk.log_loss([1, 0, 1], [0., 1., 1.]), abs=1e-10)

def test_images_of_unknown_truth_are_left_out(rng):
    truth, said = (rng.random(100) < .5).astype(float), rng.random(100)
    some = np.where(np.arange(100) < 30, np.nan, truth)
    for measure in (brier, log_loss, calibration_error):
        assert measure(some, said) == pytest.approx(measure(truth[30:], said[30:]), abs=1e-12)
        assert np.isnan(measure(np.full(4, np.nan), np.full(4, .5)))

def by_hand(truth, said, bins):
    "The expected calibration error of equal bins, bin by bin"
    total = 0
    for low in np.arange(bins) / bins:
        inside = (said > low) & (said <= low + 1 / bins) if low else said <= 1 / bins
        if inside.any(): total += inside.sum() * abs(truth[inside].mean() - said[inside].mean())
    return total / len(truth)

def test_the_calibration_error_equals_its_definition(rng):
    truth, said = rng.random(300) < .4, rng.random(300)
    assert calibration_error(truth, said, bins=8) == pytest.approx(by_hand(truth, said, 8), abs=1e-12)
    seen, told = calibration_curve(truth, said, n_bins=10, strategy='quantile')
    assert calibration_error(truth, said, equal='count') == pytest.approx(abs(seen - told).mean(), abs=1e-12)
    several, probabilities = np.eye(3)[rng.integers(0, 3, 300)], rng.dirichlet(np.ones(3), 300)
    right = several.argmax(axis=1) == probabilities.argmax(axis=1)
    assert calibration_error(several, probabilities) == pytest.approx(by_hand(right, probabilities.max(axis=1), 10), abs=1e-12)
    np.testing.assert_array_equal(top_label(several, probabilities)[0], right)

def test_a_row_of_weights_counts_as_copies_do(rng):
    truth, said, weights = rng.random(60) < .5, rng.random(60), rng.integers(0, 3, (4, 60))
    for measure in (brier, log_loss, calibration_error):
        measured = measure(truth, said, weights)
        for row, once in enumerate(weights):
            assert measured[row] == pytest.approx(measure(np.repeat(truth, once), np.repeat(said, once)), abs=1e-12)

def test_reliability_counts_and_its_intervals(rng):
    truth, said = rng.random(400) < .4, rng.random(400)
    rows = reliability(truth, said)
    seen, told = calibration_curve(truth, said, n_bins=10)
    np.testing.assert_allclose(rows[['seen', 'said']], np.c_[seen, told], atol=1e-12)
    inside = (said > .1) & (said <= .2)
    expected = binomtest(int(truth[inside].sum()), int(inside.sum())).proportion_ci(method='wilson')
    np.testing.assert_allclose(rows.loc[1, ['low', 'high']].tolist(), expected, atol=1e-6)
    clustered = reliability(truth, said, np.arange(400) // 4)
    assert (clustered['patients'] <= 100).all() and clustered['images'].equals(rows['images'])
    wider = (clustered['high'] - clustered['low']) - (rows['high'] - rows['low'])
    assert (wider[clustered['patients'] < rows['patients']] > 0).all()
    assert reliability(truth[:40], said[:40])[['low', 'high']].isna().any(axis=None)
    alike = reliability([1, 0] * 20, [.3] * 40, equal='count')
    assert alike[['images', 'said', 'seen']].to_numpy().tolist() == [[40, pytest.approx(.3), .5]]

# repairs

@pytest.mark.parametrize('classes', [2, 4])
def test_the_temperature_equals_that_of_torch(classes):
    valid = table(600, classes)
    logits = torch.tensor(np.log(probabilities_of(valid)))
    true = torch.tensor(truth_of(valid).argmax(axis=1))
    log_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn='strong_wolfe')
    def closure():
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / log_t.exp(), true)
        loss.backward()
        return loss
    solver.step(closure)
    fitted = fit_temperature(valid)
    assert fitted.temperatures['a'] == pytest.approx(log_t.exp().item(), rel=1e-5)
    test = table(500, classes, seed=1, split='test')
    applied = probabilities_of(fitted.apply(test))
    expected = torch.softmax(torch.tensor(np.log(probabilities_of(test))) / log_t.exp(), dim=1).detach().numpy()
    np.testing.assert_allclose(applied, expected, atol=1e-5)
    assert (applied.argmax(axis=1) == probabilities_of(test).argmax(axis=1)).all(), 'no call may change'

def test_the_temperature_equals_scikit_learns():
    calibration = pytest.importorskip('sklearn.calibration')
    if not hasattr(calibration, '_TemperatureScaling'): pytest.skip('this scikit-learn has no temperature scaling')
    valid = table(600, 3)
    theirs = calibration._TemperatureScaling().fit(np.log(probabilities_of(valid)), truth_of(valid).argmax(axis=1))
    assert fit_temperature(valid).temperatures['a'] == pytest.approx(1 / theirs.beta_, rel=1e-4)

def test_each_finding_has_a_temperature_of_its_own():
    valid = findings(4000, dict(a=3, b=.5))
    valid.loc[:99, 'label_a'] = np.nan
    fitted = fit_temperature(valid)
    assert fitted.temperatures['a'] == pytest.approx(3, rel=.15) and fitted.temperatures['b'] == pytest.approx(.5, rel=.15)
    test = findings(500, dict(a=3, b=.5), seed=1)
    repaired = fitted.apply(test)
    np.testing.assert_allclose(logit(repaired['probability_a']), logit(test['probability_a']) / fitted.temperatures['a'], rtol=1e-6)
    assert auc(test['label_a'], repaired['probability_a']) == auc(test['label_a'], test['probability_a'])

@pytest.mark.filterwarnings('ignore:No temperature')
def test_extreme_probabilities_survive():
    extreme = table(200, 2).assign(probability_a=[0., 1.] * 100, probability_b=[1., 0.] * 100)
    for fit in (fit_temperature, fit_isotonic):
        said = probabilities_of(fit(extreme).apply(extreme))
        assert np.isfinite(said).all() and np.allclose(said.sum(axis=1), 1)

def test_isotonic_equals_scikit_learn():
    valid, test = table(600, 2), table(500, 2, seed=1, split='test')
    oracle = IsotonicRegression(out_of_bounds='clip').fit(valid['probability_b'], valid['label'] == 'b')
    applied = fit_isotonic(valid).apply(test)
    np.testing.assert_allclose(applied['probability_b'], oracle.predict(test['probability_b']), atol=1e-9)
    valid, test = table(900, 4), table(500, 4, seed=1, split='test')
    columns = [IsotonicRegression(out_of_bounds='clip').fit(valid[f'probability_{c}'], valid['label'] == c)
               .predict(test[f'probability_{c}']) for c in 'abcd']
    expected = np.stack(columns, axis=1)
    np.testing.assert_allclose(probabilities_of(fit_isotonic(valid).apply(test)),
                               expected / expected.sum(axis=1, keepdims=True), atol=1e-9)

def test_a_repair_repairs_and_leaves_the_table_as_it_was():
    valid, test = table(3000, 3), table(3000, 3, seed=1, split='test')
    before = test.copy()
    for fit in (fit_temperature, fit_isotonic):
        repaired = fit(valid).apply(test)
        assert brier(truth_of(test), probabilities_of(repaired)) < brier(truth_of(test), probabilities_of(test)) - .05
        assert calibration_error(truth_of(test), probabilities_of(repaired)) < .04
        assert classes_of(repaired) == ['a', 'b', 'c']
    pd.testing.assert_frame_equal(test, before)

# refusals

def test_test_predictions_are_refused():
    for fit in (fit_temperature, fit_isotonic, refuse_test):
        for word in ('test', ' Test', 'testing'):
            with pytest.raises(ValueError, match='of the test set'): fit(table(100, 2, split=word))
    refuse_test(table(100, 2).drop(columns='split'))

def test_too_small_a_validation_set_is_told_and_nothing_changes():
    small = table(8, 2)
    with pytest.warns(UserWarning, match='8 patients'): fitted = fit_temperature(small)
    np.testing.assert_allclose(probabilities_of(fitted.apply(small)), probabilities_of(small), atol=1e-12)
    with pytest.warns(UserWarning, match='fewer than 10 patients'): fitted = fit_isotonic(small)
    np.testing.assert_allclose(probabilities_of(fitted.apply(small)), probabilities_of(small), atol=1e-12)
    rare = findings(300, dict(a=2, b=2)).assign(label_b=[1.] * 5 + [0.] * 295)
    with pytest.warns(UserWarning, match='without, b'): fitted = fit_temperature(rare)
    assert fitted.temperatures['b'] == 1 != fitted.temperatures['a']
    one_patient = table(300, 2).assign(patient_id=1)
    with pytest.warns(UserWarning, match='1 patients'): fit_temperature(one_patient)

def test_a_perfect_or_useless_validation_set_has_no_temperature():
    perfect = table(200, 2).assign(label=['a', 'b'] * 100, probability_a=[.8, .2] * 100, probability_b=[.2, .8] * 100)
    with pytest.warns(UserWarning, match='in perfect order'): assert fit_temperature(perfect).temperatures['a'] == 1
    wrong = perfect.assign(label=['b', 'a'] * 100)
    with pytest.warns(UserWarning, match='no better than by chance'): assert fit_temperature(wrong).temperatures['a'] == 1

def test_bad_input_is_named():
    with pytest.raises(ValueError, match='alike'): brier([1, 0], [.5])
    with pytest.raises(ValueError, match=r'in \[0, 1\]'): log_loss([1, 0], [.5, np.nan])
    with pytest.raises(ValueError, match=r'in \[0, 1\]'): calibration_error([1, 0], [.5, 3])
    with pytest.raises(ValueError, match='several findings'): log_loss([[1, 1]], [[.5, .5]])
    with pytest.raises(ValueError, match="equal = 'area'"): reliability([1, 0], [.5, .2], equal='area')
    with pytest.raises(ValueError, match='Lengths differ'): brier([1, 0], [.5, .2], np.ones(3))
    with pytest.raises(ValueError, match='same model'): Temperature({'x': 1., 'y': 1.}).apply(table(20, 2))

def test_the_reliability_figure():
    several = findings(200, dict(a=2, b=1))
    curve, counts = plot_reliability({'one': table(300, 3), 'other': table(200, 3, seed=1)}, equal='count')
    assert curve.get_legend().get_title().get_text() == 'calibration error, n = 300 / 200 images'
    assert 'the call' in counts.get_xlabel()
    assert 'a' in plot_reliability(several, 'a')[1].get_xlabel()
    with pytest.raises(ValueError, match='name one of them'): plot_reliability(several)
    with pytest.raises(ValueError, match="No class 'z'"): plot_reliability(several, 'z')
    plt.close('all')
