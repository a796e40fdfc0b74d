"""How much of Kermany's and Radiography's classes shows without the lungs? Both kinds of control, on the official test films.

    CXR_DATA=FOLDER python tests/benchmarks/shortcut_controls.py [OUT] [SET:CONTROL:SEED ...]
    CXR_DATA=FOLDER python tests/benchmarks/shortcut_controls.py OUT --finished SET=RUN,RUN ...

The first line trains the custom CNN (96 px, 5 epochs, no augmentation) on altered films alone, such as "kermany:border only:0"; a
control with lungs finds them with the shipped network. What was trained lies in OUT and is not trained again. The second takes
networks that a sweep has trained on whole films (folders with best.safetensors and record.json, ResNet-18), asks `controls`, and
measures the heat in the lungs. Writes nbs/results/shortcut_controls.csv, shortcut_finished.csv and exam_lungs.csv.
"""
import json
import os
import sys
import warnings
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'
warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

from cxr_learn.batches import make_dls  # noqa: E402
from cxr_learn.checkpoints import load_weights, seed_everything  # noqa: E402
from cxr_learn.cnn import custom_cnn  # noqa: E402
from cxr_learn.cohorts import split_by_patient  # noqa: E402
from cxr_learn.command_line import SWEEP_IMAGE_SIZE, SWEEP_SETTINGS  # noqa: E402
from cxr_learn.exam import lung_energy  # noqa: E402
from cxr_learn.explanation import heat_maps  # noqa: E402
from cxr_learn.intervals import evaluate  # noqa: E402
from cxr_learn.lungs import find_lungs  # noqa: E402
from cxr_learn.public_sets import find_collection, load_cohort  # noqa: E402
from cxr_learn.shortcuts import altered_store, controls  # noqa: E402
from cxr_learn.speed import fastest, set_speed  # noqa: E402
from cxr_learn.store import build_store  # noqa: E402
from cxr_learn.training import make_learner, predict, train  # noqa: E402
from cxr_learn.transfer import transfer_net  # noqa: E402

RESULTS, SETS = Path(__file__).parents[2]/'nbs/results', ('kermany', 'covid_radiography')
RATES = {name: SWEEP_SETTINGS[name] for name in ('epochs', 'lr', 'head_lr', 'schedule')}

def read(name, out):
    cohort = split_by_patient(load_cohort(name, find_collection(name)), seed=0)
    return cohort, build_store(cohort, out/'stores'/name, SWEEP_IMAGE_SIZE)

def trained_on(name, control, seed, out):
    "Predictions of the test films by a network that saw altered films alone"
    file = out/f'{name}-{control}-{seed}.csv'
    if file.exists(): return pd.read_csv(file)
    cohort, store = read(name, out)
    masks = find_lungs(store) if 'lungs' in control else None
    altered = altered_store(store, control, masks)._replace(files=None)
    seed_everything(seed)
    dls = make_dls(cohort, altered, batch_size=SWEEP_SETTINGS['batch_size'], augment=False)
    learn = make_learner(dls, custom_cnn(cohort['label'].nunique()))
    train(learn, out/file.stem.replace(' ', '_'), notes=dict(seed=seed), progress=False, **RATES)
    predict(learn, cohort, 'test').assign(control=control, seed=seed, data=name).to_csv(file, index=False)
    return pd.read_csv(file)

def write_trained(out):
    tables = []
    for name in SETS:
        for file in sorted(out.glob(f'{name}-*.csv')):
            table = pd.read_csv(file)
            scores = evaluate(table.drop(columns=['control', 'seed', 'data']), measures=['macro_auc', 'accuracy'])
            known = table[['data', 'control', 'seed']].iloc[0].to_dict()
            tables.append(scores[scores['label'] == 'all'].assign(**known, network='custom CNN', torch=torch.__version__))
    columns = ['data', 'network', 'control', 'seed', 'measure', 'value', 'low', 'high', 'images', 'patients', 'reason', 'torch']
    if tables: pd.concat(tables)[columns].round(4).to_csv(RESULTS/'shortcut_controls.csv', index=False)

def write_finished(out, asked):
    found, energy = [], []
    for name, folders in asked.items():
        cohort, store = read(name, out)
        tested = np.flatnonzero(cohort['split'] == 'test')
        masks = torch.zeros(store.pixels.shape, dtype=torch.bool)
        masks[tested] = find_lungs(store.pixels[tested])
        for folder in folders:
            record = json.loads((folder/'record.json').read_text())
            model = transfer_net(weights='none', classes=cohort['label'].nunique())
            load_weights(model, folder/'best.safetensors')
            model = set_speed(model.eval(), fastest(torch.device('cpu')))
            known = dict(data=name, network='ResNet-18, shipped', seed=record['seed'], torch=torch.__version__)
            found.append(controls(model, cohort, store, masks).assign(**known))
            vocab = sorted(cohort['label'].unique())
            for number, label in enumerate(vocab):
                rows = tested[(cohort['label'].iloc[tested] == label).to_numpy()]
                for block in (-1, -2):
                    maps = heat_maps(model, store.pixels[rows], number, block)
                    table = lung_energy(maps, masks[rows], cohort['patient_id'].iloc[rows])
                    energy.append(table.assign(**known, label=label, block=block, films=len(rows)))
            pd.concat(found).round(4).to_csv(RESULTS/'shortcut_finished.csv', index=False)
            pd.concat(energy).round(4).to_csv(RESULTS/'exam_lungs.csv', index=False)
            print(name, folder.name, flush=True)

def main(out, given):
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    if '--finished' in given:
        pairs = (word.split('=') for word in given if '=' in word)
        return write_finished(out, {name: [Path(folder) for folder in folders.split(',')] for name, folders in pairs})
    usual = [f'{name}:{control}:{seed}' for seed in range(3) for name in SETS for control in ('border only', 'lungs blacked out')]
    for word in given or usual:
        name, control, seed = word.split(':')
        trained_on(name, control, int(seed), out)
        print(word, flush=True)
        write_trained(out)

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/controls'), sys.argv[2:])
