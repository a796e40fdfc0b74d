"""The larger exam of heat maps: trained networks, a shortcut and random weights, against the phantom's masks.

    python tests/benchmarks/exam.py [FOLDER] [SEEDS]

Trains ResNet-18 (shipped weights) and the custom CNN on 1,600 phantoms of 128 px (four classes), three seeds, once as they are and once
with the marker on every consolidation; trainings are kept in FOLDER and go on where they stopped. Then grades the maps of 300 new
patients, with and without the marker; randomises each good network part by part; and deletes and inserts pixels. Writes
nbs/results/exam_phantom.csv, one row per number. SEEDS, such as 0,1, takes fewer; --more keeps the rows that are there, --found trains nothing. About 5 CPU minutes per training.
"""
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
from cxr_learn.checkpoints import seed_everything  # noqa: E402
from cxr_learn.cnn import custom_cnn  # noqa: E402
from cxr_learn.exam import (baseline_maps, grade_maps, mean_with_interval, perturbation_curves, random_maps,  # noqa: E402
                            randomisation_test, randomise)
from cxr_learn.explanation import cell_maps, grey_batch, heat_maps, phantom_cohort  # noqa: E402
from cxr_learn.phantom import make_phantoms  # noqa: E402
from cxr_learn.training import make_learner, train  # noqa: E402
from cxr_learn.transfer import transfer_net  # noqa: E402

FINDINGS, SIDE, PATIENTS, TESTED = ('normal', 'consolidation', 'effusion', 'mass'), 128, 1600, 300
VOCAB, TEMPTED, BLOCKS, SEEDS = sorted(FINDINGS), 'consolidation', (-1, -2), '0,1,2'
STEPS = 5  # of deletion and insertion
NETWORKS = {'resnet18': (lambda: transfer_net(classes=4), 6), 'custom': (lambda: custom_cnn(4), 12)}
RESULTS = Path(__file__).parents[2]/'nbs/results/exam_phantom.csv'

def phantoms(patients, seed, marker, images=(1, 1)):
    knobs = dict(shortcut='marker', shortcut_class=TEMPTED) if marker else {}
    return make_phantoms(patients, FINDINGS, images, SIDE, seed=seed, **knobs)

def trained(network, marker, seed, folder):
    cohort, store = phantom_cohort(phantoms(PATIENTS, 0, marker), f'exam-{marker}')
    cohort['split'] = np.where(np.random.default_rng(0).random(PATIENTS) < .15, 'valid', 'train')
    make_net, epochs = NETWORKS[network]
    seed_everything(seed)
    learn = make_learner(make_dls(cohort, store, batch_size=32), make_net())
    name = f'{network}-{"shortcut" if marker else "good"}-{seed}'
    train(learn, folder/name, epochs=epochs, lr=5e-4, head_lr=2e-3, notes=dict(seed=seed), progress=False)
    return learn.model.eval()

def accuracy(model, tested, rows, number):
    with torch.no_grad(): called = torch.cat([model(grey_batch(some)).argmax(1) for some in tested.images[rows].split(64)])
    return pd.DataFrame({'sensitivity': (called == number).double()})

def of_finding(finding, models, tests, usual, seed, block):
    "Every exam of one finding at one block, as one table"
    rows, number = np.flatnonzero(tests['good'].table['label'] == finding), VOCAB.index(finding)
    films = {name: tests[name].images[rows] for name in tests}
    masks, patients = tests['good'].masks[finding][rows], tests['good'].table['patient_id'].to_numpy()[rows]
    maps = {name: heat_maps(model, films[name], number, block) for name, model in models.items()}
    maps |= {'shortcut, no marker': heat_maps(models['shortcut'], films['good'], number, block),
             'random weights': heat_maps(randomise(models['good'], len(models['good'].blocks) + 1, seed), films['good'], number, block)}
    tables = [grade_maps({**maps, **baseline_maps(films['good'], usual)}, masks, patients).assign(exam='place')]
    for name, model in models.items():
        calls = accuracy(model, tests[name], rows, number)
        tables.append(mean_with_interval(calls, patients).assign(exam='place', map=name))
    calls = accuracy(models['shortcut'], tests['good'], rows, number)
    tables.append(mean_with_interval(calls, patients).assign(exam='place', map='shortcut, no marker'))
    if block != BLOCKS[0]: return pd.concat(tables).assign(finding=finding, block=block)
    noticed = randomisation_test(models['good'], films['good'], number, patients, block, seed)
    tables.append(noticed.rename(columns={'randomised': 'map'}).assign(exam='randomised'))
    side = cell_maps(models['good'], films['good'][:1], number, block).shape[-1]
    orders = {'good': maps['good'], 'random cells': random_maps(maps['good'], side, seed)}
    for kind in ('deletion', 'insertion'):
        scores = {name: perturbation_curves(models['good'], films['good'], number, order, kind, STEPS).mean(1) for name, order in orders.items()}
        scores['good minus random cells'] = scores['good'] - scores['random cells']
        found = mean_with_interval(pd.DataFrame(scores), patients).rename(columns={'measure': 'map'})
        tables.append(found.assign(exam='pixels', measure=kind))
    return pd.concat(tables).assign(finding=finding, block=block)

def main(folder, seeds):
    torch.set_num_threads(1)
    practice = phantoms(TESTED, 0, False)
    tests = {'good': phantoms(TESTED, 99, False, (1, 2)), 'shortcut': phantoms(TESTED, 99, True, (1, 2))}
    tables = [pd.read_csv(RESULTS)] if RESULTS.exists() and '--more' in sys.argv else []
    done = {(row.network, row.seed) for table in tables for row in table.itertuples()}
    for seed in seeds:
        for network in NETWORKS:
            if (network, seed) in done: continue
            if not all((folder/f'{network}-{kind}-{seed}/record.json').exists() for kind in tests) and '--found' in sys.argv: continue
            models = {'good': trained(network, False, seed, folder), 'shortcut': trained(network, True, seed, folder)}
            for finding in FINDINGS[1:]:
                usual = {'lungs': practice.masks['lungs'],
                         'findings': practice.masks[finding][practice.table['label'].to_numpy() == finding]}
                for block in BLOCKS:
                    tables.append(of_finding(finding, models, tests, usual, seed, block).assign(network=network, seed=seed))
            print(network, seed, flush=True)
            columns = ['exam', 'network', 'seed', 'finding', 'block', 'map', 'measure', 'value', 'low', 'high', 'images',
                       'patients', 'reason']
            table = pd.concat(tables)[columns].assign(torch=torch.__version__)
            table.round(4).to_csv(RESULTS, index=False)

if __name__ == '__main__':
    given = [argument for argument in sys.argv[1:] if not argument.startswith('--')]
    main(Path(given[0] if given else 'results/exam'), [int(seed) for seed in (given[1] if len(given) > 1 else SEEDS).split(',')])
