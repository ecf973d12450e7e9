"""Description of the machine and the settings that measured figures depend on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import nlsn_plugin
from nlsn_plugin.ops import tf32


def describe_machine(device: str) -> dict[str, Any]:
    """Describe the machine, the versions and the settings that times and memory depend on."""
    pages = Path('/sys/kernel/mm/transparent_hugepage/enabled')
    return {
        **describe_cpu(),
        'instructions': torch.backends.cpu.get_cpu_capability(),  # the vector instructions that PyTorch uses
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        **(describe_gpu() if device == 'cuda' else {'gpu': None}),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'nlsn_plugin': nlsn_plugin.__version__,
        'transparent huge pages': pages.read_text().strip() if pages.exists() else None,
        'THP_MEM_ALLOC_ENABLE': os.environ.get('THP_MEM_ALLOC_ENABLE'),
    }


def describe_cpu() -> dict[str, Any]:
    """Describe the CPU, with its bfloat16 instructions where Linux lists them: they decide the speed in that type."""
    if not Path('/proc/cpuinfo').exists():
        return {'cpu': platform.processor()}
    first = Path('/proc/cpuinfo').read_text().partition('\n\n')[0]
    said = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in first.splitlines())}
    if 'model name' not in said:
        return {'cpu': platform.processor()}
    family = f', family {said["cpu family"]}, model {said["model"]}' if {'cpu family', 'model'} <= said.keys() else ''
    for_bfloat16 = [word for word in said.get('flags', '').split() if word.endswith('bf16')]
    return {'cpu': said['model name'] + family, 'instructions for bfloat16': ' '.join(for_bfloat16) or None}


def describe_gpu() -> dict[str, Any]:
    """Describe the GPU, its libraries, and whether PyTorch is set at this moment to multiply float32 as TF32."""
    try:
        import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        triton = None
    return {
        'gpu': torch.cuda.get_device_name(),
        'compute capability': '.'.join(map(str, torch.cuda.get_device_capability())),
        'driver': driver_version(),
        'CUDA': torch.version.cuda,
        'cuDNN': torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        'Triton': triton.__version__ if triton else None,
        'TF32 products': tf32.of_products(),
        'TF32 convolutions': tf32.of_convolutions(),
    }


def driver_version() -> str | None:
    """Version of the GPU's driver; None if nvidia-smi is missing or fails."""
    tool = shutil.which('nvidia-smi')
    if tool is None:
        return None
    words = [tool, '--query-gpu=driver_version', '--format=csv,noheader']
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    return next(iter(result.stdout.split()), None) if result.returncode == 0 else None
