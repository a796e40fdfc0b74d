"""Pictures as numbers: rules checked by hand and against scikit-image, whatever the batches; an autoencoder that sees its rows only"""
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_learn.baselines import CODE, PICTURE_KINDS, autoencoder, draw_again, picture_features, resized, train_autoencoder
from cxr_learn.classifiers import classify, fit_classifier, make_classifier
from cxr_learn.cohorts import CohortError, make_cohort, split_by_patient
from cxr_learn.explanation import MissingLibrary, phantom_cohort
from cxr_learn.features import extract_features, feature_matrix
from cxr_learn.measures import check_predictions
from cxr_learn.phantom import make_phantoms
from cxr_learn.store import Store

@pytest.fixture(scope='module')
def data():
    cohort, store = phantom_cohort(make_phantoms(60, ('normal', 'cardiomegaly'), (1, 1), 64))
    return split_by_patient(cohort), store

def numbers(data, kind, **more): return feature_matrix(picture_features(*data, kind, **more))

def test_every_kind_gives_a_table_that_a_classifier_takes(data):
    for kind in PICTURE_KINDS:
        table = picture_features(*data, kind)
        assert table['image'].tolist() == data[0]['image'].tolist() and np.isfinite(feature_matrix(table)).all()
        check_predictions(classify(fit_classifier(make_classifier('logistic'), table), table))

def test_the_shapes(data):
    assert {kind: numbers(data, kind).shape[1] for kind in PICTURE_KINDS} == dict(pixels=32 * 32, hog=7 * 7 * 2 * 2 * 9, lbp=4 * 4 * 10)

@pytest.mark.parametrize('kind', PICTURE_KINDS)
def test_batches_do_not_matter(data, kind): np.testing.assert_array_equal(numbers(data, kind), numbers(data, kind, batch_size=7))

def test_pictures_keep_their_brightness_and_their_place(data):
    small = resized(data[1].pixels, 32)
    np.testing.assert_allclose(small.mean((1, 2)), data[1].pixels.float().mean((1, 2)) / 255, atol=.01)
    np.testing.assert_array_equal(resized(data[1].pixels, 64), data[1].pixels.numpy() / np.float32(255))
    bright = torch.zeros(1, 64, 64, dtype=torch.uint8)
    bright[0, :32, 32:] = 255
    quarters = resized(bright, 32)[0]
    assert quarters[:15, 17:].min() > .99 and quarters[17:].max() < .01 and quarters[:, :15].max() < .01

def test_hog_is_scikit_images(data):
    feature = pytest.importorskip('skimage.feature')
    expected = feature.hog(data[1].pixels[3].numpy() / 255, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
    np.testing.assert_allclose(numbers(data, 'hog')[3], expected, atol=1e-5)

def test_lbp_counts_by_hand_and_shares_add_up(data):
    feature = pytest.importorskip('skimage.feature')
    found = numbers(data, 'lbp').reshape(-1, 4, 4, 10)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    codes = feature.local_binary_pattern(data[1].pixels[5].numpy(), 8, 1, 'uniform')
    by_hand = np.bincount(codes[16:32, 48:].astype(int).ravel(), minlength=10) / 16**2
    np.testing.assert_allclose(found[5, 1, 3], by_hand, atol=1e-6)

def test_lbp_hardly_minds_a_grey_curve(data):
    cohort, store = data
    curved = store._replace(pixels=((store.pixels / 255).sqrt() * 255).round().to(torch.uint8))
    change = {kind: np.abs(numbers(data, kind) - numbers((cohort, curved), kind)).mean() / numbers(data, kind).std() for kind in ('pixels', 'lbp')}
    assert change['lbp'] < .2 < change['pixels']  # not nought: neighbours on the diagonal lie between pixels

def test_labels_and_splits_do_not_change_the_numbers(data):
    cohort, store = data
    other = cohort.assign(label='x', split='test')
    for kind in PICTURE_KINDS: np.testing.assert_array_equal(numbers(data, kind), numbers((other, store), kind))

def test_odd_sides_and_several_findings():
    rows = pd.DataFrame(dict(image=['a', 'b'], path='none', patient_id=['p', 'q'], patient_rule='given', source='noise', split='train',
                             label_x=[1, 0], label_y=[1, 1]))
    store = Store(torch.randint(0, 256, (2, 50, 50), dtype=torch.uint8), ('a', 'b'), 'noise')
    for kind in PICTURE_KINDS:
        table = picture_features(make_cohort(rows), store, kind)
        assert table[['label_x', 'label_y']].to_numpy().tolist() == [[1, 1], [0, 1]] and np.isfinite(feature_matrix(table)).all()

def test_what_is_refused(data, monkeypatch):
    cohort, store = data
    with pytest.raises(ValueError, match='pixels, hog, lbp'): picture_features(cohort, store, 'sift')
    with pytest.raises(ValueError, match='batch_size'): picture_features(cohort, store, batch_size=0)
    with pytest.raises(CohortError, match='not that of this cohort'): picture_features(cohort.iloc[1:], store)
    with pytest.raises(ValueError, match='too small'): picture_features(cohort, store._replace(pixels=store.pixels[:, :6, :6]))
    monkeypatch.setitem(sys.modules, 'skimage', None)
    for kind in ('hog', 'lbp'):
        with pytest.raises(MissingLibrary, match=r"pip install 'cxr_learn\[classical\]'"): picture_features(cohort, store, kind)
    picture_features(cohort, store, 'pixels')

def test_an_autoencoder_squeezes_and_draws():
    for side in (16, 48, 96):
        model = autoencoder(side, code=5).eval()
        films = torch.rand(2, 1, side, side)
        assert model.blocks(films).shape == (2, 5, 1, 1) and model(films).shape == films.shape
    for side in (0, 50):
        with pytest.raises(ValueError, match='multiple of 16'): autoencoder(side)
    with pytest.raises(ValueError, match='code = 0'): autoencoder(64, 0)

@pytest.fixture(scope='module')
def training_rows(data): return np.flatnonzero(data[0]['split'] == 'train')

@pytest.fixture(scope='module')
def coder(data, training_rows): return train_autoencoder(data[1], training_rows, epochs=10, batch_size=8)

def test_same_seed_same_weights_and_other_rows_do_not_matter(data, training_rows, coder):
    cohort, store = data
    pixels = store.pixels.clone()
    pixels[np.flatnonzero(cohort['split'] != 'train')] = 0
    again = train_autoencoder(store._replace(pixels=pixels), training_rows, epochs=10, batch_size=8)
    for one, other in zip(coder.state_dict().values(), again.state_dict().values()): assert one.equal(other)
    other_seed = train_autoencoder(store, training_rows, epochs=1, batch_size=8, seed=1)
    assert any(not one.equal(other) for one, other in zip(coder.parameters(), other_seed.parameters()))

def test_it_learns_to_draw_new_films(data, training_rows, coder):
    films = data[1].pixels[np.flatnonzero(data[0]['split'] == 'test')]
    mean_film = data[1].pixels[training_rows].float().mean(0) / 255
    error, of_the_mean = (((drawn - films / 255)**2).mean() for drawn in (draw_again(coder, films), mean_film))
    assert error < .8 * of_the_mean  # it draws this film, and not the mean of all
    assert not coder.training

def test_its_code_is_what_extract_features_gives(data, coder):
    codes = feature_matrix(extract_features(coder, *data))
    assert codes.shape == (len(data[0]), CODE)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=coder.bf16):
        films = data[1].pixels[:8, None] / 255
        by_hand = coder.blocks(films.contiguous(memory_format=torch.channels_last)).float().flatten(1)
    np.testing.assert_allclose(codes[:8], by_hand, atol=.02 * np.abs(by_hand).max().item())

@pytest.mark.parametrize('wrong', [dict(rows=[0]), dict(epochs=0), dict(batch_size=1)])
def test_trainings_that_cannot_be(data, wrong):
    with pytest.raises(ValueError, match='at least'): train_autoencoder(**{**dict(store=data[1], rows=[0, 1, 2]), **wrong})

def test_a_loss_that_runs_away_is_an_error(data):
    with pytest.raises(FloatingPointError, match='lower lr'): train_autoencoder(data[1], range(16), epochs=3, batch_size=8, lr=float('inf'))
