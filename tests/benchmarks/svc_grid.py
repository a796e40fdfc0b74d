"""Grid search of an SVM: scikit-learn's GridSearchCV against `svc_grid`, both arms alternated in one run; nothing is asserted.

    python tests/benchmarks/svc_grid.py [FOLDER]

The same folds by patient, the same scaler inside the fold, the same points, one score (AUC of two classes; accuracy of three). Simulated features:
what they show changes the number of support vectors, so two difficulties are measured. Processor time, one thread, medians of the rounds.
Prints a table and writes svc_grid.json; nbs/results/svc_grid.csv is what the chapter on search reads.
"""
import json
import os
import platform
import sys
from pathlib import Path
from statistics import median
from time import process_time

os.environ['OMP_NUM_THREADS'] = '1'

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import sklearn  # noqa: E402
import torch  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import SVC  # noqa: E402

from cxr_learn.features import feature_matrix  # noqa: E402
from cxr_learn.search import patient_folds, svc_grid  # noqa: E402

ROUNDS, FEATURES, FOLDS = 3, 512, 3
CASES = [dict(rows=rows, classes=classes, signal=signal) for rows, classes, signal in ((2000, 2, .15), (2000, 2, .05), (2000, 3, .1), (4000, 2, .15))]
GRID = dict(C=[.1, 1., 10., 100.], gamma=[1e-4, 1e-3, 1e-2])
RESULTS = Path(__file__).parents[2]/'nbs/results/svc_grid.csv'

def simulated(rows, classes, signal):
    "Features of patients with two films each, their classes apart by `signal` standard deviations in each feature"
    rng = np.random.default_rng(0)
    label = np.repeat(rng.integers(classes, size=rows // 2), 2)
    values = rng.normal(size=(rows, FEATURES)) + signal * rng.normal(size=(classes, FEATURES))[label]
    known = pd.DataFrame(dict(image=[f'{row:05}' for row in range(rows)], patient_id=[f'{row // 2:05}' for row in range(rows)],
                              label=np.array(['a', 'b', 'c'])[label], split='train'))
    return known.join(pd.DataFrame(values.astype(np.float32)).add_prefix('feature_'))

def usual(table, score):
    def work():
        search = GridSearchCV(make_pipeline(StandardScaler(), SVC()), {f'svc__{name}': values for name, values in GRID.items()},
                              scoring=score, cv=patient_folds(table, FOLDS), refit=False)
        search.fit(feature_matrix(table), table['label'])
        return search.cv_results_['mean_test_score']
    return work

def ours(table, score):
    def work():
        found = svc_grid(table, **GRID, folds=FOLDS, score=score)['table']
        return found.sort_values(['C', 'gamma'])['mean'].to_numpy()
    return work

def seconds(work):
    started = process_time()
    result = work()
    return process_time() - started, result

def main(out):
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        table, two = simulated(**case), case['classes'] == 2
        arms = dict(usual=usual(table, 'roc_auc' if two else 'accuracy'), ours=ours(table, 'macro_auc' if two else 'accuracy'))
        times, means = {arm: [] for arm in arms}, {}
        for _ in range(ROUNDS):
            for arm, work in arms.items():
                taken, means[arm] = seconds(work)
                times[arm].append(taken)
        slow, fast = (median(values) for values in times.values())
        rows.append(dict(**case, features=FEATURES, points=len(means['ours']), folds=FOLDS, score='AUC' if two else 'accuracy',
                         usual_cpu_seconds=round(slow, 2), ours_cpu_seconds=round(fast, 2), times_as_fast=round(slow / fast, 2), goal=3,
                         largest_difference=float(abs(means['usual'] - means['ours']).max()), rounds=ROUNDS, sklearn=sklearn.__version__))
        print('  '.join(f'{key} {value}' for key, value in rows[-1].items()), flush=True)
        pd.DataFrame(rows).to_csv(RESULTS, index=False)
    out.mkdir(parents=True, exist_ok=True)
    (out/'svc_grid.json').write_text(json.dumps(dict(machine=platform.machine(), threads=1, rows=rows), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
