"""Weights of one's own: a killed pretraining ends as if it had not been, and a file says where it comes from"""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cxr_learn.checkpoints import weights_fingerprint
from cxr_learn.cohorts import CohortError, load_phantom, split_by_patient
from cxr_learn.networks import ARCHITECTURES
from cxr_learn.phantom import save_phantoms
from cxr_learn.pretraining import (
    PictureError, Recipe, body_state, draw_pictures, image_side, load_tiny_imagenet, pretrain, read_provenance, save_body,
)
from cxr_learn.store import build_store
from cxr_learn.transfer import IN_DOMAIN_FILE, SHIPPED_FILE, body_weights, transfer_net
from cxr_learn.worth import plot_worth, pretrain_in_domain

SMALL = Recipe(epochs=3, batch_size=16, lr=.02, sides=(24, 32))
FACTS = dict(made_by='a test', trained_on='drawn shapes', collections='drawn_shapes', licence='CC0', images_seen=0, recipe={'epochs': 3},
             seed=0, data={'sha256': 'none'}, validation={'top1': .5}, versions={'torch': torch.__version__})
TRAINING = """
import sys, torch
torch.set_num_threads(1)
from cxr_learn.pretraining import Recipe, draw_pictures, pretrain
pretrain(draw_pictures(12), draw_pictures(4, seed=1), sys.argv[1], Recipe(epochs=3, batch_size=16, lr=.02, sides=(24, 32)), progress=False)
"""

def start(folder):
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', TRAINING, folder], env={**os.environ, 'OMP_NUM_THREADS': '1'})

def test_a_killed_pretraining_ends_as_if_it_had_not_been(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: pretrain(draw_pictures(12), draw_pictures(4, seed=1), tmp_path/'whole', SMALL, progress=False)
    finally: torch.set_num_threads(threads)
    victim = start(tmp_path/'killed')
    while not (tmp_path/'killed/log.jsonl').exists() and victim.poll() is None: time.sleep(.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, 'it ended before it could be killed'
    assert start(tmp_path/'killed').wait() == 0
    whole, killed = (load_file(tmp_path/name/'last.safetensors') for name in ('whole', 'killed'))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    log = pd.read_json(tmp_path/'killed/log.jsonl', lines=True)
    assert log['epoch'].tolist() == [1, 2, 3] and log['side'].tolist() == [24, 32, 32]

def test_sides_grow_from_the_first_to_the_last():
    for epochs in (1, 2, 5, 12):
        sides = [image_side(epoch, Recipe(epochs=epochs)) for epoch in range(epochs)]
        assert sides == sorted(sides) and sides[-1] == 64 and (epochs == 1 or sides[0] == 40)

def test_fewer_pictures_than_a_batch(tmp_path):
    one_epoch = Recipe(epochs=1, sides=(24, 24))
    _, facts = pretrain(draw_pictures(2), draw_pictures(1), tmp_path, one_epoch, progress=False)
    assert facts['images_seen'] == 12 and facts['recipe']['batch_size'] == 12

@pytest.mark.parametrize('architecture', ['resnet18', 'resnet34', 'densenet121'])
def test_a_body_comes_back_by_its_path(tmp_path, architecture):
    model = transfer_net(architecture, 'none', 3)
    save_body(model, tmp_path/'body.safetensors', FACTS, architecture)
    again = body_weights(architecture, str(tmp_path/'body.safetensors'))
    before = body_state(model, architecture)
    assert again.keys() == before.keys()
    assert all(torch.allclose(again[name], before[name].to(again[name].dtype), rtol=1e-3, atol=1e-4) for name in again)
    assert transfer_net(architecture, str(tmp_path/'body.safetensors'), 5) is not None
    head = ARCHITECTURES[architecture].head
    assert not any(name.startswith(f'{head}.') for name in load_file(tmp_path/'body.safetensors'))

def test_the_header_and_the_card_say_the_same(tmp_path):
    card = save_body(transfer_net('resnet18', 'none', 3), tmp_path/'body.safetensors', FACTS)
    assert json.loads((tmp_path/'body.json').read_text()) == json.loads(json.dumps(card))
    header = read_provenance(tmp_path/'body.safetensors')
    assert {**header, 'sha256': card['sha256']} == json.loads(json.dumps(card))

@pytest.mark.parametrize('file', [SHIPPED_FILE, IN_DOMAIN_FILE])
def test_the_weights_in_the_package_are_those_of_their_cards(file):
    card = json.loads(file.with_suffix('.json').read_text())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card['sha256']
    assert len(body_weights('resnet18', str(file))) == 120

def test_the_in_domain_weights_say_what_they_were_trained_on():
    header, card = read_provenance(IN_DOMAIN_FILE), json.loads(IN_DOMAIN_FILE.with_suffix('.json').read_text())
    assert header == {key: card[key] for key in header}
    assert 'NIH' in header['trained_on'] and 'Wang' in header['licence'] and 'Tiny-ImageNet' in header['licence']

@pytest.mark.parametrize('key', ['made_by', 'licence', 'data', 'recipe'])
def test_no_provenance_no_file(tmp_path, key):
    with pytest.raises(ValueError, match=key):
        save_body(transfer_net('resnet18', 'none', 3), tmp_path/'body.safetensors', {**FACTS, key: ''})
    assert list(tmp_path.iterdir()) == []

def test_a_class_only_for_validation_is_refused(tmp_path):
    from PIL import Image
    for place in ('train/a/1.png', 'val/b/1.png'):
        (tmp_path/place).parent.mkdir(parents=True)
        Image.new('L', (70, 50)).save(tmp_path/place)
    with pytest.raises(PictureError, match='b: pictures for validation'): load_tiny_imagenet(tmp_path)
    (tmp_path/'val/b').rename(tmp_path/'val/a')
    train, valid = load_tiny_imagenet(tmp_path)  # grey and of another size: made to fit
    assert train.pixels.shape == valid.pixels.shape == (1, 64, 64, 3)

@pytest.fixture(scope='module')
def radiographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('radiographs')
    several = split_by_patient(load_phantom(save_phantoms(folder/'phantom', patients=40, image_size=32, findings_per_patient=2,
                                                          findings=('normal', 'effusion', 'cardiomegaly'))))
    return several, build_store(several, folder/'store', image_size=32)

def test_pretraining_in_domain_does_not_look_at_the_test_part(radiographs, tmp_path):
    several, store = radiographs
    fingerprints = []
    for number in range(2):
        cohort, pixels = several.copy(), store.pixels.clone()
        if number:
            pixels[(cohort['split'] == 'test').to_numpy()] = 0
            findings = [column for column in cohort if column.startswith('label_')]
            cohort.loc[cohort['split'] == 'test', findings] = 1
        learn, facts = pretrain_in_domain(cohort, store._replace(pixels=pixels), tmp_path/str(number), 'none', epochs=1,
                                          batch_size=8, progress=False)
        fingerprints.append(weights_fingerprint(learn.model))
    assert fingerprints[0] == fingerprints[1]
    assert facts['training_images'] == (several['split'] == 'train').sum()
    assert save_body(learn.model, tmp_path/'body.safetensors', {**FACTS, **facts})['began_from'] == 'none'

def test_one_label_per_image_is_refused(radiographs, tmp_path):
    several, store = radiographs
    one = several.drop(columns=[column for column in several if column.startswith('label_')])
    with pytest.raises(CohortError, match='one label per image'): pretrain_in_domain(one, store, tmp_path)

def test_a_point_without_an_interval_is_drawn():
    rows = pd.DataFrame([dict(network='resnet18', weights='none', images=50, seed=0, value=.7, low=None, high=None)])
    figure = plot_worth(rows.astype({'low': float, 'high': float}))
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == 'none'
