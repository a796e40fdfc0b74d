"""Measure the speed of the course's main steps, both arms alternated in one run; nothing is asserted.
How fast batches reach the network is measured in input.py, how fast files are read in decoding.py.

    make bench

Prints a table and writes results/benchmarks/speed.json. Times of different runs are not comparable, ratios are.
"""
import json
import platform
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import process_time

import torch

from cxr_learn.batches import make_dls
from cxr_learn.cnn import custom_cnn
from cxr_learn.cohorts import load_phantom, split_by_patient
from cxr_learn.freezing import freeze_blocks
from cxr_learn.phantom import DEMO_FINDINGS, make_phantoms, save_phantoms
from cxr_learn.store import build_store
from cxr_learn.checkpoints import seed_everything
from cxr_learn.training import make_learner
from cxr_learn.transfer import transfer_net

ROUNDS = 3

def seconds(work):
    started = process_time(); work(); return process_time() - started

def compare(name, usual, ours, images):
    "Median images per CPU second of both ways, alternated"
    usual(); ours()  # warm up
    times = [(seconds(usual), seconds(ours)) for _ in range(ROUNDS)]
    slow, fast = (median(column) for column in zip(*times))
    return dict(work=name, usual_images_per_s=round(images / slow, 1), ours_images_per_s=round(images / fast, 1), ratio=round(slow / fast, 2))

def training_steps(dls, model, bf16, steps=3):
    learn = make_learner(dls, model, bf16=bf16)
    batch = dls.one_batch()
    def work():
        learn.model.train()
        if learn.opt is None: learn.create_opt()
        for _ in range(steps):
            with torch.autocast('cpu', torch.bfloat16, enabled=bf16): logits = learn.model(batch[0])
            learn.loss_func(logits.float(), batch[1]).backward()
            learn.opt.step(); learn.opt.zero_grad()
    return work

def main(out):
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        started = process_time()
        make_phantoms(patients=150, findings=DEMO_FINDINGS, images_per_patient=(2, 2))
        rows.append(dict(work='phantom, 128 px', ours_images_per_s=round(300 / (process_time() - started), 1)))
        cohort = split_by_patient(load_phantom(save_phantoms(f'{folder}/phantom', patients=200, findings=DEMO_FINDINGS)))
        store = build_store(cohort, f'{folder}/store', 128)
        seed_everything(0)
        dls = make_dls(cohort, store, batch_size=32)
        for name, network in (('custom CNN', lambda: custom_cnn(4)), ('ResNet-18', lambda: transfer_net(classes=4)),
                              ('ResNet-18, k = 3', lambda: freeze_blocks(transfer_net(classes=4), 3))):
            rows.append(compare(f'training step, {name}: float32 / bfloat16', training_steps(dls, network(), False),
                                training_steps(dls, network(), True), 3 * 32))
    for row in rows: print('  '.join(f'{key} {value}' for key, value in row.items()))
    out.mkdir(parents=True, exist_ok=True)
    (out/'speed.json').write_text(json.dumps(dict(machine=platform.machine(), torch=torch.__version__, threads=1, rounds=ROUNDS, rows=rows), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
