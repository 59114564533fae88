"""A client of greendot, the presence server: who is online, told the moment it changes.

One file, the standard library alone, Python 3.10 or later. Copy it into your project.

>>> from greendot import Greendot
>>> greendot = Greendot("http://127.0.0.1:8080")
>>> greendot.beat("bob")
[]
>>> [state.status for state in greendot.query("bob", "carol")]
['online', 'offline']

A watch is an iterator of states. It yields what is known first, then each change, and it comes
back by itself when the connection is lost:

>>> with greendot.watch("bob") as states:
...     for state in states:
...         print(state.user, state.status)
...         break
bob online

With `user` this process is online as that user for as long as the watch lives:

>>> with greendot.watch("bob", user="alice") as states:
...     first = next(states)
...     greendot.query("alice")[0].online
True

Times are Unix milliseconds, or None for never. Every failure is a `GreendotError`; one that the
server has answered is a `Problem`, whose `detail` says what to do.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote, urlsplit

__all__ = [
    "Greendot",
    "GreendotError",
    "OwnState",
    "Problem",
    "RefusedUser",
    "State",
    "Unreachable",
    "Watch",
]

Status = Literal["online", "away", "busy", "offline", "unknown"]
Token = str | Callable[[], str]

log = logging.getLogger("greendot")

USER_BYTES_MAX = 128
ANSWER_BYTES_MAX = 16 << 20
# The server's lines have at most 64,000 bytes, and its events one line of data.
LINE_BYTES_MAX = 65_536

# Until a hello has said it.
KEEP_ALIVE_S = 15.0
RETRY_S = 3.0
# Of keep_alive_ms: the silence after which nothing is known any more.
SILENCE_MAX = 1.25
HELLO_S_MAX = 20.0
BEAT_S_MAX = 5.0
BACKOFF_S_MIN = 1.0
BACKOFF_S_MAX = 30.0
# Beats in a row of a live stream of which the server that answers knows nothing.
ASTRAY_MAX = 2


class GreendotError(Exception):
    """What this module raises, but for a ValueError for arguments that can not be meant."""


class Unreachable(GreendotError):
    """No answer, or one that no greendot gives."""


class Problem(GreendotError):
    """The server's refusal (RFC 9457).

    `type` is an address that keeps its meaning, `kind` its last part (`watch-denied`), `detail`
    what was wrong this time, `retry_after` after how many seconds to ask again, if it says so.
    """

    def __init__(
        self, status: int, type: str, title: str, detail: str, retry_after: float | None = None
    ) -> None:
        super().__init__(status, type, title, detail, retry_after)
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        return self.type.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return f"{self.status} {self.kind}: {self.detail}"


@dataclass(frozen=True)
class State:
    """What is known of a user.

    `since` is when the status began, `last_active` the last sign of life. `stale`: the last state
    known, and there may be a newer one; draw no green dot from it. `unknown` is what a node of a
    split deployment says until it has asked.
    """

    user: str
    status: Status
    since: int | None
    last_active: int | None
    stale: bool = False

    @property
    def online(self) -> bool:
        """Whether the status is a way of being here: online, away or busy."""
        return self.status in ("online", "away", "busy")


@dataclass(frozen=True)
class OwnState(State):
    """What a user is, as its holder alone is told. `invisible`: others are told that it left."""

    invisible: bool = False


@dataclass(frozen=True)
class RefusedUser:
    """A user of a list that did not count, and why: `users_max`, `too_fast` or `no_space`."""

    user: str
    reason: str


class Greendot:
    """A server, and who asks it.

    `token` is a user's token, or a function that gives one; it is called before each request, and
    by the thread of a watch too. `service_key` is the key of one of your own programs. `timeout`
    is how many seconds an answer may take. `ssl_context` is for an https server whose certificate
    the system's store does not vouch for.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        service_key: str | None = None,
        timeout: float = 10.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no server; it is like http://localhost:8080")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("the url takes no user, no query and no fragment; see `token`")
        if token is not None and service_key is not None:
            raise ValueError("give a token or a service key, not both")
        self._is_https = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._token = service_key if token is None else token
        self._timeout = timeout
        self._ssl_context = ssl_context

    def query(self, *users: str) -> list[State]:
        """The states of these users, in this order; of one never seen it is offline."""
        _check(users)
        if not users:
            return []
        answer = self._post("/v1/presence/query", {"users": users})
        return _states(answer)

    def beat(self, *users: str) -> list[RefusedUser]:
        """A sign of life of these users, who are online for `offline_after_ms` by it.

        Returns those that did not count, the first 100 of them.
        """
        _check(users)
        if not users:
            return []
        refused = self._post("/v1/beat", {"users": users}).get("refused", [])
        return [RefusedUser(users[item["index"]], item["reason"]) for item in refused]

    def leave(
        self,
        *users: str,
        stream: str | None = None,
        everywhere: bool = False,
        after_ms: int | None = None,
    ) -> None:
        """A goodbye of these users, who are offline at once unless a stream of theirs is open.

        `stream` (`Watch.stream`) ends that stream, and its holder says goodbye. `everywhere` logs
        the users out: all their streams end. `after_ms` puts it off; any sign of life till then
        takes it back.
        """
        _check(users)
        body: dict[str, Any] = {}
        if users:
            body["users"] = users
        if stream is not None:
            body["stream"] = stream
        if everywhere:
            body["everywhere"] = True
        if after_ms is not None:
            body["after_ms"] = after_ms
        if not users and stream is None:
            raise ValueError("a goodbye takes users, or a stream")
        self._post("/v1/leave", body)

    def set_status(
        self,
        status: Literal["online", "away", "busy"] | None = None,
        *,
        user: str | None = None,
        invisible: bool | None = None,
    ) -> OwnState:
        """Says what a user is while it is here; what is left out stays as it is.

        It is kept until it is said again, and makes nobody online. `user` is needed where no
        user's token says whose status it is.
        """
        body: dict[str, Any] = {"status": status, "user": user, "invisible": invisible}
        if user is not None:
            _check((user,))
        body = {name: value for name, value in body.items() if value is not None}
        answer = self._post("/v1/status", body)
        state = _state(answer)
        return OwnState(**vars(state), invisible=bool(answer.get("invisible")))

    def watch(
        self,
        *users: str,
        user: str | None = None,
        vouch: Literal["self", "stream"] = "self",
    ) -> Watch:
        """Follows these users; an iterator of their states.

        `user` is who this process is online as meanwhile; `me` stands for whom the token is of.
        `vouch` is who keeps it so: this process by answering each ping (`self`), or the server
        while the connection is open (`stream`), which behind a proxy proves little.
        """
        _check(users)
        if user is not None:
            _check((user,))
        follower = _Follower(self, users, user, vouch)
        return Watch(follower)

    def _post(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """The JSON of an answer; of one without a body an empty object."""
        response, text = self._exchange(path, body, self._timeout)
        answer = {} if response.status == 204 else _json(text)
        if response.status not in (200, 204) or not isinstance(answer, dict):
            raise _refusal(response, text)
        return answer

    def _exchange(
        self, path: str, body: Mapping[str, Any] | None, timeout: float
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection, response = self._request(path, body, {}, timeout)
        try:
            text = response.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{path}: {_said(error)}") from error
        finally:
            connection.close()
        if len(text) > ANSWER_BYTES_MAX:
            raise Unreachable(f"{path}: an answer of more than {ANSWER_BYTES_MAX} bytes")
        return response, text

    def _request(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        timeout: float,
        connected: Callable[[socket.socket], None] = lambda _: None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        token = self._token() if callable(self._token) else self._token
        sent = {"Accept": "application/json, application/problem+json", **headers}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        content = b""
        if body is not None:
            sent["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        connection = self._connection(timeout)
        try:
            connection.connect()
            connected(connection.sock)
            connection.request("POST", self._prefix + path, content, sent)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(f"{path}: {_said(error)}") from error

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if not self._is_https:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout, context=self._ssl_context
        )


class Watch(Iterator[State]):
    """The states of the watched users, each when it changes; ends when the server says so.

    States in between may be skipped if they are taken slowly: the last one is the state. When
    nothing has been heard for a while each is yielded again with `stale` set, and once more when
    it is known again. It is read by a thread, so what takes long between two states keeps nobody
    from being online. `close` it, or use it in a `with`; that is no goodbye.
    """

    def __init__(self, follower: _Follower) -> None:
        self._follower = follower
        # Who drops a watch without closing it shall not stay online by it.
        self._close = weakref.finalize(self, follower.stop)

    def __next__(self) -> State:
        return self._follower.next()

    @property
    def stream(self) -> str | None:
        """The id of the stream that is open, by which `leave` can end it; else None."""
        return self._follower.stream

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _View:
    """What is shown of the watched users, over streams that come one after the other.

    Within a stream the last word counts. Between two it may not: the next may come from a node
    that has heard less. So what is older than a former stream's word is kept aside until the
    stream's id says that it has been told everything of that time.
    """

    def __init__(self) -> None:
        self._known: dict[str, State] = {}
        # Whose known state is this stream's word.
        self._ours: set[str] = set()
        self._aside: dict[str, State] = {}
        self._told: dict[str, State] = {}
        self._untaken: dict[str, State] = {}
        self.is_stale = False

    def begin(self) -> None:
        """Another stream tells from here on."""
        self._ours.clear()
        self._aside.clear()

    def apply(self, state: State) -> None:
        user = state.user
        before = self._known.get(user)
        self._aside.pop(user, None)
        if before is not None and state.status == "unknown":
            return
        if before is None or user in self._ours or (before.since or 0) <= (state.since or 0):
            self._show(state)
        else:
            self._aside[user] = state

    def told_up_to(self, id: int) -> None:
        for user, state in list(self._aside.items()):
            if (self._known[user].since or 0) <= id:
                del self._aside[user]
                self._show(state)

    def go_stale(self) -> None:
        self.is_stale = True
        self._ours.clear()
        self._tell_all()

    def settle(self) -> None:
        """The stream has told all that it has to: what it did not tell is as it was."""
        if self.is_stale:
            self.is_stale = False
            self._tell_all()

    def take(self) -> State | None:
        """What has changed and was not yet taken, the oldest first."""
        for user in self._untaken:
            return self._untaken.pop(user)
        return None

    def _show(self, state: State) -> None:
        self._known[state.user] = state
        self._ours.add(state.user)
        self._tell(state.user)

    def _tell_all(self) -> None:
        for user in self._known:
            self._tell(user)

    def _tell(self, user: str) -> None:
        state = self._known[user]
        if self.is_stale and user not in self._ours:
            state = replace(state, stale=True)
        told = self._told.get(user)
        if told is None or _shown(told) != _shown(state):
            self._told[user] = state
            self._untaken[user] = state


def _shown(state: State) -> tuple[str, int | None, bool]:
    return state.status, state.since, state.stale


@dataclass
class _Event:
    """An event of a stream, as it was sent: members that were not are None."""

    kind: str = "message"
    data: str = ""
    id: str | None = None
    retry: float | None = None


class _Ended(Exception):
    """The stream ended: for good, or come back after so many seconds."""

    def __init__(self, after: float | None) -> None:
        super().__init__(after)
        self.after = after


def _events(readline: Callable[[int], bytes]) -> Iterator[_Event]:
    """The events of a stream (WHATWG HTML); one that its end has cut is none."""
    event, is_empty, size = _Event(), True, 0
    while line := readline(LINE_BYTES_MAX + 1):
        size += len(line)
        if size > ANSWER_BYTES_MAX or len(line) > LINE_BYTES_MAX:
            raise Unreachable("an event longer than greendot sends")
        if not line.endswith(b"\n"):
            return
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            if not is_empty:
                yield event
            event, is_empty, size = _Event(), True, 0
            continue
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event.kind = value
        elif name == "data":
            event.data = value if is_empty else f"{event.data}\n{value}"
            is_empty = False
        elif name == "id" and "\0" not in value:
            event.id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            event.retry = int(value) / 1000


class _Follower:
    """The thread that reads a watch's streams, and what it has read and nobody has taken."""

    def __init__(
        self,
        greendot: Greendot,
        users: tuple[str, ...],
        user: str | None,
        vouch: str,
    ) -> None:
        self._greendot = greendot
        self._users = users
        self._user = user
        self._vouch = vouch
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        # Under the lock: the view, when it goes stale, and why there is nothing more to come.
        self._view = _View()
        self._stale_at = float("inf")
        self._ended = False
        self._error: BaseException | None = None
        self._socket: socket.socket | None = None
        self.stream: str | None = None
        # The reading thread's own.
        self._last_event_id: str | None = None
        self._retry = RETRY_S
        self._keep_alive = KEEP_ALIVE_S
        self._failures = 0
        self._astray = 0
        self._beats = False
        threading.Thread(target=self._run, name="greendot-watch", daemon=True).start()

    def next(self) -> State:
        with self._changed:
            while True:
                left = self._stale_at - time.monotonic()
                if left <= 0 and not self._view.is_stale and not self._ended:
                    self._view.go_stale()
                state = self._view.take()
                if state is not None:
                    return state
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    raise StopIteration
                is_waited_for = not self._view.is_stale and left < threading.TIMEOUT_MAX
                self._changed.wait(left if is_waited_for else None)

    def stop(self) -> None:
        self._stopped.set()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            if self._socket is not None:
                _shut(self._socket)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while not self._stopped.is_set():
                after = self._wait_after(self._read_stream)
                if after is None or self._stopped.wait(after):
                    break
        except BaseException as fault:
            error = fault
        with self._changed:
            if not self._ended:
                self._error = error
            self._ended = True
            self._changed.notify_all()

    def _wait_after(self, read: Callable[[], None]) -> float | None:
        """Seconds until the next stream; None: there shall be none."""
        least = 0.0
        try:
            read()
        except _Ended as ended:
            return None if ended.after is None else ended.after * random.uniform(1.0, 1.25)
        except Problem as problem:
            if problem.status not in (408, 429) and problem.status < 500:
                raise
            least = problem.retry_after or 0.0
            log.info("a stream is refused: %s", problem)
        except (Unreachable, OSError, http.client.HTTPException) as error:
            log.info("a stream is lost: %s", _said(error))
        finally:
            with self._changed:
                self.stream = self._socket = None
        # The server's own delay first; after that ever longer ones.
        delay = self._retry
        if self._failures > 0:
            grown = max(delay, BACKOFF_S_MIN) * 2.0 ** min(self._failures, 16)
            delay = max(delay, min(grown, BACKOFF_S_MAX))
        self._failures += 1
        return max(least, delay * random.uniform(1.0, 1.25))

    def _read_stream(self) -> None:
        body: dict[str, Any] = {"watch": self._users}
        if self._user is not None:
            body |= {"user": self._user, "vouch": self._vouch}
        headers = {"Accept": "text/event-stream"}
        if self._last_event_id is not None:
            headers["Last-Event-ID"] = self._last_event_id
        connection, response = self._greendot._request(
            "/v1/stream", body, headers, HELLO_S_MAX, self._connected
        )
        try:
            if response.status == 204:
                raise _Ended(None)
            kind = response.headers.get_content_type()
            if response.status != 200 or kind != "text/event-stream":
                raise _refusal(response, response.read(ANSWER_BYTES_MAX))
            for event in _events(response.readline):
                if self._stopped.is_set():
                    return
                self._handle(event)
            raise Unreachable("the connection has ended")
        finally:
            response.close()
            connection.close()

    def _connected(self, sock: socket.socket) -> None:
        with self._changed:
            self._socket = sock
            if self._stopped.is_set():
                _shut(sock)

    def _handle(self, event: _Event) -> None:
        data = _json(event.data.encode())
        if event.retry is not None:
            self._retry = event.retry
        if event.kind == "hello":
            self._hello(data)
        with self._changed:
            self._stale_at = time.monotonic() + self._keep_alive * SILENCE_MAX
            if event.kind == "snapshot":
                for state in _states(data):
                    self._view.apply(state)
            elif event.kind == "presence":
                self._view.apply(_state(data))
            if event.id is not None and event.kind != "bye":
                self._last_event_id = event.id
                if event.id.isascii() and event.id.isdigit():
                    self._view.told_up_to(int(event.id))
            if event.id is not None or event.kind in ("presence", "ping"):
                # These come when the snapshot is whole.
                self._view.settle()
            self._changed.notify_all()
        if event.kind == "ping":
            self._beat()
        elif event.kind == "bye":
            raise _Ended(None)
        elif event.kind == "goodbye":
            is_left = isinstance(data, dict) and data.get("reason") == "left"
            raise _Ended(None if is_left else self._retry)
        elif event.kind in ("overloaded", "expired"):
            log.info("a stream is ended: %s %s", event.kind, event.data)
            raise _Ended(self._retry)

    def _hello(self, hello: Any) -> None:
        if not isinstance(hello, dict) or not isinstance(hello.get("stream"), str):
            raise Unreachable("a hello that no greendot says")
        if refused := hello.get("refused"):
            log.warning("watches are refused: %s", refused)
        self._keep_alive = hello.get("keep_alive_ms", KEEP_ALIVE_S * 1000) / 1000
        self._beats = hello.get("vouch") == "self"
        self._failures = self._astray = 0
        with self._changed:
            self.stream = hello["stream"]
            self._view.begin()
            if self._socket is not None:
                self._socket.settimeout(self._keep_alive * SILENCE_MAX)

    def _beat(self) -> None:
        """Answers a ping: this process is here."""
        if not self._beats or self.stream is None:
            return
        path = f"/v1/stream/{quote(self.stream, safe='')}/beat"
        try:
            response, text = self._greendot._exchange(path, None, BEAT_S_MAX)
            if response.status != 204:
                raise _refusal(response, text)
            self._astray = 0
        except (GreendotError, OSError) as error:
            log.info("a beat is lost: %s", _said(error))
            if isinstance(error, Problem) and error.status == 404:
                self._astray += 1
        if self._astray >= ASTRAY_MAX:
            # The pings come, and the answers go to another node. So the stream has to do.
            log.warning("beats go astray (a balancer?); the stream vouches from here on")
            self._vouch = "stream"
            raise _Ended(0.0)


def _check(users: tuple[str, ...]) -> None:
    """The server's rule, which would pass over one of a list that breaks it."""
    for user in users:
        if not isinstance(user, str):
            fault = "it is not a string"
        elif not user:
            fault = "it is empty"
        elif any(0xD800 <= ord(char) <= 0xDFFF for char in user):
            fault = "it holds half a surrogate pair"
        elif len(user.encode()) > USER_BYTES_MAX:
            fault = f"it is longer than {USER_BYTES_MAX} bytes"
        elif any(ord(char) < 0x20 or 0x7F <= ord(char) <= 0x9F for char in user):
            fault = "it holds a control character"
        else:
            continue
        rule = f"a user is 1 to {USER_BYTES_MAX} bytes of UTF-8 without control characters"
        raise ValueError(f"{user!r} is no user: {fault}; {rule}")


def _json(text: bytes) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _states(value: Any) -> list[State]:
    records = value.get("presence") if isinstance(value, dict) else None
    if not isinstance(records, list):
        raise Unreachable("an answer without states, which no greendot gives")
    return [_state(record) for record in records]


def _state(value: Any) -> State:
    try:
        return State(
            user=value["user"],
            status=value["status"],
            since=value["since"],
            last_active=value["last_active"],
            stale=value.get("stale", False),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise Unreachable("a record that no greendot tells") from error


def _refusal(response: http.client.HTTPResponse, text: bytes) -> GreendotError:
    """What an answer means that is not the one expected."""
    if response.status == 200:
        return Unreachable("an answer that no greendot gives; is the url right?")
    after = response.headers.get("Retry-After", "")
    retry_after = float(after) if after.isascii() and after.isdigit() else None
    said = _json(text)
    if not isinstance(said, dict):
        # A proxy's.
        said = {"detail": text[:200].decode("utf-8", "replace")}
    title = str(said.get("title", response.reason))
    detail = str(said.get("detail", title))
    return Problem(
        response.status, str(said.get("type", "about:blank")), title, detail, retry_after
    )


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _shut(sock: socket.socket) -> None:
    """Ends a connection that another thread reads."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
