from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import GOLDEN

from nlsn_plugin import NLSN, WithNLSA
from nlsn_plugin.errors import CheckpointError
from nlsn_plugin.models.checkpoint import load_weights, read_weights

OFFICIAL_X2 = GOLDEN / 'nlsn_x2_small_official_state_dict.pt'


def network(upscale: int = 2) -> NLSN:
    return NLSN(num_feat=16, num_block=8, upscale=upscale)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_flat_state_dict_reads_by_any_usual_key(tmp_path: Path) -> None:
    flat = torch.load(OFFICIAL_X2, weights_only=True)
    for key in ('params', 'params_ema', None):
        assert same(read_weights(OFFICIAL_X2, key), flat)
    tensors = tmp_path / 'net.safetensors'
    safetensors.torch.save_file(flat, tensors)
    for path in (OFFICIAL_X2, tensors):
        with pytest.raises(CheckpointError, match="has no 'params_g': it keeps one set of weights, without a key"):
            read_weights(path, 'params_g')


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
@pytest.mark.parametrize('wrapper', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
def test_names_are_without_what_wrappers_put_before_them(wrapper: str, ending: str, tmp_path: Path) -> None:
    path, weights = tmp_path / f'net{ending}', {'body.0.bias': torch.ones(1), 'head.bias': torch.zeros(1)}
    wrapped = {wrapper + name: weight for name, weight in weights.items()}
    (safetensors.torch.save_file if ending == '.safetensors' else torch.save)(wrapped, path)
    assert same(read_weights(path), weights)


def test_names_of_parts_that_are_called_as_a_wrapper_stay(tmp_path: Path) -> None:
    weights = {'head.bias': torch.ones(1), 'module.bias': torch.zeros(1)}
    torch.save({'params': weights}, tmp_path / 'net.pth')
    assert same(read_weights(tmp_path / 'net.pth'), weights)


def test_the_state_of_a_run_is_no_weights(tmp_path: Path) -> None:
    path = tmp_path / '4.state'
    torch.save({'epoch': 0, 'iter': 4, 'optimizers': [], 'schedulers': []}, path)
    with pytest.raises(
        CheckpointError, match=r'4\.state is the state of a run, without weights: models/net_g_4\.pth of'
    ):
        read_weights(path)


def test_basicsrs_layout_reads_by_key_with_params_for_a_missing_ema(tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    torch.save({'params': {'a': torch.ones(1)}, 'params_ema': {'a': torch.zeros(1)}}, path)
    assert read_weights(path)['a'] == 1
    assert read_weights(path, 'params_ema')['a'] == 0
    torch.save({'params': {'module.a': torch.ones(1)}}, path)
    assert read_weights(path, 'params_ema')['a'] == 1


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def write_damaged(path: Path, kind: str) -> None:
    match kind:
        case 'empty':
            path.write_bytes(b'')
        case 'garbage':
            path.write_bytes(b'no weights at all')
        case 'truncated':
            path.write_bytes(OFFICIAL_X2.read_bytes()[:5000])
        case 'malicious':
            torch.save({'params': Malicious()}, path)
        case 'list':
            torch.save([1, 2], path)
        case 'number':
            torch.save({'params': {'a': 3}}, path)
        case 'folder':
            path.mkdir()
        case 'other-key':
            torch.save({'state_dict': {'a': torch.ones(1)}}, path)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('empty', 'does not load (nothing in it was executed)'),
        ('garbage', 'does not load (nothing in it was executed)'),
        ('truncated', 'does not load (nothing in it was executed)'),
        ('malicious', 'does not load (nothing in it was executed)'),
        ('list', 'holds a list: a dict of tensors is expected'),
        ('number', 'a is a int: tensors are expected'),
        ('folder', 'is a folder: name the file in it'),
        ('other-key', "has no 'params': it holds state_dict"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / 'net.pth'
    write_damaged(path, kind)
    with pytest.raises(CheckpointError) as error:
        read_weights(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_any_set_of_weights_is_looked_for_by_its_name(tmp_path: Path) -> None:
    torch.save({'params_ema': {'a': torch.ones(1)}}, tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match="has no 'params': it holds params_ema"):
        read_weights(tmp_path / 'net.pth', None)


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / 'net_g_latest.pth').touch()
    with pytest.raises(CheckpointError, match=r'there is no file .*net_g_last\.pth \(did you mean .*latest\.pth'):
        read_weights(tmp_path / 'net_g_last.pth')


def test_what_is_no_file_is_named() -> None:
    with pytest.raises(CheckpointError, match=r'^/dev/null is a pipe or a device: a file is expected$'):
        read_weights('/dev/null')


@pytest.mark.parametrize(
    ('weight', 'said'),
    [
        (torch.ones(2, 2).to_sparse(), r'in the layout torch\.sparse_coo'),
        (torch.ones(2, device='meta'), 'without numbers'),
    ],
)
def test_tensors_of_other_kinds_are_named(weight: torch.Tensor, said: str, tmp_path: Path) -> None:
    torch.save({'params': {'a': weight}}, tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match=rf'net\.pth: a is a tensor {said}: plain ones are expected$'):
        read_weights(tmp_path / 'net.pth')


def test_weights_of_another_scale_are_refused_with_what_differs_and_the_network_is_untouched() -> None:
    net = network(upscale=3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(net, read_weights(OFFICIAL_X2), OFFICIAL_X2)
    message = str(error.value)
    assert 'does not fit NLSN of 52 entries, 2 differ: ' in message
    assert 'tail.0.0.weight: [64, 16, 3, 3] in the file, [144, 16, 3, 3] in the network' in message
    assert 'strict_load_g: false' in message
    assert same(net.state_dict(), before)


def test_loading_what_fits_returns_what_does_not() -> None:
    net = network(upscale=4)
    weights = read_weights(OFFICIAL_X2)
    weights['extra'] = torch.ones(1)
    del weights['head.0.bias']
    dropped = load_weights(net, weights, OFFICIAL_X2, strict=False)
    assert dropped == [
        'head.0.bias: the file has none',
        'tail.0.2.weight: the file has none',
        'tail.0.2.bias: the file has none',
        'extra: the network has none',
    ]
    assert net.body[3].body[0].weight.equal(weights['body.3.body.0.weight'])


def test_weights_of_nothing_alike_are_refused_even_then() -> None:
    with pytest.raises(CheckpointError, match='has nothing that fits NLSN'):
        load_weights(network(), {'a': torch.ones(1)}, 'net.pth', strict=False)
    own = WithNLSA({'type': 'MSRResNet', 'num_feat': 16, 'num_block': 1}, 'conv_first')
    with pytest.raises(CheckpointError, match='has nothing that fits'):
        load_weights(own, {'a': torch.ones(1)}, 'net.pth', strict=False)


@pytest.mark.parametrize(('own', 'others'), [(1.0, 255.0), (255.0, 1.0)])
def test_weights_that_add_the_means_of_another_range_of_colours_are_refused(own: float, others: float) -> None:
    net, other = (NLSN(num_feat=16, num_block=1, img_range=img_range) for img_range in (own, others))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    said = f'img_range={own:g} contradicts the weights, which add means of {0.4488 * others:g}'
    with pytest.raises(CheckpointError, match=f'net.pth: {said}'):
        load_weights(net, other.state_dict(), 'net.pth', strict=False)
    assert same(net.state_dict(), before)
    with pytest.raises(RuntimeError, match=said):
        net.load_state_dict(other.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match=said):
        torch.nn.Sequential(net).load_state_dict(torch.nn.Sequential(other).state_dict())


@pytest.mark.parametrize(('own', 'others'), [(0.4, 0.5), (0.4, 0.0), (0.004, 0.004), (1.5, 1.5), (0.0, 0.4)])
def test_means_of_other_images_are_taken(own: float, others: float) -> None:
    net, other = (NLSN(num_feat=16, num_block=1, rgb_mean=3 * [mean]) for mean in (own, others))
    net.load_state_dict(other.state_dict())
    load_weights(net, other.state_dict(), 'net.pth')
    assert net.add_mean.bias.equal(other.add_mean.bias)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    (tmp_path / 'x.pth').write_bytes(b'hello')
    with pytest.raises(CheckpointError, match='it is no file of weights'):
        read_weights(str(tmp_path / 'x.pth'))
