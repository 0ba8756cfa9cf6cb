//! Processes that still write to a volume though the task that started them is gone.

use std::path::Path;

use crate::host::process::{self, ProcessRef};

/// Programs that PVE's storage code starts to write images.
const WRITERS: &[&str] = &["qemu-img", "qemu-img.real", "dd"];

/// Whether a path or volume name belongs to `vmid`: `.../images/<vmid>/...`, `vm-<vmid>-...`, `base-<vmid>-...`.
fn names(text: &str, vmid: u32) -> bool {
    let id = vmid.to_string();
    [("/images/", '/'), ("vm-", '-'), ("base-", '-')].iter().any(|(before, after)| {
        text.match_indices(before).any(|(at, _)| {
            let boundary = before.starts_with('/') || text[..at].chars().next_back().is_none_or(|c| !c.is_ascii_alphanumeric());
            boundary && text[at + before.len()..].strip_prefix(id.as_str()).is_some_and(|rest| rest.starts_with(*after))
        })
    })
}

/// Whether a command writes to a volume of `vmid`. Of a conversion only the last argument is written; the others are read.
fn writes(arguments: &[String], vmid: u32) -> bool {
    let Some((program, rest)) = arguments.split_first() else { return false };
    let name = program.rsplit('/').next().unwrap_or(program);
    if !WRITERS.contains(&name) {
        return false;
    }
    if name == "dd" {
        return rest.iter().filter_map(|a| a.strip_prefix("of=")).any(|a| names(a, vmid));
    }
    match rest.first().map(String::as_str) {
        Some("info" | "check" | "compare" | "map" | "measure") | None => false,
        Some("convert") => rest.last().is_some_and(|a| names(a, vmid)),
        Some(_) => rest.iter().any(|a| names(a, vmid)),
    }
}

/// Whether nobody waits for the process any more. Each PVE worker leads a session of its own: a child whose leader is gone, or whose parent
/// belongs to another session, was orphaned by its worker's death.
fn orphaned(proc: &Path, stat: process::Stat) -> bool {
    let leader = process::stat(proc, stat.session);
    let parent = process::stat(proc, stat.parent);
    leader.is_none_or(|l| l.ended()) || parent.is_none_or(|p| p.ended() || p.session != stat.session)
}

/// All orphans that write to a volume of `vmid`.
pub(super) fn find(proc: &Path, vmid: u32) -> std::io::Result<Vec<ProcessRef>> {
    process::find(proc, |arguments| writes(arguments, vmid), |_, stat| orphaned(proc, stat))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    fn command(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn only_what_is_written_counts() {
        let clone = "/usr/bin/qemu-img.real convert --target-is-zero -p -n -f qcow2 -O qcow2 /var/lib/vz/images/9010/base-9010-disk-0.qcow2 /var/lib/vz/images/511/vm-511-disk-0.qcow2";
        let cases = [
            (clone, 511, true),
            (clone, 9010, false),
            (clone, 51, false),
            ("qemu-img convert -p a zeroinit:/srv/small/images/211/vm-211-disk-0.qcow2", 211, true),
            ("/usr/bin/qemu-img convert -p -n a /dev/pve/vm-300-disk-0", 300, true),
            ("/usr/bin/qemu-img convert -p -n a /dev/pve/tvm-300-disk-0", 300, false),
            ("qemu-img resize -f raw /var/lib/vz/images/300/x.raw 2G", 300, true),
            ("qemu-img info /var/lib/vz/images/300/x.raw", 300, false),
            ("dd if=/dev/pve/vm-300-disk-0 of=/dev/pve/vm-301-disk-0", 301, true),
            ("dd if=/dev/pve/vm-300-disk-0 of=/dev/pve/vm-301-disk-0", 300, false),
            ("vim /var/lib/vz/images/300/x.raw", 300, false),
            ("qemu-img", 300, false),
        ];
        for (text, vmid, written) in cases {
            assert_eq!(writes(&command(text), vmid), written, "{text} for {vmid}");
        }
    }

    /// A `/proc` with a worker 100 that leads session 100, a `qemu-img` 200 in it, and init.
    fn proc(worker: Option<char>, parent: i32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let process = |pid, state, parent, session, command| process::pretend(dir.path(), pid, state, (parent, session), command).unwrap();
        process(1, 'S', 0, 1, "init");
        if let Some(state) = worker {
            process(100, state, 1, 100, "task");
        }
        process(200, 'R', parent, 100, "qemu-img convert a /x/images/511/vm-511-disk-0.raw");
        fs::write(dir.path().join("uptime"), "").unwrap();
        dir
    }

    #[test]
    fn a_writer_is_an_orphan_when_its_worker_is_gone() {
        for (worker, parent, orphan) in [(Some('S'), 100, false), (None, 1, true), (Some('Z'), 1, true), (Some('S'), 1, true)] {
            let proc = proc(worker, parent);
            let found = find(proc.path(), 511).unwrap();
            assert_eq!(found.len(), usize::from(orphan), "{worker:?} {parent}");
            assert!(found.iter().all(|p| (p.pid, p.start) == (200, 77200) && p.command.contains("vm-511")));
            assert!(find(proc.path(), 512).unwrap().is_empty());
        }
    }
}
