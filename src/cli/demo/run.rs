//! Calls this same program, and stops it again.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::DemoError;
use crate::cli::CliError;
use crate::cli::place::Place;
use crate::settings::Settings;

/// Somebody asked to stop: what runs is told, what comes next does not begin.
#[derive(Debug, Default)]
pub struct Interrupt {
    asked: AtomicBool,
    /// The process group to tell.
    running: Mutex<Option<Pid>>,
}

impl Interrupt {
    pub fn ask(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.asked.store(true, Ordering::SeqCst);
        if let Some(group) = *running {
            let _ = killpg(group, Signal::SIGINT);
        }
    }

    /// # Errors
    /// It was asked to stop.
    pub fn check(&self) -> Result<(), DemoError> {
        if self.asked.load(Ordering::SeqCst) { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    /// Starts a process that an interrupt ends.
    ///
    /// # Errors
    /// It cannot be started, or it was asked to stop.
    pub fn start(&self, command: &mut Command) -> Result<Child, CliError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let child = spawn(command)?;
        *running = Some(group_of(&child));
        Ok(child)
    }

    /// Waits for a process that [`Self::start`] started. It is told nothing any
    /// more before it is reaped: afterwards its number may be another's.
    ///
    /// # Errors
    /// As `waitid(2)`.
    pub fn ended(&self, child: &mut Child) -> std::io::Result<std::process::ExitStatus> {
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(group_of(child)),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )?;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
        child.wait()
    }
}

fn group_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

fn spawn(command: &mut Command) -> Result<Child, CliError> {
    let path = PathBuf::from(command.get_program());
    command.process_group(0).stdin(Stdio::null());
    command.spawn().map_err(|source| CliError::File { path, source })
}

/// `hosier COMMAND -p DIR`.
pub struct Commands {
    exe: PathBuf,
    dir: PathBuf,
    pub interrupt: Arc<Interrupt>,
    started: AtomicBool,
}

impl Commands {
    /// # Errors
    /// This program cannot be found.
    pub fn new(dir: &Path, interrupt: Arc<Interrupt>) -> Result<Self, CliError> {
        let exe = std::env::current_exe()
            .map_err(|source| CliError::File { path: "/proc/self/exe".into(), source })?;
        Ok(Self { exe, dir: dir.to_owned(), interrupt, started: AtomicBool::new(false) })
    }

    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.arg(name).args(args).arg("-p").arg(&self.dir).stdout(Stdio::null());
        command
    }

    /// Runs one, which an interrupt ends. Its progress is ours.
    ///
    /// # Errors
    /// It failed, or was interrupted.
    pub fn run(&self, name: &str, args: &[&str]) -> Result<(), CliError> {
        let mut child = self.interrupt.start(&mut self.command(name, args))?;
        let status = self.interrupt.ended(&mut child);
        self.interrupt.check()?;
        judge(name, status)
    }

    /// Starts the worker. It is not interrupted halfway: what has begun can only be stopped when it stands.
    ///
    /// # Errors
    /// It did not become ready.
    pub fn start_worker(&self) -> Result<(), CliError> {
        self.interrupt.check()?;
        let status = spawn(&mut self.command("up", &["-d", "-o", "worker_port=0"]))?.wait();
        judge("up", status)?;
        self.started.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Stops the worker, if it was this run that started it.
    ///
    /// # Errors
    /// It did not end.
    pub fn stop_worker(&self) -> Result<(), CliError> {
        if !self.started.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        judge("down", spawn(&mut self.command("down", &[]))?.wait())
    }
}

impl Drop for Commands {
    /// Even a panic leaves no worker behind.
    fn drop(&mut self) {
        let _ = self.stop_worker();
    }
}

fn judge(name: &str, status: std::io::Result<std::process::ExitStatus>) -> Result<(), CliError> {
    let status = status.map_err(|source| CliError::File { path: format!("hosier {name}").into(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(DemoError::Step { command: name.to_owned(), status }.into())
}

/// Where the worker in `dir` listens, as its log says.
///
/// # Errors
/// It does not say.
pub fn address(dir: &Path) -> Result<SocketAddr, CliError> {
    let log = Place::of(&Settings::load(dir, &[])?).worker_log();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let mut found = text.lines().filter_map(|line| line.rsplit_once("http://")?.1.trim().parse().ok());
    found.next().ok_or(DemoError::NoAddress { log }.into())
}
