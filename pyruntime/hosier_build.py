"""Builds a wheel from source, by PEP 517. Runs in a fresh sandbox of the
installer's, without network, which foreign code takes over: the worker believes
nothing that comes out of it. Standard library only.

    python3 -I hosier_build.py JOB DIRECTORY
    python3 hosier_build.py hook BACKEND PATHS HOOK ARGUMENT ANSWER   (in the build's environment)

JOB is JSON: source (an archive), uv, python, wheels (what may be installed for
the build), known (requirements that the wheels fulfil; null in the first
round), file_limit_bytes. DIRECTORY/result.json becomes {"needs": [requirement]},
where something is missing, or {"wheel": name}, of a file in DIRECTORY.
"""

import ast
import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile

LEGACY = {"requires": ["setuptools >= 40.8.0"], "build-backend": "setuptools.build_meta:__legacy__"}


def unpack(archive, directory):
    os.mkdir(directory)
    if archive.endswith(".zip"):
        shutil.unpack_archive(archive, directory)
    else:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(directory, filter="data")
            else:
                tar.extractall(directory)
    entries = [entry.path for entry in os.scandir(directory) if entry.is_dir()]
    if len(entries) != 1:
        sys.exit("the source archive holds %d directories, and one is expected" % len(entries))
    return entries[0]


def build_system(source):
    """The table [build-system] of pyproject.toml, with its defaults."""
    try:
        with open(os.path.join(source, "pyproject.toml"), encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        if not os.path.exists(os.path.join(source, "setup.py")):
            sys.exit("the source archive has neither a pyproject.toml nor a setup.py")
        return LEGACY
    try:
        import tomllib
    except ImportError:
        table = read_table(text)
    else:
        table = tomllib.loads(text).get("build-system", {})
    if "requires" not in table:
        return LEGACY
    return {"build-backend": LEGACY["build-backend"], **table}


def read_table(text):
    """Reads [build-system] where Python has no tomllib: strings and lists of strings, which Python reads alike."""
    match = re.search(r"^\s*\[build-system\]\s*(#.*)?$(.*?)(?=^\s*\[[^\]\"',]+\]\s*(#.*)?$|\Z)", text, re.M | re.S)
    table = {}
    lines = match.group(2).splitlines() if match else []
    for at, line in enumerate(lines):
        key = re.match(r"\s*\"?(requires|build-backend|backend-path)\"?\s*=\s*(.*)", line)
        for end in range(at + 1, len(lines) + 1) if key else ():
            try:
                table[key.group(1)] = ast.literal_eval("\n".join([key.group(2), *lines[at + 1 : end]]))
                break
            except (SyntaxError, ValueError):
                pass
    return table


class Build:
    def __init__(self, job, directory):
        self.job, self.directory = job, directory
        self.source = unpack(job["source"], os.path.join(directory, "source"))
        self.system = build_system(self.source)
        self.python = os.path.join(directory, "env/bin/python")

    def run(self):
        static = list(self.system["requires"])
        known = self.job["known"]
        if static and known is None:
            return {"needs": static}
        self.environment()
        dynamic = self.hook("get_requires_for_build_wheel", "") or []
        needs = static + [need for need in dynamic if need not in static]
        if any(need not in (known or []) for need in needs):
            return {"needs": needs}
        out = os.path.join(self.directory, "dist")
        os.mkdir(out)
        wheel = os.path.basename(self.hook("build_wheel", out))
        os.rename(os.path.join(out, wheel), os.path.join(self.directory, wheel))
        return {"wheel": wheel}

    def environment(self):
        uv, quiet = self.job["uv"], ["--offline", "--no-config", "--color", "never", "--quiet"]
        env = os.path.join(self.directory, "env")
        subprocess.check_call([uv, "venv", *quiet, "--no-project", "--python", self.job["python"], env])
        if self.job["wheels"]:
            flags = ["--no-index", "--no-deps", "--link-mode", "hardlink", "--python", self.python]
            subprocess.check_call([uv, "pip", "install", *quiet, *flags, *self.job["wheels"]])
        os.environ.update(VIRTUAL_ENV=env, PATH=env + "/bin:" + os.environ["PATH"])

    def hook(self, hook, argument):
        answer = os.path.join(self.directory, hook + ".json")
        paths = os.pathsep.join(os.path.join(self.source, path) for path in self.system.get("backend-path", []))
        command = [self.python, os.path.abspath(__file__), "hook", self.system["build-backend"], paths, hook]
        # No stack of ours above the backend's: it said what went wrong.
        code = subprocess.call([*command, argument, answer], cwd=self.source)
        if code:
            sys.exit("%s of the build backend %s failed (%d)" % (hook, self.system["build-backend"], code))
        with open(answer) as file:
            return json.load(file)


def call_hook(backend, paths, hook, argument, answer):
    # The directory of this file is no place of the build's.
    sys.path[0:1] = [path for path in paths.split(os.pathsep) if path]
    name, _, attributes = backend.partition(":")
    found = importlib.import_module(name)
    for attribute in filter(None, attributes.split(".")):
        found = getattr(found, attribute)
    function = getattr(found, hook, None)
    result = [] if function is None else function(argument) if argument else function()
    with open(answer, "w") as file:
        json.dump(result, file)


def main():
    if sys.argv[1] == "hook":
        return call_hook(*sys.argv[2:])
    with open(sys.argv[1]) as file:
        job = json.load(file)
    limit = job["file_limit_bytes"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    result = Build(job, sys.argv[2]).run()
    with open(os.path.join(sys.argv[2], "result.json"), "w") as file:
        json.dump(result, file)


main()
