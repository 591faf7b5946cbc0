"""The native CPU kernels: C sources in `csrc/`, compiled on the user's machine, called through ctypes."""

from .compiler import NativeUnavailableError, start_building
from .library import NativeLibrary, load_library

__all__ = ["NativeLibrary", "NativeUnavailableError", "load_library", "start_building"]
