"""The cached prefix: the same training, found again, bounded, and never a crash"""
import errno
import json
import time

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fasttransform import Transform
from torch import nn

import cxr_learn.prefix as prefix
from cxr_learn.augmentation import POLICIES, augment
from cxr_learn.batches import make_dls
from cxr_learn.batches import test_loader as loader_of
from cxr_learn.checkpoints import seed_everything
from cxr_learn.cnn import BlockNet, custom_cnn, make_head
from cxr_learn.cohorts import load_phantom, split_by_patient
from cxr_learn.freezing import KeepFrozen, freeze_blocks
from cxr_learn.phantom import DEMO_FINDINGS, save_phantoms
from cxr_learn.prefix import ImagePass, PrefixCache, cached_prefix, frozen_part, obtain_activations, prefix_names
from cxr_learn.speed import PLAIN, Speed
from cxr_learn.store import build_store
from cxr_learn.training import make_learner, predict, train
from cxr_learn.transfer import transfer_net

ANY_SIZE = 2**40

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prefix')
    cohort = split_by_patient(load_phantom(save_phantoms(folder/'phantom', patients=40, findings=DEMO_FINDINGS, image_size=32)))
    return cohort, build_store(cohort, folder/'store', image_size=32)

def learner(data, k=3, network=None, augment=False, seed=0, batch_norm='eval', **options):
    seed_everything(seed)
    dls = make_dls(*data, batch_size=16, augment=augment)
    network = transfer_net(classes=4) if network is None else network(4)
    return make_learner(dls, freeze_blocks(network, k), **options).add_cb(KeepFrozen(batch_norm))

def trained(data, run, epochs=2, cached=True, **options):
    "History and weights of a training, and the facts of its cache"
    cache = {name: options.pop(name) for name in ('cache', 'folder', 'passes', 'memory_limit', 'disk_limit') if name in options}
    learn, facts = learner(data, **options), None
    if cached:
        with cached_prefix(learn, **cache) as facts: record = train(learn, run, epochs=epochs, progress=False)
    else: record = train(learn, run, epochs=epochs, progress=False)
    losses = [(row['train_loss'], row['valid_loss']) for row in record['history']]
    return losses, learn.model.state_dict(), facts

def equal(one, two):
    return one[0] == two[0] and all(tensor.equal(two[1][name]) for name, tensor in one[1].items())

# ---- the same training

@pytest.mark.parametrize('k, options', [
    (1, dict(network=custom_cnn)), (3, {}), (4, {}), (3, dict(speed=PLAIN)), (4, dict(network=custom_cnn, speed=PLAIN)),
    (4, dict(speed=Speed(bf16=True)))])
def test_without_augmentation_it_is_the_same_training_bit_for_bit(data, tmp_path, k, options):
    one = trained(data, tmp_path/'plain', k=k, cached=False, **options)
    two = trained(data, tmp_path/'cached', k=k, **options)
    assert equal(one, two)
    facts = two[2]
    assert facts['place'] == 'memory' and facts['why'] == '' and facts['frozen_blocks'] == k and facts['seconds'] > 0
    assert facts['computed'] == (data[0]['split'] != 'test').sum()

def test_images_are_back_when_the_training_is_over_or_failed(data, tmp_path):
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = learner(data)
    with cached_prefix(learn):
        before = predict(learn, data[0])
        with pytest.raises(KeyboardInterrupt), learn.added_cbs(Stop()): train(learn, tmp_path/'one', epochs=1, progress=False)
    assert learn.dls.one_batch()[0].shape[1:] == (1, 32, 32)
    with cached_prefix(learn): train(learn, tmp_path/'one', epochs=1, progress=False)
    assert learn.dls.one_batch()[0].shape[1:] == (1, 32, 32) and not predict(learn, data[0]).equals(before)
    assert not any(isinstance(callback, prefix.OnActivations) for callback in learn.cbs)

def test_a_killed_training_goes_on_with_the_right_pass(data, tmp_path):
    class Die(Callback):
        def before_batch(self):
            if self.training and self.epoch == 2: raise KeyboardInterrupt
    settings = dict(k=4, augment=True, network=custom_cnn)
    whole = trained(data, tmp_path/'whole', epochs=5, passes=3, **settings)
    learn = learner(data, **settings)
    with pytest.raises(KeyboardInterrupt), cached_prefix(learn, passes=3), learn.added_cbs(Die()):
        train(learn, tmp_path/'killed', epochs=5, progress=False)
    assert equal(whole, trained(data, tmp_path/'killed', epochs=5, passes=3, **settings))

def test_a_finished_training_computes_nothing(data, tmp_path):
    trained(data, tmp_path/'one', network=custom_cnn)
    facts = trained(data, tmp_path/'one', network=custom_cnn)[2]
    assert facts['place'] == 'not cached' and facts['computed'] == 0 and 'no training' in facts['why']

def test_blocks_may_thaw_between_two_trainings(data):
    learn, shapes = learner(data, k=4), []
    class Look(Callback):
        order = 99
        def before_batch(self): shapes.append((tuple(self.xb[0].shape[1:]), self.xb[1]) if len(self.xb) > 1 else 'images')
    with cached_prefix(learn) as facts, learn.no_bar(), learn.no_logging(), learn.added_cbs(Look()):
        for k in (4, 3, 0):
            freeze_blocks(learn.model, k)
            learn.create_opt()
            learn.fit(1, 1e-3)
    assert list(dict.fromkeys(shapes)) == [((512, 1, 1), 4), ((256, 2, 2), 3), 'images']
    assert facts['why'] == 'no block is frozen' and facts['place'] == 'not cached'

# ---- augmented passes

def test_each_epoch_has_its_pass_and_validation_is_never_varied(data):
    learn, seen = learner(data, network=custom_cnn, augment='yarovyi', k=5), []
    class Look(Callback):
        def before_train(self): seen.append(self.dls.train.dataset.tls[0].tfms.fs[0])
        def before_validate(self): seen.append(self.dls.valid.dataset.tls[0].tfms.fs[0])
        def before_batch(self):
            if self.training: passes.append(seen[-1].current)
    passes = []
    with cached_prefix(learn, passes=2) as facts, learn.no_bar(), learn.no_logging(), learn.added_cbs(Look()): learn.fit(4, 1e-3)
    assert list(dict.fromkeys(passes)) == [0, 1] and passes[0] == 0 and passes[-1] == 1 and facts['passes'] == 2
    train_rows, valid = seen[0], seen[1]
    rows, (cohort, store) = learn.dls.train_ds.items, data
    assert not train_rows.passes[0].equal(train_rows.passes[1])
    part = frozen_part(learn.model, 5)
    plain = store.pixels[list(learn.dls.valid_ds.items)][:, None] / 255
    assert valid.passes[0].movedim(-1, 1).float().equal(part(plain).detach())
    one = ImagePass(store.pixels, np.asarray(rows), POLICIES['yarovyi'], 7)
    images = torch.cat(list(one.images()))
    first = augment(store.pixels[list(rows)][:64, None] / 255, 'yarovyi', torch.Generator().manual_seed(7))
    assert images[:64].equal(first) and len(images) == len(rows)

def test_the_loader_draws_the_same_images_as_without_a_cache(data, tmp_path):
    drawn = {}
    class Look(Callback):
        def before_batch(self): drawn[name].append(np.asarray(self.dl.drawn).tolist())
    for name, cached in (('plain', False), ('cached', True)):
        drawn[name], learn = [], learner(data, network=custom_cnn, k=5, augment=True)
        with learn.added_cbs(Look()):
            if cached:
                with cached_prefix(learn): train(learn, tmp_path/name, epochs=2, progress=False)
            else: train(learn, tmp_path/name, epochs=2, progress=False)
    assert drawn['plain'] == drawn['cached']

# ---- found again

def test_runs_share_what_the_frozen_blocks_compute(data, tmp_path, monkeypatch):
    starts, plain = [], prefix.frozen_maps
    def spy(part, batches, first_block=0):
        batches = list(batches)
        if sum(map(len, batches)) > 1: starts.append((first_block, len(part.blocks)))
        return plain(part, batches, first_block)
    monkeypatch.setattr(prefix, 'frozen_maps', spy)
    cache = PrefixCache()
    for k, seed, computed in ((2, 0, True), (2, 1, False), (3, 0, True), (4, 0, True), (3, 5, False)):
        _, _, facts = trained(data, tmp_path/f'{k}{seed}', epochs=1, k=k, seed=seed, cache=cache)
        assert bool(facts['computed']) == computed, (k, seed)
    assert starts == [(0, 2), (0, 2), (2, 3), (2, 3), (3, 4), (3, 4)] and not cache.in_use
    direct = trained(data, tmp_path/'direct', epochs=1, k=4)
    assert equal(direct, trained(data, tmp_path/'40', epochs=1, k=4))

def test_a_key_changes_with_everything_that_changes_activations(data):
    model, (cohort, store) = freeze_blocks(transfer_net(classes=4), 3), data
    names = prefix_names(model, 3)
    def changed(change, undo=None):
        change(model)
        new = prefix_names(model, 3)
        if undo: undo(model)
        return new
    assert prefix_names(model, 3) == names == prefix_names(freeze_blocks(transfer_net(classes=2), 4), 3) and len(set(names)) == 4
    assert changed(lambda model: setattr(model, 'bf16', True), lambda model: setattr(model, 'bf16', False))[0] != names[0]
    statistics = model.blocks[2][0].bn1.running_mean
    assert changed(lambda model: statistics.add_(1), lambda model: statistics.sub_(1))[2:] != names[2:]
    with torch.no_grad(): model.blocks[1][0].conv1.weight[0, 0, 0, 0] += 1
    assert prefix_names(model, 3)[:2] == names[:2] and prefix_names(model, 3)[2] != names[2]
    model.mean += .1
    assert prefix_names(model, 3)[1] != names[1]
    one = ImagePass(store.pixels, np.arange(9))
    pixels = store.pixels.clone()
    pixels[3, 4, 5] += 1
    others = [one._replace(pixels=pixels), one._replace(rows=np.arange(8)), one._replace(rows=np.arange(9)[::-1].copy()),
              one._replace(pixels=store.pixels.view(-1, 16, 64)), one._replace(policy=POLICIES['yarovyi']),
              one._replace(policy=POLICIES['yarovyi'], seed=1), one._replace(policy=POLICIES['vazquez'])]
    assert len({other.name for other in (one, *others)}) == 1 + len(others)
    assert one._replace(seed=3).name == one.name  # chance has no part in images that are not varied

# ---- limits

def obtain(data, cache, k=3, images=20):
    model = freeze_blocks(custom_cnn(4), k).eval()
    torch.manual_seed(0)
    for tensor in model.parameters(): torch.nn.init.normal_(tensor, std=.1)
    return obtain_activations(model, k, [ImagePass(data[1].pixels, np.arange(images))], cache)

def test_above_the_memory_limit_they_are_on_disk_and_found_by_another_process(data, tmp_path):
    cache = PrefixCache(tmp_path, memory_limit=1000)
    (kept,), computed = obtain(data, cache)
    (direct,), _ = obtain(data, PrefixCache())
    assert kept.equal(direct) and computed == 20 and cache.place_of([kept]) == 'disk'
    (again,), computed = obtain(data, PrefixCache(tmp_path, memory_limit=0))
    assert again.equal(direct) and computed == 0

def damage_byte(file): file.write_bytes(file.read_bytes()[:-1] + b'\0')
def cut_off(file): file.write_bytes(file.read_bytes()[:-100])
def empty(file): file.write_bytes(b'')
def lose_card(file): file.with_suffix('.json').unlink()
def garble_card(file): file.with_suffix('.json').write_text('[1')
def wrong_card(file): file.with_suffix('.json').write_text('[]')
def lose_array(file): file.unlink()

@pytest.mark.parametrize('harm', [damage_byte, cut_off, empty, lose_card, garble_card, wrong_card, lose_array])
def test_a_damaged_file_is_made_anew(data, tmp_path, harm):
    (kept,), _ = obtain(data, PrefixCache(tmp_path, memory_limit=0))
    right = kept.clone()
    harm(next(tmp_path.glob('prefix-*.npy')))
    (again,), computed = obtain(data, PrefixCache(tmp_path, memory_limit=0))
    assert computed == 20 and again.equal(right)
    assert obtain(data, PrefixCache(tmp_path, memory_limit=0))[1] == 0

def test_the_longest_unused_make_room(data, tmp_path):
    size = 20 * 128 * 4 * 4 * 4  # bytes after three blocks at 32 pixels, in 32 bits
    for cache in (PrefixCache(memory_limit=5 * size // 2), PrefixCache(tmp_path, 0, disk_limit=5 * size // 2)):
        for images, computed in ((20, 20), (19, 19), (20, 0), (18, 18), (20, 0), (19, 19)):
            time.sleep(.01)  # a file's time stamp tells its age
            cache.in_use.clear()
            assert obtain(data, cache, images=images)[1] == computed, (cache.places[-1].name, images)
        held = sum(maps.nbytes for maps in cache.places[0].kept.values()) + sum(file.stat().st_size for file in tmp_path.glob('*.npy'))
        assert held <= 5 * size // 2 + 1000

def test_leftovers_of_a_kill_are_removed(data, tmp_path):
    leftover = tmp_path/'.1234.partial.prefix-0123456789abcdef.npy'
    leftover.write_bytes(b'half')
    (tmp_path/'mine.npy').write_bytes(b'not ours')
    obtain(data, PrefixCache(tmp_path, memory_limit=0))
    assert not leftover.exists() and (tmp_path/'mine.npy').exists()

def fail(error):
    def failing(*arguments, **options): raise error
    return failing

@pytest.mark.parametrize('error', [MemoryError('no memory'), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_without_memory_it_goes_to_disk(data, tmp_path, monkeypatch, error):
    monkeypatch.setattr(prefix, '_empty', fail(error))
    cache = PrefixCache(tmp_path)
    (kept,), _ = obtain(data, cache)
    assert cache.place_of([kept]) == 'disk'

@pytest.mark.parametrize('limits, why', [
    (dict(memory_limit=1000), 'raise memory_limit, or name a folder'),
    (dict(memory_limit=1000, disk_limit=1000, folder='disk'), 'MB allowed'),
    (dict(memory_limit=0, folder='disk', disk_limit=ANY_SIZE, full=True), 'No space left'),
    (dict(memory_limit=0, folder='a file'), 'exists'),
    (dict(broken=True), 'no memory')])
def test_without_room_the_training_is_the_plain_one_and_says_so(data, tmp_path, monkeypatch, limits, why):
    if limits.pop('broken', False): monkeypatch.setattr(prefix, '_empty', fail(MemoryError('no memory')))
    if limits.pop('full', False): monkeypatch.setattr(prefix, 'write_atomically', fail(OSError(errno.ENOSPC, 'No space left')))
    (tmp_path/'a file').write_text('')
    if 'folder' in limits: limits['folder'] = tmp_path/limits['folder']
    settings = dict(network=custom_cnn, k=4, epochs=1)
    with pytest.warns(UserWarning, match='the training is the plain one'):
        cached = trained(data, tmp_path/'one', **settings, **limits)
    assert cached[2]['place'] == 'not cached' and why in cached[2]['why'] and cached[2]['bytes'] == 0
    assert equal(cached, trained(data, tmp_path/'two', cached=False, **settings))

def test_a_disk_that_is_nearly_full_is_left_alone(data, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix.shutil, 'disk_usage', lambda folder: type('Usage', (), dict(free=10))())
    with pytest.raises(prefix.NoRoom, match='0.0 MB free'): obtain(data, PrefixCache(tmp_path, memory_limit=0))
    assert not list(tmp_path.glob('*prefix-*.npy'))

# ---- bad input

def test_what_is_not_the_same_training_is_refused(data):
    with pytest.raises(ValueError, match='evaluation mode'), cached_prefix(learner(data, batch_norm='train')): pass
    learn = learner(data)
    learn.remove_cbs([callback for callback in learn.cbs if isinstance(callback, KeepFrozen)])
    with pytest.raises(ValueError, match=r'give the learner KeepFrozen\(\)'), cached_prefix(learn): pass
    class Noise(Transform): pass
    learn = learner(data)
    learn.dls.train.after_batch.add(Noise())
    with pytest.raises(ValueError, match='Noise would be left out'), cached_prefix(learn): pass
    with pytest.raises(ValueError, match='at least 1'), cached_prefix(learner(data), passes=0): pass

def test_nothing_frozen_is_nothing_to_cache(data, tmp_path):
    one = trained(data, tmp_path/'one', k=0, epochs=1, network=custom_cnn)
    assert one[2]['why'] == 'no block is frozen' and one[2]['place'] == 'not cached'
    json.dumps(one[2])
    assert equal(one, trained(data, tmp_path/'two', k=0, epochs=1, network=custom_cnn, cached=False))

@pytest.mark.parametrize('speed', [PLAIN, Speed(bf16=True, channels_last=True)])
def test_a_block_that_begins_in_place_leaves_the_shorter_prefix_alone(data, tmp_path, speed):
    def in_place(classes):
        blocks = [nn.Conv2d(3, 8, 3, padding=1), *(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3))]
        return BlockNet(blocks, make_head(8, classes, standardise=True))
    cache = PrefixCache()
    trained(data, tmp_path/'one', k=1, network=in_place, cache=cache, speed=speed)
    first = {key: kept.clone() for key, kept in cache.places[0].kept.items()}
    assert len(first) == 2
    trained(data, tmp_path/'two', k=2, network=in_place, cache=cache, speed=speed)
    assert len(cache.places[0].kept) == 4 and all(cache.find(key).equal(kept) for key, kept in first.items())

def test_another_loader_brings_images_inside_too(data, tmp_path):
    learn = learner(data)
    with cached_prefix(learn):
        train(learn, tmp_path, epochs=1, progress=False)
        with learn.no_bar(): loss, _ = learn.validate(dl=loader_of(learn.dls, data[0], 'test'))
    assert np.isfinite(loss)
