"""Augmentation, copies and loaders: same seed same batch, nothing crosses the split, no softmax for several findings"""
import hashlib
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import fastai.callback.progress  # noqa: F401 - gives Learner its no_bar
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.learner import Learner, load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat
from PIL import Image
from torch import nn

from cxr_learn.augmentation import (POLICIES, Augment, Policy, affine_matrices, augment, balance_by_copies, plot_balance,
                                    policy_named, warp)
from cxr_learn.batches import check_loss, make_dls
from cxr_learn.batches import test_loader as loader_of
from cxr_learn.cohorts import CohortError, check_disjoint, make_cohort, split_by_patient
from cxr_learn.store import Store, build_store
from cxr_learn.checkpoints import seed_everything

FINDINGS = ('Effusion', 'Nodule', 'Hernia')

def noise_store(cohort, side=16, seed=0):
    pixels = torch.randint(0, 256, (len(cohort), side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Store(pixels, tuple(cohort['image']), 'noise')

def single(counts=dict(ill=90, rare=12, well=30), images=2):
    "A cohort of so many patients of each label"
    rows = [dict(image=f'{label}{number:03}-{image}', patient_id=f'{label}{number}', label=label)
            for label, patients in counts.items() for number in range(patients) for image in range(images)]
    return split_by_patient(make_cohort(pd.DataFrame(rows).assign(path='none', patient_rule='given', source='noise')))

def multi(patients=150, seed=0):
    "A cohort with several findings per image, the last one rare"
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(dict(patient_id=np.repeat([f'P{n:03}' for n in range(patients)], 2)))
    for finding, share in zip(FINDINGS, (.4, .25, .05)): rows[f'label_{finding}'] = (rng.random(len(rows)) < share).astype(int)
    rows['image'] = [f'{number:04}' for number in range(len(rows))]
    return split_by_patient(make_cohort(rows.assign(path='none', patient_rule='given', source='noise')))

@pytest.fixture(scope='module')
def cohort(): return single()

@pytest.fixture(scope='module')
def several(): return multi()

# ---- augmentation

@pytest.mark.parametrize('name', POLICIES)
def test_a_policy_keeps_shape_range_and_seed(name):
    images = torch.rand(32, 1, 20, 24)
    one, two = (augment(images.clone(), name, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.equal(two) and one.shape == images.shape and one.dtype == torch.float32
    assert 0 <= one.min() and one.max() <= 1
    assert one.equal(images) == (name == 'none')

def test_the_batch_does_what_one_image_after_the_other_would():
    images, policy = torch.rand(6, 1, 16, 16), POLICIES['vazquez']
    matrices = affine_matrices(policy, 6, torch.Generator().manual_seed(0))
    alone = torch.cat([F.grid_sample(image[None], F.affine_grid(matrix[None], (1, 1, 16, 16), align_corners=False),
                                     align_corners=False) for image, matrix in zip(images, matrices)])
    torch.testing.assert_close(warp(images, matrices), alone, atol=1e-5, rtol=0)

def test_the_amounts_stay_within_the_policy():
    policy = Policy(rotation=10, zoom=(1, 1.2), shift=.05)
    m = affine_matrices(policy, 5000)
    zoom = 1 / m[:, 0, :2].norm(dim=1)
    angle = torch.atan2(-m[:, 0, 1], m[:, 0, 0]) * 180 / math.pi
    assert 1 - 1e-5 <= zoom.min() < 1.01 and 1.19 < zoom.max() <= 1.2 + 1e-5
    assert 9.8 < angle.abs().max() <= 10 + 1e-3 and abs(float(angle.mean())) < .5
    assert m[:, :, 2].abs().max() <= .1 + 1e-6  # 5% of a side that is 2 long
    assert (torch.linalg.det(m[:, :, :2]) > 0).all(), 'no flip unless asked'

@pytest.mark.parametrize('name, share', [('conservative', 0), ('yarovyi', 0), ('conservative with flip', .375),
                                         ('vazquez copies', .5), ('bolhassani', .5)])
def test_flips_are_as_frequent_as_said(name, share):
    "A mirrored image has a negative determinant; two flips at once, which bolhassani may draw, a positive one"
    mirrored = torch.linalg.det(affine_matrices(POLICIES[name], 4000)[:, :, :2]) < 0
    assert abs(float(mirrored.float().mean()) - share) < .03

def test_light_alone_touches_no_geometry():
    images = torch.full((50, 1, 8, 8), .5)
    brighter = augment(images, Policy(brightness=.2, contrast=.3), torch.Generator().manual_seed(0))
    assert brighter.flatten(1).std(dim=1).max() < 1e-6 and brighter.std() > .05

def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="'strong'.*conservative"): policy_named('strong')
    assert policy_named(True) == POLICIES['conservative'] and policy_named(False) == Policy()

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no graphics card')
def test_the_same_seed_gives_the_same_images_on_a_graphics_card():
    images = torch.rand(16, 1, 64, 64)
    here, there = (augment(images.to(device), 'conservative', torch.Generator().manual_seed(1)) for device in ('cpu', 'cuda'))
    assert there.device.type == 'cuda'
    torch.testing.assert_close(here, there.cpu(), atol=1e-4, rtol=0)

# ---- copies

def test_copies_bring_every_label_to_parity_in_the_training_part_only(cohort):
    enlarged, store = balance_by_copies(cohort, noise_store(cohort))
    train = enlarged[enlarged['split'] == 'train']
    assert train['label'].value_counts().nunique() == 1
    for split in ('valid', 'test'):
        assert (enlarged['split'] == split).sum() == (cohort['split'] == split).sum()
    assert store.images == tuple(enlarged['image']) and enlarged['image'].is_unique
    pd.testing.assert_frame_equal(enlarged.iloc[:len(cohort)].drop(columns='copy'), cohort)
    assert store.pixels[:len(cohort)].equal(noise_store(cohort).pixels)

def test_a_patients_copies_stay_on_one_side_and_are_made_last(cohort):
    enlarged, _ = balance_by_copies(cohort, noise_store(cohort))
    check_disjoint(enlarged)
    copies = enlarged[enlarged['copy'] > 0]
    originals = cohort.set_index('image')['patient_id']
    assert (copies['patient_id'].to_numpy() == originals[copies['image'].str.split('#').str[0]].to_numpy()).all()
    with pytest.raises(CohortError, match='copies'): split_by_patient(enlarged.assign(split=None))  # validation would hold copies
    with pytest.raises(CohortError, match='copies already'): balance_by_copies(enlarged, noise_store(enlarged))

def test_no_image_is_copied_before_its_turn(cohort):
    enlarged, _ = balance_by_copies(cohort, noise_store(cohort))
    rare = enlarged[(enlarged['split'] == 'train') & (enlarged['label'] == 'rare')]
    copies = rare.groupby(rare['image'].str.split('#').str[0])['copy'].max()
    assert copies.max() - copies.min() <= 1

def test_copies_differ_and_the_same_seed_gives_the_same(cohort):
    enlarged, store = balance_by_copies(cohort, noise_store(cohort), seed=1)
    _, again = balance_by_copies(cohort, noise_store(cohort), seed=1)
    _, other = balance_by_copies(cohort, noise_store(cohort), seed=2)
    assert store.pixels.equal(again.pixels) and store.key == again.key != other.key
    varied = store.pixels[np.flatnonzero(enlarged['copy'])].flatten(1)
    assert len(varied.unique(dim=0)) == len(varied)

def test_rare_findings_are_enlarged_and_no_image_too_often(several):
    enlarged, _ = balance_by_copies(several, noise_store(several), 'yarovyi', parity=.5, at_most=4)
    def counts(table): return table[table['split'] == 'train'][[f'label_{finding}' for finding in FINDINGS]].sum()
    before, after = counts(several), counts(enlarged)
    assert (after >= before).all() and after['label_Hernia'] > 2 * before['label_Hernia']
    assert enlarged['copy'].max() <= 4
    assert set(enlarged['split'][enlarged['copy'] > 0]) == {'train'}
    assert len(plot_balance(several, enlarged).axes) == 1

@pytest.mark.parametrize('spoil, words', [
    (lambda cohort: cohort.assign(split=None), 'after the split'), (lambda cohort: cohort.iloc[::-1], 'not that of this cohort')])
def test_copies_of_what_cannot_be_copied(cohort, spoil, words):
    with pytest.raises(CohortError, match=words): balance_by_copies(spoil(cohort), noise_store(cohort))

# ---- loaders

def epoch_of(dls): return [(images.clone(), classes.clone()) for images, classes in dls.train]

def equal(one, other): return all(a.equal(c) and b.equal(d) for (a, b), (c, d) in zip(one, other, strict=True))

def test_the_loaders_state_decides_an_epoch_whatever_else_is_drawn(cohort):
    dls = make_dls(cohort, noise_store(cohort))
    state = dls.train.rng.getstate()
    first, second = epoch_of(dls), epoch_of(dls)
    assert not equal(first, second)
    torch.manual_seed(9); np.random.seed(9)
    list(dls.valid); dls.valid.one_batch()
    dls.train.rng.setstate(state)
    assert equal(first, epoch_of(dls)) and equal(second, epoch_of(dls))

def digest_of_two_epochs():
    seed_everything(4)
    cohort = single()
    dls = make_dls(cohort, noise_store(cohort))
    return [hashlib.sha256(images.numpy().tobytes() + classes.numpy().tobytes()).hexdigest()
            for _ in range(2) for images, classes in dls.train]

def test_the_same_seed_gives_the_same_epochs_in_another_process():
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_batches as t; print(t.digest_of_two_epochs())'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == str(digest_of_two_epochs()), done.stderr

def test_weights_draw_classes_equally_and_with_replacement(cohort):
    dls = make_dls(cohort, noise_store(cohort), augment=False, batch_size=32)
    drawn = torch.cat([classes for _ in range(40) for _, classes in dls.train])
    shares = torch.bincount(drawn).double() / len(drawn)
    assert (shares - 1 / 3).abs().max() < .03
    plain = make_dls(cohort, noise_store(cohort), augment=False, balanced=False)
    images = torch.cat([images for images, _ in plain.train]).flatten(1)
    assert len(images.unique(dim=0)) == len(images), 'without weights no image comes twice'

def test_an_image_of_several_findings_is_drawn_by_its_rarest(several):
    dls = make_dls(several, noise_store(several), augment=False)
    train = several[several['split'] == 'train']
    sizes = {finding: train[f'label_{finding}'].sum() for finding in FINDINGS}
    none = (train[[f'label_{finding}' for finding in FINDINGS]].sum(axis=1) == 0)
    expected = [1 / min([sizes[finding] for finding in FINDINGS if row[f'label_{finding}']] or [none.sum()])
                for _, row in train.iterrows()]
    np.testing.assert_allclose(dls.train.wgts, np.array(expected) / sum(expected))

def test_validation_and_test_come_as_they_are(cohort):
    store = noise_store(cohort)
    dls = make_dls(cohort, store)
    for loader, split in ((dls.valid, 'valid'), (loader_of(dls, cohort), 'test'), (loader_of(dls, cohort, 'train'), 'train')):
        rows = np.flatnonzero(cohort['split'] == split)
        images, classes = (torch.cat(parts) for parts in zip(*loader))
        assert (255 * images[:, 0]).round().to(torch.uint8).equal(store.pixels[rows])
        assert [dls.vocab[int(number)] for number in classes] == cohort['label'].iloc[rows].tolist()

def tiny(dls): return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, dls.c))

@pytest.fixture
def on_disk(tmp_path):
    "A cohort of real files, with its store"
    cohort = single(dict(ill=8, well=8))
    rng = np.random.default_rng(0)
    cohort['path'] = [str(tmp_path/f'{image}.png') for image in cohort['image']]
    for path in cohort['path']: Image.fromarray(rng.integers(0, 255, (30, 50), dtype=np.uint8)).save(path)
    return cohort, build_store(cohort, tmp_path/'store', 24, framing='pad')

def test_a_learner_is_asked_about_rows_and_files(on_disk, tmp_path):
    cohort, store = on_disk
    dls = make_dls(cohort, store)
    learn = Learner(dls, tiny(dls))
    with learn.no_bar(), learn.no_logging():
        by_row, by_name, by_path = (learn.predict(item) for item in (5, cohort['path'][5], Path(cohort['path'][5])))
        many = learn.get_preds(dl=dls.test_dl(cohort['path'].tolist()))[0]
        rows = learn.get_preds(dl=dls.test_dl(list(range(len(cohort)))))[0]
        learn.export(tmp_path/'model.pkl')
        again = load_learner(tmp_path/'model.pkl')
        with again.no_bar(): loaded = again.predict(cohort['path'][5])
    assert by_row[0] == by_name[0] == by_path[0] and by_row[0] in dls.vocab
    assert bytes(store.pixels[5].numpy()) not in (tmp_path/'model.pkl').read_bytes(), 'a network takes no image along'
    for other in (by_name, by_path, loaded): torch.testing.assert_close(by_row[2], other[2], atol=1e-4, rtol=0)
    torch.testing.assert_close(many, rows, atol=1e-4, rtol=0)

def test_a_multi_label_learner_trains_shows_and_predicts(several):
    dls = make_dls(several, noise_store(several))
    images, present = dls.one_batch()
    assert dls.multi_label and present.dtype == torch.float32 and present.shape == (64, 3) and list(dls.vocab) == list(FINDINGS)
    learn = Learner(dls, tiny(dls))
    assert isinstance(learn.loss_func, BCEWithLogitsLossFlat)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        names, present, probabilities = learn.predict(0)
    assert set(names) <= set(FINDINGS) and len(probabilities) == 3
    dls.show_batch(max_n=4)
    rows = np.flatnonzero(several['split'] == 'test')
    targets = torch.cat([present for _, present in loader_of(dls, several)])
    np.testing.assert_array_equal(targets.numpy(), several[[f'label_{finding}' for finding in FINDINGS]].to_numpy()[rows])

SOFTMAX_LOSSES = [CrossEntropyLossFlat(), nn.CrossEntropyLoss(), nn.NLLLoss(), FocalLossFlat(), LabelSmoothingCrossEntropyFlat(),
                  partial(F.cross_entropy, reduction='sum'), lambda logits, target: 2 * F.cross_entropy(logits, target)]

@pytest.mark.parametrize('loss', SOFTMAX_LOSSES)
def test_several_findings_reach_no_softmax_loss(several, loss):
    dls = make_dls(several, noise_store(several))
    with pytest.raises(CohortError, match='softmax'): check_loss(dls, loss)
    learn = Learner(dls, tiny(dls), loss_func=loss)
    with pytest.raises(CohortError, match='softmax'), learn.no_bar(), learn.no_logging(): learn.fit(1)

def test_other_losses_and_single_labels_pass_the_check(several, cohort):
    dls, one = make_dls(several, noise_store(several)), make_dls(cohort, noise_store(cohort))
    for loss in (BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), nn.MultiLabelSoftMarginLoss()):
        check_loss(dls, loss)
    for loss in SOFTMAX_LOSSES: check_loss(one, loss)
    assert not one.multi_label and isinstance(one.train_ds.loss_func, CrossEntropyLossFlat)

def test_a_finding_without_training_images_is_named(several):
    lost = several.assign(label_Hernia=0)
    with pytest.raises(CohortError, match='Hernia'): make_dls(lost, noise_store(lost))

def test_the_augmentation_of_a_loader_is_a_step_of_its_pipeline(cohort):
    dls = make_dls(cohort, noise_store(cohort), augment='bolhassani')
    steps = [step for step in dls.train.after_batch.fs if isinstance(step, Augment)]
    assert [step.policy for step in steps] == [POLICIES['bolhassani']]
    assert not any(isinstance(step, Augment) for step in make_dls(cohort, noise_store(cohort), augment=False).train.after_batch.fs)

def test_a_loader_for_another_cohort_is_refused(cohort):
    "Row numbers of one cohort are other patients in another"
    dls = make_dls(cohort, noise_store(cohort), batch_size=8)
    for other in (cohort[cohort['split'] == 'test'].reset_index(drop=True), cohort.sample(frac=1, random_state=0).reset_index(drop=True),
                  split_by_patient(cohort.assign(split=None), seed=5)):
        with pytest.raises(CohortError, match='another'): loader_of(dls, other)
    with pytest.raises(CohortError, match='tset'): loader_of(dls, cohort, 'tset')
