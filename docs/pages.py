"""Turn a notebook into a page: what a reader should see of it, and nothing of the machinery."""
import os
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import nbformat
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_, hide_line, strip_ansi

from reference import linked, public_names, reference

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = REPOSITORY/'nbs'
INDEX = NOTEBOOKS/'index.ipynb'
KERNEL = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
NEEDS = {'slow': 'some minutes', 'cuda': 'a GPU', 'data': 'a real data set'}
UNDESCRIBED = 'Figure; the text around it says what it shows.'
WIDGET = 'application/vnd.jupyter.widget-view+json'


@cache
def chapters():
    "The notebooks that are chapters, in reading order."
    return sorted(NOTEBOOKS.glob('[0-9][0-9]*_*.ipynb'))


def topic(chapter):
    "`nbs/03_images.ipynb` is the chapter, the module and the page `images`."
    return chapter.stem.split('_', 1)[1]


def visible(notebook):
    "The cells that a reader sees, without their flags; these stay in `cell.directives_`."
    processor = NBProcessor(notebook, [hide_line, strip_ansi, clean_magics, hide_])
    processor.process()
    return [cell for cell in processor.nb.cells if cell.cell_type != 'raw' and cell.source.strip()
            and cell.directives_.get('include') != 'false']


def page(notebook, folder):
    "A notebook as Sphinx reads it from `folder`, where the pages are."
    cells = []
    for cell in visible(notebook):
        if cell.cell_type == 'code': cells += code_cells(cell, notebook)
        else: cells.append(markdown(linked(unfolded(relinked(cell.source, notebook, folder)))))
    if notebook != INDEX:
        source = f'[`nbs/{notebook.name}`](path:{seen_from(folder, notebook)})'
        cells.insert(1, note(f'This page is a notebook: {source}'))
    for number, cell in enumerate(cells): cell.id = f'cell-{number}'   # same notebook, same page
    return nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': KERNEL})


def code_cells(cell, notebook):
    "A code cell as the page shows it, after what has to be said before it."
    flags, tags, before = cell.directives_, [], []
    if needs := [what for flag, what in NEEDS.items() if flag in flags]:
        before.append(note(f"Needs {' and '.join(needs)}"))
    if flags.keys() & {'export', 'exports'} and (names := public_names(cell.source)):
        module = import_module(f'cxr_learn.{topic(notebook)}')
        before += [markdown(reference(module, name)) for name in names]
        tags.append('hide-input')
    if flags.get('echo') == 'false': tags.append('remove-input')
    outputs = [nbformat.from_dict(output) for output in cell.get('outputs', [])]
    still = [output for output in outputs if WIDGET not in output.get('data', {})]
    if len(still) < len(outputs): before.append(note('Interactive in the notebook'))
    look = {'image': {'alt': alternative(cell)},
            'code_prompt_show': '▸ Source', 'code_prompt_hide': '▾ Source'}
    shown = nbformat.v4.new_code_cell(cell.source, outputs=still)
    shown.metadata = {'tags': tags, 'mystnb': look}
    return [*before, shown]


def alternative(cell):
    "The words for those who cannot see the figure of a cell: `#| fig-alt: \"...\"`."
    return cell.directives_.get('fig-alt', UNDESCRIBED).strip('"')


def markdown(text): return nbformat.v4.new_markdown_cell(text)


def note(text): return markdown(f'{{.needs}}\n{text}')


def unfolded(text):
    "A folded answer is read as markdown between blank lines; its summary is HTML."
    def unfold(found):
        indent, summary, answer = found.groups()
        summary = re.sub('`(.*?)`', r'<code>\1</code>', summary)
        return f'{indent}{summary}\n\n{indent}{answer}\n\n{indent}</details>\n'
    return re.sub(r'^( *)(<details>.*?</summary>)\s*(.*?)\s*</details>', unfold, text,
                  flags=re.DOTALL | re.MULTILINE)


def relinked(text, notebook, folder):
    "Links to chapters lead to their pages, to other files to a download, to folders nowhere."
    pages = {INDEX: 'index', **{chapter: f'chapters/{topic(chapter)}' for chapter in chapters()}}

    def lead(words, file, anchor):
        if file in pages: return f'{words}(/{pages[file]}.ipynb{anchor.lower()})'
        if file.is_dir(): return words.strip('[]')
        return f"{words}({'' if words.startswith('!') else 'path:'}{seen_from(folder, file)})"
    return relink(text, notebook, lead)


def relink(text, notebook, lead):
    "Let `lead(words, file, anchor)` write each link of a notebook to a file that is there."
    def rewrite(link):
        file = (notebook.parent/link[2]).resolve()
        return lead(link[1], file, link[3] or '') if file.exists() else link[0]
    return re.sub(r'(!?\[[^\]]*\])\(([^)#:\s]+)(#[^)\s]*)?\)', rewrite, text)


def seen_from(folder, file):
    "A file's path as Sphinx wants it, where / is the folder of the pages."
    return '/' + os.path.relpath(file, folder)
