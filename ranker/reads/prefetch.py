"""Memory asked for before it is looked at: a loop over places that lie far apart waits for many of them at once instead of one by one."""

from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]  # it has no types; nor have numba's functions below
from numba.core import cgutils
from numba.extending import intrinsic

#: Bytes that the processor's cache takes at once.
LINE_BYTES = 64
#: LLVM's words for memory that is read, soon and again, and holds data.
READ, SOON, DATA = 0, 3, 1


@intrinsic
def _line(_: Any, array: Any, row: Any, byte: Any) -> Any:  # noqa: ANN401, ARG001  # numba's types, by which it is told of each
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401  # as above
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        row_bytes = cgutils.unpack_tuple(builder, found.strides)[0]  # type: ignore[no-untyped-call]  # as above
        at = builder.add(builder.mul(row_bytes, arguments[1]), arguments[2])
        address = builder.gep(builder.bitcast(found.data, cgutils.voidptr_t), [at])
        number = ir.IntType(32)
        called = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, called, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]  # as above
        builder.call(prefetch, [address, *map(number, (READ, SOON, DATA))])
        return context.get_dummy_value()

    return numba.void(array, numba.int64, numba.int64), generate


@numba.njit(cache=True, inline="always")
def prefetch(array: Any, row: int, begin: int, end: int) -> None:  # noqa: ANN401  # an array of any type
    """Ask for a row's bytes from one to before another. Nothing happens where there is no such row."""
    for byte in range(begin, end, LINE_BYTES):
        _line(array, row, byte)  # type: ignore[call-arg]  # numba passes the first one itself
