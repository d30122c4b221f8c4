"""What a model and a version may be called, in paths, URLs and folders."""

import re
from typing import Final

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

VERSION_NAME: Final = re.compile(r"[1-9][0-9]{0,17}")
