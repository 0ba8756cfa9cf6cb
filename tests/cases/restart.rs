//! Restarts of the agent as systemd does them: its socket is kept meanwhile.

use std::{
    error::Error,
    fs,
    net::TcpStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use pve_sim::control::{Request, Seed};
use pvelet_controller::tls::TlsError;
use pvelet_proto::{
    identity::Role,
    v1::{self, OperationState},
};
use pvelet_tests::{Agent, Client, OperationEvents, ServiceManager, Stack, StackOptions, agent::SOON, program};
use serde_json::json;
use tokio::time::timeout;

fn stack() -> Stack {
    Stack::seeded(StackOptions { start_agents: false, ..StackOptions::default() }, |control| {
        let seed = Seed { size_mib: 64, fill_mib: 8, ..Seed::new("pve1", 9000, "template") };
        control.call(&Request::SeedTemplate(seed)).unwrap();
    })
}

/// Starts the agent as a service; its address is known then.
fn start(manager: &mut ServiceManager, agent: &mut Agent) {
    fs::write(agent.config_path(), agent.config_text()).unwrap();
    let ready: PathBuf = agent.dir.join("ready");
    let (config, file) = (agent.config_path().display().to_string(), ready.display().to_string());
    manager.start(&program("pvelet-agent"), &["run", "--config", &config, "--ready-file", &file]);
    agent.address = fs::read_to_string(ready).unwrap().trim().parse().unwrap();
}

/// Clients that call without a pause, and what came of it.
#[derive(Default)]
struct Calls {
    answered: AtomicUsize,
    failed: AtomicUsize,
    over: AtomicBool,
}

impl Calls {
    fn count(&self, result: Result<v1::Host, tonic::Status>, who: &str) {
        match result {
            Ok(_) => drop(self.answered.fetch_add(1, Ordering::SeqCst)),
            // The client's own patience, which a slow machine may outlast; nobody has refused it.
            Err(error) if matches!(error.source().and_then(TlsError::find), Some(TlsError::Timeout { .. })) => {}
            Err(error) => {
                eprintln!("{who}: {error}");
                self.failed.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Waits for as many answers more.
    async fn more(&self, answers: usize) {
        let wanted = self.answered.load(Ordering::SeqCst) + answers;
        let all = async {
            while self.answered.load(Ordering::SeqCst) < wanted {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, all).await.expect("answers go on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_connection_is_refused_and_no_call_on_a_new_one_fails_while_the_agent_is_restarted() {
    let mut stack = stack();
    let mut manager = ServiceManager::new();
    start(&mut manager, stack.agent("pve1"));
    assert_eq!(manager.kept.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["listen"]);
    let address = stack.agents["pve1"].address;

    let calls = Arc::new(Calls::default());
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..4 {
        let credentials = stack.pki.credentials(stack.pki.role(Role::Reader, &format!("reader-{i}")));
        let (calls, cluster) = (Arc::clone(&calls), stack.agents["pve1"].cluster.clone());
        clients.spawn(async move {
            while !calls.over.load(Ordering::SeqCst) {
                // A connection of its own for each call.
                let result = Client::at(address, &cluster, "pve1", credentials.clone()).host().await;
                calls.count(result, "a new connection");
            }
        });
    }
    calls.more(20).await;
    for crash in [false, false, false, true] {
        if crash {
            // What it was just answering is lost with it; whoever comes then waits.
            calls.over.store(true, Ordering::SeqCst);
            while clients.join_next().await.is_some() {}
            calls.over.store(false, Ordering::SeqCst);
            manager.kill();
        } else {
            assert!(manager.stop().success());
        }
        // Nobody serves now.
        let waiting = TcpStream::connect(address).expect("a connection is taken by the kernel");
        start(&mut manager, stack.agent("pve1"));
        assert_eq!(stack.agents["pve1"].address, address);
        drop(waiting);
        let client = stack.operator("pve1");
        client.host().await.unwrap();
        if !clients.is_empty() {
            calls.more(20).await;
        }
    }
    assert_eq!(manager.kept.len(), 1, "the socket is kept once");
    calls.over.store(true, Ordering::SeqCst);
    while clients.join_next().await.is_some() {}
    assert_eq!(calls.failed.load(Ordering::SeqCst), 0);
}

// Of several threads, so that the clients' connections are served while a process is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_an_operation_ends_the_agent_is_asked_as_before_and_streams_go_on_with_the_next_process() {
    let mut stack = stack();
    let mut manager = ServiceManager::new();
    start(&mut manager, stack.agent("pve1"));
    let client = stack.operator("pve1");
    // 16 s for the copy: what is asked while it goes on has to come to its answer on a slow machine, too.
    let change = json!({"storages": {"local": {"rate_kib": 512}}});
    stack.sim.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
    let mut operations = OperationEvents::open(&client, 0).await;
    client.begin_clone(client.full_clone_request("slow", 9000, "slow", "")).await.unwrap();
    operations.until("the copy has begun", |op| op.request_id == "slow" && op.progress.is_some_and(|p| p.percent > 0)).await;
    let stopping = tokio::task::spawn_blocking(move || {
        manager.terminate();
        manager.until("stopping", |text| text.contains("STOPPING=1") && text.contains("EXTEND_TIMEOUT_USEC=75000000"));
        manager
    });
    let mut manager = stopping.await.unwrap();
    // Over a new connection, too.
    let other = stack.client("pve1", Role::Reader);
    assert_eq!(other.host().await.unwrap().state(), v1::HostState::ShuttingDown);
    let running = other.operation("slow").await.unwrap();
    assert_eq!(running.state(), OperationState::Running);
    operations.until("the copy has ended", |op| op.request_id == "slow" && op.state() == OperationState::Succeeded).await;
    assert!(manager.wait().success());
    start(&mut manager, stack.agent("pve1"));
    // The same clients, over connections that were told to end.
    assert_ne!(other.host().await.unwrap().state(), v1::HostState::ShuttingDown);
    assert_eq!(client.operation("slow").await.unwrap().state(), OperationState::Succeeded);
}

#[test]
fn a_kept_socket_is_given_up_when_another_address_is_configured() {
    let mut stack = stack();
    let mut manager = ServiceManager::new();
    start(&mut manager, stack.agent("pve1"));
    let former = stack.agents["pve1"].address;
    assert!(manager.stop().success());
    // An address that nobody else uses: all of it is this machine's.
    stack.agent("pve1").address = ([127, 0, 0, 2], former.port()).into();
    start(&mut manager, stack.agent("pve1"));
    let now = stack.agents["pve1"].address;
    assert_ne!(now, former);
    assert_eq!(manager.kept.len(), 1);
    assert!(TcpStream::connect(former).is_err(), "the former address is let go");
    assert!(manager.stop().success());
    drop(TcpStream::connect(now).expect("the new one is kept"));
}
