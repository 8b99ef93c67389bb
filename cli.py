"""Start the command line from a checkout: `python cli.py train`."""

from prunetrain.commands import main

if __name__ == "__main__":
    main(prog_name="cli.py")
