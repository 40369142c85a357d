"""`python -m kinema` is the command line."""

from kinema.cli import console

if __name__ == "__main__":
    console()
