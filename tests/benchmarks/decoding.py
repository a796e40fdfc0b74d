"""Measure how fast radiographs become small grey pictures, all arms alternated in one run; nothing is asserted.

    python tests/benchmarks/decoding.py [FOLDER]

Synthetic originals of 1500 x 1200 pixels, as JPEG in grey and in colour, are read to 224 pixels; with CXR_DATA
set, real Kermany files too. CPU time of one thread, median of the rounds. MONAI's arm runs where it is installed.
Prints a table and writes decoding.json.
"""
import json
import os
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

from cxr_learn.images import read_grey
from cxr_learn.phantom import make_phantoms

ROUNDS = 5
SIDE = 224
ORIGINAL = (1500, 1200)  # width, height
FILES = 8

def ours(path): return read_grey(path, SIDE)

def pillow(path):
    "As fastai and most loaders do: all three colours at full size, then resize"
    return np.asarray(Image.open(path).convert('RGB').resize((SIDE, SIDE), Image.Resampling.BILINEAR))

def tv(path):
    "torchvision's own decoder, grey, then its antialiased resize"
    data = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    return resize(decode_jpeg(data, ImageReadMode.GRAY), [SIDE, SIDE], antialias=True)

def monai():
    "MONAI's transforms, or None where it is not installed"
    try: from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize
    except ImportError: return None
    return Compose([LoadImage(reader='PILReader', image_only=True), EnsureChannelFirst(),
                    Resize((SIDE, SIDE), mode='bilinear', anti_aliasing=True)])

def synthetic(folder, mode):
    "Phantoms enlarged to the size of originals, with a detector's noise, as JPEG"
    rng = np.random.default_rng(0)
    phantoms = make_phantoms(patients=FILES, images_per_patient=(1, 1), image_size=512)
    for number, phantom in enumerate(phantoms.images.numpy()):
        grey = np.asarray(Image.fromarray(phantom).resize(ORIGINAL, Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = (grey + rng.normal(0, 2, grey.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).convert(mode).save(folder/f'{mode}{number}.jpg', quality=90)
    return sorted(folder.glob(f'{mode}*.jpg'))

def milliseconds(arm, paths):
    started = process_time()
    for path in paths: arm(path)
    return 1000 * (process_time() - started) / len(paths)

def deviation(paths):
    "Mean difference between reduced and full decoding, in levels of 8 bits"
    levels = []
    for path in paths:
        full = BytesIO(); Image.fromarray(np.round(read_grey(path) * 255).astype(np.uint8)).save(full, 'PNG')
        full_size = Path(path).with_suffix('.full.png'); full_size.write_bytes(full.getvalue())
        levels.append(np.abs(read_grey(path, SIDE) - read_grey(full_size, SIDE)).mean() * 255)
        full_size.unlink()
    return float(np.mean(levels))

def compare(name, paths, arms):
    times = {arm: [] for arm in arms}
    for read in arms.values(): read(paths[0])  # warm up
    for _ in range(ROUNDS):
        for arm, read in arms.items(): times[arm].append(milliseconds(read, paths))
    medians = {arm: median(column) for arm, column in times.items()}
    sizes = sum(os.path.getsize(path) for path in paths) / len(paths) / 1024
    return [dict(files=name, n=len(paths), kB=round(sizes), arm=arm, ms=round(value, 2), ours_is_faster_by=round(value / medians['ours'], 2))
            for arm, value in medians.items()]

def main(out):
    torch.set_num_threads(1)
    arms = {'ours': ours, 'Pillow RGB + resize': pillow, 'torchvision grey + resize': tv, 'MONAI LoadImage + Resize': monai()}
    arms = {arm: read for arm, read in arms.items() if read}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        originals = {mode: synthetic(Path(folder), mode) for mode in ('L', 'RGB')}
        rows += compare('synthetic 1500 x 1200, grey', originals['L'], arms)
        rows += compare('synthetic 1500 x 1200, colour', originals['RGB'], arms)
        levels = deviation(originals['L'])
    if os.environ.get('CXR_DATA'):
        root = Path(__file__).parent.parent.parent/os.environ['CXR_DATA']
        real = sorted(root.glob('*/train/NORMAL/*.jp*g'))[:200]
        if real: rows += compare('Kermany as found', real, arms)
    print('| ' + ' | '.join(rows[0]) + ' |\n|' + '---|' * len(rows[0]))
    for row in rows: print('| ' + ' | '.join(map(str, row.values())) + ' |')
    print(f'reduced against full decoding: a mean of {levels:.2f} levels of 255 (n = {FILES})')
    out.mkdir(parents=True, exist_ok=True)
    (out/'decoding.json').write_text(json.dumps(dict(
        threads=1, rounds=ROUNDS, pillow=PIL.__version__, torchvision=torchvision.__version__,
        reduced_against_full_levels=round(levels, 3), rows=rows), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
