"""Thresholds: every rule against brute force, refusals, net benefit and the panel without a front end"""
import numpy as np
import pandas as pd
import pytest

from cxr_learn.thresholds import (against_rest, choose_thresholds, counts_at, draw_threshold, net_benefit, pick_threshold,
                                  plot_at_thresholds, plot_net_benefit, threshold_widget, youden_threshold)

@pytest.fixture
def rng(): return np.random.default_rng(0)

def table(n=60, seed=0, **columns):
    rng = np.random.default_rng(seed)
    ill, p = rng.random(n) < .4, rng.random(n).round(2)
    return pd.DataFrame(dict(image=[f'{i}.png' for i in range(n)], patient_id=[str(i // 2) for i in range(n)],
                             label=np.where(ill, 'ill', 'well'), probability_well=1 - p, probability_ill=p) | columns)

def findings(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(image=[f'{i}.png' for i in range(n)], patient_id=[str(i // 2) for i in range(n)],
                             label_mass=(rng.random(n) < .4).astype(float), label_edema=(rng.random(n) < .4).astype(float),
                             probability_mass=rng.random(n), probability_edema=rng.random(n)))

VALUES = {
    'youden': lambda se, sp, share: se + sp - 1,
    'equal rates': lambda se, sp, share: -abs(se - sp),
    'sensitivity': lambda se, sp, share: sp if se >= .9 else -np.inf,
    'cost': lambda se, sp, share: -(7 * share * (1 - se) + 2 * (1 - share) * (1 - sp))}
OPTIONS = {'sensitivity': dict(least=.9), 'cost': dict(missed=7, false_alarm=2)}

@pytest.mark.parametrize('rule', VALUES)
@pytest.mark.parametrize('prevalence', [None, .03])
def test_a_rule_finds_the_best_of_all_thresholds(rng, rule, prevalence):
    for levels in (3, 12, 1000):
        positive, score = rng.random(70) < .4, rng.integers(0, levels, 70) / levels
        share = positive.mean() if prevalence is None else prevalence
        def value(t): return VALUES[rule]((score[positive] >= t).mean(), (score[~positive] < t).mean(), share)
        best = max(value(t) for t in [*np.unique(score), np.inf])
        chosen = pick_threshold(positive, score, rule, prevalence, **OPTIONS.get(rule, {}))
        assert value(chosen) == pytest.approx(best, abs=1e-12)

def test_the_highest_threshold_that_keeps_the_sensitivity(rng):
    positive, score = rng.random(90) < .4, rng.integers(0, 30, 90) / 30
    keeps = [t for t in np.unique(score) if (score[positive] >= t).mean() >= .8]
    chosen = pick_threshold(positive, score, 'sensitivity', least=.8)
    same = (score[~positive] < chosen).mean() == (score[~positive] < max(keeps)).mean()
    assert chosen == max(keeps) or same

def test_undefined_gives_nan_and_wrong_input_is_refused():
    assert np.isnan(youden_threshold(np.ones(5, bool), np.arange(5)))
    assert np.isnan(youden_threshold(np.zeros(0, bool), np.zeros(0)))
    with pytest.raises(ValueError, match='are NaN'): pick_threshold([True, False], [np.nan, .2])
    with pytest.raises(ValueError, match='2 truths and 3 scores'): pick_threshold([True, False], [.1, .2, .3])
    with pytest.raises(ValueError, match="'best' is unknown"): choose_thresholds(table(), 'best')
    with pytest.raises(TypeError, match='least'): choose_thresholds(table(), least=.9)  # Youden has no such option

@pytest.mark.parametrize('word', ['test', 'Test', ' testing'])
def test_test_images_are_refused(word):
    with pytest.raises(ValueError, match='1 of these images are of the test set'):
        choose_thresholds(table(split=['valid'] * 59 + [word]))
    choose_thresholds(table(split='valid'))

def test_findings_that_are_not_known_stay_out():
    full = findings()
    part = full.copy()
    part.loc[:9, 'label_mass'] = np.nan
    chosen = choose_thresholds(part)
    assert chosen['mass'] == choose_thresholds(full.iloc[10:])['mass']
    assert chosen['edema'] == choose_thresholds(full)['edema']
    positive, score, patients = against_rest(part, 'mass')
    assert len(positive) == len(score) == len(patients) == 50
    none = full.assign(label_mass=0)
    assert np.isnan(choose_thresholds(none)['mass'])

def test_a_prevalence_for_each_finding():
    both = findings()
    chosen = choose_thresholds(both, 'cost', prevalence={'mass': .01}, missed=9)
    assert chosen['mass'] == choose_thresholds(both, 'cost', prevalence=.01, missed=9)['mass']
    assert chosen['edema'] == choose_thresholds(both, 'cost', missed=9)['edema']

def test_net_benefit_by_loop_and_with_weights(rng):
    positive, score = rng.random(40) < .3, rng.random(40)
    weights = rng.integers(0, 3, (5, 40))
    curves = net_benefit(positive, score, weights)
    for row, copies in enumerate(weights):
        y, s = np.repeat(positive, copies), np.repeat(score, copies)
        for column in (4, 49, 90):
            p = (column + 1) / 100
            called = s >= p
            by_hand = (called & y).sum() / len(y) - (called & ~y).sum() / len(y) * p / (1 - p)
            assert curves[row, column] == pytest.approx(by_hand, abs=1e-12)
    with pytest.raises(ValueError, match='Lengths differ'): net_benefit(positive, score, weights[:, 1:])
    with pytest.raises(ValueError, match='NaN'): net_benefit(positive, np.full(40, np.nan))
    with pytest.raises(ValueError, match='between 0 and 1'): net_benefit(positive, score, at=[0, .5])

def test_calibrated_probabilities_are_never_worse_than_everybody_or_nobody_in_the_long_run(rng):
    p = rng.beta(1, 3, 200_000)
    positive = rng.random(len(p)) < p
    at = np.array([.05, .2, .5, .8])
    gain = net_benefit(positive, p, at=at)
    everybody = net_benefit(positive, np.ones(len(p)), at=at)
    assert (gain > np.maximum(everybody, 0) - .001).all()

def test_figures_are_drawn_and_say_what_is_missing():
    assert len(draw_threshold(table(), 'ill', .5).axes) == 3
    plot_net_benefit({'one': table(), 'other': table(seed=1)}, 'ill', resamples=20)
    with pytest.raises(ValueError, match="no class 'sick'"): plot_net_benefit(table(), 'sick')
    with pytest.raises(ValueError, match='measured at a threshold'):
        plot_at_thresholds(pd.DataFrame(dict(measure=['auc'], label=['ill'], value=[.5])))

def test_counts_agree_with_the_matrix():
    counts = counts_at(table(), 'ill', .5)
    assert sum(counts[name] for name in ('found', 'missed', 'false_alarms', 'left_alone')) == 60
    assert counts['ppv'] == pytest.approx(counts['found'] / (counts['found'] + counts['false_alarms']))
    with pytest.raises(ValueError, match='no threshold for ill'): counts_at(table(), 'ill', float('nan'))
    assert np.isnan(counts_at(findings().assign(label_mass=0), 'mass', .5)['sensitivity'])

def test_the_panel_follows_its_controls_without_a_front_end():
    panel = threshold_widget(table(), 'ill')
    controls, picture, text = panel.children[0].children, panel.children[1], panel.children[2]
    for control, value in zip(controls, ('well', .9, .5)):
        before = text.value
        control.value = value
        assert text.value != before
    assert bytes(picture.value).startswith(b'\x89PNG')
    several = threshold_widget(findings())
    several.children[0].children[1].value = 1.
    assert 'PPV nan' in several.children[2].value  # nobody is called at 1

def test_images_of_unknown_truth_do_not_count_as_ill():
    truth, score = np.array([1, 0, np.nan, 0]), np.array([.6, .2, .9, .3])
    known = ~np.isnan(truth)
    assert pick_threshold(truth, score) == pick_threshold(truth[known] == 1, score[known])
    assert net_benefit(truth, score, at=.1) == net_benefit(truth[known] == 1, score[known], at=.1)
