"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: one line that names the option or file and the way out.

    The command line prints the message without a traceback and exits with status 2; a library user catches it like any
    other exception.
    """


def printable(text: str) -> str:
    """A text with line ends and other control characters escaped: names in files may hold what commands a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
