"""Whose fault an exception is, and how to say so: any exception to one of the error tree.

    ServingError ─────────────────────────────> itself
    MemoryError, torch's, ENOMEM, ENOSPC ─────> OutOfMemory
    anything else ─ while loading ────────────> LoadFailed    (type and text of the author's exception, no traceback)
                  └ while answering ──────────> ModelFailed

A text that merely looks like running out of memory (``ValueError("out of memory")``) does not count: only types, and
for the plain RuntimeErrors of torch's back ends a few exact texts. Looks torch up, never imports it.
"""

from __future__ import annotations

import errno
import re
import traceback

from container.errors import LoadFailed, ModelFailed, OutOfMemory, ServingError
from container.model.after_import import imported
from container.nets import pickles

#: Characters of an author's message that reach a caller.
MAX_TEXT = 500

_MEMORY_ERRNOS = (errno.ENOMEM, errno.ENOSPC)
_MEMORY_TEXTS = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # these two since cuDNN 9
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory (12)",
)
#: CUDA errors after which a context answers every call with the same one (CUDA's manual of cudaError_t says which).
_POISON = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "device-side assert",
    "unspecified launch failure",
    "hardware stack error",
    "uncorrectable ECC error",
    "launch timed out",
)
#: An absolute path of at least two parts, not inside a url or a word; its last part is kept.
_PATH = re.compile(r"(?<![\w/:.])/(?:[^\s/'\":,;()\[\]]+/)+([^\s/'\":,;()\[\]]*)")
#: The private package of an archive (``model/imports``), which its author does not know.
_PACKAGE = re.compile(r"\barchive\d+_\w*?\.(?=\w)")


#: What torch says where there is no GPU, or none of that number.
_NO_GPU = (
    "Torch not compiled with CUDA enabled",
    "Attempting to deserialize object on a CUDA device",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error``, or what it was explicitly raised from, is a real allocation that failed."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if _is_memory(current):
            return True
        seen.add(id(current))
        current = current.__cause__
    return False


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, OutOfMemory)):
        return True
    if isinstance(error, OSError):
        return error.errno in _MEMORY_ERRNOS
    torch = imported("torch")
    if torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return True
    kinds: tuple[type[BaseException], ...] = (RuntimeError,)
    if torch is not None:
        kinds += (getattr(torch, "AcceleratorError", RuntimeError),)
    return type(error) in kinds and any(text in str(error) for text in _MEMORY_TEXTS)


def poisoned(error: BaseException) -> bool:
    """Return whether ``error`` has broken this process's CUDA context: every later call on the device would fail, too.

    A text alone does not count where no context is.
    """
    torch = imported("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    kinds = (RuntimeError, getattr(torch, "AcceleratorError", RuntimeError))
    text = str(error) if type(error) in kinds else ""
    return "CUDA error" in text and any(sign in text for sign in _POISON)


def describe(error: BaseException) -> str:
    """Return type and text of ``error`` in at most 500 characters: no traceback, no absolute path.

    Never raises, whatever the author's ``__str__`` does.
    """
    if isinstance(error, SyntaxError):
        text = str(error)
    else:
        text = "".join(traceback.format_exception_only(type(error), error)).partition(": ")[2].strip()
    # toolkit's errors take (status_code, message, phrase); their str() is that tuple
    own = getattr(error, "message", None)
    if isinstance(own, str) and status_of(error) is not None:
        text = own
    text = pickles.reason(text) if pickles.refused(text) else text
    text = _PACKAGE.sub("", _PATH.sub(r"\1", " ".join(text.split())))
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:MAX_TEXT]


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an author's exception asks for: ``status_code`` (sagemaker-inference), or
    ``error_code`` (multi-model-server's and TorchServe's PredictionException).
    """
    status = getattr(error, "status_code", getattr(error, "error_code", None))
    return status if isinstance(status, int) and 400 <= status <= 599 else None


def while_loading(error: BaseException) -> ServingError:
    """Return the error of a load that ``error`` ended."""
    if isinstance(error, ServingError):
        return error
    if out_of_memory(error):
        return OutOfMemory(f"loading ran out of memory: {describe(error)}")
    return LoadFailed(f"the model failed to load: {describe(error)}{_hint(error)}", status=status_of(error))


def _hint(error: BaseException) -> str:
    """What would mend a load that ``error`` ended, "" if it is not known."""
    hint = ""
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        hint = "; if it is a package, name it in code/requirements.txt; if it is a file of yours, put it into code/"
    elif isinstance(error, ImportError) and "transformers" in text:
        hint = "; it may be a name of an older transformers: name that, transformers<5 say, in code/requirements.txt"
    elif isinstance(error, FileNotFoundError) and isinstance(error.filename, str) and error.filename[:1] != "/":
        hint = "; a relative name is looked up where the server runs, not in the archive: join it to model_dir"
    elif pickles.refused(text):
        hint = ", or open it with weights_only=False in code/inference.py"
    elif isinstance(error, SyntaxError) and "null bytes" in text:
        hint = "; a file in code/ is not UTF-8 (saved as UTF-16 perhaps): save it anew"
    elif any(sign in text for sign in _NO_GPU):
        hint = "; this server has no GPU: load with map_location='cpu' and leave .cuda() out, berth moves what it finds"
    elif isinstance(error, OSError) and "huggingface.co" in text:
        hint = "; nothing is downloaded here: put the files into the archive and load them from model_dir"
    return hint


def while_answering(error: BaseException) -> ServingError:
    """Return the error of a request that ``error`` ended."""
    if isinstance(error, ServingError):
        return error
    if out_of_memory(error):
        return OutOfMemory(f"the model ran out of memory: {describe(error)}")
    return ModelFailed(f"the model failed: {describe(error)}", status=status_of(error))
