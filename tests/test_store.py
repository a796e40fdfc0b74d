"""The store: killed, damaged, built twice at once, on a full disk, with bad files"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_learn import store as store_module
from cxr_learn.cohorts import CohortError, make_cohort
from cxr_learn.images import UnreadableImage, read_grey
from cxr_learn.store import BLOCK, JOURNAL, PIXELS, build_store, readable_part, store_key

IMAGES, SIDE = 5 * BLOCK + 7, 24

@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
    "Some hundred small files of noise"
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    names = [f'{number:04}.png' for number in range(IMAGES)]
    for name in names: Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder/name)
    return make_cohort(pd.DataFrame(dict(image=names, path=[str(folder/name) for name in names], patient_id=names,
                                         patient_rule='given', label='a', source='noise')))

@pytest.fixture(scope='module')
def whole(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return folder, build_store(cohort, folder, SIDE)

@pytest.fixture
def decoded(monkeypatch):
    "The files decoded during a test"
    calls, read = [], store_module.read_grey
    monkeypatch.setattr(store_module, 'read_grey', lambda path, *rest: (calls.append(path), read(path, *rest))[1])
    return calls

def broken_cohort(cohort, folder, rows=(3, 200)):
    for row in rows:
        (folder/f'broken{row}.png').write_text('no image')
        cohort = cohort.copy()
        cohort.loc[row, ['image', 'path']] = [f'broken{row}.png', str(folder/f'broken{row}.png')]
    return cohort

def test_the_store_equals_the_files(cohort, whole):
    for row in (0, 1, BLOCK, IMAGES - 1):
        expected = np.round(read_grey(cohort['path'][row], SIDE) * 255)
        np.testing.assert_array_equal(whole[1].pixels[row].numpy(), expected)
    pixels = np.load(whole[0]/whole[1].key/PIXELS)
    np.testing.assert_array_equal(pixels, whole[1].pixels.numpy())  # a plain .npy file, for anybody

@pytest.mark.parametrize('framing', ['squash', 'pad', 'crop'])
def test_each_framing_has_a_store_of_its_own(cohort, tmp_path, framing):
    path = tmp_path/'wide.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 60), dtype=np.uint8)).save(path)
    store = build_store(cohort.iloc[:1].assign(path=str(path)), tmp_path/'store', SIDE, framing)
    np.testing.assert_array_equal(store.pixels[0].numpy(), np.round(read_grey(path, SIDE, framing) * 255))
    assert store.framing == framing and (store.pixels[0, 0] == 0).all() == (framing == 'pad')

def test_an_unknown_framing_leaves_nothing_behind(cohort, tmp_path):
    with pytest.raises(ValueError, match='framing'): build_store(cohort, tmp_path, SIDE, 'stretch')
    assert not list(tmp_path.glob('[!.]*'))

def test_it_is_found_again_without_decoding_also_in_a_closed_folder(cohort, whole, decoded, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path/'copy')
    def closed(*_, **__): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(store_module, 'FileLock', closed)
    monkeypatch.setattr(store_module, 'write_atomically', closed)
    assert build_store(cohort, tmp_path/'copy', SIDE).pixels.equal(whole[1].pixels)
    assert not decoded

def test_the_key_changes_with_everything_the_pixels_depend_on(cohort, whole, tmp_path):
    keys = {whole[1].key, store_key(cohort, SIDE + 1), store_key(cohort, SIDE, 'pad'), store_key(cohort.iloc[::-1], SIDE),
            store_key(cohort.iloc[1:], SIDE), store_key(cohort.assign(image='x' + cohort['image']), SIDE)}
    assert len(keys) == 6
    changed = cohort.copy()
    changed.loc[0, 'path'] = str(shutil.copy(cohort['path'][1], tmp_path/'other.png'))
    assert store_key(changed, SIDE) != whole[1].key
    assert store_key(cohort, SIDE, folder=whole[0]) == store_key(cohort, SIDE) == whole[1].key

def test_a_changed_file_is_noticed_although_its_digest_was_kept(cohort, tmp_path, monkeypatch):
    file = tmp_path/'one.png'
    shutil.copy(cohort['path'][0], file)
    one = cohort.iloc[:1].assign(path=str(file))
    monkeypatch.setattr(store_module, '_SETTLED', 0)
    before = store_key(one, SIDE, folder=tmp_path)
    kept, = tmp_path.glob('.files-*')
    assert json.loads(kept.read_text())[0]
    content, status = bytearray(file.read_bytes()), file.stat()
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had been changed
    assert store_key(one, SIDE, folder=tmp_path) != before
    kept.write_text('{"not": "a list"}')
    assert store_key(one, SIDE, folder=tmp_path) == store_key(one, SIDE)

def test_a_flipped_bit_anywhere_is_noticed_and_repaired(cohort, whole, tmp_path, decoded):
    rng = random.Random(0)
    folder = tmp_path/'store'
    shutil.copytree(whole[0], folder)
    for name in (PIXELS, JOURNAL):
        file = folder/whole[1].key/name
        size = file.stat().st_size
        for position in (*range(12), *(rng.randrange(size) for _ in range(20))):
            content = bytearray(file.read_bytes())
            content[position] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
            assert build_store(cohort, folder, SIDE).pixels.equal(whole[1].pixels), (name, position)
    header = 128
    decoded.clear()
    file = folder/whole[1].key/PIXELS
    content = bytearray(file.read_bytes())
    content[header + BLOCK * SIDE**2] ^= 4  # the first byte of the second block
    file.write_bytes(content)
    assert build_store(cohort, folder, SIDE).pixels.equal(whole[1].pixels)
    assert sorted(decoded) == cohort['path'].iloc[BLOCK:2 * BLOCK].tolist()

def test_a_shortened_or_absent_part_is_built_again(cohort, whole, tmp_path):
    folder = tmp_path/'store'
    shutil.copytree(whole[0], folder)
    for name in (PIXELS, JOURNAL):
        for size in (0, 50, 200, 5000):
            file = folder/whole[1].key/name
            file.write_bytes(file.read_bytes()[:size])
            assert build_store(cohort, folder, SIDE).pixels.equal(whole[1].pixels)
        file.unlink()
        assert build_store(cohort, folder, SIDE).pixels.equal(whole[1].pixels)

BUILD = """
import sys, time
import pandas as pd
from cxr_learn import store
read = store.read_grey
def slow(path, *rest): time.sleep(float(sys.argv[4])); return read(path, *rest)
store.read_grey = slow
built = store.build_store(pd.read_pickle(sys.argv[1]), sys.argv[2], int(sys.argv[3]), workers=2)
print(built.key, int(built.pixels.sum()))
"""

def builder(cohort, tmp_path, pause):
    cohort.to_pickle(tmp_path/'cohort.pkl')
    return [sys.executable, '-c', BUILD, tmp_path/'cohort.pkl', tmp_path/'store', str(SIDE), str(pause)]

def test_killed_at_random_points_it_goes_on(cohort, whole, tmp_path, decoded):
    rng = random.Random(1)
    command, key = builder(cohort, tmp_path, .004), whole[1].key
    journal, finished = tmp_path/'store'/f'{key}.unfinished'/JOURNAL, [0]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while lines_of(journal) <= finished[-1] and time.monotonic() < deadline: time.sleep(.002)
        time.sleep(rng.uniform(0, .1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path/'store'/key).exists()
        finished.append(lines_of(journal))
    assert finished == sorted(set(finished)), 'each builder went on where the last one was killed'
    assert build_store(cohort, tmp_path/'store', SIDE).pixels.equal(whole[1].pixels)
    assert len(decoded) == max(0, IMAGES - finished[-1] * BLOCK)
    assert not list((tmp_path/'store').glob('*.unfinished'))

def lines_of(journal): return journal.read_bytes().count(b'\n') if journal.exists() else 0

def test_two_builders_at_once_do_the_work_once(cohort, whole, tmp_path):
    command = builder(cohort, tmp_path, .002)
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    expected = f'{whole[1].key} {int(whole[1].pixels.sum())}\n'
    assert [out for out, _ in outputs] == [expected] * 2, outputs
    journal = (tmp_path/'store'/whole[1].key/JOURNAL).read_text().splitlines()
    assert [json.loads(line)['block'] for line in journal] == list(range(6))  # each block written once

LIMITED = """
import resource, sys
import pandas as pd
from cxr_learn.store import build_store
limit = int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # as on a full disk: files stop growing
build_store(pd.read_pickle(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
"""

def test_a_full_disk_is_said_and_leaves_nothing_whole(cohort, whole, tmp_path):
    *_, pickle, folder, side, _ = builder(cohort, tmp_path, 0)
    done = subprocess.run([sys.executable, '-c', LIMITED, pickle, folder, side, '100000'], capture_output=True, text=True)
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and 'could not be written' in message and 'make room' in message, done.stderr
    assert not (folder/whole[1].key).exists()
    assert build_store(cohort, folder, SIDE).pixels.equal(whole[1].pixels)

def test_no_room_is_said_before_the_first_image_is_decoded(cohort, tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match='GB needed'): build_store(cohort, tmp_path, SIDE)
    assert not decoded

def test_a_disk_that_fills_while_building_keeps_the_finished_blocks(cohort, whole, tmp_path, monkeypatch):
    import builtins
    class Full:
        def __init__(self, file): self.file, self.writes = file, 0
        def __enter__(self): return self
        def __exit__(self, *_): self.file.close()
        def __getattr__(self, name): return getattr(self.file, name)
        def write(self, data):
            self.writes += 1
            if self.writes > 2: raise OSError(28, 'No space left on device')
            return self.file.write(data)
    def limited(path, mode='r', *rest, **options):
        file = builtins.open(path, mode, *rest, **options)
        return Full(file) if mode == 'r+b' else file
    monkeypatch.setattr(store_module, 'open', limited, raising=False)
    with pytest.raises(OSError, match='No space left') as failure: build_store(cohort, tmp_path, SIDE)
    assert failure.value.errno == 28 and failure.value.filename == str(tmp_path)
    journal, = tmp_path.glob(f'*.unfinished/{JOURNAL}')
    assert len(journal.read_text().splitlines()) == 2
    monkeypatch.undo()
    assert build_store(cohort, tmp_path, SIDE).pixels.equal(whole[1].pixels)

def test_a_place_where_no_folder_can_be(cohort, tmp_path):
    (tmp_path/'file').write_text('in the way')
    with pytest.raises(OSError, match='could not be written'): build_store(cohort, tmp_path/'file'/'store', SIDE)

@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_permission(cohort, tmp_path):
    (tmp_path/'closed').mkdir(mode=0o500)
    with pytest.raises(PermissionError, match='name another folder'): build_store(cohort, tmp_path/'closed'/'store', SIDE)

def test_an_unreadable_file_stops_the_build_and_is_named(cohort, tmp_path):
    broken = broken_cohort(cohort, tmp_path)
    with pytest.raises(UnreadableImage, match='broken3.png'): build_store(broken, tmp_path/'store', SIDE)
    assert not list((tmp_path/'store').glob('[!.]*'))

def test_unreadable_files_are_listed_and_the_rest_is_kept(cohort, whole, tmp_path, decoded):
    broken = broken_cohort(cohort, tmp_path)
    absent = broken.copy()
    absent.loc[9, ['image', 'path']] = ['absent.png', str(tmp_path/'absent.png')]
    store = build_store(absent, tmp_path/'store', SIDE, on_error='skip')
    assert store.unreadable['image'].tolist() == ['broken3.png', 'absent.png', 'broken200.png']
    assert not store.unreadable['reason'].str.contains(str(tmp_path)).any()
    kept = [row for row in range(IMAGES) if row not in (3, 9, 200)]
    assert store.pixels.equal(whole[1].pixels[kept])
    part = readable_part(absent, store)
    assert tuple(part['image']) == store.images and len(part) == IMAGES - 3
    decoded.clear()
    again = build_store(absent, tmp_path/'store', SIDE, on_error='skip')
    assert again.pixels.equal(store.pixels) and again.unreadable.equals(store.unreadable)
    assert len(decoded) == 3  # only what could not be read is tried again
    with pytest.raises(UnreadableImage, match='broken3.png'): build_store(absent, tmp_path/'store', SIDE)
    with pytest.raises(CohortError, match='build the store'): readable_part(cohort, store)

def test_a_file_that_can_be_read_later_is_taken_in(cohort, whole, tmp_path, monkeypatch):
    "As a DICOM can, once its library is installed: the file is the same, and so is the key"
    read = store_module.read_grey
    def without_library(path, *rest):
        if path == cohort['path'][70]: raise UnreadableImage(path, 'a library is missing')
        return read(path, *rest)
    monkeypatch.setattr(store_module, 'read_grey', without_library)
    assert len(build_store(cohort, tmp_path, SIDE, on_error='skip').images) == IMAGES - 1
    monkeypatch.undo()
    assert build_store(cohort, tmp_path, SIDE, on_error='skip').pixels.equal(whole[1].pixels)

def test_no_readable_image_at_all(cohort, tmp_path):
    with pytest.raises(CohortError, match='No image can be read'):
        build_store(cohort.iloc[:3].assign(path=str(tmp_path/'absent.png')), tmp_path, SIDE, on_error='skip')
    with pytest.raises(CohortError, match='nothing to store'): build_store(cohort.iloc[:0], tmp_path, SIDE)

def test_a_large_store_is_mapped_and_equal(cohort, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, 'MAP_ABOVE', 1000)
    mapped = build_store(cohort, tmp_path, SIDE)
    assert mapped.pixels.equal(whole[1].pixels)
    mapped.pixels[:] = 0  # a mistake of the caller stays in the caller's memory
    assert build_store(cohort, tmp_path, SIDE).pixels.equal(whole[1].pixels)
    part = whole[1].take([4, 2])
    assert part.images == (cohort['image'][4], cohort['image'][2]) and part.key != whole[1].key

@pytest.mark.parametrize('row, journaled', [(3, 0), (200, 3)])
def test_a_file_that_changes_during_the_build_is_named_and_nothing_is_kept(cohort, tmp_path, monkeypatch, row, journaled):
    victim = tmp_path/'victim.png'
    shutil.copy(cohort['path'][row], victim)
    changing = cohort.copy()
    changing.loc[row, 'path'] = str(victim)
    decode = store_module._decode
    def edit_first(path, *rest):
        if path == str(victim): shutil.copy(cohort['path'][0], victim)
        return decode(path, *rest)
    monkeypatch.setattr(store_module, '_decode', edit_first)
    with pytest.raises(CohortError, match='victim.png changed while'): build_store(changing, tmp_path/'store', SIDE)
    assert not list((tmp_path/'store').glob('[!.]*'))
    monkeypatch.undo()
    store = build_store(changing, tmp_path/'store', SIDE)
    np.testing.assert_array_equal(store.pixels[row].numpy(), np.round(read_grey(cohort['path'][0], SIDE) * 255))

def test_a_file_that_is_only_touched_does_not_stop_the_build(cohort, whole, tmp_path, monkeypatch):
    victim = tmp_path/'victim.png'
    shutil.copy(cohort['path'][9], victim)
    touched, decode = cohort.copy(), store_module._decode
    touched.loc[9, 'path'] = str(victim)
    monkeypatch.setattr(store_module, '_decode', lambda path, *rest: (os.utime(victim), decode(path, *rest))[1])
    assert build_store(touched, tmp_path/'store', SIDE).pixels.equal(whole[1].pixels)

def test_a_cohort_of_the_same_names_and_other_pixels_does_not_fit(cohort, whole, tmp_path):
    for n in range(5):
        shutil.copy(cohort['path'][n], tmp_path/f'{n}.png')
    few, store = cohort.iloc[:5], whole[1].take(range(5))
    moved = few.assign(path=[str(tmp_path/f'{n}.png') for n in range(5)])
    store.check_fits(few)
    store.check_fits(moved)
    store.check_fits(few.assign(path='a place that is not here'))
    shutil.copy(cohort['path'][7], tmp_path/'4.png')
    with pytest.raises(CohortError, match='0004.png is not .*4.png of this cohort.*build the store'): store.check_fits(moved)
    with pytest.raises(CohortError, match='other bytes'): readable_part(moved, store)
    store._replace(files=None).check_fits(moved)  # of a store that somebody made without files

@pytest.mark.parametrize('content', ['[1]', '[[1]]', '["abcde"]', '[[1, 2, 3, 4, 5]]', '[{}]', '[[]]'])
def test_a_list_of_digests_that_is_none_is_ignored(cohort, tmp_path, content):
    one = cohort.iloc[:1]
    key = build_store(one, tmp_path, SIDE).key
    kept = next(tmp_path.glob('.files-*'), None) or tmp_path/f'.files-{store_module._digest(one["image"][0].encode())[:16]}.json'
    kept.write_text(content)
    assert build_store(one, tmp_path, SIDE).key == key

def test_a_list_of_digests_with_the_right_times_and_no_digest_is_ignored(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, '_SETTLED', 0)
    one = cohort.iloc[:1]
    key = store_key(one, SIDE, folder=tmp_path)
    kept, = tmp_path.glob('.files-*')
    for wrong in ('', 5, None):
        kept.write_text(json.dumps([[*json.loads(kept.read_text())[0][:4], wrong]]))
        assert store_key(one, SIDE, folder=tmp_path) == key
