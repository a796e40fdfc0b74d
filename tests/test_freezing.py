"""Frozen is frozen: weights, statistics and decay; what backward keeps"""
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cxr_learn.batches import make_dls
from cxr_learn.checkpoints import seed_everything
from cxr_learn.cnn import BlockNet, custom_cnn, make_head
from cxr_learn.cohorts import load_phantom, split_by_patient
from cxr_learn.freezing import (KeepFrozen, freeze_blocks, frozen_batch_norms, frozen_blocks_of, kept_for_backward,
                                statistics_drift)
from cxr_learn.optimisation import OPTIMISERS
from cxr_learn.phantom import DEMO_FINDINGS, save_phantoms
from cxr_learn.speed import PLAIN
from cxr_learn.store import build_store
from cxr_learn.training import make_learner
from cxr_learn.transfer import transfer_net

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('freezing')
    cohort = split_by_patient(load_phantom(save_phantoms(folder/'phantom', patients=24, findings=DEMO_FINDINGS, image_size=32)))
    return cohort, build_store(cohort, folder/'store', image_size=32)

def fitted(data, network, mode='eval', **options):
    seed_everything(0)
    learn = make_learner(make_dls(*data, batch_size=16), network, speed=PLAIN, weight_decay=.5, **options)
    learn.add_cb(KeepFrozen(mode))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn

def state(model): return {name: tensor.clone() for name, tensor in model.state_dict().items()}

def moved(before, model): return {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}

@pytest.mark.parametrize('optimiser', OPTIMISERS)
def test_no_tensor_of_a_frozen_block_moves_whatever_the_optimiser(data, optimiser):
    network = freeze_blocks(custom_cnn(4), 3)
    before = state(network)
    fitted(data, network, optimiser=optimiser)
    changed = moved(before, network)
    assert changed and not any(name.startswith(('blocks.0.', 'blocks.1.', 'blocks.2.')) for name in changed)
    assert {name for name in before if name.startswith(('blocks.3.', 'blocks.4.', 'head.'))} == changed

def test_in_training_mode_only_the_statistics_of_frozen_blocks_move(data):
    network = freeze_blocks(custom_cnn(4), 5)
    before = state(network)
    fitted(data, network, 'train')
    endings = {name.split('.')[-1] for name in moved(before, network) if name.startswith('blocks.')}
    assert endings == {'running_mean', 'running_var', 'num_batches_tracked'}

class Modes(Callback):
    "The modes of all layers as the first batch passes"
    def before_batch(self):
        if self.training and not vars(self).get('found'):
            self.found = {name: module.training for name, module in self.model.named_modules()}

def with_dropout(classes):
    def block(channels): return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.Dropout(.5), nn.BatchNorm2d(8, affine=False))
    return BlockNet([block(3), block(8), block(8)], make_head(8, classes, standardise=True))

@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_layers_are_held_one_by_one(data, mode):
    network = freeze_blocks(with_dropout(4), 1)
    for layer in (network.blocks[1][0], network.blocks[1][1]): layer.requires_grad_(False)  # frozen but for nothing
    network.blocks[2][1].requires_grad_(False)  # frozen in part
    seed_everything(0)
    learn = make_learner(make_dls(*data, batch_size=16), network, speed=PLAIN)
    look = Modes()
    learn.add_cbs([KeepFrozen(mode), look])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    trains = mode == 'train'
    for block in (0, 1): assert [look.found[f'blocks.{block}.{layer}'] for layer in range(4)] == [False, trains, False, trains]
    assert [look.found[f'blocks.2.{layer}'] for layer in range(4)] == [True, trains, True, True]
    assert all(look.found[name] for name, layer in network.named_modules() if name.startswith('head') and isinstance(layer, _BatchNorm))
    assert frozen_blocks_of(network) == 2 and len(frozen_batch_norms(network)) == 5

def test_k_is_read_off_the_network():
    for network in (transfer_net(classes=3), custom_cnn(2)):
        for k in range(len(network.blocks) + 1): assert frozen_blocks_of(freeze_blocks(network, k)) == k
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match=rf'frozen_blocks = {wrong}: the network has 5 blocks'): freeze_blocks(custom_cnn(2), wrong)
    with pytest.raises(ValueError, match="batch_norm = 'evaluation': use eval or train"): KeepFrozen('evaluation')

def test_a_frozen_block_treats_a_batch_of_one_as_any_other():
    network = freeze_blocks(custom_cnn(2), 5).train()
    learn_mode = KeepFrozen()
    learn_mode.learn = type('Learner', (), dict(model=network))()
    learn_mode.before_train()
    images = torch.rand(6, 3, 32, 32)
    assert torch.allclose(network.blocks(images)[:1], network.blocks(images[:1]), atol=1e-6)

def test_statistics_drift_is_in_standard_deviations():
    before, after = custom_cnn(2), custom_cnn(2)
    layer = after.blocks[1][1]
    layer.running_mean += 3.
    layer.running_var *= 4.
    drift = statistics_drift(before, after)
    assert drift['mean_moved'].round(3).tolist() == [0, 3, 0, 0, 0]
    assert drift['variance_ratio'].round(2).tolist() == [1, 4, 1, 1, 1]

def test_what_backward_keeps_is_counted_by_hand():
    def block(channels): return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU())
    network = BlockNet([block(3), block(4)], make_head(4, 2))
    images = torch.rand(3, 1, 10, 10)
    def bytes_of(channels, side=10): return channels * side * side * 4
    kept = kept_for_backward(network, images)
    assert kept['block 1'] == bytes_of(3) + bytes_of(4) and kept['block 2'] == bytes_of(4)  # a ReLU keeps its result, a convolution its input
    assert kept_for_backward(freeze_blocks(network, 1), images).tolist()[:2] == [0, bytes_of(4) + bytes_of(4)]
    assert kept_for_backward(freeze_blocks(network, 2), images).tolist()[:2] == [0, 0]
    assert not any(part._forward_pre_hooks for part in network.modules())
