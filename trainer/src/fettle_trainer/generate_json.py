"""JSON mode: lets only such tokens through that keep the answer the beginning of one JSON object.

A push-down automaton over bytes. Its state is immutable, so a token is tried by walking its bytes and the
state is replaced only when the token is taken. Modes:

    start      nothing but white space yet           first_key  after "{"      key  after "," in an object
    string     inside a string (`is_key` for keys)   escape     after "\\"      hex  inside \\uXXXX
    colon      after a key        value  a value must come        first_value  after "["
    after      after a value      minus zero int point fraction e e_sign exponent   inside a number
    literal    inside true, false, null               done       the object is closed

Bounds keep a weak model from never ending: runs of white space, digits of a number, depth.
"""

from dataclasses import dataclass, replace

MAX_SPACES = 24
MAX_DIGITS = 40
MAX_DEPTH = 48

_SPACE = frozenset(b" \t\n\r")
_DIGITS = frozenset(b"0123456789")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_ESCAPES = frozenset(b'"\\/bfnrt')
_LITERALS = {ord("t"): b"rue", ord("f"): b"alse", ord("n"): b"ull"}
_SPACED = frozenset({"start", "first_key", "key", "colon", "value", "first_value", "after"})
_NUMBER_ENDS = frozenset({"zero", "int", "fraction", "exponent"})


@dataclass(frozen=True, slots=True)
class JsonState:
    mode: str = "start"
    stack: str = ""
    is_key: bool = False
    left: bytes = b""
    run: int = 0

    @property
    def done(self) -> bool:
        return self.mode == "done"


def advance(state: JsonState, byte: int) -> JsonState | None:
    """State after one more byte, or None when no JSON object goes on like that."""
    mode = state.mode
    if mode == "string":
        return _in_string(state, byte)
    if mode in _SPACED:
        if byte in _SPACE:
            return replace(state, run=state.run + 1) if state.run < MAX_SPACES else None
        return _structure(replace(state, run=0), byte)
    if mode in _NUMBERS:
        return _in_number(state, byte)
    if mode == "escape":
        if byte == ord("u"):
            return replace(state, mode="hex", run=4)
        return replace(state, mode="string", run=0) if byte in _ESCAPES else None
    if mode == "hex":
        if byte not in _HEX:
            return None
        return replace(state, mode="string", run=0) if state.run == 1 else replace(state, run=state.run - 1)
    if mode == "literal":
        if byte != state.left[0]:
            return None
        rest = state.left[1:]
        return replace(state, left=rest) if rest else replace(state, mode="after", left=b"")
    return None


def advance_all(state: JsonState, token_bytes: bytes) -> JsonState | None:
    """State after a whole token; None when it is refused or the object ends before the token does."""
    current: JsonState | None = state
    for byte in token_bytes:
        if current is None:
            return None
        current = advance(current, byte)
    return current


def closing(state: JsonState) -> bytes:
    """The shortest bytes that make the answer a whole object."""
    here = {
        "start": b"{}", "key": b'"":0', "colon": b":0", "value": b"0",
        "minus": b"0", "point": b"0", "e": b"0", "e_sign": b"0",
        "literal": state.left, "string": b'":0' if state.is_key else b'"',
        "escape": b'n":0' if state.is_key else b'n"',
        "hex": b"0" * state.run + (b'":0' if state.is_key else b'"'),
    }.get(state.mode, b"")  # fmt: skip
    return here + bytes(ord("}") if opened == "{" else ord("]") for opened in reversed(state.stack))


def _in_string(state: JsonState, byte: int) -> JsonState | None:
    if byte == ord('"'):
        return replace(state, mode="colon" if state.is_key else "after", is_key=False)
    if byte == ord("\\"):
        return replace(state, mode="escape")
    return state if byte >= 0x20 else None


def _structure(state: JsonState, byte: int) -> JsonState | None:
    mode = state.mode
    if mode == "start":
        return _open(state, "{") if byte == ord("{") else None
    if mode in ("first_key", "key"):
        if byte == ord('"'):
            return replace(state, mode="string", is_key=True)
        return _close(state, byte) if mode == "first_key" else None
    if mode == "colon":
        return replace(state, mode="value") if byte == ord(":") else None
    if mode == "after":
        if byte == ord(","):
            return replace(state, mode="key" if state.stack[-1] == "{" else "value")
        return _close(state, byte)
    if mode == "first_value" and byte == ord("]"):
        return _close(state, byte)
    return _begin_value(state, byte)


def _begin_value(state: JsonState, byte: int) -> JsonState | None:
    if byte == ord('"'):
        return replace(state, mode="string")
    if byte in (ord("{"), ord("[")):
        return _open(state, chr(byte))
    if byte in _LITERALS:
        return replace(state, mode="literal", left=_LITERALS[byte])
    if byte == ord("-"):
        return replace(state, mode="minus", run=1)
    if byte in _DIGITS:
        return replace(state, mode="zero" if byte == ord("0") else "int", run=1)
    return None


def _open(state: JsonState, bracket: str) -> JsonState | None:
    if len(state.stack) >= MAX_DEPTH:
        return None
    return replace(state, mode="first_key" if bracket == "{" else "first_value", stack=state.stack + bracket)


def _close(state: JsonState, byte: int) -> JsonState | None:
    expected = "}" if state.stack[-1] == "{" else "]"
    if byte != ord(expected):
        return None
    rest = state.stack[:-1]
    return JsonState(mode="after" if rest else "done", stack=rest)


_NUMBERS = frozenset({"minus", "zero", "int", "point", "fraction", "e", "e_sign", "exponent"})
_DIGIT_GOES_TO = {
    "int": "int", "point": "fraction", "fraction": "fraction",
    "e": "exponent", "e_sign": "exponent", "exponent": "exponent",
}  # fmt: skip


def _in_number(state: JsonState, byte: int) -> JsonState | None:
    mode = state.mode
    if byte in _DIGITS:
        if state.run >= MAX_DIGITS:
            return None
        if mode == "minus":
            return replace(state, mode="zero" if byte == ord("0") else "int", run=state.run + 1)
        goal = _DIGIT_GOES_TO.get(mode)
        return replace(state, mode=goal, run=state.run + 1) if goal is not None else None
    if mode in ("zero", "int") and byte == ord("."):
        return replace(state, mode="point")
    if mode in _NUMBER_ENDS - {"exponent"} and byte in b"eE":
        return replace(state, mode="e")
    if mode == "e" and byte in b"+-":
        return replace(state, mode="e_sign")
    if mode not in _NUMBER_ENDS:
        return None
    return advance(replace(state, mode="after", run=0), byte)
