//! What a command cannot use up, and what ends with it.

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
