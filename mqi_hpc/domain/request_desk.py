"""Serves what commands of other processes have asked of this one."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import structlog

from mqi_hpc.core.errors import MQIError
from mqi_hpc.core.interfaces import IRequests
from mqi_hpc.core.requests import Reply, Request, Verb
from mqi_hpc.domain.orders import Orders


class RequestDesk:
    """Carries requests out, oldest first, and answers each. `lead` takes a case in hand.

    `stays` says whether this process leads cases to their end: replies tell it. A request that fails, be it
    by a fault of this program, is answered with why, and stops nothing else.
    """

    def __init__(
        self, requests: IRequests, orders: Orders, lead: Callable[[str], None], *, stays: bool = False
    ) -> None:
        self._requests = requests
        self._orders = orders
        self._lead = lead
        self._stays = stays
        self._log = structlog.get_logger("mqi_hpc.requests")

    def serve(self) -> int:
        """Carry out all that is asked; returns how many there were."""
        requests = self._requests.take()
        for request in requests:
            reply = self._carried_out(request)
            self._requests.answer(reply)
            self._log.info("request", verb=request.verb, case_id=request.case_id, refused=reply.refused)
        return len(requests)

    def _carried_out(self, request: Request) -> Reply:
        name = request.request_id
        try:
            said = self._orders.carry_out(request)
            if request.verb is Verb.LEAD:
                # As when a folder is submitted again: results that did not come home are fetched.
                self._orders.fetch_failed(request.case_id)
            self._lead(request.case_id)
        except MQIError as error:
            # Its words may name a patient: they go to who asked, not to the log.
            return Reply(request_id=name, said=error.what, refused=True, fix=error.fix, stays=self._stays)
        except Exception as error:  # noqa: BLE001 - answered and logged; the loop goes on for all others
            frames = "".join(traceback.format_tb(error.__traceback__))
            self._log.error("a request failed unexpectedly", kind=type(error).__name__, traceback=frames)
            said = f"{type(error).__name__} (a fault of this program)"
            return Reply(
                request_id=name, said=said, refused=True, fix="Its log tells more", stays=self._stays
            )
        return Reply(request_id=name, said=said, stays=self._stays)
