"""Words as spans of one buffer: compared, hashed and checked in compiled loops, never made into Python strings.

A span is where a word begins in an uint8 buffer and how many bytes it has.
"""

import numba
import numpy as np
from numpy.typing import NDArray

Buffer = NDArray[np.uint8]
#: Of xxHash32.
PRIME_1, PRIME_2, PRIME_3, PRIME_4, PRIME_5 = map(np.uint32, (2654435761, 2246822519, 3266489917, 668265263, 374761393))


@numba.njit(cache=True, inline="always")
def same(text: Buffer, a: int, b: int, length: int) -> bool:
    """Whether two spans of one length hold the same bytes."""
    for place in range(length):  # noqa: SIM110  # numba compiles no all(...)
        if text[a + place] != text[b + place]:
            return False
    return True


@numba.njit(cache=True, nogil=True)
def hash64(text: Buffer, start: int, length: int, seed: np.uint64) -> np.uint64:
    """64 bits of a span, after MurmurHash3's 128-bit body and finalizer (Appleby, public domain): good in every bit, not for storing."""
    value = seed ^ np.uint64(length)
    at, end = start, start + length
    while at < end:
        part = np.uint64(0)
        for place in range(min(8, end - at)):
            part |= np.uint64(text[at + place]) << np.uint64(8 * place)
        part *= np.uint64(0x87C37B91114253D5)
        part = (part << np.uint64(31)) | (part >> np.uint64(33))
        value ^= part * np.uint64(0x4CF5AD432745937F)
        value = (value << np.uint64(27)) | (value >> np.uint64(37))
        value = value * np.uint64(5) + np.uint64(0x52DCE729)
        at += 8
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@numba.njit(cache=True, nogil=True)
def xxh32(data: Buffer, length: int) -> np.uint32:
    """xxHash32 of the first bytes, seed 0 (specification: xxHash, doc/xxhash_spec.md): what online_store.keys.shard_of takes."""
    at, value = 0, PRIME_5
    if length >= 16:
        first, second, third, fourth = np.uint32(PRIME_1 + PRIME_2), PRIME_2, np.uint32(0), np.uint32(np.uint32(0) - PRIME_1)
        while at + 16 <= length:
            first = np.uint32(_rotated(np.uint32(first + _four(data, at) * PRIME_2), 13) * PRIME_1)
            second = np.uint32(_rotated(np.uint32(second + _four(data, at + 4) * PRIME_2), 13) * PRIME_1)
            third = np.uint32(_rotated(np.uint32(third + _four(data, at + 8) * PRIME_2), 13) * PRIME_1)
            fourth = np.uint32(_rotated(np.uint32(fourth + _four(data, at + 12) * PRIME_2), 13) * PRIME_1)
            at += 16
        value = np.uint32(_rotated(first, 1) + _rotated(second, 7) + _rotated(third, 12) + _rotated(fourth, 18))
    value = np.uint32(value + np.uint32(length))
    while at + 4 <= length:
        value = np.uint32(_rotated(np.uint32(value + _four(data, at) * PRIME_3), 17) * PRIME_4)
        at += 4
    while at < length:
        value = np.uint32(_rotated(np.uint32(value + np.uint32(data[at]) * PRIME_5), 11) * PRIME_1)
        at += 1
    value = np.uint32(np.uint32(value ^ (value >> np.uint32(15))) * PRIME_2)
    value = np.uint32(np.uint32(value ^ (value >> np.uint32(13))) * PRIME_3)
    return np.uint32(value ^ (value >> np.uint32(16)))


@numba.njit(cache=True, inline="always")
def _rotated(value: np.uint32, bits: int) -> np.uint32:
    return np.uint32((np.uint32(value) << np.uint32(bits)) | (np.uint32(value) >> np.uint32(32 - bits)))


@numba.njit(cache=True, inline="always")
def _four(data: Buffer, at: int) -> np.uint32:
    low = np.uint32(data[at]) | (np.uint32(data[at + 1]) << np.uint32(8))
    return np.uint32(low | (np.uint32(data[at + 2]) << np.uint32(16)) | (np.uint32(data[at + 3]) << np.uint32(24)))


@numba.njit(cache=True, nogil=True)
def is_utf8(text: Buffer, start: int, length: int) -> bool:
    """Whether a span is UTF-8 (RFC 3629): no overlong forms, no surrogates, nothing past U+10FFFF."""
    at, end = start, start + length
    while at < end:
        lead = text[at]
        if lead < 0x80:
            at += 1
            continue
        more = 1 if 0xC2 <= lead <= 0xDF else 2 if 0xE0 <= lead <= 0xEF else 3 if 0xF0 <= lead <= 0xF4 else 0
        if more == 0 or at + more >= end:
            return False
        second = text[at + 1]
        low = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
        high = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
        if second < low or second > high:
            return False
        for place in range(2, more + 1):
            if text[at + place] & 0xC0 != 0x80:
                return False
        at += more + 1
    return True


@numba.njit(cache=True, nogil=True)
def has_byte(text: Buffer, spans: NDArray[np.int64], byte: int) -> NDArray[np.bool_]:
    """Which spans hold a byte, bool [n]. spans: int64 [n, 2], start and length."""
    found = np.zeros(len(spans), np.bool_)
    for row in range(len(spans)):
        for place in range(spans[row, 0], spans[row, 0] + spans[row, 1]):
            if text[place] == byte:
                found[row] = True
                break
    return found
