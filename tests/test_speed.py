"""What `fastest` chooses where, and how threads are chosen, on machines that are only pretended"""
import pytest
import torch

import cxr_learn.speed as speed
from cxr_learn.cnn import custom_cnn
from cxr_learn.speed import PLAIN, Speed, choose_threads, fastest, native_bf16, set_speed, trial_step

@pytest.mark.parametrize('capabilities, native', [({}, False), (dict(avx512_bf16=True), True), (dict(amx_bf16=True), True),
                                                  (dict(avx512_bf16=False, avx2=True), False)])
def test_bf16_only_where_it_is_native(capabilities, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities, raising=False)
    assert native_bf16('cpu') is native and fastest('cpu') == Speed(native, True, True)

def test_old_pytorch_apple_and_cards(monkeypatch):
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    assert fastest('cpu') == Speed(False, True, True)
    assert fastest(torch.device('mps')) == Speed(False, False, True)
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: able)
        assert fastest('cuda:1') == Speed(able, True, True)

@pytest.mark.parametrize('seconds, chosen', [({1: 1., 2: 1., 4: 1.}, 1), ({1: 1., 2: .95, 4: .94}, 1), ({1: 1., 2: .6, 4: .58}, 2),
                                             ({1: 1., 2: .6, 4: .3}, 4), ({1: 1., 2: 10., 4: .5}, 4)])
def test_more_threads_must_be_worth_it(seconds, chosen, monkeypatch):
    state = dict(threads=3, now=0.)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: state['threads'])
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: state.update(threads=number))
    monkeypatch.setattr(speed, 'perf_counter', lambda: state['now'])
    def work(): state['now'] += seconds[state['threads']]
    assert choose_threads(work, (4, 1, 2)) == chosen and state['threads'] == 3

def test_threads_come_back_after_an_error():
    before = torch.get_num_threads()
    def fail(): raise RuntimeError('no memory')
    with pytest.raises(RuntimeError): choose_threads(fail, (before + 1,))
    assert torch.get_num_threads() == before

def test_the_settings_change_the_sums_only_by_rounding():
    torch.manual_seed(0)
    net, images = custom_cnn(4).eval(), torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        plain = set_speed(net, PLAIN)(images)
        torch.testing.assert_close(set_speed(net, Speed(channels_last=True))(images), plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(set_speed(net, Speed(bf16=True))(images), plain, rtol=.05, atol=.01)

def test_a_trial_leaves_the_model_and_chance_alone():
    net = custom_cnn(2)
    net.head.insert(0, torch.nn.Dropout(.5))
    before, chance = {name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()
    trial_step(net, torch.zeros(2, 1, 32, 32))()
    assert chance.equal(torch.get_rng_state()) and all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())
    assert all(weights.grad is None for weights in net.parameters())
