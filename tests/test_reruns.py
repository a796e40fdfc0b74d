"""A report that is killed, fed with other data or run twice at once"""
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from cxr_learn.cohorts import CohortError
from cxr_learn.evaluation import PlanError
from cxr_learn.layouts import save_as
from cxr_learn.phantom import make_phantoms
from cxr_learn.recipes import Arm, Claim, FeatureArm, Profile, Recipe, RecipeError, Reported, Table
from cxr_learn.reruns import find_films, keep_results, run_recipe, table_folder
from cxr_learn.stages import Stage

PHANTOM = dict(patients=90, images_per_patient=(1, 1), findings=('normal', 'consolidation'), official_test=.25)
NAMES = {'normal': 'normal', 'consolidation': 'bacterial'}
BINARY = Table('ill or not', (Arm('A', 'custom_cnn', 'none', (Stage(epochs=1),)), Arm('B', 'simple_cnn', 'none', (Stage(epochs=1),)),
                              FeatureArm('C', 'A', 'logistic')), {'normal': 'normal', 'bacterial': 'pneumonia'})
RECIPE = Recipe('test', 'A test', 'kermany', (BINARY,), {'tiny': Profile(32, seeds=1, resamples=50), 'small': Profile(32, seeds=1, resamples=50)},
                (Reported('ill or not', 'A', 'accuracy', .9), Reported('ill or not', 'A', 'accuracy', .95, split='train')),
                (Claim('A beats B.', 'ill or not', 'A', 'B'),), task='type', phantom=PHANTOM, phantom_labels=NAMES)


def quiet(line): pass


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    return folder, run_recipe(RECIPE, 'tiny', out=folder, say=quiet)


def test_every_arm_answers_for_each_test_image_and_nothing_crosses_the_split(run):
    _, result = run
    told, cohort = result['predictions']['ill or not'], result['cohorts']['ill or not']
    for _, rows in told[told['split'] == 'test'].groupby('model'):
        assert sorted(rows['image']) == sorted(cohort['image'][cohort['split'] == 'test'])
    assert cohort.groupby('patient_id')['split'].nunique().max() == 1
    assert set(told['split']) == {'train', 'valid', 'test'}  # a training accuracy was reported


def test_a_training_accuracy_has_a_value_and_no_interval(run):
    of_train = run[1]['reported'].query("split == 'train'").iloc[0]
    assert of_train['value'] > 0 and pd.isna(of_train['low']) and of_train['verdict'] == 'no interval'


def test_the_plans_were_written_before_the_answers(run):
    folder, _ = run
    table = table_folder(folder, 'ill or not')
    assert (folder/'plan.json').stat().st_mtime <= (table/'opened.json').stat().st_mtime
    assert json.loads((table/'plan.json').read_text())['test_set']


def test_changed_answers_are_refused(run, tmp_path):
    folder, _ = run
    kept = table_folder(folder, 'ill or not')/'predictions.csv'
    before = kept.read_bytes()
    kept.write_bytes(before.replace(b'normal', b'NORMAL', 1))
    with pytest.raises(PlanError, match='no longer what the models answered'): run_recipe(RECIPE, 'tiny', out=folder, say=quiet)
    kept.write_bytes(before)


def test_the_ledger_can_be_read_back(run, tmp_path):
    _, result = run
    keep_results(result, tmp_path, 'report_test_')
    claims = pd.read_csv(tmp_path/'report_test_claims.csv')
    assert claims['verdict'].tolist() == ['cannot be judged']
    facts = json.loads((tmp_path/'report_test_run.json').read_text())
    assert facts['seeds'] == [0] and facts['on_phantom'] and facts['data_digest'] and facts['environment']


def collection(folder, findings):
    save_as('kermany', make_phantoms(patients=40, findings=findings, image_size=48), str(folder))
    return folder


def test_data_without_a_class_of_the_recipe_are_refused(tmp_path):
    recipe = RECIPE._replace(phantom_labels={**NAMES, 'diffuse interstitial pattern': 'viral'})
    place = collection(tmp_path/'kermany', ('normal', 'consolidation'))
    with pytest.raises(RecipeError, match="asks about 'viral'"): run_recipe(recipe, 'small', place, tmp_path/'out', say=quiet)
    assert not list((tmp_path/'out').glob('store*'))


def test_another_layout_and_a_missing_folder_are_refused(tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(CohortError, match='layout'): run_recipe(RECIPE, 'small', tmp_path/'empty', tmp_path/'out', say=quiet)
    with pytest.raises(CohortError, match='no folder'): run_recipe(RECIPE, 'small', tmp_path/'absent', tmp_path/'out', say=quiet)


def test_without_data_the_message_says_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.delenv('CXR_DATA', raising=False)
    with pytest.raises(RecipeError, match='cxr_learn fetch kermany'): run_recipe(RECIPE, 'small', out=tmp_path, say=quiet)


def test_labels_of_the_table_are_those_of_the_report(tmp_path):
    cohort = find_films(RECIPE, 'tiny', None, tmp_path)
    assert set(cohort['label']) == {'normal', 'bacterial'}


SCRIPT = '''
import sys; sys.path.insert(0, {tests!r})
from test_reruns import RECIPE, run_recipe
run_recipe(RECIPE, 'tiny', out={out!r}, seeds=3)
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='needs SIGKILL')
def test_killed_and_called_again_it_goes_on(run, tmp_path):
    script = SCRIPT.format(tests=os.path.dirname(__file__), out=str(tmp_path/'out'))
    process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith('[2/'): break
    process.send_signal(signal.SIGKILL); process.wait()
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path/'out').rglob('record.json')}
    assert finished
    time.sleep(.01)
    result = run_recipe(RECIPE, 'tiny', out=tmp_path/'out', seeds=3, say=quiet)
    assert all(file.stat().st_mtime_ns == when for file, when in finished.items())
    assert len(result['records']) == 6
    once = run[1]['results'].query("split == 'test' and measure == 'accuracy' and seed == 0")['value'].tolist()
    again = result['results'].query("split == 'test' and measure == 'accuracy' and seed == 0")['value'].tolist()
    assert again == once
