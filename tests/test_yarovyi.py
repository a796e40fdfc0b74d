import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cxr_learn.layouts import NIH_FINDINGS
from cxr_learn.recipes import check_recipe, fit_to, network_arms
from cxr_learn.transfer import transfer_net
from cxr_learn.yarovyi import AUCS, RECIPE, STAND_INS, aucs_of, plot_rarity, plot_topology


def test_reported_labels_and_stand_ins_are_the_release_s_words():
    assert set(AUCS) <= set(NIH_FINDINGS) and set(STAND_INS.values()) <= set(NIH_FINDINGS)
    assert len(NIH_FINDINGS) == 15


def test_no_arm_of_small_has_seen_the_set():
    fitted, _ = fit_to(check_recipe(RECIPE), 'small')
    assert {arm.weights for arm in network_arms(fitted).values()} == {'none', 'shipped'}
    assert {arm.network for arm in network_arms(fitted).values()} == {'resnet18', 'custom_cnn'}


def test_aucs_are_means_over_seeds_of_test_films_only():
    results = pd.DataFrame([dict(model=model, seed=seed, split=split, measure='auc', label=label,
                                 value=value + .1 * seed, low=.5, high=.9, positive_patients=12)
                            for model in ('weighted', 'focal') for seed in (0, 1)
                            for split in ('valid', 'test')
                            for label, value in (('Edema', .7), ('Hernia', np.nan))])
    rows = aucs_of(results)
    assert rows['label'].tolist() == ['Edema'] and np.isclose(rows['value'][0], .75)
    assert rows['positives'][0] == 12


def test_rarity_is_drawn_with_and_without_reported_values():
    scores = pd.DataFrame(dict(label=['Edema', 'Mass'], value=[.9, .7], positives=[10, 300]))
    assert plot_rarity(scores).axes[0].get_legend() is None
    assert plot_rarity(scores.assign(low=.6, high=np.nan), AUCS).axes[0].get_legend() is not None
    plt.close('all')


def test_the_network_is_drawn_from_its_own_table():
    drawn = plot_topology(transfer_net('resnet18', 'none', 15, 'dropout'), 64)
    words = ' '.join(text.get_text() for text in drawn.axes[0].texts)
    assert '157,504' in words and 'frozen' not in words and '3 x 64 x 64' in words
    plt.close('all')
