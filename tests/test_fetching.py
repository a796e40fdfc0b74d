"""Nothing is lost and nothing half done looks whole: unpacking, downloading and fetching"""
import gzip
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from cxr_learn import downloading, fetching, unpacking
from cxr_learn.cards import CARDS, Card, File, Home, size_in_words
from cxr_learn.downloading import check_address, download
from cxr_learn.fetching import fetch, find_layout
from cxr_learn.unpacking import FetchError, Limits, manifest_file, members, unpack, verify

QUICK = dict(tries=4, timeouts=(2, .4), pause=.001)
NAMES = ['chest_xray/train/NORMAL/a.jpeg', 'chest_xray/train/PNEUMONIA/b.jpeg',
         'chest_xray/test/NORMAL/c.jpeg',
         'chest_xray/test/PNEUMONIA/d.jpeg']
LAYOUT = CARDS['kermany'].layout

def zip_bytes(files, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, content in files: archive.writestr(name, content)
    return buffer.getvalue()

def noise(seed, size): return random.Random(seed).randbytes(size)

RELEASE = zip_bytes([(name, noise(name, 20_000)) for name in NAMES]
                    + [('__MACOSX/chest_xray/._a.jpeg', b'resource fork'),
                       ('chest_xray/.DS_Store', b'desktop')])
SECOND = zip_bytes([(name, noise(name + '2', 20_000)) for name in NAMES])
SHA = 'sha256:' + hashlib.sha256(RELEASE).hexdigest()

class Server(ThreadingHTTPServer):
    "A publisher whose `misbehave(handler, visit)` may answer itself; True means that it did"
    daemon_threads, request_queue_size = True, 50
    def __init__(self, body=RELEASE):
        super().__init__(('localhost', 0), Handler)
        self.body, self.etag, self.modified, self.ranges = body, '"one"', None, True
        self.misbehave, self.requests = lambda handler, visit: False, []
        threading.Thread(target=self.serve_forever, args=(.02,), daemon=True).start()
        self.url = f'http://localhost:{self.server_port}/set.zip'

    def file(self, **known): return File('set.zip', self.url, **known)
    def handle_error(self, *_): pass  # a client that hangs up is no news

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass

    def head(self, status, **headers):
        self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            if value is not None: self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        if not server.misbehave(self, len(server.requests)): self.serve()

    def serve(self, body=None, said=None, send=None, etag=None):
        server = self.server
        body = server.body if body is None else body
        etag = etag or server.etag
        said = len(body) if said is None else said
        start, asked, condition = 0, self.headers.get('Range'), self.headers.get('If-Range')
        if asked and server.ranges and condition in (None, etag, server.modified):
            start = int(asked[6:-1])
        common = dict(ETag=etag or None, Last_Modified=server.modified,
                      Content_Type='application/zip')
        if start >= said:
            return self.head(416, Content_Range=f'bytes */{said}', Content_Length=0, **common)
        if start:
            self.head(206, Content_Range=f'bytes {start}-{said - 1}/{said}',
                      Content_Length=said - start, **common)
        else: self.head(200, Content_Length=said, **common)
        part = body[start:said]
        self.wfile.write(part if send is None else part[:send])

@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()

def card_of(server, layout=LAYOUT, **known):
    file = server.file(**known)
    return Card('small', 'A small set', 'nowhere', 'CC BY 4.0', ('nobody',), {}, 'none', (),
                known.get('bytes'), layout,
                {'publisher': Home('http', 'https://example.org', 'first', (file,))})

def whole(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())

def visible(folder): return sorted(p.name for p in folder.iterdir() if not p.name.startswith('.'))

def get(server, folder, **known):
    "The bytes that a download from `server` gives; `known` are the size and the digest on the card"
    return download(server.file(**known), folder, **QUICK).read_bytes()

quiet = dict(yes=True, say=lambda line: None, **QUICK)

# downloading

def test_a_good_server_is_asked_once(server, tmp_path):
    assert get(server, tmp_path) == RELEASE
    assert len(server.requests) == 1 and visible(tmp_path) == ['set.zip']
    assert get(server, tmp_path) and len(server.requests) == 1  # it is there already

def test_a_line_that_drops_is_taken_up_again(server, tmp_path):
    server.misbehave = lambda handler, visit: visit < 4 and (handler.serve(send=20_000) or True)
    assert get(server, tmp_path) == RELEASE
    ranges = [headers.get('Range') for _, headers in server.requests]
    assert ranges == [None, 'bytes=20000-', 'bytes=40000-', 'bytes=60000-']
    assert all(headers['If-Range'] == '"one"' for _, headers in server.requests[1:])

@pytest.mark.parametrize('seed', range(8))
def test_dropped_at_random_points(server, tmp_path, seed):
    points = random.Random(seed)
    def drop(handler, visit):
        if points.random() < .3: return True                               # hangs up without a word
        if points.random() < .3: return handler.head(500, Content_Length=0) or True
        return points.random() < .7 and (handler.serve(send=points.randrange(30_000)) or True)
    server.misbehave = drop
    assert download(server.file(digest=SHA), tmp_path, 200, (2, .4), 0).read_bytes() == RELEASE

def test_a_reset_line(server, tmp_path):
    def reset(handler, visit):
        if visit > 2: return False
        handler.serve(send=10_000)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        handler.connection.close()
        return True
    server.misbehave = reset
    assert get(server, tmp_path, digest=SHA) == RELEASE

def test_a_stalling_server_is_left_and_asked_again(server, tmp_path):
    def stall(handler, visit):
        return visit == 1 and (handler.serve(send=30_000) or time.sleep(1) or True)
    server.misbehave = stall
    started = time.monotonic()
    assert get(server, tmp_path) == RELEASE
    assert time.monotonic() - started < 3 and len(server.requests) == 2

def test_a_server_that_drips_counts_as_dead(server, tmp_path):
    def drip(handler, visit):
        if visit > 1: return False
        handler.head(200, Content_Length=len(RELEASE), ETag='"one"')
        for byte in RELEASE[:60]:
            handler.wfile.write(bytes([byte]))
            time.sleep(.02)
        return True
    server.misbehave = drip
    assert get(server, tmp_path) == RELEASE
    assert len(server.requests) == 2 and 0 < int(server.requests[1][1]['Range'][6:-1]) < 60

def test_a_server_that_is_silent_for_ever_is_given_up(tmp_path):
    with socket.socket() as silent:
        silent.bind(('localhost', 0))
        silent.listen()
        file = File('set.zip', f'http://localhost:{silent.getsockname()[1]}/set.zip')
        with pytest.raises(FetchError, match='2 tries in a row.*call again to go on'):
            download(file, tmp_path, 2, (1, .2), .01)
    with pytest.raises(FetchError, match='could not be had'):
        download(file, tmp_path, 2, (1, .2), .01)  # nobody listens

def test_ignored_ranges_start_anew(server, tmp_path):
    server.ranges = False
    server.misbehave = lambda handler, visit: visit < 3 and (handler.serve(send=30_000) or True)
    assert get(server, tmp_path) == RELEASE

@pytest.mark.parametrize('etag, modified, resumes', [
    ('"one"', None, True), ('', 'Fri, 20 Nov 2026 10:00:00 GMT', True),
    ('W/"one"', None, False), ('', None, False)])
def test_only_an_identified_file_is_resumed(server, tmp_path, etag, modified, resumes):
    server.etag, server.modified = etag, modified
    server.misbehave = lambda handler, visit: visit == 1 and (handler.serve(send=30_000) or True)
    assert get(server, tmp_path) == RELEASE
    assert ('Range' in server.requests[1][1]) == resumes

def test_an_unidentified_file_of_known_digest_is_resumed(server, tmp_path):
    server.etag = ''
    server.misbehave = lambda handler, visit: visit == 1 and (handler.serve(send=30_000) or True)
    assert get(server, tmp_path, digest=SHA) == RELEASE
    headers = server.requests[1][1]
    assert headers['Range'] == 'bytes=30000-' and 'If-Range' not in headers

@pytest.mark.parametrize('honest', [True, False], ids=['obeys If-Range', 'ignores If-Range'])
def test_a_file_that_changes_between_two_halves_is_not_joined(server, tmp_path, honest):
    def change(handler, visit):
        if visit == 1: return handler.serve(send=30_000) or True
        if not honest and 'If-Range' in handler.headers:
            handler.headers.replace_header('If-Range', '"two"')
        return handler.serve(body=SECOND, etag='"two"') or True
    server.misbehave = change
    assert get(server, tmp_path) == SECOND

def test_a_changed_file_behind_the_same_etag_is_caught_by_its_digest(server, tmp_path):
    body = noise(1, len(RELEASE))
    def change(handler, visit):
        return (handler.serve(send=30_000) if visit == 1 else handler.serve(body=body)) or True
    server.misbehave = change
    with pytest.raises(FetchError, match='came twice and was wrong'):
        get(server, tmp_path, digest=SHA)
    assert visible(tmp_path) == []

def test_a_wrong_byte_is_got_again_once(server, tmp_path):
    wrong = RELEASE[:100] + b'?' + RELEASE[101:]
    server.misbehave = lambda handler, visit: visit == 1 and (handler.serve(body=wrong) or True)
    assert get(server, tmp_path, digest=SHA) == RELEASE
    md5 = 'md5:' + hashlib.md5(RELEASE).hexdigest()
    again = download(File('again.zip', server.url, digest=md5), tmp_path, **QUICK)
    assert again.read_bytes() == RELEASE

@pytest.mark.parametrize('said', [len(RELEASE) + 5000, 5000, 0], ids=['too long', 'too short',
                                                                      'nothing'])
def test_a_lie_about_the_length_of_a_known_file(server, tmp_path, said):
    server.misbehave = lambda handler, visit: handler.serve(said=said) or True
    with pytest.raises(FetchError): get(server, tmp_path, bytes=len(RELEASE), digest=SHA)
    assert not (tmp_path/'set.zip').exists()

def test_too_long_a_length_of_an_unknown_file_ends_in_an_error(server, tmp_path):
    server.misbehave = lambda handler, visit: handler.serve(said=len(RELEASE) + 5000) or True
    with pytest.raises(FetchError, match='tries in a row'): get(server, tmp_path)
    assert visible(tmp_path) in (['set.zip.part', 'set.zip.part.json'], [])

def test_more_than_the_card_says_is_cut_off(server, tmp_path):
    def endless(handler, visit):
        handler.head(200)
        for _ in range(1000): handler.wfile.write(bytes(10_000))
        return True
    server.misbehave = endless
    with pytest.raises(FetchError, match='sends more than'): get(server, tmp_path, bytes=50_000)
    assert (tmp_path/'set.zip.part').stat().st_size <= 50_000

def test_without_a_length_the_card_says_when_it_is_whole(server, tmp_path):
    def no_length(handler, visit):
        handler.head(200, ETag='"one"')
        handler.wfile.write(RELEASE[:30_000] if visit == 1 else RELEASE)
        return True
    def misbehave(handler, visit):
        return 'Range' not in handler.headers and no_length(handler, visit)
    server.misbehave = misbehave
    assert get(server, tmp_path, bytes=len(RELEASE)) == RELEASE
    assert server.requests[1][1]['Range'] == 'bytes=30000-'

@pytest.mark.parametrize('cut', [False, True])
def test_chunked_answers(server, tmp_path, cut):
    def chunked(handler, visit):
        handler.head(200, Transfer_Encoding='chunked')
        for at in range(0, len(RELEASE), 9000):
            if cut and visit == 1 and at > 40_000: return True
            part = RELEASE[at:at + 9000]
            handler.wfile.write(b'%x\r\n%s\r\n' % (len(part), part))
        handler.wfile.write(b'0\r\n\r\n')
        return True
    server.misbehave = chunked
    assert get(server, tmp_path) == RELEASE
    assert len(server.requests) == 1 + cut

@pytest.mark.parametrize('status', [500, 502, 503, 429, 408])
def test_a_busy_server_is_asked_again(server, tmp_path, status):
    def busy(handler, visit):
        return visit < 3 and (handler.head(status, Content_Length=0, Retry_After=0) or True)
    server.misbehave = busy
    assert get(server, tmp_path) == RELEASE

@pytest.mark.parametrize('status', [401, 403, 404, 410])
def test_a_clear_no_is_taken(server, tmp_path, status):
    server.misbehave = lambda handler, visit: handler.head(status, Content_Length=0) or True
    with pytest.raises(FetchError, match=f'{status}.*--from'): get(server, tmp_path)
    assert len(server.requests) == 1

def test_a_server_that_stays_busy_is_given_up(server, tmp_path):
    server.misbehave = lambda handler, visit: handler.head(503, Content_Length=0) or True
    with pytest.raises(FetchError, match='answered 503'): get(server, tmp_path)
    assert len(server.requests) == 4

def test_a_web_page_is_not_an_archive(server, tmp_path):
    def page(handler, visit):
        return handler.head(200, Content_Type='text/html; charset=utf-8', Content_Length=0) or True
    server.misbehave = page
    with pytest.raises(FetchError, match='A web page came'): get(server, tmp_path)

@pytest.mark.parametrize('kind, body', [
    ('Text/HTML; charset=utf-8', b'please log in'), (' text/html', b'x'),
    (None, b'\xef\xbb\xbf\n<!DOCTYPE html><p>log in'), ('application/zip', b'<HTML lang="en">')])
def test_a_web_page_in_another_guise(server, tmp_path, kind, body):
    def page(handler, visit):
        handler.head(200, Content_Type=kind, Content_Length=len(body))
        return handler.wfile.write(body)
    server.misbehave = page
    for _ in range(2):
        with pytest.raises(FetchError, match='A web page came'): get(server, tmp_path)
    assert not list(tmp_path.iterdir()) and len(server.requests) == 2
    if kind is None:
        wanted = download(server.file()._replace(name='page.html'), tmp_path, **QUICK)
        assert wanted.read_bytes() == body

@pytest.mark.parametrize('length', [0, None])
def test_an_empty_answer_is_not_a_file(server, tmp_path, length):
    server.misbehave = lambda handler, visit: handler.head(200, Content_Length=length) or True
    with pytest.raises(FetchError, match='4 tries in a row'): get(server, tmp_path)
    assert not (tmp_path/'set.zip').exists()

@pytest.mark.parametrize('cuts, asked', [((None,), 2), ((30_000,), 3), ((30_000, None, 9000), 5)])
def test_where_nothing_tells_the_end_the_file_has_to_come_twice(server, tmp_path, cuts, asked):
    def old_style(handler, visit):
        handler.head(200, ETag='"one"')
        return handler.wfile.write(RELEASE[:cuts[visit - 1] if visit <= len(cuts) else None])
    server.misbehave = old_style
    assert get(server, tmp_path) == RELEASE and len(server.requests) == asked

def test_a_file_without_an_end_that_is_never_the_same_is_given_up(server, tmp_path):
    def cut(handler, visit):
        handler.head(200)
        return handler.wfile.write(RELEASE[:visit * 1000])
    server.misbehave = cut
    with pytest.raises(FetchError, match='came 5 times and never twice the same'):
        get(server, tmp_path)
    assert not list(tmp_path.iterdir())

def test_redirects(server, tmp_path):
    target = {'/set.zip': '/other/place.zip', '/loop': '/loop', '/file': 'file:///etc/passwd',
              '/plain': 'http://example.org/set.zip', '/ftp': 'ftp://example.org/set.zip',
              '/odd': 'http://[broken'}
    def redirect(handler, visit):
        if handler.path not in target: return False
        return handler.head(302, Location=target[handler.path], Content_Length=0) or True
    server.misbehave = redirect
    assert get(server, tmp_path, digest=SHA) == RELEASE
    for path, why in (('loop', 'again and again'), ('file', 'not a public'),
                      ('plain', 'not a public'), ('ftp', 'not a public'),
                      ('odd', 'not an address')):
        with pytest.raises(FetchError, match=why):
            download(File(path, server.url.replace('set.zip', path)), tmp_path, **QUICK)
    assert visible(tmp_path) == ['set.zip']

def test_addresses():
    check_address('https://example.org/a')
    check_address('https://s3.example.org/a', 'https://example.org/a')
    for url, before in (('http://example.org', None),
                        ('http://localhost/x', 'https://example.org'),
                        ('https://127.0.0.1/x', 'https://example.org'),
                        ('data:text/plain,x', None), ('https:///nowhere', None), ('', None)):
        with pytest.raises(FetchError): check_address(url, before)

def test_passwords_are_neither_read_nor_sent(server, tmp_path, monkeypatch):
    (tmp_path/'netrc').write_text('machine localhost login me password secret\n')
    monkeypatch.setenv('NETRC', str(tmp_path/'netrc'))
    download(server.file(), tmp_path/'out', **QUICK)
    assert 'Authorization' not in server.requests[0][1]

def note_state(folder, server):
    "What a download notes of the file whose part it has"
    state = dict(url=server.url, identity=server.etag, total=len(RELEASE))
    (folder/'set.zip.part.json').write_text(json.dumps(state))

def test_a_finished_part_needs_only_its_name(server, tmp_path):
    get(server, tmp_path)
    (tmp_path/'set.zip').rename(tmp_path/'set.zip.part')
    note_state(tmp_path, server)
    assert get(server, tmp_path) == RELEASE and len(server.requests) == 1

@pytest.mark.parametrize('state', [
    '', '[]', '{"url": 3}', '{"url": "https://elsewhere", "identity": "x", "total": 1}',
    '{"url": "URL"}', '{"url": "URL", "identity": 3}', None])
def test_a_part_of_unknown_origin_is_not_used(server, tmp_path, state):
    (tmp_path/'set.zip.part').write_bytes(b'something else')
    if state is not None:
        (tmp_path/'set.zip.part.json').write_text(state.replace('URL', server.url))
    assert get(server, tmp_path) == RELEASE

def test_a_part_that_is_too_long_is_not_used(server, tmp_path):
    (tmp_path/'set.zip.part').write_bytes(bytes(len(RELEASE) + 5))
    note_state(tmp_path, server)
    assert get(server, tmp_path) == RELEASE

def test_a_line_that_breaks_at_the_same_place_for_ever_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, 'PROGRESS', 1000)
    server.etag = ''  # cannot be resumed
    server.misbehave = lambda handler, visit: handler.serve(send=30_000) or True
    with pytest.raises(FetchError, match='4 tries in a row'): get(server, tmp_path)
    assert len(server.requests) <= 5

def test_success_forgives_failures(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, 'PROGRESS', 1000)
    server.misbehave = lambda handler, visit: handler.serve(send=3000) or True
    assert get(server, tmp_path) == RELEASE  # 27 attempts, 4 tries

def test_a_full_disk_before_and_during(server, tmp_path, monkeypatch):
    usage = type('Usage', (), {'free': 10_000})
    monkeypatch.setattr(downloading.shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(FetchError, match='more than the disk has free'): get(server, tmp_path)
    monkeypatch.undo()
    class Full(io.FileIO):
        def write(self, data): raise OSError(28, 'No space left on device')
    def full(path, mode): return Full(path, mode) if mode == 'ab' else open(path, mode)
    monkeypatch.setattr(downloading, 'open', full, raising=False)
    with pytest.raises(FetchError, match='No space left.*is kept'): get(server, tmp_path)
    monkeypatch.undo()
    assert get(server, tmp_path) == RELEASE

def test_a_place_where_no_folder_can_be(server, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(FetchError, match='cannot be written'):
        download(server.file(), tmp_path/'file', **QUICK)
    with pytest.raises(FetchError): fetch(card_of(server), tmp_path/'file/below', **quiet)

# unpacking

def archive_of(folder, *files, name='a.zip', **options):
    (folder/name).write_bytes(zip_bytes(files, **options))
    return folder/name

def tar_of(folder, *items, name='a.tar.gz', **options):
    with tarfile.open(folder/name, 'w:gz' if name.endswith('gz') else 'w', **options) as archive:
        for item, content in items:
            info = item if isinstance(item, tarfile.TarInfo) else tarfile.TarInfo(item)
            if content is not None: info.size = len(content)
            archive.addfile(info, None if content is None else io.BytesIO(content))
    return folder/name

def odd(name, **options):
    info = tarfile.TarInfo(name)
    for key, value in options.items(): setattr(info, key, value)
    return info

def refused(source, tmp_path, match, **options):
    before = set(tmp_path.rglob('*'))
    with pytest.raises(FetchError, match=match): unpack(source, tmp_path/'out', **options)
    assert set(tmp_path.rglob('*')) == before

@pytest.mark.parametrize('name', ['../a', 'x/../../a', '/a', '//a', 'C:\\a', 'C:a', 'a\\..\\b',
                                  'nul', 'x/AUX.png', 'a ', 'a.', 'a\nb', 'a|b', '..'])
def test_names_that_lead_elsewhere(tmp_path, name):
    refused(tar_of(tmp_path, ('good.png', b'1'), (name, b'2')), tmp_path, 'not safe')
    refused(archive_of(tmp_path, ('good.png', b'1'), (name, b'2')), tmp_path, 'not safe')

def test_a_member_without_a_name(tmp_path):
    path = archive_of(tmp_path, ('name.png', b'1'))
    path.write_bytes(path.read_bytes().replace(b'name.png', b'\0ame.png'))  # it ends at the zero
    refused(path, tmp_path, 'damaged|not safe')

def test_a_zero_byte_in_a_zip_name(tmp_path):
    path = archive_of(tmp_path, ('a.pngX.exe', b'1'))
    path.write_bytes(path.read_bytes().replace(b'a.pngX.exe', b'a.png\0.exe'))
    refused(path, tmp_path, 'not safe|damaged')

def test_links_and_devices(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
                 tarfile.FIFOTYPE, b'?'):
        refused(tar_of(tmp_path, ('a', b'1'), (odd('b', type=kind, linkname='a'), None)), tmp_path,
                'a link or a device')
    link = zipfile.ZipInfo('b')
    link.external_attr = 0o120777 << 16
    refused(archive_of(tmp_path, ('a', b'1'), (link, 'a')), tmp_path, 'a link or a device')
    (tmp_path/'folder').mkdir()
    (tmp_path/'folder/link').symlink_to('/etc')
    refused(tmp_path/'folder', tmp_path, 'a link or a device')

@pytest.mark.parametrize('names', [('a', 'a'), ('A', 'a'), ('x/a', 'X/b'), ('a', 'a/b'),
                                   ('a/b', 'a'), ('\u00e9', 'e\u0301'), ('./a', 'a'),
                                   ('stra\u00dfe', 'STRASSE')])
def test_two_members_for_one_place(tmp_path, names):
    refused(tar_of(tmp_path, *((name, b'1') for name in names)), tmp_path, 'one place')

def test_sources_may_share_folders_but_not_files(tmp_path):
    first = archive_of(tmp_path, ('images/a', b'1'), name='1.zip')
    second = archive_of(tmp_path, ('images/b', b'2'), name='2.zip')
    assert sorted(unpack([first, second], tmp_path/'both')) == ['images/a', 'images/b']
    refused([first, first], tmp_path, 'one place')

def test_bombs(tmp_path):
    zeros = bytes(2_000_000)
    small = Limits(small=1_000_000)
    refused(archive_of(tmp_path, ('a', zeros), compression=zipfile.ZIP_DEFLATED), tmp_path,
            'far more room', limits=small)
    refused(tar_of(tmp_path, ('a', zeros)), tmp_path, 'far more room', limits=small)
    refused(tar_of(tmp_path, (odd('a', size=2**63), None)), tmp_path, 'far more room')
    refused(archive_of(tmp_path, *((str(n), b'') for n in range(20))), tmp_path,
            'more than 10 files', limits=Limits(files=10))
    refused(archive_of(tmp_path, ('/'.join('abcdefghijkl'), b'')), tmp_path, 'files and folders',
            limits=Limits(files=10))
    refused(archive_of(tmp_path, ('a', b'123')), tmp_path, 'more room',
            limits=Limits(reserve=10**18))

def test_a_zip_that_lies_about_a_size(tmp_path):
    path = archive_of(tmp_path, ('a', bytes(50_000)), compression=zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    for said in (10, 60_000):
        path.write_bytes(data.replace((50_000).to_bytes(4, 'little'), said.to_bytes(4, 'little')))
        refused(path, tmp_path, 'damaged')

def test_headers_that_ask_for_memory(tmp_path):
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME,
                 tarfile.GNUTYPE_LONGLINK):
        refused(tar_of(tmp_path, (odd('a', type=kind, size=2**32), None)), tmp_path, 'asks for')
    refused(tar_of(tmp_path, (odd('a', size=-5), None), format=tarfile.GNU_FORMAT), tmp_path,
            'asks for')

def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path):
    "Python's reader stops there without an error"
    files = [(f'{n}.png', noise(n, 600)) for n in range(4)]
    path = tar_of(tmp_path, *files, name='a.tar')
    good = path.read_bytes()
    for second_header in (good[:1536] + noise(9, 512) + good[2048:], good[:1536], good[:1700]):
        path.write_bytes(second_header)
        with tarfile.open(path) as archive: assert archive.getnames() == ['0.png']
        refused(path, tmp_path, 'damaged')

def test_a_zip_whose_list_is_damaged_does_not_lose_members(tmp_path):
    "Python's reader takes the rest of the list for a long comment"
    path = archive_of(tmp_path, *((f'{n}.png', noise(n, 600)) for n in range(4)))
    data = bytearray(path.read_bytes())
    comment_length = data.index(b'PK\1\2') + 33
    data[comment_length] ^= 4
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive: assert archive.namelist() == ['0.png']
    refused(path, tmp_path, 'counts other members')

def test_a_zip_of_more_than_65535_members(tmp_path):
    for count in (65_537,):
        many = [(f'{n}', b'') for n in range(count)]
        path = archive_of(tmp_path, *many)
        assert sum(1 for member in members(path)) == count

def test_what_follows_the_end_of_a_tar(tmp_path):
    data = gzip.decompress(tar_of(tmp_path, ('a', b'1')).read_bytes())
    for more in (b'more', bytes(2**24)):
        (tmp_path/'b.tar.gz').write_bytes(gzip.compress(data + more, 1))
        refused(tmp_path/'b.tar.gz', tmp_path, 'follows the end')
    wrong = bytearray(gzip.compress(data))
    wrong[-6] ^= 1  # the checksum of gzip
    (tmp_path/'b.tar.gz').write_bytes(wrong)
    refused(tmp_path/'b.tar.gz', tmp_path, 'damaged')

CUTS = [(kind, share) for kind in ('zip', 'tar', 'tar.gz') for share in (0, .1, .5, .85)]

@pytest.mark.parametrize('kind, share', [*CUTS, ('zip', .999), ('tar.gz', .999)])
def test_cut_archives(tmp_path, kind, share):
    files = [(f'{n}.png', noise(n, 3000)) for n in range(5)]
    make = archive_of if kind == 'zip' else tar_of
    path = make(tmp_path, *files, name=f'a.{kind}')
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    refused(path, tmp_path, 'damaged')

def test_damage_is_named(tmp_path):
    path = archive_of(tmp_path, ('first.png', noise(1, 2000)), ('second.png', noise(2, 2000)))
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    refused(path, tmp_path, 'second.png')
    locked = archive_of(tmp_path, ('locked.png', b'1'))
    data = bytearray(locked.read_bytes())
    data[data.index(b'PK\1\2') + 8] |= 1
    locked.write_bytes(data)
    refused(locked, tmp_path, 'locked.png.*password')

@pytest.mark.parametrize('kind', ['zip', 'tar.gz'])
def test_fuzzed_archives_give_the_set_or_an_error(tmp_path, kind):
    files = [(f'set/{n}.png', noise(n, 400)) for n in range(4)]
    path = archive_of(tmp_path, *files) if kind == 'zip' else tar_of(tmp_path, *files)
    good, wanted, random_ = path.read_bytes(), unpack(path, tmp_path/'wanted'), random.Random(0)
    for _ in range(120):
        data = bytearray(good)
        for _ in range(random_.choice((1, 1, 2, 8))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        if random_.random() < .2: del data[random_.randrange(len(data)):]
        path.write_bytes(data)
        try: found = unpack(path, tmp_path/'found')
        except FetchError: found = None
        if found is not None:
            assert found == wanted
            unpacking.shutil.rmtree(tmp_path/'found')
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, 'wanted'])

def test_nothing_is_overwritten(tmp_path):
    path = archive_of(tmp_path, ('a', b'new'))
    (tmp_path/'out').mkdir()
    (tmp_path/'out/a').write_bytes(b'old')
    with pytest.raises(FetchError, match='there already'): unpack(path, tmp_path/'out')
    assert (tmp_path/'out/a').read_bytes() == b'old'

def test_a_disk_that_fills_while_unpacking(tmp_path, monkeypatch):
    path = archive_of(tmp_path, ('a', b'1'), ('b', b'2'))
    def full(member, target): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(unpacking, '_write', full)
    refused(path, tmp_path, 'No space left.*untouched')

def test_damaged_lzma_is_said(tmp_path):
    path = archive_of(tmp_path, ('a.png', noise(1, 4000)), compression=zipfile.ZIP_LZMA)
    good = path.read_bytes()
    for position in range(44, 3900, 97):
        path.write_bytes(good[:position] + bytes([good[position] ^ 8]) + good[position + 1:])
        refused(path, tmp_path, 'a.zip is damaged')

def test_a_name_that_is_not_text_is_refused_with_the_name_of_the_archive(tmp_path):
    archive_of(tmp_path, ('good.png', b'1'), name='first.zip')
    path = archive_of(tmp_path, ('caf\u00e9.png', b'1'), name='second.zip')
    path.write_bytes(path.read_bytes().replace('\u00e9'.encode(), b'\xff\xfe'))
    refused([tmp_path/'first.zip', path], tmp_path, 'second.zip is damaged at its beginning')
    odd_name = tar_of(tmp_path, ('caf\udcff.png', b'1'), name='third.tar.gz')
    refused(odd_name, tmp_path, 'third.tar.gz asks for .*not text')

def test_a_folder_without_a_name_of_its_own(tmp_path, monkeypatch):
    (tmp_path/'set/below').mkdir(parents=True)
    (tmp_path/'set/a.png').write_bytes(b'1')
    unpacking.write_manifest(tmp_path/'set', unpacking.folder_contents(tmp_path/'set'))
    for here, folder in (('set', '.'), ('set/below', '..'), ('', 'set/below/..')):
        monkeypatch.chdir(tmp_path/here)
        assert manifest_file(folder) == tmp_path/'set.manifest.json' and len(verify(folder)) == 0
    with pytest.raises(FetchError, match='root of a disk'): verify('/')

@pytest.mark.parametrize('text', ['{"files": {}, "parts": 5}', '{"files": {}, "parts": [5]}', '[]',
                                  '{"files": {"a": [1e999, ""]}}', '{"files": 5}'])
def test_a_manifest_of_other_types(server, tmp_path, text):
    (tmp_path/'small').mkdir()
    (tmp_path/'small.manifest.json').write_text(text)
    with pytest.raises(FetchError, match='cannot be read as a manifest'):
        fetch(card_of(server), tmp_path/'small', **quiet)

def test_modes_and_times_of_the_archive_are_not_taken(tmp_path):
    unpack(tar_of(tmp_path, (odd('a', mode=0o7777, uid=0, mtime=1), b'1')), tmp_path/'out')
    assert (tmp_path/'out/a').stat().st_mode & 0o7111 == 0

# fetching

def test_fetch_makes_the_folder_that_the_loader_reads(server, tmp_path):
    said = []
    root = fetch(card_of(server, digest=SHA), tmp_path/'small', yes=True, say=said.append, **QUICK)
    assert root == tmp_path/'small'
    assert whole(root) == sorted(name.removeprefix('chest_xray/') for name in NAMES)
    assert visible(tmp_path) == ['small', 'small.manifest.json']
    assert len(verify(root)) == 0 and '4 images; the card names no number' in said[-1]
    assert fetch(card_of(server), tmp_path/'small', **quiet) == root and len(server.requests) == 1

def test_the_question_shows_size_and_licence(server, tmp_path):
    asked = []
    with pytest.raises(FetchError, match='not answered with yes'):
        fetch(card_of(server, bytes=len(RELEASE)), tmp_path/'small',
              ask=lambda question: asked.append(question) or False, say=print)
    for words in (size_in_words(len(RELEASE)), 'CC BY 4.0', 'not tried'): assert words in asked[0]
    assert not server.requests and visible(tmp_path) == []

def test_nobody_to_ask_is_an_error_and_not_a_wait(tmp_path):
    code = "from cxr_learn.fetching import fetch; fetch('kermany', 'here')"
    done = subprocess.run([sys.executable, '-c', code], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert 'FetchError' in done.stderr and '--yes' in done.stderr and '1.24 GB' in done.stderr

def test_a_damaged_archive_of_unknown_digest_is_got_again(server, tmp_path):
    server.body = RELEASE[:30_000] + b'????' + RELEASE[30_004:]
    with pytest.raises(FetchError, match='damaged at .*jpeg.*call again'):
        fetch(card_of(server), tmp_path/'small', **quiet)
    assert visible(tmp_path) == []
    server.body = RELEASE
    assert len(whole(fetch(card_of(server), tmp_path/'small', **quiet))) == 4

def test_a_short_length_of_an_unknown_file_is_noticed(server, tmp_path):
    server.misbehave = lambda handler, visit: visit == 1 and (handler.serve(said=50_000) or True)
    with pytest.raises(FetchError, match='damaged'):
        fetch(card_of(server), tmp_path/'small', **quiet)
    assert visible(tmp_path) == []
    assert len(whole(fetch(card_of(server), tmp_path/'small', **quiet))) == 4

def test_a_changed_release_is_refused_with_what_differs(server, tmp_path):
    root = fetch(card_of(server), tmp_path/'small', **quiet)
    unpacking.shutil.rmtree(root)
    server.body, server.etag = SECOND, '"two"'
    with pytest.raises(FetchError, match='4 changed.*a.jpeg'):
        fetch(card_of(server), tmp_path/'small', **quiet)
    assert visible(tmp_path) == ['small.manifest.json']
    manifest_file(root).unlink()
    assert fetch(card_of(server), tmp_path/'small', **quiet).exists()

def test_a_damaged_folder_is_not_taken_for_the_set(server, tmp_path):
    root = fetch(card_of(server), tmp_path/'small', **quiet)
    (root/'test/NORMAL/c.jpeg').unlink()
    with pytest.raises(FetchError, match='1 missing.*c.jpeg.*move it away'):
        fetch(card_of(server), root, **quiet)
    (tmp_path/'other').mkdir()
    (tmp_path/'other/mine.txt').write_text('mine')
    with pytest.raises(FetchError, match='not a fetched small'):
        fetch(card_of(server), tmp_path/'other', **quiet)
    assert whole(tmp_path/'other') == ['mine.txt']

def test_another_layout_is_refused(server, tmp_path):
    with pytest.raises(FetchError, match='not the layout'):
        fetch(card_of(server, layout=('images', '*.csv')), tmp_path/'small', **quiet)
    assert visible(tmp_path) == []

def test_own_copies(server, tmp_path):
    (tmp_path/'ChestXRay2017.zip').write_bytes(RELEASE)
    with pytest.raises(FetchError, match='bytes, the card says 1235512464'):
        fetch('kermany', tmp_path/'kermany', from_path=tmp_path/'ChestXRay2017.zip', say=print)
    (tmp_path/'ChestXRay2017.zip').rename(tmp_path/'archive.zip')
    root = fetch('kermany', tmp_path/'kermany', from_path=tmp_path/'archive.zip', say=print)
    assert len(whole(root)) == 4 and (tmp_path/'archive.zip').exists()
    again = fetch('kermany', tmp_path/'copy', from_path=tmp_path/'kermany', say=print)
    assert whole(again) == whole(root) and len(verify(again)) == 0
    manifest_file(again).unlink()
    assert fetch('kermany', again, from_path=again, say=print) == again and len(verify(again)) == 0
    (again/'train/NORMAL/a.jpeg').write_bytes(b'edited')
    with pytest.raises(FetchError, match='1 changed'):
        fetch('kermany', again, from_path=again, say=print)
    for wrong in (tmp_path/'nowhere', tmp_path/'kermany.manifest.json'):
        with pytest.raises(FetchError): fetch('kermany', tmp_path/'new', from_path=wrong, say=print)
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('out', ['set', 'below/set', '../browser/set'])
def test_a_set_is_not_copied_into_itself(tmp_path, out):
    browser = tmp_path/'browser'
    unpack(archive_of(tmp_path, *((name, b'1') for name in NAMES)), browser)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(FetchError, match='from which it would be filled.*outside'):
        fetch('kermany', browser/out, from_path=browser, say=print)
    assert sorted(tmp_path.rglob('*')) == before

@pytest.mark.parametrize('share, words', [
    (1, 'not whole, 4 images; the card says 5,856'), (0, 'No image')])
def test_a_few_images_are_not_the_whole_set(tmp_path, share, words):
    copy = tmp_path/'copy'
    for name in NAMES:
        (copy/name).parent.mkdir(parents=True, exist_ok=True)
        (copy/name).with_suffix('.jpeg' if share else '.txt').write_bytes(b'1')
    said, root = [], copy/'chest_xray'
    for folder in (tmp_path/'new', root):
        if share:
            for _ in range(2): fetch('kermany', folder, from_path=root, say=said.append)
        else:
            with pytest.raises(FetchError, match=words):
                fetch('kermany', folder, from_path=root, say=print)
            assert not manifest_file(folder).exists() and not (tmp_path/'new').exists()
    assert len(said) == 4 * share and all(words in line for line in said)

@pytest.mark.parametrize('count, words', [(3, 'not whole, 3'), (4, 'whole, 4 images as the card'),
                                          (5, 'not as published, 5')])
def test_images_are_counted_and_masks_are_not(tmp_path, count, words):
    for n in range(count):
        for kind in ('images', 'masks'):
            (tmp_path/'set/COVID'/kind).mkdir(parents=True, exist_ok=True)
            (tmp_path/'set/COVID'/kind/f'{n}.PNG').write_bytes(b'1')
    card = CARDS['covid_radiography']._replace(layout=('COVID',), counts={'COVID': 3, 'Normal': 1})
    said = []
    fetch(card, tmp_path/'set', from_path=tmp_path/'set', say=said.append)
    assert words in said[0]

def test_an_empty_from_path_is_refused(tmp_path, monkeypatch):
    unpack(archive_of(tmp_path, *((name, b'1') for name in NAMES)), tmp_path/'here')
    monkeypatch.chdir(tmp_path/'here')
    with pytest.raises(FetchError, match='--from.*empty'):
        fetch('kermany', tmp_path/'new', from_path='', say=print)

def test_the_folder_that_one_is_in(server, tmp_path, monkeypatch):
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    with pytest.raises(FetchError, match='folder that you are in'):
        fetch(card_of(server), '.', **quiet)
    unpack(archive_of(tmp_path, *((name, b'1') for name in NAMES)), tmp_path/'set')
    monkeypatch.chdir(tmp_path/'set/chest_xray')
    assert fetch('kermany', '.', from_path='.', say=print) == Path('.') and len(verify('.')) == 0
    assert manifest_file('.') == tmp_path/'set/chest_xray.manifest.json'
    with pytest.raises(FetchError, match='not a fetched small'): fetch(card_of(server), '..', **quiet)

def nih_folder(folder):
    "What a reader of NIH has after an hour in the browser"
    folder.mkdir()
    for number in (1, 2):
        tar_of(folder, (f'images/0000000{number}_000.png', noise(number, 500)),
               name=f'images_00{number}.tar.gz')
    for name in ('Data_Entry_2017_v2020.csv', 'train_val_list.txt', 'test_list.txt'):
        (folder/name).write_text(name)
    return folder

def test_a_folder_of_archives_and_tables(tmp_path):
    browser = nih_folder(tmp_path/'browser')
    with pytest.raises(FetchError, match='bytes, the card says 2008470987'):
        fetch('nih_chestxray14', tmp_path/'nih', from_path=browser, say=print)
    nih = CARDS['nih_chestxray14']
    files = tuple(File(file.name, file.url) for file in nih.homes['publisher'].files)
    card = nih._replace(homes={'publisher': nih.homes['publisher']._replace(files=files)})
    with pytest.raises(FetchError, match='lacks images_003.tar.gz, images_004'):
        fetch(card, tmp_path/'nih', from_path=browser, say=print)
    both = ['images_001.tar.gz', 'images_002.tar.gz']
    root = fetch(card, tmp_path/'nih', from_path=browser, parts=both, say=print)
    assert whole(root) == ['Data_Entry_2017_v2020.csv', 'images/00000001_000.png',
                           'images/00000002_000.png', 'test_list.txt', 'train_val_list.txt']

def test_a_part_of_a_set(server, tmp_path):
    nih_folder(tmp_path/'shop')
    def shop(handler, visit):
        return handler.serve(body=(tmp_path/'shop'/handler.path[1:]).read_bytes(),
                             etag=f'"{handler.path}"') or True
    server.misbehave = shop
    names = sorted(path.name for path in (tmp_path/'shop').iterdir())
    files = tuple(File(name, server.url.replace('set.zip', name)) for name in names)
    home = Home('http', 'https://example.org', '1', files)
    card = CARDS['nih_chestxray14']._replace(homes={'publisher': home})
    root = fetch(card, tmp_path/'nih', parts=['images_002.tar.gz'], **quiet)
    assert 'images/00000002_000.png' in whole(root) and 'images/00000001_000.png' not in whole(root)
    with pytest.raises(FetchError, match='of other parts'): fetch(card, tmp_path/'nih', **quiet)
    assert fetch(card, tmp_path/'nih', parts=['images_002.tar.gz'], **quiet) == root
    with pytest.raises(FetchError, match='choose among images_001.tar.gz, images_002'):
        fetch(card, tmp_path/'x', parts=['part_3'], **quiet)

def test_kaggle_and_hugging_face_are_asked_through_their_libraries(tmp_path):
    handles = []
    def carry(handle, folder):
        handles.append(handle)
        classes = CARDS['covid_radiography'].layout
        files = [(f'{name}/images/1.png', name.encode()) for name in classes]
        unpack(archive_of(tmp_path, *files), tmp_path/'cache/versions')
        return tmp_path/'cache'
    root = fetch('covid_radiography', tmp_path/'covid', carriers={'kaggle': carry}, **quiet)
    assert handles == ['tawsifurrahman/covid19-radiography-database/versions/5']
    assert len(whole(root)) == 4
    def hub(handle, folder):
        "As the copy on Hugging Face lies: all below data/, and the library's own notes beside it"
        (folder/'.cache/huggingface').mkdir(parents=True)
        (folder/'.cache/huggingface/notes.txt').write_text('')
        nih_folder(folder/'data')
        (folder/'data/images').mkdir()
        for archive in (folder/'data').glob('*.gz'):
            archive.rename(folder/'data/images'/archive.name)
        return folder
    assert len(whole(fetch('nih_chestxray14', tmp_path/'nih', home='huggingface',
                           carriers={'huggingface': hub}, **quiet))) == 5

def test_how_the_two_libraries_are_called(tmp_path, monkeypatch):
    "With stand-ins of the signatures of kagglehub 1.0 and huggingface_hub 2.4"
    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        return f'/cache/{handle}'
    def snapshot_download(repo_id, *, repo_type=None, revision=None, local_dir=None,
                          allow_patterns=None):
        assert repo_type == 'dataset' and '*.zip' in allow_patterns
        return str(local_dir)
    monkeypatch.setitem(sys.modules, 'kagglehub',
                        SimpleNamespace(dataset_download=dataset_download))
    monkeypatch.setitem(sys.modules, 'huggingface_hub',
                        SimpleNamespace(snapshot_download=snapshot_download))
    assert fetching.from_kaggle('a/b/versions/1', tmp_path) == Path('/cache/a/b/versions/1')
    assert fetching.from_huggingface('a/b', tmp_path) == tmp_path

def test_a_carrier_that_fails_or_is_missing(tmp_path, monkeypatch):
    def fail(handle, folder): raise RuntimeError('403 Client Error: you must accept the terms')
    with pytest.raises(FetchError, match='accept the terms.*--from'):
        fetch('coronahack', tmp_path/'c', carriers={'kaggle': fail}, **quiet)
    for library in ('kagglehub', 'huggingface_hub'): monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(FetchError, match='pip install'): fetch('coronahack', tmp_path/'c', **quiet)
    with pytest.raises(FetchError, match='pip install'):
        fetch('nih_chestxray14', tmp_path/'n', home='huggingface', **quiet)
    assert visible(tmp_path) == []

def test_two_at_once(server, tmp_path):
    inside, go_on = threading.Event(), threading.Event()
    server.misbehave = lambda handler, visit: inside.set() or (go_on.wait(5) and False)
    results = []
    def patient():
        results.append(fetch(card_of(server), tmp_path/'small', **{**quiet, 'timeouts': (5, 5)}))
    first = threading.Thread(target=patient)
    first.start()
    assert inside.wait(5)
    with pytest.raises(FetchError, match='Another call'):
        fetch(card_of(server), tmp_path/'small', **quiet)
    go_on.set()
    first.join()
    assert len(whole(results[0])) == 4

def killed(code, folder, when, timeout=20):
    "Run code in a process of its own and kill -9 it as soon as `when()` holds"
    process = subprocess.Popen([sys.executable, '-c', code], cwd=folder, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    until = time.monotonic() + timeout
    while not when() and time.monotonic() < until and process.poll() is None: time.sleep(.002)
    assert process.poll() is None, 'it ended before it could be killed'
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

def code_for(server):
    return ('from cxr_learn.cards import Card, File, Home; from cxr_learn.fetching import fetch\n'
            f'home = Home("http", "https://example.org", "1", (File("set.zip", "{server.url}"),))\n'
            f'fetch(Card("small", "", "", "", ("",), {{}}, "", (), None, {LAYOUT!r}, '
            f'{{"publisher": home}}), "small", yes=True)')

def test_kill_9_while_downloading(server, tmp_path):
    def slowly(handler, visit):
        return visit == 1 and (handler.serve(send=40_000) or time.sleep(20) or True)
    server.misbehave = slowly
    part = tmp_path/'.small.download/set.zip.part'
    killed(code_for(server), tmp_path, lambda: part.exists() and part.stat().st_size == 40_000)
    assert visible(tmp_path) == [] and part.exists()
    root = fetch(card_of(server), tmp_path/'small', **quiet)
    assert len(whole(root)) == 4 and server.requests[1][1]['Range'] == 'bytes=40000-'

def test_kill_9_while_unpacking(server, tmp_path):
    many = [(f'chest_xray/train/NORMAL/{n}.jpeg', b'x') for n in range(2500)]
    server.body = zip_bytes([(name, noise(name, 100)) for name in NAMES] + many)
    staging = tmp_path/'..small.checking.unpacking'
    killed(code_for(server), tmp_path, lambda: (staging/'chest_xray/train/NORMAL/50.jpeg').exists())
    assert visible(tmp_path) == [] and staging.exists()
    root = fetch(card_of(server), tmp_path/'small', **quiet)
    assert len(whole(root)) == 2504 and len(server.requests) == 1  # the archive was whole already
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ['.small.lock', 'small', 'small.manifest.json']

def test_find_layout(tmp_path):
    (tmp_path/'a/b/images').mkdir(parents=True)
    (tmp_path/'a/b/table.csv').write_text('')
    assert find_layout(tmp_path, ('images', '*.csv')) == tmp_path/'a/b'
    assert find_layout(tmp_path, ('masks',)) is None

def test_members_of_a_single_file(tmp_path):
    (tmp_path/'list.txt').write_text('a\n')
    only = next(members(tmp_path/'list.txt'))
    assert (only.name, only.bytes) == ('list.txt', 2)

def test_every_home_of_every_card_can_be_fetched_as_far_as_the_question(tmp_path):
    for name, card in CARDS.items():
        for home in card.homes:
            asked = []
            with pytest.raises(FetchError, match='not answered'):
                fetch(name, tmp_path/name, home=home, ask=lambda question: asked.append(question),
                      say=print)
            assert card.title in asked[0] and card.licence in asked[0]
    assert visible(tmp_path) == []
