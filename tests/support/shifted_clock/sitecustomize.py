"""Python imports this first where its directory is on the path: the wall clock is shifted.

By so many seconds as the file says that `SHIFTED_CLOCK_FILE` names, read at every look, so that a
test can let the clock of a running process jump. The monotonic clock stays as it is. (libfaketime
would do it below Python, but answers EINVAL to the absolute sleeps of Python 3.11 and newer.)
"""

import os
import time
from pathlib import Path

_file = Path(os.environ["SHIFTED_CLOCK_FILE"])
_time, _time_ns = time.time, time.time_ns


def _shift() -> int:
    return int(_file.read_text())


time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + _shift() * 10**9
