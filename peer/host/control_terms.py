"""The control API's routes for the owner's terms. See docs/gpu-owner.md for what they take."""

import logging
from collections.abc import Awaitable, Callable

from peer.host.control_routes import ControlError, Later, Routes, read_body
from peer.host.serve import HostServer
from peer.host.terms import Terms, TermsError, changed_fields
from peer.host.terms_keeper import TermsKeeper, TermsUnsavedError
from peer.host.terms_status import TermsBoard
from peer.http.messages import HttpRequest

_LOG = logging.getLogger(__name__)


class TermsControl:
    """Answers the owner about his terms."""

    def __init__(self, server: HostServer, keeper: TermsKeeper, board: TermsBoard) -> None:
        self._server = server
        self._keeper = keeper
        self._board = board

    def routes(self) -> Routes:
        """Return what this module answers."""
        return {
            ("GET", "/v1/terms"): self._get,
            ("PUT", "/v1/terms"): self._put,
            ("PATCH", "/v1/terms"): self._patch,
            ("DELETE", "/v1/terms"): self._delete,
            ("GET", "/v1/customers"): lambda request: {"customers": self._board.customers()},
            ("POST", "/v1/pause"): self._pause,
            ("POST", "/v1/resume"): self._resume,
        }

    def _get(self, request: HttpRequest) -> object:
        return self._told()

    def _put(self, request: HttpRequest) -> object:
        wanted = read_body(request, Terms)
        return self._change(lambda: self._keeper.replace(wanted))

    def _patch(self, request: HttpRequest) -> object:
        patch = read_body(request, dict[str, object])
        return self._change(lambda: self._keeper.change(patch))

    def _delete(self, request: HttpRequest) -> object:
        return self._change(self._keeper.reset)

    def _change(self, work: Callable[[], Awaitable[None]]) -> Later:
        async def change() -> object:
            await _refused(work)
            return self._told()

        return Later(change)

    def _told(self) -> object:
        keeper = self._keeper
        return {
            "terms": keeper.terms,
            "initial": keeper.initial,
            "changed": changed_fields(keeper.changes),
            "now": self._board.read(),
        }

    async def set_paused(self, is_paused: bool) -> None:  # noqa: FBT001 - the value is the argument
        """Pause, or resume from a pause and from a drain.

        Raises:
            ControlError: If it holds, but could not be written down.
        """
        _LOG.info("%s by the owner", "paused" if is_paused else "resumed")
        if not is_paused:
            self._server.is_drained = False
            self._server.on_change()
        patch = {"is_paused": is_paused}
        await _refused(lambda: self._keeper.change(patch, even_unsaved=True))

    def _pause(self, request: HttpRequest) -> object:
        return self._steer(is_paused=True)

    def _resume(self, request: HttpRequest) -> object:
        return self._steer(is_paused=False)

    def _steer(self, *, is_paused: bool) -> Later:
        async def steer() -> object:
            await self.set_paused(is_paused)
            state, reason = self._server.state
            return {"ok": True, "state": state.value, "state_reason": reason}

        return Later(steer)


async def _refused(work: Callable[[], Awaitable[None]]) -> None:
    """Run a change.

    Raises:
        ControlError: If the terms may not be so, or the disk refuses them.
    """
    try:
        await work()
    except TermsError as error:
        raise ControlError(400, f"{error}; nothing was changed", param=error.param) from error
    except TermsUnsavedError as error:
        raise ControlError(503, str(error)) from error
