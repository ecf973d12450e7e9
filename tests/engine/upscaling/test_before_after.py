"""`nlsn gallery`: pairs are found, and the page works in a real browser, without a network."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import error_of
from PIL import Image, ImageCms
from skimage import data

from nlsn_plugin.cli import main
from nlsn_plugin.data.pictures import Picture
from nlsn_plugin.engine.upscaling import before_after
from nlsn_plugin.engine.upscaling.before_after import find_pairs
from nlsn_plugin.errors import UserError

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')


@pytest.fixture(scope='module')
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures, each beside one twice as large, and a comparison that is none of them."""
    folder = tmp_path_factory.mktemp('pairs')
    for name, image in (('cat', data.chelsea()[:200, :300]), ('a & b <c>', data.astronaut()[:120, :120])):
        original = Image.fromarray(image)
        original.save(folder / f'{name}.jpg')
        original.resize((original.width * 2, original.height * 2)).save(folder / f'{name}_x2.png')
    original.save(folder / 'cat_x2_compare.png')
    return folder


@pytest.fixture(scope='module')
def page(pairs: Path) -> Path:
    main(['gallery', str(pairs)])
    return pairs / 'before_after.html'


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    """Chromium, driven by its own driver."""
    webdriver = pytest.importorskip('selenium.webdriver')
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which('chromedriver')
    if not (binary and driver):
        pytest.skip(f'needs {" or ".join(BROWSERS)}, and chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--window-size=1000,800'):
        options.add_argument(word)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def clip(browser: Any) -> float:
    """From where on the first picture shows what is after, percent of its width: as it is painted."""
    style = browser.execute_script("return getComputedStyle(document.querySelector('.after')).clipPath")
    return float(re.search(r'([\d.]+)%', style)[1])


def test_sliders_move_by_keys_mouse_and_touch(browser: Any, page: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(page.as_uri())
    assert clip(browser) == 50
    slider = browser.find_element(By.CSS_SELECTOR, 'input[type=range]')
    before = browser.get_screenshot_as_png()
    slider.send_keys(Keys.ARROW_RIGHT * 20)
    assert clip(browser) == 60
    slider.send_keys(Keys.HOME)
    assert clip(browser) == 0
    assert browser.get_screenshot_as_png() != before
    assert slider.get_attribute('aria-valuetext') == '0 %'

    stage = browser.find_element(By.CSS_SELECTOR, '.stage')
    width = stage.size['width']
    drag = ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(-width // 4, 0).release()
    drag.perform()
    assert clip(browser) == pytest.approx(25, abs=1)
    assert float(slider.get_attribute('value')) == pytest.approx(25, abs=1)
    ActionChains(browser).move_to_element(stage).perform()
    assert clip(browser) == pytest.approx(25, abs=1)  # not without a button pressed

    box = stage.rect
    touch = {'x': box['x'] + box['width'] * 0.8, 'y': box['y'] + 50}
    for kind, points in (('touchStart', [touch]), ('touchEnd', [])):
        browser.execute_cdp_cmd('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': points})
    assert clip(browser) == pytest.approx(80, abs=1)

    second = browser.find_elements(By.CSS_SELECTOR, 'input[type=range]')[1]
    assert float(second.get_attribute('value')) == 50  # each picture has its own


def test_both_pictures_are_painted_and_nothing_is_fetched(browser: Any, page: Path) -> None:
    browser.get_log('performance')
    browser.get(page.as_uri())
    sizes = browser.execute_script(
        'return [...document.images].map((image) => [image.complete, image.naturalWidth, image.naturalHeight])'
    )
    assert sizes == [[True, 240, 240]] * 2 + [[True, 600, 400]] * 2
    assert browser.execute_script("return document.querySelectorAll('h2')[0].textContent") == 'a & b <c>_x2'
    asked = [
        message['params']['request']['url']
        for entry in browser.get_log('performance')
        if (message := json.loads(entry['message'])['message'])['method'] == 'Network.requestWillBeSent'
    ]
    assert {url.split(':')[0] for url in asked} <= {'file', 'data'}
    assert [entry for entry in browser.get_log('browser') if 'favicon' not in entry['message']] == []


def test_the_page_holds_the_results_as_they_are_and_the_originals_by_bicubic(page: Path, pairs: Path) -> None:
    addresses = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page.read_text(encoding='utf-8'))
    assert [kind for kind, _ in addresses] == ['png'] * 4
    before, after = (base64.b64decode(content) for _, content in addresses[2:])
    assert after == (pairs / 'cat_x2.png').read_bytes()
    with Image.open(io.BytesIO(before)) as image, Image.open(pairs / 'cat.jpg') as original:
        expected = original.resize((600, 400), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 2


def test_pairs_are_found_in_two_folders_and_in_the_results_of_an_evaluation(pairs: Path, tmp_path: Path) -> None:
    for name in ('before', 'after'):
        (tmp_path / name).mkdir()
        shutil.copy(pairs / 'cat.jpg', tmp_path / name / 'cat.jpg')
    (pair,) = find_pairs(tmp_path)
    assert (pair.title, pair.before, pair.after) == ('cat', tmp_path / 'before/cat.jpg', tmp_path / 'after/cat.jpg')
    (pair,) = find_pairs(tmp_path / 'after', tmp_path / 'before')
    assert pair.before == tmp_path / 'before/cat.jpg'
    images = [
        {'scale': 2, 'set': 'Set5', 'image': 'cat', 'network': network, 'file': f'images/{network}.png'}
        for network in ('bicubic', 'NLSN', 'EDSR')
    ]
    (tmp_path / 'results.json').write_text(json.dumps({'images': [*images, {**images[1], 'file': None}]}))
    found = find_pairs(tmp_path)
    assert [(pair.title, pair.before_label, pair.after_label) for pair in found] == [
        ('Set5, cat, x2', 'bicubic', 'NLSN'),
        ('Set5, cat, x2', 'bicubic', 'EDSR'),
    ]
    assert found[0].after == tmp_path / 'images/NLSN.png'
    (tmp_path / 'results.json').write_text('{"images": 3}')
    with pytest.raises(UserError, match='is not what nlsn benchmark writes'):
        find_pairs(tmp_path)


def test_pictures_of_one_name_are_told_apart_by_their_endings(tmp_path: Path) -> None:
    for folder in ('originals', 'results', 'one'):
        (tmp_path / folder).mkdir()
    for name in ('p.jpg', 'p.png', 'q.jpeg', 'q.png', 'p.webp'):
        Image.new('RGB', (8, 8)).save(tmp_path / 'originals' / name)
    for name in ('p_x2.jpg', 'p_x2.png', 'p.webp', 'q_x2.jpg'):
        Image.new('RGB', (16, 16)).save(tmp_path / 'results' / name)
    found = find_pairs(tmp_path / 'results', tmp_path / 'originals')
    assert [(pair.before.name, pair.after.name) for pair in found] == [
        ('p.webp', 'p.webp'),
        ('p.jpg', 'p_x2.jpg'),
        ('p.png', 'p_x2.png'),
        ('q.jpeg', 'q_x2.jpg'),
    ]
    for name in ('p.jpg', 'p.png'):
        Image.new('RGB', (8, 8)).save(tmp_path / 'one' / name)
    with pytest.raises(UserError, match='holds no pairs'):
        find_pairs(tmp_path / 'one')
    Image.new('RGB', (16, 16)).save(tmp_path / 'one' / 'p_x2.png')
    for originals in (None, tmp_path / 'results' / '..' / 'one'):
        (pair,) = find_pairs(tmp_path / 'one', originals)
        assert (pair.before.name, pair.after.name) == ('p.png', 'p_x2.png')


def test_both_pictures_keep_their_colour_profile(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for name, edge in (('p.png', 8), ('p_x2.png', 16)):
        Image.new('RGB', (edge, edge), 'red').save(tmp_path / name, icc_profile=profile)
    main(['gallery', str(tmp_path)])
    addresses = re.findall(r'base64,([^"]+)"', (tmp_path / 'before_after.html').read_text(encoding='utf-8'))
    for address in addresses:
        with Image.open(io.BytesIO(base64.b64decode(address))) as image:
            assert image.size == (16, 16)
            assert image.info['icc_profile'] == profile
    assert len(addresses) == 2


def test_pairs_that_cannot_be_shown_are_named_and_left_out(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('cat.jpg', 'cat_x2.png'):
        shutil.copy(pairs / name, tmp_path / name)
    shutil.copy(pairs / 'cat.jpg', tmp_path / 'broken.jpg')
    (tmp_path / 'broken_x2.png').write_bytes((pairs / 'cat_x2.png').read_bytes()[:2000])
    assert 'broken_x2.png is truncated or damaged: ' in error_of(['gallery', str(tmp_path)], capsys)
    assert (tmp_path / 'before_after.html').read_text(encoding='utf-8').count('<h2>') == 1
    (tmp_path / 'cat_x2.png').unlink()
    (tmp_path / 'before_after.html').unlink()
    assert 'broken_x2.png is truncated or damaged: ' in error_of(['gallery', str(tmp_path)], capsys)
    assert not (tmp_path / 'before_after.html').exists()


def test_results_of_any_size_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ('before', 'after'):
        (tmp_path / name).mkdir()
        Image.new('1', (10_001, 10_000)).save(tmp_path / name / 'p.png')
    main(['gallery', str(tmp_path)])
    assert capsys.readouterr().out.startswith('1 pair: ')


def test_a_pair_that_memory_does_not_suffice_for_is_left_out(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarge, errors = before_after.larger_by_bicubic, [RuntimeError('DefaultCPUAllocator: not enough memory')]

    def fail_once(picture: Picture, scale: int) -> Picture:
        if errors:
            raise errors.pop()
        return enlarge(picture, scale)

    monkeypatch.setattr(before_after, 'larger_by_bicubic', fail_once)
    page = tmp_path / 'page.html'
    line = error_of(['gallery', str(pairs), '-o', str(page)], capsys)
    assert line == f'nlsn: {pairs}/a & b <c>.jpg and {pairs}/a & b <c>_x2.png: too little memory'
    assert page.read_text(encoding='utf-8').count('<h2>') == 1


def test_folders_are_no_pictures_whatever_their_names(pairs: Path, tmp_path: Path) -> None:
    for name in ('cat.jpg', 'cat_x2.png'):
        shutil.copy(pairs / name, tmp_path / name)
    (tmp_path / 'cat.png').mkdir()
    (tmp_path / 'cat_x2.webp').mkdir()
    (pair,) = find_pairs(tmp_path)
    assert (pair.before.name, pair.after.name) == ('cat.jpg', 'cat_x2.png')


def test_names_that_are_no_utf_8_are_shown_with_marks(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / os.fsdecode(b'caf\xe9')
    try:
        folder.mkdir()
    except OSError:
        pytest.skip('file names are UTF-8 here')
    for name in ('.jpg', '_x2.png'):
        shutil.copy(pairs / f'cat{name}', folder / os.fsdecode(b'caf\xe9' + name.encode()))
    main(['gallery', str(folder)])
    assert f'1 pair: {tmp_path}/caf\ufffd/before_after.html' in capsys.readouterr().out
    assert 'caf\ufffd_x2' in (folder / 'before_after.html').read_text(encoding='utf-8')


def test_mistakes_are_one_line(page: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert error_of(['gallery', str(pairs)], capsys).endswith('is there already: --force overwrites it')
    long = tmp_path / ('n' * 300)
    assert error_of(['gallery', str(long)], capsys) == f'nlsn: {long} cannot be read: File name too long'
    assert 'there is no folder' in error_of(['gallery', str(tmp_path / 'absent')], capsys)
    assert 'holds no pairs of pictures: photo.png beside photo_x2.png' in error_of(['gallery', str(tmp_path)], capsys)
    assert 'ends in .html' in error_of(['gallery', str(pairs), '-o', str(tmp_path / 'page.png')], capsys)
    for name, size in (('cat.png', (10, 10)), ('cat_x2.png', (20, 21))):
        Image.new('RGB', size).save(tmp_path / name)
    assert 'of 10x10 and' in (said := error_of(['gallery', str(tmp_path)], capsys))
    assert 'of 20x21 pixels are no pair' in said


def test_of_an_evaluation_bicubic_is_before(tmp_path: Path) -> None:
    images = [
        {'scale': 2, 'set': 'Set5', 'image': 'cat', 'network': network, 'file': f'images/{network}.png'}
        for network in ('bicubic', 'NLSN', 'EDSR')
    ]
    (tmp_path / 'results.json').write_text(json.dumps({'images': images}))
    pairs = find_pairs(tmp_path)
    assert [(pair.before.name, pair.after.name) for pair in pairs] == [
        ('bicubic.png', 'NLSN.png'),
        ('bicubic.png', 'EDSR.png'),
    ]
