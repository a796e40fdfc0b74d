"""Ensembles: means by hand, any order of images and classes, several findings, and every difference refused by name"""
import numpy as np
import pandas as pd
import pytest

from cxr_learn.ensembles import average_probabilities
from cxr_learn.intervals import simulate_predictions
from cxr_learn.measures import PREFIX, check_predictions, probabilities_of, truth_of

@pytest.fixture
def members(): return [table.assign(model=f'm{n}', seed=n, split='test') for n, table in enumerate(simulate_predictions(20, [1., 1.2, 1.4]))]

def test_it_is_the_mean_of_matching_images_in_the_order_of_the_first(members):
    mixed = [table.sample(frac=1, random_state=n)[list(table.columns[::-1])] if n else table for n, table in enumerate(members)]
    together = average_probabilities(mixed)
    np.testing.assert_allclose(probabilities_of(together), np.mean([probabilities_of(table) for table in members], axis=0), atol=1e-12)
    assert together['image'].tolist() == members[0]['image'].tolist() and not {'model', 'seed'} & set(together)
    check_predictions(together)

def test_weights_are_shares(members):
    one_alone = average_probabilities(members, [0, 7, 0])
    np.testing.assert_allclose(probabilities_of(one_alone), probabilities_of(members[1]))
    weighted = probabilities_of(average_probabilities(members, [2, 1, 1]))
    np.testing.assert_allclose(weighted, np.average([probabilities_of(table) for table in members], axis=0, weights=[2, 1, 1]))

def test_the_members_stay_as_they_were(members):
    before = [table.copy() for table in members]
    average_probabilities(members)
    for one, other in zip(before, members): pd.testing.assert_frame_equal(one, other)

@pytest.fixture
def findings():
    return pd.DataFrame({'image': ['a', 'b', 'c'], 'patient_id': ['p', 'p', 'q'], 'label': ['x', 'y', 'x|y'], 'split': 'test',
                         'label_x': [1, np.nan, 1], 'label_y': [0, 1., 1], PREFIX + 'x': [.2, .8, 1], PREFIX + 'y': [.9, .7, 1]})

def test_several_findings_keep_unknown_truths(findings):
    together = average_probabilities([findings, findings.iloc[::-1].assign(**{PREFIX + 'x': [1, .4, .6]})])
    np.testing.assert_allclose(together[PREFIX + 'x'], [.4, .6, 1])
    np.testing.assert_array_equal(truth_of(together), truth_of(findings))

@pytest.mark.parametrize('change, words', [
    (lambda t: t.iloc[1:], 'Other images, member 2 against member 1: 1 are in one table only, the first is a'),
    (lambda t: t.assign(image=['a', 'b', 'z']), 'the first is c'),
    (lambda t: t.rename(columns={'label_y': 'label_z', PREFIX + 'y': PREFIX + 'z'}), 'Other classes'),
    (lambda t: t.assign(label_x=[1, 0, 1]), 'Another label_x, member 2 against member 1: b has 0'),
    (lambda t: t.assign(label_y=[0, 0, 1]), 'Another label_y'),
    (lambda t: t.assign(patient_id='p'), 'Another patient_id'),
    (lambda t: t.assign(split='valid'), 'Another split, member 2 against member 1: a has valid, and test')])
def test_differences_are_refused_by_name(findings, change, words):
    with pytest.raises(ValueError, match=words): average_probabilities([findings, change(findings)])

@pytest.mark.parametrize('weights', [[1], [1, 1, 1], [1, -1], [0, 0], [np.inf, 1], [np.nan, 1]])
def test_wrong_weights(findings, weights):
    with pytest.raises(ValueError, match='for 2 members'): average_probabilities([findings] * 2, weights)

def test_no_members_and_several_models_in_one_table(members):
    with pytest.raises(ValueError, match='at least one'): average_probabilities([])
    with pytest.raises(ValueError, match='by_model'): average_probabilities([pd.concat(members[:2])])
