"""A stranger's table, from the shell: what is said of it, and what is refused"""
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from cxr_learn.command_line import main
from cxr_learn.intervals import simulate_predictions
from cxr_learn.judging import judge, parts_of, write_judgement

@pytest.fixture(scope='module')
def table():
    "Two models of one finding, on validation and on test patients"
    def rows(patients, split, seed):
        for model, told in zip(('old', 'new'), simulate_predictions(patients, (1.2, 1.9), seed=seed)):
            yield told.assign(model=model, seed=0, split=split, **f'{split}-' + told[['image', 'patient_id']].astype(str))
    return pd.concat([*rows(80, 'valid', 1), *rows(120, 'test', 2)], ignore_index=True)

def evaluated(table, tmp_path, capsys, *options):
    table.to_csv(tmp_path/'predictions.csv', index=False)
    code = main(['evaluate', str(tmp_path/'predictions.csv'), '--resamples', '50', '--out', str(tmp_path/'out'), *options])
    said = capsys.readouterr()
    return code, said.out + said.err

def test_a_table_becomes_a_page_and_scores_that_scikit_learn_gives(table, tmp_path, capsys):
    code, said = evaluated(table, tmp_path, capsys)
    assert code == 0 and 'Not for clinical use' in said
    scores = pd.read_csv(tmp_path/'out/results.csv').set_index(['model', 'measure', 'label'])['value']
    for model, rows in table[table['split'] == 'test'].groupby('model'):
        assert scores[model, 'auc', 'ill'] == pytest.approx(sk.roc_auc_score(rows['label'] == 'ill', rows['probability_ill']), abs=1e-12)
    page = (tmp_path/'out/report.html').read_text(encoding='utf-8')
    assert 'Not for clinical use' in page and page.count('<figure>') >= 5 and 'http' not in page

def test_thresholds_come_from_validation_rows_alone(table):
    other_test = table.assign(probability_ill=np.where(table['split'] == 'test', .5, table['probability_ill']))
    other_test['probability_healthy'] = 1 - other_test['probability_ill']
    assert judge(other_test, resamples=20)['thresholds'] == judge(table, resamples=20)['thresholds']

def test_a_table_without_validation_rows_has_no_threshold(table, tmp_path, capsys):
    code, _ = evaluated(table[table['split'] == 'test'], tmp_path, capsys)
    assert code == 0
    assert not pd.read_csv(tmp_path/'out/results.csv')['measure'].str.contains('threshold').any()
    assert 'no threshold could be chosen' in (tmp_path/'out/report.html').read_text(encoding='utf-8')

def test_unknown_patients_are_told_wherever_the_table_is_read(table, tmp_path, capsys):
    with pytest.warns(UserWarning, match='patient'): code, said = evaluated(table.drop(columns='patient_id'), tmp_path, capsys)
    assert code == 0 and 'patients unknown' in said
    assert 'Patients are unknown' in (tmp_path/'out/report.html').read_text(encoding='utf-8')

def test_several_findings_of_one_image_are_judged_one_by_one(tmp_path, capsys):
    random = np.random.default_rng(0)
    has = random.random((300, 2)) < .3
    chance = np.clip(.3 + .3 * has + .2 * random.normal(size=has.shape), .01, .99)
    both = pd.DataFrame({'image': range(300), 'patient_id': np.arange(300) // 2, 'label': 'see columns',
                         'label_mass': has[:, 0].astype(int), 'label_nodule': has[:, 1].astype(int),
                         'probability_mass': chance[:, 0], 'probability_nodule': chance[:, 1],
                         'split': np.where(np.arange(300) < 150, 'valid', 'test')})
    code, said = evaluated(both, tmp_path, capsys)
    assert code == 0, said
    scores = pd.read_csv(tmp_path/'out/results.csv').set_index(['measure', 'label'])['value']
    assert scores['auc', 'mass'] == pytest.approx(sk.roc_auc_score(has[150:, 0], chance[150:, 0]), abs=1e-12)
    assert 'sensitivity_at_threshold' in scores

def spoilt(table, column, value):
    bad = table.copy()
    bad[column] = bad[column].astype(object)
    bad.loc[bad.index[-1], column] = value
    return bad

@pytest.mark.parametrize('spoil, words', [
    (lambda table: spoilt(table, 'probability_ill', 1.5), '1.5'),
    (lambda table: spoilt(table, 'probability_ill', -.1), '-0.1'),
    (lambda table: spoilt(table, 'probability_ill', np.nan), 'probabilit'),
    (lambda table: spoilt(table, 'probability_ill', 'high'), 'high'),
    (lambda table: spoilt(table, 'label', 'unseen'), 'unseen'),
    (lambda table: pd.concat([table, table.tail(1)]), 'twice'),
    (lambda table: table.drop(columns='label'), 'label'),
    (lambda table: table.drop(columns=['probability_ill', 'probability_healthy']), 'probability_'),
    (lambda table: table[:0], 'empty'),
    (lambda table: table[table['split'] == 'valid'], "'test'"),
    (lambda table: table.drop(table.index[-1]), 'same images'),
])
def test_a_wrong_table_costs_one_line_and_leaves_no_page(table, tmp_path, capsys, spoil, words):
    code, said = evaluated(spoil(table), tmp_path, capsys)
    assert code == 2 and words in said and said.count('\n') == 1, said
    assert not (tmp_path/'out').exists()

def test_another_rule_is_named_when_it_is_mistyped(table, tmp_path, capsys):
    code, said = evaluated(table, tmp_path, capsys, '--rule', 'yuden')
    assert code == 2 and 'youden' in said

def test_a_table_without_splits_is_judged_whole(table):
    valid, test = parts_of(table.query("model == 'old'").drop(columns=['split', 'model', 'seed']))
    assert len(valid) == 0 and len(test) == len(table) // 2 and set(test['seed']) == {0}

def test_splits_are_known_however_they_are_spelt(table):
    spelt = table.assign(split=table['split'].replace({'valid': 'val', 'test': ' Test'}))
    assert [len(part) for part in parts_of(spelt)] == [len(part) for part in parts_of(table)]
    some = table.assign(split=np.where(np.arange(len(table)) % 2, table['split'], table['split'].str.upper()))
    assert [len(part) for part in parts_of(some)] == [len(part) for part in parts_of(table)]

def test_images_on_both_sides_are_refused_and_patients_on_both_sides_told(table, tmp_path, capsys):
    test = table[table['split'] == 'test']
    with pytest.raises(ValueError, match='validation and test rows at once'): judge(pd.concat([test, test.assign(split='valid')]))
    shared = table.assign(patient_id=table['patient_id'].str.split('-').str[1])
    code, _ = evaluated(shared, tmp_path, capsys)
    assert code == 0 and '80 patients have validation and test rows' in (tmp_path/'out/report.html').read_text(encoding='utf-8')

def test_models_without_a_name_and_with_numbers_stay_in(table, tmp_path):
    numbered = table.assign(model=table['model'].map({'old': 1, 'new': np.nan}))
    judged = judge(numbered, resamples=20)
    assert set(judged['results']['model']) == {'1.0', 'the model'}
    write_judgement(judged, tmp_path/'page.html')

def test_rows_that_were_left_out_are_told(table, tmp_path, capsys):
    partly = table[~((table['model'] == 'new') & (table['split'] == 'valid'))]
    more = partly[partly['split'] == 'test'].assign(split='external', image='else-' + partly['image'])
    code, said = evaluated(pd.concat([more, partly]), tmp_path, capsys)
    page = (tmp_path/'out/report.html').read_text(encoding='utf-8')
    assert code == 0, said
    assert f'external ({len(more)})' in page and 'no calibration: new (seed 0)' in page

def test_a_table_keeps_its_rows_whatever_their_index(table):
    assert judge(table.set_index(pd.Index(range(len(table), 0, -1))), resamples=20)['left_out'] == {}
