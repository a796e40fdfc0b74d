"""Typeset formulas while the website is built, so that a page needs no script to show them."""
import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)


def typeset(node, display):
    latex = node.astext()
    # the converter knows this environment by one of its names only
    formula = convert(latex.replace('{aligned}', '{align*}'), display=display)
    if re.search(r'\\|>&<', formula):   # what it does not know, it lets through
        logger.warning('cannot typeset %s', latex, location=node)
    return formula


def visit_inline(writer, node):
    writer.body.append(typeset(node, 'inline'))
    raise nodes.SkipNode


def visit_block(writer, node):
    writer.body.append(f'<div class="math">{typeset(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer('mathml', (visit_inline, None), (visit_block, None))
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
