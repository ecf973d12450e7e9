"""Saving of a run, with all that it needs to go on as if it had not been stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger

from nlsn_plugin.engine.distributed import agreed, gathered, wait_for_all
from nlsn_plugin.engine.training import checkpoints, randomness
from nlsn_plugin.errors import DataError, InterruptedRunError, SaveError, UserError

Options = dict[str, Any]


class Saver:
    """Saves a run. All processes have to call its methods.

    Args:
        model: the model that is trained.
        course: the options that shape the run, as `resumption.course_of` returns them.
    """

    def __init__(self, model: BaseModel, course: dict[str, Options | None]) -> None:
        self.model, self.course = model, course

    def save(self, epoch: int, iteration: int, validation_is_due: bool = False) -> None:
        """Save all that the run needs to go on.

        Args:
            epoch, iteration: how far the run is.
            validation_is_due: whether the network of this iteration has yet to be validated.
        """
        opt = self.model.opt
        if hasattr(self.model, 'check_skipped'):
            self.model.check_skipped()
        everyone = gathered(randomness.current())
        if opt['rank'] == 0:
            get_root_logger().info('Saving models and training states.')
            run = {
                'randomness': everyone,
                'course': self.course,
                'seed': opt['manual_seed'],
                'validation_is_due': validation_is_due,
            }
            checkpoints.save(self.model, epoch, iteration, run)
            checkpoints.prune(opt, opt['logger'].get('keep_last'))
        wait_for_all()

    @contextlib.contextmanager
    def saved_first(self, epoch: int, iteration: int, validation_is_due: bool = False) -> Iterator[None]:
        """Save what was reached if a signal, or data that cannot be read or written, ends the run in the block.

        The block may only raise such errors in all processes at once.
        """
        try:
            yield
        except (DataError, SaveError, InterruptedRunError) as error:
            if iteration == 0:
                raise
            state = Path(self.model.opt['path']['training_states']) / f'{iteration}.state'
            if not agreed(state.exists()):
                self.save(epoch, iteration, validation_is_due)
            raise self.goes_on_from(iteration, error) from error

    def goes_on_from(self, iteration: int, error: UserError) -> UserError:
        """The error to end a saved run with: what ended it, and how to go on."""
        if not isinstance(error, InterruptedRunError):
            return DataError(f'{error}; saved at iteration {iteration}, --auto_resume goes on from there')
        instead = ' in the place of --archive' * self.model.opt['archive']
        command = 'the same command' + f' with --auto_resume{instead}' * (not self.model.opt['auto_resume'])
        return InterruptedRunError(f'{error} and saved at iteration {iteration}; {command} goes on')
