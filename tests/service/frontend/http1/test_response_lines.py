"""Lines that many answers share are those of each of them."""

from foldserve.service.frontend.http1.response_lines import ResponseLines


def test_the_date_is_that_of_the_second_also_after_the_clock_was_set_back() -> None:
    now_s = 1_000_000_000.25
    lines = ResponseLines(lambda: now_s)
    seen = []
    for step_s in (0.5, 0.5, -3600.0, 0.0):
        seen.append(lines.date())
        now_s += step_s
    assert seen == [
        *[b"date: Sun, 09 Sep 2001 01:46:40 GMT\r\n"] * 2,
        b"date: Sun, 09 Sep 2001 01:46:41 GMT\r\n",
        b"date: Sun, 09 Sep 2001 00:46:41 GMT\r\n",
    ]
    assert lines.date_value() == b"Sun, 09 Sep 2001 00:46:41 GMT"


def test_the_stages_of_a_batch_are_told_anew_when_one_of_them_differs() -> None:
    lines = ResponseLines()
    told = [
        lines.batch_timing(*stages) for stages in ((1e-3, 2e-3, 3e-3), (1e-3, 2e-3, 3e-3), (1e-3, 2e-3, 4e-3))
    ]
    assert told[0] is told[1]
    assert told[0] == b"gather;dur=1.000, run;dur=2.000, scatter;dur=3.000, "
    assert told[2] == b"gather;dur=1.000, run;dur=2.000, scatter;dur=4.000, "
