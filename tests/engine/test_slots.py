"""Slots are taken, given back and kept when the pool grows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from diffguard_pl.engine.slots import AsyncFlags, SlotPool


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 8), st.randoms())
def test_rows_are_where_they_were_put_whatever_is_given_back(counts, size, chance):
    pool, kept, number = SlotPool(size), dict[int, int](), 0
    for count in counts:
        numbers = torch.arange(number, number + count)
        number += count
        slots = pool.put({"column": numbers.float().view(-1, 1), "number": numbers})
        assert not kept.keys() & set(slots)
        kept |= dict(zip(slots, numbers.tolist(), strict=True))
        for slot in [slot for slot in kept if chance.random() < 0.5]:
            del kept[slot]
            pool.give_back([slot])
        index = torch.tensor(list(kept), dtype=torch.long)
        assert pool.tensors["column"][index, 0].tolist() == list(kept.values())
        assert pool.tensors["number"][index].tolist() == list(kept.values())


def test_a_pool_that_is_used_again_and_again_does_not_grow():
    pool = SlotPool(4)
    for _ in range(10):
        pool.give_back(pool.put({"x": torch.rand(4, 3)}))
    assert pool.size == 4


def test_flags_come_back_as_a_list():
    assert AsyncFlags(torch.tensor([True, False, True])).wait() == [True, False, True]
