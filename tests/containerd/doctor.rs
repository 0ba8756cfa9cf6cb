//! What a person sees of a broken containerd: a real one, a real agent, `pveletctl`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use pvelet_agent::host::runtime::watch::FolderWatch;
use pvelet_proto::{identity::Role, v1};
use pvelet_tests::{
    Stack, StackOptions,
    containerd::{Place, Worker},
    program,
};
use serde_json::Value;

/// For anything; a loaded machine is slow.
const LONG: Duration = Duration::from_secs(120);

struct Person {
    config: PathBuf,
}

impl Person {
    fn of(stack: &Stack) -> Self {
        let (cert, key) = stack.pki.role(Role::Operator, "ann");
        let agent = &stack.agents["pve1"];
        let ca = stack.pki.dir.ca_cert_path();
        let text = format!(
            "ca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n\n[[host]]\nname = \"pve1\"\ncluster = \"{}\"\naddress = \"{}\"\n",
            agent.cluster, agent.address
        );
        let config = stack.dir.path().join("pveletctl.toml");
        fs::write(&config, text).unwrap();
        Self { config }
    }

    fn run(&self, args: &[&str]) -> (i32, String) {
        let Output { status, stdout, stderr } =
            Command::new(program("pveletctl")).arg("--config").arg(&self.config).args(args).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        (status.code().unwrap(), text)
    }
}

/// An agent that looks at this worker.
fn stack(worker: &Worker, policy: &str) -> Stack {
    let mut stack = Stack::start(StackOptions { start_agents: false, ..StackOptions::default() });
    worker.host(stack.agent("pve1"), policy);
    stack
}

/// Waits until the agent tells a check in a state.
async fn until(stack: &Stack, id: &str, state: v1::CheckState) {
    let client = stack.operator("pve1");
    let waited = tokio::time::timeout(LONG, async {
        let mut stream = client.agent.health().watch_health(v1::WatchHealthRequest {}).await.unwrap().into_inner();
        loop {
            let health = stream.message().await.unwrap().expect("the stream goes on").health.unwrap_or_default();
            if health.checks.iter().any(|c| c.id == id && c.state() == state) {
                return;
            }
        }
    });
    assert!(waited.await.is_ok(), "{id} is not told as {state:?}");
}

fn without_type(place: &Place) -> String {
    place.give_network();
    place.healthy().replace("  runtime_type = \"io.containerd.runc.v2\"\n", "")
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_missing_runtime_type_with_file_and_line_and_repair_mends_it() {
    let worker = Worker::start_with(without_type).await;
    let containerd = &worker.containerd;
    let stack = stack(&worker, "on-request");
    let person = Person::of(&stack);
    until(&stack, "containerd.runtime-type", v1::CheckState::Failed).await;
    let (status, text) = person.run(&["doctor", "--run"]);
    assert_eq!(status, 2, "{text}");
    let file = containerd.config_path();
    let line = containerd.config().lines().position(|l| l.ends_with(".containerd.runtimes.runc]")).unwrap() + 1;
    let place = format!("{}:{line}", file.display());
    for want in [
        "pve1: failed\n",
        "\n    containerd.runtime-type: failed",
        place.as_str(),
        "runtime_type",
        "\n    containerd.sandbox: failed",
        "container.Runtime.Name must be set",
        "pveletctl repair containerd.runtime-type --host pve1",
    ] {
        assert!(text.contains(want), "{want}\n{text}");
    }
    let (status, text) = person.run(&["repair", "containerd-config", "--dry-run"]);
    assert_eq!(status, 0, "{text}");
    for want in [
        "pve1: repair of containerd.runtime-type",
        "\n  +",
        "runtime_type = \"io.containerd.runc.v2\"",
        "To be restarted: containerd.service",
    ] {
        assert!(text.contains(want), "{want}\n{text}");
    }
    assert_eq!(containerd.config(), without_type(containerd.place()), "a dry run touches nothing");

    let pid = containerd.pid();
    let (status, text) = person.run(&["repair", "containerd-config", "--yes"]);
    assert_eq!(status, 0, "{text}");
    assert_ne!(containerd.pid(), pid, "it was restarted: {text}");
    let (status, text) = person.run(&["check", "run", "containerd.sandbox", "containerd.runtime-type"]);
    assert_eq!(status, 0, "{text}");
    let (status, text) = person.run(&["repair", "containerd-config", "--dry-run"]);
    assert!(status == 4 && text.contains("containerd's configuration is well"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_repaired_before_an_administrator_says_so() {
    let worker = Worker::start_with(without_type).await;
    let config = worker.containerd.config_path();
    // No kernel gives that number.
    let left = config.with_file_name(format!(".config.toml.pvelet-new-{}-0", i32::MAX));
    fs::write(&left, "of an agent that was killed").unwrap();
    let mut folder = FolderWatch::new().unwrap();
    folder.follow(config.parent().unwrap());
    let stack = stack(&worker, "off");
    let person = Person::of(&stack);
    until(&stack, "containerd.runtime-type", v1::CheckState::Failed).await;
    let gone = tokio::time::timeout(LONG, async {
        while left.exists() {
            folder.changed().await.unwrap();
        }
    });
    assert!(gone.await.is_ok(), "{} is still there", left.display());
    let (status, text) = person.run(&["repair", "containerd-config", "--yes"]);
    assert!(status == 1 && text.contains("REPAIR_OFF"), "{status} {text}");
    assert_eq!(worker.containerd.config(), without_type(worker.containerd.place()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_that_is_well_is_one_line_and_a_sandbox_is_really_made() {
    let worker = Worker::start_with(|place| {
        place.give_network();
        place.healthy()
    });
    let worker = worker.await;
    let stack = stack(&worker, "off");
    let person = Person::of(&stack);
    until(&stack, "containerd.responding", v1::CheckState::Ok).await;
    let (status, text) = person.run(&["check", "run", "containerd.sandbox", "containerd.runtime-type", "-o", "json"]);
    assert_eq!(status, 0, "{text}");
    let told: Value = serde_json::from_str(&text).unwrap();
    let checks = told["hosts"][0]["checks"].as_array().unwrap();
    let state = |id: &str| checks.iter().find(|c| c["id"] == id).map(|c| c["state"].clone()).unwrap_or_default();
    assert_eq!((state("containerd.sandbox"), state("containerd.runtime-type")), ("ok".into(), "ok".into()), "{text}");
    let (status, text) = person.run(&["repair", "containerd-config", "--dry-run"]);
    assert!(status == 4 && text.contains("containerd's configuration is well"), "{status} {text}");
}
