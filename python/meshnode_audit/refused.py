"""What is wrong, as a code and words."""


class Refused(Exception):
    """A statement that does not hold, with the code of docs/PROTOCOL.md for why."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Malformed(ValueError):
    """Bytes that are not what they should be. Whoever knows what they are gives it a code."""


def demand(condition, message):
    if not condition:
        raise Malformed(message)
