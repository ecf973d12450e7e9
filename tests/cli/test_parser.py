from __future__ import annotations

import multiprocessing
import sys

import pytest

from nlsn_plugin.cli import main
from nlsn_plugin.cli.main import parsed


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['upscal'], "nlsn: argument COMMAND: invalid choice: 'upscal': did you mean upscale? (nlsn --help says more)"),
        (
            ['prepare', '--scale', '5'],
            "nlsn prepare: argument --scale: invalid choice: '5': there are 2, 3, 4 (nlsn prepare --help says more)",
        ),
        ([], 'nlsn: the following arguments are required: COMMAND (nlsn --help says more)'),
        (
            ['modules'],
            'nlsn modules: the following arguments are required: ARCH (nlsn modules --help says more)',
        ),
        (['convert', 'a'], 'nlsn convert: the following arguments are required: OUT (nlsn convert --help says more)'),
        (['convert', 'a', 'b', '--hlaf'], 'nlsn: unrecognized arguments: --hlaf (nlsn --help says more)'),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f'{message}\n'


def test_names_keep_their_capitals(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['modules', '--help'])
    assert 'Modules of a network after which WithNLSA can put' in capsys.readouterr().out


@pytest.mark.parametrize('command', ['train', 'test'])
@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_torch_distributed_launch_is_understood(command: str, spelling: str) -> None:
    assert parsed([command, '-opt', 'a.yml', f'{spelling}=1']).local_rank == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere, forks are unsafe or unknown')
def test_workers_are_forked_whatever_python_prefers(capsys: pytest.CaptureFixture[str]) -> None:
    multiprocessing.set_start_method(None, force=True)  # as in a process that has started none
    main(['modules', 'EDSR'])
    assert multiprocessing.get_start_method(allow_none=True) == 'fork'
