"""Features: equal to what the head pools, kept in a file that knows what it is of, resumed after a kill, bad input named"""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cxr_learn import features
from cxr_learn.cnn import BlockNet, custom_cnn
from cxr_learn.cohorts import CohortError, split_by_patient
from cxr_learn.explanation import phantom_cohort
from cxr_learn.features import FeatureFileError, extract_features, feature_matrix, feature_table, read_features
from cxr_learn.phantom import make_phantoms
from cxr_learn.speed import Speed, set_speed
from cxr_learn.transfer import transfer_net

SIDE = 64

def study(patients=20, seed=0, **knobs):
    cohort, store = phantom_cohort(make_phantoms(patients, ('normal', 'mass'), (1, 2), SIDE, seed, **knobs))
    return split_by_patient(cohort, valid=.2, test=.3), store

@pytest.fixture(scope='module')
def cohort_and_store(): return study()

@pytest.fixture
def network():
    torch.manual_seed(0)
    return custom_cnn(2)

@pytest.mark.parametrize('make', [lambda: custom_cnn(3), lambda: transfer_net(classes=3), lambda: transfer_net('densenet121', 'none', 3)])
def test_the_head_answers_the_same_on_features(make, cohort_and_store):
    cohort, store = cohort_and_store
    torch.manual_seed(0)
    model = make()
    values = torch.from_numpy(feature_matrix(extract_features(model, cohort, store, batch_size=7)))
    with torch.no_grad(): logits = model.eval()(store.pixels.unsqueeze(1) / 255)
    torch.testing.assert_close(model.head(values[:, :, None, None]), logits, atol=1e-5, rtol=1e-5)

def test_the_network_is_left_as_it_was(cohort_and_store, network):
    cohort, store = cohort_and_store
    network.train()
    network.blocks[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    extract_features(network, cohort, store, block=3)
    assert network.training and network.blocks[0].training and not network.blocks[1].training and len(network.blocks) == 5
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())

def test_every_depth_has_its_width(cohort_and_store, network):
    cohort, store = cohort_and_store
    widths = [feature_matrix(extract_features(network, cohort, store, block=block)).shape[1] for block in range(1, 6)]
    assert widths == [32, 64, 128, 256, 512]

def test_a_learner_and_other_batches_give_the_same(cohort_and_store, network):
    cohort, store = cohort_and_store
    class Learner: model = network
    one, other = extract_features(network, cohort, store), extract_features(Learner(), cohort, store, batch_size=3)
    np.testing.assert_allclose(feature_matrix(one), feature_matrix(other), atol=1e-5)

def test_columns_stay_with_their_image(cohort_and_store, network):
    cohort, store = cohort_and_store
    table = extract_features(network, cohort, store)
    assert list(table.columns[:5]) == ['image', 'patient_id', 'label', 'split', 'feature_0000']
    assert table[['image', 'patient_id', 'label', 'split']].equals(cohort[['image', 'patient_id', 'label', 'split']])
    assert feature_matrix(table).dtype == np.float32
    rows = [5, 2, 9]
    part = extract_features(network, cohort.iloc[rows], store.take(rows))
    assert part['image'].tolist() == cohort['image'].iloc[rows].tolist()
    np.testing.assert_allclose(feature_matrix(part), feature_matrix(table)[rows], atol=1e-5)

def test_findings_have_their_columns(network, tmp_path):
    cohort, store = phantom_cohort(make_phantoms(30, ('normal', 'mass', 'effusion'), (1, 1), SIDE, findings_per_patient=2))
    table = extract_features(network, cohort, store, tmp_path/'two.parquet')  # and without a split
    assert {'label_mass', 'label_effusion'} <= set(table) and table['split'].isna().all()
    pd.testing.assert_frame_equal(table, read_features(tmp_path/'two.parquet'))

def test_a_file_is_computed_once(cohort_and_store, network, tmp_path, monkeypatch):
    cohort, store = cohort_and_store
    file = tmp_path/'deeper'/'f.parquet'
    first = extract_features(network, cohort, store, file)
    pd.testing.assert_frame_equal(first, extract_features(network, cohort, store))
    monkeypatch.setattr(features, '_pooled', None)  # computing would fail
    again = extract_features(network, cohort, store, file)
    pd.testing.assert_frame_equal(first, again)
    assert again.attrs['key'] == first.attrs['key'] and not list(tmp_path.rglob('*.parts'))
    assert pd.read_parquet(file).shape == first.shape  # anybody can read it

def others(cohort, store, network):
    "Calls that ask for something else than the file holds, each with the word for it"
    changed = custom_cnn(2)
    yield 'weights', (changed, cohort, store), {}
    yield 'block', (network, cohort, store), dict(block=2)
    yield 'cohort', (network, cohort.assign(label=cohort['label'].iloc[::-1].tolist()), store), {}
    yield 'cohort', (network, cohort.assign(split='train'), store), {}
    yield 'films', (network, cohort, store._replace(pixels=store.pixels.flip(2))), {}
    yield 'images', (network, cohort[:-1], store.take(range(len(cohort) - 1))), {}

def test_a_file_of_something_else_is_refused(cohort_and_store, network, tmp_path):
    cohort, store = cohort_and_store
    file = tmp_path/'f.parquet'
    extract_features(network, cohort, store, file)
    before = file.read_bytes()
    for word, arguments, options in others(cohort, store, network):
        with pytest.raises(ValueError, match=rf'{word} = .*name another file, or delete this one'):
            extract_features(*arguments, file, **options)
    network.mean += .5
    with pytest.raises(ValueError, match='weights'): extract_features(network, cohort, store, file)
    network.mean -= .5
    with pytest.raises(ValueError, match='numbers = float32, now bfloat16'):
        extract_features(set_speed(network, Speed(bf16=True)), cohort, store, file)
    assert file.read_bytes() == before

def test_a_stopped_extraction_goes_on(cohort_and_store, network, tmp_path, monkeypatch):
    cohort, store = cohort_and_store
    monkeypatch.setattr(features, 'ROWS_AT_ONCE', 8)
    whole, computed, pooled = extract_features(network, cohort, store), [], features._pooled
    def stopping(model, depth, pixels, batch_size):
        computed.append(len(pixels))
        if len(computed) == 3: raise KeyboardInterrupt
        return pooled(model, depth, pixels, batch_size)
    monkeypatch.setattr(features, '_pooled', stopping)
    file = tmp_path/'f.parquet'
    with pytest.raises(KeyboardInterrupt): extract_features(network, cohort, store, file)
    assert not file.exists() and len(list((tmp_path/'f.parquet.parts').glob('*.parquet'))) == 2
    with pytest.raises(ValueError, match='block = 5, now 1'): extract_features(network, cohort, store, file, block=1)
    first = next((tmp_path/'f.parquet.parts').glob('*.parquet'))
    first.write_bytes(first.read_bytes()[:-100])  # one part was damaged meanwhile: it is computed anew
    table = extract_features(network, cohort, store, file)
    pd.testing.assert_frame_equal(table, whole)
    assert sum(computed[3:]) == len(cohort) - 8 and not (tmp_path/'f.parquet.parts').exists()

KILLED = """
import sys, time, torch
from cxr_learn import features
from test_features import custom_cnn, study
features.ROWS_AT_ONCE, pooled = 4, features._pooled
def slow(*arguments):
    time.sleep(.2)
    return pooled(*arguments)
features._pooled = slow
torch.manual_seed(0)
features.extract_features(custom_cnn(2), *study(), sys.argv[1])
"""

def test_a_killed_extraction_goes_on(cohort_and_store, network, tmp_path, root, monkeypatch):
    file, parts = tmp_path/'f.parquet', tmp_path/'f.parquet.parts'
    paths = os.pathsep.join([str(root), str(root/'tests')])
    process = subprocess.Popen([sys.executable, '-c', KILLED, str(file)], env={**os.environ, 'PYTHONPATH': paths})
    deadline = time.monotonic() + 120
    while len(list(parts.glob('0*.parquet'))) < 2 and time.monotonic() < deadline: time.sleep(.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not file.exists()
    monkeypatch.setattr(features, 'ROWS_AT_ONCE', 4)
    kept = {part.name: part.stat().st_mtime_ns for part in parts.glob('0*.parquet')}
    made, write = [], features._write
    monkeypatch.setattr(features, '_write', lambda table, file, facts: (made.append(file.name), write(table, file, facts)))
    table = extract_features(network, *cohort_and_store, file)
    assert len(kept) >= 2 and not set(kept) & set(made)
    pd.testing.assert_frame_equal(table, extract_features(network, *cohort_and_store))

def test_damaged_files_are_named(cohort_and_store, network, tmp_path):
    file = tmp_path/'f.parquet'
    extract_features(network, *cohort_and_store, file)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (b'', whole[:100], whole[:-9], b'image,label\n', bytes(flipped)):
        file.write_bytes(damaged)
        for call in (lambda: read_features(file), lambda: extract_features(network, *cohort_and_store, file)):
            with pytest.raises(FeatureFileError, match='f.parquet is damaged'): call()
    assert file.read_bytes() == bytes(flipped)
    pq.write_table(pa.table({'a': [1]}), file)
    with pytest.raises(FeatureFileError, match='f.parquet is a Parquet file without features'): read_features(file)
    with pytest.raises(FeatureFileError, match='There is no file'): read_features(tmp_path/'none.parquet')
    with pytest.raises(FeatureFileError, match=str(tmp_path)): read_features(tmp_path)

def test_bad_input_is_named(cohort_and_store, network, tmp_path):
    cohort, store = cohort_and_store
    for block in (0, -1, 6, 2.5):
        with pytest.raises(ValueError, match=f'block = {block}: the network has 5 blocks'):
            extract_features(network, cohort, store, block=block)
    with pytest.raises(ValueError, match='Linear is no BlockNet'): extract_features(torch.nn.Linear(2, 2), cohort, store)
    with pytest.raises(ValueError, match='batch_size = 0'): extract_features(network, cohort, store, batch_size=0)
    with pytest.raises(ValueError, match='.parquet'): extract_features(network, cohort, store, tmp_path/'f.csv')
    with pytest.raises(CohortError, match='build the store'): extract_features(network, cohort[::-1], store)
    with pytest.raises(ValueError, match='no columns feature_'): feature_matrix(cohort)
    with torch.no_grad(): network.blocks[0][0].weight[0] = torch.nan
    with pytest.raises(ValueError, match='P0000_1 are not all finite'): extract_features(network, cohort, store)

def test_other_numbers_fill_the_same_table(cohort_and_store):
    cohort, store = cohort_and_store
    pixels = store.pixels.flatten(1).numpy() / 255
    table = feature_table(cohort, pixels)
    np.testing.assert_array_equal(feature_matrix(table), pixels.astype(np.float32))

def test_a_body_without_parameters_in_its_first_block(cohort_and_store):
    cohort, store = cohort_and_store
    net = BlockNet([torch.nn.AvgPool2d(2), torch.nn.Conv2d(3, 4, 3)], torch.nn.Flatten())
    means = feature_matrix(extract_features(net, cohort, store, block=1))
    np.testing.assert_allclose(means, store.pixels.float().mean((1, 2))[:, None].expand(-1, 3) / 255, atol=1e-5)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA card')
def test_a_card_gives_the_same(cohort_and_store, network):
    here = feature_matrix(extract_features(network, *cohort_and_store))
    there = feature_matrix(extract_features(network.cuda(), *cohort_and_store))
    np.testing.assert_allclose(here, there, atol=1e-3)
