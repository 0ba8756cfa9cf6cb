//! User data on its way from a folder to an agent.

use std::os::unix::fs::PermissionsExt;

use super::*;

const SPEC: &str = ", cloudInit: {nameservers: [10.0.0.1], userData: {secretRef: {name: worker, key: talos}}}";

impl Bench {
    fn add_secret(&self, name: &str, key: &str, data: &[u8]) {
        let folder = self.path().join("secrets");
        fs::create_dir_all(folder.join(name)).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(folder.join(name).join(key), data).unwrap();
    }

    /// User data of each clone that was asked for.
    fn given(&self) -> Vec<Option<Vec<u8>>> {
        let state = self.cluster.lock();
        state.cloned.iter().map(|r| r.config.as_ref().and_then(|c| c.cloud_init.as_ref()).and_then(|c| c.user_data.clone())).collect()
    }
}

/// The reason of `Ready`.
fn why(machine: &PveMachine) -> String {
    machine.status.conditions.iter().find(|c| c.kind == "Ready").map(|c| c.reason.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_machine_waits_for_its_user_data_and_is_made_with_it() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", SPEC);
    let waits = running.until::<Machine>("web-1", |m| why(m) == "UserDataNotFound").await;
    let told = waits.status.conditions.iter().find(|c| c.kind == "Ready").unwrap();
    assert!(told.message.contains("Secret default/worker does not exist") && told.message.contains("secrets/worker"), "{told:?}");
    bench.add_secret("worker", "other", b"x");
    running.until::<Machine>("web-1", |m| why(m) == "UserDataKeyNotFound").await;
    assert!(bench.given().is_empty(), "nothing was asked of the agent");
    bench.add_secret("worker", "talos", b"token: s3cret");
    let made = running.until::<Machine>("web-1", ready).await;
    assert_eq!(bench.given(), [Some(b"token: s3cret".to_vec())]);
    assert!(!format!("{made:?}").contains("s3cret"));
    for entry in fs::read_dir(bench.path()).unwrap() {
        let path = entry.unwrap().path();
        assert!(!path.is_file() || !fs::read_to_string(&path).unwrap().contains("s3cret"), "{}", path.display());
    }
}

#[tokio::test]
async fn nothing_is_written_while_the_same_user_data_is_missing() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", SPEC);
    // It fails once, and says so.
    let told = running.until::<Machine>("web-1", |m| why(m) == "UserDataNotFound" && m.status.operation.is_none()).await;
    let passes = running.passes();
    let tried = timeout(DEADLINE, async {
        while running.passes() < passes + 4.0 {
            tokio::task::yield_now().await;
        }
    });
    tried.await.unwrap();
    let now = running.until::<Machine>("web-1", |_| true).await;
    assert_eq!((now.metadata.resource_version, now.status), (told.metadata.resource_version, told.status));
    // Another reason is told, once too.
    bench.add_secret("worker", "other", b"x");
    let other = running.until::<Machine>("web-1", |m| why(m) == "UserDataKeyNotFound" && m.status.operation.is_none()).await;
    assert_eq!(other.status.attempt, 2);
    bench.add_secret("worker", "talos", b"one");
    let made = running.until::<Machine>("web-1", ready).await;
    assert_eq!((made.status.attempt, bench.given()), (4, vec![Some(b"one".to_vec())]));
}

#[tokio::test]
async fn a_vm_that_was_made_is_not_touched_by_other_user_data() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_secret("worker", "talos", b"one");
    bench.add_machine("web-1", SPEC);
    running.until::<Machine>("web-1", ready).await;
    bench.add_secret("worker", "talos", b"two");
    bench.add_machine("web-1", &SPEC.replace("talos", "other"));
    let seen = |m: &PveMachine| ready(m) && m.status.observed_generation == 2;
    running.until::<Machine>("web-1", seen).await;
    // A setting beside it is changed, and says nothing about it.
    bench.add_machine("web-1", &format!("{}, cores: 3", SPEC.replace("10.0.0.1", "10.0.0.2")));
    running.until::<Machine>("web-1", |m| ready(m) && m.status.verified_generation == 3).await;
    let configured = bench.cluster.lock().configured.clone();
    assert!(configured.iter().all(|c| c.cloud_init.as_ref().is_none_or(|c| c.user_data.is_none())), "{configured:?}");
    assert!(configured.iter().any(|c| c.cores == Some(3)) && configured.len() == 1, "{configured:?}");
    assert_eq!(bench.given(), [Some(b"one".to_vec())]);
}

#[tokio::test]
async fn an_agent_that_does_not_know_user_data_is_not_asked() {
    let bench = Bench::new(&["pve1"]).await;
    bench.agents[0].health.lock().old = true;
    let running = bench.start().await;
    bench.add_secret("worker", "talos", b"one");
    bench.add_machine("web-1", SPEC);
    // Its VMs are seen some time later.
    let told = |m: &PveMachine| m.status.conditions.iter().any(|c| c.kind == "Ready" && c.message.contains("does not know user data"));
    assert_eq!(why(&running.until::<Machine>("web-1", told).await), "NoHostFits");
    assert!(bench.given().is_empty());
}
