"""Measure how fast phantoms are made; nothing is asserted. The other steps have files of their own: reading files decoding.py,
batches input.py, training steps training.py, freezing and the cached prefix freezing.py.

    make bench

Prints a line and writes results/benchmarks/speed.json. Times of different runs are not comparable.
"""
import json
import platform
import sys
from pathlib import Path
from statistics import median
from time import process_time

import torch

from cxr_learn.phantom import DEMO_FINDINGS, make_phantoms

ROUNDS, PATIENTS, IMAGES_EACH = 3, 150, 2

def seconds(work):
    started = process_time()
    work()
    return process_time() - started

def main(out):
    torch.set_num_threads(1)
    def work(): make_phantoms(patients=PATIENTS, findings=DEMO_FINDINGS, images_per_patient=(IMAGES_EACH, IMAGES_EACH))
    work()  # warm up
    taken = median(seconds(work) for _ in range(ROUNDS))
    row = dict(work='phantom, 128 px', images_per_s=round(PATIENTS * IMAGES_EACH / taken, 1))
    print('  '.join(f'{key} {value}' for key, value in row.items()))
    out.mkdir(parents=True, exist_ok=True)
    (out/'speed.json').write_text(json.dumps(dict(
        machine=platform.machine(), torch=torch.__version__, threads=1, rounds=ROUNDS, rows=[row]), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
