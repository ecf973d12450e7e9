"""Seeds, and generators that go on where they stood."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nlsn_plugin.engine.training import randomness, run
from nlsn_plugin.engine.training.mmengine_parts import RandomStateHook


@pytest.fixture(autouse=True)
def as_they_were() -> Iterator[None]:
    before = randomness.current()
    yield
    randomness.restore(before)


def drawn() -> tuple[float, ...]:
    return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


def test_all_generators_go_on_where_they_stood() -> None:
    before = randomness.current()
    first = drawn()
    assert all(a != b for a, b in zip(first, drawn()))
    randomness.restore(before)
    assert drawn() == first


def test_a_drawn_seed_is_that_of_the_first_process_and_each_process_has_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run.distributed, 'agreed', lambda value: 77)
    opt = {'manual_seed': None, 'rank': 1}
    run.seed(opt)
    assert (opt['manual_seed'], opt['seed_is_drawn']) == (77, True)
    assert torch.initial_seed() == 78


def test_a_validation_of_mmengines_leaves_random_numbers_as_they_were() -> None:
    hook, before = RandomStateHook(), randomness.current()
    expected = drawn()
    randomness.restore(before)
    hook.before_val(None)
    drawn()
    hook.after_val(None)
    assert drawn() == expected
