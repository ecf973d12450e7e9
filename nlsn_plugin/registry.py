"""The one place that registers, into every toolbox that is installed. Idempotent."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import warnings
from typing import Any

from nlsn_plugin.archs import NLSN, WithNLSA
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.errors import MissingToolboxError
from nlsn_plugin.layers import LocalWindowAttention, NonLocalAttention, NonLocalSparseAttention

NETWORKS: dict[str, type] = {
    'NLSN': NLSN,
    'WithNLSA': WithNLSA,
    'NLSA': NonLocalSparseAttention,
    'NLA': NonLocalAttention,
    'LocalWindowAttention': LocalWindowAttention,
}
SUFFIX = '_nlsn_plugin'


def register_all() -> dict[str, MissingToolboxError]:
    """Register into BasicSR, mmengine and spandrel; return why for each that could not be.

    spandrel is for those who have it: its absence is no problem.
    """
    problems: dict[str, MissingToolboxError] = {}
    for name, register_into in (
        ('basicsr', register_into_basicsr),
        ('mmengine', register_into_mmengine),
        ('spandrel', register_into_spandrel),
    ):
        if name == 'spandrel' and importlib.util.find_spec(name) is None:
            continue
        try:
            load_toolbox(name)
        except MissingToolboxError as problem:
            problems[name] = problem
            if problem.name is None:  # installed but broken, which nobody expects; absent is a choice
                warnings.warn(f'nlsn_plugin registers nothing there: {problem}', stacklevel=3)
        else:
            register_into()
    return problems


def register_into_basicsr() -> None:
    """Networks and layers into ARCH_REGISTRY, the model into MODEL_REGISTRY, the data set into DATASET_REGISTRY."""
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY

    # Every module of the plugin's that subclasses a part of BasicSR is imported here, and only with BasicSR at hand.
    model = importlib.import_module('nlsn_plugin.models.nlsn_model').NLSNModel
    dataset = importlib.import_module('nlsn_plugin.data.paired').SafePairedImageDataset
    for registry, classes in (
        (ARCH_REGISTRY, NETWORKS),
        (MODEL_REGISTRY, {'NLSNModel': model}),
        (DATASET_REGISTRY, {'SafePairedImageDataset': dataset}),
    ):
        for name, cls in classes.items():
            held = registry.get(name) if name in registry else None
            free_name = free_to_register(name, cls, held, f"BasicSR's {registry._name} registry")
            if free_name and free_name not in registry:
                registry._do_register(free_name, cls)  # register() has no way to give a name of one's own


def register_into_mmengine() -> None:
    """Networks and layers into the root MODELS, where every child registry finds them; and what its Runner trains by.

    Without BasicSR, whose readers and metrics the latter uses, networks and layers alone.
    """
    from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPERS

    classes: dict[Any, dict[str, type]] = {MODELS: dict(NETWORKS)}
    with contextlib.suppress(MissingToolboxError):
        load_toolbox('basicsr')
        parts = importlib.import_module('nlsn_plugin.engine.training.mmengine_parts')
        model = importlib.import_module('nlsn_plugin.models.mmengine_model').SuperResolutionModel
        dataset = importlib.import_module('nlsn_plugin.data.mmengine_dataset').SuperResolutionDataset
        metric = importlib.import_module('nlsn_plugin.metrics.mmengine_metric').SuperResolutionMetric
        classes[MODELS]['SuperResolutionModel'] = model
        classes[DATASETS] = {'SuperResolutionDataset': dataset}
        classes[METRICS] = {'SuperResolutionMetric': metric}
        classes[HOOKS] = {'AnyWeightsHook': parts.AnyWeightsHook, 'RandomStateHook': parts.RandomStateHook}
        classes[OPTIM_WRAPPERS] = {'BFloat16OptimWrapper': parts.BFloat16OptimWrapper}
    for registry, named in classes.items():
        for name, cls in named.items():
            said = f"mmengine's root {registry.name.upper()}S registry"
            free_name = free_to_register(name, cls, registry.module_dict.get(name), said)
            if free_name and free_name not in registry.module_dict:
                registry.register_module(name=free_name, module=cls)


def register_into_spandrel() -> None:
    """NLSN and WithNLSA into MAIN_REGISTRY.

    At once, not when spandrel is first used: with torch and torchvision in memory its import takes a tenth of a second.
    """
    from spandrel import MAIN_REGISTRY

    importlib.import_module('nlsn_plugin.models.spandrel_arch').register(MAIN_REGISTRY, SUFFIX)


def free_to_register(name: str, cls: type, held: Any, registry: str) -> str | None:
    """The name to register `cls` under, None if it stands there already; explain when another class holds the name."""
    if held is None:
        return name
    if held is cls:
        return None
    warnings.warn(
        f"{registry} already holds a '{name}', {held.__module__}.{held.__qualname__}, which stays as it is; "
        f"nlsn_plugin's own is registered as '{name}{SUFFIX}': write that for the type in your option file",
        stacklevel=5,
    )
    return name + SUFFIX
