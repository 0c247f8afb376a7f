//! The real `uv`, the real index, a real sandbox.

use std::path::Path;
use std::sync::Arc;

use hosier::lambda::packages::{Operator, ensure_uv};
use hosier::sandbox::{Bind, Command, Ended, Network, Outcome, Outlet, Runner};

use crate::lab::{LIMITS, Lab, lab};
use crate::support::HOSIER;

/// Runs `uv pip compile` of one requirement in a sandbox.
async fn compile(
    lab: &Lab,
    requirement: &str,
    env: &[(String, String)],
    binds: &[Bind],
    outlet: &Arc<Outlet>,
) -> Outcome {
    let dir = tempfile::Builder::new().prefix("hosier-outlet-").tempdir().unwrap();
    let beside = Some(Path::new(HOSIER).with_file_name("uv")).filter(|path| path.exists());
    let uv = ensure_uv(dir.path(), beside.as_deref(), Path::new("/usr/bin/python3")).unwrap();
    std::fs::write(dir.path().join("in.txt"), format!("{requirement}\n")).unwrap();
    let argv = "/in/uv pip compile --no-deps --no-build --no-config --no-progress --color never --system-certs \
                --no-python-downloads --python /usr/bin/python3 --generate-hashes --no-header /in/in.txt";
    let own = [
        ("HOME", "/tmp"),
        ("UV_CACHE_DIR", "/tmp/cache"),
        ("PATH", "/usr/bin"),
        ("TOKIO_WORKER_THREADS", "2"),
    ];
    let mut show = vec![
        Bind { source: uv, target: "/in/uv".into(), writable: false },
        Bind { source: dir.path().join("in.txt"), target: "/in/in.txt".into(), writable: false },
    ];
    show.extend_from_slice(binds);
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let command = Command {
        argv: argv.split_whitespace().map(str::to_owned).collect(),
        env: own.into_iter().chain(env.iter().cloned()).collect(),
        binds: show,
        limits: LIMITS,
        network: Network::None,
        outlet: Some(Arc::clone(outlet)),
        code: hosier::sandbox::Code::Tool,
    };
    lab.sandboxes.run(command).await.unwrap()
}

#[test]
fn uv_resolves_against_the_operators_index_through_the_outlet() {
    lab(|lab| async move {
        let operator = Operator::from_host(None, &[]);
        let outlet = Outlet::new(operator.policy(), 64);
        let outcome = compile(&lab, "six==1.16.0", operator.env(), operator.binds(), &outlet).await;
        assert_eq!(outcome.ended, Ended::Exited(0), "{}\n{:?}", outcome.output, outlet.complaint());
        assert!(outcome.output.contains("six==1.16.0 \\\n    --hash=sha256:"), "{}", outcome.output);
        assert_eq!(outlet.complaint(), None);
        assert!(outlet.moved() > 1000);
    });
}

#[test]
fn uv_says_that_an_index_is_out_of_reach_and_the_outlet_says_why() {
    lab(|lab| async move {
        let operator = Operator::from_host(None, &[]);
        let outlet = Outlet::new(operator.policy(), 64);
        let index = [("UV_DEFAULT_INDEX".to_owned(), "http://127.0.0.1:9/simple".to_owned())];
        let outcome = compile(&lab, "six==1.16.0", &index, &[], &outlet).await;
        assert!(matches!(outcome.ended, Ended::Exited(1 | 2)), "{outcome:?}");
        let complaint = outlet.complaint().unwrap();
        assert!(complaint.starts_with("127.0.0.1:9 was refused"), "{complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
    });
}
