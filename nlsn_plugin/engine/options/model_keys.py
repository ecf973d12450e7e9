"""Keys that only one model reads, of BasicSR's or of the user's own, found in its code."""

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
"""The sections that models read, and the schemas with the keys that are known in each."""
OF_THE_RUN = {'auto_resume', 'dist', 'is_train', 'rank', 'root_path', 'visualization', 'world_size'}
"""Keys that models read and that the run sets, not an option file."""


def own_keys(model_type: Any) -> list[Place]:
    """The keys that the code of a registered model and of its bases (not SRModel's) names and the schema lacks."""
    model = registered_in_basicsr(MODEL_REGISTRY, model_type) if isinstance(model_type, str) else None
    if not inspect.isclass(model):
        return []
    apart = [cls for cls in model.__mro__ if issubclass(cls, BaseModel) and cls not in SRModel.__mro__]
    places = {place for cls in apart for place in keys_named(cls)}
    known = {(section, key) for section, kinds in SECTIONS.items() for kind in kinds for key in kind.model_fields}
    return sorted(places - known)


def parted(options: Options) -> tuple[Options, dict[Place, Any]]:
    """Split the options of a file into those in the schema and those that only the model reads."""
    others = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    own = {}
    for section, key in own_keys(options.get('model_type')):
        held = others.get(section) if section else others
        if isinstance(held, dict) and key in held:
            own[section, key] = held.pop(key)
    return others, own


def together(options: Options, own: dict[Place, Any]) -> Options:
    """Put the options that `parted` has split back together; `options` is changed."""
    for (section, key), value in own.items():
        (options[section] if section else options)[key] = value
    return options


@functools.cache
def keys_named(cls: type) -> frozenset[Place]:
    """The keys that the source of a class reads.

    They are found in `opt['key']` and `self.opt.get('key')` and, in the forms that BasicSR uses for keys of a section,
    in `self.opt['train']['key']` and `train_opt.get('key')`.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # there is no source: compiled, or typed in
        return frozenset()
    places = (place_named(node) for node in ast.walk(tree))
    return frozenset(place for place in places if place and place[0] in SECTIONS and place[1] not in OF_THE_RUN)


def place_named(node: ast.AST) -> Place | None:
    """The key that an expression reads, with its section; None if it reads none."""
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
    """The section that an expression stands for ('' for the file itself); None if it stands for something else."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return '' if name == 'opt' else name.removesuffix('_opt') if name.endswith('_opt') else None
    place = place_named(node)
    return place[1] if place and place[0] == '' else None


@contextlib.contextmanager
def lacking_ones_named(opt: Options, option_file: Any) -> Iterator[None]:
    """Turn the KeyError of a model that reads a key missing from the option file into one line that names the key."""
    try:
        yield
    except KeyError as error:
        for section, key in own_keys(opt['model_type']):
            if error.args == (key,) and key not in ((opt.get(section) or {}) if section else opt):
                text = f'lacks the key {key}, which {opt["model_type"]} reads'
                raise OptionError(': '.join([str(option_file), *([section] if section else []), text])) from error
        raise
