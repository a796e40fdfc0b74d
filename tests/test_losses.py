"""Losses equal PyTorch's in value and slope, are safe for any logits, at home in a Learner"""
import json
import math
import pickle

import fastai.callback.progress  # noqa: F401 - gives Learner its no_bar
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.mixup import MixUp
from fastai.learner import Learner, load_learner
from scipy.stats import chisquare
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import WeightedRandomSampler
from torchvision.ops import sigmoid_focal_loss

from cxr_learn.augmentation import balance_by_copies
from cxr_learn.batches import check_loss, make_dls
from cxr_learn.cohorts import CohortError, make_cohort, split_by_patient
from cxr_learn.losses import (LOSSES, FindingsLoss, Loss, OneLabelLoss, correct_prior, loss_named,
                              loss_weights, make_loss, mistake_cost, reciprocal_weights,
                              training_counts, weighted_shares)
from cxr_learn.store import Store

FINDINGS = ('Effusion', 'Nodule', 'Hernia')
ONE_LABEL = [name for name in LOSSES if name not in ('pos_weight', 'focal_alpha')]
GAMMAS = (0., .5, 1., 2., 5.)
NAN = math.nan

def seeded(seed=0): return torch.Generator().manual_seed(seed)

def noise_store(cohort):
    pixels = torch.randint(0, 256, (len(cohort), 16, 16), dtype=torch.uint8, generator=seeded())
    return Store(pixels, tuple(cohort['image']), 'noise')

def as_cohort(rows):
    rows = rows.assign(path='none', patient_rule='given', source='noise')
    return split_by_patient(make_cohort(rows))

def single():
    "A cohort of three labels, one of them rare"
    rows = [dict(image=f'{label}{number:03}', patient_id=f'{label}{number}', label=label)
            for label, patients in dict(ill=60, rare=12, well=100).items()
            for number in range(patients)]
    return as_cohort(pd.DataFrame(rows))

def multi(patients=200):
    "A cohort with several findings per image, the last one rare"
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(dict(patient_id=[f'P{n:03}' for n in range(patients)]))
    for finding, share in zip(FINDINGS, (.4, .25, .1)):
        rows[f'label_{finding}'] = (rng.random(patients) < share).astype(int)
    rows['image'] = rows['patient_id']
    return as_cohort(rows)

def loaders(cohort, balanced=False):
    return make_dls(cohort, noise_store(cohort), batch_size=8, augment=False, balanced=balanced)

@pytest.fixture(scope='module')
def cohort(): return single()

@pytest.fixture(scope='module')
def dls(cohort): return loaders(cohort)

@pytest.fixture(scope='module')
def several(): return loaders(multi())

def batch(classes=4, images=64, spread=3., seed=0):
    "Logits that ask for a slope, class numbers, and 0 or 1 per finding"
    chance = seeded(seed)
    logits = spread * torch.randn(images, classes, generator=chance)
    numbers = torch.randint(0, classes, (images,), generator=chance)
    present = torch.randint(0, 2, (images, classes), generator=chance).float()
    return logits.requires_grad_(), numbers, present

def same(ours, theirs, logits, tolerance=1e-6):
    "Equal in value and in slope"
    slopes = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]
              for value in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*slopes, rtol=tolerance, atol=tolerance)

# ---- against PyTorch

@pytest.mark.parametrize('smoothing', [0., .1, .7])
@pytest.mark.parametrize('reduction', ['none', 'sum', 'mean'])
def test_one_label_equals_pytorch(smoothing, reduction):
    logits, numbers, _ = batch()
    ours = OneLabelLoss(Loss(smoothing=smoothing), torch.ones(4), reduction)(logits, numbers)
    theirs = F.cross_entropy(logits, numbers, label_smoothing=smoothing, reduction=reduction)
    same(ours, theirs, logits, 1e-5 if reduction == 'sum' else 1e-6)

@pytest.mark.parametrize('smoothing', [0., .1])
def test_weighted_equals_pytorch_but_for_the_divisor(smoothing):
    logits, numbers, _ = batch()
    weights = torch.tensor([.5, 1., 2., 18.])
    ours = OneLabelLoss(Loss(smoothing=smoothing), weights, 'none')(logits, numbers)
    def theirs(reduction):
        return F.cross_entropy(logits, numbers, weights, label_smoothing=smoothing,
                               reduction=reduction)
    same(ours, theirs('none'), logits, 2e-6)
    same(ours.sum() / weights[numbers].sum(), theirs('mean'), logits)

@pytest.mark.parametrize('weight', [None, torch.tensor([.5, 3., 40., 1.])])
def test_findings_equal_pytorch(weight):
    logits, _, present = batch()
    weights = torch.ones(2, 4) if weight is None else torch.stack([torch.ones(4), weight])
    ours = FindingsLoss(Loss(), weights)(logits, present)
    same(ours, F.binary_cross_entropy_with_logits(logits, present, pos_weight=weight), logits)

@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('alpha', [None, .25, .9])
def test_focal_findings_equal_torchvision(gamma, alpha):
    logits, _, present = batch()
    counts = pd.DataFrame(dict(absent=1, present=1), index=range(4))
    weights = loss_weights(Loss(alpha, gamma), counts, multi_label=True)
    ours = FindingsLoss(Loss(alpha, gamma), weights, 'none')(logits, present)
    theirs = sigmoid_focal_loss(logits, present, -1 if alpha is None else alpha, gamma)
    same(ours, theirs, logits)

@pytest.mark.parametrize('gamma', GAMMAS)
def test_focal_one_label_equals_the_formula_in_64_bits(gamma):
    logits, numbers, _ = batch()
    weights = torch.tensor([.5, 1., 2., 18.])
    ours = OneLabelLoss(Loss(gamma=gamma), weights, 'none')(logits, numbers)
    p = logits.double().softmax(dim=-1)[torch.arange(len(logits)), numbers]
    same(ours.double(), -weights.double()[numbers] * (1 - p)**gamma * p.log(), logits, 1e-5)

@pytest.mark.parametrize('gamma', GAMMAS)
def test_two_classes_are_one_finding(gamma):
    "A softmax of two is a sigmoid of their difference, smoothing and weights included"
    logits, numbers, _ = batch(classes=2)
    loss = Loss((1., 5.), gamma, .1)
    one = OneLabelLoss(loss, torch.tensor([1., 5.]))(logits, numbers)
    yes = FindingsLoss(loss._replace(class_weights=(5.,)), torch.tensor([[1.], [5.]]))(
        (logits[:, 1] - logits[:, 0])[:, None], numbers[:, None].float())
    same(one, yes, logits)

@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('smoothing', [0., .2])
def test_slopes_agree_with_differences(gamma, smoothing):
    logits, numbers, present = batch(images=6)
    logits, loss = logits.detach().double().requires_grad_(), Loss(gamma=gamma, smoothing=smoothing)
    weights = torch.tensor([[1., .3, 4., 20.], [2., 1., .5, 7.]])
    assert torch.autograd.gradcheck(lambda z: OneLabelLoss(loss, weights[0])(z, numbers), logits)
    assert torch.autograd.gradcheck(lambda z: FindingsLoss(loss, weights)(z, present), logits)

# ---- numbers at the edge

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('smoothing', [0., .1])
def test_huge_logits_stay_finite(dtype, gamma, smoothing):
    sizes = torch.tensor([-1e4, -100., -20., -1e-8, 0., 17., 20., 100., 1e4])
    logits = torch.stack([sizes, -sizes, torch.zeros(9)], dim=1).to(dtype).requires_grad_()
    loss = Loss(gamma=gamma, smoothing=smoothing)
    for number in range(3):
        numbers = torch.full((9,), number)
        for value in (OneLabelLoss(loss, torch.ones(3))(logits, numbers),
                      FindingsLoss(loss, torch.ones(2, 3))(logits, F.one_hot(numbers, 3).float())):
            slope, = torch.autograd.grad(value, logits)
            assert value.isfinite() and value >= 0 and slope.isfinite().all()
            assert value.dtype == torch.promote_types(dtype, torch.float32) and slope.dtype == dtype

def test_bfloat16_is_summed_in_32_bits():
    logits, numbers, present = batch(spread=8.)
    coarse = logits.detach().bfloat16()
    for form, weights, targets in ((OneLabelLoss, torch.ones(4), numbers),
                                   (FindingsLoss, torch.ones(2, 4), present)):
        loss = form(Loss(gamma=2.), weights)
        assert loss(coarse, targets) == loss(coarse.float(), targets)

def test_the_cost_keeps_its_precision_where_the_answer_is_known():
    log_p = torch.tensor([-1e-6, -1e-9], dtype=torch.float32)
    exact = torch.tensor([1e-18, 1e-27])
    torch.testing.assert_close(mistake_cost(log_p, 2.), exact, rtol=1e-5, atol=0)

# ---- weights

def test_weights_come_from_the_training_split(dls, several, cohort):
    train = cohort[cohort['split'] == 'train']['label'].value_counts().sort_index()
    counts = training_counts(dls)
    assert counts['present'].to_dict() == train.to_dict()
    assert (counts.sum(axis=1) == train.sum()).all()
    weights = make_loss('weighted', dls).weights.cpu()
    np.testing.assert_allclose(weights, train.sum() / (3 * train), rtol=1e-6)
    assert np.isclose((weights.numpy() * train).sum() / train.sum(), 1)
    counts = training_counts(several)
    ratio = counts['absent'] / counts['present']
    absent, present = make_loss('pos_weight', several).weights.cpu()
    np.testing.assert_allclose(present, ratio, rtol=1e-6)
    assert (absent == 1).all()
    balanced = make_loss('weighted', several).weights.cpu().numpy()
    np.testing.assert_allclose(balanced[1] / balanced[0], ratio, rtol=1e-6)
    total = (balanced * counts.T.to_numpy()).sum(axis=0)
    np.testing.assert_allclose(total / counts.iloc[0].sum(), 1, rtol=1e-6)
    absent, present = make_loss('focal_alpha', several).weights
    assert (absent == .75).all() and (present == .25).all()

def test_copies_are_counted(cohort):
    enlarged, store = balance_by_copies(cohort, noise_store(cohort))
    counts = training_counts(make_dls(enlarged, store, batch_size=8, augment=False))['present']
    rare = enlarged['split'].eq('train') & enlarged['label'].eq('rare')
    assert counts['rare'] == rare.sum() > 12

def test_reciprocal_weights_are_scikit_learns_balanced_ones():
    labels = np.repeat([0, 1, 2, 3], (1575, 2778, 1494, 82))
    theirs = compute_class_weight('balanced', classes=np.arange(4), y=labels)
    np.testing.assert_allclose(reciprocal_weights(np.bincount(labels)), theirs)

# ---- what is refused

@pytest.mark.parametrize('loss,word', [
    (Loss(gamma=-1.), 'gamma'), (Loss(gamma=NAN), 'gamma'), (Loss(gamma=math.inf), 'gamma'),
    (Loss(smoothing=1.), 'smoothing'), (Loss(smoothing=-.1), 'smoothing'),
    (Loss(smoothing=NAN), 'smoothing'), (Loss('square root'), 'square root'), (Loss(1.5), 'alpha'),
    (Loss(0.), 'alpha'), (Loss(NAN), 'alpha'), (Loss((1., 0.)), 'above 0'),
    (Loss((1., NAN)), 'above 0'),
    ('crossentropy', 'cross_entropy'), (3, 'Unknown loss'), ([], 'Unknown loss')])
def test_numbers_without_a_meaning_are_refused(loss, word, dls):
    with pytest.raises(ValueError, match=word): loss_named(loss)
    with pytest.raises(ValueError, match=word): make_loss(loss, dls)

def test_weights_that_do_not_suit_the_labels_are_refused(dls, several):
    for name in ('pos_weight', 'focal_alpha'):
        with pytest.raises(ValueError, match='several findings'): make_loss(name, dls)
    for loaders_ in (dls, several):
        with pytest.raises(ValueError, match='2 class weights for 3'):
            make_loss(Loss((1., 2.)), loaders_)

@pytest.mark.parametrize('name', ['weighted', 'focal_weighted', 'pos_weight'])
@pytest.mark.parametrize('side', [0., 1.])
def test_a_finding_that_training_never_shows_or_always_shows_is_named(name, side):
    dls = loaders(multi())
    dls.train_ds.tls[1].tfms.fs[0].present[:, 2] = side
    missing = 'absent' if side else 'present'
    with pytest.raises(CohortError, match=f'Hernia.*{missing}'): make_loss(name, dls)
    assert make_loss('focal', dls) is not None

def test_a_class_that_training_never_shows_is_named(cohort):
    dls = loaders(cohort)
    classes = dls.train_ds.tls[1].tfms.fs[0].classes
    classes[classes == 1] = 0
    with pytest.raises(CohortError, match='rare'): make_loss('weighted', dls)

def test_rarity_is_made_up_for_once(cohort):
    balanced = loaders(cohort, balanced=True)
    with pytest.raises(CohortError, match='twice'): make_loss('weighted', balanced)
    for meant in ('focal', 'smoothed', Loss((1., 2., 1.))): make_loss(meant, balanced)

def test_the_form_must_fit_the_targets(dls, several):
    logits, numbers, present = batch(classes=3)
    with pytest.raises(CohortError, match='one label per image'):
        make_loss('focal', dls)(logits, present)
    with pytest.raises(CohortError, match='one label per image'):
        check_loss(several, make_loss('weighted', dls))
    with pytest.raises(CohortError, match='several findings'):
        make_loss('focal', several)(logits, numbers)
    with pytest.raises(ValueError, match='reduction'):
        OneLabelLoss(Loss(), torch.ones(3), 'median')(logits, numbers)
    with pytest.raises(CohortError, match='make_dls'): training_counts(object())

def test_a_loss_is_plain_data():
    for loss in LOSSES.values():
        again = Loss(**json.loads(json.dumps(loss._asdict())))
        assert loss_named(again) == loss and hash(loss) is not None
    assert loss_named(Loss([1, 2])).class_weights == (1., 2.)

# ---- in a Learner

def small_learner(dls, loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, dls.c))
    return Learner(dls, model, loss_func=make_loss(loss, dls))

@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('kind', ['dls', 'several'])
def test_fastai_trains_predicts_and_exports(name, kind, request, tmp_path):
    if kind == 'dls' and name not in ONE_LABEL: return
    dls = request.getfixturevalue(kind)
    learn = small_learner(dls, name)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        probabilities, targets, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
        whole = learn.validate()[0]
        label = learn.predict(0)[0]
    assert probabilities.min() >= 0 and probabilities.max() <= 1 and losses.shape == (len(targets),)
    assert learn.loss_func.reduction == 'mean'
    assert np.isclose(losses.mean(), whole, rtol=1e-5)  # however the images fall into batches
    if kind == 'dls':
        assert torch.equal(decoded, probabilities.argmax(dim=1)) and label in dls.vocab
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(targets)))
    else: assert torch.equal(decoded, probabilities > .5) and set(label) <= set(dls.vocab)
    learn.export(tmp_path/'learner.pkl')
    again = load_learner(tmp_path/'learner.pkl')
    assert torch.equal(again.loss_func.weights.cpu(), learn.loss_func.weights.cpu())

def test_mixup_works(dls, several):
    for loaders_ in (dls, several):
        learn = small_learner(loaders_, 'focal_weighted')
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=MixUp())
        assert np.isfinite(learn.recorder.values[-1][0])

def test_a_loss_travels(dls, several):
    for loaders_ in (dls, several):
        loss = make_loss('focal_weighted', loaders_)
        again = pickle.loads(pickle.dumps(loss))
        assert torch.equal(loss.weights, again.weights)
        assert again.loss == LOSSES['focal_weighted'] and 'gamma=2.0' in repr(again)
        assert list(dict(loss.named_buffers())) == ['weights'] and not list(loss.parameters())
        assert loss.to('meta').weights.device.type == 'meta'

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_weights_follow_to_a_gpu(dls):
    logits, numbers, _ = batch(classes=3)
    loss = make_loss('focal_weighted', dls)
    torch.testing.assert_close(loss(logits.cuda(), numbers.cuda()).cpu(), loss(logits, numbers))

# ---- balance

def test_balanced_batches_are_a_weighted_random_sampler(cohort):
    dls = loaders(cohort, balanced=True)
    labels = cohort['label'].iloc[list(dls.train_ds.items)]
    numbers = labels.map(dls.vocab.o2i).to_numpy()
    sizes, epochs = np.bincount(numbers), 300
    dls.train.rng.seed(0)
    chances = 1 / sizes[numbers]
    ours = np.concatenate([dls.train.get_idxs() for _ in range(epochs)])
    theirs = list(WeightedRandomSampler(chances, epochs * len(numbers), replacement=True,
                                        generator=seeded()))
    expected = epochs * len(numbers) * chances / chances.sum()
    for drawn in (ours, theirs):
        counts = np.bincount(drawn, minlength=len(numbers))
        assert chisquare(counts, expected).pvalue > 1e-3
        assert chisquare(np.bincount(numbers[drawn]), np.full(3, len(drawn) / 3)).pvalue > 1e-3
    assert max(np.bincount(dls.train.get_idxs())) > 1, 'drawn with replacement'

def test_three_ways_pull_in_one_direction():
    "The weighted sum, the expectation of the draw and exact copies have one gradient"
    sizes = (2, 6, 12)
    numbers = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    features = torch.randn(20, 5, dtype=torch.float64, generator=seeded())
    weight = torch.randn(5, 3, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    def slope(loss): return torch.autograd.grad(loss, weight, retain_graph=True)[0]
    each = F.cross_entropy(features @ weight, numbers, reduction='none')
    balanced = torch.tensor(reciprocal_weights(sizes))
    weighted = slope(OneLabelLoss(Loss('reciprocal'), balanced)(features @ weight, numbers))
    chances = 1 / torch.tensor(sizes, dtype=torch.float64)[numbers]
    drawn = slope((each * chances / chances.sum()).sum())
    copies = torch.repeat_interleave(torch.arange(20), torch.tensor((6, 2, 1))[numbers])
    copied = slope(each[copies].mean())
    torch.testing.assert_close(weighted, drawn)
    torch.testing.assert_close(weighted, copied)

# ---- priors

def test_correct_prior_is_elkans_theorem():
    p, trained = np.linspace(0, 1, 21), .5
    for wanted in (.01, .2, .9):
        elkan = wanted * (p - p * trained) / (trained - p * trained + wanted * p - trained * wanted)
        np.testing.assert_allclose(correct_prior(p, trained, wanted), elkan, atol=1e-12)
        both = np.stack([1 - p, p], axis=1)
        compete = correct_prior(both, [1 - trained, trained], [1 - wanted, wanted])
        np.testing.assert_allclose(compete[:, 1], elkan, atol=1e-12)
        back = correct_prior(correct_prior(p, trained, wanted), wanted, trained)
        np.testing.assert_allclose(back, p, atol=1e-12)
    questions = correct_prior(p[:, None].repeat(2, 1), [.5, .3], [.9, .3], multi_label=True)
    np.testing.assert_allclose(questions, np.stack([elkan, p], axis=1), atol=1e-12)
    assert np.array_equal(correct_prior(np.array([0., 1.]), .5, .01), [0., 1.])

def test_correct_prior_is_bayes_rule():
    "Likelihoods stay, priors change: the posterior of the new prior comes out"
    likelihood = np.random.default_rng(0).random((50, 4))
    def posterior(prior):
        return likelihood * prior / (likelihood * prior).sum(axis=1, keepdims=True)
    old, new = np.array([.25, .25, .25, .25]), np.array([.6, .3, .09, .01])
    np.testing.assert_allclose(correct_prior(posterior(old), old, new), posterior(new))

def test_weights_shift_the_log_odds_of_a_logistic_regression_and_it_is_put_back():
    rng = np.random.default_rng(0)
    ill = rng.random(40_000) < .05
    x = (rng.normal(size=len(ill)) + 1.5 * ill)[:, None]
    plain, weighted = (LogisticRegression(C=np.inf, class_weight=weight, tol=1e-8).fit(x, ill)
                       for weight in (None, 'balanced'))
    counts = np.bincount(ill)
    weights = reciprocal_weights(counts)
    shift = weighted.intercept_ - plain.intercept_
    assert abs(shift[0] - np.log(weights[1] / weights[0])) < .15
    np.testing.assert_allclose(weighted_shares(counts, weights), [.5, .5])
    back = correct_prior(weighted.predict_proba(x)[:, 1], .5, ill.mean())
    assert abs(back.mean() - ill.mean()) < .002
    king_zeng = np.log((1 - ill.mean()) / ill.mean())  # the log-odds of training are even
    log_odds = weighted.decision_function(x) - king_zeng
    np.testing.assert_allclose(back, 1 / (1 + np.exp(-log_odds)), rtol=1e-8)

@pytest.mark.parametrize('arguments,word', [
    (([.2, 1.2], .5, .1), 'after softmax'), (([.2, NAN], .5, .1), 'after softmax'),
    (([.2], 0., .1), 'trained'), (([.2], .5, 1.), 'wanted'), (([.2], .5, NAN), 'wanted'),
    (([.2, .8], [.5, .5], [.9, .1]), 'one share'),
    (([[.2, .2]], [.5, .5], [.9, .1]), 'multi_label'),
    (([[.2, .8]], [.5, .6], [.5, .5]), 'add up to 1')])
def test_impossible_priors_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word): correct_prior(*map(np.asarray, arguments))
