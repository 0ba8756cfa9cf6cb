//! A cluster for tests: started as a process of its own, and gone with whatever it started when it is dropped.

use std::{
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    control::Client,
    layout::NodeLayout,
    run::{processes, release_all},
};

/// How long a cluster may take to end in order.
const END: Duration = Duration::from_secs(10);

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// The cluster's folder; none: a new one, removed at the end.
    pub dir: Option<PathBuf>,
    /// The `pve-sim` binary; none: see [`crate::binary`].
    pub program: Option<PathBuf>,
    /// Lock time-outs, and the time after which a cluster lock expires, are multiplied by this.
    pub lock_factor: f64,
    /// Make the demo's templates.
    pub seed_demo: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: vec!["pve1".into()], dir: None, program: None, lock_factor: 1.0, seed_demo: false }
    }
}

impl Options {
    /// The default with these nodes.
    pub fn nodes(names: &[&str]) -> Self {
        Self { nodes: names.iter().map(|name| (*name).to_owned()).collect(), ..Self::default() }
    }
}

/// A running cluster. Dropping it ends it: mounts, guests and tasks included, also while a panic unwinds. If this process is killed, the cluster notices that
/// its standard input is closed, and ends too.
pub struct Cluster {
    process: Child,
    dir: PathBuf,
    options: Options,
    _temporary: Option<TempDir>,
}

impl Cluster {
    /// Starts a cluster and waits until it is ready.
    ///
    /// # Errors
    /// When there is no binary, or the cluster ends before it is ready (it needs root and `/dev/fuse`).
    pub fn start(options: Options) -> io::Result<Self> {
        let temporary = if options.dir.is_none() { Some(tempfile::Builder::new().prefix("pve-sim-").tempdir()?) } else { None };
        let dir = match (&options.dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        std::fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        let process = spawn(&options, &dir)?;
        let mut cluster = Self { process, dir, options, _temporary: temporary };
        cluster.wait_ready()?;
        Ok(cluster)
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        let output = self.process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let ready: Value =
            serde_json::from_str(&line).map_err(|_| io::Error::other("the cluster ended before it was ready; its error is on stderr"))?;
        if ready["ready"] == true { Ok(()) } else { Err(io::Error::other(line)) }
    }

    /// The cluster's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files of a node.
    pub fn node(&self, name: &str) -> NodeLayout {
        NodeLayout::new(&self.dir, name)
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> &[String] {
        &self.options.nodes
    }

    /// What happens behind the agents' backs.
    pub fn control(&self) -> Client {
        Client::new(&self.dir)
    }

    /// The pid of the cluster's process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends the cluster in order and starts it again in the same folder: contents stay, guests and tasks are gone.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.end();
        self.process = spawn(&self.options, &self.dir)?;
        self.wait_ready()
    }

    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.process.id())
            && matches!(self.process.try_wait(), Ok(None))
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let deadline = Instant::now() + END;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
            thread::sleep(Duration::from_millis(2));
        }
        // Nothing is left to do if it ended in order.
        processes::kill_all(&self.dir);
        release_all(&self.dir);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(options: &Options, dir: &Path) -> io::Result<Child> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => crate::binary()?,
    };
    let mut command = Command::new(program);
    command.arg("run").arg("--dir").arg(dir).arg("--nodes").arg(options.nodes.join(",")).arg("--until-stdin-closes");
    command.arg("--lock-factor").arg(options.lock_factor.to_string());
    if options.seed_demo {
        command.arg("--seed-demo");
    }
    command.env(processes::MARK, dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}
