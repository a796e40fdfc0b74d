"""Is training on a cached prefix as good as the plain way, and what does frozen batch-norm in training mode change?

    CXR_DATA=FOLDER python tests/benchmarks/prefix_gate.py [FOLDER OF RUNS] [CSV]

ResNet-18 with the shipped weights, about 1,000 training and 250 validation images of Kermany at 64 px, tested on the official
test set; five seeds. Each run is written down as it ends, so the script may be stopped and called again. Numbers only, for
the chapters on freezing and on the cached prefix: nbs/results/prefix_gate.csv. An hour of one processor core.
"""
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from time import process_time

os.environ['OMP_NUM_THREADS'] = '1'
warnings.filterwarnings('ignore')

import pandas as pd  # noqa: E402

from cxr_learn.batches import make_dls  # noqa: E402
from cxr_learn.checkpoints import seed_everything  # noqa: E402
from cxr_learn.cohorts import sample_patients, split_by_patient, write_atomically  # noqa: E402
from cxr_learn.freezing import KeepFrozen, freeze_blocks, statistics_drift  # noqa: E402
from cxr_learn.curves import auc  # noqa: E402
from cxr_learn.prefix import PrefixCache, cached_prefix  # noqa: E402
from cxr_learn.public_sets import find_collection, load_cohort  # noqa: E402
from cxr_learn.store import build_store  # noqa: E402
from cxr_learn.training import make_learner, predict, train  # noqa: E402
from cxr_learn.transfer import transfer_net  # noqa: E402

IMAGES, SIDE, BATCH, EPOCHS, LR, SEEDS = 1250, 64, 64, 8, 5e-4, range(5)
MODE = dict(augment=False, passes=0, batch_norm='eval')  # passes = 0: not cached
ARMS = {
    'plain': MODE, 'cached': {**MODE, 'passes': 1},
    'augmented': {**MODE, 'augment': True},
    **{f'augmented, {passes} cached': {**MODE, 'augment': True, 'passes': passes} for passes in (1, 3, EPOCHS)},
    'batch statistics': {**MODE, 'batch_norm': 'train'}}

def plan():
    "Three seeds of the question of caching, then that of batch-norm for k = 1 and 2, then the other seeds"
    for seeds in (SEEDS[:3], SEEDS[3:]):
        for blocks, arms in (((4, 3), tuple(ARMS)), ((2, 1), ('cached', 'batch statistics'))):
            for seed in seeds:
                for k in blocks:
                    for arm in arms: yield dict(k=k, arm=arm, seed=seed)

def trained(cohort, store, run, folder, cache):
    arm = ARMS[run['arm']]
    seed_everything(run['seed'])
    dls = make_dls(cohort, store, batch_size=BATCH, augment=arm['augment'])
    learn = make_learner(dls, freeze_blocks(transfer_net(classes=dls.c), run['k'])).add_cb(KeepFrozen(arm['batch_norm']))
    before = transfer_net(classes=dls.c)
    started = process_time()
    cached = cached_prefix(learn, passes=arm['passes'], seed=run['seed'], cache=cache) if arm['passes'] else nullcontext()
    with cached as facts: record = train(learn, folder, epochs=EPOCHS, lr=LR, progress=False)
    spent = process_time() - started
    drift = statistics_drift(before, learn.model)['mean_moved'].head(run['k']).mean()
    row = dict(**run, passes=arm['passes'], batch_norm=arm['batch_norm'], best_epoch=record['best_epoch'],
               cpu_seconds=round(spent, 1), computed=facts['computed'] if facts else 0, statistics_moved=round(float(drift), 4),
               valid_loss=record['history'][record['best_epoch'] - 1]['valid_loss'])
    for split in ('valid', 'test'):
        table = predict(learn, cohort, split)
        sick = (table['label'] == 'pneumonia').to_numpy()
        score = table['probability_pneumonia'].to_numpy()
        row[f'{split}_auc'], row[f'{split}_accuracy'] = auc(sick, score), ((score > .5) == sick).mean()
    return row

def main(folder='results/benchmarks/prefix_gate', csv='nbs/results/prefix_gate.csv'):
    place, csv = find_collection('kermany'), Path(csv)
    if place is None: sys.exit('CXR_DATA names no folder that holds Kermany')
    whole = split_by_patient(load_cohort('kermany', place))
    tested = whole['split'] == 'test'
    few = sample_patients(whole[~tested].reset_index(drop=True), IMAGES)
    cohort = pd.concat([few, whole[tested]], ignore_index=True)
    print(cohort.groupby(['split', 'label']).size().to_dict(), flush=True)
    store, cache = build_store(cohort, Path(folder)/'store', SIDE), PrefixCache()
    rows = pd.read_csv(csv).to_dict('records') if csv.exists() else []
    done = {(row['k'], row['arm'], row['seed']) for row in rows}
    for run in plan():
        if tuple(run.values()) in done: continue
        runs = Path(folder)/'runs'/f"{run['k']}-{run['arm']}-{run['seed']}".replace(', ', '-').replace(' ', '-')
        rows.append(trained(cohort, store, run, runs, cache))
        write_atomically(csv, lambda file: pd.DataFrame(rows).round(5).to_csv(file, index=False))
        print(rows[-1], flush=True)
        (runs/'best.safetensors').unlink(missing_ok=True)
    print(pd.DataFrame(rows).groupby(['k', 'arm'])[['valid_loss', 'test_auc', 'test_accuracy', 'cpu_seconds']].agg(['mean', 'std']).round(3))

if __name__ == '__main__': main(*sys.argv[1:])
