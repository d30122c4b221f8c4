"""Published classes of packages, exported from their configurations: what `benchmarks/published.py --packages` runs.

    published_class.py, vision.py, language_and_sound.py   which classes, how they are built, what they take
    install.py       the pinned packages in a folder of their own, and no connection afterwards
    trial.py         one class exported, and its files compared with it
    report.py        the table and the counts

torchaudio is left out: its wheel wants a CUDA library at import. Of torchvision the classes that need its compiled
operators (boxes) are left out for the same reason.
"""
