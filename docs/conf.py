"""Sphinx's settings. Nothing on a page comes from another host: no font, no script, no badge."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))   # for mathml

project = html_title = 'cxr_learn'
author = 'The cxr_learn authors'
copyright = author

extensions = ['myst_nb', 'sphinx_copybutton', 'mathml']
html_math_renderer = 'mathml'
suppress_warnings = ['myst.header']   # a chapter may step from its title to a third-level heading

# The notebooks hold their outputs; the website shows them and runs nothing.
nb_execution_mode = 'off'
nb_output_stderr = 'remove'
nb_merge_streams = True
nb_render_markdown_format = 'gfm'
nb_ipywidgets_js = {}   # would come from a content network; widgets live in the notebooks
myst_enable_extensions = ['attrs_block', 'attrs_inline', 'colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3

add_module_names = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = 'hide'

html_theme = 'furo'
html_theme_options = {
    'announcement': 'A course about method. <strong>Not for clinical use.</strong>',
    'top_of_page_buttons': [],
}
html_static_path = ['_static']
html_css_files = ['course.css']
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
copybutton_exclude = '.linenos, .gp, .go'
