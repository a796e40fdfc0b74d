"""Time the bootstrap of AUC, ours against a loop over scikit-learn's `roc_auc_score`; nothing is asserted but equal numbers.

    python tests/benchmarks/bootstrap.py [folder for results]

Simulated scores in the size of ChestX-ray14's test list: 25,596 images of 2,797 patients, 14 findings with its shares of
positives, scores of three decimals so that many are tied. Both arms draw patients. Ours makes 1,000 resamples; scikit-learn's
loop is timed on 8 and multiplied. Arms alternate, CPU time, one thread, median of 3 rounds.
Prints a table and writes results/benchmarks/bootstrap.json and nbs/results/bootstrap_speed.csv.
"""
import json
import platform
import sys
import tracemalloc
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import pandas as pd
import sklearn
from sklearn.metrics import roc_auc_score

from cxr_learn.curves import auc
from cxr_learn.intervals import resample_patients, weights_in_chunks

IMAGES, PATIENTS, RESAMPLES, TIMED, ROUNDS = 25_596, 2_797, 1000, 8, 3
SHARES = (.13, .04, .07, .04, .18, .04, .02, .003, .24, .07, .06, .05, .02, .10)
PAGE = Path(__file__).parents[2]/'nbs/results/bootstrap_speed.csv'

def make_scores():
    random = np.random.default_rng(0)
    patient = np.sort(np.r_[np.arange(PATIENTS), random.integers(0, PATIENTS, IMAGES - PATIENTS)])
    present = random.random((IMAGES, len(SHARES))) < SHARES
    return patient, present, (present + random.normal(size=present.shape)).round(3)

def ours(patient, present, scores):
    return np.concatenate([np.stack([auc(*column, weights) for column in zip(present.T, scores.T)], axis=-1)
                           for weights in weights_in_chunks(patient, RESAMPLES)])

def theirs(patient, present, scores):
    rows = [np.repeat(np.arange(IMAGES), times) for times in resample_patients(patient, TIMED)]
    return np.array([[roc_auc_score(*column) for column in zip(present[drawn].T, scores[drawn].T)] for drawn in rows])

def timed(work, data):
    started = process_time()
    result = work(*data)
    return process_time() - started, result

def main(out):
    data, seconds = make_scores(), {'ours': [], 'scikit-learn': []}
    for _ in range(ROUNDS):
        taken, areas = timed(ours, data)
        seconds['ours'].append(taken)
        taken, expected = timed(theirs, data)
        seconds['scikit-learn'].append(taken * RESAMPLES / TIMED)
    apart = abs(areas[:TIMED] - expected).max()
    assert apart < 1e-12, apart
    tracemalloc.start()
    ours(*data)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    rows = [dict(arm=arm, images=IMAGES, findings=len(SHARES), resamples=RESAMPLES, cpu_seconds=round(median(taken), 2),
                 ratio=round(median(seconds['scikit-learn']) / median(taken), 1)) for arm, taken in seconds.items()]
    table = pd.DataFrame(rows).assign(largest_difference=apart, peak_mb_of_ours=round(peak), numpy=np.__version__, sklearn=sklearn.__version__)
    print(table.to_string(index=False))
    table.to_csv(PAGE, index=False)
    out.mkdir(parents=True, exist_ok=True)
    (out/'bootstrap.json').write_text(json.dumps(dict(
        machine=platform.machine(), threads=1, rounds=ROUNDS, seconds=seconds, rows=table.to_dict('records')), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
