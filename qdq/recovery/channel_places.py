"""Groups of channels whose factors are chosen together: a layer reads them as one tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qdq.recovery.channel_flow import ChannelFlow, ChannelReader, WeightChannels
from qdq.recovery.channel_layout import UNSCALED, ChannelClasses, Channels


class ChannelPlace:
    """The layers that read connected channels, and the weights that absorb their factors."""

    def __init__(self, classes: ChannelClasses, roots: Iterable[int]) -> None:
        self.readers: list[ChannelReader] = []
        self.weights: list[WeightChannels] = []
        self._classes = classes
        self._roots = np.array(sorted(roots), np.int64)

    @property
    def class_count(self) -> int:
        """The number of classes; class 0 has the factor 1."""
        return self._roots.size + 1

    def number(self, channels: Channels) -> Channels:
        """Return the class of each channel in this place, 0 for channels that are not in it."""
        roots = self._classes.roots(channels)
        positions = np.searchsorted(self._roots, roots)
        nearest = self._roots[np.minimum(positions, self._roots.size - 1)]
        return np.where(nearest == roots, positions + 1, 0)


def find_places(flow: ChannelFlow, readers: Iterable[ChannelReader]) -> list[ChannelPlace]:
    """Return the places of a graph that some layers read, in order of the first of them."""
    classes = flow.classes
    groups = _Groups(classes)
    readers = list(readers)
    for reader in readers:
        groups.connect(reader.layout.channels)
    places: dict[int, ChannelPlace] = {}
    for reader in readers:
        key = groups.find(reader.layout.channels)
        if key is None:
            continue
        if key not in places:
            places[key] = ChannelPlace(classes, groups.members(key))
        places[key].readers.append(reader)
    for weight in flow.weights:
        for key in groups.find_all(weight.channels):
            if key in places:
                places[key].weights.append(weight)
    return list(places.values())


class _Groups:
    """Classes of channels that are connected by tensors."""

    def __init__(self, classes: ChannelClasses) -> None:
        self._classes = classes
        self._key_by_root: dict[int, int] = {}
        self._members: dict[int, set[int]] = {}

    def connect(self, channels: Channels) -> None:
        """Connect the classes of some channels."""
        roots = self._list_roots(channels)
        keys = {self._key_by_root.get(root, root) for root in roots}
        if not keys:
            return
        key = min(keys)
        members = set(roots)
        for other in keys:
            members |= self._members.pop(other, set())
        self._members[key] = members
        for root in members:
            self._key_by_root[root] = key

    def find(self, channels: Channels) -> int | None:
        """Return the group of the channels of one tensor, None where all have the factor 1."""
        return next(iter(self.find_all(channels)), None)

    def find_all(self, channels: Channels) -> list[int]:
        """Return the groups that some channels are in."""
        keys: dict[int, None] = {}
        for root in self._list_roots(channels):
            if root in self._key_by_root:
                keys[self._key_by_root[root]] = None
        return list(keys)

    def members(self, key: int) -> set[int]:
        """Return the classes of a group."""
        return self._members[key]

    def _list_roots(self, channels: Channels) -> list[int]:
        roots = np.unique(self._classes.roots(channels)).tolist()
        return [root for root in roots if root != UNSCALED]
