"""Errors of other libraries: which of them say that memory is short."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from ffp.core.errors import ConfigError, check_whole, is_out_of_memory


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:127]. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes. Error code 12",
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of",
        "CUDA error: out of memory",
        "MPS backend out of memory (MPS allocated: 17.64 GB)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Cannot allocate memory (os error 12)",
    ],
)
def test_what_libraries_say_of_memory_is_known(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ConfigError(said))


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_of_any_library_becomes_pythons(value: object) -> None:
    assert type(check_whole("align", value, 1, "Give another.")) is int


def test_types_of_their_own_are_known_and_other_errors_are_not() -> None:
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 50)
    assert is_out_of_memory(numpys.value)
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    for other in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("shapes do not fit"), ValueError("")):
        assert not is_out_of_memory(other)
