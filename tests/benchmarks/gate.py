"""Is the fast way of computing as good as 32 bits? The accuracy gate of the chapter on speed.

    CXR_DATA=FOLDER python tests/benchmarks/gate.py [FOLDER]

Trains the custom CNN and a ResNet-18 (shipped weights, nothing frozen) on about 1,500 of Kermany's images at 64 px, five seeds,
each once with the device's `fastest` settings and once with `PLAIN`; a pair has the same first weights and the same batches. Where
there is no Kermany, phantoms stand in. Appends one line per run to <FOLDER>/gate.jsonl: stopped and called again, it goes on.
Prints the AUC on the test set, and the difference of the pairs with its 95% interval over the seeds (Student's t).
"""
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from time import process_time

os.environ['OMP_NUM_THREADS'] = '1'
warnings.filterwarnings('ignore')

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from scipy.stats import t as students_t  # noqa: E402

from cxr_learn.batches import make_dls  # noqa: E402
from cxr_learn.checkpoints import seed_everything  # noqa: E402
from cxr_learn.cnn import custom_cnn  # noqa: E402
from cxr_learn.cohorts import load_phantom, sample_patients, split_by_patient  # noqa: E402
from cxr_learn.curves import auc  # noqa: E402
from cxr_learn.measures import PREFIX  # noqa: E402
from cxr_learn.phantom import save_phantoms  # noqa: E402
from cxr_learn.public_sets import find_collection, load_cohort  # noqa: E402
from cxr_learn.speed import PLAIN, fastest  # noqa: E402
from cxr_learn.store import build_store  # noqa: E402
from cxr_learn.training import make_learner, predict, train  # noqa: E402
from cxr_learn.transfer import transfer_net  # noqa: E402

IMAGES, SIDE, BATCH, EPOCHS, SEEDS = 1500, 64, 32, 3, range(5)
NETWORKS = {'custom CNN': (custom_cnn, 2e-3), 'ResNet-18': (lambda classes: transfer_net(classes=classes), 5e-4)}
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
SPEEDS = {'fast': fastest(DEVICE), 'plain': PLAIN}

def cohort_of(folder):
    "About 1,500 images to train with and the whole test part"
    place = find_collection('kermany')
    if place is None:
        return load_phantom(save_phantoms(f'{folder}/phantom', patients=400, findings=('normal', 'consolidation')))
    whole = split_by_patient(load_cohort('kermany', place))
    tested = whole['split'] == 'test'
    few = sample_patients(whole[~tested].reset_index(drop=True), IMAGES)
    return pd.concat([few, whole[tested]], ignore_index=True)

def area(table):
    ill = sorted(set(table['label']) - {'normal'})[0]
    return auc((table['label'] == ill).to_numpy(), table[PREFIX + ill].to_numpy())

def trained(cohort, store, network, way, seed):
    "One training; its AUC on the parts it was not trained on"
    seed_everything(seed)
    make_net, lr = NETWORKS[network]
    dls = make_dls(cohort, store, batch_size=BATCH)
    learn = make_learner(dls, make_net(dls.c), speed=SPEEDS[way])
    started = process_time()
    with tempfile.TemporaryDirectory() as folder: record = train(learn, folder, epochs=EPOCHS, lr=lr, progress=False)
    seconds = process_time() - started
    return dict(network=network, way=way, seed=seed, images=int((cohort['split'] == 'train').sum()),
                valid_auc=area(predict(learn, cohort, 'valid')), test_auc=area(predict(learn, cohort, 'test')),
                best_epoch=record['best_epoch'], cpu_seconds=round(seconds, 1), speed=SPEEDS[way]._asdict(),
                device=str(DEVICE), torch=torch.__version__)

def summary(rows):
    "Mean and deviation of each arm, and the mean difference of the pairs with its interval"
    lines = []
    for network, table in pd.DataFrame(rows).groupby('network'):
        pairs = table.pivot(index='seed', columns='way', values='test_auc').dropna()
        seconds = table.pivot(index='seed', columns='way', values='cpu_seconds').dropna()
        difference = pairs['fast'] - pairs['plain']
        half = students_t.ppf(.975, len(pairs) - 1) * difference.std() / len(pairs) ** .5 if len(pairs) > 1 else float('nan')
        lines.append(dict(network=network, seeds=len(pairs), fast=pairs['fast'].mean(), fast_sd=pairs['fast'].std(),
                          plain=pairs['plain'].mean(), plain_sd=pairs['plain'].std(), difference=difference.mean(),
                          low=difference.mean() - half, high=difference.mean() + half,
                          times_as_fast=seconds['plain'].median() / seconds['fast'].median()))
    return pd.DataFrame(lines)

def main(folder='results/benchmarks'):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cohort = cohort_of(folder)
    store = build_store(cohort, folder/'store', SIDE)
    file = folder/'gate.jsonl'
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row['network'], row['way'], row['seed']) for row in rows}
    for seed in SEEDS:
        for network in NETWORKS:
            for way in SPEEDS:
                if (network, way, seed) in done: continue
                rows.append(trained(cohort, store, network, way, seed))
                with open(file, 'a') as lines: print(json.dumps(rows[-1]), file=lines, flush=True)
                print(rows[-1], flush=True)
    print(summary(rows).round(4).to_string(index=False))

if __name__ == '__main__': main(*sys.argv[1:])
