"""The errors this program raises on purpose.

    MQIError
    ├── ConfigurationError      a setting is wrong: nothing starts
    ├── ConnectionError         the cluster cannot be reached or used now: pause, never fail a case
    │   ├── AuthenticationError     our key was refused: stop at once and tell a person
    │   ├── HostKeyError            the host is not the one we know: stop at once and tell a person
    │   ├── TransportTimeout        an operation passed its deadline: its outcome is unknown
    │   └── ChannelRefused          the connection is fine, it takes no more sessions: later
    ├── ResourceError           too little disk space, no free slot: later
    │   └── LocalFolderError        a folder here cannot be used: what needs it waits, nothing else
    ├── ProcessingError         work on one case went wrong: that case only
    │   ├── IntegrityError          bytes are not the bytes they should be
    │   └── RejectedCase            the case itself cannot be processed: a person decides
    ├── StateError              the store cannot be read, or its chain is broken: stop
    └── LockHeld                another instance runs on this store

Callers branch on the class, people read the message: what happened, where, and what to do.
"""

from __future__ import annotations


class MQIError(Exception):
    """Root of the tree: `what` happened, `where`, and `fix`, what the reader can do about it."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.fix}" if self.fix else text


class ConfigurationError(MQIError):
    """A setting is missing, unknown or wrong."""


class ConnectionError(MQIError):
    """The cluster cannot be reached or used now."""


class AuthenticationError(ConnectionError):
    """The server refused our key; trying again only gets the workstation banned."""


class HostKeyError(ConnectionError):
    """The server's host key is unknown or has changed."""


class TransportTimeout(ConnectionError):  # noqa: N818
    """An operation passed its deadline; whether it took effect is unknown."""


class ChannelRefused(ConnectionError):  # noqa: N818
    """The server takes no more sessions on a connection that is otherwise fine."""


class ResourceError(MQIError):
    """Too little of something: disk space, slots."""


class LocalFolderError(ResourceError):
    """A folder on this machine cannot be written or entered: later, when a person has seen to it."""


class ProcessingError(MQIError):
    """Work on one case went wrong."""


class IntegrityError(ProcessingError):
    """Bytes are not the bytes they should be."""


class RejectedCase(ProcessingError):  # noqa: N818
    """The case itself cannot be processed."""


class StateError(MQIError):
    """The store cannot be read or written, or its event chain is broken."""


class LockHeld(MQIError):  # noqa: N818
    """Another instance runs on this store."""
