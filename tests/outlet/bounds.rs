//! Bounds of an outlet: a command uses nothing up, and its connections end with it.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hosier::sandbox::outlet::Refusal;
use hosier::sandbox::{Ended, Outlet};

use crate::lab::lab;
use crate::probe::{policy, probe};
use crate::support::wait_until;
use crate::world::Site;

#[test]
fn no_more_is_moved_than_may_be_and_the_refusal_names_the_setting() {
    lab(|lab| async move {
        let site = Site::serve(3 << 20);
        let outlet = Outlet::new(policy(&[&site.address.to_string()], &[]), 1);
        let ways = [format!("plain {}", site.url()), format!("plain {}", site.url())];
        let found = probe(&lab, &ways, Some(&outlet)).await;
        // The first is cut off, the second refused before anything is dialled.
        assert_eq!(found[1][0], 403, "{found:?}");
        assert!(found[1][1].as_str().unwrap().contains("installer.transfer_mb"), "{found:?}");
        assert_eq!(outlet.refusals(), [Refusal::Spent(1)]);
        assert!(outlet.moved() < 2 << 20, "{}", outlet.moved());
        assert_eq!(site.asked().len(), 1);
    });
}

#[test]
fn connections_are_bounded_and_end_with_their_command() {
    lab(|lab| async move {
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (now, peak) = (Arc::clone(&open), Arc::clone(&most));
        // A site that never answers, and notices when its client is gone.
        let site = Site::with(move |mut stream, _| {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _ = stream.read(&mut [0]);
            now.fetch_sub(1, Ordering::SeqCst);
        });
        let outlet = Outlet::new(policy(&[&site.address.to_string()], &[]), 16);
        let code = "import socket, sys, time\nheld = []\nfor n in range(60):\n    \
                    s = socket.create_connection(('127.0.0.1', 3128), 10)\n    \
                    s.sendall(('GET http://%s/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' % sys.argv[1]).encode())\n    \
                    held.append(s)\ntime.sleep(2)\nprint(len(held))\n";
        let begun = Instant::now();
        let outcome = lab.python(code, &[&site.address.to_string()], Some(&outlet)).await;
        assert_eq!(outcome.ended, Ended::Exited(0), "{outcome:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(most.load(Ordering::SeqCst), 32, "connections at one time");
        wait_until("every connection ended", Duration::from_secs(5), || open.load(Ordering::SeqCst) == 0);
    });
}

#[test]
fn a_client_that_says_nothing_takes_no_place_from_others_for_long_nor_from_another_command() {
    lab(|lab| async move {
        let site = Site::serve(5);
        let (policy, silent) = (
            policy(&[&site.address.to_string()], &[]),
            "import socket, time\nheld = [socket.create_connection(('127.0.0.1', 3128), 10) for _ in range(90)]\ntime.sleep(3)\n",
        );
        let hostile = Outlet::new(Arc::clone(&policy), 16);
        let outlet = Outlet::new(policy, 16);
        let other = lab.clone();
        let running = tokio::spawn(async move { other.python(silent, &[], Some(&hostile)).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begun = Instant::now();
        let found = probe(&lab, &[format!("plain {}", site.url())], Some(&outlet)).await;
        assert_eq!(found[0][0], 200, "{found:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(running.await.unwrap().ended, Ended::Exited(0));
    });
}

#[test]
fn the_worker_keeps_nothing_of_what_hostile_clients_send() {
    lab(|lab| async move {
        let site = Site::serve(5);
        let outlet = Outlet::new(policy(&[&site.address.to_string()], &[]), 64);
        let code = HOSTILE.replace("ROUNDS", "40");
        let outcome = lab.python(&code, &[&site.address.to_string()], Some(&outlet)).await;
        assert_eq!(outcome.output.trim(), "40", "{outcome:?}");
        let before = (resident_kib(), descriptors());
        let code = HOSTILE.replace("ROUNDS", "400");
        let outcome = lab.python(&code, &[&site.address.to_string()], Some(&outlet)).await;
        assert_eq!(outcome.output.trim(), "400", "{outcome:?}");
        wait_until("its connections are closed", Duration::from_secs(5), || descriptors() <= before.1);
        let grown = resident_kib().saturating_sub(before.0);
        assert!(grown < 4 << 10, "2,400 connections left {grown} KiB");
        assert!(outlet.refusals().len() <= 8 && outlet.failures().len() <= 8);
    });
}

/// Connections that are cut off, garbage, refused, half of a head, a tunnel that is left, a head without end.
const HOSTILE: &str = r#"
import os, socket, sys
target, done = sys.argv[1].encode(), 0
sends = [b"", os.urandom(3000), b"CONNECT h%d.test:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http://" + target,
         b"CONNECT " + target + b" HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n",
         b"GET http://" + target + b"/ HTTP/1.1\r\nX: " + b"x" * 200000]
for n in range(ROUNDS):
    for send in sends:
        with socket.create_connection(("127.0.0.1", 3128), 10) as s:
            try:
                s.sendall(send.replace(b"%d", b"%d" % n))
                if n % 2:
                    s.settimeout(0.05 if n % 40 == 1 else 0.001)
                    s.recv(100)
            except OSError:
                pass
    done += 1
print(done)
"#;

fn resident_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
