"""The command, end to end: same seed, kill and resume, real layouts, bad input"""
import json
import os
import re
import signal
import stat
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

QUICK = ('demo', '--tiny', '--frozen-blocks', '4')  # two models: the CNN and a linear head
TIMES = ['seconds_per_epoch', 'cpu_seconds_per_epoch']

def results(folder): return pd.read_csv(folder/'results.csv').drop(columns=TIMES)

@pytest.fixture(scope='module')
def finished(command, tmp_path_factory):
    "A finished quick run"
    out = tmp_path_factory.mktemp('demo')/'out'
    done = command(*QUICK, '--out', out)
    assert done.returncode == 0, done.stderr
    return out, done

def test_the_demo_leaves_a_table_a_page_and_what_a_repetition_needs(finished):
    out, done = finished
    assert done.stdout.strip().endswith('report.html')
    page = (out/'report.html').read_text(encoding='utf-8')
    assert 'Not for clinical use' in page and 'viewport' in page
    assert not re.search(r'(?:src|href)="(?!data:)', page), 'the page is not self-contained'
    assert all(alt.strip() for alt in re.findall(r'<img alt="([^"]*)"', page))
    run = json.loads((out/'run.json').read_text())
    assert run['seeds'] == [0] and run['environment']['threads'] >= 1 and len(run['data_digest']) == 16
    assert {'torch', 'fastai', 'cxr_learn'} <= set(run['environment'])
    scores = results(out).query("measure == 'macro_auc'")
    assert len(scores) == 2 and scores['value'].between(scores['low'], scores['high']).all()

def test_validation_and_test_share_no_patient_and_every_model_sees_the_same_images(finished):
    predictions = pd.read_csv(finished[0]/'predictions.csv')
    patients = predictions.groupby('split')['patient_id'].agg(set)
    assert not patients['valid'] & patients['test']
    images = predictions.query("split == 'test'").groupby('model')['image'].agg(tuple)
    assert images.nunique() == 1 and len(images) == 2

def test_killed_and_called_again_it_ends_as_if_nothing_had_happened(finished, tmp_path):
    "Killed after the first training: that one is found, not repeated, and the table is the same, byte by byte"
    code = 'import sys; from cxr_learn.command_line import main; sys.exit(main())'
    command = [sys.executable, '-u', '-c', code, *QUICK, '--out', str(tmp_path/'out')]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if line.startswith('[1/2]'): break
    process.send_signal(signal.SIGKILL)
    process.wait()
    first, = (tmp_path/'out/runs').glob('custom_cnn-*/record.json')
    before = first.stat().st_mtime_ns
    assert not (tmp_path/'out/report.html').exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert first.stat().st_mtime_ns == before, 'a finished training was repeated'
    pd.testing.assert_frame_equal(results(tmp_path/'out'), results(finished[0]), check_exact=True)

def test_two_runs_do_not_work_in_one_folder(finished, capsys):
    from filelock import FileLock
    from cxr_learn.command_line import main
    with FileLock(finished[0]/'.lock'):
        assert main([*QUICK, '--out', str(finished[0])]) == 2
    assert 'Another run is at work' in capsys.readouterr().err

def test_a_second_plan_on_the_same_test_set_is_told(finished, command):
    done = command(*QUICK, '--epochs', '2', '--out', finished[0].parent/'second')
    assert done.returncode == 0, done.stderr
    assert f'had been opened before: {finished[0].name}' in done.stdout
    assert finished[0].name in (finished[0].parent/'second/report.html').read_text(encoding='utf-8')

def test_changed_weights_are_another_run(tmp_path):
    from safetensors.torch import load_file, save_file
    from cxr_learn.sweep import Run
    from cxr_learn.transfer import SHIPPED_FILE
    tensors = load_file(SHIPPED_FILE)
    file = tmp_path/'my.safetensors'
    names = []
    for shift in (0, 1):
        save_file({name: tensor + shift for name, tensor in tensors.items()}, file)
        names.append(Run(weights=str(file)).folder_name())
    assert names[0] != names[1]

def make_folder(path, classes=('ill', 'well'), patients=12, size=40, seed=0):
    rng = np.random.default_rng(seed)
    for label in classes:
        (path/label).mkdir(parents=True)
        for patient in range(patients):
            Image.fromarray(rng.integers(0, 255, (size, size), dtype=np.uint8)).save(path/label/f'{label}{patient}.png')
    return path

@pytest.mark.parametrize('spoil, options, words', [
    (None, ['--data', 'kermani'], "did you mean 'kermany'"),
    (None, ['--data', 'kermany', '--path', 'absent'], 'no folder absent'),
    ('empty', [], 'no images'),
    ('one patient', [], 'rare has 1 patient'),
    ('copies of others', [], 'rare has 1 patient'),
    ('unreadable', [], 'broken.png cannot be read'),
    ('splits', [], 'which are splits'),
    ('not a table', ['--data', 'phantom'], 'cannot be read as a table'),
    (None, ['--seed', '-1'], 'seed = -1'),
    (None, ['--data', 'kermany', '--path', 'data'], "Kermany's layout"),
    (None, ['--data', 'phantom', '--path', 'data'], 'cohort.csv'),
    ('no column', ['--data', 'phantom'], 'lacks the column'),
    ('no label', ['--data', 'phantom'], 'no label'),
    (None, ['--image-size', '0'], 'image_size = 0'),
    (None, ['--frozen-blocks', '7'], 'k is 0 (nothing frozen) to 4'),
    (None, ['--weights', 'imagnet'], 'Unknown weights'),
    (None, ['--epochs', '0'], 'epochs = 0'),
    (None, ['--limit', '0'], 'limit = 0'),
])
def test_bad_input_gets_one_line_and_exit_code_2(spoil, options, words, tmp_path, monkeypatch, capsys):
    from cxr_learn.command_line import main
    monkeypatch.chdir(tmp_path)
    if spoil == 'empty': (tmp_path/'data/ill').mkdir(parents=True)
    elif spoil in ("no column", "no label"):
        (tmp_path/'data').mkdir()
        table = pd.DataFrame({'image_id': ['a', 'b'], 'patient_id': ['P1', 'P2'], 'label': ['normal', None]})
        table.drop(columns='patient_id' if spoil == 'no column' else []).to_csv(tmp_path/'data/cohort.csv', index=False)
    elif spoil == 'not a table':
        (tmp_path/'data').mkdir()
        (tmp_path/'data/cohort.csv').write_text('')
    elif spoil == 'splits': make_folder(tmp_path/'data', ['train', 'test'])
    else: make_folder(tmp_path/'data')
    if spoil == 'one patient': make_folder(tmp_path/'data', ['rare'], patients=1, seed=1)
    if spoil == 'copies of others': make_folder(tmp_path/'data', ['rare'], patients=1)
    if spoil == 'unreadable': (tmp_path/'data/ill/broken.png').write_text('no image')
    code = main(['demo', '--tiny', '--out', 'out', *(['--data', 'folder'] if '--data' not in options else []),
                 *(['--path', 'data'] if '--path' not in options and 'kermani' not in options else []), *options])
    message = capsys.readouterr().err.strip()
    assert code == 2 and words in message and '\n' not in message, message
    assert not list(tmp_path.rglob('*partial*')) and not (tmp_path/'out/report.html').exists()

@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_permission(tmp_path, capsys):
    from cxr_learn.command_line import main
    closed = tmp_path/'closed'; closed.mkdir(); closed.chmod(stat.S_IREAD | stat.S_IEXEC)
    assert main(['demo', '--tiny', '--out', str(closed/'out')]) == 2
    assert '--out' in capsys.readouterr().err

def test_a_place_where_no_folder_can_be(tmp_path, capsys):
    from cxr_learn.command_line import main
    (tmp_path/'file').write_text('in the way')
    assert main(['demo', '--tiny', '--out', str(tmp_path/'file/out')]) == 2
    message = capsys.readouterr().err.strip()
    assert 'Not a directory' in message and 'check the path' in message and '\n' not in message

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # as on a full disk: files stop growing
from cxr_learn.command_line import main
sys.exit(main())
"""

def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    "The store still fits, the first weights do not"
    done = subprocess.run([sys.executable, '-c', LIMITED, *QUICK, '--out', tmp_path/'out'], capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith('cxr_learn:')]
    assert done.returncode == 2 and len(lines) == 1 and 'Traceback' not in done.stderr, done.stderr
    assert 'safetensors' in lines[0]
    left = [path.name for path in (tmp_path/'out').rglob('*') if path.is_file()]
    assert not any('partial' in name or name in ('best.safetensors', 'record.json', 'results.csv') for name in left), left

def test_an_unknown_option_names_itself(command):
    done = command('demo', '--limt', '5')
    assert done.returncode == 2 and '--limt' in done.stderr and 'Traceback' not in done.stderr

def test_another_plan_in_the_same_folder_is_refused(finished, capsys):
    from cxr_learn.command_line import main
    assert main(['demo', '--tiny', '--frozen-blocks', '3', '--out', str(finished[0])]) == 2
    assert 'another folder' in capsys.readouterr().err

def test_a_leaky_run_says_so_wherever_it_is_read(tmp_path, capsys):
    from cxr_learn.command_line import main
    out = tmp_path/'out'
    with pytest.warns(UserWarning, match='leaky'):
        assert main(['demo', '--tiny', '--leaky', '--image-size', '32', '--frozen-blocks', '4', '--out', str(out)]) == 0
    assert 'leaky' in capsys.readouterr().out and 'leaky' in (out/'report.html').read_text()
    assert json.loads((out/'run.json').read_text())['split_rule'] == 'by image (leaky)'
