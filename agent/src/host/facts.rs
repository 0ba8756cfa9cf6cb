//! Facts of this host: processors, memory, load, kernel, boot.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use inotify::{Inotify, WatchDescriptor, WatchMask};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::process::{self, async_fd};

/// Facts of one reading.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostFacts {
    /// Logical processors.
    pub threads: u32,
    /// Physical cores; 0 when unknown.
    pub cores: u32,
    /// The first processor's model.
    pub cpu_model: String,
    /// Busy share of all processors since the last reading, 0 to 1; 0 at the first.
    pub utilization: f64,
    /// The load average of one minute.
    pub load1: f64,
    /// Memory, bytes.
    pub memory_total: u64,
    /// What could be used without swapping, bytes.
    pub memory_available: u64,
    /// Kernel release.
    pub kernel_version: String,
    /// Random id of this boot; empty when unknown.
    pub boot_id: String,
    /// When the host booted.
    pub boot_time: Option<SystemTime>,
    /// Whether a shutdown or reboot is scheduled (`shutdown +5`). One that begins at once is not told here: systemd then ends the agent.
    pub shutdown_scheduled: bool,
}

/// Reads facts. Takes some milliseconds and blocks: not for the runtime's threads.
pub trait Facts: Send + Sync + 'static {
    /// The facts now.
    fn read(&self) -> HostFacts;

    /// Ends when a shutdown may have been scheduled or withdrawn since this call; never where that cannot be seen.
    fn shutdown_changes(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

/// Where systemd notes a scheduled shutdown.
const SCHEDULED: &str = "/run/systemd/shutdown/scheduled";

/// The kernel's facts.
#[derive(Debug)]
pub struct HostFactsReader {
    proc: PathBuf,
    scheduled: PathBuf,
    /// Kept, since utilization is the difference between two readings. `None` before the first, or when it fails.
    system: Mutex<Option<System>>,
}

impl HostFactsReader {
    /// Facts of this host; the boot's id and time from `proc` (usually `/proc`).
    pub fn new(proc: PathBuf) -> Self {
        Self { proc, scheduled: SCHEDULED.into(), system: Mutex::default() }
    }
}

impl Facts for HostFactsReader {
    fn read(&self) -> HostFacts {
        let mut kept = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        let first = kept.is_none();
        if first {
            *kept = System::new().inspect_err(|error| tracing::warn!(%error, "processors and memory cannot be read")).ok();
        }
        let cpu = CpuRefreshKind::nothing().with_usage();
        if let Some(system) = &mut *kept {
            system.refresh_specifics(RefreshKind::nothing().with_cpu(cpu).with_memory(MemoryRefreshKind::nothing().with_ram()));
        }
        let cpus = kept.as_ref().map(System::cpus).unwrap_or_default();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        HostFacts {
            threads: count(cpus.len()),
            cores: System::physical_core_count().map_or(0, count),
            cpu_model: cpus.first().map(|c| c.brand().trim().to_owned()).unwrap_or_default(),
            utilization: match &*kept {
                Some(system) if !first => (f64::from(system.global_cpu_usage()) / 100.0).clamp(0.0, 1.0),
                _ => 0.0,
            },
            load1: System::load_average().map_or(0.0, |l| l.one),
            memory_total: kept.as_ref().map_or(0, System::total_memory),
            memory_available: kept.as_ref().map_or(0, System::available_memory),
            kernel_version: System::kernel_version().unwrap_or_default(),
            boot_id: fs::read_to_string(self.proc.join("sys/kernel/random/boot_id")).map(|s| s.trim().to_owned()).unwrap_or_default(),
            boot_time: process::boot_time(&self.proc).map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s)),
            shutdown_scheduled: shutdown_scheduled(&self.scheduled),
        }
    }

    fn shutdown_changes(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let watch = FolderWatch::new(&self.scheduled);
        Box::pin(async move {
            let changed = match watch {
                Ok(watch) => watch.changed().await,
                Err(error) => Err(error),
            };
            if let Err(error) = changed {
                tracing::debug!(%error, "scheduled shutdowns are seen only when the host's facts are asked for");
                std::future::pending::<()>().await;
            }
        })
    }
}

/// Sees changes in a file's folder, which may not be there yet.
struct FolderWatch {
    inotify: Inotify,
    /// The watch of the folder's parent, in which only the folder itself is of interest.
    parent: WatchDescriptor,
    folder: OsString,
}

impl FolderWatch {
    fn new(file: &Path) -> io::Result<Self> {
        let folder = file.parent().unwrap_or(Path::new("/"));
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::CLOSE_WRITE | WatchMask::ONLYDIR;
        let parent = inotify.watches().add(folder.parent().unwrap_or(Path::new("/")), mask)?;
        match inotify.watches().add(folder, mask) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(Self { inotify, parent, folder: folder.file_name().unwrap_or_default().to_owned() })
    }

    async fn changed(self) -> io::Result<()> {
        let Self { inotify, parent, folder } = self;
        let (mut fd, mut buffer) = (async_fd(inotify)?, [0; 4096]);
        loop {
            let mut ready = fd.readable_mut().await?;
            match ready.get_inner_mut().read_events(&mut buffer) {
                Ok(mut events) => {
                    if events.any(|e| e.wd != parent || e.name == Some(&folder)) {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) => return Err(e),
            }
        }
    }
}

/// Whether the file names a shutdown that is meant: `shutdown -k` only warns (`MODE=dry-...`).
fn shutdown_scheduled(path: &Path) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return false };
    text.lines().find_map(|l| l.strip_prefix("MODE=")).is_some_and(|mode| !mode.starts_with("dry-"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn this_host_has_facts() {
        let reader = HostFactsReader::new("/proc".into());
        let (first, second) = (reader.read(), reader.read());
        assert_eq!(first.utilization, 0.0);
        assert!(second.threads > 0 && second.memory_total > second.memory_available && (0.0..=1.0).contains(&second.utilization));
        assert!(!second.kernel_version.is_empty() && second.boot_id.len() == 36 && second.boot_time.unwrap() < SystemTime::now());
    }

    #[test]
    fn only_a_shutdown_that_is_meant_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scheduled");
        assert!(!shutdown_scheduled(&file));
        for (text, scheduled) in [("USEC=1\nWARN_WALL=1\nMODE=reboot\n", true), ("USEC=1\nMODE=dry-reboot\n", false), ("garbage", false)] {
            fs::write(&file, text).unwrap();
            assert_eq!(shutdown_scheduled(&file), scheduled, "{text}");
        }
    }

    #[tokio::test]
    async fn a_shutdown_that_is_scheduled_is_seen_even_where_none_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("shutdown");
        let reader = HostFactsReader { scheduled: folder.join("scheduled"), ..HostFactsReader::new("/proc".into()) };
        let soon = |change| tokio::time::timeout(Duration::from_secs(10), change);
        let change = reader.shutdown_changes();
        fs::write(dir.path().join("unrelated"), "").unwrap();
        fs::create_dir(&folder).unwrap();
        soon(change).await.unwrap();
        let change = reader.shutdown_changes();
        fs::write(folder.join("scheduled"), "USEC=1\nMODE=poweroff\n").unwrap();
        soon(change).await.unwrap();
        assert!(reader.read().shutdown_scheduled);
        let change = reader.shutdown_changes();
        fs::remove_file(folder.join("scheduled")).unwrap();
        soon(change).await.unwrap();
        assert!(!reader.read().shutdown_scheduled);
    }
}
