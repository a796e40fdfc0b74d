"""Measure the extraction of features, the usual loop against ours, all arms alternated in one run; nothing is asserted.

    python tests/benchmarks/features.py [FOLDER]

Arms: film by film in 32 bits, as the loop in many tutorials has it; batches in 32 bits and PyTorch's own order in memory; ours, batches
as `fastest` sets the network; and ours found again in its file. The same network and films; the features of the first two arms are
compared with ours. Processor time at one thread (on a CUDA card wall time), medians of the rounds. Prints a table and writes features.json.
Times of different runs are not comparable, ratios are.
"""
import json
import os
import platform
import sys
import tempfile
import warnings
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

os.environ['OMP_NUM_THREADS'] = '1'
warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import torch  # noqa: E402

from cxr_learn.explanation import phantom_cohort  # noqa: E402
from cxr_learn.features import extract_features, feature_matrix  # noqa: E402
from cxr_learn.phantom import make_phantoms  # noqa: E402
from cxr_learn.speed import PLAIN, fastest, set_speed  # noqa: E402
from cxr_learn.transfer import transfer_net  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device('cuda' if CUDA else 'cpu')
ROUNDS, FILMS, SIDE = 3, (2048 if CUDA else 64), 96

def seconds(work):
    "Of the processor; on a card, where the processor only waits, of the clock"
    clock = perf_counter if CUDA else process_time
    if CUDA: torch.cuda.synchronize()
    started = clock()
    result = work()
    if CUDA: torch.cuda.synchronize()
    return clock() - started, result

def usual(net, store, batch_size):
    "The plain loop over films that are decoded already"
    def work():
        rows = []
        with torch.no_grad():
            for films in store.pixels.split(batch_size):
                maps = (films.unsqueeze(1).to(DEVICE) / 255 - net.mean) / net.std
                rows.append(net.blocks(maps).mean((2, 3)).cpu().numpy())
        return np.concatenate(rows)
    return work

def main(out):
    torch.set_num_threads(1)
    cohort, store = phantom_cohort(make_phantoms(FILMS, ('normal', 'mass'), (1, 1), SIDE))
    plain = set_speed(transfer_net(), PLAIN).eval().to(DEVICE)
    quick = set_speed(deepcopy(plain), fastest(DEVICE))
    with tempfile.TemporaryDirectory() as folder:
        file = f'{folder}/features.parquet'
        extract_features(quick, cohort, store, file)
        arms = {'film by film, 32 bits': usual(plain, store, 1), 'batches of 64, 32 bits': usual(plain, store, 64),
                'ours': lambda: feature_matrix(extract_features(quick, cohort, store)),
                'ours, found in its file': lambda: feature_matrix(extract_features(quick, cohort, store, file))}
        found = {arm: work() for arm, work in arms.items()}  # warm up
        times = {arm: [] for arm in arms}
        for _ in range(ROUNDS):
            for arm, work in arms.items(): times[arm].append(seconds(work)[0])
    exact = found['batches of 64, 32 bits']
    rows = [dict(arm=arm, films_per_s=round(FILMS / median(taken), 1),
                 times_as_fast=round(median(times['film by film, 32 bits']) / median(taken), 2),
                 difference_by_spread=float(f"{abs(found[arm] - exact).mean() / exact.std(axis=0).mean():.2g}"),
                 rounds=[round(value, 3) for value in taken]) for arm, taken in times.items()]
    for row in rows: print('  '.join(f'{key} {value}' for key, value in row.items() if key != 'rounds'))
    out.mkdir(parents=True, exist_ok=True)
    (out/'features.json').write_text(json.dumps(dict(
        machine=platform.machine(), device=str(DEVICE), card=torch.cuda.get_device_name() if CUDA else None,
        torch=torch.__version__, threads=1, speed=fastest(DEVICE)._asdict(), network='resnet18', films=FILMS, side=SIDE,
        rows=rows), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
