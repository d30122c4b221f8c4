"""Whose turn it is: one reader's always; of several, that of the one who has the valid packet."""

from foldserve.service.ipc.scoreboard import Dimensions, MappedScoreboard, Scoreboard
from foldserve.service.ipc.ticket_queue import TicketQueue
from foldserve.service.worker.turn import SharedTurn, SoleTurn, turn_of


def board() -> MappedScoreboard:
    return Scoreboard(Dimensions(1, 1, 1, 1)).map()


def queue_of_two() -> TicketQueue:
    """With its first turn, as of a model that is added."""
    queue = TicketQueue()
    queue.pass_turn(0)
    return queue


def test_sole_reader_may_always_read_and_keeps_what_it_could_not_use() -> None:
    turn = turn_of(TicketQueue(), board(), 0, readers=1)
    assert isinstance(turn, SoleTurn)
    assert turn.acquire(True) == b""
    turn.pass_on(b"left")
    assert turn.may_read
    assert turn.acquire(False) == b"left"


def test_only_one_of_two_has_the_turn_and_what_it_leaves_goes_to_the_other() -> None:
    queue, shared = queue_of_two(), board()
    first, second = SharedTurn(queue, shared, 0), SharedTurn(queue, shared, 0)
    assert first.acquire(False) == b""
    assert (first.may_read, second.acquire(False)) == (True, None)
    first.pass_on(b"left")
    assert not first.may_read
    assert second.acquire(True) == b"left"
    assert second.may_read
    assert first.acquire(False) is None


def test_replaced_turn_is_not_passed_on_and_the_tickets_in_hand_are_kept() -> None:
    queue, shared = queue_of_two(), board()
    stopped, other = SharedTurn(queue, shared, 0), SharedTurn(queue, shared, 0)
    assert stopped.acquire(False) == b""
    shared.turn[0] += 1
    queue.pass_turn(shared.turn[0])
    assert other.acquire(False) == b""  # goes on without the one that does not move
    stopped.pass_on(b"in hand")
    other.pass_on(b"")
    assert stopped.acquire(True) == b"in hand"
    assert not stopped.may_read  # it has these, and not the turn
    stopped.pass_on(b"")
    assert other.acquire(False) == b""
    assert other.may_read


def test_packet_of_an_old_generation_gives_its_tickets_and_no_turn() -> None:
    queue, shared = queue_of_two(), board()
    turn = SharedTurn(queue, shared, 0)
    assert turn.acquire(False) == b""
    turn.pass_on(b"left")
    shared.turn[0] += 1
    queue.pass_turn(1)
    assert turn.acquire(False) == b"left"
    assert not turn.may_read
    turn.pass_on(b"")
    assert turn.acquire(False) == b""
    assert turn.may_read


def test_empty_packet_of_an_old_generation_is_passed_over() -> None:
    queue, shared = queue_of_two(), board()
    shared.turn[0] = 5
    turn = SharedTurn(queue, shared, 0)
    assert turn.acquire(False) is None
    queue.pass_turn(5)
    assert turn.acquire(False) == b""
    assert turn.may_read


def test_turn_that_is_renewed_while_nobody_reads_is_there_for_the_first_who_does() -> None:
    queue, shared = queue_of_two(), board()
    dead, next_one, third = (SharedTurn(queue, shared, 0) for _ in range(3))
    assert dead.acquire(False) == b""  # and never gives it
    for _ in range(20):  # workers that die while they load, or batches that take long
        queue.renew_turn(shared, 0)
    assert next_one.acquire(False) == b""
    assert next_one.may_read
    assert third.acquire(False) is None
    queue.renew_turn(shared, 0)
    assert third.acquire(False) == b""
    assert third.may_read
