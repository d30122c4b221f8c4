"""What the statistics extension makes of /metrics."""

from foldserve.service.protocols.oip.statistics import statistics

EXPOSITION = """\
# TYPE foldserve_requests_total counter
foldserve_requests_total{code="200",model="a",protocol="oip",version="1"} 3.0
foldserve_requests_total{code="400",model="a",protocol="oip",version="1"} 2.0
foldserve_requests_total{code="200",model="a",protocol="oip",version="2"} 10.0
foldserve_requests_total{code="200",model="a.b",protocol="oip",version="1"} 100.0
foldserve_requests_total{code="200",model="axb",protocol="oip",version="1"} 1000.0
"""


def test_only_what_is_asked_for_is_counted():
    counted = statistics(EXPOSITION, [("a", "1"), ("a.b", "1"), ("none", "1")])
    assert [(one["name"], one["version"]) for one in counted] == [("a", "1"), ("a.b", "1"), ("none", "1")]
    assert [one["inference_stats"]["success"]["count"] for one in counted] == [3, 100, 0]
    assert [one["inference_stats"]["fail"]["count"] for one in counted] == [2, 0, 0]
