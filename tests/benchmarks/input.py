"""Measure how fast batches reach the network, all arms alternated in one run; nothing is asserted.

    python tests/benchmarks/input.py [FOLDER]

Synthetic originals of 1500 x 1200 pixels and, with CXR_DATA set, real Kermany files, as batches of 64 at 128 pixels:
our store, fastai's ImageDataLoaders, torchvision's ImageFolder with its v2 transforms, MONAI's CacheDataset (where it is
installed). The augmentation of all arms is alike: rotation within 10 degrees, zoom 1 to 1.2, brightness, contrast. CPU time
of the process and its children, one thread, no worker processes, median of the rounds. The first pass (decoding into a
store or a cache) is timed apart; fastai and torchvision decode in each epoch. Prints a table and writes input.json.
"""
import json
import math
import platform
import resource
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import pandas as pd
import torch
import torchvision
from fastai.vision.all import ImageDataLoaders, PILImageBW, Resize, aug_transforms
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import fastai
from cxr_learn.batches import make_dls
from cxr_learn.cohorts import make_cohort
from cxr_learn.phantom import make_phantoms
from cxr_learn.public_sets import find_collection
from cxr_learn.store import build_store
from cxr_learn.training import make_learner
from cxr_learn.transfer import transfer_net

ROUNDS = 3
SIDE, BATCH = 128, 64
ORIGINAL = (1500, 1200)  # width, height
DEGREES, ZOOM, SHIFT, LIGHT = 10, 1.2, .05, .1  # as our policy 'conservative'
KERMANY_FILES, SYNTHETIC_FILES, REPEATED = 1024, 12, 16
BUILD_FILES = 2000
AT_LEAST = .5  # seconds: a fast arm goes through its images several times in a round

def cpu_seconds(work):
    "CPU time of this process and of its children"
    def spent():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return process_time() + children.ru_utime + children.ru_stime
    before = spent()
    work()
    return spent() - before

def epochs(loader, count=1): return lambda: [None for _ in range(count) for _ in loader]

def images_of(loader): return sum(len(batch['image'] if isinstance(batch, dict) else batch[0]) for batch in loader)

def as_cohort(paths, labels):
    "All but a few images are for training; each is its own patient"
    names = [f'{number:05}' for number in range(len(paths))]
    split = np.where(np.arange(len(paths)) < BATCH, 'valid', 'train')
    return make_cohort(pd.DataFrame(dict(image=names, path=list(map(str, paths)), patient_id=names, label=labels,
                                         patient_rule='given', source='benchmark', split=split)))

def our_arms(cohort, folder, first_pass):
    first_pass['ours'] = cpu_seconds(lambda: build_store(cohort, folder/'store', SIDE, workers=1))
    store = build_store(cohort, folder/'store', SIDE)
    return {'ours': make_dls(cohort, store, BATCH), 'ours, no augmentation': make_dls(cohort, store, BATCH, augment=False)}

def fastai_arms(train):
    augmented = aug_transforms(do_flip=False, max_rotate=DEGREES, min_zoom=1., max_zoom=ZOOM, max_lighting=2 * LIGHT,
                               max_warp=0., pad_mode='zeros')
    def loader(steps, kind=None):
        options = dict(img_cls=kind) if kind else {}
        return ImageDataLoaders.from_lists('/', train['path'].tolist(), train['label'].tolist(), valid_pct=.001, bs=BATCH,
                                           num_workers=0, item_tfms=Resize(SIDE, method='squish'), batch_tfms=steps,
                                           device='cpu', **options).train
    return {'fastai ImageDataLoaders': loader(augmented), 'fastai, grey': loader(augmented, PILImageBW),
            'fastai, no augmentation': loader([])}

def torchvision_arms(train, folder):
    for label in train['label'].unique(): (folder/'folders'/label).mkdir(parents=True)
    for row in train.itertuples():
        (folder/'folders'/row.label/f'{row.image}{Path(row.path).suffix}').symlink_to(row.path)
    plain = [v2.Grayscale(), v2.ToImage(), v2.Resize((SIDE, SIDE), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    varied = [v2.RandomAffine(DEGREES, (SHIFT, SHIFT), (1, ZOOM), interpolation=v2.InterpolationMode.BILINEAR),
              v2.ColorJitter(LIGHT, LIGHT)]
    def loader(steps):
        dataset = torchvision.datasets.ImageFolder(folder/'folders', v2.Compose(steps))
        return DataLoader(dataset, BATCH, shuffle=True, drop_last=True)
    return {'torchvision ImageFolder': loader(plain + varied), 'torchvision, no augmentation': loader(plain)}

def monai_arms(train, first_pass):
    try:
        from monai.data import CacheDataset
        from monai.data import DataLoader as MonaiLoader
        from monai.transforms import (Compose, EnsureChannelFirstd, LoadImaged, RandAffined, RandScaleIntensityd,
                                      RandShiftIntensityd, Resized, ScaleIntensityRanged)
    except ImportError: return {}
    read = [LoadImaged('image', reader='PILReader', converter=lambda image: image.convert('L')), EnsureChannelFirstd('image'),
            Resized('image', (SIDE, SIDE)), ScaleIntensityRanged('image', 0, 255, 0, 1)]
    varied = [RandAffined('image', prob=.75, rotate_range=np.deg2rad(DEGREES), scale_range=(0, ZOOM - 1),
                          translate_range=SHIFT * SIDE, padding_mode='zeros'),
              RandScaleIntensityd('image', LIGHT, prob=.75), RandShiftIntensityd('image', LIGHT, prob=.75)]
    files = [dict(image=path, label=label == train['label'].iloc[0]) for path, label in zip(train['path'], train['label'])]
    datasets = {}
    def cache(name, steps): datasets[name] = CacheDataset(files, Compose(steps), num_workers=0, progress=False)
    first_pass['MONAI CacheDataset'] = cpu_seconds(lambda: cache('MONAI CacheDataset', read + varied))
    cache('MONAI, no augmentation', read)
    return {name: MonaiLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0)
            for name, dataset in datasets.items()}

def compare(name, cohort, folder):
    "Rows of the table: images per CPU second of each arm, and the ratio to fastai's usual way"
    first_pass, train = {}, cohort[cohort['split'] == 'train']
    ours = our_arms(cohort, folder, first_pass)
    arms = {**{arm: dls.train for arm, dls in ours.items()}, **fastai_arms(train), **torchvision_arms(train, folder),
            **monai_arms(train, first_pass)}
    images = {arm: images_of(loader) for arm, loader in arms.items()}  # also warms up
    repeats = {arm: math.ceil(AT_LEAST / cpu_seconds(epochs(loader))) for arm, loader in arms.items()}
    counts = {arm: repeats[arm] * images[arm] for arm in arms}
    times = {arm: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm, loader in arms.items(): times[arm].append(cpu_seconds(epochs(loader, repeats[arm])))
    speeds = {arm: counts[arm] / median(times[arm]) for arm in arms}
    rows = []
    for arm, speed in speeds.items():
        usual = 'fastai, no augmentation' if 'no augmentation' in arm else 'fastai ImageDataLoaders'
        rows.append(dict(files=name, arm=arm, images_per_cpu_s=round(speed, 1), ratio_to_fastai=round(speed / speeds[usual], 2),
                         rounds=[round(counts[arm] / seconds, 1) for seconds in times[arm]],
                         first_pass_images_per_cpu_s=round(len(cohort) / first_pass[arm], 1) if arm in first_pass else None))
    return rows, ours['ours']

def synthetic_originals(folder):
    "Phantoms enlarged to the size of originals, with a detector's noise, as JPEG"
    rng, paths = np.random.default_rng(0), []
    for number, phantom in enumerate(make_phantoms(patients=SYNTHETIC_FILES, images_per_patient=(1, 1), image_size=512).images.numpy()):
        grey = np.asarray(Image.fromarray(phantom).resize(ORIGINAL, Image.Resampling.BICUBIC), dtype=np.float32)
        paths.append(folder/f'{number}.jpg')
        Image.fromarray((grey + rng.normal(0, 2, grey.shape)).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths * REPEATED

def kermany_files(count):
    "Training files of both classes, in turn; none where CXR_DATA names no set"
    folder = find_collection('kermany')
    if folder is None: return []
    sick, well = (sorted((folder/'train'/kind).iterdir()) for kind in ('PNEUMONIA', 'NORMAL'))
    return [path for pair in zip(sick, well * 4) for path in pair][:count]

def share_of_a_step(dls, steps=6):
    "CPU time per image of loading, and of a training step of ResNet-18, alternated"
    loader = dls.train
    learn = make_learner(dls, transfer_net('resnet18', 'none', 2))
    images, targets = loader.one_batch()
    learn.model.train(); learn.create_opt()
    bf16 = learn.model.bf16
    def train_steps():
        for _ in range(steps):
            with torch.autocast('cpu', torch.bfloat16, enabled=bf16): logits = learn.model(images)
            learn.loss_func(logits.float(), targets).backward()
            learn.opt.step(); learn.opt.zero_grad()
    train_steps()
    loaded = 3 * len(loader) * BATCH
    pairs = [(cpu_seconds(epochs(loader, 3)) / loaded, cpu_seconds(train_steps) / (steps * len(images))) for _ in range(ROUNDS)]
    load, step = (1e6 * median(column) for column in zip(*pairs))
    return dict(network='ResNet-18', image_size=SIDE, bf16=bool(bf16), loading_us_per_image=round(load, 1),
                step_us_per_image=round(step, 1), loading_share=round(load / step, 4))

def build_speed(paths, folder):
    "Speed of building a store with one thread and with two, by the clock and per CPU second, and of finding it again"
    cohort, speeds, cpu = as_cohort(paths, ['a', 'b'] * (len(paths) // 2)), {1: [], 2: []}, []
    for number in range(ROUNDS):
        for workers in speeds:
            started = perf_counter()
            cpu.append(cpu_seconds(lambda: build_store(cohort, folder/f'{workers}-{number}', SIDE, workers=workers)))
            speeds[workers].append(len(paths) / (perf_counter() - started))
    started = perf_counter()
    build_store(cohort, folder/'1-0', SIDE)
    return dict(files=len(paths), images_per_cpu_s=round(len(paths) / median(cpu)), one_thread_images_per_s=round(median(speeds[1])), found_again_s=round(perf_counter() - started, 3),
                two_threads_images_per_s=round(median(speeds[2])))

def main(out):
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ('synthetic', 'real', 'build'): (folder/name).mkdir()
        paths = synthetic_originals(folder/'synthetic')
        rows, dls = compare(f'{len(paths)} synthetic, 1500 x 1200', as_cohort(paths, ['a', 'b'] * (len(paths) // 2)),
                               folder/'synthetic')
        kermany = kermany_files(KERMANY_FILES)
        if kermany:
            real, dls = compare(f'{len(kermany)} of Kermany', as_cohort(kermany, [path.parent.name for path in kermany]), folder/'real')
            rows += real
        else: print('CXR_DATA names no Kermany set: its rows are left out')
        step = share_of_a_step(dls)
        built = build_speed(kermany_files(BUILD_FILES), folder/'build') if kermany else None
    print(pd.DataFrame(rows).drop(columns='rounds').to_string(index=False))
    print('loading against a training step:', step)
    if built: print('building a store (wall-clock):', built)
    out.mkdir(parents=True, exist_ok=True)
    (out/'input.json').write_text(json.dumps(dict(
        machine=platform.machine(), torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__,
        threads=1, rounds=ROUNDS, batch=BATCH, image_size=SIDE, rows=rows, step=step, build=built), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
