"""Updates that are skipped because they are not finite, counted and named by all processes alike."""

from __future__ import annotations

import json
import math
from pathlib import Path

from conftest import run

ONE_OF_TWO = """
import json, os, pathlib, sys
child = os.fork()
rank = 1 if child == 0 else 0
import torch
import torch.distributed as dist
from nlsn_plugin import NLSNModel
from nlsn_plugin.errors import NonFiniteLossError

dist.init_process_group('gloo', init_method=f'file://{sys.argv[1]}/meet', rank=rank, world_size=2)
model = NLSNModel.__new__(NLSNModel)
model.opt = {'dist': True, 'world_size': 2}
model.nonfinite, model.nonfinite_limit = 0, 1
model.scaler = torch.amp.GradScaler('cpu', enabled=False)

def step(number, finite):  # in fp16 each process knows of its own loss alone
    loss = torch.tensor(1.0 if finite else torch.inf)
    model.since_log.append(([f'{rank}{number}'], loss.isfinite(), {'l_pix': loss}))

model.since_log = []
step('a', True)
step('b', rank == 0)
model.check_skipped()
found = {'kept': model.state()['nonfinite']}
found['mean'] = model.get_current_log()['l_pix']
step('c', rank == 0)
try:
    model.get_current_log()
except NonFiniteLossError as error:
    found['said'] = str(error)
pathlib.Path(sys.argv[1], f'{rank}.json').write_text(json.dumps(found))
dist.barrier()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_loss_that_is_not_finite_in_one_process_is_counted_in_all(tmp_path: Path) -> None:
    run('-c', ONE_OF_TWO, tmp_path, cwd=tmp_path)
    first, second = (json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1))
    assert first == second
    assert first['kept'] == 1
    assert math.isclose(first['mean'], 1)
    assert first['said'] == (
        '2 updates were skipped so far, their losses or gradients not finite; last of: 0c, 1c; nonfinite_limit is 1'
    )
