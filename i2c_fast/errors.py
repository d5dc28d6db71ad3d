"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: one line that names the option or file and the way out.

    The command line prints the message without a traceback and exits with status 2; a library user catches it like any
    other exception.
    """
