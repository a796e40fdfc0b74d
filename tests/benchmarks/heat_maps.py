"""Measure heat maps: captum's Grad-CAM against ours, arms alternated in one run; nothing is asserted.

    pip install captum; python tests/benchmarks/heat_maps.py [FOLDER]

Arms: captum's `LayerGradCam` in 32 bits (the last block, the predicted class, whole batches, enlarged as ours), ours in 32 bits and
ours as the device does it fastest (bf16 where it has it): the same network, images and classes. ResNet-18 with the shipped weights and
a linear head, 128 px, phantoms. Processor time, one thread, medians of the rounds. Beside it how far the maps agree: the largest
difference in 32 bits, and the correlation of the bf16 maps with those of 32 bits. Prints a table and writes heat_maps.json.
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

import captum  # noqa: E402
import torch  # noqa: E402
from captum.attr import LayerAttribution, LayerGradCam  # noqa: E402

from cxr_learn.cnn import custom_cnn  # noqa: E402
from cxr_learn.explanation import heat_maps  # noqa: E402
from cxr_learn.phantom import make_phantoms  # noqa: E402
from cxr_learn.speed import PLAIN, fastest, set_speed  # noqa: E402
from cxr_learn.transfer import transfer_net  # noqa: E402

ROUNDS, IMAGES, BATCH, SIDE, GOAL = 3, 128, 64, 128, 2.2
CUDA = torch.cuda.is_available()
DEVICE = torch.device('cuda' if CUDA else 'cpu')
NETWORKS = {'ResNet-18': lambda: transfer_net(classes=4), 'ResNet-18, head dense': lambda: transfer_net(classes=4, head='dense'),
            'custom CNN': lambda: custom_cnn(4)}

def seconds(work):
    clock = perf_counter if CUDA else process_time
    if CUDA: torch.cuda.synchronize()
    started = clock()
    work()
    if CUDA: torch.cuda.synchronize()
    return clock() - started

def with_captum(model, images, classes):
    ask, found = LayerGradCam(model, model.blocks[-1]), []
    for rows in torch.arange(len(images)).split(BATCH):
        cells = ask.attribute(images[rows].to(DEVICE), target=classes[rows].to(DEVICE), relu_attributions=True)
        found.append(LayerAttribution.interpolate(cells, images.shape[-2:], 'bilinear')[:, 0].detach().cpu())
    return torch.cat(found)

def main(out):
    torch.set_num_threads(1)
    images, rows = make_phantoms(IMAGES, images_per_patient=(1, 1), image_size=SIDE).images[:, None] / 255, []
    for name, make_net in NETWORKS.items():
        torch.manual_seed(0)
        plain = set_speed(make_net().to(DEVICE).eval(), PLAIN)
        for layer in plain.modules():  # statistics of these images, as after a training
            if isinstance(layer, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)): layer.momentum = None
        with torch.no_grad(): plain.train()(images[:BATCH].to(DEVICE)), plain.eval()
        fast = set_speed(deepcopy(plain), fastest(DEVICE))
        with torch.no_grad(): classes = plain(images.to(DEVICE)).argmax(1).cpu()
        arms = {'captum, 32 bits': lambda: with_captum(plain, images, classes),
                'ours, 32 bits': lambda: heat_maps(plain, images, classes, batch_size=BATCH),
                'ours, fastest': lambda: heat_maps(fast, images, classes, batch_size=BATCH)}
        maps = [arm() for arm in arms.values()]  # warms up, too
        times = {arm: [] for arm in arms}
        for _ in range(ROUNDS):
            for arm, work in arms.items(): times[arm].append(seconds(work))
        usual, exact, quick = (median(values) for values in times.values())
        rows.append(dict(
            network=name, captum_images_per_s=round(IMAGES / usual, 1), ours_images_per_s=round(IMAGES / quick, 1),
            times_as_fast=round(usual / quick, 2), goal=GOAL, times_as_fast_32_bits=round(usual / exact, 2),
            largest_difference_32_bits=float((maps[0] - maps[1]).abs().max()),
            correlation_fastest=round(float(torch.corrcoef(torch.stack([maps[1].flatten(), maps[2].flatten()]))[0, 1]), 5),
            rounds={arm: [round(value, 3) for value in values] for arm, values in times.items()}))
        print('  '.join(f'{key} {value}' for key, value in rows[-1].items() if key != 'rounds'), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out/'heat_maps.json').write_text(json.dumps(dict(
        machine=platform.machine(), device=str(DEVICE), card=torch.cuda.get_device_name() if CUDA else None, torch=torch.__version__,
        captum=captum.__version__, threads=1, side=SIDE, images=IMAGES, speed=fastest(DEVICE)._asdict(), rows=rows), indent=1))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else 'results/benchmarks'))
