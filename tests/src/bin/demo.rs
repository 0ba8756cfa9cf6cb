//! The main path on three simulated PVE hosts: certificates, agents, a controller, three machines, each with a data disk; one disk is grown;
//! one machine is stopped by hand and comes back; all is taken down again and nothing is left. One host is a worker whose containerd starts no pod:
//! that is found and mended. What it prints are the outputs of the real programs.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it is a program for people, and runs others")]

use std::{
    error::Error,
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use pve_sim::control::{Request, Seed};
use pvelet_proto::identity::Role;
use pvelet_tests::{
    Stack, StackOptions,
    containerd::{Place, Worker},
    program,
    status::{self, count_true},
};
use tokio::runtime::Runtime;

const NODES: [&str; 3] = ["pve1", "pve2", "pve3"];
/// The one that is a worker of Kubernetes too.
const WORKER: &str = "pve2";
/// For what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);
const MANIFEST: &str = include_str!("../../../docs/examples/web-1.yaml");

fn main() -> ExitCode {
    match demo() {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("demo: failed: {e}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<String, Box<dyn Error>> {
    let begun = Instant::now();
    let step = |text: &str| println!("\n[{:5.1} s] {text}", begun.elapsed().as_secs_f64());

    step("Three simulated PVE hosts in one cluster, each with its own agent (mTLS, manage mode)");
    let runtime = Runtime::new()?;
    let mut stack = Stack::start(StackOptions { nodes: NODES.to_vec(), start_agents: false, ..StackOptions::default() });
    let worker = broken_worker(&runtime);
    for agent in stack.agents.values_mut() {
        match &worker {
            Some(worker) if agent.node == WORKER => worker.host(agent, "on-request"),
            _ => agent.start(),
        }
    }
    let sim = stack.sim.control();
    for (vmid, node) in (9001..).zip(NODES) {
        let seed = Seed { tags: "debian-13".into(), size_mib: 256, fill_mib: 16, ..Seed::new(node, vmid, "debian-13") };
        sim.call(&Request::SeedTemplate(seed))?;
    }
    let before = sim.leftovers()?;
    let config = client_config(&stack)?;
    pveletctl(&config, &["hosts"])?;
    match worker {
        Some(worker) => mend(&worker, &config, step)?,
        None => step("The broken containerd is left out: a real one needs root"),
    }

    step(
        "A controller, and three PveMachine manifests dropped into its folder (docs/examples/web-1.yaml with a data disk, and two like it)",
    );
    let mut controller = stack.controller();
    controller.start();
    for i in 1..=3 {
        controller.write(&format!("web-{i}.yaml"), &manifest(i, "256Mi"));
    }
    let folder = controller.manifests.clone();
    let records =
        status::wait_for(&folder, LIMIT, |r| count_true(r, "pvemachine.", "Ready") == 3 && count_true(r, "pvehost.", "Ready") == 3)?;
    let (hosts, machines) = (count_true(&records, "pvehost.", "Ready"), count_true(&records, "pvemachine.", "Ready"));
    for (name, record) in records.iter().filter(|(n, _)| n.starts_with("pvemachine.")) {
        let s = &record["status"];
        println!(
            "  {name}: Ready, VMID {} on {}, UUID {}",
            s["vmid"],
            s["node"].as_str().unwrap_or("?"),
            s["uuid"].as_str().unwrap_or("?")
        );
    }
    pveletctl(&config, &["vms"])?;

    step("Each has a data disk, attached before its first start; that of web-3 is grown while the VM runs");
    controller.write("web-3.yaml", &manifest(3, "512Mi"));
    let grown = |r: &status::Records| {
        let web3 = &r["pvemachine.web-3"];
        status::condition(web3, "Ready") == "True" && web3["status"]["disks"][0]["size"] == "512Mi"
    };
    status::wait_for(&folder, LIMIT, grown)?;
    pveletctl(&config, &["volumes", "--storage", "local"])?;

    step("Somebody kills the VM of web-2 by hand: the controller starts it again");
    let vmid = records["pvemachine.web-2"]["status"]["vmid"].as_u64().and_then(|v| u32::try_from(v).ok()).ok_or("no VMID")?;
    let first_start = records["pvemachine.web-2"]["status"]["lastStart"].clone();
    sim.call(&Request::KillGuest { vmid })?;
    status::wait_for(&folder, LIMIT, |r| {
        let web2 = &r["pvemachine.web-2"];
        status::condition(web2, "Ready") == "True" && web2["status"]["lastStart"] != first_start
    })?;
    pveletctl(&config, &["ops"])?;

    step("The manifests are removed: the VMs are stopped and deleted, and nothing is left");
    for i in 1..=3 {
        controller.remove(&format!("web-{i}.yaml"));
    }
    status::wait_for(&folder, LIMIT, |r| !r.keys().any(|k| k.starts_with("pvemachine.")))?;
    controller.stop();
    pveletctl(&config, &["vms"])?;
    let after = sim.leftovers()?;
    let leaked = differences(&before, &after);
    for line in &leaked {
        println!("  left: {line}");
    }
    drop(stack);
    let summary = format!("demo: {hosts}/3 hosts Ready, {machines}/3 machines Ready, {} leaked", leaked.len());
    if hosts == 3 && machines == 3 && leaked.is_empty() { Ok(format!("\n{summary}")) } else { Err(summary.into()) }
}

/// A real containerd whose default runtime has no type; `None`: it takes root to run one.
fn broken_worker(runtime: &Runtime) -> Option<Worker> {
    let _in = runtime.enter();
    let config = |place: &Place| {
        place.give_network();
        place.healthy().replace("  runtime_type = \"io.containerd.runc.v2\"\n", "")
    };
    nix::unistd::geteuid().is_root().then(|| runtime.block_on(Worker::start_with(config)))
}

/// What a person does about it.
fn mend(worker: &Worker, config: &Path, step: impl Fn(&str)) -> Result<(), Box<dyn Error>> {
    step("pve2 is a worker too, and its real containerd answers each pod with `container.Runtime.Name must be set`: found, and mended");
    println!("\n$ pveletctl doctor {WORKER} --run");
    let doctor = Command::new(program("pveletctl")).arg("--config").arg(config).args(["doctor", WORKER, "--run"]).output()?;
    let text = String::from_utf8_lossy(&doctor.stdout);
    print!("{text}{}", String::from_utf8_lossy(&doctor.stderr));
    let place = format!("{}:", worker.containerd.config_path().display());
    if doctor.status.code() != Some(2) || !text.contains("has no runtime_type") || !text.contains(&place) {
        return Err(format!("doctor does not name the missing runtime type, its file and line (it ended with {})", doctor.status).into());
    }
    pveletctl(config, &["repair", "containerd-config", "--host", WORKER, "--yes"])?;
    pveletctl(config, &["check", "run", "containerd.runtime-type", "containerd.sandbox", "--host", WORKER])
}

/// The manifest of the i-th machine: the example with a data disk.
fn manifest(i: u32, disk: &str) -> String {
    let text = MANIFEST.replace("web-1", &format!("web-{i}")).replace("10.70.0.11/", &format!("10.70.0.1{i}/"));
    format!("{text}  disks:\n    - name: data\n      size: {disk}\n      storage: local\n")
}

/// Lines that are in one of the texts only.
fn differences(before: &str, after: &str) -> Vec<String> {
    let missing = before.lines().filter(|l| !after.lines().any(|a| a == *l)).map(|l| format!("(gone) {l}"));
    let fresh = after.lines().filter(|l| !before.lines().any(|b| b == *l)).map(str::to_owned);
    missing.chain(fresh).collect()
}

/// A configuration for pveletctl with all hosts.
fn client_config(stack: &Stack) -> Result<std::path::PathBuf, Box<dyn Error>> {
    let (cert, key) = stack.pki.role(Role::Admin, "demo");
    let mut text = format!("ca = {:?}\ncert = {cert:?}\nkey = {key:?}\ntenant = \"default\"\n", stack.pki.dir.ca_cert_path());
    for agent in stack.agents.values() {
        text += &format!("\n[[host]]\nname = \"{}\"\ncluster = \"{}\"\naddress = \"{}\"\n", agent.node, agent.cluster, agent.address);
    }
    let path = stack.dir.path().join("pveletctl.toml");
    fs::write(&path, text)?;
    Ok(path)
}

/// Runs pveletctl as a person would; its output goes to ours.
fn pveletctl(config: &Path, args: &[&str]) -> Result<(), Box<dyn Error>> {
    println!("\n$ pveletctl {}", args.join(" "));
    let status = Command::new(program("pveletctl")).arg("--config").arg(config).args(args).status()?;
    if status.success() { Ok(()) } else { Err(format!("pveletctl {} ended with {status}", args.join(" ")).into()) }
}
