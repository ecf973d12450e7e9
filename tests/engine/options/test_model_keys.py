"""Keys that one model alone reads: found in its code, so that they pass, and misspelt ones do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import error_of
from option_file import write
from pages import option_files

from nlsn_plugin.cli import main
from nlsn_plugin.engine.options.documents import Document
from nlsn_plugin.engine.options.model_keys import own_keys
from nlsn_plugin.engine.options.reading import checked

BY_MODEL = {
    'NLSNModel': set(),
    'SRModel': set(),
    'SwinIRModel': set(),
    'ESRGANModel': {('train', 'ldl_opt')},
    'EDVRModel': {('train', 'dcn_lr_mul'), ('train', 'tsa_iter')},
    'VideoRecurrentModel': {
        ('train', 'fix_flow'), ('train', 'flow_lr_mul'), ('val', 'center_frame_only'), ('val', 'flip_seq'),
    },
}  # fmt: skip


@pytest.mark.parametrize(('model', 'keys'), BY_MODEL.items())
def test_what_basicsrs_models_read_besides_is_found(model: str, keys: set[tuple[str, str]]) -> None:
    assert set(own_keys(model)) == keys


def test_a_name_of_no_model_has_none() -> None:
    assert own_keys('NoModel') == own_keys(None) == own_keys({}) == []


@pytest.mark.usefixtures('as_before')
def test_all_ways_of_naming_a_key_are_found() -> None:
    @MODEL_REGISTRY.register()
    class ReadingModel(SRModel):
        def feed_data(self, data: Any) -> None:
            train_opt, weights = self.opt['train'], data['no_option']
            if 'asked' in self.opt and 'refused' not in self.opt['val']:
                weights *= self.opt['held'] + self.opt.get('wished', 1)
            weights += train_opt['below'] + train_opt.get('maybe') + self.opt['train'].get('deeper')
            weights += self.opt['rank'] + self.opt['scale'] + train_opt['pixel_opt']['loss_weight']

    named = {'': ('asked', 'held', 'wished'), 'val': ('refused',), 'train': ('below', 'maybe', 'deeper')}
    assert set(own_keys('ReadingModel')) == {(section, key) for section, keys in named.items() for key in keys}


def real(folder: Path, **changes: object) -> Path:
    """The option file of docs/own_classes.md with Real-ESRGAN's degradations, some keys set or (...) left out."""
    [path] = [path for path in option_files('docs/own_classes.md', folder) if 'Real' in path.name]
    options = {**Document(path).options, **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in options.items() if value is not ...}))
    return path


def test_they_are_kept_as_they_stand(tmp_path: Path) -> None:
    opt = checked(Document(real(tmp_path)), is_train=True)
    assert (opt['resize_prob'], opt['gt_usm'], opt['queue_size']) == ([0.2, 0.7, 0.1], True, 192)
    path = write(tmp_path / 'a.yml', {'model_type': 'EDVRModel', 'train:tsa_iter': 5})
    assert checked(Document(Path(path)), is_train=True)['train']['tsa_iter'] == 5


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'resize_prop': [1, 0, 0]}, 'resize_prop is unknown: did you mean resize_prob?'),
        ({'model_type': 'SRModel'}, 'resize_prob is unknown: '),
        (
            {'gaussian_noise_prob': '5e-1'},
            "gaussian_noise_prob: '5e-1' is text (in YAML write 0.0001, or !!float 1e-4)",
        ),
    ],
)
def test_what_the_model_does_not_read_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['train', '-opt', str(real(tmp_path, **changes))]
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        ({'type': 'L1Los'}, 'train: ldl_opt: type: no L1Los: did you mean L1Loss?'),
        ({'type': 'L1Loss', 'weight': 1.0}, 'train: ldl_opt: weight: L1Loss takes no weight'),
    ],
)
def test_a_loss_of_a_models_own_is_checked_as_the_others_are(
    loss: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adversarial = {
        'model_type': 'ESRGANModel',
        'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4},
        'train:optim_d': {'type': 'Adam', 'lr': 0.0001},
        'train:gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
    }
    path = write(tmp_path / 'a.yml', {**adversarial, 'train:ldl_opt': loss})
    assert message in error_of(['train', '-opt', path], capsys)
