"""The house stands: chapters in order, modules in sync, settings live"""
import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import run

LIMIT = 400 * 1024  # bytes of a notebook

def imports_of(module_file):
    "The modules of this package that a module imports"
    for node in ast.walk(ast.parse(module_file.read_text())):
        if isinstance(node, ast.ImportFrom):
            name = (node.module or '')
            if node.level: yield name.split('.')[0] if name else None
            elif name.startswith('cxr_learn.'): yield name.split('.')[1]

def test_a_chapter_imports_only_from_chapters_before_it(root, chapters):
    order = list(chapters)
    assert order, 'no chapters found'
    for position, module in enumerate(order):
        for imported in imports_of(root/'cxr_learn'/f'{module}.py'):
            assert imported is None or imported in order[:position], f'{module} imports {imported}, which comes later'

def test_every_chapter_exports_the_module_of_its_name(root, chapters):
    modules = {path.stem for path in (root/'cxr_learn').glob('*.py') if not path.stem.startswith('_')}
    assert modules == set(chapters)

def cells(notebook): return json.loads(notebook.read_text(encoding='utf-8'))['cells']

def source(cell): return ''.join(cell['source'])

def test_chapters_keep_the_frame(chapters):
    for module, notebook in chapters.items():
        text = '\n'.join(source(cell) for cell in cells(notebook) if cell['cell_type'] == 'markdown')
        for part in ('**You will**', '**Needs**', 'ot for clinical use', '## Summary', '## Check yourself', '## Exercises'):
            assert part in text, f'{module} lacks {part}'

def test_the_chapter_table_is_complete(root, chapters):
    index = (root/'nbs/index.ipynb').read_text(encoding='utf-8')
    assert [name for name in re.findall(r'\| \[.*?\]\((\d\d[a-z]?_\w+)\.ipynb\)', index)] == [p.stem for p in chapters.values()]

def test_notebooks_are_small_and_without_machine_paths(root):
    for notebook in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in notebook.parts: continue
        assert notebook.stat().st_size < LIMIT, f'{notebook.name} is too large'
        outputs = json.dumps([cell.get('outputs') for cell in cells(notebook)])
        assert not re.search(r'/(?:home|Users|root|tmp)/', outputs), f'a path of a machine in {notebook.name}'
        assert 'Traceback' not in outputs, f'a saved error in {notebook.name}'

def test_no_cell_mixes_imports_and_work(chapters):
    "The website's build runs cells with imports: a training among them would run too"
    for module, notebook in chapters.items():
        for cell in cells(notebook):
            if cell['cell_type'] != 'code' or '#| export' in source(cell): continue
            kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source(cell)).body}
            assert kinds != {True, False}, f'{module}: {source(cell)[:80]}'

@pytest.fixture(scope='module')
def rebuilt(root, tmp_path_factory):
    "A copy of the project, exported and cleaned anew"
    copy = tmp_path_factory.mktemp('rebuilt')/'cxr_learn'
    skip = shutil.ignore_patterns('.venv', '.git', 'results', '_build', 'weights', '__pycache__', '.ipynb_checkpoints', '*.egg-info')
    shutil.copytree(root, copy, ignore=skip)
    for tool in ('nbdev-export', 'nbdev-clean'):
        done = run(Path(sys.executable).parent/tool, cwd=copy)
        assert done.returncode == 0, done.stderr
    return copy

def test_modules_are_in_sync_with_the_notebooks(root, rebuilt):
    for module in (root/'cxr_learn').glob('*.py'):
        assert module.read_text() == (rebuilt/'cxr_learn'/module.name).read_text(), f'run nbdev-export: {module.name}'

def test_notebooks_are_clean(root, rebuilt):
    for notebook in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in notebook.parts: continue
        assert cells(notebook) == cells(rebuilt/notebook.relative_to(root)), f'run nbdev-clean: {notebook.name}'

def test_flagged_cells_are_skipped(root, tmp_path):
    "A cell that needs a GPU, real data or an hour must not run in a plain test"
    flags = tomllib.loads((root/'pyproject.toml').read_text())['tool']['nbdev']['tst_flags'].split()
    assert {'cuda', 'slow', 'data'} <= set(flags)
    notebook = dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
        dict(cell_type='code', id=flag, metadata={}, outputs=[], execution_count=None, source=f'#| {flag}\nraise SystemError')
        for flag in flags])
    (tmp_path/'flagged.ipynb').write_text(json.dumps(notebook))
    test = 'from nbdev.test import test_nb; import sys; sys.exit(not test_nb(sys.argv[1], skip_flags={}, profile=False)[0])'
    assert run(sys.executable, '-c', test.format(flags), tmp_path/'flagged.ipynb', cwd=root).returncode == 0
    assert run(sys.executable, '-c', test.format([]), tmp_path/'flagged.ipynb', cwd=root).returncode != 0

def build_wheel(project, target):
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(target)!r}))"
    done = run(sys.executable, '-c', code, cwd=project)
    assert done.returncode == 0, done.stderr
    return target/done.stdout.split()[-1]

@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    "A wheel built from a copy of the sources"
    folder = tmp_path_factory.mktemp('wheel')
    skip = shutil.ignore_patterns('.venv', '.git', 'results', '_build', '__pycache__', '.ipynb_checkpoints', '*.egg-info')
    shutil.copytree(root, folder/'sources', ignore=skip)
    return build_wheel(folder/'sources', folder)

def metadata(wheel_file):
    with zipfile.ZipFile(wheel_file) as wheel:
        names = wheel.namelist()
        read = lambda ending: wheel.read(next(n for n in names if n.endswith(ending))).decode()
        return names, read('METADATA'), read('entry_points.txt')

def test_the_settings_reach_the_wheel(root, wheel):
    settings = configparser.ConfigParser(default_section='-', interpolation=None)
    settings.read(root/'settings.ini')
    package = settings['DEFAULT']
    assert tomllib.loads((root/'pyproject.toml').read_text())['project']['name'] == package['name']
    names, meta, commands = metadata(wheel)
    assert f"Version: {package['version']}" in meta and f"Summary: {package['description']}" in meta
    for requirement in package['requirements'].split(): assert f"Requires-Dist: {requirement.split('>')[0]}" in meta
    for extra in settings['extras']: assert f'Provides-Extra: {extra}' in meta
    assert 'cxr_learn = cxr_learn.command_line:main' in commands
    assert any(name.endswith('resnet18_tiny_imagenet.safetensors') for name in names)

def test_a_change_of_the_settings_changes_the_wheel(root, wheel, tmp_path):
    sources = tmp_path/'sources'
    shutil.copytree(wheel.parent/'sources', sources, ignore=shutil.ignore_patterns('build', '*.egg-info', '*.safetensors'))
    text = (sources/'settings.ini').read_text()
    text = re.sub(r'(?m)^version = .*', 'version = 7.8.9', text).replace('    pillow>=11\n', '    pillow>=11\n    einops>=0.8\n')
    (sources/'settings.ini').write_text(text)
    changed = build_wheel(sources, tmp_path)
    assert changed.name.startswith('cxr_learn-7.8.9')
    assert 'einops>=0.8' in metadata(changed)[1]

def test_a_wheel_apart_from_the_sources_runs_the_demo(wheel, tmp_path):
    "As on another machine: the wheel and its command in an environment that sees only the installed libraries"
    environment = tmp_path/'environment'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', environment], check=True)
    python = environment/'bin/python'
    site = next((environment/'lib').glob('python*/site-packages'))
    (site/'libraries.pth').write_text(next(path for path in sys.path if path.endswith('site-packages')))  # torch once, not twice
    installed = run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel)
    assert installed.returncode == 0, installed.stderr
    done = run(environment/'bin/cxr_learn', 'demo', '--tiny', '--out', tmp_path/'out', cwd=tmp_path, env={'PATH': '', 'HOME': str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path/'out/report.html').exists() and 'report.html' in done.stdout
    where = run(python, '-c', 'import cxr_learn; print(cxr_learn.__file__)', cwd=tmp_path).stdout
    assert str(environment) in where

def test_the_shipped_weights_are_those_of_the_card():
    import hashlib
    from cxr_learn.transfer import SHIPPED_FILE, body_weights, shipped_card
    assert hashlib.sha256(SHIPPED_FILE.read_bytes()).hexdigest() == shipped_card()['sha256']
    assert len(body_weights('resnet18', 'shipped')) == 120
