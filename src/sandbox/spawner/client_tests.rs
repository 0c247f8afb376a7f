//! The worker's side over a real socket, whose other end the test holds.

use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};

use super::*;

/// A spawner whose messages the test reads and writes. Its pidfd is of no importance.
fn spawner() -> (Spawner, OwnedFd) {
    let (ours, theirs) = socket::seqpacket_pair().unwrap();
    let pidfd = ours.try_clone().unwrap();
    (Spawner::connect(ours, pidfd).unwrap(), theirs)
}

fn heard(theirs: &OwnedFd) -> Ask {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    let received = socket::receive(theirs.as_fd(), &mut buffer).unwrap();
    wire::decode(&buffer[..received.len]).unwrap()
}

/// The kernel's `EMSGSIZE`, as any other failure of one `sendmsg`.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_sent_fails_alone() {
    let (spawner, theirs) = spawner();
    setsockopt(&spawner.0.channel, sockopt::SndBuf, &1).unwrap();
    let large = spawner.map(vec![(1_000_000, 1_000_000, 1_000_000); 4000]).await.unwrap_err();
    assert!(!matches!(large, SandboxError::SpawnerGone), "{large}");
    assert!(large.to_string().contains("Message too long"), "{large}");
    assert!(!spawner.is_gone() && spawner.0.waiting().is_empty());
    let small = tokio::spawn({
        let spawner = spawner.clone();
        async move { spawner.map(vec![(0, 0, 1)]).await }
    });
    let Ask::Map { id, .. } = tokio::task::block_in_place(|| heard(&theirs)) else { panic!("no map") };
    let namespace = theirs.as_raw_fd();
    socket::send(theirs.as_fd(), &wire::encode(&Tell::Mapped { id }), &[namespace]).unwrap();
    assert!(small.await.unwrap().is_ok());
}

/// As the kernel leaves it where this process has no room for a descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_pidfd_did_not_arrive_is_ended_and_its_start_fails() {
    let (spawner, theirs) = spawner();
    let (sender, started) = oneshot::channel();
    spawner.0.waiting().insert(7, Waiting::Start(sender));
    socket::send(theirs.as_fd(), &wire::encode(&Tell::Started { id: 7 }), &[]).unwrap();
    let error = started.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("Too many open files"), "{error}");
    assert!(matches!(tokio::task::block_in_place(|| heard(&theirs)), Ask::Kill { id: 7 }));
    socket::send(theirs.as_fd(), &wire::encode(&Tell::Ended { id: 7, status: 9 }), &[]).unwrap();
    while !spawner.0.waiting().is_empty() {
        tokio::time::sleep(PAUSE).await;
    }
    assert!(!spawner.is_gone());
    drop(theirs);
    spawner.gone().await;
}
