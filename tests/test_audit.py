"""The audit: every planted leak is found, a clean cohort passes, and what cannot be audited says so"""
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_learn.audit import audit, audit_table, exit_code, report_audit, shared_labels, write_audit
from cxr_learn.cleaning import clean
from cxr_learn.cohorts import CohortError, load_phantom, split_by_patient
from cxr_learn.duplicates import MOST_COPIES, duplicate_pairs, fingerprints, near_duplicate_clusters
from cxr_learn.phantom import make_phantoms, save_phantoms

CLASSES = ('normal', 'consolidation')

@pytest.fixture(scope='module')
def chests():
    "Twelve patients, one picture each, as uint8"
    return make_phantoms(12, CLASSES, (1, 1), seed=21).images.numpy()

@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    "A cohort without a planted fault, split by patient"
    return split_by_patient(load_phantom(save_phantoms(tmp_path_factory.mktemp('sound')/'phantom', 40, CLASSES, (1, 1), seed=5)))

@pytest.fixture
def folder(tmp_path, chests):
    "A labelled folder: six pictures in each of two classes"
    for number, picture in enumerate(chests):
        path = tmp_path/'data'/('ill' if number % 2 else 'well')/f'{number:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path/'data'

def kinds(found, severity=None):
    rows = found.findings if severity is None else found.findings[found.findings['severity'] == severity]
    return set(rows['kind'])

def test_a_sound_cohort_passes(sound):
    found = audit(sound)
    assert exit_code(found) == 0, audit_table(found).to_string()
    cleaned, dropped = clean(sound, found)
    assert len(cleaned) == len(sound) and dropped.empty

def test_a_sound_folder_passes_and_says_that_patients_are_unknown(folder):
    found = audit(folder, guesses=False)
    assert exit_code(found) == 0 and 'patients unknown' in kinds(found)
    assert found.images['patient_id'].nunique() == 12

def test_every_kind_of_copy_is_found(folder, chests):
    picture = Image.fromarray(chests[0])
    (folder/'well'/'copy.png').write_bytes((folder/'well'/'00.png').read_bytes())
    picture.convert('RGB').save(folder/'well'/'colour.png')
    picture.save(folder/'well'/'small.jpg', quality=40)
    picture.crop((4, 3, 125, 124)).resize((96, 96)).point(lambda grey: .8 * grey + 20).save(folder/'well'/'cropped.jpg')
    found = audit(folder, guesses=False)
    assert kinds(found, 'medium') == {'same file', 'same pixels', 'near-duplicate'} and exit_code(found) == 1
    touched = set(found.findings['image'].dropna()) | set(found.findings['other_image'].dropna())
    assert touched == {f'well/{name}' for name in ('00.png', 'copy.png', 'colour.png', 'small.jpg', 'cropped.jpg')}
    cleaned, dropped = clean(found.images, found)
    assert len(dropped) == 4 and set(dropped['reason']) == {'copy of an image that stays'}

def test_copies_with_different_labels_are_a_conflict_and_both_go(folder):
    (folder/'ill'/'copy.png').write_bytes((folder/'well'/'00.png').read_bytes())
    found = audit(folder, guesses=False)
    conflict = found.findings.query("kind == 'label conflict'").iloc[0]
    assert {conflict['label'], conflict['other_label']} == {'ill', 'well'} and conflict['severity'] == 'high'
    assert set(clean(found.images, found)[1]['image']) == {'ill/copy.png', 'well/00.png'}

def test_a_copy_across_the_split_is_grave_and_the_test_side_stays(sound, tmp_path):
    train, test = (sound[sound['split'] == split].iloc[0] for split in ('train', 'test'))
    copy = tmp_path/'copy.jpg'
    Image.open(test['path']).save(copy, quality=60)
    leaky = pd.concat([sound, pd.DataFrame([{**test, **dict(image='copy.jpg', path=str(copy), patient_id='new', split='train')}])], ignore_index=True)
    found = audit(leaky, guesses=False)
    row = found.findings.query("kind == 'near-duplicate'").iloc[0]
    assert (row['where'], row['severity']) == ('across splits', 'high') and 'new' in row['detail']
    cleaned, dropped = clean(leaky, found)
    assert dropped['image'].tolist() == ['copy.jpg'] and exit_code(audit(cleaned, guesses=False)) == 0
    assert train['image'] in set(cleaned['image'])

def test_patients_who_share_a_picture_become_one(sound, tmp_path):
    train, test = (sound[sound['split'] == split].iloc[0] for split in ('train', 'test'))
    copy = tmp_path/'copy.jpg'
    Image.open(test['path']).save(copy, quality=60)
    joined = pd.concat([sound, pd.DataFrame([{**test, **dict(image='copy.jpg', path=str(copy), patient_id=train['patient_id'], split='train')}])],
                       ignore_index=True)
    cleaned, dropped = clean(joined, audit(joined, guesses=False))
    assert dict(zip(dropped['image'], dropped['reason'])) == {
        'copy.jpg': 'copy of an image that stays', train['image']: 'patient is in the test set'}

def test_a_patient_on_both_sides_is_named(sound):
    leaky = sound.copy()
    a, b = (leaky.index[leaky['split'] == split][0] for split in ('train', 'test'))
    leaky.loc[a, 'patient_id'] = leaky.loc[b, 'patient_id']
    row = audit(leaky, guesses=False).findings.query("kind == 'patient in two splits'").iloc[0]
    assert row['severity'] == 'high' and leaky.loc[b, 'patient_id'] in row['detail']

def test_an_image_level_split_says_so(sound):
    with pytest.warns(UserWarning, match='leaky'): leaky = split_by_patient(sound.assign(split=None), leaky=True)
    assert 'leaky split' in kinds(audit(leaky, guesses=False), 'high')

def test_a_marker_of_one_class_is_found(tmp_path):
    marked = save_phantoms(tmp_path/'marked', 80, CLASSES, (1, 1), seed=2, shortcut='border', shortcut_class='consolidation', shortcut_strength=1.)
    found = audit(marked)
    assert 'from border' in ' '.join(found.findings.query("kind == 'class can be guessed'")['detail'])

def test_damaged_and_blank_files_are_listed_and_stop_nothing(folder):
    (folder/'well'/'broken.png').write_bytes((folder/'well'/'00.png').read_bytes()[:60])
    (folder/'well'/'empty.jpg').write_bytes(b'')
    Image.new('L', (64, 64), 90).save(folder/'well'/'blank.png')
    found = audit(folder, guesses=False)
    assert set(found.findings.query("kind == 'unreadable file'")['image']) == {'well/broken.png', 'well/empty.jpg'}
    assert found.findings.query("kind == 'shows nothing'")['image'].tolist() == ['well/blank.png']
    assert exit_code(found) == 1 and set(clean(found.images, found)[1]['reason']) == {'unreadable', 'shows nothing'}

def test_a_folder_of_nothing_but_damage_is_audited(tmp_path):
    for name in ('a.png', 'b.png'): (tmp_path/name).write_bytes(b'no image: ' + name.encode())
    found = audit(tmp_path)
    assert (found.findings['kind'] == 'unreadable file').sum() == 2 and exit_code(found) == 1
    with pytest.raises(CohortError, match='Nothing is left'): clean(found.images, found)

def test_what_cannot_be_audited_says_so(tmp_path, chests):
    with pytest.raises(CohortError, match='There is no folder'): audit(tmp_path/'absent')
    with pytest.raises(CohortError, match='holds no images'): audit(tmp_path)
    Image.fromarray(chests[0]).save(tmp_path/'one.png')
    with pytest.raises(CohortError, match='two or more'): audit(tmp_path)
    with pytest.raises(CohortError, match='name its folder'): audit(tmp_path/'one.png')
    with pytest.raises(CohortError, match='no images'): audit(pd.DataFrame(columns=['image', 'path', 'source']))

def test_a_flat_folder_without_labels(tmp_path, chests):
    for number in (0, 1, 2): Image.fromarray(chests[number]).save(tmp_path/f'{number}.png')
    Image.fromarray(chests[0]).save(tmp_path/'again.jpg', quality=70)
    found = audit(tmp_path, guesses=False)
    assert 'no labels' in kinds(found, 'notice') and kinds(found, 'medium') == {'near-duplicate'}

def test_folders_of_splits_and_patients_from_file_names(tmp_path, chests):
    for number, picture in enumerate(chests):
        path = tmp_path/('train' if number < 8 else 'test')/('ill' if number % 2 else 'well')/f'p{number % 9}_{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    found = audit(tmp_path, patient_pattern=r'(?P<patient>p\d+)_', guesses=False)
    named = ' '.join(found.findings.query("kind == 'patient in two splits'")['detail'])
    assert all(f'patient p{n}:' in named for n in (0, 1, 2)) and found.images['split'].value_counts().to_dict() == {'train': 8, 'test': 4}

def test_copies_between_collections(folder, tmp_path, chests):
    other = tmp_path/'other'/'sick'
    other.mkdir(parents=True)
    for number in (1, 3): Image.fromarray(chests[number]).resize((100, 100)).save(other/f'{number}.jpg', quality=80)
    found = audit(folder, other.parent, guesses=False)
    across = found.findings[found.findings['where'] == 'across cohorts']
    assert set(across['other_image']) == {'sick/1.jpg', 'sick/3.jpg'} and not (found.findings['kind'] == 'label conflict').any()
    assert ('data', 'ill', 'other', 'sick', 2) in set(shared_labels(found).itertuples(index=False, name=None))

def test_two_folders_of_one_name_stay_apart(folder, tmp_path):
    again = tmp_path/'again'/'data'
    again.parent.mkdir()
    folder.rename(again)
    found = audit(again, again, guesses=False)
    assert found.images['cohort'].unique().tolist() == ['data', 'data #2'] and (found.findings['kind'] == 'same file').sum() == 12

def test_the_command_and_its_report(folder, tmp_path, capsys):
    (folder/'ill'/'copy <b>.png').write_bytes((folder/'ill'/'01.png').read_bytes())
    assert report_audit(audit(folder, guesses=False), tmp_path/'report') == 1
    assert 'same file' in capsys.readouterr().out
    page = (tmp_path/'report'/'audit.html').read_text(encoding='utf-8')
    assert 'copy &lt;b&gt;.png' in page and 'copy <b>' not in page and str(tmp_path) not in page
    assert len(pd.read_csv(tmp_path/'report'/'audit.csv')) > 0
    (folder/'ill'/'copy <b>.png').unlink()
    assert report_audit(audit(folder, guesses=False), tmp_path/'report') == 0

def test_a_report_without_findings_is_written(sound, tmp_path):
    found = audit(sound, guesses=False)
    assert 'Nothing was found' in write_audit(found._replace(findings=found.findings.head(0)), tmp_path).read_text()

def test_clean_refuses_images_that_were_not_audited(sound):
    found = audit(sound.head(20), guesses=False)
    with pytest.raises(CohortError, match='not audited'): clean(sound, found)

def test_many_copies_of_one_file_do_not_explode(tmp_path, chests):
    Image.fromarray(chests[0]).save(tmp_path/'000.png')
    for number in range(1, 5 * MOST_COPIES): (tmp_path/f'{number:03d}.png').write_bytes((tmp_path/'000.png').read_bytes())
    paths = sorted(tmp_path.glob('*.png'))
    pairs = duplicate_pairs(fingerprints(paths))
    assert len(pairs) == MOST_COPIES * (MOST_COPIES - 1) // 2 + 4 * MOST_COPIES and set(pairs['kind']) == {'same file'}
    assert set(near_duplicate_clusters(paths)) == {0}

def test_pairs_between_two_sets_of_fingerprints(folder):
    ill, well = (fingerprints(sorted((folder/name).glob('*.png'))) for name in ('ill', 'well'))
    assert duplicate_pairs(ill, well).empty
    assert duplicate_pairs(ill, ill)[['first', 'second']].to_numpy().tolist() == [[n, n] for n in range(6)]
    with pytest.raises(ValueError, match='least_similarity = 2'): duplicate_pairs(ill, least_similarity=2)

def test_a_mirrored_or_inverted_picture_is_no_copy(folder, chests):
    Image.fromarray(np.ascontiguousarray(chests[0][:, ::-1])).save(folder/'well'/'mirrored.png')
    Image.fromarray(255 - chests[2]).save(folder/'well'/'inverted.png')
    assert exit_code(audit(folder, guesses=False)) == 0

def test_a_patient_in_training_and_validation_stays_on_one_side(tmp_path):
    place = save_phantoms(tmp_path/'p', patients=12, findings=('normal', 'effusion'), images_per_patient=(2, 2), image_size=64)
    cohort = load_phantom(place)
    cohort['split'] = ['train', 'valid'] * 12
    cleaned, dropped = clean(cohort, audit(cohort, guesses=False))
    assert set(cleaned['split']) == {'valid'} and 'patient is in the validation set' in set(dropped['reason'])
