"""Compiles a function's files, and says what the head of its entry file imports: its arguments are the entry
file and the directory. Runs once for each version of a function, in a sandbox without network, as a plain
interpreter's `-c`; nothing of the function is executed.

    *.py ──▶ bytecode beside them         leading import statements ──▶ __pycache__/hosier-head.json
"""

import ast
import compileall
import json
import os
import py_compile
import sys

HEAD = os.path.join("__pycache__", "hosier-head.json")
# Names that are written, at most.
NAMES = 256


def head(source):
    """Modules that the leading import statements import for certain, and names that they take out of one."""
    imported, taken = set(), set()
    for number, node in enumerate(ast.parse(source).body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                imported.update(path(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imported.update(path(node.module))
            taken.update(f"{node.module}.{alias.name}" for alias in node.names if alias.name != "*")
        elif not (number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            break  # what follows may depend on what ran before
    return {"imported": sorted(imported)[:NAMES], "taken": sorted(taken)[:NAMES]}


def path(name):
    """A module and the packages that it is in: all are imported."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def main(file, directory):
    """First the bytecode: the rest may fail without harm."""
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    well = compileall.compile_dir(directory, quiet=1, invalidation_mode=unchecked)
    target = os.path.join(directory, HEAD)
    try:
        if os.path.lexists(target):
            os.unlink(target)  # the function's files brought one of their own
        with open(os.path.join(directory, file), "rb") as source:
            found = head(source.read())
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w") as written:
            json.dump(found, written)
    except Exception as error:
        print(f"the head of {file} is not known: {type(error).__name__}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
