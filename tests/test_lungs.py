"""Lungs: masks, weights and folders that are not as they should be"""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import f1_score

from cxr_learn.lungs import (LUNG_FILE, dice, find_lungs, load_lung_net, lung_net, lung_overlap, read_lung_films, save_lung_net,
                             split_lung_films, tidy_lungs, train_lungs, vary_films)
from cxr_learn.networks import WeightsError
from cxr_learn.phantom import make_phantoms
from cxr_learn.pretraining import REQUIRED, read_provenance
from cxr_learn.store import Store

FACTS = dict.fromkeys(REQUIRED, 'a test')

@pytest.fixture(scope='module')
def films(): return make_phantoms(12, images_per_patient=(1, 1), seed=11, sources=4)

def test_dice_is_sklearns_f1(films):
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.random((5, 9, 7)) < share) for share in (.3, .6))
    expected = [f1_score(b.flatten(), a.flatten()) for a, b in zip(one, other)]
    np.testing.assert_allclose(dice(one, other), expected, rtol=1e-6)
    assert (dice(films.masks['lungs'], films.masks['lungs']) == 1).all()
    np.testing.assert_array_equal(dice(one, other), dice(other, one))

def test_dice_refuses_masks_of_another_size():
    with pytest.raises(ValueError, match=r'\(2, 8, 8\) and \(2, 4, 4\)'): dice(torch.zeros(2, 8, 8), torch.zeros(2, 4, 4))

def test_shipped_weights_find_the_phantoms_lungs(films):
    found = find_lungs(films.images)
    assert found.dtype == torch.bool and found.shape == films.images.shape
    assert dice(found, films.masks['lungs']).mean() > .93

def test_batches_stores_and_sizes_change_nothing(films):
    whole = find_lungs(films.images)
    assert torch.equal(whole, find_lungs(Store(films.images, tuple(map(str, range(len(films.images)))), 'key')))
    assert dice(whole, find_lungs(films.images, batch_size=5)).min() > .999
    larger = torch.nn.functional.interpolate(films.images[:, None].float(), size=[200, 200], mode='bilinear')[:, 0]
    found = find_lungs(larger.to(torch.uint8))
    small = torch.nn.functional.interpolate(found[:, None].float(), size=[128, 128], mode='area')[:, 0] >= .5
    assert dice(small, whole).min() > .97
    assert find_lungs(films.images[:0]).shape == (0, 128, 128)

def test_odd_pictures_are_survived():
    for grey in (0, 255): assert find_lungs(torch.full((1, 64, 64), grey, dtype=torch.uint8)).shape == (1, 64, 64)
    with pytest.raises(ValueError, match='uint8'): find_lungs(torch.zeros(2, 64, 64))
    with pytest.raises(ValueError, match='uint8'): find_lungs(torch.zeros(64, 64, dtype=torch.uint8))

def test_no_more_than_two_patches_without_holes():
    mask = np.zeros((20, 20), dtype=bool)
    mask[1:9, 1:9], mask[1:9, 11:19], mask[12:14, 3:6], mask[4, 4] = True, True, True, False
    tidied = tidy_lungs(mask)
    assert tidied[4, 4] and not tidied[12:].any() and tidied.sum() == 128
    assert not tidy_lungs(np.zeros((4, 4), dtype=bool)).any()

def test_training_repeats_and_the_network_is_left_ready(films):
    small = torch.nn.functional.avg_pool2d(films.images[:, None].float(), 4)[:, 0].to(torch.uint8)
    masks = films.masks['lungs'][:, ::4, ::4]
    (one, losses), (other, again) = (train_lungs(small, masks, steps=3, channels=(4, 8), batch_size=4, seed=1) for _ in range(2))
    assert losses == again and all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))
    assert not one.training and not one.bf16 and find_lungs(films.images, one).shape == films.images.shape

def test_a_training_that_explodes_stops(films):
    with pytest.raises(FloatingPointError, match='lower the'):
        train_lungs(films.images[:, ::4, ::4], films.masks['lungs'][:, ::4, ::4], steps=8, lr=float('inf'), channels=(4, 8))

def test_varied_films_keep_image_and_mask_together(films):
    images, masks = films.images[:, None].float() / 255, films.masks['lungs'][:, None].float()
    varied, moved = vary_films(images, masks, torch.Generator().manual_seed(0))
    again, _ = vary_films(images, masks, torch.Generator().manual_seed(0))
    assert torch.equal(varied, again) and varied.min() >= 0 and varied.max() <= 1
    assert .4 < moved.mean() / masks.mean() < 1.6 and moved.shape == masks.shape

def test_the_shipped_file_is_small_and_says_where_it_comes_from():
    card = json.loads(LUNG_FILE.with_suffix('.json').read_text())
    inside = read_provenance(LUNG_FILE)
    assert LUNG_FILE.stat().st_size < 5e6 and card['dtype'] == 'float16'
    assert {key: card[key] for key in inside} == inside and set(REQUIRED) <= set(card)
    assert 'shenzhen' not in card['collections']

def test_weights_of_another_net_or_damaged_are_refused(tmp_path):
    save_lung_net(lung_net((8, 16, 32, 64)), tmp_path/'small.safetensors', FACTS)
    with pytest.raises(WeightsError, match='of another shape'): load_lung_net(tmp_path/'small.safetensors')
    save_file({'fc.weight': torch.zeros(2)}, tmp_path/'other.safetensors')
    with pytest.raises(WeightsError, match='missing'): load_lung_net(tmp_path/'other.safetensors')
    (tmp_path/'cut.safetensors').write_bytes(LUNG_FILE.read_bytes()[:1000])
    with pytest.raises(WeightsError, match='cannot be read'): load_lung_net(tmp_path/'cut.safetensors')
    with pytest.raises(WeightsError, match='cannot be read'): load_lung_net(tmp_path/'absent.safetensors')
    (tmp_path/'swapped.safetensors').write_bytes(LUNG_FILE.read_bytes())
    (tmp_path/'swapped.json').write_text('{"sha256": "0"}')
    with pytest.raises(WeightsError, match='another digest'): load_lung_net(tmp_path/'swapped.safetensors')
    with pytest.raises(ValueError, match='lacks made_by'): save_lung_net(lung_net(), tmp_path/'x.safetensors', {})

def test_saved_weights_find_the_same_lungs(films, tmp_path):
    save_lung_net(load_lung_net(), tmp_path/'copy.safetensors', FACTS)
    assert torch.equal(find_lungs(films.images, load_lung_net(tmp_path/'copy.safetensors')), find_lungs(films.images))

def folder_of_films(folder, films):
    for part in ('images', 'masks'): (folder/part).mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(films.images, films.masks['lungs'])):
        name = f'{"MCUCXR" if number % 2 else "CHNCXR"}_{number:04d}_{number % 3 % 2}'
        Image.fromarray(image.numpy()).save(folder/'images'/f'{name}.jpg')
        Image.fromarray(mask.numpy()).save(folder/'masks'/f'{name}.png')
    return folder

def test_a_folder_of_films_is_read_and_split_by_patient(films, tmp_path):
    images, masks, table = read_lung_films(folder_of_films(tmp_path/'set', films))
    assert images.shape == masks.shape and masks.dtype == torch.bool
    assert set(table['collection']) == {'montgomery', 'shenzhen'} and set(table['label']) == {'normal', 'tuberculosis'}
    split = split_lung_films(table, test=.34, valid=.17)
    assert table.groupby(['collection', split]).size().to_dict() == {
        (name, part): count for name in ('montgomery', 'shenzhen') for part, count in (('test', 2), ('train', 3), ('valid', 1))}
    assert split.equals(split_lung_films(table, test=.34, valid=.17))

def test_a_damaged_folder_is_named(films, tmp_path):
    folder = folder_of_films(tmp_path/'set', films)
    with pytest.raises(ValueError, match='no masks'): read_lung_films(tmp_path)
    first = sorted((folder/'masks').iterdir())[0]
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(first)
    with pytest.raises(ValueError, match='resize all'): read_lung_films(folder)
    (folder/'images'/f'{first.stem}.jpg').unlink()
    with pytest.raises(ValueError, match='has no film'): read_lung_films(folder)

def test_overlap_has_an_interval_by_patient(films):
    found, truth = find_lungs(films.images), films.masks['lungs']
    table = films.table.assign(set='one')
    row = lung_overlap(found, truth, table, by='set').iloc[0]
    assert row['low'] <= row['value'] <= row['high'] and row['patients'] == 12
    assert lung_overlap(found[:5], truth[:5], table[:5], by='set')['low'].isna().all()
    with pytest.raises(ValueError, match='one row per mask'): lung_overlap(found, truth, table[:3])

def test_shipped_weights_on_real_films(real_data):
    found = [folder for folder in sorted(real_data.iterdir()) if any(folder.glob('masks/MCUCXR_*.png'))]
    if not found: pytest.skip('no films with lung masks below CXR_DATA')
    images, masks, table = read_lung_films(found[0])
    assert table.groupby('collection').size().to_dict() == {'montgomery': 138, 'shenzhen': 566}
    rows = np.flatnonzero(split_lung_films(table) == 'test')
    scores = lung_overlap(find_lungs(images[rows]), masks[rows], table.iloc[rows]).set_index('collection')
    assert scores.loc['montgomery', 'value'] > .96 and scores.loc['shenzhen', 'value'] > .94

def test_a_network_is_left_in_the_mode_it_was_in():
    for training in (True, False):
        network = lung_net().train(training)
        find_lungs(torch.zeros(1, 32, 32, dtype=torch.uint8), network)
        assert network.training == training and network.head.training == training
