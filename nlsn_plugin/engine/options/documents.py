"""Option files: found, and read without executing anything."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import yaml

import nlsn_plugin
from nlsn_plugin.checks import nearest
from nlsn_plugin.engine.names import one_line
from nlsn_plugin.engine.options.values import load
from nlsn_plugin.errors import OptionError, UserError
from nlsn_plugin.files import is_dir, is_file, write_text

Options = dict[str, Any]
Keys = tuple[str, ...]
"""The place of a key in an option file, such as ('train', 'optim_g', 'lr')."""
BASE = '_base_'
OVERRIDES = 'NLSN_FORCE_YML'
"""Environment variable with KEY=VALUE ..., as for --force_yml, which takes precedence over it."""


def shipped_options() -> Path:
    """The folder of the option files that come with the plugin: inside an installed package, beside it in a clone."""
    package = Path(nlsn_plugin.__file__).parent
    inside = package / 'options'
    return inside if inside.is_dir() else package.parent / 'options'


def find_option_file(name: str) -> Path:
    """The option file of this path, or else the shipped one of this name (its folders and `.yml` may be left out)."""
    path = Path(name)
    if is_file(path):
        return path
    if is_dir(path):
        raise UserError(f'{name} is a folder: name the option file in it')
    return find_shipped(name)


def find_shipped(name: str) -> Path:
    """The shipped option file of this name.

    Raises:
        UserError: there is none, or several folders have one.
    """
    folder = shipped_options()
    shipped = {str(path.relative_to(folder)): path for path in sorted(folder.rglob('*.yml'))}
    wanted = name.removesuffix('.yml').removeprefix('options/') + '.yml'
    if wanted in shipped:
        return shipped[wanted]
    named = [path for path in shipped.values() if path.name == wanted]  # in a folder of options/
    if len(named) == 1:
        return named[0]
    of_paper = wanted.startswith('paper/')
    alike = [other for other in shipped if other.startswith('paper/') == of_paper]
    raise UserError(f'there is no option file {name}{nearest(wanted if of_paper else Path(wanted).name, alike)}')


class Document:
    """An option file, with the line of each of its keys.

    `_base_: FILE` takes over the keys of another file, which the keys of this file change or add to. FILE is looked for
    beside this file, then by its name among the shipped ones. A section (network_g, say) that names another class than
    in the base is taken as it stands here, without the base's arguments.

    Raises:
        OptionError: the file is no YAML of keys and values, has a key twice, or names a base that is not there.
    """

    def __init__(self, path: Path, above: tuple[Path, ...] = ()) -> None:
        self.path = path
        self.lines: dict[Keys, str] = {}
        """File and line of each key, as messages name them."""
        try:
            node = yaml.compose(path.read_text(encoding='utf-8-sig'), Loader=yaml.SafeLoader)
            self.note_lines(node, ())
            self.options = load(path.read_text(encoding='utf-8-sig'))
        except RecursionError as error:
            raise OptionError(f'{path} holds a part that is in itself') from error
        except UnicodeDecodeError as error:
            raise OptionError(f'{path} is not UTF-8 text: {error.reason} at byte {error.start}') from error
        except yaml.YAMLError as error:
            mark = getattr(error, 'problem_mark', None)
            line = f', line {mark.line + 1}' if mark else ''
            reason = getattr(error, 'problem', None) or ' '.join(str(error).split())
            raise OptionError(f'{path}{line}: {reason}') from error
        if not isinstance(self.options, dict):
            held = 'nothing' if self.options is None else type(self.options).__name__
            raise OptionError(f'{path} holds {held}: keys and values are expected')
        self.is_based = BASE in self.options
        if self.is_based:
            self.take_over(self.options.pop(BASE), (*above, path.resolve()))

    def take_over(self, name: Any, above: tuple[Path, ...]) -> None:
        """Add the keys of the base called `name` that this file does not set; `above` are the files based on it."""
        where = self.where((BASE,))
        path = Path(str(name)).expanduser()
        base = self.path.parent / path
        if not is_file(base):
            try:  # by name alone, as a copy of a shipped file may lie anywhere; but not if FILE names another folder
                base = find_shipped(path.name if {*path.parts[:-1]} <= {'..'} else str(path))
            except UserError as error:
                raise OptionError(f'{where}: {BASE}: there is no file {base}, and {error}') from error
        if base.resolve() in above:
            raise OptionError(f'{where}: {BASE}: {base} is based on this file itself')
        document = Document(base, above)
        self.options = merged(document.options, self.options)
        self.lines = {**document.lines, **self.lines}

    def note_lines(self, node: yaml.Node | None, above: Keys) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            place = *above, str(key.value)
            where = f'{self.path}, line {key.start_mark.line + 1}'
            if place in self.lines:
                line = self.lines[place].removeprefix(f'{self.path}, ')
                raise OptionError(f'{where}: {": ".join(place)} stands on {line} already')
            self.lines[place] = where
            self.note_lines(value, place)

    def override(self, entry: str, source: str = '--force_yml') -> None:
        """Set what KEY:KEY=VALUE says; `source` is the command-line option or environment variable that has it."""
        said = f'{source} {entry}'
        name, _, text = entry.partition('=')
        keys = tuple(key.strip() for key in name.split(':'))
        if not all(keys) or not text.strip():
            raise OptionError(f'{said}: KEY=VALUE is expected, such as train:total_iter=100')
        try:
            value = None if text.strip().lower() == 'none' else load(text)
        except yaml.YAMLError as error:
            raise OptionError(f'{said}: {text} is no value') from error
        section = self.options
        for number, key in enumerate(keys[:-1]):
            section = section.setdefault(key, {})
            self.lines.setdefault(keys[: number + 1], said)
            if not isinstance(section, dict):
                raise OptionError(f'{said}: {": ".join(keys[: number + 1])} is no section')
        if value is None and keys[0] == 'datasets' and len(keys) == 2 and keys[1] in section:
            del section[keys[1]]  # none removes a data set
        else:
            section[keys[-1]] = value
        self.lines[keys] = said

    def where(self, keys: Keys) -> str:
        """The line of a key, or of the nearest section above if the key is not there."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines[keys] if keys else str(self.path)


def merged(base: Options, changes: Options) -> Options:
    """Merge `changes` into `base`: sections recursively, while lists and sections of another class are replaced."""
    together = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not is_other_class(old, value):
            value = merged(old, value)
        together[key] = value
    return together


def is_other_class(base: Options, changes: Options) -> bool:
    """Whether a section names another class than the base's section, whose arguments then do not apply."""
    return 'type' in changes and 'type' in base and changes['type'] != base['type']


def keep_copy(option_file: Path, folder: Path) -> None:
    """Copy an option file as BasicSR does, headed by the command line; a file with a base is merged with it."""
    if option_file.resolve().parent == folder.resolve():  # it is the copy itself
        return
    document = Document(option_file)
    whole = document.is_based and yaml.safe_dump(document.options, sort_keys=False)
    text = whole or option_file.read_text(encoding='utf-8-sig')
    header = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {one_line(" ".join(sys.argv))}\n\n'
    write_text(folder / option_file.name, header + text)
