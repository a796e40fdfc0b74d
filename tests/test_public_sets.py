"""Public sets: the quirks of each release, and what happens where a copy is not as published"""
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_learn.cohorts import CohortError, check_disjoint, findings_of, split_by_patient
from cxr_learn.layouts import CORONAHACK_TABLE, NIH_FINDINGS, save_as
from cxr_learn.own_data import load_csv, load_folder
from cxr_learn.phantom import DEMO_FINDINGS, make_phantoms
from cxr_learn.public_sets import (guess_collection, kermany_patient, load_coronahack, load_covid_radiography, load_kermany,
                                   load_nih)

@pytest.fixture(scope='module')
def phantoms(): return make_phantoms(patients=60, findings=DEMO_FINDINGS, image_size=32)

@pytest.fixture
def home(phantoms, tmp_path): return lambda layout: save_as(layout, phantoms, tmp_path/layout)

def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(file))).integers(0, 255, (16, 16), dtype=np.uint8)).save(file)

def nih(folder, rows, test=()):
    "A folder in NIH's layout, with resized copies as .jpg: rows of name, findings, patient, age"
    table = pd.DataFrame(rows, columns=['Image Index', 'Finding Labels', 'Patient ID', 'Patient Age'])
    table.assign(**{'Patient Gender': 'F', 'View Position': 'AP'}).to_csv(folder/'Data_Entry_2017.csv', index=False)
    for name in table['Image Index']: picture(folder/'images_002/images'/name.replace('.png', '.jpg'))
    train = [name for name in table['Image Index'] if name not in test]
    (folder/'train_val_list.txt').write_text('\n'.join(train))
    (folder/'test_list.txt').write_text('\n'.join(test))
    return folder

NIH_ROWS = [('00000001_000.png', 'Effusion|Mass', 1, '058Y'), ('00000001_001.png', 'No Finding', 1, '059Y'),
            ('00000002_000.png', 'Hernia', 2, '411')]

def test_every_loader_keeps_the_phantoms_patients_and_classes(home, phantoms):
    kinds = phantoms.table['label'].nunique()
    kermany = load_kermany(home('kermany'), task='type')
    assert kermany['patient_id'].nunique() == 60 and kermany['label'].nunique() == 3
    assert load_covid_radiography(home('covid_radiography'))['label'].nunique() == kinds
    cohort = load_nih(home('nih_chestxray14'))
    assert cohort['patient_id'].nunique() == 60 and len(cohort) == len(phantoms.table)
    check_disjoint(split_by_patient(cohort))

def test_a_set_is_recognised_by_its_layout(home, tmp_path):
    for name in ('kermany', 'coronahack', 'covid_radiography', 'nih_chestxray14'): assert guess_collection(home(name)) == name
    assert guess_collection(tmp_path) is None

def test_nih_findings_become_columns(tmp_path):
    cohort = load_nih(nih(tmp_path, NIH_ROWS, test=['00000002_000.png']))
    assert tuple(findings_of(cohort)) == NIH_FINDINGS and len(NIH_FINDINGS) == 15
    first, second, third = cohort.to_dict('records')
    assert first['label'] == 'Effusion|Mass' and first['label_Effusion'] == first['label_Mass'] == 1 and first['label_Hernia'] == 0
    assert second['label_No Finding'] == 1 and second['split'] == 'train' and third['split'] == 'test'

def test_nih_ages_in_both_spellings_and_impossible_ones(tmp_path):
    ages = load_nih(nih(tmp_path, NIH_ROWS))['age']
    assert ages.iloc[0] == 58 and pd.isna(ages.iloc[2])

def test_nih_table_of_2020_calls_a_column_otherwise(tmp_path):
    folder = nih(tmp_path, NIH_ROWS)
    old, new = folder/'Data_Entry_2017.csv', folder/'Data_Entry_2017_v2020.csv'
    new.write_text(old.read_text().replace('Patient Gender', 'Patient Sex'))
    old.unlink()
    assert guess_collection(folder) == 'nih_chestxray14' and set(load_nih(folder)['sex']) == {'F'}

def test_nih_patient_on_both_lists_is_named(tmp_path):
    rows = [(f'{p:08d}_{i:03d}.png', 'Effusion', p, 50) for p in range(1, 8) for i in range(2)]
    cohort = load_nih(nih(tmp_path, rows, test=['00000003_000.png']))
    with pytest.raises(CohortError, match=r"is 3\b"): split_by_patient(cohort)

@pytest.mark.parametrize('break_it, said', [
    (lambda folder: (folder/'test_list.txt').unlink(), 'test_list.txt'),
    (lambda folder: (folder/'train_val_list.txt').write_text('other.png'), 'on no list'),
    (lambda folder: next(folder.rglob('*.jpg')).unlink(), 'partial=True'),
    (lambda folder: (folder/'Data_Entry_2017.csv').write_text('Image Index,Finding Labels'), 'Patient ID'),
    (lambda folder: (folder/'Data_Entry_2017.csv').write_text(
        (folder/'Data_Entry_2017.csv').read_text().replace('Hernia', 'Herniation')), 'Herniation')])
def test_a_faulty_copy_of_nih_is_refused(tmp_path, break_it, said):
    folder = nih(tmp_path, NIH_ROWS)
    break_it(folder)
    with pytest.raises(CohortError, match=said): load_nih(folder)

def test_two_sizes_of_one_nih_image_are_refused(tmp_path):
    folder = nih(tmp_path, NIH_ROWS)
    picture(folder/'resized/00000001_000.png')
    with pytest.raises(CohortError, match='one size only'): load_nih(folder)

def test_a_planted_overlap_survives_the_export(tmp_path):
    faulty = make_phantoms(patients=40, findings=DEMO_FINDINGS, images_per_patient=(2, 3), image_size=32, official_test=.4, patient_overlap=.5)
    cohort = load_nih(save_as('nih_chestxray14', faulty, tmp_path/'nih'))
    assert (cohort.groupby('patient_id')['split'].nunique() > 1).sum() == (faulty.table.groupby('patient_id')['split'].nunique() > 1).sum() > 0

def test_coronahack_joins_covid_images_once(home):
    folder, copy = home('coronahack'), home('covid_chestxray')
    plain, joined = load_coronahack(folder, official=False), load_coronahack(folder, official=False, covid_folder=copy)
    names = joined['image'].str.split('/').str[-1]
    assert not names.duplicated().any() and len(joined) > len(plain)
    covid = joined[joined['label'] == 'COVID-19']
    assert set(covid['patient_rule']) == {'given'} and covid['patient_id'].nunique() == 15

def test_coronahack_official_test_without_covid_cannot_be_studied(home):
    with pytest.raises(CohortError, match='COVID-19'): split_by_patient(load_coronahack(home('coronahack')))

@pytest.mark.parametrize('change, said', [(('Pnemonia', 'Pneumonia'), 'no release has'), (('TRAIN', 'VALID'), 'does not exist')])
def test_coronahack_table_that_is_not_the_organisers(home, change, said):
    folder = home('coronahack')
    file = folder/CORONAHACK_TABLE
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(CohortError, match=said): load_coronahack(folder)

@pytest.mark.parametrize('name', ['person_bacteria_1.jpeg', 'scan.jpeg', '.jpeg'])
def test_a_name_without_patient_is_refused(name):
    with pytest.raises(CohortError): kermany_patient(name, 'train')

def multilabel(patients, seed=0):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(dict(image=[f'{p}_{i}' for p in range(patients) for i in range(2)]))
    rows['patient_id'] = rows['image'].str.split('_').str[0]
    for finding, share in dict(common=.5, rare=.03).items(): rows[f'label_{finding}'] = (rng.random(len(rows)) < share).astype(int)
    return rows.assign(label='-', split=None, patient_rule='given')

@pytest.mark.parametrize('seed', range(5))
def test_a_rare_finding_reaches_every_split(seed):
    cohort = split_by_patient(multilabel(200, seed), seed=seed)
    check_disjoint(cohort)
    assert (cohort.groupby('split')['label_rare'].sum() > 0).all()
    shares = cohort['split'].value_counts(normalize=True)
    assert shares['valid'] == pytest.approx(.15, abs=.02) and shares['test'] == pytest.approx(.15, abs=.02)

def test_a_table_with_several_findings(tmp_path):
    for name in 'ab': picture(tmp_path/f'{name}.png')
    (tmp_path/'t.csv').write_text('image,label_Effusion,label_Mass\na.png,1,1\nb.png,0,0\n')
    cohort = load_csv(tmp_path/'t.csv')
    assert cohort['label'].tolist() == ['Effusion|Mass', 'No Finding']
    assert set(cohort['patient_rule']) == {'near-duplicate clusters'}

@pytest.mark.parametrize('text, said', [
    ('image,label\n', 'no images'), ('image\na.png\n', 'column label'), ('label\nx\n', 'column image'), ('', 'as a table'),
    ('image,label\na.png,x\nlost.png,y\n', 'lost.png'), ('image,label,patient_id\na.png,x,\n', 'patient_id'),
    ('image,label\na.png,x\na.png,y\n', 'twice'), ('image,label\na.png,x\n./a.png,y\n', 'twice'),
    ('image,label\n../a.png,x\n', 'below a folder'), ('image,label\n/etc/a.png,x\n', 'below a folder'),
    ('image,label_x,label_x\na.png,1,0\n', 'label_x twice')])
def test_a_faulty_table_is_refused(tmp_path, text, said):
    picture(tmp_path/'in/a.png')
    (tmp_path/'in/t.csv').write_text(text)
    with pytest.raises(CohortError, match=said): load_csv(tmp_path/'in/t.csv')

def test_a_saved_cohort_reads_as_it_was(home, tmp_path):
    cohort = load_coronahack(home('coronahack'))
    cohort.to_csv(tmp_path/'saved.csv', index=False)
    pd.testing.assert_frame_equal(load_csv(tmp_path/'saved.csv'), cohort, check_dtype=False)

def test_a_damaged_file_is_for_the_store_to_name(tmp_path):
    for name in 'ab': picture(tmp_path/f'{name}/1.png')
    (tmp_path/'b/2.png').write_bytes(b'no picture')
    assert len(load_folder(tmp_path)) == 3

def test_a_folder_of_splits_is_not_a_folder_of_classes(tmp_path):
    for split in ('train', 'test'): picture(tmp_path/split/'a.png')
    with pytest.raises(CohortError, match='splits'): load_folder(tmp_path)
