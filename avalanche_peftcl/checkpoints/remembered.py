"""What any part of a strategy remembers, taken down and set back."""

from collections.abc import Iterator
from functools import singledispatch
from typing import Any

from avalanche_peftcl.checkpoints.joints import State, Stateful, Surroundings
from avalanche_peftcl.checkpoints.values import Asked, UnknownKindError, load_value, value_state
from avalanche_peftcl.errors import CheckpointError

_WAY_OUT = 'remembers = ("name", ...), or remembers = () for nothing'


@singledispatch
def host_state(part: Any, around: Surroundings) -> Any:
    """Return the state of an object of a class that says nothing of it: all attributes.

    A package registers how the state of a class of somebody else is taken down, and with
    :func:`load_host_state` how it is set back, in the module that builds the object. Classes
    derived from that one are kept so too if they say by ``remembers`` what they add.

    Args:
        part: A plugin, metric or strategy.
        around: What the state may refer to.

    Returns:
        Mappings, lists, tuples, sets, numbers, text, ``None`` and tensors.

    Raises:
        CheckpointError: If the state cannot be known; the message says what holds it up.

    Example:
        >>> class Buffer:  # somebody else's
        ...     def __init__(self):
        ...         self.lock, self.seen = object(), [1, 2]
        >>> around = Surroundings(None)
        >>> state_of(Buffer(), around)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        avalanche_peftcl.errors.CheckpointError: Buffer.lock is a object, whose state is ...
        >>> @host_state.register
        ... def _(part: Buffer, around: Surroundings):
        ...     return {"seen": part.seen}
        >>> @load_host_state.register
        ... def _(part: Buffer, state: dict, around: Surroundings):
        ...     part.seen = state["seen"]
        >>> new = Buffer()
        >>> load_state_of(new, {"host": {"seen": [1, 2, 3]}}, around)
        >>> new.seen
        [1, 2, 3]
    """
    return _attributes(part, _own_names(part), around, named=False)


@singledispatch
def load_host_state(part: Any, state: State, around: Surroundings) -> None:
    """Set an object to what :func:`host_state` returned.

    Args:
        part: The object, as it was built.
        state: The state.
        around: What it may refer to.

    Raises:
        CheckpointError: If it is that of something else.
    """
    _set_attributes(part, state, around)


def state_of(part: Any, around: Surroundings) -> dict[str, Any]:
    """Return all that an object remembers.

    Args:
        part: A plugin, metric, strategy or part of one.
        around: What the state may refer to.

    Returns:
        Under ``host`` what :func:`host_state` says, unless the object speaks for itself; under
        ``attributes`` those that ``remembers`` names; under ``own`` its ``state_dict()``.

    Raises:
        CheckpointError: If there is no way to know it.
    """
    ways, names = _ways(part)
    state: dict[str, Any] = {}
    if "host" in ways:
        state["host"] = host_state(part, around)
    if "attributes" in ways:
        state["attributes"] = _attributes(part, names, around, named=True)
    if "own" in ways:
        state["own"] = part.state_dict()
    return state


def load_state_of(part: Any, state: State, around: Surroundings) -> None:
    """Set an object to what :func:`state_of` returned.

    Raises:
        CheckpointError: If it is the state of something else.
    """
    ways, names = _ways(part)
    kind = type(part).__name__
    if state.keys() != ways:
        told = " and ".join(sorted(state)) or "nothing"
        raise CheckpointError(f"of {kind} was kept {told}, now it is {' and '.join(sorted(ways))}")
    if "host" in ways:
        load_host_state(part, state["host"], around)
    if "attributes" in ways:
        if state["attributes"].keys() != set(names):
            now = ", ".join(names) or "nothing"
            was = ", ".join(state["attributes"]) or "nothing"
            raise CheckpointError(f"{kind} remembered {was}, now it remembers {now}")
        _set_attributes(part, state["attributes"], around)
    if "own" in ways:
        part.load_state_dict(state["own"])


def obstacle(part: Any, around: Surroundings) -> str | None:
    """Say why the state of an object cannot be known; ``None`` if it can."""
    try:
        ways, _ = _ways(part)
        if ways != {"own"}:  # which may have no answer before it has trained
            state_of(part, around)
    except CheckpointError as error:
        return str(error)
    return None


def _ways(part: Any) -> tuple[set[str], list[str]]:
    """Return how a part is kept, and the names of attributes that it says."""
    kind = type(part)
    host = next((c for c in kind.__mro__[:-1] if c in host_state.registry), None)
    if host is not None and host not in load_host_state.registry:
        raise CheckpointError(f"{host.__name__} has a host_state and no load_host_state")
    own = kind.__mro__[: kind.__mro__.index(host)] if host else kind.__mro__
    said = [c for c in reversed(own) if "remembers" in vars(c)]
    ways = {"attributes"} if said else set()
    if isinstance(part, Stateful) and any("state_dict" in vars(c) for c in own):
        ways.add("own")
    if own and host and not ways:
        raise CheckpointError(
            f"{kind.__name__} is a {host.__name__} and does not say what it keeps beside: "
            f"{_WAY_OUT}"
        )
    if host or not ways:
        ways.add("host")
    return ways, [name for c in said for name in _names(c)]


def _says(part: Any) -> bool:
    """Whether the class of an object says what it keeps, or somebody said it of the class."""
    kinds = type(part).__mro__[:-1]
    return any("remembers" in vars(c) or c in host_state.registry for c in kinds)


def _names(kind: type) -> Iterator[str]:
    names = vars(kind)["remembers"]
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{kind.__name__}.remembers must be a tuple of names, not {names!r}; write "
            'remembers = ("name",)'
        )
    yield from names


def _own_names(part: Any) -> list[str]:
    if not hasattr(part, "__dict__"):
        raise CheckpointError(
            f"{type(part).__name__} keeps its attributes in slots; say which: {_WAY_OUT}"
        )
    return list(vars(part))


def _attributes(part: Any, names: list[str], around: Surroundings, *, named: bool) -> State:
    kept, kind = {}, type(part).__name__
    asked = Asked(_says, lambda inner: state_of(inner, around))
    for name in names:
        try:
            value = getattr(part, name)
        except AttributeError:
            raise CheckpointError(
                f"{kind} remembers {name!r} and has no such attribute; set it in __init__"
            ) from None
        try:
            found = value_state(value, asked, named=named)
        except UnknownKindError as unknown:
            way_out = "name what is plain in it" if named else f"say what {kind} keeps: {_WAY_OUT}"
            raise CheckpointError(
                f"{kind}.{name} is a {unknown}, whose state is not known; {way_out}"
            ) from None
        if found is not None:
            kept[name] = found
    return kept


def _set_attributes(part: Any, state: State, around: Surroundings) -> None:
    def load(inner: Any, saved: State) -> None:
        load_state_of(inner, saved, around)

    for name, saved in state.items():
        current = getattr(part, name, None)
        value = load_value(current, saved, f"{type(part).__name__}.{name}", load)
        if value is not current:
            setattr(part, name, value)
