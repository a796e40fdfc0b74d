"""Cropping: boxes at the edge, masks that are no lungs, stores that must not be mixed up"""
import numpy as np
import pytest
import torch

from cxr_learn.cropping import (HOWS, Box, LungsNotFound, black_out_lungs, check_lungs, crop_to_lungs, kept_share, lung_box,
                                lung_fault, lung_store, mask_lungs, refused_lungs)
from cxr_learn.lungs import find_lungs
from cxr_learn.phantom import make_phantoms
from cxr_learn.store import Store

@pytest.fixture(scope='module')
def films(): return make_phantoms(40, images_per_patient=(1, 1), seed=12, children=.3, anteroposterior=.4, sources=4)

@pytest.fixture(scope='module')
def store(films): return Store(films.images, tuple(films.table['image_id']), 'a key')

def mask_of(top, left, bottom, right, size=100):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask

def test_the_box_is_square_and_in_the_picture():
    assert lung_box(mask_of(40, 30, 60, 70), margin=0) == Box(30, 30, 70, 70)
    assert lung_box(mask_of(40, 30, 60, 70), margin=.1) == Box(26, 26, 74, 74)
    assert lung_box(mask_of(0, 0, 10, 40), margin=0) == Box(0, 0, 40, 40)      # moved down
    assert lung_box(mask_of(90, 60, 100, 100), margin=.1) == Box(52, 52, 100, 100)
    assert lung_box(mask_of(0, 0, 100, 100), margin=.2) == Box(0, 0, 100, 100)
    assert lung_box(mask_of(50, 50, 51, 51), margin=0) == Box(50, 50, 51, 51)

def test_any_box_keeps_its_own_mask_whole():
    rng = np.random.default_rng(0)
    for _ in range(300):
        (top, bottom), (left, right) = np.sort([rng.choice(101, 2, replace=False) for _ in range(2)])
        mask = mask_of(top, left, bottom, right)
        box = lung_box(mask, rng.uniform(0, .3))
        assert box.bottom - box.top == box.right - box.left and min(box) >= 0 and max(box) <= 100
        assert kept_share(mask[None], [box]) == 1

def test_found_boxes_keep_the_true_lungs(films):
    kept = kept_share(films.masks['lungs'], [lung_box(mask) for mask in find_lungs(films.images)])
    assert (kept >= .99).float().mean() >= .98

def test_masks_without_a_box_are_refused():
    with pytest.raises(LungsNotFound, match='empty'): lung_box(torch.zeros(8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match='square'): lung_box(torch.ones(8, 9, dtype=torch.bool))

def test_what_is_no_pair_of_lungs():
    two = mask_of(20, 15, 80, 40) | mask_of(20, 60, 80, 85)
    assert lung_fault(two) == ''
    faults = {'less than': mask_of(45, 45, 55, 55), 'more than': mask_of(0, 0, 90, 100), 'one side': mask_of(10, 5, 90, 45),
              'centred': mask_of(0, 20, 20, 80)}
    for words, mask in faults.items():
        assert words in lung_fault(mask)
        with pytest.raises(LungsNotFound, match='film7'): check_lungs(mask, 'film7')

def test_phantom_lungs_pass_and_a_black_picture_does_not(films):
    assert not any(map(lung_fault, films.masks['lungs']))
    assert lung_fault(find_lungs(torch.zeros(1, 128, 128, dtype=torch.uint8))[0])

def test_masked_and_blacked_out_add_up(films):
    images, masks = films.images, films.masks['lungs']
    assert torch.equal(mask_lungs(images, masks) + black_out_lungs(images, masks), images)
    boxed = black_out_lungs(images, masks, boxed=True)
    assert not boxed[masks].any() and (boxed == 0).sum() > (black_out_lungs(images, masks) == 0).sum()
    assert torch.equal(black_out_lungs(images, masks * False, boxed=True), images)

def test_a_crop_of_everything_is_the_whole(films):
    boxes = [Box(0, 0, 128, 128)] * len(films.images)
    assert torch.equal(crop_to_lungs(films.images, boxes, 128), films.images)

def test_each_store_has_its_own_key_and_the_same_images(films, store):
    masks = films.masks['lungs']
    stores = {how: lung_store(store, masks, how, 64)[0] for how in HOWS}
    assert len({derived.key for derived in stores.values()} | {store.key}) == 5
    for derived in stores.values():
        assert derived.pixels.shape == (len(masks), 64, 64) and derived.pixels.dtype == torch.uint8
        assert derived.images == store.images
    other = masks.clone(); other[0, 0, 0] = True
    assert lung_store(store, other, 'masked', 64)[0].key != stores['masked'].key
    assert lung_store(store, other, 'whole', 64)[0].key == stores['whole'].key  # masks play no part
    assert lung_store(store, masks, 'cropped', 64, margin=.2)[0].key != stores['cropped'].key
    assert lung_store(store, masks, 'cropped', 32)[0].key != stores['cropped'].key
    assert lung_store(store._replace(key='b'), masks, 'cropped', 64)[0].key != stores['cropped'].key

def test_refused_images_stay_whole_and_are_listed(films, store):
    masks = films.masks['lungs'].clone()
    masks[2], masks[5, :, 64:] = False, False
    whole = lung_store(store, masks, 'whole', 64)[0].pixels
    for how in ('masked', 'cropped'):
        derived, refused = lung_store(store, masks, how, 64)
        assert refused['row'].tolist() == [2, 5] and refused['image'].tolist() == [store.images[row] for row in (2, 5)]
        assert torch.equal(derived.pixels[[2, 5]], whole[[2, 5]])
        assert not torch.equal(derived.pixels[3], whole[3])
    control, refused = lung_store(store, masks, 'blacked_out', 64)
    assert not control.pixels[[2, 5]].any() and len(refused) == 2
    assert masks[2].sum() == 0  # the caller's masks are left alone

def test_wrong_calls_are_named(films, store):
    with pytest.raises(ValueError, match="how = 'croped'"): lung_store(store, films.masks['lungs'], 'croped')
    with pytest.raises(ValueError, match='on this store'): lung_store(store, films.masks['lungs'][:, ::2, ::2])
    with pytest.raises(ValueError, match='on this store'): refused_lungs(store, films.masks['lungs'][:3])

def test_masks_of_bytes_black_out_as_those_of_truths(films):
    masks = films.masks['lungs']
    for of_bytes in (masks.byte(), 255 * masks.byte()):
        for change in (mask_lungs, black_out_lungs, lambda *of: black_out_lungs(*of, boxed=True)):
            assert torch.equal(change(films.images, of_bytes), change(films.images, masks))
