"""An assignment is fair: right answers get all points, no answer gets none, wrong ones lose some"""
import importlib.util
import json
import os
import re
import sys

import nbformat
import pandas as pd
import pytest
from conftest import ROOT, run

pytest.importorskip('nbgrader', reason="grading needs nbgrader: pip install 'cxr_learn[assign]'")

FOLDER = ROOT/'nbs'/'assignments'
STUDENT_COPY = FOLDER/'_student'/'cohorts.ipynb'
specification = importlib.util.spec_from_file_location('release', FOLDER/'release.py')
release = importlib.util.module_from_spec(specification)
specification.loader.exec_module(release)
MASTER = release.masters()['cohorts']

# Answers that only look like answers: the body of each function, by grade_id.
NOTHING = {'patient-of': 'return None', 'leaking-patients': 'return None',
           'split-patients': 'return None', 'prove-split': 'return None'}
UNTOUCHED = {'patient-of': 'return image', 'leaking-patients': 'return []',
             'split-patients': "return table.assign(split='train')", 'prove-split': 'pass'}
EVERYTHING = {'patient-of': 'raise ValueError(image)',
              'leaking-patients': "return table['patient_id'].unique().tolist()",
              'split-patients': "return table.assign(split=None)",
              'prove-split': "raise ValueError(' '.join(table['patient_id']))"}
# Mistakes that a good student makes, and the question that each should cost.
BY_IMAGE = {
    'patient-of': '''match = re.search(r'(train|test)/\\w+/(person|NORMAL2-IM-|IM-)(\\d+)', image)
    if match is None: raise ValueError(f'no patient in {image}')
    return '-'.join(match.groups())  # bacteria and virus patients are merged''',
    'leaking-patients': '''train, test = (set(table.query('split == @name')['patient_id']) for name in ('train', 'test'))
    return sorted(train & test)  # the validation part is forgotten''',
    'split-patients': '''random = np.random.default_rng(seed)
    part = table.groupby('label')['image'].transform(lambda images: random.permutation(len(images)) / len(images))
    return table.assign(split=np.where(part < test_share, 'test', 'train'))  # images are split, not patients''',
    'prove-split': '''for patient, splits in table.groupby('patient_id')['split']:
        if splits.nunique() > 1: raise ValueError(patient)  # images without a split are accepted'''}
BY_IMAGE_LOSES = {'pneumonia-patients', 'leaks', 'split-disjoint', 'proof'}
CARELESS = {
    'patient-of': '''match = re.search(r'person\\d+_[a-z]+|(NORMAL2-)?IM-\\d+', image)
    return match[0] if match else image  # train and test are merged, unknown names accepted''',
    'leaking-patients': '''counts = table['patient_id'].value_counts()
    return counts.index[counts > 1].tolist()  # several images are taken for several splits''',
    'split-patients': '''patients = sorted(table['patient_id'].unique())
    test = patients[:round(test_share * len(patients))]
    return table.assign(split=np.where(table['patient_id'].isin(test), 'test', 'train'))  # seed is not used''',
    'prove-split': '''leaking = leaking_patients(table[table['split'] != 'valid'])
    if table['split'].isna().any() or len(leaking): raise ValueError(f'leaking: {leaking}')'''}
CARELESS_LOSES = {'pneumonia-patients', 'normal-patients', 'leaks', 'split-balanced', 'proof'}


def with_bodies(bodies):
    "The student copy's functions with other bodies in place of the stub"
    cells = {cell.metadata.nbgrader.grade_id: cell.source for cell in nbformat.read(STUDENT_COPY, 4).cells
             if cell.metadata.get('nbgrader')}
    return {grade_id: cells[grade_id].replace(release.STUB, body) for grade_id, body in bodies.items()}


def cell_of(notebook, grade_id):
    return next(cell for cell in notebook.cells if cell.metadata.get('nbgrader', {}).get('grade_id') == grade_id)


def write_tampered(target):
    "Functions that return nothing, and checks that were made to pass and say they are worth more"
    release.fill(STUDENT_COPY, with_bodies(NOTHING), target)
    notebook = nbformat.read(target, 4)
    for cell in notebook.cells:
        if cell.metadata.get('nbgrader', {}).get('grade'):
            cell.source, cell.metadata.nbgrader['points'] = 'pass', 10
    nbformat.write(notebook, target)


def write_messy(target):
    "Right answers in a notebook with a cell copied, one cut in two, one added, a check deleted"
    release.fill(STUDENT_COPY, release.answers(MASTER), target)
    notebook = nbformat.read(target, 4)
    cells = notebook.cells
    answer, check = cell_of(notebook, 'patient-of'), cell_of(notebook, 'pneumonia-patients')
    for cell in (answer, check):
        copy = nbformat.v4.new_code_cell(cell.source, metadata=cell.metadata.copy())
        cells.insert(cells.index(cell) + 1, copy)
    proof = cell_of(notebook, 'prove-split')
    half = nbformat.v4.new_code_cell('note = 1', metadata=proof.metadata.copy())
    cells.insert(cells.index(proof), half)
    cells.insert(0, nbformat.v4.new_code_cell('1 / 0'))
    cells.remove(cell_of(notebook, 'leaks'))
    nbformat.write(notebook, target)


@pytest.fixture(scope='module')
def graded(tmp_path_factory):
    "The folder with the results of one run, all submissions graded in it"
    folder = tmp_path_factory.mktemp('assignments')
    submissions = folder/'submissions'
    filled = dict(solved=release.answers(MASTER), blank={}, untouched=with_bodies(UNTOUCHED),
                  everything=with_bodies(EVERYTHING), by_image=with_bodies(BY_IMAGE),
                  careless=with_bodies(CARELESS))
    for student, sources in filled.items():
        release.fill(STUDENT_COPY, sources, submissions/student/'cohorts.ipynb')
    for student, write in dict(tampered=write_tampered, messy=write_messy).items():
        write(submissions/student/'cohorts.ipynb')
    (submissions/'broken').mkdir()
    (submissions/'broken'/'cohorts.ipynb').write_text('not a notebook')
    home = folder/'home'
    home.mkdir()
    done = run(sys.executable, FOLDER/'release.py', '--submissions', submissions, '--out', folder/'out',
               env=os.environ | {'HOME': str(home), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'broken: cohorts could not be graded' in done.stdout
    return folder


@pytest.fixture(scope='module')
def grades(graded): return pd.read_csv(graded/'out'/'grades.csv').set_index('student')


def lost(grades, student):
    "The questions in which a student misses points"
    full = grades.loc['solved'].drop(['assignment', 'points', 'of'])
    return set(full.index[grades.loc[student, full.index].astype(float) < full.astype(float)])


def test_a_solved_submission_gets_full_marks(grades):
    assert (grades['of'] == 10).all()
    assert grades.loc['solved', 'points'] == 10


@pytest.mark.parametrize('student', ['blank', 'untouched', 'everything', 'tampered'])
def test_no_answer_gets_no_points(grades, student):
    assert grades.loc[student, 'points'] == 0


def test_a_blank_check_says_what_to_do(graded):
    notebook = nbformat.read(graded/'out/course/autograded/blank/cohorts/cohorts.ipynb', 4)
    said = cell_of(notebook, 'leaks').outputs[0]
    assert said.ename == 'NotImplementedError' and 'replace this line' in said.evalue


@pytest.mark.parametrize('student, expected', [('by_image', BY_IMAGE_LOSES), ('careless', CARELESS_LOSES)])
def test_wrong_answers_lose_their_points_and_no_others(grades, student, expected):
    assert lost(grades, student) == expected


def test_copied_split_added_and_deleted_cells_do_no_harm(grades):
    assert lost(grades, 'messy') == set()


def test_a_broken_notebook_has_no_points_and_stops_nobody(grades):
    assert pd.isna(grades.loc['broken', 'points'])
    assert len(grades) == 9


def test_the_student_copy_is_what_the_master_makes_today(graded):
    made = graded/'out/course/release/cohorts/cohorts.ipynb'
    assert STUDENT_COPY.read_text() == made.read_text(), 'run `make assignments` and commit the student copy'


def test_the_student_copy_holds_no_answer():
    copy = STUDENT_COPY.read_text()
    assert not re.search('(BEGIN|END) (SOLUTION|HIDDEN)', copy)
    lines = {line.strip() for cell in nbformat.read(STUDENT_COPY, 4).cells for line in cell.source.splitlines()}
    master = nbformat.read(MASTER, 4).cells
    secret = [line.strip() for cell in master for region in
              re.findall('### BEGIN (?:SOLUTION|HIDDEN TESTS)\n(.*?)### END', cell.source, re.S)
              for line in region.splitlines()]
    assert len(secret) > 50
    public = {line.strip() for cell in master for line in
              re.sub('### BEGIN.*?### END', '', cell.source, flags=re.S).splitlines()}
    assert not (set(secret) - public) & lines
    assert sum(release.STUB in cell.source for cell in nbformat.read(STUDENT_COPY, 4).cells) == 4


def test_the_marks_are_whole():
    "Unmatched marks would hand out a solution or drop a check without a word"
    for master in release.masters().values():
        points = 0
        for cell in json.loads(master.read_text())['cells']:
            source, marks = ''.join(cell['source']), cell['metadata'].get('nbgrader', {})
            for region, kind in (('SOLUTION', 'solution'), ('HIDDEN TESTS', 'grade')):
                begins, ends = source.count(f'### BEGIN {region}'), source.count(f'### END {region}')
                assert begins == ends == bool(marks.get(kind)), f'{region} in: {source[:80]}'
            points += marks.get('points', 0)
        assert points == 10


def test_grading_leaves_the_home_folder_alone(graded):
    kept = [path for path in (graded/'home').rglob('*') if path.is_file()]
    assert not [path for path in kept if 'jupyter' in str(path) or 'nbgrader' in str(path)], kept


def refusal(submissions, out):
    done = run(sys.executable, FOLDER/'release.py', '--submissions', submissions, '--out', out)
    assert done.returncode
    return done.stderr


def test_what_cannot_be_graded_is_refused_before_anything_is_replaced(graded, tmp_path):
    assert 'rename the notebooks' in refusal(tmp_path, tmp_path/'out')
    assert 'another folder' in refusal(graded/'out/course/submitted', graded/'out')
    own = tmp_path/'course'/'notes.txt'
    own.parent.mkdir()
    own.write_text('not ours')
    assert 'choose another --out' in refusal(graded/'submissions', tmp_path)
    assert own.exists()
