"""Takes one system call away and becomes a program: a kernel that refuses a layer.

    deny.py NUMBER ARGUMENT LOW HIGH PROGRAM…

The call fails with EPERM where its argument lies in LOW..=HIGH (32 bits); a filter is
inherited, so everything that the program starts meets the same.
"""

import ctypes
import os
import struct
import sys

number, argument, low, high = map(int, sys.argv[1:5])
LOAD, EQUAL, AT_LEAST, ABOVE, ANSWER = 0x20, 0x15, 0x35, 0x25, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001
program = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in [
        (LOAD, 0, 0, 0),
        (EQUAL, 0, 4, number),
        (LOAD, 0, 0, 16 + 8 * argument),
        (AT_LEAST, 0, 2, low),
        (ABOVE, 1, 0, high),
        (ANSWER, 0, 0, EPERM),
        (ANSWER, 0, 0, ALLOW),
    ]
)
buffer = ctypes.create_string_buffer(program)
fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, ctypes.c_char_p(fprog), 0, 0) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[5], sys.argv[5:])
