"""Bodies fall into blocks without losing a piece, and weights are what their name says or are refused"""
import json
import pickle
import re
import warnings
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from cxr_learn import transfer
from cxr_learn.checkpoints import save_weights
from cxr_learn.cnn import HEADS, BlockNet, count_parameters, custom_cnn, make_head, parameter_table, simple_cnn
from cxr_learn.networks import ARCHITECTURES, GreyStem, WeightsError, preactivation_blocks, timm_network
from cxr_learn.transfer import (SHIPPED_FILE, body_weights, read_weights, refuse_contaminated, trained_on,
                                transfer_net, weights_card, weights_digest)

BODIES = {'resnet18': 11_176_512, 'resnet34': 21_284_672, 'resnet50': 23_508_032, 'resnet152': 58_143_808,
          'densenet121': 6_953_856, 'resnetv2_101': 42_492_480, 'resnetv2_152': 58_136_128}
KERAS_OFFSETS = 64 + 256 * 3 + 512 * 8 + 1024 * 36 + 2048 * 3 + 256 + 512 + 1024 + 2048

def of_timm(architecture):
    if architecture.startswith('resnetv2'): pytest.importorskip('timm')

@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_every_body_has_four_blocks_and_the_makers_parameters(architecture):
    of_timm(architecture)
    with torch.device('meta'): model = transfer_net(architecture, 'none', 3)
    table = parameter_table(model, 96)
    features = ARCHITECTURES[architecture].features
    assert list(table['block']) == ['block 1', 'block 2', 'block 3', 'block 4', 'head']
    assert table['parameters'][:4].sum() == BODIES[architecture]
    assert table['parameters'].sum() == table['trainable'].sum() == count_parameters(model)
    assert table['parameters'].iloc[-1] == 3 * (features + 1)
    assert table['output'].iloc[3] == f'{features} x 3 x 3'
    if hasattr(ARCHITECTURES[architecture].imagenet, 'meta'):
        published = ARCHITECTURES[architecture].imagenet.meta['num_params']
        assert BODIES[architecture] == published - 1000 * (features + 1)

def test_resnet152v2_differs_from_keras_by_its_offsets_alone():
    assert BODIES['resnetv2_152'] + KERAS_OFFSETS == 58_187_904

@pytest.mark.parametrize('kind', ['resnet18', 'densenet121', 'timm'])
def test_the_blocks_in_a_row_are_the_whole(kind):
    if kind == 'timm':
        pytest.importorskip('timm')
        make, blocks, head = lambda: timm_network('resnetv2_18'), preactivation_blocks, None
    else: make, blocks, head = (getattr(ARCHITECTURES[kind], part) for part in ('make', 'blocks', 'head'))
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(make().eval())
    if head: setattr(networks[0], head, nn.Identity())
    pieces, images = nn.Sequential(*blocks(networks[1]), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(2, 3, 32, 32)
    with torch.no_grad(): torch.testing.assert_close(pieces(images), networks[0](images))

@pytest.mark.parametrize('architecture', ['resnet18', 'densenet121'])
def test_one_grey_channel_equals_three(architecture):
    images = torch.rand(2, 1, 32, 32)
    nets = []
    for channels in (3, 1):
        torch.manual_seed(0)
        nets.append(transfer_net(architecture, 'none', 2, channels=channels).eval())
    with torch.no_grad(): torch.testing.assert_close(nets[1](images), nets[0](images), atol=1e-4, rtol=1e-3)
    assert isinstance(nets[1].blocks[0][0], GreyStem)
    assert count_parameters(nets[0]) - count_parameters(nets[1]) == 64 * 7 * 7

NETWORKS = {'custom_cnn': custom_cnn, 'simple_cnn': simple_cnn,
            **{head: lambda classes, head=head: BlockNet(custom_cnn(2).blocks, make_head(512, classes, head)) for head in HEADS},
            'resnet18': lambda classes: transfer_net('resnet18', 'none', classes)}

@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('side, images', [(64, 1), (64, 2), (32, 1), (16, 1), (8, 2)])
def test_an_image_too_few_or_too_small_is_told_in_plain_words(name, side, images):
    for training in (True, False):
        try: logits = NETWORKS[name](1).train(training)(torch.rand(images, 1, side, side))
        except ValueError as error:
            assert (f'{side} x {side} pixels are too small' in str(error)
                    or training and images == 1 and '2 or more' in str(error)), error
        else: assert logits.shape == (images, 1)

def test_one_finding_is_trained_with_binary_cross_entropy():
    torch.manual_seed(0)
    images, present = torch.rand(8, 1, 64, 64), torch.tensor([0., 1] * 4)[:, None]
    images[present[:, 0] == 1, :, :32] += 1
    model = custom_cnn(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(8):
        loss = nn.functional.binary_cross_entropy_with_logits(model(images), present)
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    assert loss < .3

# weights of others

def resnet18_state(): return models.resnet18(num_classes=14).state_dict()

@pytest.mark.parametrize('wrap', [
    lambda state: state, lambda state: {'state_dict': state, 'epoch': 3}, lambda state: {'model': state},
    lambda state: {'model': {f'module.{name}': tensor for name, tensor in state.items()}, 'opt': {}},
    lambda state: {f'module.model.{name}': tensor for name, tensor in state.items()},
    lambda state: {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
    lambda state: {name: tensor for name, tensor in state.items() if 'num_batches' not in name}])
def test_files_of_others_are_unwrapped(wrap, tmp_path):
    state = resnet18_state()
    torch.save(wrap(state), file := tmp_path/'theirs.pth')
    body, head = read_weights(file)
    assert head == ['fc.weight', 'fc.bias']
    model = transfer_net('resnet18', str(file), 2)
    torch.testing.assert_close(model.blocks[0][0].weight, state['conv1.weight'], atol=1e-3, rtol=1e-2)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in body.values())

def test_densenets_of_2017_and_their_names_fit(tmp_path):
    "torchvision's own file and CheXNet's reimplementations: `norm.1`, no counters, a head of one more level"
    state = models.densenet121(num_classes=14).state_dict()
    old = {'module.densenet121.' + re.sub(r'(denselayer\d+\.(?:norm|conv))([12])', r'\1.\2', name).replace(
        'classifier.', 'classifier.0.'): tensor for name, tensor in state.items() if 'num_batches' not in name}
    assert any('norm.1' in name for name in old)
    torch.save({'state_dict': old}, file := tmp_path/'chexnet.pth')
    assert read_weights(file)[1] == ['classifier.0.weight', 'classifier.0.bias']
    last = transfer_net('densenet121', str(file), 2).blocks[3][0].denselayer16.conv2.weight
    assert torch.equal(last, state['features.denseblock4.denselayer16.conv2.weight'])

@pytest.mark.parametrize('architecture', ['resnet18', 'densenet121'])
def test_torchvisions_imagenet_weights_lose_their_head_alone(architecture):
    plan = ARCHITECTURES[architecture]
    state = plan.make().state_dict()
    with mock.patch('torchvision.models._api.load_state_dict_from_url', return_value=state):
        model = transfer_net(architecture, 'imagenet', 5)
    first = next(tensor for name, tensor in state.items() if tensor.dim() == 4)
    assert torch.equal(model.blocks[0][0].weight, first)

@pytest.mark.parametrize('spoil, words', [
    (lambda state: {name: tensor for name, tensor in state.items() if 'layer3' not in name}, r'25 missing \(layer3.0.bn1.bias, .*, \.\.\.\)'),
    (lambda state: {**state, 'layer5.weight': torch.zeros(2)}, r'1 unexpected \(layer5.weight\)'),
    (lambda state: {**state, 'conv1.weight': torch.zeros(64, 1, 7, 7)}, r'1 of another shape \(conv1.weight \(64, 1, 7, 7\) for \(64, 3, 7, 7\)\)'),
    (lambda state: {**state, 'conv1.weight': torch.full((64, 3, 7, 7), float('nan'))}, 'conv1.weight holds values that are no numbers'),
    (lambda state: {'0.' + name: tensor for name, tensor in state.items()}, 'missing .*unexpected')])
def test_what_does_not_fit_is_named(spoil, words, tmp_path):
    body = {name: tensor for name, tensor in resnet18_state().items() if not name.startswith('fc.')}
    save_file(spoil(body), file := tmp_path/'body.safetensors')
    with pytest.raises(WeightsError, match=words): transfer_net('resnet18', str(file), 2)

def test_another_architectures_file_names_the_architecture(tmp_path):
    save_file(models.densenet121().state_dict(), file := tmp_path/'dense.safetensors')
    with pytest.raises(WeightsError, match='do not fit: .*for resnet18.* missing .* unexpected'): transfer_net('resnet18', str(file), 2)
    with pytest.raises(WeightsError, match='do not fit: .*for resnet50.* of another shape'): transfer_net('resnet50', str(SHIPPED_FILE), 2)

class Trap:
    def __init__(self, place): self.place = place
    def __reduce__(self): return Path.touch, (self.place,)

@pytest.mark.parametrize('old', [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(old, tmp_path):
    trap = Trap(tmp_path/'trapped')
    file = tmp_path/'trap.pth'
    for whole in ({'conv1.weight': trap}, trap, {'state_dict': {**resnet18_state(), 'x': trap}}):
        torch.save(whole, file, _use_new_zipfile_serialization=not old)
        with pytest.raises(WeightsError, match='nothing was run'): read_weights(file)
    file.write_bytes(pickle.dumps(trap))
    with pytest.raises(WeightsError): read_weights(file)
    torch.save(models.resnet18(), file, _use_new_zipfile_serialization=not old)  # a whole network, not its numbers
    with pytest.raises(WeightsError, match='state_dict'): read_weights(file)
    assert not (tmp_path/'trapped').exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path/'trapped').exists(), 'the trap is no trap'

class Program(nn.Module):
    def forward(self, images): return images + 1

def test_torchscript_is_refused_before_its_reader_sees_it(tmp_path):
    file = tmp_path/'program.pt'
    torch.jit.script(Program()).save(file)
    with mock.patch('torch.jit.load') as run:
        with pytest.raises(WeightsError, match='no code in it was run'): transfer._read_modules(file)
        with pytest.raises(WeightsError, match='nothing was run'): read_weights(file)
        assert not run.called
        torch.load(file, weights_only=False)
        assert run.called, 'the program is no program'

def test_nobody_is_told_to_run_a_suspicious_file(tmp_path):
    file = tmp_path/'suspicious.pth'
    torch.jit.script(Program()).save(tmp_path/'program.pt')
    contents = [(tmp_path/'program.pt').read_bytes(), pickle.dumps(Trap(file)), b'x', b'not weights at all' * 50]
    for old in (False, True):
        for whole in (Trap(file), {'conv1.weight': Trap(file)}, models.resnet18()):
            torch.save(whole, file, _use_new_zipfile_serialization=not old)
            contents.append(file.read_bytes())
    for content in contents:
        file.write_bytes(content)
        for read in (read_weights, transfer._read_modules):
            with pytest.raises(WeightsError) as caught: read(file)
            assert not re.search('weights_only|[Rr]e-running|Only if you|add_safe_globals', str(caught.value)), caught.value

def test_a_whole_network_of_ours_is_told_from_a_body(tmp_path):
    save_weights(transfer_net('resnet18', 'none', 2), file := tmp_path/'best.safetensors')
    with pytest.raises(WeightsError, match='whole network of this library.*save_body'): transfer_net('resnet18', str(file), 2)

@pytest.mark.parametrize('suffix', ['safetensors', 'pth', 'pt'])
def test_damaged_files_are_named(suffix, tmp_path):
    file = tmp_path/f'body.{suffix}'
    write = save_file if suffix == 'safetensors' else torch.save
    write(resnet18_state(), file)
    whole = file.read_bytes()
    for spoilt in (b'', b'x', whole[:100], whole[:len(whole) // 2], whole[:-1], b'not weights at all' * 50):
        file.write_bytes(spoilt)
        with pytest.raises(WeightsError, match=f'body.{suffix}'): body_weights('resnet18', str(file))
    file.unlink()
    with pytest.raises(WeightsError, match=f'body.{suffix}'): body_weights('resnet18', str(file))
    file.mkdir()
    with pytest.raises(WeightsError, match=f'body.{suffix}'): body_weights('resnet18', str(file))

@pytest.mark.parametrize('content', [{}, [], 3, {'epoch': 3}, {'state_dict': {}}, torch.zeros(3)])
def test_a_file_without_tensors_by_name_is_refused(content, tmp_path):
    torch.save(content, file := tmp_path/'odd.pth')
    with pytest.raises(WeightsError, match='state_dict'): read_weights(file)

def test_what_cannot_be_had_says_what_can(tmp_path):
    for architecture, weights, words in (
            ('resnet50', 'shipped', 'use resnet18'), ('resnet34', 'in_domain', 'use resnet18'), ('resnet18', 'cxr', 'use densenet121'),
            ('resnetv2_152', 'imagenet', 'resnetv2_101'), ('resnet19', 'none', 'Unknown architecture'), ('resnet18', 'imagnet', 'Unknown weights')):
        with pytest.raises(WeightsError, match=words): transfer_net(architecture, weights, 2)
    with mock.patch.object(transfer, 'IN_DOMAIN_FILE', tmp_path/'absent.safetensors'):
        with pytest.raises(WeightsError, match='chapter on pretraining'): body_weights('resnet18', 'in_domain')
    with mock.patch.dict('sys.modules', {'timm': None, 'torchxrayvision': None, 'torchxrayvision.models': None}):
        with pytest.raises(WeightsError, match=r"pip install 'cxr_learn\[timm\]'"): transfer_net('resnetv2_101', 'none', 2)
        with pytest.raises(WeightsError, match=r"pip install 'cxr_learn\[xrv\]'"): transfer_net('densenet121', 'cxr', 2)

# torchxrayvision

@pytest.fixture(scope='module')
def xrv():
    with warnings.catch_warnings(): return pytest.importorskip('torchxrayvision')

@pytest.fixture(scope='module', params=[False, True], ids=['zip', 'before 2020'])
def cxr_file(xrv, request, tmp_path_factory):
    "A network of theirs with random weights and statistics, saved as they save it"
    torch.manual_seed(0)
    network = xrv.models.DenseNet(num_classes=18, in_channels=1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(); layer.running_var.uniform_(.5, 2.)
    file = tmp_path_factory.mktemp('xrv')/'nih.pt'
    torch.save(network, file, _use_new_zipfile_serialization=not request.param)
    return network.eval(), file

def test_cxr_computes_torchxrayvisions_features(cxr_file, xrv):
    network, file = cxr_file
    images = torch.rand(2, 1, 64, 64)
    with mock.patch.object(transfer, '_cxr_file', return_value=file):
        model = transfer_net('densenet121', 'cxr', 5, standardise=False).eval()
        assert weights_digest('densenet121', 'cxr') != 'densenet121 cxr'
        with pytest.raises(WeightsError, match='one grey channel'): transfer_net('densenet121', 'cxr', 5, channels=3)
        assert transfer_net('densenet121', 'cxr', 5, channels=1).blocks[0][0].in_channels == 1
    theirs = torch.from_numpy(xrv.utils.normalize(images.numpy() * 255, 255))
    with torch.no_grad():
        torch.testing.assert_close((images - model.mean) / model.std, theirs, atol=1e-3, rtol=0.)
        expected = network.features2(theirs)
        torch.testing.assert_close(model.head[:2](model.blocks(theirs)), expected)
        torch.testing.assert_close(model(images), model.head[2](expected), atol=1e-3, rtol=1e-3)

def test_the_fault_of_a_cxr_file_is_told(cxr_file, tmp_path):
    network, good = cxr_file
    file = tmp_path/'nih.pt'
    for spoilt in (b'', good.read_bytes()[:-1000], b'nothing'):
        file.write_bytes(spoilt)
        with pytest.raises(WeightsError, match='Delete it'): transfer._read_modules(file)
    trap = Trap(tmp_path/'trapped')
    for old in (False, True):
        torch.save(trap, file, _use_new_zipfile_serialization=not old)
        with pytest.raises(WeightsError, match='no part of a DenseNet'): transfer._read_modules(file)
    assert not (tmp_path/'trapped').exists()
    torch.save({'state': 3}, file)
    with pytest.raises(WeightsError, match='not torchxrayvision'): transfer._read_modules(file)

def test_layers_are_read_as_numbers_whatever_their_class_would_do(tmp_path):
    class Caller:
        def __reduce__(self): return nn.Linear, (2, 3)
    torch.save(Caller(), file := tmp_path/'nih.pt')
    with pytest.raises(WeightsError, match='not torchxrayvision'): transfer._read_modules(file)
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), file)
    assert transfer._read_modules(file)['1.running_var'].tolist() == [1, 1, 1]

def test_no_download_of_cxr_says_so(xrv):
    with mock.patch('torchxrayvision.models.get_weights', side_effect=OSError('no network')):
        with pytest.raises(WeightsError, match='Connect to the network once'): transfer_net('densenet121', 'cxr', 2)
        assert weights_digest('densenet121', 'cxr') == 'densenet121 cxr'

# provenance

@pytest.mark.parametrize('weights, source, refused', [
    ('cxr', 'nih_chestxray14', True), ('cxr', 'covid_radiography', True), ('cxr', 'kermany', False), ('cxr', 'phantom', False),
    ('in_domain', 'nih_chestxray14', True), ('shipped', 'nih_chestxray14', False), ('none', 'nih_chestxray14', False)])
def test_weights_are_not_judged_by_what_they_have_seen(weights, source, refused):
    cohort = pd.DataFrame({'source': ['kermany', source]})
    architecture = 'densenet121' if weights == 'cxr' else 'resnet18'
    if not refused: return refuse_contaminated(cohort, architecture, weights)
    with pytest.raises(WeightsError, match='nih_chestxray14'): refuse_contaminated(cohort, architecture, weights)

@pytest.mark.parametrize('collections', [
    'covid_radiography', ['covid_radiography'], '["tiny", "covid_radiography"]', 'tiny, covid_radiography', 'tiny covid_radiography'])
def test_weights_are_refused_for_the_collections_that_their_own_repeats(collections, tmp_path):
    file = tmp_path/'body.pth'
    torch.save(resnet18_state(), file)
    file.with_suffix('.json').write_text(json.dumps({'collections': collections}))
    for source in ('covid_radiography', 'kermany', 'nih_chestxray14', 'coronahack', 'covid-chestxray-dataset', 'covid_chestxray'):
        with pytest.raises(WeightsError, match=source.replace('-', '.')): refuse_contaminated(pd.DataFrame({'source': [source]}), 'resnet18', str(file))
    refuse_contaminated(pd.DataFrame({'source': ['phantom', 'my hospital']}), 'resnet18', str(file))

def test_names_of_collections_are_not_cut(tmp_path):
    file = tmp_path/'body.safetensors'
    for told, source in (('covid-chestxray-dataset', 'covid-chestxray-dataset'), ('covid_chestxray', 'covid-chestxray-dataset'),
                         ('tiny, st-mary.2019', 'st-mary.2019'), ('tiny; my hospital', 'my hospital')):
        save_file({'x': torch.zeros(1)}, file, {'collections': told})
        with pytest.raises(WeightsError, match='flatter'): refuse_contaminated(pd.DataFrame({'source': [source]}), 'resnet18', str(file))
    refuse_contaminated(pd.DataFrame({'source': ['mary', 'st']}), 'resnet18', str(file))

def test_weights_of_unknown_past_are_used_with_a_warning(tmp_path):
    torch.save(resnet18_state(), file := tmp_path/'theirs.pth')
    cohort = pd.DataFrame({'source': ['kermany']})
    with warnings.catch_warnings(record=True): refuse_contaminated(cohort, 'resnet18', str(file))  # what it imports at first forgets warnings
    with warnings.catch_warnings(record=True) as told:
        for _ in range(3): refuse_contaminated(cohort, 'resnet18', str(file))
    assert ['theirs.pth' in str(one.message) for one in told] == [True]
    with warnings.catch_warnings(action='error'):
        for weights in ('none', 'shipped', 'imagenet'): refuse_contaminated(cohort, 'resnet18', weights)

def test_a_file_tells_its_own_past(tmp_path):
    tensors = load_file(SHIPPED_FILE)
    save_file(tensors, file := tmp_path/'body.safetensors', {'collections': '["nih_chestxray14"]', 'seed': '3'})
    assert weights_card(str(file)) == {'collections': '["nih_chestxray14"]', 'seed': '3'}
    assert trained_on('resnet18', str(file)) == {'nih_chestxray14'}
    save_file(tensors, file)
    assert weights_card(str(file)) == {} and trained_on('resnet18', str(file)) == set()
    with pytest.raises(WeightsError, match='No card'): weights_card('imagenet')
    with pytest.raises(WeightsError, match='No card'): weights_card(str(tmp_path/'absent.safetensors'))
    assert weights_card('shipped')['sha256'] == weights_digest('resnet18', 'shipped')

def test_digests_tell_weights_apart(tmp_path, monkeypatch):
    digests = {weights_digest(architecture, weights) for architecture in ARCHITECTURES for weights in ('none', 'imagenet')}
    assert len(digests) == 2 * len(ARCHITECTURES)
    torch.save(resnet18_state(), tmp_path/'a.pth')
    (tmp_path/'b.pth').write_bytes((tmp_path/'a.pth').read_bytes())
    assert weights_digest('resnet18', str(tmp_path/'a.pth')) == weights_digest('resnet18', str(tmp_path/'b.pth'))
    assert weights_digest('resnet18', str(tmp_path/'absent.pth')).startswith('resnet18 ')
    monkeypatch.chdir(tmp_path)
    (tmp_path/'none').write_bytes(b'a file of this name')
    (tmp_path/'imagenet').write_bytes(b'and of this')
    assert weights_digest('resnet18', 'none') == 'resnet18 none'
    assert weights_digest('custom_cnn', 'imagenet') == 'custom_cnn imagenet'
