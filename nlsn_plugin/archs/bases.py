"""Networks of the toolboxes by name, on which WithNLSA builds."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from nlsn_plugin import checks
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.errors import FAILURES, ArgumentError, MissingToolboxError, first_line

Options = dict[str, Any]
BASICSR_SUFFIX = '_basicsr'
"""Suffix of some names in BasicSR's registry, which finds them without it too."""


def innermost(network: Options) -> Options:
    """The type and arguments of the network that enlarges: `network` itself, or the arch of a WithNLSA."""
    arch = network.get('arch')
    return arch if isinstance(arch, dict) else network


def completed(network: Options, usual: Options) -> Options:
    """Add to a network's arguments, or to those of WithNLSA's arch, the ones in `usual` that it takes and lacks."""
    if isinstance(network.get('arch'), dict):
        return {**network, 'arch': completed(network['arch'], usual)}
    try:
        taken = inspect.signature(base_class(str(network.get('type')))).parameters
    except ArgumentError:  # building the network will raise it
        return network
    return {**{name: value for name, value in usual.items() if name in taken}, **network}


def misfits(arch: Options) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each error in a network's type and arguments, after the path of the key; nothing is built."""
    name = arch.get('type')
    if not isinstance(name, str):
        yield (), "lacks the key type: {'type': 'EDSR', ...} is expected"
        return
    try:
        cls = base_class(name)
    except ArgumentError as error:
        yield ('type',), str(error)
        return
    for key, text in checks.misfits(cls, [key for key in arch if key != 'type']):
        yield (() if key is None else (key,)), text


def base_class(name: str) -> type[nn.Module]:
    """Find a network's class in BasicSR's ARCH_REGISTRY, or else in mmengine's MODELS.

    A scope, as in 'mmagic.EDSRNet', selects a child registry of mmengine's.

    Raises:
        ArgumentError: neither has such a network; the message suggests the nearest name.
    """
    if not isinstance(name, str):
        raise ArgumentError(f'type={name!r} is not allowed: the name of a network is expected')
    known: list[str] = []
    absent: list[str] = []
    for toolbox, find in (('basicsr', find_in_basicsr), ('mmengine', find_in_mmengine)):
        try:
            load_toolbox(toolbox)
            found, names = find(name)
        except MissingToolboxError as error:
            absent.append(str(error))
            continue
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
        if found is not None:
            raise ArgumentError(f'{name} is no network')
        known += names
    hint = checks.nearest(name, set(known))
    own = [] if hint.endswith('?') else ['a module that registers one of your own has to be imported (--import MODULE)']
    raise ArgumentError('; '.join([f'no network {name}{hint}', *own, *absent]))


def find_in_basicsr(name: str) -> tuple[type[nn.Module] | None, list[str]]:
    """Return the class of this name, None if there is none, and all names in BasicSR's registry."""
    from basicsr.utils.registry import ARCH_REGISTRY

    return registered_in_basicsr(ARCH_REGISTRY, name), list(ARCH_REGISTRY.keys())


def registered_in_basicsr(registry: Any, name: str) -> Any:
    """Look up a name, with or without BASICSR_SUFFIX, in a registry of BasicSR's; None if it is absent."""
    found = [known for known in (name, name + BASICSR_SUFFIX) if known in registry]
    return registry.get(found[0]) if found else None


def find_in_mmengine(name: str) -> tuple[type[nn.Module] | None, list[str]]:
    """Return the class of this name, None if there is none, and the names in the default scope and the root."""
    from mmengine.registry import MODELS

    with MODELS.switch_scope_and_registry(None) as registry:
        return registered_in_mmengine(registry, name), [*registry.module_dict, *MODELS.module_dict]


def registered_in_mmengine(registry: Any, name: str) -> Any:
    """Look up a name in an mmengine registry, its ancestors or another scope ('mmagic.EDSRNet'); None if absent.

    Registry.get would also import whatever the name denotes, even `os.system`, and names may come from untrusted files.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    scope, own = registry.split_scope_key(name)
    if scope is not None and scope != registry.scope:
        if scope in MODULE2PACKAGE and importlib.util.find_spec(scope):  # one of OpenMMLab's, and installed
            try:
                importlib.import_module(f'{scope}.registry')
            except FAILURES as error:  # some refuse newer versions of other packages
                raise MissingToolboxError(f'{scope} does not import: {first_line(error)}') from error
        root = registry
        while root.parent is not None:
            root = root.parent
        registry = next((each for each in below(root) if each.scope == scope), None)
    while registry is not None:
        try:
            registry.import_from_location()
        except FAILURES as error:
            raise MissingToolboxError(f'the networks of {registry.scope} do not import: {first_line(error)}') from error
        if own in registry.module_dict:
            return registry.module_dict[own]
        registry = registry.parent
    return None


def below(registry: Any) -> Iterator[Any]:
    """Yield a registry of mmengine's and all its descendants."""
    yield registry
    for child in registry.children.values():
        yield from below(child)


def build_base(arch: Options) -> nn.Module:
    """Build a network from its type and arguments.

    Raises:
        ArgumentError: there is no such network, or it does not take or refuses its arguments.
    """
    arch = dict(checks.mapping('arch', arch))
    for keys, text in misfits(arch):
        raise ArgumentError(': '.join(['arch', *keys, text]))
    name = arch.pop('type')
    try:
        return base_class(name)(**arch)
    except ArgumentError as error:
        raise ArgumentError(f'arch: {error}') from error
    except FAILURES as error:
        raise ArgumentError(f'arch: {name} cannot be built: {first_line(error)}') from error
