//! Hosts: guests with ifupdown2, a simulated PVE and the agent as a service.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use pvelet_proto::identity::Role;
use pvelet_tests::{Client, Guest, GuestOptions, Pki, Segment, guest::Shell, pki::TRUST_DOMAIN, program};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::snapshot::{self, Snapshot};

/// For anything in a guest: several are emulated on two busy cores.
pub const SOON: Duration = Duration::from_secs(300);
const SETUP: &str = include_str!("files/setup.sh");
pub const INSTALL: &str = include_str!("files/install.sh");
/// The peer's port from which host `n` is reached is this and `n`.
const PROXY: u16 = 7000;
/// The peer.
pub const PEER: u8 = 3;

/// What all hosts share.
pub struct Lab {
    pub management: Segment,
    pub trunk: Segment,
    pub pki: Pki,
    pub runtime: Runtime,
    package: PathBuf,
    dir: TempDir,
}

impl Lab {
    pub fn new(management: Segment, trunk: Segment) -> Self {
        let dir = TempDir::with_prefix("pvelet-network").unwrap();
        let pki = Pki::new(dir.path());
        let package = pack(dir.path());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { management, trunk, pki, runtime, package, dir }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What is installed on host `n`, from `/`.
    pub fn archives(&self, n: u8) -> [PathBuf; 2] {
        let root = self.dir.path().join(name(n));
        let (tls, own) = (root.join("etc/pvelet/tls"), self.dir.path().join(format!("{}.tar", name(n))));
        if !tls.exists() {
            fs::create_dir_all(&tls).unwrap();
            let (cert, key) = self.pki.host(&name(n), &name(n));
            copy(&cert, &tls.join("agent.crt"));
            copy(&key, &tls.join("agent.key"));
            copy(&self.pki.dir.ca_cert_path(), &tls.join("ca.crt"));
            copy(&self.pki.dir.crl_path(), &tls.join("ca.crl"));
            fs::write(root.join("etc/pvelet/agent.toml.in"), config(n)).unwrap();
            tar(&root, &own);
        }
        [self.package.clone(), own]
    }

    /// The agent of host `n`, that answers at this address.
    pub fn api(&self, n: u8, address: SocketAddr) -> Api {
        let pair = self.pki.role(Role::Operator, &format!("tester-{n}"));
        Api { node: name(n), address, ca: self.pki.dir.ca_cert_path(), pair, tenant: "default".into() }
    }

    fn options(&self, n: u8) -> GuestOptions {
        let forwards = if n == PEER { (1..=PEER).map(|n| PROXY + u16::from(n)).collect() } else { vec![] };
        GuestOptions {
            name: name(n),
            nics: vec![self.management.clone(), self.trunk.clone(), self.trunk.clone()],
            forwards,
            setup: SETUP.into(),
            ..GuestOptions::default()
        }
    }
}

pub fn name(n: u8) -> String {
    format!("pve{n}")
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|e| panic!("{} -> {}: {e}", from.display(), to.display()));
}

fn must(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn tar(root: &Path, file: &Path) {
    must(Command::new("tar").arg("--owner=0").arg("--group=0").arg("-C").arg(root).arg("-cf").arg(file).arg("."));
}

/// What is installed on every host, as an archive from `/`.
fn pack(dir: &Path) -> PathBuf {
    let root = dir.join("package");
    let (programs, units) = (root.join("usr/lib/pvelet"), root.join("etc/systemd/system"));
    fs::create_dir_all(&programs).unwrap();
    fs::create_dir_all(&units).unwrap();
    for name in ["pvelet-agent", "pve-sim"] {
        // Most of it is for debuggers, and each byte goes through ssh.
        must(Command::new("strip").arg("-o").arg(programs.join(name)).arg(program(name)));
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for entry in fs::read_dir(repository.join("systemd")).unwrap() {
        let path = entry.unwrap().path();
        copy(&path, &units.join(path.file_name().unwrap()));
    }
    let file = dir.join("package.tar");
    tar(&root, &file);
    file
}

fn config(n: u8) -> String {
    let name = name(n);
    let pve = format!("/var/lib/pve-sim/{name}");
    format!(
        "mode = \"manage\"\nlisten = \"192.0.2.{n}:7443\"\n\
         [tls]\ncrl = \"/etc/pvelet/tls/ca.crl\"\ntrust_domain = \"{TRUST_DOMAIN}\"\n\
         [pve]\nnode = \"{name}\"\napi_address = \"@API@\"\n\
         ticket_command = [\"/usr/lib/pvelet/pve-sim\", \"ticket\", \"--dir\", \"/var/lib/pve-sim\", \"--node\", \"{name}\"]\n\
         etc_pve = \"{pve}/etc/pve\"\nrun = \"{pve}/run\"\ntask_log = \"{pve}/var/log/pve/tasks\"\nstorage_root = \"{pve}\"\n\
         [vm]\nvmid_range = \"100000-100999\"\n[log]\nformat = \"text\"\n"
    )
}

/// How the agents are reached: through the peer, over the hosts' management interfaces.
#[derive(Debug, Clone)]
pub struct WayIn {
    pub shell: Shell,
    ports: Vec<u16>,
}

impl WayIn {
    /// On 127.0.0.1, host by host.
    pub fn ports(&self) -> Vec<u16> {
        self.ports.clone()
    }
}

/// A host.
pub struct Host {
    pub n: u8,
    pub guest: Guest,
    api: Option<Api>,
}

/// Whom to ask about one host's agent, and as whom.
#[derive(Clone)]
pub struct Api {
    node: String,
    address: SocketAddr,
    ca: PathBuf,
    pair: (PathBuf, PathBuf),
    pub tenant: String,
}

impl Api {
    /// A client with a connection of its own.
    pub fn fresh(&self) -> Client {
        use pvelet_controller::tls::{CredentialFiles, Credentials};
        let files = CredentialFiles { ca: self.ca.clone(), cert: self.pair.0.clone(), key: self.pair.1.clone() };
        let mut client = Client::at(self.address, &self.node, &self.node, Credentials::load(files).unwrap());
        client.tenant.clone_from(&self.tenant);
        client
    }
}

impl Host {
    /// Boots it; nothing of pvelet is there yet.
    pub fn boot(lab: &Lab, n: u8) -> Self {
        Self { n, guest: Guest::boot(lab.options(n)).unwrap(), api: None }
    }

    /// Installs the agent and starts it; it is reached through the peer.
    pub fn install(&mut self, lab: &Lab, way_in: &WayIn) {
        for file in lab.archives(self.n) {
            self.guest.copy_in(&file, "/root/package.tar").unwrap();
            self.guest.sh("tar -C / -xf /root/package.tar; rm /root/package.tar");
        }
        self.guest.sh(INSTALL);
        let port = way_in.ports[usize::from(self.n) - 1];
        self.api = Some(lab.api(self.n, ([127, 0, 0, 1], port).into()));
    }

    /// Whom to ask.
    pub fn api(&self) -> &Api {
        self.api.as_ref().expect("the agent is installed")
    }

    /// The same as somebody else.
    pub fn api_as(&self, pair: (PathBuf, PathBuf), tenant: &str) -> Api {
        Api { pair, tenant: tenant.into(), ..self.api().clone() }
    }

    /// Its network now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::parse(&self.guest.sh(snapshot::SCRIPT))
    }

    /// Starts the agent where it does not run, and waits until it serves. systemd tries again where a first start fails.
    pub fn start_agent(&self) {
        self.guest.run("systemctl start pvelet-agent.service");
        self.wait_until("systemctl --quiet is-active pvelet-agent.service");
    }

    /// Tells the agent's next start what is to happen.
    pub fn arm(&self, process: &str, variable: &str, value: &str) {
        self.guest.sh(&format!("echo 'export {variable}={value}' >>/etc/pvelet-fault/{process}; sync -f /etc"));
    }

    /// Starts the agent anew, and returns the pid of what runs then.
    pub fn restart_agent(&self) -> u32 {
        let pid = self.guest.sh("systemctl restart pvelet-agent.service; systemctl show --value --property=MainPID pvelet-agent.service");
        pid.trim().parse().unwrap()
    }

    /// Waits until a process has ended.
    pub fn wait_gone(&self, pid: u32) {
        self.guest.sh(&format!("timeout {} tail --pid={pid} --sleep-interval=0.1 --follow /dev/null", SOON.as_secs()));
    }

    /// Ends the agent with SIGKILL for good.
    pub fn kill_agent(&self) {
        self.guest.sh("systemctl kill --signal=KILL pvelet-agent.service; systemctl stop pvelet-agent.service");
    }

    /// Waits in the guest until a shell condition holds.
    pub fn wait_until(&self, condition: &str) {
        let out = self.guest.run(&format!("timeout {} sh -c 'until {condition}; do sleep 0.2; done'", SOON.as_secs()));
        assert_eq!(out.status, 0, "{} never came to: {condition}\n{}", name(self.n), self.log());
    }

    /// The end of the agent's log.
    pub fn log(&self) -> String {
        self.guest.run("journalctl --no-pager --lines=40 --output=short-monotonic -u 'pvelet*' | cut -c1-220").stdout
    }
}

/// The peer: it has every VLAN of the tests on its trunk, and is the way to the others' agents.
pub struct Peer {
    pub host: Host,
}

/// Boots the peer.
pub fn boot_peer(lab: &Lab) -> Peer {
    let host = Host::boot(lab, PEER);
    host.guest.sh(PEER_NETWORK);
    Peer { host }
}

/// Not by ifupdown2: it stands beside whatever the agent declares on this host.
const PEER_NETWORK: &str = "
    vlan() { ip link add link $1 name $2 type vlan protocol $3 id $4; ip link set $2 up mtu ${6:-1500}; ip address add $5 dev $2; }
    vlan bond0 p100 802.1Q 100 198.51.100.3/24 9000; ip address add 2001:db8:100::3/64 dev p100 nodad
    vlan bond0 p60 802.1Q 60 10.60.0.3/24
    vlan bond0 p200 802.1Q 200 203.0.113.3/24 9000
    vlan bond0 outer 802.1ad 300 10.30.0.3/24; vlan outer inner 802.1Q 40 10.40.0.3/24";

impl Peer {
    /// The way to all agents.
    pub fn way_in(&self) -> WayIn {
        let ports = (1..=PEER).map(|n| self.host.guest.port(PROXY + u16::from(n))).collect();
        WayIn { shell: self.host.guest.shell(), ports }
    }
}
