//! The kernel's numbers, counted as the kubelet (and cAdvisor in it) counts them.

use std::{
    fs::File,
    io::Read,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{ifaddrs::getifaddrs, sys::statvfs::statvfs};

use super::{FileSystem, LARGEST, Memory, Tasks, files::unreadable, look};
use crate::error::{Error, Trouble};

fn text(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(LARGEST).read_to_string(&mut text)).map_err(|e| unreadable(path, &e))?;
    Ok(text)
}

fn garbled(path: &Path, what: &str) -> Error {
    look(Trouble::Garbled, format!("{}: {what}", path.display()))
}

/// A line `<key><separator><number>` of a file.
fn number(path: &Path, text: &str, key: &str) -> Result<u64, Error> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix([' ', ':']));
    let value = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| garbled(path, &format!("no number '{key}'")))
}

pub(super) fn host_name(proc: &Path) -> Result<String, Error> {
    Ok(text(&proc.join("sys/kernel/hostname"))?.trim().to_owned())
}

pub(super) fn addresses() -> Result<Vec<IpAddr>, Error> {
    let all = getifaddrs().map_err(|e| look(Trouble::Failed, format!("the host's addresses cannot be read: {e}")))?;
    let addresses = all.filter_map(|i| {
        let address = i.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    Ok(addresses.collect())
}

/// `/proc/swaps`; a kernel without swap has no such file.
pub(super) fn swaps(proc: &Path) -> Result<Vec<String>, Error> {
    let path = proc.join("swaps");
    let text = match text(&path) {
        Err(Error::Look { trouble: Trouble::Missing, .. }) => return Ok(Vec::new()),
        other => other?,
    };
    let swap = |line: &str| {
        // Blanks in a name are written as \040.
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(2)?.parse::<u64>().ok()?;
        Some(fields[0].to_owned())
    };
    text.trim().lines().skip(1).map(|line| swap(line).ok_or_else(|| garbled(&path, "a line without numbers"))).collect()
}

/// Capacity and working set of the root cgroup: what is used, less inactive file pages.
pub(super) fn memory(proc: &Path, cgroup: &Path) -> Result<Memory, Error> {
    let meminfo = proc.join("meminfo");
    let capacity = number(&meminfo, &text(&meminfo)?, "MemTotal")? * 1024;
    let v1 = cgroup.join("memory");
    let (used, inactive) = if v1.join("memory.usage_in_bytes").exists() {
        let (usage, stat) = (v1.join("memory.usage_in_bytes"), v1.join("memory.stat"));
        let used = text(&usage)?.trim().parse().map_err(|_| garbled(&usage, "no number"))?;
        (used, number(&stat, &text(&stat)?, "total_inactive_file")?)
    } else {
        // The root of version 2 has no memory.current: anonymous and file pages are what version 1 counts.
        let stat = cgroup.join("memory.stat");
        let lines = text(&stat)?;
        let used = number(&stat, &lines, "anon")? + number(&stat, &lines, "file")?;
        (used, number(&stat, &lines, "inactive_file")?)
    };
    Ok(Memory { capacity, working_set: used.saturating_sub(inactive) })
}

/// Tasks: all threads of all processes against the lower of the kernel's two limits.
pub(super) fn tasks(proc: &Path) -> Result<Tasks, Error> {
    let limit = |name: &str| -> Result<u64, Error> {
        let path: PathBuf = proc.join("sys/kernel").join(name);
        text(&path)?.trim().parse().map_err(|_| garbled(&path, "no number"))
    };
    let path = proc.join("loadavg");
    let loadavg = text(&path)?;
    let running = loadavg.split_whitespace().nth(3).and_then(|f| f.split_once('/')?.1.parse().ok());
    let running = running.ok_or_else(|| garbled(&path, "no number of tasks"))?;
    Ok(Tasks { running, limit: limit("pid_max")?.min(limit("threads-max")?) })
}

pub(super) fn file_system(path: &Path) -> Result<Option<FileSystem>, Error> {
    let device = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| unreadable(path, &e))?.dev(),
    };
    let s = statvfs(path).map_err(|e| look(Trouble::Failed, format!("{} cannot be measured: {e}", path.display())))?;
    let size = s.fragment_size();
    Ok(Some(FileSystem {
        device,
        capacity: s.blocks().saturating_mul(size),
        available: s.blocks_available().saturating_mul(size),
        inodes: s.files(),
        inodes_free: s.files_free(),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    const KIB: u64 = 1024;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_working_set_is_that_of_either_version_of_cgroups() {
        let meminfo = "MemTotal:       16384 kB\nMemFree:         1 kB\n";
        let v1 = tree(&[
            ("meminfo", meminfo),
            ("memory/memory.usage_in_bytes", "8388608\n"),
            ("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 1048576\n"),
        ]);
        let v2 = tree(&[("meminfo", meminfo), ("memory.stat", "anon 4194304\nfile 4194304\ninactive_file 1048576\n")]);
        let expected = Memory { capacity: 16384 * KIB, working_set: 7168 * KIB };
        for dir in [v1, v2] {
            assert_eq!(memory(dir.path(), dir.path()).unwrap(), expected);
        }
        // Counters of version 1 are not read at the same time.
        let odd = tree(&[("meminfo", meminfo), ("memory.stat", "anon 1\nfile 1\ninactive_file 4096\n")]);
        assert_eq!(memory(odd.path(), odd.path()).unwrap().working_set, 0);
        let broken = tree(&[("meminfo", meminfo), ("memory.stat", "anon x\n")]);
        assert!(memory(broken.path(), broken.path()).unwrap_err().to_string().ends_with("memory.stat: no number 'anon'"));
    }

    #[test]
    fn swaps_are_listed_zram_too() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let text = format!("{head}/dev/dm-1 partition\t8388604\t\t1024\t\t-2\n/dev/zram0 partition\t1024\t0\t100\n");
        let dir = tree(&[("swaps", &text)]);
        assert_eq!(swaps(dir.path()).unwrap(), ["/dev/dm-1", "/dev/zram0"]);
        fs::write(dir.path().join("swaps"), head).unwrap();
        assert!(swaps(dir.path()).unwrap().is_empty());
        fs::remove_file(dir.path().join("swaps")).unwrap();
        assert!(swaps(dir.path()).unwrap().is_empty(), "a kernel without swap");
        fs::write(dir.path().join("swaps"), format!("{head}garbage\n")).unwrap();
        swaps(dir.path()).unwrap_err();
    }

    #[test]
    fn tasks_are_held_against_the_lower_limit() {
        let dir = tree(&[
            ("loadavg", "1.36 3.49 4.53 2/3518 3715089\n"),
            ("sys/kernel/pid_max", "4194304\n"),
            ("sys/kernel/threads-max", "126000\n"),
        ]);
        assert_eq!(tasks(dir.path()).unwrap(), Tasks { running: 3518, limit: 126_000 });
        fs::write(dir.path().join("loadavg"), "1.36").unwrap();
        assert!(tasks(dir.path()).unwrap_err().to_string().ends_with("loadavg: no number of tasks"));
    }

    #[test]
    fn this_host_is_counted() {
        let (proc, cgroup) = (Path::new("/proc"), Path::new("/sys/fs/cgroup"));
        assert!(!host_name(proc).unwrap().is_empty());
        assert!(addresses().unwrap().iter().any(IpAddr::is_loopback));
        let tasks = tasks(proc).unwrap();
        assert!(tasks.running > 0 && tasks.running < tasks.limit, "{tasks:?}");
        let memory = memory(proc, cgroup).unwrap();
        assert!(memory.working_set > 0 && memory.working_set < memory.capacity, "{memory:?}");
        let found = file_system(Path::new("/")).unwrap().unwrap();
        assert!(found.capacity > found.available, "{found:?}");
        assert_eq!(file_system(Path::new("/no/such/path")).unwrap(), None);
    }
}
