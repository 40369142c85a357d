"""The questions. A file here with a `QUESTION` is one; its name is the file's."""
