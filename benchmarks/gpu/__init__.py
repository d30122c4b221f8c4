"""What `python -m benchmarks.gpu` is made of.

    networks.py      which networks, in which precisions; their artifacts and how they are served
    records.py       what is measured, a line of JSON each: written at once, read by the report
    device.py        how busy the GPU is meanwhile
    machine.py       card, driver and versions (a program of its own)
    loops.py         so many sessions in a loop, each in a thread of its own, without a server
    in_process.py    the sessions that are looped: ONNX Runtime, TorchScript, torch.compile (a program of its own)
    scripted.py      TorchScript files of a network, folded and unfolded
    served.py        the same networks through foldserve, and a worker that is killed under load
    report.py        the tables
    thresholds.py    what was promised against what was measured

Everything that touches the GPU runs in a process of its own, so that each part begins with an empty device, its CPU
time is its own, and one that crashes or hangs costs no other its figures.
"""
