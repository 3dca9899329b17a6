"""Jupyter Server as it comes, through the two doors it has for this: where it reads configuration, whom it lets in."""

from __future__ import annotations

import hmac
import os
import signal
import threading
import time

from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.serverapp import ServerApp
from tornado.web import RequestHandler

from measured.live import require_loopback

TOKEN_PROTOCOL = "v1.token.websocket.jupyter.org."
"""Beginning of the subprotocol that carries a token: a browser sets no header on a websocket, and a URL is logged.

The name is that of Jupyter's own proposal (https://github.com/jupyter/enhancement-proposals/pull/121).
"""

_PARENT_POLL_SECONDS = 1


class Identity(IdentityProvider):
    """Lets in who bears the token, in a header alone, and is no foreign page.

    Out of the box a token also counts in a URL, is kept in a cookie (which browsers send to every port of a host),
    and lifts the check of the origin.
    """

    login_available = False
    logout_available = False

    def get_token(self, handler: RequestHandler) -> str | None:
        """The token of the Authorization header, else that of the websocket's subprotocols."""
        if match := self.auth_header_pat.match(handler.request.headers.get("Authorization", "")):
            return str(match[2])
        asked = handler.request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        offered = [each.strip() for each in asked if each.strip().startswith(TOKEN_PROTOCOL)]
        return offered[0].removeprefix(TOKEN_PROTOCOL) if offered else None

    async def get_user_token(self, handler: RequestHandler) -> User | None:
        """The user, if the token is right and no page but the site asks."""
        origin = handler.request.headers.get("Origin")
        if origin not in (None, handler.settings["allow_origin"]):
            return None
        given = (self.get_token(handler) or "").encode()
        right = bool(self.token) and hmac.compare_digest(given, self.token.encode())
        return self.generate_anonymous_user(handler) if right else None

    def should_check_origin(self, handler: RequestHandler) -> bool:
        """Always: a token does not make a foreign page ours."""
        return True

    def get_user_cookie(self, handler: RequestHandler) -> None:
        """Nobody: cookies count for nothing."""

    def set_login_cookie(self, handler: RequestHandler, user: User) -> None:
        """None is set."""

    def validate_security(self, app: ServerApp, ssl_options: dict | None = None) -> None:
        """End the server rather than listen beyond loopback, whoever configured it."""
        require_loopback(app.ip)


class Server(ServerApp):
    """Reads its configuration from the folder made for this start, and from none of the user's or the system's."""

    @property
    def config_file_paths(self) -> list[str]:
        return [self.config_dir]

    def write_browser_open_files(self) -> None:
        """None: they would hold the token, and nobody opens them."""


def _end_with_parent() -> None:
    """End in good order, kernels first, if what started us is gone and could not say so."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Server.launch_instance()
