"""Transfer learning for chest radiographs: a course that is a library. Not for clinical use."""
from importlib.metadata import version

__version__ = version('cxr_learn')
