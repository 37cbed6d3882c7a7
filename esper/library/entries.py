"""What a library says of its kernels: plain frozen data, no database and no arrays."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed
from typing import Any, Protocol

from esper.errors import ArgumentError
from esper.library.arguments import LARGEST, finite, number, whole

LIFECYCLES = ("candidate", "validated", "retired")
Items = tuple[tuple[str, Any], ...]

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")
_TAG = re.compile(r"[^\s\x00-\x1f\x7f\ud800-\udfff]{1,100}")
_LONGEST = 500
_LEAST_PREFIX = 6


class HeldOutGain(Protocol):
    """A gain as `esper.growth.credit` measures it."""

    @property
    def mean(self) -> float:
        """Mean over batches of what having the kernel saves."""
        ...

    @property
    def stderr(self) -> float:
        """Standard error of that mean; NaN for a single batch."""
        ...

    @property
    def batches(self) -> int:
        """How many batches were compared."""
        ...


@dataclass(frozen=True)
class Measured:
    """A counterfactual gain: by how much a kernel lowers the held-out loss, all else equal.

    Attributes:
        mean: Mean over batches; positive is good.
        stderr: Its standard error; None for a single batch, which shows none.
        n: How many batches.

    Raises:
        ArgumentError: One of them is not finite, or no such number.
    """

    mean: float
    stderr: float | None
    n: int

    def __post_init__(self) -> None:
        held = {"mean": finite("the mean of a gain", self.mean), "n": whole("the n of a gain", self.n, 1)}
        if self.stderr is not None:
            held["stderr"] = finite("the stderr of a gain, if it has one,", self.stderr)
            if held["stderr"] < 0:
                raise ArgumentError(f"the stderr of a gain is finite and at least 0, or None, not {self.stderr}")
        for name, value in held.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"{self.mean:+.4f}" + ("" if self.stderr is None else f" ± {self.stderr:.4f}")


def is_positive(gain: Measured | None) -> bool:
    """Whether a kernel was better than none."""
    return gain is not None and gain.mean > 0


def measured(gain: HeldOutGain | Measured | None) -> Measured | None:
    """A gain as a library keeps it.

    Raises:
        ArgumentError: It is none, or not finite.
    """
    if gain is None or isinstance(gain, Measured):
        return gain
    if not all(hasattr(gain, name) for name in ("mean", "stderr", "batches")):
        raise ArgumentError(f"a gain is a Measured, or has mean, stderr and batches, unlike {gain!r:.80}")
    stderr = number("the stderr of a gain", gain.stderr)
    return Measured(gain.mean, stderr if math.isfinite(stderr) else None, gain.batches)


@dataclass(frozen=True)
class Origin:
    """Where a kernel came from, or was measured, once; a kernel may have several.

    Attributes:
        run: The run.
        model: Fingerprint of the host model.
        data: Name of the data.
        revision: The code's git revision.
        key: What the run was drawn from.
        parent: Digest of the kernel that this one was made of.
        version: esper's version.
        gain: What was measured there.
        time: When the library was told last, UTC; None: it has not been yet.
    """

    run: str = ""
    model: str = ""
    data: str = ""
    revision: str = ""
    key: int | None = None
    parent: str = ""
    version: str = installed("esper")
    gain: Measured | None = None
    time: datetime | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("run", "model", "data", "revision", "version"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable():
                raise ArgumentError(f"{name} is at most {_LONGEST} printable characters, not {value!r:.80}")
        if self.key is not None:
            object.__setattr__(self, "key", whole("key", self.key, -LARGEST - 1, 2 * LARGEST + 1))
        object.__setattr__(self, "gain", measured(self.gain))
        if self.time is not None:
            object.__setattr__(self, "time", _moment(self.time))
        if self.parent != "":
            object.__setattr__(self, "parent", f"sha256:{whole_digest(self.parent)}")

    @property
    def id(self) -> str:
        """Names its content: the same origin told twice is one."""
        return hashlib.sha256(canonical(self.as_dict()).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the time."""
        return {name: value for name, value in asdict(self).items() if name != "time"}

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Origin:
        """What `as_dict` gave."""
        gain = held.get("gain")
        return cls(**{**held, "gain": None if gain is None else Measured(**gain)})


@dataclass(frozen=True)
class Entry:
    """One kernel of a library, as its catalogue has it.

    Attributes:
        digest: "sha256:" and 64 hexadecimal digits, which name its content.
        blueprint: Name of the recipe.
        options: The recipe's options.
        blend: How it joins a layer's output.
        placement: What it is fed, "parallel" or "sequential".
        kind: The kind of layer that it was built for, such as "Linear".
        attributes: That layer's geometry.
        dtype: That layer's dtype.
        shapes: Its parameters: name, dtype, shape.
        parameters: How many numbers these are.
        bytes: Memory they take.
        flops: Operations of its forward for one example; None: nobody counted.
        gain: The gain that was measured last; `origins` has all of them.
        lifecycle: "candidate", "validated" (its gain was proven on held-out data) or "retired".
        reason: Why it was retired.
        tags: Its tags, sorted.
        created: When it came, UTC.
        updated: When something of its entry changed last, UTC.
        carried: Whether the artifact holds Programs, by which a model without torch can load it.
        blob: SHA-256 of the object that holds it.
        blob_bytes: That object's size.
    """

    digest: str
    blueprint: str
    options: Items
    blend: str
    placement: str
    kind: str
    attributes: Items
    dtype: str
    shapes: tuple[tuple[str, str, tuple[int, ...]], ...] = field(repr=False)
    parameters: int
    bytes: int
    flops: int | None
    gain: Measured | None
    lifecycle: str
    reason: str
    tags: tuple[str, ...]
    created: datetime
    updated: datetime
    carried: bool
    blob: str = field(repr=False)
    blob_bytes: int = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        held = asdict(self)
        held |= {"options": dict(self.options), "attributes": dict(self.attributes), "tags": list(self.tags)}
        return held | {"created": self.created.isoformat(), "updated": self.updated.isoformat()}


@dataclass(frozen=True)
class Comparison:
    """Two kernels beside each other.

    Attributes:
        recipe: What differs of their recipes and layers: by name, what the one and the other have.
        gain: Gain of the one less that of the other; None: one of them was not measured.
        stderr: Its standard error; None where one of them has none.
        t: Welch's statistic of that difference, the one better above 0; None without a standard error.
        p: How likely so large a difference is between kernels that are equally good (two-sided).
        parameters: Parameters of the one less those of the other.
        bytes: Likewise, of memory.
        flops: Likewise, of operations; None where one of them was not counted.
    """

    recipe: dict[str, tuple[Any, Any]]
    gain: float | None
    stderr: float | None
    t: float | None
    p: float | None
    parameters: int
    bytes: int
    flops: int | None


@dataclass(frozen=True)
class Verified:
    """What a library's `verify` found.

    Attributes:
        checked: Artifacts that were read through.
        problems: Digest and what is wrong with the artifact, for those that are not whole.
        orphans: Objects that no entry names: what was left of interrupted writes, which `gc` removes.
    """

    checked: int
    problems: tuple[tuple[str, str], ...]
    orphans: tuple[str, ...]


@dataclass(frozen=True)
class Collected:
    """What a library's `gc` removed, or would remove.

    Attributes:
        retired: Digests of artifacts that were retired before the grace period.
        objects: Objects that no entry names, older than the grace period.
        bytes: Size of all objects that went.
        dry_run: Whether nothing was removed.
    """

    retired: tuple[str, ...]
    objects: tuple[str, ...]
    bytes: int
    dry_run: bool


def compared(one: Entry, other: Entry) -> Comparison:
    """Two entries beside each other; the gains are taken as measured on the same terms."""
    names = ("blueprint", "options", "blend", "placement", "kind", "attributes", "dtype")
    differing = ((name, _plain(getattr(one, name)), _plain(getattr(other, name))) for name in names)
    gain, stderr, t, p = _difference(one.gain, other.gain)
    counted = one.flops is not None and other.flops is not None
    return Comparison(
        recipe={name: (mine, theirs) for name, mine, theirs in differing if mine != theirs},
        gain=gain,
        stderr=stderr,
        t=t,
        p=p,
        parameters=one.parameters - other.parameters,
        bytes=one.bytes - other.bytes,
        flops=(one.flops or 0) - (other.flops or 0) if counted else None,
    )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, tuple) else value


def _difference(
    one: Measured | None, other: Measured | None
) -> tuple[float | None, float | None, float | None, float | None]:
    """Welch's comparison of two means: difference, standard error, t, p."""
    if one is None or other is None:
        return None, None, None, None
    gain = one.mean - other.mean
    if one.stderr is None or other.stderr is None:
        return gain, None, None, None
    squares = (one.stderr**2, other.stderr**2)
    stderr = math.sqrt(sum(squares))
    if stderr == 0:
        return gain, 0.0, None, None
    from scipy.special import stdtr

    freedom = sum(squares) ** 2 / sum(
        own**2 / max(1, held.n - 1) for own, held in zip(squares, (one, other), strict=True)
    )
    return gain, stderr, gain / stderr, float(2 * stdtr(freedom, -abs(gain / stderr)))


# ---- what comes from outside -------------------------------------------------------------------------------------


def canonical(value: Any) -> str:
    """JSON text: equal data are equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def tuples(value: Any) -> Any:
    """JSON's lists as tuples, as options and attributes have them."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def digest_prefix(text: object, least: int = _LEAST_PREFIX) -> str:
    """The hexadecimal digits of a digest, or of its beginning.

    Raises:
        ArgumentError: It is nothing of the sort, such as a path; or too short to mean one kernel.
    """
    found = _DIGEST.fullmatch(text) if isinstance(text, str) else None
    if found is None or len(found[1]) < least:
        raise ArgumentError(
            f'{text!r:.80} is no digest: give "sha256:" and 64 hexadecimal digits, or at least the first {least} '
            "of them"
        )
    return found[1]


def whole_digest(text: object) -> str:
    """The 64 digits of a digest that is given whole.

    Raises:
        ArgumentError: It is none.
    """
    return digest_prefix(text, 64)


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags, sorted, each once.

    Raises:
        ArgumentError: One is empty, longer than 100 characters, or has spaces in it.
    """
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        raise ArgumentError(f"tags are a sequence of names, not {tags!r:.80}")
    found = list(tags)
    for tag in found:
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise ArgumentError(f"a tag is 1 to 100 whole characters without spaces, not {tag!a:.120}")
    return tuple(sorted(set(found)))


def checked_lifecycle(lifecycle: str) -> str:
    """A stage in the life of an artifact.

    Raises:
        ArgumentError: There is no such stage.
    """
    if lifecycle not in LIFECYCLES:
        raise ArgumentError(f"an artifact is {', '.join(LIFECYCLES)}, not {lifecycle!r:.80}")
    return lifecycle


def checked_flops(flops: int | None) -> int | None:
    """Operations of a forward.

    Raises:
        ArgumentError: It is no whole number from 0 to 2**63 - 1.
    """
    return None if flops is None else whole("flops", flops, 0)


def _moment(time: object) -> datetime:
    """A moment in UTC, one that others can come after.

    Raises:
        ArgumentError: It is none, has no zone, or is in no year from 1900 to 9000.
    """
    if isinstance(time, datetime) and time.tzinfo is not None and 1900 <= time.year <= 9000:
        return time.astimezone(UTC)
    raise ArgumentError(f"time is a moment with a zone, in a year from 1900 to 9000, not {time!r:.80}")


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)
