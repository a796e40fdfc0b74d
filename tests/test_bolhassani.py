"What has no place on the page: films added from elsewhere, questions about them, and figures of a run that lacks something"
import matplotlib
import numpy as np
import pandas as pd
import pytest

from cxr_learn.bolhassani import (CLAIMS, RECIPE, REPORTED, TABLE_1, epoch_table, extra_scores,
                                  figures, with_extra_images)
from cxr_learn.cohorts import CohortError, load_phantom, split_by_patient
from cxr_learn.phantom import save_phantoms
from cxr_learn.recipes import PROFILES, fit_to

matplotlib.use('Agg')
CLASSES = ('COVID-19', 'bacterial', 'normal', 'viral')

@pytest.fixture(scope='module')
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp('films')
    def of(name, seed):
        place = save_phantoms(folder/name, 24, ['normal', 'consolidation'], (1, 1), 64, seed)
        cohort = load_phantom(place)
        return cohort.assign(image=f'{name}/' + cohort['image'], patient_id=f'{name} ' + cohort['patient_id'])
    return split_by_patient(of('own', 0), .2, .3), of('other', 1).assign(split='train')

def test_copies_are_left_out_unless_asked_for(films):
    own, other = films
    copies = own.head(3).assign(image=['a', 'b', 'c'], patient_id=['d', 'e', 'f'], split='train')
    extra = pd.concat([other, copies])
    clean, careless = with_extra_images(own, extra), with_extra_images(own, extra, keep_copies=True)
    assert set(clean['image']) == {*own['image'], *other['image']}
    assert len(careless) == len(own) + len(extra)
    assert clean['origin'].value_counts().to_dict() == {'own': len(own), 'added': len(other)}
    assert clean.index.tolist() == list(range(len(clean)))

def test_a_patient_on_both_sides_is_refused(films):
    own, other = films
    tested = own.query("split == 'test'")['patient_id'].iloc[0]
    with pytest.raises(CohortError, match='more than one split'):
        with_extra_images(own, other.assign(patient_id=tested))

def test_the_questions_are_asked_of_the_right_films():
    origin = ['own', 'own', 'own', 'added', 'added', 'healthy', 'healthy']
    label = ['COVID-19', 'COVID-19', 'normal', 'COVID-19', 'COVID-19', 'normal', 'normal']
    called = ['COVID-19', 'viral', 'normal', 'COVID-19', 'COVID-19', 'COVID-19', 'viral']
    told = pd.DataFrame(dict(image=list('abcdefg'), patient_id=list('abcdeff'), label=label))
    for name in CLASSES: told[f'probability_{name}'] = (np.array(called) == name).astype(float)
    cohort = pd.DataFrame(dict(image=list('gfedcba'), origin=origin[::-1]))
    scores = extra_scores(told, cohort)
    assert scores['value'].tolist() == pytest.approx([2 / 3, 4 / 5, 1 / 2, 1, 1 / 2])
    assert scores['images'].tolist() == [3, 5, 2, 2, 2]
    assert scores['patients'].tolist() == [3, 5, 2, 2, 1]

def test_every_reported_number_is_there_once():
    assert len(REPORTED) == sum(map(len, TABLE_1.values())) == len({fact[:3] + fact[4:] for fact in REPORTED})
    assert {fact.value for fact in REPORTED if fact.split == 'test'} == {.621, .802, .755, .8, .7556, .7111}

def test_reported_differences_are_those_of_its_table():
    value = {(fact.arm, fact.split): fact.value for fact in REPORTED}
    for claim in CLAIMS:
        if claim.by is not None:
            assert claim.by == pytest.approx(value[claim.arm, 'test'] - value[claim.against, 'test'], abs=1e-6)

def test_each_profile_can_be_fitted():
    for profile in PROFILES:
        fitted, changes = fit_to(RECIPE, profile)
        assert fitted.tables[0].main in [arm.name for arm in fitted.tables[0].arms]
        assert bool(changes) == (profile != 'full')

def result_of(arms, seeds, on_phantom=False):
    cohort = pd.DataFrame(dict(label=np.repeat(CLASSES, 6), split=['train', 'valid', 'test'] * 8))
    rows = [dict(table='four classes', model=arm, seed=seed, split='test', measure=measure, label=label, value=.5,
                 positive_patients=9) for arm in arms for seed in seeds
            for measure, label in (('accuracy', 'all'), *(('sensitivity', name) for name in CLASSES))]
    history = [dict(epoch=epoch, train_loss=1., valid_loss=1., valid_accuracy=.1 * epoch) for epoch in (1, 2, 3)]
    records = {('four classes', arm, seed): [dict(history=history, best_epoch=3)] for arm in arms for seed in seeds}
    return dict(cohorts={'four classes': cohort}, records=records, results=pd.DataFrame(rows), on_phantom=on_phantom)

def test_figures_do_without_what_a_run_lacks():
    assert len(figures(result_of(['PRCE'], [0]))) == 4
    assert len(figures(result_of(['PRCE', 'RCE'], [0, 1, 2]))) == 4
    assert len(figures(result_of(['PRCE'], [0]) | dict(records={}))) == 2
    assert figures(result_of(['PRCE'], [0]) | dict(cohorts={})) == {}

def test_the_epoch_table_marks_one_kept_epoch_of_each_training():
    epochs = epoch_table(result_of(['PRCE', 'RCE'], [0, 1]))
    assert epochs.groupby(['arm', 'seed'])['kept'].sum().tolist() == [1] * 4
    assert (epochs[epochs['kept']]['epoch'] == 3).all()
