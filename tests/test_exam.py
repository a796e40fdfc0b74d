"""The exam of heat maps: marks by hand, intervals, baselines, random weights, deletion, bad input"""
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from cxr_learn.cnn import custom_cnn
from cxr_learn.exam import (baseline_maps, find_cases, grade_each, grade_maps, lung_energy, mark_table, mean_with_interval,
                            perturbation_curves, random_maps, randomisation_test, randomise, similarity)
from cxr_learn.explanation import MissingLibrary, heat_maps

SIDE = 40

@pytest.fixture(scope='module')
def masks():
    masks = torch.zeros(12, SIDE, SIDE, dtype=torch.bool)
    for number in range(12): masks[number, 10:20, number:number + 10] = True
    return masks

@pytest.fixture(scope='module')
def model():
    "Untrained; positive weights in the head, so that every map has some heat"
    torch.manual_seed(0)
    model = custom_cnn(3).eval()
    with torch.no_grad(): model.head[-1].weight.abs_()
    return model

@pytest.fixture(scope='module')
def films(): return torch.randint(0, 256, (12, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

def test_perfect_uniform_and_empty_maps(masks):
    perfect = grade_each(masks.float(), masks, quantile=1 - 100 / SIDE**2)
    assert np.allclose(perfect[['pointing', 'energy', 'iou']], 1)
    uniform = grade_each(torch.full(masks.shape, .3), masks, tolerance=0)
    assert np.allclose(uniform[['pointing', 'energy', 'iou']], uniform[['area']].to_numpy())
    empty = grade_each(torch.zeros(masks.shape), masks)
    assert (empty[['pointing', 'energy', 'iou']] == 0).all(axis=None) and empty['empty'].all()

def test_tolerance_reaches_beside_the_mask(masks):
    maps = torch.zeros(masks.shape)
    maps[:, 21, 5] = 1  # two rows below the masks
    assert grade_each(maps, masks, tolerance=.05)['pointing'][0] == 1
    assert grade_each(maps, masks, tolerance=.02)['pointing'][0] == 0

def test_marks_do_not_change_with_the_scale_of_a_map(masks):
    maps = torch.rand(masks.shape)
    assert np.allclose(grade_each(maps, masks), grade_each(1000 * maps, masks))

def test_bad_masks_are_refused(masks):
    with pytest.raises(ValueError, match='one mask'): grade_each(torch.ones(12, 8, 8), masks)
    with pytest.raises(ValueError, match='1 mask'): grade_each(torch.ones(masks.shape), masks & (torch.arange(12) > 0)[:, None, None])

def test_intervals_are_over_patients():
    scores = pd.DataFrame({'one': [0., 1] * 20, 'gaps': [np.nan, 1] * 20})
    apart = mean_with_interval(scores, range(40)).set_index('measure')
    pairs = mean_with_interval(scores, np.repeat(range(20), 2)).set_index('measure')
    assert apart.loc['one', 'low'] < .5 < apart.loc['one', 'high'] and apart.loc['one', 'patients'] == 40
    assert np.isnan(pairs.loc['one', 'low'])  # each patient has the same mean: nothing varies
    assert apart.loc['gaps', 'images'] == 20 and apart.loc['gaps', 'value'] == 1
    few = mean_with_interval(scores[:9], range(9)).iloc[0]
    assert np.isnan(few['low']) and 'fewer than 10' in few['reason']
    with pytest.raises(ValueError, match='patient'): mean_with_interval(scores, range(3))

def test_baselines_and_the_table(masks, films):
    maps = baseline_maps(films[:, :SIDE, :SIDE], {'findings': masks})
    assert set(maps) == {'uniform', 'centre blob', 'mean of findings', 'edges'}
    assert all(candidate.shape == masks.shape and candidate.min() >= 0 for candidate in maps.values())
    marks = grade_maps(maps, masks, range(12))
    assert list(mark_table(marks).index) == list(maps)
    value = marks.set_index(['map', 'measure'])['value']
    assert value['mean of findings', 'pointing'] > value['uniform', 'pointing']

def test_randomising_keeps_the_numbers_and_the_model(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parts, touched in ((0, ()), (1, ('head',)), (2, ('head', 'blocks.4')), (6, ('head', 'blocks'))):
        for name, tensor in randomise(model, parts).state_dict().items():
            assert tensor.flatten().sort()[0].equal(before[name].flatten().sort()[0])
            if not name.startswith(touched or ('none',)): assert tensor.equal(before[name])
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert not randomise(model, 1).head[-1].weight.equal(model.head[-1].weight)
    with pytest.raises(ValueError, match='parts'): randomise(model, 7)

def test_similarity_is_scipys(films):
    one, other = torch.rand(3, 16, 16), torch.rand(3, 16, 16).round(decimals=1)
    assert np.allclose(similarity(one, other), [spearmanr(a.flatten(), b.flatten())[0] for a, b in zip(one, other)])
    assert np.isnan(similarity(torch.zeros(1, 4, 4), torch.rand(1, 4, 4))).all()
    with pytest.raises(ValueError, match='spearman'): similarity(one, other, 'cosine')

def test_ssim_needs_a_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage.metrics', None)
    with pytest.raises(MissingLibrary, match='scikit-image'): similarity(torch.rand(1, 8, 8), torch.rand(1, 8, 8), 'ssim')

def test_the_randomisation_test_has_a_row_for_each_part(model, films):
    table = randomisation_test(model, films, 1, range(12))
    assert table['randomised'].tolist() == ['head', *(f'head to block {n}' for n in (5, 4, 3, 2, 1)), 'another film']
    assert table['value'].dropna().between(-1, 1).all() and len(table['value'].dropna())

def test_deletion_and_insertion_meet_at_their_ends(model, films):
    maps = heat_maps(model, films, 1)
    deleted = perturbation_curves(model, films, 1, maps, 'deletion', steps=4)
    inserted = perturbation_curves(model, films, 1, maps, 'insertion', steps=4)
    assert deleted.shape == (12, 5)
    assert np.allclose(deleted[:, 0], inserted[:, -1], atol=1e-5) and np.allclose(deleted[:, -1], inserted[:, 0], atol=1e-5)
    with torch.no_grad(): chances = model(films[:, None] / 255)
    assert np.allclose(deleted[:, 0], chances.softmax(1)[:, 1], atol=1e-5)
    several = perturbation_curves(model, films, [1] * 12, maps, steps=1, multi_label=True)
    assert np.allclose(several[:, 0], chances.sigmoid()[:, 1], atol=1e-5)
    assert random_maps(maps, 2).shape == maps.shape

def test_wrong_perturbations_are_refused(films):
    model = custom_cnn(2).eval()
    for wrong, said in ((dict(kind='erosion'), 'deletion'), (dict(steps=0), 'steps'), (dict(maps=torch.ones(3, 64, 64)), 'Maps of shape')):
        with pytest.raises(ValueError, match=said):
            perturbation_curves(model, films, 0, **{'maps': torch.ones(12, 64, 64), **wrong})

def test_cases_are_found_or_left_out():
    grades = pd.DataFrame(dict(pointing=[1., 1, 0, 0], energy=[.5, .3, .01, .02], area=[.1] * 4))
    assert find_cases(grades, [True, False, True, True]).to_dict() == {'map right, answer wrong': 1, 'answer right, map wrong': 2}
    assert find_cases(grades, [True, True, False, False]).empty

def test_energy_in_the_lungs_is_one_over_the_area_at_best(masks):
    table = lung_energy(masks.float(), masks, range(12)).set_index('measure')['value']
    assert table['heat in the lungs'] == 1 and np.isclose(table['ratio'] * table['area of the lungs'], 1)
    with pytest.raises(ValueError, match='No film'): lung_energy(torch.zeros(masks.shape), masks, range(12))
