"""Takes one system call away and becomes a program: a kernel that refuses a layer.

    deny.py NUMBER ARGUMENT LOW HIGH PROGRAM…

The call fails with EPERM where its argument lies in LOW..=HIGH (32 bits), and with an
ARGUMENT such as 1+2 only if the second is not 0 (a pointer to what is to be set, say); a
filter is inherited, so everything that the program starts meets the same.
"""

import ctypes
import os
import struct
import sys

number, low, high = int(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
argument, _, other = sys.argv[2].partition("+")
argument, other = int(argument), int(other or argument)
LOAD, EQUAL, AT_LEAST, ABOVE, ANSWER = 0x20, 0x15, 0x35, 0x25, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001
program = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in [
        (LOAD, 0, 0, 0),
        (EQUAL, 0, 6, number),
        (LOAD, 0, 0, 16 + 8 * argument),
        (AT_LEAST, 0, 4, low),
        (ABOVE, 3, 0, high),
        (LOAD, 0, 0, 16 + 8 * other),
        (EQUAL, 1 if "+" in sys.argv[2] else 0, 0, 0),
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
