"""What one input channel instead of three saves: training steps and predictions of ResNet-18, both arms alternated.

    python tests/benchmarks/grey_stem.py

CPU time at one thread, medians over rounds; prints a table and writes results/benchmarks/grey_stem.json. Both arms
compute the same (tests/test_networks.py); only the ratio counts.
"""
import json
from pathlib import Path
from statistics import median
from time import process_time

import pandas as pd
import torch
import torch.nn.functional as F

from cxr_learn.transfer import transfer_net

ROUNDS, BATCH, SIZES = 5, 32, (96, 128)
CHANNELS = (3, 1)

def steps(model, optimiser, images, labels, repeats=2):
    "Seconds of a training step and of a prediction"
    started = process_time()
    model.train()
    for _ in range(repeats):
        F.cross_entropy(model(images), labels).backward()
        optimiser.step(); optimiser.zero_grad()
    trained = process_time()
    model.eval()
    with torch.no_grad():
        for _ in range(repeats): model(images)
    return (trained - started) / repeats, (process_time() - trained) / repeats

def main(out):
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        arms = {}
        for channels in CHANNELS:
            model = transfer_net('resnet18', 'none', 2, channels=channels).to(memory_format=torch.channels_last)
            model.bf16 = True
            arms[channels] = model, torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        batch = torch.rand(BATCH, 1, size, size), torch.randint(0, 2, (BATCH,))
        times = {channels: [] for channels in CHANNELS}
        for round_number in range(ROUNDS + 1):  # the first one warms up
            for channels, arm in arms.items():
                taken = steps(*arm, *batch)
                if round_number: times[channels].append(taken)
        for number, work in enumerate(('training step', 'prediction')):
            three, one = (median(taken[number] for taken in times[channels]) for channels in CHANNELS)
            rows.append(dict(size=size, work=work, three_s=round(three, 4), one_s=round(one, 4), ratio=round(three / one, 3)))
    print(pd.DataFrame(rows).to_string(index=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1))

if __name__ == '__main__': main(Path(__file__).parents[2]/'results/benchmarks/grey_stem.json')
