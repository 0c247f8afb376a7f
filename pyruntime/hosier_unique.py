"""What a fork copies and siblings must not share. Runs in a zygote once its imports are done, and in each
leaf before it knows its function.

    imports ──▶ forget ──▶ ( fork ──▶ hooks of CPython and of packages ──▶ renew )*

What can be forgotten once, in the node, costs a leaf nothing. What a leaf must renew costs it a copy of each
page that it writes. `random`, `tempfile`, `threading`, `logging` and each copy of OpenSSL see to themselves:
by hooks after a fork, or because a leaf's pid is not its zygote's.
"""

import os
import sys

# Loops that imports made. Kept: their finalizers would close descriptors, and say so.
LOOPS = []
# A Mersenne Twister's state; the position after its last word is "draw new ones".
STATE_WORDS = 624


def forget():
    """Empties caches of the node that their next use, in a leaf, fills anew."""
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        # libuuid keeps a node and a clock where nobody reaches them: two siblings could draw the same `uuid1`
        # in the same microsecond. Python's own way draws the clock each time, and makes up a node for each
        # process where there is nothing to ask for a hardware address.
        uuid._generate_time_safe = None
        uuid._GETTERS = []
        uuid._node = uuid._last_timestamp = None
    platform = sys.modules.get("platform")
    if platform is not None:
        # It knows the host name, which is each sandbox's own.
        platform._uname_cache = None
    events = sys.modules.get("asyncio.events")
    policy = getattr(events, "_event_loop_policy", None)
    if sys.version_info < (3, 12) and isinstance(policy, getattr(events, "BaseDefaultEventLoopPolicy", ())):
        # A leaf has none of the descriptors of a loop that was made here. Newer ones do this in a hook.
        LOOPS.append(policy._local)
        policy._local = type(policy)._Local()


def renew():
    """Draws anew, in a leaf, what its zygote had drawn."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading.main_thread()._native_id = threading.get_native_id()
    numpy = sys.modules.get("numpy")
    random = sys.modules.get("numpy.random")
    if numpy is not None and random is not None:
        try:
            # All of the state at once: `seed()` would compute it from fewer bits, through twice the pages.
            state = numpy.frombuffer(os.urandom(4 * STATE_WORDS), dtype=numpy.uint32)
            random.set_state(("MT19937", state, STATE_WORDS))
        except ValueError:
            # A package put a generator of another kind in its place: a new one of that kind.
            random.set_bit_generator(type(random.get_bit_generator())())
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        # The key to listeners of `multiprocessing.connection`.
        process.current_process().authkey = os.urandom(32)
