//! Many agents in one process: whole ones, with their API over mTLS and certificates of their own, on PVE hosts that live in memory.
//!
//! What an agent does beside PVE is left out: no containerd, no kubelet, no network of the machine.

mod host;
pub mod site;

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
};

use futures_util::{StreamExt, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

pub use host::{Host, TEMPLATE};

use crate::Pki;

/// Hosts that are started at once.
const AT_ONCE: usize = 16;
/// A folder in memory: a thousand journals on one disk would wait for each other, as those of a thousand hosts do not.
const IN_MEMORY: &str = "/dev/shm";

/// How many hosts there are.
#[derive(Debug, Clone, Copy)]
pub struct FleetOptions {
    /// Hosts that stay well.
    pub hosts: usize,
    /// More hosts, which can be frozen.
    pub mortal: usize,
    /// Hosts in one PVE cluster, each of which sees all VMs of the cluster.
    pub cluster: usize,
}

/// Agents, their certificates, and the hosts behind them. All ends when it is dropped.
pub struct Fleet {
    /// The hosts: those that stay well, then the others.
    pub hosts: Vec<Host>,
    /// The certificates.
    pub pki: Pki,
    options: FleetOptions,
    mortal: Option<Runtime>,
    living: Option<Runtime>,
    frozen: Option<mpsc::Sender<()>>,
    folder: TempDir,
}

impl Fleet {
    /// Starts all agents, in runtimes of their own.
    ///
    /// # Panics
    /// When one does not start.
    pub async fn start(options: FleetOptions) -> Self {
        // Some files for each agent, and a connection at each end.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
        setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many open files as may be");
        let place = Path::new(IN_MEMORY);
        let folder = tempfile::Builder::new().prefix("pvelet-fleet-").tempdir_in(if place.is_dir() { place } else { Path::new("/tmp") });
        let folder = folder.expect("temporary folder");
        let runtime = |threads: usize, name: &str| {
            Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build().expect("a runtime")
        };
        let (living, mortal) = (runtime(2, "fleet"), runtime(1, "mortal"));
        let pki = Pki::new(folder.path());
        let started = (1..=options.hosts + options.mortal).map(|number| {
            let of = if number <= options.hosts { &living } else { &mortal };
            let (runtime, files) = (of.handle().clone(), host::Files::make(folder.path(), &pki, number, options.cluster));
            async move { runtime.spawn(Host::start(files)).await.expect("an agent starts") }
        });
        let hosts: Vec<Host> = stream::iter(started).buffered(AT_ONCE).collect().await;
        for cluster in hosts.chunks(options.cluster.max(1)).filter(|cluster| cluster.len() > 1) {
            for host in cluster {
                let others = cluster.iter().filter(|other| other.name != host.name).map(|other| other.pve.clone()).collect();
                living.spawn(host::share(host.pve.clone(), host.name.clone(), others));
            }
        }
        Self { hosts, pki, options, mortal: Some(mortal), living: Some(living), frozen: None, folder }
    }

    /// The hosts that stay well.
    pub fn living(&self) -> &[Host] {
        &self.hosts[..self.options.hosts]
    }

    /// A folder that goes with the fleet.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// From now on the mortal hosts do nothing any more. Their kernel still takes connections, as one does whose agent hangs; nothing on these is
    /// ever answered, and nobody is told so.
    ///
    /// # Panics
    /// When they are frozen already.
    pub fn freeze(&mut self) {
        assert!(self.frozen.is_none(), "frozen already");
        let (sender, receiver) = mpsc::channel();
        let (stands, still) = mpsc::channel();
        // The runtime has one thread, which also waits for its sockets and timers.
        self.mortal.as_ref().expect("it runs").spawn(async move {
            let _ = stands.send(());
            let _ = receiver.recv();
        });
        still.recv().expect("the mortal hosts stand still");
        self.frozen = Some(sender);
    }

    /// Lets them go on.
    pub fn thaw(&mut self) {
        self.frozen = None;
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.thaw();
        for runtime in [self.living.take(), self.mortal.take()].into_iter().flatten() {
            // Waits for nothing: it may be dropped on another runtime.
            runtime.shutdown_background();
        }
    }
}
