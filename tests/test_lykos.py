import numpy as np
import pandas as pd

from cxr_learn.lykos import BLOCKS, FOUR_CLASSES, RECIPE, freezing_rows, frozen
from cxr_learn.recipes import check_recipe, fit_to, network_arms


def test_a_frozen_arm_is_named_after_its_network_and_k():
    arm = frozen('resnet34', 2)
    assert (arm.name, arm.network, arm.stages[0].trainable) == ('ResNet-34, k = 2', 'resnet34', 2)
    masked = frozen('resnet18', 0, name='lungs only', pixels='masked')
    assert (masked.name, masked.pixels, masked.balanced) == ('lungs only', 'masked', True)


def test_every_arm_has_the_report_s_schedule():
    for arm in network_arms(RECIPE).values():
        (stage,) = arm.stages
        assert (stage.lr, stage.epochs, stage.patience, stage.optimiser) == (5e-4, 100, 20, 'adam')
        assert arm.batch_size == 128 and arm.balanced


def test_small_needs_no_weights_that_must_be_downloaded():
    for profile in ('tiny', 'small'):
        fitted, _ = fit_to(check_recipe(RECIPE), profile)
        assert {arm.weights for arm in network_arms(fitted).values()} <= {'none', 'shipped'}
        assert all(arm.stages[0].patience <= arm.stages[0].epochs for arm in network_arms(fitted).values())


def test_rows_for_the_panels_leave_the_variants_out():
    names = [arm.name for arm in FOUR_CLASSES.arms]
    results = pd.DataFrame([dict(table='four classes', model=name, seed=seed, split=split, measure=measure,
                                 label='all', value=.5, low=.4, high=.6)
                            for name in names for seed in (0, 1) for split in ('valid', 'test')
                            for measure in ('accuracy', 'macro_auc')])
    trainings = pd.DataFrame([dict(arm=name, seed=seed, best_epoch=3, seconds_per_epoch=1.,
                                   trainable_parameters=10) for name in names for seed in (0, 1)])
    rows = freezing_rows(results, trainings)
    assert len(rows) == 2 * (1 + 2 * len(BLOCKS))
    assert rows.groupby('network')['frozen_blocks'].apply(lambda k: sorted(set(k))).to_dict() == {
        'custom_cnn': [0], 'resnet18': [*BLOCKS], 'resnet34': [*BLOCKS]}
    one_seed = freezing_rows(results[results['seed'] == 1], trainings)
    assert set(one_seed['seed']) == {1} and np.isfinite(one_seed['value']).all()
