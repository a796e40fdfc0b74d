"""Decisions in a CSV, the panel without a front end, agreement, and applying them"""
import multiprocessing
import os

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from cxr_learn.cohorts import CohortError
from cxr_learn.review import (DECISION_COLUMNS, agreement, apply_review, read_decisions, review_widget, write_decision,
                              write_sheet)

CASES = pd.DataFrame(dict(image=list('abcd'), patient_id=list('1123'), label=['x', 'y', 'x', 'y'],
                          suggested=['y', 'x', 'y', 'x'], probability_true=[.1] * 4, probability_suggested=[.9] * 4))
COHORT = pd.DataFrame(dict(image=list('abcdef'), label=list('xyxyxy'), split=['train'] * 4 + ['valid', 'test']))

@pytest.fixture
def file(tmp_path): return tmp_path/'decisions.csv'

def test_the_last_word_counts_and_the_first_stays_in_the_file(file):
    write_decision(file, 'a', 'right', 'anna')
    write_decision(file, 'a', 'wrong label', 'anna', 'y')
    write_decision(file, 'a', 'unsure', 'ben')
    assert len(file.read_text().splitlines()) == 4
    table = read_decisions(file)
    assert table[['reviewer', 'decision', 'label']].values.tolist() == [['anna', 'wrong label', 'y'], ['ben', 'unsure', '']]

def test_names_with_commas_quotes_and_umlauts_come_back(file):
    write_decision(file, 'Röntgen, "AP".png', 'right', 'Ägidius, Dr.')
    assert read_decisions(file)[['image', 'reviewer']].values.tolist() == [['Röntgen, "AP".png', 'Ägidius, Dr.']]

def test_no_file_is_no_decision(file): assert list(read_decisions(file).columns) == DECISION_COLUMNS

@pytest.mark.parametrize('line, message', [
    ('x,anna,a,right', 'line 3 is damaged: 4 values'), ('x,anna,a,rihgt,', "line 3: the decision 'rihgt'"),
    ('x,,a,right,', 'line 3 needs an image and a reviewer'), ('x,anna,,right,', 'line 3 needs'),
    ('\x00\x00,\x00', 'line 3')])
def test_a_damaged_line_is_named(file, line, message):
    write_decision(file, 'a', 'right', 'anna')
    with open(file, 'a') as text: text.write(line + '\n')
    with pytest.raises(ValueError, match=message): read_decisions(file)
    with pytest.raises(ValueError, match='line 3'): review_widget(CASES, file, 'anna')

def test_a_torn_line_does_not_swallow_the_next(file):
    write_decision(file, 'a', 'right', 'anna')
    with open(file, 'a') as text: text.write('2026,anna,b,ri')
    write_decision(file, 'c', 'right', 'anna')
    lines = file.read_text().splitlines()
    assert lines[2] == '2026,anna,b,ri' and lines[3].endswith('anna,c,right,')
    file.write_text('\n'.join(lines[:2] + lines[3:]))
    assert read_decisions(file)['image'].tolist() == ['a', 'c']

def test_another_table_is_refused(file):
    file.write_text('image,label\na,x\n')
    with pytest.raises(ValueError, match='begins with'): read_decisions(file)

def test_wrong_words_and_places_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match="'maybe' is unknown"): write_decision(file, 'a', 'maybe', 'anna')
    with pytest.raises(ValueError, match='needs a reviewer'): write_decision(file, 'a', 'right', ' ')
    (tmp_path/'blocked').write_text('a file, no folder')
    with pytest.raises(OSError, match='choose another place'):
        write_decision(tmp_path/'blocked'/'decisions.csv', 'a', 'right', 'anna')

def _write(file, name):
    for number in range(25): write_decision(file, f'{number}.png', 'right', name)

def test_reviewers_at_once_lose_nothing(file):
    context = multiprocessing.get_context('fork')
    both = [context.Process(target=_write, args=(file, name)) for name in ('anna', 'ben')]
    for process in both: process.start()
    for process in both: process.join()
    assert len(read_decisions(file)) == 50
    assert file.read_text().count('reviewer') == 1

def test_a_sheet_waits_to_be_filled_in(file):
    write_sheet(CASES, file, 'ben')
    assert len(read_decisions(file)) == 0
    file.write_text(file.read_text().replace(',ben,b,,', ',ben,b,poor image,'))
    assert read_decisions(file)['image'].tolist() == ['b']
    with pytest.raises(FileExistsError, match='already'): write_sheet(CASES, file, 'ben')

def buttons(panel): return {button.description: button for button in panel.children[3].children}

def test_the_panel_resumes_where_the_file_ends(file):
    panel = review_widget(CASES, file, 'anna', size=32)
    buttons(panel)['right'].click()
    panel.children[2].value = 'x'
    buttons(panel)['wrong label'].click()
    assert panel.children[2].value == ''  # the choice belongs to one image
    again = review_widget(CASES, file, 'anna', size=32)
    assert again.children[4].value.startswith('3 of 4: not decided; 2 decided')
    assert again.children[1].value.startswith('c, patient 2')
    other = review_widget(CASES, file, 'ben', size=32)
    assert other.children[4].value.startswith('1 of 4: not decided; 0 decided')
    assert read_decisions(file)[['image', 'decision', 'label']].values.tolist() == [['a', 'right', ''], ['b', 'wrong label', 'x']]

def test_back_forward_and_a_change_of_mind(file):
    panel = review_widget(CASES, file, 'anna', size=32)
    for _ in range(4): buttons(panel)['right'].click()
    assert '4 decided' in panel.children[4].value
    buttons(panel)['forward'].click()
    assert panel.children[4].value.startswith('1 of 4: right')
    buttons(panel)['unsure'].click()
    assert read_decisions(file).set_index('image').loc['a', 'decision'] == 'unsure'
    buttons(panel)['back'].click()
    assert panel.children[4].value.startswith('4 of 4')

def test_a_decision_that_cannot_be_saved_is_not_passed_over(tmp_path):
    place = tmp_path/'folder'/'decisions.csv'
    panel = review_widget(CASES, place, 'anna', size=32)
    (tmp_path/'folder').write_text('in the way')
    buttons(panel)['right'].click()
    assert panel.children[4].value.startswith('NOT SAVED') and panel.children[1].value.startswith('a, ')
    os.remove(tmp_path/'folder')
    buttons(panel)['right'].click()
    assert panel.children[1].value.startswith('b, ')
    with pytest.raises(ValueError, match='no cases'): review_widget(CASES.head(0), place, 'anna')

def decided(*rows):
    return pd.DataFrame([dict(time='', reviewer=r, image=i, decision=d, label=l) for r, i, d, l in rows],
                        columns=DECISION_COLUMNS)

def test_kappa_is_scikit_learns():
    rng = np.random.default_rng(0)
    one, other = rng.choice(['right', 'unsure'], (2, 30))
    table = decided(*[(name, str(i), d, '') for name, said in (('anna', one), ('ben', other)) for i, d in enumerate(said)])
    row = agreement(table).iloc[0]
    assert row['kappa'] == pytest.approx(cohen_kappa_score(one, other)) and row['images'] == 30
    alone = agreement(decided(('anna', 'a', 'right', ''), ('ben', 'b', 'right', ''))).iloc[0]
    assert alone['images'] == 0 and np.isnan(alone['kappa']) and np.isnan(alone['same'])
    same = agreement(decided(('anna', 'a', 'right', ''), ('ben', 'a', 'right', ''))).iloc[0]
    assert same['same'] == 1 and np.isnan(same['kappa'])
    assert len(agreement(decided())) == 0

def test_what_is_applied_and_what_is_not():
    stays, done = apply_review(COHORT, decided(
        ('anna', 'a', 'wrong label', 'y'), ('ben', 'a', 'wrong label', 'y'), ('anna', 'b', 'poor image', ''),
        ('anna', 'c', 'wrong label', 'y'), ('ben', 'c', 'right', ''), ('anna', 'd', 'right', ''),
        ('anna', 'e', 'wrong label', ''), ('anna', 'f', 'wrong label', 'x')))
    assert done.values.tolist() == [
        ['a', 'relabelled', 'wrong label, now y'], ['b', 'dropped', 'poor image'], ['c', 'kept', 'reviewers disagree'],
        ['e', 'dropped', 'wrong label'], ['f', 'kept', 'wrong label, but in the test set']]
    assert stays['image'].tolist() == list('acdf') and stays['label'].tolist() == list('yxyy')
    assert COHORT['label'].tolist() == list('xyxyxy')

def test_findings_are_put_right_together():
    cohort = pd.DataFrame(dict(image=['a', 'b'], label=['Mass', 'No Finding'], label_Mass=[1, 0], label_Edema=[0, 0]))
    stays, _ = apply_review(cohort, decided(('anna', 'a', 'wrong label', 'No Finding'), ('anna', 'b', 'wrong label', 'Edema|Mass')))
    assert stays[['label_Mass', 'label_Edema']].values.tolist() == [[0, 0], [1, 1]]
    with pytest.raises(CohortError, match='Unknown label.s. Hernia'):
        apply_review(cohort, decided(('anna', 'a', 'wrong label', 'Hernia')))

def test_unknown_images_and_an_empty_rest_are_refused():
    with pytest.raises(CohortError, match='first is z'): apply_review(COHORT, decided(('anna', 'z', 'right', '')))
    with pytest.raises(CohortError, match="Unknown label"): apply_review(COHORT, decided(('anna', 'a', 'wrong label', 'w')))
    with pytest.raises(CohortError, match='Nothing is left'):
        apply_review(COHORT.head(1), decided(('anna', 'a', 'poor image', '')))
    stays, done = apply_review(COHORT, decided())
    assert stays.equals(COHORT) and len(done) == 0

def test_the_panel_goes_on_whatever_images_and_reviewers_are_called(file):
    cases = pd.DataFrame(dict(image=[1, 2], label='x'))
    panel = review_widget(cases, file, ' AB ')
    for _ in range(2): panel.children[3].children[0].click()
    assert list(read_decisions(file)['image']) == ['1', '2'] and '2 decided' in panel.children[4].value
    with pytest.raises(ValueError, match='initials'): review_widget(cases, file, ' ')
    with pytest.raises(ValueError, match='initials'): write_sheet(cases, file.with_name('sheet.csv'), '')

def test_a_line_torn_within_quotes_swallows_nothing_in_silence(file):
    write_decision(file, 'a', 'right', 'AB')
    with open(file, 'a') as torn: torn.write('2026,AB,"b,1')
    for image in ('c', 'd"2', 'e'): write_decision(file, image, 'right', 'AB')
    with pytest.raises(ValueError, match='damaged'): read_decisions(file)

def test_two_files_of_one_reviewer_can_be_laid_together():
    both = pd.DataFrame([('', 'A', '1', 'right', ''), ('', 'A', '1', 'unsure', ''), ('', 'B', '1', 'right', '')], columns=DECISION_COLUMNS)
    assert agreement(both)['same'].tolist() == [0]
