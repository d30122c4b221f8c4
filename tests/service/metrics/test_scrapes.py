"""Scrapes in an API server: another process writes them, many share one, and none waits for ever."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from foldserve.service.errors import MetricsUnavailable
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import Dimensions
from foldserve.service.logs.lines import LogStyle
from foldserve.service.metrics.exporter import ExporterPlan
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.metrics.scrapes import Scrapes
from tests.service.repositories import metrics_of, table_of


@pytest.fixture
def metrics() -> Metrics:
    return metrics_of(("m", "1"))


@pytest.fixture
def plan(metrics: Metrics) -> ExporterPlan:
    transport = Transport(Dimensions(api_servers=1, workers=1, models=1, instances=1), Sizes(16, 2**20))
    parts = (metrics.store.memory, metrics.spec, transport.arenas, transport.board)
    return ExporterPlan(*parts, table_of(*metrics.rows), {}, os.getpid(), LogStyle("info"))


def counted(body: bytes) -> float:
    line = 'foldserve_requests_total{code="404",model="",protocol="other",version=""} '
    return float(body.decode().partition(line)[2].split("\n")[0])


def test_numbers_are_those_of_the_moment_of_each_scrape(plan: ExporterPlan, metrics: Metrics) -> None:
    async def main() -> None:
        scrapes = Scrapes(plan, 60)
        for expected in range(3):
            body, content_type = await scrapes("")
            assert counted(body) == expected
            assert content_type.startswith("text/plain; version=0.0.4")
            metrics.request_finished("other", "", "", 404, 0.001)
        body, content_type = await scrapes("application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
        await scrapes.close()

    asyncio.run(main())


def test_many_at_once_share_expositions_that_have_what_was_counted_before_them(
    plan: ExporterPlan, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        scrapes = Scrapes(plan, 60)
        asked = []
        ask = Scrapes._ask

        async def counting(self: Scrapes, wanted: bytes) -> bytes:
            asked.append(wanted)
            return await ask(self, wanted)

        monkeypatch.setattr(Scrapes, "_ask", counting)
        first = asyncio.create_task(scrapes(""))
        while not asked:
            await asyncio.sleep(0)
        metrics.request_finished("other", "", "", 404, 0.001)
        others = await asyncio.gather(*(scrapes("") for _ in range(50)))
        assert [counted(body) for body, _ in others] == [1.0] * 50
        await first
        assert asked == [b"t", b"t"]
        await scrapes.close()

    asyncio.run(main())


def test_a_client_that_leaves_takes_nobody_elses_answer_along(plan: ExporterPlan) -> None:
    async def main() -> None:
        scrapes = Scrapes(plan, 60)
        gone, stays = asyncio.create_task(scrapes("")), asyncio.create_task(scrapes(""))
        await asyncio.sleep(0)
        gone.cancel()
        assert counted((await stays)[0]) == 0
        await scrapes.close()

    asyncio.run(main())


def test_a_process_that_was_killed_is_replaced_within_the_scrape(plan: ExporterPlan) -> None:
    async def main() -> None:
        scrapes = Scrapes(plan, 60)
        await scrapes("")
        assert scrapes._exporter is not None
        process = scrapes._exporter.process
        process.kill()
        assert counted((await scrapes(""))[0]) == 0
        assert scrapes._exporter.process.pid != process.pid
        await scrapes.close()

    asyncio.run(main())


def test_a_process_that_gives_no_answer_is_told_and_replaced_at_the_next_scrape(plan: ExporterPlan) -> None:
    async def main() -> None:
        scrapes = Scrapes(plan, 60)
        await scrapes("")
        assert scrapes._exporter is not None
        scrapes._exporter.process.send_signal(signal.SIGSTOP)
        scrapes._answer_s = 0.2
        with pytest.raises(MetricsUnavailable, match="one that hangs is replaced"):
            await scrapes("")
        scrapes._answer_s = 60
        assert counted((await scrapes(""))[0]) == 0
        await scrapes.close()

    asyncio.run(main())


def test_a_process_that_cannot_be_started_is_told(
    plan: ExporterPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(self: Scrapes) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(Scrapes, "_start", cannot)
    with pytest.raises(MetricsUnavailable, match="cannot be started"):
        asyncio.run(Scrapes(plan, 60)(""))


def test_no_thread_to_start_the_process_from_is_told_alike(
    plan: ExporterPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", cannot)
    with pytest.raises(MetricsUnavailable, match="cannot be started"):
        asyncio.run(Scrapes(plan, 60)(""))


def test_the_process_ends_when_its_api_server_is_gone(plan: ExporterPlan) -> None:
    async def main() -> None:
        scrapes = Scrapes(plan, 60)
        await scrapes("")
        assert scrapes._exporter is not None
        scrapes._exporter.ours.close()
        assert await asyncio.to_thread(scrapes._exporter.process.wait, 60) == 0

    asyncio.run(main())


def test_an_idle_process_uses_no_cpu(plan: ExporterPlan) -> None:
    async def main() -> None:
        scrapes = Scrapes(plan, 60)
        await scrapes("")
        assert scrapes._exporter is not None
        status = Path(f"/proc/{scrapes._exporter.process.pid}/status")

        def line(begin: str) -> str:
            return next(line for line in status.read_text().splitlines() if line.startswith(begin))

        while "(sleeping)" not in line("State:"):
            await asyncio.sleep(0.01)  # until it waits for the next scrape
        before = line("voluntary_ctxt")
        await asyncio.sleep(0.5)  # what is looked at is that nothing happens in it
        assert line("voluntary_ctxt") == before
        await scrapes.close()

    asyncio.run(main())
