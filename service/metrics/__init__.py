"""What is measured, and how it is read.

catalog.py       every metric: name, help, labels, buckets
recorder.py      the calls that count
store.py         numbers that several processes count together
request_ring.py  finished requests, counted in bulk
exposition.py    the text that Prometheus reads
counts.py        the same by model version, to compute with
exporter.py      the process that writes it; scrapes.py asks it
process.py       `process_*`; device.py: `foldserve_device_*`
"""
