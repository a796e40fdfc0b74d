"""A network for lungs from three kinds of training films, examined on the same real test films.

    CXR_DATA=FOLDER python tests/benchmarks/lungs.py [FOLDER OF WEIGHTS] [ARM ...]

Arms: 'phantom and Montgomery' (what the package ships), 'phantom', 'all real films' (never shipped: Shenzhen's masks are CC BY-NC-SA).
The same network, steps and seed; the test films are a fifth of each collection's patients, opened after the training, and decide nothing.
Writes nbs/results/lungs_dice.csv, lung_boxes.csv and, below the folder, the weights with their cards: copy those of the first arm to
cxr_learn/weights to ship them. Six minutes of one core for each arm.
"""
import hashlib
import os
import sys
import warnings
from pathlib import Path
from time import process_time

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

from cxr_learn.checkpoints import environment  # noqa: E402
from cxr_learn.cohorts import write_atomically  # noqa: E402
from cxr_learn.cropping import MARGIN, kept_share, lung_box, lung_fault  # noqa: E402
from cxr_learn.images import read_grey  # noqa: E402
from cxr_learn.lungs import (LUNG_PHANTOMS, dice, find_lung_films, find_lungs, lung_net, lung_overlap,  # noqa: E402
                             make_phantoms, read_lung_films, save_lung_net, shippable_films, small_films,
                             split_lung_films, train_lungs)
from cxr_learn.public_sets import find_collection, load_cohort  # noqa: E402

ARMS, STEPS, SEED = ('phantom and Montgomery', 'phantom', 'all real films'), 700, 0
MARGINS = (0, .04, MARGIN, .12)

def training_films(arm, images, masks, collection):
    "Images, masks and `draw` of an arm; images and masks are the real training films"
    montgomery = np.flatnonzero(collection == 'montgomery')
    if arm == ARMS[0]: return shippable_films(images[montgomery], masks[montgomery])
    if arm == ARMS[2]: return *small_films(images, masks), None
    phantoms = make_phantoms(**LUNG_PHANTOMS)
    return phantoms.images, phantoms.masks['lungs'], None

def provenance(images, masks, network, seconds):
    "What a file of weights says about itself; images and masks are Montgomery's validation films"
    validation = dice(find_lungs(images, network), masks)
    films = make_phantoms(**LUNG_PHANTOMS)
    digest = hashlib.sha256(films.images.numpy().tobytes() + films.masks['lungs'].numpy().tobytes()).hexdigest()
    return dict(
        made_by='this project, with `train_lungs` of its chapter on lungs (13_lungs), by tests/benchmarks/lungs.py',
        trained_on=f"{LUNG_PHANTOMS['patients']} simulated films of this project's phantom, and 96 films of the Montgomery County set with "
                   'their lung masks, drawn equally often; no mask of the Shenzhen set', collections='phantom, montgomery',
        licence='made for this project and free to ship with it; Montgomery County set: U.S. National Library of Medicine, National '
                'Institutes of Health, Bethesda, MD, USA, and Montgomery County Department of Health and Human Services; cite Jaeger et '
                'al., Quant Imaging Med Surg 2014, and Candemir et al., IEEE Trans Med Imaging 2014',
        images_seen=16 * STEPS, seed=SEED, versions=environment(), minutes=round(seconds / 60, 1), data={'phantoms_sha256': digest},
        recipe=dict(steps=STEPS, batch_size=16, lr=3e-3, optimiser='adamw', weight_decay=.01, schedule='one_cycle', image_size=128,
                    loss='binary cross-entropy + Dice', variation='`vary_films`', bf16=True),
        validation={'films': len(images), 'collection': 'montgomery', 'dice': round(validation.mean().item(), 4)})

def examine(arm, found, masks, table, steps):
    "Dice on the test films, and whether the box of the found lungs keeps the true ones"
    scores = [lung_overlap(found, masks, table), lung_overlap(found, masks, table.assign(collection='both'))]
    scores = pd.concat(scores, ignore_index=True).assign(trained_on=arm, steps=steps, seed=SEED, torch=torch.__version__)
    usable, rows = [not lung_fault(mask) for mask in found], []
    for margin in MARGINS:
        kept = kept_share(masks[usable], [lung_box(mask, margin) for mask in found[usable]])
        rows.append(dict(trained_on=arm, margin=margin, films=len(kept), refused=len(found) - len(kept), kept_on_average=kept.mean().item(),
                         keeps_99_percent=(kept >= .99).float().mean().item(), least=kept.min().item()))
    return scores, pd.DataFrame(rows)

def refusals():
    "How often a film of each public set is refused: one film of each of 500 patients"
    rows = []
    for name in ('kermany', 'covid_radiography', 'nih_chestxray14'):
        folder = find_collection(name)
        if folder is None: continue
        films = load_cohort(name, folder).sample(frac=1, random_state=SEED).drop_duplicates('patient_id').head(500)
        pixels = [np.round(255 * read_grey(path, 128)).astype(np.uint8) for path in films['path']]
        faults = [lung_fault(mask) for mask in find_lungs(torch.from_numpy(np.stack(pixels)))]
        refused = sum(map(bool, faults))
        low, high = binomtest(refused, len(films)).proportion_ci(method='wilson')
        rows.append(dict(set=name, films=len(films), refused=refused, share=refused / len(films), low=low, high=high,
                         one_sided=sum('side' in fault for fault in faults), too_small=sum('less' in fault for fault in faults)))
    return pd.DataFrame(rows)

def add_rows(file, rows):
    "Rows of this arm take the place of earlier ones"
    if file.exists():
        earlier = pd.read_csv(file)
        rows = pd.concat([earlier[earlier['trained_on'] != rows['trained_on'].iloc[0]], rows])
    rows = rows.sort_values('trained_on', key=lambda names: names.map(ARMS.index), kind='stable')
    write_atomically(file, lambda path: rows.round(5).to_csv(path, index=False))

def main(out='results/benchmarks/lungs', *arms):
    folder, out, results = find_lung_films(), Path(out), Path('nbs/results')
    if folder is None: sys.exit('CXR_DATA names no folder that holds the films with lung masks')
    torch.set_num_threads(1)
    images, masks, table = read_lung_films(folder)
    table['split'] = split_lung_films(table)
    train, tested = (np.flatnonzero(table['split'] == split) for split in ('train', 'test'))
    valid = np.flatnonzero((table['split'] == 'valid') & (table['collection'] == 'montgomery'))
    for arm in arms or ARMS:
        file = out/('lungs_unet.safetensors' if arm == ARMS[0] else f"{arm.replace(' ', '_')}.safetensors")
        network = lung_net()
        if not file.exists():
            started = process_time()
            films = training_films(arm, images[train], masks[train], table['collection'].to_numpy()[train])
            network, losses = train_lungs(films[0], films[1], STEPS, draw=films[2], seed=SEED)
            seconds = process_time() - started
            print(arm, f'{seconds:.0f} s, loss {np.mean(losses[-50:]):.3f}', flush=True)
            if arm == ARMS[0]: save_lung_net(network, file, provenance(images[valid], masks[valid], network, seconds))
            else: write_atomically(file, lambda path: save_file({n: t.half().contiguous() for n, t in network.state_dict().items()}, path))
        network.load_state_dict(load_file(file))
        found = find_lungs(images[tested], network)
        scores, boxes = examine(arm, found, masks[tested], table.iloc[tested], STEPS)
        add_rows(results/'lungs_dice.csv', scores)
        add_rows(results/'lung_boxes.csv', boxes)
        print(scores.round(4).to_string(index=False), boxes.round(4).to_string(index=False), sep='\n', flush=True)
    refused = refusals()
    write_atomically(results/'lung_refusals.csv', lambda path: refused.round(5).to_csv(path, index=False))
    print(refused.to_string(index=False))

if __name__ == '__main__': main(*sys.argv[1:])
