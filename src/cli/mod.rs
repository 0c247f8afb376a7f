//! The `hosier` command line: parses, builds what a command needs, runs it.
//! stdout is data, stderr is progress; every error says what to do next.
//!
//! ```text
//! init     a worker directory                 place         its paths, its lock
//! up       a worker, here or detached         floor         the sandbox floor, brought up
//! deploy   a function and its packages        own_socket    a client of the worker's socket
//! invoke, status, down    talk to a worker
//! cleanup  removes what a dead worker left    demo          the main job on real input
//! descriptors   how many sandboxes and connections the limit of open files leaves
//! ```

mod cleanup;
mod demo;
mod deploy;
mod descriptors;
mod error;
mod floor;
mod init;
mod own_socket;
mod place;
mod talk;
mod up;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::lambda::steps;
use crate::sandbox::host;
pub use error::CliError;

#[derive(Parser)]
#[command(
    name = "hosier",
    version,
    about = "Runs Python functions in sandboxes forked from a tree of zygotes"
)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a worker directory: settings, registry, package store
    Init(PlaceArgs),
    /// Start a worker
    Up(UpArgs),
    /// Stop the worker
    Down(PlaceArgs),
    /// Say whether a worker runs, and what it has
    Status {
        #[command(flatten)]
        place: PlaceArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Store a function (a directory or a .tar.gz) and install its packages
    Deploy {
        /// The function's directory or archive
        path: PathBuf,
        #[command(flatten)]
        place: PlaceArgs,
        /// Its name; else the directory's
        #[arg(short, long)]
        name: Option<String>,
        /// Hash every file of its packages that are there already
        #[arg(long)]
        verify: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Call a function of the running worker
    Invoke {
        /// The function's name
        name: String,
        #[command(flatten)]
        place: PlaceArgs,
        /// The event, as JSON
        #[arg(short, long, default_value = "{}")]
        data: String,
    },
    /// Remove what a dead worker left: control groups, run-time files
    Cleanup(PlaceArgs),
    /// Deploy three functions on real data, call each cold and warm, print what it cost
    Demo {
        /// The worker directory to use, which stays; else a temporary one, which is removed
        #[arg(short = 'p', long = "path")]
        dir: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which worker.
#[derive(Args, Clone)]
pub struct PlaceArgs {
    /// The worker directory
    #[arg(short = 'p', long = "path", default_value = "./default-hosier")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Go to the background; returns when the worker is ready
    #[arg(short = 'd', long)]
    pub detach: bool,
    /// Override settings: key=value,section.key=value
    #[arg(short = 'o', long = "options")]
    pub options: Vec<String>,
    /// Hash every file of the package store first; damaged packages are set aside and fetched again
    /// by the next function that asks for them
    #[arg(long)]
    pub verify: bool,
    /// This is the worker that `-d` started
    #[arg(long, hide = true)]
    pub detached: bool,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hosier: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<(), CliError> {
    // First: without it the worker's files and socket look as if they were not there.
    if !matches!(verb, Verb::Init(_)) {
        host::check_root()?;
    }
    // A worker's settings have a word in it.
    if !matches!(verb, Verb::Up(_)) {
        begin_log(false);
    }
    match verb {
        Verb::Init(place) => init::run(&place),
        Verb::Up(args) => up::run(&args),
        Verb::Down(place) => talk::down(&place),
        Verb::Status { place, json } => talk::status(&place, json),
        Verb::Deploy { path, place, name, verify, json } => {
            deploy::run(&path, &place, name.as_deref(), verify, json)
        }
        Verb::Invoke { name, place, data } => talk::invoke(&place, &name, &data),
        Verb::Cleanup(place) => cleanup::run(&place),
        Verb::Demo { dir, json } => demo::run(dir, json),
    }
}

/// Logs to stderr from here on: what `HOSIER_LOG` asks for, else warnings; and the steps
/// of each call where `latency` says so.
fn begin_log(latency: bool) {
    let asked = std::env::var("HOSIER_LOG").ok().filter(|text| EnvFilter::try_new(text).is_ok());
    let mut directives = asked.unwrap_or_else(|| "warn".to_owned());
    if latency {
        directives += &format!(",{}=debug", steps::TARGET);
    }
    let filter = EnvFilter::new(directives);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
}
