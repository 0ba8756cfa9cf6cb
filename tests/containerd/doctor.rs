//! What a person sees of a broken containerd: a real one, a real agent, `pveletctl`.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use pvelet_proto::{identity::Role, v1};
use pvelet_tests::{
    Stack, StackOptions,
    containerd::{Containerd, program as containerd_program},
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

/// An agent that looks at this containerd.
fn stack(containerd: &Containerd) -> Stack {
    let place = containerd.place();
    let text = format!(
        "[health]\nworker = \"yes\"\ncontainerd_socket = {:?}\ncontainerd_config = {:?}\ncontainerd_program = {:?}\n",
        place.socket(),
        place.config(),
        containerd_program("containerd"),
    );
    let extra = BTreeMap::from([("rest".to_owned(), text)]);
    Stack::start(StackOptions { extra, ..StackOptions::default() })
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

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_missing_runtime_type_with_file_and_line_and_repair_shows_what_it_would_do() {
    let without = |text: String| text.replace("  runtime_type = \"io.containerd.runc.v2\"\n", "");
    let containerd = Containerd::start_with(|place| without(place.healthy())).await;
    let stack = stack(&containerd);
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
    for want in
        ["pve1: repair of containerd.runtime-type", "\n  +", "runtime_type = \"io.containerd.runc.v2\"", "Restarted: containerd.service"]
    {
        assert!(text.contains(want), "{want}\n{text}");
    }
    assert_eq!(containerd.config(), without(containerd.place().healthy()), "a dry run touches nothing");
    // Nothing is repaired before an administrator says so.
    let (status, text) = person.run(&["repair", "containerd-config", "--yes"]);
    assert!(status == 1 && text.contains("REPAIR_OFF"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_that_is_well_is_one_line_and_a_sandbox_is_really_made() {
    let containerd = super::config::worker().await;
    let stack = stack(&containerd);
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
