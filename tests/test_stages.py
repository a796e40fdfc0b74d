"""Stages: a kill in the second ends like no kill, only unlocked layers move, frozen batch-norm stays, in blocks frozen in part too"""
from contextlib import nullcontext

import pytest
import torch
from fastai.callback.core import Callback

from cxr_learn.batches import make_dls
from cxr_learn.checkpoints import seed_everything
from cxr_learn.cnn import BlockNet, conv_block, make_head
from cxr_learn.cohorts import load_phantom, split_by_patient
from cxr_learn.phantom import save_phantoms
from cxr_learn.prefix import PrefixCache
from cxr_learn.stages import RECIPES, Stage, set_trainable, train_in_stages, unlock_last_layers, weight_layers
from cxr_learn.store import build_store
from cxr_learn.training import make_learner
from cxr_learn.transfer import transfer_net

STAGES = (Stage('head', epochs=2, lr=1e-2), Stage('last 3 layers', epochs=2, lr=1e-3, optimiser='sgd', weight_decay=.01))

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stages')
    cohort = split_by_patient(load_phantom(save_phantoms(
        folder/'phantom', patients=30, findings=('normal', 'cardiomegaly'), image_size=32)))
    return cohort, build_store(cohort, folder/'store', image_size=32)

def new_learner(data, seed=0, augment=True):
    seed_everything(seed)
    head = make_head(16, 2)
    head.insert(2, torch.nn.Dropout(.2))
    net = BlockNet([conv_block(3, 4, 3), conv_block(4, 8, 3), conv_block(8, 16, 3)], head)
    return make_learner(make_dls(*data, batch_size=8, augment=augment), net)

def tensors(learn): return {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}

class KillAt(Callback):
    "After so many batches of training, as if the power went"
    order = 70
    def __init__(self, batches): self.left = batches
    def after_batch(self):
        if not self.training: return
        self.left -= 1
        if self.left < 0: raise KeyboardInterrupt

def test_a_kill_anywhere_ends_like_none(data, tmp_path):
    whole = new_learner(data)
    record = train_in_stages(whole, tmp_path/'whole', STAGES, progress=False)
    batches = len(whole.dls.train)
    for number, moment in enumerate((1, 2 * batches, 2 * batches + 1, 3 * batches + 2)):
        folder = tmp_path/f'killed{number}'
        with pytest.raises(KeyboardInterrupt): train_in_stages(new_learner(data).add_cb(KillAt(moment)), folder, STAGES, progress=False)
        assert (folder/'stage2').exists() == (moment >= 2 * batches)
        torch.rand(number)  # whatever chance happened in between
        resumed = new_learner(data)
        again = train_in_stages(resumed, folder, STAGES, progress=False)
        assert all(tensor.equal(tensors(resumed)[name]) for name, tensor in tensors(whole).items())
        for one, other in zip(record['records'], again['records']):
            assert [row['valid_loss'] for row in one['history']] == [row['valid_loss'] for row in other['history']]

def test_only_what_a_stage_unlocks_moves(data, tmp_path):
    learn = new_learner(data)
    before = tensors(learn)
    train_in_stages(learn, tmp_path, STAGES[:1], progress=False)
    after_head = tensors(learn)
    assert {name for name in before if not before[name].equal(after_head[name])} == {'head.3.weight', 'head.3.bias'}
    train_in_stages(learn := new_learner(data), tmp_path, STAGES, progress=False)  # goes on with stage 2
    moved = {name for name, tensor in tensors(learn).items() if not tensor.equal(after_head[name])}
    body = {name for name in moved if name.startswith('blocks')}
    # the last 3 layers: batch-norm of block 2, convolution and batch-norm of block 3, with their statistics
    assert body <= {name for name in before if name.startswith(('blocks.1.1', 'blocks.2'))} and 'blocks.1.1.weight' in body
    assert 'blocks.1.1.running_mean' in body and 'blocks.2.0.weight' in body

def test_a_stage_begins_with_the_best_weights_before_it(data, tmp_path):
    first = Stage('all', epochs=4, lr=.05, optimiser='sgd')
    learn = new_learner(data)
    train_in_stages(learn, tmp_path, [first], progress=False)
    kept = tensors(learn)
    still = new_learner(data)
    train_in_stages(still, tmp_path, [first, Stage('head', epochs=1, lr=0.)], progress=False)
    assert all(tensor.equal(kept[name]) for name, tensor in tensors(still).items())

def test_the_seed_counts_and_another_recipe_is_refused(data, tmp_path):
    histories = [train_in_stages(new_learner(data), tmp_path/str(seed), STAGES, seed=seed, progress=False)['records'][0]['history']
                 for seed in (0, 1)]
    assert histories[0][0]['train_loss'] != histories[1][0]['train_loss']
    with pytest.raises(ValueError, match='another training'):
        train_in_stages(new_learner(data), tmp_path/'0', [STAGES[0]._replace(lr=.5)], progress=False)

@pytest.mark.parametrize('changed', [dict(seed=1), dict(cache=PrefixCache()), dict(stages=[STAGES[0]._replace(batch_norm='train')])])
def test_what_changes_the_training_is_refused_where_another_is_finished(changed, data, tmp_path):
    given = dict(stages=STAGES[:1], progress=False)
    first = train_in_stages(new_learner(data), tmp_path, **given)
    assert train_in_stages(new_learner(data), tmp_path, **given)['records'] == first['records']
    with pytest.raises(ValueError, match='another training'): train_in_stages(new_learner(data), tmp_path, **{**given, **changed})

def test_other_passes_are_another_training(data, tmp_path):
    for passes in (1, 2, 2):
        refused = pytest.raises(ValueError, match='another training') if passes == 2 else nullcontext()
        with refused: train_in_stages(new_learner(data), tmp_path, STAGES[:1], cache=PrefixCache(), passes=passes, progress=False)

@pytest.mark.parametrize('changed', [dict(optimiser='adamm'), dict(schedule='one-cycle'), dict(batch_norm='evil')])
def test_a_mistake_in_the_last_stage_is_refused_before_the_first_is_trained(changed, data, tmp_path):
    with pytest.raises(ValueError, match=next(iter(changed.values()))):
        train_in_stages(new_learner(data), tmp_path/'x', [STAGES[0], STAGES[1]._replace(**changed)], progress=False)
    assert not (tmp_path/'x').exists()

@pytest.mark.parametrize('areas, best', [((None, .7, .9), 3), ((.8, None, .6), 1), ((.5, .5, None), 1)])
def test_a_stage_without_a_value_is_not_the_best(areas, best, data, tmp_path, monkeypatch):
    answers = iter(areas)
    def trained(*given, **options): return dict(best_epoch=1, history=[dict(epoch=1, valid_macro_auc=next(answers))])
    monkeypatch.setattr('cxr_learn.stages.train', trained)
    assert train_in_stages(new_learner(data), tmp_path, [STAGES[0]] * 3, best_by='valid_macro_auc')['best_stage'] == best

def test_a_cached_stage_is_the_same_training(data, tmp_path):
    plain, cached = new_learner(data, augment=False), new_learner(data, augment=False)
    train_in_stages(plain, tmp_path/'plain', STAGES, progress=False)
    train_in_stages(cached, tmp_path/'cached', STAGES, cache=PrefixCache(), progress=False)
    for name, tensor in tensors(plain).items():
        torch.testing.assert_close(tensors(cached)[name], tensor, rtol=.02, atol=.02)

def test_every_recipe_fits_a_resnet_and_says_what_it_trains():
    net = transfer_net('resnet18', 'none', classes=2)
    assert all(set_trainable(net, stage.trainable) is net for stages in RECIPES.values() for stage in stages)
    assert len(weight_layers(net)) == 40
    trained = [weights for layer in weight_layers(unlock_last_layers(net, 7))[-7:] for weights in layer.parameters()]
    assert all(weights.requires_grad for weights in trained)
    assert sum(weights.requires_grad for weights in net.blocks.parameters()) == len(trained)

@pytest.mark.parametrize('trainable', ['body', 'last', 'last -1 layers', 'last 41 layers', 5, -1, 'last 2 blocks', None])
def test_an_impossible_stage_is_refused_before_anything_is_trained(trainable, data, tmp_path):
    with pytest.raises(ValueError): set_trainable(transfer_net('resnet18', 'none'), trainable)
    with pytest.raises(ValueError): train_in_stages(new_learner(data), tmp_path/'x', [STAGES[0], Stage('last 42 layers')])
    assert not (tmp_path/'x').exists()
