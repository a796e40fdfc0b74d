"""Groups: values by hand, facts that are missing, small groups, the correction, refusals"""
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from cxr_learn.comparison import holm
from cxr_learn.measures import FEW_PATIENTS
from cxr_learn.subgroups import FACTS, NO_FACT, age_bands, facts_of, plot_subgroups, subgroup_table

def simulated(patients=150, seed=0, weaker=1.):
    "A table of predictions that tells its facts; AP images are told apart `weaker` times as far"
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    ill, view = (rng.random(patients) < .3)[of], np.where(rng.random(len(of)) < .4, 'AP', 'PA')
    score = 2 * (ill - .5) * np.where(view == 'AP', weaker, 1) + rng.normal(size=len(of))
    p = 1 / (1 + np.exp(-score))
    return pd.DataFrame(dict(
        image=[f'{i}.png' for i in range(len(of))], patient_id=of.astype(str), label=np.where(ill, 'ill', 'well'),
        probability_well=1 - p, probability_ill=p, view=view, age=rng.integers(20, 70, patients)[of],
        sex=np.array(['F', 'M', None], dtype=object)[rng.choice(3, patients, p=[.45, .45, .1])[of]]))

def test_values_are_those_of_the_groups_images():
    table = simulated()
    rows = subgroup_table(table, by=['view'], resamples=400).set_index(['measure', 'group'])
    for view in ('AP', 'PA'):
        part = table[table['view'] == view]
        ill, p = part['label'] == 'ill', part['probability_ill']
        assert rows.loc[('auc', view), 'value'] == pytest.approx(sk.roc_auc_score(ill, p))
        assert rows.loc[('sensitivity', view), 'value'] == pytest.approx((p[ill] > .5).mean())
        assert rows.loc[('specificity', view), 'value'] == pytest.approx((p[~ill] < .5).mean())
        assert rows.loc[('auc', view), 'images'] == len(part)
        assert rows.loc[('auc', view), 'positive_patients'] == part['patient_id'][ill].nunique()
    assert rows.loc[('auc', 'AP'), 'difference'] == pytest.approx(rows.loc[('auc', 'AP'), 'value'] - rows.loc[('auc', 'PA'), 'value'])
    inside = rows[rows['low'].notna()]
    assert (inside['low'] <= inside['value']).all() and (inside['value'] <= inside['high']).all()

def test_thresholds_are_applied():
    table = simulated()
    row = subgroup_table(table, by=['view'], measures=['sensitivity'], thresholds={'ill': .2, 'well': .5}, resamples=400)
    ill = table['label'] == 'ill'
    assert row['value'].iloc[0] == pytest.approx((table['probability_ill'][ill] >= .2).mean())
    nan = subgroup_table(table, by=['view'], measures=['sensitivity'], thresholds={'ill': np.nan, 'well': .5}, resamples=400)
    assert nan['value'].isna().all() and (nan['reason'] == 'no threshold').all()

def test_missing_facts_are_a_row_and_in_no_comparison():
    table = simulated()
    rows = subgroup_table(table, measures=['auc'], by=['sex', 'source'])
    by_group = rows.set_index(['fact', 'group'])
    assert by_group.loc[('sex', NO_FACT), 'images'] == table['sex'].isna().sum()
    assert by_group.loc['sex']['images'].sum() == len(table)
    assert np.isnan(by_group.loc[('sex', NO_FACT), 'difference']) and by_group.loc[('sex', NO_FACT), 'verdict'] == ''
    one, other = (table['sex'] == s for s in 'FM')
    difference = np.subtract(*[sk.roc_auc_score(table['label'][s] == 'ill', table['probability_ill'][s]) for s in (one, other)])
    assert by_group.loc[('sex', 'F'), 'difference'] == pytest.approx(difference)
    assert by_group.loc[('source', NO_FACT), 'images'] == len(table)
    assert 'not known of any image: source' in rows.attrs['caption']

def test_a_small_group_has_its_value_and_no_more():
    table = simulated()
    ill = table['patient_id'][table['label'] == 'ill'].unique()[:FEW_PATIENTS - 1]
    few = table['patient_id'].isin(ill) | table['patient_id'].isin(table['patient_id'][table['label'] == 'well'].unique()[:20])
    rows = subgroup_table(table.assign(source=np.where(few, 'small', 'large')), by=['source'], resamples=400)
    small = rows[rows['group'] == 'small']
    assert small['value'].notna().all() and small[['low', 'high', 'difference', 'p_value']].isna().all().all()
    assert small['reason'].str.contains(f'{FEW_PATIENTS - 1} positive patients').all()
    assert (rows[rows['fact'] == 'source']['verdict'] == 'not compared').all()  # nothing is ranked against too few
    none = subgroup_table(table.assign(source=table['label']), by=['source'], measures=['auc', 'sensitivity'], resamples=400)
    at = none.set_index(['measure', 'group'])
    assert at.loc[('auc', 'ill'), 'reason'] == 'no negative images' and at.loc[('sensitivity', 'well'), 'reason'] == 'no positive images'

def test_the_correction_is_holms_and_two_groups_are_one_comparison():
    rows = subgroup_table(simulated(weaker=.5), by=['view', 'age_band'], seed=1)
    asked = rows[rows['p_value'].notna()]
    once = asked[(asked['fact'] != 'view') | (asked['group'] == 'AP')]
    np.testing.assert_allclose(once['p_corrected'], holm(once['p_value'].to_numpy()))
    view = asked[asked['fact'] == 'view'].set_index(['measure', 'group'])
    for measure in ('auc', 'sensitivity', 'specificity'):
        one, other = view.loc[(measure, 'AP')], view.loc[(measure, 'PA')]
        assert one['p_corrected'] == other['p_corrected'] and one['difference'] == pytest.approx(-other['difference'])

def test_a_planted_weakness_is_found_and_the_same_seed_gives_the_same_table():
    rows = subgroup_table(simulated(300, weaker=.2), by=['view', 'sex'], measures=['auc'])
    assert set(rows['fact'][rows['verdict'].isin(['higher', 'lower'])]) == {'view'}
    pd.testing.assert_frame_equal(rows, subgroup_table(simulated(300, weaker=.2), by=['view', 'sex'], measures=['auc']))

def test_findings_with_unknown_truth():
    rng = np.random.default_rng(0)
    n = 200
    table = pd.DataFrame(dict(
        image=np.arange(n).astype(str), patient_id=np.arange(n).astype(str), view=rng.choice(['AP', 'PA'], n),
        label_mass=rng.choice([0, 1, np.nan], n), label_edema=rng.integers(0, 2, n),
        probability_mass=rng.random(n), probability_edema=rng.random(n)))
    rows = subgroup_table(table, by=['view'], thresholds={'mass': .5, 'edema': .4}).set_index(['label', 'measure', 'group'])
    known = table['label_mass'].notna()
    assert rows.loc[('mass', 'auc', 'all'), 'images'] == known.sum()
    assert rows.loc[('mass', 'auc', 'all'), 'value'] == pytest.approx(
        sk.roc_auc_score(table['label_mass'][known], table['probability_mass'][known]))
    untold = subgroup_table(table, by=['view'])
    assert (untold[untold['measure'] == 'sensitivity']['reason'] == 'no threshold').all()

def test_unknown_patients_are_said():
    with pytest.warns(UserWarning, match='stands in for a patient'):
        rows = subgroup_table(simulated().drop(columns='patient_id'), by=['view'], measures=['auc'], resamples=400)
    assert 'patients unknown' in rows.attrs['caption']

def test_bands_and_facts():
    assert list(age_bands(pd.Series([17.9, 18, None, 'x', -3, 120, 121]))) == [
        '0 to 17', '18 to 39', NO_FACT, NO_FACT, NO_FACT, '80 and over', NO_FACT]
    assert list(age_bands([3, 12], begins=(0, 6, 12))) == ['0 to 5', '12 and over']
    table = simulated()
    cohort = table[['image', 'view', 'age']].sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(facts_of(table[['image']], cohort), facts_of(table.drop(columns='sex')))
    assert (facts_of(table[['image']], table[['image']]) == NO_FACT).all().all()
    assert list(facts_of(table)) == list(FACTS)

def test_wrong_input_is_refused():
    table = simulated()
    with pytest.raises(ValueError, match='are not in the cohort'): subgroup_table(table, table.head(3))
    with pytest.raises(ValueError, match="Nothing is known of 'hospital'"): subgroup_table(table, by=['hospital'])
    with pytest.raises(ValueError, match='No threshold for well'): subgroup_table(table, thresholds={'ill': .5})
    with pytest.raises(ValueError, match='Unknown measure.s. kappa'): subgroup_table(table, measures=['kappa'])
    with pytest.raises(ValueError, match="No class 'sick'"): subgroup_table(table, labels=['sick'])
    with pytest.raises(ValueError, match='Ask for resamples='): subgroup_table(table, resamples=50)
    with pytest.raises(ValueError): subgroup_table(table.assign(probability_ill=np.nan))

def test_the_figure_knows_what_is_there():
    rows = subgroup_table(simulated(), resamples=2000, measures=['auc'])
    axes = plot_subgroups(rows)
    assert len(axes.get_yticklabels()) == (rows['fact'] != 'all').sum()
    with pytest.raises(ValueError, match='has no ppv'): plot_subgroups(rows, 'ppv')
