"""A language model behind an OpenAI-compatible HTTP API (chat completions) as a backend for texts.

    backend: openai
    url: https://api.example.com/v1
    model: small-2026-01-31
    api_key_env: EXAMPLE_API_KEY
    system: Name the department that the message is for, and nothing else.
    prompt: "Message: {text}"

    text BYTES [1]  →  text BYTES [1]        what the model answers
                       confidence FP32 [1]   only with `logprobs: true`

**Confidence** is exp of the mean log probability of the answer's tokens, as the server states them: 1 where the model
saw no alternative, NaN ("no confidence" everywhere) where the server does not say. It tells how sure the model was of
its words, not whether they are right; a calibration makes the one of the other. The model needs
`confidence: output:confidence`.

**Classes.**

    choices: [billing, sales, other]
    logprobs: true
    labels: [billing, sales, other]
    postprocess: [label]

With `choices` and `logprobs: true` the output is `probabilities` FP32 [n] instead, one number a choice, as other
classifiers give, so that a `label` step and a cascade work as with these. The API states no distribution over answers.
What is known is which choice came, and how sure the model was of it (c, as above). So the choice gets
1/n + (1 - 1/n)·c, which keeps it ahead of the others by c, and these share the rest alike: enough for `max` and a
calibration, and not what the model thinks of the others. An answer that is none of the choices (case, quotes and a
full stop apart), or as good as a guess (c below 1e-6), is a row of NaN: no label, no confidence. Without `logprobs`
every row would have to claim certainty, so this is refused.

**One HTTP request an item**, as the API knows no batches; the items of a batch are asked side by side. Batching gains
nothing here and makes an item wait for the slowest of its batch, so `max_batch` is 1 by default and `max_in_flight` is
what bounds the requests: there are never more than their product. Where one item fails, the rest of its batch is
given up, and the batcher asks again for halves of it, which costs what the server bills twice: one more reason for 1.

**Failures.** Refused, reset, silent, redirected (redirects are not followed), 5xx and malformed: `ReplicaFailed`.
429: `Overloaded`, with the server's Retry-After. Too long a text, or one that the server's filter rejects:
`InvalidInput`. Any other 4xx is a mistake in the configuration as a rule: `BackendFailed`. Messages name the model, and
the status and code of what is not understood; what the server said is in their cause, without the key. Nothing is sent
twice.

**Ending early.** At the deadline, or when cancelled, the connection is closed, which is all that the API has for saying
so. No request takes longer than `timeout_s`; a server that does is silent, which is the first of the failures above.

**The key** comes from an environment variable or a file, is read once, when the model is opened, and is in no option,
message or `repr`. It is sent to `url` and nowhere else: no proxies from the environment, no `.netrc`, no redirects.

**Versions.** Providers change what a name without a date stands for. A calibration or certificate is about a model that
stays the same: name a dated one, and change `version` with it.

Nothing is asked when the model is opened: an API that is down does not keep a gateway from starting. `probe` asks for
the list of models.

Rejected: streaming (an answer is judged as a whole); the library `openai` (retries and timeouts of its own, which are
the batcher's and the replicas' here).

Source: the OpenAI API reference, chat completions. Where we differ: of several answers (`n`) there is only ever one.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from backends.contract import (
    TRACE,
    Backend,
    Batch,
    Datatype,
    Deadline,
    HostArray,
    Limits,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
    check_batch,
    record,
)
from backends.credentials import certificates, key_in_environment, key_in_file, retry_after_s
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    PointsmanError,
    ReplicaFailed,
    Unavailable,
)
from backends.in_flight import InFlight
from backends.in_process import host_array
from backends.oip.remote import Blame, ServerSaid, because
from backends.registry import BackendType

if TYPE_CHECKING:
    import aiohttp  # at run time where it is used: an extra, which other backends do without

_JSON = {"Content-Type": "application/json"}
_SAID_LIMIT = 400
_LEAST_SURE = 1e-6  # FP32 tells less from nothing no longer, and the first choice would win
_CODE = re.compile("[a-z0-9_]{1,40}")

# Servers under uvicorn (vLLM) close idle connections after 5 s: a request that meets that moment would fail.
_KEEP_ALIVE_S = 4.0

_OWN = frozenset({"messages", "model", "max_tokens", "temperature", "logprobs", "stream", "n"})
_TOO_LONG = frozenset({"context_length_exceeded", "string_above_max_length"})
_FILTERED = frozenset({"content_filter", "content_policy_violation"})


@dataclass(frozen=True, slots=True)
class OpenAIOptions:
    """What a model with `backend: openai` can set.

    Attributes:
        url: of the API, with what stands before /chat/completions, such as https://api.example.com/v1.
        model: what the model is called there; a dated name, as others change what they stand for.
        prompt: what the model is told of an item; {text} stands for its text.
        system: what it is told before; empty: nothing.
        choices: the answers among which it classifies; empty: its answer is taken as it is.
        logprobs: ask how sure the model is of its tokens. Not every server says so.
        max_tokens: most that an answer may have; null: the server's own limit.
        temperature: 0 for the likeliest answer; null: the server's own.
        extra: further members of the request, for this server.
        input: the name of the input.
        version: as clients see it.
        api_key_env: environment variable with the key that is sent (`Authorization: Bearer`).
        api_key_file: file with it, instead.
        ca: certificates (PEM) that prove the server; empty: those that the system trusts.
        max_batch: most items in one call, each a request of its own; more than one gains nothing.
        max_in_flight: calls that run at once.
        connect_timeout_s: within which a connection stands, in seconds.
        timeout_s: what a request may take at most, in seconds, whatever its deadline.
        max_reply_bytes: most that an answer may have.

    Raises:
        ValueError: lists every value that makes no sense.
    """

    url: str
    model: str
    prompt: str = "{text}"
    system: str = ""
    choices: tuple[str, ...] = ()
    logprobs: bool = False
    max_tokens: int | None = 256
    temperature: float | None = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON
    input: str = "text"
    version: str = "1"
    api_key_env: str = ""
    api_key_file: Path | None = None
    ca: Path | None = None
    max_batch: int = 1
    max_in_flight: int = 16
    connect_timeout_s: float = 5.0
    timeout_s: float = 60.0
    max_reply_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        if faults := [*_faults_of_url(self.url), *self._faults()]:
            raise ValueError("; ".join(faults))

    def _faults(self) -> Iterator[str]:
        for name in ("model", "input", "version"):
            if not getattr(self, name):
                yield f"{name} is empty; name it"
        if "{text}" not in self.prompt:
            yield "prompt does not say where the text goes; write {text} there"
        yield from self._faults_of_choices()
        for name in ("max_batch", "max_in_flight", "max_reply_bytes"):
            if getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}; use at least 1"
        if self.max_tokens is not None and self.max_tokens < 1:
            yield f"max_tokens is {self.max_tokens}; use at least 1"
        if self.temperature is not None and not 0.0 <= self.temperature <= 2.0:
            yield f"temperature is {self.temperature}; use 0 to 2"
        for name in ("connect_timeout_s", "timeout_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                yield f"{name} is {getattr(self, name)}; use a finite number of seconds above 0"
        if self.ca is not None and not self.url.lower().startswith("https:"):
            yield "ca stands beside a url without TLS; write https, or take ca out"
        if self.api_key_env and self.api_key_file is not None:
            yield "api_key_env stands beside api_key_file; keep one of them"
        if twice := sorted(_OWN & self.extra.keys()):
            yield f"extra holds {twice[0]!r}, which is an option of its own or none here; take it out"

    def _faults_of_choices(self) -> Iterator[str]:
        if not self.choices:
            return
        plain = [_plain(choice) for choice in self.choices]
        if len(plain) < 2 or "" in plain:
            yield "choices needs two answers at least, none of them empty"
        if len(set(plain)) != len(plain):
            yield "choices holds an answer twice (case, quotes and full stops do not count); make them different"
        if not self.logprobs:
            yield "choices cannot be told how sure the model is of them without `logprobs: true`; add it"


def _faults_of_url(url: str) -> Iterator[str]:
    """What is wrong with *url*, which is not repeated: somebody may have written a key into it."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        yield "url is malformed; write it as https://host/v1"
        return
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield "url is no server's; write it as https://host/v1"
    if parts.username is not None or parts.password is not None:
        yield "url has credentials in it; name an `api_key_env` instead"
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith("/chat/completions"):
        yield "url goes on after what is needed; end it before /chat/completions, without a query"


@record
class _Said:
    """A model's answer to one item.

    Attributes:
        confidence: exp of the mean log probability of its tokens; NaN where the server does not say.
    """

    text: str
    confidence: float


class OpenAI:
    """A model behind a chat completions API as a backend; `open_openai` builds it.

    Belongs to one event loop.
    """

    def __init__(self, model_name: str, options: OpenAIOptions, session: aiohttp.ClientSession, api_key: str) -> None:
        """Args:
        model_name: the model in errors.
        options: as configured.
        session: owned from here on.
        api_key: what must not be in any message; the session sends it. Empty: there is none.
        """
        self._name = model_name
        self._options = options
        self._session = session
        self._api_key = api_key
        self._blame = Blame(model_name)
        self._limits = Limits(options.max_batch, options.max_in_flight)
        self._signature = Signature((TensorSpec(options.input, Datatype.BYTES, (1,)),), _outputs(options))
        self._places = {_plain(choice): place for place, choice in enumerate(options.choices)}
        self._url = options.url.rstrip("/")
        self._state = State.READY
        self._calls = InFlight()

    def __repr__(self) -> str:
        return f"<OpenAI {self._name!r} version {self.version}: {self.state}, {self._calls.count} calls>"

    @property
    def signature(self) -> Signature:
        """A text in; a text, or class probabilities, out."""
        return self._signature

    @property
    def version(self) -> str:
        """As configured."""
        return self._options.version

    @property
    def limits(self) -> Limits:
        """As configured."""
        return self._limits

    @property
    def state(self) -> State:
        """Ready until closed."""
        return self._state

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Ask for the items side by side; see `Backend.infer`."""
        check_batch(self._signature, batch, self._limits)
        requests = self._requests(batch.inputs[self._options.input])
        self._admit(deadline)
        with self._calls:
            return self._answer(await self._ask_all(requests, deadline))

    async def probe(self, deadline: Deadline) -> None:
        """Ask for the list of models: the server is there, and takes the key.

        Raises:
            PointsmanError: it is not, does not, or did not say so by *deadline*.
        """
        self._admit(deadline)
        await self._exchange("GET", "/models", None, deadline)

    async def aclose(self) -> None:
        """Take no more calls, and wait for those in flight."""
        self._state = State.CLOSED
        await self._calls.wait_idle()
        await self._session.close()

    def _admit(self, deadline: Deadline) -> None:
        if self._state is not State.READY:
            raise Unavailable(f"model {self._name!r} is {self._state}; send the request elsewhere")
        if deadline <= time.monotonic():
            raise DeadlineExceeded(f"the deadline passed before model {self._name!r} started; allow more time")

    def _requests(self, texts: Tensor) -> list[bytes]:
        """The body of one request an item."""
        options = self._options
        common: dict[str, Any] = {"model": options.model, "stream": False, **options.extra}
        if options.max_tokens is not None:
            common["max_tokens"] = options.max_tokens
        if options.temperature is not None:
            common["temperature"] = options.temperature
        if options.logprobs:
            common["logprobs"] = True
        before = [{"role": "system", "content": options.system}] if options.system else []
        return [
            orjson.dumps({**common, "messages": [*before, {"role": "user", "content": self._prompt(element)}]})
            for element in host_array(options.input, texts).flat
        ]

    def _prompt(self, element: bytes) -> str:
        try:
            return self._options.prompt.replace("{text}", element.decode())
        except UnicodeDecodeError as error:
            raise InvalidInput(f"input {self._options.input!r} holds a text that is not UTF-8; encode it so") from error

    async def _ask_all(self, requests: list[bytes], deadline: Deadline) -> list[_Said]:
        if len(requests) == 1:  # the usual case
            return [await self._ask(requests[0], deadline)]
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._ask(request, deadline)) for request in requests]
        except* PointsmanError as failed:
            first = failed.exceptions[0]  # upon which the others were cancelled
        else:
            return [task.result() for task in asked]
        raise first

    async def _ask(self, request: bytes, deadline: Deadline) -> _Said:
        reply = await self._exchange("POST", "/chat/completions", request, deadline)
        try:
            completion = orjson.loads(reply)["choices"][0]
            content = completion["message"]["content"]
            if isinstance(content, str):
                return _Said(content, _confidence(completion.get("logprobs")))
            reason = completion.get("finish_reason")
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            fault: object = f"{type(error).__name__}: {error}"
        else:
            if content is None and isinstance(reason, str):
                told = f"model {self._name!r} gave no answer to this text{_in_brackets(self._cleaned(reason))}"
                raise because(BackendFailed(f"{told}; another model may"), ServerSaid("an answer without content"))
            fault = "an answer's content is no text"
        raise self._blame.nonsense(f"{fault} in {self._quoted(reply)}")

    def _answer(self, said: list[_Said]) -> Tensors:
        if self._options.choices:
            return {"probabilities": Tensor.of(np.array([self._row(one) for one in said], np.float32))}
        texts: HostArray = np.empty((len(said), 1), np.object_)
        texts[:, 0] = [one.text.encode() for one in said]
        if not self._options.logprobs:
            return {"text": Tensor.of(texts)}
        sure = np.array([[one.confidence] for one in said], np.float32)
        return {"text": Tensor.of(texts), "confidence": Tensor.of(sure)}

    def _row(self, said: _Said) -> list[float]:
        """See the module."""
        count = len(self._places)
        place = self._places.get(_plain(said.text))
        if place is None or not said.confidence >= _LEAST_SURE:  # NaN is not, either
            return [math.nan] * count
        sure = 1.0 / count + (1.0 - 1.0 / count) * said.confidence
        row = [(1.0 - sure) / (count - 1)] * count
        row[place] = sure
        return row

    async def _exchange(self, method: str, path: str, body: bytes | None, deadline: Deadline) -> bytes:
        """The body of a good answer.

        Raises:
            PointsmanError: there was none, or not in time.
        """
        left_s = deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(left_s, self._options.timeout_s))):
                outcome = await self._attempt(method, path, body)
        except TimeoutError:
            if left_s <= self._options.timeout_s:
                outcome = self._blame.late("nothing in time")
            else:
                outcome = ReplicaFailed(
                    f"model {self._name!r}: its server did not answer within {self._options.timeout_s:g} s; "
                    "try again later"
                )
        if isinstance(outcome, PointsmanError):
            raise outcome
        return outcome

    async def _attempt(self, method: str, path: str, body: bytes | None) -> bytes | PointsmanError:
        """A good answer's body, or the error that came of it.

        aiohttp's own errors are not kept, not as causes or contexts either: some hold the headers that were sent.
        """
        import aiohttp

        headers = _JSON if body else None
        if body and (trace := TRACE.get()) is not None:
            headers = {**_JSON, **dict(trace.headers())}
        try:
            async with self._session.request(
                method, self._url + path, data=body, headers=headers, allow_redirects=False
            ) as reply:
                content = await self._read(reply)
                if content is None:
                    return self._blame.oversized(f"the answer has more than {self._options.max_reply_bytes} bytes")
                return content if reply.status == 200 else self._refusal(reply.status, reply.headers, content)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return self._blame.unreachable(self._described(error))
        except aiohttp.ClientResponseError as error:  # no HTTP
            return self._blame.nonsense(self._described(error))
        except (aiohttp.ClientError, OSError) as error:
            return self._blame.hung_up(self._described(error))

    async def _read(self, reply: aiohttp.ClientResponse) -> bytes | None:
        """The body; None where it is larger than it may be: then the rest is not read, and the connection closed."""
        pieces: list[bytes] = []
        size = 0
        async for piece in reply.content.iter_any():
            size += len(piece)
            if size > self._options.max_reply_bytes:
                reply.close()
                return None
            pieces.append(piece)
        return b"".join(pieces)

    def _refusal(self, status: int, headers: Mapping[str, str], content: bytes) -> PointsmanError:
        """The error that an answer other than 200 is."""
        why = f"HTTP {status}: {self._quoted(content)}"
        model = f"model {self._name!r}"
        code = self._cleaned(_code_in(content))
        match status:
            case 429:
                return self._blame.busy(why, retry_after_s(headers.get("Retry-After", "")))
            case 413:
                return because(InvalidInput(f"{model} refuses so long a text; shorten it"), ServerSaid(why))
            case 400 | 422 if code in _TOO_LONG:
                return because(InvalidInput(f"{model} refuses so long a text; shorten it"), ServerSaid(why))
            case 400 | 422 if code in _FILTERED:
                told = InvalidInput(f"{model} refuses this text: its server's filter rejects it")
                return because(told, ServerSaid(why))
            case 401 | 403:
                return self._blame.unauthorized(why)
            case 404:
                remedy = "its server does not know the model, or the path; an operator must see to `model` and `url`"
            case _ if 400 <= status < 500 and status not in (408, 409, 425):
                remedy = f"its server does not take the request: HTTP {status}{_in_brackets(code)}"
            case _:
                return self._blame.unwell(why)
        return because(BackendFailed(f"{model}: {remedy}"), ServerSaid(why))

    def _described(self, error: Exception) -> str:
        return self._cleaned(f"{type(error).__name__}: {error}")

    def _quoted(self, content: bytes) -> str:
        return repr(self._cleaned(content.decode(errors="replace"))[:_SAID_LIMIT])  # cut last: half a key is one, too

    def _cleaned(self, told: str) -> str:
        """*told* without the key: servers repeat it when they refuse it."""
        return told.replace(self._api_key, "(the key)") if self._api_key else told


def _outputs(options: OpenAIOptions) -> tuple[TensorSpec, ...]:
    if options.choices:
        return (TensorSpec("probabilities", Datatype.FP32, (len(options.choices),)),)
    text = TensorSpec("text", Datatype.BYTES, (1,))
    return (text, TensorSpec("confidence", Datatype.FP32, (1,))) if options.logprobs else (text,)


def _plain(answer: str) -> str:
    """*answer* without what models put around a word: white space, quotes, a full stop, another case."""
    return answer.strip().strip("\"'`*.").strip().casefold()


def _confidence(logprobs: Any) -> float:  # Any: JSON
    """See the module.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: *logprobs* is not of the API's form.
    """
    tokens = None if logprobs is None else logprobs["content"]
    if not tokens:
        return math.nan
    stated = [float(token["logprob"]) for token in tokens]
    if max(stated) > 1e-3:  # rounded, a little above 0 can be meant as 0
        raise ValueError(f"a log probability of {max(stated)}")
    return math.exp(min(0.0, sum(stated) / len(stated)))


def _code_in(content: bytes) -> str:
    """The code of an error in the API's form; "" where there is none."""
    try:
        code = orjson.loads(content)["error"]["code"]
    except (orjson.JSONDecodeError, TypeError, LookupError):
        return ""
    return code if isinstance(code, str) else ""


def _in_brackets(code: str) -> str:
    """*code*, for a message, if it is the name of something; else nothing: it might be anybody's text."""
    return f" ({code})" if _CODE.fullmatch(code) else ""


async def open_openai(model_name: str, options: OpenAIOptions) -> Backend:
    """Read the key and the certificates, and make ready to ask; nothing is asked yet.

    Raises:
        NotFound: aiohttp is not installed.
        InvalidInput: the key or the certificates are not there, or are none.
    """
    if find_spec("aiohttp") is None:
        raise NotFound(f"model {model_name!r}: backend openai needs aiohttp; pip install 'pointsman[openai]'")
    api_key = await asyncio.to_thread(_api_key, options)
    tls = await asyncio.to_thread(_tls, options)
    return OpenAI(model_name, options, _session(options, api_key, tls), api_key)


def _session(options: OpenAIOptions, api_key: str, tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    import aiohttp

    headers = {"Accept": "application/json", "User-Agent": "pointsman"}
    headers["Accept-Encoding"] = "identity"  # or an answer could be larger than what is counted
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=options.max_batch * options.max_in_flight, ssl=tls or True, keepalive_timeout=_KEEP_ALIVE_S
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.connect_timeout_s),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


def _api_key(options: OpenAIOptions) -> str:
    """The key; "" where none is named."""
    if options.api_key_env:
        return key_in_environment(options.api_key_env, "api_key_env")
    return "" if options.api_key_file is None else key_in_file(options.api_key_file, "api_key_file")


def _tls(options: OpenAIOptions) -> ssl.SSLContext | None:
    """What proves the server; None without TLS."""
    if not options.url.lower().startswith("https:"):
        return None
    return ssl.create_default_context(cadata=certificates(options.ca))


_WHERE_IT_IS = ("url", "api_key_env", "api_key_file", "ca")
_HOW_IT_IS_ASKED = ("max_batch", "max_in_flight", "connect_timeout_s", "timeout_s", "max_reply_bytes")
OPENAI = BackendType("openai", OpenAIOptions, open_openai, frozenset({*_WHERE_IT_IS, *_HOW_IT_IS_ASKED}))
