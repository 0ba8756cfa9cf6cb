//! A text of everything that an operation may leave behind. It tells no pids, times or random names, so that equal states give equal texts.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use sha1::{Digest, Sha1};

use super::Sim;
use crate::{
    guest,
    run::{processes, shared_folders},
};

/// How long a task's process may take to end after its last line.
const TASKS_END: Duration = Duration::from_secs(3);

/// Where images lie, on a real host.
const STORAGES: [&str; 3] = ["/var/lib/vz", "/srv/raw", "/srv/small"];

impl Sim {
    pub(super) fn leftovers(&self) -> io::Result<String> {
        // A task that has written its last line is still a process for a moment: it is given time to end before it counts as left.
        let end = Instant::now() + TASKS_END;
        loop {
            let text = self.digest()?;
            if Instant::now() > end || !text.lines().any(|line| line.starts_with("task ")) {
                return Ok(text);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn digest(&self) -> io::Result<String> {
        let mut lines = Vec::new();
        for (path, content) in self.store.walk("") {
            match content {
                Some(content) if path.starts_with("nodes/") => {
                    lines.push(format!("config {path} {}", hex::encode(Sha1::digest(content.as_slice()))));
                }
                None if path.starts_with("priv/lock/") => lines.push(format!("cluster lock {path}")),
                _ => {}
            }
        }
        let names: Vec<String> = self.store.with_nodes(|nodes| nodes.iter().map(|node| node.name.clone()).collect());
        for name in names {
            let layout = self.layout(&name);
            for storage in STORAGES {
                list(&layout.host_path(storage).join("images"), &format!("image {name} {storage}"), &mut lines)?;
            }
            lines.extend(guest::all_running(&layout).into_iter().map(|(vmid, _)| format!("guest {name} {vmid}")));
        }
        for (id, folder) in shared_folders(&self.dir) {
            list(&folder.join("images"), &format!("image {id}"), &mut lines)?;
        }
        for pid in processes::of_cluster(&self.dir) {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let title = String::from_utf8_lossy(&command).replace('\0', " ");
            if title.starts_with("qemu-img") {
                lines.push(format!("process {}", title.trim()));
            } else if title.starts_with("task UPID:") {
                // Node, pid, start: they differ each time.
                lines.push(format!("task {}", title.trim().split(':').skip(5).collect::<Vec<_>>().join(":")));
            }
        }
        lines.sort();
        lines.push(String::new());
        Ok(lines.join("\n"))
    }
}

/// Images below a folder, by owner. Folders count too, empty ones included: PVE removes them with their last image.
fn list(folder: &Path, what: &str, lines: &mut Vec<String>) -> io::Result<()> {
    let owners = match fs::read_dir(folder) {
        Ok(owners) => owners,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for owner in owners {
        let owner = owner?;
        lines.push(format!("{what} {}/", owner.file_name().display()));
        // It may vanish while it is looked at.
        for image in fs::read_dir(owner.path()).into_iter().flatten().flatten() {
            lines.push(format!("{what} {}/{}", owner.file_name().display(), image.file_name().display()));
        }
    }
    Ok(())
}
