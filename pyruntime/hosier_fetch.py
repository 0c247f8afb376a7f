"""Fetches files by a plain GET each. Runs once, in a fresh sandbox of the
installer's, which knows the index's password and whose only way out is the
worker's proxy. Standard library only.

    python3 -I hosier_fetch.py JOB DIRECTORY

JOB is JSON: files (url, name, sha256 or null), limit_bytes, threads, and
timeout_s (of one read). Each file goes to DIRECTORY/name, and what became of it
to DIRECTORY/result.json. The worker hashes each file again: what is said here
only explains a failure.
"""

import base64
import hashlib
import json
import os
import ssl
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

ATTEMPTS = 3
CHUNK_BYTES = 1 << 18
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


class Wrong(Exception):
    """A file is not what was asked for, and asking again does not help."""


class TooLarge(Exception):
    """With it the files are more than may be fetched."""


class Fetcher:
    def __init__(self, job, directory):
        self.job, self.directory = job, directory
        self.left, self.lock = job["limit_bytes"], threading.Lock()
        self.trusted = set(os.environ.get("UV_INSECURE_HOST", "").replace(",", " ").split())
        self.credentials = credentials(os.environ)
        self.checked, self.unchecked = opener(True), None

    def fetch(self, file):
        for attempt in range(ATTEMPTS):
            try:
                return {"size": self.get(file)}
            except Wrong as error:
                return {"wrong": str(error)}
            except TooLarge:
                return {"large": self.job["limit_bytes"]}
            except urllib.error.HTTPError as error:
                said = "the server answers %d %s" % (error.code, error.reason)
                if error.code < 500:
                    break
            except (OSError, ValueError) as error:
                said = str(getattr(error, "reason", error)) or type(error).__name__
        return {"failed": said}

    def get(self, file):
        request = urllib.request.Request(file["url"], headers={"User-Agent": "hosier", "Accept-Encoding": "identity"})
        password = self.credentials.get(origin(file["url"]))
        if password:
            # Not repeated to where a redirect leads.
            request.add_unredirected_header("Authorization", "Basic " + password)
        digest, size = hashlib.sha256(), 0
        path = os.path.join(self.directory, file["name"])
        with self.open(request) as answer, open(path, "wb") as out:
            while True:
                chunk = answer.read(CHUNK_BYTES)
                if not chunk:
                    break
                self.count(len(chunk))
                digest.update(chunk)
                out.write(chunk)
                size += len(chunk)
            expected = answer.headers.get("Content-Length")
        if expected is not None and int(expected) != size:
            raise OSError("the server closed the connection after %d of %s bytes" % (size, expected))
        if file["sha256"] and digest.hexdigest() != file["sha256"]:
            raise Wrong("its sha256 is %s, and the index says %s" % (digest.hexdigest(), file["sha256"]))
        return size

    def open(self, request):
        parts = urllib.parse.urlsplit(request.full_url)
        if parts.scheme == "https" and self.trusted & {parts.hostname, parts.netloc}:
            self.unchecked = self.unchecked or opener(False)
            return self.unchecked.open(request, timeout=self.job["timeout_s"])
        return self.checked.open(request, timeout=self.job["timeout_s"])

    def count(self, size):
        with self.lock:
            self.left -= size
        if self.left < 0:
            raise TooLarge


def opener(checked):
    """Speaks http and https and nothing else, whatever a redirect says."""
    named = os.environ.get("SSL_CERT_FILE")
    context = ssl.create_default_context(cafile=named or None)
    for bundle in BUNDLES:
        if not named and os.path.exists(bundle):
            context.load_verify_locations(bundle)
    if not checked:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def origin(url):
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def credentials(environ):
    """The passwords in the URLs of the operator's indexes, by origin."""
    found = {}
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        for url in environ.get(name, "").split():
            # An index may have a name before it: name=https://…
            scheme = url.find("://")
            url = url[url.rfind("=", 0, scheme) + 1 :] if scheme > 0 else url
            parts = urllib.parse.urlsplit(url)
            if parts.username is not None:
                pair = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
                found.setdefault(origin(url), base64.b64encode(pair.encode()).decode())
    return found


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    fetcher = Fetcher(job, sys.argv[2])
    with ThreadPoolExecutor(job["threads"]) as pool:
        results = list(pool.map(fetcher.fetch, job["files"]))
    with open(os.path.join(sys.argv[2], "result.json"), "w") as file:
        json.dump({file["name"]: result for file, result in zip(job["files"], results)}, file)


main()
