"""The one exception that means: the user can put this right. The CLI prints its text and exits with code 2."""


class UserError(Exception):
    """One line that says where, what is wrong, why, and what to do; never shown with a traceback."""
