"""Is the fast augmentation as good as fastai's? The accuracy gate of the chapter on batches.

    CXR_DATA=FOLDER python tests/benchmarks/augmentation.py [folder]

Trains a custom CNN on about 1,800 of Kermany's images at 64 px, five seeds, with no augmentation, with ours and with fastai's
of the same amounts, and prints AUC on validation and official test set. Writes <folder>/augmentation.json. Some minutes.
"""
import json
import os
import sys
import warnings
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'
warnings.filterwarnings('ignore')

import pandas as pd  # noqa: E402
from fastai.data.transforms import IntToFloatTensor  # noqa: E402
from fastai.vision.augment import aug_transforms  # noqa: E402
from fasttransform import Pipeline  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from cxr_learn.batches import make_dls  # noqa: E402
from cxr_learn.cnn import custom_cnn  # noqa: E402
from cxr_learn.cohorts import sample_patients, split_by_patient, write_atomically  # noqa: E402
from cxr_learn.public_sets import find_collection, load_cohort  # noqa: E402
from cxr_learn.store import build_store  # noqa: E402
from cxr_learn.checkpoints import seed_everything  # noqa: E402
from cxr_learn.training import make_learner, predict  # noqa: E402

IMAGES, SIDE, EPOCHS, LR, SEEDS = 1800, 64, 5, 2e-3, range(5)


def fastais_steps():
    "fastai's transforms with the amounts of our policy 'conservative'"
    return Pipeline([IntToFloatTensor(), *aug_transforms(
        do_flip=False, max_rotate=10, min_zoom=1., max_zoom=1.2, max_lighting=.1, max_warp=0., p_affine=.75,
        p_lighting=.75, pad_mode='zeros')])


def trained(cohort, store, arm, seed):
    "AUC of one training on both parts it was not trained on"
    seed_everything(seed)
    dls = make_dls(cohort, store, augment=arm == 'ours')
    if arm == 'fastai': dls.train.after_batch = fastais_steps()
    learn = make_learner(dls, custom_cnn(dls.c))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(EPOCHS, LR)
    tables = {split: predict(learn, cohort, split) for split in ('valid', 'test')}
    return dict(arm=arm, seed=seed, **{
        split: roc_auc_score(table['label'] == 'pneumonia', table['probability_pneumonia']) for split, table in tables.items()})


def main(folder='results/benchmarks'):
    place = find_collection('kermany')
    if place is None: sys.exit('CXR_DATA names no folder that holds Kermany')
    whole = split_by_patient(load_cohort('kermany', place))
    tested = whole['split'] == 'test'
    few = sample_patients(whole[~tested].reset_index(drop=True), IMAGES)
    cohort = pd.concat([few, whole[tested]], ignore_index=True)
    store = build_store(cohort, Path(folder)/'store', SIDE)
    rows = []
    for seed in SEEDS:
        for arm in ('none', 'ours', 'fastai'):
            rows.append(trained(cohort, store, arm, seed))
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).groupby('arm')[['valid', 'test']].agg(['mean', 'std']).round(3))
    write_atomically(Path(folder)/'augmentation.json', lambda file: file.write_text(json.dumps(rows, indent=1)))


if __name__ == '__main__': main(*sys.argv[1:])
