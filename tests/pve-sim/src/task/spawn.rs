//! The daemon's side of a task: start the worker, note it, reap it, stop it.

use std::{
    fs::{self, File},
    io::{self, Write},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::{Job, Upid, index, log, process_start};
use crate::{
    api::{Failure, Settings},
    faults::{Faults, TaskEffect},
    layout::NodeLayout,
};

/// What the daemon tells its worker, on one line, after the UPID.
#[derive(Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) cluster_dir: std::path::PathBuf,
    pub(super) node: String,
    pub(super) upid: Upid,
    pub(super) job: Job,
    pub(super) lock_factor: f64,
    pub(super) effect: Option<TaskEffect>,
}

/// Starts a task. It is in `active`, and its log exists, when this returns.
///
/// # Errors
/// When the worker cannot be started or the lists cannot be written.
pub fn spawn(layout: &NodeLayout, settings: &Settings, kind: &str, id: &str, user: &str, job: &Job) -> Result<Upid, Failure> {
    let mut child = Command::new(&settings.program).arg("task").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let started = begin(layout, settings, &mut child, (kind, id, user), job);
    if started.is_err() {
        let _ = child.kill();
    }
    let layout = layout.clone();
    thread::spawn(move || {
        let _ = child.wait();
        if let Err(error) = index::update(&layout, None) {
            tracing::warn!(%error, "the task lists cannot be written");
        }
    });
    started
}

fn begin(
    layout: &NodeLayout,
    settings: &Settings,
    child: &mut Child,
    (kind, id, user): (&str, &str, &str),
    job: &Job,
) -> Result<Upid, Failure> {
    let pid = child.id();
    let pstart = process_start(pid).ok_or_else(|| Failure::die("the worker ended at once"))?;
    let (node, kind, id, user) = (layout.node().to_owned(), kind.to_owned(), id.to_owned(), user.to_owned());
    let upid = Upid { node, pid, pstart, starttime: index::now(), kind, id, user };
    let path = log::path(layout, &upid);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    File::create(path)?;
    index::update(layout, Some(&upid))?;
    let orders = Orders {
        cluster_dir: layout.root().parent().unwrap_or(layout.root()).to_owned(),
        node: layout.node().to_owned(),
        upid: upid.clone(),
        job: job.clone(),
        lock_factor: settings.lock_factor,
        effect: take_fault(layout, &upid.kind)?,
    };
    let text = serde_json::to_string(&orders).map_err(io::Error::other)?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
    stdin.write_all(format!("{upid}\n{text}\n").as_bytes())?;
    Ok(upid)
}

/// Uses up the first task fault that fits.
fn take_fault(layout: &NodeLayout, kind: &str) -> io::Result<Option<TaskEffect>> {
    Faults::update(&layout.faults(), |faults| {
        let at = faults.tasks.iter().position(|fault| fault.kind.is_empty() || fault.kind == kind);
        Ok(at.map(|at| faults.tasks.remove(at).effect))
    })
}

/// Stops a running task: SIGTERM, and SIGKILL when it is still there after five seconds. One that has ended is left alone.
pub fn stop(upid: &Upid) {
    let Ok(pid) = i32::try_from(upid.pid) else { return };
    let pid = Pid::from_raw(pid);
    if !upid.is_running() || kill(pid, Signal::SIGTERM).is_err() {
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while upid.is_running() {
        if Instant::now() > deadline {
            let _ = kill(pid, Signal::SIGKILL);
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
