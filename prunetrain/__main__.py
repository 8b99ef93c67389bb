"""Start the command line from the installed package: `python -m prunetrain train`.

A worker ends without Python's finalization: gloo's threads may still be letting go of tensors of the last exchange, which needs the
interpreter, and asking for it then ends the process with a C++ error ("terminate called without an active exception").
"""

import atexit
import os
import sys
from contextlib import suppress

_code = 1  # unless `main` ends otherwise: by an exception, which Python has told before it calls `_leave`


def _leave() -> None:
    """End this process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # what reads it has gone, or it was closed
            stream.flush()
    os._exit(_code)


if __name__ == "__main__":
    if "RANK" in os.environ:  # of torchrun and of `training.launching`
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it would warn of what is on purpose (`Ranks.parallel`)
        atexit.register(_leave)  # before all others, so that it is called after them

    from prunetrain.commands import main  # now that the environment is what torch is to find

    try:
        main(prog_name="prunetrain")
    except SystemExit as end:
        _code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
