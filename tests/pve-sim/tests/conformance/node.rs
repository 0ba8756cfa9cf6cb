//! The simulated node that the records are replayed on.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, Sender},
    thread,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use pve_sim::{
    Cluster, Options,
    api::{self, Handle, Settings},
    faults::Faults,
    guest,
    layout::NodeLayout,
    storage::{Storages, Volume},
    vmconf::{Drive, VmConfig},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::seed::Seed;

/// Waits are this much shorter than on the real host.
pub(crate) const FACTOR: f64 = 0.1;

/// One node with its daemon, in a folder of its own.
pub(crate) struct Node {
    pub(crate) layout: NodeLayout,
    pub(crate) ticket: String,
    runtime: Runtime,
    daemon: Handle,
    /// The cluster whose file system is at `/etc/pve`; none: a plain folder is.
    cluster: Option<Cluster>,
    /// What ends the holders of locks.
    holders: RefCell<BTreeMap<String, Sender<()>>>,
    _folder: Option<TempDir>,
}

impl Node {
    /// Starts a node, with the cluster file system or a plain folder at `/etc/pve`.
    pub(crate) fn start(with_cluster: bool) -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_pve-sim"));
        let (folder, cluster) = if with_cluster {
            (None, Some(Cluster::start(Options { program: Some(program.clone()), lock_factor: FACTOR, ..Options::default() }).unwrap()))
        } else {
            (Some(tempfile::Builder::new().prefix("pve").tempdir().unwrap()), None)
        };
        let dir = folder.as_ref().map(TempDir::path).or(cluster.as_ref().map(Cluster::dir)).unwrap();
        let layout = NodeLayout::new(dir, "pve1");
        for path in [
            "/etc/pve/nodes/pve1/qemu-server",
            "/etc/pve/priv/lock",
            "/etc/network",
            "/var/lib/vz/import",
            "/var/lib/vz/snippets",
            "/run/qemu-server",
        ] {
            fs::create_dir_all(layout.host_path(path)).unwrap();
        }
        fs::create_dir_all(layout.tasks()).unwrap();
        let ticket = pve_sim::ticket::assemble(&layout, "root@pam").unwrap();
        let settings = Settings {
            program,
            workers: 3,
            refusal_delay: Duration::from_millis(20),
            drop_delay: Duration::from_millis(20),
            lock_factor: FACTOR,
        };
        let runtime = Runtime::new().unwrap();
        let daemon = runtime.block_on(api::serve_with(layout.clone(), "127.0.0.1:0".parse().unwrap(), settings)).unwrap();
        Self { layout, ticket, runtime, daemon, cluster, holders: RefCell::default(), _folder: folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.daemon.address()
    }

    pub(crate) fn prepare(&self, seed: &Seed) {
        if let Some(faults) = &seed.faults {
            faults.store(&self.layout.faults()).unwrap();
        }
        for request in &seed.control {
            self.cluster.as_ref().expect("a seed with control needs the cluster").control().send(request).unwrap();
        }
        seed.purge.iter().for_each(|vmid| self.purge(*vmid));
        for (path, text) in &seed.files {
            match text {
                Some(text) => {
                    self.write(path, text);
                    if path.contains("/qemu-server/") {
                        self.make_disks(text);
                    }
                }
                None => {
                    let _ = fs::remove_file(self.layout.host_path(path));
                }
            }
        }
        for (vmid, values) in &seed.set {
            let Ok(mut config) = pve_sim::vmconf::load(&self.layout, *vmid) else { continue };
            for (key, value) in values {
                match value {
                    Some(value) => config.values.insert(key.clone(), value.clone()),
                    None => config.values.remove(key),
                };
            }
            pve_sim::vmconf::store(&self.layout, *vmid, &config).unwrap();
        }
        for (volid, bytes) in &seed.images {
            self.make_image(volid, *bytes);
        }
        for volid in &seed.no_images {
            let path = self.storages().path(&Volume::parse(volid).unwrap()).unwrap();
            let _ = fs::remove_file(path);
        }
        seed.running.iter().for_each(|vmid| self.run(*vmid));
        seed.stopped.iter().for_each(|vmid| self.stop(*vmid));
        for (vmid, behaviour) in &seed.guests {
            behaviour.store(&self.layout, *vmid).unwrap();
        }
        for path in &seed.released {
            self.holders.borrow_mut().remove(path);
        }
        for (path, seconds) in &seed.held {
            self.hold(path, *seconds);
        }
    }

    fn purge(&self, vmid: u32) {
        self.stop(vmid);
        let _ = fs::remove_file(self.layout.vm_config(vmid));
        for folder in ["/var/lib/vz", "/srv/raw", "/srv/small", "/srv/btr", "/srv/isoonly"] {
            let _ = fs::remove_dir_all(self.layout.host_path(folder).join(format!("images/{vmid}")));
        }
    }

    fn storages(&self) -> Storages {
        Storages::load(&self.layout, FACTOR).unwrap()
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.layout.host_path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes the images that a configuration names and that are missing.
    fn make_disks(&self, text: &str) {
        let config = VmConfig::parse(text);
        for (_, drive) in config.drives() {
            if drive.has_volume() {
                self.make_image(&drive.file, if drive.is_cloudinit() { 4 << 20 } else { drive.size() });
            }
        }
        let unused = config.values.iter().filter(|(key, _)| key.starts_with("unused")).map(|(_, value)| Drive::parse(value).file);
        unused.for_each(|volid| self.make_image(&volid, 1 << 30));
        for (name, snapshot) in &config.snapshots {
            for value in snapshot.values.values() {
                let drive = Drive::parse(value);
                if drive.file.ends_with(".qcow2")
                    && let Ok(volume) = Volume::parse(&drive.file)
                    && let Ok(path) = self.storages().path(&volume)
                    && path.exists()
                {
                    let listed = Command::new("qemu-img").args(["snapshot", "-l"]).arg(&path).output().unwrap();
                    if !String::from_utf8_lossy(&listed.stdout).split_whitespace().any(|word| word == name) {
                        qemu_img(&["snapshot", "-c", name], &path, None);
                    }
                }
            }
        }
    }

    fn make_image(&self, volid: &str, bytes: u64) {
        let Ok(volume) = Volume::parse(volid) else { return };
        let Ok(path) = self.storages().path(&volume) else { return };
        if path.exists() {
            return;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let size = bytes.to_string();
        match (&volume.base, volume.format()) {
            (Some((owner, base)), _) => {
                self.make_image(&format!("{}:{owner}/{base}", volume.storage), bytes);
                let backing = format!("../{owner}/{base}");
                let format = base.rsplit('.').next().unwrap();
                qemu_img(&["create", "-q", "-f", "qcow2", "-F", format, "-b", &backing], &path, None);
            }
            (None, "raw") => File::create(&path).unwrap().set_len(bytes).unwrap(),
            (None, format @ ("qcow2" | "vmdk")) => {
                qemu_img(&["create", "-q", "-f", format], &path, Some(&size));
                if volume.is_base() {
                    fill(&path, format);
                }
            }
            _ => fs::write(&path, vec![b'x'; usize::try_from(bytes).unwrap()]).unwrap(),
        }
        if volume.is_base() {
            let mut mode = fs::metadata(&path).unwrap().permissions();
            mode.set_readonly(true);
            fs::set_permissions(&path, mode).unwrap();
        }
    }

    pub(crate) fn run(&self, vmid: u32) {
        if guest::running(&self.layout, vmid).is_none() {
            let text = fs::read_to_string(self.layout.vm_config(vmid)).unwrap_or_default();
            let config = VmConfig::parse(&text);
            let options = guest::Options {
                name: config.get("name").unwrap_or_default().to_owned(),
                agent: config.get("agent").is_some_and(|agent| agent.starts_with('1')),
                cores: config.get("cores").and_then(|n| n.parse().ok()).unwrap_or(1),
                memory_mib: config.get("memory").and_then(|n| n.parse().ok()).unwrap_or(512),
                ..guest::Options::default()
            };
            guest::spawn_with(Path::new(env!("CARGO_BIN_EXE_pve-sim")), &self.layout, vmid, &options).unwrap();
        }
    }

    pub(crate) fn stop(&self, vmid: u32) {
        if let Some(pid) = guest::running(&self.layout, vmid) {
            kill(pid);
            let _ = fs::remove_file(guest::pid_file(&self.layout, vmid));
        }
    }

    /// Holds a lock as another process would.
    fn hold(&self, name: &str, seconds: f64) {
        let path = self.layout.host_path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::options().create(true).append(true).open(path).unwrap();
        let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
        let (release, released) = mpsc::channel();
        self.holders.borrow_mut().insert(name.to_owned(), release);
        thread::spawn(move || {
            let _ = released.recv_timeout(Duration::from_secs_f64(seconds * FACTOR));
            drop(held);
        });
    }

    /// Brings a file of the node to its recorded state.
    pub(crate) fn follow(&self, path: &str, text: &str) {
        if !text.starts_with("<image size=") && text != "<dir>" {
            if self.read(path).as_deref() != Some(text) {
                self.write(path, text);
            }
            return;
        }
        let target = self.layout.host_path(path);
        let bytes = text.strip_prefix("<image size=").and_then(|t| t.strip_suffix('>')).and_then(|n| n.parse::<u64>().ok());
        let Some(bytes) = bytes.filter(|_| !target.exists()) else { return };
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        match target.extension().and_then(|end| end.to_str()) {
            Some("qcow2") => qemu_img(&["create", "-q", "-f", "qcow2"], &target, Some(&bytes.to_string())),
            Some("raw") => File::create(&target).unwrap().set_len(bytes).unwrap(),
            _ => {}
        }
    }

    pub(crate) fn forget(&self, path: &str) {
        let target = self.layout.host_path(path);
        let _ = if path.ends_with('/') { fs::remove_dir(&target) } else { fs::remove_file(&target) };
    }

    /// Whether a path of a real host is there.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.layout.host_path(path).symlink_metadata().is_ok()
    }

    pub(crate) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.layout.host_path(path)).ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.runtime.block_on(self.daemon.stop());
        // Guests are processes of their own and outlive the daemon.
        let entries = fs::read_dir(self.layout.run_qemu()).into_iter().flatten().flatten();
        for name in entries.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            if let Some(vmid) = name.strip_suffix(".pid").and_then(|id| id.parse().ok()) {
                self.stop(vmid);
            }
        }
        let _ = Faults::default().store(&self.layout.faults());
    }
}

fn kill(pid: u32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), nix::sys::signal::Signal::SIGKILL);
}

fn qemu_img(args: &[&str], path: &Path, size: Option<&str>) {
    let done = Command::new("qemu-img").args(args).arg(path).args(size).output().unwrap();
    assert!(done.status.success(), "qemu-img {args:?} {}: {}", path.display(), String::from_utf8_lossy(&done.stderr));
}

/// Puts a little data into an image, so that a copy of it has something to write.
fn fill(path: &Path, format: &str) {
    let plain = path.with_extension("fill");
    let size = pve_size(path, format);
    fs::write(&plain, vec![0x5a; 6 << 20]).unwrap();
    File::options().write(true).open(&plain).unwrap().set_len(size).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", format, plain.to_str().unwrap()], path, None);
    fs::remove_file(plain).unwrap();
}

fn pve_size(path: &Path, format: &str) -> u64 {
    let told = Command::new("qemu-img").args(["info", "--output=json", "-f", format]).arg(path).output().unwrap();
    let told: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&told.stdout).unwrap();
    told["virtual-size"].as_u64().unwrap()
}
