"""Read what the package is from settings.ini, so that it is written down once."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

settings = ConfigParser(default_section='-', interpolation=None)
settings.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
package = settings['DEFAULT']

def lines(text): return [line for line in text.splitlines() if line]

setup(
    version=package['version'],
    description=package['description'],
    author=package['author'],
    license=package['license'],
    python_requires='>=' + package['python'],
    install_requires=lines(package['requirements']),
    extras_require={name: lines(text) for name, text in settings['extras'].items()},
    entry_points={'console_scripts': [f'{name} = {target}' for name, target in settings['scripts'].items()]},
)
