"""On real radiographs, where CXR_DATA names them: the loaders agree with the releases"""
import pytest

from cxr_learn.cohorts import check_disjoint, find_collection, load_cohort, split_by_patient
from cxr_learn.images import read_grey

@pytest.fixture(scope='module')
def folders(real_data):
    import os
    os.environ['CXR_DATA'] = str(real_data)
    return {name: find_collection(name) or pytest.skip(f'no {name} below CXR_DATA') for name in ('kermany', 'covid_radiography')}

def test_kermany_has_the_official_counts(folders):
    kermany = load_cohort('kermany', folders['kermany'])
    test = kermany.query("split == 'test'")['label'].value_counts()
    assert test.to_dict() == {'pneumonia': 390, 'normal': 234}
    assert len(kermany) - len(test) >= 5216

def test_no_patient_of_kermany_crosses_the_official_split(folders):
    cohort = split_by_patient(load_cohort('kermany', folders['kermany']))
    check_disjoint(cohort)  # normals carry one number series over both official parts, so this could fail
    assert (cohort['split'] == 'test').sum() == 624

def test_radiography_copies_stay_together(folders):
    cohort = split_by_patient(load_cohort('covid_radiography', folders['covid_radiography']))
    assert set(cohort['patient_rule']) == {'near-duplicate clusters'}
    assert cohort['patient_id'].nunique() < len(cohort)
    assert cohort['label'].nunique() == 4

def test_every_tenth_radiograph_reads_as_grey(folders):
    for name, folder in folders.items():
        for path in load_cohort(name, folder)['path'][::10]:
            grey = read_grey(path, 64)
            assert grey.shape == (64, 64) and 0 <= grey.min() < grey.max() <= 1
