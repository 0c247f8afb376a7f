"""Everything that draws random numbers or names: a package for a node, which draws from each at its import,
and what its siblings draw afterwards.

`RENEWED` is a generator of the package's own, made before the fork and made anew by its hook after it; `OWN` is
one without a hook: the same in all siblings.
"""

import email.utils
import multiprocessing
import os
import random
import secrets
import ssl
import tempfile
import uuid

import cryptography.fernet
import grpc
import numpy
import pandas
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

OWN = numpy.random.default_rng()
RENEWED = None
FRAME = pandas.DataFrame({"value": range(1 << 40, (1 << 40) + 100_000)})


def renew():
    global RENEWED
    RENEWED = numpy.random.default_rng()


renew()
os.register_at_fork(after_in_child=renew)


def directory():
    made = tempfile.mkdtemp()
    os.rmdir(made)
    return made


def curve_key():
    return ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value


def edwards_key():
    return ed25519.Ed25519PrivateKey.generate().private_bytes_raw().hex()


SOURCES = {
    "random.random": random.random,
    "random.Random()": lambda: random.Random().random(),
    "random.SystemRandom": lambda: random.SystemRandom().random(),
    "os.urandom": lambda: os.urandom(16).hex(),
    "secrets.token_bytes": lambda: secrets.token_bytes(16).hex(),
    "ssl.RAND_bytes": lambda: ssl.RAND_bytes(16).hex(),
    "uuid.uuid4": lambda: str(uuid.uuid4()),
    "uuid.uuid1": lambda: str(uuid.uuid1()),
    "uuid.getnode": uuid.getnode,
    "tempfile.mkdtemp": directory,
    "tempfile's names": lambda: next(tempfile._get_candidate_names()),
    "email.utils.make_msgid": lambda: email.utils.make_msgid(domain="here"),
    "multiprocessing's authkey": lambda: bytes(multiprocessing.current_process().authkey).hex(),
    "numpy.random.random": lambda: numpy.random.random(),
    "numpy.random.default_rng()": lambda: numpy.random.default_rng().random(),
    "a Generator with a hook": lambda: RENEWED.random(),
    "pandas sample": lambda: FRAME.sample(8).value.tolist(),
    "cryptography: EC key": curve_key,
    "cryptography: Ed25519 key": edwards_key,
    "cryptography: Fernet key": lambda: cryptography.fernet.Fernet.generate_key().decode(),
}


def client_random():
    """What grpcio's BoringSSL draws: the random of a TLS client's first message. It starts threads, so no node
    can have done it."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        channel = grpc.secure_channel("127.0.0.1:%d" % listening.getsockname()[1], grpc.ssl_channel_credentials())
        waiting = grpc.channel_ready_future(channel)
        waiting.add_done_callback(lambda _: None)
        with listening.accept()[0] as connection:
            connection.settimeout(20)
            hello = b""
            while len(hello) < 43:
                hello += connection.recv(4096)
        waiting.cancel()
        channel.close()
    # Record header 5, handshake header 4, version 2, random 32 (RFC 8446, 4.1.2).
    assert hello[0] == 22 and hello[5] == 1, hello[:16]
    return hello[11:43].hex()


def draw(with_grpc):
    drawn = {name: source() for name, source in SOURCES.items()}
    if with_grpc:
        drawn["grpcio: client random"] = client_random()
    return drawn


for source in SOURCES.values():
    source()
