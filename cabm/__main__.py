"""`python -m cabm` runs the command."""

from cabm.cli.main import main

if __name__ == "__main__":
    main()
