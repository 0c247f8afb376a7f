//! `hosier_native`: the extension module that a zygote's interpreter loads. A thin skin
//! over `hosier_zygote`; runs in zygotes and leaves, never in the worker.

#![allow(unsafe_code)]

mod immortal;

use hosier_zygote::leaf;
use hosier_zygote::serve::{self, Interpreter, Role};
use hosier_zygote::solidify;
use hosier_zygote::sys::process::{CloneOptions, Forked, fork_into};
use hosier_zygote::wire::{Imports, Ready, Response, Snapshot};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

unsafe extern "C" {
    // Stable ABI since 3.7 (Modules/posixmodule.c); they run the hooks of `os.register_at_fork`.
    fn PyOS_BeforeFork();
    fn PyOS_AfterFork_Parent();
    fn PyOS_AfterFork_Child();
}

struct CPython;

impl Interpreter for CPython {
    fn before_fork(&self) {
        // SAFETY: called from `serve` below, which holds the GIL for its whole run.
        unsafe { PyOS_BeforeFork() };
    }

    fn after_fork_in_parent(&self) {
        // SAFETY: as above; pairs with the call before the fork.
        unsafe { PyOS_AfterFork_Parent() };
    }

    fn after_fork_in_child(&self) {
        // SAFETY: as above, in the only thread of the child, which inherited the GIL.
        unsafe { PyOS_AfterFork_Child() };
    }
}

/// A function's handler: (file, env, warm-up event).
type ToPrepare = Option<(String, Vec<(String, String)>, Option<String>)>;

/// What a child of `serve_forks` has to import: (path, modules, immortal, gc_freeze, handler,
/// solidify); `None` in a leaf.
type ToImport = Option<(Vec<String>, Vec<String>, bool, bool, ToPrepare, bool)>;

/// Tells the worker what the imports came to, and serves forks; returns in children only.
#[pyfunction]
fn serve_forks(
    _py: Python<'_>,
    import_us: u64,
    loaded: Vec<String>,
    failed: Vec<(String, String)>,
    unfit: Option<String>,
    immortal: u64,
    solidify: bool,
) -> ToImport {
    let ready = Ready { import_us, loaded, failed, unfit, immortal, ..Ready::default() };
    let (imports, own) = match serve::serve(&CPython, ready, solidify) {
        Role::Leaf => return None,
        Role::Zygote(imports, own) => (imports, own),
    };
    let handler = own.map(|Snapshot { file, env, warmup }| (file, env, warmup));
    let Imports { path, modules, immortal, gc_freeze, solidify, .. } = imports;
    Some((path, modules, immortal, gc_freeze, handler, solidify))
}

/// What `serve_forks` does once before its first fork: (mappings moved, left alone, bytes).
/// By itself, for who looks at what it does to a process.
#[pyfunction]
fn solidify_now() -> PyResult<(u32, u32, u64)> {
    let report = solidify::solidify().map_err(|error| PyOSError::new_err(error.to_string()))?;
    Ok((report.moved, report.left, report.bytes))
}

/// The fork that `serve_forks` makes for each child, without walls: 0 in the child, else
/// its number. `namespaces` are `CLONE_NEW*` flags.
#[pyfunction]
fn fork_now(_py: Python<'_>, namespaces: i32) -> PyResult<i32> {
    CPython.before_fork();
    match fork_into(&CloneOptions { namespaces, ..CloneOptions::default() }) {
        Ok(Forked::Child) => {
            CPython.after_fork_in_child();
            Ok(0)
        }
        Ok(Forked::Parent { pid, .. }) => {
            CPython.after_fork_in_parent();
            Ok(pid)
        }
        Err(error) => {
            CPython.after_fork_in_parent();
            Err(PyOSError::new_err(error.to_string()))
        }
    }
}

/// A fresh leaf says that it stands.
#[pyfunction]
fn born() -> PyResult<()> {
    leaf::born_fresh().map_err(|error| PyOSError::new_err(error.to_string()))
}

/// What a function is made of: (file, path, env).
type Handler = (String, Vec<String>, Vec<(String, String)>);

/// Waits to become a leaf of one function.
#[pyfunction]
fn specialize(py: Python<'_>) -> Handler {
    let handler = py.detach(leaf::specialize);
    (handler.file, handler.path, handler.env)
}

/// A file's bytes; none if there is no such file.
#[pyfunction]
fn read_code<'py>(py: Python<'py>, path: &str) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &leaf::read_code(path.as_ref()).unwrap_or_default())
}

/// A request: (id, head, body).
type Next<'py> = (u64, Bound<'py, PyBytes>, Bound<'py, PyBytes>);

/// Waits for a request.
#[pyfunction]
fn next_request(py: Python<'_>) -> Next<'_> {
    next(py, || ())
}

fn next(py: Python<'_>, before: impl FnOnce() + Send) -> Next<'_> {
    let invocation = py.detach(|| {
        before();
        leaf::next()
    });
    (invocation.id, PyBytes::new(py, &invocation.head), PyBytes::new(py, &invocation.body))
}

type Head = (String, String, String, Vec<(String, String)>);

/// Reads a request's head: (method, path, query, headers).
#[pyfunction]
fn parse_head(head: &[u8]) -> PyResult<Head> {
    let request = leaf::parse(head).map_err(|error| PyOSError::new_err(error.to_string()))?;
    Ok((request.method, request.path, request.query, request.headers))
}

/// Answers a request, ends whatever it left running, and waits for the next; `times` are
/// what importing and running cost, in µs, and `imported` the modules that this took.
/// One call: back in Python nothing is to be done, and it would be done with cold caches
/// while the worker may be waiting for this processor.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "an answer's parts, named in one place of Python")]
fn answer<'py>(
    py: Python<'py>,
    id: u64,
    status: u16,
    headers: Vec<(String, String)>,
    body: &[u8],
    times: (u32, u32),
    broken: bool,
    imported: Vec<String>,
) -> Next<'py> {
    let (import_us, exec_us) = times;
    let response = Response { status, headers, specialized_ns: 0, import_us, exec_us, broken, imported };
    next(py, || {
        leaf::answer(id, response, body);
        leaf::reap();
    })
}

#[pymodule]
fn hosier_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("WIRE", hosier_zygote::wire::WIRE)?;
    module.add("MAX_BODY", hosier_zygote::wire::MAX_BODY)?;
    module.add("MAX_HEAD", hosier_zygote::wire::MAX_HEAD)?;
    module.add_function(wrap_pyfunction!(serve_forks, module)?)?;
    module.add_function(wrap_pyfunction!(immortal::immortalize, module)?)?;
    module.add_function(wrap_pyfunction!(solidify_now, module)?)?;
    module.add_function(wrap_pyfunction!(fork_now, module)?)?;
    module.add_function(wrap_pyfunction!(born, module)?)?;
    module.add_function(wrap_pyfunction!(specialize, module)?)?;
    module.add_function(wrap_pyfunction!(read_code, module)?)?;
    module.add_function(wrap_pyfunction!(next_request, module)?)?;
    module.add_function(wrap_pyfunction!(parse_head, module)?)?;
    module.add_function(wrap_pyfunction!(answer, module)?)
}
