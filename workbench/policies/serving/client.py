"""Requests to the servers of one teacher, in turn, with bounded retries.

A read changes nothing on a server, so a request may be sent again: to the next server, or to the same one after a
pause. A server that does not answer in time is not asked again, since it may hang for ever.
"""

import contextlib
import http.client
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import urlsplit

from torch import Tensor

from workbench.errors import PolicyError, UnavailableError
from workbench.policies.serving.addresses import TOKEN, Patience
from workbench.policies.serving.wire import INFO, PROTOCOL, SAMPLER, TEACHER, WireError, unpack

CONNECT_S = 10.0
START_S = 20.0  # in which a server that refuses connections may start, before a run's first answer from it
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between tries; the last one repeats
LONGEST_PAUSE_S = 30.0  # that a server may request
RETRY_AFTER = "Retry-After"  # header of an answer while the model is loading
WAIT_KEYS = {TEACHER: "models.teacher_wait", SAMPLER: "sampling.server_wait"}
TIMEOUT_KEYS = {TEACHER: "models.teacher_timeout", SAMPLER: "sampling.server_timeout"}
_BUSY = (502, 503)
UNAUTHORIZED = 401
CONFLICT = 409  # a sampler has other weights
Answer = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and facts of a message
T = TypeVar("T")

log = logging.getLogger("workbench")


class ConflictError(PolicyError):
    """A sampler has other weights than a request names."""


class RefusedError(PolicyError):
    """An answer with another status than 200. by_workbench: it has a sentence of a server of this workbench."""

    def __init__(self, message: str, status: int, *, by_workbench: bool) -> None:
        super().__init__(message)
        self.status, self.by_workbench = status, by_workbench


class Failed(Exception):
    """A try that may succeed later.

    hangs    no answer within the time limit
    refused  nothing listens there
    pause    seconds that a server of this workbench requests, whose model is loading; 0 = none
    """

    def __init__(self, reason: str, *, hangs: bool = False, refused: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.hangs, self.refused, self.pause = hangs, refused, pause


class ServerClient:
    """Client of one model on one or several servers. `retries` counts repeated requests.

    name  of the policy, for messages
    kind  of server: teacher, sampler
    """

    _content = "application/octet-stream"  # of requests

    def __init__(self, addresses: tuple[str, ...], name: str, patience: Patience, kind: str = TEACHER) -> None:
        self.addresses, self.name, self.patience, self.kind = addresses, name, patience, kind
        self._command, self._kind_of_server = self._command_of(kind), f"a {kind} of the workbench"
        self._start = f"Start it with `{self._command}`"
        self.retries = 0
        self._loading = ""  # address of a server whose model is loading, as logged
        self._turn = int(os.environ.get("RANK", "0"))
        self._fingerprint = ""

    def _command_of(self, kind: str) -> str:
        """What starts such a server."""
        return f"workbench {kind}"

    def info(self) -> dict[str, Any]:
        """Facts of the servers, which must all have one model, and encode prompts alike.

        Raises: PolicyError for a server that is not a teacher's, has another protocol, another model than the first, or
        other files that encode prompts; UnavailableError if it does not answer.
        """
        infos = {address: self._info_of(address) for address in self.addresses}
        first = infos[self.addresses[0]]
        for address, info in infos.items():
            if info["fingerprint"] != first["fingerprint"]:
                raise PolicyError(
                    f"{self.name}: {address} has another model ({info['model']}) than {self.addresses[0]} "
                    f"({first['model']}). Expected one model on all servers of a teacher."
                )
            if info["files"] != first["files"]:
                raise PolicyError(
                    f"{self.name}: {address} ({info['model']}) encodes prompts otherwise than {self.addresses[0]} "
                    f"({first['model']}): their tokenizers, chat templates or processor settings differ. Start all "
                    "servers of a teacher with the same model files and one version of transformers."
                )
        self._fingerprint = first["fingerprint"]
        return first

    def _info_of(self, address: str) -> dict[str, Any]:
        try:
            info = json.loads(self.first_answer("/info", address))
        except ValueError:
            info = None
        except RefusedError as error:
            if error.status == UNAUTHORIZED and error.by_workbench:
                raise
            info = None
        if not isinstance(info, dict) or info.get("service") != self.kind:
            raise PolicyError(
                f"{self.name}: {address} answers, but is not a {self.kind}. {self._start}, or correct the address."
            )
        if info.get("protocol") != PROTOCOL:
            raise PolicyError(
                f"{self.name}: {address} has protocol {info.get('protocol')}, and this run {PROTOCOL}. Install one "
                "version of the workbench on both sides."
            )
        if wrong := [key for key, kind in INFO.items() if not isinstance(info.get(key), kind)]:
            raise PolicyError(
                f"{self.name}: {address}/info lacks {', '.join(wrong)}, or has it of another type. Install one version "
                "of the workbench on both sides."
            )
        return info

    def first_answer(self, path: str, address: str = "") -> bytes:
        """What a server, "" = the first, answers to a run's first request; it may be starting."""
        return self._persist("GET", path, (address or self.addresses[0],), parse=bytes, starts=True)[0]

    def fetch(self, path: str) -> dict[str, Tensor]:
        """Tensors of /head or /files."""
        return self._persist("GET", path, self.addresses, parse=unpack)[0][0]

    def send(self, body: bytes, path: str) -> "Future[Answer]":
        """Send a request to the next server; the future has tensors and facts of its answer, or the error."""
        self._turn += 1
        start = self._turn % len(self.addresses)
        answer: Future[Answer] = Future()
        order = self.addresses[start:] + self.addresses[:start]
        # a daemon: a run that stops need not wait for it
        threading.Thread(target=self._fulfil, args=(answer, path, body, order), name=self.name, daemon=True).start()
        return answer

    def _fulfil(self, answer: "Future[Answer]", path: str, body: bytes, order: tuple[str, ...]) -> None:
        try:
            answer.set_result(self._read(path, body, order))
        except BaseException as error:
            answer.set_exception(error)

    def _read(self, path: str, body: bytes, order: tuple[str, ...]) -> Answer:
        (tensors, facts), address = self._persist("POST", path, order, body, parse=unpack)
        if self.kind == TEACHER and facts.get("fingerprint") != self._fingerprint:
            raise UnavailableError(
                f"{self.name}: {address} has another model than at the start of the run. {self._start} and that model."
            )
        return tensors, facts

    def _persist(
        self,
        method: str,
        path: str,
        order: tuple[str, ...],
        body: bytes | None = None,
        *,
        parse: Callable[[bytes], T],
        starts: bool = False,
    ) -> tuple[T, str]:
        """Parsed answer and address of the server that gave it, after as many tries as patience allows.

        starts  first request of a run: a server that refuses connections has START_S to start
        """
        alive, tries, first_failure, refused_since = list(order), 0, 0.0, 0.0
        while True:
            address = alive[tries % len(alive)]
            try:
                return parse(self._once(method, address, path, body)), address
            except (Failed, WireError) as error:
                failure = error if isinstance(error, Failed) else Failed(str(error))
                tries += 1
                now = time.monotonic()
                first_failure = first_failure or now
                if failure.hangs:
                    alive.remove(address)
                refused_since = (refused_since or now) if starts and failure.refused else 0.0
                end = first_failure + self.patience.wait
                if refused_since:
                    end = min(end, refused_since + START_S)
                if not alive or now >= end:
                    raise self._gave_up(address, failure, tries, now - first_failure, starts=starts) from None
                self.retries += 1
                self._report(address, failure, tries, starts=starts)
                if tries % len(alive) == 0:
                    pause = failure.pause or PAUSES_S[min(tries // len(alive), len(PAUSES_S)) - 1]
                    time.sleep(min(pause, max(end - time.monotonic(), 0.0)))

    def _report(self, address: str, failure: Failed, tries: int, *, starts: bool) -> None:
        """Log a failure that is tried again; of a model that is loading, the first."""
        wait = min(self.patience.wait, START_S) if starts and failure.refused else self.patience.wait
        if failure.pause:
            if self._loading != address:
                log.warning("%s: %s: %s Waiting for it, up to %g s", self.name, address, failure, wait)
            self._loading = address
            return
        self._loading = ""
        if tries == 1:
            advice = f"{self._start} and its model, if it does not run"
            log.warning("%s: %s: %s; tried for up to %g s. %s", self.name, address, failure, wait, advice)
        else:
            log.warning("%s: %s: %s; request %d follows", self.name, address, failure, tries + 1)

    def _gave_up(self, address: str, failure: Failed, tries: int, seconds: float, *, starts: bool) -> UnavailableError:
        """The error after the last try, `seconds` after the first one failed."""
        if failure.pause:
            return UnavailableError(
                f"{self.name}: {address}: {failure} Expected it to serve within {self.patience.wait:g} s. Raise "
                f"{WAIT_KEYS[self.kind]}, or start this again when the server logs that it serves."
            )
        if failure.hangs:
            return UnavailableError(
                f"{self.name}: {address} hangs: {failure}. End its process and start `{self._command}` with its "
                f"model again. If it only takes longer, raise {TIMEOUT_KEYS[self.kind]}."
            )
        count = f"{tries} request{'s' * (tries != 1)}, {seconds:.0f} s after the first failure"
        return UnavailableError(
            f"{self.name}: {address} does not answer ({failure}; {count}). {self._start} and its model"
            + (", or correct the address." if starts else ".")
        )

    def _once(self, method: str, address: str, path: str, body: bytes | None) -> bytes:
        """The body of an answer with status 200.

        Raises: Failed for what may pass; PolicyError for what a server refuses.
        """
        parts = urlsplit(address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=CONNECT_S)
        headers = {"Content-Type": self._content} if body is not None else {}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.connect()
            connection.sock.settimeout(self.patience.timeout)
            # a server may refuse a request before it has read all of it
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer, status, pause = response.read(), response.status, response.headers.get(RETRY_AFTER, "")
        except TimeoutError:
            hangs = connection.sock is not None
            seconds = self.patience.timeout if hangs else CONNECT_S
            raise Failed(f"no answer within {seconds:g} s", hangs=hangs) from None
        except ssl.SSLError as error:
            raise self._tls_error(address, error) from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
                message = f"{self.name}: {address} answers, but not by HTTP. {self._start}, or correct the address."
                raise RefusedError(message, 0, by_workbench=False) from None
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Failed(reason, refused=isinstance(error, ConnectionRefusedError)) from None
        finally:
            connection.close()
        sentence = self._sentence(answer)
        if self._may_pass(status, sentence):
            raise _busy(status, sentence, pause)
        if status == CONFLICT:
            raise ConflictError(sentence or f"{self.name}: {address}{path} answers with status {status}")
        if status != 200:
            raise RefusedError(
                f"{self.name}: {address}{path} answers with status {status}: "
                + (sentence or f"not by {self._kind_of_server}. {self._start}, or correct the address."),
                status,
                by_workbench=bool(sentence),
            )
        return answer

    def _may_pass(self, status: int, sentence: str) -> bool:
        """Whether the same request may succeed later."""
        return status in _BUSY

    def _sentence(self, answer: bytes) -> str:
        """The sentence of a server that refuses; "" = another text."""
        try:
            return str(json.loads(answer)["error"])
        except (ValueError, KeyError, TypeError):
            return ""

    def _tls_error(self, address: str, error: ssl.SSLError) -> Exception:
        """The error of a TLS handshake or connection: only a connection that breaks off may succeed later."""
        if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return Failed(error.reason or type(error).__name__)
        if isinstance(error, ssl.SSLCertVerificationError):
            return PolicyError(
                f"{self.name}: the certificate of {address} is refused ({error.verify_message}). Set SSL_CERT_FILE to "
                "the certificate that signed it, or correct the address."
            )
        plain = "http://" + address.partition("://")[2]
        return PolicyError(
            f"{self.name}: {address} does not answer by TLS, as https:// expects ({error.reason}). `workbench "
            f"{self.kind}` serves http://. Expected {plain}, or the address of a proxy with TLS."
        )


def _busy(status: int, sentence: str, pause: str) -> Failed:
    """The failure of an answer with a status of _BUSY. pause: the header by which a loading server requests one."""
    if sentence and pause.isdecimal():
        return Failed(sentence, pause=min(max(float(pause), PAUSES_S[0]), LONGEST_PAUSE_S))
    return Failed(f"status {status}" + (f": {sentence.rstrip('.')}" if sentence else ""))
