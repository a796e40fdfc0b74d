"""The website and the README are what the notebooks say, and ask nothing of another host."""
import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastcore.docments import docments

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((REPOSITORY/'nbs').glob('[0-9][0-9]*_*.ipynb'))
CHAPTERS = [notebook.stem.split('_', 1)[1] for notebook in NOTEBOOKS]
# What a browser fetches by itself; a link that a reader clicks may lead anywhere.
FETCHED = {('link', 'href'), ('object', 'data'), ('img', 'srcset'),
           *((tag, 'src') for tag in ['script', 'img', 'iframe', 'source', 'video', 'audio', 'embed'])}


def run(script, *arguments, **environment):
    "Run a script of docs/ as `make` does; CXR_DATA is set only where it is given."
    kept = {name: value for name, value in os.environ.items() if name != 'CXR_DATA'}
    return subprocess.run([sys.executable, REPOSITORY/'docs'/script, *arguments], cwd=REPOSITORY,
                          env=kept | environment, capture_output=True, text=True, encoding='utf-8')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the website, built once."
    target = tmp_path_factory.mktemp('site')
    build = run('build.py', target)
    assert build.returncode == 0, build.stdout + build.stderr
    return target/'html'


@pytest.fixture(scope='module')
def pages(site):
    "Each page's text by its address."
    return {path.relative_to(site).as_posix(): path.read_text(encoding='utf-8')
            for path in site.rglob('*.html')}


class Elements(HTMLParser):
    "The start tags of a page."
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes): self.found.append((tag, dict(attributes)))


def test_every_chapter_has_a_page(pages):
    assert {'index.html', 'search.html', 'glossary.html'} <= set(pages)
    assert {f'chapters/{chapter}.html' for chapter in CHAPTERS} <= set(pages)


def test_the_sidebar_follows_the_chapters(pages):
    sidebar = pages['index.html'].split('class="sidebar-tree"')[1].split('</aside>')[0]
    assert re.findall(r'href="chapters/(\w+)\.html"', sidebar) == CHAPTERS


def test_pages_ask_nothing_of_another_host(site, pages):
    for address, text in pages.items():
        fetched = [value for tag, attributes in Elements(text).found
                   for name, value in attributes.items() if (tag, name) in FETCHED]
        assert [value for value in fetched if re.match(r'(\w+:)?//', value)] == [], address
    styles = {path: path.read_text(encoding='utf-8') for path in site.rglob('*.css')} | pages
    for path, text in styles.items():
        assert not re.search(r'''(@import|url\()\s*["']?(\w+:)?//''', text), path


def test_every_page_says_that_it_is_not_for_clinical_use(pages):
    for address, text in pages.items(): assert 'not for clinical use' in text.lower(), address


def test_every_figure_has_words(pages):
    for address, text in pages.items():
        figures = [attributes for tag, attributes in Elements(text).found if tag == 'img']
        assert all(figure.get('alt') for figure in figures), address


def test_flags_stay_in_the_notebooks(pages):
    comment = '<span class="c1">#|'
    for address, text in pages.items(): assert comment not in text, address


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_exported_functions_are_documented(pages, chapter):
    try: module = importlib.import_module(f'cxr_learn.{chapter}')
    except ModuleNotFoundError: pytest.skip(f'{chapter} exports nothing')
    page = pages[f'chapters/{chapter}.html']
    text = html.unescape(re.sub('<.*?>', '', page))
    functions = {name: item for name, item in vars(module).items()
                 if inspect.isfunction(item) and item.__module__ == module.__name__}
    shown = [name for name in functions if f'id="{module.__name__}.{name}"' in page]
    assert shown, f'no function of {chapter} is on its page'
    for name in shown:
        for entry in docments(functions[name], full=True).values():
            words = re.findall(r'[A-Za-z]{3,}', entry.docment or '')
            assert all(word in text for word in words), f'{name}: {entry.docment}'


def test_there_is_something_to_search(site):
    index = (site/'searchindex.js').read_text(encoding='utf-8')
    assert all(f'chapters/{chapter}' in index for chapter in CHAPTERS)


def test_readme_is_made_from_the_index(tmp_path):
    assert run('readme.py', tmp_path).returncode == 0
    made = (tmp_path/'README.md').read_text(encoding='utf-8')
    assert made == (REPOSITORY/'README.md').read_text(encoding='utf-8'), 'run `make readme`'
    assert 'not for clinical use' in made.lower()


def test_no_website_with_real_data_at_hand(tmp_path):
    refused = run('build.py', tmp_path, CXR_DATA=str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.count('\n') == 1 and 'CXR_DATA' in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_atlas_shows_every_finding_beside_its_definition(site):
    from cxr_learn.findings import FINDINGS
    atlas = html.unescape((site/'atlas.html').read_text(encoding='utf-8'))
    assert 'Not for clinical use' in atlas
    for finding, definition in FINDINGS.items():
        if finding != 'normal': assert f'A chest without {finding}' in atlas and definition[1:30] in atlas, finding
    assert len(list((site/'_images').glob('*.jpg'))) >= len(FINDINGS) - 1
