"""The one exception for mistakes that a user can mend."""

import struct


class UserError(Exception):
    """Says in one line what is wrong, where, and what to do; the command line prints it and exits with 2."""


def plain(error: BaseException) -> str:
    """What an exception of a parser says about a damaged file, in one line of plain words."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, struct.error):
        return "it ends too early"
    if isinstance(error, IndexError):
        return "it names something that is not there"
    if isinstance(error, TypeError | AttributeError) or not str(error):
        return "a part of it is of the wrong kind"
    return str(error).splitlines()[0][:200]
