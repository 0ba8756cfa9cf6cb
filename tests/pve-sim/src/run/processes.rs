//! The processes of a cluster: found by a mark in their environment, so that none outlives it, whoever started it.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, getsid},
};

/// The environment variable that every process of a cluster carries; its value is the cluster's folder.
pub const MARK: &str = "PVE_SIM_DIR";

/// Makes sure that this process carries the mark: executes itself again with it if not.
///
/// # Errors
/// When it cannot be executed.
pub fn ensure_marked(dir: &Path) -> io::Result<()> {
    if std::env::var_os(MARK).is_some_and(|marked| Path::new(&marked) == dir) {
        return Ok(());
    }
    Err(Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(MARK, dir).exec())
}

/// Every living process of the cluster in this folder, this one left out.
pub fn of_cluster(dir: &Path) -> Vec<Pid> {
    let mark = format!("{MARK}={}", dir.display());
    let me = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        *pid != me && environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(marked).filter_map(|pid| i32::try_from(pid).ok()).map(Pid::from_raw).collect()
}

/// Kills every process of the cluster in this folder, this one left out, and waits until they are gone.
pub fn kill_all(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let living = of_cluster(dir);
        if living.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in living {
            let _ = kill(pid, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Reaps ended children that nobody in this process waits for: guests, and what came here when its parent died. A zombie would look alive to `kill(pid, 0)`.
pub fn reap_orphans() {
    let own = getsid(None).map_or(0, Pid::as_raw);
    let me = Pid::this().as_raw();
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let ours = |stat: &Stat| stat.parent == me && stat.ended && (stat.name == "kvm" || (stat.session != own && stat.session != pid));
        if Stat::read(pid).as_ref().is_some_and(ours) {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

struct Stat {
    name: String,
    ended: bool,
    parent: i32,
    session: i32,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets and may hold anything.
        let (before, after) = text.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let mut fields = after.split_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        Some(Self { name, ended, parent, session })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Read, process::Stdio};

    use super::*;

    #[test]
    fn this_process_is_read_from_proc() {
        let stat = Stat::read(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(!stat.ended);
        assert_eq!(stat.session, getsid(None).unwrap().as_raw());
    }

    #[test]
    fn a_marked_process_is_found_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            Command::new("sh").args(["-c", "echo; exec sleep 600"]).env(MARK, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        // Until it has said something, /proc may not have its environment yet.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(of_cluster(dir.path()), [Pid::from_raw(i32::try_from(child.id()).unwrap())]);
        kill_all(dir.path());
        assert!(!child.wait().unwrap().success());
        assert!(of_cluster(dir.path()).is_empty());
    }
}
