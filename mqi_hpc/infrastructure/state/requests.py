"""Requests between processes: files in a folder beside the store, each published and answered whole."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from mqi_hpc.core.errors import LockHeld, StateError
from mqi_hpc.core.requests import Reply, Request
from mqi_hpc.infrastructure.state.publish import first_to_publish

_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)
_REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)
_ASKED, _TAKEN, _ANSWER, _ODD = ".request", ".taken", ".reply", ".unreadable"
_OLD_SECONDS = 24 * 3600.0
"""Age at which a reply that nobody fetched is removed."""
_LOOK_SECONDS = 0.1
_CAP = 1024 * 1024
"""No request is longer (bytes)."""


def requests_folder(state_file: Path) -> Path:
    """Return where requests to whoever holds a store's lock are left."""
    return state_file.with_name(f"{state_file.name}.requests")


class RequestFolder:
    """IRequests, and the asking side of it. A request is `<id>.request`, its answer `<id>.reply`.

    Ids begin with the time, so that names sort by age. Who serves renames a request to `<id>.taken`, carries
    it out, publishes the reply, then removes it. So a request that could be withdrawn was never taken, and
    one taken by somebody who died is carried out "again", which the order itself notices by its id.
    Only the holder of the store's lock serves.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unwritten: dict[str, Reply] = {}
        self._complained: dict[str, str] = {}
        self._log = structlog.get_logger("mqi_hpc.requests")

    # The serving side

    def take(self) -> list[Request]:
        """Return what is asked, oldest first; what is no request is set aside, and logged."""
        for reply in list(self._unwritten.values()):
            self.answer(reply)
        try:
            names = sorted(path for path in self._folder.iterdir() if path.suffix in (_ASKED, _TAKEN))
        except FileNotFoundError:
            return []
        except OSError as error:
            self._complain("requests cannot be read", error)
            return []
        taken = [self._take(path) for path in names if path.stem not in self._unwritten]
        return [request for request in taken if request is not None]

    def answer(self, reply: Reply) -> None:
        """Publish a reply; one that cannot be written now is logged once, and tried again at each `take`."""
        name = reply.request_id
        try:
            with first_to_publish(self._at(name, _ANSWER)) as fresh:
                fresh.write_bytes(_REPLY.dump_json(reply))
            self._at(name, _TAKEN).unlink(missing_ok=True)
            self._unwritten.pop(name, None)
            self._complained.clear()
            self._sweep()
        except OSError as error:
            self._unwritten[name] = reply
            self._complain("a reply cannot be written", error)

    # The asking side

    def leave(self, request: Request) -> None:
        """Publish a request; raises StateError where it cannot be."""
        try:
            with first_to_publish(self._at(request.request_id, _ASKED)) as fresh:
                fresh.write_bytes(_REQUEST.dump_json(request))
        except OSError as error:
            raise self._unusable("the request cannot be left", error) from error

    def await_reply(self, request_id: str, seconds: float) -> Reply | None:
        """Return the reply to a request; None where nobody took it in time: it is withdrawn then.

        Raises LockHeld where it was taken and no reply comes for as long again, StateError where the folder
        cannot be used.
        """
        try:
            if (reply := self._reply_within(request_id, seconds)) is not None:
                return reply
            try:
                self._at(request_id, _ASKED).unlink()
            except FileNotFoundError:
                # Taken in the last moment, or long ago: it may be carried out.
                if (reply := self._reply_within(request_id, seconds)) is not None:
                    return reply
                raise LockHeld(
                    "another mqi-hpc took the request and has not answered",
                    fix="It may be carried out yet: `mqi-hpc show` tells how the case stands",
                ) from None
        except OSError as error:
            raise self._unusable("the reply cannot be read", error) from error
        return None

    def _reply_within(self, request_id: str, seconds: float) -> Reply | None:
        path, end = self._at(request_id, _ANSWER), time.monotonic() + seconds
        while True:
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                if time.monotonic() >= end:
                    return None
                time.sleep(_LOOK_SECONDS)
                continue
            try:
                reply = _REPLY.validate_json(text, strict=True)
            except ValidationError as error:
                raise StateError("the reply is damaged", where=str(path)) from error
            path.unlink(missing_ok=True)
            return reply

    def _take(self, path: Path) -> Request | None:
        taken = path.with_suffix(_TAKEN)
        try:
            if path.suffix == _ASKED:
                path.rename(taken)
            return _parsed(taken)
        except FileNotFoundError:
            # Withdrawn between two looks.
            return None
        except ValueError as error:
            self._log.warning("a request cannot be read, and is set aside", why=type(error).__name__)
            self._set_aside(taken)
        except OSError as error:
            self._complain("a request cannot be taken", error)
        return None

    def _set_aside(self, path: Path) -> None:
        try:
            path.replace(path.with_suffix(_ODD))
        except OSError as error:
            self._complain("a request cannot be set aside", error)

    def _complain(self, what: str, error: OSError) -> None:
        """Log what fails at every look, once for each reason."""
        why = error.strerror or type(error).__name__
        if self._complained.get(what) != why:
            self._complained[what] = why
            self._log.warning(what, why=why)

    def _sweep(self) -> None:
        for path in self._folder.glob(f"*{_ANSWER}"):
            try:
                if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                # Fetched meanwhile.
                continue

    def _unusable(self, what: str, error: OSError) -> StateError:
        return StateError(
            f"{what}: {error.strerror}",
            where=str(self._folder),
            fix="The folder of app.state_file must be writable",
        )

    def _at(self, request_id: str, suffix: str) -> Path:
        return self._folder / f"{request_id}{suffix}"


def _parsed(path: Path) -> Request:
    """Return the request in a file; raises ValueError where there is none, OSError."""
    if not path.is_file():
        raise ValueError("no file")
    with path.open("rb") as file:
        text = file.read(_CAP + 1)
    if len(text) > _CAP:
        raise ValueError("too long")
    request = _REQUEST.validate_json(text, strict=True)
    if request.request_id != path.stem:
        # Its answer is published under its id: that must be a plain name, and its own.
        raise ValueError("another's id")
    return request


def new_request_id() -> str:
    """Return an id never used before that sorts by time."""
    return f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}"
