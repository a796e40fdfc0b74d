"""Tables of predictions, good and bad, and measures of calls against scikit-learn"""
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from cxr_learn.measures import (by_model, called_at, check_predictions, class_measures, classes_of, classification_report,
                                confusion_by_class, confusion_matrix, is_multi_label, overall_measures, patients_known,
                                plot_confusion, predictive_values, probabilities_of, read_predictions, truth_of,
                                why_undefined)

@pytest.fixture
def rng(): return np.random.default_rng(0)

def table(labels, patients=None):
    n, classes = len(labels), sorted(set(labels))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(classes)), n)
    return pd.DataFrame({'image': [f'{i}.png' for i in range(n)], 'patient_id': patients or [f'p{i}' for i in range(n)],
                         'label': labels, **{f'probability_{c}': probabilities[:, i] for i, c in enumerate(classes)}})

def findings():
    return pd.DataFrame({'image': list('wxyz'), 'patient_id': list('ppqr'), 'label_b': [1, 0, np.nan, 1], 'label_a': [0, 1, 1, 0],
                         'probability_a': [.1, .9, .8, .6], 'probability_b': [.9, .8, .7, .1]})

# measures of calls

def test_class_measures_equal_scikit_learn(rng):
    true, called = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    measures = class_measures(confusion_matrix(true, called, 4))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(true, called)
    for name, expected in (('ppv', precision), ('sensitivity', recall), ('f1', f1)):
        np.testing.assert_allclose(measures[name], expected, atol=1e-12)
    for c in range(4):
        others = sk.confusion_matrix(true == c, called == c)
        assert measures['npv'][c] == pytest.approx(others[0, 0] / others[:, 0].sum(), abs=1e-12)
        assert measures['specificity'][c] == pytest.approx(others[0, 0] / others[0].sum(), abs=1e-12)

@pytest.mark.parametrize('classes', [2, 3, 5])
def test_overall_measures_equal_scikit_learn_with_weights(rng, classes):
    true, called = rng.integers(0, classes, 300), rng.integers(0, classes, 300)
    weights = rng.integers(0, 4, (3, 300))
    measures = overall_measures(confusion_matrix(true, called, classes, weights))
    for row, once in enumerate(weights):
        assert measures['mcc'][row] == pytest.approx(sk.matthews_corrcoef(true, called, sample_weight=once), abs=1e-12)
        assert measures['accuracy'][row] == pytest.approx(sk.accuracy_score(true, called, sample_weight=once), abs=1e-12)
        assert measures['macro_sensitivity'][row] == pytest.approx(
            sk.balanced_accuracy_score(true, called, sample_weight=once), abs=1e-12)
        assert measures['macro_f1'][row] == pytest.approx(
            sk.f1_score(true, called, average='macro', sample_weight=once), abs=1e-12)
        micro = sk.recall_score(true, called, average='micro', sample_weight=once)
        assert measures['accuracy'][row] == pytest.approx(micro, abs=1e-12)

def test_findings_are_counted_one_by_one_where_they_are_known(rng):
    truth, said = (rng.random((80, 3)) < .4).astype(float), rng.random((80, 3))
    unknown = rng.random((80, 3)) < .2
    weights = rng.integers(0, 3, (2, 80))
    counts = confusion_by_class(np.where(unknown, np.nan, truth), called_at(said, .5), weights)
    assert counts.shape == (2, 3, 2, 2)
    for row in range(2):
        for c in range(3):
            known = ~unknown[:, c]
            expected = sk.confusion_matrix(truth[known, c], said[known, c] >= .5, sample_weight=weights[row, known], labels=[0, 1])
            np.testing.assert_array_equal(counts[row, c], expected)

def test_without_a_threshold_nothing_is_called():
    called = called_at([[.2, .9], [.7, .1]], [.5, np.nan])
    np.testing.assert_array_equal(called, [[0, np.nan], [1, np.nan]])
    assert confusion_by_class([[1, 1], [0, 0]], called)[1].sum() == 0

def test_what_divides_by_nobody_is_nan_and_has_a_reason():
    measures = class_measures(confusion_matrix([0, 0, 0], [0, 0, 0], 2))
    assert np.isnan([measures['sensitivity'][1], measures['ppv'][1], measures['f1'][1], measures['specificity'][0],
                     measures['npv'][0]]).all()
    assert np.isnan(overall_measures(confusion_matrix([0, 0], [0, 0], 2))['mcc'])
    assert np.isnan(overall_measures(confusion_matrix([], [], 2))['accuracy'])
    assert why_undefined(0, 3) == why_undefined(0, 3, 'sensitivity') == 'no positive images'
    assert why_undefined(3, 0, 'specificity') == 'no negative images' and why_undefined(3, 0, 'sensitivity') == ''
    assert 'called negative' in why_undefined(2, 2, 'npv', called=4) and why_undefined(0, 3, 'ppv', called=1) == ''

def test_predictive_values_are_those_of_a_population_of_that_prevalence(rng):
    ill = np.repeat([1, 0], [300, 9700])
    called = np.where(rng.random(10000) < .8, ill, 1 - ill)
    measures = class_measures(confusion_matrix(ill, called, 2))
    values = predictive_values(measures['sensitivity'][1], measures['specificity'][1], .03)
    np.testing.assert_allclose(values, [measures['ppv'][1], measures['npv'][1]], atol=1e-12)
    assert np.isnan(predictive_values(0, 1, .5)[0])
    with pytest.raises(ValueError, match='prevalence = 30'): predictive_values(.9, .9, 30)

def test_lengths_and_class_numbers_are_checked():
    with pytest.raises(ValueError, match='Lengths differ'): confusion_matrix([0, 1], [0], 2)
    with pytest.raises(ValueError, match='Lengths differ'): confusion_matrix([0, 1], [0, 1], 2, np.ones((5, 3)))
    with pytest.raises(ValueError, match='Class -1'): confusion_matrix([0, -1], [0, 1], 2)

# tables

def test_truth_and_probabilities_follow_the_probability_columns():
    single, several = table(['b', 'a', 'b']), findings()
    np.testing.assert_array_equal(truth_of(single), [[0, 1], [1, 0], [0, 1]])
    assert is_multi_label(several) and classes_of(several) == ['a', 'b']
    np.testing.assert_array_equal(truth_of(several), [[0, 1], [1, 0], [1, np.nan], [0, 1]])
    np.testing.assert_array_equal(probabilities_of(several)[0], [.1, .9])
    more = several.assign(probability_c=.5)  # predicted, and known of nobody
    assert np.isnan(truth_of(more)[:, 2]).all()

def test_labels_may_be_numbers():
    numbered = table(['0', '1', '1', '0']).assign(label=[0, 1, 1, 0])
    np.testing.assert_array_equal(truth_of(numbered), [[1, 0], [0, 1], [0, 1], [1, 0]])
    assert check_predictions(numbered)['label'].tolist() == ['0', '1', '1', '0']

@pytest.mark.parametrize('change, words', [
    (dict(probability_a=2.), r'0.png.*in \[0, 1\]'), (dict(probability_a=np.nan), r'in \[0, 1\]'),
    (dict(probability_a=-.1), r'in \[0, 1\]'), (dict(probability_a=.01, probability_b=.01), 'their sum 1'),
    (dict(probability_a='high'), 'probability_a holds'), (dict(image='1.png'), '1.png is predicted twice'),
    (dict(image=None), 'no image'), (dict(label='c'), "No probability column for the label.*'c'"),
    (dict(label=' a'), "' a'"), (dict(label=None), 'no label')])
def test_wrong_predictions_are_refused(change, words):
    wrong = table(['a', 'b'] * 8).assign(**change)
    for function in (classes_of, check_predictions, truth_of, probabilities_of, classification_report, plot_confusion):
        with pytest.raises(ValueError, match=words): function(wrong)

def test_missing_columns_and_rows_are_refused():
    whole = table(['a', 'b'] * 8)
    for column in ('image', 'label'):
        with pytest.raises(ValueError, match=f'missing: {column}'): check_predictions(whole.drop(columns=column))
    with pytest.raises(ValueError, match='at least two'): check_predictions(whole.drop(columns='probability_a'))
    with pytest.raises(ValueError, match='empty'): check_predictions(whole[:0])
    with pytest.raises(ValueError, match='twice'):
        check_predictions(pd.concat([whole, whole[['label']]], axis=1))

@pytest.mark.parametrize('change, words', [
    (dict(label_b=2), 'label_b of w is 2'), (dict(label_c=1), "'c'"), (dict(probability_b=1.5), r'in \[0, 1\]'),
    (dict(label_a='yes'), 'label_a holds')])
def test_wrong_findings_are_refused(change, words):
    with pytest.raises(ValueError, match=words): check_predictions(findings().assign(**change))

def test_models_below_each_other_are_told_apart():
    one = table(['a', 'b', 'a'])
    both = pd.concat([one.assign(model='x', seed=0), one.assign(model='x', seed=1), one.assign(model='y', seed=0)])
    assert list(by_model(check_predictions(both))) == ['x, 0', 'x, 1', 'y, 0']
    with pytest.raises(ValueError, match='by_model'): classes_of(both)
    with pytest.raises(ValueError, match='twice'): check_predictions(both.drop(columns='seed'))
    assert list(by_model(one)) == ['model']

def test_an_image_stands_in_for_an_unknown_patient():
    some = table(['a', 'b', 'a', 'b']).assign(patient_id=['p', None, '', 'p'])
    with pytest.warns(UserWarning, match='2 of 4 rows have no patient_id'): clean = check_predictions(some)
    assert clean['patient_id'].tolist() == ['p', 'image:1.png', 'image:2.png', 'p']
    assert not patients_known(clean) and not patients_known(some)
    assert some['patient_id'].isna().any(), 'the table itself must stay as it was'
    with pytest.warns(UserWarning, match='too narrow'): check_predictions(some.drop(columns='patient_id'))
    assert patients_known(table(['a', 'b'])) and not patients_known(table(['a', 'b'], ['cluster-1', 'cluster-2']))

# files

GOOD = 'image,patient_id,label,probability_a,probability_b\n1.png,007,a,0.75,0.25\n2.png,008,b,.5,5e-1\n'

def test_a_file_is_read_as_it_was_written(tmp_path):
    file = tmp_path/'predictions.csv'
    file.write_text(GOOD)
    read = read_predictions(file)
    assert read['patient_id'].tolist() == ['007', '008'] and read['probability_b'].tolist() == [.25, .5]
    several = findings()
    several.to_csv(file, index=False)
    pd.testing.assert_frame_equal(read_predictions(file)[several.columns], several, check_dtype=False)
    none = GOOD.replace('a', 'None').replace('imNonege', 'image').replace('pNonetient', 'patient')
    none = none.replace('lNonebel', 'label').replace('probNonebility', 'probability')
    file.write_text(none)
    assert read_predictions(file)['label'].tolist() == ['None', 'b'], 'a class may be called None'

@pytest.mark.parametrize('text, words', [
    (GOOD.replace('0.25', 'O.25'), "line 2, column probability_b: 'O.25'"), (GOOD + '3.png,009,a\n', 'line 4: 3 values for 5'),
    (GOOD.replace(',', ';'), 'separate the columns by commas'), (GOOD.replace('0.75', ''), '1.png'), ('', 'missing'),
    (GOOD.splitlines()[0], 'empty'), (GOOD + '"3.png,009,a,.5,.5', 'unexpected end'), (GOOD.replace('0.75', '75'), '75.0')])
def test_a_damaged_file_is_refused_by_name(tmp_path, text, words):
    file = tmp_path/'predictions.csv'
    file.write_text(text)
    with pytest.raises(ValueError, match=words) as refused: read_predictions(file)
    assert 'predictions.csv' in str(refused.value)

def test_another_encoding_is_refused_or_named(tmp_path):
    file = tmp_path/'predictions.csv'
    file.write_bytes(GOOD.replace('2.png', 'é.png').encode('cp1252'))
    with pytest.raises(ValueError, match='encoding'): read_predictions(file)
    assert read_predictions(file, encoding='cp1252')['image'].tolist() == ['1.png', 'é.png']
    file.write_text(GOOD, encoding='utf-8-sig')
    assert len(read_predictions(file)) == 2
    file.write_text(GOOD, encoding='utf-16')
    with pytest.raises(ValueError, match='predictions.csv'): read_predictions(file)

# reports

def test_the_report_equals_scikit_learn():
    predictions = table(['a', 'b', 'c'] * 30)
    called = np.array(list('abc'))[probabilities_of(predictions).argmax(axis=1)]
    expected = pd.DataFrame(sk.classification_report(predictions['label'], called, output_dict=True)).T
    report = classification_report(predictions)
    np.testing.assert_allclose(report.loc[list('abc'), ['ppv', 'sensitivity', 'f1']].astype(float),
                               expected.loc[list('abc'), ['precision', 'recall', 'f1-score']], atol=1e-12)
    np.testing.assert_allclose(report.loc['mean', ['ppv', 'sensitivity', 'f1']].tolist(),
                               expected.loc['macro avg', ['precision', 'recall', 'f1-score']].tolist(), atol=1e-12)
    assert report.loc['a', ['images', 'patients']].tolist() == [30, 30]

def test_several_findings_need_thresholds():
    with pytest.raises(ValueError, match='threshold for each'): classification_report(findings())
    with pytest.raises(ValueError, match='No threshold for b'): classification_report(findings(), {'a': .5})
    report = classification_report(findings(), {'a': .5, 'b': np.nan})
    assert report.loc['a', 'sensitivity'] == 1 and np.isnan(report.loc['b', 'sensitivity'])

def test_panels_are_drawn_for_models_and_for_findings():
    import matplotlib.pyplot as plt
    one = table(['a', 'b'] * 8)
    assert len(plot_confusion({'x': one, 'y': one})) == 2
    assert [axes.get_title() for axes in plot_confusion(findings(), thresholds={'a': .5, 'b': .5})] == [
        'a\nn = 4 images', 'b\nn = 3 images']
    axes = plt.subplots()[1]
    assert plot_confusion(one, axes) is axes
    with pytest.raises(ValueError, match='1 axes for 2'): plot_confusion({'x': one, 'y': one}, axes)
    plt.close('all')
