"""Shared by the tests: where the project is, and small cohorts to test on"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

def run(*command, **options):
    "Run a command with its output captured, quietly failing: the caller looks at `returncode`"
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, **options)

@pytest.fixture(scope='session')
def root(): return ROOT

@pytest.fixture(scope='session')
def chapters():
    "The chapters in reading order, by module name"
    return {path.stem.split('_', 1)[1]: path for path in sorted((ROOT/'nbs').glob('[0-9][0-9]*_*.ipynb'))}

@pytest.fixture(scope='session')
def command():
    "Run the installed `cxr_learn` command as a shell would"
    def call(*arguments, **options):
        return run(sys.executable, '-c', 'import sys; from cxr_learn.command_line import main; sys.exit(main())',
                   *arguments, **options)
    return call

@pytest.fixture(scope='session')
def real_data():
    "The folder of real radiographs, or a skip that says what is missing"
    folder = os.environ.get('CXR_DATA')
    if not folder: pytest.skip('CXR_DATA names no folder of real radiographs')
    path = ROOT/folder
    if not path.is_dir(): pytest.skip(f'CXR_DATA={folder}: no such folder')
    return path
