//! What people have: a source package of the public index, and one with an extension in C.

use std::path::Path;

use crate::index::Index;
use crate::sources::archive;
use crate::support::{Worker, source};
use crate::{deploy, said};

#[test]
fn a_package_that_is_on_the_index_as_source_only_is_built_and_runs() {
    let mut worker = Worker::new();
    let code =
        "import docopt\ndef f(event):\n    return docopt.docopt('Usage: x [--all]', ['--all'])['--all']\n";
    let function = source(&[("f.py", code), ("requirements.txt", "docopt==0.6.2\n")]);
    worker.ok(&["deploy", function.path().to_str().unwrap(), "-n", "a"]);
    worker.up(&[]);
    assert_eq!(worker.result("a", ""), true);
    worker.down();
}

#[test]
fn an_extension_in_c_is_compiled_and_runs() {
    let headers = std::fs::read_dir("/usr/include").unwrap().flatten();
    let has_headers = headers.map(|entry| entry.path().join("Python.h")).any(|header| header.is_file());
    if !has_headers || !Path::new("/usr/bin/cc").exists() {
        eprintln!("skipped: this machine lacks python3-dev or a C compiler");
        return;
    }
    let setup = "from setuptools import Extension, setup\n\
                 setup(name='quick', version='1.0', ext_modules=[Extension('quick', ['quick.c'])])\n";
    let code = r#"
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "quick", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_quick(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made) PyModule_AddIntConstant(made, "SEEN", 42);
    return made;
}
"#;
    let (file, content) = archive("quick", "1.0", &[("setup.py", setup), ("quick.c", code)]);
    let index = Index::new(vec![(file, content.into())]);
    let mut worker = Worker::new();
    // Beside the public index, where setuptools is.
    let output = deploy(&worker, "a", "quick==1.0\n", "quick", &[("UV_INDEX", &index.url())]);
    assert!(output.status.success(), "{}", said(&output));
    worker.up(&[]);
    assert_eq!(worker.result("a", ""), 42);
    worker.down();
}
