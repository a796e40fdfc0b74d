"""Measure what freezing saves: fastai's own way, ours, and ours on a cached prefix; nothing is asserted.

    python tests/benchmarks/freezing.py [FOLDER] [--sweep]

Ten epochs end to end (network built, trained and validated each epoch, the one pass of the prefix included) on images in
memory, Kermany's with CXR_DATA set, else phantoms; no augmentation, the same loaders, batch size, pretrained weights and
linear head in all arms. fastai's way: its Learner, float32, its Adam, the blocks as parameter groups, `freeze_to(k)`,
`train_bn=True`, as it comes. CPU time at one thread, three rounds, arms alternated, medians. The last arm goes through
`train`, which also writes a checkpoint each epoch. With --sweep: k = 0 to 4 on ResNet-18 and -34, with fewer images.
Prints a table and writes freezing.json, or freezing_sweep.json.
"""
import json
import os
import platform
import sys
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import process_time

os.environ['OMP_NUM_THREADS'] = '1'
warnings.filterwarnings('ignore')

import fastai  # noqa: E402
import fastai.callback.progress  # noqa: E402, F401 - gives Learner its no_bar
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.metrics import accuracy  # noqa: E402
from fastai.torch_core import params  # noqa: E402
from torch import nn  # noqa: E402

from cxr_learn.batches import make_dls  # noqa: E402
from cxr_learn.checkpoints import seed_everything  # noqa: E402
from cxr_learn.cohorts import load_phantom, sample_patients, split_by_patient  # noqa: E402
from cxr_learn.freezing import KeepFrozen, freeze_blocks  # noqa: E402
from cxr_learn.phantom import DEMO_FINDINGS, save_phantoms  # noqa: E402
from cxr_learn.prefix import PrefixCache, cached_prefix  # noqa: E402
from cxr_learn.public_sets import find_collection, load_cohort  # noqa: E402
from cxr_learn.speed import fastest  # noqa: E402
from cxr_learn.store import build_store  # noqa: E402
from cxr_learn.training import make_learner, train  # noqa: E402
from cxr_learn.transfer import transfer_net  # noqa: E402

ROUNDS, EPOCHS, LR, SIDE = 3, 10, 5e-4, 128
IMAGES, BATCH = 256, 64
SWEEP_IMAGES, SWEEP_BATCH, NETWORKS, BLOCKS = 80, 32, ('resnet18', 'resnet34'), range(5)

def weights_of(network): return 'shipped' if network == 'resnet18' else 'none'

class AsPhotographs(nn.Module):
    "Grey in [0, 1] -> three channels as the network was pretrained, as the first step of ours"
    def __init__(self, network):
        super().__init__()
        self.register_buffer('mean', network.mean)
        self.register_buffer('std', network.std)
    def forward(self, images): return (images.as_subclass(torch.Tensor) - self.mean) / self.std

def fastais_way(dls, network, k):
    "A Learner as fastai makes it, with one parameter group per block and one for the head"
    ours = transfer_net(network, weights_of(network), dls.c)
    model = nn.Sequential(AsPhotographs(ours), *ours.blocks, ours.head)
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss(), metrics=accuracy,
                    splitter=lambda model: [params(part) for part in model[1:]])
    learn.freeze_to(k)
    return learn

def our_learner(dls, network, k):
    return make_learner(dls, freeze_blocks(transfer_net(network, weights_of(network), dls.c), k)).add_cb(KeepFrozen())

def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(EPOCHS, LR)

def arms(dls, network, k, cache=None, checkpoints=False):
    "Each way from nothing to a trained network"
    def fastais(): fit(fastais_way(dls, network, k))
    def ours(cached):
        learn = our_learner(dls, network, k)
        with cached_prefix(learn, cache=cache) if cached else nullcontext(): fit(learn)
    def ours_by_train():
        with tempfile.TemporaryDirectory() as folder:
            learn = our_learner(dls, network, k)
            with cached_prefix(learn): train(learn, folder, epochs=EPOCHS, lr=LR, progress=False)
    return {'fastai': fastais, 'ours, not cached': lambda: ours(False), 'ours, cached': lambda: ours(True),
            **({'ours, cached, with checkpoints': ours_by_train} if checkpoints else {})}

def seconds(work):
    seed_everything(0)
    started = process_time()
    work()
    return process_time() - started

def compare(dls, network, k):
    ways = arms(dls, network, k, checkpoints=True)
    rounds = []
    for _ in range(ROUNDS):
        rounds.append({name: seconds(work) for name, work in ways.items()})
        print(network, k, {name: round(value, 2) for name, value in rounds[-1].items()}, flush=True)
    usual = {name: median(one[name] for one in rounds) for name in ways}
    cached = usual['ours, cached']
    return dict(network=network, k=k, **{f'{name} (CPU s)': round(value, 2) for name, value in usual.items()},
                fastai_over_cached=round(usual['fastai'] / cached, 2),
                not_cached_over_cached=round(usual['ours, not cached'] / cached, 2), rounds=rounds)

def sweep(dls):
    "All of k = 0 to 4 on both networks, as one piece of work; the prefixes of a network are shared"
    rounds = []
    for _ in range(ROUNDS):
        spent = {}
        for network in NETWORKS:
            cache = PrefixCache()
            for k in BLOCKS:
                ways = arms(dls, network, k, cache)
                spent[f'{network}, k = {k}'] = {name: seconds(ways[name]) for name in ('fastai', 'ours, cached')}
                print(network, k, {name: round(value, 2) for name, value in spent[f'{network}, k = {k}'].items()}, flush=True)
        rounds.append(spent)
    totals = [{name: sum(one[name] for one in spent.values()) for name in ('fastai', 'ours, cached')} for spent in rounds]
    rows = [dict(run=run, fastai=round(median(spent[run]['fastai'] for spent in rounds), 2),
                 ours=round(median(spent[run]['ours, cached'] for spent in rounds), 2)) for run in rounds[0]]
    rows.append(dict(run='whole sweep', fastai=round(median(one['fastai'] for one in totals), 2),
                     ours=round(median(one['ours, cached'] for one in totals), 2)))
    for row in rows: row['ratio'] = round(row['fastai'] / row['ours'], 2)
    return rows, [round(one['fastai'] / one['ours, cached'], 2) for one in totals]

def data(images, batch, folder):
    "Loaders over so many images for training and validation"
    place = find_collection('kermany')
    if place:
        whole = split_by_patient(load_cohort('kermany', place))
        cohort = sample_patients(whole[whole['split'] != 'test'].reset_index(drop=True), images)
    else:
        whole = split_by_patient(load_phantom(save_phantoms(folder/'phantom', patients=images, findings=DEMO_FINDINGS)))
        cohort = sample_patients(whole[whole['split'] != 'test'].reset_index(drop=True), images)
    parts = cohort['split'].value_counts().to_dict()
    print('Kermany' if place else 'phantom', parts, flush=True)
    return make_dls(cohort, build_store(cohort, folder/'store', SIDE), batch, augment=False), parts

def main(*arguments):
    torch.set_num_threads(1)
    whole_sweep = '--sweep' in arguments
    out = Path(next((word for word in arguments if not word.startswith('--')), 'results/benchmarks'))
    with tempfile.TemporaryDirectory() as folder:
        dls, parts = data(*((SWEEP_IMAGES, SWEEP_BATCH) if whole_sweep else (IMAGES, BATCH)), Path(folder))
        seconds(arms(dls, 'resnet18', 4)['ours, cached'])  # warm up
        rows, totals = sweep(dls) if whole_sweep else ([compare(dls, 'resnet18', k) for k in (3, 4)], None)
    print(pd.DataFrame(rows).drop(columns='rounds', errors='ignore').to_string(index=False))
    if totals: print('whole sweep, each round:', totals)
    out.mkdir(parents=True, exist_ok=True)
    (out/('freezing_sweep.json' if whole_sweep else 'freezing.json')).write_text(json.dumps(dict(
        machine=platform.machine(), torch=torch.__version__, fastai=fastai.__version__, threads=1, rounds=ROUNDS, image_size=SIDE,
        epochs=EPOCHS, batch_size=dls.bs, images=parts, ours=fastest('cpu')._asdict(), rows=rows, totals=totals), indent=1))

if __name__ == '__main__': main(*sys.argv[1:])
