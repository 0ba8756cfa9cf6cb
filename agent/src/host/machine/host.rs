//! The real machine.

use std::{path::PathBuf, time::Duration, time::SystemTime};

use super::{
    CertificateFile, ClockState, ClusterFs, Connections, CorosyncStatus, Drbd, Kernels, Machine, Memory, RunningTask, ThinPool, ZfsPool,
    certificates, clock, cluster_fs, command, connections, corosync, drbd, kernels, memory, read::look, tasks, thin, zfs,
};
use crate::{
    error::{Error, Trouble},
    host::blocking::Blocking,
};

/// Files are read within a millisecond; what takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(3);
/// Programs: `lvs` reads a label from each disk.
const PROGRAM: Duration = Duration::from_secs(20);
/// timedated is started when it is asked.
const BUS: Duration = Duration::from_secs(10);

/// Where things are found. The defaults are those of a PVE host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachinePaths {
    /// The node's name below `/etc/pve/nodes`.
    pub node: String,
    /// The cluster file system.
    pub etc_pve: PathBuf,
    /// The folder of its database.
    pub database: PathBuf,
    /// corosync's configuration.
    pub corosync: PathBuf,
    /// PVE's task logs.
    pub task_log: PathBuf,
    /// procfs
    pub proc: PathBuf,
    /// sysfs
    pub sysfs: PathBuf,
    /// `/run`
    pub run: PathBuf,
    /// `/boot`
    pub boot: PathBuf,
    /// `/etc`
    pub etc: PathBuf,
}

impl MachinePaths {
    /// Those of a host whose root is at `root` (`/` but for hosts that are simulated).
    pub fn of(node: &str, root: &std::path::Path) -> Self {
        Self {
            node: node.to_owned(),
            etc_pve: root.join("etc/pve"),
            database: root.join("var/lib/pve-cluster"),
            corosync: root.join("etc/corosync/corosync.conf"),
            task_log: root.join("var/log/pve/tasks"),
            proc: "/proc".into(),
            sysfs: "/sys".into(),
            run: root.join("run"),
            boot: root.join("boot"),
            etc: root.join("etc"),
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct MachineHost {
    paths: MachinePaths,
    patience: Duration,
    /// Places for threads: one for each file system that may hang by itself, so that nothing waits for what is none of its business.
    cluster: Blocking,
    kernel: Blocking,
    boot: Blocking,
    tasks: Blocking,
    etc: Blocking,
}

impl MachineHost {
    /// The machine with these paths.
    pub fn new(paths: MachinePaths) -> Self {
        let place = Blocking::new;
        Self { paths, patience: PATIENCE, cluster: place(), kernel: place(), boot: place(), tasks: place(), etc: place() }
    }

    /// Looks on a thread of its own, in a place for that.
    async fn at<T: Send + 'static>(
        &self,
        place: &Blocking,
        what: &str,
        work: impl FnOnce(MachinePaths) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let paths = self.paths.clone();
        place.run(what, self.patience, move || work(paths)).await
    }

    async fn of_cluster<T: Send + 'static>(
        &self,
        work: impl FnOnce(MachinePaths) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.at(&self.cluster, &self.paths.etc_pve.display().to_string(), work).await
    }
}

#[tonic::async_trait]
impl Machine for MachineHost {
    async fn corosync(&self) -> Result<Option<CorosyncStatus>, Error> {
        let configured = self.at(&self.etc, "corosync's configuration", |p| Ok(p.corosync.exists())).await?;
        if !configured {
            return Ok(None);
        }
        let ended = command::run("corosync-cfgtool", &["-s"], PROGRAM).await?;
        if ended.code != Some(0) {
            // "Could not initialize corosync configuration API error 2": nobody listens.
            let trouble = if ended.stderr.contains("Could not initialize") { Trouble::Refused } else { Trouble::Failed };
            return Err(look(trouble, format!("corosync-cfgtool: {}", ended.complaint())));
        }
        let status = corosync::parse(&ended.stdout);
        status.map(Some).ok_or_else(|| look(Trouble::Garbled, "corosync-cfgtool told what cannot be read"))
    }

    async fn cluster_fs(&self) -> Result<ClusterFs, Error> {
        self.of_cluster(|p| cluster_fs::look_at(&p.etc_pve, &p.node, &p.proc.join("self/mountinfo"), &p.database)).await
    }

    async fn status_told(&self) -> Result<Option<SystemTime>, Error> {
        self.of_cluster(|p| cluster_fs::status_told(&p.etc_pve, &p.node)).await
    }

    async fn certificates(&self) -> Result<Vec<CertificateFile>, Error> {
        self.of_cluster(|p| certificates::read(&p.etc_pve, &p.node)).await
    }

    async fn thin_pools(&self) -> Result<Option<Vec<ThinPool>>, Error> {
        if self.at(&self.kernel, "the kernel's devices", |p| thin::present(&p.sysfs)).await? {
            thin::pools(PROGRAM).await.map(Some)
        } else {
            Ok(None)
        }
    }

    async fn zfs_pools(&self) -> Result<Option<Vec<ZfsPool>>, Error> {
        let Some(mut pools) = self.at(&self.kernel, "the kernel's pools", |p| zfs::states(&p.proc)).await? else { return Ok(None) };
        if let Err(error) = zfs::fill(&mut pools, PROGRAM).await {
            // The states are known all the same, and worse than not knowing how full they are.
            if pools.iter().all(|p| p.state == "ONLINE") {
                return Err(error);
            }
            tracing::debug!(%error, "how full the pools of ZFS are is not known");
        }
        Ok(Some(pools))
    }

    async fn kernels(&self) -> Result<Kernels, Error> {
        self.at(&self.boot, "/boot", |p| kernels::look_at(&p.proc, &p.boot, &p.run, &p.etc)).await
    }

    async fn clock(&self) -> Result<ClockState, Error> {
        clock::ask(&self.paths.proc, BUS).await
    }

    async fn memory(&self) -> Result<Memory, Error> {
        self.at(&self.kernel, "/proc/meminfo", |p| memory::look_at(&p.proc, &p.sysfs)).await
    }

    async fn running_tasks(&self) -> Result<Vec<RunningTask>, Error> {
        self.at(&self.tasks, "PVE's task logs", |p| tasks::running(&p.task_log, &p.proc)).await
    }

    async fn connections(&self, ports: &[u16]) -> Result<Connections, Error> {
        let ports = ports.to_vec();
        self.at(&self.kernel, "/proc/net/tcp", move |p| connections::count(&p.proc, &ports)).await
    }

    async fn drbd(&self) -> Result<Option<Drbd>, Error> {
        drbd::look_at(&self.paths.proc, PROGRAM).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, path::Path};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn machine(root: &Path) -> MachineHost {
        fs::create_dir_all(root.join("etc/pve/nodes/pve1")).unwrap();
        let paths = MachinePaths { sysfs: root.join("sys"), ..MachinePaths::of("pve1", root) };
        MachineHost::new(paths)
    }

    #[tokio::test]
    async fn a_machine_without_lvm_zfs_drbd_and_corosync_has_none_and_runs_no_program_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        assert_eq!(machine.corosync().await.unwrap(), None);
        assert_eq!(machine.thin_pools().await.unwrap(), None);
        // This machine's own kernel.
        assert!(machine.memory().await.unwrap().total > 0);
        assert!(!machine.kernels().await.unwrap().running.is_empty());
        assert_eq!(machine.running_tasks().await.unwrap(), []);
        assert!(!machine.cluster_fs().await.unwrap().mounted);
        assert!(machine.certificates().await.unwrap().iter().all(|c| c.pem == Ok(None)));
        assert!(matches!(machine.status_told().await, Err(Error::Look { trouble: Trouble::Missing, .. })));
    }

    #[tokio::test]
    async fn a_file_that_hangs_holds_up_nothing_but_its_own_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let machine = MachineHost { patience: Duration::from_millis(20), ..machine(dir.path()) };
        // Whoever opens it waits for a writer.
        let hanging = dir.path().join("etc/pve/nodes/pve1/pve-ssl.pem");
        mkfifo(&hanging, Mode::S_IRWXU).unwrap();
        for _ in 0..2 {
            assert!(matches!(machine.certificates().await, Err(Error::Look { trouble: Trouble::Silent, .. })));
        }
        assert!(matches!(machine.status_told().await, Err(Error::Look { trouble: Trouble::Silent, .. })));
        let machine = MachineHost { patience: Duration::from_secs(20), ..machine };
        assert!(machine.memory().await.is_ok() && machine.kernels().await.is_ok() && machine.running_tasks().await.is_ok());
        // A thread that hangs would keep the test from ending.
        drop(fs::OpenOptions::new().write(true).open(&hanging).unwrap());
    }
}
