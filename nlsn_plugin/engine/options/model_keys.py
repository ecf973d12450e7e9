"""Keys that a model of BasicSR's or of the user's own reads besides those that all read: found in its code."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from pydantic import BaseModel as Section

from nlsn_plugin.archs.bases import registered_in_basicsr
from nlsn_plugin.engine.options.schema import Path, TestOptions, Train, TrainingOptions, TrainingValidation
from nlsn_plugin.errors import OptionError

Options = dict[str, Any]
Place = tuple[str, str]
"""A section ('' for the file itself) and a key in it."""
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    '': (TrainingOptions, TestOptions),
    'path': (Path,),
    'train': (Train,),
    'val': (TrainingValidation,),
}
"""Those that models read, and the keys that all may have there."""
OF_THE_RUN = {'auto_resume', 'dist', 'is_train', 'rank', 'root_path', 'visualization', 'world_size'}
"""What models read and no option file says."""


def own_keys(model_type: Any) -> list[Place]:
    """The keys that the code of a registered model names, and of what it comes from, but for the schema's."""
    model = registered_in_basicsr(MODEL_REGISTRY, model_type) if isinstance(model_type, str) else None
    if not inspect.isclass(model):
        return []
    apart = [cls for cls in model.__mro__ if issubclass(cls, BaseModel) and cls not in SRModel.__mro__]
    places = {place for cls in apart for place in keys_named(cls)}
    known = {(section, key) for section, kinds in SECTIONS.items() for kind in kinds for key in kind.model_fields}
    return sorted(places - known)


def parted(options: Options) -> tuple[Options, dict[Place, Any]]:
    """Options as in a file, without those that the model alone reads; and these."""
    others = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    own = {}
    for section, key in own_keys(options.get('model_type')):
        held = others.get(section) if section else others
        if isinstance(held, dict) and key in held:
            own[section, key] = held.pop(key)
    return others, own


def together(options: Options, own: dict[Place, Any]) -> Options:
    """The options that `parted` parted."""
    for (section, key), value in own.items():
        (options[section] if section else options)[key] = value
    return options


@functools.cache
def keys_named(cls: type) -> frozenset[Place]:
    """The keys in the source of a class: `opt['key']`, `self.opt.get('key')`, and as BasicSR writes those of a section,
    `self.opt['train']['key']` and `train_opt.get('key')`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # compiled, or typed in
        return frozenset()
    places = (place_named(node) for node in ast.walk(tree))
    return frozenset(place for place in places if place and place[0] in SECTIONS and place[1] not in OF_THE_RUN)


def place_named(node: ast.AST) -> Place | None:
    """The key that an expression reads, with its section."""
    match node:
        case ast.Subscript(value=owner, slice=ast.Constant(value=str(key))):
            pass
        case ast.Call(func=ast.Attribute(value=owner, attr='get'), args=[ast.Constant(value=str(key)), *_]):
            pass
        case ast.Compare(left=ast.Constant(value=str(key)), ops=[ast.In() | ast.NotIn()], comparators=[owner]):
            pass
        case _:
            return None
    section = section_named(owner)
    return None if section is None else (section, key)


def section_named(node: ast.expr) -> str | None:
    """The section that an expression stands for; None if it is of something else."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return '' if name == 'opt' else name.removesuffix('_opt') if name.endswith('_opt') else None
    place = place_named(node)
    return place[1] if place and place[0] == '' else None


@contextlib.contextmanager
def lacking_ones_named(opt: Options, option_file: Any) -> Iterator[None]:
    """Say in one line which key a model reads that the option file lacks."""
    try:
        yield
    except KeyError as error:
        for section, key in own_keys(opt['model_type']):
            if error.args == (key,) and key not in ((opt.get(section) or {}) if section else opt):
                text = f'lacks the key {key}, which {opt["model_type"]} reads'
                raise OptionError(': '.join([str(option_file), *([section] if section else []), text])) from error
        raise
