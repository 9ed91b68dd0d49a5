"""Takes GPU memory by CUDA's driver interface, with nothing but its library: the MiB to take, one after the
other, as arguments. Prints a line for each: `ok`, or CUDA's error number; then waits for its stdin to end."""

from __future__ import annotations

import ctypes
import sys

MIB = 2**20


def main() -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for code in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device),
    ):
        if code:
            sys.exit(f"CUDA error {code}")
    for size in sys.argv[1:]:
        pointer = ctypes.c_uint64()
        code = cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(int(size) * MIB))
        print("ok" if code == 0 else code, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
