//! Processes that still write to a volume though the agent that started them is gone.

use std::path::Path;

use crate::host::process::{self, ProcessRef};

/// Whether a command writes to what is called `target`: a path, a device, `rbd:<image>` or a dataset. Of a conversion only the last argument
/// is written; the others are read.
fn writes(arguments: &[String], target: &str) -> bool {
    let Some((program, rest)) = arguments.split_first() else { return false };
    let verb = rest.iter().find(|a| !a.starts_with('-')).map_or("", String::as_str);
    let any = |is: fn(&str, &str) -> bool| rest.iter().any(|a| is(a, target));
    match program.rsplit('/').next().unwrap_or(program) {
        "dd" => rest.iter().filter_map(|a| a.strip_prefix("of=")).any(|a| a == target),
        "blkdiscard" => any(|a, t| a == t),
        "qemu-img" | "qemu-img.real" => match rest.first().map(String::as_str) {
            Some("convert" | "dd") => rest.last().is_some_and(|a| image(a.strip_prefix("of=").unwrap_or(a), target)),
            Some("resize" | "snapshot" | "create" | "commit" | "rebase" | "amend") => any(image),
            _ => false,
        },
        "zfs" => matches!(verb, "rollback" | "recv" | "receive" | "set") && any(snapshot),
        // Its verb stands behind options with values.
        "rbd" => rest.iter().any(|a| matches!(a.as_str(), "rollback" | "resize" | "import" | "rm" | "copy" | "cp")) && any(snapshot),
        _ => false,
    }
}

/// An image as qemu-img names it: with options behind a Ceph image, and perhaps PVE's filter before a path.
fn image(argument: &str, target: &str) -> bool {
    let argument = argument.strip_prefix("zeroinit:").unwrap_or(argument);
    argument.strip_prefix(target).is_some_and(|rest| rest.is_empty() || (target.starts_with("rbd:") && rest.starts_with(':')))
}

fn snapshot(argument: &str, target: &str) -> bool {
    argument.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
}

/// Whether nobody waits for a process any more: whoever started it is gone, so that init, or a collector of orphans in another session, has
/// become its parent. What leads a session of its own was started that way on purpose (a service of systemd).
fn left_over(proc: &Path, pid: i32, stat: process::Stat) -> bool {
    let parent = process::stat(proc, stat.parent);
    stat.session != pid && (stat.parent == 1 || parent.is_none_or(|p| p.ended() || p.session != stat.session))
}

/// All such processes that write to a volume with one of these names. A child of this process is waited for and is none of them.
pub(super) fn find(proc: &Path, targets: &[String], own: i32) -> std::io::Result<Vec<ProcessRef>> {
    let command = |arguments: &[String]| targets.iter().any(|target| writes(arguments, target));
    process::find(proc, command, |pid, stat| stat.parent != own && left_over(proc, pid, stat))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn command(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn only_who_writes_to_exactly_this_volume_counts() {
        let (file, lv, rbd, zfs) = ("/s/images/100/vm-100-a.raw", "/dev/mapper/pve-vm--100--a", "rbd:p/vm-100-a", "tank/vm-100-a");
        let cases = [
            ("qemu-img convert -n -p -O raw /s/images/9/b.raw /s/images/100/vm-100-a.raw", file, true),
            ("/usr/bin/qemu-img.real convert -n -O raw /x zeroinit:/s/images/100/vm-100-a.raw", file, true),
            ("qemu-img convert -n -O raw /s/images/100/vm-100-a.raw /s/images/100/vm-100-b.raw", file, false),
            ("qemu-img convert -n -O raw /x /s/images/100/vm-100-a.raw2", file, false),
            ("qemu-img convert -n -O raw /x /s/images/1000/vm-100-a.raw", file, false),
            ("qemu-img info -f raw /s/images/100/vm-100-a.raw", file, false),
            ("qemu-img check -f raw /s/images/100/vm-100-a.raw", file, false),
            ("qemu-img resize -q -f raw /s/images/100/vm-100-a.raw 1024", file, true),
            ("qemu-img snapshot -q -c s /s/images/100/vm-100-a.raw", file, true),
            ("dd if=/dev/zero of=/s/images/100/vm-100-a.raw", file, true),
            ("dd if=/s/images/100/vm-100-a.raw of=/x", file, false),
            ("vim /s/images/100/vm-100-a.raw", file, false),
            ("blkdiscard -z -o 0 -l 512 /dev/mapper/pve-vm--100--a", lv, true),
            ("qemu-img convert -n -O raw /x rbd:p/vm-100-a:conf=/etc/pve/ceph.conf", rbd, true),
            ("qemu-img convert -n -O raw /x rbd:p/vm-100-ab:conf=/etc/pve/ceph.conf", rbd, false),
            ("rbd -p p snap rollback --snap s p/vm-100-a", "p/vm-100-a", true),
            ("rbd -p p info p/vm-100-a", "p/vm-100-a", false),
            ("zfs rollback -- tank/vm-100-a@s", zfs, true),
            ("zfs rollback -- tank/vm-100-ab@s", zfs, false),
            ("zfs list tank/vm-100-a", zfs, false),
            ("qemu-img", file, false),
            ("", file, false),
        ];
        for (text, target, written) in cases {
            assert_eq!(writes(&command(text), target), written, "{text} for {target}");
        }
    }

    /// A `/proc` with init, an agent 50 and a conversion 200 by `parent` in the session of `leader`.
    fn proc(agent: bool, parent: i32, leader: i32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let process = |pid, parent, session, command| process::pretend(dir.path(), pid, 'S', (parent, session), command).unwrap();
        process(1, 0, 1, "init");
        if agent {
            process(50, 1, 50, "pvelet-agent");
        }
        process(200, parent, leader, "qemu-img convert -n -O raw /a /b");
        dir
    }

    #[test]
    fn a_copy_is_left_over_when_its_agent_is_gone() {
        for (agent, parent, leader, own, left) in [
            (true, 50, 50, 50, false),
            (false, 1, 50, 60, true),
            (true, 1, 50, 60, true),
            // Somebody else's, who lives: a worker of PVE, or an agent that is not this one.
            (true, 50, 50, 60, false),
            // No sessions at all, as in a machine whose init is a script.
            (false, 1, 0, 60, true),
            // A service of its own.
            (false, 1, 200, 60, false),
        ] {
            let proc = proc(agent, parent, leader);
            let found = find(proc.path(), &["/b".to_owned()], own).unwrap();
            assert_eq!(found.len(), usize::from(left), "{agent} {parent} {leader} {own}");
            assert!(found.iter().all(|p| (p.pid, p.start) == (200, 77200)));
            assert!(find(proc.path(), &["/a".to_owned()], own).unwrap().is_empty());
        }
    }
}
