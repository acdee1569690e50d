"""What a user can do wrong, said in one sentence: the command line prints it, without a traceback."""


class EdgemtError(Exception):
    """Something failed: what, where, and what to do about it. The command line exits with 1."""

    exit_code = 1


class UsageError(EdgemtError):
    """The request itself is wrong (an argument, a language pair, an input). The command line exits with 2."""

    exit_code = 2
