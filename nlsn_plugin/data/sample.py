"""Sample data for the quickstart: photographs that scikit-image ships, which are free to use.

Each is listed with its source and terms in scikit-image's own data/README.txt.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

from nlsn_plugin.data.prepare import prepare_test_data, prepare_training_data
from nlsn_plugin.data.workshop import named

TRAINING_PHOTOGRAPHS = (
    'astronaut.png',
    'brick.png',
    'coffee.png',
    'grass.png',
    'gravel.png',
    'motorcycle_left.png',
    'rocket.jpg',
)
HELD_OUT_PHOTOGRAPH = 'chelsea.png'


def prepare_sample_data(output: Path, scale: int) -> None:
    """Write LMDBs `sample_train_*` and a test folder `sample_test` with the held-out photograph under `output`."""
    shipped = files('skimage') / 'data'
    with named(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix='.preparing_', dir=output.parent)
    with scratch as folder:
        made = Path(folder, 'made')
        for part, names in (('train', TRAINING_PHOTOGRAPHS), ('test', (HELD_OUT_PHOTOGRAPH,))):
            Path(folder, part).mkdir()
            for name in names:
                with (shipped / name).open('rb') as photograph, Path(folder, part, name).open('wb') as copy:
                    shutil.copyfileobj(photograph, copy)
        prepare_training_data(Path(folder, 'train'), made, 'sample_train', [scale], crop_size=120, step=60)
        prepare_test_data(Path(folder, 'test'), made / 'sample_test', [scale])
        made.rename(output)
