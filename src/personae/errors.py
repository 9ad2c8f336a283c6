"""The exceptions of personae, and nothing else.

    PersonaeError
    ├── UsageError              the caller asked for what cannot be      exit 2
    │   ├── InputError            a file or row that cannot be used
    │   ├── UnknownPersona
    │   ├── DuplicatePersona
    │   ├── MissingCapability
    │   └── InvalidSettings
    ├── RenderingError          template and spans disagree              exit 2
    │   ├── UnstablePrefix        the frame changes when the reply is added
    │   └── ContextOverflow       frame and row do not fit the model
    ├── EvidenceError           tables that may not be combined          exit 2
    │   └── IncomparableEvidence
    ├── BackendError            model, server or disk failed             exit 3
    │   ├── ModelNotFound
    │   ├── CorruptModel
    │   ├── OutOfMemory
    │   ├── ServerError           carries retryable
    │   └── StorageError
    └── NumericsError           a finite number was promised             exit 4

A message has three parts: what happened (with the values and the place), why it matters or what causes
it, and what to do. `hint` carries the last part so that a program can show it apart.
"""

from __future__ import annotations


class PersonaeError(Exception):
    """Base of every error personae raises on purpose.

    Attributes:
        hint: What the reader can do about it; may be empty.
        exit_status: The status with which the command line ends.
    """

    exit_status = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(PersonaeError):
    """The caller asked for something that cannot be done."""


class InputError(UsageError):
    """A file or a row that cannot be used.

    Attributes:
        path: The file, as given.
        line: 1-based line or row number, or None when the whole file is meant.
    """

    def __init__(self, message: str, *, path: str = "", line: int | None = None, hint: str = "") -> None:
        place = "" if not path else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(place + message, hint=hint)
        self.path = path
        self.line = line


class UnknownPersona(UsageError):
    """A persona, trait or cast of that name does not exist."""


class DuplicatePersona(UsageError):
    """Two personas of one cast share an id."""


class MissingCapability(UsageError):
    """The model cannot do what was asked; the message names what can."""


class InvalidSettings(UsageError):
    """An option has a value outside its range, or two options contradict each other."""


class RenderingError(PersonaeError):
    """Turning a dialogue into tokens failed."""


class UnstablePrefix(RenderingError):
    """The template writes the context differently once the reply is added."""


class ContextOverflow(RenderingError):
    """Frame, context and completion together exceed the model's context length."""


class EvidenceError(PersonaeError):
    """Tables that may not be combined."""


class IncomparableEvidence(EvidenceError):
    """Two tables do not hold the same tokens, personas or episodes."""


class BackendError(PersonaeError):
    """The model, a server or the disk failed."""

    exit_status = 3


class ModelNotFound(BackendError):
    """No model of that name is here and none could be fetched.

    It is bad input (exit 2) rather than a failure of a model that exists.
    """

    exit_status = 2


class CorruptModel(BackendError):
    """Model files are present but cannot be read or do not match their checksum."""


class OutOfMemory(BackendError):
    """The model or a batch did not fit the memory."""


class ServerError(BackendError):
    """A server refused, failed, or answered what cannot be used.

    Attributes:
        retryable: Whether the same request may well succeed later.
    """

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable


class StorageError(BackendError):
    """Results could not be written or read back."""


class NumericsError(PersonaeError):
    """A number that was promised to be finite is not."""

    exit_status = 4
