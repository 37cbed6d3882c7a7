"""What a convolution is: the static half of the three primitives."""

from __future__ import annotations

from typing import Any, NamedTuple

Sizes = tuple[Any, ...]
"""One number for every spatial dimension; sizes of arrays may be symbolic (`jax.export`)."""


class Spec(NamedTuple):
    """Output o is the sum over taps t of `x[o * stride + t * dilation - low] * weight[t]`.

    Attributes:
        space: The spatial sizes of `x`.
        kernel: The spatial sizes of the weight, whose shape is (out, in / groups, *kernel).
        stride: Steps between outputs.
        pads: Zeros (low, high) around `x`; a negative number leaves values out.
        dilation: Steps between taps.
        groups: Into how many convolutions the channels are cut.
        channels_last: Whether `x` and outputs are (batch, *space, channels), not (batch, channels, *space).
    """

    space: Sizes
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    channels_last: bool = False

    @property
    def rank(self) -> int:
        """How many spatial dimensions."""
        return len(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """From a window's first tap to its last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def results(self) -> Sizes:
        """The spatial sizes of the output."""
        sizes = zip(self.space, self.pads, self.reach, self.stride, strict=True)
        return tuple((n + low + high - reach - 1) // s + 1 for n, (low, high), reach, s in sizes)

    @property
    def spread(self) -> Sizes:
        """From the first output's place in `x` to one behind the last one's."""
        return tuple((o - 1) * s + 1 for o, s in zip(self.results, self.stride, strict=True))

    @property
    def live(self) -> tuple[tuple[int, int], ...]:
        """The taps, from the first to behind the last, that meet an element of `x` for some output; at least one."""
        sizes = zip(self.space, self.results, self.kernel, self.stride, self.dilation, self.pads, strict=True)
        return tuple(_live(n, o, k, s, d, low) for n, o, k, s, d, (low, _) in sizes)

    @property
    def channel_axis(self) -> int:
        """Where the channels of `x` and of outputs stand."""
        return self.rank + 1 if self.channels_last else 1

    def shape(self, batch: Any, channels: int, space: Sizes) -> tuple[Any, ...]:
        """The shape of an activation."""
        return (batch, *space, channels) if self.channels_last else (batch, channels, *space)

    def flipped(self) -> Spec:
        """The convolution from output to input that is the gradient in `x`, with a flipped and transposed weight.

        That of a strided one takes the cotangent with zeros between its elements, as long as `spread`.
        """
        sizes = zip(self.reach, self.pads, self.space, self.spread, strict=True)
        pads = tuple((reach - low, n + low - spread) for reach, (low, _), n, spread in sizes)
        return self._replace(space=self.spread, stride=(1,) * self.rank, pads=pads)


def _live(inputs: Any, outputs: Any, taps: int, stride: int, dilation: int, low: int) -> tuple[int, int]:
    if not isinstance(inputs, int):
        return 0, taps

    def meets(tap: int) -> bool:
        at = tap * dilation - low  # of the first output
        first = max(0, -(at // stride))
        return first < outputs and at + first * stride < inputs

    live = [tap for tap in range(taps) if meets(tap)]
    return (live[0], live[-1] + 1) if live else (0, 1)
