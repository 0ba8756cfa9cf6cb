//! The health of the host, asked of a real agent: what breaks on the simulated host is found under its id, and forgotten when it is well again.

use std::{collections::BTreeMap, fs, time::Duration};

use pve_sim::control::{PmxcfsAction, Request, Seed};
use pvelet_proto::v1::{self, CheckState};
use pvelet_tests::{Client, OperationEvents, Stack, StackOptions, agent::SOON};
use serde_json::json;
use tonic::Streaming;

/// Storages of which one is disabled and one restricted to another node, on purpose.
const STORAGES: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent images,iso,snippets\n\ndir: rawdir\n\tpath /srv/raw\n\tcontent images\n\n\
    dir: disabled\n\tdisable\n\tpath /srv/none\n\tcontent images\n\ndir: othernode\n\tpath /srv/none\n\tcontent images\n\tnodes pve9\n\n";

fn seed(control: &pve_sim::control::Client) {
    let seed = |vmid, name: &str| Seed { size_mib: 64, fill_mib: 8, ..Seed::new("pve1", vmid, name) };
    control.call(&Request::SeedTemplate(seed(9000, "template"))).unwrap();
    control.call(&Request::SeedVm(seed(200, "plain"))).unwrap();
    write(control, "storage.cfg", STORAGES);
}

fn write(control: &pve_sim::control::Client, path: &str, content: &str) {
    control.call(&Request::WriteFile { path: path.into(), content: content.into(), node: None }).unwrap();
}

fn host(nodes: Vec<&'static str>) -> (Stack, Client) {
    // Storages of the simulated host lie on the disk of the machine that runs the tests, which may well be fuller than a host's should be.
    let usage = "[health]\nusage_warning = 98\nusage_critical = 99\n";
    let extra = BTreeMap::from([("rest".to_owned(), usage.to_owned())]);
    let mut stack = Stack::seeded(StackOptions { nodes, start_agents: false, extra, ..StackOptions::default() }, seed);
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    (stack, client)
}

async fn run(client: &Client, checks: &[&str]) -> Vec<v1::HealthCheck> {
    let request = v1::RunCheckRequest { checks: checks.iter().map(|c| (*c).to_owned()).collect() };
    client.agent.health().run_check(request).await.unwrap().into_inner().checks
}

async fn check(client: &Client, id: &str) -> v1::HealthCheck {
    run(client, &[id]).await.into_iter().find(|c| c.id == id).unwrap_or_else(|| panic!("{id} is told"))
}

/// Runs a check and looks at how it comes out.
async fn expect(client: &Client, id: &str, state: CheckState) -> v1::HealthCheck {
    let check = check(client, id).await;
    assert_eq!(check.state(), state, "{check:?}");
    check
}

async fn watch(client: &Client) -> Streaming<v1::WatchHealthResponse> {
    client.agent.health().watch_health(v1::WatchHealthRequest {}).await.unwrap().into_inner()
}

/// Waits until a check is told in a state, without asking for it.
async fn told(stream: &mut Streaming<v1::WatchHealthResponse>, id: &str, state: CheckState) -> v1::HealthCheck {
    let wait = async {
        loop {
            let message = stream.message().await.unwrap().expect("the stream goes on");
            let checks = message.health.map(|h| h.checks).unwrap_or_default();
            if let Some(check) = checks.into_iter().find(|c| c.id == id && c.state() == state) {
                return check;
            }
        }
    };
    tokio::time::timeout(SOON * 2, wait).await.unwrap_or_else(|_| panic!("{id} is not told as {state:?}"))
}

#[tokio::test]
async fn a_healthy_host_gives_no_alarm_though_a_storage_is_disabled_a_vm_locked_and_a_clone_under_way() {
    let (stack, client) = host(vec!["pve1"]);
    let control = stack.sim.control();
    let mut operations = OperationEvents::open(&client, 0).await;
    control.call(&Request::Faults { node: "pve1".into(), change: json!({"storages": {"rawdir": {"rate_kib": 1024}}}) }).unwrap();
    client.begin_clone(client.full_clone_request("slow", 9000, "slow", "rawdir")).await.unwrap();
    operations.until("the copy has begun", |op| op.request_id == "slow" && op.progress.is_some_and(|p| p.percent > 0)).await;
    control.call(&Request::LockVm { vmid: 200, lock: "backup".into() }).unwrap();
    for id in ["host.quorum", "host.cluster-fs", "host.pvedaemon", "host.storages", "host.tasks", "host.locks"] {
        expect(&client, id, CheckState::Ok).await;
    }
    for id in ["host.corosync-links", "host.lvm-thin", "host.drbd", "host.certificates"] {
        let check = expect(&client, id, CheckState::NotApplicable).await;
        assert!(!check.seen.is_empty() && check.remedy.is_empty(), "{check:?}");
    }
    control.call(&Request::Faults { node: "pve1".into(), change: json!({"storages": {"rawdir": {"rate_kib": null}}}) }).unwrap();
    operations.ended("slow").await;
}

#[tokio::test]
async fn lost_quorum_is_told_by_itself_and_so_is_its_return() {
    let (stack, client) = host(vec!["pve1", "pve2", "pve3"]);
    let mut stream = watch(&client).await;
    told(&mut stream, "host.quorum", CheckState::Ok).await;
    stack.sim.control().call(&Request::Quorum { node: None, on: false }).unwrap();
    let lost = told(&mut stream, "host.quorum", CheckState::Failed).await;
    assert!(lost.seen.contains("1 of 3 nodes") && lost.subjects == ["pve2", "pve3"] && !lost.remedy.is_empty(), "{lost:?}");
    let read_only = expect(&client, "host.cluster-fs", CheckState::Failed).await;
    assert!(read_only.seen.contains("no quorum"), "{read_only:?}");
    stack.sim.control().call(&Request::Quorum { node: None, on: true }).unwrap();
    told(&mut stream, "host.quorum", CheckState::Ok).await;
    expect(&client, "host.cluster-fs", CheckState::Ok).await;
}

#[tokio::test]
async fn a_cluster_file_system_that_hangs_is_unknown_first_and_failed_when_it_lasts() {
    let (mut stack, client) = host(vec!["pve1"]);
    let mut stream = watch(&client).await;
    told(&mut stream, "host.cluster-fs", CheckState::Ok).await;
    let pmxcfs = |stack: &Stack, action| stack.sim.control().call(&Request::Pmxcfs { node: "pve1".into(), action }).unwrap();
    pmxcfs(&stack, PmxcfsAction::Hang);
    // The look that is asked for ends as it may: what comes first and what comes then is told in order.
    check(&client, "host.cluster-fs").await;
    let unknown = told(&mut stream, "host.cluster-fs", CheckState::Unknown).await;
    assert!(unknown.seen.contains("did not answer"), "{unknown:?}");
    let failed = told(&mut stream, "host.cluster-fs", CheckState::Failed).await;
    assert!(failed.seen.contains("has not answered since") && failed.repair.is_empty(), "{failed:?}");
    // The rest goes on, and nothing waits for it.
    let mut asking = client.agent.health();
    let health = asking.get_health(v1::GetHealthRequest::default());
    assert!(tokio::time::timeout(SOON, health).await.unwrap().is_ok());
    expect(&client, "host.quorum", CheckState::Unknown).await;
    assert!(stack.agent("pve1").process().alive());
    pmxcfs(&stack, PmxcfsAction::Resume);
    told(&mut stream, "host.cluster-fs", CheckState::Ok).await;
    pmxcfs(&stack, PmxcfsAction::Down);
    let gone = expect(&client, "host.cluster-fs", CheckState::Failed).await;
    assert!(gone.seen.contains("/etc/pve"), "{gone:?}");
    pmxcfs(&stack, PmxcfsAction::Up);
    told(&mut stream, "host.cluster-fs", CheckState::Ok).await;
}

#[tokio::test]
async fn a_daemon_that_is_down_is_failed_and_what_it_would_tell_is_unknown() {
    let (stack, client) = host(vec!["pve1"]);
    expect(&client, "host.pvedaemon", CheckState::Ok).await;
    stack.sim.control().call(&Request::Daemon { node: "pve1".into(), up: false }).unwrap();
    let down = expect(&client, "host.pvedaemon", CheckState::Failed).await;
    assert!(down.seen.contains("does not answer") && down.subjects == ["pvedaemon.service"], "{down:?}");
    expect(&client, "host.storages", CheckState::Unknown).await;
    stack.sim.control().call(&Request::Daemon { node: "pve1".into(), up: true }).unwrap();
    expect(&client, "host.pvedaemon", CheckState::Ok).await;
    expect(&client, "host.storages", CheckState::Ok).await;
}

#[tokio::test]
async fn a_storage_that_is_away_or_full_is_named() {
    let (stack, client) = host(vec!["pve1"]);
    let fault = |fault: serde_json::Value| {
        let change = json!({"storages": {"rawdir": fault}});
        stack.sim.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
    };
    fault(json!({"offline": true}));
    let away = expect(&client, "host.storages", CheckState::Failed).await;
    assert!(away.seen.contains("rawdir (dir) is not active") && away.subjects == ["rawdir"] && !away.remedy.is_empty(), "{away:?}");
    fault(json!({"offline": false}));
    stack
        .sim
        .control()
        .call(&Request::SeedVm(Seed { size_mib: 8, fill_mib: 8, storage: "rawdir".into(), ..Seed::new("pve1", 201, "full") }))
        .unwrap();
    fault(json!({"full_after_bytes": 1 << 20}));
    let full = expect(&client, "host.storages", CheckState::Failed).await;
    assert!(full.seen.contains("rawdir (dir, 1.0 MiB) is 100 % full"), "{full:?}");
    fault(json!({"full_after_bytes": null}));
    expect(&client, "host.storages", CheckState::Ok).await;
}

#[tokio::test]
async fn a_certificate_near_its_end_and_a_pending_reboot_are_told() {
    let (stack, client) = host(vec!["pve1"]);
    let layout = stack.sim.node("pve1");
    let mut params = rcgen::CertificateParams::new(vec!["pve1".to_owned()]).unwrap();
    params.not_after = (std::time::SystemTime::now() + Duration::from_secs(3 * 86400)).into();
    let (key, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let pem = params.self_signed(&key).unwrap().pem();
    let control = stack.sim.control();
    write(&control, "pve-root-ca.pem", &pem);
    write(&control, "nodes/pve1/pve-ssl.pem", &pem);
    write(&control, "nodes/pve1/pve-ssl.key", &key.serialize_pem());
    let soon = expect(&client, "host.certificates", CheckState::Degraded).await;
    assert!(soon.seen.contains("nodes/pve1/pve-ssl.pem ends on "), "{soon:?}");
    write(&control, "nodes/pve1/pve-ssl.key", &other.serialize_pem());
    let foreign = expect(&client, "host.certificates", CheckState::Failed).await;
    assert!(foreign.seen.contains("does not belong to the private key") && !foreign.seen.contains("BEGIN"), "{foreign:?}");

    expect(&client, "host.reboot", CheckState::Ok).await;
    fs::create_dir_all(layout.host_path("/run")).unwrap();
    fs::write(layout.host_path("/run/reboot-required"), "*** System restart required ***\n").unwrap();
    fs::write(layout.host_path("/run/reboot-required.pkgs"), "proxmox-kernel-6.14\n").unwrap();
    let pending = expect(&client, "host.reboot", CheckState::Degraded).await;
    assert!(pending.seen.contains("proxmox-kernel-6.14"), "{pending:?}");
}
