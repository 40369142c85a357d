"""The benchmark runner: `kinema bench VERB`. Each verb is one file, listed in `registry.py`."""
