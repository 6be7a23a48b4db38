"""What an author's code raises when an allocation has failed, and what only says so."""

from __future__ import annotations

#: What really is an allocation that failed, as Python raises it.
REAL = {
    "torch": 'import torch; raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")',
    "torch, a real one": "import torch; torch.empty(1 << 60, dtype=torch.uint8)",
    "python": "raise MemoryError()",
    "numpy, a real one": "import numpy; numpy.zeros(1 << 56)",
    "no memory": 'raise OSError(errno.ENOMEM, "Cannot allocate memory")',
    "no space": 'raise OSError(errno.ENOSPC, "No space left on device")',
    "no memory to map": 'raise RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)")',
    "cuda": 'raise RuntimeError("CUDA error: out of memory")',
    "cublas": 'raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")',
    "cudnn": 'raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")',
    "cudnn 9": 'raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")',
    "cudnn 9, in RAM": 'raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED")',
    "cusolver": 'raise RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`")',
    "wrapped": 'raise ValueError("could not build the model") from MemoryError()',
}
#: What only says so.
LOOK_ALIKE = {
    "value error": 'raise ValueError("CUDA out of memory")',
    "runtime error": 'raise RuntimeError("the queue is out of memory slots")',
    "cudnn, something else": 'raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR")',
    "cublas, of another type": 'raise ValueError("CUBLAS_STATUS_ALLOC_FAILED")',
    "os error": 'raise OSError(errno.EACCES, "Cannot allocate memory")',
    "own class": 'class OutOfMemoryError(Exception): ...\nraise OutOfMemoryError("CUDA out of memory")',
    "own runtime error": 'class Full(RuntimeError): ...\nraise Full("CUDA error: out of memory")',
    "while handling": "try:\n    raise MemoryError()\nexcept MemoryError:\n    raise KeyError('x')",
}
#: (name, code, whether it is a real one)
TABLE = [(name, code, True) for name, code in REAL.items()] + [(name, code, False) for name, code in LOOK_ALIKE.items()]
CODES = {name: code for name, code, _ in TABLE}
