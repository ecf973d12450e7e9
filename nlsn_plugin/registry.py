"""Registration of networks, models, data sets and metrics in every installed toolbox. It is done here alone."""

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
    """Register into BasicSR, mmengine and spandrel; return the error for each that could not be imported.

    Doing so again changes nothing. spandrel is optional, so that its absence is no error.
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
            if problem.name is None:  # installed but broken; absence, a choice, needs no warning
                warnings.warn(f'nlsn_plugin registers nothing there: {problem}', stacklevel=3)
        else:
            register_into()
    return problems


def register_into_basicsr() -> None:
    """Register networks and layers in ARCH_REGISTRY, the model in MODEL_REGISTRY, the data set in DATASET_REGISTRY."""
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY

    # Modules of the plugin that subclass parts of BasicSR can be imported only where BasicSR is installed.
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
                registry._do_register(free_name, cls)  # register() takes no name


def register_into_mmengine() -> None:
    """Register networks and layers in the root MODELS, where every child registry finds them, and parts for Runner.

    Without BasicSR, whose readers and metrics the latter needs, only networks and layers are registered.
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
    """Register NLSN and WithNLSA in MAIN_REGISTRY.

    This is not put off until spandrel is used: once torch and torchvision are imported, it takes a tenth of a second.
    """
    from spandrel import MAIN_REGISTRY

    importlib.import_module('nlsn_plugin.models.spandrel_arch').register(MAIN_REGISTRY, SUFFIX)


def free_to_register(name: str, cls: type, held: Any, registry: str) -> str | None:
    """Return the name to register `cls` under, or None if it is registered already.

    If another class holds the name, warn, and return the name with SUFFIX.
    """
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
