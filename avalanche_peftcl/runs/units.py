"""Numbers as people say them: seconds."""

_STEPS = ((86400, "day", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def duration(seconds: float) -> str:
    """Return a time with two figures or two units.

    Example:
        >>> [duration(s) for s in (0.0123, 4.26, 47.9, 59.7, 200, 3600, 9000, 200000)]
        ['0.012 s', '4.3 s', '48 s', '1 min', '3 min 20 s', '1 h', '2 h 30 min', '2 days 8 h']
    """
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    for unit, name, below, fine in _STEPS:
        smaller = round(seconds / below)
        if smaller >= unit // below:
            whole, rest = divmod(smaller, unit // below)
            plural = "s" if name == "day" and whole > 1 else ""
            return f"{whole} {name}{plural}" + (f" {rest} {fine}" if rest else "")
    return f"{seconds:.0f} s"
