"""Searches: patients stay whole, the test set is never seen, trials survive a stop, Gram matrices change no score"""
import json
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import cxr_learn.search as module
from cxr_learn.cohorts import CohortError
from cxr_learn.explanation import MissingLibrary
from cxr_learn.features import feature_matrix
from cxr_learn.search import Range, SearchError, fold_tables, patient_folds, search, svc_grid

FEATURES = [f'feature_{number:04}' for number in range(6)]

def simulated(classes='ab', patients=60, films=2, seed=0):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), films)
    label = np.array(list(classes))[who % len(classes)]
    split = np.array(['train'] * 6 + ['valid', 'test', 'test', 'train'])[who // len(classes) % 10]
    values = rng.normal(size=(len(who), 6)) + .6 * (who % len(classes))[:, None]
    table = pd.DataFrame(dict(image=[f'i{row}' for row in range(len(who))], patient_id=[f'p{number}' for number in who], label=label, split=split))
    return table.join(pd.DataFrame(values.astype(np.float32), columns=FEATURES))

@pytest.fixture(scope='module')
def table(): return simulated()

def test_folds_hold_every_training_patient_once_and_nobody_else(table):
    dealt = patient_folds(table, 4, seed=1)
    scored = np.concatenate([score for _, score in dealt])
    assert sorted(scored) == np.flatnonzero(table['split'] == 'train').tolist()
    for fit, score in dealt:
        assert not set(table['patient_id'].iloc[fit]) & set(table['patient_id'].iloc[score])
        assert sorted([*fit, *score]) == sorted(scored)
        assert set(table['label'].iloc[score]) == {'a', 'b'}
    assert all((one[1] == other[1]).all() for one, other in zip(dealt, patient_folds(table, 4, seed=1)))
    assert any(len(one[1]) != len(other[1]) or (one[1] != other[1]).any() for one, other in zip(dealt, patient_folds(table, 4, seed=2)))

def test_the_index_of_the_table_does_not_matter(table):
    other = table.set_index(np.arange(len(table))[::-1] + 7)
    for one, two in zip(patient_folds(table), patient_folds(other)): np.testing.assert_array_equal(one[0], two[0])
    assert svc_grid(other, [1.], [.01])['score'] == svc_grid(table, [1.], [.01])['score']

@pytest.mark.parametrize('change, words, error', [
    (lambda t: t.assign(split='test'), 'no training rows', ValueError),
    (lambda t: t.assign(split=None), 'no split', CohortError),
    (lambda t: t.assign(patient_id='p'), 'more than one split', CohortError),
    (lambda t: t[(t['label'] == 'a') | (t['patient_id'].isin(['p1', 'p3']))], 'no more than the 2 training patients of b', ValueError),
    (lambda t: t.assign(label_x=1), 'one label per image', CohortError)])
def test_tables_that_cannot_be_dealt(table, change, words, error):
    with pytest.raises(error, match=words): patient_folds(change(table))

def scrambled(table):
    "All that is not training: other features, other labels, another order among themselves"
    rest = (table['split'] != 'train').to_numpy()
    other, rng = table.copy(), np.random.default_rng(9)
    other.loc[rest, FEATURES] = rng.normal(100, 50, (rest.sum(), 6)).astype(np.float32)
    other.loc[rest, 'label'] = 'z'
    return other

@pytest.mark.parametrize('name, space, how', [
    ('logistic', {'C': [.01, 1]}, 'grid'), ('svm', {'C': [10]}, 'grid'), ('k_nearest', {'n_neighbors': Range(1, 20, whole=True)}, 'random')])
def test_a_search_never_sees_the_other_rows(table, name, space, how):
    one, other = (search(rows, name, space, how, trials=2, folds=2) for rows in (table, scrambled(table)))
    pd.testing.assert_frame_equal(one['table'], other['table'])
    assert one['best'] == other['best']
    without = search(table[table['split'] == 'train'], name, space, how, trials=2, folds=2)
    pd.testing.assert_frame_equal(one['table'], without['table'])

def test_the_grid_of_an_svm_never_sees_the_other_rows(table):
    pd.testing.assert_frame_equal(svc_grid(table)['table'], svc_grid(scrambled(table))['table'])

def test_the_scaler_is_fitted_inside_the_fold(table):
    seen = []
    class Spy(StandardScaler):
        def fit(self, X, y=None, **more):
            seen.append(len(X))
            return super().fit(X, y, **more)
    original, module.StandardScaler = module.StandardScaler, Spy
    try: svc_grid(table, [1.], [.01], folds=4)
    finally: module.StandardScaler = original
    assert seen == [len(fit) for fit, _ in patient_folds(table, 4)]

@pytest.mark.parametrize('classes, score, usual', [('ab', 'macro_auc', 'roc_auc'), ('ab', 'accuracy', 'accuracy'), ('abc', 'accuracy', 'accuracy')])
def test_gram_matrices_change_no_score(classes, score, usual):
    table = simulated(classes, patients=90)
    grid = dict(C=[.1, 1., 10.], gamma=[.003, .03, .3])
    train = table[table['split'] == 'train'].reset_index(drop=True)
    searched = GridSearchCV(make_pipeline(StandardScaler(), SVC()), {f'svc__{name}': values for name, values in grid.items()},
                            scoring=usual, cv=patient_folds(train)).fit(feature_matrix(train), train['label'])
    found = svc_grid(table, **grid, score=score)
    np.testing.assert_allclose(found['table'].sort_values(['C', 'gamma'])['mean'], searched.cv_results_['mean_test_score'], atol=1e-9)

def test_the_fast_grid_and_the_general_search_agree(table):
    fast = svc_grid(table, [1., 10.], [.05, .2], folds=3)  # Platt's method can turn the order around where an SVM hardly learns
    general = search(table, 'svm', {'gamma': [.05, .2], 'C': [1., 10.]}, folds=3)
    np.testing.assert_allclose(fast['table']['mean'], general['table']['mean'], atol=1e-9)
    assert fast['best'] == general['best'] and fast['measure'] == general['measure']

@pytest.mark.parametrize('grid', [dict(C=[]), dict(C=[-1.]), dict(gamma=[0.]), dict(gamma=[np.nan]), dict(score='mcc'), dict(folds=1)])
def test_wrong_grids_of_an_svm(table, grid):
    with pytest.raises(ValueError): svc_grid(table, **grid)

def test_too_many_rows_are_refused_before_the_memory_is_gone(table, monkeypatch):
    monkeypatch.setattr(module, 'GRAM_LIMIT', 1000)
    with pytest.raises(ValueError, match='use `search`'): svc_grid(table)

def test_means_and_choice(table):
    found = search(table, 'logistic', {'C': [1e-6, 1.]}, folds=3)
    folds = found['table'].filter(regex='^fold_')
    np.testing.assert_allclose(found['table']['mean'], folds.mean(axis=1))
    np.testing.assert_allclose(found['table']['sd'], folds.std(axis=1))
    assert found['best'] == {'C': found['table']['C'][found['table']['mean'].idxmax()]} and found['score'] == found['table']['mean'].max()
    assert len(fold_tables(table, 3)) == 3

def test_numbers_from_numpy_are_plain_afterwards(table):
    found = search(table, 'k_nearest', {'n_neighbors': np.array([3, 5])}, folds=3)
    assert json.dumps(found['best']) and type(found['best']['n_neighbors']) is int

@pytest.mark.parametrize('arguments, words', [
    (dict(how='luck'), 'grid, random, optuna'), (dict(score='loss'), 'macro_auc'), (dict(space={}), 'empty'), (dict(space={'C': []}), 'at least one value'),
    (dict(space={'C': 'abc'}), 'list'), (dict(space={'C': Range(1, 2)}), 'Range'), (dict(space={'C': Range(2, 1)}, how='random'), 'low below high'),
    (dict(space={'C': Range(0, 1)}, how='random'), 'above 0'), (dict(trials=0, how='random'), 'at least 1'), (dict(name='oracle'), 'Unknown classifier')])
def test_wrong_searches(table, arguments, words):
    with pytest.raises(ValueError, match=words): search(**{**dict(features=table, name='logistic', space={'C': [1]}), **arguments})

def test_a_failed_point_is_listed_and_the_rest_goes_on(table):
    found = search(table, 'logistic', {'C': [-1., 1.]}, folds=3)
    assert found['best'] == {'C': 1.} and 'parameter' in found['table']['error'][0] and found['table']['error'][1] == ''

def test_no_valid_point_is_one_error_and_the_file_keeps_the_reasons(table, tmp_path):
    with pytest.raises(SearchError, match='None of the 2 point'): search(table, 'logistic', {'C': [-1., -2.]}, file=tmp_path/'trials.csv')
    kept = pd.read_csv(tmp_path/'trials.csv')
    assert len(kept) == 2 and kept['error'].notna().all()
    with pytest.raises(SearchError, match='None of the 1 point'): search(table, 'logistic', {'unheard_of': [1]})

class Stop(Exception): pass

def stopping(monkeypatch, after):
    "Let the search be killed after so many fits"
    left, fit = [after], module.fit_classifier
    def counted(*arguments):
        left[0] -= 1
        if left[0] < 0: raise Stop
        return fit(*arguments)
    monkeypatch.setattr(module, 'fit_classifier', counted)

@pytest.mark.parametrize('how', ['grid', 'random', 'optuna'])
def test_a_stopped_search_goes_on_and_ends_the_same(table, tmp_path, monkeypatch, how):
    if how == 'optuna': pytest.importorskip('optuna')
    space = {'C': [1e-3, 1e-2, .1, 1.] if how == 'grid' else Range(1e-3, 10)}
    call = dict(features=table, name='logistic', space=space, how=how, trials=4, folds=3)
    whole = search(**call)
    with monkeypatch.context() as patch:
        stopping(patch, after=8)  # in the third trial
        with pytest.raises(Stop): search(**call, file=tmp_path/'trials.csv')
    assert len(pd.read_csv(tmp_path/'trials.csv')) == 2
    with monkeypatch.context() as patch:
        stopping(patch, after=6)  # two trials are left, of three fits each
        continued = search(**call, file=tmp_path/'trials.csv')
    pd.testing.assert_frame_equal(whole['table'], continued['table'])
    with monkeypatch.context() as patch:
        stopping(patch, after=0)
        pd.testing.assert_frame_equal(whole['table'], search(**call, file=tmp_path/'trials.csv')['table'])

def test_a_second_grid_keeps_the_trials_of_the_first(table, tmp_path):
    search(table, 'logistic', {'C': [.01, .1]}, folds=3, file=tmp_path/'trials.csv')
    search(table, 'logistic', {'C': [1., .1]}, folds=3, file=tmp_path/'trials.csv')
    assert sorted(pd.read_csv(tmp_path/'trials.csv')['C']) == [.01, .1, 1.]

def test_files_of_other_searches_are_refused_and_stay(table, tmp_path):
    file = tmp_path/'trials.csv'
    search(table, 'logistic', {'C': [1.]}, folds=3, file=file)
    before = file.read_bytes()
    for other in (dict(folds=4), dict(seed=1), dict(score='accuracy'), dict(name='k_nearest', space={'n_neighbors': [3]}), dict(features=simulated(seed=1))):
        with pytest.raises(SearchError, match='another search'):
            search(**{**dict(features=table, name='logistic', space={'C': [1.]}, folds=3, file=file), **other})
    assert file.read_bytes() == before
    search(scrambled(table), 'logistic', {'C': [1.]}, folds=3, file=file)  # the same training rows: the same search
    for damaged in ('', 'a,b\n1,2\n'):
        file.write_text(damaged)
        with pytest.raises(SearchError, match='trials'): search(table, 'logistic', {'C': [1.]}, folds=3, file=file)
        assert file.read_text() == damaged

def test_random_draws_stay_in_their_range_and_do_not_depend_on_the_number_of_trials():
    space = {'lr': Range(1e-4, 1e-1), 'units': Range(3, 9, whole=True), 'kind': ['a', 'b']}
    few, many = ([params for params, _ in module.HOW['random'](space, trials, 0)] for trials in (5, 50))
    assert few == many[:5]
    assert all(1e-4 <= params['lr'] <= 1e-1 and 3 <= params['units'] <= 9 and params['kind'] in 'ab' for params in many)
    assert {params['units'] for params in many} == set(range(3, 10))

def test_optuna_missing_says_how_to_get_it(table, monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(MissingLibrary, match=r"pip install 'cxr_learn\[search\]'"): search(table, 'logistic', {'C': [1.]}, how='optuna')

def test_optuna_takes_lists_of_anything(table):
    pytest.importorskip('optuna')
    found = search(table, 'mlp', {'hidden_layer_sizes': [(4,), (3, 3)], 'alpha': Range(1e-5, 1e-2), 'max_iter': [20]}, how='optuna', trials=3, folds=3)
    assert found['best']['hidden_layer_sizes'] in [(4,), (3, 3)] and len(found['table']) == 3
