//! Memory, from the kernel's files.

use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};

use super::{Memory, read};
use crate::error::{Error, Trouble};

const LARGEST: u64 = 256 << 10;

/// Reads it. `cgroup` is `/sys/fs/cgroup`.
pub(super) fn look_at(proc: &Path, sysfs: &Path) -> Result<Memory, Error> {
    let meminfo = read::must(&proc.join("meminfo"), LARGEST)?;
    let kib = |key: &str| value(&meminfo, key).map(|v| v.saturating_mul(1024));
    let (Some(total), Some(available)) = (kib("MemTotal:"), kib("MemAvailable:")) else {
        return Err(read::look(Trouble::Garbled, "/proc/meminfo tells neither MemTotal nor MemAvailable"));
    };
    // No ZFS, no such file. Lines are `size 4 1234`.
    let arc = read::text(&proc.join("spl/kstat/zfs/arcstats"), LARGEST)?.unwrap_or_default();
    let arc = |key: &str| arc.lines().find_map(|l| l.strip_prefix(key)?.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    let ksm = read::text(&sysfs.join("kernel/mm/ksm/pages_sharing"), LARGEST)?.and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
    let killed = value(&read::must(&proc.join("vmstat"), LARGEST)?, "oom_kill").unwrap_or(0);
    let (limits_hit, vms_killed) = groups(&sysfs.join("fs/cgroup"))?;
    Ok(Memory {
        total,
        available,
        huge: kib("Hugetlb:").unwrap_or(0),
        arc: arc("size "),
        arc_min: arc("c_min "),
        shared: ksm.saturating_mul(page_size()),
        swap_total: kib("SwapTotal:").unwrap_or(0),
        killed,
        limits_hit,
        vms_killed,
    })
}

fn page_size() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(4096)
}

/// A line's number behind its key.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok())?
    })
}

/// How often control groups below the root reached their limits, and how many processes of VMs were killed. Both counters of a group hold
/// those of the groups in it; the root has none.
fn groups(root: &Path) -> Result<(Option<u64>, Option<u64>), Error> {
    let (mut hit, mut vms) = (None, None);
    for name in read::names(root)? {
        let Some(events) = read::text(&root.join(&name).join("memory.events"), LARGEST)? else { continue };
        let oom = value(&events, "oom").unwrap_or(0);
        hit = Some(hit.unwrap_or(0) + oom);
        if name == "qemu.slice" {
            vms = value(&events, "oom_kill");
        }
    }
    Ok((hit, vms))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_machine_has_memory() {
        let memory = look_at(Path::new("/proc"), Path::new("/sys")).unwrap();
        assert!(memory.total > memory.available && memory.available > 0);
    }

    #[test]
    fn caches_sharing_and_kills_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "proc/meminfo",
            "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\nSwapTotal: 8 kB\nSwapFree: 4 kB\nHugetlb: 2 kB\n",
        );
        write("proc/vmstat", "nr_free_pages 7\noom_kill 3\n");
        write("proc/spl/kstat/zfs/arcstats", "13 1 0x01 147\nname type data\nc 4 9\nc_min 4 512\nc_max 4 2048\nsize 4 1024\n");
        write("sys/kernel/mm/ksm/pages_sharing", "2\n");
        write("sys/fs/cgroup/qemu.slice/memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\noom_group_kill 0\n");
        write("sys/fs/cgroup/kubepods.slice/memory.events", "low 0\noom 2\noom_kill 2\n");
        write("sys/fs/cgroup/cgroup.procs", "");
        let memory = look_at(&dir.path().join("proc"), &dir.path().join("sys")).unwrap();
        let expected = Memory {
            total: 1_024_000,
            available: 409_600,
            huge: 2048,
            arc: 1024,
            arc_min: 512,
            shared: 2 * page_size(),
            swap_total: 8192,
            killed: 3,
            limits_hit: Some(2),
            vms_killed: Some(1),
        };
        assert_eq!(memory, expected);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = value(&text, "oom");
        }
    }
}
