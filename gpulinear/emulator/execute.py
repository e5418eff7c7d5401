"""Turns the groups of a block into closures over the register matrices: fetch the operands, call, store the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.errors import EmulatorError
from gpulinear.emulator.isa import RegisterRows
from gpulinear.emulator.lanes import Lanes, Parked
from gpulinear.emulator.program import Address, Bound, Key, Rows, Source, Terminator
from gpulinear.emulator.schedule import Group, Layout
from gpulinear.emulator.types import CLASSES, DTYPES

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]


class Selection:
    """Threads of a CTA that execute together, and how they index the columns of a register matrix."""

    __slots__ = ("index", "size", "threads")

    def __init__(self, threads: Array) -> None:
        self.threads = threads
        self.size = len(threads)
        first, last = int(threads[0]), int(threads[-1])
        self.index: Any = slice(first, last + 1) if last - first + 1 == self.size else threads

    def pick(self, mask: Array) -> Selection:
        """The threads for which ``mask`` is true; there must be one."""
        return Selection(self.threads[mask])


Fetch = Callable[["Cta", Selection], Any]
Store = Callable[["Cta", Selection, Any], None]
Step = Callable[["Cta", Selection], Any]


def _matrix_dtype(width: int, ptx_type: str) -> tuple[int, np.dtype[Any], bool]:
    """The register file, the dtype to view it in, and whether the value must then be narrowed."""
    dtype = DTYPES[ptx_type]
    if dtype.itemsize * 8 == width or width == 1:
        return width, dtype, False
    return width, np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{width // 8}"), True


def fetch_batch(sources: Sequence[Source], layout: Layout) -> Fetch:
    """Reads one operand of a batch: [instructions, lanes], [lanes] for a single one, or constants."""
    first = sources[0]
    if first.key is None:
        values = [~s.value if s.negated else s.value for s in sources]
        if len(sources) == 1 or all(v.tobytes() == values[0].tobytes() for v in values):
            constant: Any = values[0]
        else:
            constant = np.array(values, DTYPES[first.type])[:, None]
        return lambda cta, sel: constant
    width, dtype, narrow = _matrix_dtype(first.key[0], first.type)
    rows = [layout.rows[s.key] for s in sources if s.key is not None]
    view = (width, dtype)
    target = DTYPES[first.type]
    read: Fetch
    if len(rows) == 1:
        row = rows[0]

        def read(cta: Cta, sel: Selection) -> Any:
            return cta.views[view][row, sel.index]

    elif rows == list(range(rows[0], rows[0] + len(rows))):
        start, stop = rows[0], rows[0] + len(rows)

        def read(cta: Cta, sel: Selection) -> Any:
            return cta.views[view][start:stop, sel.index]

    else:
        many = np.array(rows)

        def read(cta: Cta, sel: Selection) -> Any:
            picked = cta.views[view].take(many, axis=0)
            return picked if sel.size == picked.shape[1] else picked[:, sel.index]

    if narrow:
        return lambda cta, sel: read(cta, sel).astype(target)
    if first.negated:
        return lambda cta, sel: ~read(cta, sel)
    return read


def store_batch(destinations: Sequence[tuple[Key, str] | None], layout: Layout) -> Store:
    """Writes one result of a batch; narrower types are extended to the register by their kind."""
    if destinations[0] is None:
        return lambda cta, sel, value: None
    pairs = [d for d in destinations if d is not None]
    ptx_type = pairs[0][1]
    dtype = DTYPES[ptx_type]
    width, wide, _ = _matrix_dtype(pairs[0][0][0], ptx_type)
    view = (width, wide)
    rows = [layout.rows[key] for key, _ in pairs]
    where: Any = np.array(rows)
    if len(rows) == 1:
        where = rows[0]
    elif rows == list(range(rows[0], rows[0] + len(rows))):
        where = slice(rows[0], rows[0] + len(rows))
    scattered = isinstance(where, np.ndarray)

    def store(cta: Cta, sel: Selection, value: Any) -> None:
        if value.dtype != dtype:
            raise TypeError(f"an instruction gave {value.dtype} for .{ptx_type}")
        if scattered and not isinstance(sel.index, slice):
            cta.views[view][where[:, None], sel.index] = value
        else:
            cta.views[view][where, sel.index] = value

    return store


def _full(value: Any, sel: Selection) -> Any:
    return np.full(sel.size, value) if np.ndim(value) == 0 else value


def fetch_address(address: Address, layout: Layout) -> Fetch:
    """Byte addresses [lanes] in int64."""
    if isinstance(address.base, int):
        constant = address.base + address.offset
        return lambda cta, sel: np.full(sel.size, constant, np.int64)
    read, offset = fetch_batch([address.base], layout), address.offset
    # Shared addresses are 32 bits wide and wrap there.
    narrow = address.base.type == "u32"

    def fetch(cta: Cta, sel: Selection) -> Any:
        base = read(cta, sel).astype(np.int64)
        if offset:
            base += offset
        return base & 0xFFFFFFFF if narrow else base

    return fetch


def fetch_operand(item: Any, layout: Layout) -> Fetch:
    """Reads one operand of an effect: full lanes, a list of them, addresses, register rows, an int or None."""
    if item is None or isinstance(item, int):
        return lambda cta, sel: item
    if isinstance(item, Source):
        read = fetch_batch([item], layout)
        return lambda cta, sel: _full(read(cta, sel), sel)
    if isinstance(item, Address):
        return fetch_address(item, layout)
    if isinstance(item, Rows):
        rows = [layout.rows[key] for key in item.keys]
        view = (item.keys[0][0], CLASSES[item.keys[0][0]])
        return lambda cta, sel: RegisterRows(cta.views[view], rows)
    if isinstance(item, tuple):
        address = fetch_operand(item[0], layout)
        vectors = [fetch_operand(v, layout) for v in item[1]]
        return lambda cta, sel: (address(cta, sel), [v(cta, sel) for v in vectors])
    parts = [fetch_operand(part, layout) for part in item]
    return lambda cta, sel: [part(cta, sel) for part in parts]


def _store_results(bound: Bound, layout: Layout) -> Store:
    """Writes what an effect returned: nothing, one value, or a tuple, with lists for vectors."""
    stores: list[Store] = []
    for item in bound.destinations:
        if isinstance(item, list):
            parts = [store_batch([part], layout) for part in item]

            def store_vector(cta: Cta, sel: Selection, value: Any, parts: list[Store] = parts) -> None:
                for part, element in zip(parts, value, strict=True):
                    part(cta, sel, element)

            stores.append(store_vector)
        else:
            stores.append(store_batch([item], layout))
    if not stores:
        return lambda cta, sel, value: None
    if len(stores) == 1:
        return stores[0]

    def store_all(cta: Cta, sel: Selection, value: Any) -> None:
        for store, element in zip(stores, value, strict=True):
            store(cta, sel, element)

    return store_all


def _call(bound: Bound, layout: Layout) -> Callable[[Cta, Selection], Any]:
    """Fetches the operands of an effect and calls it; what it returns may be ``Parked``."""
    fetches = [fetch_operand(item, layout) for item in bound.sources]
    semantics, instruction = bound.semantics, bound.instruction

    def call(cta: Cta, sel: Selection) -> Any:
        try:
            return semantics(Lanes(cta, sel.threads, instruction), *[fetch(cta, sel) for fetch in fetches])
        except EmulatorError as error:
            if "PTX line" not in str(error):
                error.args = (f"{error.args[0]}. At {instruction.where()}",)
            raise
        except Exception as error:
            raise EmulatorError(f"{instruction.where()}: {type(error).__name__}: {error}") from error

    return call


def subsets(bound: Bound, layout: Layout) -> Callable[[Cta, Selection], list[Selection]]:
    """For ``uniform`` instructions: the selection cut so that all inputs are equal in all lanes of a part."""
    sources = [item for item in bound.sources if isinstance(item, (Source, Address))]
    fetches = [fetch_operand(item, layout) for item in sources]

    def cut(cta: Cta, sel: Selection) -> list[Selection]:
        parts = [np.arange(sel.size)]
        for fetch in fetches:
            values = fetch(cta, sel)
            if values.size and (values == values[0]).all():
                continue
            parts = [part[values[part] == v] for part in parts for v in dict.fromkeys(values[part].tolist())]
        return [sel] if len(parts) == 1 else [Selection(sel.threads[part]) for part in parts]

    return cut


class BlockingStep:
    """The only instruction of a block that may have to wait; the machine calls its parts."""

    def __init__(self, bound: Bound, layout: Layout) -> None:
        self.bound = bound
        self.call = _call(bound, layout)
        self.store = _store_results(bound, layout)
        self.cut = subsets(bound, layout) if bound.rule.uniform else None
        self.guard = None if bound.guard is None else fetch_batch([bound.guard], layout)
        self.mask = fetch_operand(bound.sources[-1], layout) if bound.rule.sync == "mask" else None

    def start(self, cta: Cta, sel: Selection) -> list[tuple[Selection, Parked | None]]:
        """Execute; returns the parts of the selection, each with what it waits for (None: it is done)."""
        done: list[tuple[Selection, Parked | None]] = []
        if self.guard is not None:
            mask = self.guard(cta, sel)
            if not mask.all():
                done.append((sel.pick(~mask), None))
                if not mask.any():
                    return done
                sel = sel.pick(mask)
        for part in [sel] if self.cut is None else self.cut(cta, sel):
            result = self.call(cta, part)
            if isinstance(result, Parked):
                done.append((part, result))
            else:
                self.store(cta, part, result)
                done.append((part, None))
        return done

    def resume(self, cta: Cta, sel: Selection, parked: Parked) -> None:
        """Finish what had to wait."""
        self.store(cta, sel, parked.resume(Lanes(cta, sel.threads, self.bound.instruction)))


def _guarded(step: Step, guard: Source | None, layout: Layout) -> Step:
    if guard is None:
        return step
    read = fetch_batch([guard], layout)

    def run(cta: Cta, sel: Selection) -> None:
        mask = read(cta, sel)
        count = np.count_nonzero(mask)
        if count == sel.size:
            step(cta, sel)
        elif count:
            step(cta, sel.pick(mask))

    return run


def _batch(group: Group, layout: Layout) -> Step:
    first = group.items[0]
    semantics = first.semantics
    if any(isinstance(s, list) for s in first.sources) or any(isinstance(d, list) for d in first.destinations):
        fetches = [fetch_operand(item, layout) for item in first.sources]
        store = _store_results(first, layout)
        return lambda cta, sel: store(cta, sel, semantics(*[fetch(cta, sel) for fetch in fetches]))
    fetches = [
        (lambda cta, sel: None)
        if source is None
        else fetch_batch([item.sources[position] for item in group.items], layout)
        for position, source in enumerate(first.sources)
    ]
    stores = [
        store_batch([item.destinations[position] for item in group.items], layout)
        for position in range(len(first.destinations))
    ]
    if len(stores) == 1:
        only = stores[0]
        return lambda cta, sel: only(cta, sel, semantics(*[fetch(cta, sel) for fetch in fetches]))

    def run(cta: Cta, sel: Selection) -> None:
        results = semantics(*[fetch(cta, sel) for fetch in fetches])
        for store, result in zip(stores, results, strict=True):
            store(cta, sel, result)

    return run


def build_step(group: Group, layout: Layout) -> Step:
    """The closure that executes a group for a selection of threads."""
    bound = group.items[0]
    if group.pure:
        return _guarded(_batch(group, layout), bound.guard, layout)
    call, store = _call(bound, layout), _store_results(bound, layout)
    if not bound.rule.uniform:
        return _guarded(lambda cta, sel: store(cta, sel, call(cta, sel)), bound.guard, layout)
    cut = subsets(bound, layout)

    def run(cta: Cta, sel: Selection) -> None:
        for part in cut(cta, sel):
            store(cta, part, call(cta, part))

    return _guarded(run, bound.guard, layout)


def build_end(end: Terminator, layout: Layout) -> Fetch | None:
    """Reads the guard or the table index of a block's end: [lanes]; None if it has none."""
    source = end.guard or end.index
    if source is None:
        return None
    read = fetch_batch([source], layout)
    return lambda cta, sel: _full(read(cta, sel), sel)
