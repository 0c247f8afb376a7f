//! Makes a node's objects immortal (PEP 683), so that leaves which use them do not write
//! their reference counts. Runs in a zygote after its imports, before it is frozen.
//!
//! ```text
//! gc.get_objects() ──▶ modules, types, functions, descriptors
//!                          └─▶ their namespaces ─▶ code, constants, tuples, strings, numbers
//!                                                  but no list, set, other dict, or instance
//! ```
//!
//! From CPython 3.12 on. Before, `None` is as mortal as all, and nothing is done.

use std::collections::{HashMap, HashSet};
use std::ffi::{c_int, c_void};
use std::hash::{BuildHasherDefault, Hasher};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyMappingProxy, PyModule, PyString};

/// Where the half of the reference count is that tells immortals: 3.12 and 3.13 split 64
/// bits in two, 3.14 has flags in the other half.
const LOW: usize = if cfg!(target_endian = "big") { 1 } else { 0 };

/// Of `types`. Not bound methods: they hold an instance.
const FUNCTIONS: [&str; 1] = ["FunctionType"];
const DESCRIPTORS: [&str; 5] = [
    "GetSetDescriptorType",
    "MemberDescriptorType",
    "WrapperDescriptorType",
    "MethodDescriptorType",
    "ClassMethodDescriptorType",
];
/// Of `builtins`.
const WRAPPERS: [&str; 3] = ["property", "classmethod", "staticmethod"];
const CONTAINERS: [&str; 2] = ["tuple", "frozenset"];
const ATOMS: [&str; 5] = ["str", "bytes", "int", "float", "complex"];
/// Each version of Cython has types of its own, in a module of its own.
const CYTHON_MODULES: &str = "_cython_";
const CYTHON: [&str; 2] = ["cython_function_or_method", "fused_cython_function"];

/// What code refers to; it is not traversed.
const OF_CODE: [&str; 5] = ["co_consts", "co_names", "co_name", "co_qualname", "co_filename"];
/// What a static type refers to; only those of the heap are traversed.
const OF_STATIC_TYPE: [&str; 3] = ["__dict__", "__mro__", "__bases__"];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Stays mortal, and is not looked into.
    Other,
    /// A dict: immortal where it is a namespace.
    Dict,
    Atom,
    Container,
    Code,
    /// Function of C: immortal where it is a module's or a class's, for others hold an instance.
    Builtin,
    Descriptor,
    /// Module, function: its dicts are namespaces.
    Holder,
    Type,
}

impl Kind {
    fn begins(self) -> bool {
        matches!(self, Self::Builtin | Self::Descriptor | Self::Holder | Self::Type)
    }
}

/// Hashes addresses: the default hash, made against attackers, would be a fifth of a walk.
#[derive(Default)]
struct ByAddress(u64);

impl Hasher for ByAddress {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_usize(usize::from(*byte)));
    }

    fn write_usize(&mut self, address: usize) {
        self.0 = (self.0.rotate_left(8) ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

type Kinds = HashMap<*mut ffi::PyTypeObject, Kind, BuildHasherDefault<ByAddress>>;

struct Walk<'py> {
    py: Python<'py>,
    /// [`OF_CODE`]: there are more codes than anything else that has attributes.
    of_code: [Bound<'py, PyString>; OF_CODE.len()],
    /// What the count of an immortal is.
    immortal: u32,
    kinds: Kinds,
    /// Born immortal, some of them, so their count does not tell whether they were met.
    statics: HashSet<*mut ffi::PyObject>,
    /// To be looked into.
    found: Vec<(*mut ffi::PyObject, Kind)>,
    /// The one that is looked into is a [`Kind::Holder`] or a type.
    in_holder: bool,
    count: usize,
}

/// Makes the objects immortal that came since the last freeze; how many.
#[pyfunction]
pub fn immortalize(py: Python<'_>) -> PyResult<usize> {
    let Some(immortal) = immortal_count(py)? else { return Ok(0) };
    let objects = py.import("gc")?.call_method0("get_objects")?.cast_into::<PyList>()?;
    let mut walk = Walk {
        py,
        of_code: OF_CODE.map(|name| PyString::intern(py, name)),
        immortal,
        kinds: kinds(py)?,
        statics: HashSet::new(),
        found: Vec::new(),
        in_holder: false,
        count: 0,
    };
    for object in &objects {
        let kind = walk.kind(object.as_ptr());
        if kind.begins() && walk.may(object.as_ptr(), kind) {
            walk.make(object.as_ptr());
            walk.look_into(object.as_ptr(), kind);
        }
        while let Some((object, kind)) = walk.found.pop() {
            walk.look_into(object, kind);
        }
    }
    Ok(walk.count)
}

/// What this interpreter's immortals have as their count; `None` if it knows no immortals, or counts otherwise.
fn immortal_count(py: Python<'_>) -> PyResult<Option<u32>> {
    let flags: String = py.import("sys")?.getattr("abiflags")?.extract()?;
    if flags.contains('t') {
        return Ok(None);
    }
    // More than one, for an extension that was built for older versions moves what it counts by a few.
    let constants =
        [py.None().into_bound(py), py.Ellipsis().into_bound(py), py.NotImplemented().into_bound(py)];
    let count = constants.iter().map(|constant| count(constant.as_ptr())).max();
    Ok(count.filter(|count| is_immortal(*count)))
}

/// The low half of an object's reference count.
fn count(object: *mut ffi::PyObject) -> u32 {
    // SAFETY: an object begins with 64 bits of reference count in every build with a GIL, and the
    // caller got it from the interpreter, whose GIL this thread holds.
    unsafe { object.cast::<u32>().add(LOW).read() }
}

fn is_immortal(count: u32) -> bool {
    (count as i32) < 0
}

fn kinds(py: Python<'_>) -> PyResult<Kinds> {
    let mut kinds = Kinds::default();
    let mut add = |module: &Bound<'_, PyModule>, names: &[&str], kind| {
        for name in names {
            kinds.insert(module.getattr(*name)?.as_ptr().cast(), kind);
        }
        PyResult::Ok(())
    };
    let (types, builtins) = (py.import("types")?, py.import("builtins")?);
    add(&types, &FUNCTIONS, Kind::Holder)?;
    add(&types, &["BuiltinFunctionType"], Kind::Builtin)?;
    add(&types, &DESCRIPTORS, Kind::Descriptor)?;
    add(&types, &["CodeType"], Kind::Code)?;
    add(&types, &["CellType"], Kind::Container)?;
    add(&builtins, &WRAPPERS, Kind::Descriptor)?;
    add(&builtins, &CONTAINERS, Kind::Container)?;
    add(&builtins, &ATOMS, Kind::Atom)?;
    add(&builtins, &["dict"], Kind::Dict)?;
    for (name, module) in py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?.copy()? {
        let cython = name.cast::<PyString>().is_ok_and(|name| name.to_string().starts_with(CYTHON_MODULES));
        if let (true, Ok(module)) = (cython, module.cast_into::<PyModule>()) {
            for name in CYTHON {
                let _ = add(&module, &[name], Kind::Holder); // a version may lack one
            }
        }
    }
    Ok(kinds)
}

impl<'py> Walk<'py> {
    /// By exact type, but for modules and types of any class.
    fn kind(&mut self, object: *mut ffi::PyObject) -> Kind {
        // SAFETY: an object, as above; its type lives as long as it does.
        let class = unsafe { ffi::Py_TYPE(object) };
        if let Some(kind) = self.kinds.get(&class) {
            return *kind;
        }
        // SAFETY: `class` is a type that is ready, for it has an instance.
        let (flags, module) = unsafe {
            (ffi::PyType_GetFlags(class), ffi::PyType_IsSubtype(class, &raw mut ffi::PyModule_Type) != 0)
        };
        let kind = if flags & ffi::Py_TPFLAGS_TYPE_SUBCLASS != 0 {
            Kind::Type
        } else if module {
            Kind::Holder
        } else {
            Kind::Other
        };
        self.kinds.insert(class, kind);
        kind
    }

    fn may(&mut self, object: *mut ffi::PyObject, kind: Kind) -> bool {
        if kind != Kind::Builtin {
            return true;
        }
        // SAFETY: it is a function of C; what it is bound to is borrowed, or null.
        let owner = unsafe { ffi::PyCFunction_GetSelf(object) };
        owner.is_null() || matches!(self.kind(owner), Kind::Holder | Kind::Type)
    }

    /// Runs inside traversals: it must run no code of Python's.
    fn meet(&mut self, object: *mut ffi::PyObject) {
        let known = is_immortal(count(object));
        let kind = self.kind(object);
        let heap = kind != Kind::Type || is_of_heap(object);
        let wanted = match kind {
            Kind::Other => false,
            Kind::Builtin => !known && self.may(object, kind),
            Kind::Dict => self.in_holder && !known,
            _ if !heap => self.statics.insert(object),
            _ => !known,
        };
        if wanted {
            self.make(object);
            if kind != Kind::Atom {
                self.found.push((object, kind));
            }
        }
    }

    /// Writes nothing where nothing changes: the page may be a parent's.
    fn make(&mut self, object: *mut ffi::PyObject) {
        if !is_immortal(count(object)) {
            // SAFETY: as in `count`; only this thread runs. A count that never falls to zero keeps
            // an object that is whole as it is; the other half may hold flags and is left alone.
            unsafe { object.cast::<u32>().add(LOW).write(self.immortal) };
            self.count += 1;
        }
    }

    fn look_into(&mut self, object: *mut ffi::PyObject, kind: Kind) {
        self.in_holder = matches!(kind, Kind::Holder | Kind::Type);
        match kind {
            Kind::Code => {
                for number in 0..OF_CODE.len() {
                    if let Ok(value) = attribute(self.py, object, &self.of_code[number]) {
                        self.meet(value.as_ptr());
                    }
                }
            }
            Kind::Type if !is_of_heap(object) => self.look_into_static(object),
            _ => self.traverse(object),
        }
    }

    fn look_into_static(&mut self, class: *mut ffi::PyObject) {
        let of_static_type = OF_STATIC_TYPE.map(|name| PyString::intern(self.py, name));
        for name in of_static_type {
            let Ok(value) = attribute(self.py, class, &name) else { continue };
            // A namespace comes as a proxy.
            if value.is_instance_of::<PyMappingProxy>() {
                self.traverse(value.as_ptr());
            } else {
                self.meet(value.as_ptr());
            }
        }
    }

    fn traverse(&mut self, object: *mut ffi::PyObject) {
        // SAFETY: `object` is of a type of the lists above, or a module or type of the heap: the collector
        // may traverse it, and so may we, with a visitor that changes no container.
        unsafe {
            let slot = ffi::PyType_GetSlot(ffi::Py_TYPE(object), ffi::Py_tp_traverse);
            if !slot.is_null() {
                let traverse = std::mem::transmute::<*mut c_void, ffi::traverseproc>(slot);
                traverse(object, visit, std::ptr::from_mut(self).cast());
            }
        }
    }
}

/// An attribute that the object's own type defines: no code of a class runs for it.
fn attribute<'py>(
    py: Python<'py>,
    object: *mut ffi::PyObject,
    name: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: both are objects that live; the answer is a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyObject_GenericGetAttr(object, name.as_ptr())) }
}

fn is_of_heap(class: *mut ffi::PyObject) -> bool {
    // SAFETY: `Walk::kind` said that it is a type.
    unsafe { ffi::PyType_GetFlags(class.cast()) & ffi::Py_TPFLAGS_HEAPTYPE != 0 }
}

extern "C" fn visit(object: *mut ffi::PyObject, walk: *mut c_void) -> c_int {
    // SAFETY: `Walk::traverse` lent itself for as long as the traversal takes, and uses nothing of it meanwhile.
    unsafe { &mut *walk.cast::<Walk<'_>>() }.meet(object);
    0
}
