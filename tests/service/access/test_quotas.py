"""Limits of callers, over several API servers that share the counts."""

import random

import pytest

from foldserve.service.access.key_file import Key
from foldserve.service.access.key_table import KeyTable
from foldserve.service.access.quotas import BUCKET_NS, Quota, Quotas

S = 1_000_000_000


def quotas_of(rows_per_s: float = 0.0, queue_share: float = 0.0, api_servers: int = 2) -> list[Quota]:
    """One key's, in each API server."""
    shared = Quotas(api_servers, models=3)
    key = Key("k", b"d" * 32, 1, None, rows_per_s, queue_share)
    made = [shared.map().of(key, 7, index) for index in range(api_servers)]
    return [quota for quota in made if quota is not None]


def test_bucket_of_a_second_is_shared_and_fills_again() -> None:
    first, second = quotas_of(rows_per_s=100)
    now_ns = 50 * S
    for quota in (first, second) * 5:
        assert quota.wait_s(10, now_ns) == 0
        quota.take(10, now_ns)
    assert first.wait_s(10, now_ns) == pytest.approx(
        0.1
    )  # of 100 rows per second, 10 are there after a tenth
    assert second.wait_s(1, now_ns) == pytest.approx(0.01)
    assert second.wait_s(10, now_ns + S // 10) == 0


def test_request_larger_than_the_bucket_waits_until_it_is_full_and_is_paid_for_afterwards() -> None:
    first, second = quotas_of(rows_per_s=10)
    first.take(1, S)
    assert second.wait_s(1000, S) == pytest.approx(0.1)
    assert second.wait_s(1000, S + S // 10) == 0
    second.take(1000, S + S // 10)
    assert first.wait_s(1, S + S // 10) == pytest.approx(99.1)  # 100 s of rows, less the bucket without one


def test_request_of_more_rows_than_centuries_let_in_is_paid_for_as_far_as_the_clock_goes() -> None:
    first, second = quotas_of(rows_per_s=0.001)
    first.take(50_000_000, S)
    assert second.wait_s(1, S) == pytest.approx(2**63 / 1e9)
    second.take(50_000_000, S)
    assert first.wait_s(1, S) == pytest.approx(2**63 / 1e9)


@pytest.mark.parametrize("seed", range(5))
def test_however_requests_come_to_the_api_servers_no_more_than_the_rate_and_a_bucket_is_let_in(
    seed: int,
) -> None:
    draw = random.Random(seed)
    quotas = quotas_of(rows_per_s=1000, api_servers=4)
    now_ns, taken, longest = S, 0, 0
    for _ in range(20_000):
        now_ns += draw.randrange(200_000)
        rows = draw.choice((1, 1, 1, 8, 64))
        quota = draw.choice(quotas)
        if quota.wait_s(rows, now_ns) == 0:
            quota.take(rows, now_ns)
            taken, longest = taken + rows, max(longest, rows)
    allowed = 1000 * (now_ns - S + BUCKET_NS) / 1e9
    assert allowed * 0.95 - 64 < taken <= allowed + longest


def test_waiting_rows_are_summed_by_model_and_forgotten_with_their_api_server() -> None:
    shared = Quotas(2, models=3)
    key = Key("k", b"d" * 32, 1, None, 0.0, 0.25)
    first, second = (shared.map().of(key, 1023, index) for index in range(2))
    assert first is not None
    assert second is not None
    first.count(2, 5)
    second.count(2, 3)
    second.count(0, 1)
    assert [first.waiting_rows(model) for model in range(3)] == [1, 0, 8]
    first.count(2, -5)
    assert second.waiting_rows(2) == 3
    shared.map().api_server_died(1)
    assert [first.waiting_rows(model) for model in range(3)] == [0, 0, 0]
    assert (first.most_rows(1024), first.most_rows(1)) == (256, 1)


def test_key_keeps_its_counts_while_it_keeps_its_name_and_limits() -> None:
    shared, table = Quotas(1, models=1), KeyTable()
    mapped = shared.map()

    def in_force(*keys: Key) -> dict[str, Quota]:
        table.write(keys, mapped)
        read = table.read()
        assert read is not None
        assert [key for key, _ in read] == list(keys)
        found = {key.name: mapped.of(key, slot, 0) for key, slot in read}
        return {name: quota for name, quota in found.items() if quota is not None}

    a = Key("a", b"a" * 32, 1, ("m",), 10.0)
    b = Key("b", b"b" * 32, 3, None, 10.0)
    in_force(a, b)["b"].take(10, S)
    rotated = Key("b", b"c" * 32, 3, None, 10.0)
    assert in_force(rotated)["b"].wait_s(1, S) == pytest.approx(0.1)
    again = in_force(Key("new", b"n" * 32, 1, None, 10.0), rotated)
    assert again["new"].wait_s(10, S) == 0
    assert again["b"].wait_s(1, S) > 0
    assert in_force(Key("b", b"c" * 32, 3, None, 20.0))["b"].wait_s(10, S) == 0
    assert in_force(Key("b", b"c" * 32, 3)) == {}


def test_table_that_is_being_written_is_not_read() -> None:
    table = KeyTable()
    assert table.read() is None
    table.write([Key("a", b"a" * 32, 1)], Quotas(1, 1).map())
    with table._memory.map() as memory:
        memory[45] ^= 1
    assert table.read() is None
