"""Measure the training step, fastai's usual way against ours, all arms alternated in one run; nothing is asserted.

    python tests/benchmarks/training.py [FOLDER]

Arms: fastai's default (`Learner` as it comes: 32 bits, PyTorch's own order in memory, fastai's Adam, its loop), ours (`make_learner`
as it comes), and ours with one batch that lies ready, which shows what the input path costs. The same network, batches and loss;
no augmentation. Processor time, one thread, medians of the rounds. Beside it the rate of matrix products in bfloat16, measured in
the same rounds, and the share of it that a step reaches; a step's operations are counted by PyTorch, forward and backward.
On a CUDA card wall time is measured instead, larger batches are used, and the share of the images per second with data
already in memory. Prints a table and writes training.json. Times of different runs are not comparable, ratios are.
"""
import json
import os
import platform
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

os.environ['OMP_NUM_THREADS'] = '1'
warnings.filterwarnings('ignore')

import fastai  # noqa: E402
import fastai.callback.progress  # noqa: E402, F401 - gives Learner its no_bar
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fastai.callback.core import Callback, CancelValidException  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from cxr_learn.batches import make_dls  # noqa: E402
from cxr_learn.checkpoints import seed_everything  # noqa: E402
from cxr_learn.cnn import custom_cnn  # noqa: E402
from cxr_learn.cohorts import make_cohort  # noqa: E402
from cxr_learn.speed import PLAIN, fastest, set_speed  # noqa: E402
from cxr_learn.store import Store  # noqa: E402
from cxr_learn.training import make_learner  # noqa: E402
from cxr_learn.transfer import transfer_net  # noqa: E402

ROUNDS = 3
CUDA = torch.cuda.is_available()
DEVICE = torch.device('cuda' if CUDA else 'cpu')
BATCH, STEPS = (256, 30) if CUDA else (64, 2)  # images per step (as `make_dls` has them), steps per round
SIDES = (128, 96)
NETWORKS = {'ResNet-18': lambda: transfer_net(classes=4), 'custom CNN': lambda: custom_cnn(4)}
MATRIX, PRODUCTS = (8192, 50) if CUDA else (1024, 100)
GOALS = {'ResNet-18': 1.8, 'custom CNN': 2.2}

def seconds(work):
    "Of the processor; on a card, where the processor only waits, of the clock"
    clock = perf_counter if CUDA else process_time
    if CUDA: torch.cuda.synchronize()
    started = clock()
    work()
    if CUDA: torch.cuda.synchronize()
    return clock() - started

def loaders(side):
    "STEPS batches of noise, whole: what the pixels show does not change the time"
    images = STEPS * BATCH
    rows = [dict(image=f'{n:05}', patient_id=f'{n:05}', label='abcd'[n % 4], split='valid' if n >= images else 'train')
            for n in range(images + BATCH)]
    cohort = make_cohort(pd.DataFrame(rows).assign(path='none', patient_rule='given', source='noise'))
    pixels = torch.randint(0, 256, (len(cohort), side, side), dtype=torch.uint8)
    dls = make_dls(cohort, Store(pixels, tuple(cohort['image']), 'noise'), batch_size=BATCH, augment=False)
    return dls.to(DEVICE) if CUDA else dls

class OnlyTraining(Callback):
    "Leave the validation out"
    def before_validate(self): raise CancelValidException

class ReadyBatch(Callback):
    "Feed the network one batch that lies ready, and make no others"
    def __init__(self, dls): self.ready = dls.train.one_batch()
    def before_train(self): self.learn.dl = [self.ready] * STEPS

def epoch_of(learn):
    def work():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    learn.add_cb(OnlyTraining())
    return work

def arms(dls, net):
    plain = set_speed(deepcopy(net), PLAIN).to(DEVICE)
    ready = make_learner(dls, deepcopy(net))
    ready.add_cb(ReadyBatch(dls))
    return {'fastai': epoch_of(Learner(dls, plain, loss_func=dls.train_ds.loss_func)),
            'ours': epoch_of(make_learner(dls, deepcopy(net))), 'ours, batch ready': epoch_of(ready)}

def operations(net, side):
    "Of one image, forward and backward, in billions; a multiplication and an addition are two"
    images = torch.rand(4, 1, side, side)
    with FlopCounterMode(display=False) as counter: set_speed(deepcopy(net), PLAIN)(images).sum().backward()
    return counter.get_total_flops() / len(images) / 1e9

def products(kind):
    one, other = (torch.randn(MATRIX, MATRIX, device=DEVICE).to(kind) for _ in range(2))
    def work():
        for _ in range(PRODUCTS): one @ other
    return work

def main(out):
    torch.set_num_threads(1)
    seed_everything(0)
    kind = torch.bfloat16 if fastest(DEVICE).bf16 else torch.float32
    multiply, rows = products(kind), []
    for side in SIDES:
        dls = loaders(side)
        for name, make_net in NETWORKS.items():
            net = make_net()
            work = {**arms(dls, net), 'products': multiply}
            for warm_up in work.values(): warm_up()
            times = {arm: [] for arm in work}
            for _ in range(ROUNDS):
                for arm, step in work.items(): times[arm].append(seconds(step))
            usual, ours, ready, multiplying = (median(values) for values in times.values())
            images, billions = STEPS * BATCH, operations(net, side)
            rate = 2 * MATRIX ** 3 * PRODUCTS / multiplying / 1e9
            rows.append(dict(
                network=name, side=side, fastai_images_per_s=round(images / usual, 1), ours_images_per_s=round(images / ours, 1),
                times_as_fast=round(usual / ours, 2), goal=GOALS[name], gflop_per_image=round(billions, 3),
                matrix_gflop_per_s=round(rate), share_of_matrix_rate=round(billions * images / ours / rate, 3),
                of_images_per_s_with_batch_ready=round(ready / ours, 3),
                rounds={arm: [round(value, 3) for value in values] for arm, values in times.items()}))
            print('  '.join(f'{key} {value}' for key, value in rows[-1].items() if key != 'rounds'), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out/'training.json').write_text(json.dumps(dict(
        machine=platform.machine(), device=str(DEVICE), card=torch.cuda.get_device_name() if CUDA else None, torch=torch.__version__,
        fastai=fastai.__version__, threads=1, speed=fastest(DEVICE)._asdict(), numbers=str(kind), batch=BATCH, rows=rows), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
