//! The command line against three hosts, one of which is dead.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use pve_sim::control::{Request, Seed};
use pvelet_proto::identity::Role;
use pvelet_tests::{Stack, StackOptions, program};
use serde_json::Value;

struct Terminal {
    config: PathBuf,
}

impl Terminal {
    fn new(stack: &Stack) -> Self {
        let (cert, key) = stack.pki.role(Role::Operator, "ann");
        let mut text = format!("ca = {:?}\ncert = {cert:?}\nkey = {key:?}\ntenant = \"default\"\n", stack.pki.dir.ca_cert_path());
        for agent in stack.agents.values() {
            text += &format!("\n[[host]]\nname = \"{}\"\ncluster = \"{}\"\naddress = \"{}\"\n", agent.node, agent.cluster, agent.address);
        }
        let config = stack.dir.path().join("pveletctl.toml");
        fs::write(&config, text).unwrap();
        Self { config }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(program("pveletctl")).arg("--config").arg(&self.config).args(args).output().unwrap()
    }

    /// Exit status and output in JSON.
    fn json(&self, args: &[&str]) -> (i32, Value) {
        let output = self.run(&[args, &["--output", "json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}\n{}", err(&output)));
        (output.status.code().unwrap(), value)
    }

    /// As [`Self::json`] of what must succeed.
    fn good(&self, args: &[&str]) -> Value {
        let (status, value) = self.json(args);
        assert_eq!(status, 0, "{args:?}: {value:#}");
        value
    }
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|v| v[key].as_str().unwrap_or_default().to_owned()).collect()
}

fn stack() -> Stack {
    let nodes = vec!["pve1", "pve2", "pve3"];
    Stack::seeded(StackOptions { nodes: nodes.clone(), ..StackOptions::default() }, |control| {
        for (vmid, node) in (9001..).zip(nodes) {
            let seed = Seed { tags: "debian-13".into(), size_mib: 64, fill_mib: 1, ..Seed::new(node, vmid, "debian-13") };
            control.call(&Request::SeedTemplate(seed)).unwrap();
        }
    })
}

#[test]
fn one_dead_host_hides_none_of_the_others() {
    let mut stack = stack();
    let terminal = Terminal::new(&stack);
    let all = terminal.good(&["hosts"]);
    assert_eq!(names(&all["hosts"], "name"), ["pve1", "pve2", "pve3"]);
    stack.agent("pve2").kill();

    let (status, hosts) = terminal.json(&["hosts"]);
    assert_eq!(status, 3, "some failed: {hosts:#}");
    let hosts = hosts["hosts"].as_array().unwrap().clone();
    assert_eq!(hosts.len(), 3);
    for host in &hosts {
        let dead = host["name"] == "pve2";
        assert_eq!(host["facts"].is_null(), dead, "{host:#}");
        assert_eq!(host["error"].is_null(), !dead, "{host:#}");
        if !dead {
            assert_eq!((host["facts"]["node"].as_str(), host["facts"]["mode"].as_str()), (host["name"].as_str(), Some("manage")));
        }
    }
    let table = terminal.run(&["hosts"]);
    let shown = String::from_utf8_lossy(&table.stdout).into_owned() + &err(&table);
    for node in ["pve1", "pve2", "pve3"] {
        assert!(shown.contains(node), "{shown}");
    }
    assert_eq!(table.status.code(), Some(3));

    let (status, vms) = terminal.json(&["vms"]);
    assert_eq!(status, 3);
    assert_eq!(names(&vms["vms"], "node"), ["pve1", "pve3"]);
    assert_eq!(names(&vms["errors"], "host"), ["pve2"]);
    // What was asked of the dead host alone has nobody else to hide behind.
    let (status, _) = terminal.json(&["--host", "pve2", "vms"]);
    assert_eq!(status, 5);
    let clone = terminal.run(&["--host", "pve2", "clone", "--template", "9002", "--name", "x"]);
    assert_eq!(clone.status.code(), Some(5), "{}", err(&clone));
    // A VM that is not found may be on it, which is another thing than not existing.
    let start = terminal.run(&["start", "nosuch"]);
    assert_eq!(start.status.code(), Some(5), "{}", err(&start));
    stack.agent("pve2").start();
    let start = terminal.run(&["start", "nosuch"]);
    assert_eq!(start.status.code(), Some(4), "{}", err(&start));
}

#[test]
fn a_vm_from_the_cradle_to_the_grave_beside_a_dead_host() {
    let mut stack = stack();
    let before = stack.sim.control().leftovers().unwrap();
    let terminal = Terminal::new(&stack);
    stack.agent("pve2").kill();
    let args = ["--host", "pve1", "clone", "--tag", "debian-13", "--name", "web-1", "--cores", "2", "--memory", "1G", "--start"];
    let made = terminal.good(&args);
    let operations = made["operations"].as_array().unwrap();
    assert_eq!(names(&made["operations"], "kind"), ["clone_vm", "start_vm"]);
    assert!(operations.iter().all(|op| op["state"] == "succeeded" && op["host"] == "pve1"), "{made:#}");
    let vmid = operations[0]["vmid"].as_u64().unwrap();

    let (status, vms) = terminal.json(&["vms"]);
    assert_eq!(status, 3);
    let vm = vms["vms"].as_array().unwrap().iter().find(|vm| vm["name"] == "web-1").unwrap().clone();
    assert_eq!(
        (vm["vmid"].as_u64(), vm["state"].as_str(), vm["cores"].as_u64(), vm["memory_mib"].as_u64(), vm["mark"]["tenant"].as_str()),
        (Some(vmid), Some("running"), Some(2), Some(1024), Some("default"))
    );
    let yaml = terminal.run(&["--host", "pve1", "get", "vm", "web-1", "--output", "yaml"]);
    assert!(yaml.status.success(), "{}", err(&yaml));
    let parsed: Value = serde_norway::from_slice(&yaml.stdout).unwrap();
    assert_eq!(parsed["vms"][0]["uuid"], vm["uuid"]);

    let ops = terminal.good(&["--host", "pve1", "ops"]);
    assert_eq!(names(&ops["operations"], "kind"), ["start_vm", "clone_vm"], "newest first");
    assert!(ops["operations"][0]["caller"].as_str().unwrap().ends_with("/role/operator/ann"));
    // By name, on whichever host it is, although one of them cannot be asked.
    let stopped = terminal.good(&["stop", "web-1"]);
    assert_eq!(stopped["operations"][0]["state"], "succeeded");
    // Nobody is there to be asked, so it must be told to be sure.
    let unsure = terminal.run(&["delete", "web-1"]);
    assert_eq!(unsure.status.code(), Some(64), "{}", err(&unsure));
    assert!(err(&unsure).contains("--yes"), "{}", err(&unsure));
    terminal.good(&["delete", "web-1", "--yes"]);
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
    let gone = terminal.run(&["--host", "pve1", "get", "vm", &vmid.to_string()]);
    assert_eq!(gone.status.code(), Some(4), "{}", err(&gone));
}

#[test]
fn exit_statuses_tell_what_kind_of_failure_it_was() {
    let stack = stack();
    let terminal = Terminal::new(&stack);
    let host = ["--host", "pve1"];
    for (what, args, status, word) in [
        ("no such template", vec!["clone", "--template", "9999", "--name", "x"], 4, "9999"),
        ("a name that is none", vec!["clone", "--template", "9001", "--name", "a_b"], 64, "a_b"),
        ("no such option", vec!["hosts", "--colour"], 64, "--colour"),
        ("a template cannot be started", vec!["start", "9001"], 1, "template"),
        ("no such operation", vec!["get", "op", "00000000-0000-4000-8000-000000000000"], 4, "00000000-0000-4000-8000-000000000000"),
    ] {
        let output = terminal.run(&[&host[..], &args[..]].concat());
        assert_eq!(output.status.code(), Some(status), "{what}: {}", err(&output));
        assert!(err(&output).contains(word), "{what}: '{word}' is missing in: {}", err(&output));
    }
    let unknown = terminal.run(&["--host", "pve9", "vms"]);
    assert!(matches!(unknown.status.code(), Some(4 | 64)) && err(&unknown).contains("pve9"), "{}", err(&unknown));
    let clone = terminal.run(&["clone", "--template", "9001", "--name", "x"]);
    assert_eq!(clone.status.code(), Some(64), "which host? {}", err(&clone));
    // The same request id again is the same request.
    let args = ["--host", "pve1", "clone", "--template", "9001", "--name", "once", "--request-id", "r1"];
    let (first, again) = (terminal.good(&args), terminal.good(&args));
    assert_eq!(first["operations"][0]["name"], again["operations"][0]["name"]);
    let other = terminal.run(&["--host", "pve1", "clone", "--template", "9001", "--name", "twice", "--request-id", "r1"]);
    assert_eq!(other.status.code(), Some(1), "{}", err(&other));
    assert!(err(&other).contains("r1"), "{}", err(&other));
    // A VM that cannot be told from another by its name is not guessed.
    terminal.good(&["--host", "pve2", "clone", "--template", "9002", "--name", "once"]);
    let twice = terminal.run(&["start", "once"]);
    assert_eq!(twice.status.code(), Some(64), "{}", err(&twice));
    assert!(err(&twice).contains("ambiguous"), "{}", err(&twice));
}

#[test]
fn certificates_by_the_command_line_open_the_door() {
    let stack = stack();
    let dir = stack.dir.path().join("pki").display().to_string();
    let pki = |args: &[&str]| {
        let output = Command::new(program("pveletctl")).args(["pki"]).args(args).args(["--dir", &dir]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", err(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let out = stack.dir.path().join("bob").display().to_string();
    let issued = pki(&["issue", "person", "bob", "--role", "reader", "--out", &out]);
    let file = |end: &str| issued.lines().map(str::trim).find(|l| l.ends_with(end)).unwrap_or_else(|| panic!("{issued}")).to_owned();
    let (cert, key) = (file(".crt"), file(".key"));
    let ca = stack.pki.dir.ca_cert_path().display().to_string();
    let address = stack.agents["pve1"].address.to_string();
    let run = |args: &[&str]| {
        let base = ["--agent", &address, "--ca", &ca, "--cert", &cert, "--key", &key];
        Command::new(program("pveletctl")).args(base).args(args).env("PVELETCTL_CONFIG", "/nonexistent").output().unwrap()
    };
    let hosts = run(&["hosts"]);
    assert!(hosts.status.success(), "{}", err(&hosts));
    let refused = run(&["clone", "--template", "9001", "--name", "x"]);
    assert_eq!(refused.status.code(), Some(1), "{}", err(&refused));
    assert!(err(&refused).contains("reader") && err(&refused).contains("operator"), "{}", err(&refused));
}
