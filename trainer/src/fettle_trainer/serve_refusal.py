"""A request that cannot be answered, with its code from the error catalogue."""


class ServeRefusal(Exception):
    """`code` is one of the contract's error codes; the message says what, where, and how to mend it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
