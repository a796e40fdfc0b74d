"""Reading: each format against an oracle, each refusal with its reason, damaged files, limits"""
import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cxr_learn import images
from cxr_learn.images import FRAMINGS, UnreadableImage, decode_grey, read_grey, read_images, save_dicom, window_grey

pydicom = pytest.importorskip('pydicom')

def smooth(height=60, width=80, seed=0):
    "A picture with low and some high frequencies, in [0, 1]"
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = sum(rng.random() * np.sin(x * rng.normal(0, .15) + y * rng.normal(0, .15) + rng.random() * 6) for _ in range(8))
    return ((waves - waves.min()) / np.ptp(waves)).astype(np.float32)

def stored(image, format='PNG', **options):
    file = BytesIO(); image.save(file, format, **options)
    return file.getvalue()

def bytes_of(grey): return np.round(grey * 255).astype(np.uint8)

def dicom(grey, change=None, **options):
    "The bytes of a DICOM file, changed by a function of its dataset"
    file = BytesIO(); save_dicom(file, grey, **options)
    if change is None: return file.getvalue()
    dataset = pydicom.dcmread(BytesIO(file.getvalue()))
    change(dataset)
    file = BytesIO(); dataset.save_as(file)
    return file.getvalue()

def refused(data, reason, name='file', **options):
    with pytest.raises(UnreadableImage, match=reason) as caught: decode_grey(data, name, **options)
    assert caught.value.path == name

# Pictures

@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'LA', 'P'])
def test_png_is_exact(mode):
    grey = smooth()
    assert np.array_equal(decode_grey(stored(Image.fromarray(bytes_of(grey)).convert(mode))), bytes_of(grey).astype(np.float32) / 255)

def test_png_of_16_bits_keeps_them():
    values = np.round(smooth() * 65535).astype(np.uint16)
    assert np.array_equal(np.round(decode_grey(stored(Image.fromarray(values))) * 65535), values)

@pytest.mark.parametrize('bits', [1, 2, 4])
def test_png_of_few_bits_fills_the_range(bits):
    "Pillow writes no grey PNG of 2 or 4 bits, so this one is made by hand"
    levels = 2**bits
    width = 8 // bits * 3
    values = np.arange(width) % levels
    packed = [sum(int(v) << (8 - bits * (k + 1)) for k, v in enumerate(byte)) for byte in values.reshape(-1, 8 // bits)]
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    png = (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, 1, bits, 0, 0, 0, 0))
           + chunk(b'IDAT', zlib.compress(b'\0' + bytes(packed))) + chunk(b'IEND', b''))
    assert decode_grey(png)[0] == pytest.approx(values / (levels - 1), abs=.5 / 255)

def test_transparency_lies_over_black():
    image = Image.fromarray(bytes_of(smooth()))
    half = image.convert('RGBA'); half.putalpha(128)
    assert decode_grey(stored(half)) == pytest.approx(bytes_of(smooth()) / 255 * 128 / 255, abs=1.5 / 255)
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), 'P'); palette.putpalette([255] * 6)
    assert decode_grey(stored(palette, transparency=0)).tolist() == [[0, 1]]
    for dtype in (np.uint8, np.uint16):
        key = Image.fromarray(np.array([[7, np.iinfo(dtype).max]], dtype=dtype))
        assert decode_grey(stored(key, transparency=7)).tolist() == [[0, 1]]

@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
@pytest.mark.parametrize('progressive', [False, True])
def test_jpeg_in_grey_colour_and_inks(mode, progressive):
    image = Image.fromarray(bytes_of(smooth())).convert('RGB').convert(mode)
    assert decode_grey(stored(image, 'JPEG', quality=95, progressive=progressive)) == pytest.approx(smooth(), abs=8 / 255)

def without_adobe(jpeg):
    start = jpeg.index(b'\xff\xee')
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2:start + 4], 'big'):]

def test_inks_with_and_without_adobes_marker():
    "Adobe stores the negative and says so by a marker; without it 0 means no ink, which is white"
    inks = Image.fromarray(np.stack([np.zeros((16, 16), np.uint8)] * 3 + [np.full((16, 16), 60, np.uint8)], -1), 'CMYK')
    adobe = stored(inks, 'JPEG', quality=95)
    plain = without_adobe(stored(Image.eval(inks, lambda v: 255 - v), 'JPEG', quality=95))
    for data in (adobe, plain): assert decode_grey(data) == pytest.approx(195 / 255, abs=3 / 255)

def test_ycck_is_read_as_adobe_writes_it():
    "The same file with the marker's transform set to 2: luminance, chrominance, black"
    luminance = Image.fromarray(np.stack([np.full((16, 16), v, np.uint8) for v in (55, 127, 127, 0)], -1), 'CMYK')
    data = bytearray(stored(luminance, 'JPEG', quality=95))
    start = data.index(b'\xff\xee'); data[start + 15] = 2
    # Pillow stores 255 - ink: Y = 200 makes 255 - C = 200, the negative C = 55, which is read as grey 55
    assert Image.open(BytesIO(data)).info['adobe_transform'] == 2
    assert decode_grey(bytes(data)) == pytest.approx(55 / 255, abs=3 / 255)

@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
@pytest.mark.parametrize('framing', FRAMINGS)
def test_orientation_is_that_of_pillow(orientation, format, framing):
    from PIL import ImageOps
    exif = Image.Exif(); exif[0x0112] = orientation
    data = stored(Image.fromarray(bytes_of(smooth())), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert np.array_equal(decode_grey(data), np.asarray(upright, dtype=np.float32) / 255)
    assert decode_grey(data, image_size=48, framing=framing) == pytest.approx(
        decode_grey(stored(upright), image_size=48, framing=framing), abs=1e-4)
    assert decode_grey(data).flags['C_CONTIGUOUS']

# Sizes

@pytest.mark.parametrize('side', [7, 32, 60, 150])
def test_the_resize_rule_is_torchs_antialiased_bilinear(side):
    grey = smooth()
    oracle = F.interpolate(torch.from_numpy(bytes_of(grey) / np.float32(255))[None, None], (side, side), mode='bilinear', antialias=True)
    assert decode_grey(stored(Image.fromarray(bytes_of(grey))), image_size=side) == pytest.approx(oracle[0, 0].numpy(), abs=1e-5)

@pytest.mark.parametrize('shape', [(60, 80), (80, 60), (61, 80), (64, 64), (1, 50), (50, 1)])
def test_framings_are_plain_squares_of_the_picture(shape):
    data = stored(Image.fromarray(np.full(shape, 255, np.uint8)))
    squash, pad, crop = (decode_grey(data, image_size=32, framing=framing) for framing in FRAMINGS)
    assert squash.shape == pad.shape == crop.shape == (32, 32)
    assert squash.min() == crop.min() == 1
    share = min(shape) / max(shape)
    assert pad.mean() == pytest.approx(max(share, 1 / 32), abs=.5 / 32)
    assert np.array_equal(pad, pad[::-1, ::-1]) or shape in ((61, 80), (1, 50), (50, 1))

def test_crop_takes_the_middle_and_pad_keeps_the_proportions():
    disc = ((np.mgrid[:100, :160][0] - 50)**2 + (np.mgrid[:100, :160][1] - 80)**2 < 40**2).astype(np.uint8) * 255
    data = stored(Image.fromarray(disc))
    for framing, scale in (('crop', .64), ('pad', .4)):
        small = decode_grey(data, image_size=64, framing=framing)
        widths = (small.sum(axis=0) > .5).sum(), (small.sum(axis=1) > .5).sum()
        assert abs(widths[0] - widths[1]) <= 1 and abs(widths[0] - 80 * scale) <= 2
    cut = decode_grey(data, image_size=100, framing='crop')
    assert np.array_equal(cut, disc[:, 30:130] / np.float32(255))

@pytest.mark.parametrize('size', [(640, 640), (1500, 1200), (1201, 1499), (700, 300)])
@pytest.mark.parametrize('framing', FRAMINGS)
def test_reduced_decoding_is_close_to_full_decoding(size, framing):
    "Stated in the chapter: a mean of less than half a level of 8 bits, for a picture as fine as a radiograph"
    noise = np.random.default_rng(0).normal(0, 2 / 255, size[::-1])
    picture = np.asarray(Image.fromarray(smooth() * .9 + .05).resize(size, Image.Resampling.BICUBIC))
    data = stored(Image.fromarray(bytes_of((picture + noise).clip(0, 1))), 'JPEG', quality=90)
    full = decode_grey(stored(Image.fromarray(bytes_of(decode_grey(data)))), image_size=100, framing=framing)
    assert np.abs(decode_grey(data, image_size=100, framing=framing) - full).mean() < .5 / 255

def test_a_file_is_never_decoded_below_its_target(monkeypatch):
    seen, draft = [], Image.Image.load
    monkeypatch.setattr(images, '_grey', lambda image: seen.append(image.size) or np.zeros(image.size[::-1], np.float32))
    data = stored(Image.fromarray(bytes_of(smooth(500, 900))), 'JPEG')
    for framing, side in itertools.product(FRAMINGS, (20, 60, 63, 126, 250, 499)):
        decode_grey(data, image_size=side, framing=framing)
        width, height = seen.pop()
        wanted = (side, round(side * 5 / 9)) if framing == 'pad' else (side, side)
        assert width >= wanted[0] and height >= wanted[1]

# DICOM

@pytest.mark.parametrize('bits', [8, 10, 12, 16])
@pytest.mark.parametrize('photometric', ['MONOCHROME1', 'MONOCHROME2'])
def test_dicom_gives_back_what_was_written(bits, photometric):
    assert decode_grey(dicom(smooth(), bits=bits, photometric=photometric)) == pytest.approx(smooth(), abs=.51 / (2**bits - 1))

def test_dicom_files_repeat_and_have_their_own_identity(tmp_path):
    first, again, other = dicom(smooth()), dicom(smooth()), dicom(smooth(seed=1), patient_id='b', PatientSex='F')
    assert first == again
    one, two = (pydicom.dcmread(BytesIO(data)) for data in (first, other))
    for name in ('SOPInstanceUID', 'StudyInstanceUID', 'SeriesInstanceUID'): assert one[name].value != two[name].value
    assert two.PatientID == 'b' and two.PatientSex == 'F' and two.ViewPosition == 'PA' and two.Modality == 'CR'
    save_dicom(tmp_path/'chest.dcm', smooth())
    assert read_grey(tmp_path/'chest.dcm', 16, 'pad').shape == (16, 16)
    for bad in (smooth() * 2, smooth()[0], smooth() * np.nan):
        with pytest.raises(ValueError, match=r'\[0, 1\]'): save_dicom(tmp_path/'bad.dcm', bad)
    with pytest.raises(ValueError, match='bits = 4'): save_dicom(tmp_path/'bad.dcm', smooth(), bits=4)

@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID'])
@pytest.mark.parametrize('slope, intercept', [(1, 0), (2, -1024), (.5, 10)])
def test_windows_agree_with_pydicom(function, slope, intercept):
    data = dicom(smooth(), window=(1800 * slope + intercept, 1500), VOILUTFunction=function, RescaleSlope=slope, RescaleIntercept=intercept)
    dataset = pydicom.dcmread(BytesIO(data))
    oracle = pydicom.pixels.apply_windowing(pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset), dataset)
    ends = [slope * end + intercept for end in (0, 4095)]  # pydicom spreads over this range
    assert decode_grey(data) == pytest.approx((oracle - ends[0]) / (ends[1] - ends[0]), abs=2e-3)

def test_windows_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match='width is 0'): window_grey(np.zeros(1), 0, 0)
    with pytest.raises(ValueError, match='CUBIC'): window_grey(np.zeros(1), 0, 1, 'CUBIC')
    assert window_grey(np.array([0, 1, 2]), 1, 1).tolist() == [0, 1, 1]  # a width of 1 is a threshold

def table_of(first, levels, bits, vr='US'):
    table = pydicom.Dataset()
    table.LUTDescriptor = [len(levels) % 2**16, first, bits]
    table.add_new('LUTData', vr, levels if vr == 'US' else np.asarray(levels, dtype='u1' if bits == 8 else '<u2').tobytes())
    table['LUTDescriptor'].VR = 'US'
    return [table]

@pytest.mark.parametrize('vr', ['US', 'OW'])
@pytest.mark.parametrize('bits', [8, 12, 16])
def test_a_lookup_table_comes_before_a_window(vr, bits):
    levels = np.round(np.linspace(0, 1, 1000)**2 * (2**bits - 1)).astype(int).tolist()
    data = dicom(smooth(), window=(1, 2), VOILUTSequence=table_of(1000, levels, bits, vr))
    expected = np.clip((np.round(smooth() * 4095) - 1000) / 999, 0, 1)**2
    assert decode_grey(data) == pytest.approx(expected, abs=1.1 / (2**bits - 1))

def test_without_a_window_the_full_range_of_the_bits_stored_is_used():
    assert decode_grey(dicom(smooth() * .25)).max() == pytest.approx(.25, abs=1e-3)
    negative_slope = dicom(smooth(), RescaleSlope=-1, RescaleIntercept=4095)
    assert decode_grey(negative_slope) == pytest.approx(1 - smooth(), abs=1e-3)

def test_signed_numbers_and_spare_bits():
    values = np.round(smooth() * 4095).astype(np.int16) - 2048
    def signed(dataset):
        dataset.PixelRepresentation = 1
        dataset.PixelData = ((values & 0x0fff) | 0x5000).tobytes()  # an overlay of old in the spare bits
    assert decode_grey(dicom(smooth(), signed)) == pytest.approx(smooth(), abs=1e-3)
    def overlay(dataset): dataset.PixelData = (np.round(smooth() * 4095).astype('<u2') | 0xa000).tobytes()
    assert decode_grey(dicom(smooth(), overlay)) == pytest.approx(smooth(), abs=1e-3)

@pytest.mark.parametrize('photometric', ['MONOCHROME1', 'MONOCHROME2'])
def test_padding_is_black_in_positive_and_negative(photometric):
    def pad(dataset):
        values = dataset.pixel_array.copy(); values[:5], values[5:10] = 0, 3
        dataset.PixelData = values.tobytes()
        for name, value in (('PixelPaddingValue', 0), ('PixelPaddingRangeLimit', 3)):
            dataset.add_new(pydicom.datadict.tag_for_keyword(name), 'US', value)
    grey = decode_grey(dicom(smooth() * .8 + .1, pad, photometric=photometric))
    assert grey[:10].max() == 0 and grey[10:].min() > .05

@pytest.mark.parametrize('element', ['PixelSpacing', 'ImagerPixelSpacing', 'PixelAspectRatio'])
@pytest.mark.parametrize('spacing, shape', [([3, 2], (90, 80)), ([2, 3], (60, 120)), ([1, 1], (60, 80))])
def test_pixels_become_square(element, spacing, shape):
    assert decode_grey(dicom(smooth(), **{element: spacing})).shape == shape

@pytest.mark.parametrize('element', ['WindowCenter', 'RescaleSlope', 'PixelSpacing', 'NumberOfFrames'])
def test_an_empty_element_counts_as_absent(element):
    def empty(dataset): setattr(dataset, element, None)
    assert decode_grey(dicom(smooth(), empty)) == pytest.approx(smooth(), abs=1e-3)

def test_several_windows_the_first_counts():
    several = dicom(smooth(), WindowCenter=[2000, 100], WindowWidth=[3000, 10])
    assert np.array_equal(decode_grey(several), decode_grey(dicom(smooth(), window=(2000, 3000))))

def compressed(kind):
    def change(dataset):
        if kind == 'RLE': return dataset.compress(pydicom.uid.RLELossless)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        options = dict(quality=95) if kind == 'JPEG' else dict(no_jp2=kind == 'JPEG2000')
        format = kind.replace('JP2', 'JPEG2000')
        dataset.PixelData = pydicom.encaps.encapsulate([stored(Image.fromarray(bytes_of(smooth())), format, **options)])
        dataset['PixelData'].VR = 'OB'
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit if kind == 'JPEG' else pydicom.uid.JPEG2000Lossless
    return change

@pytest.mark.parametrize('kind', ['RLE', 'JPEG', 'JPEG2000'])
def test_compressed_dicom(kind):
    assert decode_grey(dicom(smooth(), compressed(kind))) == pytest.approx(smooth(), abs=8 / 255)

def test_dicom_is_known_by_its_content(tmp_path):
    (tmp_path/'0001').write_bytes(dicom(smooth()))
    (tmp_path/'0002.dcm').write_bytes(stored(Image.fromarray(bytes_of(smooth()))))
    assert read_grey(tmp_path/'0001') == pytest.approx(read_grey(tmp_path/'0002.dcm'), abs=1 / 255)

def test_names_and_private_elements_are_not_loaded():
    def private(dataset):
        dataset.PatientName = 'Somebody^Real'
        dataset.private_block(0x0011, 'Somebody', create=True).add_new(1, 'LO', 'secret')
    dataset = images._dicom_elements(dicom(smooth(), private))
    assert 'PatientName' not in dataset and 'PatientID' not in dataset
    assert not [element for element in dataset if element.tag.is_private]

def attributes(**changes):
    def change(dataset):
        for name, value in changes.items():
            if value is None: delattr(dataset, name)
            else: setattr(dataset, name, value)
    return change

@pytest.mark.parametrize('change, reason', [
    (attributes(NumberOfFrames=3), '3 frames'),
    (attributes(PhotometricInterpretation='RGB', SamplesPerPixel=3), 'pixels are RGB'),
    (attributes(PhotometricInterpretation='PALETTE COLOR'), 'PALETTE'),
    (attributes(PhotometricInterpretation=None), 'pixels are None'),
    (attributes(PixelData=None), 'no pixel data'),
    (attributes(PresentationIntentType='FOR PROCESSING'), 'raw detector data'),
    (attributes(Rows=None), 'Rows'),
    (attributes(Rows=600), 'pixel data'),
    (attributes(Rows=0), '0 pixels'),
    (attributes(Rows=65535, Columns=65535), 'at most'),
    (attributes(BitsStored=17), '17 bits'),
    (attributes(HighBit=15), 'unknown way'),
    (attributes(WindowCenter=2000, WindowWidth=-5), 'width'),
    (attributes(WindowCenter=2000, WindowWidth=5, VOILUTFunction='CUBIC'), 'CUBIC'),
    (attributes(RescaleSlope=0), 'slope is 0'),
    (attributes(PixelSpacing=[1, .1]), '10 times as high'),
    (attributes(PixelSpacing=[1, 0]), 'ZeroDivision'),
    (attributes(ModalityLUTSequence=table_of(0, [0, 1], 16)), 'modality'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_dicom_that_is_no_picture_says_why(change, reason): refused(dicom(smooth(), change), reason)

@pytest.mark.parametrize('syntax, reason', [
    ('1.2.840.10008.1.2.4.70', 'JPEG Lossless.*python-gdcm'), ('1.2.840.10008.1.2.1.99', 'Deflated'),
    ('1.2.840.10008.1.2.2', 'Big Endian'), ('1.2.3.4', '.')])
def test_transfer_syntaxes_that_are_not_read(syntax, reason):
    data = dicom(smooth())
    plain = b'1.2.840.10008.1.2.1\0'
    start = data.index(plain) - 2
    padded = syntax.encode() + b'\0' * (len(syntax) % 2)
    data = data[:start] + len(padded).to_bytes(2, 'little') + padded + data[start + 2 + len(plain):]
    if 'Lossless' in reason and pydicom.pixels.get_decoder(syntax).is_available: pytest.skip('a decoder is installed')
    refused(data, reason)

def test_a_box_of_no_length_cannot_hold_the_reader():
    "pydicom 3.0.2 goes round in circles in the boxes of a JPEG 2000 file header, which DICOM forbids"
    data = dicom(smooth(), compressed('JP2'))
    box = data.index(b'jP  ') + 8
    refused(data, 'file header')
    refused(data[:box] + bytes(4) + data[box + 4:], 'file header')

def test_a_deflated_bomb_is_not_unpacked():
    def bomb(dataset):
        dataset.PixelData = bytes(40_000_000)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    refused(dicom(smooth(), bomb), 'Deflated')

def test_sequences_nested_without_end_are_refused_or_skipped():
    nested = dicom(smooth())
    start = nested.index(b'\x28\x00\x02\x00')
    depth = 5000
    opening = struct.pack('<HH2sHL', 0x0018, 0x9999, b'SQ', 0, 0xffffffff) + struct.pack('<HHL', 0xfffe, 0xe000, 0xffffffff)
    try: decode_grey(nested[:start] + opening * depth + nested[start:], 'nested')
    except UnreadableImage as error: assert 'nested' in str(error)

def test_without_pydicom_the_error_says_what_to_install(monkeypatch):
    data = dicom(smooth())
    monkeypatch.setitem(sys.modules, 'pydicom.pixels', None)
    refused(data, r'pip install .cxr_learn\[dicom\]')
    assert decode_grey(stored(Image.fromarray(bytes_of(smooth())))).shape == (60, 80)

# What cannot be read

def every_cut(data): return [data[:length] for length in (*range(1, 40), *range(40, len(data), 37), *range(len(data) - 40, len(data)))]

@pytest.mark.parametrize('kind', ['JPEG', 'progressive JPEG', 'PNG', 'DICOM', 'DICOM RLE'])
@pytest.mark.parametrize('image_size', [None, 8])
def test_a_truncated_file_is_refused_and_never_grey_below(kind, image_size):
    picture = Image.fromarray(bytes_of(smooth()))
    data = {'JPEG': lambda: stored(picture, 'JPEG'), 'progressive JPEG': lambda: stored(picture, 'JPEG', progressive=True),
            'PNG': lambda: stored(picture), 'DICOM': lambda: dicom(smooth()),
            'DICOM RLE': lambda: dicom(smooth(), compressed('RLE'))}[kind]()
    whole, read = decode_grey(data, image_size=image_size), 0
    for cut in every_cut(data):
        try: assert np.array_equal(decode_grey(cut, image_size=image_size), whole); read += 1
        except UnreadableImage: pass
    assert read <= 30  # only an end that holds no pixels may be missing

@pytest.mark.parametrize('data, reason', [
    (b'', 'empty'), (b'<html>Please log in</html>', r"begins with b'<html>Pl'"), (b'\xff\xd8\xff' + bytes(50), 'header is damaged'),
    (b'\x89PNG\r\n\x1a\n' + bytes(50), '.'), (stored(Image.new('L', (8, 8)), 'GIF'), 'GIF8'), (stored(Image.new('L', (8, 8)), 'TIFF'), 'II'),
    (stored(Image.new('L', (8, 8)), 'BMP'), 'BM'), (stored(Image.new('L', (8, 8)), 'WEBP'), 'RIFF')])
def test_what_is_no_radiograph_is_refused_with_a_reason(data, reason): refused(data, reason)

def test_several_pictures_in_one_file_are_refused():
    one, two = (Image.fromarray(bytes_of(smooth(seed=seed))) for seed in (0, 1))
    refused(stored(one, 'PNG', save_all=True, append_images=[two]), '2 pictures')
    refused(stored(one.convert('RGB'), 'MPO', save_all=True, append_images=[two.convert('RGB')]), '2 pictures')

def png_of(width, height, data=b''):
    def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT', data)

@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('side', [7_072, 10_000, 60_000])
def test_a_picture_beyond_the_limit_is_refused(side): refused(png_of(side, side, bytes(100)), 'at most|exceeds limit')

def test_a_small_file_cannot_declare_a_large_picture(): refused(png_of(7000, 7000, bytes(100)), 'no more than')

def test_a_jpeg_of_endless_scans_is_refused():
    data = stored(Image.fromarray(bytes_of(smooth())), 'JPEG', progressive=True)
    start = data.index(b'\xff\xda'); scans = data[start:-2]
    refused(data[:start] + scans * 200 + b'\xff\xd9', 'scans')

def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch):
    def reason(path):
        with pytest.raises(UnreadableImage) as caught: read_grey(path)
        return caught.value.reason
    os.mkfifo(tmp_path/'pipe')
    assert 'not a file' in reason(tmp_path/'pipe') and 'not a file' in reason(tmp_path)
    assert 'does not exist' in reason(tmp_path/'absent.png')
    assert reason('nul\0name.png')
    monkeypatch.setattr(images, 'MAX_BYTES', 3)
    (tmp_path/'large.png').write_bytes(bytes(4))
    assert 'over 3 bytes' in reason(tmp_path/'large.png')

def test_any_exception_of_a_library_becomes_the_one_error(monkeypatch):
    data = stored(Image.fromarray(bytes_of(smooth())))
    for error in (MemoryError(), RecursionError('deep'), struct.error('short'), OverflowError('large'), zlib.error('bad'), KeyError('x')):
        def fail(image, error=error): raise error
        monkeypatch.setattr(images, '_grey', fail)
        refused(data, type(error).__name__)

def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(UnreadableImage('a.png', 'it is empty')))
    assert str(error) == str(UnreadableImage('a.png', 'it is empty')) and error.reason == 'it is empty'

@pytest.mark.parametrize('options, reason', [(dict(image_size=0), 'image_size = 0'), (dict(image_size=8, framing='zoom'), "framing = 'zoom'")])
def test_a_wrong_argument_is_no_fault_of_the_file(options, reason):
    with pytest.raises(ValueError, match=reason) as caught: decode_grey(b'', **options)
    assert not isinstance(caught.value, UnreadableImage)

# Many files

def test_read_images_keeps_the_order_and_lists_the_others(tmp_path):
    paths = []
    for number in range(9):
        paths.append(tmp_path/f'{number}.png')
        paths[-1].write_bytes(stored(Image.fromarray(bytes_of(smooth(seed=number)))) if number % 4 else b'broken')
    pixels, unreadable = read_images(paths, 16, on_error='skip', workers=3)
    assert unreadable['row'].tolist() == [0, 4, 8] and unreadable['path'].tolist() == [str(paths[k]) for k in (0, 4, 8)]
    assert all('begins with' in reason for reason in unreadable['reason'])
    readable = [k for k in range(9) if k % 4]
    assert np.array_equal(pixels, np.stack([bytes_of(read_grey(paths[k], 16)) for k in readable]))
    with pytest.raises(UnreadableImage, match='0.png'): read_images(paths, 16)
    pixels, unreadable = read_images([], 16)
    assert pixels.shape == (0, 16, 16) and list(unreadable) == ['row', 'path', 'reason'] and not len(unreadable)
    assert read_images(paths[:1], 16, on_error='skip')[0].shape == (0, 16, 16)

def test_fuzzing_finds_no_other_error(root, tmp_path):
    "200 damaged files of each kind; tests/benchmarks/fuzz_images.py does 5,000"
    done = subprocess.run([sys.executable, str(root/'tests/benchmarks/fuzz_images.py'), '--child', '200', str(tmp_path/'case')],
                          capture_output=True, text=True, timeout=300, env=os.environ | dict(OPENBLAS_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 13 and all(row['files'] == 200 and row['peak_MB'] < 500 for row in rows)
