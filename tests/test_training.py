"""What a training promises: it repeats, survives a kill, keeps its folder to itself, and says what went wrong"""
import json
import random
import re

import pytest
import torch

import killing
from cxr_learn.batches import make_dls
from cxr_learn.checkpoints import CheckpointError, load_weights, seed_everything, weights_fingerprint
from cxr_learn.cnn import custom_cnn
from cxr_learn.cohorts import CohortError, load_phantom, split_by_patient
from cxr_learn.freezing import KeepFrozen, freeze_blocks
from cxr_learn.phantom import DEMO_FINDINGS, save_phantoms
from cxr_learn.speed import PLAIN
from cxr_learn.store import build_store
from cxr_learn.training import make_learner, predict, train
from cxr_learn.transfer import transfer_net

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('training')
    killing.make_data(folder)
    cohort = split_by_patient(load_phantom(folder/'phantom'))
    return folder, cohort, build_store(cohort, folder/'store', image_size=32)

def learner(data, network=custom_cnn, seed=0, augment=False, **options):
    _, cohort, store = data
    seed_everything(seed)
    return make_learner(make_dls(cohort, store, batch_size=16, augment=augment), network(4), **options)

@pytest.mark.parametrize('kind', killing.KINDS)
def test_killed_at_a_random_moment_and_called_again_it_ends_with_the_same_bits(data, tmp_path, kind):
    text, seconds = killing.ending(data[0], tmp_path/'whole', kind)
    found, _ = killing.killed_ending(data[0], tmp_path/'killed', kind, random.uniform(0, seconds))
    assert found == text

def test_one_seed_gives_one_result_and_another_seed_another(data, tmp_path):
    def ending(name, seed):
        learn = learner(data, seed=seed, augment=True)
        train(learn, tmp_path/name, epochs=2, progress=False)
        return weights_fingerprint(learn.model)
    assert ending('one', 3) == ending('same', 3) != ending('other', 4)

@pytest.mark.parametrize('optimiser', ['sgd', 'nesterov', 'adam', 'adamw'])
def test_every_optimiser_goes_on_as_if_it_had_not_stopped(data, tmp_path, optimiser, monkeypatch):
    whole = learner(data, optimiser=optimiser)
    train(whole, tmp_path/'whole', epochs=3, lr=1e-3, progress=False)
    from cxr_learn.training import KeepBest
    class PowerCut(KeepBest):
        order = 70
        def __init__(self): pass
        def after_epoch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(learner(data, optimiser=optimiser).add_cb(PowerCut()), tmp_path/'cut', epochs=3, lr=1e-3, progress=False)
    assert (tmp_path/'cut/last.safetensors').exists()
    again = learner(data, optimiser=optimiser)
    train(again, tmp_path/'cut', epochs=3, lr=1e-3, progress=False)
    assert weights_fingerprint(again.model) == weights_fingerprint(whole.model)

def half_done(data, folder, **options):
    from fastai.callback.core import Callback
    class PowerCut(Callback):
        order = 70
        def after_epoch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(learner(data, **options).add_cb(PowerCut()), folder, epochs=3, progress=False)
    return folder

@pytest.mark.parametrize('change, words', [
    (dict(lr=1e-4), 'lr = 0.0005, now 0.0001'), (dict(epochs=5), 'epochs = 3, now 5'),
    (dict(patience=2), 'patience = None, now 2'), (dict(seed=1), 'initial_weights'),
    (dict(optimiser='sgd'), 'optimiser = adamw, now sgd'), (dict(augment=True), 'augment'),
    (dict(weight_decay=.1), 'weight_decay'), (dict(loss_func='focal'), 'loss'),
])
@pytest.mark.parametrize('state', ['half done', 'finished'])
def test_a_folder_belongs_to_one_training(data, tmp_path, change, words, state):
    if state == 'half done': half_done(data, tmp_path)
    else: train(learner(data), tmp_path, epochs=3, progress=False)
    made = {name: value for name, value in change.items() if name in ('seed', 'optimiser', 'augment', 'weight_decay', 'loss_func')}
    asked = {name: value for name, value in change.items() if name not in made}
    with pytest.raises(ValueError, match=re.escape(words)):
        train(learner(data, **made), tmp_path, **{'epochs': 3, 'progress': False, **asked})

def test_another_architecture_is_refused(data, tmp_path):
    half_done(data, tmp_path)
    other = learner(data, lambda classes: transfer_net('resnet18', 'none', classes))
    before = weights_fingerprint(other.model)
    with pytest.raises(ValueError, match='trainable_parameters = 1606916, now'): train(other, tmp_path, epochs=3, progress=False)
    assert weights_fingerprint(other.model) == before
    with pytest.raises(CheckpointError, match='another network: .* such as blocks'): load_weights(other.model, tmp_path/'kept.safetensors')

@pytest.mark.parametrize('first, then', [('sgd', 'adam'), ('adam', 'sgd')])
def test_an_optimiser_with_another_memory_is_refused_by_name(data, tmp_path, first, then):
    half_done(data, tmp_path, optimiser=first)
    with pytest.raises(ValueError, match=f'optimiser = {first}, now {then}'):
        train(learner(data, optimiser=then), tmp_path, epochs=3, progress=False)

def test_a_finished_training_is_found_whatever_the_speed_of_this_machine(data, tmp_path):
    record = train(learner(data), tmp_path, epochs=1, progress=False)
    assert train(learner(data, speed=PLAIN), tmp_path, epochs=1, progress=False) == record

@pytest.mark.parametrize('content', ['', 'null', '{"epochs": 3}', '{"settings"'])
def test_a_damaged_record_is_named(data, tmp_path, content):
    train(learner(data), tmp_path, epochs=1, progress=False)
    (tmp_path/'record.json').write_text(content)
    with pytest.raises(CheckpointError, match='record.json is damaged'): train(learner(data), tmp_path, epochs=1, progress=False)

def test_two_trainings_do_not_work_in_one_folder(data, tmp_path):
    from filelock import FileLock
    with FileLock(tmp_path/'.here.lock'), pytest.raises(ValueError, match='Another process trains'):
        train(learner(data), tmp_path/'here', epochs=1, progress=False)

@pytest.mark.parametrize('loss', [torch.nn.CrossEntropyLoss(), torch.nn.functional.cross_entropy])
def test_a_loss_of_pytorch_gives_probabilities_too(data, tmp_path, loss):
    learn = learner(data, loss_func=loss)
    train(learn, tmp_path, epochs=1, progress=False)
    assert predict(learn, data[1], 'valid').filter(like='probability_').sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)

def test_losses_that_differ_in_a_number_are_different_trainings(data, tmp_path):
    from fastai.losses import FocalLossFlat
    train(learner(data, loss_func=FocalLossFlat(gamma=2.)), tmp_path, epochs=1, progress=False)
    with pytest.raises(ValueError, match='gamma=2.0.* now .*gamma=5.0'):
        train(learner(data, loss_func=FocalLossFlat(gamma=5.)), tmp_path, epochs=1, progress=False)

def test_weights_that_end_as_nan_are_not_kept(data, tmp_path):
    from fastai.callback.core import Callback
    class Poison(Callback):
        order = 70
        def after_train(self): self.model.head[-1].weight.data[:] = float('nan')
    with pytest.raises(FloatingPointError, match='^The validation loss became nan in epoch 1'):
        train(learner(data).add_cb(Poison()), tmp_path, epochs=1, progress=False)
    assert not (tmp_path/'best.safetensors').exists()

@pytest.mark.parametrize('state, file', [('half done', 'last.safetensors'), ('half done', 'kept.safetensors'), ('finished', 'best.safetensors')])
@pytest.mark.parametrize('damage', ['truncated', 'empty', 'noise'])
def test_a_damaged_file_is_named_and_never_loaded(data, tmp_path, state, file, damage):
    if state == 'half done': half_done(data, tmp_path)
    else: train(learner(data), tmp_path, epochs=1, progress=False)
    whole = (tmp_path/file).read_bytes()
    (tmp_path/file).write_bytes({'truncated': whole[:len(whole) // 2], 'empty': b'', 'noise': b'\x80\x04' + whole[:200]}[damage])
    with pytest.raises(CheckpointError, match=file if file != 'kept.safetensors' else 'safetensors'):
        train(learner(data), tmp_path, epochs=3 if state == 'half done' else 1, progress=False)

def test_no_file_of_a_training_is_a_pickle(data, tmp_path):
    half_done(data, tmp_path)
    for file in tmp_path.iterdir():
        size = int.from_bytes(file.read_bytes()[:8], 'little')
        assert json.loads(file.read_bytes()[8:8 + size]), f'{file.name} is no safetensors file'

def test_a_checkpoint_of_a_frozen_body_is_small(data, tmp_path):
    def frozen(classes): return freeze_blocks(transfer_net('resnet18', 'shipped', classes), 4)
    from fastai.callback.core import Callback
    class PowerCut(Callback):
        order = 70
        def after_epoch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(learner(data, frozen).add_cbs([KeepFrozen(), PowerCut()]), tmp_path, epochs=2, progress=False)
    assert (tmp_path/'last.safetensors').stat().st_size < 300_000

def test_a_nan_names_epoch_batch_and_images_and_leaves_no_best_weights(data, tmp_path):
    with pytest.raises(FloatingPointError, match=r'^The loss became \w+ in epoch 1, batch \d of \d \(images images/') as caught:
        train(learner(data), tmp_path, epochs=2, lr=1e30, schedule='flat', progress=False)
    assert 'lower the learning rate' in str(caught.value)
    assert not (tmp_path/'best.safetensors').exists() and not (tmp_path/'record.json').exists()

def test_a_nan_in_the_last_batch_is_found_too(data, tmp_path):
    from fastai.callback.core import Callback
    class Poison(Callback):
        def before_batch(self):
            if self.training and self.iter == self.n_iter - 1: self.learn.xb = (self.xb[0] * float('nan'),)
    with pytest.raises(FloatingPointError, match=r'batch (\d) of \1 '):
        train(learner(data).add_cb(Poison()), tmp_path, epochs=2, progress=False)

def test_a_batch_of_one_and_a_missing_class_are_refused(data, tmp_path):
    _, cohort, store = data
    with pytest.raises(ValueError, match='batch_size = 1'):
        train(make_learner(make_dls(cohort, store, batch_size=1), custom_cnn(4)), tmp_path)
    gone = cohort[~((cohort['label'] == 'normal') & (cohort['split'] == 'train'))].reset_index(drop=True)
    rows = [list(cohort['image']).index(image) for image in gone['image']]
    with pytest.raises(CohortError, match='train split has no image of normal'): make_dls(gone, store.take(rows))

def test_the_kept_epoch_is_the_best_by_the_named_measure(data, tmp_path):
    for measure, best in (('valid_loss', min), ('valid_accuracy', max), ('valid_macro_auc', max)):
        record = train(learner(data), tmp_path/measure, epochs=4, lr=2e-3, best_by=measure, progress=False)
        values = [row[measure] for row in record['history']]
        assert record['best_epoch'] == 1 + values.index(best(values))

def test_the_history_agrees_with_scikit_learn(data, tmp_path):
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
    _, cohort, _ = data
    learn = learner(data, speed=PLAIN)
    record = train(learn, tmp_path, epochs=2, progress=False)
    kept, valid = record['history'][record['best_epoch'] - 1], predict(learn, cohort, 'valid')
    scores, labels = valid.filter(like='probability_').to_numpy(), list(learn.dls.vocab)
    assert kept['valid_macro_auc'] == pytest.approx(roc_auc_score(valid['label'], scores, multi_class='ovr', labels=labels), abs=1e-6)
    assert kept['valid_loss'] == pytest.approx(log_loss(valid['label'], scores, labels=labels), abs=1e-5)
    called = [labels[number] for number in scores.argmax(axis=1)]
    assert kept['valid_accuracy'] == pytest.approx(accuracy_score(valid['label'], called), abs=1e-6)

def test_the_record_says_what_a_repetition_needs(data, tmp_path):
    record = train(learner(data), tmp_path, epochs=1, notes=dict(seed=0), progress=False)
    assert record['seed'] == 0 and record['environment']['threads'] == torch.get_num_threads()
    assert {'torch', 'fastai', 'cxr_learn', 'processor', 'device'} <= record['environment'].keys()
    assert {'pixels', 'cohort', 'split'} <= record['settings']['data'].keys()
    assert record['settings']['speed'].keys() >= {'bf16', 'channels_last', 'fused'}
    assert record == json.loads((tmp_path/'record.json').read_text())
