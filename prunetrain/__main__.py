"""Start the command line from the installed package: `python -m prunetrain train`."""

from prunetrain.commands import main

if __name__ == "__main__":
    main(prog_name="prunetrain")
