"""Loads llama.cpp at its first use. No other module imports llama_cpp.

llama.cpp is the extra `llama`. Programs that run no GGUF model work without it; the others get
NoLlama, which says how to install it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from local_models.errors import CannotQuantise, NoLlama

Quantisation = Literal["Q4_0", "Q8_0"]

MIN_STACK_BYTES: Final = 1 << 20
"""A stack has at least this size, of which the interpreter itself needs a fraction."""

PAGE_BYTES: Final = 1 << 16
"""Stack sizes are multiples of this on any system."""

T = TypeVar("T")

_setting: Final = threading.Lock()
"""Guards the stack size of new threads, which is a setting of the whole process."""

INSTALL: Final = "pip install llama-cpp-python==0.3.36"
"""Installs the extra `llama`: PicoSpec itself is on no package index."""


class Library:
    """Has the attributes of the module `name`. Using one raises NoLlama if it cannot load."""

    def __init__(self, name: str = "llama_cpp.llama_cpp") -> None:
        self._name = name
        self._loading = threading.Lock()
        self._module: ModuleType | None = None

    def __getattr__(self, name: str) -> object:
        with self._loading:
            self._module = self._module or self._loaded()
        attribute = getattr(self._module, name)
        setattr(self, name, attribute)  # later uses bypass this method
        return attribute

    def _loaded(self) -> ModuleType:
        """Return llama.cpp with its log disabled, because its return codes report failures."""
        try:
            module = import_module(self._name)
        except ModuleNotFoundError as error:
            raise NoLlama(f"llama.cpp is not installed: {INSTALL}") from error
        except (ImportError, OSError, RuntimeError) as error:
            raise NoLlama(f"llama.cpp cannot be loaded: {error}") from error
        self._silence = module.llama_log_callback(lambda level, text, data: None)
        module.llama_log_set(self._silence, ctypes.c_void_p(0))
        module.llama_backend_init()
        return module


if TYPE_CHECKING:
    import llama_cpp.llama_cpp as _library

    lib = _library
else:
    lib = Library()


def check_llama() -> None:
    """Load llama.cpp. Raises NoLlama, before anything large is fetched in vain."""
    _ = lib.llama_decode


def has_llama() -> bool:
    """Return True if llama.cpp can be loaded."""
    try:
        check_llama()
    except NoLlama:
        return False
    return True


def ggml(name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
    """Return a function of ggml, which llama-cpp-python does not bind. Raises NoLlama."""
    check_llama()
    extensions = import_module("llama_cpp._ctypes_extensions")
    folder = Path(str(lib.__file__)).parent / "lib"
    for library in ("ggml", "ggml-base", "ggml-cpu"):
        try:
            function = getattr(extensions.load_shared_library(library, folder), name)
        except (AttributeError, FileNotFoundError):
            continue
        function.restype, function.argtypes = result, arguments
        return function  # type: ignore[no-any-return]
    raise NoLlama(f"this build of llama.cpp has no {name}")


def extension(name: str) -> Callable[..., Any]:
    """Return a function of llama.cpp's header for interfaces that may change. Raises NoLlama if
    this build has it not."""
    check_llama()
    try:
        return getattr(import_module("llama_cpp.llama_cpp_ext"), name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise NoLlama(f"this build of llama.cpp has no {name}") from error


def can_use_gpu() -> bool:
    """Return True if this build of llama.cpp can run layers on a GPU. Raises NoLlama."""
    return bool(lib.llama_supports_gpu_offload())


def engine() -> str:
    """Return the version of llama.cpp, and the processor features that it uses here."""
    features = lib.llama_print_system_info().decode()
    return f"llama.cpp {version('llama_cpp_python')} {features}"


def quantise(source: Path, target: Path, kind: Quantisation) -> None:
    """Write `source` in another quantisation. If it raises CannotQuantise, it leaves no file.

    The output matrix is quantised too: llama.cpp's default for it is Q8_0, and a small model
    with a large vocabulary would spend two fifths of each step on reading it.
    """
    unfinished = target.with_name(f"{target.name}.unfinished")
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.output_tensor_type = getattr(lib, f"GGML_TYPE_{kind}")
    settings.allow_requantize = True
    files = str(source).encode(), str(unfinished).encode()
    try:
        if lib.llama_model_quantize(*files, ctypes.byref(settings)):
            raise CannotQuantise(f"llama.cpp could not write {source} as {kind}")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def on_stack(max_bytes: int, work: Callable[[], T]) -> T:
    """Return the result of `work`, which recurses as deep as its input is long. It runs in a
    thread with a stack of `max_bytes`, of which only the used part takes memory.

    Raises ValueError if there is no room for the stack.
    """
    stack_bytes = MIN_STACK_BYTES + -(-max_bytes // PAGE_BYTES) * PAGE_BYTES
    with ThreadPoolExecutor(1, "deep-stack") as threads:
        try:
            with _setting:
                usual = threading.stack_size(stack_bytes)
                try:
                    done = threads.submit(work)
                finally:
                    threading.stack_size(usual)
        except RuntimeError as error:
            raise ValueError(f"no stack of {max_bytes} bytes: {error}") from error
        return done.result()
