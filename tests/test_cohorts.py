"""Cohorts: whole patients, official splits, samples and near-duplicates"""
import pandas as pd
import pytest

from cxr_learn.cohorts import (CohortError, check_disjoint, is_leaky, make_cohort, sample_patients, split_by_patient,
                               summarise_cohort)

def cohort(images_per_patient, labels=('a', 'b')):
    rows = [dict(image=f'{label}{p}_{i}', patient_id=f'{label}{p}', label=label, split=None)
            for label in labels for p, n in enumerate(images_per_patient) for i in range(n)]
    return pd.DataFrame(rows)

@pytest.mark.parametrize('sizes', [[1] * 3, [1, 50, 1, 1], [30, 1, 1, 1, 1, 1], list(range(1, 40))])
@pytest.mark.parametrize('seed', range(5))
def test_every_split_has_every_label_and_no_patient_twice(sizes, seed):
    split = split_by_patient(cohort(sizes), seed=seed)
    assert (split.groupby('patient_id')['split'].nunique() == 1).all()
    assert (split.groupby('label')['split'].nunique() == 3).all()

def test_shares_are_about_as_asked():
    split = split_by_patient(cohort([1, 2, 3] * 100), valid=.2, test=.1)
    shares = split['split'].value_counts(normalize=True)
    assert shares['valid'] == pytest.approx(.2, abs=.02) and shares['test'] == pytest.approx(.1, abs=.02)

def test_an_official_test_set_stays():
    official = cohort([1] * 20)
    official.loc[official['patient_id'].isin(['a1', 'b2']), 'split'] = 'test'
    split = split_by_patient(official)
    assert sorted(split.query("split == 'test'")['patient_id']) == ['a1', 'b2']

def test_a_patient_on_both_sides_of_an_official_split_is_named():
    leaky = cohort([2] * 9)
    leaky.loc[leaky['image'] == 'a4_0', 'split'] = 'test'
    with pytest.raises(CohortError, match='a4'): split_by_patient(leaky)

def test_samples_are_nested_and_by_patient():
    whole = cohort([1, 2, 3] * 50)
    small, large = (set(sample_patients(whole, n)['image']) for n in (40, 120))
    assert small < large and len(small) == pytest.approx(40, abs=10)

def test_a_leaky_split_must_be_asked_for_and_is_marked():
    whole = cohort([5] * 40).assign(patient_rule='given')
    with pytest.warns(UserWarning, match='leaky'): leaky = split_by_patient(whole, leaky=True)
    assert (leaky.groupby('patient_id')['split'].nunique() > 1).any()
    assert is_leaky(leaky) and 'leaky' in summarise_cohort(leaky).attrs['caption']
    honest = split_by_patient(leaky.assign(split=None))
    assert not is_leaky(honest) and set(leaky['patient_rule']) == {'given'}

def test_a_leaky_split_leaks_into_an_official_test_set_too():
    official = cohort([5] * 40).assign(patient_rule='given')
    official['split'] = official['patient_id'].isin(['a1', 'b2']).map({True: 'test', False: None})
    with pytest.warns(UserWarning): leaky = split_by_patient(official, leaky=True)
    test, rest = (set(leaky[side]['patient_id']) for side in (leaky['split'] == 'test', leaky['split'] != 'test'))
    assert len(test & rest) > 10

@pytest.mark.parametrize('seed', range(10))
def test_a_label_that_is_nobodys_commonest_reaches_the_test_set(seed):
    whole = cohort([4] * 30, labels=('a',))
    whole.loc[whole['image'].str.endswith('_0') & (whole.groupby('patient_id').ngroup() < 4), 'label'] = 'b'
    split = split_by_patient(whole, seed=seed)
    check_disjoint(split)
    assert set(split.query("split == 'test'")['label']) == {'a', 'b'}

ROWS = pd.DataFrame(dict(image=['1', '2'], path='-', patient_id=['P1', 'P1 '], patient_rule='given', source='s', label=['x', ' x']))

def test_blanks_and_numbers_make_no_new_patient_or_class():
    made = make_cohort(ROWS)
    assert made['patient_id'].nunique() == made['label'].nunique() == 1
    assert make_cohort(ROWS.assign(patient_id=pd.Series([1, '1'], dtype=object)))['patient_id'].nunique() == 1
    assert make_cohort(ROWS.assign(label=[0, 1]))['label'].tolist() == ['0', '1']

def test_the_words_of_a_split_are_known_or_refused():
    assert make_cohort(ROWS.assign(split=['Test ', 'val']))['split'].tolist() == ['test', 'valid']
    with pytest.raises(CohortError, match='holdout'): make_cohort(ROWS.assign(split=['holdout', 'test']))

@pytest.mark.parametrize('columns, said', [
    (dict(label='A|B'), 'several findings'), (dict(label='ill', label_A=1), 'is labelled ill'),
    ({'label_A': 1, 'label_No Finding': 1}, 'No Finding')])
def test_labels_that_contradict_each_other_are_refused(columns, said):
    with pytest.raises(CohortError, match=said): make_cohort(ROWS.drop(columns='label').assign(**columns))

def test_a_class_that_the_official_test_set_lacks_is_named():
    official = cohort([1] * 20)
    official.loc[official['patient_id'] == 'a1', 'split'] = 'test'
    with pytest.raises(CohortError, match='no image of b'): split_by_patient(official)
