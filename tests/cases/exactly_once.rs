//! One request makes at most one VM.

use std::collections::BTreeSet;

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1;
use pvelet_tests::{Stack, StackOptions, client::reason};
use tonic::Code;

fn seeded() -> Stack {
    Stack::seeded(StackOptions::default(), |control| {
        control.call(&Request::SeedTemplate(Seed { size_mib: 64, fill_mib: 1, ..Seed::new("pve1", 9000, "template") })).unwrap();
    })
}

#[tokio::test]
async fn the_same_clone_request_fifty_times_at_once_makes_one_vm() {
    let stack = seeded();
    let clients: Vec<_> = (0..5).map(|_| stack.operator("pve1")).collect();
    let calls = (0..50).map(|i| {
        let client = clients[i % clients.len()].clone();
        async move { client.clone_vm(client.clone_request("same", 9000, "once")).await.unwrap() }
    });
    let operations = futures_util::future::join_all(calls).await;
    let names: BTreeSet<_> = operations.iter().map(|o| &o.name).collect();
    assert_eq!(names.len(), 1);
    assert!(operations.iter().all(|o| o.state() == v1::OperationState::Succeeded));
    let made = clients[0].vms().await.into_iter().filter(|vm| vm.name == "once").count();
    assert_eq!(made, 1);
    // Each task has its log from the beginning; PVE's index of them follows later.
    let folders = std::fs::read_dir(stack.sim.node("pve1").tasks()).unwrap().flatten().filter(|e| e.path().is_dir());
    let logs = folders.flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten());
    let clones = logs.filter(|log| log.file_name().to_string_lossy().contains(":qmclone:")).count();
    assert_eq!(clones, 1);
}

#[tokio::test]
async fn a_request_id_with_another_body_is_refused() {
    let stack = seeded();
    let client = stack.operator("pve1");
    client.cloned("r1", 9000, "first").await;
    let status = client.clone_vm(client.clone_request("r1", 9000, "second")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));
}

#[tokio::test]
async fn a_repeated_request_finds_its_operation_after_the_agent_was_killed() {
    let mut stack = seeded();
    let client = stack.operator("pve1");
    let first = client.clone_vm(client.clone_request("r1", 9000, "once")).await.unwrap();
    stack.agent("pve1").kill();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let again = client.clone_vm(client.clone_request("r1", 9000, "once")).await.unwrap();
    assert_eq!((again.state(), again.name), (v1::OperationState::Succeeded, first.name));
    assert_eq!(client.vms().await.iter().filter(|vm| vm.name == "once").count(), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_nothing() {
    let stack = seeded();
    let client = stack.operator("pve1");
    let mut call = Box::pin(client.clone_vm(client.clone_request("r1", 9000, "left-alone")));
    // The call is on its way as soon as the agent lists it; then the client hangs up.
    let watcher = stack.operator("pve1");
    let request = v1::WatchOperationsRequest { tenant: "default".into(), since_revision: 0 };
    let mut stream = watcher.agent.operation().watch_operations(request).await.unwrap().into_inner();
    loop {
        tokio::select! {
            done = &mut call => { done.unwrap(); break }
            message = stream.message() => {
                if message.unwrap().unwrap().operation.is_some_and(|o| o.request_id == "r1") { break }
            }
        }
    }
    drop(call);
    let op = watcher.operation_end("r1").await;
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
}

#[test]
fn a_second_agent_on_the_same_state_refuses_to_start() {
    let mut stack = seeded();
    let agent = stack.agent("pve1");
    let config = agent.config_text().replace(&format!("listen = \"{}\"", agent.address), "listen = \"127.0.0.1:0\"");
    let second = agent.dir.join("second.toml");
    std::fs::write(&second, config).unwrap();
    let output = std::process::Command::new(pvelet_tests::program("pvelet-agent"))
        .args(["run", "--config", second.to_str().unwrap()])
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("another") && text.contains(agent.state_dir().to_str().unwrap()), "{text}");
}
