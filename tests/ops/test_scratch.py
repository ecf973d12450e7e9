from __future__ import annotations

import threading

import pytest
import torch

from nlsn_plugin.ops.scratch import ALIGNMENT, Scratch, scratch

CPU = torch.device('cpu')


def arena(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_a_name_keeps_its_memory() -> None:
    memory = Scratch(arena(1000))
    rows = memory.take('rows', (6, 4), torch.float32)
    assert memory.take('rows', (6, 4), torch.float32).data_ptr() == rows.data_ptr()
    assert memory.take('rows', (2, 3), torch.float32).data_ptr() == rows.data_ptr()
    assert memory.take('rows', (6, 4), torch.bfloat16).data_ptr() != rows.data_ptr()


@pytest.mark.parametrize('size', [0, 200, 2**20])
def test_names_share_nothing_whether_there_is_room_for_them_or_not(size: int) -> None:
    memory = Scratch(arena(size))
    shapes = [(5, 3), (7,), (1,), (0, 4), (8, 11)]
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    tensors = [memory.take(f'{dtype} {shape}', shape, dtype) for dtype in dtypes for shape in shapes]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, tensor in enumerate(tensors):
        assert (tensor == number).all()
        assert tensor.data_ptr() % ALIGNMENT == 0


def test_more_of_a_name_has_room() -> None:
    memory = Scratch(arena(1000))
    little, other = memory.take('rows', (2, 2), torch.float32), memory.take('other', (2, 2), torch.float32)
    more = memory.take('rows', (50, 50), torch.float32)
    other.zero_()
    more.fill_(1)
    assert (other == 0).all()
    assert memory.take('rows', (2, 2), torch.float32).shape == little.shape


def address_of_a_call() -> int:
    with scratch(CPU) as memory:
        return memory.take('rows', (9,), torch.float32).data_ptr()


def test_calls_of_a_thread_share_memory_also_after_one_that_failed() -> None:
    address = address_of_a_call()
    with pytest.raises(MemoryError), scratch(CPU):
        raise MemoryError
    assert address_of_a_call() == address


def test_a_call_within_a_call_and_another_thread_have_their_own() -> None:
    addresses = []
    with scratch(CPU) as memory:
        addresses.append(memory.take('rows', (9,), torch.float32).data_ptr())
        addresses.append(address_of_a_call())
        thread = threading.Thread(target=lambda: addresses.append(address_of_a_call()))
        thread.start()
        thread.join()
    assert len(set(addresses)) == 3


def test_what_an_inference_began_training_goes_on_with() -> None:
    addresses = []

    def calls() -> None:  # in a thread of its own, where nothing is kept yet
        for mode in (True, False):
            with torch.inference_mode(mode), scratch(CPU) as memory:
                rows = memory.take('rows', (9,), torch.float32).fill_(1)
                addresses.append(rows.data_ptr())

    thread = threading.Thread(target=calls)
    thread.start()
    thread.join()
    assert len(addresses) == 2
    assert len(set(addresses)) == 1
