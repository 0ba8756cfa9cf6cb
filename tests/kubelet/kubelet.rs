//! A real kubelet in namespaces of its own, as a unit.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pvelet_agent::{
    error::{Error, Trouble},
    host::{
        kubelet::{Answer, FileSystem, HostKubelet, Kubelet as Boundary, Memory, Tasks},
        runtime::Runtime,
        units::{UnitState, Units},
    },
};
use pvelet_tests::{containerd::Containerd, kubernetes::programs};
use tempfile::TempDir;
use tokio::sync::{broadcast, watch};

/// Its unit's name.
pub(crate) const UNIT: &str = "kubelet.service";

/// What a kubelet sets, in files of its own here: nothing of the machine is changed.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Runs in the new namespaces: a loopback, private copies, then the kubelet in the same process.
const BEGIN: &str = r#"set -e
ip link set lo up
mount --make-rprivate /
mount -t tmpfs tmpfs /var/lib
cd "$1"
find sys -type f | while read -r file; do mount --bind "$file" "/proc/$file"; done
mount --bind swaps /proc/swaps
shift
exec "$@"
"#;

/// A kubelet that runs, or has ended.
pub(crate) struct Kubelet {
    folder: TempDir,
    config: String,
    containerd: Arc<Containerd>,
    host: HostKubelet,
    child: Mutex<Child>,
    log: Mutex<Option<JoinHandle<()>>>,
    stirred: watch::Receiver<()>,
    changes: broadcast::Sender<String>,
}

impl Kubelet {
    /// Starts one on a containerd, with these lines at the end of its configuration, and these flags. With `failSwapOn: true` it sees a swap.
    pub(crate) fn start(containerd: Arc<Containerd>, lines: &str, flags: &[&str]) -> Self {
        let folder = TempDir::with_prefix("pvelet-kubelet.").unwrap();
        let at = |name: &str| folder.path().join(name);
        for sub in ["pods", "logs", "plugins", "root", "pki"] {
            fs::create_dir(at(sub)).unwrap();
        }
        for name in SYSCTLS {
            if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
                fs::create_dir_all(at("sys").join(name).parent().unwrap()).unwrap();
                fs::write(at("sys").join(name), value).unwrap();
            }
        }
        let swap = if lines.contains("failSwapOn: true") { "/dev/dm-7 partition 8388604 0 -2\n" } else { "" };
        fs::write(at("swaps"), format!("Filename Type Size Used Priority\n{swap}")).unwrap();
        let config = config(folder.path(), &containerd.place().socket(), lines);
        fs::write(at("config.yaml"), &config).unwrap();

        let (said, log) = io::pipe().unwrap();
        let ready = UnixDatagram::bind(at("notify.sock")).unwrap();
        let (stir, stirred) = watch::channel(());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "unshare", "--net", "--mount", "--uts", "bash", "-c", BEGIN, "begin"]).arg(folder.path());
        command.arg(programs().path("kubelet")).arg(format!("--config={}", at("config.yaml").display()));
        command.arg(format!("--root-dir={}", at("root").display())).arg(format!("--cert-dir={}", at("pki").display()));
        command.arg("--hostname-override=test").args(flags);
        command.env("TZ", "UTC").env("NOTIFY_SOCKET", at("notify.sock"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = Mutex::new(command.spawn().unwrap());
        let log = Mutex::new(Some(follow(said, File::create(at("kubelet.log")).unwrap(), stir.clone())));
        // It ends with what it is told, or never: nothing else is waited for by this thread.
        thread::spawn(move || while ready.recv(&mut [0; 64]).is_ok() && stir.send(()).is_ok() {});
        let host = HostKubelet::new("/proc".into(), Path::new("/sys"));
        Self { folder, config, containerd, host, child, log, stirred, changes: broadcast::channel(16).0 }
    }

    /// Is told when it has said something, to its log or to systemd.
    pub(crate) fn stirred(&self) -> watch::Receiver<()> {
        self.stirred.clone()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.folder().join("config.yaml")
    }

    /// How many lines its configuration has.
    pub(crate) fn config_lines(&self) -> usize {
        self.config.lines().count()
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.folder().join("kubelet.log")
    }

    /// The end of what it said.
    pub(crate) fn log(&self) -> String {
        let text = fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Its containerd, as the agent asks it.
    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.containerd.runtime())
    }

    fn pid(&self) -> Option<u32> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().unwrap().is_none().then(|| child.id())
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().expect("the kubelet has ended");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    /// Stops it with SIGSTOP.
    pub(crate) fn freeze(&self) {
        pvelet_tests::process::freeze(self.pid().expect("the kubelet has ended")).unwrap();
    }

    /// Lets it run on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits until it has ended by itself, and all that it said is in its log.
    pub(crate) fn wait_end(&self) {
        let status = self.child.lock().unwrap_or_else(PoisonError::into_inner).wait().unwrap();
        if let Some(log) = self.log.lock().unwrap_or_else(PoisonError::into_inner).take() {
            log.join().unwrap();
        }
        assert!(!status.success(), "{}", self.log());
    }
}

/// Writes what is said to a file until nobody can say anything any more, and tells of it.
fn follow(mut said: io::PipeReader, mut log: File, stir: watch::Sender<()>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok(n @ 1..) = said.read(&mut buffer) {
            log.write_all(&buffer[..n]).unwrap();
            stir.send_replace(());
        }
    })
}

/// What a kubelet needs so that it runs without a cluster, and on machines with little privilege.
fn config(folder: &Path, socket: &Path, lines: &str) -> String {
    let swap = if lines.contains("failSwapOn") { "" } else { "failSwapOn: false\n" };
    let eviction = if lines.contains("evictionHard") { "" } else { "evictionHard: {memory.available: 1Mi, nodefs.available: '1'}\n" };
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\ncgroupDriver: cgroupfs\n\
         cgroupsPerQOS: false\nenforceNodeAllocatable: []\nmakeIPTablesUtilChains: false\nlocalStorageCapacityIsolation: false\n\
         containerRuntimeEndpoint: unix://{socket}\nstaticPodPath: {folder}/pods\npodLogsDir: {folder}/logs\n\
         volumePluginDir: {folder}/plugins\nauthentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}}}\n\
         authorization: {{mode: AlwaysAllow}}\naddress: 127.0.0.1\nresolvConf: ''\n{swap}{eviction}{lines}",
        socket = socket.display(),
        folder = folder.display(),
    )
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Its mounts are in its namespace, and go with it.
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[tonic::async_trait]
impl Units for Kubelet {
    async fn state(&self, unit: &str) -> Result<UnitState, Error> {
        assert_eq!(unit, UNIT);
        let pid = self.pid();
        let [active, sub, result] = if pid.is_some() { ["active", "running", "success"] } else { ["failed", "failed", "exit-code"] };
        Ok(UnitState {
            load: "loaded".into(),
            active: active.into(),
            sub: sub.into(),
            enabled: "enabled".into(),
            result: result.into(),
            status: i32::from(pid.is_none()),
            pid: pid.unwrap_or(0),
            ..UnitState::default()
        })
    }

    async fn restart(&self, unit: &str, _: Duration) -> Result<(), Error> {
        Err(Error::Look { trouble: Trouble::Unsupported, message: format!("{unit} is not restarted here") })
    }

    async fn stop(&self, unit: &str, _: Duration) -> Result<(), Error> {
        Err(Error::Look { trouble: Trouble::Unsupported, message: format!("{unit} is not stopped here") })
    }

    fn changes(&self) -> broadcast::Receiver<String> {
        self.changes.subscribe()
    }
}

/// As the agent on the host sees it; `/healthz` is asked in the kubelet's network.
#[tonic::async_trait]
impl Boundary for Kubelet {
    async fn healthz(&self, address: SocketAddr, patience: Duration) -> Result<Answer, Error> {
        let Some(network) = self.pid().and_then(|pid| File::open(format!("/proc/{pid}/ns/net")).ok()) else {
            return self.host.healthz(address, patience).await;
        };
        let (host, (tell, told)) = (self.host.clone(), tokio::sync::oneshot::channel());
        // A thread of its own: it never comes back from that network.
        std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = tell.send(runtime.block_on(host.healthz(address, patience)));
        });
        told.await.unwrap()
    }

    async fn file(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        self.host.file(path).await
    }

    async fn files(&self, folder: &Path) -> Result<Option<Vec<PathBuf>>, Error> {
        self.host.files(folder).await
    }

    async fn command_line(&self, pid: u32) -> Result<Vec<String>, Error> {
        self.host.command_line(pid).await
    }

    async fn host_name(&self) -> Result<String, Error> {
        self.host.host_name().await
    }

    async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        self.host.addresses().await
    }

    async fn swaps(&self) -> Result<Vec<String>, Error> {
        self.host.swaps().await
    }

    async fn memory(&self) -> Result<Memory, Error> {
        self.host.memory().await
    }

    async fn tasks(&self) -> Result<Tasks, Error> {
        self.host.tasks().await
    }

    async fn file_system(&self, path: &Path) -> Result<Option<FileSystem>, Error> {
        self.host.file_system(path).await
    }
}
