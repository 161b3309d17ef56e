"""The one error that is the user's to mend: a file, a flag or a value that is not what it must be.

Doors print it as a single line without a traceback and exit with code 2; everything else that is
raised is a fault of ours and keeps its traceback.
"""


class UserError(ValueError):
    """Bad input. The message names the thing, what was found, what was expected, and the remedy."""
