"""On real radiographs, where CXR_DATA names them: the loaders agree with the releases"""
import pytest

from cxr_learn.cohorts import check_disjoint, findings_of, split_by_patient
from cxr_learn.images import read_grey
from cxr_learn.public_sets import find_collection, load_cohort

SETS = ('kermany', 'coronahack', 'covid_radiography', 'nih_chestxray14')

@pytest.fixture(scope='module')
def folders(real_data):
    import os
    os.environ['CXR_DATA'] = str(real_data)
    return {name: find_collection(name) or pytest.skip(f'no {name} below CXR_DATA') for name in SETS}

def test_kermany_has_the_official_counts(folders):
    kermany = load_cohort('kermany', folders['kermany'], task='type')
    counts = kermany.groupby(['split', 'label']).size()
    assert counts['test'].to_dict() == {'normal': 234, 'bacterial': 242, 'viral': 148}
    assert len(kermany) - counts['test'].sum() in (5216, 5232)  # without and with the folder of 16

def test_no_patient_of_kermany_crosses_the_official_split(folders):
    cohort = split_by_patient(load_cohort('kermany', folders['kermany']))
    check_disjoint(cohort)  # normals carry one number series over both official parts, so this could fail
    assert (cohort['split'] == 'test').sum() == 624

def test_coronahack_has_the_tables_counts(folders):
    cohort = load_cohort('coronahack', folders['coronahack'])
    counts = cohort.groupby(['split', 'label']).size()
    assert counts['test'].to_dict() == {'normal': 234, 'bacterial': 242, 'viral': 148}
    # the copy at hand holds 55 of the release's COVID-19 images; 5 Streptococcus are bacterial, 4 SARS viral, 2 of smoking left out
    assert counts['train'].to_dict() == {'normal': 1342, 'bacterial': 2535, 'viral': 1349, 'COVID-19': 55}
    check_disjoint(split_by_patient(cohort.assign(split=None)))

def test_nih_has_the_counts_of_its_part_and_disjoint_lists(folders):
    cohort = load_cohort('nih_chestxray14', folders['nih_chestxray14'])
    assert len(cohort) == 10_000 and cohort['patient_id'].nunique() == 2588 and len(findings_of(cohort)) == 15
    assert cohort['split'].value_counts().to_dict() == {'train': 8015, 'test': 1985}
    assert (cohort.groupby('patient_id')['split'].nunique() == 1).all()
    positives = {'No Finding': 5999, 'Infiltration': 1430, 'Effusion': 895, 'Cardiomegaly': 200, 'Pneumonia': 119, 'Hernia': 19}
    assert {finding: cohort[f'label_{finding}'].sum() for finding in positives} == positives

def test_nih_splits_anew_by_patient(folders):
    cohort = split_by_patient(load_cohort('nih_chestxray14', folders['nih_chestxray14'], official=False))
    shares = cohort['split'].value_counts(normalize=True)
    assert shares['valid'] == pytest.approx(.15, abs=.02) and shares['test'] == pytest.approx(.15, abs=.02)
    columns = [f'label_{finding}' for finding in findings_of(cohort)]
    assert (cohort.groupby('split')[columns].sum() > 0).all(axis=None)

def test_radiography_copies_stay_together(folders):
    cohort = split_by_patient(load_cohort('covid_radiography', folders['covid_radiography']))
    assert set(cohort['patient_rule']) == {'near-duplicate clusters'}
    assert cohort['patient_id'].nunique() < len(cohort)
    assert cohort['label'].value_counts().to_dict() == dict.fromkeys(('COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia'), 1064)

def test_every_tenth_radiograph_reads_as_grey(folders):
    for name, folder in folders.items():
        for path in load_cohort(name, folder)['path'][::10]:
            grey = read_grey(path, 64)
            assert grey.shape == (64, 64) and 0 <= grey.min() < grey.max() <= 1
