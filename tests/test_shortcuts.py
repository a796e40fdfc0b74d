"""Controls: what each alteration leaves, rows that cannot be asked say why, bad input is named"""
import numpy as np
import pytest
import torch

from cxr_learn.cnn import custom_cnn
from cxr_learn.cohorts import CohortError, split_by_patient
from cxr_learn.explanation import phantom_cohort
from cxr_learn.phantom import make_phantoms
from cxr_learn.shortcuts import (CONTROLS, Place, alter, altered_store, border_only, controls, cover, marker_place, predict_pixels)

@pytest.fixture(scope='module')
def study():
    phantoms = make_phantoms(100, ('normal', 'mass'), (1, 1), 64, shortcut='marker', shortcut_class='mass')
    cohort, store = phantom_cohort(phantoms)
    return split_by_patient(cohort, test=.3), store, phantoms.masks['lungs']

@pytest.fixture(scope='module')
def several():
    phantoms = make_phantoms(120, ('normal', 'mass', 'effusion'), (1, 1), 64, findings_per_patient=2)
    cohort, store = phantom_cohort(phantoms)
    return split_by_patient(cohort, test=.3), store, phantoms.masks['lungs']

def test_alterations_leave_what_they_say(study):
    _, store, lungs = study
    films = store.pixels
    black = alter(films, 'lungs blacked out', lungs)
    assert (black[lungs] == 0).all() and black[~lungs].equal(films[~lungs])
    border = border_only(films, .1)
    assert (border[:, 6:-6, 6:-6] == 0).all() and border[:, :6].equal(films[:, :6]) and border[:, :, -6:].equal(films[:, :, -6:])
    place = Place(0, 56, 8, .9)
    covered = cover(films, place)
    assert covered[:, :, :50].equal(films[:, :, :50]) and (covered[:, :8, 56:].flatten(1).amax(1) == covered[:, :8, 56:].flatten(1).amin(1)).all()
    assert films.equal(store.pixels)

def test_the_marker_is_found_where_it_was_planted(study):
    cohort, store, lungs = study
    place = marker_place(store.pixels, cohort['label'], lungs)
    letter = .17 * 64, .95 * 64
    assert place.auc > .9 and all(start <= at <= start + place.side + 4 for start, at in zip((place.top - 4, place.left - 4), letter))

def test_altered_stores_have_keys_of_their_own(study):
    _, store, lungs = study
    place = Place(0, 0, 8, .6)
    keys = {altered_store(store, control, lungs, place).key for control in CONTROLS} | {store.key}
    keys.add(altered_store(store, 'lungs blacked out', lungs.flip(2)).key)
    keys.add(altered_store(store, 'marker covered', place=Place(0, 8, 8, .6)).key)
    assert len(keys) == 6

def test_controls_have_their_rows(study):
    cohort, store, lungs = study
    torch.manual_seed(0)
    model = custom_cnn(2).train()
    table = controls(model, cohort, store, lungs, resamples=100)
    assert table['control'].tolist() == ['as it is', 'lungs blacked out', 'border only', 'marker covered', 'marker covered',
                                         'class guessed from the border']
    assert model.training and table['images'].eq((cohort['split'] == 'test').sum()).all()
    assert set(table) == {'control', 'measure', 'value', 'low', 'high', 'images', 'patients', 'verdict', 'reason'}
    again = controls(model, cohort, store, lungs, resamples=100)
    assert table.equal(again) if hasattr(table, 'equal') else table.equals(again)

def test_what_cannot_be_asked_says_why(study):
    cohort, store, lungs = study
    model = custom_cnn(2)
    without = controls(model, cohort, store, resamples=50).set_index('control')
    assert without.loc['lungs blacked out', 'images'] == 0 and 'find_lungs' in without.loc['lungs blacked out', 'reason']
    half = lungs.clone()
    half[np.flatnonzero(cohort['split'] == 'test')[:5]] = False
    some = controls(model, cohort, store, half, resamples=50).set_index('control')
    assert some.loc['lungs blacked out', 'images'] == some.loc['as it is', 'images'] - 5
    tested = cohort.assign(split='test')
    assert 'no training films' in controls(model, tested, store, resamples=50).set_index('control').loc['marker covered', 'reason']

def test_several_findings_per_film(several):
    cohort, store, lungs = several
    table = controls(custom_cnn(2), cohort, store, lungs, resamples=50)
    assert table['value'].between(0, 1)[table['measure'] == 'macro_auc'].all()

def test_predictions_are_those_of_the_rows(study):
    cohort, store, _ = study
    model = custom_cnn(2).eval()
    rows = [5, 2, 9]
    table = predict_pixels(model, cohort, rows, store.pixels[rows], batch_size=2)
    assert table['image'].tolist() == cohort['image'].iloc[rows].tolist()
    with torch.no_grad(): chances = model(store.pixels[rows][:, None] / 255).softmax(1)
    assert np.allclose(table.filter(like='probability'), chances, atol=1e-5)

def test_bad_input_is_named(study):
    cohort, store, lungs = study
    model = custom_cnn(2)
    for how, said in ((dict(control='lungs only'), 'Unknown control'), (dict(control='lungs blacked out'), 'lung mask'),
                      (dict(control='lungs blacked out', masks=lungs[:, :32]), 'lung mask'), (dict(control='marker covered'), 'marker_place')):
        with pytest.raises(ValueError, match=said): alter(store.pixels, **how)
    with pytest.raises(ValueError, match='store.pixels'): alter(store.pixels.float(), 'border only')
    with pytest.raises(ValueError, match='one for each'): controls(model, cohort, store, lungs[:5])
    with pytest.raises(ValueError, match='split'): controls(model, cohort, store, split='external')
    with pytest.raises(ValueError, match='3 outputs'): controls(custom_cnn(3), cohort, store)
    with pytest.raises(ValueError, match='BlockNet'): controls(torch.nn.Linear(1, 1), cohort, store)
    with pytest.raises(CohortError): controls(model, cohort.iloc[::-1], store)
