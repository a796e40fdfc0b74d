"""Compare 100,000 fingerprints with each other: time, memory, and exactness against a plain count.

    python tests/benchmarks/hashing.py [folder]

Prints a table and writes <folder>/hashing.json. One core; CPU seconds, so that other work on the machine does not count.
"""
import json
import os
import platform
import sys
import tempfile
import tracemalloc
from pathlib import Path
from statistics import median
from time import process_time

for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[name] = '1'

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from cxr_learn.duplicates import CLOSE, SIDE, close_pairs, fingerprints, similarity  # noqa: E402
from cxr_learn.phantom import make_phantoms  # noqa: E402

SIZES = (10_000, 30_000, 100_000)
ROUNDS = 3
GOAL = 60          # CPU seconds for the largest
STRANGE = 1 / 3    # share of bits in which each image differs from the common chest: two differ in 44%, as real chests do
COPIES = 500       # planted, each with exactly as many altered bits as still count as close
CHECKED = 2_000    # images compared by a plain count as well

def random_hashes(images, rng):
    "Hashes that agree as those of chests do: a common pattern, and a third of the bits altered in each image"
    common = rng.integers(2, size=(1, 2, 256), dtype=np.uint8)
    bits = np.empty((images, 2, 256), dtype=np.uint8)
    for start in range(0, images, 10_000):
        part = bits[start:start + 10_000]
        np.bitwise_xor(common, rng.random(part.shape, dtype=np.float32) < STRANGE, out=part)
    originals, copies = np.arange(COPIES), images - 1 - np.arange(COPIES)
    for original, copy in zip(originals, copies):
        bits[copy] = bits[original]
        bits[copy, :, rng.choice(256, CLOSE, replace=False)] ^= 1
    return np.packbits(bits, axis=2).view(np.uint64), set(zip(originals.tolist(), copies.tolist()))

def found(hashes): return {(int(a), int(b)) for rows, columns in close_pairs(hashes) for a, b in zip(rows, columns)}

def plain(hashes):
    "The same pairs by a plain count, image by image"
    bits = np.unpackbits(hashes.view(np.uint8), axis=2).astype(np.float32)
    whole, inner = bits[:, 0], bits[:, 1]
    distance = lambda a, b: a @ (1 - b).T + (1 - a) @ b.T
    nearest = np.minimum(distance(whole, whole), np.minimum(distance(inner, whole), distance(whole, inner)))
    return set(zip(*(part.tolist() for part in np.nonzero(np.triu(nearest <= CLOSE, k=1)))))

def peak_memory(work):
    "MiB that arrays and objects take at most while the work is done; traced in a run of its own, since tracing slows"
    tracemalloc.start(); work(); peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    return peak / 2**20

def main(out):
    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(0), []
    for images in SIZES:
        hashes, planted = random_hashes(images, rng)
        subset = np.concatenate([hashes[:CHECKED // 2], hashes[-CHECKED // 2:]])
        exact = found(subset) == plain(subset)
        times = []
        for _ in range(ROUNDS): started = process_time(); pairs = found(hashes); times.append(process_time() - started)
        rows.append(dict(work='compare all with all', images=images, seconds=round(median(times), 2),
                         rounds=[round(time, 2) for time in times], pairs=len(pairs), planted=COPIES,
                         planted_found=len(planted & pairs), equals_plain_count=exact))
    rows[-1]['peak_mib'] = round(peak_memory(lambda: found(hashes)), 1)
    phantoms = make_phantoms(patients=100, images_per_patient=(1, 1), image_size=256).images.numpy()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder)/f'{number}.png' for number in range(len(phantoms))]
        for path, picture in zip(paths, phantoms): Image.fromarray(picture).save(path)
        started = process_time(); read = fingerprints(paths); seconds = process_time() - started
        rows.append(dict(work='fingerprints of 256 px PNG', images=len(paths), images_per_second=round(len(paths) / seconds)))
    started = process_time(); similarity(read.thumbnails[:-1], read.thumbnails[1:]); seconds = process_time() - started
    rows.append(dict(work=f'second look at {SIDE} px', pairs=len(paths) - 1, pairs_per_second=round((len(paths) - 1) / seconds)))
    for row in rows: print('  '.join(f'{key} {value}' for key, value in row.items()))
    slowest = rows[len(SIZES) - 1]['seconds']
    print(f"100,000 images: {slowest} s, the goal is {GOAL} s: {'reached' if slowest < GOAL else 'missed'}")
    out.mkdir(parents=True, exist_ok=True)
    (out/'hashing.json').write_text(json.dumps(dict(machine=platform.machine(), numpy=np.__version__, threads=1, rows=rows), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
