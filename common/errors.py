"""The one exception a user can cause.

Its message is a sentence for a person: what was wrong, what is allowed, and the command that helps.
The command line prints the message alone, without a traceback.
"""


class RoadmapError(Exception):
    """Something a user can put right: a name, a path, a column, a missing tool."""


def unknown(kind: str, name: str, allowed: object, hint: str = "") -> RoadmapError:
    """The error for a name that is not in a registry.

    Args:
        kind: What the name should have been, such as ``"data set"``.
        name: What was given.
        allowed: An iterable of the names that exist.
        hint: A command that shows more, such as ``"python -m common data"``.
    """
    names = ", ".join(sorted(map(str, allowed)))  # type: ignore[call-overload]
    tail = f" See: {hint}" if hint else ""
    return RoadmapError(f"There is no {kind} named {name!r}; choose one of: {names}.{tail}")
