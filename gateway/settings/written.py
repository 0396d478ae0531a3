"""The configuration as it is written: what keys there are, and what each may hold.

One pydantic class a section; the field names are the keys. They check a section by itself; what sections say of each
other is checked in `gateway.settings.load`. The JSON Schema that editors use comes from these classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema

from backends.contract import Datatype
from batching.options import BatchingOptions
from gateway.grpc_edge.transport import Transport
from gateway.request import Role
from gateway.settings.options import MAX_WORKERS, ControlMode, ServerOptions
from gateway.settings.units import duration_s, number_range, share, size_bytes, size_range
from gateway.store.options import StoreOptions
from router.confidence import Measure
from router.contract import AUTO, OnDefer
from router.table import Accepted, Glob, Range

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$"

NOTHING = "none"

# What the options say by themselves is what a file that says nothing gets.
_BATCHING = BatchingOptions()
_SERVER = ServerOptions()
_MEMORY = _SERVER.shared_memory
_STORE = StoreOptions(Path("pointsman.db"))


class _Nothing:
    """Lets `none` say what null says, in words; the schema tells so."""

    @staticmethod
    def read(value: object) -> object:
        return None if value == NOTHING else value

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        return {"anyOf": [{"const": NOTHING}, *described.get("anyOf", [described])]}


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


class _OneOrMore:
    """Lets a single value stand for a list of one; the schema tells so."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        return {"anyOf": [described["items"], described]}


def _text(what: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError(f"is {value!r}, which is not {what}; write one, in quotes if need be")
        return value

    return read


def _measure(value: object) -> Measure:
    return Measure.parse(value if isinstance(value, str) else str(value))


def _glob(value: object) -> Glob:
    return Glob(_text("text")(value))


def _media_glob(value: object) -> Glob:
    return Glob(_text("a media type such as image/*")(value).lower())


def _accepted(value: object) -> Accepted:
    if isinstance(value, str):
        if value.startswith(("<", ">")):
            return number_range(value)
        glob = Glob(value)
        return value if glob.is_literal else glob
    if isinstance(value, bool | int | float):
        return value
    raise ValueError(f"is {value!r}; use text, a number, true or false, a pattern such as 'a*', or a range like '>= 3'")


def _above_zero(reader: Callable[[object], float]) -> Callable[[object], float]:
    def read(value: object) -> float:
        number = reader(value)
        if number <= 0:
            raise ValueError(f"is {value!r}; use something above 0")
        return number

    return read


def _axis(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != -1):
        raise ValueError(f"is {value!r}; use the length of an axis, at least 1, or -1 where it varies")
    return value


_UNIT = {"type": ["string", "integer"]}
Duration: TypeAlias = Annotated[
    float, PlainValidator(duration_s), WithJsonSchema(_UNIT | {"examples": ["250ms", "20s", "4h", "30d"]})
]
Time: TypeAlias = Annotated[Duration, PlainValidator(_above_zero(duration_s))]
Size: TypeAlias = Annotated[
    int, PlainValidator(_above_zero(size_bytes)), WithJsonSchema(_UNIT | {"examples": ["64KiB", "16MiB", "2GB"]})
]
Axis: TypeAlias = Annotated[int, PlainValidator(_axis), WithJsonSchema({"type": "integer", "minimum": -1})]
Share: TypeAlias = Annotated[
    float, PlainValidator(share), WithJsonSchema({"type": ["string", "number"], "examples": ["2%", 0.02]})
]
Text: TypeAlias = Annotated[str, PlainValidator(_text("text")), WithJsonSchema({"type": "string", "minLength": 1})]
MeasureText: TypeAlias = Annotated[
    Measure,
    PlainValidator(_measure),
    WithJsonSchema({"type": "string", "pattern": r"^((max|margin|entropy)(:.+)?|output:.+)$"}),
]
SizeRange: TypeAlias = Annotated[
    Range, PlainValidator(size_range), WithJsonSchema({"type": "string", "examples": ["<= 1MiB", ">= 1KiB, < 1MiB"]})
]
GlobText: TypeAlias = Annotated[Glob, PlainValidator(_glob), WithJsonSchema({"type": "string"})]
MediaGlob: TypeAlias = Annotated[
    Glob, PlainValidator(_media_glob), WithJsonSchema({"type": "string", "examples": ["image/*", "text/plain"]})
]
AcceptedValue: TypeAlias = Annotated[
    Accepted, PlainValidator(_accepted), WithJsonSchema({"type": ["string", "number", "boolean"]})
]
Steps: TypeAlias = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": ["string", "object"]}})]


class Section(BaseModel):
    """A mapping with a fixed set of keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class BatchingSection(Section):
    """How a model's requests are gathered."""

    max_batch: int | None = Field(
        default=None, ge=1, description="Most items in a batch; the backend's own limit by default."
    )
    max_delay: Duration | None = Field(
        default=_BATCHING.max_delay_s,
        description="Longest an item waits for company while the model is free; by default as long as it pays, and its "
        "deadline allows.",
    )
    max_queue: int = Field(default=_BATCHING.max_queue, ge=1, description="Most items that wait.")
    max_queue_bytes: Size = Field(default=_BATCHING.max_queue_bytes, description="Most bytes that waiting items take.")
    priority_levels: int = Field(
        default=_BATCHING.priority_levels, ge=0, description="Levels of requests' `priority`, 1 the highest; 0: off."
    )
    default_priority: int = Field(
        default=_BATCHING.default_priority, ge=0, description="Level of requests that name none; the middle by default."
    )
    adaptive_concurrency: bool = Field(
        default=_BATCHING.adaptive_concurrency,
        description="Run fewer batches at once than the model's limit while it answers more slowly than usual.",
    )
    warm_up: list[int] = Field(
        default=[],
        description="Sizes of batches of zeros that are run before the first request, to learn what they take.",
    )
    length_buckets: list[int] = Field(
        default=[],
        description="Ascending upper bounds of items' lengths (bytes of a text, extents of axes that vary): only items "
        "of one bucket share a batch.",
    )
    padding: dict[str, bool | int | float | str] = Field(
        default={}, description="By input: what fills up items that are shorter than others of their batch."
    )
    trim: dict[str, Text] = Field(
        default={},
        description="By output: the input that it is as long as, so that it is cut back to that after padding.",
    )


class WarmSection(Section):
    """When a model is in memory."""

    keep: int = Field(
        default=1,
        ge=0,
        le=1,
        description="1: always; 0: when it will be wanted, by the idle times between its calls, and there is room.",
    )
    memory: Size | None = Field(default=None, description="What it takes; measured by default.")


class ModelSection(Section):
    """A model: its backend, whose own options are further keys here, and what stands around it."""

    backend: Text = Field(description="Kind of backend.")
    preprocess: Steps = Field(default=[], description="Steps from what a route decodes to what the model takes.")
    postprocess: Steps = Field(default=[], description="Steps from what the model gives to what the route answers.")
    labels: list[Text] | None = Field(default=None, min_length=1, description="Names of the classes, by index.")
    labels_file: Text | None = Field(
        default=None, description="A text file with one label a line, instead of `labels`."
    )
    confidence: MeasureText | None = Field(
        default=None,
        description="max, margin or entropy of the probabilities, or output:NAME; the calibration's, else max.",
    )
    calibration: Text | None = Field(default=None, description="A calibration file, fitted for this model.")
    batching: BatchingSection = BatchingSection()
    cost: float = Field(default=1.0, ge=0, description="Relative cost of an item.")
    expose: bool = Field(default=False, description="Reachable under its own name too.")
    warm: WarmSection = WarmSection()


class TensorSection(Section):
    """One input of a route, without the batch axis."""

    datatype: Datatype
    shape: list[Axis] = Field(description="Lengths of the axes; -1 where they vary.")


class AcceptSection(Section):
    """When a stage's answer is good enough: an error budget, a threshold, or whatever the last stage says."""

    max_error: Share | None = Field(
        default=None,
        description="Error rate among accepted answers. Alone: a certificate must prove a threshold for it, and people "
        "decide until one does. Beside min_confidence or observe: stated, not proven.",
    )
    confidence: Share | None = Field(
        default=None, description="How sure the proof of max_error must be; 95% by default."
    )
    certificate: Text | None = Field(
        default=None, description="A certificate file for max_error; else the newest in the store that fits."
    )
    min_confidence: float | None = Field(default=None, ge=0, le=1, description="Least calibrated confidence.")
    observe: bool = Field(
        default=False, description="Ask all stages and answer with the last one's, to gather labels for a certificate."
    )


class HumanSection(Section):
    """The people who decide what no stage is sure of."""

    queue: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(description="The review queue.")
    due: Time = Field(default=86_400.0, description="Time from deferral until a person should have decided.")
    form: Literal["labels", "text"] = Field(
        default="labels", description="Choose from the models' labels, or write text."
    )


class SloSection(Section):
    """What a route promises."""

    deadline: Time = Field(
        default=1.0, description="What a request may take where its caller says nothing, and at most."
    )


class RouteSection(Section):
    """What callers address as a model."""

    input: dict[str, TensorSection] = Field(min_length=1, description="Inputs as callers send them, by name.")
    decode: Annotated[Text | None, BeforeValidator(_Nothing.read), _Nothing()] = Field(
        default=None, description="What turns the bytes of the one input into an image or a text."
    )
    cascade: list[Text] = Field(description="Models, from cheap to strong; empty where people decide everything.")
    accept: AcceptSection | None = Field(default=None, description="When a stage's answer is good enough.")
    human: Annotated[HumanSection | None, BeforeValidator(_Nothing.read), _Nothing()] = None
    on_defer: OnDefer = OnDefer.PROVISIONAL
    slo: SloSection = SloSection()


class DetectorSection(Section):
    """What tells one trait of a request that rules ask for."""

    model: Text = Field(description="The model whose label is the trait.")
    decode: Annotated[Text | None, BeforeValidator(_Nothing.read), _Nothing()] = Field(
        default=None, description="What turns the request's bytes into an image or a text for the model."
    )
    min_confidence: float = Field(default=0.0, ge=0, le=1, description="Below this the trait is in doubt.")
    timeout: Time = Field(default=1.0, description="What it may take; later, the trait is in doubt.")


_Globs: TypeAlias = Annotated[list[GlobText], BeforeValidator(_listed), _OneOrMore()]
_MediaGlobs: TypeAlias = Annotated[list[MediaGlob], BeforeValidator(_listed), _OneOrMore()]
_Values: TypeAlias = Annotated[list[AcceptedValue], BeforeValidator(_listed), _OneOrMore()]


class TraitSection(Section):
    """What a detected trait must be."""

    one_of: _Globs = Field(default=[], description="One of these; any, where there is none.")
    none_of: _Globs = Field(default=[], description="None of these.")
    confidence: Share | None = Field(
        default=None, description="Least confidence for this to be met; by default what the detector calls sure."
    )


def _trait(value: object) -> object:
    return {"one_of": value} if isinstance(value, str | list) else value


class _OrGlobs:
    """Lets what a trait may be stand for a whole condition; the schema tells so."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        texts = {"type": "string"}
        return {"anyOf": [texts, {"type": "array", "items": texts}, handler(schema)]}


_Trait: TypeAlias = Annotated[TraitSection, BeforeValidator(_trait), _OrGlobs()]


class WhenSection(Section):
    """What a request must be, all of it, for a rule to apply."""

    route: _Globs = Field(
        default_factory=lambda: [Glob(AUTO)], min_length=1, description="What the request names; auto by default."
    )
    content_type: _MediaGlobs = Field(default=[], description="Its media type.")
    size: SizeRange | None = Field(default=None, description="Size of its inputs.")
    tenant: _Globs = Field(default=[], description="Who asks.")
    parameters: dict[str, _Values] = Field(default={}, description="The caller's own parameters.")
    traits: dict[str, _Trait] = Field(default={}, description="What detectors find, by name.")


class RuleSection(Section):
    """Requests that meet `when` take `route`, or go straight to its people."""

    name: Text | None = Field(default=None, description="What kind of request this is, for people.")
    when: WhenSection
    route: Text
    to: Literal["human"] | None = Field(default=None, description="`human`: straight to the people of the route.")


class TargetSection(Section):
    """Where requests for `auto` go that no rule took."""

    route: Text
    to: Literal["human"] | None = None


class _OrName:
    """Lets a name stand for a section that begins with it; the schema tells so."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


def _target(value: object) -> object:
    if value == NOTHING:
        return None
    return {"route": value} if isinstance(value, str) else value


def _detector(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


class OtherwiseSection(Section):
    """The last entry of `classify`."""

    otherwise: Annotated[TargetSection | None, BeforeValidator(_target), _OrName()] = Field(
        description="Where requests go that no rule took; none: they are refused."
    )


class UnsureSection(Section):
    """The entry of `classify` for what detectors leave in doubt."""

    unsure: Annotated[TargetSection, BeforeValidator(_target), _OrName()]


class TlsSection(Section):
    """What the HTTP data plane proves itself with: PEM files."""

    cert: Text = Field(description="The certificate, and behind it those up to one that clients know.")
    key: Text = Field(description="Its private key, not encrypted.")


class SharedMemorySection(Section):
    """Tensors that clients on this machine leave in shared memory, as Triton's extension has them."""

    enabled: bool = Field(default=_MEMORY.enabled, description="Clients may register regions; host must be loopback.")
    max_regions: int = Field(default=_MEMORY.max_regions, ge=1, description="Most regions of one tenant.")
    limit: Size = Field(default=_MEMORY.limit_bytes, description="What copies of inputs may take at a time.")


class ServerSection(Section):
    """Where the gateway listens, and how it stops."""

    host: Text = _SERVER.host
    http_port: int = Field(default=_SERVER.http_port, ge=0, le=65535)
    grpc_port: int = Field(default=_SERVER.grpc_port, ge=0, le=65535)
    grpc_transport: Transport = Field(
        default=_SERVER.grpc_transport,
        description="auto: native (pygrpc-native) where host is loopback and it is installed, grpcio otherwise.",
    )
    control_port: int = Field(default=_SERVER.control_port, ge=0, le=65535)
    max_body: Size = Field(default=_SERVER.max_body_bytes, description="The largest request that is read.")
    drain: Duration = Field(default=_SERVER.drain_s, description="What accepted requests get to finish at the end.")
    tls: TlsSection | None = Field(default=None, description="TLS on http_port; the other ports speak plainly.")
    trusted_hosts: tuple[Text, ...] = Field(
        default=(), description="Host names under which browsers reach the inbox; addresses and localhost always may."
    )
    shared_memory: SharedMemorySection = SharedMemorySection()
    workers: int = Field(
        default=_SERVER.workers, ge=1, le=MAX_WORKERS, description="Processes that share http_port and grpc_port."
    )
    model_control: ControlMode = Field(
        default=_SERVER.model_control,
        description="explicit: operators may load models anew, and unload them, by the Open Inference Protocol.",
    )


class StoreSection(Section):
    """Where answers, reviews and the decision log are kept."""

    path: Text = Field(default=str(_STORE.path), description="The SQLite file.")
    retention: Time = Field(default=_STORE.retention_s, description="How long a finished answer is kept.")
    limit: Size = Field(default=_STORE.limit_bytes, description="What the store may take on disk.")


class ApiKeySection(Section):
    """An API key, by the digest of it alone."""

    name: Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = Field(description="SHA-256 of the key, in hexadecimal.")
    tenant: Text = "default"
    roles: list[Role] = Field(default=[Role.CALLER], min_length=1)


class SecuritySection(Section):
    """Who may call."""

    api_keys: list[ApiKeySection] = []
    api_keys_file: Text | None = Field(default=None, description="A YAML file with such a list, instead of `api_keys`.")


class PoolSection(Section):
    """The memory that models share."""

    memory: Size | None = Field(
        default=None,
        description="What models in memory may take together, those that are always kept included; in every worker.",
    )


class SettingsSection(Section):
    """A whole configuration."""

    models: dict[str, ModelSection] = Field(default={}, description="Models, by name.")
    routes: dict[str, RouteSection] = Field(default={}, description="Routes, by the name that callers use.")
    detectors: dict[str, Annotated[DetectorSection, BeforeValidator(_detector), _OrName()]] = Field(
        default={}, description="What tells the traits that rules ask for, by the trait's name."
    )
    classify: list[RuleSection | UnsureSection | OtherwiseSection] = Field(
        default=[], description="Which route `auto` takes: first match."
    )
    server: ServerSection = ServerSection()
    store: StoreSection = StoreSection()
    security: SecuritySection = SecuritySection()
    pool: PoolSection = PoolSection()
