"""Library: trained kernels by the digest of their content, with a catalogue to find them in.

An artifact is written first and named in the catalogue last, in one transaction: what the catalogue names is there,
whole, and a write that was interrupted leaves nothing but an object that nobody sees, which `gc` removes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from esper.errors import ArgumentError, ArtifactError, LibraryError, UnknownLayerError
from esper.jax_backend.artifact import KernelArtifact
from esper.library import entries
from esper.library.arguments import text
from esper.library.content import pack, programs_of, unpack
from esper.library.entries import (
    Collected,
    Comparison,
    Entry,
    HeldOutGain,
    Measured,
    Origin,
    Verified,
    checked_flops,
    checked_lifecycle,
    checked_tags,
    digest_prefix,
    is_positive,
    measured,
)

if TYPE_CHECKING:  # an extra; `open_library` says so where it is missing
    from esper.jax_backend.model import MorphableModel
    from esper.library.blobs import Blobs
    from esper.library.catalogue import Catalogue

GRACE = timedelta(days=7)
"""How long `gc` leaves alone what it could remove."""


class Library:
    """Trained kernels, their catalogue, and what was measured of them; `open_library` makes one.

    It may be used from several threads, and several processes may share what it stores. Two libraries are equal if
    they are the same object. A copy of a model shares its library, a pickled one loses it: it holds connections and
    credentials.

    Attributes:
        place: Where it is, for messages; no credentials.
        folder: Where this machine keeps what belongs to it, such as the outbox.
    """

    def __init__(self, catalogue: Catalogue, blobs: Blobs, folder: Path) -> None:
        self._catalogue, self._blobs, self.folder = catalogue, blobs, folder
        self.place = f"{catalogue.place}; {blobs.place}"
        self._fetching: ThreadPoolExecutor | None = None
        self._lock = Lock()

    # ---- writing ------------------------------------------------------------------------------------------------

    def put(
        self,
        artifact: KernelArtifact,
        *,
        gain: HeldOutGain | Measured | None = None,
        flops: int | None = None,
        tags: Iterable[str] = (),
        lifecycle: str = "candidate",
        run: str = "",
        model: str = "",
        data: str = "",
        revision: str = "",
        key: int | None = None,
        parent: str = "",
    ) -> str:
        """Keeps an artifact. When this returns it is there to stay, and found by others.

        One that is there already is the same artifact: tags and origins are added to those it has, the gain that was
        measured last is the one it is found by, a kernel that was validated stays so, and one that was retired is back.

        Args:
            artifact: The kernel.
            gain: By how much it lowered the held-out loss where it was measured (`esper.growth.credit`).
            flops: Operations of its forward for one example.
            tags: Names to find it by.
            lifecycle: "candidate", "validated" if `gain` was proven, or "retired".
            run: The run that made it.
            model: Fingerprint of its host.
            data: Name of the data.
            revision: The code's git revision.
            key: What the run was drawn from.
            parent: Digest of the kernel that it was made of.

        Returns:
            Its digest.

        Raises:
            LibraryError: The library cannot be written; nothing of it is there then, and to do it again does no harm.
            ArtifactError: The artifact's arrays were deleted, or hold what no file can hold; or the library has it with
                other Programs.
            ArgumentError: A name, tag, gain or number that is none, or "validated" without a gain above 0.
        """
        told = Origin(run, model, data, revision, key, parent, gain=measured(gain))
        return self.add(artifact, told=[told] if told != Origin() else [], flops=flops, tags=tags, lifecycle=lifecycle)

    def add(
        self,
        artifact: KernelArtifact,
        *,
        told: Sequence[Origin],
        flops: int | None = None,
        tags: Iterable[str] = (),
        lifecycle: str = "candidate",
    ) -> str:
        """As `put`, with origins as they are: of all, the latest that measured a gain tells the kernel's.

        One that has a time was told then, one without is told now.
        """
        from esper.library import rows

        tagged, stage = checked_tags(tags), checked_lifecycle(lifecycle)
        if stage == "validated" and not any(is_positive(origin.gain) for origin in told):
            raise ArgumentError("a validated kernel has a gain above 0 that was measured on held-out data: give `gain`")
        content, data = rows.checked_content(artifact), pack(artifact)
        blob = hashlib.sha256(data).hexdigest()
        carried = {"carried": artifact.carried is not None, "programs": programs_of(artifact)}
        given = {"blob": blob, "blob_bytes": len(data), **carried, "flops": checked_flops(flops), "lifecycle": stage}
        damaged = self._upload(content["digest"], blob, data)
        with self._catalogue.writing() as connection:
            named = {"tagged": tagged, "told": told, "damaged": damaged}
            row = rows.write(self._catalogue, connection, content, given, **named)
            # Nobody collects garbage during this transaction, but somebody may have before it.
            if row["blob"] == blob and self._blobs.size(blob) != len(data):
                self._blobs.put(blob, data)
        return artifact.digest

    def _upload(self, digest: str, blob: str, data: bytes) -> str | None:
        """Writes an object, unless the catalogue names one that holds as much; one that is damaged."""
        from esper.library.rows import held

        self._catalogue.check_writable()  # else the object would be left there, named by nobody
        try:
            with self._catalogue.reading() as connection:
                row = held(connection, digest)
        except ArtifactError:
            self._blobs.put(blob, data)
            return None
        sound = self._blobs.get(row["blob"], row["blob_bytes"]) is not None
        if not sound or row["blob"] != blob:
            self._blobs.put(blob, data)
        return None if sound else row["blob"]

    def validate(self, digest: str, gain: HeldOutGain | Measured, *, data: str = "", run: str = "") -> Entry:
        """Notes that a kernel's gain was proven on held-out data; one that was retired is back.

        Args:
            digest: Its digest, or the beginning of it.
            gain: What was measured.
            data: Name of the data.
            run: The run that measured.

        Raises:
            ArtifactError: There is none, or there are several that begin so.
            LibraryError, ArgumentError: As `put`.
        """
        from esper.library import rows

        told = Origin(run=run, data=data, gain=measured(gain))
        if not is_positive(told.gain):
            raise ArgumentError(f"a gain of {told.gain} proves nothing: a kernel is validated by one above 0")
        name = self.digest(digest).removeprefix("sha256:")
        with self._catalogue.writing() as connection:
            row = rows.held(connection, name, lock=True)
            rows.check_seal(row, rows.tags_of(connection, [name]).get(name, ()))
            rows.update(connection, name, {"lifecycle": "validated", "reason": "", "retired": None})
            rows.tell(connection, name, [told])
            row, tagged = rows.seal(connection, name), rows.tags_of(connection, [name]).get(name, ())
        return rows.entry(row, tagged)

    def retire(self, digest: str, reason: str) -> Entry | None:
        """Takes a kernel out of what is found; `gc` removes it after its grace period, until then it can be got.

        Args:
            digest: Its digest, or the beginning of it.
            reason: Why.

        Returns:
            Its entry; None: that was changed by other means than the library's. The kernel is retired, its entry is
            believed as little as before, and who puts it in again makes it anew.

        Raises:
            ArtifactError: There is none, or there are several that begin so.
            LibraryError: The library cannot be written.
            ArgumentError: It is no digest, or the reason no text.
        """
        from esper.library import rows

        said = text("the reason for which a kernel is retired", reason)
        name = self.digest(digest).removeprefix("sha256:")
        with self._catalogue.writing() as connection:
            sound = rows.is_sealed(connection, rows.held(connection, name, lock=True))
            rows.update(connection, name, {"lifecycle": "retired", "reason": said, "retired": entries.now()})
            row = rows.seal(connection, name) if sound else None
            tagged = rows.tags_of(connection, [name]).get(name, ())
        return rows.entry(row, tagged) if row else None

    # ---- reading ------------------------------------------------------------------------------------------------

    def digest(self, prefix: str) -> str:
        """The whole digest of the one kernel whose digest begins so.

        Raises:
            ArtifactError: There is none, or there are several.
            ArgumentError: It is no beginning of a digest.
            LibraryError: The library cannot be read.
        """
        from esper.library.queries import beginning

        digits = digest_prefix(prefix)
        with self._catalogue.reading() as connection:
            found = list(connection.execute(beginning(digits)).scalars())
        if len(found) == 1:
            return f"sha256:{found[0]}"
        if found:
            raise ArtifactError(f"several digests begin with {digits}, such as {found[0]} and {found[1]}: give more")
        raise ArtifactError(
            f"no kernel sha256:{digits} is in the library ({self.place}); `find` and `esper library list` show what is"
        )

    def get(self, digest: str) -> KernelArtifact:
        """An artifact, all of it checked.

        Args:
            digest: Its digest, or the beginning of it if no other begins so.

        Raises:
            ArtifactError: There is none, or it is not what was put in.
            ArgumentError: It is no digest.
            LibraryError: The library cannot be read.
        """
        from esper.library import rows

        name = self.digest(digest).removeprefix("sha256:")
        with self._catalogue.reading() as connection:
            row = rows.held(connection, name)
            rows.check_seal(row, rows.tags_of(connection, [name]).get(name, ()))
        return self.read(row)

    def read(self, row: Mapping[str, Any]) -> KernelArtifact:
        """The artifact of a row of the catalogue; as `get`."""
        from esper.library.rows import check_content

        data, digest = self._blobs.get(row["blob"], row["blob_bytes"]), f"sha256:{row['digest']}"
        if data is None:
            there = self._blobs.size(row["blob"])
            what = "is missing" if there is None else "is not what was written: it was changed or damaged"
            raise ArtifactError(
                f"{digest}: its object {row['blob'][:12]}... in {self._blobs.place} {what}, and nothing of it was "
                "used; put the kernel in again from where it came from, or retire it "
                "(`esper library retire`)"
            )
        artifact, _ = unpack(data, f"the object {row['blob'][:12]}...", digest)
        check_content(row, artifact)
        return artifact

    def fetch(self, digest: str) -> Future[KernelArtifact]:
        """As `get`, in a thread: its result, or what went wrong, is in the future."""
        with self._lock:
            if self._fetching is None:
                self._fetching = ThreadPoolExecutor(2, thread_name_prefix="esper-library")
            return self._fetching.submit(self.get, digest)

    def entry(self, digest: str) -> Entry:
        """What the catalogue has on a kernel; raises as `get`."""
        from esper.library import rows

        name = self.digest(digest).removeprefix("sha256:")
        with self._catalogue.reading() as connection:
            row, tagged = rows.held(connection, name), rows.tags_of(connection, [name]).get(name, ())
        return rows.entry(row, tagged)

    def origins(self, digest: str) -> tuple[Origin, ...]:
        """Where a kernel came from, and every gain that was measured, the first first; raises as `get`."""
        from esper.library.rows import origins_of

        name = self.digest(digest).removeprefix("sha256:")
        with self._catalogue.reading() as connection:
            return origins_of(connection, name)

    def find(
        self,
        *,
        kind: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        blueprint: str | None = None,
        dtype: str | None = None,
        blend: str | None = None,
        placement: str | None = None,
        tag: str | None = None,
        run: str | None = None,
        lifecycle: str | None = None,
        min_gain: float | None = None,
        max_parameters: int | None = None,
        order_by: str = "gain",
        limit: int = 100,
    ) -> list[Entry]:
        """Kernels of which all of this is so.

        Args:
            kind: The kind of layer that it was built for, such as "Linear".
            attributes: Some of that layer's geometry, such as {"in_features": 784}.
            blueprint: Its recipe.
            dtype: That layer's dtype.
            blend: How it joins the layer's output.
            placement: What it is fed.
            tag: One of its tags.
            run: One of the runs that it came from.
            lifecycle: "candidate", "validated" or "retired"; None: any but "retired".
            min_gain: The least gain.
            max_parameters: The most parameters.
            order_by: "gain" (the best first), "created" or "updated" (the latest first), "parameters" (the fewest
                first).
            limit: How many at most.

        Raises:
            ArgumentError: There is no such order or stage, or something of it is no such number or text.
            LibraryError: The library cannot be read.

        What is in the catalogue and was not written by a library is left out; the log says so, and `verify` does.
        """
        from esper.library.finding import found
        from esper.library.queries import Wanted

        equal = {"kind": kind, "blueprint": blueprint, "dtype": dtype, "blend": blend, "placement": placement}
        wanted = Wanted(
            equal,
            geometry=attributes,
            tag=tag,
            run=run,
            lifecycle=lifecycle,
            min_gain=min_gain,
            max_parameters=max_parameters,
            order_by=order_by,
            limit=limit,
        )
        return found(self._catalogue, wanted)

    def find_for(
        self,
        model: MorphableModel,
        layer: str,
        *,
        lifecycle: str | None = None,
        min_gain: float | None = None,
        limit: int = 10,
    ) -> list[Entry]:
        """Kernels that were built for a layer exactly like this one, by recipes that the model knows; the best first.

        Args:
            model: The model.
            layer: Name of a KasminaLayer.
            lifecycle: As for `find`.
            min_gain: The least gain.
            limit: How many at most.

        Raises:
            UnknownLayerError: The model has no such layer.
            LibraryError: The library cannot be read.
        """
        from esper.jax_backend.flax_kernels import FLAX
        from esper.library.finding import found
        from esper.library.queries import Wanted
        from esper.library.rows import fits

        source, sites = model.structure.source, {site.name: site for site in model.structure.sites}
        if layer not in sites:
            raise UnknownLayerError(layer, sites)
        site = sites[layer]
        known = dict.fromkeys([*source.blueprints(site.kind), *FLAX.names_for(site.kind)])
        wanted = Wanted(
            {},
            fits=fits(site.kind, dict(site.attributes), site.dtype),
            lifecycle=lifecycle,
            min_gain=min_gain,
            limit=limit,
            recipes=tuple(known),
            carried=source.learns,
        )
        return found(self._catalogue, wanted)

    def digests(self) -> Iterator[str]:
        """Every digest but those of retired kernels, page after page; raises as `find`."""
        from esper.library.queries import page

        last = ""
        while True:
            with self._catalogue.reading() as connection:
                found = list(connection.execute(page(last)).scalars())
            if not found:
                return
            yield from (f"sha256:{digest}" for digest in found)
            last = found[-1]

    def compare(self, one: str, other: str) -> Comparison:
        """Two kernels beside each other: how their recipes differ, and whether one gained more; raises as `get`."""
        return entries.compared(self.entry(one), self.entry(other))

    # ---- upkeep -------------------------------------------------------------------------------------------------

    def verify(self) -> Verified:
        """Reads everything, and says what is missing, damaged, or named by nobody.

        Raises:
            LibraryError: The library cannot be read.
        """
        from esper.library.upkeep import verified

        return verified(self, self._catalogue, self._blobs)

    def gc(self, *, grace: timedelta = GRACE, dry_run: bool = True) -> Collected:
        """Removes what was retired before a grace period, and objects that no entry names and are older than that.

        What others put in meanwhile stays, whatever their clocks say: every object is looked for again, while nobody
        writes into the catalogue, before it goes.

        Args:
            grace: How long what could go is left alone; a file that is being written into for an hour at least.
            dry_run: Whether to say only what would go.

        Raises:
            LibraryError: The library cannot be read or written.
            ArgumentError: The grace period is negative, or none.
        """
        from esper.library.upkeep import collected

        return collected(self._catalogue, self._blobs, grace, dry_run=dry_run)

    def close(self) -> None:
        """Waits for what is being fetched, and closes every connection."""
        with self._lock:
            fetching, self._fetching = self._fetching, None
        if fetching is not None:
            fetching.shutdown(cancel_futures=True)
        with suppress(LibraryError):  # it makes later queries faster, and whoever closes has nothing to do about it
            self._catalogue.optimise()
        self._catalogue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        return _nothing, ()

    def __repr__(self) -> str:
        return f"Library({self.place})"


def _nothing() -> None:
    """What a pickled model has in the place of its library."""
