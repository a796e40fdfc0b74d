"""Cohorts: whole patients, official splits, samples and near-duplicates"""
import pandas as pd
import pytest

from cxr_learn.cohorts import CohortError, is_leaky, sample_patients, split_by_patient, summarise_cohort

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
    assert not is_leaky(split_by_patient(whole))

def test_a_class_that_the_official_test_set_lacks_is_named():
    official = cohort([1] * 20)
    official.loc[official['patient_id'] == 'a1', 'split'] = 'test'
    with pytest.raises(CohortError, match='no image of b'): split_by_patient(official)
