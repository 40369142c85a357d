"""`python -m kinema` is the command line."""

from kinema.cli.main import console

if __name__ == "__main__":
    console()
