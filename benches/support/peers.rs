//! The same work in other people's sandboxes, where they are installed and run here: a
//! new `python3` with the host's `/usr`, read-only, and no network.
//!
//! ```text
//! bwrap        the host's root, read-only
//! crun, runc   a bundle: an empty root with /usr and the imports bound into it
//! docker       an image of the same empty root, the same bound into it
//! ```

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::baselines::{SCRIPT, Took, environment, process, python, with_environment};
use super::{PYTHON, functions::Function};

const IMAGE: &str = "hosier-bench";

/// One that ran here.
pub struct Peer {
    tool: Tool,
    places: Vec<String>,
    dir: tempfile::TempDir,
    started: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tool {
    Bwrap,
    Crun,
    Runc,
    Docker,
}

impl Tool {
    pub const ALL: [Tool; 4] = [Tool::Bwrap, Tool::Crun, Tool::Runc, Tool::Docker];

    pub fn name(self) -> &'static str {
        match self {
            Tool::Bwrap => "bwrap",
            Tool::Crun => "crun",
            Tool::Runc => "runc",
            Tool::Docker => "docker",
        }
    }
}

impl Peer {
    /// # Errors
    /// Why it cannot run here.
    pub fn new(tool: Tool, function: Function, places: &[String]) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("hosier-bench-").tempdir().unwrap();
        let mut peer = Self { tool, places: places.to_vec(), dir, started: 0 };
        if tool == Tool::Docker {
            said(Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]))?;
        }
        peer.prepare()?;
        let answer = said(&mut peer.command())?;
        if answer.is_empty() { Err(format!("{} did not answer in it", function.name)) } else { Ok(peer) }
    }

    pub fn start(&mut self) -> Took {
        process(self.command())
    }

    fn prepare(&self) -> Result<(), String> {
        if self.tool == Tool::Bwrap {
            return Ok(());
        }
        let root = self.root();
        std::fs::create_dir(&root).unwrap();
        for name in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        std::fs::write(self.dir.path().join("config.json"), self.bundle().to_string()).unwrap();
        if self.tool == Tool::Docker {
            let import = format!("tar -C {root:?} -c . | docker import - {IMAGE}");
            said(Command::new("sh").args(["-c", &import]))?;
        }
        Ok(())
    }

    /// A new one each time: containers have names.
    fn command(&mut self) -> Command {
        self.started += 1;
        let mut command = Command::new(self.tool.name());
        let inner = python(SCRIPT);
        match self.tool {
            Tool::Bwrap => {
                command.args(["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"]);
                command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
                for place in &self.places {
                    command.args(["--ro-bind", place, place]);
                }
                with_environment(&mut command, &self.places);
                command.env("PATH", "/usr/bin:/bin").arg(PYTHON).args(inner.get_args());
            }
            Tool::Crun | Tool::Runc => {
                let id = format!("hosier-bench-{}-{}", std::process::id(), self.started);
                command.arg("run").arg("--bundle").arg(self.dir.path()).arg(id);
            }
            Tool::Docker => {
                command.args(["run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp"]);
                for place in [&"/usr".to_owned()].into_iter().chain(&self.places) {
                    command.arg("-v").arg(format!("{place}:{place}:ro"));
                }
                for (name, value) in environment(&self.places) {
                    command.arg("-e").arg(format!("{name}={value}"));
                }
                command.args([IMAGE, PYTHON]).args(inner.get_args());
            }
        }
        command
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// The `config.json` of an OCI bundle.
    fn bundle(&self) -> serde_json::Value {
        let bind = |place: &str| {
            serde_json::json!({
                "destination": place, "type": "bind", "source": place, "options": ["rbind", "ro"],
            })
        };
        let fs = |place: &str, kind: &str| serde_json::json!({ "destination": place, "type": kind, "source": kind });
        let mut mounts = vec![fs("/proc", "proc"), fs("/dev", "tmpfs"), fs("/tmp", "tmpfs"), bind("/usr")];
        mounts.extend(self.places.iter().map(|place| bind(place)));
        let mut args = vec![PYTHON.to_owned()];
        args.extend(python(SCRIPT).get_args().map(|arg| arg.to_string_lossy().into_owned()));
        let env = environment(&self.places).into_iter().map(|(name, value)| format!("{name}={value}"));
        let namespaces =
            ["pid", "network", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
        serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "args": args, "env": env.collect::<Vec<_>>(),
                "cwd": "/", "noNewPrivileges": true,
            },
            "root": { "path": "rootfs", "readonly": true },
            "hostname": "hosier-bench",
            "mounts": mounts,
            "linux": { "namespaces": namespaces },
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.tool == Tool::Docker {
            // Not there if it could not be imported.
            let _ = said(Command::new("docker").args(["rmi", IMAGE]));
        }
    }
}

/// What a command prints, or why it does not.
fn said(command: &mut Command) -> Result<String, String> {
    let program = Path::new(command.get_program()).display().to_string();
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("{program} is not installed"));
        }
        Err(error) => return Err(format!("{program}: {error}")),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(errors.lines().last().unwrap_or("it failed and said nothing").to_owned())
}
