//! How a start is made.

use std::time::Duration;

use crate::support::baselines::Baselines;
use crate::support::client::{Answer, Client};
use crate::support::peers::Peer;
use crate::support::worker::Worker;

/// As long as pausing an idle sandbox may take.
const PAUSING: Duration = Duration::from_millis(5);
const TRIES: usize = 100;

pub enum Kind {
    Hosier {
        port: u16,
        client: Client,
        name: String,
        /// What the worker may say of it.
        starts: &'static [&'static str],
    },
    Fork(&'static str),
    Python,
    Peer(Peer),
}

/// What one start cost.
pub struct Cost {
    pub answered: Duration,
    /// Until its process was gone.
    pub gone: Option<Duration>,
    pub hosier: Option<Answer>,
}

impl Kind {
    pub fn hosier(worker: &Worker, name: String, starts: &'static [&'static str]) -> Self {
        let mut client = Client::new(worker.port);
        client.settle(&name);
        Kind::Hosier { port: worker.port, client, name, starts }
    }

    /// Before a round: the other kinds' starts took longer than an idle connection is kept.
    pub fn wake(&mut self) {
        if let Kind::Hosier { port, client, .. } = self {
            *client = Client::new(*port);
        }
    }

    pub fn start(&mut self, baselines: &mut Baselines) -> Cost {
        let (answered, gone) = match self {
            Kind::Hosier { client, name, starts, .. } => {
                let answer = call(client, name, starts);
                return Cost { answered: answer.took, gone: None, hosier: Some(answer) };
            }
            Kind::Fork(kind) => baselines.start(kind),
            Kind::Python => baselines.python3(),
            Kind::Peer(peer) => peer.start(),
        };
        Cost { answered, gone: Some(gone), hosier: None }
    }
}

/// A call whose sandbox came to be in one of these ways.
fn call(client: &mut Client, name: &str, starts: &[&str]) -> Answer {
    for _ in 0..TRIES {
        if starts == ["unpaused"] {
            std::thread::sleep(PAUSING);
        }
        let answer = client.call(name);
        if starts.contains(&answer.start.as_str()) {
            return answer;
        }
        // On a busy machine an idle sandbox is paused late.
        assert_eq!((starts, answer.start.as_str()), (&["unpaused"][..], "warm"), "{name}");
    }
    panic!("{name} was not paused in {TRIES} times {PAUSING:?}")
}
