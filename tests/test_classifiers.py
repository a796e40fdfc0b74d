"""Classifiers: test rows are never looked at, folds go by patient, seeds repeat, bad input is named"""
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from cxr_learn.classifiers import CLASSIFIERS, SigmoidNet, classify, fit_classifier, make_classifier
from cxr_learn.cohorts import CohortError
from cxr_learn.features import FEATURE_PREFIX, feature_table
from cxr_learn.measures import check_predictions, classes_of

def table_of(patients=60, films=2, classes=('a', 'b', 'c'), seed=0, apart=1.5):
    "Two features of eight tell the classes apart; a patient's films are nearly the same"
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(patients) % len(classes), films)
    known = pd.DataFrame(dict(
        image=[f'{patient:03}_{film}' for patient in range(patients) for film in range(films)],
        patient_id=np.repeat([f'p{patient:03}' for patient in range(patients)], films), label=np.array(classes)[label],
        split=np.repeat(rng.permutation(np.arange(patients) % 3), films)))
    known['split'] = known['split'].map({0: 'train', 1: 'valid', 2: 'test'})
    values = np.repeat(rng.normal(size=(patients, 8)), films, axis=0) + .1 * rng.normal(size=(patients * films, 8))
    values[np.arange(len(label)), label] += apart
    return feature_table(known, values * 10. ** np.arange(8) + 5)

@pytest.fixture(scope='module')
def features(): return table_of()

def quick(name): return make_classifier(name, **({'n_estimators': 20} if name == 'random_forest' else {}))

@pytest.mark.parametrize('name', CLASSIFIERS)
def test_the_other_rows_are_never_looked_at(name, features):
    spoiled = features.copy()
    columns = [column for column in features if column.startswith(FEATURE_PREFIX)]
    away = spoiled['split'] != 'train'
    spoiled.loc[away, columns] = np.float32(np.nan)
    spoiled.loc[away, 'label'] = 'never seen'
    spoiled.loc[away, 'patient_id'] = 'p000'
    blind, seeing = (fit_classifier(quick(name), table) for table in (spoiled, features))
    pd.testing.assert_frame_equal(classify(blind, features), classify(seeing, features))

@pytest.mark.parametrize('name', CLASSIFIERS)
def test_a_table_of_predictions_comes_out(name, features):
    unfitted = quick(name)
    before = str(unfitted.get_params())
    fitted = fit_classifier(unfitted, features)
    table = classify(fitted, features)
    assert str(unfitted.get_params()) == before and not hasattr(unfitted, 'classes_')
    assert classes_of(table) == ['a', 'b', 'c'] and set(table['split']) == {'valid', 'test'}
    assert len(check_predictions(table)) == (features['split'] != 'train').sum()
    again = classify(fit_classifier(quick(name), features), features)
    pd.testing.assert_frame_equal(table, again)
    test = classify(fitted, features, 'test')
    assert test['image'].tolist() == features.loc[features['split'] == 'test', 'image'].tolist()

def test_the_scaler_is_inside(features):
    for name in CLASSIFIERS:
        text = str(quick(name))
        assert text.index('StandardScaler') > text.index('Pipeline')
    louder = features.copy()
    louder['feature_0000'] *= 1000
    for name in ('logistic', 'svm', 'k_nearest', 'dense'):
        one, other = (classify(fit_classifier(quick(name), table), table) for table in (features, louder))
        np.testing.assert_allclose(one.iloc[:, 4:].astype(float), other.iloc[:, 4:].astype(float), atol=1e-2)

def test_folds_go_by_patient(features):
    fitted = fit_classifier(make_classifier('svm'), features)
    train = features[features['split'] == 'train'].reset_index(drop=True)
    assert 2 <= len(fitted.cv) <= 5 and sorted(row for _, scored in fitted.cv for row in scored) == list(range(len(train)))
    for kept, scored in fitted.cv:
        assert not set(train['patient_id'][kept]) & set(train['patient_id'][scored])

def test_folds_by_patient_are_less_sure():
    "Where a patient has two films and labels mean nothing, folds by image find a signal, folds by patient none"
    table = table_of(120, 2, ('a', 'b'), apart=0)
    train = table['split'] == 'train'
    X, y = table[train].filter(like=FEATURE_PREFIX).to_numpy(), table['label'][train].to_numpy()
    machine, new = make_classifier('svm'), table[~train].filter(like=FEATURE_PREFIX).to_numpy()
    by_image = clone(machine).set_params(cv=KFold(5, shuffle=True, random_state=0)).fit(X, y).predict_proba(new)
    by_patient = fit_classifier(machine, table).predict_proba(new)
    def sureness(chances): return abs(chances[:, 0] - .5).mean()
    assert sureness(by_image) > 1.5 * sureness(by_patient)

def test_it_learns_what_is_there():
    table = table_of(180, 1, apart=3)
    for name in CLASSIFIERS:
        params = dict(lr=.1) if name == 'dense' else {}
        answers = classify(fit_classifier(make_classifier(name, **params), table), table, 'test')
        said = answers.filter(like='probability_').to_numpy().argmax(axis=1)
        assert (np.array(['a', 'b', 'c'])[said] == answers['label']).mean() > .6, name

def test_labels_of_any_type(features):
    numbers = features.assign(label=features['label'].map({'a': 0, 'b': 1, 'c': 2}))
    table = classify(fit_classifier(make_classifier('logistic'), numbers), numbers)
    assert classes_of(table) == ['0', '1', '2']
    two = features[features['label'] != 'c']
    for name in CLASSIFIERS: assert classes_of(classify(fit_classifier(quick(name), two), two)) == ['a', 'b']

def test_settings_reach_the_classifier():
    assert make_classifier('svm', C=7).estimator[-1].C == 7
    assert make_classifier('dense', seed=3, epochs=2)[-1].get_params() == SigmoidNet(seed=3, epochs=2).get_params()
    assert make_classifier('random_forest', 5)[-1].random_state == 5
    assert make_classifier('mlp', 5, random_state=6)[-1].random_state == 6

def test_the_sigmoid_net_follows_its_seed(features):
    X, y = features.filter(like=FEATURE_PREFIX).to_numpy()[:, :3], features['label']
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = (SigmoidNet(epochs=3, seed=seed).fit(X, y) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(before)
    assert one.loss_curve_ == same.loss_curve_ != other.loss_curve_ and len(one.loss_curve_) == 3
    assert np.array_equal(one.predict_proba(X), same.predict_proba(X)) and set(one.predict(X)) <= {'a', 'b', 'c'}
    assert [tuple(layer.weight.shape) for layer in one.net_[::3]] == [(512, 3), (128, 512), (3, 128)]

def test_a_search_of_scikit_learn_takes_it(features):
    train = features[features['split'] == 'train']
    X, y = train.filter(like=FEATURE_PREFIX).to_numpy(), train['label']
    search = GridSearchCV(make_classifier('dense', epochs=2), {'sigmoidnet__lr': [.01, .1]}, cv=2).fit(X, y)
    assert set(search.cv_results_['params'][0]) == {'sigmoidnet__lr'}

def test_bad_input_is_named(features):
    logistic = make_classifier('logistic')
    with pytest.raises(ValueError, match="Unknown classifier 'forest': use logistic, svm"): make_classifier('forest')
    with pytest.raises(ValueError, match='svm: .*trees.*leave this out'): make_classifier('svm', trees=3)
    for table in (features.drop(columns='split'), features[features['split'] == 'test'], features.assign(split=None)):
        with pytest.raises(ValueError, match='no training rows'): fit_classifier(logistic, table)
    with pytest.raises(ValueError, match='All training rows are a'):
        fit_classifier(logistic, features[features['label'] == 'a'])
    with pytest.raises(CohortError, match='one label per image'): fit_classifier(logistic, features.assign(label_mass=1))
    with pytest.raises(ValueError, match='no columns feature_'): fit_classifier(logistic, features[['label', 'split', 'patient_id']])
    alone = features[(features['label'] != 'c') | (features['patient_id'] == features.query("label == 'c' and split == 'train'")
                                                     ['patient_id'].iloc[0])]
    with pytest.raises(ValueError, match='The class c has one training patient'): fit_classifier(make_classifier('svm'), alone)
    fitted = fit_classifier(logistic, features)
    with pytest.raises(ValueError, match='no rows of the split later'): classify(fitted, features, 'later')
    with pytest.raises(ValueError, match='fitted to 8 features, and these 7 .*their number'):
        classify(fitted, features.drop(columns='feature_0000'))

def test_features_of_another_network_are_refused(features):
    features = features.copy()
    features.attrs['key'] = dict(weights='one', block=4, numbers='float32', cohort='this')
    fitted = fit_classifier(make_classifier('logistic'), features)
    features.attrs['key'] = {**features.attrs['key'], 'cohort': 'that'}
    classify(fitted, features)
    features.attrs['key'] = {**features.attrs['key'], 'weights': 'two'}
    with pytest.raises(ValueError, match='weights differ'): classify(fitted, features)
