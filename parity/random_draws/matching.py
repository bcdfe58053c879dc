"""Match the random draws of both models in training mode, and choose the values that they get.

The random numbers of the two frameworks never agree, and dropout can be written in many ways (a module, a function,
attention with a rate, a mask drawn by hand). All of them reduce to a draw of random numbers, where both models are
intercepted (`parity.random_draws.torch_draws`, `parity.random_draws.jax_draws`). Draws with the same distribution and
size are paired and get the same values.

Every supported draw is computed from values of one of two kinds, whatever its parameters: "unit", uniform between 0
and 1 (u < p is a Bernoulli draw, -log u an exponential one), and "normal".
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from parity.recording.capture import Key

KINDS = {
    "bernoulli": "unit",
    "uniform": "unit",
    "exponential": "unit",
    "gumbel": "unit",
    "integers": "unit",
    "permutation": "unit",
    "normal": "normal",
}
"""Kind of the values that each distribution is computed from. Others are recorded, but cannot be replaced."""

SAME_PROBABILITY = 2.0**-22
"""Probabilities that differ by less than this are equal, up to float32 rounding."""

GRID = 2**20
"""Given uniform values are odd multiples of 1 / GRID: u, 1 - u and u < p are equal in float32 and float64."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A distribution; `keep` is a Bernoulli draw's probability of a 1, None for a tensor or another distribution."""

    family: str
    keep: float | None = None

    @property
    def kind(self) -> str | None:
        return KINDS.get(self.family)

    def __str__(self) -> str:
        return self.family if self.keep is None else f"{self.family}({self.keep:g})"


@dataclasses.dataclass(frozen=True)
class Site:
    """One draw of one forward pass.

    Attributes:
        key, index: Innermost module call that contains the draw, and the index of the draw in it.
        owner: Path of the innermost enclosing module that computes more than the draw.
        after: Path of the last call with parameters that returned before the draw.
        shape: Shape of the values.
        line: Source line, for messages.
        state: Digest of the generator state; None if unknown.
        constant: Whether every forward pass draws the same values here.
        keys: Keys of a line that draws several times, inside `vmap` or `scan`, in order.
        silent: Whether the draw can be skipped (see `SILENT`).
    """

    key: Key
    index: int
    law: Law
    shape: tuple[int, ...]
    owner: str = ""
    after: str = ""
    line: str = ""
    state: str | None = None
    constant: bool = False
    keys: tuple[str, ...] = ()
    silent: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        path, count = self.key
        return f"{path or 'the model'}#{count + 1}" if count else path

    @property
    def place(self) -> str:
        return " in ".join(filter(None, (f"{self.law} of {list(self.shape)}", self.line or self.name or "the model")))


@dataclasses.dataclass(frozen=True)
class Marked:
    """A marker used in place of the values of a draw."""

    text: str


SILENT, OWN = Marked("silent"), Marked("own")
"""SILENT: nothing is dropped or scaled. OWN: the model draws the values itself."""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The values by key, for a line that draws several times."""

    rows: Mapping[str, np.ndarray]

    def lookup(self, keys: np.ndarray, shape: tuple[int, ...], otherwise: float) -> np.ndarray:
        """Return values of `shape` for each of the keys (..., words); `otherwise` for unknown keys."""
        flat = keys.reshape(-1, keys.shape[-1])
        missing = np.full(shape, otherwise)
        found = [self.rows.get(key.tobytes().hex(), missing).reshape(shape) for key in flat]
        return np.stack(found).reshape(*keys.shape[:-1], *shape)


Numbers = np.ndarray | Marked | Table
Handed = Mapping[Key, Sequence[Numbers]]
"""The values for the draws of each call, in order."""


@dataclasses.dataclass(frozen=True)
class Move:
    """Conversion from PyTorch's values to JAX's: transposed, then reshaped; if mirrored, 1 - u or -z."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    mirrored: bool = False

    def __call__(self, numbers: np.ndarray, kind: str | None) -> np.ndarray:
        moved = np.asarray(numbers.transpose(self.axes).reshape(self.shape), order="C")
        if not self.mirrored:
            return moved
        return 1 - moved if kind == "unit" else -moved


@dataclasses.dataclass(frozen=True)
class Match:
    """Two matching draws; `moves`: possible conversions of the values, the likeliest first."""

    torch: Site
    jax: Site
    moves: tuple[Move, ...]

    def with_move(self, move: Move) -> Match:
        return dataclasses.replace(self, moves=(move, *(m for m in self.moves if m != move)))

    @property
    def error(self) -> float:
        """Difference of the probabilities, mirrored if the first move is; 0 if one is unknown."""
        ours, theirs = self.torch.law.keep, self.jax.law.keep
        if ours is None or theirs is None:
            return 0.0
        return abs(ours - (1 - theirs if self.moves and self.moves[0].mirrored else theirs))


@dataclasses.dataclass(frozen=True)
class Matching:
    """`matches` agree in distribution and size, `rates` differ in probability, `sizes` in size; others have no match.

    Constant draws are computed, not drawn, and stay unchanged.
    """

    matches: tuple[Match, ...] = ()
    rates: tuple[Match, ...] = ()
    sizes: tuple[Match, ...] = ()
    torch_only: tuple[Site, ...] = ()
    jax_only: tuple[Site, ...] = ()
    torch_constant: tuple[Site, ...] = ()
    jax_constant: tuple[Site, ...] = ()

    @property
    def complete(self) -> bool:
        return not (self.rates or self.sizes or self.torch_only or self.jax_only)


# ---- matching ----


def moves(ours: Site, theirs: Site) -> tuple[Move, ...]:
    """Return all conversions between the values of two draws; none if size or distribution differ."""
    if ours.law.kind is None or ours.law.kind != theirs.law.kind or ours.size != theirs.size:
        return ()
    mirrors = _mirrors(ours.law, theirs.law)
    return tuple(Move(axes, theirs.shape, mirrored) for mirrored in mirrors for axes in _axes(ours.shape, theirs.shape))


def _mirrors(ours: Law, theirs: Law) -> list[bool]:
    """Return whether values may have to be mirrored: a mask may select what is kept or what is dropped."""
    if ours.family == theirs.family == "bernoulli" and ours.keep is not None and theirs.keep is not None:
        straight, mirrored = (abs(ours.keep - p) <= SAME_PROBABILITY for p in (theirs.keep, 1 - theirs.keep))
        return [m for m, fits in ((False, straight), (True, mirrored)) if fits]
    return [False, True]


def _axes(ours: tuple[int, ...], theirs: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the distinct permutations of PyTorch's axes that give JAX's shape, or one to be reshaped to it."""
    rank = len(ours)
    plain, last = tuple(range(rank)), (0, *range(2, rank), 1)
    orders = list(itertools.permutations(plain)) if rank <= 5 else [plain, last]
    squeezed = tuple(n for n in theirs if n > 1)

    def fits(order: tuple[int, ...]) -> bool:
        return tuple(ours[axis] for axis in order if ours[axis] > 1) == squeezed

    exact = [order for order in orders if fits(order)]
    reshaped = [order for order in ((plain, last) if rank > 2 else (plain,)) if order not in exact]
    preferred = sorted([*exact, *([] if exact else reshaped)], key=lambda order: (order != plain, order != last))
    distinct: dict[tuple[int, ...], tuple[int, ...]] = {}
    for order in preferred:
        distinct.setdefault(tuple(axis for axis in order if ours[axis] > 1), order)
    return list(distinct.values())


def match(ours: Sequence[Site], theirs: Sequence[Site], partner: Callable[[str], str] = str) -> Matching:
    """Match the draws in program order: by distribution and size, preferably in the same module.

    `partner` maps PyTorch paths to JAX paths. Other draws are paired by place alone, to report how they differ.
    """
    left = [site for site in ours if not site.constant]
    right = spread([site for site in theirs if not site.constant], left)

    def near(a: Site, b: Site) -> bool:
        return partner(a.owner) == b.owner

    def take(fits: Callable[[Site, Site], bool]) -> list[tuple[Site, Site]]:
        found = []
        for a in tuple(left):
            b = next((b for b in right if fits(a, b)), None)
            if b is not None:
                left.remove(a)
                right.remove(b)
                found.append((a, b))
        return found

    pairs = take(lambda a, b: bool(moves(a, b)) and near(a, b) and partner(a.after) == b.after)
    pairs += take(lambda a, b: bool(moves(a, b)) and near(a, b))
    pairs += take(lambda a, b: bool(moves(a, b)))
    order = {id(site): i for i, site in enumerate(ours)}
    matches = [Match(a, b, moves(a, b)) for a, b in sorted(pairs, key=lambda pair: order[id(pair[0])])]
    rates: list[tuple[Site, Site]] = []
    sizes: list[tuple[Site, Site]] = []
    rates += take(lambda a, b: near(a, b) and _other_rate(a, b))
    sizes += take(lambda a, b: near(a, b) and _other_size(a, b))
    rates += take(_other_rate)
    sizes += take(_other_size)
    return Matching(
        tuple(matches),
        tuple(Match(a, b, ()) for a, b in rates),
        tuple(Match(a, b, ()) for a, b in sizes),
        tuple(left),
        tuple(right),
        *(tuple(site for site in sites if site.constant) for sites in (ours, theirs)),
    )


def spread(theirs: Sequence[Site], ours: Sequence[Site]) -> list[Site]:
    """Split JAX's draws of one line in `vmap` or `scan` as in PyTorch: one draw for all keys, or several."""
    found: list[tuple[tuple[int, int], Site]] = []
    for place, site in enumerate(theirs):
        n = len(site.keys)
        if not n:
            found.append(((place, 0), site))
            continue
        # Number of draws: the smallest for which PyTorch has enough draws of the resulting size, else of another rate.
        kind = [a for a in ours if a.law.kind == site.law.kind]
        sizes = ([a.size for a in draws] for draws in ([a for a in kind if _mirrors(a.law, site.law)], kind))
        divisors = [k for k in range(1, n + 1) if n % k == 0]
        parts = next((k for of in sizes for k in divisors if of.count(site.size * n // k) >= k), 1)
        each = n // parts
        shape = (each, *site.shape) if each > 1 else site.shape
        # Draws of one loop iteration stay together: the lines of a loop have the same number of keys.
        start = next(i for i, other in enumerate(theirs) if (other.key, len(other.keys)) == (site.key, n))
        for turn in range(parts):
            keys = site.keys[turn * each : (turn + 1) * each]
            order = (start, turn) if parts > 1 else (place, 0)
            found.append((order, dataclasses.replace(site, shape=shape, keys=keys)))
    return [site for _, site in sorted(found, key=lambda item: item[0])]


def _other_rate(a: Site, b: Site) -> bool:
    both = a.law.family == b.law.family == "bernoulli"
    return both and a.size == b.size and bool(_axes(a.shape, b.shape)) and a.law.keep != b.law.keep


def _other_size(a: Site, b: Site) -> bool:
    return a.law.kind is not None and bool(_mirrors(a.law, b.law)) and a.law.kind == b.law.kind


# ---- values ----


def numbers(site: Site, keep: float | None = None, seed: int = 0) -> np.ndarray:
    """Return values for the draw of a site; with `keep`, a mask of two or more elements keeps and drops some."""
    draw = np.random.RandomState((zlib.crc32(repr((site.key, site.index)).encode()) + seed) % 2**32)
    n = site.size
    if site.law.kind == "normal":
        return draw.standard_normal(site.shape).astype(np.float32).astype(np.float64)
    if keep is None or not 0 < keep < 1:
        # From 1/64 to 63/64 for any size, so that an unknown rate drops some elements and keeps some.
        u = np.linspace(1 / 64, 63 / 64, n) if n > 1 else np.full(n, 0.5)
    else:
        kept = min(max(round(n * keep), 1), max(n - 1, 1))
        # The first value on each side is close to the threshold, so that a different threshold is detected.
        below, above = np.linspace(0.999, 0.05, kept) * keep, keep + np.linspace(0.001, 0.95, n - kept) * (1 - keep)
        u = np.concatenate((below, above))
    return on_grid(draw.permutation(u)).reshape(site.shape)


def on_grid(u: np.ndarray) -> np.ndarray:
    return (2 * np.floor(u * (GRID // 2)) + 1) / GRID


def neutral(site: Site) -> np.ndarray:
    """Return values with which a mask keeps everything and noise has no effect."""
    if site.law.kind == "normal":
        return np.zeros(site.shape)
    return on_grid(np.full(site.shape, 0.5 if site.law.keep is None else site.law.keep / 2))


Choose = Callable[[Match], np.ndarray]


def drawn(match: Match, seed: int = 0) -> np.ndarray:
    """Return values for a pair of draws, in PyTorch's layout."""
    ours, theirs = match.torch.law.keep, match.jax.law.keep
    mirrored = match.moves[0].mirrored
    keep = ours if ours is not None else theirs if theirs is None or not mirrored else 1 - theirs
    return numbers(match.torch, keep, seed)


def hand_out(matching: Matching, choose: Choose = drawn) -> tuple[Handed, Handed]:
    """Return the values for PyTorch and JAX: equal for each pair; draws without a match are skipped if possible."""
    chosen = [(pair, choose(pair)) for pair in matching.matches]
    wrong = (*matching.rates, *matching.sizes)
    ours: list[tuple[Site, Numbers]] = [(pair.torch, given) for pair, given in chosen]
    ours += [(site, OWN) for site in matching.torch_constant]
    ours += [(site, SILENT) for site in (*(pair.torch for pair in wrong), *matching.torch_only)]
    theirs = [(pair.jax, pair.moves[0](given, pair.torch.law.kind)) for pair, given in chosen]
    return by_call(ours), to_jax(matching, theirs)


def to_jax(matching: Matching, given: Sequence[tuple[Site, np.ndarray]]) -> Handed:
    """Return these values for JAX; draws without a match are skipped if possible."""
    found: list[tuple[Site, Numbers]] = [*given, *((site, OWN) for site in matching.jax_constant)]
    wrong = (pair.jax for pair in (*matching.rates, *matching.sizes))
    return by_call([*found, *((site, SILENT) for site in (*wrong, *matching.jax_only))])


def by_call(found: Sequence[tuple[Site, Numbers]]) -> dict[Key, list[Numbers]]:
    calls: dict[Key, list[Numbers]] = {}
    tables: dict[tuple[Key, int], dict[str, np.ndarray]] = {}
    for site, value in sorted(found, key=lambda item: (item[0].key, item[0].index)):
        given = calls.setdefault(site.key, [])
        if not site.keys:
            given.append(value)
            continue
        place = site.key, site.index
        if place not in tables:
            tables[place] = {}
            given.append(Table(tables[place]))
        if isinstance(value, np.ndarray):
            tables[place].update(zip(site.keys, value.reshape(len(site.keys), -1), strict=True))
    return calls


def shared_states(sites: Sequence[Site]) -> Iterator[tuple[Site, Site]]:
    """Yield pairs of draws from the same generator state: they are correlated, whatever their shapes."""
    seen: dict[str, Site] = {}
    for site in sites:
        if site.state is not None and not site.constant and not site.keys:
            first = seen.setdefault(site.state, site)
            if first is not site:
                yield first, site


_OWN = str(Path(__file__).parents[1]) + os.sep
_MODELS = _OWN + "selftest" + os.sep


def source_line(libraries: Sequence[str]) -> str:
    """Return the innermost running source line outside the libraries (path prefixes) and `parity` itself."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        own = file.startswith(_OWN) and not file.startswith(_MODELS)
        if not own and not file.startswith(("<", *libraries)):
            return f"{os.path.basename(file)}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
