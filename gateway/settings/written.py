"""The configuration as it is written: what keys there are, and what each may hold.

One pydantic class a section; the field names are the keys. They check a section by itself; what sections say of each
other is checked in `gateway.settings.load`. The JSON Schema that editors use comes from these classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from backends.contract import Datatype
from backends.ray_serve.options import DeploymentOptions, ScalingOptions
from batching.options import BatchingOptions, SequenceOptions
from gateway.grpc_edge.transport import Transport
from gateway.masking import MASKED, JsonPath
from gateway.notices.options import MailSecurity, NotifyOptions, SmtpOptions
from gateway.people.options import DEFAULT_DUE_S, EVERY_QUEUE, QueueOptions
from gateway.people.scope import QueueRole
from gateway.request import Role
from gateway.settings.options import MAX_WORKERS, ClusterOptions, ControlMode, ServerOptions
from gateway.settings.units import (
    day_span,
    duration_s,
    number_range,
    portion,
    share,
    share_or_all,
    size_bytes,
    size_range,
    unix_time_s,
    weekdays,
)
from gateway.store.contract import NoticeKind
from gateway.store.options import StoreOptions
from gateway.tracing.options import TracesOptions
from kernels.devices import KernelOptions
from router.confidence import Measure
from router.contract import AUTO, LEAST_PRIORITY, USUAL_PRIORITY, OnDefer, WhenOverloaded
from router.table import Accepted, Glob, Range
from router.versions import StickBy, Sticky

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$"

VERSION_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"

LATEST = "latest"
"""Means the version that is listed last."""

NOTHING = "none"

# What the options say by themselves is what a file that says nothing gets.
_BATCHING = BatchingOptions()
_SEQUENCES = SequenceOptions()
_SERVER = ServerOptions()
_KERNELS = KernelOptions()
_QUEUE = QueueOptions()
_MEMORY = _SERVER.shared_memory
_STORE = StoreOptions(Path("pointsman.db"))
_TRACES = TracesOptions("http://127.0.0.1:4318")
_NOTIFY = NotifyOptions("")
_SMTP = SmtpOptions("", "")
_DEPLOYMENT = DeploymentOptions()
_SCALING = ScalingOptions(1)
_CLUSTER = ClusterOptions()


class _Nothing:
    """Lets `none` say what null says, in words; the schema tells so."""

    @staticmethod
    def read(value: object) -> object:
        return None if value == NOTHING else value

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        return {"anyOf": [{"const": NOTHING}, *described.get("anyOf", [described])]}


class _Engine:
    """Lets `{image: nvimgcodec}` stand for the decoder image-nvimgcodec; the schema tells so."""

    @staticmethod
    def read(value: object) -> object:
        if isinstance(value, dict) and len(value) == 1:
            ((decoder, engine),) = value.items()
            return f"{decoder}-{engine}" if isinstance(engine, str) else value
        return value

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        engines = {"type": "object", "properties": {"image": {"const": "nvimgcodec"}}, "additionalProperties": False}
        return {"anyOf": [engines, *described.get("anyOf", [described])]}


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


def _json_path(value: object) -> JsonPath:
    return JsonPath.parse(value if isinstance(value, str) else str(value))


def _pattern(value: object) -> re.Pattern[str]:
    try:
        pattern = re.compile(_text("a regular expression")(value))
    except re.error as error:
        raise ValueError(f"is {value!r}, which is no regular expression: {error}; correct it") from error
    if pattern.match(""):
        raise ValueError(f"is {value!r}, which matches nothing at all, and so everywhere; make it match something")
    return pattern


def _sticky(value: object) -> Sticky:
    kind, colon, parameter = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind in (StickBy.TENANT, StickBy.CALLER) and not colon:
        return Sticky(StickBy(kind))
    if kind == StickBy.PARAMETER and parameter:
        return Sticky(StickBy.PARAMETER, parameter)
    raise ValueError(f"is {value!r}; use tenant, caller (the name of an API key), or parameter:NAME")


def _weight(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise ValueError(f"is {value!r}; use a number from 0 upwards, as the weight of its version")
    return float(value)


def _days(value: object) -> object:
    """Checks the keys of a mapping, which are days of the week; what is none is told with all that may stand there."""
    for key in value if isinstance(value, dict) else ():
        weekdays(key)
    return value


def _roles(value: object) -> object:
    """A list of queues as a mapping to what one is there."""
    if not isinstance(value, list):
        return value
    return {queue if isinstance(queue, str) else str(queue): QueueRole.REVIEWER.value for queue in value}


class _OrQueues:
    """Lets a list of names stand for a mapping from them to `reviewer`; the schema tells so."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        return {"anyOf": [{"type": "array", "items": {"type": "string"}}, *described.get("anyOf", [described])]}


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
Portion: TypeAlias = Annotated[
    float, PlainValidator(portion), WithJsonSchema({"type": ["string", "number"], "examples": ["1%", 1]})
]
ShareOrAll: TypeAlias = Annotated[
    float, PlainValidator(share_or_all), WithJsonSchema({"type": ["string", "number"], "examples": ["5%", "100%"]})
]
Moment: TypeAlias = Annotated[
    float, PlainValidator(unix_time_s), WithJsonSchema({"type": "string", "examples": ["2026-11-26T10:00:00Z"]})
]
Weight: TypeAlias = Annotated[float, PlainValidator(_weight), WithJsonSchema({"type": "number", "minimum": 0})]
StickyText: TypeAlias = Annotated[
    Sticky, PlainValidator(_sticky), WithJsonSchema({"type": "string", "pattern": "^(tenant|caller|parameter:.+)$"})
]
Text: TypeAlias = Annotated[str, PlainValidator(_text("text")), WithJsonSchema({"type": "string", "minLength": 1})]
Decode: TypeAlias = Annotated[
    Text | None, BeforeValidator(_Engine.read), BeforeValidator(_Nothing.read), _Engine(), _Nothing()
]
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
DaySpan: TypeAlias = Annotated[
    tuple[int, int], PlainValidator(day_span), WithJsonSchema({"type": "string", "examples": ["08:00-17:00"]})
]
JsonPathText: TypeAlias = Annotated[
    JsonPath,
    PlainValidator(_json_path),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\$", "examples": ["$.customer.name", "$.lines[*].iban", "$..email"]}
    ),
]
PatternText: TypeAlias = Annotated[
    re.Pattern[str], PlainValidator(_pattern), WithJsonSchema({"type": "string", "format": "regex"})
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


class SequencesSection(Section):
    """How many sequences of requests a model answers that keeps state from one to the next."""

    max_live: int = Field(
        default=_SEQUENCES.max_live, ge=1, description="That have begun and not ended; a further one is refused."
    )
    max_waiting: int = Field(
        default=_SEQUENCES.max_waiting, ge=1, description="Most requests of one that wait for their turn."
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


class KernelsSection(Section):
    """How the image steps of `preprocess` are run."""

    fuse: bool = Field(default=_KERNELS.fuse, description="Steps in a row as one pass; false: one after the other.")
    device: Annotated[str, StringConstraints(pattern=r"^(cpu|cuda(:\d{1,2})?)$")] = Field(
        default=_KERNELS.device,
        description="Where: cpu, or cuda (cuda:1 for the second) with pointsman[gpu-cu13] installed.",
    )
    check: Share = Field(
        default=_KERNELS.check,
        description="Pictures computed again by the plain steps, behind their answers, to compare.",
    )


class AutoscaleSection(Section):
    """When there are more replicas of a model, and when fewer."""

    min: int = Field(default=_SCALING.least, ge=0, description="Replicas; 0: none while nobody asks.")
    max: int = Field(ge=1, description="Replicas.")
    queue_delay: Time = Field(
        default=_SCALING.queue_delay_s, description="What batches may wait for a replica; longer, and there are more."
    )
    up_after: Duration = Field(
        default=_SCALING.up_after_s, description="How long they must have waited too long before there are more."
    )
    down_after: Duration = Field(
        default=_SCALING.down_after_s, description="How long fewer must have been enough before there are fewer."
    )


class ReplicasSection(Section):
    """Replicas of Ray Serve, on a cluster."""

    replicas: int | None = Field(default=None, ge=1, description="As many; 1 by default.")
    num_cpus: float = Field(default=_DEPLOYMENT.num_cpus, ge=0, description="Cores that Ray sets aside for each.")
    num_gpus: float = Field(
        default=_DEPLOYMENT.num_gpus, ge=0, description="GPUs, likewise; 0.25 puts four replicas on one."
    )
    memory: Size | None = Field(default=None, description="Memory, likewise.")
    autoscale: AutoscaleSection | None = Field(default=None, description="Instead of replicas: as many as it takes.")


class ServeSection(ReplicasSection):
    """A model as a deployment of Ray Serve, on a cluster; a gateway that is on none has it in its own process."""

    pool: Text | None = Field(
        default=None,
        description="Instead of all else: the name of a pool (`cluster: {pools: ...}`), whose replicas it shares with "
        "other models. With `warm: {keep: 0}` it is loaded there when it is wanted.",
    )


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
    required: bool = Field(
        default=True,
        description="false: the gateway starts, and is ready, while none of the model's servers can be reached, and "
        "opens it once one can.",
    )
    sequences: SequencesSection = SequencesSection()
    kernels: KernelsSection = KernelsSection()
    serve: ServeSection | None = Field(
        default=None, description="On a Ray cluster, the model is apart from the gateway, in replicas of its own."
    )


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
    any: bool = Field(default=False, description="Whatever the only stage says, as of a model that keeps state.")
    observe: bool = Field(
        default=False, description="Ask all stages and answer with the last one's, to gather labels for a certificate."
    )


_DaySpans: TypeAlias = Annotated[list[DaySpan], BeforeValidator(_listed), _OneOrMore()]


class HoursSection(Section):
    """When the people of a queue work."""

    zone: Text = Field(description="The time zone, such as Europe/Berlin.")
    week: Annotated[dict[str, _DaySpans], BeforeValidator(_days)] = Field(
        min_length=1, description='By day (mon, ...) or days (mon-fri): from when until when, such as "08:00-17:00".'
    )


class QueueSection(Section):
    """People who decide."""

    escalate_to: Text | None = Field(
        default=_QUEUE.escalate_to, description="The queue to which a review goes that is due and undecided."
    )
    due: Time = Field(default=_QUEUE.due_s, description="What a review gets that comes from another queue.")
    skills: list[Text] = Field(default=[], description="What whoever decides here must have.")
    hours: HoursSection | None = Field(default=None, description="When its people work; day and night by default.")


class OpinionsSection(Section):
    """How many people an item is asked of."""

    needed: int = Field(default=2, ge=2, le=9, description="How many must give the same label for it to be final.")
    of: int = Field(
        default=3, ge=2, le=9, description="Most that are asked; where they do not agree, one more decides."
    )


class HumanSection(Section):
    """The people who decide what no stage is sure of."""

    queue: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(description="The review queue.")
    due: Time = Field(default=DEFAULT_DUE_S, description="Time from deferral until a person should have decided.")
    expires: Time | None = Field(
        default=None,
        description="Time from deferral until an item that nobody decided is given up; if unsaid, it waits for ever.",
    )
    form: Literal["labels", "text"] = Field(
        default="labels", description="Choose from the models' labels, or write text."
    )
    priority: int = Field(
        default=USUAL_PRIORITY, ge=1, le=LEAST_PRIORITY, description="Of its reviews in the queue; 1 goes first."
    )
    callers_priority: bool = Field(
        default=False, description="A request's parameter `priority`, from 1 to 9, counts in the queue."
    )
    skills: list[Text] = Field(default=[], description="What whoever decides must have, beside the queue's.")
    when_overloaded: WhenOverloaded = Field(
        default=WhenOverloaded.WAIT,
        description="What becomes of an item where people would take longer than max_wait: it waits all the same, the "
        "model's uncertain answer stands and nobody is asked, stages are asked that seemed too slow, or 503.",
    )
    max_wait: Time | None = Field(default=None, description="What people may take; `due` by default.")
    opinions: OpinionsSection | None = Field(default=None, description="Ask several people; one decides by default.")
    adjudicate: Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(
        default=None,
        description="The queue of those who decide where opinions differ: of `opinions` the same queue by default, of "
        "second opinions nobody.",
    )
    second_opinion: ShareOrAll | None = Field(
        default=None,
        description="Of what people have decided, how much another person is asked about, who sees neither their label "
        "nor the models'. It changes no answer; it measures.",
    )
    gold: Share | None = Field(
        default=None,
        description="Items with a known answer (`pointsman gold add`) that are put beside real ones: their share of "
        "these.",
    )


class SloSection(Section):
    """What a route promises."""

    deadline: Time = Field(
        default=1.0, description="What a request may take where its caller says nothing, and at most."
    )


class SharedSection(Section):
    """What callers address as a model, but for what answers it."""

    input: dict[str, TensorSection] = Field(min_length=1, description="Inputs as callers send them, by name.")
    decode: Decode = Field(
        default=None,
        description="What turns the bytes of the one input into an image or a text; {image: nvimgcodec} decodes JPEGs "
        "on a CUDA device.",
    )
    accept: AcceptSection | None = Field(default=None, description="When a stage's answer is good enough.")
    human: Annotated[HumanSection | None, BeforeValidator(_Nothing.read), _Nothing()] = None
    on_defer: OnDefer = OnDefer.PROVISIONAL
    id_as_key: bool = Field(
        default=False,
        description="The `id` of a request of the Open Inference Protocol is its idempotency key, if it has no other.",
    )
    slo: SloSection = SloSection()


class RouteSection(SharedSection):
    """What callers address as a model."""

    cascade: list[Text] = Field(description="Models, from cheap to strong; empty where people decide everything.")


class VersionSection(Section):
    """One of several versions of a route."""

    cascade: list[Text] = Field(min_length=1, description="Models, from cheap to strong.")
    accept: AcceptSection | None = Field(
        default=None, description="When a stage's answer is good enough; by default as the route says."
    )


class CanarySection(Section):
    """A version whose share of the traffic grows by itself; the version that stays has the rest."""

    version: Text = Field(description="The version that is tried.")
    ramp: list[ShareOrAll] = Field(
        default=[0.01, 0.05, 0.25, 1.0], min_length=1, description="Its shares, rising; the last one stays."
    )
    every: Time = Field(default=600.0, description="How long each of them lasts.")
    starts: Moment | None = Field(
        default=None, description="When the first begins; when the gateway starts, if unsaid."
    )


class ShadowSection(Section):
    """A version that is shown what others answer; its own answers are compared with theirs, and thrown away."""

    version: Text = Field(description="The version that is shown requests.")
    share: ShareOrAll = Field(default=1.0, description="Of the requests, how many.")
    max_running: int = Field(
        default=4, ge=1, description="Most that it works on at a time; what comes beyond is not shown to it."
    )


class TrafficSection(Section):
    """Which version of a route answers which requests."""

    use: Text | None = Field(
        default=None,
        description="The version that answers all, or the rest beside a canary; `latest` is the one listed last.",
    )
    split: dict[str, Weight] | None = Field(default=None, min_length=1, description="Weights of versions.")
    canary: CanarySection | None = Field(default=None, description="A version whose share grows.")
    shadow: ShadowSection | None = Field(default=None, description="A version that never answers.")
    sticky: StickyText | None = Field(
        default=None,
        description="tenant, caller or parameter:NAME: all requests with the same one get the same version; by default "
        "one is drawn for every request.",
    )


def _traffic(value: object) -> object:
    return {"use": value} if isinstance(value, str) else value


class _OrVersion:
    """Lets a version stand for a section that says to use it; the schema tells so."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


class VersionedRouteSection(SharedSection):
    """What callers address as a model, in several versions that are live at once."""

    versions: dict[str, VersionSection] = Field(min_length=1, description="Versions, oldest first, by name.")
    traffic: Annotated[TrafficSection, BeforeValidator(_traffic), _OrVersion()] = Field(
        default=TrafficSection(), description="Which of them answers which requests; the last one all, by default."
    )


class DetectorSection(Section):
    """What tells one trait of a request that rules ask for."""

    model: Text = Field(description="The model whose label is the trait.")
    decode: Decode = Field(
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
    pass_through: bool = Field(
        default=_MEMORY.pass_through,
        description="Regions are passed on to models' servers with `shared_memory: true`, and tensors are not copied. "
        "A client that shortens its object during a call can end such a server.",
    )
    pass_from: Size = Field(
        default=_MEMORY.pass_from_bytes,
        description="What a request must have in shared memory to be passed on; less is copied, and merged.",
    )


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
    tls: TlsSection | None = Field(
        default=None,
        description="TLS on http_port, whose files are read again when they change; other ports speak plainly.",
    )
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


class PostgresSection(Section):
    """A PostgreSQL database, by where its address is, which may hold a password."""

    url_env: Text | None = Field(
        default=None, description="The variable that holds the address, postgresql://USER:PASSWORD@HOST/DATABASE."
    )
    url_file: Text | None = Field(
        default=None, description="A file with the address, instead of `url_env`; read anew for every connection."
    )


class RetentionSection(Section):
    """How long each kind is kept; certificates stay for good."""

    answers: Time = Field(default=_STORE.retention_s, description="Finished answers, and all that belongs to them.")
    payloads: Time | None = Field(
        default=None, description="What people were shown, after it is decided; as long as the answer by default."
    )
    decisions: Time | None = Field(
        default=None, description="Rows of the decision log; by default as long as there is room."
    )
    feedback: Time | None = Field(default=None, description="Labels of callers; for good by default.")
    messages: Time | None = Field(
        default=None, description="Messages that were delivered, or are dead; as long as answers by default."
    )
    keys: Time = Field(
        default=_STORE.kept.keys_s, description="Idempotency keys, after their answer is final; its answer stays too."
    )


def _retention(value: object) -> object:
    if isinstance(value, dict):
        return value
    _above_zero(duration_s)(value)  # so that a fault is told of what was written
    return {"answers": value}


class _OrTime:
    """Lets how long answers are kept stand for a section that says so; the schema tells so."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [_UNIT | {"examples": ["30d"]}, handler(schema)]}


class StoreSection(Section):
    """Where answers, reviews and the decision log are kept."""

    path: Text = Field(default=str(_STORE.path), description="The SQLite file.")
    postgres: PostgresSection | None = Field(
        default=None,
        description="A PostgreSQL database instead of `path`, which gateways on several hosts may share; needs the "
        "extra `postgres`.",
    )
    retention: Annotated[RetentionSection, BeforeValidator(_retention), _OrTime()] = Field(
        default=RetentionSection(), description="How long a finished answer is kept, or what is kept how long."
    )
    key_env: Text | None = Field(
        default=None, description="The variable with the key that digests of subjects and inputs are made with."
    )
    key_file: Text | None = Field(
        default=None, description="A file with it, instead of `key_env`; by default one beside the store."
    )
    limit: Size = Field(default=_STORE.limit_bytes, description="What the store may take on disk.")
    undo: Duration = Field(
        default=_STORE.undo_s,
        description="How long a person can take a decision back; webhooks are told of it after that.",
    )


class ApiKeySection(Section):
    """An API key, by the digest of it alone."""

    name: Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = Field(description="SHA-256 of the key, in hexadecimal.")
    tenant: Text = "default"
    roles: list[Role] = Field(default=[Role.CALLER], min_length=1)
    queues: Annotated[dict[str, QueueRole] | None, BeforeValidator(_roles), _OrQueues()] = Field(
        default=None,
        description="Where its owner reviews: a list of queues, or what they are in each, `reviewer` or `lead`; "
        f"{EVERY_QUEUE!r} is every queue. A reviewer in all of them, if unsaid.",
    )
    skills: list[Text] = Field(default=[], description="What its owner has, of what queues and routes ask for.")


class SecuritySection(Section):
    """Who may call."""

    api_keys: list[ApiKeySection] = []
    api_keys_file: Text | None = Field(
        default=None,
        description="A YAML file with such a list, instead of `api_keys`; it is read again when it changes.",
    )


class WebhookSection(Section):
    """Who is told of answers that people have made final."""

    url: Text = Field(description="Where messages are posted: https, or http where it is private.")
    secret_env: Text | None = Field(default=None, description="The variable that holds the signing secret.")
    secret_file: Text | None = Field(
        default=None, description="A file with the signing secrets, one a line, instead of `secret_env`."
    )
    tenant: Text = Field(default="default", description="Whose answers.")
    routes: list[Text] = Field(default=[], description="Of which routes; all by default.")
    private: bool = Field(default=False, description="It may be on this machine, or in a private network.")
    answers: bool = Field(default=True, description="false: it is told only of what `notify` says.")


class MaskSection(Section):
    """What is kept and shown of what callers send with something else in its place; models see it as it is."""

    parameter: Text | None = Field(default=None, description="A parameter of the caller's, by its name.")
    path: JsonPathText | None = Field(
        default=None, description="Places in JSON: a text that is a document, or the inputs by name."
    )
    text: PatternText | None = Field(default=None, description="A regular expression.")
    by: Text = Field(default=MASKED, description="What stands in its place.")
    routes: list[Text] = Field(default=[], description="Of which routes; all by default.")


_Mailboxes: TypeAlias = Annotated[list[Text], BeforeValidator(_listed), _OneOrMore()]


class NotifySection(Section):
    """Who is told of a queue's reviews: a webhook, or mailboxes."""

    queue: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(description="The review queue.")
    webhook: Text | None = Field(default=None, description="The name of one of `webhooks`.")
    email: _Mailboxes = Field(default=[], description="Mailboxes; needs `smtp`.")
    on: list[NoticeKind] = Field(
        default=list(NoticeKind), min_length=1, description="new: reviews that are new; due: such that are due."
    )
    tenant: Text = Field(default="default", description="Whose reviews.")
    digest: Duration = Field(
        default=_NOTIFY.digest_s, description="Least time between two messages; the first is sent at once."
    )
    ahead: Duration = Field(default=_NOTIFY.ahead_s, description="How long before its due time a review counts as due.")
    link: Text | None = Field(default=None, description="Where the inbox is, for people.")


class SmtpSection(Section):
    """The server that takes mail."""

    host: Text = Field(description="Its name, as its certificate has it.")
    port: int = Field(default=_SMTP.port, ge=1, le=65535)
    sender: Text = Field(description="The mailbox that mail comes from.")
    security: MailSecurity = Field(
        default=_SMTP.security, description="starttls, tls, or none: not encrypted, in one's own network alone."
    )
    user: Text | None = Field(default=None, description="To log in with; nobody does without.")
    password_env: Text | None = Field(default=None, description="The variable that holds the password.")
    password_file: Text | None = Field(default=None, description="A file with it, instead of `password_env`.")
    ca: Text | None = Field(default=None, description="Certificates (PEM) that prove the server.")
    timeout: Time = Field(default=_SMTP.timeout_s, description="For each of its answers.")


class PoolSection(Section):
    """The memory that models share."""

    memory: Size | None = Field(
        default=None,
        description="What models in memory may take together, those that are always kept included; in every worker.",
    )


class TracesSection(Section):
    """Spans of requests, by OTLP over HTTP; needs the extra `tracing`. OTEL_RESOURCE_ATTRIBUTES counts too."""

    endpoint: Text = Field(description="The receiver, without /v1/traces, such as http://127.0.0.1:4318.")
    sample: Portion = Field(
        default=_TRACES.sample,
        description="Share of the requests that are recorded whose callers do not say; 1% by default.",
    )
    service_name: Text = Field(default=_TRACES.service_name, description="As which the gateway appears.")
    headers_file: Text | None = Field(
        default=None,
        description="A file with headers for the receiver, such as a key, `Name: value` a line; beside those of "
        "OTEL_EXPORTER_OTLP_HEADERS.",
    )
    ca: Text | None = Field(default=None, description="Certificates (PEM) that prove the receiver.")
    timeout: Time = Field(default=_TRACES.timeout_s, description="What one export may take, its repetitions included.")
    max_queue: int = Field(
        default=_TRACES.max_queue, ge=1, description="Most spans that wait; what does not fit is dropped."
    )


class TelemetrySection(Section):
    """What operators are told beside metrics and logs."""

    traces: TracesSection | None = Field(default=None, description="Spans; none are recorded without.")


class ClusterSection(Section):
    """The gateway on a Ray cluster; see `pointsman cluster`."""

    replicas: int = Field(default=_CLUSTER.replicas, ge=1, description="Of the gateway.")
    num_cpus: float = Field(default=_CLUSTER.num_cpus, ge=0, description="Cores that Ray sets aside for each.")
    targets: Text | None = Field(
        default=None,
        description="A folder on every node for Prometheus (file_sd_configs): a file for each replica, with the "
        "address of its metrics.",
    )
    pools: dict[str, ReplicasSection] = Field(
        default={},
        description="Replicas that models share whose `serve` names the pool, by name. `memory` is what models in the "
        "memory of a replica may take together, and set aside for it.",
    )


class SettingsSection(Section):
    """A whole configuration."""

    models: dict[str, ModelSection] = Field(default={}, description="Models, by name.")
    routes: dict[str, RouteSection | VersionedRouteSection] = Field(
        default={}, description="Routes, by the name that callers use."
    )
    detectors: dict[str, Annotated[DetectorSection, BeforeValidator(_detector), _OrName()]] = Field(
        default={}, description="What tells the traits that rules ask for, by the trait's name."
    )
    classify: list[RuleSection | UnsureSection | OtherwiseSection] = Field(
        default=[], description="Which route `auto` takes: first match."
    )
    queues: dict[str, QueueSection] = Field(
        default={}, description="The queues of people that routes name, and those to which they escalate, by name."
    )
    server: ServerSection = ServerSection()
    store: StoreSection = StoreSection()
    security: SecuritySection = SecuritySection()
    pool: PoolSection = PoolSection()
    webhooks: dict[str, WebhookSection] = Field(default={}, description="Who is told what became of answers, by name.")
    telemetry: TelemetrySection = TelemetrySection()
    mask: list[MaskSection] = Field(default=[], description="What is kept and shown with something else in its place.")
    notify: list[NotifySection] = Field(default=[], description="Which reviewers are told of new and due work.")
    smtp: SmtpSection | None = Field(default=None, description="The server that takes mail for reviewers.")
    cluster: ClusterSection = ClusterSection()
