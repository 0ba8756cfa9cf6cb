//! A machine's user data, from a Secret in the controller's folder to the file that PVE reads when it starts the VM.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1;
use pvelet_tests::{
    Stack,
    calls::Refusal,
    status::{self, condition},
};
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(60);
const SECRET: &str = "machine: {token: correct-horse-battery}\n";

#[test]
fn a_machine_is_made_with_its_secret_and_takes_it_along_when_it_goes() {
    let stack = Stack::one();
    let seed = Seed { tags: "talos".into(), size_mib: 64, fill_mib: 1, ..Seed::new("pve1", 9000, "talos") };
    stack.sim.control().call(&Request::SeedTemplate(seed)).unwrap();
    let before = stack.sim.control().leftovers().unwrap();
    let mut controller = stack.controller();
    let manifest = include_str!("../../docs/examples/talos-1.yaml").replace("4Gi", "256Mi").replace("20Gi", "128Mi");
    controller.write("talos-1.yaml", &manifest);
    controller.start();
    let key = "pvemachine.talos-1";
    let reason = |record: &serde_json::Value| {
        let ready = record["status"]["conditions"].as_array().and_then(|all| all.iter().find(|c| c["type"] == "Ready").cloned());
        ready.and_then(|c| c["reason"].as_str().map(str::to_owned)).unwrap_or_default()
    };
    status::wait_for(&controller.manifests, LIMIT, |r| r.get(key).is_some_and(|m| reason(m) == "UserDataNotFound")).unwrap();
    assert_eq!(stack.sim.control().leftovers().unwrap(), before, "nothing is made without it");
    let secrets = controller.manifests.join("secrets");
    fs::create_dir_all(secrets.join("talos-1")).unwrap();
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(secrets.join("talos-1/controlplane.yaml"), SECRET).unwrap();
    // It runs, so PVE has read it.
    status::wait_for(&controller.manifests, LIMIT, |r| r.get(key).is_some_and(|m| condition(m, "Ready") == "True")).unwrap();
    let snippets = stack.snippets("pve1");
    assert_eq!(snippets.values().collect::<Vec<_>>(), [SECRET]);
    let configs = fs::read_dir(stack.sim.node("pve1").etc_pve().join("nodes/pve1/qemu-server")).unwrap().flatten();
    let config = configs.map(|f| fs::read_to_string(f.path()).unwrap()).find(|c| c.contains("name: talos-1")).unwrap();
    let line = format!("cicustom: user=local:snippets/{}", snippets.keys().next().unwrap());
    assert!(config.lines().any(|l| l == line) && !config.contains("ciuser"), "{line}\n{config}");
    for told in fs::read_dir(&controller.manifests).unwrap().flatten().filter(|f| f.path().is_file()) {
        assert!(!fs::read_to_string(told.path()).unwrap().contains("correct-horse"), "{}", told.path().display());
    }
    assert!(!controller.log().contains("correct-horse") && !stack.agents["pve1"].log().contains("correct-horse"));
    controller.remove("talos-1.yaml");
    status::wait_for(&controller.manifests, LIMIT, |r| !r.contains_key(key)).unwrap();
    assert_eq!((stack.sim.control().leftovers().unwrap(), stack.snippets("pve1").len()), (before, 0));
}

#[tokio::test]
async fn a_storage_that_keeps_no_snippets_is_told_before_anything_is_made() {
    let mut stack = Stack::start(pvelet_tests::StackOptions { start_agents: false, ..Default::default() });
    stack.sim.control().call(&Request::SeedTemplate(Seed { size_mib: 64, fill_mib: 1, ..Seed::new("pve1", 9000, "template") })).unwrap();
    stack.agent("pve1").extra.insert("vm".into(), "snippets_storage = \"nowhere\"".into());
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let before = stack.sim.control().leftovers().unwrap();
    let mut request = client.clone_request("nowhere", 9000, "web");
    let cloud_init = v1::CloudInit { user_data: Some(SECRET.into()), ..Default::default() };
    request.config.as_mut().unwrap().cloud_init = Some(cloud_init);
    let refused = Refusal::of(client.clone_vm(request).await);
    refused.is(Code::FailedPrecondition, "USER_DATA_STORAGE", "nowhere");
    assert!(refused.text.contains("vm.snippets_storage"), "{}", refused.text);
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
}
