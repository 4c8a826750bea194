#!/usr/bin/env python3
"""nvCOMP's LZ4, ANS and Bitcomp on the bytes that gpu_check coded: GB/s of raw bytes, and the ratio.

    nvcomp_bench.py FILE

Needs nvidia-nvcomp-cu13 (PyPI) and numpy; says by one line what it could not do, and exits 0 then.
"""
import ctypes
import statistics
import sys
import time

ROUNDS, WARM = 11, 2


def measure(call, synchronize):
    times = []
    result = None
    for i in range(WARM + ROUNDS):
        begin = time.perf_counter()
        result = call()
        size = getattr(result, "buffer_size", None)  # An encoded array knows it once it is done.
        synchronize()
        if i >= WARM:
            times.append(time.perf_counter() - begin)
        del size
    return result, times


def speed(raw_bytes, times):
    rates = [raw_bytes / t / 1e9 for t in times]
    return f"{statistics.median(rates):8.1f} [{min(rates):.1f} {max(rates):.1f}] GB/s"


def main():
    try:
        import numpy
        from nvidia import nvcomp

        driver = ctypes.CDLL("libcuda.so.1")
    except (ImportError, OSError) as error:
        print(f"nvCOMP not measured: {error}")
        return
    data = numpy.fromfile(sys.argv[1], dtype=numpy.uint16)
    raw_bytes = data.nbytes
    on_device = nvcomp.as_array(data).cuda()
    print(f"nvCOMP {nvcomp.__version__} through its Python interface, chunks of 64 KiB, wall clock:")
    for name, options in (("LZ4", {"data_type": "<u2"}), ("ANS", {"data_type": "|u1"}), ("ANS", {"data_type": "<f2"}),
                          ("Bitcomp", {"data_type": "<u2"})):
        label = f"{name} {options['data_type']}"
        try:
            codec = nvcomp.Codec(algorithm=name, **options)
            encoded, encode_times = measure(lambda: codec.encode(on_device), driver.cuCtxSynchronize)
            decoded, decode_times = measure(lambda: codec.decode(encoded), driver.cuCtxSynchronize)
            size = encoded.buffer_size
            back = numpy.asarray(decoded.cpu()).view(numpy.uint8).reshape(-1)
            same = back.nbytes == raw_bytes and bool((back == data.view(numpy.uint8)).all())
        except Exception as error:  # Its versions differ in names and in what they take.
            print(f"{label:12} not measured: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        print(f"{label:12} ratio {raw_bytes / size:5.3f}  encode {speed(raw_bytes, encode_times)}  decode {speed(raw_bytes, decode_times)}"
              f"{'' if same else '  NOT what was encoded'}")


main()
