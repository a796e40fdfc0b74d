"""Damage small files at random and read them: a picture in [0, 1] or `UnreadableImage`, nothing else.

    python tests/benchmarks/fuzz_images.py [FILES_PER_KIND] [FOLDER]

Each kind runs in a process of its own with a limit on memory and a watchdog that ends it, naming the
damaged file, when one takes longer than ten seconds. Prints a table and writes fuzz_images.json.
"""
import faulthandler
import json
import random
import resource
import subprocess
import sys
import tempfile
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from time import perf_counter

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate

from cxr_learn.images import FRAMINGS, UnreadableImage, decode_grey, save_dicom

MEMORY = 1500 * 2**20  # bytes above what the process has when it starts
PATIENCE = 10          # seconds for one file
SIDE = 48              # pixels of the undamaged pictures

def picture_bytes(mode, format, **options):
    "A smooth picture with some noise in any of Pillow's modes"
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    grey = (x * y + .2 * np.random.default_rng(0).random((SIDE, SIDE))) / 1.2
    image = (Image.fromarray((grey * 65535).astype(np.uint16)) if mode == 'I;16' else
             Image.fromarray((grey * 255).astype(np.uint8)).convert('RGB').convert(mode))
    file = BytesIO(); image.save(file, format, **options)
    return file.getvalue()

def dicom_bytes(compress=None, **options):
    "A phantom's DICOM file: plain, or compressed as RLE or as an embedded JPEG or JPEG 2000"
    grey = np.asarray(Image.open(BytesIO(picture_bytes('L', 'PNG')))) / 255
    file = BytesIO(); save_dicom(file, grey, **options)
    if not compress: return file.getvalue()
    dataset = pydicom.dcmread(BytesIO(file.getvalue()))
    if compress == 'RLE': dataset.compress(pydicom.uid.RLELossless)
    else:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        options = dict(no_jp2=True) if compress == 'JPEG2000' else {}
        dataset.PixelData = encapsulate([picture_bytes('L', compress, **options)])
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit if compress == 'JPEG' else pydicom.uid.JPEG2000
        dataset['PixelData'].VR = 'OB'
    file = BytesIO(); dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()

def sources():
    "Undamaged files by kind"
    exif = Image.Exif(); exif[0x0112] = 6
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], list(range(4096))
    table['LUTDescriptor'].VR = table['LUTData'].VR = 'US'
    return {
        'JPEG grey': picture_bytes('L', 'JPEG'),
        'JPEG colour, EXIF': picture_bytes('RGB', 'JPEG', exif=exif),
        'JPEG progressive': picture_bytes('RGB', 'JPEG', progressive=True),
        'JPEG CMYK': picture_bytes('CMYK', 'JPEG'),
        'PNG 8 bits': picture_bytes('L', 'PNG'),
        'PNG 16 bits': picture_bytes('I;16', 'PNG'),
        'PNG palette': picture_bytes('P', 'PNG', transparency=3),
        'PNG RGBA': picture_bytes('RGBA', 'PNG'),
        'DICOM plain': dicom_bytes(photometric='MONOCHROME1', window=(2000, 3000), PixelSpacing=[.2, .15]),
        'DICOM lookup table': dicom_bytes(VOILUTSequence=[table]),
        'DICOM RLE': dicom_bytes('RLE'),
        'DICOM JPEG': dicom_bytes('JPEG'),
        'DICOM JPEG 2000': dicom_bytes('JPEG2000')}

def position(data, rng):
    "Half of the damage goes where the headers are"
    return rng.randrange(min(len(data), 600) if rng.random() < .5 else len(data))

def flip(data, rng):
    for _ in range(rng.randrange(1, 17)): data[position(data, rng)] ^= 1 << rng.randrange(8)

def extremes(data, rng):
    "Numbers of one, two and four bytes set to what overflows"
    for _ in range(rng.randrange(1, 4)):
        number, start = rng.choice((b'\0', b'\1', b'\x7f', b'\xff', b'\x80\0')), position(data, rng)
        width = rng.choice((1, 2, 4))
        data[start:start + width] = (number * width)[:width]

def truncate(data, rng): del data[rng.randrange(1, len(data)):]

def cut(data, rng):
    start = position(data, rng); del data[start:start + rng.randrange(1, 200)]

def repeat(data, rng):
    start = position(data, rng); piece = data[start:start + rng.randrange(1, 64)]
    data[start:start] = piece * rng.choice((1, 2, 10, 500))

def insert(data, rng):
    start = position(data, rng); data[start:start] = rng.randbytes(rng.randrange(1, 100))

def splice(data, rng):
    "Go on with another place of the same file"
    start = position(data, rng); data[start:] = data[position(data, rng):]

DAMAGES = (flip, flip, extremes, extremes, truncate, cut, repeat, insert, splice)

def repair_checksums(data):
    "Make a damaged PNG pass its check sums, so that the damage reaches the decoder"
    data, start = bytearray(data), 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start:start + 4], 'big')
        if end + 4 > len(data): break
        data[end:end + 4] = zlib.crc32(data[start + 4:end]).to_bytes(4, 'big')
        start = end + 4
    return data

def repack(data, rng):
    "Damage what a PNG's compressed rows hold, then compress them again"
    start = data.index(b'IDAT') - 4
    end = start + 8 + int.from_bytes(data[start:start + 4], 'big')
    rows = bytearray(zlib.decompress(data[start + 8:end]))
    rng.choice(DAMAGES)(rows, rng)
    packed = zlib.compress(rows)
    return data[:start] + len(packed).to_bytes(4, 'big') + b'IDAT' + packed + data[end:]

def damaged(data, rng):
    is_png = data.startswith(b'\x89PNG')
    changed = bytearray(repack(data, rng) if is_png and rng.random() < .3 else data)
    for _ in range(rng.choice((0, 1, 1, 2, 3) if changed != data else (1, 1, 1, 2, 3))):
        if len(changed) > 1: rng.choice(DAMAGES)(changed, rng)
    return bytes(repair_checksums(changed) if is_png and rng.random() < .7 else changed)

def fuzz(kind, data, files, case_file):
    "Read so many damaged copies; the one at work lies in `case_file`"
    suffix = '.dcm' if kind.startswith('DICOM') else ''
    rng, read, slowest = random.Random(kind), 0, 0.
    decode_grey(data, kind + suffix)  # the undamaged file must be readable
    for _ in range(files):
        case = damaged(data, rng)
        case_file.write_bytes(case)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        started = perf_counter()
        try:
            grey = decode_grey(case, kind + suffix, rng.choice((None, 16, 64)), rng.choice(FRAMINGS))
            if grey.dtype != np.float32 or grey.ndim != 2 or not (grey.min() >= 0 and grey.max() <= 1):
                raise AssertionError(f'{kind}: {grey.dtype}, {grey.shape}, {grey.min()} to {grey.max()}')
            read += 1
        except UnreadableImage: pass
        slowest = max(slowest, perf_counter() - started)
        faulthandler.cancel_dump_traceback_later()
    return dict(kind=kind, files=files, read=read, refused=files - read, slowest_ms=round(1000 * slowest, 1))

def child(kinds, files, case_file):
    "In a process of its own: limit the memory, fuzz, print one JSON object a line"
    warnings.simplefilter('ignore')
    data = sources()
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in kinds or data:
        row = fuzz(kind, data[kind], files, Path(case_file))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps(row | dict(peak_MB=round(peak / 1024, 1))), flush=True)

def run_child(files, kinds, out):
    "The rows of the table, or an error that says where the file lies that broke the reader"
    with tempfile.TemporaryDirectory() as folder:
        case_file = Path(folder)/'case'
        done = subprocess.run([sys.executable, __file__, '--child', str(files), str(case_file), *kinds],
                              capture_output=True, text=True)
        if done.returncode:
            kept = out/'broke_the_reader'; kept.write_bytes(case_file.read_bytes())
            raise SystemExit(f'{kinds}: exit code {done.returncode}, see {kept}\n{done.stderr}')
    return [json.loads(line) for line in done.stdout.splitlines()]

def main(files, out):
    out.mkdir(parents=True, exist_ok=True)
    rows = [row for kind in sources() for row in run_child(files, [kind], out)]
    print('| kind | files | read | refused | slowest, ms | peak, MB |\n|---|---|---|---|---|---|')
    for row in rows: print('| ' + ' | '.join(map(str, row.values())) + ' |')
    (out/'fuzz_images.json').write_text(json.dumps(dict(
        memory_limit_MB=MEMORY // 2**20, patience_s=PATIENCE, rows=rows), indent=1))

if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']: child(sys.argv[4:], int(sys.argv[2]), sys.argv[3])
    else: main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000,
               Path(sys.argv[2] if len(sys.argv) > 2 else 'results/benchmarks'))
