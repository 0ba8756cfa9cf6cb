//! A new CA, step by step as `pveletctl pki rollover` tells, under load: no call fails.

use std::{
    os::unix::process::ExitStatusExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use pvelet_controller::{agents::Agents, pki::Crl, tls::Credentials};
use pvelet_tests::agent::SOON;

use super::*;

/// Calls, each over a connection of its own, until told to stop; returns those that failed.
fn load(
    world: &World,
    node: &str,
    files: &CredentialFiles,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicUsize>,
) -> tokio::task::JoinHandle<Vec<String>> {
    let (stop, done) = (Arc::clone(stop), Arc::clone(done));
    let credentials = Credentials::load(files.clone()).unwrap();
    let target = Client::new(&world.stack.agents[node], credentials.clone()).agent.target().clone();
    tokio::spawn(async move {
        let mut failures = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            match Agents::new(credentials.clone(), Default::default()).set(target.clone()).get_host().await {
                Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    })
}

async fn more_calls(done: &AtomicUsize) {
    let target = done.load(Ordering::Relaxed) + 20;
    let wait = async {
        while done.load(Ordering::Relaxed) < target {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("calls go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_is_replaced_on_all_hosts_without_a_call_that_fails() {
    let world = World::new(vec!["pve1", "pve2"]);
    let reader = world.stack.pki.role(Role::Reader, "reader");
    let files = CredentialFiles { ca: world.stack.pki.dir.ca_cert_path(), cert: reader.0.clone(), key: reader.1.clone() };
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = ["pve1", "pve2"].iter().map(|node| load(&world, node, &files, &stop, &done)).collect();
    let old = world.served("pve1").await;
    let pki = &world.stack.pki.dir;
    more_calls(&done).await;

    let refused = world.pki(&["rollover", "finish"]);
    assert!(refused.status.success() && text(&refused.stderr).contains("nothing was changed"), "{}", text(&refused.stderr));
    good(&world.pki(&["rollover", "start", "--days", "20"]));
    assert_eq!(world.json(&["rollover", "status"]).1["phase"], "started");
    assert_eq!(pki.ca().unwrap().cert_pem(), world.stack.pki.ca.cert_pem(), "the old one signs on");
    more_calls(&done).await;
    let (status, all) = world.json(&["push", "--all"]);
    assert_eq!(status, 0, "{all:#}");
    assert_eq!(all["hosts"][1]["client_cas"].as_array().unwrap().len(), 2);
    more_calls(&done).await;

    good(&world.pki(&["rollover", "switch"]));
    more_calls(&done).await;
    let (status, all) = world.json(&["renew", "--all"]);
    assert_eq!(status, 0, "{all:#}");
    assert!(all["hosts"].as_array().unwrap().iter().all(|row| row["result"] == "renewed"), "those of the old CA are due: {all:#}");
    let new = world.served("pve1").await;
    assert!(new.issuer_key_id != old.issuer_key_id && new.serial != old.serial);
    more_calls(&done).await;

    // The clients: the administrator, the one under load, and whatever else the old CA issued.
    let refused = world.pki(&["rollover", "finish"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("certificates of the old CA still live"), "{}", text(&refused.stderr));
    let ca = pki.ca().unwrap();
    let days = pvelet_controller::pki::Lifetime::days;
    for (role, name, pair) in [(Role::Reader, "reader", Some(&reader)), (Role::Admin, "ann", None), (Role::Admin, "admin", None)] {
        let issued = ca.issue_role(role, name, days(9)).unwrap();
        let issued_at = match pair {
            Some(pair) => pair.clone(),
            None => (world.path(&format!("certs/admin-{name}.crt")), world.path(&format!("certs/admin-{name}.key"))),
        };
        pki.keep(&issued.serial, &issued.cert_pem).unwrap();
        pvelet_controller::pki::write_private(&issued_at.1, issued.key_pem.as_bytes(), true).unwrap();
        pvelet_controller::pki::write_public(&issued_at.0, issued.cert_pem.as_bytes(), true).unwrap();
    }
    more_calls(&done).await;
    let status = world.json(&["rollover", "status"]).1;
    let alive = status["cas"][1]["alive"].as_array().unwrap().clone();
    assert!(!alive.is_empty(), "{status:#}");
    for certificate in &alive {
        let serial = certificate.as_str().unwrap().rsplit(' ').next().unwrap();
        good(&world.pki(&["revoke", serial]));
    }
    good(&world.pki(&["rollover", "finish"]));
    assert_eq!(world.json(&["rollover", "status"]).1["phase"], "none");
    let (status, all) = world.json(&["push", "--all"]);
    assert_eq!(status, 0, "{all:#}");
    assert_eq!(all["hosts"][0]["client_cas"].as_array().unwrap().len(), 1);
    more_calls(&done).await;
    stop.store(true, Ordering::Relaxed);
    for call in calls {
        assert_eq!(call.await.unwrap(), Vec::<String>::new());
    }
    assert!(!world.path("pki/previous").exists() && !world.path("pki/next").exists(), "the old CA's key is gone");
}

#[test]
fn a_finish_that_is_killed_between_any_two_steps_forgets_nothing_that_was_revoked() {
    for point in ["pki.finish.retired", "pki.finish.decided", "pki.bundle.written:1", "pki.bundle.written:2"] {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("pki").display().to_string();
        let pki = |args: &[&str]| {
            let mut command = Command::new(program("pveletctl"));
            command.arg("pki").args(args).args(["--dir", &dir]);
            command
        };
        let done = |args: &[&str]| good(&pki(args).output().unwrap());
        done(&["init", "--trust-domain", "pvelet.example"]);
        done(&["issue", "person", "--role", "reader", "ann"]);
        done(&["revoke", "spiffe://pvelet.example/role/reader/ann"]);
        done(&["rollover", "start"]);
        done(&["rollover", "switch"]);
        let both = lists(temp.path());
        assert_eq!(both, [(1, 0), (2, 1)]);
        let killed = pki(&["rollover", "finish"]).env("PVELET_CRASH_AT", point).output().unwrap();
        assert_eq!(killed.status.signal(), Some(9), "{point}: {}", text(&killed.stderr));
        // Either the old one is still there with all that it revoked, or it is none of this folder any more.
        let decided = point != "pki.finish.retired";
        let status: Value = serde_json::from_str(&done(&["rollover", "status", "--output", "json"])).unwrap();
        assert_eq!(status["phase"], if decided { "none" } else { "switched" }, "{point}");
        assert!(decided || lists(temp.path()) == both, "{point}");
        done(&["rollover", "finish"]);
        assert_eq!(lists(temp.path()), [(1, 0)], "{point}");
        let bundle = fs::read_to_string(temp.path().join("pki/ca.crt")).unwrap();
        assert_eq!(CertInfo::all_from_pem(&bundle).unwrap().len(), 1, "{point}");
        for left in ["previous", "finished"] {
            assert!(!temp.path().join("pki").join(left).exists(), "{point}: the old key is gone");
        }
    }
}

/// Number and length of every list in the CA's folder.
fn lists(dir: &Path) -> Vec<(u64, usize)> {
    let text = fs::read_to_string(dir.join("pki/ca.crl")).unwrap();
    Crl::all_from_pem(&text).unwrap().iter().map(|list| (list.number(), list.list().len())).collect()
}
