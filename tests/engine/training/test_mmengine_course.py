"""What of a checkpoint has to be as the config has it when a run of mmengine's goes on."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR, OptimWrapper

from nlsn_plugin.engine.training.mmengine_parts import WholeStateHook, refuse_another_course, schedules_of
from nlsn_plugin.errors import CheckpointError


def test_where_a_schedule_begins_is_compared() -> None:
    before, now = ([{'begin': begin, 'by_epoch': False, 'last_step': 3}] for begin in (0, 5))
    assert schedules_of(before) != schedules_of(now)


def course(
    optimiser: Callable[..., torch.optim.Optimizer], *schedules: Callable[..., Any], groups: int = 1
) -> SimpleNamespace:
    """What of a Runner says where it is going."""
    wrapper = OptimWrapper(optimiser([{'params': torch.nn.Parameter(torch.ones(1))} for _ in range(groups)], lr=0.1))
    schedulers = [schedule(wrapper, by_epoch=False) for schedule in schedules]
    return SimpleNamespace(
        _load_from='a.pth', work_dir='', max_iters=9, optim_wrapper=wrapper, param_schedulers=schedulers or None
    )


def steps(*args: Any, **kwargs: Any) -> MultiStepLR:
    return MultiStepLR(*args, milestones=[5], **kwargs)


def cosine(*args: Any, **kwargs: Any) -> CosineAnnealingLR:
    return CosineAnnealingLR(*args, T_max=9, **kwargs)


ADAM, SGD = torch.optim.Adam, torch.optim.SGD
COURSES = {
    'the same': (course(ADAM, steps), course(ADAM, steps), None),
    'another schedule': (course(ADAM, steps), course(ADAM, cosine), 'param_scheduler: '),
    'one more': (course(ADAM, steps), course(ADAM, steps, LinearLR), 'param_scheduler: '),
    'a first one': (course(ADAM), course(ADAM, steps), 'param_scheduler: '),
    'none any more': (course(ADAM, steps), course(ADAM), 'param_scheduler: '),
    'another optimiser': (course(ADAM), course(SGD), 'optim_wrapper.optimizer: betas is not set'),
    'and back': (course(SGD), course(ADAM), 'optim_wrapper.optimizer: momentum is not set'),
    'more groups': (course(ADAM), course(ADAM, groups=2), 'optim_wrapper.optimizer: lr is 0.1'),
}


@pytest.mark.parametrize(('before', 'now', 'said'), COURSES.values(), ids=COURSES)
def test_another_course_is_refused(before: SimpleNamespace, now: SimpleNamespace, said: str | None) -> None:
    checkpoint = {'meta': {'iter': 4}, 'optimizer': before.optim_wrapper.state_dict()}
    if before.param_schedulers:
        checkpoint['param_schedulers'] = [schedule.state_dict() for schedule in before.param_schedulers]
    if said is None:
        refuse_another_course(now, checkpoint)
        return
    with pytest.raises(CheckpointError) as refused:
        refuse_another_course(now, checkpoint)
    assert str(refused.value).startswith(said)


def test_what_a_newer_pytorch_keeps_of_an_optimiser_is_no_other_course() -> None:
    older, newer = course(ADAM), course(ADAM)
    newer.optim_wrapper.optimizer.param_groups[0]['decoupled'] = False
    for before, now in ((older, newer), (newer, older)):
        refuse_another_course(now, {'meta': {'iter': 4}, 'optimizer': before.optim_wrapper.state_dict()})


def test_a_run_does_not_go_on_with_another_network() -> None:
    runner = SimpleNamespace(_resume=True, _load_from='a.pth', work_dir='', model=torch.nn.Linear(2, 2))
    checkpoint = {'meta': {'iter': 4, 'epoch': 0}, 'state_dict': torch.nn.Linear(2, 3).state_dict()}
    with pytest.raises(CheckpointError, match=r'a\.pth does not fit Linear .* A run goes on with the network that it'):
        WholeStateHook().after_load_checkpoint(runner, checkpoint)
