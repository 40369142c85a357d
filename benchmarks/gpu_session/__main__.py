"""`python -m kinema.bench.gpu_session` is `kinema bench gpu-session`."""

import sys

from kinema.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "gpu-session", *sys.argv[1:]]))
