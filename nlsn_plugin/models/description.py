"""What network a file holds: its class and arguments, from the names of its weights, its metadata and the caller."""

from __future__ import annotations

import inspect
import json
import logging
from dataclasses import dataclass, field
from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.archs import NLSN
from nlsn_plugin.archs.nlsn_arch import foreign_means
from nlsn_plugin.errors import ArgumentError, CheckpointError
from nlsn_plugin.models import recognition
from nlsn_plugin.models.checkpoint import Metadata, Stored, Weights

Arguments = dict[str, Any]

log = logging.getLogger('nlsn_plugin')

OF_THE_RUN = ('backend', 'checkpointing')
"""Arguments that change what a network costs and not what it computes: no file keeps them."""


@dataclass(frozen=True)
class Description:
    """A network's class and arguments, kept by source; if several sources give an argument, the one
    further down this list counts.

    Attributes:
        type: the name of its class.
        assumed: arguments that nothing tells, taken from the released networks.
        inferred: arguments that names and shapes of the weights tell.
        stored: arguments in the file's metadata.
        given: arguments given by the caller.
    """

    type: str
    assumed: Arguments = field(default_factory=dict)
    inferred: Arguments = field(default_factory=dict)
    stored: Arguments = field(default_factory=dict)
    given: Arguments = field(default_factory=dict)

    @property
    def arguments(self) -> Arguments:
        return {**self.assumed, **self.inferred, **self.stored, **self.given}

    @property
    def metadata(self) -> Metadata:
        """To be stored: without what belongs to the run."""
        return {'type': self.type, 'arguments': complete(self.type, self.arguments)}


def warn_of_assumed(description: Description, path: object) -> None:
    """Log what was taken for granted, if anything was."""
    if assumed := description.assumed:
        listed = ', '.join(f'{name}={value!r}' for name, value in assumed.items())
        log.warning('%s does not say %s: taken as released, %s', path, ', '.join(assumed), listed)


def describe(stored: Stored, path: object, given: Arguments, kind: str | None = None) -> Description:
    """What network a file holds.

    Args:
        stored: what was read.
        path: from where, for messages.
        given: arguments that the caller knows.
        kind: the class, if the caller knows it.

    Raises:
        CheckpointError: the file's metadata contradict its weights, or nothing says what network it is.
        ArgumentError: `given` or `kind` contradicts them, or the network takes no such arguments.
    """
    metadata = stored.metadata
    if kind and metadata and kind != metadata['type']:
        raise ArgumentError(f'type={kind} contradicts {path}, whose metadata say {metadata["type"]}')
    name = kind or (metadata['type'] if metadata else 'NLSN')
    known = dict(metadata['arguments']) if metadata else {}
    if name != 'NLSN':
        return Description(name, stored=known, given=given)
    own = inspect.signature(NLSN).parameters
    for argument in given:
        if argument not in own:
            raise ArgumentError(f'NLSN takes no {argument}{checks.nearest(argument, own)}')
    inferred = recognition.infer(stored.weights, path, img_range_of(stored.weights, known, given, path))
    for source, error, who in ((known, CheckpointError, 'in its metadata'), (given, ArgumentError, 'as given')):
        for argument, value in source.items():
            if recognition.contradiction(inferred, argument, value):
                raise error(f'{path}: {argument}={value!r} {who} contradicts its weights: {inferred[argument]!r}')
    if metadata:
        return Description(name, inferred=inferred, stored=known, given=given)
    attention = given.get('attention', inferred['attention'])
    assumed = {name: recognition.RELEASED[name] for name in recognition.untold(attention) if name not in given}
    if attention == 'nlsa' and 'attention' not in given:
        assumed['attention'] = inferred.pop('attention')  # others have the same names
    return Description(name, assumed, inferred, known, given)


def img_range_of(weights: Weights, known: Arguments, given: Arguments, path: object) -> float | None:
    """The img_range that the file's metadata or the caller say; None if nothing does.

    Raises:
        ArgumentError: both do, and differ; or the means that the weights add would lie far off [0, 1].
    """
    stored, asked = (source.get('img_range') for source in (known, given))
    if asked is None:
        return None if stored is None else checks.real('img_range', stored)
    img_range = checks.real('img_range', asked)
    if stored not in (None, asked):
        raise ArgumentError(f'{path}: img_range={asked} as given contradicts its metadata: {stored}')
    if stored is None and (said := foreign_means(weights, img_range, given.get('rgb_mean') or ())):
        raise ArgumentError(f'{path}: {said}')
    return img_range


def settled(kind: str, arguments: Arguments, metadata: Metadata | None, path: object) -> Arguments:
    """The arguments of a network whose weights are to be loaded from a file: its metadata say those that are missing.

    Raises:
        ArgumentError: they say others than `kind` and `arguments`.
    """
    if metadata is None:
        return arguments
    if kind != metadata['type']:
        raise ArgumentError(f'{kind} contradicts {path}, whose metadata say {metadata["type"]}')
    for name, (value, stored) in differing(arguments, metadata).items():
        raise ArgumentError(f'{name}={value!r} contradicts {path}, whose metadata say {name}={stored!r}')
    return {**metadata['arguments'], **arguments}


def differing(arguments: Arguments, metadata: Metadata) -> dict[str, tuple[Any, Any]]:
    """The arguments that have another value in the metadata, by name, with both values; eval_seed is not compared."""
    stored = metadata['arguments']
    pairs = {name: (arguments[name], stored[name]) for name in arguments if name in stored and name != 'eval_seed'}
    return {name: pair for name, pair in pairs.items() if as_json(pair[0]) != as_json(pair[1]) and pair[0] != pair[1]}


def complete(kind: str, arguments: Arguments) -> Arguments:
    """Arguments as a file keeps them: defaults written out, those of the run left out, lists for tuples."""
    if kind == 'NLSN':
        defaults = {name: parameter.default for name, parameter in inspect.signature(NLSN).parameters.items()}
        arguments = {key: value for key, value in {**defaults, **arguments}.items() if key not in OF_THE_RUN}
    return json.loads(as_json(arguments))


def as_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f'the arguments of a network cannot be stored as JSON: {error}') from error
