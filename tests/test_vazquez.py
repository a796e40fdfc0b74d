"What chapter 16e says of thresholds, on tables small enough to check by hand"
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cxr_learn.recipes import PROFILES, fit_to
from cxr_learn.vazquez import LITERATURE, RECIPE, plot_choices, threshold_choices


def table(scores, ill):
    scores = np.array(scores)
    return pd.DataFrame(dict(
        image=[f'{place}.png' for place in range(len(ill))], patient_id=np.arange(len(ill)).astype(str),
        label=np.where(ill, 'pneumonia', 'normal'), probability_normal=1 - scores, probability_pneumonia=scores))

VALID = table([.1, .2, .6, .7, .8, .9], [0, 0, 0, 1, 1, 1])
TEST = table([.1, .65, .75, .6, .8, .9], [0, 0, 0, 1, 1, 1])


def test_choices_are_made_where_they_say():
    rows = threshold_choices(VALID, TEST).set_index('choice')
    assert rows['threshold'].tolist() == [.5, .7, .7, .8, .8]
    assert rows.loc['.5, as trained', 'accuracy'] == pytest.approx(4 / 6)
    assert rows.loc["Youden's, on validation", 'accuracy'] == pytest.approx(4 / 6)
    assert rows.loc['most accurate, peeking at test', 'accuracy'] == pytest.approx(5 / 6)
    assert rows.loc['.5, as trained', ['sensitivity', 'specificity']].tolist() == pytest.approx([1, 1 / 3])


def test_peeking_is_never_beaten():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ill = rng.random(60) < .6
        told = [table(np.clip(rng.normal(.4 + .2 * ill, .2), 0, 1), ill) for _ in range(2)]
        rows = threshold_choices(*told)
        assert rows['accuracy'].max() == rows['accuracy'].iloc[-1]


def test_a_class_that_is_not_there():
    with pytest.raises(ValueError, match='no class'): threshold_choices(VALID, TEST, 'viral')


def test_the_figure_names_every_choice():
    figure = plot_choices(VALID, TEST)
    assert len(figure.legends[0].get_texts()) == 5
    plt.close(figure)


def test_the_literature_holds_the_reported_numbers():
    own = LITERATURE[LITERATURE['study'] == 'vazquez'].set_index('table')
    said = {(fact.table, fact.measure, fact.label): fact.value for fact in RECIPE.reported}
    assert own.loc['binary', 'accuracy'] == said['binary', 'accuracy', 'all']
    assert own.loc['binary', 'auc'] == said['binary', 'auc', 'pneumonia']
    assert own.loc['binary', 'sensitivity'] == said['binary', 'sensitivity', 'pneumonia']
    assert own.loc['three classes', 'auc'] == said['three classes', 'macro_auc', 'all']


@pytest.mark.parametrize('profile', PROFILES)
def test_the_grid_keeps_its_main_arm(profile):
    grid = next(table for table in fit_to(RECIPE, profile)[0].tables if table.name == 'grid')
    assert grid.main in [arm.name for arm in grid.arms]
    assert len({arm.stages for arm in grid.arms}) == len(grid.arms)
