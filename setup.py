"""Package metadata and dependencies; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'nlsn_plugin' / '__init__.py').read_text()).group(1)
# onnxscript 0.5 cannot write another opset than 18 with PyTorch 2.7; ONNX Runtime 1.23 is the last for Python 3.10.
EXPORT = ['onnx>=1.20', 'onnxruntime>=1.23', 'onnxscript>=0.7']

setup(
    name='nlsn_plugin',
    version=VERSION,
    description='Non-Local Sparse Attention (NLSA) and the Non-Local Sparse Network (NLSN) for BasicSR and mmengine',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=[*find_packages(include=['nlsn_plugin', 'nlsn_plugin.*']), 'nlsn_plugin.options'],
    package_dir={'nlsn_plugin.options': 'options'},
    package_data={
        'nlsn_plugin': ['py.typed', 'weights/*.safetensors'],
        'nlsn_plugin.engine': ['templates/*.html'],
        'nlsn_plugin.options': ['*.yml', 'mmengine/*.py', 'paper/*', 'small/*', 'with_nlsa/*'],
        'nlsn_plugin.paper': ['*.csv'],
    },
    install_requires=[
        # No wheel of basicsr exists, and its source does not build on Python 3.13: there, `nlsn install-basicsr`.
        'basicsr>=1.4.2; python_version < "3.13"',
        'jinja2>=3.1',
        'lmdb>=1.4.1',
        'matplotlib>=3.8',
        'mmengine>=0.10.4',
        'numpy>=1.26',
        'opencv-python>=4.9',
        'pillow>=11.2',
        'psutil>=5.9',
        'pydantic>=2.7',
        'pyyaml>=6.0.1',
        'safetensors>=0.4',
        'scikit-image>=0.22',
        'setuptools>=70.1',  # basicsr's arch_util.py imports distutils, which Python 3.12 dropped
        'tabulate>=0.9',
        'tifffile>=2024.7.2',
        'torch>=2.6',
        'torchvision>=0.21',
        'tqdm>=4.66',
    ],
    extras_require={
        'export': EXPORT,
        'test': ['hypothesis>=6.100', 'pytest>=8.0', 'pytest-xdist>=3.5', 'spandrel>=0.4.1', *EXPORT],
        'dev': ['mypy>=1.10', 'ruff>=0.6', 'types-PyYAML', 'types-psutil', 'types-tabulate', 'types-tqdm'],
    },
    entry_points={'console_scripts': ['nlsn = nlsn_plugin.cli:main']},
    classifiers=[
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Programming Language :: Python :: 3.14',
        'Topic :: Scientific/Engineering :: Image Processing',
    ],
)
