"""What a package is used for, once: a text that is the same in every process that works.

Each function is named as its package is imported; it runs in a child of a solidified process, in the process
itself, and in one that was never solidified.
"""

import hashlib


def digest(*parts):
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else repr(part).encode())
    return total.hexdigest()


def numpy():
    import numpy as np

    values = np.random.default_rng(7).random((60, 60))
    singular = np.linalg.svd(values, compute_uv=False)
    solved = np.linalg.solve(values, values @ np.ones(60))
    spectrum = np.abs(np.fft.fft(values[0]))
    order = np.sort(values.astype("float32").ravel())[::7]
    return digest(*(part.tobytes() for part in (singular, solved, spectrum, order)), np.arange(5).astype(str))


def pandas():
    import io

    import pandas as pd

    days = pd.date_range("2024-02-27", periods=48, freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"key": list("abcd") * 12, "value": range(48), "day": days})
    means = frame.groupby("key")["value"].agg(["mean", "std"])
    wide = frame.pivot_table(index=frame["day"].dt.day, columns="key", values="value", aggfunc="sum")
    joined = frame.merge(means.reset_index(), on="key").query("value > mean")
    text = joined.to_csv(index=False)
    again = pd.read_csv(io.StringIO(text), parse_dates=["day"])
    sample = frame.sample(5, random_state=3)
    return digest(means.to_json(), wide.to_json(), text, again.dtypes.to_string(), sample.to_json())


def scipy():
    import numpy as np
    from scipy import fft, integrate, linalg, optimize, signal, sparse, stats
    from scipy.sparse.linalg import spsolve

    least = optimize.minimize(optimize.rosen, [1.3, 0.7, 0.8], method="BFGS")
    area, _ = integrate.quad(np.cos, 0, 1)
    band = sparse.diags([1.0, 4.0, 1.0], [-1, 0, 1], shape=(40, 40), format="csc")
    solved = spsolve(band, np.ones(40))
    smooth = signal.savgol_filter(np.sin(np.arange(50.0)), 7, 2)
    power = linalg.expm(np.eye(5) / 3)
    chance = stats.norm.ppf(0.975), stats.ttest_1samp(np.arange(9.0), 3.0).pvalue
    return digest(least.x.round(6).tolist(), area, solved.tobytes(), smooth.tobytes(), power.tobytes(), chance,
                  fft.dct(np.arange(8.0)).tobytes())


def sklearn():
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(5).random((80, 4))
    labels = (rows.sum(axis=1) > 2).astype(int)
    line = LogisticRegression().fit(rows, labels)
    forest = RandomForestClassifier(n_estimators=5, random_state=1).fit(rows, labels)
    groups = KMeans(3, n_init=2, random_state=1).fit(rows)
    return digest(line.coef_.round(6).tolist(), forest.predict(rows).tolist(), sorted(groups.labels_.tolist()))


def PIL():
    import io

    from PIL import Image, ImageDraw, ImageFilter

    picture = Image.new("RGB", (160, 120), "navy")
    ImageDraw.Draw(picture).ellipse((20, 10, 140, 110), fill="orange")
    small = picture.filter(ImageFilter.GaussianBlur(3)).rotate(11).resize((61, 47), Image.Resampling.LANCZOS)
    encoded = []
    for kind in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        small.save(file, kind)
        encoded += [file.getvalue(), Image.open(file).convert("RGB").tobytes()]
    return digest(small.tobytes(), *encoded)


def lxml():
    from lxml import etree, html

    tree = etree.XML(b"<list>" + b"".join(b"<i n='%d'>v%d</i>" % (n, n) for n in range(200)) + b"</list>")
    sheet = etree.XSLT(etree.XML(
        '<x:stylesheet version="1.0" xmlns:x="http://www.w3.org/1999/XSL/Transform"><x:template match="/">'
        '<o><x:value-of select="sum(//@n)"/></o></x:template></x:stylesheet>'))
    rules = etree.RelaxNG(etree.XML(
        '<element name="list" xmlns="http://relaxng.org/ns/structure/1.0"><zeroOrMore><element name="i">'
        '<attribute name="n"/><text/></element></zeroOrMore></element>'))
    try:
        etree.XML(b"<a><b></a>")
        broken = "none"
    except etree.XMLSyntaxError as error:
        broken = str(error)
    page = html.fromstring("<p>one<b>two<p>three")
    found = tree.xpath("//i[@n > 190]/text()")
    return digest(found, str(sheet(tree)), rules.validate(tree), broken, html.tostring(page))


def cryptography():
    import datetime

    from cryptography import x509
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
    from cryptography.x509.oid import NameOID

    own = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "solid")])
    day = datetime.datetime(2024, 1, 1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(own.public_key())
    made = made.serial_number(7).not_valid_before(day).not_valid_after(day + datetime.timedelta(9))
    certificate = made.sign(own, None).public_bytes(serialization.Encoding.PEM)
    derived = PBKDF2HMAC(hashes.SHA256(), 32, b"salt", 1000).derive(b"word")
    sealed = AESGCM(derived).encrypt(bytes(12), b"text", b"more")
    # What draws random numbers must work; what it draws is the other test's.
    curve, key = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 1024)
    signed = curve.sign(b"text", ec.ECDSA(hashes.SHA256()))
    curve.public_key().verify(signed, b"text", ec.ECDSA(hashes.SHA256()))
    box = Fernet(Fernet.generate_key())
    return digest(certificate, sealed, key.key_size, box.decrypt(box.encrypt(b"text")), own.sign(b"text"))


def grpc():
    import os
    import tempfile
    from concurrent import futures

    import grpc as rpc

    def turn(request, context):
        return request[::-1]

    handler = rpc.method_handlers_generic_handler("t.T", {"turn": rpc.unary_unary_rpc_method_handler(turn)})
    with tempfile.TemporaryDirectory() as place:
        address = "unix:" + os.path.join(place, "socket")
        server = rpc.server(futures.ThreadPoolExecutor(2), handlers=(handler,))
        server.add_insecure_port(address)
        server.start()
        with rpc.insecure_channel(address) as channel:
            call = channel.unary_unary("/t.T/turn")
            answers = [call(b"word %d" % number, timeout=20) for number in range(5)]
        server.stop(None).wait(20)
    return digest(*answers)


def pyarrow():
    import io

    import pyarrow as pa
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    table = pa.table({"key": list("abcd") * 50, "value": range(200), "half": [n / 2 for n in range(200)]})
    sums = table.group_by("key").aggregate([("value", "sum"), ("half", "mean")]).sort_by("key")
    file = io.BytesIO()
    parquet.write_table(table, file, compression="snappy")
    file.seek(0)
    again = parquet.read_table(file)
    upper = compute.utf8_upper(again["key"]).unique().to_pylist()
    return digest(sums.to_pydict(), again.equals(table), upper, compute.stddev(table["value"]).as_py())


# What a node imports for each: all that is used, so that a child only uses.
IMPORTS = {
    "scipy": "scipy.fft scipy.integrate scipy.linalg scipy.optimize scipy.signal scipy.sparse.linalg scipy.stats",
    "sklearn": "sklearn.cluster sklearn.ensemble sklearn.linear_model",
    "PIL": "PIL.Image PIL.ImageDraw PIL.ImageFilter PIL.JpegImagePlugin PIL.PngImagePlugin PIL.WebPImagePlugin",
    "lxml": "lxml.etree lxml.html",
    "cryptography": "cryptography.x509 cryptography.fernet cryptography.hazmat.primitives.asymmetric.rsa",
    "grpc": "grpc concurrent.futures",
    "pyarrow": "pyarrow.compute pyarrow.parquet pandas",
}

# Whose own finalizers abort a plain process now and then ("terminate called without an active exception":
# a thread pool of its own is still running). These end by `_exit`, as leaves do.
UNFINISHED = {"pyarrow"}

USES = {name: use for name, use in list(globals().items()) if callable(use) and name != "digest"}
