"""Measure how well networks are calibrated on test images, as they are and repaired on validation; nothing is asserted.

    python tests/benchmarks/calibration.py kermany=<predictions.csv of a study> radiography=<another>

Writes nbs/results/calibration.csv, which the chapter on calibration reads: a row per data set, model, seed, repair and measure.
"""
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn

from cxr_learn.calibration import Temperature, brier, calibration_error, fit_isotonic, fit_temperature, log_loss
from cxr_learn.curves import macro_auc
from cxr_learn.intervals import resample_patients
from cxr_learn.measures import probabilities_of, read_predictions, truth_of

MODELS = ('custom CNN', 'resnet18, shipped, k = 0')
RESAMPLES = 1000
RESULT = Path(__file__).parents[2]/'nbs/results/calibration.csv'

def measures(table, weights):
    truth, said = truth_of(table), probabilities_of(table)
    if truth.shape[1] == 2: asked = truth[:, 1], said[:, 1]  # yes or no: of the second class
    else: asked = truth, said
    return dict(calibration_error=calibration_error(*asked, weights), brier=brier(*asked, weights),
                log_loss=log_loss(*asked, weights), macro_auc=macro_auc(truth, said, weights))

def rows(valid, test):
    "One per repair and measure, with 95% percentile intervals over patients"
    weights = resample_patients(test['patient_id'], RESAMPLES)
    weights = np.vstack([np.ones_like(weights[:1]), weights])
    for repair, fit in (('none', None), ('temperature', fit_temperature), ('isotonic', fit_isotonic)):
        fitted = fit(valid) if fit else None
        found = max(fitted.temperatures.values()) if isinstance(fitted, Temperature) else np.nan
        for measure, values in measures(fitted.apply(test) if fit else test, weights).items():
            low, high = np.percentile(values[1:], [2.5, 97.5])
            if measure == 'calibration_error': low = high = np.nan  # a resample adds chance of its own
            yield dict(repair=repair, temperature=found, measure=measure, value=values[0], low=low, high=high,
                       images=len(test), patients=test['patient_id'].nunique(), valid_images=len(valid))

def main(files):
    result = []
    for data, file in files.items():
        for (model, seed), table in read_predictions(file).groupby(['model', 'seed'], sort=False):
            if model not in MODELS: continue
            parts = {split: part.reset_index(drop=True) for split, part in table.groupby('split')}
            for row in rows(parts['valid'], parts['test']):
                result.append(dict(data=data, model=model, seed=int(seed), **row, sklearn=sklearn.__version__))
                print(*result[-1].values())
    pd.DataFrame(result).round(5).to_csv(RESULT, index=False)

if __name__ == '__main__':
    warnings.simplefilter('once')
    main(dict(argument.split('=', 1) for argument in sys.argv[1:]))
