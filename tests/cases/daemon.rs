//! The agent as a program: its configuration, its signals, what it tells the service manager.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use nix::sys::signal::Signal;
use pve_sim::control::{Request, Seed};
use pvelet_proto::v1::{self, Mode, OperationState};
use pvelet_tests::{
    Agent, HostEvents, OperationEvents, Stack, StackOptions,
    agent::SOON,
    calls::{Refusal, succeeded},
    client::{reason, vm_ref},
    program,
};
use serde_json::json;
use tonic::Code;

fn seed(control: &pve_sim::control::Client) {
    let seed = |vmid, name: &str| Seed { size_mib: 64, fill_mib: 8, ..Seed::new("pve1", vmid, name) };
    control.call(&Request::SeedTemplate(seed(9000, "template"))).unwrap();
    control.call(&Request::SeedVm(seed(200, "plain"))).unwrap();
}

/// A stack whose agent has not been started.
fn prepared() -> Stack {
    Stack::seeded(StackOptions { start_agents: false, ..StackOptions::default() }, seed)
}

fn agent(args: &[&str]) -> Output {
    Command::new(program("pvelet-agent")).args(args).env_remove("NOTIFY_SOCKET").output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn check(file: &Path) -> Output {
    agent(&["check-config", file.to_str().unwrap()])
}

fn throttle(stack: &Stack, rate_kib: Option<u32>) {
    let change = json!({"storages": {"local": {"rate_kib": rate_kib}}});
    stack.sim.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
}

#[test]
fn check_config_reports_every_mistake_at_once_with_exit_status_1() {
    let mut stack = prepared();
    let agent = stack.agent("pve1");
    fs::write(agent.config_path(), agent.config_text()).unwrap();
    let good = check(&agent.config_path());
    assert!(good.status.success(), "{}", text(&good));

    agent.extra.insert(String::new(), "colour = \"red\"\ndrain_deadline = \"soon\"".into());
    agent.extra.insert("vm".into(), "short_lane = 0\nlinked_clone_deadlin = \"1m\"".into());
    agent.extra.insert("limits".into(), "reads = \"many\"".into());
    agent.extra.insert("rest".into(), "[[identity]]\nuri = \"spiffe://elsewhere/role/operator/x\"\ntenants = []".into());
    agent.range = (500, 400);
    let bad = agent.dir.join("bad.toml");
    fs::write(&bad, agent.config_text().replace("client_ca = \"", "client_ca = \"/nonexistent")).unwrap();
    let output = check(&bad);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in [
        "colour",
        "drain_deadline",
        "soon",
        "short_lane",
        "linked_clone_deadlin",
        "limits.reads",
        "many",
        "elsewhere",
        "tenants",
        "500-400",
        "client_ca",
        "/nonexistent",
        "line ",
    ] {
        assert!(said.contains(word), "'{word}' is missing in:\n{said}");
    }
    // It is refused at the start with the same words, before anything is made.
    let run = self::agent(&["run", "--config", bad.to_str().unwrap()]);
    assert!(!run.status.success());
    assert!(text(&run).contains("linked_clone_deadlin") && text(&run).contains("colour"), "{}", text(&run));
    assert!(!stack.agent("pve1").state_dir().exists());
    let missing = check(Path::new("/nonexistent/agent.toml"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing).contains("/nonexistent/agent.toml"), "{}", text(&missing));
}

#[test]
fn check_config_looks_into_the_certificates() {
    let mut stack = prepared();
    let reader = stack.pki.role(pvelet_proto::identity::Role::Reader, "somebody");
    let agent = stack.agent("pve1");
    let (cert, key) = agent.cert().clone();
    let swapped = agent.config_text().replace(key.to_str().unwrap(), reader.1.to_str().unwrap());
    let clients = agent
        .config_text()
        .replace(cert.to_str().unwrap(), reader.0.to_str().unwrap())
        .replace(key.to_str().unwrap(), reader.1.to_str().unwrap());
    for (what, config) in [("a key that does not fit", swapped), ("a client's certificate", clients)] {
        let file = agent.dir.join("tls.toml");
        fs::write(&file, config).unwrap();
        let output = check(&file);
        assert_eq!(output.status.code(), Some(1), "{what}: {}", text(&output));
        assert!(text(&output).contains("tester") || text(&output).contains("somebody"), "{what} names no file: {}", text(&output));
    }
}

#[test]
fn the_example_is_a_good_configuration_but_for_what_it_cannot_know() {
    let stack = prepared();
    let output = agent(&["example-config"]);
    assert!(output.status.success());
    let file = stack.dir.path().join("example.toml");
    fs::write(&file, &output.stdout).unwrap();
    let said = text(&check(&file));
    // All that is wrong is that this machine is no PVE host: files that do not exist.
    for line in said.lines().filter(|l| l.starts_with("  ")) {
        assert!(line.contains("cannot be read") || line.contains("does not exist"), "{line}");
    }
}

#[tokio::test]
async fn an_observing_agent_reads_and_refuses_every_change() {
    let mut stack = prepared();
    stack.agent("pve1").mode = "observe".into();
    stack.agent("pve1").start();
    let before = stack.sim.control().leftovers().unwrap();
    let client = stack.client("pve1", pvelet_proto::identity::Role::Admin);
    assert_eq!(client.host().await.unwrap().mode(), Mode::Observe);
    let vm = client.vm(200).await.unwrap();
    Refusal::of(client.clone_vm(client.clone_request("clone", 9000, "x")).await).is(Code::FailedPrecondition, "OBSERVE_ONLY", "clone");
    for (what, refusal) in client.refusals("observe", &vm_ref(&vm)).await {
        refusal.is(Code::FailedPrecondition, "OBSERVE_ONLY", what);
        assert!(refusal.text.contains("manage"), "{what} names no remedy: {}", refusal.text);
    }
    assert_eq!(client.vms().await.len(), 2);
    assert!(client.operation("clone").await.is_none());
    let mut events = HostEvents::open(&client).await;
    stack.sim.control().call(&Request::StartGuest { vmid: 200 }).unwrap();
    events.until(v1::VmEventType::Started, 200).await;
    stack.sim.control().call(&Request::KillGuest { vmid: 200 }).unwrap();
    events.until(v1::VmEventType::Stopped, 200).await;
    // The host's own daemon was asked for nothing that changes.
    let index = fs::read_to_string(stack.sim.node("pve1").tasks().join("index")).unwrap_or_default();
    assert!(index.is_empty(), "{index}");
    // A guest that is killed leaves its pid file, which is no part of what is compared.
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);

    // The administrator turns it on.
    let agent = stack.agent("pve1");
    agent.mode = "manage".into();
    fs::write(agent.config_path(), agent.config_text()).unwrap();
    agent.reload();
    events.until_host("managing", |h| h.mode() == Mode::Manage).await;
    client.cloned("now", 9000, "made").await;
}

#[tokio::test]
async fn a_reload_takes_over_what_is_good_and_keeps_the_last_good_one() {
    let mut stack = prepared();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let mut events = HostEvents::open(&client).await;
    let vm = client.vm(200).await.unwrap();
    let agent = stack.agent("pve1");

    // Bad: one mistake, and beside it a change that would be taken over otherwise.
    agent.mode = "observe".into();
    agent.extra.insert(String::new(), "colour = \"red\"".into());
    fs::write(agent.config_path(), agent.config_text()).unwrap();
    agent.reload();
    let process = agent.process();
    process.wait_notified("reloading", SOON, |t| t.contains("RELOADING=1") && t.contains("MONOTONIC_USEC=")).unwrap();
    let told = process.wait_notified("ready again", SOON, |t| t.lines().any(|l| l == "READY=1")).unwrap();
    assert!(told.contains("STATUS=managing"), "{told}");
    assert!(agent.log().contains("colour"), "{}", agent.log());
    succeeded(client.start("start", &vm_ref(&vm)).await);

    // Good: an observer, and only some tenants.
    agent.extra.clear();
    fs::write(agent.config_path(), agent.config_text()).unwrap();
    agent.reload();
    events.until_host("observing", |h| h.mode() == Mode::Observe).await;
    let told = agent.process().wait_notified("ready", SOON, |t| t.contains("READY=1") && t.contains("observing")).unwrap();
    assert!(told.contains("STATUS="), "{told}");
    Refusal::of(client.stop("stop", &vm_ref(&vm)).await).is(Code::FailedPrecondition, "OBSERVE_ONLY", "stop");

    agent.mode = "manage".into();
    let uri = "spiffe://pvelet.test/role/operator/tester";
    agent.extra.insert("rest".into(), format!("[[identity]]\nuri = \"{uri}\"\ntenants = [\"other\"]"));
    fs::write(agent.config_path(), agent.config_text()).unwrap();
    agent.reload();
    events.until_host("managing", |h| h.mode() == Mode::Manage).await;
    Refusal::of(client.stop("stop-2", &vm_ref(&vm)).await).is(Code::PermissionDenied, "SCOPE_TENANT", "stop");
}

#[tokio::test]
async fn at_sigterm_what_runs_ends_and_nothing_new_begins() {
    let mut stack = prepared();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let vm = client.vm(200).await.unwrap();
    let mut operations = OperationEvents::open(&client, 0).await;
    throttle(&stack, Some(4096));
    let begun = client.begin_clone(client.full_clone_request("slow", 9000, "slow", "")).await.unwrap();
    operations.until("the copy has begun", |op| op.request_id == "slow" && op.progress.is_some_and(|p| p.percent > 0)).await;
    stack.agent("pve1").process().signal(Signal::SIGTERM).unwrap();
    let told = stack.agent("pve1").process().wait_notified("stopping", SOON, |t| t.contains("STOPPING=1")).unwrap();
    assert!(told.contains("STATUS=draining"), "{told}");
    // Over the old connection or a new one: it is not taken. (What comes in the moment before is carried out like the other.)
    let mut late = 0;
    let refused = loop {
        let id = format!("late-{late}");
        match client.begin_start(&id, &vm_ref(&vm)).await {
            Ok(_) => late += 1,
            Err(refused) if refused.code() == Code::Aborted => {}
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    throttle(&stack, None);
    let status = stack.agent("pve1").wait_exit();
    assert!(status.success(), "{status}");

    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let op = client.operation("slow").await.unwrap();
    assert_eq!((op.name.as_str(), op.state()), (begun.name.as_str(), OperationState::Succeeded), "{op:?}");
    assert!(client.vms().await.iter().any(|vm| vm.name == "slow" && vm.lock.is_empty()));
    assert!(client.operation(&format!("late-{late}")).await.is_none());
    for i in 0..late {
        assert_eq!(client.operation(&format!("late-{i}")).await.unwrap().state(), OperationState::Succeeded);
    }
}

#[tokio::test]
async fn what_outlasts_the_drain_is_settled_after_the_restart() {
    let mut stack = prepared();
    stack.agent("pve1").extra.insert(String::new(), "drain_deadline = \"0s\"".into());
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let mut operations = OperationEvents::open(&client, 0).await;
    throttle(&stack, Some(2048));
    client.begin_clone(client.full_clone_request("slow", 9000, "slow", "")).await.unwrap();
    operations.until("the copy has begun", |op| op.request_id == "slow" && op.progress.is_some_and(|p| p.percent > 0)).await;
    // A stop is no cancellation: PVE's task goes on without the agent.
    assert!(stack.agent("pve1").stop().success());
    throttle(&stack, None);
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let op = client.operation_end("slow").await;
    assert_eq!(op.state(), OperationState::Succeeded, "{op:?}");
    let vm = client.vm(op.target.unwrap().vmid).await.unwrap();
    assert!(vm.name == "slow" && vm.lock.is_empty() && vm.mark.is_some(), "{vm:?}");
}

#[test]
fn an_address_in_use_is_named() {
    let mut stack = prepared();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let agent: &mut Agent = stack.agent("pve1");
    agent.address = address;
    let error = agent.start_with(&[]).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    drop(taken);
    agent.start();
    assert_eq!(agent.address, address);
}

#[tokio::test]
async fn the_service_manager_is_told_what_the_agent_is() {
    let mut stack = prepared();
    let agent = stack.agent("pve1");
    fs::write(agent.config_path(), agent.config_text()).unwrap();
    let socket = agent.dir.join("own.sock");
    let config = agent.config_path().display().to_string();
    let args = ["run", "--config", config.as_str()];
    let log = agent.dir.join("own.log");
    let envs = [("WATCHDOG_USEC", "200000")];
    let mut process = pvelet_tests::Process::start("pvelet-agent", &args, &envs, &log, Some(&socket)).unwrap();
    let ready = process.wait_notified("ready", SOON, |t| t.lines().any(|l| l == "READY=1")).unwrap();
    assert!(ready.lines().any(|l| l.starts_with("STATUS=") && l.contains("127.0.0.1:")), "{ready}");
    // The watchdog is fed as long as it lives: more than once.
    for _ in 0..3 {
        process.wait_notified("alive", SOON, |t| t.contains("WATCHDOG=1")).unwrap();
    }
    process.signal(Signal::SIGTERM).unwrap();
    process.wait_notified("stopping", SOON, |t| t.contains("STOPPING=1")).unwrap();
    assert!(process.wait_exit(SOON).unwrap().success());
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_used_is_named() {
    let mut stack = prepared();
    let agent = stack.agent("pve1");
    fs::write(agent.state_dir(), "a file where a folder should be").unwrap();
    let error = agent.start_with(&[]).unwrap_err().to_string();
    assert!(error.contains(agent.state_dir().to_str().unwrap()), "{error}");
    fs::remove_file(agent.state_dir()).unwrap();
    agent.start();
    let client = stack.operator("pve1");
    let vm = client.vm(200).await.unwrap();
    let status = client.start("", &vm_ref(&vm)).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_REQUEST_ID");
}
