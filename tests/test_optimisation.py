"""Optimisers as PyTorch has them, rates per group, and a rate finder that leaves nothing behind"""
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback

from cxr_learn.batches import make_dls
from cxr_learn.checkpoints import seed_everything
from cxr_learn.cnn import BlockNet, conv_block, make_head
from cxr_learn.cohorts import load_phantom, split_by_patient
from cxr_learn.freezing import freeze_blocks
from cxr_learn.optimisation import (OPTIMISERS, SCHEDULES, LearningRate, blocks_and_head, find_learning_rate, group_rates,
                                    make_optimiser, rate_share)
from cxr_learn.phantom import save_phantoms
from cxr_learn.store import build_store
from cxr_learn.training import make_learner, train

PYTORCHS = {'sgd': lambda weights, **k: torch.optim.SGD(weights, momentum=.9, **k),
            'nesterov': lambda weights, **k: torch.optim.SGD(weights, momentum=.9, nesterov=True, **k),
            'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('optimisation')
    cohort = split_by_patient(load_phantom(save_phantoms(
        folder/'phantom', patients=30, findings=('normal', 'cardiomegaly'), image_size=32)))
    return cohort, build_store(cohort, folder/'store', image_size=32)

def small_net(): return BlockNet([conv_block(3, 4, 3), conv_block(4, 8, 3), conv_block(8, 16, 3)], make_head(16, 2))

def new_learner(data, optimiser='adamw'):
    seed_everything(0)
    return make_learner(make_dls(*data, batch_size=8), small_net(), optimiser=optimiser)

@pytest.mark.parametrize('name', OPTIMISERS)
@pytest.mark.parametrize('fused', [True, False])
def test_an_optimiser_is_pytorchs(name, fused):
    def walked(make):
        torch.manual_seed(0)
        net = torch.nn.Linear(5, 3)
        optimiser = make(net)
        for _ in range(20):
            optimiser.zero_grad(); net(torch.linspace(-1, 1, 5)[None]).square().sum().backward(); optimiser.step()
        return torch.cat([weights.detach().flatten() for weights in net.parameters()])
    def ours(net):
        optimiser = make_optimiser(name, fused=fused)([[net.weight], [net.bias]], lr=.01)
        optimiser.set_hypers(wd=.1)
        return optimiser
    theirs = walked(lambda net: PYTORCHS[name](net.parameters(), lr=.01, weight_decay=.1))
    torch.testing.assert_close(walked(ours), theirs, rtol=1e-6, atol=1e-7)

@pytest.mark.parametrize('wrong', [dict(name='rmsprop'), dict(momentum=1.), dict(momentum=-.1), dict(name='nesterov', momentum=0)])
def test_a_wrong_optimiser_is_refused(wrong):
    with pytest.raises(ValueError): make_optimiser(**wrong)

def test_every_plan_stays_between_nothing_and_the_highest_rate():
    for schedule in SCHEDULES:
        shares = [rate_share(schedule, done, int(20 * done)) for done in np.linspace(0, 1, 101)]
        assert min(shares) >= 0 and max(shares) <= 1 and max(shares) > .99

def test_groups_and_rates_follow_what_is_frozen():
    for k in range(4):
        net = freeze_blocks(small_net(), k)
        groups, rates = blocks_and_head(net), group_rates(net, 1., 5., .5)
        assert len(groups) == len(rates) == 4 - k and rates == [.25, .5, 1., 5.][k:]
        assert groups[-1] == list(net.head.parameters())
    net.head.requires_grad_(False)
    with pytest.raises(ValueError, match='thaw'): blocks_and_head(net)
    assert group_rates(small_net(), 1.) == [1., 1., 1., 1.]

def test_a_continued_plan_goes_on_where_it_was(data, tmp_path):
    class SeenRates(Callback):
        order = 65
        def __init__(self, seen): self.seen = seen
        def before_batch(self):
            if self.training: self.seen.append([group['lr'] for group in self.opt.param_groups])
    def rates(schedule, begin=0):
        seen, learn = [], new_learner(data)
        plan = LearningRate(1e-3, 2e-3, schedule, begin, 4, .5, **(dict(every=2, factor=.1) if schedule == 'step' else {}))
        with learn.no_bar(), learn.no_logging(): learn.fit(4 - begin, cbs=[plan, SeenRates(seen)])
        return seen
    for schedule in ('step', 'cosine'):
        whole, late = rates(schedule), rates(schedule, 3)
        assert whole[-len(late):] == late and len(whole) == 4 * len(late)
    assert rates('step')[-1] == pytest.approx([2.5e-5, 5e-5, 1e-4, 2e-4])

def test_the_finder_leaves_no_trace(data, tmp_path):
    def trained(folder, search):
        learn = new_learner(data)
        if search: assert 1e-6 < find_learning_rate(learn, steps=25).suggestion < 1.
        train(learn, tmp_path/folder, epochs=2, progress=False)
        return learn.model.state_dict()
    plain, searched = trained('plain', False), trained('searched', True)
    assert all(tensor.equal(searched[name]) for name, tensor in plain.items())

def test_the_finder_puts_chance_modes_and_callbacks_back(data):
    learn = new_learner(data)
    learn.create_opt()
    learn.model.blocks[0].eval()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), learn.dls.train.rng.getstate()
    optimiser, callbacks = learn.opt, {type(callback) for callback in learn.cbs}
    find_learning_rate(learn, steps=12)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), learn.dls.train.rng.getstate())
    assert learn.opt is optimiser and {type(callback) for callback in learn.cbs} == callbacks
    assert not learn.model.blocks[0].training and learn.model.blocks[1].training

def test_the_finder_uses_training_images_only(data):
    learn = new_learner(data)
    class Seen(Callback):
        def before_batch(self): assert self.training and self.dl is self.dls.train
    with learn.added_cbs(Seen()): find_learning_rate(learn, steps=12)

def test_the_finder_stands_nan(data, capsys):
    lost = find_learning_rate(new_learner(data, 'sgd'), lowest=1., highest=1e30, steps=30)
    assert np.isfinite(lost.table).all(axis=None) and len(lost.table) < 30 and np.isfinite(lost.suggestion)
    assert capsys.readouterr().out == ''
    broken = new_learner(data)
    broken.model.head[-1].weight.data[:] = float('nan')
    with pytest.raises(ValueError, match='first batch'): find_learning_rate(broken)
