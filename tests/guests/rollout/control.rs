//! The control machine: this one, with a CA, pveletctl, the packages and Ansible.

use std::{
    env, fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Mutex,
};

use pvelet_controller::tls::{CredentialFiles, Credentials};
use pvelet_tests::{Client, program};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::host::{Host, PORT};

pub const TRUST_DOMAIN: &str = "pvelet.test";
/// What fails on these hosts in truth: the simulated PVE has a storage that is offline.
const FAILED_HERE: [&str; 1] = ["host.storages"];

/// The control machine's files and programs.
pub struct Control {
    pub runtime: Runtime,
    dir: TempDir,
    ansible: PathBuf,
    /// What the inventory names: an upgrade is another one there.
    package: Mutex<PathBuf>,
}

/// Somebody's credentials.
#[derive(Clone)]
pub struct Access(CredentialFiles);

impl Access {
    /// A client of a node's agent with a connection of its own. To be called on the runtime.
    pub fn client(&self, name: &str, port: u16) -> Client {
        Client::at(SocketAddr::from(([127, 0, 0, 1], port)), name, name, Credentials::load(self.0.clone()).unwrap())
    }
}

/// Whether everything is to be tried: what is slow and not of the heart of the main way too.
pub fn full() -> bool {
    env::var("PVELET_ROLLOUT").is_ok_and(|v| v == "full")
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Runs a program of this machine that must succeed, and returns what it printed.
pub fn must(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// The package of the agent that `make deb` has made: the newest file.
fn package() -> PathBuf {
    let folder = env::var_os("PVELET_DEBS").map_or_else(|| repository().join("target/debian"), PathBuf::from);
    let all = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}: run `PROFILE=dev make deb` first", folder.display()));
    let mut found: Vec<PathBuf> = all
        .map(|entry| entry.unwrap().path())
        .filter(|p| {
            p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pvelet-agent_")) && p.extension().is_some_and(|e| e == "deb")
        })
        .collect();
    found.sort_by_key(|p| p.metadata().and_then(|m| m.modified()).unwrap());
    found.pop().unwrap_or_else(|| panic!("no pvelet-agent_*.deb in {}: run `PROFILE=dev make deb` first", folder.display()))
}

impl Control {
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("pvelet-rollout").unwrap();
        let tree = dir.path().join("collections/ansible_collections/pvelet");
        fs::create_dir_all(&tree).unwrap();
        symlink(repository().join("ansible"), tree.join("pvelet")).unwrap();
        let programs = must(&mut Command::new(repository().join("tests/ansible/build.sh")));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let this = Self { runtime, ansible: programs.trim().into(), package: Mutex::new(package()), dir };
        this.pki(&["init", "--trust-domain", TRUST_DOMAIN]);
        this.pki(&["issue", "person", "tester", "--role", "operator"]);
        this
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The package that the inventory names.
    pub fn package(&self) -> PathBuf {
        self.package.lock().unwrap().clone()
    }

    /// The inventory names another package from now on.
    pub fn set_package(&self, package: PathBuf) {
        *self.package.lock().unwrap() = package;
    }

    /// `pveletctl pki` on the CA's folder.
    pub fn pki(&self, arguments: &[&str]) -> String {
        must(Command::new(program("pveletctl")).arg("pki").args(arguments).arg("--dir").arg(self.path("pki")))
    }

    /// `pveletctl` about one host, as the operator.
    pub fn ctl(&self, host: &Host, arguments: &[&str]) -> Output {
        let (_, port) = host.ports();
        let mut command = Command::new(program("pveletctl"));
        command.arg("--agent").arg(format!("{}=127.0.0.1:{port}", host.name)).arg("--ca").arg(self.path("pki/ca.crt"));
        command
            .arg("--cert")
            .arg(self.path("pki/issued/operator-tester.crt"))
            .arg("--key")
            .arg(self.path("pki/issued/operator-tester.key"));
        command.args(["--deadline", "60s", "-o", "json"]).args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// The same where it must succeed; what it printed.
    pub fn asked(&self, host: &Host, arguments: &[&str]) -> Value {
        let out = self.ctl(host, arguments);
        let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "pveletctl {arguments:?} on {}: {text}{error}\n{}", host.name, host.log());
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// What the agent says about itself; null where it does not answer.
    pub fn facts(&self, host: &Host) -> Value {
        let out = self.ctl(host, &["get", "host"]);
        serde_json::from_slice::<Value>(&out.stdout).map(|v| v["hosts"][0]["facts"].clone()).unwrap_or_default()
    }

    /// How clients come in, as the operator.
    pub fn access(&self) -> Access {
        Access(CredentialFiles {
            ca: self.path("pki/ca.crt"),
            cert: self.path("pki/issued/operator-tester.crt"),
            key: self.path("pki/issued/operator-tester.key"),
        })
    }

    /// The inventory: what an administrator would write, and what is different where PVE is simulated and reached on loopback.
    pub fn inventory(&self, hosts: &[Host], mode: &str) -> Value {
        let one = |host: &Host| {
            let (ssh, api) = host.ports();
            let name = host.name;
            let root = format!("/var/lib/pve-sim/{name}");
            let mut options = host.with(|guest| guest.ssh_options());
            // Ansible names the port itself; to sftp, to which it gives these too, `-p` is something else.
            let at = options.iter().position(|o| o == "-p").unwrap();
            options.drain(at..at + 2);
            let first = u32::from(host.n) * 1000 + 99_000;
            json!({
                "ansible_host": "127.0.0.1",
                "ansible_port": ssh,
                "ansible_ssh_common_args": options.join(" "),
                "pvelet_agent_address": format!("127.0.0.1:{api}"),
                "pvelet_agent_vmid_range": format!("{first}-{}", first + 999),
                "pvelet_agent_settings": {
                    // Emulated, the looks of every ten seconds are half of what a guest does.
                    "health": { "period": "60s" },
                    // Nor does a handshake in a guest take what it does on a host; the clients' own bound stays.
                    "tls": { "handshake_deadline": "60s" },
                    "pve": {
                        "etc_pve": format!("{root}/etc/pve"),
                        "run": format!("{root}/run"),
                        "task_log": format!("{root}/var/log/pve/tasks"),
                        "storage_root": root,
                        "ticket_command": ["/usr/lib/pve-sim/pve-sim", "ticket", "--dir", "/var/lib/pve-sim", "--node", name],
                    },
                },
            })
        };
        let rows: serde_json::Map<String, Value> = hosts.iter().map(|host| (host.name.to_owned(), one(host))).collect();
        json!({ "pvelet": { "hosts": rows, "vars": {
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "pvelet_agent_pki_dir": self.path("pki"),
            "pvelet_agent_pveletctl": program("pveletctl"),
            "pvelet_agent_trust_domain": TRUST_DOMAIN,
            "pvelet_agent_package": self.package(),
            "pvelet_agent_port": PORT,
            "pvelet_agent_mode": mode,
            "pvelet_agent_storages": ["local"],
            "pvelet_agent_bridges": ["vmbr0"],
            "pvelet_agent_firewall": true,
            "pvelet_agent_firewall_sources": ["10.0.2.0/24"],
            "pvelet_agent_gate_patience": 600,
            "pvelet_agent_gate_ignore": FAILED_HERE,
        } } })
    }

    /// `ansible-playbook` with this machine's collection.
    pub fn ansible(&self) -> Command {
        let mut command = Command::new(self.ansible.join("ansible-playbook"));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("ANSIBLE_COLLECTIONS_PATH", self.path("collections")).env("ANSIBLE_HOME", self.path("home"));
        command.env("ANSIBLE_PIPELINING", "true").env("ANSIBLE_TIMEOUT", "120").env("ANSIBLE_NOCOLOR", "1");
        // The guests' own connections are used; else each would be a handshake of seconds.
        command.env("ANSIBLE_SSH_ARGS", "").env("ANSIBLE_LOCALHOST_WARNING", "false").env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}
