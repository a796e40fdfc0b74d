"""Curves and areas against scikit-learn, with ties, weights and unknown truth"""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from cxr_learn.curves import (auc, average_precision, class_aucs, known_images, macro_auc, micro_auc, one_vs_one_auc,
                              plot_precision_recall, plot_roc, precision_recall_curve, roc_curve)

@pytest.fixture
def rng(): return np.random.default_rng(0)

@pytest.mark.parametrize('levels', [2, 7, 1000])
def test_areas_equal_scikit_learn_with_ties_and_weights(rng, levels):
    for _ in range(20):
        positive, score = rng.random(90) < .3, rng.integers(0, levels, 90) / levels
        weights = rng.integers(0, 5, 90)
        for ours, theirs in ((auc, sk.roc_auc_score), (average_precision, sk.average_precision_score)):
            assert ours(positive, score) == pytest.approx(theirs(positive, score), abs=1e-12)
            assert ours(positive, score, weights) == pytest.approx(theirs(positive, score, sample_weight=weights), abs=1e-12)

@pytest.mark.parametrize('measure', [auc, average_precision])
def test_a_row_of_weights_counts_as_copies_do(rng, measure):
    positive, score = rng.random(60) < .4, rng.integers(0, 9, 60)
    weights = rng.integers(0, 3, (2, 4, 60))
    measured = measure(positive, score, weights)
    assert measured.shape == (2, 4)
    for place in np.ndindex(2, 4):
        copies = np.repeat(positive, weights[place]), np.repeat(score, weights[place])
        assert measured[place] == pytest.approx(measure(*copies), abs=1e-12)

@pytest.mark.parametrize('measure', [auc, average_precision])
def test_images_of_unknown_truth_are_left_out(rng, measure):
    positive, score, weights = (rng.random(60) < .4).astype(float), rng.random(60), rng.integers(0, 3, 60)
    positive[::5] = np.nan
    known = ~np.isnan(positive)
    assert measure(positive, score, weights) == measure(positive[known], score[known], weights[known])
    assert len(known_images(positive, score)[0]) == known.sum()

@pytest.mark.parametrize('measure', [auc, average_precision])
def test_one_group_alone_has_no_area(measure):
    for positive in (np.zeros(5), np.ones(5), np.full(5, np.nan)): assert np.isnan(measure(positive, np.arange(5)))
    weights = np.array([[1, 1, 0, 0], [1, 0, 1, 0]])  # the first draws nobody ill
    assert np.isnan(measure([0, 0, 1, 1], np.arange(4), weights)).tolist() == [True, False]

def test_curves_equal_scikit_learn(rng):
    positive, score, weights = rng.random(80) < .5, rng.integers(0, 9, 80), rng.integers(1, 4, 80)
    for ours, theirs in zip(roc_curve(positive, score, weights),
                            sk.roc_curve(positive, score, sample_weight=weights, drop_intermediate=False)):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    precision, recall, threshold = sk.precision_recall_curve(positive, score, sample_weight=weights)
    sensitivity, ppv, thresholds = precision_recall_curve(positive, score, weights)
    np.testing.assert_allclose(np.c_[ppv, sensitivity, thresholds],
                               np.c_[precision[:-1], recall[:-1], threshold][::-1], atol=1e-12)

def test_the_roc_curve_encloses_the_auc(rng):
    positive, score = rng.random(80) < .5, rng.integers(0, 9, 80)
    x, y, _ = roc_curve(positive, score)
    assert np.trapezoid(y, x) == pytest.approx(auc(positive, score), abs=1e-12)

@pytest.mark.parametrize('classes', [3, 5])
def test_averages_over_classes_equal_scikit_learn(rng, classes):
    true, said = rng.integers(0, classes, 200), rng.dirichlet(np.ones(classes), 200).round(2)
    said /= said.sum(axis=1, keepdims=True)
    truth, weights = np.eye(classes)[true], rng.integers(1, 4, (2, 200))
    for row, once in enumerate(weights):
        expected = sk.roc_auc_score(true, said, multi_class='ovr', sample_weight=once)
        assert macro_auc(truth, said, weights)[row] == pytest.approx(expected, abs=1e-12)
        expected = sk.roc_auc_score(truth, said, average='micro', sample_weight=once)
        assert micro_auc(truth, said, weights)[row] == pytest.approx(expected, abs=1e-12)
    assert one_vs_one_auc(truth, said) == pytest.approx(sk.roc_auc_score(true, said, multi_class='ovo'), abs=1e-12)
    assert class_aucs(truth, said, weights).shape == (2, classes)

def test_with_two_classes_all_averages_are_the_auc(rng):
    ill, score = rng.random(50) < .5, rng.random(50)
    truth, said = np.c_[~ill, ill].astype(float), np.c_[1 - score, score]
    for average in (macro_auc, one_vs_one_auc): assert average(truth, said) == pytest.approx(auc(ill, score), abs=1e-12)

def test_bad_input_is_named():
    with pytest.raises(ValueError, match='Lengths differ'): auc([1, 0, 1], [.1, .2])
    with pytest.raises(ValueError, match='Lengths differ'): average_precision([1, 0], [.1, .2], np.ones((3, 5)))
    with pytest.raises(ValueError, match='missing'): auc([1, 0], [.1, np.nan])
    with pytest.raises(ValueError, match='truth of an image is 2'): auc([1, 2], [.1, .2])
    with pytest.raises(ValueError, match='give both'): macro_auc([1, 0], [.1, .2])
    with pytest.raises(ValueError, match='one label'): one_vs_one_auc([[1, 1], [0, 1]], [[.5, .5], [.5, .5]])

def table(n, seed, classes=('a', 'b')):
    rng = np.random.default_rng(seed)
    said = rng.dirichlet(np.ones(len(classes)), n)
    return pd.DataFrame({'image': np.arange(n), 'label': rng.choice(classes, n),
                         **{f'probability_{c}': said[:, i] for i, c in enumerate(classes)}})

@pytest.mark.parametrize('plot', [plot_roc, plot_precision_recall])
def test_each_model_and_class_has_a_curve_of_its_own(plot):
    named = lambda axes: [text.get_text().split(':')[0] for text in axes.get_legend().get_texts()]
    assert named(plot(table(40, 0))) == ['b']
    assert named(plot({'one': table(40, 0), 'other': table(30, 1)})) == ['one', 'other']
    three = ('a', 'b', 'c')
    axes = plot({'one': table(40, 0, three), 'other': table(40, 1, three)}, labels=['a', 'c'])
    assert named(axes) == ['one, a', 'one, c', 'other, a', 'other, c']
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines() if line.get_label()[0] != '_'}
    assert len(looks) == 4
    several = table(40, 0, three).assign(label_a=[1, 0] * 20, label_b=[0, 1] * 20, label_c=0).drop(columns='label')
    assert 'undefined, no positive images' in plot(several).get_legend().get_texts()[2].get_text()
    with pytest.raises(ValueError, match="No class 'z'"): plot(table(40, 0), labels=['z'])
    plt.close('all')
