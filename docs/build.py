"""Build the website from the notebooks: `python docs/build.py [folder]`, by default docs/_build.

The pages show the outputs that the notebooks hold; no cell is run."""
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import nbformat
from sphinx.cmd.build import main as sphinx

from atlas import build_atlas
from pages import INDEX, chapters, markdown, page, topic

DOCS = Path(__file__).resolve().parent
PARTS = {'I Data': range(0, 5), 'II Measuring': range(5, 7), 'III Models': range(7, 12),
         'IV Judgement': range(12, 15), 'V Studies': range(15, 18), 'VI Out there': range(18, 21)}


def main(target=DOCS/'_build'):
    "Write the pages to `target`/pages and the website to `target`/html; the exit code is Sphinx's."
    if 'CXR_DATA' in os.environ:
        print('CXR_DATA is set: a page could show a patient; unset it, then build', file=sys.stderr)
        return 2
    warnings.simplefilter('ignore', FutureWarning)   # from the libraries that the chapters import
    target = Path(target).resolve()
    folder, start = target/'pages', time.perf_counter()
    sources = {folder/'chapters'/f'{topic(chapter)}.ipynb': chapter for chapter in chapters()}
    if any(old not in sources for old in folder.glob('chapters/*')):
        for made in 'pages', 'doctrees', 'html':   # Sphinx would keep the page of a chapter that is gone
            shutil.rmtree(target/made, ignore_errors=True)
    for place, chapter in sources.items():
        write(place, nbformat.writes(page(chapter, folder)))
        report(start, f'page chapters/{place.stem}')
    write(folder/'index.ipynb', nbformat.writes(front_page(folder)))
    write(folder/'atlas.md', build_atlas(folder))
    report(start, 'page atlas')
    write(folder/'glossary.md', (DOCS/'glossary.md').read_text(encoding='utf-8'))
    code = sphinx(['-q', '-W', '--keep-going', '-c', str(DOCS), '-d', str(target/'doctrees'),
                   str(folder), str(target/'html')])
    if code: shutil.rmtree(target/'doctrees')   # or the next build would pass over what is wrong
    report(start, 'website: see the warnings' if code else f"website {target/'html'/'index.html'}")
    return code


def front_page(folder):
    "The index notebook, with the chapters for the sidebar."
    front = page(INDEX, folder)
    contents = markdown('\n\n'.join(sidebar()))
    front.cells.append(contents)
    contents.id = 'sidebar'
    return front


def sidebar():
    "One list of pages per part that has a chapter, then what is not a chapter."
    number = {chapter: int(chapter.name[:2]) for chapter in chapters()}
    for part, numbers in PARTS.items():
        names = [f'chapters/{topic(chapter)}' for chapter in number if number[chapter] in numbers]
        if names: yield contents(part, names)
    yield contents('To look up', ['atlas', 'glossary', 'Functions and terms <genindex>'])


def contents(caption, names):
    return '\n'.join(['```{toctree}', f':caption: {caption}', ':hidden:', '', *names, '```'])


def write(path, text):
    "Leave a file alone that would not change, so that Sphinx does not read it again."
    if path.exists() and path.read_text(encoding='utf-8') == text: return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def report(start, what): print(f'{time.perf_counter() - start:5.1f} s  {what}', flush=True)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
