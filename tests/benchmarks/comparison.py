"""Count how often each test calls two equally good models different; nothing is asserted.

    python tests/benchmarks/comparison.py [cohorts, 1000 by default]

Writes nbs/results/comparison_alarms.csv, which the chapter on comparison reads. About a minute on one core.
"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cxr_learn.comparison import bootstrap_p_value, delong, mcnemar
from cxr_learn.curves import auc
from cxr_learn.intervals import resample_patients, simulate_predictions

PATIENTS, RESAMPLES, ALARM = 100, 1000, .05
RESULT = Path(__file__).parents[2]/'nbs/results/comparison_alarms.csv'

def p_values(one, other, seed):
    "(measure, test) -> p-value"
    ill = (one['label'] == 'ill').to_numpy()
    scores = [table['probability_ill'].to_numpy() for table in (one, other)]
    right = [(score > .5) == ill for score in scores]
    counted = mcnemar(*right)
    found = {('AUC', 'DeLong'): delong(ill, *scores).p_value, ('accuracy', 'McNemar, exact'): counted.p_value,
             ('accuracy', 'McNemar, mid-p'): counted.mid_p}
    for unit in ('patient', 'image'):
        weights = resample_patients(one['patient_id' if unit == 'patient' else 'image'], RESAMPLES, seed)
        differences = {'AUC': auc(ill, scores[0], weights) - auc(ill, scores[1], weights),
                       'accuracy': weights @ (right[0] * 1. - right[1]) / weights.sum(axis=1)}
        found |= {(measure, f'bootstrap by {unit}'): bootstrap_p_value(values) for measure, values in differences.items()}
    return found

def main(cohorts):
    rows = []
    for seed in range(cohorts):
        several = simulate_predictions(PATIENTS, [1.5, 1.5], seed=seed)
        single = [table.drop_duplicates('patient_id') for table in several]
        for images, tables in (('one per patient', single), ('1 to 4 per patient', several)):
            rows += [(images, *key, p < ALARM) for key, p in p_values(*tables, seed).items()]
    table = pd.DataFrame(rows, columns=['images', 'measure', 'test', 'rejected'])
    table = table.groupby(['images', 'measure', 'test'], sort=False)['rejected'].mean().round(4).reset_index()
    single = table['images'] == 'one per patient'
    table = table[~single | (table['test'] != 'bootstrap by image')].sort_values(['images', 'measure'], ascending=[False, True])
    table = table.assign(cohorts=cohorts, patients=PATIENTS, resamples=RESAMPLES, numpy=np.__version__)
    print(table.to_string(index=False))
    table.to_csv(RESULT, index=False)

if __name__ == '__main__': main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
