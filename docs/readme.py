"""Write README.md from nbs/index.ipynb: `make readme`, or `python docs/readme.py [folder]`."""
import os
import shutil
import sys
from base64 import b64decode
from pathlib import Path

from pages import INDEX, REPOSITORY, alternative, relink, visible

ORIGIN = '<!-- made from nbs/index.ipynb by `make readme`: edit the notebook, not this file -->'


def main(folder=REPOSITORY):
    images = Path(folder)/'docs'/'images'
    shutil.rmtree(images, ignore_errors=True)   # figures that the notebook no longer has
    parts = [part for cell in visible(INDEX) for part in as_markdown(cell, images)]
    Path(folder, 'README.md').write_text('\n\n'.join([ORIGIN, *parts]) + '\n', encoding='utf-8')


def as_markdown(cell, images):
    "A cell as GitHub shows it; figures go to the folder `images`."
    if cell.cell_type == 'markdown':
        yield relink(cell.source, INDEX, from_readme)
        return
    if cell.directives_.get('echo') != 'false': yield fenced(cell.source, 'python')
    for number, output in enumerate(cell.get('outputs', [])):
        data = output.get('data', {})
        if output.output_type == 'error' or output.get('name') == 'stderr': continue
        if 'image/png' in data:
            image = images/f'{cell.id}-{number}.png'
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(b64decode(data['image/png']))
            yield f'![{alternative(cell)}](docs/images/{image.name})'
        elif 'text/markdown' in data: yield data['text/markdown']
        else: yield fenced(data.get('text/plain') or output.text)


def fenced(text, language=''): return f'```{language}\n{text.rstrip()}\n```'


def from_readme(words, file, anchor): return f'{words}({os.path.relpath(file, REPOSITORY)}{anchor})'


if __name__ == '__main__': main(*sys.argv[1:])
