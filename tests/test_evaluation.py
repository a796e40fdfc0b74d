"""The test set: opened once, its answers kept as they were given"""
import numpy as np
import pandas as pd
import pytest

from cxr_learn.evaluation import OPENED, PlanError, open_test_set, register_plan, test_set_digest as digest_of_test_set

COHORT = pd.DataFrame(dict(image=['a', 'b'], patient_id=['NA', '01'], label=['None', 'null'], split='test', source='s'))
ANSWERS = COHORT.drop(columns='source').assign(probability_None=[.5, np.nan], probability_null=.1, model='NA', seed=0)

@pytest.fixture
def folder(tmp_path):
    register_plan(dict(digest='d' * 16), tmp_path, digest_of_test_set(COHORT))
    return tmp_path

def test_names_that_look_like_nothing_come_back_as_they_were(folder):
    kept = open_test_set(folder, COHORT, lambda: [ANSWERS])
    names = ['image', 'patient_id', 'label', 'model']
    assert kept[names].to_numpy().tolist() == ANSWERS[names].to_numpy().tolist()
    assert np.isnan(kept['probability_None'][1]) and kept['probability_null'].dtype == float

def test_it_is_opened_once(folder):
    asked = []
    for _ in range(2): open_test_set(folder, COHORT, lambda: asked.append(1) or [ANSWERS])
    assert len(asked) == 1

def test_a_damaged_seal_is_no_permission_to_open_it_again(folder):
    open_test_set(folder, COHORT, lambda: [ANSWERS])
    (folder/OPENED).write_text('{"pl')
    with pytest.raises(PlanError, match='no longer what the models answered'): open_test_set(folder, COHORT, lambda: [ANSWERS])
