"""Kill a training with SIGKILL at random moments, call it again, and see whether it ends as if nothing had happened

    python tests/killing.py [KILLS] [SEED]

prints one line per kill. Two kinds of trainings take turns: a whole network with augmentation, and one with
cached frozen blocks and early stopping.
"""
import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

from cxr_learn.cohorts import load_phantom, split_by_patient
from cxr_learn.phantom import DEMO_FINDINGS, save_phantoms
from cxr_learn.store import build_store

TRAINING = '''
import sys
import torch
torch.set_num_threads(1)
from cxr_learn.checkpoints import weights_fingerprint
from cxr_learn.cohorts import load_phantom, split_by_patient
from cxr_learn.store import build_store
from cxr_learn.sweep import Run, train_run
data, out, kind = sys.argv[1:]
cohort = split_by_patient(load_phantom(f'{data}/phantom'))
store = build_store(cohort, f'{data}/store', image_size=32)
kinds = {'whole': (Run('custom_cnn', 'none'), dict(augment=True, epochs=8)),
         'cached': (Run('resnet18', 'shipped', 2), dict(augment=True, cached_passes=2, epochs=8, patience=3))}
run, settings = kinds[kind]
print('begins', flush=True)
learn, record = train_run(run, cohort, store, out, batch_size=16, lr=1e-3, progress=False, **settings)
losses = [(row['train_loss'], row['valid_loss']) for row in record['history']]
print(weights_fingerprint(learn.model), record['best_epoch'], losses)
'''
KINDS = ('whole', 'cached')

def make_data(folder):
    "A small phantom and its store, for all trainings"
    cohort = split_by_patient(load_phantom(save_phantoms(
        Path(folder)/'phantom', patients=60, findings=DEMO_FINDINGS, image_size=32)))
    build_store(cohort, Path(folder)/'store', image_size=32)

def start(data, out, kind):
    process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', TRAINING, str(data), str(out), kind],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if process.stdout.readline() != 'begins\n': raise RuntimeError(process.stderr.read())
    return process

def ending(data, out, kind):
    "What a training prints at its end, and the seconds it took"
    process, started = start(data, out, kind), perf_counter()
    text, errors = process.communicate(timeout=300)
    if process.returncode: raise RuntimeError(errors)
    return text, perf_counter() - started

def killed_ending(data, out, kind, seconds):
    "The ending of a training that was killed after so many seconds and called again; and how far it had come"
    process = start(data, out, kind)
    sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = sorted(file.name for file in Path(out).rglob('*') if file.is_file())
    return ending(data, out, kind)[0], left

def main(kills=20, seed=0):
    chance, equal = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_data(folder)
        whole = {kind: ending(folder, folder/kind, kind) for kind in KINDS}
        for number in range(kills):
            kind = KINDS[number % len(KINDS)]
            text, seconds = whole[kind]
            after = chance.uniform(0, seconds)
            found, left = killed_ending(folder, folder/f'kill{number}', kind, after)
            equal += found == text
            print(json.dumps(dict(kill=number + 1, kind=kind, after_seconds=round(after, 2), of=round(seconds, 2),
                                  left=left, equal=found == text)), flush=True)
    print(f'{equal} of {kills} endings equal the uninterrupted one')
    return equal == kills

if __name__ == '__main__': sys.exit(not main(*map(int, sys.argv[1:])))
