"""The cached prefix: the same training, found again, bounded, and never a crash"""
import errno
import random
import warnings

import numpy as np
import pytest
import torch

import cxr_learn.prefix as prefix
from cxr_learn.batches import make_dls
from cxr_learn.cohorts import load_phantom, split_by_patient
from cxr_learn.freezing import KeepFrozen, freeze_blocks, frozen_blocks_of
from cxr_learn.phantom import DEMO_FINDINGS, save_phantoms
from cxr_learn.prefix import PrefixCache, cached_prefix
from cxr_learn.store import build_store
from cxr_learn.training import make_learner, predict, train
from cxr_learn.checkpoints import seed_everything
from cxr_learn.transfer import transfer_net

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prefix')
    cohort = split_by_patient(load_phantom(save_phantoms(folder/'phantom', patients=40, findings=DEMO_FINDINGS, image_size=32)))
    return cohort, build_store(cohort, folder/'store', image_size=32)

def learner(data, k=3, augment=False, seed=0, batch_norm='eval'):
    seed_everything(seed)
    cohort, store = data
    dls = make_dls(cohort, store, batch_size=16, augment=augment)
    return make_learner(dls, freeze_blocks(transfer_net(classes=4), k)).add_cb(KeepFrozen(batch_norm))

def ending(learn):
    return {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}

def same(one, two): return all(tensor.equal(two[name]) for name, tensor in one.items())

def losses(record): return [(row['train_loss'], row['valid_loss']) for row in record['history']]

@pytest.mark.parametrize('k', [1, 3, 4])
def test_without_augmentation_it_is_the_same_training_bit_for_bit(data, tmp_path, k):
    plain, cached = learner(data, k), learner(data, k)
    one = train(plain, tmp_path/'plain', epochs=2, progress=False)
    with cached_prefix(cached) as facts: two = train(cached, tmp_path/'cached', epochs=2, progress=False)
    assert facts['place'] == 'memory' and facts['computed'] == len(data[0].query("split != 'test'"))
    assert losses(one) == losses(two) and same(ending(plain), ending(cached))
    assert predict(plain, data[0]).equals(predict(cached, data[0]))
