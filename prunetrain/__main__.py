"""Start the command line from the installed package: `python -m prunetrain train`."""

import os

if "RANK" in os.environ:  # of torchrun; torch's C++ would warn of what is on purpose (`Ranks.parallel`), and asks when it is imported
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from prunetrain.commands import main

if __name__ == "__main__":
    main(prog_name="prunetrain")
