"""Which tensors were there before a moment, told without a look at everything that lives."""

import gc
import types
import weakref

from torch import Tensor


class Ages:
    """Tells tensors that are older than this value from those that were made within its context.

    New objects are in the youngest generation of Python's garbage collector until a collection
    moves them on. What is young now is older, what is young at any later moment is newer, and just
    before a collection its young tensors are noted. So only young objects are ever looked at: in a
    process with large libraries there are a million others.
    """

    def __init__(self) -> None:
        self._older = _young()
        self._newer: dict[int, weakref.ref[Tensor]] = {}

    def __enter__(self) -> "Ages":
        gc.callbacks.append(self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        gc.callbacks.remove(self._note)

    def is_older(self, tensor: Tensor) -> bool:
        """True if the tensor was there before this value was made; asked within the context."""
        if _holds(self._older, tensor):
            return True
        if not _holds(self._newer, tensor):
            if not _holds(_young(), tensor):
                self._older[id(tensor)] = weakref.ref(tensor)
                return True
            self._newer[id(tensor)] = weakref.ref(tensor)
        return False

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._newer |= {
                key: found
                for key, found in _young().items()
                if (before := self._older.get(key)) is None or before() is not found()
            }


def _young() -> dict[int, weakref.ref[Tensor]]:
    """The tensors in the youngest generation, by their ids."""
    # By their class: asking others for theirs may run their code.
    found = (one for one in gc.get_objects(0) if issubclass(type(one), Tensor))
    return {id(one): weakref.ref(one) for one in found}


def _holds(known: dict[int, weakref.ref[Tensor]], tensor: Tensor) -> bool:
    # An id may have been that of another tensor.
    found = known.get(id(tensor))
    return found is not None and found() is tensor
