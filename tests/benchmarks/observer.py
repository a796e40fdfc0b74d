"""Measure where a small network stands between chance, the reader with the mask and the ceiling; nothing is asserted.

    python tests/benchmarks/observer.py [FINDING ...]

For each finding 1,000 phantom patients with one image each, half of them normal: 700 train a network of four blocks from
scratch, 300 test it. Beside it the reader of the observer's chapter (400 chests, cross-validated) and the ceiling. One
seed, one thread; some minutes per finding. Prints a table and writes results/benchmarks/observer.json.
"""
import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from cxr_learn.cnn import BlockNet, conv_block, make_head
from cxr_learn.observer import mean_by_patient, observer_auc, reader_auc, reader_scores
from cxr_learn.phantom import VERSION, make_phantoms

FINDINGS = ('nodule', 'infiltration', 'consolidation', 'diffuse interstitial pattern', 'bilateral peripheral ground-glass')
PATIENTS, TRAINED, SIDE, SEED = 1000, 700, 128, 11
EPOCHS, BATCH, RATE, SHIFT = 14, 32, 3e-3, 6  # SHIFT: pixels by which training images are moved at random
CHANNELS = (3, 16, 32, 64, 128)

def train(grey, target):
    "A small network, trained on grey images `(n,1,h,w)` in [0,1]"
    torch.manual_seed(SEED)
    blocks = [conv_block(*CHANNELS[i:i + 2], 3) for i in range(len(CHANNELS) - 1)]
    model = BlockNet(blocks, make_head(CHANNELS[-1], 2), [.5] * 3, [.25] * 3)
    steps = len(grey) // BATCH
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for some in torch.randperm(len(grey))[:steps * BATCH].split(BATCH):
            shift = torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist()
            loss = F.cross_entropy(model(torch.roll(grey[some], shift, (2, 3))), target[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()

def measure(finding):
    cohort = make_phantoms(PATIENTS, ('normal', finding), (1, 1), SIDE, SEED)
    grey, target = cohort.images[:, None].float() / 255, torch.tensor(cohort.table.label == finding).long()
    model = train(grey[:TRAINED], target[:TRAINED])
    with torch.no_grad(): score = torch.cat([model(part)[:, 1] for part in grey[TRAINED:].split(50)])
    ill, well = (score[target[TRAINED:] == label] for label in (1, 0))
    n = min(len(ill), len(well))  # pairs of as many ill as well, as the interval needs
    network = mean_by_patient((ill[:n, None] > well[:n]).double(), torch.arange(n).numpy())
    rounded = {name: [round(value, 3) for value in auc] for name, auc in dict(
        network=network, reader=reader_auc(reader_scores(finding, 400)), ceiling=observer_auc(cohort, finding)).items()}
    print(finding, rounded, flush=True)
    return rounded

if __name__ == '__main__':
    torch.set_num_threads(1)
    table = {finding: measure(finding) for finding in sys.argv[1:] or FINDINGS}
    made = dict(phantom=VERSION, torch=torch.__version__, trained=TRAINED, tested=PATIENTS - TRAINED, side=SIDE, seed=SEED)
    file = Path(__file__).parents[2]/'results/benchmarks/observer.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(made=made, auc_and_interval=table), indent=1) + '\n')
