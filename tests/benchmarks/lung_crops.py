"""Whole films against masked and cropped ones, from the same pixels: does it help to show a network the lungs alone?

    CXR_DATA=FOLDER python tests/benchmarks/lung_crops.py [FOLDER OF RUNS] [SET ...]

COVID-19 Radiography (160 px originals) and Kermany (224 px), brought to 96 px whole, with the lungs on black, cropped to the
lungs, and with the lungs blacked out (a control). ResNet-18 with the shipped weights, nothing frozen, everything else alike, three
seeds (the control: one). The plan is written down first; each run's row and predictions are written as it ends, so the script may be stopped and called
again. Numbers only: nbs/results/lung_crops.csv and lung_crops_paired.csv, and how many films were refused. Two hours of one core.
"""
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')

import pandas as pd  # noqa: E402
import torch  # noqa: E402

from cxr_learn.cohorts import split_by_patient, write_atomically  # noqa: E402
from cxr_learn.command_line import SWEEP_IMAGE_SIZE, SWEEP_SETTINGS  # noqa: E402
from cxr_learn.cropping import HOWS, lung_store  # noqa: E402
from cxr_learn.comparison import compare_models  # noqa: E402
from cxr_learn.evaluation import data_digest, make_plan, register_plan  # noqa: E402
from cxr_learn.intervals import evaluate  # noqa: E402
from cxr_learn.lungs import find_lungs  # noqa: E402
from cxr_learn.public_sets import find_collection, load_cohort  # noqa: E402
from cxr_learn.store import build_store  # noqa: E402
from cxr_learn.sweep import Run, train_run  # noqa: E402
from cxr_learn.training import predict  # noqa: E402

SETS = {'covid_radiography': 160, 'kermany': 224}  # side of the pixels that all four begin with
SEEDS, CONTROL_SEEDS, MEASURES = (0, 1, 2), (0,), ('macro_auc', 'accuracy', 'macro_sensitivity')
SETTINGS = {**SWEEP_SETTINGS, 'patience': None}

def kept(file, make):
    "Masks cost a minute: keep them"
    if not file.exists(): write_atomically(file, lambda path: torch.save(make(), path))
    return torch.load(file)

def seeds_of(how): return CONTROL_SEEDS if how == 'blacked_out' else SEEDS

def write_csv(table, file): write_atomically(file, lambda path: table.to_csv(path, index=False))

def main(out='results/benchmarks/lung_crops', *names):
    out, results = Path(out), Path('nbs/results')
    torch.set_num_threads(1)
    rows, paired = [], []
    for name in names or SETS:
        folder = find_collection(name)
        if folder is None: sys.exit(f'CXR_DATA names no folder that holds {name}')
        cohort = split_by_patient(load_cohort(name, folder), seed=0)
        store = build_store(cohort, out/'store', SETS[name])
        masks = kept(out/f'{name}_masks.pt', lambda: find_lungs(store))
        stores = {how: lung_store(store, masks, how, SWEEP_IMAGE_SIZE) for how in HOWS}
        print(name, len(cohort), 'refused', len(stores['cropped'][1]), flush=True)
        for how, (derived, _) in stores.items():
            plan = make_plan([Run(seed=seed) for seed in seeds_of(how)], data_digest(cohort, derived), MEASURES, SETTINGS)
            register_plan(plan, out/f'{name}-{how}')
        tables = {}
        for seed, how in [(seed, how) for seed in SEEDS for how in HOWS if seed in seeds_of(how)]:
            derived, refused = stores[how]
            file = out/f'{name}-{how}'/f'predictions-{seed}.csv'
            learn, record = train_run(Run(seed=seed), cohort, derived, out/f'{name}-{how}', progress=False, **SETTINGS)
            if not file.exists():
                write_csv(pd.concat([predict(learn, cohort, split).assign(model=how, seed=seed) for split in ('valid', 'test')]), file)
            saved = pd.read_csv(file, dtype={'patient_id': str})
            test = tables[how, seed] = saved[saved['split'] == 'test'].reset_index(drop=True)
            scores = evaluate(test).query("label == 'all'")
            for score in scores[scores['measure'].isin(MEASURES)].to_dict('records'):
                rows.append(dict(set=name, how=how, seed=seed, **{key: score[key] for key in ('measure', 'value', 'low', 'high')},
                                 images=len(test), patients=test['patient_id'].nunique(), refused=len(refused), of=len(cohort),
                                 best_epoch=record['best_epoch'], epochs=record['epochs'],
                                 cpu_seconds_per_epoch=record['cpu_seconds_per_epoch'], torch=torch.__version__))
            print(name, how, seed, [round(row['value'], 4) for row in rows[-3:]], flush=True)
            write_csv(pd.DataFrame(rows).round(5), results/'lung_crops.csv')
        for how in HOWS[1:]:
            seeds = seeds_of(how)
            one, other = ([tables[kind, seed] for seed in seeds] for kind in (how, 'whole'))
            paired.append(compare_models(one, other, MEASURES).assign(set=name, one=how, other='whole', seeds=len(seeds)))
        write_csv(pd.concat(paired).round(5), results/'lung_crops_paired.csv')
    print(pd.concat(paired).round(4).to_string(index=False))

if __name__ == '__main__': main(*sys.argv[1:])
