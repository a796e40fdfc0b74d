"""What do pixels, edges, textures and an autoencoder's code know of Kermany's and Radiography's classes?

    CXR_DATA=FOLDER python tests/benchmarks/baselines.py [STORES] [SET ...]

Features as the chapter on baselines makes them, classifiers as they are, nothing tuned; official test films where there are some, patients apart.
Stores of 128 pixels (64 for the autoencoder, which learns from the training films without labels) are kept in STORES.
Writes nbs/results/baselines.csv, row by row: what is in it already is not measured again.
"""
import os
import sys
import warnings
from pathlib import Path
from time import process_time

os.environ['OMP_NUM_THREADS'] = '1'
warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import skimage  # noqa: E402
import sklearn  # noqa: E402
import torch  # noqa: E402

from cxr_learn.baselines import PICTURE_KINDS, picture_features, train_autoencoder  # noqa: E402
from cxr_learn.classifiers import classify, fit_classifier, make_classifier  # noqa: E402
from cxr_learn.cohorts import split_by_patient  # noqa: E402
from cxr_learn.features import extract_features, feature_matrix  # noqa: E402
from cxr_learn.intervals import evaluate  # noqa: E402
from cxr_learn.public_sets import find_collection, load_cohort  # noqa: E402
from cxr_learn.store import build_store  # noqa: E402

RESULTS, SETS = Path(__file__).parents[2]/'nbs/results/baselines.csv', ('kermany', 'covid_radiography')
SIDE, SMALL_SIDE, CODER_EPOCHS = 128, 64, 10
SEEDS = {'pixels': (0,), 'hog': (0,), 'lbp': (0,), 'autoencoder': (0, 1, 2)}
MEASURES = ['macro_auc', 'accuracy', 'macro_sensitivity']

def described(features, seed, cohort, stores):
    "A table of features and how it was made"
    if features in PICTURE_KINDS: return picture_features(cohort, stores(SIDE), features), SIDE
    store = stores(SMALL_SIDE)
    coder = train_autoencoder(store, np.flatnonzero(cohort['split'] == 'train'), epochs=CODER_EPOCHS, seed=seed)
    return extract_features(coder, cohort, store), SMALL_SIDE

def main(folder, names):
    torch.set_num_threads(1)
    rows = pd.read_csv(RESULTS).to_dict('records') if RESULTS.exists() else []
    done = {(row['data'], row['features'], row['classifier'], row['seed']) for row in rows}
    cohorts = {name: split_by_patient(load_cohort(name, find_collection(name)), seed=0) for name in names}  # as the sweeps
    for features, seeds in SEEDS.items():
        for name, seed in ((name, seed) for seed in seeds for name in names):
            cohort = cohorts[name]
            def stores(side): return build_store(cohort, folder/name, side)
            todo = [kind for kind in ('logistic', 'svm') if (name, features, kind, seed) not in done]
            if not todo: continue
            started = process_time()
            table, side = described(features, seed, cohort, stores)
            seconds = process_time() - started
            for kind in todo:
                started = process_time()
                fitted = fit_classifier(make_classifier(kind, seed), table)
                taken = process_time() - started
                for split in ('valid', 'test'):
                    scores = evaluate(classify(fitted, table, split), measures=MEASURES).query("label == 'all'")
                    rows += [dict(
                        data=name, features=features, classifier=kind, seed=seed, split=split, measure=row.measure, value=row.value,
                        low=row.low, high=row.high, images=row.images, patients=row.patients, training_images=int((table['split'] == 'train').sum()),
                        numbers=feature_matrix(table).shape[1], image_size=side, describe_cpu_seconds=round(seconds, 1),
                        fit_cpu_seconds=round(taken, 1), sklearn=sklearn.__version__, skimage=skimage.__version__, torch=torch.__version__)
                        for row in scores.itertuples()]
                pd.DataFrame(rows).to_csv(RESULTS, index=False, float_format='%.5f')
                print(name, features, kind, seed, {(row['split'], row['measure']): round(row['value'], 3) for row in rows[-6:]},
                      round(seconds), round(taken), flush=True)

if __name__ == '__main__':
    folder, *names = sys.argv[1:] or ['results/baselines']
    main(Path(folder), names or SETS)
