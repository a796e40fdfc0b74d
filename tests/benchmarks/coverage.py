"""Count how often a 95% interval holds the truth, over simulated cohorts with several images per patient; nothing is asserted.

    python tests/benchmarks/coverage.py [cohorts, 1000 by default]

Writes nbs/results/interval_coverage.csv, which the chapter on intervals reads. About 15 minutes on one core for 1,000 cohorts
of each setting.
"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtr

from cxr_learn.curves import auc
from cxr_learn.intervals import (bca_interval, leave_one_out, percentile_interval, resample_patients,
                                 simulate_predictions)

RESAMPLES, SPREAD = 1000, .3
SETTINGS = [(patients, visibility, .5) for visibility in (1., 2., 3.5) for patients in (20, 50, 100, 200, 400)]
SETTINGS += [(patients, 2., .1) for patients in (100, 200, 400)]
RESULT = Path(__file__).parents[2]/'nbs/results/interval_coverage.csv'

def truth(visibility):
    "AUC and sensitivity (at probability .5) of the whole population, over d' of two patients by quadrature"
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    seen, weights = visibility * np.exp(SPREAD * nodes), weights / weights.sum()
    return dict(auc=weights @ ndtr(np.hypot.outer(seen, seen) / 2) @ weights, sensitivity=weights @ ndtr(seen / 2))

def measure(ill, score, weights):
    return dict(auc=auc(ill, score, weights), sensitivity=(weights @ (ill & (score >= .5))) / (weights @ ill))

def intervals(table, seed, by_image):
    "(measure, interval) -> low, high"
    ill, score = (table['label'] == 'ill').to_numpy(), table['probability_ill'].to_numpy()
    patient = table['patient_id'].to_numpy()
    value = measure(ill, score, np.ones(len(table)))
    drawn = {'patients, percentile': measure(ill, score, resample_patients(patient, RESAMPLES, seed)),
             'patients, stratified': measure(ill, score, resample_patients(patient, RESAMPLES, seed, strata=ill))}
    if by_image: drawn['images, percentile'] = measure(ill, score, resample_patients(np.arange(len(table)), RESAMPLES, seed))
    left_out = measure(ill, score, np.concatenate(list(leave_one_out(patient))))
    for name in value:
        for kind, of in drawn.items(): yield name, kind, *percentile_interval(of[name])
        yield name, 'patients, BCa', *bca_interval(value[name], drawn['patients, percentile'][name], left_out[name])

def main(cohorts):
    rows = []
    for patients, visibility, ill in SETTINGS:
        known, found = truth(visibility), []
        for seed in range(cohorts):
            table, = simulate_predictions(patients, [visibility], ill, seed=seed, spread=SPREAD)
            found += [(name, kind, low <= known[name], known[name] <= high, high - low)
                      for name, kind, low, high in intervals(table, seed, patients == 200)]
        found = pd.DataFrame(found, columns=['measure', 'interval', 'low_holds', 'high_holds', 'width'])
        for (name, kind), part in found.groupby(['measure', 'interval'], sort=False):
            given = part['width'].notna()
            rows.append(dict(patients=patients, ill_patients=round(ill * patients), visibility=visibility, measure=name,
                             truth=round(known[name], 4), interval=kind, cohorts=cohorts, resamples=RESAMPLES,
                             coverage=round((part['low_holds'] & part['high_holds'])[given].mean(), 4),
                             too_high=round((~part['low_holds'])[given].mean(), 4),
                             too_low=round((~part['high_holds'])[given].mean(), 4),
                             no_interval=round((~given).mean(), 4), mean_width=round(part['width'].mean(), 4)))
        print(pd.DataFrame(rows[-len(found.groupby(['measure', 'interval'])):])[['patients', 'truth', 'measure', 'interval', 'coverage', 'no_interval']].to_string(
            index=False, header=False), flush=True)
        pd.DataFrame(rows).to_csv(RESULT, index=False)

if __name__ == '__main__': main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
