"""Heat maps: equal to autograd for every body and head, the network left as found, bad input named"""
import pytest
import torch
from torch.nn import functional as F

from cxr_learn.cnn import custom_cnn, simple_cnn
from cxr_learn.explanation import (MissingLibrary, cell_maps, empty_maps, heat_maps, library_maps, phantom_cohort, plot_heat_maps,
                                   pooled_weights, stretch)
from cxr_learn.freezing import freeze_blocks
from cxr_learn.phantom import make_phantoms
from cxr_learn.speed import Speed, set_speed
from cxr_learn.transfer import transfer_net

NETWORKS = {**{f'resnet18 {head}': lambda head=head: transfer_net(weights='none', classes=3, head=head)
               for head in ('linear', 'dropout', 'dense', 'fastai')},
            'not standardised': lambda: transfer_net(weights='none', classes=3, standardise=False),
            'one channel': lambda: transfer_net(weights='none', classes=3, channels=1),
            'densenet121': lambda: transfer_net('densenet121', 'none', 3),
            'custom': lambda: custom_cnn(3), 'simple': lambda: simple_cnn(3)}

@pytest.fixture(scope='module')
def images(): return torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))

def by_hooks(model, images, number, block):
    "Grad-CAM as the paper has it, through the whole network"
    kept = []
    handle = model.blocks[block].register_forward_hook(lambda module, given, made: kept.append(made.clone()) or kept[-1])
    logits = model(images)
    handle.remove()
    gradient, = torch.autograd.grad(logits[:, number].sum(), kept[0])
    cells = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    return F.interpolate(cells[:, None], size=images.shape[-2:], mode='bilinear')[:, 0].detach()

def settle(model):
    "Statistics and weights that are not those of a new network"
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_var.uniform_(.5, 2)
            layer.running_mean.normal_()
            if layer.affine: torch.nn.init.uniform_(layer.weight, .5, 2)
    return model.eval()

@pytest.mark.parametrize('name', NETWORKS)
def test_maps_equal_the_gradient_through_the_whole_network(name, images):
    model = settle(NETWORKS[name]())
    for block in (-1, -2):
        expected = by_hooks(model, images, 1, block)
        found = heat_maps(model, images, 1, block)
        assert (found - expected).abs().max() <= 1e-6 * max(1, float(expected.max()))

def test_only_linear_heads_have_the_closed_form():
    closed = {name: pooled_weights(make().head) is not None for name, make in NETWORKS.items()}
    assert [name for name, yes in closed.items() if not yes] == ['resnet18 dense', 'resnet18 fastai', 'simple']

def test_the_network_is_left_as_it_was(images):
    model = freeze_blocks(transfer_net(weights='none', classes=3, head='dense'), 2).train()
    model.blocks[0].eval()
    model.zero_grad()
    model.head[-1].weight.grad = torch.ones_like(model.head[-1].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    for block in (-1, 0): heat_maps(model, images, block=block)
    assert [part.training for part in model.modules()] == modes
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert model.head[-1].weight.grad.eq(1).all() and model.head[1].weight.grad is None if hasattr(model.head[1], 'weight') else True
    assert not any(part._forward_hooks or part._backward_hooks for part in model.modules())
    assert sum(parameter.requires_grad for parameter in model.blocks[:2].parameters()) == 0

def test_batches_bytes_and_inference_mode_change_nothing(images):
    model = transfer_net(weights='none', classes=3).eval()
    whole = heat_maps(model, images, [0, 1, 2], block=-2)
    assert torch.allclose(heat_maps(model, images, torch.tensor([0, 1, 2]), block=2, batch_size=1), whole, atol=1e-6)
    with torch.inference_mode(): assert heat_maps(model, images, [0, 1, 2], block=-2).equal(whole)
    pixels = (images[:, 0] * 255).round().to(torch.uint8)
    assert heat_maps(model, pixels, 1).equal(heat_maps(model, pixels[:, None] / 255, 1))
    assert heat_maps(model, pixels[:0], 1).shape == (0, 64, 64)

def test_bf16_agrees_with_32_bits(images):
    model = transfer_net(classes=3).eval()
    exact = cell_maps(model, images, 1).flatten()
    fast = cell_maps(set_speed(model, Speed(bf16=True, channels_last=True)), images, 1).flatten()
    assert torch.corrcoef(torch.stack([exact, fast]))[0, 1] > .99

def test_cells_add_up_to_the_logit(images):
    model = settle(transfer_net(classes=3))
    with torch.no_grad(): logits, constant = model(images), model.head(torch.zeros(1, 512, 2, 2))
    assert torch.allclose(cell_maps(model, images, 2).sum((1, 2)) + constant[0, 2], logits[:, 2], atol=1e-4)
    assert heat_maps(model, images).equal(heat_maps(model, images, logits.argmax(1)))

def test_empty_maps_are_told_and_stay_empty():
    maps = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 1e-9), torch.eye(4), 3 * torch.eye(4)])
    assert empty_maps(maps).tolist() == [True, True, False, False]
    with pytest.warns(UserWarning, match='2 of 4 maps are zero everywhere'): alone = stretch(maps)
    assert alone.amax((1, 2)).tolist() == [0, 0, 1, 1]
    with pytest.warns(UserWarning): assert torch.allclose(stretch(maps, together=True).amax((1, 2)), torch.tensor([0, 0, 1 / 3, 1]))

@pytest.mark.parametrize('wrong, said', [
    (dict(block=4), '4 blocks'), (dict(block=-5), '-4'), (dict(classes=3), '0 to 2'), (dict(classes=-1), 'Class number -1'),
    (dict(classes=[0, 1]), 'one for each of the 3'), (dict(classes=1.5), 'class number')])
def test_a_wrong_question_is_refused(images, wrong, said):
    with pytest.raises(ValueError, match=said): heat_maps(transfer_net(weights='none', classes=3), images, **wrong)

def test_wrong_images_are_refused(images):
    model = custom_cnn(2)
    for wrong in (images[0], images.repeat(1, 3, 1, 1), 255 * images, images - 1, images * torch.nan):
        with pytest.raises(ValueError): heat_maps(model, wrong)
    with pytest.raises(ValueError, match='too small'): heat_maps(model, images[..., :16, :16])
    with pytest.raises(ValueError, match='no BlockNet'): heat_maps(torch.nn.Linear(1, 1), images)
    with torch.no_grad(): model.blocks[0][0].weight[:] = torch.nan
    with pytest.raises(ValueError, match='no numbers'): heat_maps(model, images, 1)

def test_library_maps_leave_the_network_alone(images):
    pytest.importorskip('pytorch_grad_cam')
    model = transfer_net('densenet121', 'none', 3).train()
    for method in ('layer_cam', 'grad_cam++'):
        maps = library_maps(model, images, 1, -2, 2, method)
        assert maps.shape == (3, 64, 64) and 0 <= maps.min() and maps.max() <= 1.001
    assert model.training and all(parameter.grad is None for parameter in model.parameters())

def test_a_missing_library_is_named(images, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pytorch_grad_cam', None)
    with pytest.raises(MissingLibrary, match=r'cxr_learn\[cam\]'): library_maps(custom_cnn(2), images)
    with pytest.raises(ValueError, match='layer_cam'): library_maps(custom_cnn(2), images, method='saliency')

def test_a_cohort_in_memory_and_a_figure():
    phantoms = make_phantoms(8, ('normal', 'mass'), (1, 2), 64, duplicates=.2)
    cohort, store = phantom_cohort(phantoms)
    store.check_fits(cohort)
    assert store.pixels.equal(phantoms.images) and list(cohort['label']) == list(phantoms.table['label'])
    maps = torch.zeros(2, 64, 64)
    maps[0, 3, 3] = 1
    figure = plot_heat_maps(store.pixels[:2], maps, ['a', 'b'], [.2, .3], 8, phantoms.masks['mass'][:2])
    assert 'no evidence' in figure.axes[3].get_xlabel() and '2 of 8' in figure._suptitle.get_text()
