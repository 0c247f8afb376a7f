//! One thread before a fork, and a leaf's own number after it: what the libraries of
//! a node were kept from starting is given back where the function may use it.

mod support;

#[allow(dead_code, reason = "made for another suite")]
#[path = "tree/site.rs"]
mod site;

use serde_json::json;
use site::site;

const NUMPY: &str = "numpy==1.26.4";
/// Multiplies two matrices of 1,000 × 1,000. Says whether it was forked with numpy, whether the product is
/// right, how many threads there are then, and what a library that is loaded later would start.
const MULTIPLY: &str = "import sys\nHAD = 'numpy' in sys.modules\nimport os\nimport numpy\n\
    def f(event):\n    \
    a = numpy.arange(1_000_000, dtype=float).reshape(1000, 1000) % 7\n    \
    product = a @ numpy.ones((1000, 1000))\n    \
    right = bool((product == a.sum(axis=1)[:, None]).all())\n    \
    return [HAD, right, len(os.listdir('/proc/self/task')), os.environ['OPENBLAS_NUM_THREADS']]\n";

/// What the function says under this `ol.yaml`.
fn multiply(config: &str, options: &[&str]) -> serde_json::Value {
    let mut worker = site(None);
    worker.deploy("f", &[("f.py", MULTIPLY), ("requirements.txt", NUMPY), ("ol.yaml", config)]);
    worker.up(options);
    let said = worker.result("f", "{}");
    worker.down();
    said
}

#[test]
fn a_leaf_with_one_core_has_one_thread() {
    assert_eq!(multiply("limits: {mem_mb: 300}\n", &[]), json!([true, true, 1, "1"]));
}

#[test]
fn a_leaf_with_two_cores_multiplies_with_two_threads_although_its_node_had_one() {
    let two = json!([true, true, 2, "2"]);
    assert_eq!(multiply("limits: {mem_mb: 300, cpu_percent: 200}\n", &[]), two);
    assert_eq!(multiply("limits: {mem_mb: 300, cpu_percent: 200}\n", &["zygote.solidify=false"]), two);
}

#[test]
fn a_function_may_ask_for_another_number_itself() {
    let asks = "environment: {OPENBLAS_NUM_THREADS: 3}\nlimits: {mem_mb: 300}\n";
    assert_eq!(multiply(asks, &[]), json!([true, true, 3, "3"]));
    // Nonsense is the function's own: it has one thread and is not the worse for it.
    let nonsense = "environment: {OPENBLAS_NUM_THREADS: many}\nlimits: {mem_mb: 300}\n";
    assert_eq!(multiply(nonsense, &[]), json!([true, true, 1, "many"]));
}

#[test]
fn a_fresh_leaf_has_the_same_number() {
    // numpy reads it when the handler imports it; it never has more than there are cores.
    let cores = std::thread::available_parallelism().unwrap().get().min(2);
    let said = multiply("limits: {mem_mb: 300, cpu_percent: 200}\n", &["features.import_cache="]);
    assert_eq!(said, json!([false, true, cores, "2"]));
}
