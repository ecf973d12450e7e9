"""Sample data for the quickstart: photographs that scikit-image ships, which are free to use.

scikit-image's own data/README.txt lists each with its source and terms.
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
    """Write LMDBs `sample_train_*`, a test set `sample_test` of the held-out photograph, and `photographs`."""
    shipped = files('skimage') / 'data'
    with named(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix='.preparing_', dir=output.parent)
    with scratch as folder:
        made, held_out = Path(folder, 'made'), Path(folder, 'held_out')
        photographs = made / 'photographs'
        for part, names in ((photographs, TRAINING_PHOTOGRAPHS), (held_out, (HELD_OUT_PHOTOGRAPH,))):
            part.mkdir(parents=True)
            for name in names:
                with (shipped / name).open('rb') as photograph, (part / name).open('wb') as copy:
                    shutil.copyfileobj(photograph, copy)
        prepare_training_data(photographs, made, 'sample_train', [scale], crop_size=120, step=60)
        prepare_test_data(held_out, made / 'sample_test', [scale])
        with named(output):
            try:
                made.rename(output)
            except OSError:
                if not (output / 'sample_test').is_dir():  # otherwise, another run has made it meanwhile
                    raise
