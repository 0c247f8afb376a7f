import os


def f(event):
    owned = {}
    for path in event["paths"]:
        with open(path, "w") as file:
            file.write("mine")
        owned[path] = os.stat(path).st_uid == os.getuid()
    return owned
