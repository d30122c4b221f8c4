"""Who answers, who does not, and who cannot be blamed."""

from foldserve.service.server.liveness import Liveness


class Children:
    """Two children that answer, or not, what they are asked."""

    def __init__(self) -> None:
        self.liveness: Liveness[str] = Liveness(limit_s=4.0)
        self.answered = {"a": 0, "b": 0}
        self.asked: list[str] = []
        self.now_ns = 0

    def check(self, *answering: str) -> list[str]:
        self.now_ns += 10**9
        self.asked.clear()
        silent = self.liveness.check(("a", "b"), self.answered.__getitem__, self.asked.append, self.now_ns)
        for child in answering:
            if child in self.asked:
                self.answered[child] = self.now_ns + 1
        return silent


def test_child_that_answers_is_asked_again_and_never_silent() -> None:
    children = Children()
    for _ in range(20):
        assert children.check("a", "b") == []
        assert children.asked == ["a", "b"]


def test_child_that_does_not_answer_is_silent_after_the_limit_and_is_not_asked_again_meanwhile() -> None:
    children = Children()
    looks = [children.check("a") for _ in range(8)]
    assert [bool(silent) for silent in looks] == [False] * 5 + [
        True
    ] * 3  # asked, and then more than four looks
    assert looks[-1] == ["b"]
    assert children.asked == ["a"]


def test_child_that_answers_late_but_within_the_limit_is_not_silent() -> None:
    children = Children()
    for _ in range(4):
        assert children.check("a") == []
    children.answered["b"] = children.now_ns
    assert all(children.check("a", "b") == [] for _ in range(10))


def test_pause_of_the_whole_machine_blames_nobody() -> None:
    children = Children()
    children.check("a")
    children.now_ns += 3600 * 10**9
    assert children.check("a") == []


def test_next_child_in_the_place_of_one_that_ended_is_asked_anew() -> None:
    liveness: Liveness[str] = Liveness(limit_s=4.0)
    asked: list[str] = []
    for life in range(10):
        assert liveness.check((f"life {life}",), lambda child: 0, asked.append, 10**9) == []
    assert len(asked) == 10
