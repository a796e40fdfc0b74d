"The figures of chapter 16d that other reports use too, on a result made by hand"
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cxr_learn.hamza import RECIPE, figures, first_answers, learning_curves, plot_beside
from cxr_learn.recipes import EnsembleArm, FeatureArm

EPOCH = dict(train_loss=.5, valid_loss=.4, valid_accuracy=.8)


def made_up(arms, seeds=(0, 1)):
    "What `run_recipe` would give, as far as the figures look"
    rng, predictions = np.random.default_rng(0), []
    ill = np.arange(30) < 18
    for arm in arms:
        for seed in seeds:
            score = np.clip(rng.normal(.4 + .2 * ill, .2), .01, .99)
            predictions.append(pd.DataFrame(dict(
                image=[f'{place}.png' for place in range(30)], patient_id=np.arange(30).astype(str),
                label=np.where(ill, 'pneumonia', 'normal'), split='test', model=arm, seed=seed,
                probability_normal=1 - score, probability_pneumonia=score)))
    binary = RECIPE.tables[0]
    recipe = RECIPE._replace(tables=(binary._replace(
        arms=tuple(arm for arm in binary.arms if arm.name in arms)),))
    results = pd.DataFrame([dict(table='binary', model=arm, seed=seed, split='test', measure='accuracy',
                                 label='all', value=.8, low=.7, high=.9, images=30)
                            for arm in arms for seed in seeds])
    records = {('binary', arm, seed): [dict(history=[EPOCH] * 3), dict(history=[EPOCH] * 2)]
               for arm in arms for seed in seeds}
    return dict(recipe=recipe, predictions={'binary': pd.concat(predictions)}, results=results,
                records=records)


def test_a_line_for_each_seed_and_a_border_for_each_stage():
    figure = learning_curves(made_up(['fine-tuned'])['records'], ['fine-tuned'])
    loss, accuracy = figure.axes
    assert len(loss.lines) == 2 * (2 + 1) and len(accuracy.lines) == 2 * (1 + 1)
    assert len(loss.get_legend().get_texts()) == 2
    plt.close(figure)


def test_figures_of_arms_that_were_left_out_are_not_there():
    headings = set(figures(made_up(['transfer'])))
    assert headings == {'Confusion matrices', 'ROC curves', 'Accuracy, reported and measured'}
    assert 'Learning curves' in figures(made_up(['simple CNN', 'transfer'], seeds=(0,)))
    plt.close('all')


def test_first_answers_are_of_one_seed_and_of_the_kind_asked_for():
    result = made_up(['transfer', 'CNN + SVM', 'ensemble'])
    assert list(first_answers(result, 'binary')) == ['transfer']
    assert list(first_answers(result, 'binary', (FeatureArm, EnsembleArm))) == ['CNN + SVM', 'ensemble']
    assert first_answers(result, 'binary')['transfer']['seed'].unique().tolist() == [0]
    assert first_answers(result, 'three classes') == {}


def test_crosses_stand_where_the_report_has_a_number():
    figure = plot_beside(made_up(['transfer', 'ensemble']), 'binary')
    crosses = next(line for line in figure.axes[0].lines if line.get_marker() == 'x')
    assert crosses.get_xdata().tolist() == [.9006] and crosses.get_ydata().tolist() == [0]
    plt.close(figure)
