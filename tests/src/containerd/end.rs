//! The end of everything that a containerd started: shims and containers outlive it by design.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pvelet_agent::host::process;

use super::program;

/// How the folders begin; the pid of the test process follows.
pub(super) const PREFIX: &str = "pvelet-containerd.";

const PROC: &str = "/proc";

/// Ends processes that belong to a folder, and removes what they leave outside it.
pub(super) fn end(folder: &Path) {
    let bundles = bundles(folder);
    // Until nothing is found: a shim that is being started may come after the first look.
    for _ in 0..10 {
        let ended = kill_all(folder);
        if ended.is_empty() {
            break;
        }
        for fd in &ended {
            program::ended(fd, Duration::from_secs(10));
        }
    }
    for point in mounts(folder) {
        let _ = umount2(&point, MntFlags::MNT_DETACH);
    }
    for bundle in bundles {
        if let Ok(address) = fs::read_to_string(bundle.join("address")) {
            let _ = fs::remove_file(address.trim().trim_start_matches("unix://"));
        }
        if let Some(id) = bundle.file_name() {
            groups(Path::new("/sys/fs/cgroup"), id.as_ref());
        }
    }
}

/// Kills containerd, shims and their containers; returns what to wait for.
fn kill_all(folder: &Path) -> Vec<OwnedFd> {
    let ours = |arguments: &[String]| arguments.iter().any(|a| Path::new(a).starts_with(folder));
    let found = process::find(Path::new(PROC), |a| ours(a) && a.first().is_some_and(|p| p.contains("containerd")), |_, _| true);
    let mut pids: Vec<i32> = found.unwrap_or_default().into_iter().map(|p| p.pid).collect();
    let shims = pids.clone();
    let children = process::find(Path::new(PROC), |_| true, |_, stat| shims.contains(&stat.parent));
    pids.extend(children.unwrap_or_default().into_iter().map(|p| p.pid));
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut handles = Vec::new();
    for pid in pids.into_iter().filter(|pid| *pid != own) {
        handles.extend(program::pidfd(pid.unsigned_abs()));
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    handles
}

fn bundles(folder: &Path) -> Vec<PathBuf> {
    let tasks = folder.join("state/io.containerd.runtime.v2.task");
    let inside = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    inside(tasks).flat_map(inside).collect()
}

/// Mount points below a folder, the innermost first.
fn mounts(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|l| l.split(' ').nth(4)).map(|p| PathBuf::from(p.replace("\\040", " ")));
    let mut points: Vec<PathBuf> = points.filter(|p| p.starts_with(folder)).collect();
    points.reverse();
    points
}

/// Control groups of a container: of each hierarchy, or of the one.
fn groups(top: &Path, id: &Path) {
    let _ = fs::remove_dir(top.join(id));
    for hierarchy in fs::read_dir(top).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(hierarchy.path().join(id));
    }
}

/// Ends what killed test processes left behind, and removes their folders.
pub(super) fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split('.').next()?.parse::<i32>().ok());
        if pid.is_some_and(|pid| process::stat(Path::new(PROC), pid).is_none()) {
            end(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
