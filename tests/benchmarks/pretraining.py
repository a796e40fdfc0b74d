"""What pretraining is worth: shipped weights against random ones, by number of training images, on Kermany.

    CXR_DATA=FOLDER .venv/bin/python tests/benchmarks/pretraining.py [OUT]

One plan: ResNet-18, nothing frozen, 100, 400 and all training images, three seeds; every seed draws its own
training patients. The official test set is opened after all trainings. It resumes, and writes OUT/pretraining.csv and OUT/paired.csv (shipped minus none, measures averaged
over seeds, paired on the test patients).
"""
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from cxr_learn.store import build_store
from cxr_learn.cohorts import sample_patients, split_by_patient, write_atomically
from cxr_learn.public_sets import find_collection, load_cohort
from cxr_learn.comparison import compare_models
from cxr_learn.evaluation import data_digest, make_plan, register_plan
from cxr_learn.sweep import Run, train_run
from cxr_learn.intervals import evaluate
from cxr_learn.training import predict

IMAGE_SIZE, SEEDS, WEIGHTS = 96, (0, 1, 2), ('none', 'shipped')
EPOCHS = {100: 30, 400: 15, None: 5}  # few images need more passes for as many steps
VALIDATION = 300                      # images, for the small training sets; all for the whole one

def part(cohort, store, training_images, seed):
    "The cohort with fewer training and validation patients, and its rows of the store"
    if training_images is None: return cohort, store
    kept = [cohort.query("split == 'test'")]
    for split, images in (('train', training_images), ('valid', VALIDATION)):
        kept.append(sample_patients(cohort[cohort['split'] == split], images, seed))
    chosen = cohort['image'].isin(pd.concat(kept)['image'])
    rows = np.flatnonzero(chosen)
    return cohort[chosen].reset_index(drop=True), store.take(rows)

def main(out):
    folder = find_collection('kermany')
    if folder is None: sys.exit('Set CXR_DATA to a folder that holds Kermany.')
    cohort = split_by_patient(load_cohort('kermany', folder), seed=0)
    store = build_store(cohort, out/'store', IMAGE_SIZE)
    runs = [(n, Run('resnet18', weights, 0, seed)) for n in EPOCHS for seed in SEEDS for weights in WEIGHTS]
    register_plan(make_plan([run for _, run in runs], data_digest(cohort, store), ['macro_auc', 'accuracy'],
                            {'epochs': list(EPOCHS.values()), 'images': list(map(str, EPOCHS))}), out)
    def training(n, run):
        learn, record = train_run(run, *part(cohort, store, n, run.seed), out/'runs', epochs=EPOCHS[n], lr=5e-4,
                                  head_lr=2e-3, batch_size=32 if n else 64, progress=False)
        return learn, record
    for n, run in runs:
        record = training(n, run)[1]
        print(n or 'all', run.weights, 'seed', run.seed, f"{record['seconds_per_epoch']} s per epoch", flush=True)
    rows, predictions = [], {}
    for n, run in runs:
        learn, record = training(n, run)
        test = predict(learn, part(cohort, store, n, run.seed)[0], 'test')
        predictions.setdefault((n, run.weights), []).append(test)
        scores = evaluate(test).set_index(['measure', 'label'])
        auc, accuracy = scores.loc[('macro_auc', 'all')], scores.loc[('accuracy', 'all'), 'value']
        rows.append(dict(training_images=len(part(cohort, store, n, run.seed)[0].query("split == 'train'")), asked=n or 'all',
                         weights=run.weights, seed=run.seed, auc=auc['value'], low=auc['low'], high=auc['high'],
                         accuracy=accuracy, best_epoch=record['best_epoch'], test_images=int(auc['images'])))
    table = pd.DataFrame(rows)
    write_atomically(out/'pretraining.csv', lambda file: table.to_csv(file, index=False))
    paired = pd.concat([compare_models(predictions[n, 'shipped'], predictions[n, 'none'], ['macro_auc', 'accuracy']).assign(asked=n or 'all')
                        for n in EPOCHS], ignore_index=True)
    write_atomically(out/'paired.csv', lambda file: paired.to_csv(file, index=False))
    print(paired.round(4))
    print(table.groupby(['asked', 'weights'], sort=False)[['auc', 'accuracy']].agg(['mean', 'std']).round(4))

if __name__ == '__main__':
    warnings.filterwarnings('ignore', category=FutureWarning)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/pretraining'))
