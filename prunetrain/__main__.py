"""Start the command line from the installed package: `python -m prunetrain train`.

A worker exits without Python's finalization: gloo's threads may still be releasing tensors of the last exchange, for which they need the
interpreter; if that is being finalized, the process dies with a C++ error ("terminate called without an active exception").
"""

import atexit
import os
import sys
from contextlib import suppress

_code = 1  # for an exception out of `main`, whose traceback Python prints before it calls `_exit_without_finalizing`


def _exit_without_finalizing() -> None:
    """Flush the output and end this process at once."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the reader has gone, or the stream was closed
            stream.flush()
    os._exit(_code)


if __name__ == "__main__":
    if "RANK" in os.environ:  # set by torchrun and `training.launching`
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch would warn about what `Ranks.parallel` does on purpose
        atexit.register(_exit_without_finalizing)  # registered first, so called last

    from prunetrain.commands import main  # after setting the environment that torch reads

    try:
        main(prog_name="prunetrain")
    except SystemExit as end:
        _code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
