"""Document what a chapter exports: signature, docstring, table of parameters."""
import ast
import inspect
import re
from operator import attrgetter

from fastcore.docments import docments, docstring
from nbdev.showdoc import showdoc_nm

from cxr_learn._modidx import d as index

EMPTY = inspect.Parameter.empty
DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
LONGEST_DEFAULT = 24   # characters; a longer one would be a column of single words
# fences, the line above a folded answer, and what is a link or a role already
NOT_PROSE = r'^ *(?P<fence>`{3,}).*?^ *(?P=fence)|<summary>.*?</summary>|\[`[^`]*`\]|\}`[^`]*`'
NAME = r'`(?P<name>[\w.]+)(?:\(\))?`'


def public_names(source):
    "What a cell defines for others; a method patched onto a class is `Class.method`."
    return [showdoc_nm(node) for node in ast.parse(source).body
            if isinstance(node, DEFINITIONS) and not node.name.startswith('_')]


def reference(module, name):
    "The entry of one function or class, as a directive of Sphinx's Python domain."
    item = attrgetter(name)(module)
    kind = 'class' if inspect.isclass(item) else 'method' if '.' in name else 'function'
    return '\n'.join([f':::::{{py:{kind}}} {name}{signature(item)}', f':module: {module.__name__}', '',
                      linked(docstring(item)), '', parameter_table(item), ':::::'])


class Written:
    "A default value that prints as it was written: a function by its name."
    def __init__(self, default): self.default = default
    def __repr__(self): return getattr(self.default, '__name__', None) or repr(self.default)


def signature(item):
    "Names and defaults alone, the types are in the table; nothing where a parent class says it."
    if inspect.isclass(item) and not vars(item).keys() & {'__init__', '__new__'}: return ''
    full = inspect.signature(item)
    bare = [parameter.replace(annotation=EMPTY) if parameter.default is EMPTY else
            parameter.replace(annotation=EMPTY, default=Written(parameter.default))
            for name, parameter in full.parameters.items() if name != 'self']
    return str(full.replace(parameters=bare, return_annotation=EMPTY))


def parameter_table(item):
    "One row per parameter and one for the result; empty where the code says nothing about them."
    entries = {name: entry for name, entry in docments(item, full=True).items()
               if name != 'self' and (name != 'return' or entry.docment or type_name(entry.anno))}
    if not any(entry.docment for entry in entries.values()): return ''
    names = ['*result*' if name == 'return' else f'`{name}`' for name in entries]
    columns = {'Name': names, 'Type': [type_name(entry.anno) for entry in entries.values()],
               'Default': [default(entry.default) for entry in entries.values()],
               'Details': [entry.docment or '' for entry in entries.values()]}
    filled = [[title, '---', *fields] for title, fields in columns.items() if any(fields)]
    return '\n'.join(map(table_row, zip(*filled)))


def table_row(fields):
    return '| ' + ' | '.join(' '.join(field.split()).replace('|', r'\|') for field in fields) + ' |'


def type_name(annotation):
    "`collections.abc.Sequence[str]` is read more easily as `Sequence[str]`."
    if annotation in (EMPTY, None, type(None)): return ''   # not said, or read off a default of None
    return f"`{re.sub(r'[A-Za-z_][A-Za-z_0-9.]*[.]', '', inspect.formatannotation(annotation))}`"


def default(value):
    if value is EMPTY: return ''
    text = repr(Written(value))
    return f'`{text}`' if len(text) <= LONGEST_DEFAULT else 'see above'


def linked(text):
    "Prose in which `name` leads to the entry of what this library calls so."
    entries = {symbol.removeprefix(f'{module}.'): symbol
               for module, symbols in index['syms'].items() for symbol in symbols}

    def link(found):
        name = found['name']
        return f'{{py:obj}}`{name} <{entries[name]}>`' if name in entries else found[0]
    return re.sub(f'{NOT_PROSE}|{NAME}', link, text, flags=re.DOTALL | re.MULTILINE)
