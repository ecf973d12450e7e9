from __future__ import annotations

import pytest
from conftest import error_of

from nlsn_plugin import WithNLSA
from nlsn_plugin.cli import main


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('| ')
    ]


def test_places_are_listed_as_they_can_be_written_under_after(capsys: pytest.CaptureFixture[str]) -> None:
    small = ['num_feat=8', 'num_group=3', 'num_block=2', 'squeeze_factor=4', 'upscale=2']
    main(['modules', 'RCAN', *small])
    out = capsys.readouterr().out
    assert out.startswith('RCAN on an input of shape (1, 3, 16, 24)')
    _, *found = rows(out)
    assert ['body.*', '3', 'ResidualGroup', '(1, 8, 16, 24)'] in found
    assert ['body.*.residual_group.*.rcab.2', '6', 'Conv2d', '(1, 8, 16, 24)'] in found
    assert ['upsample', '1', 'Upsample', '(1, 8, 32, 48)'] in found
    arch = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_group': 3, 'num_block': 2}
    for after, count, *_ in found:
        if after != 'conv_last':  # has 3 channels, which reduction=4 does not divide
            net = WithNLSA({**arch, 'squeeze_factor': 4, 'upscale': 2}, after)
            assert len(net.nlsa._modules) == int(count)

    main(['modules', 'RCAN', *small, '--all'])
    _, *every = rows(capsys.readouterr().out)
    assert sum(int(row[1]) for row in found) == len(every)
    assert ['body.1.residual_group.0', 'RCAB', '(1, 8, 16, 24)'] in every


def test_names_that_no_pattern_tells_apart_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(['modules', 'SRVGGNetCompact', 'num_conv=2', 'num_feat=8'])
    _, *found = rows(capsys.readouterr().out)
    assert found[:2] == [
        ['body.0, body.2, body.4', '3', 'Conv2d', '(1, 8, 16, 24)'],
        ['body.1, body.3, body.5', '3', 'PReLU', '(1, 8, 16, 24)'],
    ]


def test_sequences_and_another_input(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ['modules', 'SwinIR', 'window_size=8', 'depths=[1]', 'num_heads=[2]', 'embed_dim=8', '--probe', '3', '8', '16']
    )
    out = capsys.readouterr().out
    assert ['layers.0', '1', 'RSTB', '(1, 128, 8)'] in rows(out)
    assert 'other modules do not give an image of features' in out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['RCNA'], 'no network RCNA: did you mean RCAN?'),
        (['Nothing'], 'no network Nothing: the nearest of '),
        (['Nothing'], '; a module that registers one of your own has to be imported (--import MODULE)'),
        (['EDSR', 'num_fet=8'], 'EDSR takes no num_fet: did you mean num_feat?'),
        (['EDSR', 'num_feat'], 'num_feat: KEY=VALUE is expected, such as num_feat=64'),
        (['EDSR', 'num_feat=[1'], 'num_feat=[1: [1 is no value'),
        (
            ['EDSR', 'num_block=1', '--probe', '4', '8', '8'],
            'give one that it takes by probe: [channels, height, width]',
        ),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(['modules', *words], capsys)
